//! Addresses that somebody uses who knows nothing of the pool: found before they are on the interface, if the
//! configuration wants that (`conflictProbe`).

use std::{net::IpAddr, time::Duration};

use ipam::{Known, Owner, Pool, Prior, Reason, Request, Store};
use sandbox::{Conflict, Link, Probed, Rtnl, probe};

use super::{
    LOCK_PATIENCE,
    addresses::{Addresses, BuiltinIpam},
};
use crate::{
    attach::{Engine, record::Record},
    cni::Error,
};

/// How many times addresses are probed for until nobody else has them.
const TRIES: usize = 5;
/// How long an address is not given out after somebody else was seen to use it.
const QUARANTINE: Duration = Duration::from_secs(3600);
const HELD_BACK: &str = "the pool gives them to nobody for an hour: change those hosts, or exclude the addresses";

impl Engine {
    /// Probes for the addresses of an attachment, where that is wanted. Those of a pool that are somebody else's are held
    /// back, and the next ones tried; others were asked for as they are, and there are no others. Where nobody can be
    /// asked nothing is known, which is no failure. The interface is up and does not have the addresses yet.
    pub(super) async fn without_conflicts(
        &self,
        ipam: &BuiltinIpam,
        mut reserved: Addresses,
        record: &mut Record,
        (pod, link): (&Rtnl, &mut Link),
    ) -> Result<Addresses, Error> {
        if !ipam.probes() {
            return Ok(reserved);
        }
        let mut seen = Vec::new();
        for last in (0..TRIES).rev().map(|left| left == 0) {
            let conflicts = match probe(pod, link, &addresses_of(&reserved)).await? {
                Probed::Asked(conflicts) if conflicts.is_empty() => return Ok(reserved),
                Probed::Asked(conflicts) => conflicts,
                Probed::Unknown { why } => {
                    tracing::warn!(why, "nobody was asked whether the addresses are in use");
                    return Ok(reserved);
                }
            };
            seen.extend(conflicts.iter().copied());
            let BuiltinIpam::Pool { pool, requested } = ipam else {
                return Err(in_use(&seen, "the configuration asks for them: change it, or those hosts"));
            };
            if conflicts.iter().any(|conflict| requested.iter().any(|ip| ip.to_canonical() == conflict.address)) {
                return Err(in_use(&seen, "the pod asks for them by name: ask for others, or change those hosts"));
            }
            for Conflict { address, mac } in conflicts {
                tracing::warn!(%address, %mac, "the address is somebody else's, and is held back");
                let reason = Reason::Conflict { mac: mac.to_string() };
                pool.store(LOCK_PATIENCE).withhold(address, QUARANTINE, &reason)?;
            }
            if last {
                break;
            }
            // What is held back may be why there are no others.
            let none_left = |error| Error::Several(vec![error, in_use(&seen, HELD_BACK)]);
            reserved = self.exchange(pool, requested, &reserved, record).map_err(none_left)?;
        }
        Err(in_use(&seen, HELD_BACK))
    }

    /// Gives the addresses of the record back and reserves the next ones. The record has the former ones until the latter
    /// are about to be taken: whatever is held, it says so.
    fn exchange(
        &self,
        pool: &Pool,
        requested: &[IpAddr],
        former: &Addresses,
        record: &mut Record,
    ) -> Result<Addresses, Error> {
        let owner = Owner::new(&record.call.container, &record.interface)?;
        // They were on no interface: nobody needs to forget them first.
        Store::new(&pool.directory, LOCK_PATIENCE).release(&owner, Known::Addresses(&addresses_of(former)))?;
        let request = Request { owner: &owner, requested, prior: Prior::NoneKnown, lock_wait: LOCK_PATIENCE };
        let reserved = pool.reserve_with(&request, |chosen| self.write_down(record, pool, chosen))?;
        Addresses::of_pool(pool, &reserved)
    }
}

fn addresses_of(reserved: &Addresses) -> Vec<IpAddr> {
    reserved.ips.iter().map(|ip| ip.address.addr()).collect()
}

/// It will pass when the other hosts, or the configuration, have changed.
fn in_use(conflicts: &[Conflict], what_to_do: &str) -> Error {
    let seen: Vec<String> =
        conflicts.iter().map(|conflict| format!("{} is {}'s", conflict.address, conflict.mac)).collect();
    Error::TryLater(format!("other hosts in the network use the addresses ({}); {what_to_do}", seen.join(", ")))
}
