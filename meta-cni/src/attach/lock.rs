//! One verb at a time in a sandbox, across our processes and the plugins they left running.

use std::{
    fs::{self, OpenOptions},
    os::{fd::AsFd, unix::fs::MetadataExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use tokio::time::{Instant, sleep};

use super::record::Records;
use crate::{
    cni::{Error, Ledger},
    node::Layout,
};

/// How long plugins of a process that died may go on before they are ended.
const ORPHAN_PATIENCE: Duration = Duration::from_secs(10);
/// How long a verb waits for another one of the same sandbox.
const PATIENCE: Duration = Duration::from_secs(30);

/// The lock of a sandbox. Plugins inherit its descriptor: if we are killed, the next verb waits for them.
#[derive(Debug)]
pub(super) struct SandboxLock {
    ledger: Ledger,
    path: PathBuf,
}

impl SandboxLock {
    /// Takes the lock. Plugins that a dead process left running are ended after [`ORPHAN_PATIENCE`].
    ///
    /// # Errors
    /// [`Error::TryLater`] when another verb holds it for too long, [`Error::Io`].
    pub(super) async fn take(path: PathBuf, container: &str, deadline: Instant) -> Result<Self, Error> {
        let begun = Instant::now();
        let mut pause = Duration::from_millis(2);
        loop {
            if let Some(lock) = Self::try_take(&path)? {
                return Ok(lock);
            }
            let waited = begun.elapsed();
            if waited > ORPHAN_PATIENCE {
                end_orphans(&path);
            }
            if waited > PATIENCE || Instant::now() + pause >= deadline {
                return Err(Error::TryLater(format!(
                    "another verb, or a plugin it left running, still works on container {container} after {} s (lock {})",
                    waited.as_secs(),
                    path.display()
                )));
            }
            sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(100));
        }
    }

    /// Takes the lock if nobody holds it: for who holds another one, and must not wait.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(super) fn try_take(path: &Path) -> Result<Option<Self>, Error> {
        let failed = |source| Error::io("lock", path.display(), source);
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(path).map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => return Ok(None),
            Err(fs::TryLockError::Error(source)) => return Err(failed(source)),
        }
        // The holder before may have removed the file: then this lock is of a file that nobody else will find.
        let same =
            |there: fs::Metadata| file.metadata().is_ok_and(|own| (own.dev(), own.ino()) == (there.dev(), there.ino()));
        if !fs::metadata(path).is_ok_and(same) {
            return Ok(None);
        }
        fcntl(file.as_fd(), FcntlArg::F_SETFD(FdFlag::empty())).map_err(|errno| failed(errno.into()))?;
        Ok(Some(Self { ledger: Ledger::new(Arc::new(file)), path: path.to_owned() }))
    }

    /// Where the plugins that run under the lock are noted.
    pub(super) fn ledger(&self) -> Ledger {
        self.ledger.clone()
    }

    /// Removes the locks of containers that have no record, and that nobody holds: a call was killed before it wrote the
    /// first one, or after it removed the last.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(super) fn sweep(layout: &Layout, records: &Records) -> Result<(), Error> {
        let locks = layout.locks();
        let failed = |source| Error::io("read", locks.display(), source);
        for entry in fs::read_dir(&locks).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            let Some(container) = name.to_str().and_then(|name| name.strip_prefix(layout.sandbox_lock_prefix())) else {
                continue;
            };
            let Some(lock) = Self::try_take(&locks.join(&name))? else { continue };
            if records.of_container(container)?.is_empty() {
                records.tidy(container);
                lock.remove_file();
            }
        }
        Ok(())
    }

    /// Removes the lock's file, while it is held.
    pub(super) fn remove_file(&self) {
        // A file that stays is a small one in a tmpfs; the next boot takes it along.
        let _ = fs::remove_file(&self.path);
    }
}

/// Ends the plugin whose own process, one of ours, is gone.
fn end_orphans(path: &Path) {
    let note = fs::read_to_string(path).ok().and_then(|text| Ledger::read(&text));
    if let Some(note) = note.filter(|note| !note.worker.is_alive() && note.plugin.is_alive()) {
        tracing::warn!(lock = %path.display(), group = note.plugin.id, "ending a plugin that was left running");
        note.plugin.end();
    }
}
