//! VFs that one release attached and the other one gives back, by record, by lease and after a kill; and the lease of a
//! release that is not written yet. What needs no VF is in `tests/releases`.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};

use crate::{
    harness::{Call, Interface, Which, beds, trace},
    node::Node,
};

const MAC: &str = "02:00:00:00:00:52";

/// The release before this one, and this one; then the other way round.
fn directions() -> [[PathBuf; 2]; 2] {
    let commit = include_str!("../releases/previous").trim();
    let old = beds().join("releases").join(commit).join("meta-cni");
    assert!(old.is_file(), "{} is missing: run make beds", old.display());
    let new = PathBuf::from(env!("CARGO_BIN_EXE_meta-cni"));
    [[old.clone(), new.clone()], [new, old]]
}

/// A node with a network that changes every setting of its VF.
fn node() -> Node {
    let node = Node::new();
    node.network(
        "net-a",
        "bed.test/vf",
        &json!({
            "cniVersion": "1.0.0", "type": "sriov", "vlan": 12, "mac": MAC, "trust": "on", "mtu": 1600,
            "ipam": {"type": "host-local", "subnet": "10.11.0.0/24"}
        }),
    );
    node
}

fn gc(node: &Node, program: &Path) -> Call {
    let mut conf = node.conf.clone();
    conf["cniVersion"] = json!("1.1.0");
    conf["cni.dev/valid-attachments"] = json!([]);
    node.world.call("GC", "", "", &conf).program(program)
}

#[test]
fn a_vf_of_one_release_is_checked_kept_and_given_back_by_the_other() {
    let node = node();
    for [first, second] in directions() {
        let netns = node.pod("p", "net-a", &[("bed.test/vf", &node.a[5])]);
        let call = |program: &Path, verb| node.call(verb, "p", &netns).program(program);
        call(&first, "ADD").ok();
        assert_eq!(Interface::find(&netns, "net1").unwrap().mac(), MAC);
        call(&second, "CHECK").ok();
        let other = node.pod("q", "net-a", &[("bed.test/vf", &node.a[5])]);
        let text = node.call("ADD", "q", &other).program(&second).fails(100);
        assert!(text.contains("is already allocated: meta:p:eth0:net1 of pod uid-p"), "{text}");
        node.take_devices("q");
        call(&first, "CHECK").ok();
        call(&second, "DEL").ok();
        node.assert_as_before();

        // The namespace is gone; then the record of the VF as well.
        call(&first, "ADD").ok();
        node.world.delete_netns(&netns);
        call(&second, "DEL").ok();
        node.assert_as_before();
        let netns = node.world.netns();
        node.call("ADD", "p", &netns).program(&first).ok();
        node.world.delete_netns(&netns);
        fs::remove_file("/var/lib/cni/meta-cni/sandboxes/p/meta:eth0:net1.json").unwrap();
        gc(&node, &second).ok();
        node.assert_as_before();
    }
}

#[test]
fn an_add_of_a_vf_that_one_release_was_killed_in_is_undone_by_the_other() {
    const KILLS: usize = 3;
    let node = node();
    for [first, second] in directions() {
        let netns = node.pod("p", "net-a", &[("bed.test/vf", &node.a[3])]);
        let add = || node.call("ADD", "p", &netns).program(&first);
        let all = trace(&add(), Which::State, None).points.len();
        node.call("DEL", "p", &netns).program(&second).ok();
        for turn in 0..KILLS {
            trace(&add(), Which::State, Some(turn * all / KILLS));
            if turn % 2 == 0 {
                node.call("ADD", "p", &netns).program(&second).ok();
                node.call("CHECK", "p", &netns).program(&first).ok();
            }
            node.call("DEL", "p", &netns).program(&second).ok();
            node.assert_as_before();
        }
    }
}

#[test]
fn a_vf_with_a_lease_of_a_newer_release_goes_home_and_is_given_to_nobody_until_the_file_is_gone() {
    let node = node();
    let netns = node.pod("p", "net-a", &[("bed.test/vf", &node.a[1])]);
    node.add("p", &netns);
    let file = format!("/var/lib/cni/meta-cni/vfs/{}.json", node.a[1].pci);
    let mut lease: Value = serde_json::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
    assert_eq!(lease["format"], 1);
    lease["format"] = json!(2);
    lease["representor"] = json!({"queues": 2});
    fs::write(&file, lease.to_string()).unwrap();
    let outcome = node.call("DEL", "p", &netns).run();
    assert_eq!(outcome.code, 0, "{outcome:?}");
    assert!(outcome.stderr.contains("a newer release wrote this lease"), "{}", outcome.stderr);
    node.gc();
    assert_eq!(fs::read_to_string(&file).unwrap(), lease.to_string());
    let text = node.call("ADD", "p", &netns).fails(100);
    assert!(text.contains("a newer release of meta-cni wrote its lease (format 2, this one knows 1)"), "{text}");
    assert!(text.contains(&format!("remove {file}")), "{text}");
    fs::remove_file(&file).unwrap();
    node.assert_as_before();
    node.add("p", &netns);
    node.del("p", &netns);
    node.assert_as_before();
}
