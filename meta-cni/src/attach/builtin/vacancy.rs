//! STATUS and GC of the face `sriov`: is a VF to be had, and where do its addresses come from.

use std::collections::BTreeMap;

use sandbox::{Links as _, Netns, Rtnl};
use serde_json::Value;
use sriov::{PciAddress, PfDevice};

use super::{
    addresses::{BuiltinIpam, Giver},
    sysfs,
};
use crate::{
    attach::Engine,
    cni::{Error, Plugin, PluginList, chain, find_plugin},
};

impl Engine {
    /// Whether an ADD of this network could work: its addresses, and its VF; a configuration that names none is asked
    /// about all VFs of the machine.
    pub(in crate::attach) async fn status_alone(&self) -> Result<(), Error> {
        let not_ready = |error: Error| Error::NotReady(format!("the network is not ready: {error}"));
        let attachment = self.alone().map_err(not_ready)?;
        let list = attachment.additions.apply(attachment.list.clone()).map_err(not_ready)?;
        let ipam = self.ipam(&list, &attachment.runtime_config, &attachment.args, &attachment.network);
        if let BuiltinIpam::Executed(kind) = ipam.map_err(not_ready)? {
            find_plugin(&kind, &self.path).map_err(not_ready)?;
            chain::status(&as_list_of(&list, kind), &self.bare_scene("", self.invocation.args.clone())).await?;
        }
        match &attachment.additions.device {
            Some(device) => {
                let pci = PciAddress::try_from(device.as_str()).map_err(|error| not_ready(error.into()))?;
                self.vacancy(&[pci]).await
            }
            None => self.vacancy(&sysfs().vfs()?).await,
        }
    }

    /// Whether one of the VFs is free and has a PF that is up. None at all say nothing: in a virtual machine that was
    /// given VFs they cannot be told from other devices.
    async fn vacancy(&self, vfs: &[PciAddress]) -> Result<(), Error> {
        let host = Rtnl::open(&Netns::current()?)?;
        let mut of_pfs: BTreeMap<PciAddress, Option<String>> = BTreeMap::new();
        let mut without_link = Vec::new();
        let mut held = Vec::new();
        for pci in vfs {
            let device = sysfs().vf(*pci).map_err(|error| Error::NotReady(error.to_string()))?;
            let problem = match &device.pf {
                None => None,
                Some(pf) if of_pfs.contains_key(&pf.pci) => of_pfs[&pf.pci].clone(),
                Some(pf) => {
                    let problem = problem_of_pf(&host, pf, *pci).await?;
                    of_pfs.insert(pf.pci, problem.clone());
                    problem
                }
            };
            match problem {
                Some(problem) => without_link.push(problem),
                None => match self.refuse_if_held(*pci) {
                    Ok(()) => return Ok(()),
                    Err(busy @ Error::Vf(_)) => held.push(busy.to_string()),
                    Err(error) => return Err(error),
                },
            }
        }
        without_link.dedup();
        match (held.as_slice(), without_link.as_slice()) {
            ([], []) => Ok(()),
            // What is attached already has no link either.
            ([], _) => Err(Error::Limited(without_link.join("; "))),
            ([one], []) => Err(Error::NotReady(format!("no VF is left: {one}"))),
            _ => {
                let down =
                    if without_link.is_empty() { String::new() } else { format!("; {}", without_link.join("; ")) };
                Err(Error::NotReady(format!("no VF is left: all {} are in use{down}", held.len())))
            }
        }
    }

    /// Refuses a VF that a living sandbox holds, by our lease or by sriov-cni's file. A look without the lock: STATUS must
    /// not wait for a verb.
    fn refuse_if_held(&self, pci: PciAddress) -> Result<(), Error> {
        let leases = self.leases();
        match leases.owner(pci)? {
            Some(owner) if leases.is_alive(pci, &owner)? => {
                Err(sriov::Error::Busy { pci, owner: Box::new(owner) }.into())
            }
            _ => self.refuse_what_sriov_cni_holds(pci),
        }
    }

    /// GC of the addresses: whoever is not in `keep` gives them back. An IPAM plugin that is executed gets the list as it
    /// is.
    pub(in crate::attach) async fn gc_addresses(&self, listed: &Value, keep: &[(&str, &str)]) -> Result<(), Error> {
        let attachment = self.alone()?;
        let list = attachment.additions.apply(attachment.list.clone())?;
        match self.giver(&list, &attachment.network)? {
            Giver::Nobody => Ok(()),
            Giver::Pool(store) => {
                let owners: Result<Vec<_>, _> =
                    keep.iter().map(|(container, interface)| ipam::Owner::new(container, interface)).collect();
                store.release_all_but(&owners?)?;
                Ok(())
            }
            Giver::Executed(kind) => {
                let scene = self.bare_scene("", self.invocation.args.clone());
                chain::gc(&as_list_of(&list, kind), listed, &scene).await
            }
        }
    }
}

/// Why a PF's VFs have no link, if that can be seen.
async fn problem_of_pf(host: &Rtnl, pf: &PfDevice, vf: PciAddress) -> Result<Option<String>, Error> {
    let netdev = match pf.netdev(vf) {
        Ok(netdev) => netdev,
        Err(error) => return Ok(Some(error.to_string())),
    };
    let up = host.by_index(netdev.index).await?.is_some_and(|link| link.up);
    Ok((!up).then(|| format!("PF {0} is down: bring it up (ip link set {0} up)", netdev.name)))
}

/// The same configuration for an IPAM plugin: delegation hands on the whole of it.
fn as_list_of(list: &PluginList, kind: String) -> PluginList {
    let plugins =
        list.plugins.iter().take(1).map(|plugin| Plugin { kind: kind.clone(), object: plugin.object.clone() });
    PluginList { plugins: plugins.collect(), ..list.clone() }
}
