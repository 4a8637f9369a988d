//! Ranges and range sets, judged as host-local judges them and in the same order, so that the same mistake gets the
//! same words.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::address;
use crate::exclude::{Blocks, Exclude};
use crate::node::{Slice, common};
use crate::subnet::{Defaults, cidr, is_small, network, optional, within};
use crate::{Error, RawRange};

/// A range as it is written, and where: `ranges[0][1]`.
pub(crate) type Placed<'a> = (String, &'a RawRange);

/// The ranges of one set written at `place`.
pub(crate) fn placed<'a>(place: &str, ranges: &'a [RawRange]) -> Vec<Placed<'a>> {
    ranges.iter().enumerate().map(|(index, range)| (format!("{place}[{index}]"), range)).collect()
}

/// What `gateway` says if there is none.
const NO_GATEWAY: &str = "none";

/// A part of a subnet that is given out: `start` to `end` inclusive, without the gateway and what is excluded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IpRange {
    subnet: IpNet,
    start: IpAddr,
    end: IpAddr,
    gateway: Option<IpAddr>,
    excluded: Blocks,
    /// The excluded blocks and the gateway.
    withheld: Blocks,
}

impl IpRange {
    /// The subnet, without host bits.
    pub fn subnet(&self) -> IpNet {
        self.subnet
    }

    /// The first address that may be given out.
    pub fn start(&self) -> IpAddr {
        self.start
    }

    /// The last address that may be given out.
    pub fn end(&self) -> IpAddr {
        self.end
    }

    /// The gateway, if there is one. It need not lie in the subnet and is never given out.
    pub fn gateway(&self) -> Option<IpAddr> {
        self.gateway
    }

    /// Whether the configuration excludes `address`.
    pub fn excludes(&self, address: IpAddr) -> bool {
        address.is_ipv4() == self.start.is_ipv4() && self.excluded.contains(address::to_number(address))
    }

    /// How many addresses it can give out, whoever has them.
    pub fn capacity(&self) -> u128 {
        self.withheld.left_of(address::to_number(self.start), address::to_number(self.end))
    }

    /// Whether `address` is one that it can give out: inside, not the gateway and not excluded.
    pub fn gives(&self, address: IpAddr) -> bool {
        self.contains(address) && !self.withheld.contains(address::to_number(address))
    }

    /// The first address from `address` on that may be given out; `address` is of this range's family.
    pub(crate) fn first_from(&self, address: IpAddr) -> Option<IpAddr> {
        let number = self.withheld.first_outside(address::to_number(address))?;
        (number <= address::to_number(self.end)).then(|| address::of_number(number, self.start))
    }

    /// The first address after `address` that may be given out.
    pub(crate) fn first_after(&self, address: IpAddr) -> Option<IpAddr> {
        let next = address::to_number(address).checked_add(1)?;
        if next > address::to_number(self.end) {
            return None;
        }
        self.first_from(address::of_number(next, self.start))
    }

    /// Whether `address` lies between start and end; the gateway and what is excluded count as inside.
    pub fn contains(&self, address: IpAddr) -> bool {
        within(&self.subnet, Some(self.start), Some(self.end), address)
    }

    /// `address` with the subnet's prefix length, as an interface is given it.
    pub(crate) fn with_prefix(&self, address: IpAddr) -> IpNet {
        // The prefix length is that of a network of the same family, so it cannot be too long.
        IpNet::new(address, self.subnet.prefix_len()).unwrap_or(self.subnet)
    }

    fn overlaps(&self, other: &IpRange) -> bool {
        self.contains(other.start) || self.contains(other.end) || other.contains(self.start) || other.contains(self.end)
    }

    /// Judges one range of range set `set`; `place` is where it is written, for texts that are no address at all.
    /// `everywhere` is excluded from every range.
    fn new(set: usize, place: &str, raw: &RawRange, everywhere: &[Exclude]) -> Result<IpRange, Error> {
        let subnet = raw.subnet.as_deref().map(|text| cidr(place, "subnet", text)).transpose()?;
        let start = optional(place, "rangeStart", raw.range_start.as_deref())?;
        let end = optional(place, "rangeEnd", raw.range_end.as_deref())?;
        let no_gateway = raw.gateway.as_deref() == Some(NO_GATEWAY);
        let gateway = optional(place, "gateway", raw.gateway.as_deref().filter(|_| !no_gateway))?;
        let exclude = Exclude::all(&format!("{place}."), raw.exclude.as_ref())?;

        let asked = start.is_some() || end.is_some();
        let subnet = network(set, subnet.ok_or(Error::NoSubnet { set })?, asked)?;
        let defaults = Defaults::of(&subnet);
        if let Some(address) = start.filter(|address| !within(&subnet, start, end, *address)) {
            return Err(Error::StartOutside { set, address, subnet });
        }
        let start = start.unwrap_or(defaults.start);
        if let Some(address) = end.filter(|address| !within(&subnet, Some(start), end, *address)) {
            return Err(Error::EndOutside { set, address, subnet });
        }
        let end = end.unwrap_or(defaults.end);
        let gateway = gateway.or(defaults.gateway).filter(|_| !no_gateway);
        if let Some(idle) = exclude.iter().find(|exclude| !exclude.touches(start, end)) {
            return Err(idle.outside());
        }
        let everywhere = everywhere.iter().filter(|exclude| exclude.touches(start, end));
        let excluded = Blocks::new(exclude.iter().chain(everywhere).map(Exclude::block).collect());
        let own_gateway = gateway.filter(|gateway| gateway.is_ipv4() == start.is_ipv4());
        let withheld = excluded.with(own_gateway.map(address::to_number));
        let range = IpRange { subnet, start, end, gateway, excluded, withheld };
        // host-local does not mind a range of the gateway alone, until an address is wanted of it.
        match is_small(&subnet) || range.excluded != Blocks::default() {
            true => range.checked(set),
            false => Ok(range),
        }
    }

    /// A node's part of the range.
    fn sliced(mut self, set: usize, slice: Slice) -> Result<IpRange, Error> {
        let part = slice.part(set, &self.subnet)?;
        let Some((start, end)) = common(self.start, self.end, part) else {
            return Err(Error::NothingToGive { set, range: self.to_string() });
        };
        self.start = address::of_number(start, self.subnet.addr());
        self.end = address::of_number(end, self.subnet.addr());
        self.checked(set)
    }

    fn checked(self, set: usize) -> Result<IpRange, Error> {
        match self.first_from(self.start) {
            Some(_) => Ok(self),
            None => Err(Error::NothingToGive { set, range: self.to_string() }),
        }
    }
}

/// `START-END`, as host-local names a range.
impl fmt::Display for IpRange {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}-{}", self.start, self.end)
    }
}

/// Ranges of one family that stand in for one another: one address is given out of the whole set. Never empty, and
/// no two of its ranges overlap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RangeSet {
    ranges: Vec<IpRange>,
}

impl RangeSet {
    /// The ranges, in the order of the configuration.
    pub fn ranges(&self) -> &[IpRange] {
        &self.ranges
    }

    /// The range that contains `address`, if there is one.
    pub fn range_of(&self, address: IpAddr) -> Option<&IpRange> {
        self.ranges.iter().find(|range| range.contains(address))
    }

    /// Whether the set gives out IPv6 addresses.
    pub fn is_ipv6(&self) -> bool {
        self.ranges.iter().any(|range| range.start.is_ipv6())
    }

    fn overlaps(&self, other: &RangeSet) -> bool {
        self.ranges.iter().any(|range| other.ranges.iter().any(|theirs| range.overlaps(theirs)))
    }

    /// A node's part of every range of set `set`.
    pub(crate) fn sliced(self, set: usize, slice: Slice) -> Result<RangeSet, Error> {
        let ranges = self.ranges.into_iter().map(|range| range.sliced(set, slice));
        Ok(RangeSet { ranges: ranges.collect::<Result<_, _>>()? })
    }

    /// Judges range set `set`.
    fn new(set: usize, raw: &[Placed<'_>], everywhere: &[Exclude]) -> Result<RangeSet, Error> {
        let mut ranges = Vec::with_capacity(raw.len());
        for (place, range) in raw {
            let range = IpRange::new(set, place, range, everywhere)?;
            if ranges.first().is_some_and(|first: &IpRange| first.start.is_ipv4() != range.start.is_ipv4()) {
                return Err(Error::MixedFamilies { set });
            }
            ranges.push(range);
        }
        if ranges.is_empty() {
            return Err(Error::EmptySet { set });
        }
        for (index, first) in ranges.iter().enumerate() {
            if let Some(second) = ranges.iter().skip(index + 1).find(|other| first.overlaps(other)) {
                return Err(Error::RangesOverlap { set, first: first.to_string(), second: second.to_string() });
            }
        }
        Ok(RangeSet { ranges })
    }

    /// Judges all range sets of a pool. `everywhere` is excluded from every range.
    pub(crate) fn all(raw: &[Vec<Placed<'_>>], everywhere: &[Exclude]) -> Result<Vec<RangeSet>, Error> {
        if raw.is_empty() {
            return Err(Error::NoRanges);
        }
        let sets = raw.iter().enumerate().map(|(set, ranges)| RangeSet::new(set, ranges, everywhere));
        let sets = sets.collect::<Result<Vec<_>, _>>()?;
        for (first, set) in sets.iter().enumerate() {
            if let Some((second, _)) = sets.iter().enumerate().skip(first + 1).find(|(_, other)| set.overlaps(other)) {
                return Err(Error::SetsOverlap { first, second });
            }
        }
        Ok(sets)
    }
}

/// `START-END,START-END`, as host-local names a range set.
impl fmt::Display for RangeSet {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, range) in self.ranges.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            write!(out, "{comma}{range}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sets(json: &str) -> Result<Vec<RangeSet>, Error> {
        let raw: Vec<Vec<RawRange>> = serde_json::from_str(json).unwrap();
        let placed: Vec<_> =
            raw.iter().enumerate().map(|(set, ranges)| placed(&format!("ranges[{set}]"), ranges)).collect();
        RangeSet::all(&placed, &[])
    }

    fn one(json: &str) -> IpRange {
        sets(&format!("[[{json}]]")).unwrap()[0].ranges()[0].clone()
    }

    fn refusal(json: &str) -> Error {
        sets(json).unwrap_err()
    }

    #[test]
    fn defaults_are_the_first_and_the_last_usable_address() {
        for (subnet, start, end) in [
            ("192.0.2.0/24", "192.0.2.1", "192.0.2.254"),
            ("192.0.2.0/25", "192.0.2.1", "192.0.2.126"),
            ("192.0.2.12/30", "192.0.2.13", "192.0.2.14"),
            ("0.0.0.0/0", "0.0.0.1", "255.255.255.254"),
            ("2001:db8:1::/64", "2001:db8:1::1", "2001:db8:1:0:ffff:ffff:ffff:ffff"),
            ("2001:db8::/126", "2001:db8::1", "2001:db8::3"),
        ] {
            let range = one(&format!(r#"{{"subnet":"{subnet}"}}"#));
            assert_eq!((range.start().to_string(), range.end().to_string()), (start.to_owned(), end.to_owned()));
            assert_eq!(range.gateway().unwrap().to_string(), start, "the gateway of {subnet}");
        }
    }

    #[test]
    fn bounds_may_be_the_network_and_the_broadcast_address_and_the_gateway_anywhere() {
        let range = one(
            r#"{"subnet":"10.0.0.0/24","rangeStart":"10.0.0.0","rangeEnd":"::ffff:10.0.0.255","gateway":"172.16.0.1"}"#,
        );
        assert_eq!(range.to_string(), "10.0.0.0-10.0.0.255");
        assert_eq!(range.gateway().unwrap().to_string(), "172.16.0.1");
        assert!(range.contains("10.0.0.0".parse().unwrap()) && range.contains("10.0.0.255".parse().unwrap()));
    }

    #[test]
    fn mistakes_get_host_locals_words() {
        let table = [
            ("[]", "no IP ranges specified"),
            ("[[]]", "invalid range set 0: empty range set"),
            (r#"[[{"subnet":"10.0.0.0/31"}]]"#, "invalid range set 0: Network 10.0.0.0/31 too small to allocate from"),
            (r#"[[{"subnet":"10.0.0.1/32"}]]"#, "invalid range set 0: Network 10.0.0.1/32 too small to allocate from"),
            (r#"[[{"subnet":"fd00::/127"}]]"#, "invalid range set 0: Network fd00::/127 too small to allocate from"),
            (
                r#"[[{"subnet":"10.0.0.7/24"}]]"#,
                "invalid range set 0: Network has host bits set. For a subnet mask of length 24 the network address is 10.0.0.0",
            ),
            (r#"[[{"subnet":"::ffff:10.0.0.0/120"}]]"#, "invalid range set 0: IPNet IP and Mask version mismatch"),
            (
                r#"[[{"subnet":"10.0.0.0/24","rangeStart":"10.0.1.1"}]]"#,
                "invalid range set 0: RangeStart 10.0.1.1 not in network 10.0.0.0/24",
            ),
            (
                r#"[[{"subnet":"10.0.0.0/24","rangeStart":"10.0.0.9","rangeEnd":"10.0.0.8"}]]"#,
                "invalid range set 0: RangeStart 10.0.0.9 not in network 10.0.0.0/24",
            ),
            (
                r#"[[{"subnet":"10.0.0.0/24","rangeEnd":"10.0.0.0"}]]"#,
                "invalid range set 0: RangeEnd 10.0.0.0 not in network 10.0.0.0/24",
            ),
            (
                r#"[[{"subnet":"10.0.0.0/24","rangeEnd":"fd00::1"}]]"#,
                "invalid range set 0: RangeEnd fd00::1 not in network 10.0.0.0/24",
            ),
            (
                r#"[[{"subnet":"10.0.0.0/24"}],[{"subnet":"10.1.0.0/24"},{"subnet":"fd00::/64"}]]"#,
                "invalid range set 1: mixed address families",
            ),
            (
                r#"[[{"subnet":"10.0.0.0/16"},{"subnet":"10.0.4.0/24"}]]"#,
                "invalid range set 0: subnets 10.0.0.1-10.0.255.254 and 10.0.4.1-10.0.4.254 overlap",
            ),
            (
                r#"[[{"subnet":"10.0.4.0/24"}],[{"subnet":"10.9.0.0/24"}],[{"subnet":"10.0.0.0/16"}]]"#,
                "range set 0 overlaps with 2",
            ),
            (r#"[[{"subnet":"10.0.0.0"}]]"#, "ranges[0][0].subnet: invalid CIDR address: 10.0.0.0"),
            (
                r#"[[{"subnet":"10.0.0.0/24","gateway":"10.0.0.001"}]]"#,
                "ranges[0][0].gateway: invalid IP address: 10.0.0.001",
            ),
            (r#"[[{"gateway":"10.0.0.1"}]]"#, "invalid range set 0: IP <nil> not v4 nor v6: a range has no subnet"),
        ];
        for (json, text) in table {
            assert_eq!(refusal(json).to_string(), text, "{json}");
        }
    }

    #[test]
    fn mistakes_can_be_matched() {
        assert!(matches!(refusal("[[]]"), Error::EmptySet { set: 0 }));
        assert!(matches!(refusal(r#"[[{"subnet":"10.0.0.7/24"}]]"#), Error::HostBits { set: 0, prefix: 24, .. }));
        let overlap = r#"[[{"subnet":"10.0.4.0/24"}],[{"subnet":"10.0.0.0/16"}]]"#;
        assert!(matches!(refusal(overlap), Error::SetsOverlap { first: 0, second: 1 }));
    }

    #[test]
    fn one_subnet_may_be_split_between_sets() {
        let split = r#"[[{"subnet":"10.0.0.0/24","rangeEnd":"10.0.0.99"}],[{"subnet":"10.0.0.0/24","rangeStart":"10.0.0.100"}]]"#;
        assert_eq!(sets(split).unwrap().len(), 2);
    }
}
