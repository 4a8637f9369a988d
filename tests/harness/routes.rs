//! The default routes of a pod on a node of two families: what kernel, result and status say, and what CHECK says of changes.

use serde_json::{Value, json};

use super::{Call, World, defaults, ip_in};

/// Those of [`World::flannel_of_two_families`], as [`defaults`] tells them.
pub const FLANNELS_DEFAULTS: [&str; 2] = ["eth0 10.244.7.1", "eth0 fd00:244:0:7::1"];

/// Kernel, result and status of pod `p` agree about the default routes, which are these, IPv4's first.
#[track_caller]
pub fn assert_defaults(world: &World, netns: &str, result: &Value, expected: [&str; 2]) {
    assert_eq!(defaults(netns), expected.map(|way| vec![way.to_owned()]));
    for (dst, way) in [("0.0.0.0/0", expected[0]), ("::/0", expected[1])] {
        let routes = result["routes"].as_array().cloned().unwrap_or_default();
        assert_eq!(routes.iter().any(|route| route["dst"] == dst), way.starts_with("eth0 "), "{dst} in {result:#}");
    }
    let status = world.status("p").expect("network-status");
    for entry in status.as_array().expect("a list") {
        let name = format!("{} ", entry["interface"].as_str().expect("a name"));
        let gateways: Vec<&str> = expected.iter().filter_map(|way| way.strip_prefix(&name)).collect();
        let told = entry["gateway"].as_array().cloned().unwrap_or_default();
        assert_eq!(told.len(), gateways.len(), "{status:#}");
        assert!(gateways.iter().all(|gateway| told.contains(&json!(gateway))), "{status:#}");
        assert_eq!(entry.get("default"), (name == "eth0 ").then_some(&json!(true)), "the primary stays the primary");
    }
}

/// Changes each default route that is not the primary's in several ways and back: CHECK names each, with the attachment
/// that `title` gives for an interface.
pub fn assert_check_sees_changes(
    check: &dyn Fn() -> Call,
    netns: &str,
    title: &dyn Fn(&str) -> String,
    expected: [&str; 2],
) {
    for (at, way) in expected.into_iter().enumerate() {
        let (link, gateway) = way.split_once(' ').expect("a way");
        if link == "eth0" {
            continue;
        }
        let (other, name) = (FLANNELS_DEFAULTS[at].trim_start_matches("eth0 "), ["IPv4", "IPv6"][at]);
        let change = |words: &str| ip_in(netns, &format!("{} route {words}", ["-4", "-6"][at]));
        let says = |found: &str| {
            let text = check().fails(101);
            let wanted =
                format!("{}: {name} default route: wanted via {gateway} on {link}, found {found}", title(link));
            assert!(text.contains(&wanted), "{text}\nwanted: {wanted}");
        };
        change("del default");
        says("none");
        change(&format!("add default via {other} dev eth0"));
        says(&format!("via {other} on eth0"));
        change(&format!("add default via {gateway} dev {link} metric 5"));
        // The kernel tells the better one first: a metric counts from 0 in one family, from 1024 in the other.
        let (own, foreign) = (format!("via {gateway} on {link}"), format!("via {other} on eth0"));
        says(&if at == 0 { format!("{foreign}, {own}") } else { format!("{own}, {foreign}") });
        change(&format!("del default via {other} dev eth0"));
        check().ok();
    }
}

/// Nothing of a network is left in a sandbox: no interface but lo, no route, no rule but the kernel's own.
#[track_caller]
pub fn assert_no_network(netns: &str) {
    assert_eq!(ip_in(netns, "-o link show").lines().count(), 1, "only lo is left");
    for (family, own_rules) in [("-4", 3), ("-6", 2)] {
        let left = ip_in(netns, &format!("{family} route show table all"));
        assert!(left.lines().all(|route| route.contains("dev lo")), "{left}");
        let rules = ip_in(netns, &format!("{family} rule show"));
        // The kernel makes that one with the first VRF, and keeps it.
        let others = rules.lines().filter(|rule| !rule.contains("[l3mdev-table]"));
        assert_eq!(others.count(), own_rules, "{rules}");
    }
}
