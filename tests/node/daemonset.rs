//! The DaemonSet of deploy/base, from the image that deploy/image makes, on a node that has its primary network alone.

use std::{collections::BTreeMap, fs, path::Path};

use serde_json::{Value, json};

use crate::{
    bed::{NETWORKS, Node, enter, wait_for},
    harness::names,
};

const DEPLOY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy");

fn pod(name: &str, networks: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "default", "annotations": {NETWORKS: networks}},
        "spec": {
            "nodeName": "node-1", "terminationGracePeriodSeconds": 0, "automountServiceAccountToken": false,
            "containers": [{"name": "one", "image": "localhost/test/busybox:1", "imagePullPolicy": "IfNotPresent",
                            "command": ["sh", "-c", "exec sleep 100000"]}]
        }
    })
}

/// The interfaces that a pod's network-status names.
fn interfaces(node: &Node, pod: &str) -> Vec<String> {
    let text = node.status_text(pod);
    let status: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("network-status {text:?}: {error}"));
    status.as_array().unwrap().iter().map(|entry| entry["interface"].as_str().unwrap().to_owned()).collect()
}

/// The files of a directory, with their bytes.
fn files(directory: &Path) -> BTreeMap<String, Vec<u8>> {
    names(directory).into_iter().map(|name| (name.clone(), fs::read(directory.join(name)).unwrap())).collect()
}

#[test]
fn the_daemonset_makes_a_node_ours_and_uninstall_gives_it_back() {
    let _turn = enter();
    let node = Node::without_us();
    let (net_d, bin) = (node.path("cni/net.d"), node.path("cni/bin"));
    let before = (files(&net_d), files(&bin));
    node.import_image(Path::new(env!("CARGO_BIN_EXE_meta-cni")), "meta-cni:latest");
    node.kubectl(&["apply", "-k", &format!("{DEPLOY}/base")], "");
    wait_for("our configuration is there", 60, || net_d.join("00-meta-cni.conflist").exists());
    node.kubectl(&["rollout", "status", "daemonset/meta-cni", "-n", "kube-system", "--timeout=60s"], "");

    node.macvlan("net-a", "10.40.0.0/24");
    node.create(&[pod("one", "net-a"), pod("two", "net-a@data0")]);
    node.wait_ready(&["one", "two"]);
    assert_eq!(interfaces(&node, "one"), ["eth0", "net1"]);
    assert_eq!(interfaces(&node, "two"), ["eth0", "data0"]);

    // The container is not needed for pods to come and go.
    node.kubectl(&["delete", "daemonset/meta-cni", "-n", "kube-system", "--timeout=60s"], "");
    node.create(&[pod("three", "net-a")]);
    node.wait_ready(&["three"]);
    assert_eq!(interfaces(&node, "three"), ["eth0", "net1"]);

    // Not while pods have networks that nobody else would detach.
    let (done, said) = node.run(&["/opt/cni/bin/meta-cni", "uninstall"], "");
    assert!(!done && ["default/one", "default/two", "default/three"].iter().all(|pod| said.contains(pod)), "{said}");
    node.kubectl(&["delete", "pods", "--all", "--timeout=60s"], "");
    wait_for("nothing is left of any pod", 60, || node.leftovers().is_empty());
    let (done, said) = node.run(&["/opt/cni/bin/meta-cni", "uninstall"], "");
    assert!(done, "{said}");
    assert_eq!((files(&net_d), files(&bin)), before);
}
