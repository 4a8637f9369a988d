//! Taking us away from a node on which pods live, and come.

use std::{
    fs,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
};

use nix::{sys::stat::Mode, unistd::mkfifo};
use serde_json::{Value, json};

use crate::{
    bed::{KEPT, Node, OURS, PRIMARY, STATE, our_plugin},
    harness::{Interface, names},
};

/// Our configuration as the runtime hands it over.
fn conf() -> Value {
    let mut conf = our_plugin();
    conf["name"] = json!("meta-cni");
    conf["cniVersion"] = json!("1.0.0");
    conf
}

/// Makes a pod with the primary network alone.
fn add_plain(node: &Node, pod: &str, netns: &str, conf: &Value) {
    node.world.annotated_pod("default", pod, &json!({}));
    node.world.call("ADD", pod, netns, conf).program(&node.bin.join("meta-cni")).pod(pod).ok();
}

fn clear_pools() {
    for pool in ["podnet", "net-a"] {
        let _ = fs::remove_dir_all(format!("/var/lib/cni/networks/{pool}"));
    }
    let _ = fs::remove_dir_all("/var/lib/cni/networks");
}

#[test]
fn pods_with_the_primary_alone_can_be_detached_by_the_conf_that_they_were_attached_with() {
    let node = Node::new();
    let before = node.tree();
    node.install(&["--names", "multus"]);
    let (one, two) = (node.world.netns(), node.world.netns());
    let conf = conf();
    add_plain(&node, "one", &one, &conf);
    add_plain(&node, "two", &two, &conf);

    let text = node.uninstall(&[]);
    assert!(
        text.contains("/run/test/bin/meta-cni stays, and its records in /var/lib/cni/meta-cni")
            && text.contains("2 pods with the primary network; run uninstall once more --cni-bin-dir /run/test/bin"),
        "{text}"
    );
    assert!(!Path::new(OURS).exists() && !Path::new(KEPT).exists() && Path::new(PRIMARY).exists());
    assert!(!node.bin.join("multus").exists() && node.bin.join("meta-cni").exists());
    // A runtime that has not read its directory anew is told to; nobody would detach what it asks for.
    node.world.pod("late", "net-a");
    let late = node.world.netns();
    let call = node.world.call("ADD", "late", &late, &conf).program(&node.bin.join("meta-cni")).pod("late");
    let said = call.fails(11);
    assert!(said.contains("meta-cni is being uninstalled from this node"), "{said}");
    assert_eq!(names(Path::new(STATE).join("sandboxes")), ["one", "two"]);

    // CRI-O detaches by the conf of ADD.
    node.world.call("DEL", "one", &one, &conf).program(&node.bin.join("meta-cni")).pod("one").ok();
    assert!(Interface::find(&one, "eth0").is_none());
    assert_eq!(node.world.leases("podnet").len(), 1);
    let text = node.uninstall(&[]);
    assert!(text.contains("1 pod with the primary network") && node.bin.join("meta-cni").exists(), "{text}");
    // containerd detaches by the one that is there now, and the namespace goes.
    let list: Value = serde_json::from_slice(&node.first().unwrap().1).unwrap();
    assert_eq!(list["name"], "podnet");
    let mut chain = list["plugins"][0].clone();
    chain["name"] = json!("podnet");
    chain["cniVersion"] = json!("1.0.0");
    node.world.call("DEL", "two", &two, &chain).program(&node.bin.join("bridge")).ok();
    node.world.delete_netns(&two);
    let text = node.uninstall(&[]);
    assert!(text.contains("/run/test/bin/meta-cni is removed"), "{text}");
    clear_pools();
    assert_eq!(node.tree(), before);
    assert_eq!(node.uninstall(&[]), "nothing of meta-cni is installed\n");
}

#[test]
fn who_installs_again_after_that_has_a_node_like_any_other() {
    let node = Node::new();
    node.install(&[]);
    let (plain, other) = (node.world.netns(), node.world.netns());
    add_plain(&node, "plain", &plain, &conf());
    node.uninstall(&[]);
    node.install(&[]);
    node.add("p", &other);
    assert!(Interface::find(&other, "net1").is_some());
    node.del("p", &other);
    node.del("plain", &plain);
    node.world.assert_clean();
    node.uninstall(&[]);
    assert!(!Path::new(STATE).exists());
}

#[test]
fn a_pod_that_is_being_attached_is_waited_for_and_keeps_us() {
    let node = Node::new();
    node.install(&[]);
    let netns = node.world.netns();
    let conf = conf();
    // An ADD that has no record yet: it reads its pod, and that takes long.
    node.world.pod("p", "net-a");
    let manifest = Path::new(&node.world.manifests).join("pod-p.yaml");
    let text = fs::read_to_string(&manifest).unwrap();
    fs::remove_file(&manifest).unwrap();
    mkfifo(&manifest, Mode::S_IRUSR).unwrap();
    let child = node.world.call("ADD", "p", &netns, &conf).program(&node.bin.join("meta-cni")).pod("p").start();
    // Opened by both: it reads.
    let feed = fs::OpenOptions::new().write(true).open(&manifest).unwrap();
    assert_eq!(names(Path::new(STATE).join("sandboxes")), Vec::<String>::new());
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let uninstalling = scope.spawn(|| {
            let outcome = node.run("uninstall", &[]);
            is_over.store(true, Ordering::Relaxed);
            outcome
        });
        // It is waited for: meanwhile no other one begins, and ours stays in force.
        let other = node.world.netns();
        node.world.pod("q", "net-a");
        let gate = fs::File::open(format!("{STATE}/vfs")).unwrap();
        while gate.try_lock_shared().is_ok() {
            gate.unlock().unwrap();
            assert!(!is_over.load(Ordering::Relaxed), "it did not wait");
            std::thread::yield_now();
        }
        let call = node.world.call("ADD", "q", &other, &conf).program(&node.bin.join("meta-cni")).pod("q");
        let said = call.fails(11);
        assert!(said.contains("being uninstalled"), "{said}");
        assert!(!is_over.load(Ordering::Relaxed));
        assert_eq!(node.first().unwrap().0, "00-meta-cni.conflist");
        std::io::Write::write_all(&mut &feed, text.as_bytes()).unwrap();
        drop(feed);
        fs::remove_file(&manifest).unwrap();
        fs::write(&manifest, &text).unwrap();
        assert!(child.wait_with_output().unwrap().status.success());
        let outcome = uninstalling.join().unwrap();
        assert_eq!(outcome.code, 1, "{outcome:#?}");
        assert!(outcome.stderr.contains("default/p: default/net-a as net1"), "{outcome:#?}");
    });
    assert!(node.is_ours_and_whole() && !Path::new(PRIMARY).exists());
    assert!(Interface::find(&netns, "net1").is_some());
    node.del("p", &netns);
    node.world.assert_clean();
}
