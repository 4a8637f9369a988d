//! A node is given back as it was, or not at all.

use std::{
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, symlink},
    path::Path,
};

use nix::sys::signal::Signal;
use serde_json::json;

use crate::{
    bed::{KEPT, NET_D, Node, OURS, PRIMARY, STATE, podnet},
    harness::names,
};

#[test]
fn a_node_is_what_it_was_file_by_file() {
    let node = Node::new();
    chown(PRIMARY, Some(7), Some(8)).unwrap();
    fs::write(node.bin.join("multus"), "another's").unwrap();
    symlink("bridge", node.bin.join("host-local.distribution")).unwrap();
    fs::rename(node.bin.join("host-local.distribution"), node.bin.join("sriov")).unwrap();
    fs::write("/run/test/token", "eyJ.e30.x").unwrap();
    fs::write("/run/test/ca", "-----BEGIN CERTIFICATE-----\n").unwrap();
    let before = (node.tree(), fs::metadata(PRIMARY).unwrap().ino());
    let credentials = ["--token-file", "/run/test/token", "--ca-file", "/run/test/ca", "--server", "https://10.0.0.1"];
    node.install(&[&credentials[..], &["--names", "multus,sriov,passthru", "--replace", "--no-config"]].concat());
    node.install(&["--names", "multus,sriov"]);
    // A pod came and went, and somebody renamed ours once.
    let netns = node.world.netns();
    node.add("p", &netns);
    node.del("p", &netns);
    fs::copy(OURS, format!("{OURS}.cilium_bak")).unwrap();
    for pool in ["podnet", "net-a"] {
        fs::remove_dir_all(format!("/var/lib/cni/networks/{pool}")).unwrap();
    }
    fs::remove_dir("/var/lib/cni/networks").unwrap_or_default();
    let text = node.uninstall(&[]);
    assert!(text.contains("10-podnet.conflist is the runtime's again"), "{text}");
    let _ = fs::remove_dir("/var/lib/cni/networks");
    assert_eq!((node.tree(), fs::metadata(PRIMARY).unwrap().ino()), before);
    assert_eq!(node.uninstall(&[]), "nothing of meta-cni is installed\n");
    assert_eq!(node.tree(), before.0);
}

#[test]
fn the_primary_comes_back_as_its_owner_wrote_it_last() {
    let node = Node::new();
    node.install(&[]);
    let newer = podnet(json!({"bandwidth": true}));
    node.own_primary(&newer);
    fs::set_permissions(PRIMARY, fs::Permissions::from_mode(0o604)).unwrap();
    node.install(&[]);
    assert!(!Path::new(PRIMARY).exists());
    node.uninstall(&[]);
    assert_eq!(fs::read_to_string(PRIMARY).unwrap(), newer.to_string());
    assert_eq!(fs::metadata(PRIMARY).unwrap().mode() & 0o7777, 0o604);
    // One that nobody took over yet is the last, too.
    node.install(&[]);
    node.own_primary(&podnet(json!({})));
    node.uninstall(&[]);
    assert_eq!(fs::read_to_string(PRIMARY).unwrap(), podnet(json!({})).to_string());
    assert_eq!(names(NET_D), ["10-podnet.conflist"]);
}

#[test]
fn pods_with_networks_are_listed_and_keep_us_on_the_node() {
    let node = Node::new();
    node.install(&[]);
    let netns = [node.world.netns(), node.world.netns(), node.world.netns()];
    node.add("p", &netns[0]);
    node.add("q", &netns[1]);
    // One with the primary alone is none of them.
    let plain = {
        let mut conf = crate::bed::our_plugin();
        conf["name"] = json!("meta-cni");
        conf["cniVersion"] = json!("1.0.0");
        node.world.annotated_pod("default", "plain", &json!({}));
        node.world.call("ADD", "plain", &netns[2], &conf).pod("plain").ok();
        conf
    };
    let ours = fs::metadata(OURS).unwrap().ino();
    let text = node.refuses("uninstall", &[], 1);
    // Not even for a moment.
    assert_eq!(fs::metadata(OURS).unwrap().ino(), ours);
    for part in [
        "2 networks of living pods",
        "default/p: default/net-a as net1",
        "default/q: default/net-a as net1",
        "--force",
        "nothing is removed",
    ] {
        assert!(text.contains(part), "{part} in {text}");
    }
    assert!(!text.contains("plain"), "{text}");
    assert!(node.is_ours_and_whole());

    // In a container the namespaces of the node are not seen: whoever has a record may live.
    node.world.delete_netns(&netns[1]);
    let text = node.refuses("uninstall", &[], 1);
    assert!(text.contains("1 network of living pods") && !text.contains("default/q"), "{text}");
    symlink("/", "/run/test/root").unwrap();
    let text = node.refuses("uninstall", &["--host-root", "/run/test/root"], 1);
    assert!(text.contains("2 networks of living pods"), "{text}");

    let forced = node.uninstall(&["--force"]);
    assert!(forced.contains("left behind: default/p: default/net-a as net1"), "{forced}");
    assert!(forced.contains("/var/lib/cni/meta-cni stays: it has records of 3 sandboxes"), "{forced}");
    assert!(!node.is_ours_and_whole() && !node.bin.join("meta-cni").exists());
    assert!(Path::new(STATE).join("sandboxes/p").is_dir());
    // Installed again, everything that is on record can be detached.
    node.install(&[]);
    node.del("p", &netns[0]);
    node.del("q", &netns[1]);
    node.world.call("DEL", "plain", &netns[2], &plain).pod("plain").ok();
    node.world.assert_clean();
    node.uninstall(&[]);
    assert!(!Path::new(STATE).exists());
}

#[test]
fn directories_are_found_by_our_conf_whatever_the_command_line_says() {
    let node = Node::new();
    let before = node.tree();
    node.install(&["--state-dir", "/var/lib/cni/other", "--cni-bin-dir", "/run/test/other-bin"]);
    assert!(Path::new("/run/test/other-bin/meta-cni").exists());
    let netns = node.world.netns();
    node.add("p", &netns);
    assert!(node.refuses("uninstall", &[], 1).contains("default/p"));
    // The drop-in `sriov` knows no other place than the usual one.
    let of_drop_in = Path::new(STATE).join("faces/sriov/sandboxes/p");
    fs::create_dir_all(&of_drop_in).unwrap();
    for name in names("/var/lib/cni/other/sandboxes/p") {
        fs::copy(Path::new("/var/lib/cni/other/sandboxes/p").join(&name), of_drop_in.join(name)).unwrap();
    }
    node.del("p", &netns);
    assert!(node.refuses("uninstall", &[], 1).contains("default/p"));
    fs::remove_dir_all(STATE).unwrap();
    for pool in ["podnet", "net-a"] {
        fs::remove_dir_all(format!("/var/lib/cni/networks/{pool}")).unwrap();
    }
    node.uninstall(&[]);
    let _ = fs::remove_dir("/var/lib/cni/networks");
    assert!(!Path::new("/run/test/other-bin/meta-cni").exists());
    assert_eq!(node.tree(), before);
}

#[test]
fn what_an_earlier_boot_left_keeps_nobody() {
    let node = Node::new();
    node.install(&[]);
    node.add("p", &node.world.netns());
    node.world.reboot();
    // Not even where nobody sees whether its namespace is there.
    symlink("/", "/run/test/root").unwrap();
    let text = node.uninstall(&["--host-root", "/run/test/root"]);
    assert!(text.contains("records of 1 sandboxes"), "{text}");
    assert_eq!(names(NET_D), ["10-podnet.conflist"]);
}

#[test]
fn nothing_is_removed_while_an_installer_stays_on_the_node() {
    let node = Node::new();
    let watch = node.watch(&[]);
    watch.until("it is installed", || Path::new(OURS).exists() && !Path::new(PRIMARY).exists());
    watch.holds();
    // Nor if it lost what it held.
    fs::remove_dir_all(STATE).unwrap();
    fs::remove_file(OURS).unwrap();
    watch.until("it is installed again", || Path::new(OURS).exists());
    watch.holds();
    let text = node.refuses("uninstall", &["--force"], 1);
    assert!(text.contains("an installer stays on this node") && text.contains("removing the DaemonSet"), "{text}");
    assert_eq!(watch.end(Signal::SIGTERM), Some(0));
    node.uninstall(&[]);
    assert!(!Path::new(KEPT).exists() && Path::new(PRIMARY).exists());
}
