//! Addresses that somebody in the network uses who knows nothing of the pool.

use std::fs;

use serde_json::{Value, json};

use crate::{
    harness::{Interface, Which, Wire, ip, ip_in, names, ping, trace},
    node::{Node, Vf},
};

/// A VF of the other port with addresses that nobody gave it.
struct Stranger<'a> {
    vf: &'a Vf,
    netns: String,
}

impl<'a> Stranger<'a> {
    fn with(node: &'a Node, addresses: &[&str]) -> Self {
        let (vf, netns) = (&node.b[0], node.world.netns());
        ip(&format!("link set {} netns {}", vf.name, netns.trim_start_matches("/run/netns/")));
        ip_in(&netns, &format!("link set {} up", vf.name));
        for address in addresses {
            let nodad = if address.contains(':') { " nodad" } else { "" };
            ip_in(&netns, &format!("address add {address} dev {}{nodad}", vf.name));
        }
        Self { vf, netns }
    }

    fn leave(self, node: &Node) {
        node.world.delete_netns(&self.netns);
        let home = format!("/sys/class/net/{}", self.vf.name);
        assert!(crate::node::eventually(|| fs::exists(&home).unwrap()), "it comes home by itself");
    }
}

/// A network of VFs with these addresses.
fn network(node: &Node, name: &str, ipam: &Value) {
    let capabilities = json!({"ips": true});
    let config = json!({"cniVersion": "1.0.0", "type": "sriov", "capabilities": capabilities, "ipam": ipam});
    node.network(name, "bed.test/vf", &config);
}

fn net1(netns: &str) -> Vec<String> {
    Interface::find(netns, "net1").expect("net1").addresses()
}

/// The addresses of a pool that are held back, and why.
fn withheld(pool: &str) -> Vec<(String, String)> {
    let directory = format!("/var/lib/cni/networks/.meta-cni/{pool}/withheld");
    let reason = |name: &String| {
        let target = fs::read_link(format!("{directory}/{name}")).unwrap();
        // `UNTIL BOOT_ID REASON`.
        target.to_str().unwrap().splitn(3, ' ').nth(2).unwrap_or_default().to_owned()
    };
    names(&directory).into_iter().map(|name| (name.clone(), reason(&name))).collect()
}

#[test]
fn addresses_in_use_are_held_back_and_the_next_ones_taken() {
    let node = Node::new();
    let v4 = json!([{"subnet": "10.11.0.0/24", "rangeStart": "10.11.0.2", "rangeEnd": "10.11.0.5"}]);
    let ranges = json!([v4, [{"subnet": "fd00:11::/64"}]]);
    network(&node, "net-a", &json!({"type": "host-local", "ranges": ranges, "conflictProbe": true}));
    let stranger = Stranger::with(&node, &["10.11.0.2/24", "10.11.0.3/24", "fd00:11::2/64"]);
    let conflict = format!("conflict {}", stranger.vf.mac);

    let p = node.pod("p", "net-a", &[("bed.test/vf", &node.a[0])]);
    node.add("p", &p);
    // The second time fd00:11::3 was nobody's, and was given back with the other one.
    assert_eq!(net1(&p), ["10.11.0.4/24", "fd00:11::4/64"]);
    assert_eq!(node.status("p", "net1")["ips"], json!(["10.11.0.4", "fd00:11::4"]));
    assert_eq!(node.world.leases("net-a"), ["10.11.0.4", "fd00:11::4"]);
    let held = ["10.11.0.2", "10.11.0.3", "fd00:11::2"].map(|address| (address.to_owned(), conflict.clone()));
    assert_eq!(withheld("net-a"), held);
    for address in ["10.11.0.2", "fd00:11::2"] {
        assert!(ping(&p, address), "{address}: they are in one network");
    }

    // Not given out even after the stranger has left: who knows whether it comes back.
    stranger.leave(&node);
    let q = node.pod("q", "net-a", &[("bed.test/vf", &node.a[1])]);
    node.add("q", &q);
    assert_eq!(net1(&q), ["10.11.0.5/24", "fd00:11::5/64"]);
    node.call("CHECK", "p", &p).ok();
    node.del("p", &p);
    let r = node.pod("r", "net-a", &[("bed.test/vf", &node.a[2])]);
    node.add("r", &r);
    assert_eq!(net1(&r), ["10.11.0.4/24", "fd00:11::6/64"], "the round begins anew, without what is held back");
    for (pod, netns) in [("q", &q), ("r", &r)] {
        node.del(pod, netns);
    }
    node.assert_as_before();
}

#[test]
fn an_address_in_use_that_was_asked_for_is_an_error_and_so_are_too_many() {
    let mut node = Node::new();
    for (name, subnet) in [("net-a", "10.11.0.0/24"), ("net-b", "10.12.0.0/24")] {
        network(&node, name, &json!({"type": "host-local", "subnet": subnet, "conflictProbe": true}));
    }
    let addresses = json!([{"address": "10.11.0.40/24"}, {"address": "10.11.0.5/24"}]);
    network(&node, "fixed", &json!({"type": "static", "addresses": addresses, "conflictProbe": true}));
    let taken = ["10.11.0.5/24", "10.12.0.2/24", "10.12.0.3/24", "10.12.0.4/24", "10.12.0.5/24", "10.12.0.6/24"];
    let stranger = Stranger::with(&node, &taken);
    let mac = stranger.vf.mac.clone();
    node.look_again();

    let named = json!([{"name": "net-a", "ips": ["10.11.0.5"]}]).to_string();
    let by_name =
        format!("(10.11.0.5 is {mac}'s); the pod asks for them by name: ask for others, or change those hosts");
    let fixed = format!("(10.11.0.5 is {mac}'s); the configuration asks for them: change it, or those hosts");
    for (networks, name, what) in [(named.as_str(), "net-a", by_name), ("fixed", "fixed", fixed)] {
        let netns = node.pod("p", networks, &[("bed.test/vf", &node.a[0])]);
        let text = node.call("ADD", "p", &netns).fails(11);
        let expected = format!("default/{name} as net1: other hosts in the network use the addresses {what}; ");
        assert_eq!(text, expected);
        assert_eq!(withheld("net-a"), [], "it may be asked for again as soon as it is free");
        node.assert_as_before();
    }

    let netns = node.pod("p", "net-b", &[("bed.test/vf", &node.a[0])]);
    let text = node.call("ADD", "p", &netns).fails(11);
    for address in 2..=6 {
        assert!(text.contains(&format!("10.12.0.{address} is {mac}'s")), "{text}");
    }
    assert!(text.contains("the pool gives them to nobody for an hour: change those hosts, or exclude the addresses"));
    assert_eq!(withheld("net-b").len(), 5);
    node.assert_as_before();
    // What the runtime tries again finds the next one.
    node.add("p", &netns);
    assert_eq!(net1(&netns), ["10.12.0.7/24"]);
    node.del("p", &netns);
    node.assert_as_before();
}

#[test]
fn who_is_not_to_be_asked_is_not_asked() {
    let node = Node::new();
    // The last one tells that all has been seen.
    let pools = [("net-a", 15, false), ("net-b", 16, true), ("net-c", 17, false)];
    for (name, subnet, probe) in pools {
        let (v4, v6) = (format!("10.{subnet}.0.0/24"), format!("fd00:{subnet}::/64"));
        let ranges = json!([[{"subnet": v4}], [{"subnet": v6}]]);
        network(&node, name, &json!({"type": "host-local", "ranges": ranges, "conflictProbe": probe}));
    }
    // The far end of the cable: ARP, neighbour solicitations and advertisements.
    let wire = Wire::tap(&node.b[0].pf, "arp or (icmp6 and (ip6[40] = 135 or ip6[40] = 136))");
    let devices = [0, 1, 2].map(|number| ("bed.test/vf", &node.a[number]));
    let netns = node.pod("p", "net-a,net-b,net-c", &devices);
    node.add("p", &netns);
    let seen =
        [wire.until("who-has 10.17.0.2 tell 10.17.0.2"), wire.until("tgt is fd00:17::2, Flags [override]")].concat();
    for (_, subnet, probe) in pools {
        let (v4, v6) = (format!("who-has 10.{subnet}.0.2 tell 0.0.0.0"), format!("who has fd00:{subnet}::2"));
        let times = if probe { 2 } else { 0 };
        assert_eq!((seen.matches(&v4).count(), seen.matches(&v6).count()), (times, times), "{subnet}: {seen}");
    }
    drop(wire);
    node.del("p", &netns);
    node.assert_as_before();
}

#[test]
fn killed_while_another_address_is_taken_nothing_is_lost() {
    let mut node = Node::new();
    network(&node, "net-a", &json!({"type": "host-local", "subnet": "10.11.0.0/24", "conflictProbe": true}));
    // The stranger's place does not change any more.
    let stranger = Stranger::with(&node, &["10.11.0.2/24"]);
    let conflict = [("10.11.0.2".to_owned(), format!("conflict {}", stranger.vf.mac))];
    node.look_again();
    let netns = node.pod("p", "net-a", &[("bed.test/vf", &node.a[0])]);
    let add = |before| {
        // On a fresh node the points are the same each time.
        for directory in ["/var/lib/cni/meta-cni", "/var/lib/cni/networks", "/var/lib/cni/sriov", "/run/meta-cni"] {
            let _ = fs::remove_dir_all(directory);
        }
        trace(&node.call("ADD", "p", &netns), Which::All, before)
    };
    let whole = add(None);
    assert_eq!(whole.code, Some(0), "{}", whole.stdout);
    node.del("p", &netns);
    let place = |text: &str| whole.points.iter().position(|point| point.about.contains(text)).unwrap();
    let held_back = whole.points.iter().rposition(|point| point.about.contains("withheld/10.11.0.2")).unwrap();
    // From holding the one back to having the other; a lock, a directory and the draft of a file change nothing.
    let mut points: Vec<usize> = (place("/withheld")..=place("/net-a/10.11.0.3") + 1).collect();
    points.retain(|at| {
        let point = &whole.points[*at];
        !["openat", "write", "flock", "mkdir"].contains(&point.call) && !point.about.contains("net-a/.")
    });
    for before in points {
        let point = &whole.points[before];
        println!("probe: killed before {} {}", point.call, point.about);
        // Under the tracer, and on a busy machine, the stranger's answer may come too late.
        let reached = (0..5).any(|_| {
            let traced = add(Some(before));
            let reached = traced.killed && traced.points.last().is_some_and(|last| last.call == point.call);
            if !reached {
                node.del("p", &netns);
            }
            reached
        });
        assert!(reached, "never killed before {point:?}");
        let file = format!("/var/lib/cni/meta-cni/sandboxes/p/{}", node.world.records("p").last().unwrap());
        let record: Value = serde_json::from_slice(&fs::read(file).unwrap()).unwrap();
        let named = record["addresses"]["addresses"].as_array().cloned().unwrap_or_default();
        // A draft is no lease.
        let mut leases = node.world.leases("net-a");
        leases.retain(|name| !name.starts_with('.'));
        assert!(leases.iter().all(|lease| named.contains(&json!(lease))), "{leases:?}, recorded {named:?}");
        // The runtime's DEL, or its ADD once more.
        if before % 2 == 0 {
            node.del("p", &netns);
            node.assert_as_before();
        }
        // The round goes on behind the address in use, whether or not that is held back already.
        node.add("p", &netns);
        assert_ne!(net1(&netns), ["10.11.0.2/24"]);
        assert_eq!(withheld("net-a"), if before > held_back { conflict.as_slice() } else { &[] });
        assert_eq!(node.world.leases("net-a").len(), 1, "one address");
        node.del("p", &netns);
        node.assert_as_before();
    }
}
