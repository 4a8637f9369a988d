//! The state in which a VF was found: all that has to be put back.

use sandbox::{Link, MacAddr, VfReport};
use serde::{Deserialize, Serialize};

use crate::{Error, PciAddress};

/// A VF as it was found, complete, for the record. What a driver did not report is `None` and is never restored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Original {
    /// The VF.
    pub pci: PciAddress,
    /// Its PF.
    pub pf_pci: PciAddress,
    /// Number of the VF at its PF.
    pub number: u32,
    /// Driver of the VF.
    pub driver: Option<String>,
    /// Driver of the PF.
    pub pf_driver: Option<String>,
    /// Interface index of the PF when found.
    pub pf_index: u32,
    /// Name of the PF when found.
    pub pf_name: String,
    /// Interface index of the VF; the kernel keeps it across moves when it can.
    pub index: u32,
    /// Name of the interface.
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
    /// What the PF's driver reported; none if it left the VF out.
    pub report: Option<VfReport>,
    /// The address that is going to be set through the PF. An administrative address cannot be told from the VF's own
    /// in the report of some drivers (igb), so only this says that there may be one to take back.
    pub sets_mac: Option<MacAddr>,
}

impl Original {
    /// The address that was set through the PF before us, as far as can be told: one that is reported, is not zero, and
    /// is not the VF's own. Writing the VF's own address back would lock the VF (igb).
    pub(crate) fn admin_mac(&self) -> Option<MacAddr> {
        let reported = self.report.as_ref()?.mac?;
        (reported != MacAddr::ZERO && reported != self.mac).then_some(reported)
    }

    /// True if `link` is this VF's interface: by PCI address, or on kernels before 5.14 by its permanent address, for
    /// which igbvf takes the one that was set last.
    pub(crate) fn is(&self, link: &Link) -> bool {
        match (&link.parent_dev, link.perm_mac) {
            (Some(device), _) => *device == self.pci.to_string(),
            (None, Some(perm)) => link.kind.is_none() && (self.perm_mac == Some(perm) || self.sets_mac == Some(perm)),
            (None, None) => link.kind.is_none() && link.index == self.index,
        }
    }

    /// The driver of the PF, for messages.
    pub(crate) fn pf_driver_name(&self) -> String {
        self.pf_driver.clone().unwrap_or_else(|| "none".to_owned())
    }

    /// An error of the kernel in a step that concerns this VF.
    pub(crate) fn kernel(&self, source: sandbox::Error) -> Error {
        Error::Kernel { pci: self.pci, source }
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
            number: self.number,
            pf: self.pf_name.clone(),
            driver: self.pf_driver_name(),
            source: std::io::Error::from_raw_os_error(errno),
            hint: hint.or(detail),
        }
    }
}
