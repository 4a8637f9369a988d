//! Other installers: of other programs, whose copies hit ours, and of ours, an older and a newer one on one node.

use std::{fs, os::unix::fs::MetadataExt as _, os::unix::fs::PermissionsExt as _, path::Path};

use nix::sys::signal::Signal;
use serde_json::json;

use crate::{
    bed::{KEPT, NET_D, Node, OURS, PRIMARY, our_plugin, podnet},
    harness::{names, run},
};

/// A program that somebody else installs.
const FOREIGN: &str = "/run/test/foreign";

fn foreign(text: &str) {
    fs::write(FOREIGN, text).unwrap();
    fs::set_permissions(FOREIGN, fs::Permissions::from_mode(0o755)).unwrap();
}

/// Installs a program as sriov-cni's image does at its start.
fn copied_onto(path: &Path) {
    run("cp", &["-f", FOREIGN, path.to_str().unwrap()]);
}

#[test]
fn a_copy_onto_one_of_our_names_hits_neither_our_program_nor_another_name() {
    let node = Node::new();
    fs::remove_file(node.bin.join("host-local")).unwrap();
    node.install(&["--names", "sriov,host-local"]);
    foreign("sriov-cni");
    copied_onto(&node.bin.join("sriov"));
    assert!(node.has_own_program());
    assert!(fs::read(node.bin.join("host-local")).unwrap() == fs::read(node.program()).unwrap());
    assert_eq!(fs::read_to_string(node.bin.join("sriov")).unwrap(), "sriov-cni");
    // It is said, and the one that was there stays his.
    let text = node.refuses("install", &["--names", "sriov,host-local"], 1);
    assert!(text.contains("sriov in /run/test/bin is another program"), "{text}");
    assert!(text.contains("an installer of that program runs on this node: remove that first"), "{text}");
    node.install(&[]);
    node.uninstall(&[]);
    assert_eq!(fs::read_to_string(node.bin.join("sriov")).unwrap(), "sriov-cni");
    assert!(!node.bin.join("host-local").exists());
}

#[test]
fn what_is_written_over_our_program_is_no_newer_build_of_it() {
    let node = Node::new();
    let watch = node.watch(&["--names", "sriov"]);
    watch.until("it is installed", || node.bin.join("sriov").exists() && !Path::new(PRIMARY).exists());
    foreign("sriov-cni");
    let program = node.bin.join("meta-cni");
    copied_onto(&program);
    watch.until("ours is back", || node.has_own_program());
    watch.says("meta-cni is version");
    watch.says("another program was written over it, by no installer of ours");
    // One that nobody may execute is none.
    fs::set_permissions(&program, fs::Permissions::from_mode(0o644)).unwrap();
    watch.until("it can be executed", || fs::metadata(&program).unwrap().mode() & 0o111 == 0o111);
    // A name of ours is left to whoever takes it, as long as it is not said that it may be replaced.
    copied_onto(&node.bin.join("sriov"));
    watch.says("sriov in /run/test/bin is another program: with --replace");
    assert_eq!(fs::read_to_string(node.bin.join("sriov")).unwrap(), "sriov-cni");
    assert!(node.has_own_program());
}

#[test]
fn a_name_is_not_fought_over_for_ever() {
    let node = Node::new();
    foreign("sriov-cni");
    let sriov = node.bin.join("sriov");
    let watch = node.watch(&["--names", "sriov", "--replace"]);
    let is_ours = || fs::read(&sriov).is_ok_and(|there| there.len() > 1000);
    watch.until("it is installed", || is_ours() && !Path::new(PRIMARY).exists());
    let mut taken = 0;
    while !watch.log().contains("it is left to that until this installer is started anew") {
        if is_ours() {
            copied_onto(&sriov);
            taken += 1;
        }
        assert!(taken < 50, "{}", watch.log());
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    assert_eq!(fs::read_to_string(&sriov).unwrap(), "sriov-cni");
    assert_eq!(taken, 5);
    // The rest is kept as ever.
    fs::remove_file(node.bin.join("meta-cni")).unwrap();
    watch.until("the program is back", || node.has_own_program());
    assert_eq!(fs::read_to_string(&sriov).unwrap(), "sriov-cni");
    watch.end(Signal::SIGTERM);
    node.uninstall(&[]);
    assert_eq!(fs::read_to_string(&sriov).unwrap(), "sriov-cni");
    assert!(!node.bin.join("sriov.meta-cni-saved").exists());
}

#[test]
fn of_two_installers_that_stay_neither_changes_what_the_other_one_wrote() {
    let node = Node::new();
    let old = node.watch(&["--node-name", "old", "--names", "sriov"]);
    old.until("the old one has installed", || node.bin.join("sriov").exists() && !Path::new(PRIMARY).exists());
    let node = node.another_build();
    let new = node.watch(&["--node-name", "new"]);
    let state = || {
        let inode = |path: &Path| fs::metadata(path).map(|there| there.ino()).ok();
        [Path::new(OURS), &node.bin.join("meta-cni"), &node.bin.join("sriov")].map(inode)
    };
    let program = fs::read(node.program()).unwrap();
    let is_new = |name: &str| fs::read(node.bin.join(name)).is_ok_and(|there| there == program);
    new.until("the new one has installed", || {
        is_new("meta-cni") && is_new("sriov") && our_plugin()["nodeName"] == "new"
    });
    old.says("an installer that came later does the work");
    let then = state();
    // Both hear of each of these.
    for number in 0..20 {
        fs::write(format!("{NET_D}/touched"), number.to_string()).unwrap();
        fs::write(node.bin.join("touched"), number.to_string()).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(30));
        assert_eq!(state(), then, "{}\n{}", old.log(), new.log());
    }
    foreign("sriov-cni");
    copied_onto(&node.bin.join("meta-cni"));
    new.until("the new one's is back", || is_new("meta-cni"));
    assert!(is_new("sriov"));
    // With the new one gone the old one's are in force, names and all.
    new.end(Signal::SIGTERM);
    old.until("the old one does the work", || {
        let other = |name: &str| fs::read(node.bin.join(name)).is_ok_and(|there| there.len() + 11 == program.len());
        other("meta-cni") && other("sriov") && our_plugin()["nodeName"] == "old"
    });
}

#[test]
fn a_conf_that_was_there_before_the_primarys_own_is_given_back_when_that_comes() {
    let node = Node::bare();
    let crio = podnet(json!({})).to_string().replace("podnet", "crio").replace("cni0", "cni9");
    let (early, kept) =
        (format!("{NET_D}/100-crio-bridge.conflist"), format!("{NET_D}/100-crio-bridge.conflist.meta-cni"));
    fs::write(&early, &crio).unwrap();
    let inode = fs::metadata(&early).unwrap().ino();
    let watch = node.watch(&[]);
    // It is all there is: better than a runtime that uses it without us.
    watch.until("it is the primary's", || Path::new(OURS).exists() && !Path::new(&early).exists());
    assert_eq!(our_plugin()["clusterNetwork"], json!(kept));
    let text = podnet(json!({"bandwidth": true})).to_string();
    fs::write(PRIMARY, &text[..text.len() / 2]).unwrap();
    watch.says("not used yet, 100-crio-bridge.conflist stays in force as it was: 10-podnet.conflist");
    fs::write(PRIMARY, &text).unwrap();
    watch.says("100-crio-bridge.conflist is given back, behind ours: the primary's is 10-podnet.conflist now");
    watch.until("the better one is the primary's", || !Path::new(PRIMARY).exists());
    assert_eq!(our_plugin()["clusterNetwork"], KEPT);
    assert_eq!(our_plugin()["capabilities"]["bandwidth"], true);
    assert_eq!((fs::read_to_string(&early).unwrap(), fs::metadata(&early).unwrap().ino()), (crio, inode));
    watch.says("behind ours there is 100-crio-bridge.conflist (the network crio)");
    // It stays so, also if the owner of either writes his anew.
    node.own_primary(&podnet(json!({})));
    watch.until("it is taken over", || !Path::new(PRIMARY).exists());
    fs::write(format!("{early}~"), podnet(json!({})).to_string()).unwrap();
    fs::rename(format!("{early}~"), &early).unwrap();
    watch.end(Signal::SIGTERM);
    assert!(node.install(&[]).starts_with("everything is in place\n"));
    assert_eq!(our_plugin()["clusterNetwork"], KEPT);
    assert_eq!(names(NET_D), ["00-meta-cni.conflist", "10-podnet.conflist.meta-cni", "100-crio-bridge.conflist"]);
    node.uninstall(&[]);
    assert_eq!(names(NET_D), ["10-podnet.conflist", "100-crio-bridge.conflist"]);
}
