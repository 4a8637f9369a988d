//! Addresses that are asked for by name.

use super::*;

#[test]
fn an_address_asked_for() {
    let ipam = json!({"subnet": "10.1.2.0/24", "rangeStart": "10.1.2.5", "rangeEnd": "10.1.2.90"});
    let steps = [
        asking(args(&["10.1.2.88"]), "c1", &["10.1.2.88/24 via 10.1.2.1"]),
        Step::File(LAST, Some("10.1.2.88")),
        asking_in_vain(
            args(&["10.1.2.88"]),
            "c2",
            "failed to allocate for range 0: requested IP address 10.1.2.88 is not available in range set 10.1.2.5-10.1.2.90",
        ),
        asking_in_vain(args(&["10.1.2.4"]), "c3", "failed to allocate all requested IPs: 10.1.2.4"),
        asking_in_vain(args(&["10.1.2.91"]), "c4", "failed to allocate all requested IPs: 10.1.2.91"),
        asking(environment("IP=10.1.2.10"), "c5", &["10.1.2.10/24 via 10.1.2.1"]),
        asking(environment("IP=10.1.2.11/24;IgnoreUnknown=1;K8S_POD_NAME=p"), "c6", &["10.1.2.11/24 via 10.1.2.1"]),
        asking(runtime(&["10.1.2.12/16"]), "c7", &["10.1.2.12/24 via 10.1.2.1"]),
        asking_in_vain(environment("IP=10.1.2.13;K8S_POD_NAME=p"), "c8", "ARGS: unknown args [\"K8S_POD_NAME=p\"]"),
    ];
    same(&ipam, &[], &steps);
    let gateway = asking_in_vain(
        args(&["10.0.0.1"]),
        "c1",
        "failed to allocate for range 0: requested ip 10.0.0.1 is subnet's gateway",
    );
    same(&json!({"subnet": "10.0.0.0/29"}), &[], &[gateway]);
}

#[test]
fn addresses_asked_for_of_several_sets() {
    let two = json!({"ranges": [[{"subnet": "10.1.2.0/24"}], [{"subnet": "10.1.3.0/24"}]]});
    let both = ["10.1.2.88/24 via 10.1.2.1", "10.1.3.77/24 via 10.1.3.1"];
    same(&two, &[], &[asking(args(&["10.1.2.88", "10.1.3.77"]), "c1", &both)]);
    same(&two, &[], &[asking(args(&["10.1.3.77"]), "c1", &["10.1.2.2/24 via 10.1.2.1", both[1]])]);
    let protocols = json!({"ranges": [[{"subnet": "172.16.1.0/24"}], [{"subnet": "2001:db8:1::/48"}]]});
    let given = ["172.16.1.2/24 via 172.16.1.1", "2001:db8:1::999/48 via 2001:db8:1::1"];
    same(&protocols, &[], &[asking(args(&["172.16.1.2", "2001:db8:1::999"]), "c1", &given)]);
    // The three places add up.
    let all = Asked { environment: "IP=10.1.2.9", args: vec!["10.1.3.9"], ..Asked::default() };
    same(&two, &[], &[asking(all, "c1", &["10.1.2.9/24 via 10.1.2.1", "10.1.3.9/24 via 10.1.3.1"])]);
    let all = Asked { runtime: vec!["2001:db8:1::9"], args: vec!["172.16.1.9"], ..Asked::default() };
    same(
        &protocols,
        &[],
        &[asking(all, "c1", &["172.16.1.9/24 via 172.16.1.1", "2001:db8:1::9/48 via 2001:db8:1::1"])],
    );
    let unused =
        asking_in_vain(args(&["10.1.2.88", "10.1.5.77"]), "c1", "failed to allocate all requested IPs: 10.1.5.77");
    same(&json!({"ranges": [[{"subnet": "10.1.2.0/24"}], [{"subnet": "10.1.3.0/24"}]]}), &[], &[unused]);
}

/// host-local serves one of the two, at random; both ways the call fails and nothing is held.
#[test]
fn two_addresses_asked_for_of_one_set() {
    for version in VERSIONS {
        for program in [theirs(), ours()] {
            let bed = Bed::new(&json!({"subnet": "10.1.2.0/24"}));
            let mut conf = bed.conf(version);
            conf["args"] = json!({"cni": {"ips": ["10.1.2.7", "10.1.2.8"]}});
            let text = answer(&bed.call_with(program, "ADD", "c1", &conf).run()).unwrap_err();
            let left = text.strip_prefix("failed to allocate all requested IPs: ");
            assert!(matches!(left, Some("10.1.2.7" | "10.1.2.8")), "{} {version}: {text}", program.display());
            assert_eq!(bed.leases(), [].into(), "{} {version}", program.display());
        }
    }
}

#[test]
fn no_address_is_no_address() {
    let table = [
        (args(&["10.0.0.07"]), "invalid IP address 10.0.0.07"),
        (args(&["10.0.0"]), "invalid IP address 10.0.0"),
        (args(&["10.0.0.7/33"]), "invalid IP address 10.0.0.7/33"),
        (args(&["fe80::1%eth0"]), "invalid IP address fe80::1%eth0"),
        (args(&["10.0.0.7", "1:::2"]), "invalid IP address 1:::2"),
        (runtime(&["10.0.0.256"]), "invalid IP address 10.0.0.256"),
        (environment("IP=ten"), "ARGS: error parsing value of pair \"IP=ten\": invalid IP address ten"),
        (environment("IP=10.0.0.7,10.0.0.8"), "invalid IP address 10.0.0.7,10.0.0.8"),
        (environment("IP"), "ARGS: invalid pair \"IP\""),
    ];
    for (asked, text) in table {
        same(&json!({"subnet": "10.0.0.0/24"}), &[], &[asking_in_vain(asked, "c1", text), Step::File(LAST, None)]);
    }
}

/// A file is named by the address as Go writes it, however it was asked for.
#[test]
fn files_are_named_as_go_writes_addresses() {
    let ipam = json!({"ranges": [[{"subnet": "2001:db8::/32"}, {"subnet": "::/96", "rangeStart": "::2"}]]});
    let v4 = json!({"subnet": "10.0.0.0/8"});
    let table: [(&Value, &'static [&'static str], &'static str, &str); 8] = [
        (&ipam, &["2001:DB8:0:0:1:0:0:1"], "2001:db8::1:0:0:1", "2001:db8::1:0:0:1/32 via 2001:db8::1"),
        (&ipam, &["2001:db8:0:1:1:1:1:1"], "2001:db8:0:1:1:1:1:1", "2001:db8:0:1:1:1:1:1/32 via 2001:db8::1"),
        (&ipam, &["2001:0db8:1:0:0:0:0:0"], "2001:db8:1::", "2001:db8:1::/32 via 2001:db8::1"),
        (&ipam, &["2001:db8:1:0:0:2:0:0"], "2001:db8:1::2:0:0", "2001:db8:1::2:0:0/32 via 2001:db8::1"),
        (&ipam, &["::13.1.68.3"], "::d01:4403", "::d01:4403/96 via ::1"),
        (&v4, &["::ffff:10.9.8.7"], "10.9.8.7", "10.9.8.7/8 via 10.0.0.1"),
        (&v4, &["::ffff:a09:807/104"], "10.9.8.7", "10.9.8.7/8 via 10.0.0.1"),
        (&v4, &["10.0.0.0", "10.9.8.7"], "10.9.8.7", ""),
    ];
    for (ipam, asked, name, expected) in table {
        if expected.is_empty() {
            let steps = [
                asking_in_vain(args(asked), "c1", "failed to allocate all requested IPs: 10.0.0.0"),
                Step::File(name, None),
            ];
            same(ipam, &[], &steps);
            continue;
        }
        let steps = [
            asking(args(asked), "c1", &[expected]),
            Step::File(name, Some("c1\r\neth0")),
            Step::File(LAST, Some(name)),
        ];
        same(ipam, &[], &steps);
    }
}

#[test]
fn keys_in_any_case_and_unknown_arguments() {
    for version in VERSIONS {
        for program in [theirs(), ours()] {
            let bed = Bed::new(&json!({"ranges": [[{"subnet": "10.1.2.0/24"}], [{"subnet": "fd00::/64"}]]}));
            let mut conf = bed.conf(version);
            conf["ARGS"] = json!({"Cni": {"IPS": ["10.1.2.7"]}, "labels": [{"key": "a"}]});
            conf["RuntimeConfig"] = json!({"IPs": ["fd00::7"], "mac": "02:00:00:00:00:01"});
            let call = |args: &str| bed.call_with(program, "ADD", "c1", &conf).env("CNI_ARGS", args).run();
            let context = format!("{} {version}", program.display());
            let text = answer(&call("K8S_POD_NAME=p;IgnoreUnknown=0;X=y")).unwrap_err();
            assert_eq!(text, "ARGS: unknown args [\"K8S_POD_NAME=p\" \"X=y\"]", "{context}");
            let text = answer(&call("IgnoreUnknown=maybe")).unwrap_err();
            assert!(text.starts_with("ARGS: error parsing value of pair \"IgnoreUnknown=maybe\""), "{context}: {text}");
            let found = answer(&call("K8S_POD_NAME=p;IgnoreUnknown=True")).unwrap();
            let expected = ["10.1.2.7/24 via 10.1.2.1", "fd00::7/64 via fd00::1"];
            assert_eq!(given(&found, version), expected, "{context}");
        }
    }
}
