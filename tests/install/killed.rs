//! Killed before every system call that changes something, an installation leaves the runtime a whole configuration, and
//! can be finished; and so does its removal.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

use crate::{
    bed::{KEPT, Node, OURS, PRIMARY, Tree, our_plugin, podnet},
    harness::{Point, Which, census, trace},
};

const MORE: [&str; 8] = [
    "--names",
    "sriov",
    "--replace",
    "--token-file",
    "/run/test/token",
    "--ca-file",
    "/run/test/ca",
    "--server=https://10.0.0.1:6443",
];

/// A node with a program in the way, and credentials to be copied.
fn node() -> Node {
    let node = Node::new();
    fs::write("/run/test/token", "eyJ.e30.x").unwrap();
    fs::write("/run/test/ca", "-----BEGIN CERTIFICATE-----\n").unwrap();
    fs::write("/run/test/own.json", "{}").unwrap();
    fs::write(node.bin.join("sriov"), "another's").unwrap();
    fs::set_permissions(node.bin.join("sriov"), fs::Permissions::from_mode(0o755)).unwrap();
    node
}

/// Everything but the directories that are only made.
fn files(node: &Node) -> Tree {
    let mut tree = node.tree();
    tree.0.retain(|_, what| !what.starts_with("directory"));
    tree
}

fn reinstall(node: &Node) {
    node.preinstall();
    node.install(&MORE);
}

/// Kills a command before each point in turn; what was before is put back by `again`, what is left is judged by `judge`. Says
/// where.
fn kill_everywhere(node: &Node, verb: &str, more: &[&str], again: impl Fn(), judge: impl Fn(&Point)) -> String {
    again();
    let whole = trace(&node.command(verb, more), Which::All, None);
    assert_eq!(whole.code, Some(0), "{}", whole.stdout);
    let mut points = Vec::new();
    loop {
        again();
        let traced = trace(&node.command(verb, more), Which::All, Some(points.len()));
        if !traced.killed {
            assert_eq!(traced.code, Some(0), "{}", traced.stdout);
            break;
        }
        let point = traced.points.last().unwrap().clone();
        judge(&point);
        points.push(point);
    }
    let changing = points.iter().filter(|point| point.is_state).count();
    assert!(changing >= 2, "{changing}");
    format!("{verb}: killed before {} points ({}), {changing} of them change a name", points.len(), census(&points))
}

#[test]
fn an_installation_that_is_killed_anywhere_leaves_a_whole_conf_and_is_finished_by_the_next_one() {
    let node = node();
    let before = files(&node);
    node.install(&MORE);
    let wanted = files(&node);
    // The program's own way there is in the next test.
    let undo = || {
        node.uninstall(&[]);
        assert_eq!(files(&node), before);
        node.preinstall();
    };
    let where_killed = kill_everywhere(&node, "install", &MORE, undo, |point| {
        let ours = node.is_ours_and_whole();
        // Once ours is there it is the whole of ours, and a pod's networks are not lost.
        assert_eq!(ours, Path::new(OURS).exists(), "before {point:?}");
        node.install(&MORE);
        assert_eq!(files(&node), wanted, "killed before {point:?}");
    });
    println!("{where_killed}");
}

#[test]
fn an_upgrade_that_is_killed_anywhere_leaves_the_node_installed() {
    let node = node();
    node.install(&MORE);
    let old = (fs::read(node.program()).unwrap(), our_plugin());
    let newer = node.another_build();
    let new = fs::read(newer.program()).unwrap();
    let more = [&MORE[..], &["--node-name", "n"]].concat();
    // The primary's owner has written it anew, too.
    let capabilities = serde_json::json!({"bandwidth": true});
    let again = || {
        newer.install(&more);
        newer.own_primary(&podnet(capabilities.clone()));
        fs::write(newer.bin.join("meta-cni.old"), &old.0).unwrap();
        fs::set_permissions(newer.bin.join("meta-cni.old"), fs::Permissions::from_mode(0o755)).unwrap();
        fs::rename(newer.bin.join("meta-cni.old"), newer.bin.join("meta-cni")).unwrap();
        let list = serde_json::json!({"cniVersion": "1.0.0", "name": "meta-cni", "plugins": [old.1]});
        fs::write(OURS, list.to_string()).unwrap();
    };
    let where_killed = kill_everywhere(&newer, "install", &more, again, |point| {
        assert!(newer.is_ours_and_whole(), "before {point:?}");
        let program = fs::read(newer.bin.join("meta-cni")).unwrap();
        assert!(program == old.0 || program == new, "half a program, killed before {point:?}");
    });
    println!("{where_killed}");
    newer.install(&more);
    assert_eq!((&our_plugin()["nodeName"], &our_plugin()["capabilities"]["bandwidth"]), (&"n".into(), &true.into()));
}

#[test]
fn a_removal_that_is_killed_anywhere_leaves_a_whole_conf_and_is_finished_by_the_next_one() {
    let node = node();
    let before = files(&node);
    let again = || reinstall(&node);
    let where_killed = kill_everywhere(&node, "uninstall", &[], again, |point| {
        node.is_ours_and_whole();
        node.uninstall(&[]);
        assert_eq!(files(&node), before, "killed before {point:?}");
    });
    println!("{where_killed}");
}

#[test]
fn an_installation_after_a_removal_that_was_killed_takes_the_primary_away_again() {
    let node = node();
    let before = files(&node);
    let again = || reinstall(&node);
    let where_killed = kill_everywhere(&node, "uninstall", &[], again, |point| {
        again();
        node.is_ours_and_whole();
        assert!(!Path::new(PRIMARY).exists(), "the runtime may fall back to it: killed before {point:?}");
        node.uninstall(&[]);
        assert_eq!(files(&node), before, "killed before {point:?}");
    });
    println!("{where_killed}");
}

#[test]
fn what_a_killed_installer_had_taken_is_settled_though_that_is_killed_anywhere_too() {
    let node = node();
    let taken = format!("{PRIMARY}.meta-cni-taken");
    let before = podnet(serde_json::json!({"portMappings": true})).to_string();
    let newer = podnet(serde_json::json!({"bandwidth": true})).to_string();
    for text in [newer.as_str(), &newer[..newer.len() / 2]] {
        let again = || {
            node.preinstall();
            let _ = fs::remove_file(PRIMARY);
            fs::write(PRIMARY, &before).unwrap();
            node.install(&["--no-config"]);
            fs::write(&taken, text).unwrap();
        };
        let is_whole = text == newer;
        let where_killed = kill_everywhere(&node, "install", &["--no-config"], again, |point| {
            assert!(node.is_ours_and_whole(), "killed before {point:?}");
            let lies = |path: &str| fs::read_to_string(path).is_ok_and(|there| there == text);
            assert!(
                [&taken, PRIMARY, KEPT].iter().any(|path| lies(path)),
                "the owner's is lost: killed before {point:?}"
            );
            let kept = fs::read_to_string(KEPT).unwrap();
            assert!(kept == before || is_whole && kept == newer, "killed before {point:?}");
            node.install(&["--no-config"]);
            assert!(lies(if is_whole { KEPT } else { PRIMARY }), "killed before {point:?}");
        });
        println!("{where_killed}");
    }
}
