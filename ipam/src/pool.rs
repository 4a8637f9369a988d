//! A network's pool of addresses: its configuration, and taking one address of every range set.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;

use crate::owner::is_name;
use crate::range::placed;
use crate::{Error, RangeSet, RawIpam, RawRange, Request, Route, Store, reserve_all};

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
    /// level of `ipam`, then `ranges`.
    ///
    /// # Errors
    /// The configuration errors of [`Error`], with host-local's texts; [`Error::NetworkName`], [`Error::DataDir`].
    pub fn new(network: &str, raw: &RawIpam, extra: &[Vec<RawRange>]) -> Result<Pool, Error> {
        if !is_name(network) {
            return Err(Error::NetworkName { name: network.to_owned() });
        }
        let data_dir = raw.data_dir.as_deref().filter(|path| !path.is_empty()).unwrap_or(DEFAULT_DATA_DIR);
        if !Path::new(data_dir).is_absolute() {
            return Err(Error::DataDir { path: PathBuf::from(data_dir) });
        }
        let legacy = raw.legacy_range();
        let mut sets = Vec::new();
        for (index, set) in extra.iter().enumerate() {
            sets.push(placed(&format!("runtimeConfig.ipRanges[{index}]"), set));
        }
        sets.extend(legacy.iter().map(|range| vec![("ipam".to_owned(), range)]));
        for (index, set) in raw.ranges.iter().flatten().enumerate() {
            sets.push(placed(&format!("ranges[{index}]"), set));
        }
        Ok(Pool {
            network: network.to_owned(),
            directory: Path::new(data_dir).join(network),
            sets: RangeSet::all(&sets)?,
            routes: Route::all(raw.routes.as_ref())?,
            resolv_conf: raw.resolv_conf.as_deref().filter(|path| !path.is_empty()).map(PathBuf::from),
            cool_down: Duration::ZERO,
        })
    }

    /// The pool's directory, to give addresses back to.
    pub fn store(&self, lock_wait: Duration) -> Store {
        Store::new(&self.directory, lock_wait).cooling_down(self.cool_down)
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
