//! The protocol: results, texts and exit codes are those of the reference plugin in every version; CHECK, GC and STATUS.

use std::fs;

use serde_json::json;

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
