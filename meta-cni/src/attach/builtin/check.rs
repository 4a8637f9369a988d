//! CHECK of a VF, its addresses and their leases.

use sandbox::{IfName, Link, Netns, ReadBack, Rtnl, read_back};
use sriov::Original;

use super::{BuiltinVf, LOCK_PATIENCE, lease_key, sysfs};
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
        let mut errors = Vec::new();
        // A chained plugin (tuning) may have changed MAC and MTU after us; then they are its own to check.
        let chained = list.plugins.len() > 1;
        let pod = Rtnl::open(netns)?;
        // That an interface is missing is found by the comparison that is made for every attachment.
        let found = read_back(&pod, &IfName::try_from(record.interface.as_str())?).await.ok();
        if let Some(found) = found.as_ref().filter(|_| !chained && has_interface(record)) {
            errors.extend(link_differences(found, &result).into_iter().map(Error::Mismatch));
        }
        errors.extend(self.vf_differences(record, list, found.map(|found| found.link), chained).await?);
        if let Some(PoolAddresses { directory, addresses, .. }) = &record.addresses {
            let owner = ipam::Owner::new(&record.call.container, &record.interface)?;
            let missing = ipam::Store::new(directory, LOCK_PATIENCE).missing(&owner, addresses)?;
            if !missing.is_empty() {
                let text = format!("{} is not reserved any more: {missing:?}", directory.display());
                errors.push(Error::Mismatch(text));
            }
        }
        if let (Some(kind), Some(plugin)) = (&record.executed_ipam, list.plugins.first()) {
            let scene = self.scene(record, &record.netns);
            let checked = chain::ipam_verb(list, plugin, kind, Command::Check, Some(&record.result), &scene).await;
            errors.extend(checked.err());
        }
        Error::join(errors).map_or(Ok(()), Err)
    }

    /// The VF: ours, there, with its driver, and with what was asked for at its PF.
    async fn vf_differences(
        &self,
        record: &Record,
        list: &PluginList,
        link: Option<Link>,
        chained: bool,
    ) -> Result<Vec<Error>, Error> {
        let (Some(original), Some(plugin)) = (&record.vf, list.plugins.first()) else { return Ok(Vec::new()) };
        let pci = original.pci;
        let mut errors = Vec::new();
        let key = lease_key(&record.call, &record.interface);
        if self.leases().owner(pci)?.is_none_or(|owner| owner.call != key) {
            errors.push(Error::Mismatch(format!("VF {pci} is not leased to this attachment any more")));
        }
        let vf = BuiltinVf::read(&plugin.object, &record.runtime_object(), &record.args, &record.network)?;
        let host = Rtnl::open(&Netns::current()?)?;
        let found = sriov::check(&sysfs(), &host, original, &vf.wanted, link.as_ref(), chained).await?;
        errors.extend(found.iter().map(|difference| Error::Mismatch(format!("VF {pci}: {difference}"))));
        Ok(errors)
    }
}

/// Whether the sandbox has an interface for the attachment; a VF for user space has none, unless as a dummy.
pub(in crate::attach) fn has_interface(record: &Record) -> bool {
    record.vf.as_ref().is_none_or(Original::has_interface)
}

/// For what is attached in-process, the kernel must show the result.
pub(super) fn compare(found: &ReadBack, result: &CniResult) -> Result<(), Error> {
    let missing = result.ips.iter().filter(|ip| !has_address(found, ip.address));
    let missing = missing.map(|ip| format!("{} does not have {}", found.link.name, ip.address));
    let all = missing.chain(link_differences(found, result));
    Error::join(all.map(Error::Mismatch).collect()).map_or(Ok(()), Err)
}

/// What is not as in the result, the addresses apart.
fn link_differences(found: &ReadBack, result: &CniResult) -> Vec<String> {
    let name = &found.link.name;
    let mut differences = Vec::new();
    let Some(interface) = result.interfaces.first() else { return differences };
    let mac = found.link.mac.map(|mac| mac.to_string()).unwrap_or_default();
    if mac != interface.mac && !interface.mac.is_empty() {
        differences.push(format!("{name} has MAC {mac}, the result says {}", interface.mac));
    }
    if let Some(mtu) = interface.mtu.filter(|mtu| *mtu != found.link.mtu) {
        differences.push(format!("{name} has MTU {}, the result says {mtu}", found.link.mtu));
    }
    for route in &result.routes {
        let there =
            |has: &&sandbox::Route| has.dst == route.dst.trunc() && (route.gw.is_none() || has.gateway == route.gw);
        if found.routes.iter().find(there).is_none() {
            differences.push(format!("{name} does not have the route to {}", route.dst));
        }
    }
    differences
}
