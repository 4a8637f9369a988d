//! `ipam release`: what it gives back, by which way, and what it refuses.

use std::{fs, process::Command};

use serde_json::{Value, json};

use super::{Node, json_of, plant, said, stranger};
use crate::harness::{World, bare_add, names};

#[test]
fn only_an_address_without_a_living_holder_is_given_back() {
    let node = Node::new();
    let netns = &node.netns[0];
    let (code, text) = said("ipam release 10.10.1.2");
    let who = format!("pod default/p, container c1, interface net1, on net1 in {netns}");
    let expected =
        format!("meta-cni: 10.10.1.2 of net-a is in use: {who}; delete the pod, and its DEL gives the address back\n");
    assert_eq!((code, text), (1, expected));
    plant("net-a", "10.10.1.51", "kept for the printer");
    let (code, text) = said("ipam release 10.10.1.51");
    assert!(code == 1 && text.contains("taken by somebody who is no CNI program (\"kept for the printer\")"), "{text}");
    plant("net-a", "10.10.1.3", "other\r\nnet1");
    let (code, text) = said("ipam release 10.10.1.3");
    let who =
        "in use: container other, interface net1, and by our records pod default/q, container c2 as net1, on net1 in";
    assert!(code == 1 && text.contains(who), "{text}");
    plant("net-a", "10.10.1.3", "c2\r\nnet1");
    let (code, text) = said("ipam release 10.10.1.99");
    assert_eq!((code, text.as_str()), (1, "meta-cni: no pool has a lease of 10.10.1.99\n"));
    let (code, text) = said("ipam release 10.10.1.300");
    assert!(code == 2 && text.starts_with("meta-cni: \"10.10.1.300\" is no IP address"), "{text}");
    assert_eq!(node.world.leases("net-a"), ["10.10.1.2", "10.10.1.3", "10.10.1.51"]);

    node.kill_q();
    plant("net-a", "10.10.1.50", "");
    let (code, report) = json_of("ipam release 10.10.1.3 -o json");
    let expected = json!({"network": "net-a", "directory": "/var/lib/cni/networks/net-a", "address": "10.10.1.3",
                          "state": "dead", "container": "c2", "interface": "net1"});
    assert_eq!((code, report), (0, expected));
    assert_eq!(said("ipam release 10.10.1.50").0, 0);
    assert_eq!(node.world.leases("net-a"), ["10.10.1.2", "10.10.1.51"]);
    // In the primary's pool, too, and without any record.
    plant("podnet", "10.88.0.77", "stranger\r\neth0");
    let (code, text) = said("ipam release 10.88.0.77");
    assert_eq!(
        (code, text.as_str()),
        (0, "10.88.0.77 of podnet is free; it was held for container stranger eth0 (unknown)\n")
    );
    assert_eq!(node.world.leases("podnet"), ["10.88.0.2", "10.88.0.3"]);
    // The DEL that comes late has nothing to say about who has it then.
    plant("net-a", "10.10.1.3", "c9\r\nnet1");
    node.world.call("DEL", "c2", "", &node.conf).pod("q").ok();
    assert_eq!(node.world.leases("net-a"), ["10.10.1.2", "10.10.1.3", "10.10.1.51"]);
}

#[test]
fn an_address_of_the_primary_is_given_back_by_its_own_plugins() {
    let world = World::new();
    let primary = world.flannel_primary();
    let node = Node::with_primary(world, &primary);
    assert_eq!(node.world.leases("cbr0"), ["10.244.7.2", "10.244.7.3"]);
    let (_, listing) = json_of("ipam list --network cbr0 -o json");
    assert_eq!(listing["pools"][0]["free"], 251, "Flannel's files say the range: {listing}");
    node.kill_q();
    fs::rename("/etc/cni/net.d", "/etc/cni/other.d").unwrap();
    let (code, text) = said("ipam release 10.244.7.3");
    let refusal = "10.244.7.3 of cbr0 is the primary network's, whose own plugins have to give it back";
    assert!(code == 1 && text.contains(refusal) && text.contains("--net-dir"), "{text}");
    let (code, text) = said("ipam release 10.244.7.3 --net-dir /etc/cni/other.d");
    let freed = "10.244.7.3 of cbr0 is free; it was held for container c2 eth0 (dead)\n";
    assert_eq!((code, text.as_str()), (0, freed));
    assert_eq!(node.world.leases("cbr0"), ["10.244.7.2"]);
    assert_eq!(names("/var/lib/cni/flannel"), ["c1"], "Flannel's own file is gone, too");
    assert_eq!(node.world.records("c2"), Vec::<String>::new(), "all that the container had is undone");
    assert_eq!(node.world.leases("net-a"), ["10.10.1.2"]);
}

#[test]
fn so_is_one_of_a_chain_that_the_runtime_runs_by_itself() {
    let world = World::new();
    let list: Value = serde_json::from_str(&fs::read_to_string(world.flannel_primary()).unwrap()).unwrap();
    // Not Go's host-local but ours, beside the rest of the chain; and no meta-cni.
    world.drop_in("host-local");
    fs::create_dir_all("/etc/cni/net.d").unwrap();
    let netns = [world.netns(), world.netns()];
    bare_add(&world, &list, "c1", &netns[0]);
    bare_add(&world, &list, "c2", &netns[1]);
    world.delete_netns(&netns[1]);
    let line = format!("ipam release 10.244.7.3 --bin-dir {}", world.bin.display());
    let (code, text) = said(&line);
    assert!(code == 1 && text.contains("no configuration of it or of meta-cni in /etc/cni/net.d"), "{text}");
    fs::write("/etc/cni/net.d/10-flannel.conflist", list.to_string()).unwrap();
    let (code, text) = said(&line);
    let freed = "10.244.7.3 of cbr0 is free; it was held for container c2 eth0 (unknown)\n";
    assert_eq!((code, text.as_str()), (0, freed));
    assert_eq!(names("/var/lib/cni/flannel"), ["c1"], "Flannel's own file is gone, too");
    let (code, text) = said("ipam release 10.244.7.2");
    assert!(code == 1 && text.contains("container c1, interface eth0, on eth0 in"), "{text}");
    assert_eq!(world.leases("cbr0"), ["10.244.7.2"]);
}

#[test]
fn who_cannot_look_into_namespaces_takes_nobody_for_dead() {
    let node = Node::new();
    node.kill_q();
    plant("net-a", "10.10.1.53", "bare\r\neth0");
    stranger(&node.world, "eth7", "10.10.1.53/24");
    let run = |line: &str| {
        let words = ["--pid", "--fork", "--mount-proc", "setpriv", "--bounding-set", "-sys_admin"];
        let output =
            Command::new("unshare").args(words).arg(env!("CARGO_BIN_EXE_meta-cni")).args(line.split(' ')).output();
        let output = output.unwrap();
        (output.status.code(), String::from_utf8([output.stdout, output.stderr].concat()).unwrap())
    };
    let (_, text) = run("ipam list --network net-a");
    let note = "note: a namespace cannot be looked at, so nobody is taken for dead: any: none can be entered";
    assert!(text.starts_with("1 pool, 3 leases (1 live, 2 unknown)\n") && text.contains(note), "{text}");
    for address in ["10.10.1.3", "10.10.1.53"] {
        let (code, text) = run(&format!("ipam release {address}"));
        assert!(code == Some(1) && text.contains("may be in use: any: none can be entered"), "{text}");
    }
    assert_eq!(node.world.leases("net-a"), ["10.10.1.2", "10.10.1.3", "10.10.1.53"]);
    let (code, text) = run("ipam verify");
    assert!(code == Some(1) && text.contains("node: unreadable-namespace: "), "{text}");
}
