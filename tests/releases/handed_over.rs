//! What one release has attached the other one checks, refuses to attach again, collects and detaches.

use std::{fs, path::Path, thread::sleep, time::Duration};

use serde_json::json;

use crate::{
    harness::{Interface, Recorder, names},
    site::Site,
};

#[test]
fn what_one_release_attached_the_other_checks_and_detaches() {
    let site = Site::new();
    for (at, (first, second)) in site.directions().into_iter().enumerate() {
        let (id, netns) = (format!("c{at}"), site.world.netns());
        let call = |release, verb| site.call(release, verb, &id, &netns);
        call(first, "ADD").ok();
        site.assert_attached(&netns);
        let files = || names(format!("/var/lib/cni/meta-cni/sandboxes/{id}"));
        assert_eq!(files().len(), 5, "{} wrote a record for each network", first.name);
        for release in [second, first] {
            call(release, "CHECK").ok();
            call(release, "STATUS").ok();
        }
        let text = call(second, "ADD").fails(7);
        assert!(text.contains("already has eth0"), "{} after {}: {text}", second.name, first.name);
        site.gc(second, &[&id]);
        site.assert_attached(&netns);
        call(first, "CHECK").ok();
        call(second, "DEL").ok();
        site.assert_clean(&[&netns]);
        // Late and repeated ones.
        for release in [first, second] {
            call(release, "DEL").ok();
            site.with(release, "DEL", &id, "", &site.conf(release)).pod("p").ok();
        }
        site.assert_clean(&[&netns]);
        site.world.delete_netns(&netns);
    }
}

/// A pod whose namespace is gone, one that the runtime does not list any more, and one of an earlier boot.
#[test]
fn what_is_left_of_one_release_the_other_collects() {
    let site = Site::new();
    for (at, (first, second)) in site.directions().into_iter().enumerate() {
        let id = format!("late{at}");
        let netns = site.world.netns();
        site.call(first, "ADD", &id, &netns).ok();
        site.world.delete_netns(&netns);
        site.with(second, "DEL", &id, "", &site.conf(second)).pod("p").ok();
        site.assert_clean(&[]);

        let (id, netns) = (format!("unlisted{at}"), site.world.netns());
        site.call(first, "ADD", &id, &netns).ok();
        site.gc(second, &["another"]);
        site.assert_clean(&[&netns]);
        assert_eq!(names("/var/lib/cni/meta-cni/confs"), Vec::<String>::new(), "configurations");

        site.call(first, "ADD", &format!("before{at}"), &netns).ok();
        site.world.reboot();
        site.gc(second, &[]);
        site.assert_clean(&[]);
        assert_eq!(names("/var/lib/cni/meta-cni/confs"), Vec::<String>::new(), "configurations");
    }
}

/// A plugin that fails once the namespace is gone: DEL is owed, and paid at the other's GC.
#[test]
fn what_one_release_owes_the_other_pays() {
    let site = Site::new();
    for (at, (first, second)) in site.directions().into_iter().enumerate() {
        let (id, netns) = (format!("owed{at}"), site.world.netns());
        site.call(first, "ADD", &id, &netns).ok();
        site.world.delete_netns(&netns);
        let mut conf = site.conf(first);
        // No plugin is found there.
        conf["binDir"] = json!("/run/test/nowhere");
        site.with(first, "DEL", &id, "", &conf).env("CNI_PATH", "/run/test/nowhere").pod("p").ok();
        assert_eq!(site.world.records(&id).len(), 5, "what could not be undone is remembered");
        site.gc(second, &[]);
        site.assert_clean(&[]);
    }
}

/// Their locks have the same names: a DEL that comes while the other release's ADD is at work waits for its end. If it did
/// not, the ADD would go on after it and leave what it makes.
#[test]
fn a_verb_of_one_release_waits_for_the_others_in_the_same_sandbox() {
    let site = Site::new();
    site.world.definition("slow", &json!({"cniVersion": "1.0.0", "type": "slow"}));
    site.world.pod("r", "slow,net-s");
    for (at, (first, second)) in site.directions().into_iter().enumerate() {
        let (began, go) = (format!("/run/test/began{at}"), format!("/run/test/go{at}"));
        for release in [first, second] {
            let recorder = Recorder::install(&release.bin, &["slow"]);
            let waits = format!("touch {began}; while [ ! -e {go} ]; do sleep 0.05; done");
            recorder.behave("slow", "ADD", &waits);
        }
        let (id, netns) = (format!("w{at}"), site.world.netns());
        let call = |release, verb| site.with(release, verb, &id, &netns, &site.conf(release)).pod("r");
        let add = call(first, "ADD").start();
        while !Path::new(&began).exists() {
            sleep(Duration::from_millis(20));
        }
        let del = call(second, "DEL").start();
        // Time enough to do damage; none is shown by more of it.
        sleep(Duration::from_secs(1));
        assert!(Interface::find(&netns, "eth0").is_some(), "the DEL did not wait");
        fs::write(&go, "").unwrap();
        for child in [add, del] {
            let output = child.wait_with_output().unwrap();
            assert_eq!(output.status.code(), Some(0), "{output:?}");
        }
        site.assert_clean(&[&netns]);
    }
}
