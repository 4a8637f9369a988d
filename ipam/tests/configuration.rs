//! What a configuration may say beyond host-local's keys, and the words for what it may not.

#![allow(clippy::unwrap_used, reason = "tests and their helpers: a panic is a failure")]

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use ipam::{Error, Node, Owner, Pool, Prior, RawIpam, RawRange, Request, Slice};
use serde_json::{Value, json};

fn node(name: &str, labels: &[(&str, &str)]) -> Node {
    let labels: BTreeMap<_, _> = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    Node { name: name.to_owned(), labels, slice: None }
}

/// Node number 3 of 256.
fn third() -> Node {
    Node { slice: Some(Slice::new("10.244.0.0/16", "10.244.3.1/24").unwrap()), ..Node::default() }
}

fn pool_on(node: &Node, ipam: &Value) -> Result<Pool, Error> {
    let raw: RawIpam = serde_json::from_value(ipam.clone()).unwrap();
    Pool::new("net-a", &raw, &[], node)
}

fn pool(ipam: &Value) -> Result<Pool, Error> {
    pool_on(&Node::default(), ipam)
}

/// The ranges of a pool, sets apart.
fn ranges(pool: &Pool) -> Vec<String> {
    pool.sets.iter().map(ToString::to_string).collect()
}

/// Everything a pool gives out, each address once, with its gateway: taken until there is nothing left.
fn all_of(node: &Node, mut ipam: Value) -> Vec<String> {
    let data = tempfile::tempdir().unwrap();
    ipam["dataDir"] = json!(data.path());
    let pool = pool_on(node, &ipam).unwrap();
    let mut given = Vec::new();
    loop {
        let owner = Owner::new(&format!("c{}", given.len()), "eth0").unwrap();
        let request =
            Request { owner: &owner, requested: &[], prior: Prior::NoneKnown, lock_wait: Duration::from_secs(9) };
        match pool.reserve(&request) {
            Ok(found) => {
                let gateway = found[0].gateway.map_or_else(|| "none".to_owned(), |gateway| gateway.to_string());
                given.push(format!("{} via {gateway}", found[0].address));
            }
            Err(Error::Exhausted { set: 0, .. }) => return given,
            Err(other) => panic!("{ipam}: {other}"),
        }
        assert!(given.len() < 300, "{ipam}");
    }
}

fn refusal_by_name(mut ipam: Value, address: &str) -> Error {
    let data = tempfile::tempdir().unwrap();
    ipam["dataDir"] = json!(data.path());
    let (pool, owner) = (pool(&ipam).unwrap(), Owner::new("c", "eth0").unwrap());
    let requested: [IpAddr; 1] = [address.parse().unwrap()];
    let lock_wait = Duration::from_secs(9);
    pool.reserve(&Request { owner: &owner, requested: &requested, prior: Prior::NoneKnown, lock_wait }).unwrap_err()
}

#[test]
fn what_is_excluded_is_never_given_out() {
    let alone = Node::default();
    let ipam = json!({"ranges": [[{"subnet": "10.0.0.0/29", "exclude": ["10.0.0.2", "10.0.0.4/31"]}]]});
    assert_eq!(all_of(&alone, ipam.clone()), ["10.0.0.3/29 via 10.0.0.1", "10.0.0.6/29 via 10.0.0.1"]);
    let error = refusal_by_name(ipam, "10.0.0.5");
    assert_eq!(
        error.to_string(),
        "failed to allocate for range 0: requested ip 10.0.0.5 is excluded by the configuration (\"exclude\")"
    );
    assert!(matches!(error, Error::RequestedExcluded { set: 0, .. }));

    // At the level of ipam for all ranges, the single one, too; a block may reach beyond a range.
    let ipam = json!({"subnet": "10.0.0.0/29", "exclude": ["10.0.0.4/30"]});
    assert_eq!(all_of(&alone, ipam), ["10.0.0.2/29 via 10.0.0.1", "10.0.0.3/29 via 10.0.0.1"]);
    let both = json!({"ranges": [[{"subnet": "10.0.0.0/30"}, {"subnet": "10.0.1.0/30", "exclude": ["10.0.1.2"],
        "gateway": "none"}]], "exclude": ["10.0.0.2", "10.0.1.0"]});
    assert_eq!(
        pool(&both).unwrap_err().to_string(),
        "invalid range set 0: nothing is left to give out of 10.0.0.1-10.0.0.2: all of it is excluded, the gateway, \
         or another node's part"
    );
}

#[test]
fn a_huge_block_is_jumped_over() {
    let alone = Node::default();
    let ipam = json!({"ranges": [[{"subnet": "fd00::/64", "rangeEnd": "fd00::8000:0:0:4", "exclude": ["fd00::/65"]}]]});
    let given = all_of(&alone, ipam);
    assert_eq!(given.len(), 5);
    assert_eq!(given[0], "fd00::8000:0:0:0/64 via fd00::1");
    let ends = json!({"ranges": [[
        {"subnet": "::/0", "exclude": ["::/1", "8000::/2", "c000::/3", "f000::/4"], "rangeEnd": "e000::1"},
        {"subnet": "f000::/4", "rangeStart": "ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffe", "exclude": ["ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"]},
    ]]});
    assert!(matches!(pool(&ends).unwrap_err(), Error::ExcludeOutside { .. }), "f000::/4 is beyond the end");
    let ends = json!({"ranges": [[
        {"subnet": "::/0", "exclude": ["::/1", "8000::/2", "c000::/3"], "rangeEnd": "e000::1"},
        {"subnet": "f000::/4", "rangeStart": "ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffe", "exclude": ["ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"]},
    ]]});
    assert_eq!(
        all_of(&alone, ends),
        ["e000::/0 via ::1", "e000::1/0 via ::1", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffe/4 via f000::1"]
    );
}

#[test]
fn an_exclude_without_effect_is_a_mistake() {
    let table = [
        (
            json!({"ranges": [[{"subnet": "10.0.0.0/24"}, {"subnet": "10.0.1.0/24", "exclude": ["10.0.1.4", "10.0.0.4"]}]]}),
            "ranges[0][1].exclude[1]: 10.0.0.4 lies outside of every range",
        ),
        (
            json!({"subnet": "10.0.0.0/24", "ranges": [[{"subnet": "fd00::/64"}]], "exclude": ["10.0.0.9", "fd00:0:0:1::/64"]}),
            "exclude[1]: fd00:0:0:1::/64 lies outside of every range",
        ),
        (
            json!({"subnet": "10.0.0.0/24", "rangeEnd": "10.0.0.9", "exclude": ["10.0.0.10"]}),
            "exclude[0]: 10.0.0.10 lies",
        ),
        (json!({"subnet": "10.0.0.0/24", "exclude": ["10.0.0.10/24"]}), "exclude[0]: 10.0.0.10/24 has host bits set"),
        (json!({"subnet": "10.0.0.0/24", "exclude": ["10.0.0"]}), "exclude[0]: invalid IP address: 10.0.0"),
    ];
    for (ipam, text) in table {
        let found = pool(&ipam).unwrap_err().to_string();
        assert!(found.starts_with(text), "{ipam}: {found}");
    }
    let ipam =
        json!({"subnet": "10.0.0.0/24", "ranges": [[{"subnet": "fd00::/64"}]], "exclude": ["10.0.0.9", "fd00::9"]});
    pool(&ipam).unwrap();
}

#[test]
fn without_a_gateway_its_address_is_given_out() {
    let ipam = json!({"ranges": [[{"subnet": "10.0.0.0/30", "gateway": "none"}]]});
    assert_eq!(all_of(&Node::default(), ipam), ["10.0.0.1/30 via none", "10.0.0.2/30 via none"]);
    let single = json!({"subnet": "10.0.0.0/30", "gateway": "none"});
    assert_eq!(pool(&single).unwrap().sets[0].ranges()[0].gateway(), None);
    let error = pool(&json!({"subnet": "10.0.0.0/30", "gateway": "None"})).unwrap_err();
    assert_eq!(error.to_string(), "ipam.gateway: invalid IP address: None");
}

#[test]
fn small_networks_are_taken_where_their_bounds_are_written() {
    let table = [
        (json!({"subnet": "10.0.0.4/31", "rangeStart": "10.0.0.4"}), vec!["10.0.0.4/31 via 10.0.0.5"]),
        (
            json!({"subnet": "10.0.0.4/31", "rangeStart": "10.0.0.4", "gateway": "none"}),
            vec!["10.0.0.4/31 via none", "10.0.0.5/31 via none"],
        ),
        (
            json!({"subnet": "10.0.0.4/31", "rangeEnd": "10.0.0.5", "gateway": "10.0.0.4"}),
            vec!["10.0.0.5/31 via 10.0.0.4"],
        ),
        (json!({"subnet": "10.0.0.4/32", "rangeStart": "10.0.0.4"}), vec!["10.0.0.4/32 via none"]),
        (
            json!({"subnet": "10.0.0.4/32", "rangeEnd": "10.0.0.4", "gateway": "169.254.1.1"}),
            vec!["10.0.0.4/32 via 169.254.1.1"],
        ),
        (json!({"subnet": "fd00::2/127", "rangeStart": "fd00::2"}), vec!["fd00::2/127 via fd00::3"]),
        (json!({"subnet": "fd00::7/128", "rangeStart": "fd00::7"}), vec!["fd00::7/128 via none"]),
        (json!({"subnet": "255.255.255.255/32", "rangeStart": "255.255.255.255"}), vec!["255.255.255.255/32 via none"]),
    ];
    for (range, expected) in table {
        assert_eq!(all_of(&Node::default(), json!({"ranges": [[range]]})), expected, "{range}");
        assert_eq!(all_of(&Node::default(), range.clone()), expected, "the single range {range}");
    }
    for subnet in ["10.0.0.4/31", "10.0.0.4/32", "fd00::2/127", "fd00::7/128"] {
        let error = pool(&json!({"subnet": subnet, "rangeStart": "", "gateway": "none"})).unwrap_err();
        assert_eq!(error.to_string(), format!("invalid range set 0: Network {subnet} too small to allocate from"));
    }
    let only_the_gateway = json!({"subnet": "10.0.0.4/31", "rangeStart": "10.0.0.5"});
    assert!(
        matches!(pool(&only_the_gateway).unwrap_err(), Error::NothingToGive { set: 0, range } if range == "10.0.0.5-10.0.0.5")
    );
    let host_bits = json!({"subnet": "10.0.0.5/31", "rangeStart": "10.0.0.5"});
    assert!(matches!(pool(&host_bits).unwrap_err(), Error::HostBits { prefix: 31, .. }));
    let outside = json!({"subnet": "10.0.0.4/32", "rangeStart": "10.0.0.5"});
    assert!(matches!(pool(&outside).unwrap_err(), Error::StartOutside { set: 0, .. }));
}

fn by_node() -> Value {
    json!({"rangesByNode": [
        {"node": "edge-?", "labels": {"rack": "r1*"}, "ranges": [[{"subnet": "10.1.0.0/24"}], [{"subnet": "fd01::/64"}]]},
        {"node": "edge-*", "ranges": [[{"subnet": "10.2.0.0/24"}]]},
        {"labels": {"rack": "r2", "zone": "*"}, "ranges": [[{"subnet": "10.3.0.0/24"}]]},
    ]})
}

#[test]
fn the_first_entry_that_is_for_the_node_counts() {
    let table = [
        (node("edge-1", &[("rack", "r17")]), vec!["10.1.0.1-10.1.0.254", "fd01::1-fd01::ffff:ffff:ffff:ffff"]),
        (node("edge-1", &[("rack", "r2"), ("zone", "a")]), vec!["10.2.0.1-10.2.0.254"]),
        (node("edge-10", &[("rack", "r17")]), vec!["10.2.0.1-10.2.0.254"]),
        (node("w1", &[("rack", "r2"), ("zone", "")]), vec!["10.3.0.1-10.3.0.254"]),
    ];
    for (node, expected) in table {
        assert_eq!(ranges(&pool_on(&node, &by_node()).unwrap()), expected, "{node:?}");
    }
}

#[test]
fn a_node_without_an_entry_is_told_what_was_looked_for() {
    let error = pool_on(&node("w1", &[("rack", "r2"), ("x", "y")]), &by_node()).unwrap_err();
    assert!(matches!(&error, Error::NoEntry { name, .. } if name == "w1"));
    assert_eq!(
        error.to_string(),
        "rangesByNode has no entry for the node \"w1\" with the labels rack=r2, x=y; there are entries for \
         nodes \"edge-?\" with labels rack=r1*; nodes \"edge-*\"; labels rack=r2, zone=*: \
         add one, or correct the node's name or labels"
    );
    let error = pool_on(&node("w1", &[]), &json!({"rangesByNode": []})).unwrap_err();
    assert!(error.to_string().contains("\"w1\" with no labels; there are entries for no node"), "{error}");
}

#[test]
fn entries_are_judged_on_every_node() {
    let on_edge = |ipam: Value| pool_on(&node("edge-1", &[]), &ipam).unwrap_err();
    for beside in [json!({"ranges": [[{"subnet": "10.9.0.0/24"}]]}), json!({"subnet": "10.9.0.0/24"})] {
        let mut ipam = by_node();
        ipam.as_object_mut().unwrap().extend(beside.as_object().unwrap().clone());
        assert!(matches!(on_edge(ipam), Error::RangesTwice), "{beside}");
    }
    let fine = json!({"node": "edge-*", "ranges": [[{"subnet": "10.2.0.0/24"}]]});
    let with = |other: Value| json!({"rangesByNode": [fine, other]});
    let error = on_edge(with(json!({"ranges": [[{"subnet": "10.3.0.0/24"}]]})));
    assert!(matches!(error, Error::NodeEntry { index: 1, .. }), "{error}");
    let error = on_edge(with(json!({"node": "w", "ranges": [[{"subnet": "10.3.0.1/24"}]]})));
    assert!(
        matches!(&error, Error::NodeRanges { index: 1, cause } if matches!(**cause, Error::HostBits { .. })),
        "{error}"
    );
    assert!(
        error.to_string().starts_with("rangesByNode[1]: invalid range set 0: Network has host bits set."),
        "{error}"
    );
    let error = on_edge(with(json!({"node": "w"})));
    assert_eq!(error.to_string(), "rangesByNode[1]: no IP ranges specified");

    // What is excluded everywhere may be of another node's range, but of some node's it must be.
    let mut ipam = with(json!({"node": "w", "ranges": [[{"subnet": "10.3.0.0/24"}]]}));
    ipam["exclude"] = json!(["10.3.0.9"]);
    assert!(!pool_on(&node("edge-1", &[]), &ipam).unwrap().sets[0].ranges()[0].excludes("10.3.0.9".parse().unwrap()));
    assert!(pool_on(&node("w", &[]), &ipam).unwrap().sets[0].ranges()[0].excludes("10.3.0.9".parse().unwrap()));
    ipam["exclude"] = json!(["10.4.0.9"]);
    assert!(matches!(on_edge(ipam), Error::ExcludeOutside { text, .. } if text == "10.4.0.9"));
}

#[test]
fn keys_of_entries_are_known_and_others_are_named() {
    let raw: RawIpam = serde_json::from_str(
        r#"{"RANGESBYNODE":[{"NODE":"*","ranges":[[{"subnet":"10.0.0.0/24","exlude":[]}]],"label":{}}],"sliceByNodes":true}"#,
    )
    .unwrap();
    assert_eq!(raw.unknown_keys(), ["sliceByNodes", "rangesByNode[0].label", "rangesByNode[0].ranges[0][0].exlude"]);
    assert!(raw.depends_on_name() && raw.asks_for_name() && !raw.asks_for_labels() && !raw.depends_on_slice());
}

#[test]
fn each_node_gives_out_its_own_part() {
    let slice = |range: Value| json!({"sliceByNode": true, "ranges": [[range]]});
    let of = |range: Value| ranges(&pool_on(&third(), &slice(range)).unwrap());
    assert_eq!(of(json!({"subnet": "10.0.0.0/16"})), ["10.0.3.0-10.0.3.255"]);
    assert_eq!(
        of(json!({"subnet": "10.0.0.0/20", "rangeStart": "10.0.0.50", "rangeEnd": "10.0.0.60"})),
        ["10.0.0.50-10.0.0.60"]
    );
    assert_eq!(of(json!({"subnet": "fd00::/64"})), ["fd00::300:0:0:0-fd00::3ff:ffff:ffff:ffff"]);
    let given = all_of(&third(), slice(json!({"subnet": "10.0.0.0/22", "exclude": ["10.0.0.13", "10.0.3.0/24"]})));
    let expected = ["10.0.0.12/22 via 10.0.0.1", "10.0.0.14/22 via 10.0.0.1", "10.0.0.15/22 via 10.0.0.1"];
    assert_eq!(given, expected, "mask and gateway stay the subnet's, excludes of others' parts are no mistake");
    let given = all_of(&third(), slice(json!({"subnet": "10.0.0.0/22", "gateway": "10.0.0.12"})));
    assert_eq!(given[0], "10.0.0.13/22 via 10.0.0.12", "the gateway is in this part");

    let refused = |range: Value| pool_on(&third(), &slice(range)).unwrap_err();
    assert!(matches!(refused(json!({"subnet": "10.0.0.0/25"})), Error::SliceTooSmall { set: 0, bits: 8, .. }));
    for range in [
        json!({"subnet": "10.0.0.0/16", "rangeEnd": "10.0.2.255"}),
        json!({"subnet": "10.0.0.0/24", "gateway": "10.0.0.3"}),
        json!({"subnet": "10.0.0.0/16", "exclude": ["10.0.3.0/24"]}),
    ] {
        assert!(matches!(refused(range.clone()), Error::NothingToGive { set: 0, .. }), "{range}");
    }
    assert!(matches!(pool(&slice(json!({"subnet": "10.0.0.0/16"}))).unwrap_err(), Error::NoSlice));
    let overlap = json!({"sliceByNode": true, "ranges": [[{"subnet": "10.0.0.0/16"}], [{"subnet": "10.0.4.0/24"}]]});
    let error = pool_on(&third(), &overlap).unwrap_err();
    assert!(matches!(error, Error::SetsOverlap { .. }), "another node's part would overlap: {error}");
}

/// All nodes together give out what the range has, each address once.
#[test]
fn the_parts_of_all_nodes_are_the_range() {
    let ipam = json!({"sliceByNode": true, "ranges": [[{"subnet": "10.0.0.0/26", "exclude": ["10.0.0.40/31"]}]]});
    let mut given = Vec::new();
    for number in 0..8 {
        let slice = Slice::new("10.244.0.0/21", &format!("10.244.{number}.0/24")).unwrap();
        given.extend(all_of(&Node { slice: Some(slice), ..Node::default() }, ipam.clone()));
    }
    let expected: Vec<String> =
        (2..63).filter(|host| ![40, 41].contains(host)).map(|host| format!("10.0.0.{host}/26 via 10.0.0.1")).collect();
    assert_eq!(given, expected);
}

#[test]
fn ranges_from_the_runtime_are_for_this_node_already() {
    let raw: RawIpam = serde_json::from_value(json!({"sliceByNode": true, "rangesByNode":
        [{"node": "*", "ranges": [[{"subnet": "10.0.0.0/16"}]]}]}))
    .unwrap();
    let extra: Vec<Vec<RawRange>> = serde_json::from_value(json!([[{"subnet": "10.9.0.0/24"}]])).unwrap();
    let node = Node { name: "w".to_owned(), ..third() };
    assert_eq!(
        ranges(&Pool::new("net-a", &raw, &extra, &node).unwrap()),
        ["10.9.0.1-10.9.0.254", "10.0.3.0-10.0.3.255"]
    );
}

#[test]
fn the_other_keys_are_handed_on() {
    let plain = pool(&json!({"subnet": "10.0.0.0/24"})).unwrap();
    assert_eq!((plain.cool_down, plain.conflict_probe), (Duration::ZERO, false));
    let set = pool(&json!({"subnet": "10.0.0.0/24", "coolDownSeconds": 90, "conflictProbe": true})).unwrap();
    assert_eq!((set.cool_down, set.conflict_probe), (Duration::from_secs(90), true));
    let error = serde_json::from_str::<RawIpam>(r#"{"coolDownSeconds": -1}"#).unwrap_err();
    assert!(error.to_string().contains("invalid value: integer `-1`"), "{error}");
}
