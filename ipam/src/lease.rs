//! The files of a pool: reading a claim, making a reservation visible at once or not at all, and the place where the
//! last address of a range set is kept.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::IpAddr;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, open};
use nix::sys::stat::Mode;
use nix::unistd::linkat;

use crate::owner::{Claim, Owner};
use crate::{Error, address};

/// Where a reservation is written before it gets its name, on file systems without `O_TMPFILE`. It lies in the pool,
/// the one place known to be on the same file system; no program takes its name for an address, and under the lock
/// one name is enough. What a crash leaves here is not a reservation, and is removed by the next one to come by.
pub(crate) const DRAFT: &str = ".reservation";
/// A lease file is a container ID and an interface name; what is longer is none.
const LONGEST_CLAIM: u64 = 4096;

/// The lease file of an address.
pub(crate) fn path_of(directory: &Path, address: IpAddr) -> PathBuf {
    directory.join(address.to_canonical().to_string())
}

/// Reads who claims the file, `None` if it does not exist. What is no plain file is somebody's, but no lease.
pub(crate) fn read_claim(path: &Path) -> Result<Option<Claim>, Error> {
    // Neither a symbolic link nor a FIFO that somebody planted is followed or waited for.
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
    let file = match OpenOptions::new().read(true).custom_flags(flags.bits()).open(path) {
        Ok(file) => file,
        Err(error) => {
            return match error.raw_os_error().map(Errno::from_raw) {
                Some(Errno::ENOENT) => Ok(None),
                Some(Errno::ELOOP | Errno::ENXIO) => Ok(Some(no_plain_file())),
                _ => Err(Error::io("open", path, error)),
            };
        }
    };
    let failed = |error| Error::io("read", path, error);
    if !file.metadata().map_err(failed)?.is_file() {
        return Ok(Some(no_plain_file()));
    }
    let mut content = Vec::new();
    file.take(LONGEST_CLAIM + 1).read_to_end(&mut content).map_err(failed)?;
    if u64::try_from(content.len()).is_ok_and(|length| length > LONGEST_CLAIM) {
        return Ok(Some(Claim::Foreign("more than a lease's words".to_owned())));
    }
    Ok(Some(Claim::read(&content)))
}

fn no_plain_file() -> Claim {
    Claim::Foreign("no plain file".to_owned())
}

/// A lease file that is complete and has no name yet: whoever dies before it gets one leaves nothing. It can be written
/// before the pool's lock is taken, so that others do not wait for it.
#[derive(Debug)]
pub(crate) struct Unnamed(File);

impl Unnamed {
    /// Writes the file on the pool's file system.
    ///
    /// # Errors
    /// What the kernel says; some file systems have no such files.
    pub(crate) fn write(directory: &Path, owner: &Owner) -> nix::Result<Unnamed> {
        let flags = OFlag::O_TMPFILE | OFlag::O_WRONLY | OFlag::O_CLOEXEC;
        let mut file = File::from(open(directory, flags, Mode::S_IRUSR | Mode::S_IWUSR)?);
        let written = file.write_all(owner.content().as_bytes());
        written.map_err(|error| error.raw_os_error().map_or(Errno::EIO, Errno::from_raw))?;
        Ok(Unnamed(file))
    }

    fn link(&self, path: &Path) -> nix::Result<()> {
        // linkat with AT_EMPTY_PATH would need CAP_DAC_READ_SEARCH; through /proc anyone may (open(2), O_TMPFILE).
        let unnamed = format!("/proc/self/fd/{}", self.0.as_raw_fd());
        linkat(AT_FDCWD, unnamed.as_str(), AT_FDCWD, path, AtFlags::AT_SYMLINK_FOLLOW)
    }
}

/// Makes the lease file of `address`: complete from the moment it can be seen. An orphan in its place is removed.
/// `prepared` is the file, if it was written before. The pool's lock must be held.
///
/// # Errors
/// [`Error::Io`] with `EEXIST` if somebody who does not heed the lock was faster, else with what the kernel said.
pub(crate) fn create(
    directory: &Path,
    address: IpAddr,
    owner: &Owner,
    prepared: Option<&Unnamed>,
) -> Result<(), Error> {
    let path = path_of(directory, address);
    match publish(directory, &path, owner, prepared) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            if read_claim(&path)? != Some(Claim::Orphan) {
                return Err(Error::io("reserve", &path, error));
            }
            remove(&path)?;
            publish(directory, &path, owner, prepared)
        }
        result => result,
    }
    .map_err(|error| Error::io("reserve", &path, error))
}

/// Removes a file of the pool; one that is gone already is as good. Says whether it was there.
pub(crate) fn remove(path: &Path) -> Result<bool, Error> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(Error::io("remove", path, error)),
    }
}

fn publish(directory: &Path, path: &Path, owner: &Owner, prepared: Option<&Unnamed>) -> io::Result<()> {
    let linked = match prepared {
        Some(unnamed) => unnamed.link(path),
        None => Unnamed::write(directory, owner).and_then(|unnamed| unnamed.link(path)),
    };
    match linked {
        // What file systems and kernels say that have no O_TMPFILE (open(2)), linkat where /proc is not mounted, and where
        // another file system was mounted there after the file was prepared.
        Err(Errno::EOPNOTSUPP | Errno::EISDIR | Errno::EINVAL | Errno::ENOENT | Errno::EXDEV) => {
            publish_draft(directory, path, &owner.content())
        }
        result => Ok(result?),
    }
}

fn publish_draft(directory: &Path, path: &Path, content: &str) -> io::Result<()> {
    let draft = directory.join(DRAFT);
    // A stale one is removed, not written over: it may be a second name of a lease file, left by a crash between link and
    // unlink.
    match fs::remove_file(&draft) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft)?;
    let linked = file.write_all(content.as_bytes()).and_then(|()| fs::hard_link(&draft, path));
    // Also if there was no space: half-written, it is of no use to anyone.
    fs::remove_file(&draft)?;
    linked
}

/// The address given out last in range set `set`, if there is a readable one; losing it costs one round of the robin.
///
/// # Errors
/// [`Error::Io`] if it exists and cannot be read.
pub(crate) fn last_reserved(directory: &Path, set: usize) -> Result<Option<IpAddr>, Error> {
    let path = cursor(directory, set);
    match fs::read(&path) {
        Ok(content) => Ok(std::str::from_utf8(&content).ok().map(str::trim).and_then(address::parse)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io("read", &path, error)),
    }
}

/// Writes the address given out last in range set `set`, in place: a rename over an old file makes some file systems
/// write at once what could wait, while everybody waits for the lock. Dying meanwhile mixes the old and the new text, and
/// costs one round of the robin.
///
/// # Errors
/// [`Error::Io`].
pub(crate) fn set_last_reserved(directory: &Path, set: usize, address: IpAddr) -> Result<(), Error> {
    let path = cursor(directory, set);
    let text = address.to_canonical().to_string();
    let write = || {
        let flags = OFlag::O_NOFOLLOW.bits();
        let mut options = OpenOptions::new();
        let file = options.write(true).create(true).truncate(false).mode(0o600).custom_flags(flags).open(&path)?;
        file.write_all_at(text.as_bytes(), 0)?;
        file.set_len(u64::try_from(text.len()).unwrap_or(u64::MAX))
    };
    write().map_err(|error| Error::io("write", &path, error))
}

fn cursor(directory: &Path, set: usize) -> PathBuf {
    directory.join(format!("last_reserved_ip.{set}"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, symlink};

    use super::*;

    fn owner() -> Owner {
        Owner::new("c0ffee", "eth0").unwrap()
    }

    fn names(directory: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn both_ways_leave_the_same_file_and_nothing_else() {
        type Way = fn(&Path, &Path, &Owner) -> io::Result<()>;
        let ways: [(&str, Way); 2] = [
            ("unnamed", |directory, path, owner| Ok(Unnamed::write(directory, owner)?.link(path)?)),
            ("draft", |directory, path, owner| publish_draft(directory, path, &owner.content())),
        ];
        let other = Owner::new("other", "eth0").unwrap();
        for (name, way) in ways {
            let pool = tempfile::tempdir().unwrap();
            let path = pool.path().join("10.0.0.2");
            way(pool.path(), &path, &owner()).unwrap();
            assert_eq!(fs::read(&path).unwrap(), b"c0ffee\r\neth0", "{name}");
            let found = fs::metadata(&path).unwrap();
            assert_eq!((found.mode() & 0o7777, found.nlink()), (0o600, 1), "{name}");

            let error = way(pool.path(), &path, &other).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::AlreadyExists, "{name}");
            assert_eq!(fs::read(&path).unwrap(), b"c0ffee\r\neth0", "{name}: the first one stays");
            assert_eq!(names(pool.path()), ["10.0.0.2"], "{name}");
        }
    }

    #[test]
    fn a_stale_draft_that_is_a_second_name_of_a_lease_does_not_change_the_lease() {
        let pool = tempfile::tempdir().unwrap();
        fs::write(pool.path().join("10.0.0.2"), "first\r\neth0").unwrap();
        fs::hard_link(pool.path().join("10.0.0.2"), pool.path().join(DRAFT)).unwrap();
        publish_draft(pool.path(), &pool.path().join("10.0.0.3"), "second\r\neth0").unwrap();
        assert_eq!(fs::read(pool.path().join("10.0.0.2")).unwrap(), b"first\r\neth0");
        assert_eq!(fs::read(pool.path().join("10.0.0.3")).unwrap(), b"second\r\neth0");
        assert_eq!(names(pool.path()), ["10.0.0.2", "10.0.0.3"]);
    }

    #[test]
    fn an_orphan_gives_way_and_a_lease_does_not() {
        let pool = tempfile::tempdir().unwrap();
        let address = IpAddr::from([10, 0, 0, 2]);
        for orphan in ["", "\0\0\0\0\0\0"] {
            fs::write(path_of(pool.path(), address), orphan).unwrap();
            create(pool.path(), address, &owner(), None).unwrap();
            assert_eq!(read_claim(&path_of(pool.path(), address)).unwrap(), Some(Claim::Of(owner())));
        }
        let error = create(pool.path(), address, &owner(), None).unwrap_err();
        assert!(matches!(&error, Error::Io { source, .. } if source.raw_os_error() == Some(17)), "{error}");
    }

    #[test]
    fn what_is_no_plain_file_is_somebodys() {
        let pool = tempfile::tempdir().unwrap();
        let at = |name: &str| pool.path().join(name);
        fs::create_dir(at("10.0.0.2")).unwrap();
        symlink("/nonexistent", at("10.0.0.3")).unwrap();
        nix::unistd::mkfifo(&at("10.0.0.4"), Mode::S_IRUSR).unwrap();
        fs::write(at("10.0.0.5"), vec![b'a'; 5000]).unwrap();
        for name in ["10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5"] {
            assert!(matches!(read_claim(&at(name)).unwrap(), Some(Claim::Foreign(_))), "{name}");
        }
        assert_eq!(read_claim(&at("10.0.0.6")).unwrap(), None);
    }

    #[test]
    fn the_last_address_is_text_without_a_newline() {
        let pool = tempfile::tempdir().unwrap();
        assert_eq!(last_reserved(pool.path(), 1).unwrap(), None);
        let address: IpAddr = "2001:db8::9".parse().unwrap();
        set_last_reserved(pool.path(), 1, address).unwrap();
        assert_eq!(fs::read(pool.path().join("last_reserved_ip.1")).unwrap(), b"2001:db8::9");
        assert_eq!(fs::metadata(pool.path().join("last_reserved_ip.1")).unwrap().mode() & 0o7777, 0o600);
        assert_eq!(last_reserved(pool.path(), 1).unwrap(), Some(address));
        set_last_reserved(pool.path(), 1, IpAddr::from([10, 0, 0, 2])).unwrap();
        assert_eq!(fs::read(pool.path().join("last_reserved_ip.1")).unwrap(), b"10.0.0.2", "nothing of the longer one");
        fs::write(pool.path().join("last_reserved_ip.1"), "2001:db").unwrap();
        assert_eq!(last_reserved(pool.path(), 1).unwrap(), None, "half a text is no address");
        assert_eq!(names(pool.path()), ["last_reserved_ip.1"]);
    }
}
