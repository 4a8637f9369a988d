//! What is attached in-process: `sriov`, with addresses of `host-local` or `static`, or of an IPAM plugin that is
//! executed. Translates between configurations, results and records of CNI and the crates that do the work.

mod add;
mod addresses;
mod announce;
mod check;
mod leftover;
mod probe;
mod reserve;
mod sriov_cni;
mod takeover;
mod undo;
mod userspace;
mod vacancy;

use std::{collections::BTreeSet, time::Duration};

use sriov::{Leases, Original, PciAddress, RawVf, Sysfs, Wanted, look};

use super::{
    Engine,
    record::{Call, Record},
};
use crate::{
    cni::{CniArgs, Error, Object, PluginList},
    network::Attachment,
    settings::{CNI_KEYS, judge},
};
pub(super) use add::as_the_chain_left_it;
pub(super) use addresses::Addresses;
use addresses::BuiltinIpam;
pub(super) use announce::Announcements;

pub(super) use check::has_interface;

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
    pub(in crate::attach) fn is_builtin_list(&self, list: &PluginList) -> bool {
        self.settings.builtins.contains("sriov") && list.plugins.first().is_some_and(|plugin| plugin.kind == "sriov")
    }

    /// Refuses what can be known to fail, and names the VF.
    /// `own` are all devices that the pod asks for.
    pub(in crate::attach) fn judge_builtin(
        &self,
        attachment: &Attachment,
        list: &PluginList,
        own: &BTreeSet<PciAddress>,
    ) -> Result<String, Error> {
        let Some(plugin) = list.plugins.first() else { return Err(Error::Config("no plugin".to_owned())) };
        let known: Vec<&str> = RawVf::known_keys().iter().chain(&CNI_KEYS).chain(&OTHER_KEYS).copied().collect();
        let unknown: Vec<&str> =
            plugin.object.keys().filter(|key| !known.iter().any(|name| name.eq_ignore_ascii_case(key))).collect();
        let strict = self.invocation.conf.switch("strict")?;
        judge(&unknown, RawVf::known_keys(), &format!("the definition {}", attachment.network), strict)?;
        if list.plugins.iter().any(|plugin| plugin.kind == "bandwidth") {
            return Err(Error::Config(
                "plugin bandwidth shapes traffic in the host, where a VF's does not pass: limit it by \"max_tx_rate\""
                    .to_owned(),
            ));
        }
        let vf = BuiltinVf::read(&plugin.object, &attachment.runtime_config, &attachment.args, &attachment.network)?;
        let device = look(&sysfs(), vf.pci, &vf.wanted)?;
        sysfs().check_iommu(&device, own)?;
        if let Some(driver) = device.userspace_driver().filter(|_| !attachment.default_route.is_empty()) {
            return Err(Error::Config(format!(
                "default-route: VF {} is bound to {driver}, a driver for user space: the kernel has no interface for it, so \
                 no route can lead there; the application does its own routing",
                vf.pci
            )));
        }
        let ipam = self.ipam(list, &attachment.runtime_config, &attachment.args, &attachment.network)?;
        if let BuiltinIpam::Executed(kind) = ipam {
            crate::cni::find_plugin(&kind, &self.path)?;
        }
        Ok(vf.pci.to_string())
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

/// The alias of a VF while an attachment has it.
fn vf_alias(record: &Record, original: &Original) -> String {
    let pod = record.pod.as_ref().map(|pod| format!("{}/{}", pod.namespace, pod.name)).unwrap_or_default();
    let place = format!("{}{}", record.interface, of_container(&record.call.container));
    sriov::owner_alias(&pod, &place, original)
}

/// The part of the alias that names a container.
fn of_container(container: &str) -> String {
    format!(" of container {container}")
}
