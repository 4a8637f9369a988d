//! A network interface as the kernel reports it, and what can be changed on it.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::Error;

/// An Ethernet address. Text form is lower case with colons.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MacAddr(pub [u8; 6]);

impl MacAddr {
    /// All zero: on a VF "no administrative address".
    pub const ZERO: MacAddr = MacAddr([0; 6]);

    /// Every station.
    pub const BROADCAST: MacAddr = MacAddr([0xff; 6]);

    /// True for a group address (lowest bit of the first byte), broadcast included.
    pub fn is_multicast(self) -> bool {
        self.0[0] & 1 == 1
    }

    /// The first six bytes, if there are that many (IPoIB has 20: no Ethernet address).
    pub(crate) fn from_ethernet(bytes: &[u8]) -> Option<Self> {
        <[u8; 6]>::try_from(bytes).ok().map(Self)
    }
}

impl FromStr for MacAddr {
    type Err = Error;

    /// Six bytes of two hexadecimal digits with colons or dashes between them, in either case.
    fn from_str(text: &str) -> Result<Self, Error> {
        let bad = || Error::BadMac { text: text.to_owned() };
        let separator = if text.contains('-') { '-' } else { ':' };
        let mut bytes = [0; 6];
        let mut parts = text.split(separator);
        for byte in &mut bytes {
            let part = parts.next().ok_or_else(bad)?;
            if part.len() != 2 || !part.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(bad());
            }
            *byte = u8::from_str_radix(part, 16).map_err(|_| bad())?;
        }
        if parts.next().is_some() {
            return Err(bad());
        }
        Ok(Self(bytes))
    }
}

impl TryFrom<String> for MacAddr {
    type Error = Error;

    fn try_from(text: String) -> Result<Self, Error> {
        text.parse()
    }
}

impl From<MacAddr> for String {
    fn from(mac: MacAddr) -> Self {
        mac.to_string()
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// One interface (RTM_NEWLINK).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Link {
    /// Interface index, unique in its namespace.
    pub index: u32,
    /// IFLA_IFNAME.
    pub name: String,
    /// Alternative names (IFLA_ALT_IFNAME), in the kernel's order.
    pub altnames: Vec<String>,
    /// IFLA_IFALIAS, a free text.
    pub alias: Option<String>,
    /// The address in use; none for an interface without an Ethernet address.
    pub mac: Option<MacAddr>,
    /// The address burnt in (IFLA_PERM_ADDRESS, Linux 5.5).
    pub perm_mac: Option<MacAddr>,
    /// In bytes.
    pub mtu: u32,
    /// IFF_UP: administratively up.
    pub up: bool,
    /// IFF_LOWER_UP and IFF_RUNNING: has a carrier, and the kernel has noticed, so that frames are sent.
    pub carrier: bool,
    /// IFF_PROMISC as set by an administrator.
    pub promisc: bool,
    /// IFF_ALLMULTI as set by an administrator.
    pub allmulti: bool,
    /// In packets.
    pub txqlen: u32,
    /// IFLA_INFO_KIND ("veth", "bridge"); none for hardware.
    pub kind: Option<String>,
    /// IFLA_PARENT_DEV_NAME: the PCI address for a PCI device (Linux 5.14).
    pub parent_dev: Option<String>,
    /// Index of the bridge or bond it belongs to.
    pub master: Option<u32>,
}

/// One property to set on a link. Several go in one message, which the kernel applies in its own order (do_setlink in
/// net/core/rtnetlink.c) and abandons at the first that fails, leaving the earlier ones applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkChange {
    /// The address in use.
    Mac(MacAddr),
    /// In bytes.
    Mtu(u32),
    /// Administrative state.
    Up(bool),
    /// In packets.
    TxQueueLen(u32),
    /// Receive every frame.
    Promisc(bool),
    /// Receive every multicast frame.
    AllMulti(bool),
    /// A free text of at most 255 bytes; the empty one removes it.
    Alias(String),
    /// A new name.
    Name(String),
}

impl LinkChange {
    /// The property's name, for messages.
    pub fn what(&self) -> &'static str {
        match self {
            LinkChange::Mac(_) => "mac",
            LinkChange::Mtu(_) => "mtu",
            LinkChange::Up(true) => "up",
            LinkChange::Up(false) => "down",
            LinkChange::TxQueueLen(_) => "txqueuelen",
            LinkChange::Promisc(_) => "promisc",
            LinkChange::AllMulti(_) => "allmulticast",
            LinkChange::Alias(_) => "alias",
            LinkChange::Name(_) => "name",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mac_addresses_are_parsed_once_and_printed_lower_case() {
        assert_eq!("52:54:00:AA:0b:01".parse::<MacAddr>().unwrap().to_string(), "52:54:00:aa:0b:01");
        assert_eq!("52-54-00-aa-0b-01".parse::<MacAddr>().unwrap(), MacAddr([0x52, 0x54, 0, 0xaa, 0xb, 1]));
        for bad in ["", "52:54:00:aa:0b", "52:54:00:aa:0b:01:02", "52:54:00:aa:0b:1", "52:54:00:aa:0b:+1", "x"] {
            assert!(matches!(bad.parse::<MacAddr>(), Err(Error::BadMac { text }) if text == bad), "{bad:?}");
        }
        assert!(MacAddr([0x01, 0, 0x5e, 0, 0, 1]).is_multicast());
        assert!(!MacAddr([0x52, 0, 0, 0, 0, 1]).is_multicast());
    }
}
