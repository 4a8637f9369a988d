//! A pool while its lock is held, and walks through it that give back.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::index::{Complete, Entry, Index};
use crate::lease::{self, DRAFT};
use crate::lock::PoolLock;
use crate::owner::Claim;
use crate::unchanged::Unchanged;
use crate::withheld::Quarantine;
use crate::{Error, Owner, Reason, Released, address};

/// A pool while its lock is held: only then may it be changed.
#[derive(Debug)]
pub(crate) struct Held<'a> {
    pub(crate) directory: &'a Path,
    _lock: PoolLock,
}

impl<'a> Held<'a> {
    /// Locks the pool in `directory`; `None` if there is no such directory.
    pub(crate) fn take(directory: &'a Path, wait: Duration) -> Result<Option<Held<'a>>, Error> {
        let lock = PoolLock::take(directory, wait)?;
        Ok(lock.map(|lock| Held { directory, _lock: lock }))
    }

    /// Who claims `address`; `None` if it is free. An orphan is free: under the lock nobody is about to write it.
    pub(crate) fn claim(&self, address: IpAddr) -> Result<Option<Claim>, Error> {
        let claim = lease::read_claim(&lease::path_of(self.directory, address))?;
        Ok(claim.filter(|claim| *claim != Claim::Orphan))
    }

    /// Every address that `owner` holds, in the order of the file names.
    pub(crate) fn held_by(&self, owner: &Owner) -> Result<Vec<IpAddr>, Error> {
        let mut found = Vec::new();
        for (address, path) in self.files()? {
            if lease::read_claim(&path)?.is_some_and(|claim| claim.is_of(owner)) {
                found.push(address);
            }
        }
        Ok(found)
    }

    /// The index beside the pool.
    pub(crate) fn index(&self) -> Index<'_> {
        Index::of(self.directory)
    }

    /// Sees to it that the index knows every lease. `None` if it cannot be written: then only the leases themselves can be
    /// asked.
    pub(crate) fn indexed(&self) -> Result<Option<Complete>, Error> {
        let index = self.index();
        if let Some(complete) = index.complete() {
            return Ok(Some(complete));
        }
        let mut claims = Vec::new();
        for (address, path) in self.files()? {
            claims.extend(lease::read_claim(&path)?.map(|claim| (address, claim)));
        }
        Ok(index.rebuild(&claims).ok())
    }

    /// Every address that `owner` holds, by its entry in the index, in the order of the file names.
    pub(crate) fn held_by_index(&self, complete: Complete, owner: &Owner) -> Result<Vec<IpAddr>, Error> {
        let index = self.index();
        let mut verified = Vec::new();
        for entry in [index.entry(owner), index.old_entry(complete, owner)] {
            let addresses = match entry {
                Entry::Missing => continue,
                Entry::Addresses(addresses) => addresses,
                Entry::Many => return self.held_by(owner),
            };
            for address in addresses {
                if self.claim(address)?.is_some_and(|claim| claim.is_of(owner)) {
                    verified.push(address);
                }
            }
        }
        verified.sort_by_cached_key(IpAddr::to_string);
        Ok(verified)
    }

    /// Removes every lease that stands for nobody, and says which. While nothing has been made or removed in the directory
    /// since the last time that none was found, there is none: a file becomes one only when it is made, and when the
    /// machine loses its power.
    pub(crate) fn remove_orphans(&self) -> Result<Vec<IpAddr>, Error> {
        let seen = Unchanged::of(self.directory)?;
        if seen.is_noted() {
            return Ok(Vec::new());
        }
        let mut pass = Pass::default();
        for (address, path) in self.files()? {
            pass.remove_if(&path, address, |claim| *claim == Claim::Orphan);
        }
        let removed = pass.finish()?;
        if removed.is_empty() {
            seen.note();
        }
        Ok(removed.into_iter().map(|orphan| orphan.address).collect())
    }

    /// Every address that has a file under the name it is looked up by. Reads names only.
    pub(crate) fn names(&self) -> Result<HashSet<IpAddr>, Error> {
        let failed = |error: io::Error| Error::io("list", self.directory, error);
        let mut names = HashSet::new();
        for entry in fs::read_dir(self.directory).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            let name = name.to_str().unwrap_or_default();
            names.extend(address::parse(name).filter(|address| address.to_string() == name));
        }
        Ok(names)
    }

    /// The files named by an address, in the order of their names; `lock`, `last_reserved_ip.*` and drafts are not.
    pub(crate) fn files(&self) -> Result<Vec<(IpAddr, PathBuf)>, Error> {
        let failed = |error: io::Error| Error::io("list", self.directory, error);
        let mut files = Vec::new();
        for entry in fs::read_dir(self.directory).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            if let Some(address) = name.to_str().and_then(address::parse) {
                files.push((address, self.directory.join(name)));
            }
        }
        files.sort_by(|(_, one), (_, other)| one.cmp(other));
        Ok(files)
    }
}

/// One walk that gives back: goes on after an error, and reports the first.
#[derive(Default)]
pub(crate) struct Pass {
    pub(crate) removed: Vec<Released>,
    /// Whose they were, where the files named an owner.
    pub(crate) owners: Vec<(Owner, IpAddr)>,
    /// What stayed.
    kept: Vec<(IpAddr, Claim)>,
    /// Where what somebody held is withheld before it is removed, and for how long.
    cool_down: Option<(Quarantine, Duration)>,
    pub(crate) error: Option<Error>,
}

impl Pass {
    pub(crate) fn cooling_down(pool: &Path, time: Duration) -> Pass {
        Pass { cool_down: (!time.is_zero()).then(|| (Quarantine::of(pool), time)), ..Pass::default() }
    }

    pub(crate) fn remove_if(&mut self, path: &Path, address: IpAddr, condemned: impl FnOnce(&Claim) -> bool) {
        let claim = match lease::read_claim(path) {
            Ok(Some(claim)) => claim,
            Ok(None) => return,
            Err(error) => return self.note(Err(error)),
        };
        if !condemned(&claim) {
            self.kept.push((address, claim));
            return;
        }
        if let Some((quarantine, time)) = &mut self.cool_down
            && claim.container().is_some()
            && let Err(error) = quarantine.add(address, *time, &Reason::CoolDown)
        {
            return self.note(Err(error));
        }
        match lease::remove(path) {
            Ok(true) => {
                self.removed.push(Released { address, container: claim.container().map(str::to_owned) });
                if let Claim::Of(owner) = claim {
                    self.owners.push((owner, address));
                }
            }
            Ok(false) => {}
            Err(error) => self.note(Err(error)),
        }
    }

    /// Removes those of the owner's leases whose addresses are known.
    pub(crate) fn remove_known(&mut self, held: &Held<'_>, owner: &Owner, addresses: &[IpAddr]) {
        for address in addresses {
            let path = lease::path_of(held.directory, *address);
            self.remove_if(&path, address.to_canonical(), |claim| claim.is_of(owner));
        }
    }

    /// Removes the owner's leases by the index, and in every file only if another program may have made some.
    pub(crate) fn remove_indexed(&mut self, held: &Held<'_>, owner: &Owner) -> Result<(), Error> {
        let index = held.index();
        let found = held.indexed()?;
        let entry = found.map(|_| index.entry(owner));
        let is_all = found.is_some_and(Complete::knows_all) && entry != Some(Entry::Many);
        if let Some(Entry::Addresses(addresses)) = entry {
            self.remove_known(held, owner, &addresses);
        }
        let looks_everywhere = self.removed.is_empty() && self.error.is_none() && !is_all;
        if looks_everywhere {
            // Also in the place of those that we know, which are met again.
            self.kept.clear();
            self.remove_all_of(held, owner)?;
        }
        if self.error.is_some() {
            return Ok(());
        }
        if looks_everywhere && found.is_some() {
            // All of it was just read. One that cannot be written is not complete, and made again by the next one to need it.
            drop(index.rebuild(&self.kept));
        } else {
            index.drop_entry(owner);
            found.into_iter().for_each(|before| index.stamp(before));
        }
        Ok(())
    }

    /// Looks into every file for the owner's leases, and for those of the old format if there is none.
    pub(crate) fn remove_all_of(&mut self, held: &Held<'_>, owner: &Owner) -> Result<(), Error> {
        let mut old = Vec::new();
        for (address, path) in held.files()? {
            let mut is_old = false;
            self.remove_if(&path, address, |claim| {
                is_old = matches!(claim, Claim::OfContainer(_)) && claim.is_of(owner);
                matches!(claim, Claim::Of(found) if found == owner)
            });
            old.extend(is_old.then_some((address, path)));
        }
        old.retain(|_| self.removed.is_empty());
        self.kept.retain(|(kept, _)| old.iter().all(|(address, _)| address != kept));
        for (address, path) in &old {
            self.remove_if(path, *address, |claim| claim.is_of(owner));
        }
        Ok(())
    }

    /// After a walk through the whole pool: no draft, an index that says what is there, if there is one, and nothing that
    /// is not withheld any more.
    pub(crate) fn tidy(&mut self, held: &Held<'_>) {
        self.remove_draft(held.directory);
        let index = held.index();
        if self.error.is_none() && index.exists() {
            // One that cannot be written is not complete, and made again by the next one to need it.
            drop(index.rebuild(&self.kept));
        }
        self.note(Quarantine::of(held.directory).all().map(drop));
    }

    /// What a process leaves that is killed while it writes; under the lock there is no other writer.
    pub(crate) fn remove_draft(&mut self, directory: &Path) {
        self.note(lease::remove(&directory.join(DRAFT)).map(drop));
    }

    pub(crate) fn note(&mut self, outcome: Result<(), Error>) {
        if let Err(error) = outcome {
            self.error.get_or_insert(error);
        }
    }

    pub(crate) fn finish(self) -> Result<Vec<Released>, Error> {
        match self.error {
            Some(error) => Err(error),
            None => Ok(self.removed),
        }
    }
}
