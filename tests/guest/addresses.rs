//! Where the addresses of a VF come from, what the pod asked for, the default route, and plugins chained after the VF.

use serde_json::{Value, json};

use crate::{
    harness::{Interface, Recorder, Wire, ip_in, ping},
    node::Node,
};

#[test]
fn definitions_as_older_howtos_have_them() {
    let node = Node::new();
    // No name, a version of old, a resource; once without addresses, once with.
    node.network("howto", "bed.test/vf", &json!({"cniVersion": "0.4.0", "type": "sriov", "vlan": 100}));
    node.network(
        "howto-ipam",
        "bed.test/vf",
        &json!({
            "cniVersion": "0.3.1", "type": "sriov", "vlan": 100,
            "ipam": {"type": "host-local", "subnet": "10.56.217.0/24", "rangeStart": "10.56.217.171",
                     "rangeEnd": "10.56.217.181", "routes": [{"dst": "10.57.0.0/16"}], "gateway": "10.56.217.1"}
        }),
    );
    let netns = node.pod("p", "howto,howto-ipam", &[("bed.test/vf", &node.a[0]), ("bed.test/vf", &node.a[1])]);
    node.add("p", &netns);
    let net1 = Interface::find(&netns, "net1").unwrap();
    assert_eq!(net1.addresses(), Vec::<String>::new());
    assert_eq!(node.status("p", "net1")["mac"], net1.mac());
    let net2 = Interface::find(&netns, "net2").unwrap();
    assert_eq!(net2.addresses(), ["10.56.217.171/24"]);
    assert!(
        net2.routes.iter().any(|route| route["dst"] == "10.57.0.0/16" && route["gateway"] == "10.56.217.1"),
        "{:?}",
        net2.routes
    );
    for vf in &node.a[..2] {
        assert_eq!(vf.row()["vlan_list"][0]["vlan"], 100);
    }
    assert_eq!(node.world.leases("howto-ipam"), ["10.56.217.171"], "the pool has the definition's name");
    node.del("p", &netns);
    node.assert_as_before();
}

#[test]
fn static_addresses_and_a_default_route_over_a_vf() {
    let node = Node::new();
    node.network(
        "fixed",
        "bed.test/vf",
        &json!({
            "cniVersion": "1.0.0", "type": "sriov",
            "ipam": {"type": "static", "addresses": [{"address": "10.14.0.1/24"}, {"address": "fd00:14::1/64"}]}
        }),
    );
    node.network(
        "way-out",
        "bed.test/vf",
        &json!({
            "cniVersion": "1.0.0", "type": "sriov",
            "ipam": {"type": "static", "addresses": [{"address": "10.14.0.2/24"}]}
        }),
    );
    let gateway = node.pod("gateway", "fixed", &[("bed.test/vf", &node.b[0])]);
    node.add("gateway", &gateway);
    let router = Interface::find(&gateway, "net1").unwrap();
    assert_eq!(router.addresses(), ["10.14.0.1/24", "fd00:14::1/64"]);

    let annotation = json!([{"name": "way-out", "default-route": ["10.14.0.1"]}]).to_string();
    let netns = node.pod("p", &annotation, &[("bed.test/vf", &node.a[0])]);
    let result = node.add("p", &netns);
    let eth0 = Interface::find(&netns, "eth0").unwrap();
    let net1 = Interface::find(&netns, "net1").unwrap();
    assert_eq!((eth0.default_gateway(), net1.default_gateway()), (None, Some("10.14.0.1")));
    assert_eq!(node.status("p", "net1")["gateway"], json!(["10.14.0.1"]));
    assert_eq!(node.status("p", "eth0")["gateway"], Value::Null);
    assert_eq!(node.status("p", "eth0")["default"], true, "the primary network stays the primary");
    let routes = result["routes"].as_array().cloned().unwrap_or_default();
    assert!(!routes.iter().any(|route| route["dst"] == "0.0.0.0/0"), "{result:#}");
    // The kernel takes it: an address that is nobody's is asked for on net1.
    let chosen: Value = serde_json::from_str(&ip_in(&netns, "-j route get 192.0.2.1")).unwrap();
    assert_eq!((&chosen[0]["dev"], &chosen[0]["gateway"]), (&json!("net1"), &json!("10.14.0.1")));
    assert!(ping(&netns, "10.14.0.1"));
    for (pod, netns) in [("p", &netns), ("gateway", &gateway)] {
        node.del(pod, netns);
    }
    node.assert_as_before();
}

#[test]
fn the_pod_asks_for_a_mac_and_an_address() {
    let node = Node::new();
    node.network("net-a", "bed.test/vf", &json!({
        "cniVersion": "1.0.0", "type": "sriov", "mac": "02:00:00:00:00:01", "capabilities": {"mac": true, "ips": true},
        "ipam": {"type": "host-local", "subnet": "10.11.0.0/24"}
    }));
    let annotation =
        json!([{"name": "net-a", "interface": "fast0", "mac": "02:00:00:00:00:99", "ips": ["10.11.0.77"]}]);
    let netns = node.pod("p", &annotation.to_string(), &[("bed.test/vf", &node.a[6])]);
    node.add("p", &netns);
    let fast0 = Interface::find(&netns, "fast0").unwrap();
    assert_eq!((fast0.mac(), fast0.addresses()), ("02:00:00:00:00:99", vec!["10.11.0.77/24".to_owned()]));
    assert_eq!(node.a[6].row()["address"], "02:00:00:00:00:99", "the PF knows it, or no frame would pass");
    // A second pod with the same address: refused by the pool, before its VF is looked at.
    let other = node.pod("two", &annotation.to_string(), &[("bed.test/vf", &node.a[5])]);
    let text = node.call("ADD", "two", &other).fails(102);
    assert!(text.contains("requested IP address 10.11.0.77 is not available"), "{text}");
    // With another address: the VF's MAC is refused by the NIC.
    let same_mac = json!([{"name": "net-a", "mac": "02:00:00:00:00:99", "ips": ["10.11.0.78"]}]);
    let other = node.pod("two", &same_mac.to_string(), &[("bed.test/vf", &node.a[5])]);
    let text = node.call("ADD", "two", &other).fails(101);
    assert!(text.contains("02:00:00:00:00:99") && text.contains("VF 6 of PF"), "{text}");
    node.del("p", &netns);
    node.assert_as_before();
}

#[test]
fn an_executed_ipam_is_released_after_the_interface() {
    let mut node = Node::new();
    // What is left out of `builtins` is executed: the reference host-local.
    node.conf["builtins"] = json!(["sriov"]);
    node.network(
        "net-a",
        "bed.test/vf",
        &json!({
            "cniVersion": "1.0.0", "type": "sriov", "ipam": {"type": "host-local", "subnet": "10.11.0.0/24"}
        }),
    );
    let netns = node.pod("p", "net-a", &[("bed.test/vf", &node.b[1])]);
    node.add("p", &netns);
    assert_eq!(Interface::find(&netns, "net1").unwrap().addresses(), ["10.11.0.2/24"]);
    assert_eq!(node.world.leases("net-a"), ["10.11.0.2"]);
    node.del("p", &netns);
    node.assert_as_before();

    // One that finds no address: the VF is back at once.
    let recorder = Recorder::install(&node.world.bin, &["other-ipam"]);
    recorder.behave("other-ipam", "ADD", r#"echo '{"code":120,"msg":"the server has none left"}'; exit 1"#);
    node.network(
        "net-b",
        "bed.test/vf",
        &json!({"cniVersion": "1.0.0", "type": "sriov", "ipam": {"type": "other-ipam"}}),
    );
    let other = node.pod("two", "net-b", &[("bed.test/vf", &node.b[1])]);
    let text = node.call("ADD", "two", &other).fails(120);
    assert!(text.contains("default/net-b as net1") && text.contains("the server has none left"), "{text}");
    assert_eq!(recorder.take(), ["ADD other-ipam net1", "DEL other-ipam net1"]);
    node.assert_as_before();
}

#[test]
fn plugins_chained_after_the_vf_are_undone_before_it() {
    let node = Node::new();
    node.world.plugins("reference", &["tuning"]);
    let recorder = Recorder::install(&node.world.bin, &["watcher"]);
    // It is asked while the VF is still in the sandbox; its own answer is the result so far.
    recorder.behave(
        "watcher",
        "ADD",
        r#"ip netns exec "${CNI_NETNS##*/}" test -e /sys/class/net/net1 && echo "$conf" | jq .prevResult; exit"#,
    );
    recorder.behave("watcher", "DEL", r#"ip netns exec "${CNI_NETNS##*/}" test -e /sys/class/net/net1 || exit 1"#);
    node.network(
        "chain",
        "bed.test/vf",
        &json!({
            "cniVersion": "1.0.0", "name": "chain",
            "plugins": [
                {"type": "sriov", "ipam": {"type": "host-local", "subnet": "10.11.0.0/24"}},
                {"type": "tuning", "sysctl": {"net.ipv4.conf.IFNAME.arp_filter": "1"}, "mtu": 1450},
                {"type": "watcher"}
            ]
        }),
    );
    let netns = node.pod("p", "chain", &[("bed.test/vf", &node.a[2])]);
    node.add("p", &netns);
    let value = crate::harness::in_netns(&netns, &["sysctl", "-n", "net.ipv4.conf.net1.arp_filter"]);
    assert_eq!(value.trim(), "1");
    let net1 = Interface::find(&netns, "net1").unwrap();
    assert_eq!((net1.mtu(), net1.addresses()), (1450, vec!["10.11.0.2/24".to_owned()]));
    assert_eq!(node.status("p", "net1")["ips"], json!(["10.11.0.2"]));
    let told = &recorder.calls()[0].0["conf"]["prevResult"];
    assert_eq!(told["interfaces"][0]["name"], "net1", "{told}");
    assert_eq!(told["interfaces"][0]["sandbox"], netns);
    node.del("p", &netns);
    assert_eq!(recorder.take(), ["ADD watcher net1", "DEL watcher net1"]);
    node.assert_as_before();
}

#[test]
fn neighbours_are_told_of_the_addresses_which_are_usable_at_once() {
    let node = Node::new();
    for (network, v4, v6) in [("net-a", "10.15.0.7/24", "fd00:15::7/64"), ("net-b", "10.15.0.8/24", "fd00:15::8/64")] {
        let addresses = json!([{"address": v4}, {"address": v6}]);
        let config =
            json!({"cniVersion": "1.0.0", "type": "sriov", "ipam": {"type": "static", "addresses": addresses}});
        node.network(network, "bed.test/vf", &config);
    }
    let devices = [("bed.test/vf", &node.a[3]), ("bed.test/vf", &node.a[4])];
    let netns = node.pod("p", "net-a,net-b", &devices);
    // The far end of the cable.
    let wire = Wire::tap(&node.b[0].pf, "arp or (icmp6 and ip6[40] = 136)");
    node.add("p", &netns);
    for (interface, address) in [("net1", "fd00:15::7"), ("net2", "fd00:15::8")] {
        let net = Interface::find(&netns, interface).unwrap();
        let infos = net.link["addr_info"].as_array().unwrap();
        let info = infos.iter().find(|info| info["local"] == address).unwrap();
        assert_eq!((&info["tentative"], &info["dadfailed"]), (&Value::Null, &Value::Null), "{info}");
    }
    // In the order in which they are sent: the two attachments one after the other.
    for (vf, v4, v6) in [(&node.a[3], "10.15.0.7", "fd00:15::7"), (&node.a[4], "10.15.0.8", "fd00:15::8")] {
        let arp = wire.until(&format!("Request who-has {v4} tell {v4}"));
        assert!(arp.contains(&format!("{} > ff:ff:ff:ff:ff:ff", vf.mac)), "{arp}");
        let advertised = wire.until(&format!("tgt is {v6}, Flags [override]"));
        let told = wire.until(&format!("destination link-address option (2), length 8 (1): {}", vf.mac));
        let seen = format!("{advertised}{told}");
        assert!(seen.contains(&format!("{} > 33:33:00:00:00:01", vf.mac)) && seen.contains("hlim 255"), "{seen}");
        assert!(seen.contains(&format!("{v6} > ff02::1")), "{seen}");
    }
    drop(wire);
    node.del("p", &netns);
    node.assert_as_before();
}
