//! Whether a pool could give an address now, for a node's STATUS.

use std::io;
use std::time::Duration;

use nix::unistd::{AccessFlags, access};

use crate::reserve::Choice;
use crate::{Error, Pool};

impl Pool {
    /// Whether every range set has an address left, and the directory can be written. Reserves nothing; the directory is
    /// made if there is none, as a reservation would.
    ///
    /// # Errors
    /// [`Error::Exhausted`] for the first set that has none; [`Error::Io`] if the directory cannot be written;
    /// [`Error::LockTimeout`].
    pub fn vacancy(&self, lock_wait: Duration) -> Result<(), Error> {
        let store = self.store(lock_wait);
        let held = store.lock_or_create()?;
        access(&self.directory, AccessFlags::W_OK)
            .map_err(|errno| Error::io("write in", &self.directory, io::Error::from(errno)))?;
        let mut choice = Choice::on(&held);
        for (index, set) in self.sets.iter().enumerate() {
            choice.by_turn(index, set)?;
        }
        Ok(())
    }
}
