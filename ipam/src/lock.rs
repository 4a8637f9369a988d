//! The pool's lock: flock(2) on the file `lock` in the pool's directory, the very one host-local takes.

use std::fmt;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use nix::sys::stat::{major, minor};

use crate::Error;

/// Name of the lock file in a pool.
pub(crate) const LOCK_FILE: &str = "lock";

/// So often others get the processor before we queue for the lock.
const YIELDS: usize = 4;

/// The lock of a pool, given back when dropped or when the process dies.
#[derive(Debug)]
pub(crate) struct PoolLock {
    file: File,
}

impl PoolLock {
    /// Takes the lock of the pool in `directory`, waiting for it at most `wait`. `None` if there is no such directory.
    ///
    /// # Errors
    /// [`Error::LockTimeout`] if another process keeps it, [`Error::Io`] if it cannot be opened or locked.
    pub(crate) fn take(directory: &Path, wait: Duration) -> Result<Option<PoolLock>, Error> {
        let path = directory.join(LOCK_FILE);
        loop {
            let lock = PoolLock::of_file(&path, wait)?;
            // The pool may have been removed and made anew while we waited: then this is the lock of nothing.
            if lock.as_ref().is_none_or(|lock| lock.is_at(&path)) {
                return Ok(lock);
            }
        }
    }

    fn is_at(&self, path: &Path) -> bool {
        let place = |found: fs::Metadata| (found.dev(), found.ino());
        let (own, there) = (self.file.metadata().map(place), fs::metadata(path).map(place));
        matches!((own, there), (Ok(own), Ok(there)) if own == there)
    }

    fn of_file(path: &Path, wait: Duration) -> Result<Option<PoolLock>, Error> {
        // Opened as host-local opens it: read-only is enough for flock, and the mode is seen by whoever creates it.
        let flags = nix::libc::O_CREAT;
        let file = match OpenOptions::new().read(true).custom_flags(flags).mode(0o750).open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::io("open the lock of the address pool,", path, error)),
        };
        match file.try_lock() {
            Ok(()) => return Ok(Some(PoolLock { file })),
            Err(TryLockError::WouldBlock) => {}
            Err(TryLockError::Error(error)) => return Err(Error::io("lock", path, error)),
        }
        // It is mostly held for less time than it takes to start a thread.
        for _ in 0..YIELDS {
            thread::yield_now();
            if file.try_lock().is_ok() {
                return Ok(Some(PoolLock { file }));
            }
        }
        wait_for(file, path, wait).map(Some)
    }
}

/// Waits in the kernel's queue, in a thread of its own: trying again and again would lose against every process that
/// waits properly. After a timeout the thread stays behind until it gets the lock, and gives it back at once.
fn wait_for(file: File, path: &Path, wait: Duration) -> Result<PoolLock, Error> {
    let identity = file.metadata().map_err(|error| Error::io("stat", path, error))?;
    let (sender, receiver) = mpsc::sync_channel::<io::Result<File>>(1);
    let waiter = move || {
        let locked = loop {
            match file.lock() {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => break result.map(|()| file),
            }
        };
        // Nobody listens any more after a timeout; dropping what comes back releases the lock.
        drop(sender.send(locked));
    };
    thread::Builder::new()
        .name("pool-lock".to_owned())
        .spawn(waiter)
        .map_err(|error| Error::io("wait for", path, error))?;
    match receiver.recv_timeout(wait) {
        Ok(Ok(file)) => Ok(PoolLock { file }),
        Ok(Err(error)) => Err(Error::io("lock", path, error)),
        Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => Err(Error::LockTimeout {
            path: path.to_owned(),
            waited: wait,
            holder: Holder::of(identity.dev(), identity.ino(), Path::new("/proc")),
        }),
    }
}

/// The process that holds a lock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// Its process ID, as this process sees it.
    pub pid: u32,
    /// Its name, if it was still there to be asked.
    pub name: Option<String>,
}

impl Holder {
    /// Asks the kernel (proc(5), `/proc/locks`) who has the flock of a file; waiting processes do not count.
    fn of(device: u64, inode: u64, proc: &Path) -> Option<Holder> {
        let locks = fs::read_to_string(proc.join("locks")).ok()?;
        let file = format!("{:02x}:{:02x}:{inode}", major(device), minor(device));
        let pid = locks.lines().find_map(|line| holder_in(line, &file))?;
        let name = fs::read_to_string(proc.join(pid.to_string()).join("comm")).ok();
        Some(Holder { pid, name: name.map(|name| name.trim_end().to_owned()) })
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.name {
            Some(name) => write!(out, "process {} ({name})", self.pid),
            None => write!(out, "process {}", self.pid),
        }
    }
}

/// `7: FLOCK  ADVISORY  WRITE 4242 08:01:131 0 EOF`; a waiting process has `->` after the number.
fn holder_in(line: &str, file: &str) -> Option<u32> {
    let mut words = line.split_ascii_whitespace().skip(1);
    let (kind, pid, found) = (words.next()?, words.nth(2)?, words.next()?);
    (kind == "FLOCK" && found == file).then(|| pid.parse().ok())?
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn the_lock_is_created_as_host_local_creates_it() {
        let pool = tempfile::tempdir().unwrap();
        let lock = PoolLock::take(pool.path(), Duration::ZERO).unwrap();
        assert!(lock.is_some());
        let mode = fs::metadata(pool.path().join("lock")).unwrap().mode();
        assert_eq!(mode & 0o7777 & !0o022, 0o750, "0750 but for the umask");
    }

    #[test]
    fn without_a_directory_there_is_nothing_to_lock() {
        let pool = tempfile::tempdir().unwrap();
        assert!(PoolLock::take(&pool.path().join("none"), Duration::ZERO).unwrap().is_none());
        assert!(!pool.path().join("none").exists());
    }

    #[test]
    fn waiting_ends_and_says_who_holds_the_lock() {
        let pool = tempfile::tempdir().unwrap();
        let held = PoolLock::take(pool.path(), Duration::ZERO).unwrap();
        let begun = Instant::now();
        let error = PoolLock::take(pool.path(), Duration::from_millis(50)).unwrap_err();
        assert!(begun.elapsed() >= Duration::from_millis(50) && begun.elapsed() < Duration::from_secs(5));
        let Error::LockTimeout { path, holder: Some(holder), .. } = &error else { panic!("{error}") };
        assert_eq!(path, &pool.path().join("lock"));
        assert_eq!(holder.pid, std::process::id());
        assert!(error.to_string().contains(&format!("held by process {}", holder.pid)), "{error}");
        drop(held);
        // The thread that was left waiting gives the lock back at once.
        assert!(PoolLock::take(pool.path(), Duration::from_secs(5)).unwrap().is_some());
    }

    #[test]
    fn a_waiting_process_gets_the_lock_when_it_is_given_back() {
        let pool = tempfile::tempdir().unwrap();
        let held = PoolLock::take(pool.path(), Duration::ZERO).unwrap();
        let path = pool.path().to_owned();
        let waiter = thread::spawn(move || PoolLock::take(&path, Duration::from_secs(20)).unwrap().is_some());
        thread::sleep(Duration::from_millis(30));
        assert!(!waiter.is_finished());
        drop(held);
        assert!(waiter.join().unwrap());
    }

    #[test]
    fn proc_locks_is_read_without_the_waiting_ones() {
        let file = "fe:01:131";
        assert_eq!(holder_in("7: FLOCK  ADVISORY  WRITE 4242 fe:01:131 0 EOF", file), Some(4242));
        assert_eq!(holder_in("7: -> FLOCK  ADVISORY  WRITE 4343 fe:01:131 0 EOF", file), None);
        assert_eq!(holder_in("7: POSIX  ADVISORY  WRITE 4242 fe:01:131 0 EOF", file), None);
        assert_eq!(holder_in("7: FLOCK  ADVISORY  WRITE 4242 fe:01:1311 0 EOF", file), None);
        assert_eq!(holder_in("", file), None);
    }
}
