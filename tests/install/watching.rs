//! An installer that stays: what others do to the node is answered, and its own end changes nothing.

use std::{
    fs,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use nix::sys::signal::Signal;
use serde_json::json;

use crate::{
    bed::{KEPT, NET_D, Node, OURS, PRIMARY, our_plugin, ours, podnet},
    harness::Interface,
};

fn installed(node: &Node) -> bool {
    Path::new(OURS).exists() && !Path::new(PRIMARY).exists() && node.bin.join("meta-cni").exists()
}

#[test]
fn another_program_that_renames_our_conf_is_answered_at_once_and_named() {
    let node = Node::new();
    let watch = node.watch(&[]);
    watch.until("it is installed", || installed(&node));
    let before = fs::read(OURS).unwrap();
    let is_back = || fs::read(OURS).is_ok_and(|now| now == before);
    let bak = format!("{OURS}.cilium_bak");
    fs::rename(OURS, &bak).unwrap();
    let mut times = vec![watch.until("it is back", is_back)];
    watch.says(
        "00-meta-cni.conflist was gone, and is put back: another program renamed it to 00-meta-cni.conflist.cilium_bak",
    );
    watch.says("cni.exclusive=false");
    for _ in 0..5 {
        fs::rename(OURS, &bak).unwrap();
        times.push(watch.until("it is back again", is_back));
    }
    // However else it is lost.
    fs::remove_file(OURS).unwrap();
    times.push(watch.until("it is back after it was removed", is_back));
    for text in ["", "{\"cniVersion\":", "{}", r#"{"cniVersion":"1.0.0","name":"x","plugins":[{"type":"bridge"}]}"#] {
        fs::write(OURS, text).unwrap();
        times.push(watch.until("it is back after it was written over", is_back));
    }
    fs::remove_file(node.bin.join("meta-cni")).unwrap();
    times.push(watch.until("the program is back", || node.bin.join("meta-cni").exists()));
    println!("back after {times:?}");
    assert!(times.iter().all(|time| *time < Duration::from_secs(20)), "{times:?}");
    let then = node.tree();
    assert_eq!(watch.end(Signal::SIGTERM), Some(0));
    assert_eq!(node.tree(), then);
}

#[test]
fn the_primary_is_followed_when_its_owner_writes_it_anew_and_half_of_it_is_not() {
    let node = Node::new();
    let watch = node.watch(&[]);
    watch.until("it is installed", || installed(&node));
    let now = || fs::read_to_string(KEPT).unwrap_or_default();
    let newer = podnet(json!({"bandwidth": true})).to_string();
    // In two parts, as a slow disk shows it.
    fs::write(PRIMARY, &newer[..newer.len() / 2]).unwrap();
    watch.says("not used yet, 10-podnet.conflist stays in force as it was: 10-podnet.conflist: ");
    assert_eq!(now(), podnet(json!({"portMappings": true})).to_string());
    assert!(node.is_ours_and_whole());
    fs::write(PRIMARY, &newer).unwrap();
    watch.until("it is taken over", || now() == newer && !Path::new(PRIMARY).exists());
    watch.until("the capabilities are its own", || {
        our_plugin()["capabilities"] == json!({"bandwidth": true, "io.kubernetes.cri.pod-annotations": true})
    });
    assert_eq!(watch.end(Signal::SIGINT), Some(0));
    node.install(&[]);
    assert_eq!(now(), newer);
}

#[test]
fn a_primary_that_comes_later_is_waited_for_and_what_somebody_has_to_mend_is_not() {
    let node = Node::bare();
    let watch = node.watch(&[]);
    watch.says("the primary network's configuration is not there, found: nothing");
    assert!(!Path::new(OURS).exists());
    node.own_primary(&podnet(json!({})));
    watch.until("it is installed", || installed(&node));
    drop(watch);

    fs::write(format!("{NET_D}/00-aaa.conf"), r#"{"cniVersion":"0.3.1","name":"m","type":"multus"}"#).unwrap();
    let mut watch = node.watch(&[]);
    watch.says("the runtime would read 00-aaa.conf");
    let ended = AtomicBool::new(false);
    for _ in 0..2000 {
        if watch.ended() == Some(1) {
            ended.store(true, Ordering::Relaxed);
            break;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(ended.load(Ordering::Relaxed), "it goes on: {}", watch.log());
}

#[test]
fn what_an_administrator_and_another_installer_did_stays_when_ours_is_put_back() {
    let node = Node::new();
    node.install(&["--node-name", "n"]);
    // One that stays, and was told nothing of all that.
    let watch = node.watch(&["--no-config"]);
    fs::remove_file(node.bin.join("meta-cni")).unwrap();
    watch.until("it has looked at everything once", || node.bin.join("meta-cni").exists());
    let mut list = ours();
    list["plugins"][0]["logLevel"] = json!("debug");
    // As a careful editor does: half a file would be answered at once.
    fs::write(format!("{OURS}~"), list.to_string()).unwrap();
    fs::rename(format!("{OURS}~"), OURS).unwrap();
    let newer = node.another_build();
    newer.install(&["--no-config"]);
    assert_eq!(our_plugin()["logLevel"], "debug");
    fs::write(OURS, "").unwrap();
    watch.until("ours is back", || fs::read(OURS).is_ok_and(|text| !text.is_empty()));
    let plugin = our_plugin();
    assert_eq!((&plugin["nodeName"], &plugin["logLevel"]), (&json!("n"), &json!("debug")));
    assert_eq!(plugin["manifestDir"], json!(newer.world.manifests));
    // The program that was installed last stays, and only one that is lost is put back.
    assert!(newer.has_own_program());
    fs::remove_file(newer.bin.join("meta-cni")).unwrap();
    watch.until("a program is back", || newer.bin.join("meta-cni").exists());
    drop(watch);
    // Nobody stays, and ours was renamed: what it said is known by that.
    fs::rename(OURS, format!("{OURS}.cilium_bak")).unwrap();
    newer.install(&["--no-config"]);
    assert_eq!(our_plugin()["logLevel"], "debug");
}

#[test]
fn an_owner_who_puts_his_conf_back_each_time_is_let_have_it_behind_ours() {
    let node = Node::new();
    let watch = node.watch(&[]);
    watch.until("it is installed", || installed(&node));
    let before = fs::read(OURS).unwrap();
    let mut returns = 0;
    while !watch.log().contains("for a while it is left where it is") {
        if !Path::new(PRIMARY).exists() {
            node.own_primary(&podnet(json!({"portMappings": true})));
            returns += 1;
        }
        assert!(returns < 100, "{}", watch.log());
        std::thread::sleep(Duration::from_millis(2));
    }
    assert!(Path::new(PRIMARY).exists());
    assert_eq!(node.first().unwrap().0, "00-meta-cni.conflist");
    // What he writes is followed all the same.
    let newer = podnet(json!({"bandwidth": true})).to_string();
    fs::write(PRIMARY, &newer).unwrap();
    watch.until("it is followed", || fs::read_to_string(KEPT).is_ok_and(|now| now == newer));
    watch.until("so are its capabilities", || our_plugin()["capabilities"]["bandwidth"] == true);
    assert_ne!(fs::read(OURS).unwrap(), before);
    assert!(Path::new(PRIMARY).exists());
    println!("left after {returns} returns");
}

#[test]
fn pods_that_are_made_while_the_installer_is_killed_restarted_and_upgraded_get_all_their_networks() {
    let node = Node::new();
    node.install(&[]);
    let done = AtomicBool::new(false);
    let pods = std::thread::scope(|scope| {
        // Threads have the namespaces of the one that starts them.
        let creator = scope.spawn(|| {
            let mut pods = 0;
            while !done.load(Ordering::Relaxed) || pods < 5 {
                let netns = node.world.netns();
                assert_eq!(node.first().unwrap().0, "00-meta-cni.conflist");
                let name = format!("p{pods}");
                node.add(&name, &netns);
                assert!(Interface::find(&netns, "net1").is_some(), "{name} has the primary network alone");
                node.del(&name, &netns);
                node.world.delete_netns(&netns);
                pods += 1;
            }
            pods
        });
        for signal in [Signal::SIGTERM, Signal::SIGKILL, Signal::SIGTERM, Signal::SIGKILL] {
            let watch = node.watch(&["--node-name", "n"]);
            node.own_primary(&podnet(json!({"portMappings": true})));
            watch.until("the primary is taken over", || !Path::new(PRIMARY).exists());
            watch.end(signal);
            assert!(node.is_ours_and_whole());
        }
        node.install(&["--node-name", "m"]);
        done.store(true, Ordering::Relaxed);
        creator.join().unwrap()
    });
    println!("{pods} pods");
    node.world.assert_clean();
}

#[test]
fn after_a_reboot_ours_is_the_first_before_any_installer_runs() {
    let node = Node::new();
    node.install(&[]);
    node.world.reboot();
    // The primary's owner is quicker than our DaemonSet, and something else lies there, too.
    node.own_primary(&podnet(json!({"portMappings": true})));
    let podman = r#"{"cniVersion":"0.4.0","name":"podman","plugins":[{"type":"bridge"}]}"#;
    fs::write(format!("{NET_D}/87-podman-bridge.conflist"), podman).unwrap();
    assert!(node.is_ours_and_whole());
    node.world.macvlan("net-a", "10.10.1.0/24");
    let netns = node.world.netns();
    node.add("p", &netns);
    assert!(Interface::find(&netns, "eth0").is_some() && Interface::find(&netns, "net1").is_some());
    let watch = node.watch(&[]);
    watch.until("the primary is taken over", || !Path::new(PRIMARY).exists());
    node.del("p", &netns);
    node.world.assert_clean();
}
