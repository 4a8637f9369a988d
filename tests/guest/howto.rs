//! The pods and definitions of the peers' own quickstarts, as people have them.

use serde_json::json;

use crate::{harness::Interface, node::Node};

#[test]
fn the_pod_of_the_older_sriov_howtos_runs_unchanged() {
    let node = Node::new();
    let resource = "intel.com/intel_sriov_netdevice";
    // Its routes lead everywhere, as the primary's do: both stand side by side, as with the plugin.
    node.network(
        "sriov-net1",
        resource,
        &json!({
            "cniVersion": "0.3.1", "type": "sriov", "name": "sriov-network",
            "ipam": {"type": "host-local", "subnet": "10.56.217.0/24", "routes": [{"dst": "0.0.0.0/0"}],
                     "gateway": "10.56.217.1"}
        }),
    );
    let netns = node.pod("testpod1", "sriov-net1", &[(resource, &node.a[0])]);
    let before = node.add("testpod1", &netns);
    let eth0 = Interface::find(&netns, "eth0").unwrap();
    let net1 = Interface::find(&netns, "net1").unwrap();
    assert_eq!(net1.addresses(), ["10.56.217.2/24"]);
    assert_eq!(net1.mac(), node.a[0].mac);
    let gateways = (eth0.default_gateway(), net1.default_gateway());
    assert_eq!(gateways, (Some("10.88.0.1"), Some("10.56.217.1")), "{before:#}");
    assert_eq!(node.status("testpod1", "net1")["name"], "default/sriov-net1");
    node.call("CHECK", "testpod1", &netns).ok();
    node.del("testpod1", &netns);
    node.assert_as_before();
}
