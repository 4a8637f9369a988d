//! The state in which a VF was found: all that has to be put back.

use sandbox::{Link, MacAddr, VfReport, VfVlan};
use serde::{Deserialize, Serialize};

use crate::{Error, PciAddress, is_owner_alias};

/// A VF as it was found, complete, for the record. What is not there, or not reported by a driver, is `None` and is
/// never restored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Original {
    /// The VF.
    pub pci: PciAddress,
    /// Driver of the VF.
    pub driver: Option<String>,
    /// Its PF; none if that is not in this machine: a VM that was given VFs.
    pub pf: Option<OriginalPf>,
    /// Its interface; none if it was bound to a driver for user space.
    pub netdev: Option<OriginalNetdev>,
    /// The address that is going to be set, or may have been. An administrative address cannot be told from the VF's own
    /// in the report of some drivers (igb), so only this says that there may be one to take back.
    pub sets_mac: Option<MacAddr>,
    /// An interface is going to be made in the pod in place of one of the VF's own.
    pub dummy: bool,
}

/// A PF and what it held about the VF.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OriginalPf {
    /// Its PCI address.
    pub pci: PciAddress,
    /// Number of the VF there.
    pub number: u32,
    /// Its driver.
    pub driver: Option<String>,
    /// Its interface index when found.
    pub index: u32,
    /// Its name when found.
    pub name: String,
    /// What its driver reported of the VF; none if it left the VF out.
    pub report: Option<VfReport>,
}

/// The interface of a VF.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OriginalNetdev {
    /// Its index; the kernel keeps it across moves when it can.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its alternative names.
    pub altnames: Vec<String>,
    /// Its alias.
    pub alias: Option<String>,
    /// Its address.
    pub mac: MacAddr,
    /// The address burnt in, if reported; tells the VF on kernels that report no parent device.
    pub perm_mac: Option<MacAddr>,
    /// In bytes.
    pub mtu: u32,
    /// In packets.
    pub txqlen: u32,
    /// Administratively up.
    pub up: bool,
    /// Promiscuous.
    pub promisc: bool,
    /// Receives every multicast frame.
    pub allmulti: bool,
}

impl OriginalNetdev {
    /// The interface as the kernel shows it; none without an Ethernet address.
    pub(crate) fn of(link: Link) -> Option<Self> {
        Some(Self {
            index: link.index,
            name: link.name,
            altnames: link.altnames,
            alias: link.alias,
            mac: link.mac?,
            perm_mac: link.perm_mac,
            mtu: link.mtu,
            txqlen: link.txqlen,
            up: link.up,
            promisc: link.promisc,
            allmulti: link.allmulti,
        })
    }
}

impl Original {
    /// What the PF's driver reported, if there is a PF and it did.
    pub fn report(&self) -> Option<&VfReport> {
        self.pf.as_ref()?.report.as_ref()
    }

    /// The address that was set through the PF before us, as far as can be told: one that is reported, is not zero, and
    /// is not the VF's own. Writing the VF's own address back would lock the VF (igb).
    pub(crate) fn admin_mac(&self) -> Option<MacAddr> {
        let reported = self.report()?.mac?;
        let own = self.netdev.as_ref().map(|netdev| netdev.mac);
        (reported != MacAddr::ZERO && own != Some(reported)).then_some(reported)
    }

    /// The state of a VF that nobody has touched, in place of that in which it was found. Who the VF is (name, address,
    /// MTU, length of the queue) stays, and so does what the driver does not report.
    pub(crate) fn make_clean(&mut self) {
        let admin = self.admin_mac().is_some();
        if let Some(report) = self.pf.as_mut().and_then(|pf| pf.report.as_mut()) {
            if admin {
                report.mac = Some(MacAddr::ZERO);
            }
            report.vlan = report.vlan.map(|_| VfVlan::default());
            report.spoofchk = report.spoofchk.map(|_| true);
            report.trust = report.trust.map(|_| false);
            report.link_state = report.link_state.map(|_| sandbox::LinkState::Auto);
            report.min_tx_rate = report.min_tx_rate.map(|_| 0);
            report.max_tx_rate = report.max_tx_rate.map(|_| 0);
        }
        if let Some(netdev) = &mut self.netdev {
            // What is reported may be the VF's own address and administrative at once: it is to be cleared all the same.
            self.sets_mac = self.sets_mac.or(Some(netdev.mac));
            // One of ours says that the VF was lost; whoever asks for it has to see that first.
            netdev.alias = netdev.alias.take().filter(|alias| is_owner_alias(Some(alias)));
            (netdev.promisc, netdev.allmulti) = (false, false);
        }
    }

    /// True if `link` is this VF's interface: by PCI address, or on kernels before 5.14 by its permanent address, for
    /// which igbvf takes the one that was set last.
    pub(crate) fn is(&self, link: &Link) -> bool {
        let (perm_mac, index) = match &self.netdev {
            Some(netdev) => (netdev.perm_mac, Some(netdev.index)),
            None => (None, None),
        };
        match (&link.parent_dev, link.perm_mac) {
            (Some(device), _) => *device == self.pci.to_string(),
            (None, Some(perm)) => link.kind.is_none() && (perm_mac == Some(perm) || self.sets_mac == Some(perm)),
            (None, None) => link.kind.is_none() && index == Some(link.index),
        }
    }

    /// Whether the pod has an interface for it: its own, or a dummy one.
    pub fn has_interface(&self) -> bool {
        self.netdev.is_some() || self.dummy
    }

    /// The interface, of a VF that must have one.
    pub fn interface(&self) -> Result<&OriginalNetdev, Error> {
        let none = || Error::NoNetdev { pci: self.pci, driver: self.driver.clone() };
        self.netdev.as_ref().ok_or_else(none)
    }

    /// The VF and where it is, for messages.
    pub(crate) fn place(&self) -> String {
        match &self.pf {
            Some(pf) => format!("VF {} of PF {}, driver {}", pf.number, pf.name, pf.driver_name()),
            None => "its PF is not visible in this machine".to_owned(),
        }
    }

    /// An error of the kernel in a step that concerns this VF.
    pub(crate) fn kernel(&self, source: sandbox::Error) -> Error {
        Error::Kernel { pci: self.pci, source }
    }

    /// The PF says nothing about the VF.
    pub(crate) fn not_reported(&self, pf: &OriginalPf) -> Error {
        Error::NotReported { pci: self.pci, number: pf.number, pf: pf.name.clone(), driver: pf.driver_name() }
    }

    /// The kernel refused an attribute; keeps only the errno of `source`, the rest is said better here.
    pub(crate) fn attribute(&self, attribute: String, source: sandbox::Error, hint: Option<String>) -> Error {
        let Some(errno) = source.errno() else { return self.kernel(source) };
        let detail = match source {
            sandbox::Error::Kernel { detail, .. } => detail,
            _ => None,
        };
        Error::Attribute {
            attribute,
            pci: self.pci,
            place: self.place(),
            source: std::io::Error::from_raw_os_error(errno),
            hint: hint.or(detail),
        }
    }
}

impl OriginalPf {
    /// Its driver, for messages.
    pub(crate) fn driver_name(&self) -> String {
        self.driver.clone().unwrap_or_else(|| "none".to_owned())
    }
}
