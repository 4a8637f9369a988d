//! Giving a VF and its addresses back: from its record, or from what is kept elsewhere when that is lost.

use std::{collections::BTreeSet, path::Path, time::Duration};

use sandbox::{Links, Netns, NetnsId, Rtnl};
use sriov::{Original, PciAddress, SriovCni};

use super::{BuiltinVf, LOCK_PATIENCE, lease_key, of_container};
use crate::{
    attach::{
        Engine, pools,
        record::{Call, PoolAddresses, Record},
    },
    cni::{Command, Error, PluginList, chain},
};

/// What an attachment knows of the VF that it holds.
pub(super) struct Holding<'a> {
    /// Its key in the lease.
    key: &'a str,
    /// Its container.
    container: &'a str,
    /// The boot it was made in; none if only the lease knows.
    boot_id: Option<&'a str>,
    /// The VF as it was found; none if only the lease knows.
    original: Option<&'a Original>,
    /// Where its namespace is, if that lives.
    netns: Option<&'a str>,
    /// Which namespace that was.
    netns_id: Option<&'a NetnsId>,
}

impl<'a> Holding<'a> {
    /// Nothing but what the lease says.
    pub(super) fn by_lease(key: &'a str, container: &'a str) -> Self {
        Self { key, container, boot_id: None, original: None, netns: None, netns_id: None }
    }
}

/// Whether a VF is where an attachment put it, or came home from there by itself, with the alias that it got.
async fn is_marked(pci: PciAddress, holding: &Holding<'_>) -> Result<bool, Error> {
    let device = pci.to_string();
    if let Some(path) = holding.netns
        && !Rtnl::open(&Netns::open(path)?)?.by_parent(&device).await?.is_empty()
    {
        return Ok(true);
    }
    let mark = of_container(holding.container);
    let at_home = Rtnl::open(&Netns::current()?)?.by_parent(&device).await?;
    Ok(at_home.iter().any(|link| link.alias.as_ref().is_some_and(|alias| alias.contains(&mark))))
}

impl Engine {
    /// Gives VF and addresses back. The VF only if this attachment still holds it: it may be another pod's by now.
    pub(in crate::attach) async fn undo_builtin(
        &self,
        record: &mut Record,
        list: &PluginList,
        netns: Option<&str>,
    ) -> Result<(), Error> {
        let mut errors = Vec::new();
        let lease_bound = record.executed_ipam.as_deref() == Some("dhcp");
        if lease_bound {
            // Its daemon speaks to the server over the interface.
            errors.extend(self.release_executed(record, list, netns).await.err());
        }
        let device = list.plugins.first().and_then(|plugin| {
            BuiltinVf::read(&plugin.object, &record.runtime_object(), &record.args, &record.network)
                .ok()
                .map(|vf| vf.pci)
        });
        if let Some(pci) = record.vf.as_ref().map(|original| original.pci).or(device) {
            let key = lease_key(&record.call, &record.interface);
            let holding = Holding {
                key: &key,
                container: &record.call.container,
                boot_id: Some(&record.boot_id),
                original: record.vf.as_ref(),
                netns,
                netns_id: record.netns_id.as_ref(),
            };
            errors.extend(self.give_back(pci, &holding).await.err());
        }
        if !errors.is_empty() {
            // The address is still on the interface: it must not be given to another pod yet.
            return Error::join(errors).map_or(Ok(()), Err);
        }
        if !lease_bound {
            self.release_executed(record, list, netns).await?;
        }
        if let Some(PoolAddresses { directory, addresses, cool_down }) = &record.addresses {
            let owner = ipam::Owner::new(&record.call.container, &record.interface)?;
            // What was only reserved nobody has seen: a pod that fails again and again must not use up the pool.
            let seen = Duration::from_secs(if record.vf.is_some() { *cool_down } else { 0 });
            let store = ipam::Store::new(directory, LOCK_PATIENCE).cooling_down(seen);
            store.release(&owner, ipam::Known::Addresses(addresses))?;
        }
        Ok(())
    }

    /// Restores a VF and drops its lease, if the lease is the caller's, or nobody's. What is left of another boot has
    /// nothing to restore: that one's settings, names and namespaces are gone, and the VFs are new ones.
    pub(super) async fn give_back(&self, pci: PciAddress, holding: &Holding<'_>) -> Result<(), Error> {
        let leases = self.leases();
        let lock = leases.lock(pci, LOCK_PATIENCE).await?;
        let sriov_cni = SriovCni::of_node();
        let _their_lock = sriov_cni.lock(pci, LOCK_PATIENCE).await?;
        let owner = leases.owner(pci)?;
        if owner.as_ref().is_some_and(|owner| owner.call != holding.key) {
            tracing::warn!(vf = %pci, owner = owner.map(|owner| owner.call), "the VF has another owner by now and is left alone");
            return Ok(());
        }
        let netns_id = owner.as_ref().map(|owner| &owner.netns).or(holding.netns_id);
        let held = netns_id.map(|id| id.path.as_path());
        match sriov_cni.refuse_if_held(pci, held) {
            Err(taken @ sriov::Error::Allocated { .. }) => {
                tracing::warn!(vf = %pci, %taken, "sriov-cni has given the VF to another pod by now: it is left alone");
                leases.release(&lock, holding.key)?;
                return Ok(());
            }
            free => free?,
        }
        // Without a lease another attachment may have had it since, and given it back.
        if owner.is_none() && !leases.is_torn(pci)? {
            let Some(original) = holding.original else { return Ok(()) };
            if !is_marked(original.pci, holding).await? {
                tracing::warn!(vf = %pci, "the VF is not this attachment's any more and is left alone");
                return Ok(());
            }
        }
        let original = holding.original.or(owner.as_ref().and_then(|owner| owner.original.as_deref()));
        let boot_id = holding.boot_id.or(owner.as_ref().map(|owner| owner.boot_id.as_str()));
        if let Some(original) = original.filter(|_| boot_id == Some(&self.boot_id)) {
            self.bring_back(original, holding.netns, netns_id).await?;
        }
        if let Some(held) = held {
            sriov_cni.release(pci, held)?;
        }
        leases.release(&lock, holding.key)?;
        if holding.original.is_some() {
            leases.forget_torn(&lock)?;
        }
        Ok(())
    }

    async fn release_executed(&self, record: &mut Record, list: &PluginList, netns: Option<&str>) -> Result<(), Error> {
        let (Some(kind), Some(plugin)) = (record.executed_ipam.clone(), list.plugins.first()) else { return Ok(()) };
        let scene = self.scene(record, netns.unwrap_or_default());
        let previous = record.result.clone();
        let previous = Some(&previous).filter(|value| value.is_object());
        chain::ipam_verb(list, plugin, &kind, Command::Del, previous, &scene).await
    }

    /// Undoes an attachment whose record cannot be read, by what is kept elsewhere: the VF's lease, which has its original
    /// state, and the pools' files, which name container and interface.
    pub(in crate::attach) async fn undo_torn(&self, path: &Path, call: &Call, interface: &str) -> Result<(), Error> {
        let key = lease_key(call, interface);
        let leases = self.leases();
        for pci in leases.list()? {
            if leases.owner(pci)?.is_some_and(|owner| owner.call == key) {
                self.give_back(pci, &Holding::by_lease(&key, &call.container)).await?;
            }
        }
        let owner = ipam::Owner::new(&call.container, interface)?;
        for pool in pools::of_node() {
            ipam::Store::new(pool, LOCK_PATIENCE).release(&owner, ipam::Known::Nothing)?;
        }
        self.forget_device_info(&call.container, interface)?;
        self.records.remove_torn(path)
    }

    /// The interfaces whose VF a call holds by its lease, but for those that have a record: all that is known of them is
    /// the lease.
    pub(in crate::attach) fn unrecorded(
        &self,
        call: &Call,
        recorded: &BTreeSet<String>,
    ) -> Result<BTreeSet<String>, Error> {
        let leases = self.leases();
        let mut interfaces = BTreeSet::new();
        for pci in leases.list()? {
            let owner = leases.owner(pci)?.map(|owner| owner.call).unwrap_or_default();
            let interface = owner.strip_prefix(&call.key()).and_then(|rest| rest.strip_prefix(':'));
            interfaces.extend(interface.filter(|name| !recorded.contains(*name)).map(str::to_owned));
        }
        Ok(interfaces)
    }
}
