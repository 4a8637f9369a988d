//! The same configurations given to host-local itself and to this crate must be judged alike. Random sequences of calls,
//! and both at once on one pool, are tests/host-local's, which runs our binary under that name.
//!
//! `META_CNI_REFERENCE_PLUGINS` names a directory with the reference plugins, `host-local` and `static` among them.

#![allow(clippy::unwrap_used, reason = "tests and their helpers: a panic is a failure")]

mod reference;

use std::fs;
use std::net::IpAddr;

use ipam::{RawIpam, StaticAddresses, StaticRequest};
use reference::{Call, Side, addresses, our_pool, ours, plugin, run, theirs};
use serde_json::{Value, json};

/// The reference's text is the end of ours: ours may say the place first.
#[test]
fn configurations_are_judged_alike() {
    let plugin = plugin("host-local");
    let call = Call { container: "c1".to_owned(), interface: "eth0", ips: Vec::new() };
    let sets = |text: &str| json!({"ranges": serde_json::from_str::<Value>(text).unwrap()});
    let table = [
        json!({}),
        json!({"ranges": []}),
        json!({"ranges": null, "rangeStart": "10.0.0.1"}),
        sets("[[]]"),
        sets(r#"[[{"subnet":"10.0.0.0/24"}],[]]"#),
        sets(r#"[[{"subnet":"10.0.0.1/31"}]]"#),
        sets(r#"[[{"subnet":"10.0.0.1/32"}]]"#),
        sets(r#"[[{"subnet":"fd00::/127"}]]"#),
        sets(r#"[[{"subnet":"fd00::1/128"}]]"#),
        sets(r#"[[{"subnet":"fd00::1/64"}]]"#),
        sets(r#"[[{"subnet":"10.0.0.9/24"}]]"#),
        sets(r#"[[{"subnet":"::ffff:10.0.0.0/120"}]]"#),
        sets(r#"[[{"subnet":"::ffff:10.0.0.0/127"}]]"#),
        sets(r#"[[{"subnet":"10.0.0.0"}]]"#),
        sets(r#"[[{"subnet":"10.0.0.0/33"}]]"#),
        sets(r#"[[{"subnet":"10.0.00.0/24"}]]"#),
        sets(r#"[[{"subnet":""}]]"#),
        sets(r#"[[{"subnet":"10.0.0.0/24","rangeStart":"10.0.1.0"}]]"#),
        sets(r#"[[{"subnet":"10.0.0.0/24","rangeStart":"fd00::1"}]]"#),
        sets(r#"[[{"subnet":"10.0.0.0/24","rangeStart":"10.0.0.9","rangeEnd":"10.0.0.8"}]]"#),
        sets(r#"[[{"subnet":"10.0.0.0/24","rangeStart":"10.0.0.9","rangeEnd":"fd00::8"}]]"#),
        sets(r#"[[{"subnet":"10.0.0.0/24","rangeEnd":"10.0.0.0"}]]"#),
        sets(r#"[[{"subnet":"10.0.0.0/24","rangeEnd":"10.0.1.0"}]]"#),
        sets(r#"[[{"subnet":"10.0.0.0/24","rangeEnd":"9.0.0.0"}]]"#),
        sets(r#"[[{"subnet":"10.0.0.0/24","gateway":"10.0.0.01"}]]"#),
        sets(r#"[[{"subnet":"10.0.0.0/24","gateway":""}]]"#),
        sets(r#"[[{"subnet":"10.0.0.0/24","gateway":"fd00::1"}]]"#),
        sets(r#"[[{"subnet":"10.0.0.0/24"},{"subnet":"fd00::/64"}]]"#),
        sets(r#"[[{"subnet":"10.0.0.0/24"},{"subnet":"10.0.0.128/25"}]]"#),
        sets(r#"[[{"subnet":"10.0.0.0/24","rangeEnd":"10.0.0.9"},{"subnet":"10.0.0.0/24","rangeStart":"10.0.0.10"}]]"#),
        sets(r#"[[{"subnet":"10.0.0.0/24"}],[{"subnet":"fd00::/64"}],[{"subnet":"10.0.0.128/25"}]]"#),
        sets(r#"[[{"SUBNET":"10.0.0.0/24","RangeSTART":"10.0.0.8"}]]"#),
        json!({"subnet": "10.0.0.0/24", "routes": [{"dst": "10.0.0.0"}]}),
        json!({"subnet": "10.0.0.0/24", "routes": [{"dst": "10.0.0.0/8", "gw": "10.0.0"}]}),
    ];
    let mut refused = 0;
    for ipam in table {
        let (reference, mine) = (Side::new(&ipam), Side::new(&ipam));
        let (expected, found) = (theirs(&plugin, "ADD", &call, &reference), ours(&call, &mine));
        match (&expected, &found) {
            (Ok(expected), Ok(found)) => assert_eq!(found, expected, "{ipam}"),
            // For a range without a subnet we say more than the reference's `IP <nil> not v4 nor v6`.
            (Err(expected), Err(found)) => {
                refused += 1;
                assert!(found.contains(expected), "{ipam}: {found:?} instead of {expected:?}");
            }
            _ => panic!("{ipam}: {found:?} instead of {expected:?}"),
        }
    }
    assert!(refused > 20, "only {refused} refused");
}

#[test]
fn resolv_conf_and_routes_are_handed_through_alike() {
    let plugin = plugin("host-local");
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("resolv.conf");
    fs::write(
        &path,
        "#x\nnameserver 192.0.2.1 # y\nsearch a.example b.example\ndomain c\noptions ndots:2\nsearch d\nfoo\n",
    )
    .unwrap();
    let route = json!({"dst": "10.1.2.3/8", "gw": "10.0.0.9", "mtu": 1400, "advmss": 1300, "priority": 5, "table": 0, "scope": 253});
    let ipam = json!({"subnet": "10.0.0.0/24", "resolvConf": path, "routes": [route, {"dst": "::ffff:10.0.0.0/104", "mtu": 0}]});
    let side = Side::new(&ipam);
    let call = Call { container: "c1".to_owned(), interface: "eth0", ips: Vec::new() };
    let mut conf = side.ipam.clone();
    conf["dataDir"] = json!(directory.path());
    let expected = run(&plugin, "ADD", &call, &conf).unwrap();
    let pool = our_pool(&side).unwrap();
    assert_eq!(
        serde_json::to_value(ipam::Dns::read(pool.resolv_conf.as_deref().unwrap()).unwrap()).unwrap(),
        expected["dns"]
    );
    let mut routes = serde_json::to_value(&pool.routes).unwrap();
    // A result of 1.0.0 has no key but dst and gw; the others are compared with what was written.
    let first = routes[0].as_object_mut().unwrap();
    for (key, value) in [("mtu", 1400), ("advmss", 1300), ("priority", 5), ("table", 0), ("scope", 253)] {
        let ours = first.get(key).cloned();
        assert_eq!(ours, Some(json!(value)), "{key}");
        if expected["routes"][0].get(key).is_none() {
            first.remove(key);
        }
    }
    assert_eq!(routes, expected["routes"]);
}

#[test]
fn static_gives_the_same_addresses() {
    let plugin = plugin("static");
    let table = [
        (
            json!({"addresses": [{"address": "10.10.0.1/24", "gateway": "10.10.0.254"}, {"address": "3ffe:ffff:0:01ff::1/64"}]}),
            vec![],
        ),
        (json!({"addresses": [{"address": "10.10.0.1/24"}]}), vec!["10.1.0.1/24".to_owned(), "fd00::1/64".to_owned()]),
        (json!({"addresses": [{"address": "nonsense"}]}), vec!["10.1.0.1/24".to_owned()]),
        (json!({"addresses": [{"address": "::ffff:10.0.0.1/120"}]}), vec![]),
        (json!({}), vec![]),
        (json!({"addresses": [{"address": "10.10.0.1"}]}), vec![]),
        (json!({}), vec!["10.10.0.1".to_owned()]),
    ];
    for (ipam, ips) in table {
        let call = Call { container: "c1".to_owned(), interface: "eth0", ips };
        let expected = run(&plugin, "ADD", &call, &ipam).map(|result| addresses(&result));
        let raw: RawIpam = serde_json::from_value(ipam.clone()).unwrap();
        let found = StaticAddresses::new(&raw, &StaticRequest { runtime: &call.ips, ..StaticRequest::default() });
        match (&expected, &found) {
            (Ok(expected), Ok(found)) => {
                let gateway = |gateway: Option<IpAddr>| gateway.map_or_else(String::new, |gateway| gateway.to_string());
                let shown = found.addresses.iter().map(|one| format!("{} via {}", one.address, gateway(one.gateway)));
                assert_eq!(&shown.collect::<Vec<_>>(), expected, "{ipam} {call:?}");
            }
            (Err(expected), Err(found)) => {
                assert!(found.to_string().ends_with(expected), "{found} instead of {expected}")
            }
            _ => panic!("{ipam} {call:?}: {found:?} instead of {expected:?}"),
        }
    }
}
