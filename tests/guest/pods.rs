//! Pods with VFs of two ports and a network of an executed plugin: what they get, whom they reach, and that nothing is
//! left.

use serde_json::{Value, json};

use crate::{
    harness::{Interface, at, ip, ip_in, names, ping},
    node::Node,
};

/// A definition's configuration with addresses of a pool of that name, which several definitions may share.
fn sriov(pool: &str, subnet: &str, more: &Value) -> Value {
    let mut conf = json!({"cniVersion": "1.0.0", "name": pool, "type": "sriov",
                          "ipam": {"type": "host-local", "subnet": subnet}});
    conf.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    conf
}

/// A VLAN on a port, made by the reference plugin.
fn vlan(port: &str) -> Value {
    json!({"cniVersion": "1.0.0", "name": "vlan-c", "type": "vlan", "master": port, "vlanId": 300,
           "ipam": {"type": "host-local", "subnet": "10.13.0.0/24"}})
}

/// Two networks of VFs and two on one VLAN: the kernel has one VLAN device of an id on a link, so the second is on a VF of
/// the other port (between VLAN devices of the two ports themselves, the emulated NIC lets nothing pass).
fn three_networks(node: &Node) {
    node.world.plugins("reference", &["vlan"]);
    node.network("sriov-a", "bed.test/a", &sriov("lan-a", "10.11.0.0/24", &json!({})));
    node.network("sriov-b", "bed.test/b", &sriov("lan-b", "10.12.0.0/24", &json!({"mtu": 1400})));
    node.world.definition("vlan-c", &vlan(&node.a[0].pf));
    node.world.definition("vlan-d", &vlan(&node.b[6].name));
}

/// What network-status says of an interface is what the kernel shows in the sandbox.
fn assert_agrees(status: &Value, netns: &str) {
    let name = status["interface"].as_str().unwrap();
    let found = Interface::find(netns, name).unwrap_or_else(|| panic!("no {name}"));
    assert_eq!(status["mac"], found.mac(), "{name}");
    // The bridge and vlan plugins do not tell the MTU.
    if let Some(mtu) = status["mtu"].as_u64() {
        assert_eq!(mtu, found.mtu(), "{name}");
    }
    let addresses = found.addresses();
    let plain: Vec<&str> = addresses.iter().map(|text| text.split('/').next().unwrap()).collect();
    assert_eq!(status["ips"], json!(plain), "{name}");
    let gateway: Vec<&str> = found.default_gateway().into_iter().collect();
    let told = status["gateway"].as_array().cloned().unwrap_or_default();
    assert_eq!(told, gateway, "default route of {name}");
    assert!(found.link["flags"].as_array().unwrap().contains(&json!("UP")), "{name} is down");
}

#[test]
fn a_pod_with_vfs_of_two_ports_and_a_vlan() {
    let node = Node::new();
    three_networks(&node);
    ip(&format!("link set {} up", node.b[6].name));
    let one =
        node.pod("one", "sriov-a,sriov-b@data0,vlan-c", &[("bed.test/a", &node.a[0]), ("bed.test/b", &node.b[0])]);
    let result = node.add("one", &one);
    // On its second network this one has a VF of the first port, so that the two meet across the ports.
    let two =
        node.pod("two", "sriov-a,sriov-b@data0,vlan-d", &[("bed.test/a", &node.a[1]), ("bed.test/b", &node.a[2])]);
    node.add("two", &two);

    for (pod, netns) in [("one", &one), ("two", &two)] {
        let status = node.world.status(pod).unwrap();
        let third = if pod == "one" { "default/vlan-c" } else { "default/vlan-d" };
        let names: Vec<_> = status.as_array().unwrap().iter().map(|e| (&e["name"], &e["interface"])).collect();
        let expected = [("podnet", "eth0"), ("default/sriov-a", "net1"), ("default/sriov-b", "data0"), (third, "net3")];
        assert_eq!(names, expected.map(|(a, b)| (json!(a), json!(b))).each_ref().map(|(a, b)| (a, b)));
        for entry in status.as_array().unwrap() {
            assert_agrees(entry, netns);
        }
    }
    // The result is that of the primary network, as the runtime shows it to kubelet.
    let eth0 = Interface::find(&one, "eth0").unwrap();
    assert_eq!(at(&result, "/ips/0/address"), &json!(eth0.addresses()[0]));
    assert_eq!(at(&result, "/ips/0/gateway"), &json!(eth0.default_gateway().unwrap()));
    let inside: Vec<&Value> =
        at(&result, "/interfaces").as_array().unwrap().iter().filter(|i| i["sandbox"] == *one).collect();
    assert_eq!(inside.len(), 1);
    assert_eq!((&inside[0]["name"], inside[0]["mac"].as_str()), (&json!("eth0"), Some(eth0.mac())));

    let net1 = Interface::find(&one, "net1").unwrap();
    assert_eq!(net1.link["parentdev"], node.a[0].pci, "the device that kubelet gave for the resource");
    assert_eq!(net1.mac(), node.a[0].mac);
    let data0 = Interface::find(&one, "data0").unwrap();
    assert_eq!((&data0.link["parentdev"], data0.mtu()), (&json!(node.b[0].pci), 1400));
    assert_eq!(node.status("one", "data0")["mtu"], 1400);
    assert!(names(format!("/sys/class/net/{}", node.a[0].name)).is_empty(), "the VF is out of the host");

    for (from, to) in [(&one, "two"), (&two, "one")] {
        for interface in ["eth0", "net1", "data0", "net3"] {
            assert!(ping(from, &node.address(to, interface)), "{to} is not reached on {interface}");
        }
    }
    node.call("CHECK", "one", &one).ok();
    for (pod, netns) in [("one", &one), ("two", &two)] {
        node.del(pod, netns);
        assert_eq!(ip_in(netns, "-o link show").lines().count(), 1, "only lo is left");
    }
    ip(&format!("link set {} down", node.b[6].name));
    node.assert_as_before();
}

#[test]
fn a_vlan_on_one_side_isolates_and_on_both_connects() {
    let node = Node::new();
    node.network("plain", "bed.test/vf", &sriov("lan", "10.11.0.0/24", &json!({})));
    node.network("tagged", "bed.test/vf", &sriov("lan", "10.11.0.0/24", &json!({"vlan": 100})));
    let pods = [("t1", "tagged", &node.a[0]), ("p1", "plain", &node.a[1]), ("t2", "tagged", &node.b[0])];
    let spaces = pods.map(|(pod, network, vf)| {
        let netns = node.pod(pod, network, &[("bed.test/vf", vf)]);
        node.add(pod, &netns);
        netns
    });
    assert!(ping(&spaces[0], &node.address("t2", "net1")), "VLAN 100 on both sides, across the ports");
    assert!(!ping(&spaces[0], &node.address("p1", "net1")), "VLAN 100 on one side, one port");
    assert!(!ping(&spaces[1], &node.address("t2", "net1")), "VLAN 100 on one side, across the ports");
    for ((pod, ..), netns) in pods.iter().zip(&spaces) {
        node.del(pod, netns);
    }
    node.assert_as_before();
}

#[test]
fn cycles_leave_no_lease_no_record_and_no_vf_in_use() {
    let cycles: usize = std::env::var("META_CNI_CYCLES").map_or(10, |text| text.parse().expect("META_CNI_CYCLES"));
    let node = Node::new();
    let more = json!({"vlan": 7, "mac": "02:00:00:00:07:07", "trust": "on"});
    node.network("sriov-a", "bed.test/a", &sriov("lan-a", "10.11.0.0/24", &more));
    node.network("sriov-b", "bed.test/b", &sriov("lan-b", "10.12.0.0/24", &json!({"mtu": 2000})));
    for cycle in 0..cycles {
        // Another VF each time; names are free again when their pod is gone.
        let (a, b) = (&node.a[cycle % 7], &node.b[cycle % 7]);
        let netns = node.pod("p", "sriov-a,sriov-b", &[("bed.test/a", a), ("bed.test/b", b)]);
        node.add("p", &netns);
        assert_eq!(Interface::find(&netns, "net1").unwrap().link["parentdev"], a.pci);
        // Every other one as a runtime does it that deletes the namespace first.
        if cycle % 2 == 0 {
            node.world.delete_netns(&netns);
            node.del("p", "");
        } else {
            node.del("p", &netns);
        }
        node.assert_as_before();
    }
}
