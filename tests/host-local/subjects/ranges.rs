//! What ranges are by default, where they may be written, and what is wrong with them.

use super::*;

#[test]
fn defaults_of_a_range() {
    // The last address there is, as it is given, and one that is not in the range.
    let table = [
        ("192.0.2.0/24", "192.0.2.254", "192.0.2.254/24 via 192.0.2.1", "192.0.2.255"),
        ("192.0.2.0/25", "192.0.2.126", "192.0.2.126/25 via 192.0.2.1", "192.0.2.127"),
        ("192.0.2.64/26", "192.0.2.126", "192.0.2.126/26 via 192.0.2.65", "192.0.2.64"),
        (
            "2001:db8:1::/64",
            "2001:db8:1::ffff:ffff:ffff:ffff",
            "2001:db8:1:0:ffff:ffff:ffff:ffff/64 via 2001:db8:1::1",
            "2001:db8:1:1::",
        ),
    ];
    for (subnet, last, given, outside) in table {
        let text = format!("failed to allocate all requested IPs: {outside}");
        let steps = [asking(args(&[last]), "c1", &[given]), asking_in_vain(args(&[outside]), "c2", &text)];
        same(&one_set(&[subnet]), &[], &steps);
        same(&json!({"subnet": subnet}), &[], &steps);
    }
    let whole = json!({"subnet": "192.0.2.0/24", "rangeStart": "192.0.2.40", "rangeEnd": "192.0.2.41", "gateway": "192.0.2.254"});
    let steps = [
        gives("c1", &["192.0.2.40/24 via 192.0.2.254"]),
        gives("c2", &["192.0.2.41/24 via 192.0.2.254"]),
        refused("c3", "no IP addresses available in range set: 192.0.2.40-192.0.2.41"),
    ];
    same(&whole, &[], &steps);
}

#[test]
fn mistakes_in_ranges() {
    let range = |text: &str| serde_json::from_str::<Value>(&format!(r#"{{"ranges":[[{text}]]}}"#)).unwrap();
    let table = [
        (json!({}), "no IP ranges specified"),
        (range(""), "invalid range set 0: empty range set"),
        (range(r#"{"subnet":"192.0.2.0/31"}"#), "invalid range set 0: Network 192.0.2.0/31 too small to allocate from"),
        (range(r#"{"subnet":"2001:db8::8/128"}"#), "Network 2001:db8::8/128 too small to allocate from"),
        (
            range(r#"{"subnet":"192.0.2.12/24"}"#),
            "Network has host bits set. For a subnet mask of length 24 the network address is 192.0.2.0",
        ),
        (
            range(r#"{"subnet":"192.168.127.0/23"}"#),
            "Network has host bits set. For a subnet mask of length 23 the network address is 192.168.126.0",
        ),
        (
            range(r#"{"subnet":"2001:DB8:24:19ff::/63"}"#),
            "Network has host bits set. For a subnet mask of length 63 the network address is 2001:db8:24:19fe::",
        ),
        (
            range(r#"{"subnet":"192.0.2.0/24","rangeStart":"192.0.3.0"}"#),
            "RangeStart 192.0.3.0 not in network 192.0.2.0/24",
        ),
        (
            range(r#"{"subnet":"192.0.2.0/24","rangeEnd":"192.0.4.0"}"#),
            "RangeEnd 192.0.4.0 not in network 192.0.2.0/24",
        ),
        (
            range(r#"{"subnet":"192.0.2.0/24","rangeStart":"192.0.2.50","rangeEnd":"192.0.2.40"}"#),
            "RangeStart 192.0.2.50 not in network 192.0.2.0/24",
        ),
        (
            range(r#"{"subnet":"192.168.0.0/20"},{"subnet":"192.168.2.0/24"}"#),
            "invalid range set 0: subnets 192.168.0.1-192.168.15.254 and 192.168.2.1-192.168.2.254 overlap",
        ),
        (
            range(
                r#"{"subnet":"10.0.0.0/24","rangeEnd":"10.0.0.127"},{"subnet":"10.0.0.0/24","rangeStart":"10.0.0.127"}"#,
            ),
            "subnets 10.0.0.1-10.0.0.127 and 10.0.0.127-10.0.0.254 overlap",
        ),
        (range(r#"{"subnet":"10.0.0.0/24"},{"subnet":"fd00::/64"}"#), "invalid range set 0: mixed address families"),
    ];
    for (ipam, text) in table {
        same(&ipam, &[], &[refused("c1", text)]);
    }
    let split =
        range(r#"{"subnet":"10.0.0.0/24","rangeEnd":"10.0.0.127"},{"subnet":"10.0.0.0/24","rangeStart":"10.0.0.128"}"#);
    same(&split, &[], &[asking(args(&["10.0.0.128"]), "c1", &["10.0.0.128/24 via 10.0.0.1"])]);
    let alike = json!({"ranges": [[{"subnet": "1.0.0.0/24"}], [{"subnet": "100::/24"}]]});
    same(&alike, &[], &[gives("c1", &["1.0.0.2/24 via 1.0.0.1", "100::2/24 via 100::1"])]);
}

/// In versions before 0.3.0 two sets of a family are a mistake of their own; which of the two is named does not matter.
#[test]
fn sets_that_overlap() {
    let ipam = json!({"ranges": [[{"subnet": "10.1.2.0/24", "rangeEnd": "10.1.2.128"}], [{"subnet": "10.9.0.0/24"}],
        [{"subnet": "10.1.2.0/24", "rangeStart": "10.1.2.15"}]]});
    for version in VERSIONS {
        for program in [theirs(), ours()] {
            let bed = Bed::new(&ipam);
            let text = answer(&bed.call_with(program, "ADD", "c1", &bed.conf(version)).run()).unwrap_err();
            let several = format!("CNI version {version} does not support more than 1 address per family");
            let is_named = text == "range set 0 overlaps with 2" || version < "0.3.0" && text == several;
            assert!(is_named, "{} {version}: {text}", program.display());
            assert_eq!(bed.leases(), [].into(), "{} {version}", program.display());
        }
    }
}

#[test]
fn where_ranges_may_be_written() {
    let old =
        json!({"subnet": "10.1.2.0/24", "rangeStart": "10.1.2.9", "rangeEnd": "10.1.2.20", "gateway": "10.1.2.30"});
    same(&old, &[], &[gives("c1", &["10.1.2.9/24 via 10.1.2.30"])]);
    let mut mixed = old.clone();
    mixed["ranges"] = json!([[{"subnet": "2001:db8:1::/24"}]]);
    mixed["ranges"][0][0]["subnet"] = json!("2001:d00::/24");
    same(&mixed, &[], &[gives("c1", &["10.1.2.9/24 via 10.1.2.30", "2001:d00::2/24 via 2001:d00::1"])]);
    let odd_case = json!({"SUBNET": "10.1.2.0/24", "rangestart": "10.1.2.9"});
    same(&odd_case, &[], &[gives("c1", &["10.1.2.9/24 via 10.1.2.1"])]);
    // The runtime's come first.
    for version in VERSIONS {
        for program in [theirs(), ours()] {
            let bed = Bed::new(&json!({"subnet": "fd00::/64"}));
            let mut conf = bed.conf(version);
            conf["runtimeConfig"] = json!({"ipRanges": [[{"subnet": "10.9.0.0/24"}]]});
            let found = bed.call_with(program, "ADD", "c1", &conf).ok();
            assert_eq!(given(&found, version), ["10.9.0.2/24 via 10.9.0.1", "fd00::2/64 via fd00::1"], "{version}");
            let files: Vec<String> = bed.files().into_keys().collect();
            assert_eq!(files, ["10.9.0.2", "fd00::2", LAST, "last_reserved_ip.1"], "{version}");
            conf.as_object_mut().unwrap().remove("ipam");
            let text = answer(&bed.call_with(program, "ADD", "c2", &conf).run()).unwrap_err();
            assert_eq!(text, "IPAM config missing 'ipam' key", "{} {version}", program.display());
        }
    }
}
