//! A network's pool of addresses: its configuration, and taking one address of every range set.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;

use crate::exclude::Exclude;
use crate::node::entry_of;
use crate::owner::is_name;
use crate::range::placed;
use crate::{Error, Node, RangeSet, RawIpam, RawRange, Request, Route, Store, reserve_all};

/// Where pools lie if the configuration says nothing.
pub const DEFAULT_DATA_DIR: &str = "/var/lib/cni/networks";

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
        let directory = directory_of(network, raw)?;
        Ok(Pool {
            network: network.to_owned(),
            directory,
            sets: sets(raw, extra, node)?,
            routes: Route::all(raw.routes.as_ref())?,
            resolv_conf: raw.resolv_conf.as_deref().filter(|path| !path.is_empty()).map(PathBuf::from),
            cool_down: cool_down_of(raw),
            conflict_probe: raw.conflict_probe.unwrap_or_default(),
        })
    }

    /// The pool's directory, to give addresses back to.
    pub fn store(&self, lock_wait: Duration) -> Store {
        Store::new(&self.directory, lock_wait).cooling_down(self.cool_down)
    }

    /// The same, whatever the configuration's ranges: what was reserved can be given back though they are wrong by now.
    ///
    /// # Errors
    /// [`Error::NetworkName`], [`Error::DataDir`].
    pub fn store_of(network: &str, raw: &RawIpam, lock_wait: Duration) -> Result<Store, Error> {
        Ok(Store::new(directory_of(network, raw)?, lock_wait).cooling_down(cool_down_of(raw)))
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
    /// Nothing is reserved then: [`Error::Exhausted`], [`Error::Taken`], [`Error::RequestedGateway`], [`Error::Withheld`],
    /// [`Error::Duplicate`], [`Error::Unserved`], [`Error::LockTimeout`], [`Error::Io`], or what `record` failed with.
    /// An earlier reservation of the owner stays as it is. Only with [`Error::NotGivenBack`] an address is still held.
    pub fn reserve_with<E: From<Error>>(
        &self,
        request: &Request<'_>,
        record: impl FnOnce(&[Reservation]) -> Result<(), E>,
    ) -> Result<Vec<Reservation>, E> {
        let mut reserved =
            reserve_all(&[(self, *request)], |chosen| chosen.first().map_or(Ok(()), |chosen| record(chosen)))?;
        Ok(reserved.pop().unwrap_or_default())
    }
}

/// Where a pool lies.
fn directory_of(network: &str, raw: &RawIpam) -> Result<PathBuf, Error> {
    if !is_name(network) {
        return Err(Error::NetworkName { name: network.to_owned() });
    }
    let data_dir = raw.data_dir.as_deref().filter(|path| !path.is_empty()).unwrap_or(DEFAULT_DATA_DIR);
    if !Path::new(data_dir).is_absolute() {
        return Err(Error::DataDir { path: PathBuf::from(data_dir) });
    }
    Ok(Path::new(data_dir).join(network))
}

fn cool_down_of(raw: &RawIpam) -> Duration {
    Duration::from_secs(raw.cool_down_seconds.unwrap_or_default())
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
