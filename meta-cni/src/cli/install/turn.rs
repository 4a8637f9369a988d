//! Whose turn it is. While a DaemonSet is rolled out two installers stay on a node for some seconds, the pod of before and
//! the one that takes its place, each with a program and a token of its own: the one that came last does the work, the others
//! look on until it ends, in whatever way. So nothing is written back and forth, and the token on the node is one whose pod
//! stays.

use std::{
    fs::{self, File, TryLockError},
    io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use super::host::{self, Host};
use crate::cni::Error;

/// A file in our state: whoever made it last has the turn, as long as he holds its lock.
const FILE: &str = "installer";

/// An installer's part in it.
#[derive(Debug, Default)]
pub(super) struct Turn {
    /// The file that it made and holds.
    own: Option<File>,
}

/// Who has the turn.
#[derive(Debug)]
pub(super) enum Whose {
    /// This one, as before.
    Ours,
    /// This one from now on.
    OursNow,
    /// One that came later: its file, whose lock is free when it has ended.
    Another(File),
}

impl Turn {
    /// Takes the turn, if this one has never had it, or the one that had it has ended.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(super) fn take(&mut self, host: &Host) -> Result<Whose, Error> {
        let path = path(host);
        let failed = |source| Error::io("lock", path.display(), source);
        let there = match File::open(&path) {
            Ok(there) => Some(there),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(source) => return Err(failed(source)),
        };
        if let (Some(own), Some(there)) = (&self.own, there) {
            if id(own).map_err(failed)? == id(&there).map_err(failed)? {
                return Ok(Whose::Ours);
            }
            match there.try_lock_shared() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Ok(Whose::Another(there)),
                Err(TryLockError::Error(source)) => return Err(failed(source)),
            }
        }
        // Not while another one is in the middle of its work; and whoever holds this sweeps our draft away if we are killed.
        let _alone = host.lock()?;
        self.own = Some(claim(&path).map_err(failed)?);
        Ok(Whose::OursNow)
    }
}

/// Makes the file anew, held before it has its name.
fn claim(path: &Path) -> io::Result<File> {
    let draft = host::draft_beside(path)?;
    draft.as_file().try_lock()?;
    draft.persist(path).map_err(|error| error.error)
}

/// Removes what the last one left.
///
/// # Errors
/// [`Error::Io`].
pub(super) fn remove(host: &Host) -> Result<(), Error> {
    host::remove(&path(host)).map(drop)
}

fn path(host: &Host) -> PathBuf {
    host.seen(&host.state).join(FILE)
}

/// What two descriptors of one file have in common.
pub(super) fn id(file: &File) -> io::Result<(u64, u64)> {
    file.metadata().map(|there: fs::Metadata| (there.dev(), there.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node() -> (tempfile::TempDir, Host) {
        let root = tempfile::tempdir().unwrap();
        let host = Host { root: root.path().into(), bin: "/b".into(), net_d: "/c".into(), state: "/s".into() };
        host.create().unwrap();
        (root, host)
    }

    #[test]
    fn the_one_that_came_last_has_the_turn_until_it_ends() {
        let (_root, host) = node();
        let (mut one, mut two, mut three) = (Turn::default(), Turn::default(), Turn::default());
        assert!(matches!(one.take(&host), Ok(Whose::OursNow)));
        assert!(matches!(one.take(&host), Ok(Whose::Ours)));
        assert!(matches!(two.take(&host), Ok(Whose::OursNow)));
        assert!(matches!(one.take(&host), Ok(Whose::Another(_))));
        assert!(matches!(three.take(&host), Ok(Whose::OursNow)));
        assert!(matches!(two.take(&host), Ok(Whose::Another(_))));
        drop(three);
        assert!(matches!(two.take(&host), Ok(Whose::OursNow)));
        let Ok(Whose::Another(of_two)) = one.take(&host) else { panic!() };
        assert!(matches!(of_two.try_lock_shared(), Err(TryLockError::WouldBlock)));
        drop(two);
        of_two.lock_shared().unwrap();
        assert!(matches!(one.take(&host), Ok(Whose::OursNow)), "one that waited for the end does not hold it up");
        assert_eq!(host::names_in(&host.seen(&host.state)), [FILE]);
    }

    #[test]
    fn a_file_that_is_lost_is_made_again() {
        let (_root, host) = node();
        let mut one = Turn::default();
        assert!(matches!(one.take(&host), Ok(Whose::OursNow)));
        remove(&host).unwrap();
        assert!(matches!(one.take(&host), Ok(Whose::OursNow)));
        assert!(matches!(one.take(&host), Ok(Whose::Ours)));
    }
}
