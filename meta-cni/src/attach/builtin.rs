//! What is attached in-process: `sriov`, with addresses of `host-local` or `static`, or of an IPAM plugin that is
//! executed. Translates between configurations, results and records of CNI and the crates that do the work.

use std::{collections::BTreeSet, net::IpAddr, path::Path, time::Duration};

use sandbox::{Dad, IfName, Netns, NewAddress, ReadBack, RouteSpec, Rtnl, configure, read_back};
use sriov::{Leases, Original, Owner, PciAddress, RawVf, Standing, Sysfs, Wanted, attach, find, restore};

use super::{
    Engine,
    builtin_ipam::{Addresses, BuiltinIpam},
    check::has_address,
    record::{Call, PoolAddresses, Record},
};
use crate::{
    cni::{CniArgs, CniResult, Command, Error, Interface, Object, PluginList, chain},
    network::Attachment,
    settings::{CNI_KEYS, judge},
};

/// How long another verb's work on the same VF, or on the same pool, is waited for.
pub(super) const LOCK_PATIENCE: Duration = Duration::from_secs(20);
/// Keys of a `sriov` configuration beside those of every network: of the device, and sriov-cni's that mean nothing here.
const OTHER_KEYS: [&str; 3] = ["pciBusID", "logLevel", "logFile"];

/// A `sriov` configuration, understood.
struct BuiltinVf {
    pci: PciAddress,
    wanted: Wanted,
}

impl BuiltinVf {
    /// Reads the configuration. A MAC of the runtime beats one of `CNI_ARGS`, which beats the configuration's.
    fn read(object: &Object, runtime_config: &Object, args: &CniArgs, network: &str) -> Result<Self, Error> {
        let mut raw: RawVf = serde_json::from_str(&object.to_text()).map_err(|problem| {
            Error::Config(format!("the sriov configuration of {network} does not parse: {problem}"))
        })?;
        let runtime_mac = runtime_config.text("mac")?;
        for mac in [args.get("MAC"), &runtime_mac].into_iter().filter(|mac| !mac.is_empty()) {
            raw.mac = Some(mac.to_owned());
        }
        let declared = object.get::<Object>("capabilities")?.unwrap_or_default().switch("deviceID")?;
        let chosen = runtime_config.text("deviceID")?;
        let device = match raw.device_id.clone().filter(|device| !device.is_empty()) {
            Some(device) => device,
            None if declared && !chosen.is_empty() => chosen,
            None => {
                return Err(Error::Config(
                    "VF pci addr is required: name a resource in the definition's annotation k8s.v1.cni.cncf.io/resourceName \
                     (and request it in the pod), or put \"deviceID\" into its config"
                        .to_owned(),
                ));
            }
        };
        Ok(Self { pci: PciAddress::try_from(device.as_str())?, wanted: Wanted::try_from(&raw)? })
    }
}

impl Engine {
    /// Whether the first plugin of a list is attached in-process.
    pub(super) fn is_builtin_list(&self, list: &PluginList) -> bool {
        self.settings.builtins.contains("sriov") && list.plugins.first().is_some_and(|plugin| plugin.kind == "sriov")
    }

    /// Refuses what can be known to fail, and names the VF.
    pub(super) fn judge_builtin(&self, attachment: &Attachment, list: &PluginList) -> Result<String, Error> {
        let Some(plugin) = list.plugins.first() else { return Err(Error::Config("no plugin".to_owned())) };
        let known: Vec<&str> = RawVf::known_keys().iter().chain(&CNI_KEYS).chain(&OTHER_KEYS).copied().collect();
        let unknown: Vec<&str> =
            plugin.object.keys().filter(|key| !known.iter().any(|name| name.eq_ignore_ascii_case(key))).collect();
        let strict = self.invocation.conf.switch("strict")?;
        judge(&unknown, RawVf::known_keys(), &format!("the definition {}", attachment.network), strict)?;
        let vf = BuiltinVf::read(&plugin.object, &attachment.runtime_config, &attachment.args, &attachment.network)?;
        let device = sysfs().vf(vf.pci)?;
        if let Some(driver) = device.userspace_driver() {
            return Err(sriov::Error::Userspace { pci: vf.pci, driver: driver.to_owned() }.into());
        }
        let ipam = self.ipam(list, &attachment.runtime_config, &attachment.args, &attachment.network)?;
        if let BuiltinIpam::Executed(kind) = ipam {
            crate::cni::find_plugin(&kind, &self.path)?;
        }
        Ok(vf.pci.to_string())
    }

    /// Attaches the VF and gives it its addresses; the record says what is about to be done before it is.
    pub(super) async fn add_builtin(
        &self,
        record: &mut Record,
        list: &PluginList,
        netns: &Netns,
    ) -> Result<CniResult, Error> {
        let Some(plugin) = list.plugins.first() else { return Err(Error::Config("no plugin".to_owned())) };
        let runtime_config = record.runtime_object();
        let vf = BuiltinVf::read(&plugin.object, &runtime_config, &record.args, &record.network)?;
        let ipam = self.ipam(list, &runtime_config, &record.args, &record.network)?;
        let name = IfName::try_from(record.interface.as_str())?;
        let (host, pod) = (Rtnl::open(&Netns::current()?)?, Rtnl::open(netns)?);

        let leases = self.leases();
        let lock = leases.lock(vf.pci, LOCK_PATIENCE).await?;
        let mut owner = Owner {
            call: lease_key(&record.call, &record.interface),
            pod_uid: record.pod.as_ref().map(|pod| pod.uid.clone()).unwrap_or_default(),
            netns: netns.id().clone(),
            boot_id: self.boot_id.clone(),
            original: None,
        };
        if let Standing::Abandoned(Some(former)) = leases.acquire(&lock, &owner)? {
            tracing::warn!(vf = %vf.pci, former = former.call, "the VF's former owner is dead: giving the VF back first");
            if let Some(original) = &former.original {
                restore(&host, None, original, &sysfs()).await?;
            }
        }
        let original = find(&sysfs(), &host, vf.pci, &vf.wanted).await?;
        owner.original = Some(Box::new(original.clone()));
        leases.take(&lock, &owner)?;
        record.vf = Some(original.clone());
        self.records.write(record, false)?;

        // A pool that has no address left is found out before the VF is touched.
        let reserved = self.reserve(&ipam, record)?;
        let attached = attach(&host, &pod, &original, &vf.wanted, &name).await?;
        let addresses = match (&ipam, reserved) {
            (BuiltinIpam::Executed(kind), _) => self.execute_ipam(kind, record, list).await?,
            (_, reserved) => reserved,
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
        compare(&read_back(&pod, &name).await?, &result)?;
        Ok(result)
    }

    /// Runs an IPAM plugin that is not built in.
    async fn execute_ipam(&self, kind: &str, record: &mut Record, list: &PluginList) -> Result<Addresses, Error> {
        record.executed_ipam = Some(kind.to_owned());
        // Its state elsewhere survives a power cut, so must our knowledge of it.
        self.records.write(record, true)?;
        let scene = self.scene(record, &record.netns.clone());
        let Some(plugin) = list.plugins.first() else { return Err(Error::Config("no plugin".to_owned())) };
        let result = chain::ipam_add(list, plugin, kind, &scene, &mut |group| {
            record.plugin = group;
            self.records.write(record, false)
        })
        .await?;
        record.plugin = None;
        if result.ips.is_empty() {
            return Err(Error::DelegateBroken(format!("IPAM plugin {kind} returned missing IP config")));
        }
        Ok(Addresses { ips: result.ips, routes: result.routes, dns: result.dns })
    }

    /// Gives VF and addresses back. The VF only if this attachment still holds it: it may be another pod's by now.
    pub(super) async fn undo_builtin(
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
            errors.extend(self.give_back(pci, &key, record.vf.as_ref(), netns).await.err());
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

    /// Restores a VF and drops its lease, if the lease is the caller's, or nobody's.
    async fn give_back(
        &self,
        pci: PciAddress,
        key: &str,
        original: Option<&Original>,
        netns: Option<&str>,
    ) -> Result<(), Error> {
        let leases = self.leases();
        let lock = leases.lock(pci, LOCK_PATIENCE).await?;
        let owner = leases.owner(pci)?;
        if owner.as_ref().is_some_and(|owner| owner.call != key) {
            tracing::warn!(vf = %pci, owner = owner.map(|owner| owner.call), "the VF has another owner by now and is left alone");
            return Ok(());
        }
        let of_lease = owner.and_then(|owner| owner.original);
        if let Some(original) = original.or(of_lease.as_deref()) {
            let host = Rtnl::open(&Netns::current()?)?;
            let pod = netns.map(Netns::open).transpose()?.map(|netns| Rtnl::open(&netns)).transpose()?;
            restore(&host, pod.as_ref(), original, &sysfs()).await?;
        }
        leases.release(&lock, key)?;
        Ok(())
    }

    async fn release_executed(&self, record: &mut Record, list: &PluginList, netns: Option<&str>) -> Result<(), Error> {
        let (Some(kind), Some(plugin)) = (record.executed_ipam.clone(), list.plugins.first()) else { return Ok(()) };
        let scene = self.scene(record, netns.unwrap_or_default());
        let previous = record.result.clone();
        let previous = Some(&previous).filter(|value| value.is_object());
        chain::ipam_verb(list, plugin, &kind, Command::Del, previous, &scene, &mut |group| {
            record.plugin = group;
            self.records.write(record, false)
        })
        .await
    }

    /// Compares VF, addresses and leases with the record.
    pub(super) async fn check_builtin(&self, record: &Record, list: &PluginList, netns: &Netns) -> Result<(), Error> {
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
            let on_start: chain::OnStart<'_> = &mut |_| Ok(());
            chain::ipam_verb(list, plugin, kind, Command::Check, Some(&record.result), &scene, on_start).await?;
        }
        Ok(())
    }

    /// Undoes an attachment whose record cannot be read, by what is kept elsewhere: the VF's lease, which has its original
    /// state, and the pools' files, which name container and interface.
    pub(super) async fn undo_torn(&self, path: &Path, call: &Call, interface: &str) -> Result<(), Error> {
        let key = lease_key(call, interface);
        let leases = self.leases();
        for pci in leases.list()? {
            let Some(owner) = leases.owner(pci)?.filter(|owner| owner.call == key) else { continue };
            let alive = leases.is_alive(pci, &owner)?;
            let netns = owner.netns.path.to_string_lossy().into_owned();
            self.give_back(pci, &key, None, alive.then_some(netns.as_str())).await?;
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
    pub(super) fn unrecorded(&self, call: &Call, recorded: &BTreeSet<String>) -> Result<BTreeSet<String>, Error> {
        let leases = self.leases();
        let mut interfaces = BTreeSet::new();
        for pci in leases.list()? {
            let owner = leases.owner(pci)?.map(|owner| owner.call).unwrap_or_default();
            let interface = owner.strip_prefix(&call.key()).and_then(|rest| rest.strip_prefix(':'));
            interfaces.extend(interface.filter(|name| !recorded.contains(*name)).map(str::to_owned));
        }
        Ok(interfaces)
    }

    fn leases(&self) -> Leases {
        Leases { state: self.layout.state().to_owned(), locks: self.layout.locks(), boot_id: self.boot_id.clone() }
    }
}

fn sysfs() -> Sysfs {
    Sysfs { root: "/sys".into() }
}

/// Which attachment holds a VF.
fn lease_key(call: &Call, interface: &str) -> String {
    format!("{}:{interface}", call.key())
}

async fn set_addresses(pod: &Rtnl, link: &sandbox::Link, result: &CniResult) -> Result<(), Error> {
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

/// For what is attached in-process, the kernel must show the result.
fn compare(found: &ReadBack, result: &CniResult) -> Result<(), Error> {
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
