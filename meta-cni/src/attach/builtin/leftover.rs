//! GC of VFs of which no record tells: by their leases, and by the alias of those that nothing else is known of.

use sandbox::{Links, Netns, Rtnl};
use sriov::{Owner, PciAddress, SriovCni, is_owner_alias};

use super::{LOCK_PATIENCE, sysfs};
use crate::{
    attach::{Engine, gc::Living, record::Call},
    cni::Error,
};

impl Engine {
    /// Gives back every VF that nobody holds any more and no record knows of: its lease names a dead owner or a call that
    /// is not valid any more, its lease is torn, or it lies in the host with the alias of an owner.
    pub(in crate::attach) async fn collect_vfs(&mut self, living: &Living) -> Vec<Error> {
        let leases = self.leases();
        let mut errors = Vec::new();
        match leases.list() {
            Ok(leased) => {
                for pci in leased {
                    let collected = match leases.owner(pci) {
                        Ok(Some(owner)) => self.collect_lease(pci, &owner, living).await,
                        Ok(None) => self.collect_torn(pci).await,
                        Err(error) => Err(error.into()),
                    };
                    errors.extend(collected.err().map(|error| error.of_network(format!("VF {pci}"))));
                }
            }
            Err(error) => errors.push(error.into()),
        }
        self.lock = None;
        match marked_in_host().await {
            Ok(marked) => {
                for pci in marked {
                    errors.extend(
                        self.collect_marked(pci).await.err().map(|error| error.of_network(format!("VF {pci}"))),
                    );
                }
            }
            Err(error) => errors.push(error),
        }
        errors
    }

    /// A lease without a record. Under the lock of its sandbox: its ADD may be at work.
    async fn collect_lease(&mut self, pci: PciAddress, owner: &Owner, living: &Living) -> Result<(), Error> {
        let dead = !self.leases().is_alive(pci, owner)?;
        let Some((call, interface)) = Call::of_attachment(&owner.call) else {
            return if dead { self.collect_foreign(pci, owner).await } else { Ok(()) };
        };
        if !dead && !living.excludes(&call) {
            return Ok(());
        }
        self.lock(&call.container).await?;
        let path = self.records.path(&call, &interface);
        // A record says more, and was judged before.
        let done = if path.exists() {
            Ok(())
        } else {
            tracing::warn!(vf = %pci, owner = owner.call, "no record is left of a VF: it is given back by its lease");
            self.undo_torn(&path, &call, &interface).await
        };
        if self.records.of_container(&call.container)?.is_empty() {
            self.remove_lock(&call.container);
        }
        self.lock = None;
        done
    }

    /// The lease of a dead owner that is no call of a runtime's: a repair that was not finished.
    async fn collect_foreign(&self, pci: PciAddress, owner: &Owner) -> Result<(), Error> {
        let leases = self.leases();
        let lock = leases.lock(pci, LOCK_PATIENCE).await?;
        let sriov_cni = SriovCni::of_node();
        let _their_lock = sriov_cni.lock(pci, LOCK_PATIENCE).await?;
        if leases.owner(pci)?.as_ref() != Some(owner) {
            return Ok(());
        }
        if let Some(original) = owner.original.as_ref().filter(|_| owner.boot_id == self.boot_id) {
            self.bring_back(original, None, Some(&owner.netns)).await?;
        }
        sriov_cni.forget_dead(pci)?;
        leases.release(&lock, &owner.call)?;
        Ok(())
    }

    /// A lease that says nothing. Its VF is nobody's if it is at home, or gone, and no record claims it.
    async fn collect_torn(&self, pci: PciAddress) -> Result<(), Error> {
        let leases = self.leases();
        let lock = leases.lock(pci, LOCK_PATIENCE).await?;
        if !leases.is_torn(pci)? || self.record_of_vf(pci)?.is_some() {
            return Ok(());
        }
        let at_home = match sysfs().vf(pci) {
            Ok(device) => device.netdev.is_some() || device.driver.is_none() || device.userspace_driver().is_some(),
            Err(sriov::Error::NotPresent { .. }) => true,
            Err(error) => return Err(error.into()),
        };
        if !at_home {
            tracing::warn!(vf = %pci, "the lease of a VF that is not at home cannot be read, and no record names the VF");
            return Ok(());
        }
        tracing::warn!(vf = %pci, "removing a lease that cannot be read: the VF is at home");
        // Its namespace's path may be another one's in this boot; nobody has what lies in the host.
        SriovCni::of_node().forget_holder(pci)?;
        Ok(leases.forget_torn(&lock)?)
    }

    /// A VF in the host with the alias of an owner, and no lease.
    async fn collect_marked(&self, pci: PciAddress) -> Result<(), Error> {
        let leases = self.leases();
        let lock = leases.lock(pci, LOCK_PATIENCE).await?;
        let _their_lock = SriovCni::of_node().lock(pci, LOCK_PATIENCE).await?;
        // Looked at without the lock before: whoever was at work on it has a lease.
        if leases.owner(pci)?.is_some() || leases.is_torn(pci)? || self.record_of_vf(pci)?.is_some() {
            return Ok(());
        }
        self.repair_by_alias(&lock, pci).await
    }
}

/// The VFs in the host that have the alias of an owner.
async fn marked_in_host() -> Result<Vec<PciAddress>, Error> {
    let links = Rtnl::open(&Netns::current()?)?.list().await?;
    let marked = links.into_iter().filter(|link| is_owner_alias(link.alias.as_deref()));
    Ok(marked.filter_map(|link| PciAddress::try_from(link.parent_dev?.as_str()).ok()).collect())
}
