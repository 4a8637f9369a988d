//! Whose an address is: interfaces, repeated calls, files of older versions.

use std::fs;

use super::*;

#[test]
fn an_interface_has_its_own_addresses() {
    let second = Who("c1", "eth1");
    let steps = [
        gives("c1", &["10.1.2.2/24 via 10.1.2.1"]),
        Step::Add {
            who: second,
            asked: Asked::default(),
            expected: Expected::Given(vec!["10.1.2.3/24 via 10.1.2.1".into()]),
        },
        Step::File("10.1.2.2", Some("c1\r\neth0")),
        Step::File("10.1.2.3", Some("c1\r\neth1")),
        del("c1"),
        Step::File("10.1.2.2", None),
        Step::File("10.1.2.3", Some("c1\r\neth1")),
        Step::Del(second),
        Step::File("10.1.2.3", None),
        Step::File(LAST, Some("10.1.2.3")),
    ];
    same(&one_set(&["10.1.2.0/24"]), &[], &steps);
}

#[test]
fn a_repeated_add_is_refused_and_takes_nothing_away() {
    let again =
        "failed to allocate for range 0: 10.1.2.2 has been allocated to c1, duplicate allocation is not allowed";
    let steps = [
        gives("c1", &["10.1.2.2/24 via 10.1.2.1"]),
        refused("c1", again),
        gives("c2", &["10.1.2.3/24 via 10.1.2.1"]),
        refused("c1", again),
        Step::File("10.1.2.2", Some("c1\r\neth0")),
        del("c1"),
        Step::File("10.1.2.2", None),
        del("c2"),
        Step::File("10.1.2.3", None),
    ];
    same(&one_set(&["10.1.2.0/24"]), &[], &steps);
}

#[test]
fn leases_of_older_versions_and_with_white_space_are_given_back() {
    let ipam = one_set(&["10.1.2.0/24"]);
    for content in ["c1", " c1\n", "\n c1\r\neth0 \n", "c1\r\neth0"] {
        let steps = [Step::File("10.1.2.2", Some(content)), del("c1"), Step::File("10.1.2.2", None)];
        same(&ipam, &[("10.1.2.2", content)], &steps);
    }
    // Nobody else's, and not a longer name's.
    let held =
        [("10.1.2.2", "c11"), ("10.1.2.3", "c11\r\neth0"), ("10.1.2.4", "c1\r\neth01"), ("10.1.2.5", "c1\r\neth0")];
    let steps = [
        del("c1"),
        Step::File("10.1.2.2", Some("c11")),
        Step::File("10.1.2.3", Some("c11\r\neth0")),
        Step::File("10.1.2.4", Some("c1\r\neth01")),
        Step::File("10.1.2.5", None),
    ];
    same(&ipam, &held, &steps);
}

#[test]
fn an_unknown_container_is_deleted() {
    let ipam = one_set(&["10.1.2.0/24"]);
    same(&ipam, &[], &[del("unknown")]);
    let steps = [del("unknown"), Step::File("10.1.2.2", Some(TAKEN)), Step::File(LAST, Some("10.1.2.2"))];
    same(&ipam, &[("10.1.2.2", TAKEN), (LAST, "10.1.2.2")], &steps);
}

/// Also the first ADD on an empty disk says nothing on stderr: [`perform`] looks at every call.
#[test]
fn two_sets_with_two_files_of_their_round() {
    let ipam =
        json!({"ranges": [[{"subnet": "10.1.2.0/24"}, {"subnet": "10.2.2.0/24"}], [{"subnet": "2001:db8:1::0/64"}]]});
    let steps = [
        gives("c1", &["10.1.2.2/24 via 10.1.2.1", "2001:db8:1::2/64 via 2001:db8:1::1"]),
        Step::File("10.1.2.2", Some("c1\r\neth0")),
        Step::File("2001:db8:1::2", Some("c1\r\neth0")),
        Step::File(LAST, Some("10.1.2.2")),
        Step::File("last_reserved_ip.1", Some("2001:db8:1::2")),
        del("c1"),
        Step::File("10.1.2.2", None),
        Step::File("2001:db8:1::2", None),
    ];
    same(&ipam, &[], &steps);
}

#[test]
fn name_servers_come_from_resolv_conf() {
    let resolv = tempfile::NamedTempFile::new().unwrap();
    fs::write(resolv.path(), "nameserver 192.0.2.3").unwrap();
    for version in VERSIONS {
        for program in [theirs(), ours()] {
            let bed = Bed::new(&json!({"subnet": "10.1.2.0/24", "resolvConf": resolv.path()}));
            let found = bed.call_with(program, "ADD", "c1", &bed.conf(version)).ok();
            assert_eq!(found["dns"], json!({"nameservers": ["192.0.2.3"]}), "{version}");
            let missing = Bed::new(&json!({"subnet": "10.1.2.0/24", "resolvConf": "/nonexistent/resolv.conf"}));
            let text = answer(&missing.call_with(program, "ADD", "c1", &missing.conf(version)).run()).unwrap_err();
            assert!(text.contains("/nonexistent/resolv.conf"), "{} {version}: {text}", program.display());
        }
    }
}
