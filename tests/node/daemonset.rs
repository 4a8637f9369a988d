//! The DaemonSet of deploy/base, from the image that deploy/image makes, on a node that has its primary network alone.

use std::{collections::BTreeMap, fs, path::Path};

use serde_json::{Value, json};

use crate::{
    bed::{NETWORKS, Node, STATUS, enter, wait_for},
    harness::names,
    rollout,
};

pub(crate) fn pod(name: &str, networks: &str) -> Value {
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

/// The interfaces that network-status names in the JSON of a pod.
pub(crate) fn interfaces(pod: &str) -> Vec<String> {
    let pod: Value = serde_json::from_str(pod).unwrap_or_else(|error| panic!("{pod}: {error}"));
    let text = pod["metadata"]["annotations"][STATUS].as_str().unwrap_or_else(|| panic!("no network-status: {pod:#}"));
    let status: Value = serde_json::from_str(text).unwrap_or_else(|error| panic!("network-status {text:?}: {error}"));
    status.as_array().unwrap().iter().map(|entry| entry["interface"].as_str().unwrap().to_owned()).collect()
}

/// Applies deploy/base with our image, and waits until the node is ours.
pub(crate) fn install(node: &Node) {
    node.import_image(Path::new(env!("CARGO_BIN_EXE_meta-cni")), "meta-cni:latest");
    node.kubectl(&["apply", "-k", concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/base")], "");
    wait_for("our configuration is there", 60, || node.path("cni/net.d/00-meta-cni.conflist").exists());
    node.rolled_out();
}

/// The files of a directory, with their bytes.
fn files(directory: &Path) -> BTreeMap<String, Vec<u8>> {
    names(directory).into_iter().map(|name| (name.clone(), fs::read(directory.join(name)).unwrap())).collect()
}

#[test]
fn the_daemonset_makes_a_node_ours_and_uninstall_gives_it_back() {
    let _turn = enter();
    let node = Node::without_us("daemonset");
    let (net_d, bin) = (node.path("cni/net.d"), node.path("cni/bin"));
    let before = (files(&net_d), files(&bin));
    install(&node);
    rollout::leaves_no_hole(&node);
    rollout::says_how_long_a_deleted_pod_is_missed(&node);
    rollout::sees_kubelets_next_kubeconfig(&node);

    node.macvlan("net-a", "10.40.0.0/24");
    node.create(&[pod("one", "net-a"), pod("two", "net-a@data0")]);
    node.wait_ready(&["one", "two"]);
    let of = |pod: &str| interfaces(&node.kubectl(&["get", "pod", pod, "-o", "json"], ""));
    assert_eq!(of("one"), ["eth0", "net1"]);
    assert_eq!(of("two"), ["eth0", "data0"]);

    // The container is not needed for pods to come and go.
    node.kubectl(&["delete", "daemonset/meta-cni", "-n", "kube-system", "--timeout=60s"], "");
    node.create(&[pod("three", "net-a")]);
    node.wait_ready(&["three"]);
    assert_eq!(of("three"), ["eth0", "net1"]);

    // Not while pods have networks that nobody else would detach.
    let (done, said) = node.run(&["/opt/cni/bin/meta-cni", "uninstall"], "");
    assert!(!done && ["default/one", "default/two", "default/three"].iter().all(|pod| said.contains(pod)), "{said}");
    node.kubectl(&["delete", "pods", "--all", "--timeout=60s"], "");
    wait_for("nothing is left of any pod", 60, || node.leftovers().is_empty());
    let (done, said) = node.run(&["/opt/cni/bin/meta-cni", "uninstall"], "");
    assert!(done, "{said}");
    assert_eq!((files(&net_d), files(&bin)), before);
}
