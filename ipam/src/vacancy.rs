//! Whether a pool could give an address now, for a node's STATUS.

use std::collections::HashSet;
use std::io;
use std::time::Duration;

use nix::unistd::{AccessFlags, access};

use crate::allocate::{Candidates, first_free};
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
        let names: HashSet<_> = held.names()?;
        for (index, set) in self.sets.iter().enumerate() {
            let candidates = Candidates::after(set, None);
            let free = match first_free(candidates.clone(), |address| Ok(names.contains(&address)))? {
                // Every name is there: some may stand for nobody.
                None => first_free(candidates, |address| Ok(held.claim(address)?.is_some()))?,
                found => found,
            };
            free.ok_or_else(|| Error::Exhausted { set: index, ranges: set.to_string() })?;
        }
        Ok(())
    }
}
