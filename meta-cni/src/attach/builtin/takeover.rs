//! Who may have a VF: nobody while its owner lives, unless kubelet gave the VF to this pod and so took it from the owner.
//! A VF changes hands only after it was brought home and given back for its former owner.

use std::path::Path;

use sandbox::{Netns, NetnsId, Rtnl, namespace_of_device};
use sriov::{Original, Owner, PciAddress, SriovCni, Standing, VfLock, original_by_alias, restore_from_anywhere};

use super::{lease_key, sysfs};
use crate::{
    attach::{
        Engine,
        record::{Entry, Record},
    },
    cni::Error,
    face::Face,
    node::kubelet,
};

impl Engine {
    /// Asks for a VF on behalf of an attachment, and gives it back for a former owner who is dead or out. The caller
    /// then takes the lease.
    ///
    /// # Errors
    /// [`sriov::Error::Busy`] with the owner who lives; [`Error::TryLater`] when the VF cannot be given back for its
    /// former owner, who keeps the lease, and with it the first original state.
    pub(super) async fn claim(
        &self,
        lock: &VfLock,
        pci: PciAddress,
        owner: &Owner,
        record: &Record,
    ) -> Result<(), Error> {
        let leases = self.leases();
        let former = match leases.acquire(lock, owner) {
            Ok(Standing::Free) => None,
            // Of an attempt of ours whose record is lost.
            Ok(Standing::Ours) => leases.owner(pci)?,
            Ok(Standing::Abandoned(former)) => {
                tracing::warn!(vf = %pci, ?former, "the VF's former owner is dead");
                match former {
                    Some(former) => Some(former),
                    None => self.owner_by_record(pci, record).await?,
                }
            }
            Err(sriov::Error::Busy { owner: holder, .. }) if self.is_out(pci, &holder, record).await? => {
                tracing::warn!(vf = %pci, former = holder.call, "kubelet took the VF from a sandbox that still lives");
                Some(*holder)
            }
            Err(error) => return Err(error.into()),
        };
        let Some(former) = former.filter(|former| former.boot_id == self.boot_id) else { return Ok(()) };
        let Some(original) = &former.original else { return Ok(()) };
        self.bring_back(original, None, Some(&former.netns)).await.map_err(|error| {
            Error::TryLater(format!("VF {pci} is not to be had before it is given back for {}: {error}", former.call))
        })
    }

    /// Whether the living owner of a VF has lost it: kubelet gives it to the pod of `record` and to no other pod. What a
    /// person wrote into a definition gives no such right.
    async fn is_out(&self, pci: PciAddress, holder: &Owner, record: &Record) -> Result<bool, Error> {
        if self.face == Face::Sriov {
            // A plugin alone is not told whether its device is kubelet's word or a person's.
            return Ok(false);
        }
        let device = record.additions.device.as_deref().filter(|device| *device == pci.to_string());
        let (Some(device), Some(pod)) = (device, &record.pod) else { return Ok(false) };
        if holder.call.split(':').any(|part| part == record.call.container) {
            return Ok(false);
        }
        let (socket, checkpoint) = (Path::new(kubelet::SOCKET), Path::new(kubelet::CHECKPOINT));
        let holders = kubelet::holders(device, pod, socket, checkpoint, self.deadline).await?;
        if holders.this && !holders.others.is_empty() {
            tracing::warn!(vf = %pci, others = ?holders.others, "kubelet gives the VF to several pods: its owner keeps it");
        }
        Ok(holders.this && holders.others.is_empty())
    }

    /// The owner of a VF whose lease was torn, by the record of another attachment of this boot.
    async fn owner_by_record(&self, pci: PciAddress, asking: &Record) -> Result<Option<Owner>, Error> {
        let Some(record) = self.record_of_vf(pci)?.filter(|record| record.call != asking.call) else { return Ok(None) };
        let Some(netns) = record.netns_id.clone() else { return Ok(None) };
        let owner = Owner {
            call: lease_key(&record.call, &record.interface),
            pod_uid: record.pod.as_ref().map(|pod| pod.uid.clone()).unwrap_or_default(),
            netns,
            boot_id: record.boot_id.clone(),
            original: record.vf.map(Box::new),
        };
        if self.leases().is_alive(pci, &owner)? && !self.is_out(pci, &owner, asking).await? {
            return Err(sriov::Error::Busy { pci, owner: Box::new(owner) }.into());
        }
        Ok(Some(owner))
    }

    /// The record of this boot that names a VF.
    pub(super) fn record_of_vf(&self, pci: PciAddress) -> Result<Option<Record>, Error> {
        for container in self.records.containers()? {
            for entry in self.records.of_container(&container)? {
                if let Entry::Good(record) = entry
                    && record.boot_id == self.boot_id
                    && record.vf.as_ref().is_some_and(|original| original.pci == pci)
                {
                    return Ok(Some(*record));
                }
            }
        }
        Ok(None)
    }

    /// Puts a VF back into its original state, from wherever it is: the namespace at `netns` or the one that `of` names,
    /// whatever still leads there.
    pub(super) async fn bring_back(
        &self,
        original: &Original,
        netns: Option<&str>,
        of: Option<&NetnsId>,
    ) -> Result<(), Error> {
        let host = Netns::current()?;
        let pod = match (netns, of) {
            (Some(path), _) => Some(Netns::open(path)?),
            (None, Some(id)) if id.is_alive()? => Some(Netns::open(&id.path)?),
            _ => None,
        };
        let pod = pod.as_ref().map(Rtnl::open).transpose()?;
        let elsewhere = async || self.astray(original.pci, of, &host).await;
        Ok(restore_from_anywhere(&Rtnl::open(&host)?, pod.as_ref(), original, &sysfs(), elsewhere).await?)
    }

    /// The namespace that has a VF, unless it is somebody else's: the sandbox of another attachment, or one that a
    /// runtime keeps at a path. What only processes hold is what they made of ours, or ours itself.
    pub(super) async fn astray(
        &self,
        pci: PciAddress,
        of: Option<&NetnsId>,
        host: &Netns,
    ) -> Result<Option<Rtnl>, sriov::Error> {
        let kernel = |source| sriov::Error::Kernel { pci, source };
        let found = namespace_of_device(&pci.to_string()).await.filter(|found| !found.same_as(host));
        let Some(found) = found else { return Ok(None) };
        let ours = of.map_or(Ok(false), |of| of.is_of(&found)).map_err(kernel)?;
        if !ours && !found.path().starts_with("/proc") {
            return Err(sriov::Error::Foreign { pci, netns: found.path().to_owned() });
        }
        tracing::warn!(vf = %pci, netns = %found.path().display(), "the VF is in a namespace that is held open: taking it out");
        Rtnl::open(&found).map(Some).map_err(kernel)
    }

    /// Repairs a VF that lies in the host with the alias of an owner, and of which nothing else is known any more. A
    /// lease says so while it is done, in case that we are killed.
    pub(super) async fn repair_by_alias(&self, lock: &VfLock, pci: PciAddress) -> Result<(), Error> {
        let host = Rtnl::open(&Netns::current()?)?;
        let Some(original) = original_by_alias(&sysfs(), &host, pci).await? else { return Ok(()) };
        tracing::warn!(vf = %pci, "no record is left of a VF: it is given back by its alias");
        let nowhere = NetnsId { path: "".into(), dev: 0, inode: 0, cookie: None };
        let repair = Owner {
            call: REPAIR.to_owned(),
            pod_uid: String::new(),
            netns: nowhere,
            boot_id: self.boot_id.clone(),
            original: Some(Box::new(original.clone())),
        };
        let leases = self.leases();
        leases.take(lock, &repair)?;
        self.bring_back(&original, None, None).await?;
        SriovCni::of_node().forget_dead(pci)?;
        leases.release(lock, REPAIR)?;
        Ok(())
    }
}

/// The owner of a VF that is being repaired: no call of a runtime, and never alive.
const REPAIR: &str = "repair";
