//! A time of a directory's last change that the kernel never gives it by itself. Whoever makes or removes a file there, of
//! whatever program, takes it away; only we put it back. So it is compared for being the same, and no clock matters.

use std::collections::hash_map::RandomState;
use std::fmt;
use std::fs::{self, Metadata};
use std::hash::{BuildHasher, Hasher};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::fcntl::AT_FDCWD;
use nix::sys::stat::{UtimensatFlags, utimensat};
use nix::sys::time::{TimeSpec, TimeValLike};
use nix::time::{ClockId, clock_gettime};

const NANOSECONDS: i64 = 1_000_000_000;

/// Seconds and nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stamp {
    seconds: i64,
    nanoseconds: i64,
}

impl Stamp {
    /// One that was never used: a moment that has passed, and one of a milliard within it.
    pub(crate) fn new() -> io::Result<Stamp> {
        let now = clock_gettime(ClockId::CLOCK_REALTIME)?;
        // The standard library's own source of random numbers.
        let random = RandomState::new().build_hasher().finish() >> 1;
        let nanoseconds = i64::try_from(random).unwrap_or_default() % NANOSECONDS;
        Ok(Stamp { seconds: now.num_seconds() - 1, nanoseconds })
    }

    /// That of a directory.
    pub(crate) fn of(found: &Metadata) -> Stamp {
        Stamp { seconds: found.mtime(), nanoseconds: found.mtime_nsec() }
    }

    /// Gives it to a directory, and gives it back if the directory has it then.
    ///
    /// # Errors
    /// What the kernel said; a file system that does not keep nanoseconds is an error, too.
    pub(crate) fn set(self, directory: &Path) -> io::Result<Stamp> {
        let time = TimeSpec::new(self.seconds, self.nanoseconds);
        utimensat(AT_FDCWD, directory, &TimeSpec::UTIME_OMIT, &time, UtimensatFlags::FollowSymlink)?;
        let is_kept = Stamp::of(&fs::metadata(directory)?) == self;
        if is_kept { Ok(self) } else { Err(io::ErrorKind::Unsupported.into()) }
    }

    /// Reads what [`Stamp::to_string`] says.
    pub(crate) fn parse(text: &str) -> Option<Stamp> {
        let (seconds, nanoseconds) = text.split_once('.')?;
        Some(Stamp { seconds: seconds.parse().ok()?, nanoseconds: nanoseconds.parse().ok()? })
    }
}

impl fmt::Display for Stamp {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}.{}", self.seconds, self.nanoseconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_keeps_it_until_somebody_changes_something_there() {
        let directory = tempfile::tempdir().unwrap();
        let stamp = Stamp::new().unwrap();
        assert_ne!(stamp, Stamp::new().unwrap());
        assert_eq!(Stamp::parse(&stamp.to_string()), Some(stamp));
        assert_eq!(stamp.set(directory.path()).unwrap(), stamp);
        let found = || Stamp::of(&fs::metadata(directory.path()).unwrap());
        let file = directory.path().join("10.0.0.2");
        let changes: [&dyn Fn() -> io::Result<()>; 3] =
            [&|| fs::write(&file, ""), &|| fs::rename(&file, directory.path().join("10.0.0.3")), &|| {
                fs::remove_file(directory.path().join("10.0.0.3"))
            }];
        for change in changes {
            assert_eq!(found(), stamp);
            change().unwrap();
            assert_ne!(found(), stamp);
            stamp.set(directory.path()).unwrap();
        }
        // Reading is no change, nor is writing into a file that is there.
        fs::write(directory.path().join("lock"), "").unwrap();
        stamp.set(directory.path()).unwrap();
        fs::write(directory.path().join("lock"), "x").unwrap();
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
        assert_eq!(found(), stamp);
    }
}
