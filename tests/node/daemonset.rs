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

/// Panics unless the container has the rights that the manifest lists, and no others. Gives how much memory it took.
fn assert_confined(node: &Node) -> String {
    let tasks = node.run(&["ctr", "--namespace", "k8s.io", "tasks", "list"], "").1;
    let file = |pid: &str, name: &str| node.run(&["cat", &format!("/proc/{pid}/{name}")], "").1;
    let is_ours = |pid: &&str| file(pid, "cmdline").starts_with("/meta-cni\0install\0--watch");
    let pid = tasks.lines().filter_map(|line| line.split_whitespace().nth(1)).find(is_ours).expect("our container");
    let status = file(pid, "status");
    // CAP_DAC_OVERRIDE is the second.
    for (key, value) in [
        ("CapEff", "0000000000000002"),
        ("CapBnd", "0000000000000002"),
        ("CapInh", "0000000000000000"),
        ("CapAmb", "0000000000000000"),
        ("NoNewPrivs", "1"),
        ("Seccomp", "2"),
        ("Uid", "0"),
    ] {
        let found = status.lines().find_map(|line| line.strip_prefix(&format!("{key}:")));
        assert_eq!(found.and_then(|found| found.split_whitespace().next()), Some(value), "{key} in {status}");
    }
    let namespace = |pid: &str, kind: &str| node.run(&["readlink", &format!("/proc/{pid}/ns/{kind}")], "").1;
    for (kind, of_node) in [("net", true), ("pid", false), ("mnt", false), ("ipc", false)] {
        assert_eq!(namespace(pid, kind) == namespace("1", kind), of_node, "{kind}");
    }
    let mounts = file(pid, "mountinfo");
    let mode = |place: &str| {
        let line =
            mounts.lines().find(|line| line.split(' ').nth(4) == Some(place)).unwrap_or_else(|| panic!("{mounts}"));
        line.split(' ').nth(5).unwrap().split(',').next().unwrap().to_owned()
    };
    assert_eq!((mode("/"), mode("/host/etc/kubernetes/kubelet.conf")), ("ro".to_owned(), "ro".to_owned()));
    let of_node = mounts.lines().filter_map(|line| line.split(' ').nth(4)).filter(|place| place.starts_with("/host"));
    let mut of_node: Vec<&str> = of_node.collect();
    of_node.sort_unstable();
    let etc = ["/host/etc/cni/net.d", "/host/etc/kubernetes/kubelet.conf"];
    assert_eq!(of_node, [&etc[..], &["/host/opt/cni/bin", "/host/var/lib/cni"]].concat());
    // Where an installer of the node gave the directory to a user of its own.
    let ours = node.path("cni/net.d/00-meta-cni.conflist");
    std::os::unix::fs::chown(node.path("cni/net.d"), Some(1000), Some(1000)).unwrap();
    fs::remove_file(&ours).unwrap();
    wait_for("our configuration is back", 60, || ours.exists());
    std::os::unix::fs::chown(node.path("cni/net.d"), Some(0), Some(0)).unwrap();
    status.lines().find(|line| line.starts_with("VmHWM")).unwrap().to_owned()
}

#[test]
fn the_daemonset_makes_a_node_ours_and_uninstall_gives_it_back() {
    let _turn = enter();
    let node = Node::without_us("daemonset");
    let (net_d, bin) = (node.path("cni/net.d"), node.path("cni/bin"));
    let before = (files(&net_d), files(&bin));
    install(&node);
    println!("the installer: {}", assert_confined(&node));
    let took = rollout::leaves_no_hole(&node);
    println!("rolled out in {took:.1?}; deleted pods are missed for {:.1?}", rollout::replaces_deleted_pods(&node));
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
