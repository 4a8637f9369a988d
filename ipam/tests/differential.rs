//! The same operations on host-local itself and on this crate must leave the same files and give the same answers;
//! and both at once on one pool must never give one address twice.
//!
//! `META_CNI_REFERENCE_PLUGINS` names a directory with the reference plugins, `host-local` and `static` among them.

#![allow(clippy::unwrap_used, reason = "tests and their helpers: a panic is a failure")]

mod reference;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::IpAddr;

use ipam::{RawIpam, StaticAddresses, StaticRequest};
use reference::{Answer, Call, Side, addresses, our_pool, ours, plugin, run, theirs};
use serde_json::{Value, json};

/// xorshift, so that a failure can be seen again.
struct Random(u32);

impl Random {
    fn below(&mut self, limit: u32) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 17;
        self.0 ^= self.0 << 5;
        self.0 % limit
    }

    fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(u32::try_from(of.len()).unwrap()) as usize]
    }
}

fn random_call(random: &mut Random, wanted: &[&[&str]]) -> Call {
    let mut ips = Vec::new();
    for choices in wanted {
        if random.below(4) == 0 {
            ips.push((*random.pick(choices)).to_owned());
        }
    }
    Call { container: format!("c{}", random.below(9)), interface: ["eth0", "net1"][random.below(2) as usize], ips }
}

/// Applies random calls to both sides and compares answers and files after each.
fn same_on_both(seed: u32, ipam: &Value, wanted: &[&[&str]]) {
    let plugin = plugin("host-local");
    let (reference, mine) = (Side::new(ipam), Side::new(ipam));
    let mut random = Random(seed);
    let (mut served, mut refused) = (0, 0);
    for round in 0..150 {
        if random.below(20) == 0 {
            let name = *random.pick(wanted[0]);
            if !name.contains('/') && !reference.directory().join(name).exists() {
                // A lease as older versions of host-local wrote it.
                reference.plant(name, " c3\n");
                mine.plant(name, " c3\n");
            }
        }
        let call = random_call(&mut random, wanted);
        let verb = if random.below(5) < 3 { "ADD" } else { "DEL" };
        let before = reference.files();
        let (expected, found) = (theirs(&plugin, verb, &call, &reference), ours(verb, &call, &mine));
        let context = format!("seed {seed}, round {round}: {verb} {call:?} on {ipam}, {before:?}");
        assert_eq!(found, expected, "{context}");
        match &expected {
            Ok(_) => served += 1,
            Err(_) => {
                refused += 1;
                assert_eq!(mine.files(), before, "a refusal changes nothing; {context}");
                // host-local's does: it moves the round on, and drops the owner's earlier reservation.
                reference.restore(&before);
            }
        }
        assert_eq!(mine.files(), reference.files(), "{context}");
    }
    assert!(served > 20 && refused > 5, "seed {seed}: {served} served and {refused} refused say little");
}

#[test]
fn one_small_range() {
    let ipam = json!({"subnet": "10.0.0.0/29", "routes": [{"dst": "0.0.0.0/0"}]});
    same_on_both(11, &ipam, &[&["10.0.0.1", "10.0.0.3", "10.0.0.6/29", "::ffff:10.0.0.5", "10.0.0.7"]]);
}

#[test]
fn two_sets_of_several_ranges() {
    let ipam = json!({"ranges": [
        [{"subnet": "10.0.0.0/30"}, {"subnet": "10.1.0.0/24", "rangeStart": "10.1.0.0", "rangeEnd": "10.1.0.4"},
         {"subnet": "10.2.0.0/24", "rangeStart": "10.2.0.250", "rangeEnd": "10.2.0.255", "gateway": "10.2.0.252"}],
        [{"subnet": "2001:db8:0:1::/64", "rangeEnd": "2001:db8:0:1::9"}],
    ]});
    let wanted: [&[&str]; 2] = [
        &["10.1.0.0", "10.2.0.255", "10.2.0.252", "10.9.9.9"],
        &["2001:db8:0:1::5", "2001:DB8:0:1:0:0:0:9", "2001:db8:0:1::1"],
    ];
    for seed in [21, 22] {
        same_on_both(seed, &ipam, &wanted);
    }
}

#[test]
fn the_single_range_comes_before_the_others() {
    let ipam = json!({"subnet": "10.0.0.0/24", "rangeStart": "10.0.0.16", "rangeEnd": "10.0.0.20", "gateway": "10.0.0.18",
        "ranges": [[{"subnet": "fd00::/126"}], [{"subnet": "10.5.0.0/29"}]]});
    same_on_both(31, &ipam, &[&["10.0.0.17", "10.0.0.18", "10.0.0.15"], &["fd00::2", "fd00::"], &["10.5.0.6"]]);
}

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
        let (expected, found) = (theirs(&plugin, "ADD", &call, &reference), ours("ADD", &call, &mine));
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

/// IPv6 has many ways to be written and one to be named.
#[test]
fn files_are_named_alike() {
    let plugin = plugin("host-local");
    let set = |number: u32| json!([{"subnet": format!("2001:db8:{number:x}::/48")}]);
    let ipam = json!({"ranges": (1..=24).map(set).collect::<Vec<_>>()});
    let mut random = Random(41);
    for round in 0..8 {
        let (reference, mine) = (Side::new(&ipam), Side::new(&ipam));
        let mut ips = Vec::new();
        for number in 1..=24 {
            // Groups that are often zero make every shape of compression.
            let groups = (0..5).map(|_| if random.below(2) == 0 { 0 } else { random.below(0x1_0000) });
            let mut groups: Vec<String> = groups.map(|group| format!("{group:04X}")).collect();
            if groups.iter().all(|group| group == "0000") {
                // The network's own address is not in the range.
                groups[4] = "000a".to_owned();
            }
            ips.push(format!("2001:0db8:{number:x}:{}", groups.join(":")));
        }
        let call = Call { container: "c1".to_owned(), interface: "eth0", ips };
        let found = ours("ADD", &call, &mine);
        assert_eq!(found, theirs(&plugin, "ADD", &call, &reference), "round {round}: {call:?}");
        assert_eq!(found.map(|addresses| addresses.len()), Ok(24), "round {round}: {call:?}");
        assert_eq!(mine.files(), reference.files(), "round {round}: {call:?}");
        assert_eq!(mine.files().len(), 48);
    }
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

/// 64 workers on one pool of 253 addresses, every second one a process of the reference plugin, 5 calls each.
#[test]
fn both_at_once_never_give_one_address_twice() {
    let plugin = plugin("host-local");
    let side = Side::new(&json!({"subnet": "10.0.0.0/24"}));
    let work = |worker: usize| {
        let mut answers = Vec::new();
        for index in 0..5 {
            let call = Call { container: format!("c{worker}-{index}"), interface: "eth0", ips: Vec::new() };
            let add = |call: &Call| {
                if worker.is_multiple_of(2) { ours("ADD", call, &side) } else { theirs(&plugin, "ADD", call, &side) }
            };
            answers.push((call.container.clone(), add(&call)));
        }
        answers
    };
    let answers: Vec<(String, Answer)> = std::thread::scope(|scope| {
        let work = &work;
        let workers: Vec<_> = (0..64).map(|worker| scope.spawn(move || work(worker))).collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
    });
    let mut holders = BTreeMap::new();
    for (container, answer) in &answers {
        match answer {
            Ok(found) => {
                let address = found[0].split('/').next().unwrap().to_owned();
                assert_eq!(holders.insert(address, format!("{container}\r\neth0")), None, "{found:?} was given twice");
            }
            Err(text) => assert_eq!(
                text,
                "failed to allocate for range 0: no IP addresses available in range set: 10.0.0.1-10.0.0.254"
            ),
        }
    }
    assert_eq!(holders.len(), 253);
    let mut files = side.files();
    files.remove("last_reserved_ip.0").unwrap();
    assert_eq!(files, holders, "each file names whom the address was given to");

    // Each gives back what the other one gave.
    for (index, (container, _)) in answers.iter().enumerate() {
        let call = Call { container: container.clone(), interface: "eth0", ips: Vec::new() };
        let answer =
            if (index / 5) % 2 == 1 { ours("DEL", &call, &side) } else { theirs(&plugin, "DEL", &call, &side) };
        assert_eq!(answer, Ok(Vec::new()));
    }
    assert_eq!(side.files().into_keys().collect::<BTreeSet<_>>(), BTreeSet::from(["last_reserved_ip.0".to_owned()]));
}
