//! Reserving: one address of every range set, for one request or for several at once, all or none.

use std::collections::{BTreeMap, HashSet};
use std::net::IpAddr;

use crate::allocate::{self, Candidates, first_free};
use crate::held::Held;
use crate::index::Complete;
use crate::lease::Unnamed;
use crate::withheld::Quarantine;
use crate::{Error, IpRange, Owner, Pool, Prior, RangeSet, Request, Reservation, lease};

/// So many files are looked at one by one before the directory is listed once. In a pool at most half full an
/// address is found before that nearly always; in a fuller one listing names is far cheaper than opening files.
const LOOKS: usize = 16;

/// Reserves for several requests on one pool, as [`Pool::reserve_with`] does for one, under one hold of the lock: all
/// of them get their addresses, or none does. The pools may differ in all but their directory.
///
/// # Errors
/// As [`Pool::reserve_with`], for the first request that cannot be served; [`Error::SeveralPools`].
pub fn reserve_all<E: From<Error>>(
    requests: &[(&Pool, Request<'_>)],
    record: impl FnOnce(&[Vec<Reservation>]) -> Result<(), E>,
) -> Result<Vec<Vec<Reservation>>, E> {
    let Some((first, _)) = requests.first() else { return Ok(Vec::new()) };
    if let Some((other, _)) = requests.iter().find(|(pool, _)| pool.directory != first.directory) {
        return Err(Error::SeveralPools { one: first.directory.clone(), other: other.directory.clone() }.into());
    }
    let lock_wait = requests.iter().map(|(_, request)| request.lock_wait).max().unwrap_or_default();
    let prepared = prepare(requests);
    let store = first.store(lock_wait);
    let held = store.lock_or_create()?;
    let mut choice = Choice::on(&held);
    let mut chosen = Vec::with_capacity(requests.len());
    for (pool, request) in requests {
        chosen.push(choice.choose(pool, request)?);
    }
    record(&chosen)?;
    choice.commit(&prepared)?;
    Ok(chosen)
}

/// The lease files, written before the lock is taken, for as many addresses as possible; in the order in which these are
/// chosen. Without a directory there are none.
fn prepare(requests: &[(&Pool, Request<'_>)]) -> Vec<Unnamed> {
    let owners = requests.iter().flat_map(|(pool, request)| pool.sets.iter().map(move |_| (pool, request.owner)));
    owners.map_while(|(pool, owner)| Unnamed::write(&pool.directory, owner).ok()).collect()
}

/// What is to be reserved: decided step by step, then done at once.
pub(crate) struct Choice<'a> {
    held: &'a Held<'a>,
    /// The last address of each range set's round; what is not here is read from the pool.
    cursors: BTreeMap<usize, IpAddr>,
    /// What is to be made, in this order.
    chosen: Vec<(&'a Owner, IpAddr)>,
    /// Owners that have an entry in the index, or are to get one, with what they hold already.
    indexed: Vec<(&'a Owner, Vec<IpAddr>)>,
    /// The index as it was found, if there is one.
    before: Option<Complete>,
    /// Whether a request is kept out of the index.
    bypasses: bool,
    /// The addresses that have a file; listed when it is first needed.
    names: Option<HashSet<IpAddr>>,
    /// The addresses that were once withheld; listed together with the names.
    once_withheld: HashSet<IpAddr>,
    quarantine: Quarantine,
}

impl<'a> Choice<'a> {
    pub(crate) fn on(held: &'a Held<'a>) -> Choice<'a> {
        Choice {
            held,
            cursors: BTreeMap::new(),
            chosen: Vec::new(),
            indexed: Vec::new(),
            before: None,
            bypasses: false,
            names: None,
            once_withheld: HashSet::new(),
            quarantine: Quarantine::of(held.directory),
        }
    }

    /// Decides which addresses a request gets.
    fn choose(&mut self, pool: &Pool, request: &Request<'a>) -> Result<Vec<Reservation>, Error> {
        let (wanted, left) = allocate::assign(&pool.sets, request.requested);
        let own = self.own(request, wanted.iter().any(Option::is_none))?;
        let mut reserved = Vec::with_capacity(pool.sets.len());
        for (index, (set, wanted)) in pool.sets.iter().zip(wanted).enumerate() {
            let (address, range) = match wanted {
                Some(address) => self.by_name(index, set, address)?,
                None => {
                    if let Some(address) = own.iter().find(|address| set.range_of(**address).is_some()) {
                        let container = request.owner.container().to_owned();
                        return Err(Error::Duplicate { set: index, address: *address, container });
                    }
                    self.by_turn(index, set)?
                }
            };
            self.cursors.insert(index, address);
            self.chosen.push((request.owner, address));
            reserved.push(Reservation { address: range.with_prefix(address), gateway: range.gateway(), set: index });
        }
        if !left.is_empty() {
            return Err(Error::Unserved { addresses: left });
        }
        Ok(reserved)
    }

    /// What the owner holds already. host-local does not look where every address is asked for by name.
    fn own(&mut self, request: &Request<'a>, by_turn: bool) -> Result<Vec<IpAddr>, Error> {
        self.bypasses |= request.prior != Prior::Indexed;
        let mut own = match request.prior {
            Prior::Unknown if by_turn => self.held.held_by(request.owner)?,
            Prior::Unknown | Prior::NoneKnown => Vec::new(),
            Prior::Indexed => match self.held.indexed()? {
                Some(complete) => {
                    let found = self.held.held_by_index(complete, request.owner)?;
                    self.before = Some(complete);
                    self.indexed.push((request.owner, found.clone()));
                    found
                }
                None if by_turn => self.held.held_by(request.owner)?,
                None => Vec::new(),
            },
        };
        if request.prior != Prior::NoneKnown {
            let earlier = self.chosen.iter().filter(|(owner, _)| *owner == request.owner);
            own.extend(earlier.map(|(_, address)| *address));
        }
        Ok(own)
    }

    /// An address asked for by name.
    fn by_name<'s>(
        &mut self,
        index: usize,
        set: &'s RangeSet,
        address: IpAddr,
    ) -> Result<(IpAddr, &'s IpRange), Error> {
        let taken = |holder: Option<&str>| Error::Taken {
            set: index,
            address,
            ranges: set.to_string(),
            holder: holder.map(str::to_owned),
        };
        let range = set.range_of(address).ok_or_else(|| taken(None))?;
        if range.gateway() == Some(address) {
            return Err(Error::RequestedGateway { set: index, address });
        }
        if range.excludes(address) {
            return Err(Error::RequestedExcluded { set: index, address });
        }
        if let Some((owner, _)) = self.chosen.iter().find(|(_, chosen)| *chosen == address) {
            return Err(taken(Some(owner.container())));
        }
        if let Some(claim) = self.held.claim(address)? {
            return Err(taken(claim.container()));
        }
        match self.quarantine.find(address)? {
            Some((left, reason)) => Err(Error::Withheld { set: index, address, left, reason }),
            None => Ok((address, range)),
        }
    }

    /// The next free address of a set.
    pub(crate) fn by_turn<'s>(&mut self, index: usize, set: &'s RangeSet) -> Result<(IpAddr, &'s IpRange), Error> {
        let last = match self.cursors.get(&index) {
            Some(last) => Some(*last),
            None => lease::last_reserved(self.held.directory, index)?,
        };
        let candidates = Candidates::after(set, last);
        let mut looks = 0;
        let found = first_free(candidates.clone(), |address| {
            looks += 1;
            if looks <= LOOKS { self.is_refused(address) } else { self.is_listed(address) }
        })?;
        if let Some(found) = found {
            return Ok(found);
        }
        // Every name is there. Before giving up, look for files that stand for nobody.
        if looks > LOOKS {
            let orphans = self.held.remove_orphans()?;
            if let Some(names) = &mut self.names {
                names.retain(|name| !orphans.contains(name));
            }
            if orphans.iter().any(|orphan| set.range_of(*orphan).is_some())
                && let Some(found) = first_free(candidates, |address| self.is_listed(address))?
            {
                return Ok(found);
            }
        }
        let withheld = self.quarantine.count(set)?;
        Err(Error::Exhausted { set: index, ranges: set.to_string(), withheld })
    }

    /// Looks at the address's own files.
    fn is_refused(&mut self, address: IpAddr) -> Result<bool, Error> {
        let is_chosen = self.chosen.iter().any(|(_, chosen)| *chosen == address);
        Ok(is_chosen || self.held.claim(address)?.is_some() || self.quarantine.find(address)?.is_some())
    }

    /// Looks at the listing, which is made at the first time.
    fn is_listed(&mut self, address: IpAddr) -> Result<bool, Error> {
        let names = match self.names.take() {
            Some(names) => names,
            None => {
                self.once_withheld = self.quarantine.names()?.into_iter().collect();
                self.held.names()?
            }
        };
        let is_named = self.names.insert(names).contains(&address);
        let is_chosen = self.chosen.iter().any(|(_, chosen)| *chosen == address);
        let is_withheld = || self.once_withheld.contains(&address);
        Ok(is_named || is_chosen || (is_withheld() && self.quarantine.find(address)?.is_some()))
    }

    /// Makes the reservations; on a failure those already made are given back.
    fn commit(&self, prepared: &[Unnamed]) -> Result<(), Error> {
        // First the place in the round: if that fails, or we die here, nothing is held.
        for (set, address) in &self.cursors {
            lease::set_last_reserved(self.held.directory, *set, *address)?;
        }
        // Then the index, which may say too much, but never too little.
        let index = self.held.index();
        for (owner, before) in &self.indexed {
            let made = self.chosen.iter().filter(|(of, _)| of == owner).map(|(_, address)| *address);
            index.put(owner, &before.iter().copied().chain(made).collect::<Vec<_>>())?;
        }
        for (made, (owner, address)) in self.chosen.iter().enumerate() {
            if let Err(cause) = lease::create(self.held.directory, *address, owner, prepared.get(made)) {
                return Err(self.give_back(made, cause));
            }
        }
        if let Some(before) = self.before.filter(|_| !self.bypasses) {
            index.stamp(before);
        }
        Ok(())
    }

    /// Gives back the first `made` ones, the last first.
    fn give_back(&self, made: usize, cause: Error) -> Error {
        let addresses = self.chosen.iter().take(made).rev().map(|(_, address)| *address);
        addresses.fold(cause, |cause, address| match lease::remove(&lease::path_of(self.held.directory, address)) {
            Err(Error::Io { path, source, .. }) => {
                Error::NotGivenBack { address, path, cause: Box::new(cause), source }
            }
            _ => cause,
        })
    }
}
