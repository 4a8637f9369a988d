//! What is asked of a VF, in the PF's own report: there after ADD, back after DEL, and refused by name where the NIC
//! cannot.

use serde_json::{Value, json};

use crate::{harness::Interface, node::Node};

const MAC: &str = "02:00:00:00:00:42";

/// The VLAN of a VF, as iproute2 prints it: in a list, or nothing for none.
fn vlan_of(row: &Value) -> (u64, u64) {
    let vlan = &row["vlan_list"][0];
    (vlan["vlan"].as_u64().unwrap_or(0), vlan["qos"].as_u64().unwrap_or(0))
}

/// Its limit in Mbps; iproute2 prints none as 0, or not at all.
fn max_rate_of(row: &Value) -> u64 {
    let rate = &row["rate"]["max_tx"];
    rate.as_u64().or(row["tx_rate"].as_u64()).unwrap_or(0)
}

#[test]
fn every_attribute_is_in_the_pfs_report_and_is_back() {
    let node = Node::new();
    let vf = &node.b[2];
    let before = vf.row();
    assert_eq!((vlan_of(&before), max_rate_of(&before)), ((0, 0), 0), "{before}");
    assert_eq!((&before["spoofchk"], &before["trust"]), (&json!(true), &json!(false)), "{before}");
    node.network(
        "all",
        "bed.test/vf",
        &json!({
            "cniVersion": "1.0.0", "type": "sriov", "vlan": 100, "vlanQoS": 3, "vlanProto": "802.1Q", "mac": MAC,
            "spoofchk": "off", "trust": "on", "max_tx_rate": 200, "mtu": 9000
        }),
    );
    let netns = node.pod("p", "all", &[("bed.test/vf", vf)]);
    node.add("p", &netns);
    let row = vf.row();
    assert_eq!(row["address"], MAC, "{row}");
    assert_eq!(vlan_of(&row), (100, 3), "{row}");
    assert_eq!(max_rate_of(&row), 200, "{row}");
    assert_eq!((&row["spoofchk"], &row["trust"]), (&json!(false), &json!(true)), "{row}");
    let net1 = Interface::find(&netns, "net1").unwrap();
    assert_eq!((net1.mac(), net1.mtu()), (MAC, 9000));
    let status = node.status("p", "net1");
    assert_eq!((&status["mac"], &status["mtu"]), (&json!(MAC), &json!(9000)));
    node.call("CHECK", "p", &netns).ok();
    // Somebody sets the address back behind our back: CHECK sees it.
    crate::harness::ip_in(&netns, "link set net1 mtu 1500");
    let text = node.call("CHECK", "p", &netns).fails(101);
    assert!(text.contains("default/all as net1: net1 has MTU 1500, the result says"), "{text}");
    node.del("p", &netns);
    assert_eq!(vf.row(), before);
    node.assert_as_before();
}

#[test]
fn what_the_nic_cannot_do_is_named_and_nothing_is_left() {
    let node = Node::new();
    let vf = &node.a[3];
    let base = json!({"cniVersion": "1.0.0", "type": "sriov", "mac": MAC, "vlan": 5, "spoofchk": "off",
                      "ipam": {"type": "host-local", "subnet": "10.11.0.0/24"}});
    let cases = [
        (json!({"link_state": "enable"}), "link_state enable", "Operation not supported (os error 95)"),
        (json!({"vlanProto": "802.1ad"}), "vlan 5 proto 802.1ad", "Protocol not supported (os error 93)"),
        (json!({"min_tx_rate": 10}), "min_tx_rate 10 max_tx_rate 0", "Invalid argument (os error 22)"),
    ];
    for (more, attribute, errno) in cases {
        let mut conf = base.clone();
        conf.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        node.network("cannot", "bed.test/vf", &conf);
        let netns = node.pod("p", "cannot", &[("bed.test/vf", vf)]);
        let text = node.call("ADD", "p", &netns).fails(101);
        let expected =
            format!("default/cannot as net1: {attribute} of VF {} (VF 3 of PF {}, driver igb): {errno}", vf.pci, vf.pf);
        assert!(text.starts_with(&expected), "{text}\nwanted: {expected}");
        // VF, address and primary: all as before.
        assert!(Interface::find(&netns, "eth0").is_none(), "the primary is left");
        assert!(Interface::find(&netns, "net1").is_none(), "the VF is left");
        assert!(node.world.status("p").is_none());
        node.assert_as_before();
        node.del("p", &netns);
    }
}
