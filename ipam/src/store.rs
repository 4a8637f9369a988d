//! One pool's directory: who holds what, and giving it back. The format is host-local's.

use std::collections::HashSet;
use std::fs::DirBuilder;
use std::net::IpAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::held::{Held, Pass};
use crate::owner::{Claim, is_name};
use crate::withheld::Quarantine;
use crate::{Error, Owner, Reason, Withheld, lease};

/// The directory of a pool, `DATA_DIR/NETWORK`. It need not exist: then nothing is held.
#[derive(Debug, Clone)]
pub struct Store {
    directory: PathBuf,
    lock_wait: Duration,
    cool_down: Duration,
}

/// A lease that [`Store::release_all_but`] removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Released {
    /// The address that is free now.
    pub address: IpAddr,
    /// The container it was held for; `None` if the file named nobody.
    pub container: Option<String>,
}

/// What a lease file says.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Lease {
    /// The address.
    pub address: IpAddr,
    /// The container it is held for; `None` if the file names nobody (an orphan). Words that no CNI program writes stand
    /// here, too: [`Lease::is_foreign`].
    pub container: Option<String>,
    /// The interface in the container; older versions of host-local did not write it.
    pub interface: Option<String>,
}

impl Lease {
    /// Whether the file has words in it that no CNI program writes, or is no plain file: an administrator's, and nobody's
    /// to give back.
    pub fn is_foreign(&self) -> bool {
        self.container.as_ref().is_some_and(|container| !is_name(container))
    }

    fn new(address: IpAddr, claim: Claim) -> Lease {
        let (container, interface) = match claim {
            Claim::Of(owner) => (Some(owner.container().to_owned()), Some(owner.interface().to_owned())),
            Claim::OfContainer(words) | Claim::Foreign(words) => (Some(words), None),
            Claim::Orphan => (None, None),
        };
        Lease { address, container, interface }
    }

    /// Whether a file with this claim is still this lease, and somebody's to give back.
    fn is(&self, claim: &Claim) -> bool {
        let (container, interface) = (self.container.as_deref(), self.interface.as_deref());
        match claim {
            Claim::Of(owner) => container == Some(owner.container()) && interface == Some(owner.interface()),
            Claim::OfContainer(found) => container == Some(found) && interface.is_none(),
            Claim::Orphan => container.is_none() && interface.is_none(),
            Claim::Foreign(_) => false,
        }
    }
}

/// An entry of the index that does not hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stray {
    /// The container that the entry is about.
    pub container: String,
    /// Its interface; empty if the leases named none.
    pub interface: String,
    /// The addresses that the entry names and the owner does not hold.
    pub addresses: Vec<IpAddr>,
}

/// What a caller knows of the addresses that an owner gives back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Known<'a> {
    /// The caller's own record has them: only their files are looked at, whatever the size of the pool.
    Addresses(&'a [IpAddr]),
    /// The index beside the pool is asked; what it does not know, or is wrong about, is looked for in every file.
    Indexed,
    /// Nothing: every file is read.
    Nothing,
}

impl Store {
    /// The pool in `directory`; its lock is waited for at most `lock_wait` in each call.
    pub fn new(directory: impl Into<PathBuf>, lock_wait: Duration) -> Store {
        Store { directory: directory.into(), lock_wait, cool_down: Duration::ZERO }
    }

    /// The same, but addresses that are given back are not given out again for `cool_down`.
    #[must_use]
    pub fn cooling_down(self, cool_down: Duration) -> Store {
        Store { cool_down, ..self }
    }

    /// Where the pool lies.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Gives back what `owner` holds and says which addresses that were. What is gone already, or has passed to
    /// somebody else, is left alone; files of the old format (container ID alone) count as the owner's.
    ///
    /// Where every file is read the old format counts only if nothing is found in the new one, as in host-local.
    ///
    /// # Errors
    /// [`Error::LockTimeout`] and [`Error::Io`]; everything that can be given back has been given back by then.
    pub fn release(&self, owner: &Owner, known: Known<'_>) -> Result<Vec<IpAddr>, Error> {
        let Some(held) = self.lock()? else { return Ok(Vec::new()) };
        let mut pass = Pass::cooling_down(held.directory, self.cool_down);
        match known {
            Known::Addresses(addresses) => pass.remove_known(&held, owner, addresses),
            Known::Indexed => pass.remove_indexed(&held, owner)?,
            Known::Nothing => pass.remove_all_of(&held, owner)?,
        }
        pass.remove_draft(held.directory);
        pass.finish().map(|removed| removed.into_iter().map(|lease| lease.address).collect())
    }

    /// Those of `addresses` that `owner` does not hold; empty if all is well. For CHECK: takes no lock and reads only
    /// the files of these addresses.
    ///
    /// # Errors
    /// [`Error::Io`] if a file cannot be read.
    pub fn missing(&self, owner: &Owner, addresses: &[IpAddr]) -> Result<Vec<IpAddr>, Error> {
        let mut missing = Vec::new();
        for address in addresses {
            let claim = lease::read_claim(&lease::path_of(&self.directory, *address))?;
            if !claim.is_some_and(|claim| claim.is_of(owner)) {
                missing.push(*address);
            }
        }
        Ok(missing)
    }

    /// Whether `owner` holds all of `addresses`; see [`Store::missing`].
    ///
    /// # Errors
    /// [`Error::Io`] if a file cannot be read.
    pub fn holds(&self, owner: &Owner, addresses: &[IpAddr]) -> Result<bool, Error> {
        Ok(self.missing(owner, addresses)?.is_empty())
    }

    /// Every address that `owner` holds, in the order of the file names; files of the old format count. Reads the
    /// whole pool.
    ///
    /// # Errors
    /// [`Error::LockTimeout`] and [`Error::Io`].
    pub fn held_by(&self, owner: &Owner) -> Result<Vec<IpAddr>, Error> {
        match self.lock()? {
            Some(held) => held.held_by(owner),
            None => Ok(Vec::new()),
        }
    }

    /// Every lease of the pool, orphans and foreign words included, in the order of the file names. Reads the whole pool,
    /// under its lock: nobody is about to write one.
    ///
    /// # Errors
    /// [`Error::LockTimeout`] and [`Error::Io`].
    pub fn leases(&self) -> Result<Vec<Lease>, Error> {
        let Some(held) = self.lock()? else { return Ok(Vec::new()) };
        let mut leases = Vec::new();
        for (address, path) in held.files()? {
            leases.extend(lease::read_claim(&path)?.map(|claim| Lease::new(address, claim)));
        }
        Ok(leases)
    }

    /// Gives back those of the leases `dead` whose files still say the same: what has passed to somebody else meanwhile is
    /// left alone. Looks at their files only.
    ///
    /// # Errors
    /// [`Error::LockTimeout`] and [`Error::Io`]; everything that can be given back has been given back by then.
    pub fn reclaim(&self, dead: &[Lease]) -> Result<Vec<Released>, Error> {
        let Some(held) = self.lock()? else { return Ok(Vec::new()) };
        let mut pass = Pass::default();
        for lease in dead {
            let path = lease::path_of(held.directory, lease.address);
            pass.remove_if(&path, lease.address.to_canonical(), |claim| lease.is(claim));
        }
        pass.remove_draft(held.directory);
        for (owner, address) in std::mem::take(&mut pass.owners) {
            pass.note(held.index().forget(&owner, &[address]));
        }
        pass.finish()
    }

    /// Holds an address back: it is not given out for `time`, counted from now, unless the machine boots. Makes the pool's
    /// directory if there is none.
    ///
    /// # Errors
    /// [`Error::LockTimeout`] and [`Error::Io`].
    pub fn withhold(&self, address: IpAddr, time: Duration, reason: &Reason) -> Result<(), Error> {
        let held = self.lock_or_create()?;
        Quarantine::of(held.directory).add(address, time, reason)
    }

    /// The addresses that are held back, in their order.
    ///
    /// # Errors
    /// [`Error::LockTimeout`] and [`Error::Io`].
    pub fn withheld(&self) -> Result<Vec<Withheld>, Error> {
        match self.lock()? {
            Some(held) => Quarantine::of(held.directory).all(),
            None => Ok(Vec::new()),
        }
    }

    /// What the index beside the pool says and the leases do not bear out. It does no harm: nothing is done by an entry
    /// before it is verified.
    ///
    /// # Errors
    /// [`Error::LockTimeout`] and [`Error::Io`].
    pub fn strays(&self) -> Result<Vec<Stray>, Error> {
        let Some(held) = self.lock()? else { return Ok(Vec::new()) };
        let mut strays = Vec::new();
        for (container, interface, addresses) in held.index().entries()? {
            let own = Claim::of(&container, &interface);
            let mut stray = Stray { container, interface, addresses: Vec::new() };
            for address in addresses {
                if held.claim(address)? != own {
                    stray.addresses.push(address);
                }
            }
            strays.extend(Some(stray).filter(|stray| !stray.addresses.is_empty()));
        }
        Ok(strays)
    }

    /// Gives back every lease whose owner is not in `keep`, and what stands for nobody. Files of the old format stay
    /// if their container is in `keep` with any interface; words no CNI program writes stay. An empty `keep` keeps
    /// nobody. Reads the whole pool; the caller sees to it that no attachment is being made meanwhile.
    ///
    /// # Errors
    /// [`Error::LockTimeout`] and [`Error::Io`]; everything that can be given back has been given back by then.
    pub fn release_all_but(&self, keep: &[Owner]) -> Result<Vec<Released>, Error> {
        let Some(held) = self.lock()? else { return Ok(Vec::new()) };
        let owners: HashSet<&Owner> = keep.iter().collect();
        let containers: HashSet<&str> = keep.iter().map(Owner::container).collect();
        let mut pass = Pass::cooling_down(held.directory, self.cool_down);
        for (address, path) in held.files()? {
            pass.remove_if(&path, address, |claim| match claim {
                Claim::Of(owner) => !owners.contains(owner),
                Claim::OfContainer(container) => !containers.contains(container.as_str()),
                Claim::Orphan => true,
                Claim::Foreign(_) => false,
            });
        }
        pass.tidy(&held);
        pass.finish()
    }

    /// Removes leases that name nobody: their writer, or the machine, died before they were written, and no DEL will ever
    /// come for them. Under the lock nobody is about to write one, host-local neither. Reads the whole pool.
    ///
    /// # Errors
    /// [`Error::LockTimeout`] and [`Error::Io`]; everything that can be removed has been removed by then.
    pub fn release_orphans(&self) -> Result<Vec<Released>, Error> {
        let Some(held) = self.lock()? else { return Ok(Vec::new()) };
        let mut pass = Pass::default();
        for (address, path) in held.files()? {
            pass.remove_if(&path, address, |claim| *claim == Claim::Orphan);
        }
        pass.tidy(&held);
        pass.finish()
    }

    /// Locks the pool, making its directory if there is none.
    pub(crate) fn lock_or_create(&self) -> Result<Held<'_>, Error> {
        loop {
            // Somebody may empty the data directory at any time; then it is made again.
            if let Some(held) = self.lock()? {
                return Ok(held);
            }
            let mut builder = DirBuilder::new();
            builder.recursive(true).mode(0o755);
            builder.create(&self.directory).map_err(|error| Error::io("create", &self.directory, error))?;
        }
    }

    fn lock(&self) -> Result<Option<Held<'_>>, Error> {
        Held::take(&self.directory, self.lock_wait)
    }
}
