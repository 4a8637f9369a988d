//! network-status as its readers take it: whatever a plugin's result looks like, who has which interface and address, which
//! one is the pod's own network, and by which gateways it leads out.

use serde_json::{Value, json};

use super::requests::Node;
use crate::harness::{Interface, World};

/// ADD of the pod, whose networks answer so; gives the status and undoes all.
fn status_of(node: &Node, answers: &[(&str, Value)]) -> Value {
    for (plugin, answer) in answers {
        node.recorder.behave(plugin, "ADD", &format!("echo '{answer}'; exit 0"));
    }
    node.world.call("ADD", "c1", &node.netns, &node.conf).pod("p").ok();
    let status = node.world.status("p").expect("network-status");
    node.world.call("DEL", "c1", &node.netns, &node.conf).pod("p").ok();
    node.world.assert_clean();
    let defaults = status.as_array().unwrap().iter().filter(|entry| entry["default"] == true).count();
    assert_eq!(defaults, 1, "{status:#}");
    status
}

#[test]
fn every_interface_in_the_sandbox_has_an_entry_and_what_has_none_a_short_one() {
    let node = Node::new();
    node.world.pod("p", "x,y@data0,x");
    let dns = json!({"nameservers": ["10.1.0.1"], "domain": "example.org", "search": ["a.example.org"], "options": ["ndots:2"]});
    let primary = json!({
        "cniVersion": "1.0.0", "dns": dns,
        "interfaces": [{"name": "cni0", "mac": "02:00:00:00:00:09"}, {"name": "veth1"},
                       {"name": "eth0", "mac": "02:00:00:00:00:01", "mtu": 1450, "sandbox": node.netns}],
        "ips": [{"interface": 2, "address": "10.1.0.5/24", "gateway": "10.1.0.1"},
                {"interface": 2, "address": "fd00::5/64", "gateway": "fd00::1"},
                {"interface": 0, "address": "10.1.0.1/24"}],
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "10.0.0.0/8", "gw": "10.1.0.9"}, {"dst": "::/0", "gw": "fd00::1"}]
    });
    // Two interfaces, as a bond or a VLAN on a network of its own has them; an address of which it is not said whose.
    let two = json!({
        "cniVersion": "1.0.0",
        "interfaces": [{"name": "net1", "mac": "02:00:00:00:00:02", "sandbox": node.netns}, {"name": "host1"},
                       {"name": "net1.5", "mac": "02:00:00:00:00:03", "mtu": 9000, "sandbox": node.netns}],
        "ips": [{"interface": 0, "address": "10.2.0.5/24"}, {"address": "fd02::5/64"}]
    });
    let status = status_of(&node, &[("first", primary), ("net-x", two), ("net-y", json!({"cniVersion": "1.0.0"}))]);
    let of_x = [
        json!({"name": "default/x", "interface": "net1", "mac": "02:00:00:00:00:02", "ips": ["10.2.0.5"], "dns": {}}),
        json!({"name": "default/x", "interface": "net1.5", "mac": "02:00:00:00:00:03", "mtu": 9000,
               "ips": ["fd02::5"], "dns": {}}),
    ];
    let expected = json!([
        {"name": "main", "interface": "eth0", "mac": "02:00:00:00:00:01", "mtu": 1450, "default": true,
         "ips": ["10.1.0.5", "fd00::5"], "dns": dns, "gateway": ["10.1.0.1", "fd00::1"]},
        of_x[0], of_x[1],
        {"name": "default/y", "interface": "data0", "dns": {}},
        of_x[0], of_x[1],
    ]);
    assert_eq!(status, expected);
}

#[test]
fn results_of_old_versions_and_of_plugins_that_say_little() {
    let node = Node::new();
    node.world.pod("p", "x");
    // No interfaces in the oldest form, and none in the sandbox by one that names its host's end alone.
    for (answer, expected) in [
        (
            json!({"cniVersion": "0.2.0", "ip4": {"ip": "10.2.0.5/24", "gateway": "10.2.0.1"}, "ip6": {"ip": "fd02::5/64"}}),
            json!({"name": "default/x", "interface": "net1", "ips": ["10.2.0.5", "fd02::5"], "dns": {}}),
        ),
        (
            json!({"cniVersion": "0.3.1", "interfaces": [{"name": "cali1", "mac": "ee:ee:ee:ee:ee:ee"}],
                   "ips": [{"version": "4", "address": "10.2.0.5/32"}]}),
            json!({"name": "default/x", "interface": "net1", "ips": ["10.2.0.5"], "dns": {}}),
        ),
        (
            json!({"cniVersion": "1.0.0", "interfaces": [{"name": "net1", "sandbox": node.netns}]}),
            json!({"name": "default/x", "interface": "net1", "dns": {}}),
        ),
        (
            json!({"cniVersion": "1.0.0", "interfaces": [{"name": "net1", "sandbox": node.netns}],
                   "ips": [{"address": "10.2.0.5/24"}, {"address": "10.2.0.6/24"}], "routes": [{"dst": "10.9.0.0/16"}]}),
            json!({"name": "default/x", "interface": "net1", "ips": ["10.2.0.5", "10.2.0.6"], "dns": {}}),
        ),
    ] {
        let status = status_of(&node, &[("net-x", answer.clone())]);
        assert_eq!(
            status,
            json!([{"name": "main", "interface": "eth0", "default": true, "dns": {}}, expected]),
            "{answer}"
        );
    }
}

/// A primary with several interfaces in the pod: the one that leads out is the pod's own, as KubeVirt looks for it.
#[test]
fn of_several_interfaces_of_the_primary_the_one_with_the_gateway_is_the_default() {
    let node = Node::new();
    node.world.pod("p", "");
    let mut primary = json!({
        "cniVersion": "1.0.0",
        "interfaces": [{"name": "eth0", "sandbox": node.netns}, {"name": "udn1", "sandbox": node.netns}],
        "ips": [{"interface": 0, "address": "10.1.0.5/24"},
                {"interface": 1, "address": "10.3.0.5/24", "gateway": "10.3.0.1"}],
        "routes": [{"dst": "0.0.0.0/0", "gw": "10.3.0.1"}]
    });
    let expected = json!([
        {"name": "main", "interface": "eth0", "ips": ["10.1.0.5"], "dns": {}},
        {"name": "main", "interface": "udn1", "ips": ["10.3.0.5"], "dns": {}, "default": true, "gateway": ["10.3.0.1"]},
    ]);
    assert_eq!(status_of(&node, &[("first", primary.clone())]), expected);
    primary["ips"][1].as_object_mut().unwrap().remove("gateway");
    let status = status_of(&node, &[("first", primary)]);
    assert_eq!((&status[0]["default"], &status[1].get("default")), (&json!(true), &None), "none leads out: the first");
}

/// Both families by one network, or each by another one; kernel, result and status agree.
#[test]
fn the_default_routes_of_both_families_go_where_the_pod_wants_them() {
    let world = World::new();
    let conf = world.conf(&world.bridge_primary());
    world.macvlan("net-a", "10.10.1.0/24");
    for (name, v4, v6) in [("net-a", "10.10.1.0/24", "fd00:1::/64"), ("net-b", "10.10.2.0/24", "fd00:2::/64")] {
        world.definition(
            name,
            &json!({"cniVersion": "1.0.0", "type": "macvlan", "master": "uplink",
                    "ipam": {"type": "host-local", "ranges": [[{"subnet": v4}], [{"subnet": v6}]]}}),
        );
    }
    let (v4, v6) = (["10.10.1.254", "10.10.2.254"], ["fd00:1::fe", "fd00:2::fe"]);
    for (networks, of_v4, of_v6) in [
        (json!([{"name": "net-a", "default-route": [v4[0], v6[0]]}, {"name": "net-b"}]), Some(0), Some(0)),
        (
            json!([{"name": "net-a", "default-route": [v4[0]]}, {"name": "net-b", "default-route": [v6[1]]}]),
            Some(0),
            Some(1),
        ),
        (json!([{"name": "net-a"}, {"name": "net-b", "default-route": [v6[1]]}]), None, Some(1)),
        (json!([{"name": "net-a"}, {"name": "net-b", "default-route": []}]), None, None),
    ] {
        world.pod("p", &networks.to_string());
        let netns = world.netns();
        let result = world.call("ADD", "c1", &netns, &conf).pod("p").ok();
        let status = world.status("p").unwrap();
        // The bridge's own is of IPv4 alone.
        let primary = if of_v4.is_none() { vec!["10.88.0.1"] } else { vec![] };
        let wanted = |at: usize| -> Vec<&str> {
            let of = |chosen: Option<usize>, gateway| (chosen == Some(at)).then_some(gateway);
            of(of_v4, v4[at]).into_iter().chain(of(of_v6, v6[at])).collect()
        };
        for (entry, (interface, wanted)) in
            [("eth0", primary.clone()), ("net1", wanted(0)), ("net2", wanted(1))].into_iter().enumerate()
        {
            let found = Interface::find(&netns, interface).unwrap();
            let defaults = found.routes.iter().filter(|route| route["dst"] == "default");
            let gateways: Vec<&str> = defaults.map(|route| route["gateway"].as_str().unwrap()).collect();
            assert_eq!(gateways, wanted, "{interface}, {networks}");
            let told = status[entry].get("gateway").cloned().unwrap_or_else(|| json!([]));
            assert_eq!((&status[entry]["interface"], told), (&json!(interface), json!(wanted)), "{networks}");
            assert_eq!(status[entry].get("default").is_some(), entry == 0, "the primary network stays the primary");
        }
        let routes = result["routes"].as_array().cloned().unwrap_or_default();
        let own: Vec<&Value> = routes.iter().filter(|route| route["dst"] == "0.0.0.0/0").collect();
        assert_eq!(own.len(), primary.len(), "{result:#}");
        world.call("CHECK", "c1", &netns, &conf).pod("p").ok();
        world.call("DEL", "c1", &netns, &conf).pod("p").ok();
        world.assert_clean();
    }
}
