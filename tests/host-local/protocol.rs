//! The protocol: results, texts and exit codes are those of the reference plugin in every version; CHECK, GC and STATUS.

use std::{collections::BTreeMap, fs, os::unix::fs::MetadataExt as _, path::Path};

use nix::mount::MsFlags;
use serde_json::{Value, json};

use crate::bed::{Bed, VERSIONS, answer, ours, theirs};

#[test]
fn results_are_those_of_host_local_in_every_version() {
    let resolv = tempfile::NamedTempFile::new().unwrap();
    fs::write(resolv.path(), "nameserver 192.0.2.1\nsearch a.example b.example\noptions ndots:2\n").unwrap();
    let routes = json!([{"dst": "0.0.0.0/0"}, {"dst": "::/0", "gw": "fd00::9"},
        {"dst": "10.9.0.0/16", "gw": "10.0.0.9", "mtu": 1400, "advmss": 1300, "priority": 3, "table": 0, "scope": 253}]);
    let dual = json!([[{"subnet": "10.0.0.0/24"}], [{"subnet": "fd00::/64", "rangeStart": "fd00::10"}]]);
    let table = [
        json!({"ranges": dual, "routes": routes, "resolvConf": resolv.path()}),
        json!({"ranges": dual}),
        json!({"subnet": "10.0.0.0/29", "gateway": "10.0.0.6"}),
    ];
    for version in VERSIONS.iter().chain(&[""]) {
        for ipam in &table {
            let (reference, own) = (Bed::new(ipam), Bed::new(ipam));
            let mut answers = Vec::new();
            for (program, bed) in [(theirs(), &reference), (ours(), &own)] {
                let call = |verb: &str| bed.call_with(program, verb, "c1", &bed.conf(version)).run();
                let add = call("ADD");
                assert_eq!(add.stderr, "", "{version}: {ipam}");
                let held = bed.files();
                let del = call("DEL");
                assert_eq!((del.code, del.stdout.as_str(), del.stderr.as_str()), (0, "", ""), "{version}: {ipam}");
                answers.push((add.code, answer(&add), held, bed.files()));
            }
            assert_eq!(answers[1], answers[0], "{version}: {ipam}");
            assert_eq!(answers[0].0, 0, "{version}: {:?}", answers[0].1);
        }
    }
}

/// A refusal of ours says all that the reference's says, under a code of the specification or of our own in place of 999.
#[test]
fn refusals_have_host_locals_texts_and_codes_that_say_something() {
    let bed = Bed::new(&json!({"subnet": "10.0.0.0/24"}));
    let with = |key: &str, value: Value| {
        let mut conf = bed.conf("1.0.0");
        conf[key] = value;
        conf
    };
    let ipam = |extra: Value| {
        let mut ipam = bed.ipam.clone();
        ipam.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        with("ipam", ipam)
    };
    let mut two = ipam(json!({"ranges": [[{"subnet": "10.1.0.0/24"}]]}));
    two["cniVersion"] = json!("0.2.0");
    let plain = bed.conf("1.0.0");
    let old = bed.conf("0.3.1");
    let table = [
        ("ADD", with("ipam", Value::Null), "", 7, "IPAM config missing 'ipam' key"),
        ("DEL", with("ipam", Value::Null), "", 7, "IPAM config missing 'ipam' key"),
        ("ADD", plain.clone(), "FOO=1;IP=10.0.0.9", 4, "ARGS: unknown args [\"FOO=1\"]"),
        ("ADD", plain.clone(), "FOO", 4, "ARGS: invalid pair \"FOO\""),
        ("ADD", plain.clone(), "IP=10.0.1.9", 102, "failed to allocate all requested IPs: 10.0.1.9"),
        ("ADD", two, "", 7, "CNI version 0.2.0 does not support more than 1 address per family"),
        ("ADD", ipam(json!({"subnet": "10.0.0.0/33"})), "", 7, "invalid CIDR address: 10.0.0.0/33"),
        (
            "ADD",
            ipam(json!({"resolvConf": "/nonexistent/resolv"})),
            "",
            5,
            "/nonexistent/resolv: no such file or directory",
        ),
        ("ADD", ipam(json!({"dataDir": "/proc/no"})), "", 5, "/proc/no"),
        ("CHECK", plain.clone(), "", 101, "host-local: Failed to find address added by container c1"),
        ("CHECK", old, "", 1, "config version does not allow CHECK"),
        ("ADD", with("cniVersion", json!("0.9.0")), "", 1, "incompatible CNI versions"),
        ("ADD", with("name", json!("a/b")), "", 7, "invalid characters found in network name: a/b"),
    ];
    for (verb, conf, args, code, text) in table {
        for program in [theirs(), ours()] {
            let outcome = bed.call_with(program, verb, "c1", &conf).env("CNI_ARGS", args).run();
            let error = outcome.json();
            assert_eq!((outcome.code, outcome.stderr.as_str()), (1, ""), "{verb} {conf}: {outcome:#?}");
            let said = format!("{}: {}", error["msg"].as_str().unwrap(), error["details"].as_str().unwrap_or_default());
            // Rust begins the kernel's words with a capital letter.
            assert!(said.to_lowercase().contains(&text.to_lowercase()), "{verb} {conf}: {said}");
            if program == ours() {
                assert_eq!(error["code"], code, "{error}");
            }
        }
        assert!(bed.leases().is_empty(), "{verb} {conf}: {:?}", bed.leases());
    }
}

#[test]
fn the_name_decides_and_a_meta_plugin_among_the_callers_does_not_matter() {
    let bed = Bed::new(&json!({"subnet": "10.0.0.0/24"}));
    let report = bed.call(ours(), "VERSION", "c1").ok();
    assert_eq!(report["supportedVersions"], json!(VERSIONS));
    let about = bed.call(ours(), "ADD", "c1").without("CNI_COMMAND").run();
    assert!(about.stderr.contains("called as host-local: an IPAM plugin in place of host-local"), "{about:#?}");
    bed.call(ours(), "ADD", "c1").env("META_CNI_CALLER", "1").ok();
    assert_eq!(bed.leases(), leases(&[("10.0.0.2", "c1")]));
    bed.call(ours(), "DEL", "c1").env("META_CNI_CALLER", "1").ok();
    assert_eq!(bed.leases(), leases(&[]));
    // Another name is the meta plugin, which wants another configuration.
    let other = ours().with_file_name("host-local.old");
    let _ = fs::remove_file(&other);
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_meta-cni"), &other).unwrap();
    assert!(bed.call(&other, "ADD", "c1").fails(7).contains("clusterNetwork"));
    fs::remove_file(&other).unwrap();
}

#[test]
fn del_needs_no_valid_range_and_no_namespace_and_may_be_repeated() {
    let bed = Bed::new(&json!({"subnet": "10.0.0.0/24"}));
    for container in ["c1", "c2"] {
        bed.call(ours(), "ADD", container).ok();
    }
    let mut conf = bed.conf("1.1.0");
    conf["ipam"]["subnet"] = json!("10.0.0.0/99");
    conf["ipam"]["resolvConf"] = json!("/nonexistent/resolv");
    for _ in 0..2 {
        bed.call_with(ours(), "DEL", "c1", &conf).without("CNI_NETNS").env("CNI_ARGS", "FOO=1").ok();
        assert_eq!(bed.leases(), leases(&[("10.0.0.3", "c2")]));
    }
    bed.call(ours(), "DEL", "never-added").ok();
    // An empty data directory, and none at all.
    for data in [bed.data().join("empty"), bed.data().join("none")] {
        conf["ipam"]["dataDir"] = json!(data);
        bed.call_with(ours(), "DEL", "c1", &conf).ok();
        assert!(!data.exists(), "DEL makes no pool");
    }
}

#[test]
fn check_looks_for_the_addresses_of_the_result_and_without_one_for_any() {
    let bed = Bed::new(&json!({"ranges": [[{"subnet": "10.0.0.0/24"}], [{"subnet": "fd00::/64"}]]}));
    let result = bed.call(ours(), "ADD", "c1").ok();
    let check = |program: &Path, previous: &Value| {
        let mut conf = bed.conf("1.1.0");
        conf["prevResult"] = previous.clone();
        bed.call_with(program, "CHECK", "c1", &conf)
    };
    // The chain may have addresses of other networks, too.
    let mut more = result.clone();
    more["ips"].as_array_mut().unwrap().push(json!({"address": "192.0.2.7/24"}));
    for previous in [&Value::Null, &result, &more] {
        check(ours(), previous).ok();
        check(theirs(), previous).ok();
    }
    // One of two is gone: host-local is content with the other one.
    fs::remove_file(bed.directory().join("10.0.0.2")).unwrap();
    check(ours(), &Value::Null).ok();
    check(theirs(), &result).ok();
    let text = check(ours(), &result).fails(101);
    assert!(text.contains("host-local: Failed to find address added by container c1"), "{text}");
    assert!(text.contains("not reserved for its interface eth0: 10.0.0.2"), "{text}");
    // It is somebody else's by now.
    bed.plant("10.0.0.2", "c2\r\neth0");
    assert!(check(ours(), &result).fails(101).contains("eth0: 10.0.0.2"));
    // A result of other networks alone says nothing of this one.
    let foreign = json!({"cniVersion": "1.1.0", "ips": [{"address": "192.0.2.7/24"}]});
    check(ours(), &foreign).ok();
    bed.call(ours(), "DEL", "c1").ok();
    for previous in [&Value::Null, &foreign] {
        assert!(check(ours(), previous).fails(101).contains("added by container c1"));
    }
    assert_eq!(bed.leases(), leases(&[("10.0.0.2", "c2")]));
}

#[test]
fn gc_gives_back_what_is_in_neither_list_and_touches_nothing_else() {
    let everything = [
        ("10.0.0.2", "c1\r\neth0"),
        ("10.0.0.3", "c1\r\nnet1"),
        ("10.0.0.4", "c2\r\neth0"),
        ("10.0.0.5", "c1"),
        ("10.0.0.6", "c3\n"),
        ("10.0.0.7", ""),
        ("10.0.0.8", "kept for the printer"),
        ("last_reserved_ip.0", "10.0.0.6"),
        ("last_reserved_ip.1", "fd00::7"),
    ];
    let one = json!([{"containerID": "c1", "ifname": "eth0"}]);
    let stays = |names: &[&str]| -> Vec<String> {
        let rest = ["10.0.0.8", "last_reserved_ip.0", "last_reserved_ip.1"];
        names.iter().chain(&rest).map(|name| (*name).to_owned()).collect()
    };
    let all: Vec<&str> = everything.iter().map(|(name, _)| *name).take(6).collect();
    let table = [
        (json!({}), stays(&all)),
        (json!({"cni.dev/valid-attachments": null}), stays(&all)),
        (json!({"cni.dev/attachments": null}), stays(&all)),
        (json!({"cni.dev/valid-attachments": []}), stays(&[])),
        (json!({"cni.dev/attachments": []}), stays(&[])),
        (json!({"cni.dev/valid-attachments": null, "cni.dev/attachments": one}), stays(&["10.0.0.2", "10.0.0.5"])),
        (json!({"cni.dev/valid-attachments": one}), stays(&["10.0.0.2", "10.0.0.5"])),
        (json!({"cni.dev/valid-attachments": one, "cni.dev/attachments": one}), stays(&["10.0.0.2", "10.0.0.5"])),
    ];
    for (lists, stays) in table {
        let bed = Bed::new(&json!({"subnet": "10.0.0.0/24"}));
        everything.iter().for_each(|(name, content)| bed.plant(name, content));
        bed.plant("lock", "");
        let inode = fs::metadata(bed.directory().join("lock")).unwrap().ino();
        let neighbour = bed.data().join("net-b");
        fs::create_dir(&neighbour).unwrap();
        fs::write(neighbour.join("10.0.0.2"), "c9\r\neth0").unwrap();
        let mut conf = bed.conf("1.1.0");
        conf.as_object_mut().unwrap().extend(lists.as_object().unwrap().clone());
        bed.call_with(ours(), "GC", "", &conf).ok();
        assert_eq!(bed.files().into_keys().collect::<Vec<_>>(), stays, "{lists}");
        assert_eq!(fs::metadata(bed.directory().join("lock")).unwrap().ino(), inode, "{lists}");
        assert_eq!(fs::read_to_string(neighbour.join("10.0.0.2")).unwrap(), "c9\r\neth0", "{lists}");
    }
    // A list that cannot be read condemns nobody.
    let bed = Bed::new(&json!({"subnet": "10.0.0.0/24"}));
    bed.plant("10.0.0.2", "c1\r\neth0");
    for list in [json!({}), json!([{"containerID": "c1"}]), json!([{"containerID": "a/b", "ifname": "eth0"}])] {
        let mut conf = bed.conf("1.1.0");
        conf["cni.dev/valid-attachments"] = list;
        bed.call_with(ours(), "GC", "", &conf).fails(7);
        assert_eq!(bed.leases(), leases(&[("10.0.0.2", "c1")]));
    }
    bed.call_with(ours(), "GC", "", &bed.conf("1.0.0")).fails(1);
}

#[test]
fn status_is_about_the_configuration_the_directory_and_the_addresses_left() {
    let bed = Bed::new(&json!({"subnet": "10.0.0.0/29", "coolDownSeconds": 600}));
    let status = |conf: &Value| bed.call_with(ours(), "STATUS", "", conf);
    let conf = bed.conf("1.1.0");
    status(&conf).ok();
    // At boot one lease was there: whoever has it may be dead.
    let boot = "/run/meta-cni/boot";
    fs::remove_dir_all(boot).unwrap();
    bed.plant("10.0.0.2", "c2\r\neth0");
    status(&conf).ok();
    let fill = || (3..=6).for_each(|last| bed.plant(&format!("10.0.0.{last}"), &format!("c{last}\r\neth0")));
    fill();
    status(&conf).ok();
    // It belongs to somebody of this boot now: nothing is left, and nothing can be reclaimed.
    bed.plant("10.0.0.2", "late\r\neth0");
    let text = status(&conf).fails(50);
    assert!(
        text.contains("the network is not ready: failed to allocate for range 0: no IP addresses available"),
        "{text}"
    );
    // An empty file is nobody's.
    bed.plant("10.0.0.4", "");
    status(&conf).ok();
    fill();
    status(&conf).fails(50);
    // One that was given back is free in ten minutes.
    bed.call(ours(), "DEL", "c5").ok();
    status(&conf).ok();
    assert!(bed.call(ours(), "ADD", "c9").fails(102).contains("1 address is withheld, until"));

    let mut wrong = conf.clone();
    wrong["ipam"]["rangeStart"] = json!("10.0.1.1");
    assert!(status(&wrong).fails(50).contains("RangeStart 10.0.1.1 not in network 10.0.0.0/29"));
    // A file system that cannot be written.
    let none: Option<&str> = None;
    nix::mount::mount(Some(bed.data()), bed.data(), none, MsFlags::MS_BIND, none).unwrap();
    nix::mount::mount(none, bed.data(), none, MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY, none)
        .unwrap();
    let text = status(&conf).fails(50);
    assert!(text.contains(bed.directory().to_str().unwrap()) && text.contains("Read-only file system"), "{text}");
    nix::mount::umount(bed.data()).unwrap();
    status(&conf).ok();
    bed.call_with(ours(), "STATUS", "", &bed.conf("1.0.0")).fails(1);
}

/// The files of these leases on eth0.
fn leases(all: &[(&str, &str)]) -> BTreeMap<String, String> {
    all.iter().map(|(address, container)| ((*address).to_owned(), format!("{container}\r\neth0"))).collect()
}
