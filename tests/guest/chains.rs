//! Plugins chained behind the built-in `sriov`: what they are told, in which order, what they do to the VF, and that all
//! is undone, whatever becomes of them.

use std::{fs, process::Command};

use serde_json::{Value, json};

use crate::{
    harness::{Interface, Recorder, assert_no_network, beds, in_netns, ip, ip_in, ping, run},
    node::{Node, Vf, sriov},
};

const RESOURCE: &str = "bed.test/vf";

/// `sriov` with an address of 10.24.0.0/24, and plugins behind it.
fn chain(vf: Option<&Vf>, address: &str, more: &[Value]) -> Value {
    let addresses = json!([{"address": format!("10.24.0.{address}/24"), "gateway": "10.24.0.1"}]);
    let ipam = json!({"type": "static", "addresses": addresses, "routes": [{"dst": "10.25.0.0/16"}]});
    let mut first = json!({"type": "sriov", "ipam": ipam});
    if let Some(vf) = vf {
        first["deviceID"] = json!(vf.pci);
    }
    let plugins: Vec<Value> = [first].into_iter().chain(more.iter().cloned()).collect();
    json!({"cniVersion": "1.0.0", "name": "chain", "plugins": plugins})
}

/// A node with a network `chain`, and a pod `p` of it.
fn with(node: &Node, address: &str, more: &[Value]) -> String {
    node.network("chain", RESOURCE, &chain(None, address, more));
    node.pod("p", "chain", &[(RESOURCE, &node.a[2])])
}

/// What recording plugins were told, in order.
fn told(recorder: &Recorder) -> Vec<Value> {
    let told = recorder.calls().into_iter().map(|call| call.0).collect();
    recorder.take();
    told
}

/// libcni executes the drop-in at the head of the list; the meta plugin has the same code built in.
#[test]
fn what_follows_a_vf_is_told_what_libcni_tells_it() {
    let node = Node::new();
    node.world.drop_in("sriov");
    let recorder = Recorder::install(&node.world.bin, &["one", "two"]);
    // The second is told what the first made of the result, and both later of what the second made.
    for plugin in ["one", "two"] {
        let script = format!(r#"echo "$conf" | jq '.prevResult | .dns.search += ["{plugin}"]'; exit"#);
        recorder.behave(plugin, "ADD", &script);
    }
    let list = chain(Some(&node.a[2]), "2", &[json!({"type": "one", "keep": [1.25, null]}), json!({"type": "two"})]);
    let netns = node.pod("p", "chain", &[]);
    fs::create_dir_all("/etc/cni/drop-in").unwrap();
    fs::write("/etc/cni/drop-in/10-net.conflist", list.to_string()).unwrap();
    let mut theirs = Vec::new();
    for verb in ["add", "check", "del"] {
        let output = Command::new(beds().join("plugins/cnitool"))
            .args([verb, "chain", &netns])
            .envs([("NETCONFPATH", "/etc/cni/drop-in"), ("CNI_IFNAME", "net1")])
            .env("CNI_PATH", &node.world.bin)
            .output()
            .expect("cnitool");
        assert!(output.status.success(), "{verb}: {output:?}");
        theirs.push(told(&recorder));
    }
    node.assert_as_before();
    node.world.definition("chain", &list);
    let call = |verb: &str| node.call(verb, "p", &netns).ok();
    for (verb, theirs) in ["ADD", "CHECK", "DEL"].into_iter().zip(theirs) {
        call(verb);
        let ours = told(&recorder);
        let order = if verb == "DEL" { ["two", "one"] } else { ["one", "two"] };
        let plugins: Vec<&str> = ours.iter().map(|call| call["plugin"].as_str().unwrap()).collect();
        assert_eq!(plugins, order, "{verb}");
        for (ours, theirs) in ours.iter().zip(&theirs) {
            for key in ["plugin", "verb", "netns", "ifname", "conf"] {
                assert_eq!(ours[key], theirs[key], "{key} of {verb}");
            }
            assert_eq!(ours["conf"]["prevResult"]["interfaces"][0]["name"], "net1");
        }
    }
    node.assert_as_before();
}

#[test]
fn tuning_and_vrf_have_the_vf_and_give_it_back() {
    let node = Node::new();
    node.world.plugins("reference", &["tuning", "vrf"]);
    let mac = "02:00:00:00:24:02";
    let tuning = json!({"type": "tuning", "mac": mac, "mtu": 1400, "promisc": true,
                        "sysctl": {"net.ipv4.conf.IFNAME.arp_filter": "1"}});
    let netns = with(&node, "2", &[tuning, json!({"type": "vrf", "vrfname": "blue"})]);
    node.network(
        "plain",
        RESOURCE,
        &sriov(&json!({"ipam": {"type": "static", "addresses": [{"address": "10.24.0.3/24"}]}})),
    );
    let other = node.pod("other", "plain", &[(RESOURCE, &node.b[2])]);
    node.add("other", &other);
    node.add("p", &netns);
    let net1 = Interface::find(&netns, "net1").unwrap();
    assert_eq!((net1.mac(), net1.mtu(), &net1.link["master"]), (mac, 1400, &json!("blue")));
    assert_eq!(net1.addresses(), ["10.24.0.2/24"]);
    assert_eq!(net1.link["promiscuity"], 1);
    assert_eq!(in_netns(&netns, &["sysctl", "-n", "net.ipv4.conf.net1.arp_filter"]).trim(), "1");
    let told = node.status("p", "net1");
    assert_eq!((&told["mac"], &told["mtu"]), (&json!(mac), &json!(1400)));
    // The network's routes are the VRF's alone.
    let of_vrf = ip_in(&netns, "route show vrf blue");
    assert!(of_vrf.contains("10.25.0.0/16 via 10.24.0.1 dev net1"), "{of_vrf}");
    assert!(!ip_in(&netns, "route show").contains("net1"));
    assert!(ping(&other, "10.24.0.2"), "it answers from within the VRF");
    node.call("CHECK", "p", &netns).ok();
    ip_in(&netns, "link set net1 nomaster");
    assert!(node.call("CHECK", "p", &netns).fails(103).contains("plugin vrf (CHECK)"));
    node.del("p", &netns);
    assert_no_network(&netns);
    node.del("other", &other);
    node.assert_as_before();
}

#[test]
fn portmap_maps_ports_of_the_node_to_the_vfs_address() {
    let node = Node::new();
    node.world.plugins("reference", &["portmap"]);
    let portmap =
        json!({"type": "portmap", "snat": false, "backend": "iptables", "capabilities": {"portMappings": true}});
    node.network("chain", RESOURCE, &chain(None, "2", &[portmap]));
    let ports = json!([{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]);
    let asking = json!([{"name": "chain", "portMappings": ports}]).to_string();
    let netns = node.pod("p", &asking, &[(RESOURCE, &node.a[2])]);
    let rules = || run("iptables", &["-t", "nat", "-S"]);
    let rule = "--dport 8080 -j DNAT --to-destination 10.24.0.2:80";
    node.add("p", &netns);
    assert!(rules().contains(rule), "{}", rules());
    node.call("CHECK", "p", &netns).ok();
    node.del("p", &netns);
    assert!(!rules().contains("8080"), "{}", rules());
    node.assert_as_before();
}

/// A plugin like `route-override`: it changes the routes of the one before, and says so.
#[test]
fn routes_that_a_plugin_of_the_chain_overrides_are_what_is_told() {
    let node = Node::new();
    let recorder = Recorder::install(&node.world.bin, &["override"]);
    recorder.behave(
        "override",
        "ADD",
        r#"ns=${CNI_NETNS##*/}
        ip -n $ns route del 10.25.0.0/16 && ip -n $ns route add 10.26.0.0/16 via 10.24.0.9 dev $CNI_IFNAME || exit 1
        ip -n $ns route del default && ip -n $ns route add default via 10.24.0.9 dev $CNI_IFNAME || exit 1
        echo "$conf" | jq '.prevResult | .routes = [{"dst": "10.26.0.0/16", "gw": "10.24.0.9"}, {"dst": "0.0.0.0/0", "gw": "10.24.0.9"}]'
        exit"#,
    );
    let netns = with(&node, "2", &[json!({"type": "override"})]);
    node.add("p", &netns);
    assert_eq!(node.status("p", "net1")["gateway"], json!(["10.24.0.9"]));
    node.call("CHECK", "p", &netns).ok();
    let check = &recorder.calls()[1].0;
    assert_eq!(
        (&check["verb"], &check["conf"]["prevResult"]["routes"][0]["dst"]),
        (&json!("CHECK"), &json!("10.26.0.0/16"))
    );
    node.del("p", &netns);
    node.assert_as_before();

    // The pod's own choice comes last, over what the chain did.
    let asking = json!([{"name": "chain", "default-route": ["10.24.0.1"]}]).to_string();
    let netns = node.pod("p", &asking, &[(RESOURCE, &node.a[2])]);
    node.add("p", &netns);
    assert_eq!(crate::harness::defaults(&netns)[0], ["net1 10.24.0.1"]);
    assert_eq!(node.status("p", "net1")["gateway"], json!(["10.24.0.1"]));
    node.call("CHECK", "p", &netns).ok();
    node.del("p", &netns);
    assert_no_network(&netns);
    node.assert_as_before();
}

#[test]
fn a_plugin_that_fails_behind_a_vf_undoes_the_whole_pod() {
    let node = Node::new();
    let recorder = Recorder::install(&node.world.bin, &["one", "two", "three"]);
    let script = r#"echo "$conf" | jq '.prevResult'; exit"#;
    recorder.behave("one", "ADD", script);
    recorder.behave("three", "ADD", script);
    recorder.behave("two", "ADD", r#"echo '{"code":123,"msg":"no more of these"}'; exit 1"#);
    // Each is asked while the VF is still there.
    for plugin in ["one", "two", "three"] {
        recorder.behave(plugin, "DEL", r#"ip -n "${CNI_NETNS##*/}" link show $CNI_IFNAME >/dev/null || exit 1"#);
    }
    let more = ["one", "two", "three"].map(|kind| json!({"type": kind}));
    node.network("chain", RESOURCE, &chain(None, "2", &more));
    node.network("before", RESOURCE, &sriov(&json!({"vlan": 5})));
    let netns = node.pod("p", "before,chain", &[(RESOURCE, &node.a[1]), (RESOURCE, &node.a[2])]);
    let text = node.call("ADD", "p", &netns).fails(123);
    assert!(text.starts_with("default/chain as net2: plugin two (ADD): no more of these"), "{text}");
    assert_eq!(recorder.take(), ["ADD one net2", "ADD two net2", "DEL three net2", "DEL two net2", "DEL one net2"]);
    assert_no_network(&netns);
    node.assert_as_before();
}

/// What keeps its work in the sandbox cannot find it there any more: nobody waits for that.
#[test]
fn without_the_namespace_the_vf_of_a_chain_is_given_back_and_what_failed_is_remembered() {
    let node = Node::new();
    node.world.plugins("reference", &["tuning", "sbr"]);
    let tuning = json!({"type": "tuning", "mtu": 1400});
    let netns = with(&node, "2", &[tuning, json!({"type": "sbr"})]);
    node.add("p", &netns);
    node.world.delete_netns(&netns);
    node.del("p", "");
    node.assert_as_before();

    // One that fails all the same: the VF and the address go back, its DEL is owed.
    let recorder = Recorder::install(&node.world.bin, &["stubborn"]);
    recorder.behave("stubborn", "ADD", r#"echo "$conf" | jq '.prevResult'; exit"#);
    recorder.behave("stubborn", "DEL", "exit 1");
    let netns = with(&node, "2", &[json!({"type": "stubborn"})]);
    node.add("p", &netns);
    node.world.delete_netns(&netns);
    node.del("p", "");
    assert_eq!(crate::harness::names("/var/lib/cni/meta-cni/vfs"), Vec::<String>::new(), "the VF is nobody's");
    let at_home: Value = serde_json::from_str(&ip(&format!("-j -d link show {}", node.a[2].name))).unwrap();
    assert_eq!((&at_home[0]["parentdev"], &at_home[0]["address"]), (&json!(node.a[2].pci), &json!(node.a[2].mac)));
    assert_eq!(node.world.records("p").len(), 1);
    // Another pod has the VF meanwhile.
    let other = node.pod("other", "plain", &[(RESOURCE, &node.a[2])]);
    node.network("plain", RESOURCE, &sriov(&json!({})));
    node.add("other", &other);
    recorder.relax("stubborn", "DEL");
    node.del("p", "");
    assert_eq!(node.world.records("p"), Vec::<String>::new());
    assert!(Interface::find(&other, "net1").is_some());
    node.del("other", &other);
    node.assert_as_before();
}
