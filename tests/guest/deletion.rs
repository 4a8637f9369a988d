//! DEL with everything missing that can be, and after we were killed: VF and address are back.

use std::{fs, time::Instant};

use serde_json::{Value, json};

use crate::{
    harness::{Interface, Recorder, names},
    node::{Node, eventually},
};

const MAC: &str = "02:00:00:00:00:51";

/// The records of a pod's container.
fn record_files(pod: &str) -> Vec<String> {
    let directory = format!("/var/lib/cni/meta-cni/sandboxes/{pod}");
    names(&directory).into_iter().map(|name| format!("{directory}/{name}")).collect()
}

/// A pod with a VF whose every setting differs from the original ones.
fn attached() -> (Node, String) {
    let node = Node::new();
    node.network(
        "net-a",
        "bed.test/vf",
        &json!({
            "cniVersion": "1.0.0", "type": "sriov", "vlan": 12, "mac": MAC, "trust": "on", "mtu": 1600,
            "ipam": {"type": "host-local", "subnet": "10.11.0.0/24"}
        }),
    );
    let netns = node.pod("p", "net-a", &[("bed.test/vf", &node.a[5])]);
    node.add("p", &netns);
    assert_eq!(Interface::find(&netns, "net1").unwrap().mac(), MAC);
    assert_eq!(node.world.leases("net-a").len(), 1);
    (node, netns)
}

#[test]
fn with_the_namespace_deleted() {
    let (node, netns) = attached();
    node.world.delete_netns(&netns);
    node.del("p", &netns);
    node.assert_as_before();
    node.del("p", &netns);
    node.del("p", "");
    node.assert_as_before();
}

#[test]
fn with_cni_netns_empty_or_a_plain_file() {
    let (node, netns) = attached();
    // The namespace lives: the record knows where.
    node.del("p", "");
    assert!(Interface::find(&netns, "eth0").is_none());
    node.assert_as_before();

    node.add("p", &netns);
    node.world.delete_netns(&netns);
    fs::write(&netns, "").unwrap();
    node.del("p", &netns);
    fs::remove_file(&netns).unwrap();
    node.assert_as_before();
}

#[test]
fn with_torn_records() {
    let (node, netns) = attached();
    for file in record_files("p") {
        let text = fs::read_to_string(&file).unwrap();
        fs::write(&file, &text[..text.len() / 2]).unwrap();
    }
    // A writer that was killed before its rename leaves these.
    fs::write("/var/lib/cni/meta-cni/sandboxes/p/.tmp-abc", "{").unwrap();
    fs::write(format!("/var/lib/cni/meta-cni/vfs/{}.tmp", node.a[5].pci), "{").unwrap();
    node.del("p", &netns);
    assert!(Interface::find(&netns, "eth0").is_none(), "the primary's chain was asked");
    node.assert_as_before();
    node.del("p", &netns);
}

#[test]
fn without_any_record() {
    let (node, netns) = attached();
    fs::remove_dir_all("/var/lib/cni/meta-cni/sandboxes").unwrap();
    node.del("p", &netns);
    assert!(Interface::find(&netns, "eth0").is_none(), "the primary's chain was asked");
    node.assert_as_before();

    // The configurations lost, too, and the namespace gone: the lease of the VF is all there is.
    node.add("p", &netns);
    fs::remove_dir_all("/var/lib/cni/meta-cni/sandboxes").unwrap();
    fs::remove_dir_all("/var/lib/cni/meta-cni/confs").unwrap();
    node.world.delete_netns(&netns);
    node.del("p", "");
    node.assert_as_before();
}

#[test]
fn a_vf_that_another_pod_holds_by_now_is_left_alone() {
    let (node, netns) = attached();
    let saved: Vec<(String, String)> =
        record_files("p").into_iter().map(|file| (file.clone(), fs::read_to_string(file).unwrap())).collect();
    node.world.delete_netns(&netns);
    // Kubelet gives the VF to another pod before the DEL of the first one comes.
    let two = node.pod("two", "net-a", &[("bed.test/vf", &node.a[5])]);
    assert!(eventually(|| node.call("ADD", "two", &two).run().code == 0), "the dead owner is out");
    let before = Interface::find(&two, "net1").unwrap();
    assert_eq!(record_files("p").len(), saved.len(), "its record waits for its DEL");
    node.del("p", "");
    let after = Interface::find(&two, "net1").expect("it stays in its new pod");
    for (what, before, after) in [("mac", before.mac(), after.mac()), ("device", dev(&before), dev(&after))] {
        assert_eq!(before, after, "{what}");
    }
    assert_eq!((after.mtu(), after.addresses()), (before.mtu(), before.addresses()));
    assert_eq!(node.world.records("p"), Vec::<String>::new());
    node.del("two", &two);
    node.assert_as_before();
}

#[test]
fn killed_at_any_moment_of_add() {
    let (node, netns) = attached();
    node.del("p", &netns);
    let began = Instant::now();
    node.add("p", &netns);
    let whole = began.elapsed();
    node.del("p", &netns);
    // The second half is that of the VF: look there more closely.
    for part in [20, 50, 58, 66, 74, 80, 85, 90, 95, 100] {
        let mut adding = node.call("ADD", "p", &netns).start();
        std::thread::sleep(whole * part / 100);
        adding.kill().unwrap();
        adding.wait().unwrap();
        node.del("p", &netns);
        assert!(Interface::find(&netns, "net1").is_none(), "killed after {part} %");
        node.assert_as_before();
    }
}

#[test]
fn gc_gives_the_vf_of_a_dead_pod_back_and_leaves_that_of_a_living_one() {
    let (mut node, netns) = attached();
    let two = node.pod("two", "net-a", &[("bed.test/vf", &node.b[5])]);
    node.add("two", &two);
    node.world.delete_netns(&netns);
    node.conf["cniVersion"] = json!("1.1.0");
    node.conf["cni.dev/valid-attachments"] = json!([{"containerID": "two", "ifname": "eth0"}]);
    node.world.call("GC", "", "", &node.conf).ok();
    assert_eq!(node.world.records("p"), Vec::<String>::new());
    assert_eq!(node.world.leases("net-a").len(), 1);
    assert!(eventually(|| names(format!("/sys/class/net/{}", node.a[5].name)).contains(&"device".to_owned())));
    assert_eq!(node.a[5].row()["vlan_list"][0]["vlan"], json!(null), "no VLAN any more");
    assert_eq!(Interface::find(&two, "net1").unwrap().mtu(), 1600);
    node.del("two", &two);
    node.assert_as_before();
}

fn dev(interface: &Interface) -> &str {
    interface.link["parentdev"].as_str().unwrap()
}

#[test]
fn killed_in_the_middle_of_add() {
    let node = Node::new();
    // An IPAM plugin of somebody else's, which takes its time: by then the VF is in the pod.
    let recorder = Recorder::install(&node.world.bin, &["slow-ipam"]);
    recorder.behave("slow-ipam", "ADD", "sleep 3");
    node.network(
        "net-a",
        "bed.test/vf",
        &json!({
            "cniVersion": "1.0.0", "type": "sriov", "vlan": 12, "mac": MAC, "mtu": 1600, "ipam": {"type": "slow-ipam"}
        }),
    );
    let netns = node.pod("p", "net-a", &[("bed.test/vf", &node.b[6])]);
    let mut adding = node.call("ADD", "p", &netns).start();
    assert!(eventually(|| !recorder.calls().is_empty()), "the IPAM plugin is called");
    assert!(Interface::find(&netns, "net1").is_some());
    adding.kill().unwrap();
    adding.wait().unwrap();
    let before = Instant::now();
    node.del("p", &netns);
    assert!(before.elapsed().as_secs() < 30);
    assert!(Interface::find(&netns, "eth0").is_none() && Interface::find(&netns, "net1").is_none());
    assert_eq!(recorder.take(), ["ADD slow-ipam net1", "DEL slow-ipam net1"]);
    node.assert_as_before();

    // The same, and the runtime tries another ADD in place of a DEL: what was half made is undone first.
    let mut adding = node.call("ADD", "p", &netns).start();
    assert!(eventually(|| !recorder.calls().is_empty()));
    adding.kill().unwrap();
    adding.wait().unwrap();
    recorder.behave("slow-ipam", "ADD", r#"echo '{"cniVersion":"1.0.0","ips":[{"address":"10.14.0.9/24"}]}'; exit 0"#);
    node.add("p", &netns);
    assert_eq!(Interface::find(&netns, "net1").unwrap().addresses(), ["10.14.0.9/24"]);
    assert_eq!(recorder.take(), ["ADD slow-ipam net1", "DEL slow-ipam net1", "ADD slow-ipam net1"]);
    node.del("p", &netns);
    let last: Vec<Value> = recorder.calls().into_iter().map(|call| call.0).collect();
    assert_eq!(last.len(), 1);
    assert_eq!(last[0]["conf"]["prevResult"]["ips"][0]["address"], "10.14.0.9/24");
    node.assert_as_before();
}
