//! What can go wrong with a VF. Messages that people search for keep sriov-cni's text.

use std::io;
use std::path::PathBuf;

use crate::{Owner, PciAddress};

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A device ID that is no PCI address.
    #[error("{text:?} is not a PCI address (want domain:bus:device.function, such as 0000:01:10.0)")]
    BadPci {
        /// What was given.
        text: String,
    },
    /// VLAN out of range.
    #[error("vlan id {0} invalid: value must be in the range 0-4094")]
    VlanRange(i64),
    /// Priority without a VLAN.
    #[error("vlan id must be configured to set vlan QoS to a non-nil value")]
    QosWithoutVlan,
    /// Priority out of range.
    #[error("vlan QoS PCP {0} invalid: value must be in the range 0-7")]
    QosRange(i64),
    /// Priority on VLAN 0.
    #[error("non-zero vlan id must be configured to set vlan QoS to a non-zero value")]
    QosNeedsVlan,
    /// Protocol without a VLAN.
    #[error("vlan id must be configured to set vlan proto to a non-nil value")]
    ProtoWithoutVlan,
    /// Unknown protocol.
    #[error("vlan Proto {0} invalid: value must be '802.1Q' or '802.1ad'")]
    ProtoUnknown(String),
    /// 802.1ad on VLAN 0.
    #[error("non-zero vlan id must be configured to set vlan proto 802.1ad")]
    ProtoNeedsVlan,
    /// A MAC address that cannot be parsed.
    #[error("failed to parse MAC address {0}")]
    BadMac(String),
    /// A MAC address that no interface can have.
    #[error("MAC address {0} invalid: a multicast or all-zero address cannot be given to an interface")]
    MacNotUnicast(String),
    /// A switch that is neither on nor off.
    #[error("{key} {value:?} invalid: value must be \"on\" or \"off\"")]
    BadSwitch {
        /// The key.
        key: &'static str,
        /// What was given.
        value: String,
    },
    /// Unknown link state.
    #[error("invalid link_state value: {0}")]
    BadLinkState(String),
    /// A rate that is negative or too large.
    #[error("{key} {value} invalid: value must be a rate in Mbps, 0 for none")]
    BadRate {
        /// The key.
        key: &'static str,
        /// What was given.
        value: i64,
    },
    /// The lower limit above the upper one.
    #[error("min_tx_rate {min} invalid: it is above max_tx_rate {max}")]
    RateOrder {
        /// Mbps.
        min: u32,
        /// Mbps.
        max: u32,
    },
    /// An MTU that no interface can have.
    #[error("mtu {0} invalid: value must be in the range 68-65535")]
    BadMtu(i64),
    /// There is no such device.
    #[error("no PCI device {pci} on this node ({} is missing): was it unplugged, or the number of VFs changed?", path.display())]
    NotPresent {
        /// The device asked for.
        pci: PciAddress,
        /// Where it was looked for.
        path: PathBuf,
    },
    /// The device is there, but is no VF.
    #[error("device {pci} is no virtual function: no physfn, and {why}; give the PCI address of a VF")]
    NotAVf {
        /// The device.
        pci: PciAddress,
        /// What it is instead.
        why: String,
    },
    /// The device has no PF here, so it would be a VF that was given to this machine, but the host itself uses it.
    #[error(
        "device {pci} has no physfn: it may be a VF that was given to this machine, but its interface {name} {found}: what the host itself uses is not given to a pod"
    )]
    UsedByHost {
        /// The device.
        pci: PciAddress,
        /// Its interface.
        name: String,
        /// What was found on it.
        found: String,
    },
    /// An option that only the PF can set, and the PF is in another machine.
    #[error("{option} of VF {pci}: the PF of VF {pci} is not visible in this machine: set it where the PF is")]
    NoPfHere {
        /// The VF.
        pci: PciAddress,
        /// What was asked for.
        option: String,
    },
    /// The VF's PF has no network interface here.
    #[error("PF network device not found: PF {pf} of VF {pci} has no interface in the host's network namespace{why}")]
    NoPf {
        /// The VF.
        pci: PciAddress,
        /// Its PF.
        pf: PciAddress,
        /// What is known of the reason.
        why: String,
    },
    /// The PF lists no such VF.
    #[error("unable to get VF ID with PF: {pf} and VF pci address {pci}")]
    NoVfNumber {
        /// The VF.
        pci: PciAddress,
        /// Its PF.
        pf: PciAddress,
    },
    /// Something that only an interface can have, and the VF is bound to a driver for user space.
    #[error("{what} of VF {pci}: it is bound to {driver}, a driver for user space: {why}")]
    Userspace {
        /// The VF.
        pci: PciAddress,
        /// The driver.
        driver: String,
        /// What was asked for.
        what: &'static str,
        /// Why it cannot be had.
        why: &'static str,
    },
    /// A dummy interface for a VF that has an interface of its own.
    #[error(
        "dummyInterface of VF {pci}: it is bound to {driver}, so it has an interface of its own; a dummy one is for drivers for user space"
    )]
    DummyForKernel {
        /// The VF.
        pci: PciAddress,
        /// Its driver.
        driver: String,
    },
    /// The program that gets the VF could reach the memory of devices that are not its own.
    #[error("VF {pci} shares IOMMU group {group} with {}: whoever has the VF could reach them too; use a VF with a group of its own (a slot behind a port with ACS)", strangers.join(", "))]
    SharedGroup {
        /// The VF.
        pci: PciAddress,
        /// Number of the group.
        group: String,
        /// The members that are neither a bridge nor the asker's; never empty.
        strangers: Vec<String>,
    },
    /// vfio-pci needs an IOMMU.
    #[error(
        "VF {pci} is bound to vfio-pci but has no IOMMU group: switch the IOMMU on (firmware, and intel_iommu=on or the like on the kernel's command line), or accept a device that can reach all memory (/sys/module/vfio/parameters/enable_unsafe_noiommu_mode)"
    )]
    NoIommu {
        /// The VF.
        pci: PciAddress,
    },
    /// Unknown restore policy.
    #[error("restorePolicy {0:?} invalid: value must be \"original\" or \"clean\"")]
    BadRestorePolicy(String),
    /// The VF has no network interface in the host.
    #[error("the VF {pci} does not have a interface name in the host's network namespace (driver: {}): is it in another pod, or still coming up?", driver.as_deref().unwrap_or("none"))]
    NoNetdev {
        /// The VF.
        pci: PciAddress,
        /// Its driver.
        driver: Option<String>,
    },
    /// A file of sysfs could not be read.
    #[error("cannot {step} {}: {source}", path.display())]
    Sysfs {
        /// What was tried.
        step: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The PF's driver says nothing about the VF, so its settings could not be put back.
    #[error(
        "PF {pf} (driver {driver}) does not report VF {number} ({pci}): it may be in reset, or the driver cannot; settings through the PF are refused"
    )]
    NotReported {
        /// The VF.
        pci: PciAddress,
        /// Its number.
        number: u32,
        /// Name of the PF.
        pf: String,
        /// Driver of the PF.
        driver: String,
    },
    /// Another function of the same PF has the address.
    #[error("MAC address {mac} wanted for VF {pci} is already that of {holder}")]
    MacInUse {
        /// The address.
        mac: String,
        /// The VF.
        pci: PciAddress,
        /// Who has it.
        holder: String,
    },
    /// The name is taken where the VF is to go.
    #[error("VF {pci} cannot be named {name}: {place} already has an interface of that name ({other})")]
    NameTaken {
        /// The VF.
        pci: PciAddress,
        /// The name.
        name: String,
        /// "the pod" or "the host".
        place: &'static str,
        /// The interface that has it.
        other: String,
    },
    /// The kernel refused an attribute of the VF.
    #[error("{attribute} of VF {pci} ({place}): {source}{}", hint.as_ref().map(|h| format!("; {h}")).unwrap_or_default())]
    Attribute {
        /// The attribute and its value.
        attribute: String,
        /// The VF.
        pci: PciAddress,
        /// Its number, and its PF with its driver.
        place: String,
        /// The errno.
        source: io::Error,
        /// What to do about it.
        hint: Option<String>,
    },
    /// Another step failed.
    #[error("VF {pci}: {source}")]
    Kernel {
        /// The VF.
        pci: PciAddress,
        /// The cause, with step and errno.
        source: sandbox::Error,
    },
    /// The kernel took the change and the state is another.
    #[error("{what} of VF {pci} is {found}, wanted {wanted}")]
    Unverified {
        /// The VF.
        pci: PciAddress,
        /// What was looked at.
        what: &'static str,
        /// What it should be.
        wanted: String,
        /// What it is.
        found: String,
    },
    /// The VF's interface is neither in the pod nor in the host.
    #[error(
        "VF {pci} is in neither the pod nor the host after {waited_ms} ms: another process may hold its namespace open; repeat later"
    )]
    NotBack {
        /// The VF.
        pci: PciAddress,
        /// How long it was waited for.
        waited_ms: u128,
    },
    /// The VF is in a namespace that is somebody else's by now.
    #[error(
        "VF {pci} is in the network namespace {}, which belongs to somebody else: it is left alone; whoever put it there gives it back",
        netns.display()
    )]
    Foreign {
        /// The VF.
        pci: PciAddress,
        /// The namespace.
        netns: PathBuf,
    },
    /// Some of the original state could not be put back; all was tried.
    #[error("VF {pci} could not be restored: {}", problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    NotRestored {
        /// The VF.
        pci: PciAddress,
        /// What failed; never empty.
        problems: Vec<Error>,
    },
    /// A living sandbox has the VF.
    #[error("pci address {pci} is already allocated: {} of pod {} in {} holds it", owner.call, owner.pod_uid, owner.netns.path.display())]
    Busy {
        /// The VF.
        pci: PciAddress,
        /// Who has it.
        owner: Box<Owner>,
    },
    /// A sandbox that we know no more of than its namespace has the VF.
    #[error("pci address {pci} is already allocated: the sandbox in {} holds it", netns.display())]
    Allocated {
        /// The VF.
        pci: PciAddress,
        /// The sandbox's namespace.
        netns: PathBuf,
    },
    /// A newer release has written the VF's lease.
    #[error(
        "VF {pci}: a newer release of meta-cni wrote its lease (format {format}, this one knows {known}) and may have done more to it than can be undone here, so nobody gets it: install that release again; or, if it is not to come back, see that the VF is free and remove {}",
        path.display()
    )]
    Newer {
        /// The VF.
        pci: PciAddress,
        /// The lease.
        path: PathBuf,
        /// Its format.
        format: u32,
        /// The newest format that is known here.
        known: u32,
    },
    /// Somebody else works on the VF for too long.
    #[error("time out while waiting to acquire exclusive lock on [{}]", path.display())]
    LockTimeout {
        /// The lock file.
        path: PathBuf,
    },
    /// A file of ours could not be read or written.
    #[error("lease: cannot {step} {}: {source}", path.display())]
    Lease {
        /// What was tried.
        step: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

impl Error {
    /// The errno behind the error, if the kernel gave one; of several the first.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Error::Sysfs { source, .. } | Error::Attribute { source, .. } | Error::Lease { source, .. } => {
                source.raw_os_error()
            }
            Error::Kernel { source, .. } => source.errno(),
            Error::NotRestored { problems, .. } => problems.iter().find_map(Error::errno),
            _ => None,
        }
    }
}
