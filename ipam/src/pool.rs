//! A network's pool of addresses: its configuration, and taking one address of every range set.

use std::collections::HashSet;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;

use crate::allocate::{self, Candidates, first_free};
use crate::exclude::Exclude;
use crate::node::entry_of;
use crate::owner::{Claim, is_name};
use crate::range::placed;
use crate::store::Held;
use crate::{Error, IpRange, Node, Owner, Prior, RangeSet, RawIpam, RawRange, Request, Route, Store, lease};

/// Where pools lie if the configuration says nothing.
pub const DEFAULT_DATA_DIR: &str = "/var/lib/cni/networks";

/// So many files are looked at one by one before the directory is listed once. In a pool at most half full an
/// address is found before that nearly always; in a fuller one listing names is far cheaper than opening files.
const LOOKS: usize = 16;

/// host-local's configuration of one network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pool {
    /// The network's name, which alone identifies the pool.
    pub network: String,
    /// The pool's directory, `DATA_DIR/NETWORK`.
    pub directory: PathBuf,
    /// The range sets: one address is given out of each. Never empty, and no two overlap.
    pub sets: Vec<RangeSet>,
    /// Routes, handed through.
    pub routes: Vec<Route>,
    /// A resolv.conf whose content becomes the result's DNS; see [`crate::Dns::read`].
    pub resolv_conf: Option<PathBuf>,
    /// So long an address that was given back is not given out again.
    pub cool_down: Duration,
    /// Whether the network is to be asked if an address is in use before it is used.
    pub conflict_probe: bool,
}

/// One address that was reserved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reservation {
    /// The address with its subnet's prefix length.
    pub address: IpNet,
    /// The gateway of its range.
    pub gateway: Option<IpAddr>,
    /// The index of its range set in [`Pool::sets`].
    pub set: usize,
}

impl Pool {
    /// Judges a configuration: `extra` (`runtimeConfig.ipRanges`) comes first, then the single range written at the
    /// level of `ipam`, then `ranges`, or those of `rangesByNode` that are for `node`. Of `node` only what
    /// [`RawIpam::depends_on_name`] and [`RawIpam::depends_on_slice`] say is looked at.
    ///
    /// # Errors
    /// The configuration errors of [`Error`], with host-local's texts; [`Error::NetworkName`], [`Error::DataDir`].
    pub fn new(network: &str, raw: &RawIpam, extra: &[Vec<RawRange>], node: &Node) -> Result<Pool, Error> {
        let directory = Pool::directory_of(network, raw)?;
        Ok(Pool {
            network: network.to_owned(),
            directory,
            sets: sets(raw, extra, node)?,
            routes: Route::all(raw.routes.as_ref())?,
            resolv_conf: raw.resolv_conf.as_deref().filter(|path| !path.is_empty()).map(PathBuf::from),
            cool_down: Duration::from_secs(raw.cool_down_seconds.unwrap_or_default()),
            conflict_probe: raw.conflict_probe.unwrap_or_default(),
        })
    }

    /// Where a pool lies, whatever its ranges: what was reserved can be given back though they are wrong by now.
    ///
    /// # Errors
    /// [`Error::NetworkName`], [`Error::DataDir`].
    pub fn directory_of(network: &str, raw: &RawIpam) -> Result<PathBuf, Error> {
        if !is_name(network) {
            return Err(Error::NetworkName { name: network.to_owned() });
        }
        let data_dir = raw.data_dir.as_deref().filter(|path| !path.is_empty()).unwrap_or(DEFAULT_DATA_DIR);
        if !Path::new(data_dir).is_absolute() {
            return Err(Error::DataDir { path: PathBuf::from(data_dir) });
        }
        Ok(Path::new(data_dir).join(network))
    }

    /// The pool's directory, to give addresses back to.
    pub fn store(&self, lock_wait: Duration) -> Store {
        Store::new(&self.directory, lock_wait)
    }

    /// Reserves one address of every range set, all or none; see [`Pool::reserve_with`].
    ///
    /// # Errors
    /// As [`Pool::reserve_with`].
    pub fn reserve(&self, request: &Request<'_>) -> Result<Vec<Reservation>, Error> {
        self.reserve_with(request, |_| Ok(()))
    }

    /// Reserves one address of every range set under one hold of the lock. What is to be reserved is handed to
    /// `record` before any file appears, so that the caller can write it down; if that fails nothing has been done.
    /// `record` runs while the pool is locked: it must be short, and take no lock that comes before the pool's.
    ///
    /// # Errors
    /// Nothing is reserved then: [`Error::Exhausted`], [`Error::Taken`], [`Error::RequestedGateway`],
    /// [`Error::Duplicate`], [`Error::Unserved`], [`Error::LockTimeout`], [`Error::Io`], or what `record` failed with.
    /// An earlier reservation of the owner stays as it is. Only with [`Error::NotGivenBack`] an address is still held.
    pub fn reserve_with<E: From<Error>>(
        &self,
        request: &Request<'_>,
        record: impl FnOnce(&[Reservation]) -> Result<(), E>,
    ) -> Result<Vec<Reservation>, E> {
        let store = self.store(request.lock_wait);
        let held = store.lock_or_create()?;
        let chosen = self.choose(&held, request)?;
        record(&chosen)?;
        commit(&held, request.owner, &chosen)?;
        Ok(chosen)
    }

    /// Decides which addresses the request gets. Changes nothing.
    fn choose(&self, held: &Held<'_>, request: &Request<'_>) -> Result<Vec<Reservation>, Error> {
        let (wanted, left) = allocate::assign(&self.sets, request.requested);
        // host-local does not look for earlier reservations where an address is asked for by name.
        let own = match request.prior {
            Prior::Unknown if wanted.iter().any(Option::is_none) => held.held_by(request.owner)?,
            Prior::Unknown | Prior::NoneKnown => Vec::new(),
        };
        let mut names = None;
        let mut chosen = Vec::with_capacity(self.sets.len());
        for (index, (set, wanted)) in self.sets.iter().zip(wanted).enumerate() {
            let (address, range) = match wanted {
                Some(address) => by_name(held, index, set, address)?,
                None => {
                    if let Some(address) = own.iter().find(|address| set.range_of(**address).is_some()) {
                        let container = request.owner.container().to_owned();
                        return Err(Error::Duplicate { set: index, address: *address, container });
                    }
                    let found = by_turn(held, index, set, &mut names)?;
                    found.ok_or_else(|| Error::Exhausted { set: index, ranges: set.to_string() })?
                }
            };
            let address = range.with_prefix(address);
            chosen.push(Reservation { address, gateway: range.gateway(), set: index });
        }
        if !left.is_empty() {
            return Err(Error::Unserved { addresses: left });
        }
        Ok(chosen)
    }
}

/// The range sets of a configuration on a node, in the order of [`Pool::new`].
fn sets(raw: &RawIpam, extra: &[Vec<RawRange>], node: &Node) -> Result<Vec<RangeSet>, Error> {
    let legacy = raw.legacy_range();
    let everywhere = Exclude::all("", raw.exclude.as_ref())?;
    let mut placed_sets = Vec::new();
    for (index, set) in extra.iter().enumerate() {
        placed_sets.push(placed(&format!("runtimeConfig.ipRanges[{index}]"), set));
    }
    placed_sets.extend(legacy.iter().map(|range| vec![("ipam".to_owned(), range)]));
    for (index, set) in raw.ranges.iter().flatten().enumerate() {
        placed_sets.push(placed(&format!("ranges[{index}]"), set));
    }
    // Ranges of other nodes: an address excluded everywhere may be one of theirs.
    let mut of_others = Vec::new();
    if let Some(entries) = &raw.ranges_by_node {
        if placed_sets.len() > extra.len() {
            return Err(Error::RangesTwice);
        }
        let chosen = entry_of(entries, node)?;
        for (index, entry) in entries.iter().enumerate() {
            let own: Vec<_> = entry
                .ranges
                .iter()
                .flatten()
                .enumerate()
                .map(|(index, set)| placed(&format!("ranges[{index}]"), set))
                .collect();
            // A mistake in another node's ranges is worth an error on this one: it would be found too late there.
            let judged = RangeSet::all(&own, &everywhere);
            of_others.extend(judged.map_err(|cause| Error::NodeRanges { index, cause: Box::new(cause) })?);
            if index == chosen {
                placed_sets.extend(own);
            }
        }
    }
    let sets = RangeSet::all(&placed_sets, &everywhere)?;
    let ranges = || sets.iter().chain(&of_others).flat_map(RangeSet::ranges);
    if let Some(idle) = everywhere.iter().find(|exclude| !ranges().any(|one| exclude.touches(one.start(), one.end()))) {
        return Err(idle.outside());
    }
    if !raw.depends_on_slice() {
        return Ok(sets);
    }
    let slice = node.slice.ok_or(Error::NoSlice)?;
    // Ranges from the runtime are for this node as they are.
    let cut = |(set, ranges): (usize, RangeSet)| if set < extra.len() { Ok(ranges) } else { ranges.sliced(set, slice) };
    sets.into_iter().enumerate().map(cut).collect()
}

/// An address asked for by name.
fn by_name<'a>(
    held: &Held<'_>,
    index: usize,
    set: &'a RangeSet,
    address: IpAddr,
) -> Result<(IpAddr, &'a IpRange), Error> {
    let taken = |claim: Option<&Claim>| Error::Taken {
        set: index,
        address,
        ranges: set.to_string(),
        holder: claim.and_then(Claim::container).map(str::to_owned),
    };
    let range = set.range_of(address).ok_or_else(|| taken(None))?;
    if range.gateway() == Some(address) {
        return Err(Error::RequestedGateway { set: index, address });
    }
    if range.excludes(address) {
        return Err(Error::RequestedExcluded { set: index, address });
    }
    match held.claim(address)? {
        None => Ok((address, range)),
        Some(claim) => Err(taken(Some(&claim))),
    }
}

/// The next free address of a set. `names` keeps the directory's listing, made when it is first needed.
fn by_turn<'a>(
    held: &Held<'_>,
    index: usize,
    set: &'a RangeSet,
    names: &mut Option<HashSet<IpAddr>>,
) -> Result<Option<(IpAddr, &'a IpRange)>, Error> {
    let candidates = Candidates::after(set, lease::last_reserved(held.directory, index)?);
    let mut looks = 0;
    let found = first_free(candidates.clone(), |address| {
        looks += 1;
        if looks <= LOOKS {
            return Ok(held.claim(address)?.is_some());
        }
        let listed = match names.take() {
            Some(listed) => listed,
            None => held.names()?,
        };
        Ok(names.insert(listed).contains(&address))
    })?;
    if found.is_some() || looks <= LOOKS {
        return Ok(found);
    }
    // Every name is there. Before giving up, look for files that stand for nobody.
    first_free(candidates, |address| Ok(held.claim(address)?.is_some()))
}

/// Makes the reservations; on a failure those already made are given back.
fn commit(held: &Held<'_>, owner: &Owner, chosen: &[Reservation]) -> Result<(), Error> {
    // First the place in the round: if that fails, or we die here, nothing is held.
    for reservation in chosen {
        lease::set_last_reserved(held.directory, reservation.set, reservation.address.addr())?;
    }
    for (made, reservation) in chosen.iter().enumerate() {
        let Err(cause) = lease::create(held.directory, reservation.address.addr(), owner) else { continue };
        return Err(chosen.iter().take(made).rev().fold(cause, |cause, earlier| give_back(held, earlier, cause)));
    }
    Ok(())
}

fn give_back(held: &Held<'_>, reservation: &Reservation, cause: Error) -> Error {
    let address = reservation.address.addr();
    match lease::remove(&lease::path_of(held.directory, address)) {
        Ok(_) => cause,
        Err(Error::Io { path, source, .. }) => Error::NotGivenBack { address, path, cause: Box::new(cause), source },
        Err(_) => cause,
    }
}
