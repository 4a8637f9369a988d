//! GC of VFs of which no record tells: by their leases, by the alias of those that nothing else is known of, and by
//! the files of sriov-cni.

use sandbox::{IfName, Links, Netns, Rtnl};
use sriov::{Owner, PciAddress, SriovCni, is_owner_alias, release_cached};

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
        errors.extend(self.collect_lost_by_sriov_cni().await);
        errors
    }

    /// VFs that lie in the host under the name that they had in a pod of sriov-cni's: it gives such a one back at no DEL.
    async fn collect_lost_by_sriov_cni(&self) -> Vec<Error> {
        let lost = match lost_by_sriov_cni().await {
            Ok(lost) => lost,
            Err(error) => return vec![error],
        };
        let mut errors = Vec::new();
        for (pci, file) in lost {
            errors.extend(self.collect_lost(pci, &file).await.err().map(|error| error.of_network(format!("VF {pci}"))));
        }
        errors
    }

    /// One of them. sriov-cni's file stays: a DEL that comes late frees the addresses by it.
    async fn collect_lost(&self, pci: PciAddress, file: &str) -> Result<(), Error> {
        let leases = self.leases();
        let files = SriovCni::of_node();
        let _lock = leases.lock(pci, LOCK_PATIENCE).await?;
        let _their_lock = files.lock(pci, LOCK_PATIENCE).await?;
        let held = leases.is_leased(pci)? || files.refuse_if_held(pci, None).is_err();
        // Looked at without the locks before.
        let still = lost_by_sriov_cni().await?.into_iter().any(|(of, name)| of == pci && name == file);
        let cached = files.all_cached()?.into_iter().find(|(name, _)| name == file);
        let Some((_, cached)) = cached.filter(|_| still && !held) else { return Ok(()) };
        tracing::warn!(vf = %pci, file, "sriov-cni lost the VF: it is given back by its file");
        let host = Rtnl::open(&Netns::current()?)?;
        // It is in no pod, so what it is called there says nothing.
        let name = IfName::try_from("none")?;
        release_cached(&host, None, (&cached, &name), &sysfs(), async || Ok(None)).await?;
        Ok(files.forget_dead(pci)?)
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
        if leases.is_leased(pci)? || self.record_of_vf(pci)?.is_some() {
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

/// The VFs in the host that have the name of a pod's interface by the one file that sriov-cni has of them, and not their
/// own. After a reboot they have their own: files of an earlier boot lead to nothing.
async fn lost_by_sriov_cni() -> Result<Vec<(PciAddress, String)>, Error> {
    let all = SriovCni::of_node().all_cached()?;
    if all.is_empty() {
        return Ok(Vec::new());
    }
    let mut lost = Vec::new();
    for link in Rtnl::open(&Netns::current()?)?.list().await? {
        let Some(pci) = link.parent_dev.as_deref().and_then(|device| PciAddress::try_from(device).ok()) else {
            continue;
        };
        let of_device: Vec<_> = all.iter().filter(|(_, cached)| cached.device_id == pci.to_string()).collect();
        let [(file, cached)] = of_device.as_slice() else { continue };
        if file.ends_with(&format!("-{}", link.name))
            && !cached.host_name().is_empty()
            && cached.host_name() != link.name
        {
            lost.push((pci, file.clone()));
        }
    }
    Ok(lost)
}
