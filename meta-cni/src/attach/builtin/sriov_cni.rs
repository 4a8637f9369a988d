//! What sriov-cni itself attached, and what nothing is recorded of: detached by sriov-cni's own files and by the
//! configuration that the runtime hands over.

use std::{fs::File, path::PathBuf};

use sandbox::{IfName, Netns, Rtnl};
use serde_json::Value;
use sriov::{Cached, PciAddress, SriovCni, VfLock, release_cached};

use super::{LOCK_PATIENCE, addresses::Giver, sysfs};
use crate::{
    attach::{Engine, open_netns},
    cni::{Command, Error, Invocation, PluginList, chain},
};

/// sriov-cni's files of an attachment, to be removed once all of it is undone.
struct TakenOver {
    pci: PciAddress,
    /// Who holds the VF, if that was this attachment.
    holder: Option<PathBuf>,
    _lock: VfLock,
    _their_lock: File,
}

impl Engine {
    /// Whether sriov-cni itself attached what this call is about.
    pub(in crate::attach) fn is_of_sriov_cni(&self) -> Result<bool, Error> {
        Ok(SriovCni::of_node().cached(&self.invocation.container, &self.invocation.if_name)?.is_some())
    }

    /// DEL of an attachment that has no record: the VF by sriov-cni's file, if there is one, the addresses by the
    /// configuration. The files go last: a failed DEL is repeated.
    pub(in crate::attach) async fn del_unrecorded_vf(&self) -> Result<(), Error> {
        let attachment = self.alone()?;
        let list = attachment.additions.apply(attachment.list.clone())?;
        let giver = self.giver(&list, &attachment.network).unwrap_or_else(|error| {
            tracing::warn!(%error, "no addresses are given back: the configuration does not say from where");
            Giver::Nobody
        });
        // The daemon of dhcp speaks to the server over the interface.
        let first = matches!(&giver, Giver::Executed(kind) if kind == "dhcp");
        if first {
            self.release_unrecorded(&list, &giver).await?;
        }
        let taken_over = self.give_back_cached().await?;
        if !first {
            self.release_unrecorded(&list, &giver).await?;
        }
        let Some(taken_over) = taken_over else { return Ok(()) };
        let files = SriovCni::of_node();
        if let Some(holder) = &taken_over.holder {
            files.release(taken_over.pci, holder)?;
        }
        files.forget(&self.invocation.container, &self.invocation.if_name)?;
        Ok(())
    }

    /// Refuses a VF that a pod of sriov-cni's holds. What names the namespace of our own lease we wrote ourselves, after
    /// the lease; so we did if the lease is there and torn by a power cut, whatever has that path in this boot.
    pub(super) fn refuse_what_sriov_cni_holds(&self, pci: PciAddress) -> Result<(), Error> {
        let leases = self.leases();
        let owner = leases.owner(pci)?;
        if owner.is_none() && leases.is_torn(pci)? {
            return Ok(());
        }
        let ours = owner.as_ref().map(|owner| owner.netns.path.as_path());
        Ok(SriovCni::of_node().refuse_if_held(pci, ours)?)
    }

    /// Gives back the VF that sriov-cni's file names, unless somebody else has it by now.
    async fn give_back_cached(&self) -> Result<Option<TakenOver>, Error> {
        let files = SriovCni::of_node();
        let (container, interface) = (&self.invocation.container, &self.invocation.if_name);
        let Some(cached) = files.cached(container, interface)? else { return Ok(None) };
        let pci = match PciAddress::try_from(cached.device_id.as_str()) {
            Ok(pci) => pci,
            Err(error) => {
                tracing::warn!(%error, "sriov-cni's file names no VF: there is nothing to give back");
                return Ok(None);
            }
        };
        let lock = self.leases().lock(pci, LOCK_PATIENCE).await?;
        let their_lock = files.lock(pci, LOCK_PATIENCE).await?;
        // Another DEL may have done it while we waited.
        let Some(cached) = files.cached(container, interface)? else { return Ok(None) };
        let holder = files.holder(pci)?;
        let taken_over =
            |holder: Option<PathBuf>| Some(TakenOver { pci, holder, _lock: lock, _their_lock: their_lock });
        let own = open_netns(&self.invocation.netns)?;
        let there = open_netns(&holder.as_ref().map(|path| path.to_string_lossy()).unwrap_or_default())?;
        if self.is_of_another(pci, &cached, own.as_ref(), there.as_ref())? {
            tracing::warn!(vf = %pci, "the VF has another owner by now and is left alone");
            return Ok(taken_over(None));
        }
        let host = Netns::current()?;
        let netns = own.or(there);
        let pod = netns.as_ref().map(Rtnl::open).transpose()?;
        let name = IfName::try_from(interface.as_str())?;
        let elsewhere = async || self.astray(pci, None, &host).await;
        let links = Rtnl::open(&host)?;
        match release_cached(&links, pod.as_ref(), (&cached, &name), &sysfs(), elsewhere).await {
            Ok(()) => Ok(taken_over(holder)),
            Err(error) if netns.is_some() => Err(error.into()),
            Err(error) => {
                // The runtime would try for ever. The files stay: they tell what is wrong with the VF.
                tracing::warn!(vf = %pci, %error, "the namespace is gone and the VF is not given back");
                Ok(None)
            }
        }
    }

    /// Whether the VF of sriov-cni's file is another attachment's: a lease of ours says so, or sriov-cni's own word of who
    /// holds it. `own` is the namespace of this call, `there` that of the holder, if they live.
    fn is_of_another(
        &self,
        pci: PciAddress,
        cached: &Cached,
        own: Option<&Netns>,
        there: Option<&Netns>,
    ) -> Result<bool, Error> {
        let leases = self.leases();
        if let Some(owner) = leases.owner(pci)?
            && (leases.is_alive(pci, &owner)? || there.is_some_and(|there| there.path() == owner.netns.path))
        {
            return Ok(true);
        }
        let Invocation { container, if_name, netns, .. } = &self.invocation;
        match (own, there) {
            (Some(own), Some(there)) => Ok(!own.same_as(there)),
            // Without a path of its own it may be the holder, unless sriov-cni knows another one.
            (None, Some(_)) if netns.is_empty() => {
                Ok(SriovCni::of_node().has_another(&cached.device_id, container, if_name)?)
            }
            (None, Some(_)) => Ok(true),
            (_, None) => Ok(false),
        }
    }

    /// Gives back the addresses of an attachment that has no record. Idempotent, as DEL of every IPAM plugin is.
    async fn release_unrecorded(&self, list: &PluginList, giver: &Giver) -> Result<(), Error> {
        match giver {
            Giver::Nobody => Ok(()),
            Giver::Pool(store) => {
                let owner = ipam::Owner::new(&self.invocation.container, &self.invocation.if_name)?;
                store.release(&owner, ipam::Known::Nothing)?;
                Ok(())
            }
            Giver::Executed(kind) => {
                let Some(plugin) = list.plugins.first() else { return Ok(()) };
                let alive = open_netns(&self.invocation.netns)?.is_some();
                let netns = if alive { self.invocation.netns.as_str() } else { "" };
                let scene = self.bare_scene(netns, self.invocation.args.clone());
                let previous = self.invocation.conf.get::<Value>("prevResult")?;
                chain::ipam_verb(list, plugin, kind, Command::Del, previous.as_ref(), &scene).await
            }
        }
    }
}
