//! Who holds a VF, as sriov-cni says it: `pci/ADDRESS` holds the path of the owner's namespace, and a verb holds a lock
//! on `pci/vf_lock/ADDRESS.lock`. We refuse what it holds, and write the same for what we hold, so that it refuses that.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sandbox::Netns;

use super::SriovCni;
use crate::lease::lock_file;
use crate::{Error, PciAddress};

impl SriovCni {
    /// Waits at most `patience` for sriov-cni's own lock of the VF, which it holds until its process ends. To be taken
    /// after [`crate::Leases::lock`].
    pub async fn lock(&self, pci: PciAddress, patience: Duration) -> Result<File, Error> {
        let path = self.root.join("pci/vf_lock").join(format!("{pci}.lock"));
        let failed = |step, source| Error::Lease { step, path: path.clone(), source };
        make_directory(&path).map_err(|e| failed("make the directory of", e))?;
        let file = File::options().create(true).truncate(false).write(true).open(&path);
        let file = file.map_err(|e| failed("open", e))?;
        let locked = tokio::time::timeout(patience, lock_file(file)).await;
        locked.map_err(|_| Error::LockTimeout { path: path.clone() })?.map_err(|e| failed("lock", e))
    }

    /// The namespace's path of who holds the VF. An empty file says nothing: some releases lock it before they write.
    pub fn holder(&self, pci: PciAddress) -> Result<Option<PathBuf>, Error> {
        let path = self.allocation(pci);
        match fs::read(&path) {
            Ok(text) => Ok((!text.is_empty()).then(|| OsStr::from_bytes(&text).into())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(Error::Lease { step: "read", path, source }),
        }
    }

    /// Refuses a VF that a living namespace holds, but for `ours`: the one that the lease names.
    pub fn refuse_if_held(&self, pci: PciAddress, ours: Option<&Path>) -> Result<(), Error> {
        match self.holder(pci)?.filter(|holder| Some(holder.as_path()) != ours) {
            Some(netns) if is_namespace(&netns).map_err(|source| Error::Kernel { pci, source })? => {
                Err(Error::Allocated { pci, netns })
            }
            _ => Ok(()),
        }
    }

    /// Says that the namespace holds the VF, whoever held it before: one that is dead is forgotten so. In place, as
    /// sriov-cni writes it: a torn path leads nowhere and counts as dead, while a temporary name in this directory would be
    /// another VF's to it.
    pub fn hold(&self, pci: PciAddress, netns: &Path) -> Result<(), Error> {
        let path = self.allocation(pci);
        fs::write(&path, netns.as_os_str().as_bytes()).map_err(|source| Error::Lease { step: "write", path, source })
    }

    /// Takes that back, if it is still so.
    pub fn release(&self, pci: PciAddress, netns: &Path) -> Result<(), Error> {
        match self.holder(pci)? {
            Some(holder) if holder != netns => Ok(()),
            _ => self.forget_holder(pci),
        }
    }

    fn allocation(&self, pci: PciAddress) -> PathBuf {
        self.root.join("pci").join(pci.to_string())
    }

    /// Removes what is said of a holder that is dead.
    pub fn forget_dead(&self, pci: PciAddress) -> Result<(), Error> {
        match self.refuse_if_held(pci, None) {
            Err(Error::Allocated { .. }) => Ok(()),
            free => free.and_then(|()| self.forget_holder(pci)),
        }
    }

    /// Takes it back, whoever is said to hold the VF.
    pub fn forget_holder(&self, pci: PciAddress) -> Result<(), Error> {
        let path = self.allocation(pci);
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(Error::Lease { step: "remove", path, source })
            }
            _ => Ok(()),
        }
    }
}

/// Whether a path leads to a network namespace.
fn is_namespace(path: &Path) -> Result<bool, sandbox::Error> {
    match Netns::open(path) {
        Ok(_) => Ok(true),
        Err(sandbox::Error::NamespaceGone { .. } | sandbox::Error::NotANamespace { .. }) => Ok(false),
        Err(other) => Err(other),
    }
}

fn make_directory(file: &Path) -> io::Result<()> {
    file.parent().map_or(Ok(()), |parent| fs::DirBuilder::new().recursive(true).mode(0o700).create(parent))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vf() -> PciAddress {
        PciAddress::try_from("0000:01:10.2").unwrap()
    }

    #[test]
    fn a_living_holder_is_refused_in_sriov_cnis_words_unless_it_is_us() {
        let dir = tempfile::tempdir().unwrap();
        let files = SriovCni { root: dir.path().to_owned() };
        fs::create_dir(dir.path().join("pci")).unwrap();
        let living = Path::new("/proc/self/ns/net");
        files.refuse_if_held(vf(), None).unwrap();
        files.hold(vf(), living).unwrap();
        assert_eq!(fs::read_to_string(dir.path().join("pci/0000:01:10.2")).unwrap(), "/proc/self/ns/net");
        let error = files.refuse_if_held(vf(), None).unwrap_err();
        assert!(matches!(&error, Error::Allocated { pci, netns } if *pci == vf() && netns == living));
        assert!(error.to_string().starts_with("pci address 0000:01:10.2 is already allocated: "), "{error}");
        assert!(error.to_string().contains("/proc/self/ns/net"), "{error}");
        files.refuse_if_held(vf(), Some(living)).unwrap();
        assert_eq!(files.holder(vf()).unwrap().as_deref(), Some(living));
    }

    #[test]
    fn a_dead_or_torn_holder_is_none_and_another_ones_word_stays() {
        let dir = tempfile::tempdir().unwrap();
        let files = SriovCni { root: dir.path().to_owned() };
        fs::create_dir(dir.path().join("pci")).unwrap();
        // Gone, and a path that is no namespace.
        for netns in ["/nowhere/ns", "/proc/self/status"] {
            files.hold(vf(), Path::new(netns)).unwrap();
            files.refuse_if_held(vf(), None).unwrap();
            files.forget_dead(vf()).unwrap();
            assert_eq!(files.holder(vf()).unwrap(), None, "{netns}");
        }
        files.hold(vf(), Path::new("/proc/self/ns/net")).unwrap();
        files.forget_dead(vf()).unwrap();
        assert!(files.holder(vf()).unwrap().is_some(), "it lives");
        files.forget_holder(vf()).unwrap();
        assert_eq!(files.holder(vf()).unwrap(), None);
        files.hold(vf(), Path::new("")).unwrap();
        files.refuse_if_held(vf(), None).unwrap();
        files.release(vf(), Path::new("/a")).unwrap();
        assert!(!dir.path().join("pci/0000:01:10.2").exists(), "an empty file is nobody's");
        files.hold(vf(), Path::new("/b")).unwrap();
        files.release(vf(), Path::new("/a")).unwrap();
        assert_eq!(files.holder(vf()).unwrap().as_deref(), Some(Path::new("/b")));
        files.release(vf(), Path::new("/b")).unwrap();
        files.release(vf(), Path::new("/b")).unwrap();
        assert_eq!(files.holder(vf()).unwrap(), None);
    }
}
