//! What a call costs, counted: system calls of the real binary, by strace.

use std::{collections::BTreeMap, fs};

use serde_json::json;

use crate::bed::{Bed, answer, ours, theirs};

/// Runs a call under strace and gives its system calls, those of its start left out: all from the opening of the lock on.
fn calls(bed: &Bed, verb: &str, container: &str) -> Vec<String> {
    let log = tempfile::NamedTempFile::new().unwrap();
    let words = ["strace", "-f", "-qq", "-o", log.path().to_str().unwrap()];
    let outcome = bed.call(ours(), verb, container).under(&words).run();
    assert!(outcome.code == 0 || answer(&outcome).is_err(), "{outcome:#?}");
    let text = fs::read_to_string(log.path()).unwrap();
    let lines = text.lines().map(|line| line.split_once(' ').map_or(line, |(_, call)| call.trim_start()).to_owned());
    let lines: Vec<String> = lines.skip_while(|line| !line.contains("/net-a/lock\"")).collect();
    assert!(lines.len() > 5, "{text}");
    lines
}

fn count(calls: &[String], start: &str, part: &str) -> usize {
    calls.iter().filter(|call| call.starts_with(start) && call.contains(part)).count()
}

/// How often each kind of call is among them.
fn census(calls: &[String]) -> BTreeMap<String, usize> {
    let mut census = BTreeMap::new();
    for call in calls {
        *census.entry(call.split('(').next().unwrap_or_default().to_owned()).or_insert(0) += 1;
    }
    census
}

/// A /16 with every second address taken by another container's lease each, and an index of them.
fn half_full(leases: u32) -> Bed {
    let bed = Bed::new(&json!({"subnet": "10.0.0.0/16"}));
    for number in 0..leases {
        let host = 2 * (number + 1);
        bed.plant(&format!("10.0.{}.{}", host / 256, host % 256), &format!("other{number}\r\neth0"));
    }
    bed.call(ours(), "ADD", "first").ok();
    bed
}

#[test]
fn neither_add_nor_del_costs_more_with_more_leases() {
    let [small, large] = [20, 3000].map(|leases| {
        let bed = half_full(leases);
        let add = calls(&bed, "ADD", "c1");
        (census(&add), add, calls(&bed, "DEL", "c1"))
    });
    assert_eq!(small.0, large.0, "ADD with 20 and with 3000 leases");
    assert_eq!(census(&small.2), census(&large.2), "DEL with 20 and with 3000 leases");
    println!("ADD {} system calls from the lock on, DEL {}", large.1.len(), large.2.len());
    assert!(large.1.len() <= 70 && large.2.len() <= 40, "{:#?}{:#?}", large.1, large.2);
    // DEL goes straight to its file.
    assert_eq!(count(&large.2, "unlink(", "/net-a/10.0."), 1);
    assert_eq!(count(&large.2, "open", "/net-a/10.0."), 1);
    assert_eq!(count(&large.2, "getdents", ""), 0);
    assert_eq!(count(&large.1, "getdents", ""), 0);
}

#[test]
fn a_nearly_full_pool_costs_one_listing_and_a_full_one_no_more_unless_it_has_changed() {
    let bed = Bed::new(&json!({"subnet": "10.0.0.0/22"}));
    // 1021 addresses: all taken but the last.
    for host in 2..1022 {
        bed.plant(&format!("10.0.{}.{}", host / 256, host % 256), &format!("other{host}\r\neth0"));
    }
    // Makes the index.
    bed.call(ours(), "DEL", "nobody").ok();
    let add = calls(&bed, "ADD", "c1");
    assert_eq!(count(&add, "open", "/net-a\", "), 1, "one listing: {add:#?}");
    assert_eq!(count(&add, "open", "/net-a/10.0."), 16, "then names are enough");
    assert_eq!(bed.leases()["10.0.3.254"], "c1\r\neth0");

    // Full. The first look finds that no file stands for nobody; it is noted when the clock of changes has ticked.
    let mut refusals = (0..50).map(|_| calls(&bed, "ADD", "c2"));
    let noted = refusals.any(|refusal| count(&refusal, "open", "/net-a/10.0.") == 16);
    assert!(noted, "every refusal opens every file");
    let refusal = calls(&bed, "ADD", "c2");
    assert_eq!(count(&refusal, "open", "/net-a\", "), 1, "one listing: {refusal:#?}");
    assert_eq!(count(&refusal, "open", "/net-a/10.0."), 16);

    bed.call(ours(), "DEL", "other700").ok();
    bed.plant("10.0.2.188", "");
    let add = calls(&bed, "ADD", "c3");
    assert!(count(&add, "open", "/net-a/10.0.") > 1000, "changed: it is looked through again");
    assert_eq!(bed.leases()["10.0.2.188"], "c3\r\neth0", "and the orphan is found");
}

#[test]
fn all_range_sets_are_served_under_one_lock() {
    let bed = Bed::new(&json!({"ranges": [
        [{"subnet": "10.0.0.0/24"}], [{"subnet": "10.1.0.0/24"}], [{"subnet": "fd00::/64"}]
    ]}));
    for verb in ["ADD", "DEL"] {
        let made = calls(&bed, verb, "c1");
        assert_eq!(count(&made, "flock(", ""), 1, "{verb}: {made:#?}");
    }
}

/// Runtimes ask for a DEL more than once, and for some pods before there was an ADD.
#[test]
fn a_del_of_somebody_unknown_looks_into_every_file_only_after_another_program_made_a_change() {
    let bed = half_full(300);
    let looks = |container: &str| {
        let calls = calls(&bed, "DEL", container);
        (count(&calls, "open", "/net-a/10.0."), count(&calls, "getdents", ""))
    };
    bed.call(ours(), "ADD", "c1").ok();
    assert_eq!(looks("c1"), (1, 0));
    for container in ["c1", "c1", "never-added"] {
        assert_eq!(looks(container), (0, 0), "{container}");
    }
    for verb in ["ADD", "DEL"] {
        bed.call(theirs(), verb, "c2").ok();
        let (files, listings) = looks("never-added");
        assert!(files >= 300 && listings > 0, "after {verb} of the other program: {files}, {listings}");
        assert_eq!(looks("never-added"), (0, 0), "after {verb} of the other program, a second time");
        bed.call(ours(), "ADD", "c3").ok();
        bed.call(ours(), "DEL", "c3").ok();
        assert_eq!(looks("never-added"), (0, 0), "after {verb} of the other program and calls of ours");
    }
    // What the other program gave is known by now.
    bed.call(theirs(), "ADD", "c2").ok();
    looks("never-added");
    assert_eq!(looks("c2"), (1, 0));
    // Nobody is missed: neither a lease that the other program made just now, nor a file that somebody put there.
    bed.call(ours(), "ADD", "c4").ok();
    bed.call(theirs(), "ADD", "c5").ok();
    bed.call(ours(), "DEL", "c4").ok();
    bed.plant("10.0.200.1", "c6\r\neth0");
    for container in ["c5", "c6"] {
        bed.call(ours(), "DEL", container).ok();
        let content = format!("{container}\r\neth0");
        assert!(!bed.leases().into_values().any(|found| found == content), "{container} still has its address");
    }
}
