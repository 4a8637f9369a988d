//! The life of what the drop-in `sriov` attached: DEL with things missing, kills, CHECK, GC and STATUS, and under our own
//! meta plugin.

use std::fs;

use serde_json::{Value, json};

use crate::{
    face::{MAC, call, cnitool_ok, conf, node, with},
    harness::{Interface, Recorder, names},
    node::{Vf, eventually},
};

/// Where the drop-in keeps its records.
const RECORDS: &str = "/var/lib/cni/meta-cni/faces/sriov/sandboxes";

#[test]
fn detached_with_namespace_records_or_lease_missing() {
    let node = node();
    let vf = &node.a[5];
    let conf = with(
        conf(vf),
        json!({"vlan": 12, "mac": MAC, "trust": "on", "mtu": 1600, "ipam": {"type": "host-local", "subnet": "10.11.0.0/24"}}),
    );
    let tear = || {
        for name in names(format!("{RECORDS}/c")) {
            let file = format!("{RECORDS}/c/{name}");
            let text = fs::read_to_string(&file).unwrap();
            fs::write(&file, &text[..text.len() / 2]).unwrap();
        }
    };
    for case in ["", "CNI_NETNS empty", "namespace gone", "namespace gone, no path", "torn record", "no record"] {
        let netns = node.world.netns();
        call(&node, "ADD", "c", &netns, &conf).ok();
        let net1 = Interface::find(&netns, "net1").unwrap();
        assert_eq!((net1.mac(), net1.mtu(), node.world.leases("sriov-net").len()), (MAC, 1600, 1));
        let told = match case {
            "CNI_NETNS empty" | "namespace gone, no path" => "",
            _ => netns.as_str(),
        };
        if case.starts_with("namespace gone") {
            node.world.delete_netns(&netns);
        }
        match case {
            "torn record" => tear(),
            "no record" => fs::remove_dir_all(RECORDS).unwrap(),
            _ => {}
        }
        call(&node, "DEL", "c", told, &conf).ok();
        node.assert_as_before();
        call(&node, "DEL", "c", told, &conf).ok();
    }
}

#[test]
fn killed_in_the_middle_of_add() {
    let node = node();
    let recorder = Recorder::install(&node.world.bin, &["slow-ipam"]);
    recorder.behave("slow-ipam", "ADD", "sleep 3");
    let conf = with(conf(&node.b[6]), json!({"vlan": 12, "mac": MAC, "ipam": {"type": "slow-ipam"}}));
    let netns = node.world.netns();
    let kill = || {
        let mut adding = call(&node, "ADD", "c", &netns, &conf).start();
        assert!(eventually(|| !recorder.calls().is_empty()), "the IPAM plugin is called");
        assert!(Interface::find(&netns, "net1").is_some());
        adding.kill().unwrap();
        adding.wait().unwrap();
    };
    kill();
    call(&node, "DEL", "c", &netns, &conf).ok();
    assert!(Interface::find(&netns, "net1").is_none());
    assert_eq!(recorder.take(), ["ADD slow-ipam net1", "DEL slow-ipam net1"]);
    node.assert_as_before();
    // Another ADD in place of a DEL: what was half made is undone first.
    kill();
    recorder.behave("slow-ipam", "ADD", r#"echo '{"cniVersion":"1.0.0","ips":[{"address":"10.14.0.9/24"}]}'; exit 0"#);
    let result = call(&node, "ADD", "c", &netns, &conf).ok();
    assert_eq!(result["ips"][0]["address"], "10.14.0.9/24");
    assert_eq!(recorder.take(), ["ADD slow-ipam net1", "DEL slow-ipam net1", "ADD slow-ipam net1"]);
    call(&node, "DEL", "c", &netns, &conf).ok();
    recorder.take();
    // Without a record the IPAM plugin is asked all the same.
    call(&node, "DEL", "c", &netns, &conf).ok();
    assert_eq!(recorder.take(), ["DEL slow-ipam net1"]);
    node.assert_as_before();
}

#[test]
fn check_sees_what_changed_and_lets_a_chained_plugin_pass() {
    let node = node();
    node.world.plugins("reference", &["tuning"]);
    let vf = &node.a[1];
    let conf = with(conf(vf), json!({"ipam": {"type": "static", "addresses": [{"address": "10.14.0.5/24"}]}}));
    let netns = node.world.netns();
    let result = call(&node, "ADD", "c", &netns, &conf).ok();
    let chained = json!({"cniVersion": "1.0.0", "name": "sriov-net", "type": "tuning", "mac": "02:00:00:00:00:99"});
    let tune = |verb: &str, previous: &Value| {
        let conf = with(chained.clone(), json!({"prevResult": previous}));
        node.world.call(verb, "c", &netns, &conf).program(&node.world.bin.join("tuning")).if_name("net1").ok()
    };
    let tuned = tune("ADD", &result);
    assert_eq!(tuned["interfaces"][0]["mac"], "02:00:00:00:00:99");
    call(&node, "CHECK", "c", &netns, &with(conf.clone(), json!({"prevResult": tuned}))).ok();
    // With the result as it was before the chain went on, the address is a stranger's.
    let text = call(&node, "CHECK", "c", &netns, &with(conf.clone(), json!({"prevResult": result}))).fails(101);
    assert!(text.contains("net1 has MAC 02:00:00:00:00:99, the result says"), "{text}");
    tune("DEL", &tuned);
    crate::harness::ip_in(&netns, "addr del 10.14.0.5/24 dev net1");
    let text = call(&node, "CHECK", "c", &netns, &with(conf.clone(), json!({"prevResult": result}))).fails(101);
    assert!(text.contains("10.14.0.5/24"), "{text}");
    call(&node, "DEL", "c", &netns, &conf).ok();
    node.assert_as_before();
    let text = call(&node, "CHECK", "c", &netns, &with(conf.clone(), json!({"prevResult": result}))).fails(101);
    assert!(text.contains("container c has no attachment of network"), "{text}");
}

#[test]
fn gc_and_status_speak_for_this_network() {
    let node = node();
    let ipam = json!({"type": "host-local", "subnet": "10.11.0.0/24"});
    let of = |vf: &Vf| with(conf(vf), json!({"cniVersion": "1.1.0", "vlan": 7, "ipam": ipam}));
    let (one, two, other) = (node.world.netns(), node.world.netns(), node.world.netns());
    call(&node, "ADD", "one", &one, &of(&node.a[0])).ok();
    call(&node, "ADD", "two", &two, &of(&node.a[1])).ok();
    let foreign = with(of(&node.a[2]), json!({"name": "another"}));
    call(&node, "ADD", "other", &other, &foreign).ok();
    // An address of nobody, in this network's pool and in the other one's.
    for network in ["sriov-net", "another"] {
        fs::write(format!("/var/lib/cni/networks/{network}/10.11.0.77"), "nobody\r\nnet1").unwrap();
    }
    let mut gc = of(&node.a[0]);
    gc.as_object_mut().unwrap().remove("deviceID");
    node.world.call("GC", "", "", &gc).program(&node.world.bin.join("sriov")).ok();
    assert_eq!(names(RECORDS), ["one", "other", "two"], "no list says nothing");
    gc["cni.dev/valid-attachments"] = json!([{"containerID": "two", "ifname": "net1"}]);
    node.world.call("GC", "", "", &gc).program(&node.world.bin.join("sriov")).ok();
    assert_eq!(names(RECORDS), ["other", "two"]);
    assert!(Interface::find(&one, "net1").is_none() && Interface::find(&two, "net1").is_some());
    assert_eq!(node.a[0].row()["vlan_list"][0]["vlan"], json!(null));
    assert_eq!((node.world.leases("sriov-net").len(), node.world.leases("another").len()), (1, 2));

    // STATUS: of one VF, and of all.
    let status = |conf: &Value| node.world.call("STATUS", "", "", conf).program(&node.world.bin.join("sriov"));
    let text = status(&of(&node.a[1])).fails(50);
    assert!(text.contains("no VF is left: pci address") && text.contains(&two), "{text}");
    status(&of(&node.a[0])).ok();
    gc.as_object_mut().unwrap().remove("cni.dev/valid-attachments");
    status(&gc).ok();
    let mut bad = gc.clone();
    bad["ipam"] = json!({"type": "not-installed"});
    let text = status(&bad).fails(50);
    assert!(text.contains("failed to find plugin \"not-installed\""), "{text}");
    let held: Vec<&Vf> = node.a.iter().chain(&node.b).filter(|vf| *vf != &node.a[1] && *vf != &node.a[2]).collect();
    for vf in &held {
        fs::write(format!("/var/lib/cni/sriov/pci/{}", vf.pci), &two).unwrap();
    }
    let text = status(&gc).fails(50);
    assert!(text.contains("no VF is left: all 14 are in use"), "{text}");
    for vf in &held {
        fs::remove_file(format!("/var/lib/cni/sriov/pci/{}", vf.pci)).unwrap();
    }
    // The tool of libcni DELs the attachments it made, and hands on that it lists none: a list of null says nothing.
    cnitool_ok(&node, "status", &one, &gc, &[]);
    cnitool_ok(&node, "add", &one, &of(&node.a[0]), &[]);
    assert_eq!(names(RECORDS).len(), 3);
    cnitool_ok(&node, "gc", &one, &of(&node.a[0]), &[]);
    assert_eq!(names(RECORDS), ["other", "two"]);
    call(&node, "DEL", "two", &two, &of(&node.a[1])).ok();
    call(&node, "DEL", "other", &other, &foreign).ok();
    fs::remove_file("/var/lib/cni/networks/another/10.11.0.77").unwrap();
    node.assert_as_before();
}

#[test]
fn the_meta_plugin_executes_the_drop_in() {
    let mut node = node();
    node.conf["builtins"] = json!(["host-local"]);
    let vf = &node.b[3];
    node.network(
        "net-a",
        "bed.test/vf",
        &json!({"cniVersion": "1.0.0", "type": "sriov", "vlan": 33, "mac": MAC,
                "ipam": {"type": "host-local", "subnet": "10.11.0.0/24"}}),
    );
    let netns = node.pod("p", "net-a", &[("bed.test/vf", vf)]);
    node.add("p", &netns);
    let net1 = Interface::find(&netns, "net1").unwrap();
    assert_eq!((net1.mac(), net1.addresses()), (MAC, vec!["10.11.0.2/24".to_owned()]));
    assert_eq!(vf.row()["vlan_list"][0]["vlan"], 33);
    let status = node.status("p", "net1");
    assert_eq!((&status["mac"], &status["ips"]), (&json!(MAC), &json!(["10.11.0.2"])));
    assert_eq!((names(RECORDS), node.world.records("p").len()), (vec!["p".to_owned()], 2));
    node.call("CHECK", "p", &netns).ok();
    node.del("p", &netns);
    assert!(Interface::find(&netns, "net1").is_none());
    node.assert_as_before();

    // The meta plugin's journal is lost while the pod is gone: the drop-in's is its own.
    node.add("p", &netns);
    node.world.delete_netns(&netns);
    node.del("p", &netns);
    node.assert_as_before();
}

#[test]
fn a_crash_of_the_meta_plugin_or_of_the_drop_in_that_it_executes_is_undone() {
    let mut node = node();
    node.conf["builtins"] = json!(["host-local"]);
    let recorder = Recorder::install(&node.world.bin, &["slow-ipam"]);
    let answer = r#"sleep 3; echo '{"cniVersion":"1.0.0","ips":[{"address":"10.14.0.9/24"}]}'; exit 0"#;
    recorder.behave("slow-ipam", "ADD", answer);
    let network =
        json!({"cniVersion": "1.0.0", "type": "sriov", "vlan": 12, "mac": MAC, "ipam": {"type": "slow-ipam"}});
    node.network("net-a", "bed.test/vf", &network);
    let netns = node.pod("p", "net-a", &[("bed.test/vf", &node.a[2])]);
    let start = || {
        let adding = node.call("ADD", "p", &netns).start();
        assert!(eventually(|| !recorder.calls().is_empty()), "the IPAM plugin is called");
        assert!(Interface::find(&netns, "net1").is_some());
        adding
    };
    // The drop-in goes on without its caller; DEL waits for it.
    let mut adding = start();
    adding.kill().unwrap();
    adding.wait().unwrap();
    node.del("p", &netns);
    assert!(Interface::find(&netns, "net1").is_none());
    assert_eq!(recorder.take(), ["ADD slow-ipam net1", "DEL slow-ipam net1"]);
    node.assert_as_before();

    let adding = start();
    let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", adding.id())).unwrap();
    let drop_in = nix::unistd::Pid::from_raw(children.trim().parse().expect("one child: the drop-in"));
    nix::sys::signal::kill(drop_in, nix::sys::signal::Signal::SIGKILL).unwrap();
    let output = adding.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("\"code\": 103") && text.contains("default/net-a as net1"), "{text}");
    assert_eq!(recorder.take(), ["ADD slow-ipam net1", "DEL slow-ipam net1"]);
    node.assert_as_before();
}
