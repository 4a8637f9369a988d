//! The node's file system as it is seen here: below a prefix in a container, at its root on the node itself. Files get
//! their names whole and on disk, or not at all; one at a time installs.

use std::{
    fs::{self, DirBuilder, File},
    io::{self, Read},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{AT_FDCWD, RenameFlags, renameat2},
};

use crate::cni::Error;

/// What the names of our temporary files begin with. Who holds the lock may remove them: nobody else writes one.
const DRAFT: &str = ".meta-cni-tmp-";
/// How much of two files is compared at once.
const BLOCK: usize = 64 * 1024;

/// The directories that we write to, each by its path on the node.
#[derive(Debug, Clone)]
pub(super) struct Host {
    /// Where the node's root is seen.
    pub(super) root: PathBuf,
    /// Where runtimes look for plugins.
    pub(super) bin: PathBuf,
    /// Where runtimes look for configurations.
    pub(super) net_d: PathBuf,
    /// Our state.
    pub(super) state: PathBuf,
}

impl Host {
    /// Where a path of the node is seen here.
    pub(super) fn seen(&self, path: &Path) -> PathBuf {
        self.root.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// Whether the node's root is ours: nothing of it is hidden from us.
    pub(super) fn is_here(&self) -> bool {
        self.root == Path::new("/")
    }

    /// A file in the runtime's directory, as it is seen here.
    pub(super) fn conf(&self, name: &str) -> PathBuf {
        self.seen(&self.net_d).join(name)
    }

    /// A program, as it is seen here.
    pub(super) fn program(&self, name: &str) -> PathBuf {
        self.seen(&self.bin).join(name)
    }

    /// Where token, CA and kubeconfig are kept, on the node.
    pub(super) fn credentials(&self) -> PathBuf {
        self.state.join("credentials")
    }

    /// Makes the directories.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(super) fn create(&self) -> Result<(), Error> {
        make_directory(&self.seen(&self.bin), 0o755)?;
        make_directory(&self.seen(&self.net_d), 0o755)?;
        make_directory(&self.seen(&self.state), 0o700)
    }

    /// Waits until nobody else installs or uninstalls; holds until the file is dropped. The directory itself is locked, so
    /// nothing is left of it.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(super) fn lock(&self) -> Result<File, Error> {
        let path = self.seen(&self.net_d);
        let failed = |source| Error::io("lock", path.display(), source);
        let directory = File::open(&path).map_err(failed)?;
        directory.lock().map_err(failed)?;
        Ok(directory)
    }

    /// Says that somebody stays here to keep the installation as it is, until the file is dropped, or the directory is
    /// another one.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(super) fn stay(&self) -> Result<File, Error> {
        let path = self.seen(&self.state);
        let failed = |source| Error::io("lock", path.display(), source);
        let directory = File::open(&path).map_err(failed)?;
        directory.lock_shared().map_err(failed)?;
        Ok(directory)
    }

    /// Whether what somebody who stays holds is still our state's directory: one who uninstalled may have removed it.
    pub(super) fn is_held_by(&self, directory: &File) -> bool {
        let id = |there: fs::Metadata| (there.dev(), there.ino());
        fs::metadata(self.seen(&self.state)).is_ok_and(|now| directory.metadata().is_ok_and(|held| id(held) == id(now)))
    }

    /// Whether somebody stays here.
    pub(super) fn is_kept(&self) -> bool {
        let directory = File::open(self.seen(&self.state));
        directory.is_ok_and(|directory| matches!(directory.try_lock(), Err(fs::TryLockError::WouldBlock)))
    }

    /// Removes what killed installers left half written. Only under the lock.
    pub(super) fn sweep(&self) {
        for directory in [&self.bin, &self.net_d, &self.state, &self.credentials()] {
            let directory = self.seen(directory);
            let is_left = |name: &&String| name.starts_with(DRAFT);
            for name in names_in(&directory).iter().filter(is_left) {
                // What stays is a file that nobody reads; the next one tries again.
                let _ = fs::remove_file(directory.join(name));
            }
        }
    }
}

/// The names in a directory, sorted; none if it is not there.
pub(super) fn names_in(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    names
}

/// Makes a directory of a mode; one that is there stays as it is, and those above it are made for all to enter.
fn make_directory(path: &Path, mode: u32) -> Result<(), Error> {
    let failed = |source| Error::io("make directory", path.display(), source);
    if let Some(above) = path.parent() {
        fs::create_dir_all(above).map_err(failed)?;
    }
    DirBuilder::new().recursive(true).mode(mode).create(path).map_err(failed)
}

/// Makes a directory for root alone.
///
/// # Errors
/// [`Error::Io`].
pub(super) fn make_private(path: &Path) -> Result<(), Error> {
    make_directory(path, 0o700)
}

/// A file without content beside another one, to be given that one's name. Only under the lock.
pub(super) fn draft_beside(path: &Path) -> io::Result<tempfile::NamedTempFile> {
    tempfile::Builder::new().prefix(DRAFT).tempfile_in(path.parent().unwrap_or(Path::new("/")))
}

/// Puts a file in its place: beside it first, synced, read back and compared, then by a rename that is synced, too. Gives
/// false if just that was there.
///
/// # Errors
/// [`Error::Io`]; what was there before is there still.
pub(super) fn place(path: &Path, content: &[u8], mode: u32) -> Result<bool, Error> {
    place_from(path, &mut io::Cursor::new(content), mode)
}

/// [`place`], with a content that is read from somewhere.
///
/// # Errors
/// As [`place`].
pub(super) fn place_from(path: &Path, content: &mut (impl Read + io::Seek), mode: u32) -> Result<bool, Error> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    let mut write = || -> io::Result<bool> {
        if is_there(path, content, mode)? {
            return Ok(false);
        }
        let mut draft = draft_beside(path)?;
        content.rewind()?;
        io::copy(content, draft.as_file_mut())?;
        draft.as_file().set_permissions(fs::Permissions::from_mode(mode))?;
        draft.as_file().sync_all()?;
        content.rewind()?;
        if !same(content, &mut File::open(draft.path())?)? {
            return Err(io::Error::other("what was written does not read back as it was"));
        }
        draft.persist(path).map_err(|error| error.error)?;
        File::open(directory)?.sync_all()?;
        Ok(true)
    };
    write().map_err(|source| Error::io("write", path.display(), source))
}

/// Whether a plain file has this content and mode.
fn is_there(path: &Path, content: &mut (impl Read + io::Seek), mode: u32) -> io::Result<bool> {
    let Ok(there) = fs::symlink_metadata(path) else { return Ok(false) };
    let length = content.seek(io::SeekFrom::End(0))?;
    if !there.is_file() || there.mode() & 0o7777 != mode || there.len() != length {
        return Ok(false);
    }
    content.rewind()?;
    same(content, &mut File::open(path)?)
}

fn same(one: &mut impl Read, other: &mut impl Read) -> io::Result<bool> {
    let (mut left, mut right) = (Vec::with_capacity(BLOCK), Vec::with_capacity(BLOCK));
    loop {
        left.clear();
        right.clear();
        one.by_ref().take(BLOCK as u64).read_to_end(&mut left)?;
        other.by_ref().take(BLOCK as u64).read_to_end(&mut right)?;
        if left != right || left.is_empty() {
            return Ok(left == right);
        }
    }
}

/// Gives a file a second name, in place of whatever has that.
///
/// # Errors
/// [`Error::Io`].
pub(super) fn place_second_name(of: &Path, path: &Path) -> Result<(), Error> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    let work = || -> io::Result<()> {
        let draft = tempfile::Builder::new().prefix(DRAFT).make_in(directory, |draft| fs::hard_link(of, draft))?;
        fs::rename(draft.path(), path)?;
        // There is nothing under that name any more; two names of one file, though, and rename(2) does nothing.
        drop(draft);
        sync(directory)
    };
    work().map_err(|source| Error::io("write", path.display(), source))
}

/// Gives a file another name, in place of whatever has that.
///
/// # Errors
/// [`Error::Io`].
pub(super) fn rename(from: &Path, to: &Path) -> Result<(), Error> {
    fs::rename(from, to)
        .and_then(|()| sync(to.parent().unwrap_or(Path::new("/"))))
        .map_err(|source| Error::io("rename", format!("{} to {}", from.display(), to.display()), source))
}

/// Gives a file another name, if nothing has that. Gives whether it did.
///
/// # Errors
/// [`Error::Io`].
pub(super) fn rename_if_free(from: &Path, to: &Path) -> Result<bool, Error> {
    let failed = |source| Error::io("rename", format!("{} to {}", from.display(), to.display()), source);
    match renameat2(AT_FDCWD, from, AT_FDCWD, to, RenameFlags::RENAME_NOREPLACE) {
        Err(Errno::EEXIST) => Ok(false),
        Err(errno) => Err(failed(errno.into())),
        Ok(()) => sync(to.parent().unwrap_or(Path::new("/"))).map(|()| true).map_err(failed),
    }
}

/// Whether these are two names of one file.
pub(super) fn are_one(one: &Path, other: &Path) -> bool {
    let identity = |path: &Path| fs::symlink_metadata(path).map(|there| (there.dev(), there.ino())).ok();
    identity(one).is_some_and(|identity_of_one| identity(other) == Some(identity_of_one))
}

/// Removes a file; gives whether there was one.
///
/// # Errors
/// [`Error::Io`].
pub(super) fn remove(path: &Path) -> Result<bool, Error> {
    match fs::remove_file(path) {
        Ok(()) => sync(path.parent().unwrap_or(Path::new("/")))
            .map(|()| true)
            .map_err(|source| Error::io("sync", path.display(), source)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(source) => Err(Error::io("remove", path.display(), source)),
    }
}

fn sync(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_written_once_and_whatever_had_its_name_is_replaced() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("file");
        assert!(place(&path, b"one", 0o600).unwrap());
        assert!(!place(&path, b"one", 0o600).unwrap());
        assert!(place(&path, b"one", 0o755).unwrap(), "another mode");
        assert!(place(&path, b"two", 0o755).unwrap());
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("second", &path).unwrap();
        assert!(place(&path, b"two", 0o600).unwrap(), "a link is no plain file");
        place_second_name(&path, &root.path().join("second")).unwrap();
        place_second_name(&path, &root.path().join("second")).unwrap();
        assert_eq!(names_in(root.path()), ["file", "second"]);
    }

    #[test]
    fn contents_are_compared_to_their_ends() {
        let long = vec![7; 3 * BLOCK + 1];
        for (one, other, wanted) in [
            (&long[..], &long[..], true),
            (&long[..], &long[..3 * BLOCK], false),
            (&long[..2 * BLOCK], &long[..], false),
            (b"", b"", true),
            (b"a", b"b", false),
        ] {
            assert_eq!(same(&mut &one[..], &mut &other[..]).unwrap(), wanted, "{} {}", one.len(), other.len());
        }
    }

    #[test]
    fn paths_of_the_node_are_seen_below_the_prefix() {
        let host = Host { root: "/host".into(), bin: "/b".into(), net_d: "/etc/c".into(), state: "/s".into() };
        assert_eq!(host.conf("a"), Path::new("/host/etc/c/a"));
        assert!(!host.is_here());
        assert_eq!(Host { root: "/".into(), ..host }.seen(Path::new("/x")), Path::new("/x"));
    }
}
