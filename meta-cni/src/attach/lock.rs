//! One verb at a time in a sandbox, across our processes and the plugins they left running.

use std::{
    fs::{self, File, OpenOptions},
    os::{fd::AsFd, unix::fs::MetadataExt},
    path::{Path, PathBuf},
    time::Duration,
};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use tokio::time::{Instant, sleep};

use super::record::{Entry, Records};
use crate::cni::{Error, start_time};

/// How long plugins of a process that died may go on before they are ended.
const ORPHAN_PATIENCE: Duration = Duration::from_secs(10);
/// How long a verb waits for another one of the same sandbox.
const PATIENCE: Duration = Duration::from_secs(30);

/// The lock of a sandbox. Plugins inherit its descriptor: if we are killed, the next verb waits for them.
#[derive(Debug)]
pub(super) struct SandboxLock {
    file: File,
    path: PathBuf,
}

impl SandboxLock {
    /// Takes the lock. Plugins that a dead process left running are ended after [`ORPHAN_PATIENCE`].
    ///
    /// # Errors
    /// [`Error::TryLater`] when another verb holds it for too long, [`Error::Io`].
    pub(super) async fn take(
        path: PathBuf,
        container: &str,
        records: &Records,
        deadline: Instant,
    ) -> Result<Self, Error> {
        let begun = Instant::now();
        let mut pause = Duration::from_millis(2);
        loop {
            if let Some(lock) = Self::try_take(&path)? {
                return Ok(lock);
            }
            let waited = begun.elapsed();
            if waited > ORPHAN_PATIENCE {
                end_orphans(records, container)?;
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

    fn try_take(path: &Path) -> Result<Option<Self>, Error> {
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
        Ok(Some(Self { file, path: path.to_owned() }))
    }

    /// Removes the lock's file, and what is left of the container in the journal: it has no record any more.
    pub(super) fn remove(self, records: &Records, container: &str) {
        records.tidy(container);
        // A file that stays is an empty one in a tmpfs; the next boot takes it along.
        let _ = fs::remove_file(&self.path);
        drop(self.file);
    }
}

/// Ends the plugins whose own process, one of ours, is gone.
fn end_orphans(records: &Records, container: &str) -> Result<(), Error> {
    for entry in records.of_container(container)? {
        let Entry::Good(record) = entry else { continue };
        let alive = record
            .worker
            .is_some_and(|worker| u32::try_from(worker.id).ok().and_then(start_time) == Some(worker.start_time));
        if let Some(plugin) = record.plugin.filter(|_| !alive) {
            tracing::warn!(network = record.title(), group = plugin.id, "ending a plugin that was left running");
            plugin.end();
        }
    }
    Ok(())
}
