//! CHECK of a VF, its addresses and their leases.

use sandbox::{IfName, Netns, ReadBack, Rtnl, read_back};

use super::{LOCK_PATIENCE, lease_key};
use crate::{
    attach::{
        Engine,
        check::has_address,
        record::{PoolAddresses, Record},
    },
    cni::{CniResult, Command, Error, PluginList, chain},
};

impl Engine {
    /// Compares VF, addresses and leases with the record.
    pub(in crate::attach) async fn check_builtin(
        &self,
        record: &Record,
        list: &PluginList,
        netns: &Netns,
    ) -> Result<(), Error> {
        let result = CniResult::parse("the recorded result", &record.result, list.version)?;
        let pod = Rtnl::open(netns)?;
        let found = read_back(&pod, &IfName::try_from(record.interface.as_str())?).await?;
        // A chained plugin (tuning) may have changed MAC and MTU after us; then they are its own to check.
        if list.plugins.len() == 1 {
            compare(&found, &result)?;
        }
        if let Some(original) = &record.vf {
            let key = lease_key(&record.call, &record.interface);
            if self.leases().owner(original.pci)?.is_none_or(|owner| owner.call != key) {
                return Err(Error::Mismatch(format!("VF {} is not leased to this attachment any more", original.pci)));
            }
        }
        if let Some(PoolAddresses { directory, addresses }) = &record.addresses {
            let owner = ipam::Owner::new(&record.call.container, &record.interface)?;
            let missing = ipam::Store::new(directory, LOCK_PATIENCE).missing(&owner, addresses)?;
            if !missing.is_empty() {
                return Err(Error::Mismatch(format!("{} is not reserved any more: {missing:?}", directory.display())));
            }
        }
        if let (Some(kind), Some(plugin)) = (&record.executed_ipam, list.plugins.first()) {
            let scene = self.scene(record, &record.netns);
            chain::ipam_verb(list, plugin, kind, Command::Check, Some(&record.result), &scene).await?;
        }
        Ok(())
    }
}

/// For what is attached in-process, the kernel must show the result.
pub(super) fn compare(found: &ReadBack, result: &CniResult) -> Result<(), Error> {
    let name = &found.link.name;
    for ip in &result.ips {
        if !has_address(found, ip.address) {
            return Err(Error::Mismatch(format!("{name} does not have {}", ip.address)));
        }
    }
    let Some(interface) = result.interfaces.first() else { return Ok(()) };
    let mac = found.link.mac.map(|mac| mac.to_string()).unwrap_or_default();
    if mac != interface.mac {
        return Err(Error::Mismatch(format!("{name} has MAC {mac}, the result says {}", interface.mac)));
    }
    if interface.mtu.is_some_and(|mtu| mtu != found.link.mtu) {
        return Err(Error::Mismatch(format!("{name} has MTU {}, the result says {:?}", found.link.mtu, interface.mtu)));
    }
    for route in &result.routes {
        let there =
            |has: &&sandbox::Route| has.dst == route.dst.trunc() && (route.gw.is_none() || has.gateway == route.gw);
        if found.routes.iter().find(there).is_none() {
            return Err(Error::Mismatch(format!("{name} does not have the route to {}", route.dst)));
        }
    }
    Ok(())
}
