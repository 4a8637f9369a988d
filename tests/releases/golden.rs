//! Files as earlier states of the project wrote them. `golden/oldest` is of the first commit whose records have format 1,
//! `golden/previous` of the release before this one; namespace, boot, MAC addresses and process IDs are replaced. Nobody
//! makes these files anew: what this release cannot read any more would be lost on a node that is upgraded.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use meta_cni::{
    Face,
    attach::record::{Entry, Records},
    cni::Object,
    node::{Layout, boot_id},
    settings::Settings,
};
use serde_json::{Value, json};

use crate::{
    harness::{Call, names},
    site::{Release, Site},
};

const STATE: &str = "/var/lib/cni/meta-cni";
/// Who made the files.
const SETS: [&str; 2] = ["oldest", "previous"];
const NETWORKS: [&str; 4] = ["eth0", "net1", "net3", "net4"];

fn golden(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/releases/golden").join(path)
}

fn json_of(path: impl AsRef<Path>) -> Value {
    let path = path.as_ref();
    serde_json::from_str(&fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display())))
        .unwrap()
}

fn write(path: &str, content: &str) {
    fs::create_dir_all(Path::new(path).parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
}

/// Puts a record on the node, with its configuration and the leases of its addresses.
fn put(record: &Value) {
    let hash = record["confHash"].as_str().unwrap();
    let conf = fs::read_to_string(golden("confs").join(hash)).unwrap();
    write(&format!("{STATE}/confs/{hash}"), &conf);
    let interface = record["interface"].as_str().unwrap();
    write(&format!("{STATE}/sandboxes/c0ffee/meta:eth0:{interface}.json"), &record.to_string());
    let network: Value = serde_json::from_str(&conf).unwrap();
    for ip in record["result"]["ips"].as_array().unwrap() {
        let address = ip["address"].as_str().unwrap().split_once('/').unwrap().0;
        let pool = network["name"].as_str().unwrap();
        write(&format!("/var/lib/cni/networks/{pool}/{address}"), &format!("c0ffee\r\n{interface}"));
    }
}

/// The record as it would be in this boot, of a sandbox that lives.
fn of_today(mut record: Value, netns: &str) -> Value {
    let there = fs::metadata(netns).unwrap();
    record["bootId"] = json!(boot_id().unwrap());
    record["netns"] = json!(netns);
    record["netnsId"] = json!({"path": netns, "dev": there.dev(), "inode": there.ino()});
    record
}

/// What a release says of the node's addresses.
fn listing(release: &Release) -> Value {
    let outcome = Call::command(&release.program, &["ipam", "list", "-o", "json"]).run();
    assert_eq!(outcome.code, 0, "{outcome:?}");
    outcome.json()
}

/// The journal, read by this release's own library.
fn entries() -> Vec<Entry> {
    let layout = Layout::of(&Settings::of_plugin(&Object::default()), Face::Meta);
    Records::of(&layout).of_container("c0ffee").unwrap()
}

/// Panics unless all that is in `wanted` is in `found`, with the same value.
fn assert_within(wanted: &Value, found: &Value, at: &str) {
    match wanted {
        Value::Object(keys) => {
            for (key, value) in keys {
                let inner = found.get(key).unwrap_or_else(|| panic!("{at}/{key} is not read any more"));
                assert_within(value, inner, &format!("{at}/{key}"));
            }
        }
        value => assert_eq!(value, found, "{at}"),
    }
}

#[test]
fn records_of_earlier_states_are_read_shown_and_undone() {
    let site = Site::new();
    for (set, release) in SETS.iter().flat_map(|set| [(set, &site.new), (set, &site.old)]) {
        let netns = site.world.netns();
        for name in NETWORKS {
            put(&of_today(json_of(golden(&format!("{set}/{name}.json"))), &netns));
        }
        let listing = listing(release);
        let leases = listing["pools"].as_array().unwrap().iter().flat_map(|pool| pool["leases"].as_array().unwrap());
        let mut count = 0;
        for lease in leases {
            assert_eq!((&lease["state"], &lease["because"]), (&json!("live"), &json!("record")), "{set}: {lease}");
            assert_eq!((&lease["container"], &lease["pod"]["name"]), (&json!("c0ffee"), &json!("p")), "{set}: {lease}");
            count += 1;
        }
        assert_eq!((count, &listing["tornRecords"]), (NETWORKS.len(), &json!([])), "{set}: {listing}");
        site.call(release, "DEL", "c0ffee", &netns).ok();
        site.assert_clean(&[&netns]);

        // As they are: of an earlier boot.
        for name in NETWORKS {
            put(&json_of(golden(&format!("{set}/{name}.json"))));
        }
        site.gc(release, &[]);
        site.assert_clean(&[]);
        assert_eq!(names(format!("{STATE}/confs")), Vec::<String>::new(), "configurations");
    }
}

/// A VF of an earlier boot, which is not in this machine any more, with its lease, its addresses and a default route.
#[test]
fn the_record_and_the_lease_of_a_vf_are_read_and_undone() {
    let site = Site::new();
    for release in [&site.new, &site.old] {
        let record = json_of(golden("previous/vf.json"));
        put(&record);
        write(&format!("{STATE}/vfs/0000:01:10.2.json"), &fs::read_to_string(golden("previous/vf-lease")).unwrap());
        let Some(Entry::Good(read)) = entries().pop() else { panic!("it is not read any more") };
        assert!(!read.is_newer() && !read.in_part);
        assert_within(&record, &serde_json::to_value(&read).unwrap(), "");
        let lease = json_of(golden("previous/vf-lease"));
        let owner: sriov::Owner = serde_json::from_value(lease.clone()).unwrap();
        assert_within(&lease, &serde_json::to_value(&owner).unwrap(), "");
        site.gc(release, &[]);
        site.assert_clean(&[]);
    }
}

/// Whether a value is what it should be.
type Kind = fn(&Value) -> bool;

/// What a release must find in a record to undo it: `/KEY` and what kind of value it has. A key leaves this list one release
/// after the last one that needs it, and what one means does not change: then it is another key, and another format.
const NEEDED: &[(&str, Kind)] = &[
    ("/format", |value| *value == 1),
    ("/stage", |value| ["intent", "done", "owed"].iter().any(|stage| value == stage)),
    ("/call/conf", Value::is_string),
    ("/call/container", Value::is_string),
    ("/call/ifName", Value::is_string),
    ("/position", Value::is_u64),
    ("/network", Value::is_string),
    ("/interface", Value::is_string),
    ("/primary", Value::is_boolean),
    ("/pod/namespace", Value::is_string),
    ("/pod/name", Value::is_string),
    ("/pod/uid", Value::is_string),
    ("/bootId", |value| value.as_str() == boot_id().ok().as_deref()),
    ("/netns", |value| value.as_str().is_some_and(|path| Path::new(path).exists())),
    ("/netnsId/path", Value::is_string),
    ("/netnsId/dev", Value::is_u64),
    ("/netnsId/inode", Value::is_u64),
    ("/confHash", |value| value.as_str().is_some_and(|hash| Path::new(&format!("{STATE}/confs/{hash}")).is_file())),
    ("/additions", Value::is_object),
    ("/args/0/1", Value::is_string),
    ("/runtimeConfig", Value::is_object),
    ("/result/cniVersion", Value::is_string),
    ("/result/interfaces/0/name", Value::is_string),
    ("/result/ips/0/address", Value::is_string),
];

#[test]
fn todays_records_have_what_the_release_before_needs() {
    let site = Site::new();
    let netns = site.world.netns();
    for release in [&site.old, &site.new] {
        site.call(release, "ADD", "c1", &netns).ok();
        let directory = format!("{STATE}/sandboxes/c1");
        let files = names(&directory);
        assert_eq!(files, ["eth0", "net1", "net2", "net3", "net4"].map(|name| format!("meta:eth0:{name}.json")));
        for file in files {
            let record = json_of(format!("{directory}/{file}"));
            for (key, fits) in NEEDED {
                let value = record.pointer(key).unwrap_or_else(|| panic!("{}: {file} has no {key}", release.name));
                assert!(fits(value), "{}: {key} of {file} is {value}", release.name);
            }
        }
        let of_a_choice = json_of(format!("{directory}/meta:eth0:net4.json"));
        assert_eq!(of_a_choice["additions"], json!({"cniArgs": {"who": "p"}}));
        site.call(release, "DEL", "c1", &netns).ok();
    }
    site.assert_clean(&[&netns]);
}
