//! ADD of a VF with its addresses.

use std::net::IpAddr;

use sandbox::{Dad, IfName, Links as _, Netns, NewAddress, RouteSpec, Rtnl, configure, read_back_of};
use sriov::{Owner, SriovCni, attach, find, is_owner_alias};

use super::{
    Announcements, BuiltinVf, LOCK_PATIENCE,
    addresses::{Addresses, BuiltinIpam},
    check::compare,
    lease_key, sysfs, vf_alias,
};
use crate::{
    attach::{Engine, record::Record},
    cni::{CniResult, Error, Interface, PluginList, chain},
};

impl Engine {
    /// Attaches the VF and gives it its addresses; the record says what is about to be done before it is. Those of a pool
    /// are `reserved` before.
    pub(in crate::attach) async fn add_builtin(
        &self,
        (record, reserved): (&mut Record, Addresses),
        list: &PluginList,
        netns: &Netns,
        announcements: &mut Announcements,
    ) -> Result<CniResult, Error> {
        let Some(plugin) = list.plugins.first() else { return Err(Error::Config("no plugin".to_owned())) };
        let runtime_config = record.runtime_object();
        let vf = BuiltinVf::read(&plugin.object, &runtime_config, &record.args, &record.network)?;
        let ipam = self.ipam(list, &runtime_config, &record.args, &record.network)?;
        let name = IfName::try_from(record.interface.as_str())?;
        let (host, pod) = (Rtnl::open(&Netns::current()?)?, Rtnl::open(netns)?);

        let leases = self.leases();
        let lock = leases.lock(vf.pci, LOCK_PATIENCE).await?;
        let sriov_cni = SriovCni::of_node();
        let _their_lock = sriov_cni.lock(vf.pci, LOCK_PATIENCE).await?;
        self.refuse_what_sriov_cni_holds(vf.pci)?;
        let mut owner = Owner {
            call: lease_key(&record.call, &record.interface),
            pod_uid: record.pod.as_ref().map(|pod| pod.uid.clone()).unwrap_or_default(),
            netns: netns.id().clone(),
            boot_id: self.boot_id.clone(),
            original: None,
        };
        self.claim(&lock, vf.pci, &owner, record).await?;
        let mut original = find(&sysfs(), &host, vf.pci, &vf.wanted).await?;
        if is_owner_alias(original.netdev.as_ref().and_then(|netdev| netdev.alias.as_deref())) {
            self.repair_by_alias(&lock, vf.pci).await?;
            original = find(&sysfs(), &host, vf.pci, &vf.wanted).await?;
        }
        owner.original = Some(Box::new(original.clone()));
        leases.take(&lock, &owner)?;
        sriov_cni.hold(vf.pci, netns.path())?;
        record.vf = Some(original.clone());
        self.records.write(record, false)?;

        let known = match &ipam {
            BuiltinIpam::Static(given) => Addresses::fixed(given),
            BuiltinIpam::None | BuiltinIpam::Pool { .. } | BuiltinIpam::Executed(_) => reserved,
        };
        if original.netdev.is_none() {
            return self.add_userspace(record, list, &vf, (&ipam, known), (&host, &pod, &name)).await;
        }
        let alias = vf_alias(record, &original);
        let mut attached = attach(&host, &pod, &original, &vf.wanted, &name, Some(&alias)).await?;
        let addresses = match &ipam {
            BuiltinIpam::Executed(kind) => self.execute_ipam(kind, record, list).await?,
            BuiltinIpam::None | BuiltinIpam::Pool { .. } | BuiltinIpam::Static(_) => {
                self.without_conflicts(&ipam, known, record, (&pod, &mut attached.link)).await?
            }
        };
        let mut result = addresses.into_result();
        result.interfaces = vec![Interface {
            name: record.interface.clone(),
            mac: attached.mac.to_string(),
            mtu: Some(attached.mtu),
            sandbox: record.netns.clone(),
            pci_id: vf.pci.to_string(),
            ..Interface::default()
        }];
        result.ips.iter_mut().for_each(|ip| ip.interface = Some(0));
        set_addresses(&pod, &attached.link, &result).await?;
        let found = read_back_of(&pod, attached.link).await?;
        compare(&found, &result)?;
        announcements.start(pod, found.link, result.ips.iter().map(|ip| ip.address.addr()).collect());
        Ok(result)
    }

    /// Runs an IPAM plugin that is not built in.
    pub(super) async fn execute_ipam(
        &self,
        kind: &str,
        record: &mut Record,
        list: &PluginList,
    ) -> Result<Addresses, Error> {
        record.executed_ipam = Some(kind.to_owned());
        // Its state elsewhere survives a power cut, so must our knowledge of it.
        self.records.write(record, true)?;
        let scene = self.scene(record, &record.netns.clone());
        let Some(plugin) = list.plugins.first() else { return Err(Error::Config("no plugin".to_owned())) };
        let result = match chain::ipam_add(list, plugin, kind, &scene).await {
            Err(error) => self.ipam_add_again(list, plugin, kind, error, &scene).await?,
            Ok(given) => given,
        };
        if result.ips.is_empty() {
            return Err(Error::DelegateBroken(format!("IPAM plugin {kind} returned missing IP config")));
        }
        if let Some(ip) = result.ips.iter().find(|ip| is_unusable(ip.address.addr())) {
            return Err(Error::DelegateBroken(format!(
                "IPAM plugin {kind} gave {}, which no interface can have",
                ip.address
            )));
        }
        Ok(Addresses { ips: result.ips, routes: result.routes, dns: result.dns })
    }
}

/// Takes the MTU of an interface from the kernel: the plugin `tuning` changes it behind another one and does not say so.
pub(in crate::attach) async fn as_the_chain_left_it(
    record: &Record,
    netns: &Netns,
    result: &mut CniResult,
) -> Result<(), Error> {
    let told = result.interfaces.iter_mut().find(|told| told.name == record.interface && told.mtu.is_some());
    let Some(told) = told else { return Ok(()) };
    if let Some(link) = Rtnl::open(netns)?.by_name(&record.interface).await? {
        told.mtu = Some(link.mtu);
    }
    Ok(())
}

/// What the kernel would take, and nobody could speak with.
fn is_unusable(address: IpAddr) -> bool {
    address.is_unspecified() || address.is_multicast() || address.is_loopback()
}

pub(super) async fn set_addresses(pod: &Rtnl, link: &sandbox::Link, result: &CniResult) -> Result<(), Error> {
    // An address from an allocator is nobody else's: duplicate detection would only delay it.
    let addresses: Vec<NewAddress> =
        result.ips.iter().map(|ip| NewAddress { net: ip.address, dad: Dad::Skip }).collect();
    let gateways: Vec<IpAddr> = result.ips.iter().filter_map(|ip| ip.gateway).collect();
    let routes: Vec<RouteSpec> = result
        .routes
        .iter()
        .map(|route| RouteSpec {
            mtu: route.mtu,
            advmss: route.advmss,
            priority: route.priority,
            table: route.table,
            scope: route.scope,
            ..RouteSpec::new(route.dst, route.gw)
        })
        .collect();
    Ok(configure(pod, link, &addresses, &gateways, &routes).await?)
}
