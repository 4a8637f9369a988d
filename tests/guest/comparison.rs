//! The state in which a VF is given back, and what CHECK says of each difference.

use std::fs;

use serde_json::{Value, json};

use crate::{
    harness::{Interface, ip, ip_in},
    node::{Node, pool, sriov},
};

const MAC: &str = "02:00:00:00:00:42";
const RESOURCE: &str = "bed.test/vf";

#[test]
fn a_vf_is_given_back_as_found_or_clean() {
    let mut node = Node::new();
    let vf = node.a[6].clone();
    let at_pf = |setting: &str| ip(&format!("link set {} vf {} {setting}", vf.pf, vf.number));
    let clean = vf.row();
    let admin = "02:00:00:00:00:99";
    for (policy, more) in
        [("original", json!({"mac": MAC, "vlan": 100})), ("clean", json!({"mac": MAC})), ("clean", json!({}))]
    {
        at_pf(&format!("mac {admin} vlan 7 qos 2 spoofchk off trust on max_tx_rate 50"));
        ip(&format!("link set {} alias rack7 mtu 1450 promisc on", vf.name));
        node.look_again();
        let dirty = vf.row();
        assert_ne!(dirty, clean);
        let mut conf = sriov(&more);
        conf["restorePolicy"] = json!(policy);
        node.network("net", RESOURCE, &conf);
        let netns = node.pod("p", "net", &[(RESOURCE, &vf)]);
        node.add("p", &netns);
        node.del("p", &netns);
        if policy == "original" {
            assert_eq!(vf.row(), dirty);
            node.assert_as_before();
            continue;
        }
        assert_eq!(vf.row(), clean, "the address is the VF's own again, as igb reports it");
        let links: Value = serde_json::from_str(&ip(&format!("-j -d link show {}", vf.name))).unwrap();
        let link = &links[0];
        assert_eq!((&link["ifalias"], &link["promiscuity"]), (&Value::Null, &json!(0)), "{link}");
        assert_eq!((&link["mtu"], &link["address"]), (&json!(1450), &json!(vf.mac)), "{link}");
        // Not locked.
        ip(&format!("link set {} address {MAC}", vf.name));
        ip(&format!("link set {} address {}", vf.name, vf.mac));
        node.world.assert_clean();
    }
    ip(&format!("link set {} mtu 1500", vf.name));
}

#[test]
fn check_names_each_difference() {
    let node = Node::new();
    let vf = &node.b[3];
    let more = json!({"mac": MAC, "vlan": 100, "spoofchk": "off", "trust": "on", "max_tx_rate": 200, "mtu": 1400, "ipam": pool()});
    node.network("net", RESOURCE, &sriov(&more));
    let netns = node.pod("p", "net", &[(RESOURCE, vf)]);
    node.add("p", &netns);
    node.call("CHECK", "p", &netns).ok();
    let at_pf = format!("link set {} vf {}", vf.pf, vf.number);
    let of_vf = |text: &str| format!("VF {}: {text}", vf.pci);
    let cases = [
        (
            false,
            "link set net1 mtu 1500",
            "link set net1 mtu 1400",
            "net1 has MTU 1500, the result says 1400".to_owned(),
        ),
        (
            false,
            "route del 10.12.0.0/16",
            "route add 10.12.0.0/16 via 10.11.0.1 dev net1",
            "net1 does not have the route to 10.12.0.0/16".to_owned(),
        ),
        (true, "vlan 7", "vlan 100", of_vf("wanted vlan 100, found vlan 7")),
        (true, "spoofchk on", "spoofchk off", of_vf("wanted spoofchk off, found spoofchk on")),
        (true, "trust off", "trust on", of_vf("wanted trust on, found trust off")),
        (true, "max_tx_rate 0", "max_tx_rate 200", of_vf("wanted max_tx_rate 200, found max_tx_rate 0")),
        (
            false,
            "link set net1 name other0",
            "link set other0 name net1",
            "interface net1 is not in the sandbox".to_owned(),
        ),
    ];
    for (is_of_pf, change, back, expected) in cases {
        let apply = |what: &str| match is_of_pf {
            true => ip(&format!("{at_pf} {what}")),
            false => ip_in(&netns, what),
        };
        apply(change);
        let text = node.call("CHECK", "p", &netns).fails(101);
        assert!(text.starts_with(&format!("default/net as net1: {expected}")), "{text}\nwanted: {expected}");
        apply(back);
        // A rename takes the routes of nobody, but an interface that was down lost its own.
        node.call("CHECK", "p", &netns).ok();
    }
    for (path, expected) in [
        (
            format!("/var/lib/cni/meta-cni/vfs/{}.json", vf.pci),
            format!("VF {} is not leased to this attachment any more", vf.pci),
        ),
        (
            "/var/lib/cni/networks/net/10.11.0.2".to_owned(),
            "/var/lib/cni/networks/net is not reserved any more: [10.11.0.2]".to_owned(),
        ),
    ] {
        let away = "/run/test/away";
        fs::copy(&path, away).unwrap();
        fs::remove_file(&path).unwrap();
        node.differs(&netns, "net", &expected);
        fs::copy(away, &path).unwrap();
    }
    // The MAC, and an address: two differences, both are named.
    ip_in(&netns, "link set net1 address 02:00:00:00:00:55");
    ip_in(&netns, "addr del 10.11.0.2/24 dev net1");
    let text = node.call("CHECK", "p", &netns).fails(101);
    for expected in [
        "net1 does not have 10.11.0.2/24 any more",
        "net1 has MAC 02:00:00:00:00:55, the result says 02:00:00:00:00:42",
    ] {
        assert!(text.contains(expected), "{text}\nwanted: {expected}");
    }
    node.del("p", &netns);
    node.assert_as_before();
}

#[test]
fn check_lets_a_chained_tuning_have_its_own() {
    let node = Node::new();
    let vf = &node.b[3];
    node.world.plugins("reference", &["tuning"]);
    let tuning = json!({"type": "tuning", "mac": "02:00:00:00:00:66", "mtu": 1300});
    let chain = json!({"cniVersion": "1.0.0", "name": "chain", "plugins": [{"type": "sriov", "vlan": 100, "mtu": 1400}, tuning]});
    node.network("chain", RESOURCE, &chain);
    let netns = node.pod("p", "chain", &[(RESOURCE, vf)]);
    node.add("p", &netns);
    let net1 = Interface::find(&netns, "net1").unwrap();
    assert_eq!((net1.mac(), net1.mtu()), ("02:00:00:00:00:66", 1300));
    node.call("CHECK", "p", &netns).ok();
    ip(&format!("link set {} vf {} vlan 7", vf.pf, vf.number));
    node.differs(&netns, "chain", &format!("VF {}: wanted vlan 100, found vlan 7", vf.pci));
    node.del("p", &netns);
    node.assert_as_before();
}
