//! What sriov-cni wrote down at ADD: its configuration with the VF's original state, at `CONTAINER-INTERFACE`. Enough to
//! give the VF back as [`restore_from_anywhere`] does for a VF of our own.

use std::fs;
use std::io;
use std::path::PathBuf;

use sandbox::{IfName, Link, LinkState, Links, MacAddr, VfReport, VfVlan, VlanProto};
use serde::Deserialize;

use super::SriovCni;
use crate::locate::{Place, locate};
use crate::{
    Error, Original, OriginalNetdev, OriginalPf, PciAddress, Sysfs, VfDevice, is_owner_alias, restore_from_anywhere,
};

/// ETH_P_8021AD, as sriov-cni keeps the kind of tag, and with its bytes swapped, as it does on s390x. 0 in files of
/// releases that knew 802.1q alone.
const DOT1AD: [i64; 2] = [0x88a8, 0xa888];

/// One attachment of sriov-cni. Keys that old releases did not have are empty.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Cached {
    /// The VF.
    #[serde(rename = "deviceID")]
    pub device_id: String,
    #[serde(rename = "OrigVfState")]
    state: VfState,
    #[serde(rename = "MAC", alias = "mac")]
    mac: String,
    vlan: Option<i64>,
    spoofchk: String,
    trust: String,
    min_tx_rate: Option<i64>,
    max_tx_rate: Option<i64>,
    link_state: String,
    /// What the result said: the VF's, before releases kept it below.
    #[serde(rename = "MTU")]
    mtu: Option<i64>,
}

/// The VF before its ADD.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct VfState {
    #[serde(rename = "HostIFName")]
    name: String,
    spoof_chk: bool,
    trust: bool,
    #[serde(rename = "AdminMAC")]
    admin_mac: String,
    #[serde(rename = "EffectiveMAC")]
    effective_mac: String,
    vlan: i64,
    #[serde(rename = "VlanQoS")]
    vlan_qos: i64,
    vlan_proto: i64,
    min_tx_rate: i64,
    max_tx_rate: i64,
    link_state: i64,
    #[serde(rename = "MTU")]
    mtu: Option<i64>,
}

impl SriovCni {
    /// What sriov-cni wrote down of an attachment. A torn file (sriov-cni writes in place) counts as none: it names
    /// nothing that could be given back.
    pub fn cached(&self, container: &str, interface: &str) -> Result<Option<Cached>, Error> {
        let path = self.cache(container, interface);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(Error::Lease { step: "read", path, source }),
        };
        match serde_json::from_slice(&text) {
            Ok(cached) => Ok(Some(cached)),
            Err(problem) => {
                tracing::warn!(file = %path.display(), %problem, "sriov-cni's file is torn: its VF is not known");
                Ok(None)
            }
        }
    }

    /// What sriov-cni wrote down of all attachments, by the names of the files. Torn ones are left out.
    pub fn all_cached(&self) -> Result<Vec<(String, Cached)>, Error> {
        let failed = |source| Error::Lease { step: "list", path: self.root.clone(), source };
        let entries = match fs::read_dir(&self.root) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(failed(error)),
        };
        let mut all = Vec::new();
        for entry in entries {
            let entry = entry.map_err(failed)?;
            // The directory of the allocations, and a file that goes just now.
            let Ok(text) = fs::read(entry.path()) else { continue };
            let cached = serde_json::from_slice::<Cached>(&text).ok();
            all.extend(cached.map(|cached| (entry.file_name().to_string_lossy().into_owned(), cached)));
        }
        Ok(all)
    }

    /// Whether sriov-cni wrote down another attachment of the VF than this one.
    pub fn has_another(&self, device_id: &str, container: &str, interface: &str) -> Result<bool, Error> {
        let own = format!("{container}-{interface}");
        Ok(self.all_cached()?.iter().any(|(name, other)| *name != own && other.device_id == device_id))
    }

    /// Removes what is written down of an attachment.
    pub fn forget(&self, container: &str, interface: &str) -> Result<(), Error> {
        let path = self.cache(container, interface);
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(Error::Lease { step: "remove", path, source })
            }
            _ => Ok(()),
        }
    }

    fn cache(&self, container: &str, interface: &str) -> PathBuf {
        self.root.join(format!("{container}-{interface}"))
    }
}

/// Gives a VF of sriov-cni's back to the host, as its file says that it was, wherever it is now. `pod` is the namespace
/// that it may be in, `interface` its name there; `elsewhere` as for [`restore_from_anywhere`]. What the file does not
/// tell is left as it is found.
pub async fn release_cached<L: Links>(
    host: &L,
    pod: Option<&L>,
    (cached, interface): (&Cached, &IfName),
    sysfs: &Sysfs,
    elsewhere: impl AsyncFn() -> Result<Option<L>, Error>,
) -> Result<(), Error> {
    let pci = PciAddress::try_from(cached.device_id.as_str())?;
    let device = match sysfs.vf(pci) {
        Err(Error::NotPresent { .. }) => return Ok(()),
        device => device?,
    };
    let kernel = |source| Error::Kernel { pci, source };
    // Kernels before 5.14 do not tell the parent device: there sysfs must do in the host, and the name in the pod.
    let mut candidate = match &device.netdev {
        Some(netdev) => host.by_index(netdev.index).await.map_err(kernel)?,
        None => None,
    };
    if let (None, Some(pod)) = (&candidate, pod) {
        candidate = pod.by_name(interface.as_str()).await.map_err(kernel)?;
    }
    let candidate = candidate.filter(|link| link.parent_dev.is_none() && link.kind.is_none());
    let known = cached.original(pci, &device, candidate.as_ref(), false);
    let mut original = match locate(host, pod, &known, sysfs, &elsewhere).await? {
        Place::Pod(link) | Place::Elsewhere(_, link) => cached.original(pci, &device, Some(&link), false),
        Place::Host(link) => cached.original(pci, &device, Some(&link), link.up),
        Place::NoNetdev => known,
        Place::Unplugged => return Ok(()),
    };
    if let Some(netdev) = &mut original.netdev {
        forget_taken_altnames(host, netdev).await.map_err(kernel)?;
    }
    if let Some(pf) = &mut original.pf
        && let Some(report) = &mut pf.report
        && pf.index != 0
        && let Some(now) = host.pf_report(pf.index).await.map_err(kernel)?.vf(pf.number)
    {
        forget_unreported(report, now);
    }
    restore_from_anywhere(host, pod, &original, sysfs, elsewhere).await
}

/// A name that the host has given to another interface by now cannot come back.
async fn forget_taken_altnames<L: Links>(host: &L, netdev: &mut OriginalNetdev) -> Result<(), sandbox::Error> {
    let mut altnames = Vec::new();
    for altname in netdev.altnames.drain(..).filter(|altname| *altname != netdev.name) {
        let other = host.by_name(&altname).await?;
        altnames.extend(other.is_none_or(|other| other.index == netdev.index).then_some(altname));
    }
    netdev.altnames = altnames;
    Ok(())
}

impl Cached {
    /// What the VF's interface was called in the host; empty if the file does not tell.
    pub fn host_name(&self) -> &str {
        &self.state.name
    }

    /// The state to give the VF back in. What sriov-cni did not look at is as `found`; of what it did, only that counts
    /// which its configuration changed, because the file does not tell "off" from "not reported by the driver".
    fn original(&self, pci: PciAddress, device: &VfDevice, found: Option<&Link>, up: bool) -> Original {
        let admin = parse(&self.state.admin_mac);
        let pf = device.pf.as_ref().map(|pf| {
            let netdev = pf.netdev(pci).ok();
            OriginalPf {
                pci: pf.pci,
                number: pf.number,
                driver: pf.driver.clone(),
                index: netdev.map_or(0, |netdev| netdev.index),
                name: netdev.map(|netdev| netdev.name.clone()).unwrap_or_default(),
                // Releases that did not look at the PF have nothing to put back there.
                report: (!self.state.admin_mac.is_empty()).then(|| self.report(pf.number, admin)),
            }
        });
        Original {
            pci,
            driver: device.driver.clone(),
            pf,
            netdev: found.map(|link| self.netdev(link, admin, up)),
            sets_mac: parse(&self.mac),
            dummy: false,
        }
    }

    fn netdev(&self, found: &Link, admin: Option<MacAddr>, up: bool) -> OriginalNetdev {
        let sets_mac = parse(&self.mac);
        let mac = parse(&self.state.effective_mac)
            .or(found.mac.filter(|_| sets_mac.is_none()))
            .or(admin)
            .or(found.perm_mac)
            .unwrap_or(MacAddr::ZERO);
        let name = match &self.state.name {
            name if !name.is_empty() => name.clone(),
            _ if up => found.name.clone(),
            _ => format!("dev{}", found.index),
        };
        OriginalNetdev {
            index: found.index,
            name,
            altnames: found.altnames.clone(),
            // One of ours is of an attachment that was never undone, and which sriov-cni did not look at.
            alias: found.alias.clone().filter(|alias| !is_owner_alias(Some(alias))),
            mac,
            // igbvf reports the address that was set last for the one burnt in: the other one is wanted back.
            perm_mac: found.perm_mac.map(|perm| if sets_mac == Some(perm) { mac } else { perm }),
            mtu: self.mtu().unwrap_or(found.mtu),
            txqlen: found.txqlen,
            up,
            // Of the pod's making: a VF of the pool does not listen to what is not for it.
            promisc: false,
            allmulti: false,
        }
    }

    fn mtu(&self) -> Option<u32> {
        let mtus = [self.state.mtu, self.mtu].into_iter().flatten();
        mtus.filter_map(|mtu| u32::try_from(mtu).ok()).find(|mtu| *mtu != 0)
    }

    fn report(&self, number: u32, admin: Option<MacAddr>) -> VfReport {
        let state = &self.state;
        let rated = self.min_tx_rate.is_some() || self.max_tx_rate.is_some();
        let rate = |mbps: i64| u32::try_from(mbps).ok().filter(|_| rated);
        VfReport {
            number,
            mac: Some(admin.unwrap_or(MacAddr::ZERO)),
            vlan: self.vlan.and(Some(VfVlan {
                id: u16::try_from(state.vlan).unwrap_or(0),
                qos: u8::try_from(state.vlan_qos).unwrap_or(0),
                proto: if DOT1AD.contains(&state.vlan_proto) { VlanProto::Dot1Ad } else { VlanProto::Dot1Q },
            })),
            spoofchk: (!self.spoofchk.is_empty()).then_some(state.spoof_chk),
            trust: (!self.trust.is_empty()).then_some(state.trust),
            link_state: (!self.link_state.is_empty()).then_some(match state.link_state {
                1 => LinkState::Enable,
                2 => LinkState::Disable,
                _ => LinkState::Auto,
            }),
            min_tx_rate: rate(state.min_tx_rate),
            max_tx_rate: rate(state.max_tx_rate),
        }
    }
}

/// What a driver does not report sriov-cni took for "on": it is not known, and so not restored.
fn forget_unreported(report: &mut VfReport, now: &VfReport) {
    report.mac = report.mac.filter(|_| now.mac.is_some());
    report.vlan = report.vlan.filter(|_| now.vlan.is_some());
    report.spoofchk = report.spoofchk.filter(|_| now.spoofchk.is_some());
    report.trust = report.trust.filter(|_| now.trust.is_some());
    report.link_state = report.link_state.filter(|_| now.link_state.is_some());
    report.min_tx_rate = report.min_tx_rate.filter(|_| now.min_tx_rate.is_some());
    report.max_tx_rate = report.max_tx_rate.filter(|_| now.max_tx_rate.is_some());
}

/// An address that an interface can have; Go writes none as the empty text.
fn parse(text: &str) -> Option<MacAddr> {
    text.parse().ok().filter(|mac: &MacAddr| *mac != MacAddr::ZERO)
}
