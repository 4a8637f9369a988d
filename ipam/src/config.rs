//! The `ipam` object as it is written, read the way Go reads it: keys in any case, null means absent, the last of two
//! equal keys wins. Nothing is judged here; what no one knows is kept by name so that the caller can warn.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};

use crate::Dns;

/// Declares a struct that mirrors one JSON object. serde's derive cannot match keys regardless of case, which Go's
/// decoder does and which definitions found in the field rely on.
macro_rules! raw_object {
    ($(#[$meta:meta])* $name:ident { $($(#[$doc:meta])* $key:literal => $field:ident: $kind:ty,)+ }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Default, PartialEq)]
        pub struct $name {
            $($(#[$doc])* pub $field: Option<$kind>,)+
            /// Keys that were written and that nobody knows, as they were written.
            pub unknown: Vec<String>,
        }

        impl $name {
            /// The keys this object is made of.
            pub fn known_keys() -> &'static [&'static str] {
                &[$($key),+]
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Fields;
                impl<'de> Visitor<'de> for Fields {
                    type Value = $name;

                    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                        write!(out, "an object with {}", $name::known_keys().join(", "))
                    }

                    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<$name, M::Error> {
                        let mut object = $name::default();
                        while let Some(key) = map.next_key::<String>()? {
                            $(if key.eq_ignore_ascii_case($key) {
                                if let Some(value) = map.next_value()? {
                                    object.$field = Some(value);
                                }
                                continue;
                            })+
                            map.next_value::<IgnoredAny>()?;
                            object.unknown.push(key);
                        }
                        Ok(object)
                    }
                }
                deserializer.deserialize_map(Fields)
            }
        }
    };
}

raw_object! {
    /// One range of host-local: `{subnet, rangeStart, rangeEnd, gateway}`, and what is left out of it.
    RawRange {
        /// The network, `ADDRESS/PREFIX` without host bits.
        "subnet" => subnet: String,
        /// The first address given out; by default the one after the network address.
        "rangeStart" => range_start: String,
        /// The last address given out; by default the one before the broadcast address, for IPv6 the last one.
        "rangeEnd" => range_end: String,
        /// The gateway, never given out; by default the address after the network address. `none`: there is none.
        "gateway" => gateway: String,
        /// Addresses and networks that are never given out.
        "exclude" => exclude: Vec<String>,
    }
}

raw_object! {
    /// The ranges of some nodes, in `rangesByNode`.
    RawNodeRanges {
        /// A pattern the node's name must match: `*` is any text, `?` any one character.
        "node" => node: String,
        /// Patterns that the values of these labels of the node must match.
        "labels" => labels: BTreeMap<String, String>,
        /// The range sets of these nodes.
        "ranges" => ranges: Vec<Vec<RawRange>>,
    }
}

raw_object! {
    /// One route, with the keys of CNI 1.1.
    RawRoute {
        /// The destination, `ADDRESS/PREFIX`.
        "dst" => dst: String,
        /// The next hop.
        "gw" => gw: String,
        /// The route's MTU in bytes.
        "mtu" => mtu: u32,
        /// The maximal segment size to advertise, in bytes.
        "advmss" => advmss: u32,
        /// The metric; lower is preferred.
        "priority" => priority: u32,
        /// The routing table.
        "table" => table: u32,
        /// The scope (0 universe, 253 link, 254 host).
        "scope" => scope: u8,
    }
}

raw_object! {
    /// One address of the `static` plugin.
    RawAddress {
        /// The address, `ADDRESS/PREFIX`.
        "address" => address: String,
        /// The gateway reached over this address.
        "gateway" => gateway: String,
    }
}

raw_object! {
    /// The whole `ipam` object, of host-local and of `static`.
    RawIpam {
        /// Which plugin is meant; the caller has acted on it already.
        "type" => kind: String,
        /// A single range as older configurations write it; becomes range set 0.
        "subnet" => subnet: String,
        /// First address of the single range.
        "rangeStart" => range_start: String,
        /// Last address of the single range.
        "rangeEnd" => range_end: String,
        /// Gateway of the single range.
        "gateway" => gateway: String,
        /// Range sets: one address is given out of each.
        "ranges" => ranges: Vec<Vec<RawRange>>,
        /// In place of `ranges`: range sets of their own for nodes; the first entry that matches counts.
        "rangesByNode" => ranges_by_node: Vec<RawNodeRanges>,
        /// Each node gives out a part of its own of every range.
        "sliceByNode" => slice_by_node: bool,
        /// Addresses and networks that are never given out, whatever the range.
        "exclude" => exclude: Vec<String>,
        /// So long an address that was given back is not given out again.
        "coolDownSeconds" => cool_down_seconds: u64,
        /// Whether the network is asked if an address is in use before it is used.
        "conflictProbe" => conflict_probe: bool,
        /// Routes, handed through.
        "routes" => routes: Vec<RawRoute>,
        /// Where the pools are kept; by default [`crate::DEFAULT_DATA_DIR`].
        "dataDir" => data_dir: String,
        /// A resolv.conf whose content becomes the result's DNS.
        "resolvConf" => resolv_conf: String,
        /// `static`: the addresses.
        "addresses" => addresses: Vec<RawAddress>,
        /// `static`: DNS, handed through.
        "dns" => dns: Dns,
    }
}

impl RawIpam {
    /// Every key nobody knows, with its place: `ranges[0][1].gatewya`.
    pub fn unknown_keys(&self) -> Vec<String> {
        let mut unknown = self.unknown.clone();
        unknown.extend(unknown_of_ranges("ranges", self.ranges.as_deref()));
        for (index, entry) in self.ranges_by_node.iter().flatten().enumerate() {
            let place = format!("rangesByNode[{index}]");
            unknown.extend(entry.unknown.iter().map(|key| format!("{place}.{key}")));
            unknown.extend(unknown_of_ranges(&format!("{place}.ranges"), entry.ranges.as_deref()));
        }
        for (index, route) in self.routes.iter().flatten().enumerate() {
            unknown.extend(route.unknown.iter().map(|key| format!("routes[{index}].{key}")));
        }
        for (index, address) in self.addresses.iter().flatten().enumerate() {
            unknown.extend(address.unknown.iter().map(|key| format!("addresses[{index}].{key}")));
        }
        unknown
    }

    /// Keys host-local knows and silently drops: a start, end or gateway of the single range without its `subnet`.
    pub fn ineffective_keys(&self) -> Vec<&'static str> {
        if self.legacy_range().is_some() {
            return Vec::new();
        }
        let single = [("rangeStart", &self.range_start), ("rangeEnd", &self.range_end), ("gateway", &self.gateway)];
        single.into_iter().filter(|(_, value)| value.is_some()).map(|(key, _)| key).collect()
    }

    /// Whether the pool depends on the node's name or labels: [`crate::Node::name`], [`crate::Node::labels`].
    pub fn depends_on_name(&self) -> bool {
        self.ranges_by_node.is_some()
    }

    /// Whether an entry of `rangesByNode` looks at the node's name.
    pub fn asks_for_name(&self) -> bool {
        self.ranges_by_node.iter().flatten().any(|entry| entry.node.is_some())
    }

    /// Whether an entry of `rangesByNode` looks at the node's labels.
    pub fn asks_for_labels(&self) -> bool {
        self.ranges_by_node.iter().flatten().any(|entry| entry.labels.as_ref().is_some_and(|labels| !labels.is_empty()))
    }

    /// Whether the pool depends on the node's own pod range: [`crate::Node::slice`].
    pub fn depends_on_slice(&self) -> bool {
        self.slice_by_node == Some(true)
    }

    /// The single range written beside `ranges`, if there is one.
    pub(crate) fn legacy_range(&self) -> Option<RawRange> {
        let subnet = self.subnet.clone()?;
        Some(RawRange {
            subnet: Some(subnet),
            range_start: self.range_start.clone(),
            range_end: self.range_end.clone(),
            gateway: self.gateway.clone(),
            exclude: None,
            unknown: Vec::new(),
        })
    }
}

fn unknown_of_ranges(place: &str, sets: Option<&[Vec<RawRange>]>) -> Vec<String> {
    let mut unknown = Vec::new();
    for (set, ranges) in sets.into_iter().flatten().enumerate() {
        for (index, range) in ranges.iter().enumerate() {
            unknown.extend(range.unknown.iter().map(|key| format!("{place}[{set}][{index}].{key}")));
        }
    }
    unknown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_match_in_any_case_and_the_last_one_wins() {
        let raw: RawIpam = serde_json::from_str(
            r#"{"Type":"host-local","SUBNET":"10.0.0.0/24","rangestart":"10.0.0.5","RangeStart":"10.0.0.6","gateway":null}"#,
        )
        .unwrap();
        assert_eq!(raw.kind.as_deref(), Some("host-local"));
        assert_eq!(raw.subnet.as_deref(), Some("10.0.0.0/24"));
        assert_eq!(raw.range_start.as_deref(), Some("10.0.0.6"));
        assert_eq!(raw.gateway, None);
        assert_eq!(raw.unknown_keys(), Vec::<String>::new());
    }

    #[test]
    fn unknown_keys_are_named_with_their_place() {
        let raw: RawIpam = serde_json::from_str(
            r#"{"rnages":[],"ranges":[[{"subnet":"10.0.0.0/24"},{"gatewya":"x"}]],"routes":[{"dst":"::/0","via":{}}],
                "addresses":[{"adress":1}],"resolvconf":"/etc/resolv.conf"}"#,
        )
        .unwrap();
        let expected = ["rnages", "ranges[0][1].gatewya", "routes[0].via", "addresses[0].adress"];
        assert_eq!(raw.unknown_keys(), expected);
        assert_eq!(raw.resolv_conf.as_deref(), Some("/etc/resolv.conf"));
        assert!(RawIpam::known_keys().contains(&"dataDir"));
    }

    #[test]
    fn a_single_range_without_a_subnet_has_no_effect_and_says_so() {
        let raw: RawIpam = serde_json::from_str(r#"{"rangeStart":"10.0.0.5","gateway":"10.0.0.1"}"#).unwrap();
        assert_eq!(raw.ineffective_keys(), ["rangeStart", "gateway"]);
        let raw: RawIpam = serde_json::from_str(r#"{"subnet":"10.0.0.0/24","rangeStart":"10.0.0.5"}"#).unwrap();
        assert_eq!(raw.ineffective_keys(), Vec::<&str>::new());
    }

    #[test]
    fn a_wrong_type_is_an_error_that_names_the_place() {
        let error = serde_json::from_str::<RawIpam>(r#"{"ranges":{"subnet":"10.0.0.0/24"}}"#).unwrap_err();
        assert!(error.to_string().starts_with("invalid type: map, expected a sequence"), "{error}");
    }
}
