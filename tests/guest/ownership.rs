//! A VF has one owner: who lives keeps it, who is dead or out loses it whole, and who lost it touches it no more. And it
//! comes back from wherever it is, whatever is still known of it.

use std::{
    fs,
    process::{Child, Command, Stdio},
};

use serde_json::{Value, json};

use crate::{
    harness::{Interface, ip, ip_in, names, ping},
    node::{Node, Vf, eventually},
};

pub(crate) const STATE: &str = "/var/lib/cni/meta-cni";

/// A node with two networks of different VLANs, addresses and MTUs, and one for a peer of the second.
pub(crate) fn node() -> Node {
    let node = Node::new();
    let network = |name: &str, pool: &str, subnet: &str, more: &Value| {
        let mut conf = json!({"cniVersion": "1.0.0", "name": pool, "type": "sriov",
                              "ipam": {"type": "host-local", "subnet": subnet}});
        conf.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        node.network(name, "bed.test/vf", &conf);
    };
    let of_a = json!({"vlan": 12, "mac": "02:00:00:00:00:0a", "trust": "on", "mtu": 1600});
    network("net-a", "lan-a", "10.11.0.0/24", &of_a);
    network("net-b", "lan-b", "10.12.0.0/24", &json!({"vlan": 13, "mac": "02:00:00:00:00:0b", "mtu": 1400}));
    network("net-peer", "lan-b", "10.12.0.0/24", &json!({"vlan": 13}));
    node.network("bare", "bed.test/vf", &of_a_without_addresses(&of_a));
    node
}

fn of_a_without_addresses(more: &Value) -> Value {
    let mut conf = json!({"cniVersion": "1.0.0", "type": "sriov"});
    conf.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    conf
}

/// A pod that has a VF.
pub(crate) fn attached(node: &Node, name: &str, network: &str, vf: &Vf) -> String {
    let netns = node.pod(name, network, &[("bed.test/vf", vf)]);
    node.add(name, &netns);
    netns
}

/// Kubelet takes the VF from pod "a" and gives it to a new pod "b".
pub(crate) fn given_to_b(node: &Node, vf: &Vf) -> String {
    node.take_devices("a");
    node.pod("b", "net-b", &[("bed.test/vf", vf)])
}

/// All that is b's: interface, address, MTU, what the PF holds.
pub(crate) fn state_of_b(netns: &str, vf: &Vf) -> Value {
    let net1 = Interface::find(netns, "net1").expect("b has its VF");
    assert_eq!((net1.mac(), net1.mtu()), ("02:00:00:00:00:0b", 1400));
    assert_eq!(net1.link["parentdev"], vf.pci);
    let row = vf.row();
    assert_eq!((&row["vlan_list"][0]["vlan"], &row["trust"]), (&json!(13), &json!(false)), "{row}");
    json!([net1.link["flags"], net1.addresses(), net1.link["ifalias"], row])
}

/// Pings an address from a namespace in the background.
fn pings(netns: &str, address: &str) -> Child {
    let words = [&format!("--net={netns}"), "ping", "-q", "-i", "0.02", "-W", "2", address];
    Command::new("nsenter").args(words).stdout(Stdio::piped()).spawn().unwrap()
}

/// Ends the pings; all must have been answered.
fn assert_all_answered(pings: Child) {
    let pid = nix::unistd::Pid::from_raw(pings.id().try_into().unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).unwrap();
    let text = String::from_utf8(pings.wait_with_output().unwrap().stdout).unwrap();
    let number = |what: &str| -> u32 {
        let before = text.split(what).next().unwrap();
        before.trim_end().rsplit([' ', '\n']).next().unwrap().parse().unwrap_or_else(|_| panic!("{text}"))
    };
    let (sent, received) = (number("packets transmitted"), number("received"));
    // The last one may still be under way.
    assert!(sent > 5 && received + 1 >= sent, "{text}");
}

/// A process that lives in a namespace and holds it open.
fn holder(netns: &str) -> Child {
    let child = Command::new("nsenter").args([&format!("--net={netns}"), "sleep", "600"]).spawn().unwrap();
    let inode = |path: &str| fs::metadata(path).ok().map(|meta| std::os::unix::fs::MetadataExt::ino(&meta));
    let own = format!("/proc/{}/ns/net", child.id());
    assert!(eventually(|| inode(&own) == inode(netns)));
    child
}

fn end(mut child: Child) {
    assert!(child.try_wait().unwrap().is_none(), "it held the namespace to the end");
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn a_late_del_leaves_the_new_owner_and_its_traffic_alone() {
    let node = node();
    let vf = &node.a[5];
    let peer = attached(&node, "peer", "net-peer", &node.b[5]);
    let a = attached(&node, "a", "net-a", vf);
    node.world.delete_netns(&a);
    let b = given_to_b(&node, vf);
    node.add("b", &b);
    let before = state_of_b(&b, vf);
    let address = node.address("b", "net1");
    assert!(ping(&peer, &address));
    let traffic = pings(&peer, &address);
    assert_eq!(node.world.leases("lan-a").len(), 1);
    node.del("a", &a);
    node.del("a", "");
    assert_all_answered(traffic);
    assert_eq!(state_of_b(&b, vf), before);
    assert_eq!(node.world.leases("lan-a"), [""; 0], "its own address is released");
    assert_eq!(node.world.records("a"), [""; 0]);
    node.del("b", &b);
    node.del("peer", &peer);
    node.assert_as_before();
}

/// Without a lease only what still is as the attachment left it is its own.
#[test]
fn a_late_del_without_a_lease_takes_back_only_what_nobody_had_since() {
    let node = node();
    let vf = &node.a[5];
    let lease = format!("{STATE}/vfs/{}.json", vf.pci);
    for killed in [false, true] {
        let a = attached(&node, "a", "net-a", vf);
        fs::remove_file(&lease).unwrap();
        if killed {
            node.world.delete_netns(&a);
            assert!(eventually(|| names(format!("/sys/bus/pci/devices/{}/net", vf.pci)) == ["net1"]));
        }
        node.del("a", &a);
        node.assert_as_before();
    }
    let a = attached(&node, "a", "net-a", vf);
    node.world.delete_netns(&a);
    let b = given_to_b(&node, vf);
    node.add("b", &b);
    node.del("b", &b);
    // Nobody's now, and somebody else sets it up.
    ip(&format!("link set {} vf {} vlan 77", vf.pf, vf.number));
    node.del("a", "");
    assert_eq!(vf.row()["vlan_list"][0]["vlan"], 77);
    ip(&format!("link set {} vf {} vlan 0", vf.pf, vf.number));
    node.assert_as_before();
}

#[test]
fn del_and_add_of_two_pods_at_the_same_moment() {
    let node = node();
    let vf = &node.a[5];
    let peer = attached(&node, "peer", "net-peer", &node.b[5]);
    for round in 0..6 {
        let a = attached(&node, "a", "net-a", vf);
        // Half of the time the former owner's namespace is gone, half of the time its DEL comes first.
        let netns = if round % 2 == 0 { a.as_str() } else { "" };
        if netns.is_empty() {
            node.world.delete_netns(&a);
        }
        let b = given_to_b(&node, vf);
        let (del, add) = (node.call("DEL", "a", netns), node.call("ADD", "b", &b));
        let (first, second) = if round < 3 { (del.start(), add.start()) } else { (add.start(), del.start()) };
        for child in [first, second] {
            let output = child.wait_with_output().unwrap();
            assert!(output.status.success(), "round {round}: {output:?}");
        }
        state_of_b(&b, vf);
        assert_eq!(node.world.leases("lan-a"), [""; 0]);
        assert!(ping(&peer, &node.address("b", "net1")), "round {round}");
        node.del("b", &b);
        if !netns.is_empty() {
            assert!(Interface::find(netns, "net1").is_none());
        }
    }
    node.del("peer", &peer);
    node.assert_as_before();
}

#[test]
fn a_namespace_that_a_process_holds_open_gives_the_vf_back_at_once() {
    let node = node();
    let a = attached(&node, "a", "net-a", &node.a[2]);
    let held = holder(&a);
    let inside = format!("/proc/{}/ns/net", held.id());
    node.world.delete_netns(&a);
    node.del("a", &a);
    node.assert_as_before();
    assert!(Interface::find(&inside, "net1").is_none());
    end(held);
}

/// A runtime's sandbox that we know nothing of has the VF by now: it stays there, and DEL is owed until it is back.
#[test]
fn a_vf_that_somebody_else_has_by_now_is_left_there() {
    let node = node();
    let vf = &node.a[2];
    let a = attached(&node, "a", "net-a", vf);
    node.world.delete_netns(&a);
    assert!(eventually(|| names(format!("/sys/bus/pci/devices/{}/net", vf.pci)) == ["net1"]));
    let theirs = node.world.netns();
    ip(&format!("link set net1 netns {}", theirs.trim_start_matches("/run/netns/")));
    ip_in(&theirs, "link set net1 address 02:00:00:00:00:0c up");
    ip(&format!("link set {} vf {} vlan 55", vf.pf, vf.number));
    let before = Interface::find(&theirs, "net1").unwrap().link["flags"].clone();
    for owed in [1, 2] {
        if owed == 1 {
            node.del("a", &a);
        } else {
            let text = node.gc_fails();
            assert!(text.contains("belongs to somebody else") && text.contains(&theirs), "{text}");
        }
        let net1 = Interface::find(&theirs, "net1").expect("it stays");
        assert_eq!((net1.mac(), &net1.link["flags"]), ("02:00:00:00:00:0c", &before));
        assert_eq!(vf.row()["vlan_list"][0]["vlan"], 55);
        assert_eq!(node.world.records("a"), ["meta:eth0:net1.json"], "it is owed");
    }
    ip_in(&theirs, "link set net1 netns 1");
    gc(&node, &[]);
    node.assert_as_before();
}

/// A takeover that cannot give the VF back for its former owner fails, and changes nothing of who owns it.
#[test]
fn a_vf_that_cannot_be_given_back_stays_with_its_former_owner() {
    let node = node();
    let vf = &node.a[1];
    let a = attached(&node, "a", "net-a", vf);
    let lease = format!("{STATE}/vfs/{}.json", vf.pci);
    let before = fs::read_to_string(&lease).unwrap();
    // Its name in the host is taken meanwhile.
    ip(&format!("link add {} type dummy", vf.name));
    let b = given_to_b(&node, vf);
    let text = node.call("ADD", "b", &b).fails(11);
    for part in ["is not to be had before it is given back for meta:a:eth0:net1", &vf.name, "already has an interface"]
    {
        assert!(text.contains(part), "{part} is not in: {text}");
    }
    assert_eq!(fs::read_to_string(&lease).unwrap(), before);
    node.del("b", &b);
    assert_eq!(fs::read_to_string(&lease).unwrap(), before);
    ip(&format!("link delete {}", vf.name));
    node.add("b", &b);
    state_of_b(&b, vf);
    node.del("a", &a);
    node.del("b", &b);
    node.assert_as_before();
}

#[test]
fn alternative_names_that_clash_in_the_pod_and_in_the_host() {
    let node = node();
    let (vf, other) = (&node.a[6].name, &node.a[0].name);
    for altname in ["in-the-pod", "net1", "in-the-host"] {
        ip(&format!("link property add dev {vf} altname {altname}"));
    }
    let a = node.pod("a", "net-a", &[("bed.test/vf", &node.a[6])]);
    ip_in(&a, "link property add dev lo altname in-the-pod");
    node.add("a", &a);
    ip(&format!("link property add dev {other} altname in-the-host"));
    let text = node.call("DEL", "a", &a).fails(101);
    assert!(text.contains("in-the-host"), "{text}");
    let home = Interface::find("/proc/self/ns/net", vf).expect("it is home all the same, with its name");
    assert_eq!((home.mac(), home.mtu()), (node.a[6].mac.as_str(), 1500));
    ip(&format!("link property del dev {other} altname in-the-host"));
    node.del("a", &a);
    let all: Value = serde_json::from_str(&ip(&format!("-j link show {vf}"))).unwrap();
    let mut back: Vec<&str> = all[0]["altnames"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    back.sort_unstable();
    assert_eq!(back, ["in-the-host", "in-the-pod", "net1"]);
    for altname in back {
        ip(&format!("link property del dev {vf} altname {altname}"));
    }
    node.assert_as_before();
}

fn gc(node: &Node, valid: &[&str]) {
    let mut conf = node.conf.clone();
    conf["cniVersion"] = json!("1.1.0");
    let valid: Vec<Value> = valid.iter().map(|pod| json!({"containerID": pod, "ifname": "eth0"})).collect();
    conf["cni.dev/valid-attachments"] = json!(valid);
    node.world.call("GC", "", "", &conf).ok();
}

#[test]
fn gc_judges_leases_that_have_no_record() {
    let node = node();
    let lease = |vf: &Vf| format!("{STATE}/vfs/{}.json", vf.pci);
    let vfs: Vec<Vf> = node.a.clone();
    let dead = attached(&node, "dead", "net-a", &vfs[0]);
    let stale = attached(&node, "stale", "net-peer", &vfs[1]);
    let known = attached(&node, "known", "net-b", &vfs[2]);
    let unknown = attached(&node, "unknown", "net-peer", &vfs[3]);
    for pod in ["dead", "stale", "unknown"] {
        fs::remove_dir_all(format!("{STATE}/sandboxes/{pod}")).unwrap();
    }
    node.world.delete_netns(&dead);
    // Of another boot: the VF is a new one, and what it was then means nothing.
    let text = fs::read_to_string(lease(&vfs[2])).unwrap();
    let mut old: Value = serde_json::from_str(&text).unwrap();
    old["boot_id"] = json!("another");
    old["call"] = json!("meta:old:eth0:net1");
    old["original"]["mtu"] = json!(9000);
    fs::write(lease(&vfs[4]), old.to_string().replace(&vfs[2].pci, &vfs[4].pci)).unwrap();
    // Torn, at home; and torn, in a pod that has its record.
    fs::write(lease(&vfs[5]), &text[..text.len() / 2]).unwrap();
    fs::write(lease(&vfs[2]), &text[..text.len() / 2]).unwrap();

    gc(&node, &["known", "unknown"]);
    let left = names(format!("{STATE}/vfs"));
    assert_eq!(left, [2, 3].map(|n: usize| format!("{}.json", vfs[n].pci)));
    assert!(Interface::find(&stale, "net1").is_none(), "the runtime does not know it any more");
    for (netns, vf, mtu) in [(&known, &vfs[2], 1400), (&unknown, &vfs[3], 1500)] {
        let net1 = Interface::find(netns, "net1").expect("it lives");
        assert_eq!((&net1.link["parentdev"], net1.mtu()), (&json!(vf.pci), mtu));
        assert_eq!(vf.row()["vlan_list"][0]["vlan"], 13);
    }
    assert_eq!(node.world.leases("lan-a"), [""; 0], "the address of the dead one");
    for (pod, netns) in [("dead", ""), ("stale", &stale), ("known", &known), ("unknown", &unknown)] {
        node.del(pod, netns);
    }
    node.assert_as_before();
}

/// A pod has a VF, and all that we know is lost; then its namespace dies, and the VF is back by itself as it was in the
/// pod, with an alias that says whose it was.
fn lost(node: &Node, vf: &Vf) {
    let a = attached(node, "a", "bare", vf);
    let alias = Interface::find(&a, "net1").unwrap().link["ifalias"].as_str().unwrap_or_default().to_owned();
    assert!(alias.starts_with("meta-cni: default/a net1 of container a; was "), "{alias}");
    fs::remove_dir_all(STATE).unwrap();
    node.world.delete_netns(&a);
    assert!(eventually(|| names(format!("/sys/bus/pci/devices/{}/net", vf.pci)) == ["net1"]));
    assert_eq!(vf.row()["vlan_list"][0]["vlan"], 12);
}

#[test]
fn gc_gives_a_vf_back_by_its_alias_alone() {
    let node = node();
    lost(&node, &node.a[2]);
    // A living one beside it, and an alias of somebody else's.
    let b = attached(&node, "b", "net-b", &node.a[3]);
    ip(&format!("link set {} alias rack-7", node.a[4].name));
    gc(&node, &["b"]);
    assert_eq!(Interface::find(&b, "net1").unwrap().mac(), "02:00:00:00:00:0b");
    ip(&format!("link set {} alias ", node.a[4].name));
    node.del("b", &b);
    // Of the primary's address no more is known, either; its plugin is asked.
    node.del("a", "");
    node.assert_as_before();
}

#[test]
fn an_add_gives_a_lost_vf_back_before_it_takes_it() {
    let node = node();
    let vf = &node.a[2];
    lost(&node, vf);
    let b = given_to_b(&node, vf);
    node.add("b", &b);
    state_of_b(&b, vf);
    node.del("b", &b);
    node.del("a", "");
    node.assert_as_before();
}
