//! What a release that is not written yet left on the node: understood as far as it can be, never thrown away.

use std::{fs, path::PathBuf};

use serde_json::{Value, json};

use crate::{
    harness::{Interface, names},
    site::Site,
};

const SANDBOXES: &str = "/var/lib/cni/meta-cni/sandboxes";

fn files(id: &str) -> Vec<PathBuf> {
    names(format!("{SANDBOXES}/{id}")).iter().map(|name| PathBuf::from(format!("{SANDBOXES}/{id}/{name}"))).collect()
}

fn read(file: &PathBuf) -> Value {
    serde_json::from_str(&fs::read_to_string(file).unwrap()).unwrap()
}

/// Makes records look like a newer release's: another number, keys that nobody knows yet on two levels.
fn age(id: &str, format: u64) {
    for file in files(id) {
        let mut record = read(&file);
        record["format"] = json!(format);
        record["meter"] = json!({"id": 7, "of": [1.5, null]});
        record["call"]["shard"] = json!("a");
        record["netnsId"]["since"] = json!(12);
        fs::write(&file, record.to_string()).unwrap();
    }
}

#[test]
fn records_of_a_newer_format_are_undone_as_far_as_they_are_understood_and_stay() {
    let site = Site::new();
    let (new, netns) = (&site.new, site.world.netns());
    site.call(new, "ADD", "c1", &netns).ok();
    age("c1", 2);
    let before: Vec<Value> = files("c1").iter().map(read).collect();
    site.call(new, "CHECK", "c1", &netns).ok();
    for _ in 0..2 {
        let outcome = site.call(new, "DEL", "c1", &netns).run();
        assert_eq!(outcome.code, 0, "{outcome:?}");
        assert!(outcome.stderr.contains("a newer release wrote this record"), "{}", outcome.stderr);
        assert!(outcome.stderr.contains("install that release again"), "{}", outcome.stderr);
        for name in ["eth0", "net1", "net2", "net3", "net4"] {
            assert!(Interface::find(&netns, name).is_none(), "{name} is left");
        }
        for pool in ["podnet", "net-a", "net-b", "net-c", "net-d"] {
            assert_eq!(site.world.leases(pool), Vec::<String>::new(), "{pool}");
        }
        let after: Vec<Value> = files("c1").iter().map(read).collect();
        assert_eq!(after.len(), 5);
        for (mut after, mut before) in after.into_iter().zip(before.clone()) {
            assert_eq!(after["stage"], "owed");
            assert!(after["owedBecause"].as_str().unwrap().contains("format 2"), "{after}");
            for record in [&mut after, &mut before] {
                record.as_object_mut().unwrap().retain(|key, _| key != "stage" && key != "owedBecause");
            }
            assert_eq!(after, before, "all else is as it was");
        }
    }
    let confs = names("/var/lib/cni/meta-cni/confs");
    site.gc(new, &[]);
    assert_eq!((files("c1").len(), names("/var/lib/cni/meta-cni/confs")), (5, confs), "GC keeps them, too");
    let text = site.call(new, "ADD", "c1", &netns).fails(7);
    assert!(text.contains("that a newer release of meta-cni wrote (format 2)"), "{text}");
    assert_eq!(files("c1").len(), 5);
    // Another pod is not concerned.
    site.call(new, "ADD", "c2", &netns).ok();
    site.call(new, "DEL", "c2", &netns).ok();
    // The newer release is back, for which it is a format like any other.
    age("c1", 1);
    site.gc(new, &[]);
    site.assert_clean(&[&netns]);
    assert_eq!(names("/var/lib/cni/meta-cni/confs"), Vec::<String>::new());
}

/// Values of another shape where this release expects its own, and one record of which it understands nothing.
#[test]
fn what_is_not_understood_of_a_newer_record_stops_nothing_else() {
    let site = Site::new();
    let (new, netns) = (&site.new, site.world.netns());
    site.call(new, "ADD", "c1", &netns).ok();
    age("c1", 3);
    for (at, file) in files("c1").iter().enumerate() {
        let mut record = read(file);
        record["stage"] = json!({"of": "another kind"});
        record["bootId"] = json!(["x"]);
        record["call"] = json!("another form");
        if at == 1 {
            record["confHash"] = json!({"sha3": "x"});
        }
        fs::write(file, record.to_string()).unwrap();
    }
    let untouched = fs::read(&files("c1")[1]).unwrap();
    // Nobody lists anything, and nothing says that the records are of another boot: the pod is not touched.
    let conf = site.conf(new);
    site.with(new, "GC", "", "", &conf).ok();
    site.assert_attached(&netns);
    site.call(new, "DEL", "c1", &netns).ok();
    for pool in ["podnet", "net-a", "net-b", "net-c", "net-d"] {
        assert_eq!(site.world.leases(pool), Vec::<String>::new(), "{pool}");
    }
    assert_eq!(files("c1").len(), 5);
    assert_eq!(fs::read(&files("c1")[1]).unwrap(), untouched);
    for file in files("c1") {
        fs::remove_file(file).unwrap();
    }
    site.gc(new, &[]);
    site.world.assert_clean();
}

/// Format 1 with more in it, as the next release may write it: understood, and gone after DEL.
#[test]
fn keys_that_only_the_next_release_knows_stay_while_a_record_does() {
    let site = Site::new();
    for release in [&site.new, &site.old] {
        let netns = site.world.netns();
        site.call(&site.new, "ADD", "c1", &netns).ok();
        age("c1", 1);
        let before: Vec<Value> = files("c1").iter().map(read).collect();
        site.call(release, "CHECK", "c1", &netns).ok();
        site.world.delete_netns(&netns);
        let mut conf = site.conf(release);
        conf["binDir"] = json!("/run/test/nowhere");
        site.with(release, "DEL", "c1", "", &conf).env("CNI_PATH", "/run/test/nowhere").pod("p").ok();
        for (after, before) in files("c1").iter().map(read).zip(before) {
            assert_eq!((&after["stage"], &after["meter"]), (&json!("owed"), &before["meter"]));
            if release.name == "new" {
                assert_eq!((&after["call"], &after["netnsId"]), (&before["call"], &before["netnsId"]));
            }
        }
        site.gc(release, &[]);
        site.assert_clean(&[]);
    }
}
