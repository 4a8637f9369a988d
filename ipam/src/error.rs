//! Everything that can go wrong here. The texts people search for are host-local's, word for word.

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;

use crate::{Holder, Reason};

/// An error of this crate. The `set` of a variant is the index of the range set in the effective configuration:
/// runtime ranges first, then the single range, then `ranges`.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration names no range at all.
    #[error("no IP ranges specified")]
    NoRanges,
    /// A range set without a range.
    #[error("invalid range set {set}: empty range set")]
    EmptySet {
        /// The range set.
        set: usize,
    },
    /// IPv4 and IPv6 in one range set, which stands for one address.
    #[error("invalid range set {set}: mixed address families")]
    MixedFamilies {
        /// The range set.
        set: usize,
    },
    /// Two ranges of one set share addresses.
    #[error("invalid range set {set}: subnets {first} and {second} overlap")]
    RangesOverlap {
        /// The range set.
        set: usize,
        /// The earlier range, `START-END`.
        first: String,
        /// The later range, `START-END`.
        second: String,
    },
    /// Two range sets share addresses.
    #[error("range set {first} overlaps with {second}")]
    SetsOverlap {
        /// The earlier range set.
        first: usize,
        /// The later range set.
        second: usize,
    },
    /// A range without `subnet`.
    #[error("invalid range set {set}: IP <nil> not v4 nor v6: a range has no subnet")]
    NoSubnet {
        /// The range set.
        set: usize,
    },
    /// A network with fewer than two addresses to give out (/31, /32, /127, /128).
    #[error("invalid range set {set}: Network {network} too small to allocate from")]
    TooSmall {
        /// The range set.
        set: usize,
        /// The network as it was written.
        network: String,
    },
    /// An IPv4 network written in IPv6 form.
    #[error("invalid range set {set}: IPNet IP and Mask version mismatch")]
    FamilyMismatch {
        /// The range set.
        set: usize,
    },
    /// A subnet that is not a network address.
    #[error(
        "invalid range set {set}: Network has host bits set. \
         For a subnet mask of length {prefix} the network address is {network}"
    )]
    HostBits {
        /// The range set.
        set: usize,
        /// The prefix length in bits.
        prefix: u8,
        /// The network address that was probably meant.
        network: IpAddr,
    },
    /// `rangeStart` outside its subnet, or after `rangeEnd`.
    #[error("invalid range set {set}: RangeStart {address} not in network {subnet}")]
    StartOutside {
        /// The range set.
        set: usize,
        /// The address as configured.
        address: IpAddr,
        /// The subnet.
        subnet: IpNet,
    },
    /// `rangeEnd` outside its subnet, or before the default start.
    #[error("invalid range set {set}: RangeEnd {address} not in network {subnet}")]
    EndOutside {
        /// The range set.
        set: usize,
        /// The address as configured.
        address: IpAddr,
        /// The subnet.
        subnet: IpNet,
    },
    /// A range that leaves nothing to give out.
    #[error(
        "invalid range set {set}: nothing is left to give out of {range}: all of it is excluded, the gateway, \
         or another node's part"
    )]
    NothingToGive {
        /// The range set.
        set: usize,
        /// The range, `START-END`.
        range: String,
    },
    /// An entry of `exclude` that is not a network address.
    #[error("{place}: {text} has host bits set: the network is {network}")]
    ExcludeHostBits {
        /// Where it was written.
        place: String,
        /// What was written.
        text: String,
        /// The network that was probably meant.
        network: IpNet,
    },
    /// An entry of `exclude` that excludes nothing.
    #[error("{place}: {text} lies outside of every range, so it excludes nothing: correct it or leave it out")]
    ExcludeOutside {
        /// Where it was written.
        place: String,
        /// What was written.
        text: String,
    },
    /// Ranges for all nodes beside ranges by node.
    #[error("\"rangesByNode\" takes the place of \"ranges\" and of \"subnet\": give one of them")]
    RangesTwice,
    /// An entry of `rangesByNode` that cannot be used.
    #[error("rangesByNode[{index}]: {problem}")]
    NodeEntry {
        /// The entry.
        index: usize,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The ranges of an entry of `rangesByNode` are wrong.
    #[error("rangesByNode[{index}]: {cause}")]
    NodeRanges {
        /// The entry.
        index: usize,
        /// What is wrong with them.
        cause: Box<Error>,
    },
    /// No entry of `rangesByNode` is for this node.
    #[error(
        "rangesByNode has no entry for the node {name:?} with {labels}; there are entries for {wanted}: \
         add one, or correct the node's name or labels"
    )]
    NoEntry {
        /// The node's name.
        name: String,
        /// The node's labels, for people.
        labels: String,
        /// What the entries want, for people.
        wanted: String,
    },
    /// `sliceByNode` without a pod range of the node.
    #[error("sliceByNode: the node's own pod range is not known")]
    NoSlice,
    /// The node's pod range and the network it is a part of do not fit together.
    #[error("the node's pod range {range:?} of the pod network {network:?}: {problem}")]
    PodRange {
        /// The network of all nodes, as it was written.
        network: String,
        /// The node's own range, as it was written.
        range: String,
        /// What is wrong with them.
        problem: &'static str,
    },
    /// A range with fewer addresses than there may be nodes.
    #[error(
        "invalid range set {set}: sliceByNode: {subnet} cannot be divided among 2^{bits} nodes: use a larger network"
    )]
    SliceTooSmall {
        /// The range set.
        set: usize,
        /// The range's subnet.
        subnet: IpNet,
        /// The number of parts, as a power of two.
        bits: u8,
    },
    /// A text that is no IP address.
    #[error("{place}: invalid IP address: {text}")]
    BadAddress {
        /// Where it was written.
        place: String,
        /// What was written.
        text: String,
    },
    /// An address that is asked for is none.
    #[error("{place}: invalid IP address {text}")]
    BadRequest {
        /// Where it was written.
        place: String,
        /// What was written.
        text: String,
    },
    /// A text that is no `ADDRESS/PREFIX`.
    #[error("{place}: invalid CIDR address: {text}")]
    BadCidr {
        /// Where it was written.
        place: String,
        /// What was written.
        text: String,
    },
    /// `static`: an address of the configuration without a prefix length.
    #[error("addresses[{index}]: the 'address' field is expected to be in CIDR notation, got: '{text}'")]
    StaticAddress {
        /// The entry of `addresses`.
        index: usize,
        /// What was written.
        text: String,
    },
    /// `static`: an address of `CNI_ARGS` without a prefix length.
    #[error("the 'ip' field is expected to be in CIDR notation, got: '{text}'")]
    StaticEnvironment {
        /// What was written.
        text: String,
    },
    /// `static`: a requested address (`args.cni.ips`, `runtimeConfig.ips`) without a prefix length.
    #[error("an entry in the 'ips' field is NOT in CIDR notation, got: '{text}'")]
    StaticRequested {
        /// What was written.
        text: String,
    },
    /// `static`: a gateway of `CNI_ARGS` that is no address.
    #[error("invalid gateway address: {text}")]
    StaticGateway {
        /// What was written.
        text: String,
    },
    /// A network name that cannot name a directory.
    #[error(
        "network name {name:?} cannot name a pool: it must be letters, digits, '_', '.' or '-' and start with a letter or digit"
    )]
    NetworkName {
        /// The name.
        name: String,
    },
    /// `dataDir` is relative: it would depend on the directory the runtime happens to run in.
    #[error("dataDir {path:?} is not an absolute path")]
    DataDir {
        /// The path.
        path: PathBuf,
    },
    /// A container ID or interface name that cannot stand in a lease file.
    #[error("container {container:?}, interface {interface:?}: cannot own an address")]
    Owner {
        /// The container ID.
        container: String,
        /// The interface name.
        interface: String,
    },
    /// A requested address is the gateway of its range.
    #[error("failed to allocate for range {set}: requested ip {address} is subnet's gateway")]
    RequestedGateway {
        /// The range set.
        set: usize,
        /// The address.
        address: IpAddr,
    },
    /// A requested address is excluded.
    #[error(
        "failed to allocate for range {set}: requested ip {address} is excluded by the configuration (\"exclude\")"
    )]
    RequestedExcluded {
        /// The range set.
        set: usize,
        /// The address.
        address: IpAddr,
    },
    /// A requested address is held already.
    #[error(
        "failed to allocate for range {set}: requested IP address {address} is not available in range set {ranges}"
    )]
    Taken {
        /// The range set.
        set: usize,
        /// The address.
        address: IpAddr,
        /// The ranges of the set.
        ranges: String,
        /// The container that holds it, where the lease file says so.
        holder: Option<String>,
    },
    /// The owner has an address of this set already.
    #[error(
        "failed to allocate for range {set}: {address} has been allocated to {container}, \
         duplicate allocation is not allowed"
    )]
    Duplicate {
        /// The range set.
        set: usize,
        /// The address it has.
        address: IpAddr,
        /// The owner's container ID.
        container: String,
    },
    /// No address is left.
    #[error("failed to allocate for range {set}: no IP addresses available in range set: {ranges}{}", waiting(.withheld.as_ref()))]
    Exhausted {
        /// The range set.
        set: usize,
        /// The ranges of the set.
        ranges: String,
        /// How many of its addresses nobody has but are withheld, and how long the first of them still is.
        withheld: Option<(usize, Duration)>,
    },
    /// A requested address is withheld.
    #[error("failed to allocate for range {set}: requested IP address {address} is withheld for another {} s: {reason}", .left.as_secs())]
    Withheld {
        /// The range set.
        set: usize,
        /// The address.
        address: IpAddr,
        /// How long it still is.
        left: Duration,
        /// Why.
        reason: Reason,
    },
    /// Addresses of several pools are asked for under one lock.
    #[error("addresses of {} and of {} are asked for at once: each pool has its own lock", .one.display(), .other.display())]
    SeveralPools {
        /// The directory of the first request.
        one: PathBuf,
        /// Another one's.
        other: PathBuf,
    },
    /// Requested addresses that no range set could serve, or two for one set.
    #[error("failed to allocate all requested IPs: {}", spaced(.addresses))]
    Unserved {
        /// The addresses left over, in the order of the request.
        addresses: Vec<IpAddr>,
    },
    /// The pool's lock was not to be had in time.
    #[error("waited {waited:?} for the lock of the address pool, {}, held by {}", .path.display(), named(.holder.as_ref()))]
    LockTimeout {
        /// The lock file.
        path: PathBuf,
        /// How long it was waited for.
        waited: Duration,
        /// Who holds it, where the kernel says so.
        holder: Option<Holder>,
    },
    /// A file operation failed.
    #[error("{step} {}: {source}", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What was being done, to be read before the path: "open".
        step: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// After a failure, an address reserved a moment before could not be given back; its owner still holds it.
    #[error("{cause}; then {address} could not be given back, remove {}: {source}", .path.display())]
    NotGivenBack {
        /// The address that is still held.
        address: IpAddr,
        /// Its file.
        path: PathBuf,
        /// What failed first.
        cause: Box<Error>,
        /// Why it could not be removed.
        source: io::Error,
    },
}

impl Error {
    /// Wraps a kernel answer with what was being done to which file.
    pub(crate) fn io(step: &'static str, path: &Path, source: impl Into<io::Error>) -> Error {
        Error::Io { path: path.to_owned(), step, source: source.into() }
    }

    /// Whether others hold what is wanted: all addresses there are, or the one that was asked for. If they are dead, and
    /// what they hold is given back, the same request may succeed.
    #[must_use]
    pub fn lacks_address(&self) -> bool {
        matches!(self, Self::Exhausted { .. } | Self::Taken { .. })
    }
}

fn spaced(addresses: &[IpAddr]) -> String {
    addresses.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(" ")
}

fn waiting(withheld: Option<&(usize, Duration)>) -> String {
    withheld.map_or_else(String::new, |(count, next)| match count {
        1 => format!("; 1 address is withheld, until {} s from now", next.as_secs()),
        _ => format!("; {count} addresses are withheld, the next until {} s from now", next.as_secs()),
    })
}

fn named(holder: Option<&Holder>) -> String {
    holder.map_or_else(|| "a process that cannot be told".to_owned(), Holder::to_string)
}
