//! Giving a VF and its addresses back: from its record, or from what is kept elsewhere when that is lost.

use std::{collections::BTreeSet, path::Path};

use sandbox::{Netns, Rtnl};
use sriov::{Original, PciAddress, SriovCni, restore};

use super::{BuiltinVf, LOCK_PATIENCE, lease_key, sysfs};
use crate::{
    attach::{
        Engine,
        record::{Call, PoolAddresses, Record},
    },
    cni::{Command, Error, PluginList, chain},
};

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
            let held = Path::new(&record.netns);
            errors.extend(self.give_back(pci, &key, record.vf.as_ref(), netns, held).await.err());
        }
        if !errors.is_empty() {
            // The address is still on the interface: it must not be given to another pod yet.
            return Error::join(errors).map_or(Ok(()), Err);
        }
        if !lease_bound {
            self.release_executed(record, list, netns).await?;
        }
        if let Some(PoolAddresses { directory, addresses }) = &record.addresses {
            let owner = ipam::Owner::new(&record.call.container, &record.interface)?;
            ipam::Store::new(directory, LOCK_PATIENCE).release(&owner, Some(addresses))?;
        }
        Ok(())
    }

    /// Restores a VF and drops its lease, if the lease is the caller's, or nobody's. `held` is where the caller held it.
    async fn give_back(
        &self,
        pci: PciAddress,
        key: &str,
        original: Option<&Original>,
        netns: Option<&str>,
        held: &Path,
    ) -> Result<(), Error> {
        let leases = self.leases();
        let lock = leases.lock(pci, LOCK_PATIENCE).await?;
        let sriov_cni = SriovCni::of_node();
        let _their_lock = sriov_cni.lock(pci, LOCK_PATIENCE).await?;
        let owner = leases.owner(pci)?;
        if owner.as_ref().is_some_and(|owner| owner.call != key) {
            tracing::warn!(vf = %pci, owner = owner.map(|owner| owner.call), "the VF has another owner by now and is left alone");
            return Ok(());
        }
        match sriov_cni.refuse_if_held(pci, Some(held)) {
            Err(taken @ sriov::Error::Allocated { .. }) => {
                tracing::warn!(vf = %pci, %taken, "sriov-cni has given the VF to another pod by now: it is left alone");
                leases.release(&lock, key)?;
                return Ok(());
            }
            free => free?,
        }
        let of_lease = owner.and_then(|owner| owner.original);
        if let Some(original) = original.or(of_lease.as_deref()) {
            let host = Rtnl::open(&Netns::current()?)?;
            let pod = netns.map(Netns::open).transpose()?.map(|netns| Rtnl::open(&netns)).transpose()?;
            restore(&host, pod.as_ref(), original, &sysfs()).await?;
        }
        sriov_cni.release(pci, held)?;
        leases.release(&lock, key)?;
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
            let Some(owner) = leases.owner(pci)?.filter(|owner| owner.call == key) else { continue };
            let alive = leases.is_alive(pci, &owner)?;
            let netns = owner.netns.path.to_string_lossy().into_owned();
            self.give_back(pci, &key, None, alive.then_some(netns.as_str()), &owner.netns.path).await?;
        }
        let owner = ipam::Owner::new(&call.container, interface)?;
        for pool in std::fs::read_dir(ipam::DEFAULT_DATA_DIR).into_iter().flatten().flatten() {
            if pool.file_type().is_ok_and(|kind| kind.is_dir()) {
                ipam::Store::new(pool.path(), LOCK_PATIENCE).release(&owner, None)?;
            }
        }
        self.records.remove_file(path)
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
