//! Addresses as Go's `net` package reads and writes them, which is what the files of a pool are named by.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// Reads an address strictly (no leading zeros, no zone); a v4-mapped IPv6 address becomes the IPv4 address it is.
pub(crate) fn parse(text: &str) -> Option<IpAddr> {
    text.parse::<IpAddr>().ok().map(|address| address.to_canonical())
}

/// `ADDRESS/PREFIX` as it was written: the address may have host bits and may be v4-mapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cidr {
    pub(crate) address: IpAddr,
    pub(crate) prefix: u8,
}

impl Cidr {
    /// Reads `ADDRESS/PREFIX`; `None` if either part is missing, malformed or too long for the family.
    pub(crate) fn parse(text: &str) -> Option<Cidr> {
        let (address, prefix) = text.split_once('/')?;
        let address = address.parse::<IpAddr>().ok()?;
        if prefix.is_empty() || !prefix.bytes().all(|digit| digit.is_ascii_digit()) {
            return None;
        }
        let prefix = prefix.parse::<u8>().ok()?;
        let longest = if address.is_ipv4() { 32 } else { 128 };
        (prefix <= longest).then_some(Cidr { address, prefix })
    }

    /// Whether an IPv4 address was written in IPv6 form (`::ffff:192.0.2.1/120`).
    pub(crate) fn is_mapped(self) -> bool {
        self.address.is_ipv6() && self.address.to_canonical().is_ipv4()
    }

    /// The same in canonical form; `None` for a mapped address whose prefix does not even cover the mapping.
    pub(crate) fn canonical(self) -> Option<IpNet> {
        let prefix = if self.is_mapped() { self.prefix.checked_sub(96)? } else { self.prefix };
        IpNet::new(self.address.to_canonical(), prefix).ok()
    }
}

/// The address as a number within its family.
pub(crate) fn to_number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(u32::from(address)),
        IpAddr::V6(address) => u128::from(address),
    }
}

/// The address with this number in the family of `like`; one that is too large for the family is the last one.
pub(crate) fn of_number(number: u128, like: IpAddr) -> IpAddr {
    match like {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::from(u32::try_from(number).unwrap_or(u32::MAX))),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::from(number)),
    }
}

/// The address `steps` after `address`, stopping at the last one of the family.
pub(crate) fn plus(address: IpAddr, steps: u32) -> IpAddr {
    match address {
        IpAddr::V4(address) => IpAddr::V4(Ipv4Addr::from(u32::from(address).saturating_add(steps))),
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from(u128::from(address).saturating_add(u128::from(steps)))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The texts are what Go 1.26's `net.ParseIP(x).String()` prints.
    #[test]
    fn addresses_are_named_as_go_names_them() {
        let table = [
            ("192.0.2.1", "192.0.2.1"),
            ("::ffff:1.2.3.4", "1.2.3.4"),
            ("::ffff:102:304", "1.2.3.4"),
            ("::1.2.3.4", "::102:304"),
            ("::", "::"),
            ("::1", "::1"),
            ("2001:DB8:0:0:1:0:0:1", "2001:db8::1:0:0:1"),
            ("2001:db8:0:1:1:1:1:1", "2001:db8:0:1:1:1:1:1"),
            ("1:0:0:2:0:0:0:3", "1:0:0:2::3"),
            ("2001:db8::0", "2001:db8::"),
            ("0:0:0:0:0:0:13.1.68.3", "::d01:4403"),
        ];
        for (written, named) in table {
            assert_eq!(parse(written).map(|address| address.to_string()).as_deref(), Some(named), "{written}");
        }
    }

    #[test]
    fn sloppy_addresses_are_refused() {
        for text in
            ["", " 10.0.0.1", "10.0.0.1 ", "010.0.0.1", "10.0.0.01", "10.0.1", "fe80::1%eth0", "1:::2", "10.0.0.1\n"]
        {
            assert_eq!(parse(text), None, "{text:?}");
        }
        for text in
            ["10.0.0.0", "10.0.0.0/", "10.0.0.0/33", "10.0.0.0/+8", "10.0.0.0/-1", "::/129", "/24", "10.0.0.0/8/8"]
        {
            assert_eq!(Cidr::parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn a_mapped_network_loses_the_mapping() {
        let net = |text: &str| Cidr::parse(text).and_then(Cidr::canonical).map(|net| net.to_string());
        assert_eq!(net("::ffff:10.0.0.1/120").as_deref(), Some("10.0.0.1/24"));
        assert_eq!(net("::ffff:10.0.0.1/64"), None);
        assert_eq!(net("2001:db8::1/64").as_deref(), Some("2001:db8::1/64"));
    }

    #[test]
    fn counting_stops_at_the_end_of_the_family() {
        assert_eq!(plus(IpAddr::from([10, 0, 0, 255]), 1), IpAddr::from([10, 0, 1, 0]));
        assert_eq!(plus(IpAddr::from([255, 255, 255, 255]), 1), IpAddr::from([255, 255, 255, 255]));
        assert_eq!(to_number(IpAddr::from([0, 0, 1, 0])), 256);
    }
}
