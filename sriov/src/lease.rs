//! Who holds a VF. A lease is a small file that says so; a lock is held while anything is done with the VF. Both are
//! keyed by the PCI address, which names a VF for as long as it exists.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sandbox::NetnsId;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use crate::{Error, Original, PciAddress};

/// The format of a lease that this release writes; what says nothing has this one, too. Whoever adds a key that an older
/// release may pass over leaves the number alone.
const FORMAT: u32 = 1;

/// Who holds a VF.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// The call that attached it; an opaque key of the caller.
    pub call: String,
    /// UID of the pod, empty if unknown.
    pub pod_uid: String,
    /// The sandbox.
    pub netns: NetnsId,
    /// The boot in which it was attached: nothing survives another one.
    pub boot_id: String,
    /// The state to give the VF back in, once it was looked at. The lease outlives a record that is lost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub original: Option<Box<Original>>,
}

/// How a VF stands with one who wants it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// Nobody had it; it is now the asker's.
    Free,
    /// The asker's own call has it already.
    Ours,
    /// Its owner is dead: restore from that call's record, then [`Leases::take`]. None if the lease cannot be read (it
    /// was torn by a power cut), so nothing is known of the owner.
    Abandoned(Option<Owner>),
}

/// The leases of a node.
#[derive(Debug, Clone)]
pub struct Leases {
    /// Where leases are kept; survives a reboot.
    pub state: PathBuf,
    /// Where locks are kept; need not survive.
    pub locks: PathBuf,
    /// This boot (/proc/sys/kernel/random/boot_id).
    pub boot_id: String,
}

/// The exclusive right to work on one VF, until dropped.
#[derive(Debug)]
pub struct VfLock {
    pci: PciAddress,
    _file: File,
}

impl Leases {
    /// Waits at most `patience` for the lock of the VF. The file is never replaced or removed; should somebody do that
    /// all the same, a lock on a file that is no longer in place is not taken for one.
    pub async fn lock(&self, pci: PciAddress, patience: Duration) -> Result<VfLock, Error> {
        let path = self.locks.join(format!("vf-{pci}"));
        let failed = |step, source| Error::Lease { step, path: path.clone(), source };
        fs::create_dir_all(&self.locks).map_err(|e| failed("make the directory of", e))?;
        let timeout = tokio::time::Instant::now() + patience;
        loop {
            let file = File::options().create(true).truncate(false).write(true).open(&path);
            let file = file.map_err(|e| failed("open", e))?;
            let locked = tokio::time::timeout_at(timeout, lock_file(file)).await;
            let file = locked.map_err(|_| Error::LockTimeout { path: path.clone() })?.map_err(|e| failed("lock", e))?;
            let held = file.metadata().map_err(|e| failed("look at", e))?;
            match fs::metadata(&path) {
                Ok(there) if (there.dev(), there.ino()) == (held.dev(), held.ino()) => {
                    // Of a writer that was killed: under the lock there is no other.
                    let _ = fs::remove_file(self.draft(pci));
                    return Ok(VfLock { pci, _file: file });
                }
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(failed("look at", error)),
            }
        }
    }

    /// Asks for the VF on behalf of `owner`. Free: it is the owner's from now on. Held by a living sandbox of another
    /// call: [`Error::Busy`], which names it. Held by a dead one: nothing is changed, see [`Standing::Abandoned`]. With a
    /// lease of a newer release nobody gets it: [`Error::Newer`].
    pub fn acquire(&self, lock: &VfLock, owner: &Owner) -> Result<Standing, Error> {
        match self.read(lock.pci)? {
            Lease::None => {
                self.take(lock, owner)?;
                Ok(Standing::Free)
            }
            Lease::Unreadable => Ok(Standing::Abandoned(None)),
            Lease::Newer { format, .. } => {
                Err(Error::Newer { pci: lock.pci, path: self.path(lock.pci), format, known: FORMAT })
            }
            Lease::Held(holder) if holder.call == owner.call && holder.boot_id == owner.boot_id => Ok(Standing::Ours),
            Lease::Held(holder) => {
                if self.is_alive(lock.pci, &holder)? {
                    return Err(Error::Busy { pci: lock.pci, owner: Box::new(holder) });
                }
                Ok(Standing::Abandoned(Some(holder)))
            }
        }
    }

    /// Writes the lease, whoever had it. For [`Standing::Abandoned`], after restoring.
    pub fn take(&self, lock: &VfLock, owner: &Owner) -> Result<(), Error> {
        let path = self.path(lock.pci);
        let failed = |step, source| Error::Lease { step, path: path.clone(), source };
        fs::create_dir_all(self.directory()).map_err(|e| failed("make the directory of", e))?;
        let json =
            serde_json::to_vec(&Written { format: FORMAT, owner }).map_err(|e| failed("write", io::Error::other(e)))?;
        // Under the lock there is one writer, so the temporary name needs no randomness.
        let temporary = self.draft(lock.pci);
        write_new(&temporary, &json).map_err(|e| failed("write", e))?;
        fs::rename(&temporary, &path).map_err(|e| failed("put in place", e))
    }

    /// Gives the VF up if the call still holds it; false if it holds it no more, and then nothing is touched. The lease of
    /// a newer release stays: more may have been done to the VF than is known here.
    pub fn release(&self, lock: &VfLock, call: &str) -> Result<bool, Error> {
        match self.read(lock.pci)? {
            Lease::Held(holder) if holder.call == call => self.remove(lock).map(|()| true),
            Lease::Newer { format, owner } if owner.as_ref().is_none_or(|owner| owner.call == call) => {
                tracing::warn!(
                    vf = %lock.pci,
                    file = %self.path(lock.pci).display(),
                    format,
                    "a newer release wrote this lease: what is known of it here is undone, and it is kept; install that release again, whose GC removes it, or remove the file"
                );
                Ok(false)
            }
            Lease::Held(_) | Lease::Newer { .. } | Lease::None | Lease::Unreadable => Ok(false),
        }
    }

    /// Whether the VF has a lease that cannot be read: it was torn by a power cut.
    pub fn is_torn(&self, pci: PciAddress) -> Result<bool, Error> {
        Ok(matches!(self.read(pci)?, Lease::Unreadable))
    }

    /// Whether the VF has a lease, whatever can be read of it.
    pub fn is_leased(&self, pci: PciAddress) -> Result<bool, Error> {
        Ok(!matches!(self.read(pci)?, Lease::None))
    }

    /// Removes a lease that cannot be read. For one whose VF is known to be nobody's.
    pub fn forget_torn(&self, lock: &VfLock) -> Result<(), Error> {
        if self.is_torn(lock.pci)? { self.remove(lock) } else { Ok(()) }
    }

    /// Who holds the VF, as the lease says; dead or alive. None also if it cannot be read.
    pub fn owner(&self, pci: PciAddress) -> Result<Option<Owner>, Error> {
        match self.read(pci)? {
            Lease::Held(owner) => Ok(Some(owner)),
            Lease::Newer { owner, .. } => Ok(owner),
            Lease::None | Lease::Unreadable => Ok(None),
        }
    }

    /// The VFs that have a lease, or the draft of one, in order. A draft is gone once its VF was locked.
    pub fn list(&self) -> Result<Vec<PciAddress>, Error> {
        let directory = self.directory();
        let failed = |source| Error::Lease { step: "list", path: directory.clone(), source };
        let entries = match fs::read_dir(&directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(failed(error)),
        };
        let mut found = Vec::new();
        for entry in entries {
            let name = entry.map_err(failed)?.file_name();
            let pci = name.to_str().and_then(|name| name.strip_suffix(".json").or(name.strip_suffix(".tmp")));
            found.extend(pci.and_then(|pci| PciAddress::try_from(pci).ok()));
        }
        found.sort();
        found.dedup();
        Ok(found)
    }

    /// An owner lives while this boot lasts and its path leads to its namespace.
    pub fn is_alive(&self, pci: PciAddress, owner: &Owner) -> Result<bool, Error> {
        if owner.boot_id != self.boot_id {
            return Ok(false);
        }
        owner.netns.is_alive().map_err(|source| Error::Kernel { pci, source })
    }

    fn directory(&self) -> PathBuf {
        self.state.join("vfs")
    }

    fn remove(&self, lock: &VfLock) -> Result<(), Error> {
        let path = self.path(lock.pci);
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(Error::Lease { step: "remove", path, source })
            }
            _ => Ok(()),
        }
    }

    fn path(&self, pci: PciAddress) -> PathBuf {
        self.directory().join(format!("{pci}.json"))
    }

    /// Where a lease is written before it gets its name.
    fn draft(&self, pci: PciAddress) -> PathBuf {
        self.path(pci).with_extension("tmp")
    }

    fn read(&self, pci: PciAddress) -> Result<Lease, Error> {
        let path = self.path(pci);
        match fs::read(&path) {
            Ok(json) => Ok(Lease::parse(&json)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Lease::None),
            Err(source) => Err(Error::Lease { step: "read", path, source }),
        }
    }
}

enum Lease {
    None,
    Held(Owner),
    /// That of a newer release, and its owner if he can be read.
    Newer {
        format: u32,
        owner: Option<Owner>,
    },
    Unreadable,
}

/// A lease as it is written.
#[derive(Serialize)]
struct Written<'a> {
    format: u32,
    #[serde(flatten)]
    owner: &'a Owner,
}

/// What is asked of a lease of which nothing else may be known.
#[derive(Deserialize)]
struct Numbered {
    #[serde(default)]
    format: u32,
}

impl Lease {
    fn parse(json: &[u8]) -> Self {
        let owner = serde_json::from_slice::<Owner>(json).ok();
        match serde_json::from_slice(json) {
            Ok(Numbered { format }) if format > FORMAT => Self::Newer { format, owner },
            _ => owner.map_or(Self::Unreadable, Self::Held),
        }
    }
}

fn write_new(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(bytes)
}

/// flock(2) in the background. If the caller stops waiting, the thread gets the lock some day and drops it at once.
pub(crate) async fn lock_file(file: File) -> io::Result<File> {
    match file.try_lock() {
        Ok(()) => return Ok(file),
        Err(fs::TryLockError::WouldBlock) => {}
        Err(fs::TryLockError::Error(error)) => return Err(error),
    }
    let (sender, receiver) = oneshot::channel();
    std::thread::Builder::new().name("vf-lock".to_owned()).spawn(move || {
        let locked = file.lock().map(|()| file);
        // Nobody listens any more: the file is closed, and so unlocked.
        drop(sender.send(locked));
    })?;
    receiver.await.map_err(io::Error::other)?
}
