//! What one ADD costs: programs executed, requests to the API server; and what the pod object says afterwards.

use std::{collections::BTreeMap, fs, path::Path};

use serde_json::{Value, json};

use crate::{
    bed::{Bed, NETWORKS, handed},
    harness::Interface,
};

/// The programs executed in one run of strace, by name. `-ff` gives each process a file of its own, LOG.PID: in a common
/// one the lines of several processes cut each other in two.
fn executed(log: &Path) -> BTreeMap<String, usize> {
    let mut programs = BTreeMap::new();
    let prefix = format!("{}.", log.file_name().unwrap().to_str().unwrap());
    let files = fs::read_dir(log.parent().unwrap()).unwrap().map(|entry| entry.unwrap());
    let own = files.filter(|file| file.file_name().to_str().unwrap().starts_with(&prefix));
    let text: String = own.map(|file| fs::read_to_string(file.path()).unwrap()).collect();
    for line in text.lines().filter(|line| line.contains("execve(\"") && line.trim_end().ends_with("= 0")) {
        let path = line.split('"').nth(1).unwrap();
        *programs.entry(path.rsplit('/').next().unwrap().to_owned()).or_default() += 1;
    }
    programs
}

/// Every attachment of network-status as the kernel has it.
fn assert_status_is_true(status: &Value, netns: &str) {
    for entry in status.as_array().unwrap() {
        let found = Interface::find(netns, entry["interface"].as_str().unwrap()).expect("the interface");
        assert_eq!(entry["mac"], found.mac());
        let plain = |address: &String| address.split('/').next().unwrap().to_owned();
        assert_eq!(entry["ips"], json!(found.addresses().iter().map(plain).collect::<Vec<_>>()));
    }
}

/// As kube-flannel.yml has it: flanneld masquerades itself, so the bridge plugin does not.
fn flanneld_masquerades() {
    let path = "/run/flannel/subnet.env";
    let text = fs::read_to_string(path).unwrap();
    fs::write(path, text.replace("FLANNEL_IPMASQ=false", "FLANNEL_IPMASQ=true")).unwrap();
}

#[test]
fn flannel_and_two_networks_execute_and_ask_no_more_than_they_must() {
    let bed = Bed::enter();
    bed.macvlans(&[("budget-a", 11), ("budget-b", 12)]);
    let conf = bed.conf(&Bed::service_account());
    flanneld_masquerades();
    let networks = "budget-a,budget-b@data0";
    let definitions_and_status = |pod: &str| {
        vec![
            "get network-attachment-definitions/budget-a".to_owned(),
            "get network-attachment-definitions/budget-b".to_owned(),
            format!("patch pods/{pod}/status"),
        ]
    };

    let pod = Bed::pod_with("budget-handed", networks);
    let netns = bed.world.netns();
    let conf_with = handed(&conf, &json!({NETWORKS: networks}));
    let log = Path::new("/run/test/strace.log");
    let strace = ["strace", "-ff", "-qq", "-e", "trace=execve", "-o", log.to_str().unwrap()];
    let asked = Bed::requests(|| drop(bed.call("ADD", &netns, &conf_with, &pod).under(&strace).ok()));
    assert_eq!(asked, definitions_and_status("budget-handed"));
    // portmap asks twice whether there is iptables, with and without us.
    let expected = [
        ("meta-cni", 1),
        ("flannel", 1),
        ("bridge", 1),
        ("portmap", 1),
        ("iptables", 2),
        ("macvlan", 2),
        // The bridge's, and one for each macvlan.
        ("host-local", 3),
    ];
    assert_eq!(executed(log), expected.map(|(name, count)| (name.to_owned(), count)).into());
    let status = Bed::status("budget-handed").expect("network-status");
    let names: Vec<(&Value, &Value)> =
        status.as_array().unwrap().iter().map(|entry| (&entry["name"], &entry["interface"])).collect();
    let wanted = [("cbr0", "eth0"), ("default/budget-a", "net1"), ("default/budget-b", "data0")];
    assert_eq!(names, wanted.map(|(a, b)| (json!(a), json!(b))).each_ref().map(|(a, b)| (a, b)));
    assert_status_is_true(&status, &netns);
    let asked = Bed::requests(|| drop(bed.call("DEL", &netns, &conf_with, &pod).ok()));
    assert_eq!(asked, Vec::<String>::new(), "DEL asks for nothing");
    bed.assert_undone(&netns);

    // Without the annotations, one request more: and the runtime may say null for "not handed over".
    for (name, conf) in [("budget-asked", conf.clone()), ("budget-null", handed(&conf, &Value::Null))] {
        let pod = Bed::pod_with(name, networks);
        let netns = bed.world.netns();
        let asked = Bed::requests(|| drop(bed.call("ADD", &netns, &conf, &pod).ok()));
        assert_eq!(asked, [vec![format!("get pods/{name}")], definitions_and_status(name)].concat());
        assert_status_is_true(&Bed::status(name).expect("network-status"), &netns);
        bed.call("DEL", &netns, &conf, &pod).ok();
        bed.assert_undone(&netns);
    }
}

#[test]
fn the_same_definition_twice_in_a_pod_is_asked_for_once() {
    let bed = Bed::enter();
    bed.macvlans(&[("twice", 13)]);
    let conf = bed.conf(&Bed::service_account());
    let pod = Bed::pod_with("pod-twice", "twice,default/twice@again");
    let netns = bed.world.netns();
    let asked = Bed::requests(|| drop(bed.call("ADD", &netns, &conf, &pod).ok()));
    let wanted = ["get pods/pod-twice", "get network-attachment-definitions/twice", "patch pods/pod-twice/status"];
    assert_eq!(asked, wanted);
    let status = Bed::status("pod-twice").expect("network-status");
    assert_eq!((&status[1]["interface"], &status[2]["interface"]), (&json!("net1"), &json!("again")));
    assert_status_is_true(&status, &netns);
    bed.call("DEL", &netns, &conf, &pod).ok();
    bed.assert_undone(&netns);
}

#[test]
fn a_pod_that_asks_for_nothing_costs_no_get() {
    let bed = Bed::enter();
    let conf = bed.conf(&Bed::service_account());
    for (name, annotations) in [("none", json!({})), ("others", json!({"kubernetes.io/config.source": "api"}))] {
        let pod = Bed::pod(name, &annotations);
        let netns = bed.world.netns();
        let conf = handed(&conf, &annotations);
        let asked = Bed::requests(|| drop(bed.call("ADD", &netns, &conf, &pod).ok()));
        assert_eq!(asked, [format!("patch pods/{name}/status")]);
        assert_status_is_true(&Bed::status(name).expect("network-status"), &netns);
        bed.call("DEL", &netns, &conf, &pod).ok();
        bed.assert_undone(&netns);
    }
}
