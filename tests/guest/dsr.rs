//! An answer leaves by the VF at which it was asked: with the plugin `sbr` behind `sriov`, and not without it.

use serde_json::json;

use crate::{
    harness::{Wire, assert_no_network, defaults, ip_in, ping},
    node::{Node, sriov},
};

const RESOURCE: &str = "bed.test/vf";

/// A network of VFs with one address and the router's as the gateway.
fn ipam(address: &str, gateway: &str) -> serde_json::Value {
    json!({"type": "static", "addresses": [{"address": address, "gateway": gateway}]})
}

#[test]
fn a_client_behind_a_vf_is_answered_through_it_with_sbr() {
    let node = Node::with_flannel();
    node.world.plugins("reference", &["sbr"]);
    let of_router = json!({"type": "static", "addresses": [{"address": "10.22.1.1/24"}, {"address": "10.22.2.1/24"}]});
    node.network("router", RESOURCE, &sriov(&json!({"ipam": of_router})));
    node.network("plain", RESOURCE, &sriov(&json!({"ipam": ipam("10.22.1.2/24", "10.22.1.1")})));
    let first = sriov(&json!({"ipam": ipam("10.22.2.2/24", "10.22.2.1")}));
    let chain = json!({"cniVersion": "1.0.0", "name": "routed", "plugins": [first, {"type": "sbr"}]});
    node.network("routed", RESOURCE, &chain);
    // A VF of the other port, across the cable.
    let router = node.pod("router", "router", &[(RESOURCE, &node.b[0])]);
    node.add("router", &router);
    let client = node.world.client_behind(&router);
    let netns = node.pod("p", "plain,routed", &[(RESOURCE, &node.a[0]), (RESOURCE, &node.a[1])]);
    node.add("p", &netns);
    assert_eq!(defaults(&netns)[0], ["eth0 10.244.7.1"], "the pod's own way out is the primary's");
    let rules = ip_in(&netns, "-4 rule show");
    assert!(rules.contains("from 10.22.2.2 lookup 100") && !rules.contains("10.22.1.2"), "{rules}");

    let at_node = Wire::tap("cni0", "icmp");
    let on_the_wire = Wire::tap_in(&router, "net1", "icmp");
    assert!(!ping(&client, "10.22.1.2"), "without sbr");
    let asked = on_the_wire.until("192.168.77.2 > 10.22.1.2: ICMP echo request");
    assert!(!asked.contains("10.22.1.2 > 192.168.77.2"), "{asked}");
    at_node.until("10.22.1.2 > 192.168.77.2: ICMP echo reply");
    assert!(ping(&client, "10.22.2.2"), "with sbr");
    let seen = on_the_wire.until("10.22.2.2 > 192.168.77.2: ICMP echo reply");
    assert!(!seen.contains("10.22.1.2 > 192.168.77.2: ICMP echo reply"), "{seen}");
    // Up to a packet that does go there, the node has seen nothing of it.
    assert!(ping(&netns, "10.244.7.1"));
    let seen = at_node.until("> 10.244.7.1: ICMP echo request");
    assert!(!seen.contains("10.22.2.2"), "{seen}");
    drop((at_node, on_the_wire));

    node.call("CHECK", "p", &netns).ok();
    node.del("p", &netns);
    assert_no_network(&netns);
    node.world.delete_netns(&client);
    node.del("router", &router);
    node.assert_as_before();
}
