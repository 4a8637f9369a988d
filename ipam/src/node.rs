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
