//! The default route of a pod on a VF, with that of Flannel in place: kernel, result, status and CHECK.

use serde_json::{Value, json};

use crate::{
    harness::{FLANNELS_DEFAULTS, assert_check_sees_changes, assert_defaults, assert_no_network, defaults, ip_in},
    node::{Node, sriov},
};

const RESOURCE: &str = "bed.test/vf";

/// Flannel with both families, and two networks of VFs with both.
fn node() -> Node {
    let node = Node::with_flannel();
    for number in [1, 2] {
        node.network(&format!("vf-{number}"), RESOURCE, &network(number, &[]));
    }
    node
}

fn network(number: u8, routes: &[&str]) -> Value {
    let routes: Vec<Value> = routes.iter().map(|dst| json!({"dst": dst})).collect();
    sriov(&json!({"ipam": {"type": "host-local", "routes": routes,
        "ranges": [[{"subnet": format!("10.21.{number}.0/24")}], [{"subnet": format!("fd00:21:{number}::/64")}]]}}))
}

/// A pod `p` that asks for these networks.
fn pod(node: &Node, networks: &Value) -> String {
    node.pod("p", &networks.to_string(), &[(RESOURCE, &node.a[0]), (RESOURCE, &node.a[1])])
}

#[test]
fn the_default_routes_go_to_the_vfs_that_the_pod_names() {
    let node = node();
    let of_eth0 = FLANNELS_DEFAULTS;
    let (v4, v6) = ("net1 10.21.1.254", "net1 fd00:21:1::fe");
    let element = |number: u8, gateways: &[&str]| json!({"name": format!("vf-{number}"), "default-route": gateways});
    for (networks, expected) in [
        (json!([element(1, &["10.21.1.254"])]), [v4, of_eth0[1]]),
        (json!([element(1, &["fd00:21:1::fe"])]), [of_eth0[0], v6]),
        (json!([element(1, &["10.21.1.254", "fd00:21:1::fe"]), {"name": "vf-2"}]), [v4, v6]),
        (json!([element(1, &["fd00:21:1::fe"]), element(2, &["10.21.2.254"])]), ["net2 10.21.2.254", v6]),
        (json!([element(1, &[])]), of_eth0),
    ] {
        let netns = pod(&node, &networks);
        let result = node.add("p", &netns);
        assert_defaults(&node.world, &netns, &result, expected);
        node.call("CHECK", "p", &netns).ok();
        if expected == ["net2 10.21.2.254", v6] {
            let title = |link: &str| format!("default/vf-{} as {link}", &link[3..]);
            assert_check_sees_changes(&|| node.call("CHECK", "p", &netns), &netns, &title, expected);
        }
        node.del("p", &netns);
        if expected == of_eth0 {
            assert_no_network(&netns);
        }
        node.world.assert_clean();
    }
    node.assert_as_before();
}

/// As the example of sriov-cni's README has it: the network's own IPAM gives a default route, while Flannel's is there.
#[test]
fn a_default_route_of_the_networks_own_stands_beside_flannels_unless_the_pod_chooses() {
    let node = node();
    node.network("vf-1", RESOURCE, &network(1, &["0.0.0.0/0", "10.21.1.0/24"]));
    let netns = pod(&node, &json!([{"name": "vf-1"}]));
    let result = node.add("p", &netns);
    assert_eq!(defaults(&netns)[0], ["net1 10.21.1.1", FLANNELS_DEFAULTS[0]], "preferred, as with the CNI plugins");
    assert!(result["routes"].to_string().contains("0.0.0.0/0"), "{result:#}");
    for (interface, gateway) in [("eth0", "10.244.7.1"), ("net1", "10.21.1.1")] {
        assert_eq!(node.status("p", interface)["gateway"][0], gateway);
    }
    node.call("CHECK", "p", &netns).ok();
    node.del("p", &netns);
    node.assert_as_before();

    // The other network is to have it: it is taken from both, and the first one's CHECK does not miss it.
    let netns = pod(&node, &json!([{"name": "vf-1"}, {"name": "vf-2", "default-route": ["10.21.2.1"]}]));
    let result = node.add("p", &netns);
    assert_defaults(&node.world, &netns, &result, ["net2 10.21.2.1", FLANNELS_DEFAULTS[1]]);
    node.call("CHECK", "p", &netns).ok();
    node.del("p", &netns);
    assert_no_network(&netns);
    node.assert_as_before();
}

#[test]
fn a_default_route_that_cannot_be_is_refused_or_undone() {
    let node = node();
    let has = "net1 has 10.21.1.";
    for (networks, says) in [
        (
            json!([{"name": "vf-1", "default-route": ["10.21.1.1", "10.21.1.254"]}]),
            "\"default-route\" has more than one gateway of a family".to_owned(),
        ),
        (
            json!([{"name": "vf-1", "default-route": ["fd00:21:1::1"]}, {"name": "vf-2", "default-route": ["fd00:21:2::1"]}]),
            "default/vf-1 as net1 and default/vf-2 as net2 both ask for the IPv6 default route".to_owned(),
        ),
        (
            json!([{"name": "vf-1", "default-route": ["10.21.2.1"]}]),
            format!("default/vf-1 as net1: default-route 10.21.2.1: {has}"),
        ),
        (
            json!([{"name": "vf-1", "default-route": ["10.21.1.1", "fd00:99::1"]}]),
            format!("default/vf-1 as net1: default-route 10.21.1.1, fd00:99::1: {has}"),
        ),
    ] {
        let netns = pod(&node, &networks);
        let text = node.call("ADD", "p", &netns).fails(7);
        assert!(text.contains(&says), "{text}\nwanted: {says}");
        let left = ip_in(&netns, "route show table all");
        assert!(left.lines().all(|route| route.contains("dev lo")), "{left}");
        node.world.assert_clean();
    }
    node.assert_as_before();
}
