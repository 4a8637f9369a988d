//! Virtual functions as their PF's driver reports and takes them (IFLA_VFINFO_LIST, linux/if_link.h). "Not reported"
//! is a value of its own: the kernel presets some fields with -1 and many drivers never fill them in.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{Link, MacAddr};

/// What a VLAN tag says it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum VlanProto {
    /// 0x8100, a customer tag.
    #[default]
    #[serde(rename = "802.1q")]
    Dot1Q,
    /// 0x88a8, a service tag.
    #[serde(rename = "802.1ad")]
    Dot1Ad,
}

impl fmt::Display for VlanProto {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            VlanProto::Dot1Q => "802.1q",
            VlanProto::Dot1Ad => "802.1ad",
        })
    }
}

/// The VLAN that the PF puts a VF into. `id` 0 means none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct VfVlan {
    /// 0 to 4094.
    pub id: u16,
    /// Priority, 0 to 7.
    pub qos: u8,
    /// Kind of tag.
    pub proto: VlanProto,
}

/// Whether the VF sees a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LinkState {
    /// As the PF's own.
    Auto,
    /// Always, so that VFs of one PF reach each other without a cable.
    Enable,
    /// Never.
    Disable,
}

impl fmt::Display for LinkState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            LinkState::Auto => "auto",
            LinkState::Enable => "enable",
            LinkState::Disable => "disable",
        })
    }
}

/// What the PF's driver says about one VF.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct VfReport {
    /// The VF's number as the attribute's payload says; the position in the list means nothing, the kernel leaves out
    /// VFs whose driver fails.
    pub number: u32,
    /// On some drivers the administrative address, on others (igb) the VF's own.
    pub mac: Option<MacAddr>,
    /// None if not reported.
    pub vlan: Option<VfVlan>,
    /// None if not reported.
    pub spoofchk: Option<bool>,
    /// None if not reported.
    pub trust: Option<bool>,
    /// None if not reported. The kernel's preset is `auto`, so `auto` may mean "the driver does not know".
    pub link_state: Option<LinkState>,
    /// Lowest guaranteed rate in Mbit/s, 0 = none.
    pub min_tx_rate: Option<u32>,
    /// Highest rate in Mbit/s, 0 = unlimited.
    pub max_tx_rate: Option<u32>,
}

/// A PF and all its VFs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PfReport {
    /// The PF itself.
    pub link: Link,
    /// Its VFs, in the kernel's order.
    pub vfs: Vec<VfReport>,
}

impl PfReport {
    /// The VF with this number, if the driver reported it.
    pub fn vf(&self, number: u32) -> Option<&VfReport> {
        self.vfs.iter().find(|vf| vf.number == number)
    }
}

/// One setting of a VF, made through its PF.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VfSetting {
    /// Administrative address; zero removes it.
    Mac(MacAddr),
    /// VLAN, priority and protocol together.
    Vlan(VfVlan),
    /// Both limits in Mbit/s together: the kernel has no message for one.
    Rate {
        /// Guaranteed.
        min: u32,
        /// Limit.
        max: u32,
    },
    /// Drop frames with a foreign source address.
    SpoofChk(bool),
    /// Link as the VF sees it.
    LinkState(LinkState),
    /// Let the VF change its address and go promiscuous.
    Trust(bool),
}

impl VfSetting {
    /// Position in which the kernel applies it (do_setvfinfo in net/core/rtnetlink.c), whatever order it was sent in.
    pub fn kernel_order(&self) -> u8 {
        match self {
            VfSetting::Mac(_) => 0,
            VfSetting::Vlan(_) => 1,
            VfSetting::Rate { .. } => 2,
            VfSetting::SpoofChk(_) => 3,
            VfSetting::LinkState(_) => 4,
            VfSetting::Trust(_) => 5,
        }
    }
}

impl fmt::Display for VfSetting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let on = |b: &bool| if *b { "on" } else { "off" };
        match self {
            VfSetting::Mac(mac) => write!(f, "mac {mac}"),
            VfSetting::Vlan(VfVlan { id, qos, proto }) => {
                write!(f, "vlan {id}")?;
                if *qos != 0 {
                    write!(f, " qos {qos}")?;
                }
                if *proto != VlanProto::Dot1Q { write!(f, " proto {proto}") } else { Ok(()) }
            }
            VfSetting::Rate { min, max } => match (min, max) {
                (0, max) => write!(f, "max_tx_rate {max}"),
                (min, max) => write!(f, "min_tx_rate {min} max_tx_rate {max}"),
            },
            VfSetting::SpoofChk(b) => write!(f, "spoofchk {}", on(b)),
            VfSetting::LinkState(state) => write!(f, "link_state {state}"),
            VfSetting::Trust(b) => write!(f, "trust {}", on(b)),
        }
    }
}
