//! deploy/examples, those with VFs: each file as it is lies in the directory of manifests, and its pods get what it says.

use serde_json::json;

use crate::{
    harness::{Interface, ip_in, ping},
    kinds::Vfio,
    node::Node,
};

const PORT_A: &str = "example.com/port-a";
const PORT_B: &str = "example.com/port-b";

/// The pods of the demo, whose networks span both ports.
#[test]
fn the_example_of_two_ports() {
    let node = Node::new();
    node.world.manifest("definitions", include_str!("../../deploy/examples/definitions.yaml"));
    node.world.manifest("pods", include_str!("../../deploy/examples/pods.yaml"));
    node.give("alice", &[(PORT_A, &node.a[0].pci), (PORT_B, &node.b[0].pci)]);
    node.give("bob", &[(PORT_A, &node.b[1].pci), (PORT_B, &node.a[1].pci)]);
    let (alice, bob) = (node.world.netns(), node.world.netns());
    node.add("alice", &alice);
    node.add("bob", &bob);
    assert_eq!(
        (node.address("alice", "net1"), node.address("bob", "net1")),
        ("192.0.2.10".into(), "192.0.2.11".into())
    );
    for interface in ["eth0", "net1", "data0"] {
        assert!(ping(&alice, &node.address("bob", interface)), "alice reaches bob on {interface}");
    }
    let row = node.b[0].row();
    assert_eq!(
        (&row["vlan_list"][0]["vlan"], &row["trust"], &row["rate"]["max_tx"]),
        (&json!(100), &json!(true), &json!(500)),
        "{row:#}"
    );
    let data0 = Interface::find(&alice, "data0").unwrap();
    assert_eq!(data0.mtu(), 1400);
    assert!(ip_in(&alice, "route show 203.0.113.0/24").contains("via 198.51.100.1 dev data0"));
    node.call("CHECK", "alice", &alice).ok();
    node.del("alice", &alice);
    node.del("bob", &bob);
    node.assert_as_before();
}

#[test]
fn the_example_of_a_vfs_settings() {
    let node = Node::new();
    node.world.manifest("example", include_str!("../../deploy/examples/sriov-settings.yaml"));
    node.give("tenant", &[(PORT_A, &node.a[2].pci)]);
    let netns = node.world.netns();
    node.add("tenant", &netns);
    let row = node.a[2].row();
    let vlan = &row["vlan_list"][0];
    assert_eq!((&vlan["vlan"], &vlan["qos"], &row["rate"]["max_tx"]), (&json!(200), &json!(5), &json!(200)), "{row:#}");
    assert_eq!((&row["trust"], &row["spoofchk"]), (&json!(true), &json!(true)), "{row:#}");
    let data0 = Interface::find(&netns, "data0").unwrap();
    assert_eq!((data0.mac(), data0.addresses()), ("02:00:00:00:72:01", vec!["10.72.0.42/24".to_owned()]));
    node.call("CHECK", "tenant", &netns).ok();
    node.del("tenant", &netns);
    node.assert_as_before();
}

#[test]
fn the_example_of_a_vf_for_dpdk() {
    let mut node = Node::new();
    let vf = node.a[3].clone();
    let _bound = Vfio::bind(&vf);
    node.look_again();
    node.world.manifest("example", include_str!("../../deploy/examples/sriov-dpdk.yaml"));
    node.give("forwarder", &[("example.com/port-a-vfio", &vf.pci)]);
    let netns = node.world.netns();
    node.add("forwarder", &netns);
    let row = vf.row();
    assert_eq!(
        (&row["vlan_list"][0]["vlan"], &row["address"], &row["trust"], &row["spoofchk"]),
        (&json!(300), &json!("02:00:00:00:73:01"), &json!(true), &json!(false)),
        "{row:#}"
    );
    // The link that stands for it.
    let net1 = Interface::find(&netns, "net1").unwrap();
    assert_eq!((&net1.link["linkinfo"]["info_kind"], &net1.link["ifalias"]), (&json!("dummy"), &json!(vf.pci)));
    assert_eq!((net1.mac(), net1.addresses()), ("02:00:00:00:73:01", vec!["10.73.0.2/24".to_owned()]));
    assert_eq!(node.status("forwarder", "net1")["device-info"]["pci"]["pci-address"], vf.pci);
    node.call("CHECK", "forwarder", &netns).ok();
    node.del("forwarder", &netns);
    node.assert_as_before();
}
