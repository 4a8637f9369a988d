//! What an attachment costs: netlink messages, counted by strace around the real binary.

use std::fs;

use serde_json::{Value, json};

use crate::{
    harness::{Call, Interface, Recorder},
    node::Node,
};

/// Runs a call under strace and gives its netlink requests, of all its threads and children: `TYPE FLAGS`.
fn traced(call: Call, file: &str) -> Vec<String> {
    let words = ["strace", "-f", "-qq", "-X", "raw", "-e", "trace=sendto,sendmsg,sendmmsg,write", "-o", file];
    call.under(&words).ok();
    let text = fs::read_to_string(file).unwrap();
    // One send may carry several messages.
    text.split("nlmsg_type=").skip(1).map(request).collect()
}

/// `0x10, nlmsg_flags=0x5, ...` in words (linux/rtnetlink.h, linux/netlink.h).
fn request(header: &str) -> String {
    let number = |text: &str| {
        let digits = text.split([',', '}']).next().unwrap_or_default().trim_start_matches("0x");
        u32::from_str_radix(digits, 16).unwrap_or_else(|_| panic!("no number: {header}"))
    };
    let flags = number(header.split_once("nlmsg_flags=").expect("flags").1);
    let kind = match number(header) {
        18 => "get link",
        19 => "set link",
        20 => "new address",
        22 => "get addresses",
        24 => "new route",
        26 => "get routes",
        other => return format!("message {other}"),
    };
    assert_eq!(flags & 1, 1, "NLM_F_REQUEST");
    match flags & !1 {
        0 => kind.to_owned(),
        0x4 => format!("{kind}, acknowledged"),
        0x300 => format!("{kind}, all"),
        0x404 => format!("{kind}, beside others, acknowledged"),
        0x604 => format!("{kind}, if there is none, acknowledged"),
        other => format!("{kind}, flags {other:#x}"),
    }
}

/// A primary network whose plugin does nothing, so that every message is ours.
fn quiet_node() -> Node {
    let mut node = Node::new();
    Recorder::install(&node.world.bin, &["silent"]);
    let primary = json!({"cniVersion": "1.0.0", "name": "podnet", "plugins": [{"type": "silent"}]});
    node.conf = node.world.conf(&node.world.primary(&primary));
    node
}

#[test]
fn a_vf_with_vlan_spoofchk_trust_and_one_address_takes_ten_messages() {
    let node = quiet_node();
    node.network(
        "net-a",
        "bed.test/vf",
        &json!({
            "cniVersion": "1.0.0", "type": "sriov", "vlan": 100, "spoofchk": "off", "trust": "on",
            "ipam": {"type": "static", "addresses": [{"address": "10.11.0.7/24"}], "routes": [{"dst": "10.12.0.0/16", "gw": "10.11.0.1"}]}
        }),
    );
    let (base, vf) = (node.world.netns(), node.pod("p", "net-a", &[("bed.test/vf", &node.a[1])]));
    node.world.pod("plain", "");
    let of_base = traced(node.call("ADD", "plain", &base), "/run/test/base");
    assert_eq!(of_base, Vec::<String>::new(), "the primary network alone costs none");

    let add = traced(node.call("ADD", "p", &vf), "/run/test/add");
    println!("ADD: {add:#?}");
    let wanted = [
        ("get link", "the VF in the host"),
        ("get link", "the PF with its VFs"),
        ("set link, acknowledged", "all settings through the PF"),
        ("set link, acknowledged", "move, name and alias"),
        ("set link, acknowledged", "up"),
        ("get link", "the VF in the pod"),
        ("new address, if there is none, acknowledged", ""),
        ("new route, beside others, acknowledged", ""),
        ("get addresses, all", "read back"),
        ("get routes, all", "read back"),
    ];
    assert_eq!(add, wanted.map(|(request, _)| request));
    // The namespace's cookie costs none.
    let lease = fs::read_to_string(format!("/var/lib/cni/meta-cni/vfs/{}.json", node.a[1].pci)).unwrap();
    let lease: Value = serde_json::from_str(&lease).unwrap();
    assert!(lease["netns"]["cookie"].as_u64().is_some(), "{:#}", lease["netns"]);
    let net1 = Interface::find(&vf, "net1").unwrap();
    let alias = format!("meta-cni: default/p net1 of container p; was {} {} mtu 1500", node.a[1].name, node.a[1].mac);
    assert_eq!(net1.link["ifalias"], alias);
    assert_eq!(net1.addresses(), ["10.11.0.7/24"]);
    assert!(net1.routes.iter().any(|route| route["dst"] == "10.12.0.0/16"), "{:?}", net1.routes);
    let row = node.a[1].row();
    assert_eq!(
        (&row["vlan_list"][0]["vlan"], &row["spoofchk"], &row["trust"]),
        (&json!(100), &json!(false), &json!(true))
    );

    let del = traced(node.call("DEL", "p", &vf), "/run/test/del");
    println!("DEL: {del:#?}");
    assert!(del.len() <= DEL_MESSAGES, "{} messages: {del:#?}", del.len());
    node.del("plain", &base);
    node.assert_as_before();
}

#[test]
fn asking_whether_an_address_is_in_use_takes_no_message() {
    let node = quiet_node();
    let adds = [false, true].map(|probe| {
        let addresses = json!([{"address": "10.11.0.7/24"}, {"address": "fd00:11::7/64"}]);
        let ipam = json!({"type": "static", "addresses": addresses, "conflictProbe": probe});
        node.network("net-a", "bed.test/vf", &json!({"cniVersion": "1.0.0", "type": "sriov", "ipam": ipam}));
        let netns = node.pod("p", "net-a", &[("bed.test/vf", &node.a[1])]);
        let add = traced(node.call("ADD", "p", &netns), "/run/test/add");
        node.del("p", &netns);
        add
    });
    assert_eq!(adds[0], adds[1]);
    node.assert_as_before();
}

/// As measured. Two of them read the PF, for nothing is believed that was not read back.
const DEL_MESSAGES: usize = 12;
