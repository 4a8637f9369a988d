//! What the pools held at boot is listed once, by the first verb, before any plugin runs.

use std::fs;

use serde_json::{Value, json};

use super::reboot::{add, alone, flannel, gc, lease};
use crate::harness::{Recorder, Which, World, bare_add, names, trace};

/// The lists of this boot, as `FILE: LINE`s.
fn lists(boot: &str) -> Vec<String> {
    let directory = format!("/run/meta-cni/boot/{boot}");
    let mut lines = Vec::new();
    for name in names(&directory) {
        let text = fs::read_to_string(format!("{directory}/{name}")).unwrap();
        lines.extend(text.lines().map(|line| format!("{}: {line}", name.split('-').next().unwrap())));
    }
    lines
}

const SECOND: &str = "00000000-0000-4000-8000-000000000001";

#[test]
fn pools_are_listed_once_in_a_boot_before_any_plugin_runs() {
    let _alone = alone();
    let world = World::new();
    let recorder = Recorder::install(&world.bin, &["watcher"]);
    recorder.behave("watcher", "ADD", "ls /run/meta-cni/boot/*/listed >/dev/null || exit 1");
    let primary = json!({"cniVersion": "1.0.0", "name": "main", "plugins": [{"type": "watcher"}]});
    let conf = world.conf(&world.primary(&primary));
    lease("main", "10.231.9.2", "c1\r\neth0");
    lease("main", "10.231.9.3", "");
    lease("other", "fd00:231::2", "old-form");
    // What another boot listed.
    fs::create_dir_all("/run/meta-cni/boot/another").unwrap();
    fs::write("/run/meta-cni/boot/another/listed", "").unwrap();
    world.reboot();
    fs::create_dir_all("/run/meta-cni/boot/another").unwrap();
    let netns = add(&world, &conf, "p", "");
    let expected = [
        "main: pool ours /var/lib/cni/networks/main",
        "main: 10.231.9.2 c1 eth0",
        "other: pool other /var/lib/cni/networks/other",
        "other: fd00:231::2 old-form",
    ];
    assert_eq!(lists(SECOND), expected);
    assert_eq!(names("/run/meta-cni/boot"), [SECOND], "those of another boot are forgotten");
    lease("main", "10.231.9.4", "late\r\neth0");
    world.call("DEL", "p", &netns, &conf).pod("p").ok();
    assert_eq!(lists(SECOND), expected);

    // With every verb.
    for verb in ["CHECK", "DEL", "GC"] {
        world.reboot();
        let boot = names("/run/test").iter().filter(|name| name.starts_with("boot_id")).count();
        let mut conf = conf.clone();
        conf["cniVersion"] = json!("1.1.0");
        let netns = world.netns();
        let _ = world.call(verb, "p", &netns, &conf).pod("p").run();
        assert_eq!(names("/run/meta-cni/boot"), [format!("00000000-0000-4000-8000-{boot:012}")], "{verb}");
    }
}

#[test]
fn killed_anywhere_while_listing_the_next_verb_lists_before_any_plugin_runs() {
    let _alone = alone();
    let world = World::new();
    let recorder = Recorder::install(&world.bin, &["watcher"]);
    recorder.behave("watcher", "DEL", "ls /run/meta-cni/boot/*/listed >/dev/null || exit 1");
    let primary = json!({"cniVersion": "1.0.0", "name": "main", "plugins": [{"type": "watcher"}]});
    let conf = world.conf(&world.primary(&primary));
    for pool in ["main", "net-a", "net-b"] {
        lease(pool, "10.231.11.2", "c1\r\neth0");
    }
    world.reboot();
    let netns = world.netns();
    let call = || world.call("DEL", "p", &netns, &conf).pod("p");
    let whole = trace(&call(), Which::All, None);
    assert_eq!(whole.code, Some(0), "{}", whole.stdout);
    let expected = lists(SECOND);
    assert_eq!(expected.len(), 6, "{expected:?}");
    let last = whole.points.iter().position(|point| point.about.ends_with("/listed")).expect("it says when it is done");
    let mut partly = 0;
    for before in 0..=last + 1 {
        let _ = fs::remove_dir_all("/run/meta-cni");
        recorder.take();
        let killed = trace(&call(), Which::All, Some(before));
        assert!(killed.killed, "before point {before}");
        assert_eq!(recorder.take(), Vec::<String>::new(), "no plugin ran before point {before}");
        partly += usize::from((1..6).contains(&lists(SECOND).len()));
        call().ok();
        assert_eq!(recorder.take(), ["DEL watcher eth0"]);
        assert_eq!(lists(SECOND), expected, "killed before point {before}");
        assert!(names(format!("/run/meta-cni/boot/{SECOND}")).contains(&"listed".to_owned()));
    }
    assert!(partly > 0, "it was never killed between two lists");
}

#[test]
fn two_verbs_at_once_list_what_was_there_before_both() {
    let _alone = alone();
    let world = World::new();
    let (conf, list) = flannel(&world, "10.231.10.1/24");
    bare_add(&world, &list, "reboot-old", &world.netns());
    world.reboot();
    world.subnet_env("10.231.10.1/24");
    let started: Vec<_> = (0..6)
        .map(|number| {
            let pod = format!("reboot-n{number}");
            world.pod(&pod, "");
            world.call("ADD", &pod, &world.netns(), &conf).pod(&pod).start()
        })
        .collect();
    for child in started {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{output:?}");
    }
    let listed: Vec<String> = lists(SECOND).into_iter().filter(|line| line.starts_with("cbr0")).collect();
    assert_eq!(listed, ["cbr0: pool ours /var/lib/cni/networks/cbr0", "cbr0: 10.231.10.2 reboot-old eth0"]);
    gc(&world, &conf, &Value::Null);
    assert_eq!(world.leases("cbr0").len(), 6);
}

#[test]
fn what_a_primary_that_is_a_definition_left_is_listed_by_the_configurations_that_are_kept() {
    let _alone = alone();
    let world = World::new();
    let (mut conf, list) = flannel(&world, "10.231.12.1/24");
    world.definition("podnet", &list);
    conf["clusterNetwork"] = json!("default/podnet");
    add(&world, &conf, "reboot-old", "");
    assert_eq!(names("/var/lib/cni/flannel"), ["reboot-old"]);
    world.reboot();
    world.subnet_env("10.231.12.1/24");
    // The records are lost, and their configurations are not: a power cut may do that.
    fs::remove_dir_all("/var/lib/cni/meta-cni/sandboxes").unwrap();
    add(&world, &conf, "reboot-new", "");
    let listed = lists(SECOND);
    for line in
        ["cbr0: 10.231.12.2 reboot-old eth0", "flannel: scratch ours /var/lib/cni/flannel", "flannel: reboot-old"]
    {
        assert!(listed.iter().any(|found| found == line), "{line} is not in {listed:#?}");
    }
    gc(&world, &conf, &json!([{"containerID": "reboot-new", "ifname": "eth0"}]));
    assert_eq!(names("/var/lib/cni/flannel"), ["reboot-new"]);
    assert_eq!(world.leases("cbr0"), ["10.231.12.3"]);
}
