//! The network of a range: what is taken for one, and what a range has where nothing is written.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::Error;
use crate::address::{self, Cidr};

/// host-local's notion of "in the range" while the range is still being judged: a bound not known yet does not count,
/// nor does one of the other family.
pub(crate) fn within(subnet: &IpNet, start: Option<IpAddr>, end: Option<IpAddr>, address: IpAddr) -> bool {
    let number = address::to_number(address);
    let same_family = |bound: &IpAddr| bound.is_ipv4() == address.is_ipv4();
    subnet.contains(&address)
        && start.filter(same_family).is_none_or(|start| number >= address::to_number(start))
        && end.filter(same_family).is_none_or(|end| number <= address::to_number(end))
}

/// The network of a range. One of fewer than four addresses is taken if its bounds are `asked` for: then it is meant.
pub(crate) fn network(set: usize, cidr: Cidr, asked: bool) -> Result<IpNet, Error> {
    let bits = if cidr.address.is_ipv4() { 32 } else { 128 };
    if cidr.prefix > bits - 2 && !asked {
        let network = cidr.canonical().map(|network| network.to_string()).unwrap_or_default();
        return Err(Error::TooSmall { set, network });
    }
    let canonical = cidr.canonical().filter(|_| !cidr.is_mapped()).ok_or(Error::FamilyMismatch { set })?;
    if canonical.addr() != canonical.network() {
        return Err(Error::HostBits { set, prefix: cidr.prefix, network: canonical.network() });
    }
    Ok(canonical)
}

/// Whether a network has one address or two: neither a network nor a broadcast address (RFC 3021, RFC 6164).
pub(crate) fn is_small(subnet: &IpNet) -> bool {
    subnet.prefix_len() > subnet.max_prefix_len() - 2
}

/// What a range has where nothing is written.
pub(crate) struct Defaults {
    pub(crate) start: IpAddr,
    pub(crate) end: IpAddr,
    pub(crate) gateway: Option<IpAddr>,
}

impl Defaults {
    /// host-local's: the gateway and the start are the address after the network address, the end is the one before
    /// the broadcast address; IPv6 has no broadcast. A small network has all its addresses, and one of a single
    /// address no gateway.
    pub(crate) fn of(subnet: &IpNet) -> Defaults {
        let (network, last) = (subnet.network(), subnet.broadcast());
        let second = address::plus(network, 1);
        if is_small(subnet) {
            return Defaults { start: network, end: last, gateway: Some(second).filter(|_| network != last) };
        }
        let end = match last {
            IpAddr::V4(last) => IpAddr::from(u32::from(last).saturating_sub(1).to_be_bytes()),
            IpAddr::V6(_) => last,
        };
        Defaults { start: second, end, gateway: Some(second) }
    }
}

pub(crate) fn cidr(place: &str, key: &str, text: &str) -> Result<Cidr, Error> {
    Cidr::parse(text).ok_or_else(|| Error::BadCidr { place: format!("{place}.{key}"), text: text.to_owned() })
}

/// An address that may be left out; the empty text counts as left out, as in Go.
pub(crate) fn optional(place: &str, key: &str, text: Option<&str>) -> Result<Option<IpAddr>, Error> {
    let Some(text) = text.filter(|text| !text.is_empty()) else { return Ok(None) };
    let parsed = address::parse(text);
    parsed.map(Some).ok_or_else(|| Error::BadAddress { place: format!("{place}.{key}"), text: text.to_owned() })
}
