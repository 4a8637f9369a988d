//! Pods from the API server and from files: what they get, what they can read of it, and that all of it is given back.

use serde_json::{Value, json};

use crate::{
    bed::{NETWORKS, Node, enter, wait_for},
    harness::{Interface, ping},
};

/// A pod that can read its network-status.
fn pod(name: &str, networks: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "default", "annotations": {NETWORKS: networks}},
        "spec": {
            "nodeName": "node-1", "terminationGracePeriodSeconds": 0, "automountServiceAccountToken": false,
            "containers": [{
                "name": "one", "image": "localhost/test/busybox:1", "imagePullPolicy": "IfNotPresent",
                "command": ["sh", "-c", "exec sleep 100000"],
                "volumeMounts": [{"name": "podinfo", "mountPath": "/podinfo"}]
            }],
            "volumes": [{"name": "podinfo", "downwardAPI": {"items": [{
                "path": "network-status",
                "fieldRef": {"fieldPath": "metadata.annotations['k8s.v1.cni.cncf.io/network-status']"}
            }]}}]
        }
    })
}

fn read_inside(node: &Node, pod: &str) -> String {
    node.kubectl(&["exec", pod, "--", "cat", "/podinfo/network-status"], "")
}

/// Panics unless a pod has these interfaces, and its object says so.
fn assert_attached(node: &Node, pod: &str, networks: &[(&str, &str)]) -> Value {
    let netns = node.netns_of(pod);
    let text = node.status_text(pod);
    let status: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("network-status {text:?}: {error}"));
    let entries = status.as_array().unwrap();
    let named: Vec<(&str, &str)> =
        entries.iter().map(|entry| (entry["name"].as_str().unwrap(), entry["interface"].as_str().unwrap())).collect();
    assert_eq!(named, networks);
    for entry in entries {
        let found = Interface::find(&netns, entry["interface"].as_str().unwrap());
        let mac = found.as_ref().map_or(Value::Null, |found| json!(found.mac()));
        assert_eq!(entry["mac"], mac, "only the recording plugin makes no interface");
        let plain = |address: &String| address.split('/').next().unwrap().to_owned();
        let addresses = found.map(|found| found.addresses().iter().map(plain).collect::<Vec<_>>());
        assert_eq!(entry["ips"], json!(addresses));
    }
    status
}

/// Panics unless a pod's containers can read what its object says.
fn assert_told(node: &Node, pod: &str) {
    // kubelet brings the file up to date when it hears of the annotation.
    wait_for("network-status in the downward API", 90, || !read_inside(node, pod).is_empty());
    assert_eq!(read_inside(node, pod), node.status_text(pod).trim());
}

#[test]
fn pods_get_their_networks_can_read_it_and_give_all_back() {
    let node = enter();
    node.macvlan("net-a", "10.40.0.0/24");
    node.create(&[pod("one", "net-a"), pod("two", "net-a@data0"), pod("plain", "")]);
    node.wait_ready(&["one", "two", "plain"]);
    assert_attached(&node, "one", &[("podnet", "eth0"), ("default/net-a", "net1")]);
    let two = assert_attached(&node, "two", &[("podnet", "eth0"), ("default/net-a", "data0")]);
    assert_attached(&node, "plain", &[("podnet", "eth0")]);
    for name in ["one", "two", "plain"] {
        assert_told(&node, name);
    }
    let netns = node.netns_of("one");
    for entry in two.as_array().unwrap() {
        let address = entry["ips"][0].as_str().unwrap();
        assert!(ping(&netns, address), "one reaches two on {}", entry["name"]);
    }
    // The pod's own address for kubelet is the primary's.
    let of_kubelet = node.kubectl(&["get", "pod", "two", "-o", "jsonpath={.status.podIP}"], "");
    assert_eq!(two[0]["ips"], json!([of_kubelet]));

    node.kubectl(&["delete", "pod", "one", "two", "plain", "--timeout=60s"], "");
    node.assert_free();
}

/// Pods in pairs, each with the primary network and one of its own, all at the same moment: kubelet makes them at once.
#[test]
fn six_pods_made_at_once_are_all_ready_and_reach_each_other() {
    let node = enter();
    node.macvlan("net-e", "10.44.0.0/24");
    let names: Vec<String> = (0..6).map(|at| format!("dense-{at}")).collect();
    node.create(&names.iter().map(|name| pod(name, "net-e")).collect::<Vec<_>>());
    node.wait_ready(&names.iter().map(String::as_str).collect::<Vec<_>>());
    let networks = [("podnet", "eth0"), ("default/net-e", "net1")];
    let statuses: Vec<Value> = names.iter().map(|name| assert_attached(&node, name, &networks)).collect();
    let address = |at: usize, network: usize| statuses[at][network]["ips"][0].as_str().unwrap();
    for network in [0, 1] {
        let mut all: Vec<&str> = (0..6).map(|at| address(at, network)).collect();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 6, "an address twice: {all:?}");
        for pair in [0, 2, 4] {
            let netns = node.netns_of(&names[pair]);
            assert!(ping(&netns, address(pair + 1, network)), "{} reaches {}", names[pair], names[pair + 1]);
        }
    }
    // No attempt failed on the way.
    for name in &names {
        assert!(!node.events(name).contains("Failed"), "{}", node.events(name));
    }
    node.kubectl(&["delete", "pods", "--all", "--timeout=60s"], "");
    node.assert_free();
}

#[test]
fn containerd_may_be_killed_while_pods_live_and_while_they_are_made() {
    let node = enter();
    node.macvlan("net-b", "10.41.0.0/24");
    let slow = node.recording("slow", None);
    node.create(&[pod("before", "net-b")]);
    node.wait_ready(&["before"]);
    let networks = [("podnet", "eth0"), ("default/net-b", "net1")];
    let status = assert_attached(&node, "before", &networks);
    let sandbox = node.sandbox_of("before");

    // In the middle of an ADD.
    slow.behave("slow", "ADD", "sleep 3\n");
    node.create(&[pod("during", "net-b,slow")]);
    wait_for("ADD has come to its last network", 60, || slow.calls().len() == 1);
    node.restart_containerd();
    slow.relax("slow", "ADD");
    node.wait_ready(&["before", "during"]);
    // The ADD that nobody waited for any more was undone, then the pod was attached anew.
    assert_eq!(slow.take(), ["ADD slow net2", "DEL slow net2", "ADD slow net2"]);
    assert_eq!(assert_attached(&node, "before", &networks), status);
    assert_told(&node, "before");
    assert_eq!(node.sandbox_of("before"), sandbox, "the pod that lived was made again");
    assert_attached(&node, "during", &[networks.as_slice(), &[("default/slow", "net2")]].concat());

    node.restart_containerd();
    node.kubectl(&["delete", "pods", "--all", "--timeout=60s"], "");
    node.assert_free();
    assert_eq!(slow.take(), ["DEL slow net2"]);
}

#[test]
fn a_static_pod_gets_its_networks_too() {
    let node = enter();
    node.macvlan("net-c", "10.42.0.0/24");
    node.static_manifest("fixed", &pod("fixed", "net-c,net-c"));
    node.wait_ready(&["fixed-node-1"]);
    let networks = [("podnet", "eth0"), ("default/net-c", "net1"), ("default/net-c", "net2")];
    assert_attached(&node, "fixed-node-1", &networks);
    // The status is the mirror's; kubelet fills a static pod's downward API from the pod's file.
    assert_eq!(read_inside(&node, "fixed-node-1"), "");
    node.remove_static_manifest("fixed");
    node.kubectl(&["wait", "--for=delete", "--timeout=60s", "pod/fixed-node-1"], "");
    node.assert_free();
}

#[test]
fn a_pod_whose_definition_is_missing_says_so_and_starts_when_it_comes() {
    let node = enter();
    node.create(&[pod("early", "net-d")]);
    wait_for("the user is told", 60, || node.events("early").contains("there is no definition default/net-d"));
    assert_eq!(node.status_text("early"), "");
    node.macvlan("net-d", "10.43.0.0/24");
    node.wait_ready(&["early"]);
    assert_attached(&node, "early", &[("podnet", "eth0"), ("default/net-d", "net1")]);
    node.kubectl(&["delete", "pod", "early", "--timeout=60s"], "");
    node.assert_free();
}

#[test]
fn devices_that_kubelet_gave_a_pod_go_to_its_networks() {
    let node = enter();
    let resource = "example.org/port";
    let card = node.recording("card", Some(resource));
    let plugin = node.device_plugin(resource, &["port-b", "port-a"]);
    let mut rich = pod("rich", "card,card@second");
    rich["spec"]["containers"][0]["resources"] = json!({"limits": {resource: "2"}});
    node.create(&[rich]);
    node.wait_ready(&["rich"]);
    let given: Vec<(Value, Value)> =
        card.calls().iter().map(|call| (call.0["ifname"].clone(), call.0["conf"]["deviceID"].clone())).collect();
    assert_eq!(given, [("net1", "port-a"), ("second", "port-b")].map(|(a, b)| (json!(a), json!(b))));
    // kubelet counts what it was asked: for one pod, and never for all.
    let metrics = node.kubectl(&["get", "--raw", "/api/v1/nodes/node-1/proxy/metrics"], "");
    let counted = |name: &str| metrics.lines().find(|line| line.starts_with(name)).map(str::to_owned);
    let get = counted("kubelet_pod_resources_endpoint_requests_get{").expect("kubelet counts Get");
    assert!(!get.ends_with(" 0"), "{get}");
    assert_eq!(counted("kubelet_pod_resources_endpoint_requests_list{"), None);
    assert_eq!(counted("kubelet_pod_resources_endpoint_errors_get{"), None);

    // One that asks for the network alone is told what it lacks.
    node.create(&[pod("poor", "card")]);
    let told = "resource example.org/port: 1 device(s) wanted for default/card, kubelet gave the pod none";
    wait_for("the user is told", 60, || node.events("poor").contains(told));
    node.kubectl(&["delete", "pod", "rich", "poor", "--timeout=60s"], "");
    node.assert_free();

    // kubelet knows a static pod by a UID of its own.
    card.take();
    let mut fixed = pod("held", "card");
    fixed["spec"]["containers"][0]["resources"] = json!({"limits": {resource: "1"}});
    node.static_manifest("held", &fixed);
    node.wait_ready(&["held-node-1"]);
    let device = card.calls()[0].0["conf"]["deviceID"].clone();
    assert!(device == "port-a" || device == "port-b", "{device}");
    node.remove_static_manifest("held");
    node.kubectl(&["wait", "--for=delete", "--timeout=60s", "pod/held-node-1"], "");
    node.assert_free();
    drop(plugin);
}

/// The definition and the pod of Multus' quickstart. Its image is another one here, since there is no registry.
#[test]
fn the_pod_of_multus_quickstart_runs_unchanged() {
    let node = enter();
    for arguments in ["link add eth0 type veth peer name wire0", "link set eth0 up", "link set wire0 up"] {
        node.ip(arguments);
    }
    let example = include_str!("../../deploy/examples/quickstart.yaml")
        .replace("image: alpine", "image: localhost/test/busybox:1")
        .replace("  containers:", "  nodeName: node-1\n  containers:");
    node.kubectl(&["create", "-f", "-"], &example);
    node.wait_ready(&["samplepod"]);
    let status = assert_attached(&node, "samplepod", &[("podnet", "eth0"), ("default/macvlan-conf", "net1")]);
    let address = status[1]["ips"][0].as_str().unwrap();
    let last: u8 = address.strip_prefix("192.168.1.").expect("of the definition's range").parse().unwrap();
    assert!((200..=216).contains(&last), "{address}");
    node.kubectl(&["delete", "pod", "samplepod", "--timeout=60s"], "");
    node.assert_free();
    node.ip("link delete eth0");
}
