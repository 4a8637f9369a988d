//! What of a pool depends on the node: one definition is used on many nodes, and none of them sees another's leases,
//! so each must have addresses of its own.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::address::{Cidr, to_number};
use crate::{Error, RawNodeRanges};

/// The node a pool is on, as far as a configuration asks for it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Node {
    /// Its name, for `rangesByNode`.
    pub name: String,
    /// Its labels, for `rangesByNode`.
    pub labels: BTreeMap<String, String>,
    /// Its place among all nodes, for `sliceByNode`.
    pub slice: Option<Slice>,
}

/// A node's place among all nodes: its own part of the pod network, counted from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slice {
    index: u128,
    /// The number of places, as a power of two.
    bits: u8,
}

impl Slice {
    /// The place of the node whose pods have addresses of `range` (host bits do not count), in a network of all nodes.
    ///
    /// # Errors
    /// [`Error::PodRange`].
    pub fn new(network: &str, range: &str) -> Result<Slice, Error> {
        let wrong = |problem| Error::PodRange { network: network.to_owned(), range: range.to_owned(), problem };
        let parse = |text| Cidr::parse(text).and_then(Cidr::canonical).map(|net| net.trunc());
        let all = parse(network).ok_or_else(|| wrong("the network is no ADDRESS/PREFIX"))?;
        let own = parse(range).ok_or_else(|| wrong("the range is no ADDRESS/PREFIX"))?;
        if !all.contains(&own) {
            return Err(wrong("the range is no part of the network"));
        }
        let bits = own.prefix_len() - all.prefix_len();
        let offset = to_number(own.network()) - to_number(all.network());
        Ok(Slice { index: offset >> host_bits(&own).min(127), bits })
    }

    /// This place's part of a subnet of set `set`: its first and its last address as numbers.
    pub(crate) fn part(self, set: usize, subnet: &IpNet) -> Result<(u128, u128), Error> {
        let too_small = || Error::SliceTooSmall { set, subnet: *subnet, bits: self.bits };
        let left = host_bits(subnet).checked_sub(u32::from(self.bits)).ok_or_else(too_small)?;
        // 128 bits left are the whole of IPv6 for one node alone.
        let size_less_one = 1_u128.checked_shl(left).map_or(u128::MAX, |size| size - 1);
        let first = to_number(subnet.network()) + self.index.checked_shl(left).unwrap_or(0);
        Ok((first, first + size_less_one))
    }
}

fn host_bits(net: &IpNet) -> u32 {
    u32::from(net.max_prefix_len() - net.prefix_len())
}

/// The first entry that is for this node.
pub(crate) fn entry_of(entries: &[RawNodeRanges], node: &Node) -> Result<usize, Error> {
    for (index, entry) in entries.iter().enumerate() {
        if entry.node.is_none() && entry.labels.as_ref().is_none_or(BTreeMap::is_empty) {
            let problem = "says neither \"node\" nor \"labels\": for all nodes write \"node\": \"*\"";
            return Err(Error::NodeEntry { index, problem });
        }
    }
    let is_for = |entry: &RawNodeRanges| {
        entry.node.as_ref().is_none_or(|pattern| matches(pattern, &node.name))
            && entry
                .labels
                .iter()
                .flatten()
                .all(|(key, pattern)| node.labels.get(key).is_some_and(|value| matches(pattern, value)))
    };
    entries.iter().position(is_for).ok_or_else(|| Error::NoEntry {
        name: node.name.clone(),
        labels: match node.labels.is_empty() {
            true => "no labels".to_owned(),
            false => format!("the labels {}", pairs(&node.labels)),
        },
        wanted: match entries.is_empty() {
            true => "no node".to_owned(),
            false => entries.iter().map(wanted).collect::<Vec<_>>().join("; "),
        },
    })
}

/// What an entry is for, for people.
fn wanted(entry: &RawNodeRanges) -> String {
    let node = entry.node.as_ref().map(|pattern| format!("nodes {pattern:?}"));
    let labels = entry.labels.as_ref().map(|labels| format!("labels {}", pairs(labels)));
    node.into_iter().chain(labels).collect::<Vec<_>>().join(" with ")
}

fn pairs(labels: &BTreeMap<String, String>) -> String {
    labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(", ")
}

/// Whether `text` is of the form `pattern`: `*` is any text, `?` any one character. No pattern takes more than
/// (pattern times text) steps.
fn matches(pattern: &str, text: &str) -> bool {
    let (pattern, text): (Vec<char>, Vec<char>) = (pattern.chars().collect(), text.chars().collect());
    let (mut at, mut star) = (0, None);
    let mut next = 0;
    while next < text.len() {
        match pattern.get(at) {
            Some('*') => {
                star = Some((at, next));
                at += 1;
            }
            Some(letter) if *letter == '?' || *letter == text[next] => {
                at += 1;
                next += 1;
            }
            // The last star takes one character more.
            _ => match star.as_mut() {
                Some((place, taken)) => {
                    *taken += 1;
                    at = *place + 1;
                    next = *taken;
                }
                None => return false,
            },
        }
    }
    pattern[at..].iter().all(|letter| *letter == '*')
}

/// The smaller part of `start` to `end` that lies in `first` to `last`, as numbers; `None` if there is none.
pub(crate) fn common(start: IpAddr, end: IpAddr, (first, last): (u128, u128)) -> Option<(u128, u128)> {
    let cut = (to_number(start).max(first), to_number(end).min(last));
    (cut.0 <= cut.1).then_some(cut)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_is_any_text_and_a_question_mark_one_character() {
        for (pattern, text) in [
            ("*", ""),
            ("*", "worker-1"),
            ("worker-*", "worker-"),
            ("w*r-?", "worker-1"),
            ("*-1", "a-1-1"),
            ("*a*b*", "xaxbxabx"),
            ("r?ck", "röck"),
            ("", ""),
            ("a**", "a"),
        ] {
            assert!(matches(pattern, text), "{pattern} {text}");
        }
        for (pattern, text) in [
            ("worker-?", "worker-"),
            ("worker-1", "worker-10"),
            ("", "a"),
            ("*-1", "a-1-2"),
            ("W*", "worker"),
            ("?", ""),
        ] {
            assert!(!matches(pattern, text), "{pattern} {text}");
        }
        // Tried one way after the other this would take longer than the universe is old.
        assert!(!matches(&"*a".repeat(40), &"a".repeat(39).repeat(20).replace('a', "ab")));
    }

    fn part(network: &str, range: &str, subnet: &str) -> String {
        let subnet: IpNet = subnet.parse().unwrap();
        let (first, last) = Slice::new(network, range).unwrap().part(0, &subnet).unwrap();
        let address = |number| crate::address::of_number(number, subnet.addr());
        format!("{}-{}", address(first), address(last))
    }

    #[test]
    fn the_node_has_the_same_place_in_every_subnet() {
        let (all, third) = ("10.244.0.0/16", "10.244.3.1/24");
        for (subnet, expected) in [
            ("10.244.0.0/16", "10.244.3.0-10.244.3.255"),
            ("192.0.0.0/24", "192.0.0.3-192.0.0.3"),
            ("192.0.0.0/20", "192.0.0.48-192.0.0.63"),
            ("fd00::/64", "fd00::300:0:0:0-fd00::3ff:ffff:ffff:ffff"),
        ] {
            assert_eq!(part(all, third, subnet), expected, "{subnet}");
        }
        assert_eq!(part("fd00::/48", "fd00:0:0:ffff::/64", "10.0.0.0/8"), "10.255.255.0-10.255.255.255");
        assert_eq!(part("10.0.0.0/8", "10.1.2.3/8", "0.0.0.0/0"), "0.0.0.0-255.255.255.255", "one node alone");
        assert_eq!(part("::/0", "::/0", "::/0"), "::-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "one node alone");
        assert_eq!(part("::/0", "8000::/1", "::/0"), "8000::-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff");
        assert_eq!(part("::/0", "::7/128", "::/0"), "::7-::7");
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let problem = |network, range| match Slice::new(network, range) {
            Err(Error::PodRange { problem, .. }) => problem,
            other => panic!("{other:?}"),
        };
        assert_eq!(problem("10.0.0.0", "10.0.0.0/24"), "the network is no ADDRESS/PREFIX");
        assert_eq!(problem("10.0.0.0/8", ""), "the range is no ADDRESS/PREFIX");
        for range in ["10.1.0.0/15", "192.0.2.0/24", "fd00::/64"] {
            assert_eq!(problem("10.0.0.0/16", range), "the range is no part of the network", "{range}");
        }
        let subnet: IpNet = "10.0.0.0/25".parse().unwrap();
        let error = Slice::new("10.244.0.0/16", "10.244.3.1/24").unwrap().part(2, &subnet).unwrap_err();
        assert_eq!(
            error.to_string(),
            "invalid range set 2: sliceByNode: 10.0.0.0/25 cannot be divided among 2^8 nodes: use a larger network"
        );
    }
}
