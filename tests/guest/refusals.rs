//! VFs that cannot be had: each case has its own error and code, and leaves nothing. And a node whose VFs are all in use,
//! which is not a sick one.

use serde_json::{Value, json};

use crate::{harness::Interface, node::Node};

/// Resources and device IDs.
type Devices<'a> = &'a [(&'a str, &'a str)];

fn plain() -> Value {
    json!({"cniVersion": "1.0.0", "type": "sriov"})
}

/// ADD fails with this code, and leaves neither the primary nor anything else.
fn refused(node: &Node, pod: &str, netns: &str, code: u64) -> String {
    let text = node.call("ADD", pod, netns).fails(code);
    assert!(Interface::find(netns, "eth0").is_none(), "the primary is left");
    assert_eq!(node.world.records(pod), Vec::<String>::new());
    assert!(node.world.status(pod).is_none(), "a status of a pod that was not attached");
    text
}

#[test]
fn devices_that_cannot_be_used_are_refused_beforehand() {
    let node = Node::new();
    node.network("net-a", "bed.test/vf", &plain());
    node.network("net-b", "bed.test/other", &plain());
    // Whatever is refused here is refused before the primary's plugin is called: it would fail.
    std::fs::write("/run/test/bin/bridge.sh", "#!/bin/sh\nexit 77\n").unwrap();
    let reference = "/run/test/bin/bridge";
    std::fs::remove_file(reference).unwrap();
    std::fs::rename("/run/test/bin/bridge.sh", reference).unwrap();
    std::fs::set_permissions(reference, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();

    let vf = node.a[0].pci.as_str();
    node.network("net-v", "bed.test/vf", &json!({"cniVersion": "1.0.0", "type": "sriov", "vlan": 4095}));
    let cases: [(&str, Devices<'_>, u64, &str); 6] = [
        ("net-v", &[("bed.test/vf", vf)], 7, "vlan id 4095 invalid: value must be in the range 0-4094"),
        ("net-a", &[("bed.test/vf", "0000:01:00.0")], 100, "device 0000:01:00.0 is no virtual function: no physfn"),
        ("net-a", &[("bed.test/vf", "0000:7f:00.0")], 100, "no PCI device 0000:7f:00.0 on this node"),
        ("net-a", &[("bed.test/vf", "not-an-address")], 7, "\"not-an-address\" is not a PCI address"),
        ("net-a", &[], 7, "resource bed.test/vf: 1 device(s) wanted for default/net-a, kubelet gave the pod none"),
        ("net-a,net-b", &[("bed.test/vf", vf), ("bed.test/other", vf)], 7, "is already used by default/net-a as net1"),
    ];
    for (networks, devices, code, expected) in cases {
        let netns = node.pod_with("p", networks, devices);
        let text = refused(&node, "p", &netns, code);
        assert!(text.contains(expected), "{text}\nwanted: {expected}");
        node.assert_as_before();
    }
}

#[test]
fn a_vf_of_another_pod_is_refused_with_its_owner() {
    let node = Node::new();
    node.network("net-a", "bed.test/vf", &plain());
    let vf = &node.a[4];
    let one = node.pod("one", "net-a", &[("bed.test/vf", vf)]);
    node.add("one", &one);
    // Its addresses come and go by themselves here: they are IPv6's own.
    let link = || {
        let mut link = Interface::find(&one, "net1").expect("the owner keeps it").link;
        link.as_object_mut().unwrap().remove("addr_info");
        link
    };
    let before = link();
    let two = node.pod("two", "net-a", &[("bed.test/vf", vf)]);
    let text = refused(&node, "two", &two, 100);
    for part in ["default/net-a as net1", "is already allocated", &vf.pci, "meta:one:eth0:net1", "uid-one", &one] {
        assert!(text.contains(part), "{part} is not in: {text}");
    }
    node.del("two", &two);
    assert_eq!(link(), before, "the owner keeps it as it was");
    node.del("one", &one);
    node.assert_as_before();
    // Now it is free.
    node.add("two", &two);
    node.del("two", &two);
    node.assert_as_before();
}

#[test]
fn an_exhausted_range_leaves_the_vf_alone() {
    let node = Node::new();
    node.network(
        "net-a",
        "bed.test/vf",
        &json!({
            "cniVersion": "1.0.0", "type": "sriov", "vlan": 9,
            "ipam": {"type": "host-local", "subnet": "10.11.0.0/24", "rangeStart": "10.11.0.7", "rangeEnd": "10.11.0.7"}
        }),
    );
    let one = node.pod("one", "net-a", &[("bed.test/vf", &node.a[0])]);
    node.add("one", &one);
    assert_eq!(node.address("one", "net1"), "10.11.0.7");
    let two = node.pod("two", "net-a", &[("bed.test/vf", &node.a[1])]);
    let before = node.a[1].row();
    let text = refused(&node, "two", &two, 102);
    let expected = "default/net-a as net1: failed to allocate for range 0: no IP addresses available in range set: 10.11.0.7-10.11.0.7";
    assert!(text.starts_with(expected), "{text}");
    assert_eq!(node.a[1].row(), before);
    assert_eq!(node.world.leases("net-a"), ["10.11.0.7"]);
    node.del("one", &one);
    node.add("two", &two);
    assert_eq!(node.address("two", "net1"), "10.11.0.7", "it was given back");
    node.del("two", &two);
    node.assert_as_before();
}

#[test]
fn status_is_well_while_all_vfs_are_in_use() {
    let mut node = Node::new();
    node.conf["cniVersion"] = json!("1.1.0");
    let all: Vec<_> = node.a.iter().chain(&node.b).cloned().collect();
    let mut networks = Vec::new();
    for number in 0..all.len() {
        networks.push(format!("n{number}"));
        node.network(&format!("n{number}"), &format!("bed.test/vf{number}"), &plain());
    }
    let resources: Vec<String> = (0..all.len()).map(|number| format!("bed.test/vf{number}")).collect();
    let devices: Vec<_> = resources.iter().map(String::as_str).zip(&all).collect();
    let netns = node.pod("greedy", &networks.join(","), &devices);
    node.add("greedy", &netns);
    let status = node.world.status("greedy").unwrap();
    assert_eq!(status.as_array().unwrap().len(), 15, "the primary and 14 VFs");
    for (number, vf) in all.iter().enumerate() {
        let found = Interface::find(&netns, &format!("net{}", number + 1)).unwrap();
        assert_eq!((&found.link["parentdev"], found.mac()), (&json!(vf.pci), vf.mac.as_str()));
    }
    node.world.call("STATUS", "", "", &node.conf).ok();
    node.del("greedy", &netns);
    node.assert_as_before();
}

/// The move is one message with name and MTU; the kernel stops half way, with the VF in the pod under its own name.
#[test]
fn what_the_move_is_refused_is_named_and_the_vf_is_back() {
    let node = Node::new();
    node.network("net-a", "bed.test/vf", &json!({"cniVersion": "1.0.0", "type": "sriov", "vlan": 5}));
    node.network("net-b", "bed.test/vf", &json!({"cniVersion": "1.0.0", "type": "sriov", "vlan": 5, "mtu": 30000}));
    let vf = &node.a[2];
    let there = |netns: &str, name: &str, peer: &str| {
        let words = format!("link add {name} type veth peer name {peer}");
        crate::harness::ip_in(netns, &words);
    };
    // The name is taken; then the VF's own name too, and the kernel does not move it at all.
    for own_too in [false, true] {
        let netns = node.pod("p", "net-a", &[("bed.test/vf", vf)]);
        there(&netns, "net1", "other");
        if own_too {
            there(&netns, &vf.name, "another");
        }
        let text = refused(&node, "p", &netns, 101);
        let wanted =
            format!("VF {} cannot be named net1: the pod already has an interface of that name (net1, ", vf.pci);
        assert!(text.contains(&wanted), "{text}");
        assert_eq!(Interface::find(&netns, "net1").unwrap().link["linkinfo"]["info_kind"], "veth");
        node.assert_as_before();
    }
    let netns = node.pod("p", "net-b", &[("bed.test/vf", vf)]);
    let text = refused(&node, "p", &netns, 101);
    assert!(text.contains(&format!("mtu 30000 of VF {}", vf.pci)), "{text}");
    assert!(Interface::find(&netns, "net1").is_none() && Interface::find(&netns, &vf.name).is_none());
    node.assert_as_before();
}
