//! The verbs.

use std::{net::IpAddr, time::Duration};

use ipam::{Known, Pool, Prior, Request};
use serde_json::Value;

use super::{
    boot,
    conf::{self, LOCK_PATIENCE},
};
use crate::cni::{CniResult, Error, Invocation, Ip, Object, Route, SpecVersion};

/// STATUS does not wait long: a runtime asks every few seconds.
const STATUS_PATIENCE: Duration = Duration::from_secs(5);

/// Reserves one address of every range set; once more if there is none, or not the one asked for, and an earlier boot left
/// some that nobody has.
pub(super) fn add(invocation: &Invocation, version: SpecVersion, alone: bool) -> Result<Value, Error> {
    let pool = conf::pool(&invocation.conf, version)?;
    let requested = conf::requested(invocation)?;
    // Whatever can be wrong is found before anything is reserved.
    let dns = pool.resolv_conf.as_deref().map(ipam::Dns::read).transpose()?.unwrap_or_default();
    let owner = conf::owner(invocation)?;
    let request = Request { owner: &owner, requested: &requested, prior: Prior::Indexed, lock_wait: LOCK_PATIENCE };
    let reserved = match pool.reserve(&request) {
        // If that fails, what is wrong is still that there is no address.
        Err(error)
            if error.lacks_address() && alone && boot::reclaim(&pool.store(LOCK_PATIENCE)).is_ok_and(|freed| freed) =>
        {
            pool.reserve(&request)?
        }
        outcome => outcome?,
    };
    let result = CniResult {
        interfaces: Vec::new(),
        ips: reserved.iter().map(Ip::from).collect(),
        routes: pool.routes.iter().map(Route::from).collect(),
        dns: dns.into(),
    };
    result.to_json(version)
}

/// Gives back what the container has. Ranges do not count: they may have been changed, or be wrong, since ADD.
pub(super) fn del(invocation: &Invocation) -> Result<(), Error> {
    let owner = conf::owner(invocation)?;
    conf::store(&invocation.conf)?.release(&owner, Known::Indexed)?;
    Ok(())
}

/// Whether the addresses of the result so far are reserved for the container; where it has none of this network, whether
/// any is, which is all that host-local asks.
pub(super) fn check(invocation: &Invocation, version: SpecVersion) -> Result<(), Error> {
    let pool = conf::pool(&invocation.conf, version)?;
    let owner = conf::owner(invocation)?;
    let failed = |detail: String| {
        let container = owner.container();
        Error::Mismatch(format!("host-local: Failed to find address added by container {container}{detail}"))
    };
    let store = pool.store(LOCK_PATIENCE);
    let given = addresses_of(&pool, &invocation.conf, version)?;
    if given.is_empty() {
        let found = store.held_by(&owner)?;
        return if found.is_empty() { Err(failed(String::new())) } else { Ok(()) };
    }
    let missing = store.missing(&owner, &given)?;
    if missing.is_empty() {
        return Ok(());
    }
    let missing: Vec<String> = missing.iter().map(IpAddr::to_string).collect();
    Err(failed(format!(": not reserved for its interface {}: {}", owner.interface(), missing.join(", "))))
}

/// Gives back what belongs to no attachment of the list. Without a list nothing is said of any.
pub(super) fn gc(invocation: &Invocation) -> Result<(), Error> {
    let store = conf::store(&invocation.conf)?;
    let Some(valid) = conf::valid(&invocation.conf)? else { return Ok(()) };
    store.release_all_but(&valid)?;
    Ok(())
}

/// Whether an ADD could work: the configuration is right, and the pool can be written and has an address left. An error
/// makes the runtime call its node not ready, and then no ADD comes any more: what an ADD would reclaim, and what comes back
/// by itself, is as good as free.
pub(super) fn status(invocation: &Invocation, version: SpecVersion) -> Result<(), Error> {
    let not_ready = |error: Error| Error::NotReady(format!("the network is not ready: {error}"));
    let pool = conf::pool(&invocation.conf, version).map_err(not_ready)?;
    match pool.vacancy(STATUS_PATIENCE) {
        Err(ipam::Error::Exhausted { withheld: Some(_), .. }) => Ok(()),
        Err(ipam::Error::Exhausted { .. })
            if boot::has_leftovers(&pool.store(STATUS_PATIENCE)).map_err(not_ready)? =>
        {
            Ok(())
        }
        outcome => outcome.map_err(|error| not_ready(error.into())),
    }
}

/// Those addresses of `prevResult` that are of this network: the chain may have got others elsewhere.
fn addresses_of(pool: &Pool, conf: &Object, version: SpecVersion) -> Result<Vec<IpAddr>, Error> {
    let Some(previous) = conf.get::<Value>("prevResult")? else { return Ok(Vec::new()) };
    let previous = CniResult::parse("prevResult", &previous, version)?;
    let addresses = previous.ips.iter().map(|ip| ip.address.addr());
    Ok(addresses.filter(|address| pool.sets.iter().any(|set| set.range_of(*address).is_some())).collect())
}
