//! Records of other releases: what is understood of them, and that nothing of them is lost.

use std::{fs, path::PathBuf};

use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;
use crate::{
    cni::{Error, Object},
    face::Face,
    node::{Layout, boot_id},
    settings::Settings,
};

struct Node {
    records: Records,
    layout: Layout,
    _root: TempDir,
}

fn node() -> Node {
    let root = tempfile::tempdir().unwrap();
    let conf = json!({"clusterNetwork": "/x.conflist", "cniDir": root.path(), "runDir": root.path().join("run")});
    let conf = Object::parse("a constant", conf.to_string().as_bytes()).unwrap();
    let layout = Layout::of(&Settings::read(&conf).unwrap(), Face::Meta);
    layout.create().unwrap();
    Node { records: Records::of(&layout), layout, _root: root }
}

impl Node {
    fn file(&self) -> PathBuf {
        self.records.path(&call(), "net1")
    }

    fn put(&self, text: &str) {
        fs::create_dir_all(self.file().parent().unwrap()).unwrap();
        fs::write(self.file(), text).unwrap();
    }

    fn text(&self) -> String {
        fs::read_to_string(self.file()).unwrap()
    }

    fn entry(&self) -> Entry {
        let mut entries = self.records.of_container("c0ffee").unwrap();
        assert_eq!(entries.len(), 1);
        entries.remove(0)
    }

    fn record(&self) -> Record {
        match self.entry() {
            Entry::Good(record) => *record,
            torn @ Entry::Torn { .. } => panic!("{torn:?}"),
        }
    }
}

fn call() -> Call {
    Call { conf: "cbr0".into(), container: "c0ffee".into(), if_name: "eth0".into() }
}

/// What only a newer release knows, on every level, with numbers and blanks that no reader of JSON would write so.
const WHOLE: &str = r#"{"format":1,"stage":"done",
  "call":{"conf":"cbr0","container":"c0ffee","ifName":"eth0","shard": 7.10},
  "position":1,"network":"default/a","interface":"net1","primary":false,
  "netnsId":{"path":"/run/netns/x","dev":4,"inode":5,"cookie":6,"pidfd":1e3},
  "bootId":"b","netns":"/run/netns/x",
  "confHash":"e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
  "additions":{"device":"0000:01:10.2","queues":[1,  2]},
  "addresses":{"directory":"/pool","addresses":["10.0.0.2"],"cool_down":9,"lent":12345678901234567890123},
  "defaultRoutes":{"removed":[],"added":[]},
  "meter":{"id":1.50,"of":{"x":null}},"result":{"ips":[],"z":1e-7}}"#;

/// The value of a key, as it stands.
fn raw(text: &str, key: &str) -> String {
    let object = Object::parse("a record", text.as_bytes()).unwrap();
    object.raw(key).map(|value| value.get().to_owned()).unwrap_or_default()
}

#[test]
fn what_a_newer_release_wrote_stays_to_the_byte_on_every_level_when_a_record_is_written_again() {
    let node = node();
    node.put(WHOLE);
    let mut record = node.record();
    assert!(!record.is_newer() && !record.in_part);
    record.stage = Stage::Owed;
    record.owed_because = "a plugin failed".into();
    record.default_routes = None;
    for _ in 0..2 {
        node.records.write(&record, false).unwrap();
        let text = node.text();
        for key in ["format", "call", "netnsId", "additions", "addresses", "meter", "result", "confHash", "position"] {
            assert_eq!(raw(&text, key), raw(WHOLE, key), "{key}");
        }
        assert_eq!(raw(&text, "stage"), "\"owed\"");
        assert_eq!(raw(&text, "owedBecause"), "\"a plugin failed\"");
        assert_eq!(raw(&text, "defaultRoutes"), "", "what was undone is gone");
        assert_eq!(raw(&text, "args"), "", "what it did not have it has not");
        record = node.record();
        assert_eq!(record.stage, Stage::Owed);
    }
}

#[test]
fn a_record_of_a_newer_format_is_never_removed_only_marked_as_owed() {
    let node = node();
    node.put(&WHOLE.replacen(":1,", ":2,", 1));
    let record = node.record();
    assert!(record.is_newer() && !record.in_part);
    assert_eq!(record.addresses.as_ref().unwrap().cool_down, 9);
    node.records.remove(&record).unwrap();
    let left = node.record();
    assert_eq!((left.format, left.stage), (2, Stage::Owed));
    assert!(left.owed_because.contains("format 2"), "{}", left.owed_because);
    assert_eq!(raw(&node.text(), "addresses"), raw(WHOLE, "addresses"));
    let text = node.text();
    node.records.remove(&left).unwrap();
    assert_eq!(node.text(), text, "nothing is written a second time");
    let refused = node.records.refuse_newer(&[node.entry()]).unwrap_err();
    assert!(
        matches!(&refused, Error::Config(why) if why.contains("format 2") && why.contains("net1.json")),
        "{refused}"
    );
}

#[test]
fn of_a_newer_record_every_key_counts_that_can_be_read_and_the_others_stay() {
    let node = node();
    let mut found: Value = serde_json::from_str(WHOLE).unwrap();
    for (key, value) in [
        ("format", json!(9)),
        ("stage", json!("parked")),
        ("call", json!("cbr0/c0ffee/eth0")),
        ("bootId", json!({"kernel": "b"})),
        ("addresses", json!([{"pool": "/pool"}])),
        ("position", json!("last")),
    ] {
        found[key] = value;
    }
    let text = found.to_string();
    node.put(&text);
    let record = node.record();
    assert!(record.is_newer() && record.in_part);
    assert_eq!((record.call.clone(), record.interface.as_str(), record.stage), (call(), "net1", Stage::Intent));
    assert_eq!((record.network.as_str(), record.netns.as_str(), record.position), ("default/a", "/run/netns/x", 0));
    assert_eq!(record.additions.device.as_deref(), Some("0000:01:10.2"));
    assert_eq!((record.boot_id.clone(), record.addresses.clone()), (boot_id().unwrap(), None));
    node.records.remove(&record).unwrap();
    let left = node.text();
    for key in ["format", "call", "bootId", "addresses", "position", "meter", "netnsId"] {
        assert_eq!(raw(&left, key), raw(&text, key), "{key}");
    }
    assert_eq!(raw(&left, "stage"), "\"owed\"");
}

#[test]
fn a_newer_record_without_a_configuration_that_we_know_is_left_as_it_is() {
    let node = node();
    let text = r#"{"format":2,"plugins":[{"conf":"elsewhere"}]}"#;
    node.put(text);
    let Entry::Torn { path, .. } = node.entry() else { panic!("a record without a configuration") };
    node.records.remove_torn(&path).unwrap();
    assert_eq!(node.text(), text);
    let why = node.records.unreadable(&path).to_string();
    assert!(why.contains("a newer release of meta-cni wrote it (format 2)"), "{why}");
    assert!(matches!(node.records.refuse_newer(&[node.entry()]), Err(Error::Config(_))));
    for torn in ["{\"format\":1}", "{\"format\":2", ""] {
        node.put(torn);
        node.records.refuse_newer(&[node.entry()]).unwrap();
        assert!(node.records.unreadable(&path).to_string().contains("DEL repairs it"));
        node.records.remove_torn(&path).unwrap();
        assert!(!path.exists(), "{torn}");
    }
}

#[test]
fn no_configuration_is_dropped_while_there_is_a_record_of_a_newer_release() {
    let node = node();
    let kept = node.layout.confs().join("a".repeat(64));
    fs::write(&kept, "{}").unwrap();
    for text in [WHOLE.replacen(":1,", ":2,", 1), "{\"format\":2}".to_owned()] {
        node.put(&text);
        node.records.forget_unused_confs().unwrap();
        assert!(kept.exists(), "{text}");
    }
    node.put(WHOLE);
    node.records.forget_unused_confs().unwrap();
    assert!(!kept.exists());
}
