//! What a pool may say beyond host-local's keys, as the program sees it: who the node is comes from files in their own
//! places.

use std::fs;

use serde_json::{Value, json};

use crate::{
    bed::{Bed, VERSIONS, addresses, answer, ours},
    harness::World,
};

fn add(ipam: &Value) -> Result<Vec<String>, String> {
    let bed = Bed::new(ipam);
    answer(&bed.call(ours(), "ADD", "c1").run()).map(|result| addresses(&result))
}

fn node_file(content: &Value) {
    fs::create_dir_all("/etc/cni/meta-cni").unwrap();
    fs::write("/etc/cni/meta-cni/node.json", content.to_string()).unwrap();
}

#[test]
fn ranges_by_the_nodes_name_and_labels() {
    let _world = World::new();
    let ipam = json!({"rangesByNode": [
        {"node": "edge-*", "labels": {"rack": "r1"}, "ranges": [[{"subnet": "10.1.0.0/24"}]]},
        {"node": "edge-*", "ranges": [[{"subnet": "10.2.0.0/24"}]]},
    ]});
    let text = add(&ipam).unwrap_err();
    assert!(text.contains("name") && text.contains("/etc/cni/meta-cni/node.json does not exist"), "{text}");
    node_file(&json!({"name": "edge-7", "labels": {"rack": "r1"}}));
    assert_eq!(add(&ipam).unwrap(), ["10.1.0.2/24 via 10.1.0.1"]);
    node_file(&json!({"name": "edge-7", "labels": {"rack": "r2"}}));
    assert_eq!(add(&ipam).unwrap(), ["10.2.0.2/24 via 10.2.0.1"]);
    node_file(&json!({"name": "w1", "labels": {"rack": "r1"}}));
    let text = add(&ipam).unwrap_err();
    assert!(text.contains("no entry for the node \"w1\" with the labels rack=r1"), "{text}");
}

/// A pod goes whatever has become of the node's name, and its address with it.
#[test]
fn addresses_are_given_back_though_the_node_has_no_entry_any_more() {
    let _world = World::new();
    node_file(&json!({"name": "edge-7"}));
    let bed = Bed::new(&json!({"rangesByNode": [{"node": "edge-*", "ranges": [[{"subnet": "10.2.0.0/24"}]]}]}));
    for container in ["c1", "c2"] {
        bed.call(ours(), "ADD", container).ok();
    }
    node_file(&json!({"name": "w1"}));
    assert_eq!(bed.call(ours(), "DEL", "c1").run().code, 0);
    assert_eq!(bed.leases().into_keys().collect::<Vec<_>>(), ["10.2.0.3"]);
    let mut conf = bed.conf("1.1.0");
    conf["cni.dev/valid-attachments"] = json!([]);
    assert_eq!(bed.call_with(ours(), "GC", "", &conf).run().code, 0);
    assert_eq!(bed.leases(), [].into());
}

#[test]
fn a_part_of_each_range_by_the_nodes_pod_range() {
    let world = World::new();
    let ipam = json!({"sliceByNode": true, "ranges": [[{"subnet": "10.1.0.0/16"}], [{"subnet": "fd00::/64"}]]});
    let outcome = Bed::new(&ipam).call(ours(), "ADD", "c1").fails(11);
    assert!(outcome.contains("/run/flannel/subnet.env") && outcome.contains("podRange"), "{outcome}");
    world.subnet_env("10.244.7.1/24");
    assert_eq!(add(&ipam).unwrap(), ["10.1.7.0/16 via 10.1.0.1", "fd00::700:0:0:0/64 via fd00::1"]);
    node_file(&json!({"podNetwork": "10.244.0.0/16", "podRange": "10.244.0.0/24"}));
    assert_eq!(add(&ipam).unwrap(), ["10.1.0.2/16 via 10.1.0.1", "fd00::2/64 via fd00::1"]);
    let small = json!({"sliceByNode": true, "subnet": "10.1.0.0/25"});
    let text = Bed::new(&small).call(ours(), "ADD", "c1").fails(7);
    assert!(text.contains("10.1.0.0/25 cannot be divided among 2^8 nodes"), "{text}");
}

#[test]
fn the_other_keys_in_every_version() {
    let table = [
        (json!({"subnet": "10.0.0.0/29", "exclude": ["10.0.0.2/31"]}), Ok("10.0.0.4/29 via 10.0.0.1")),
        (json!({"subnet": "10.0.0.0/29", "gateway": "none"}), Ok("10.0.0.1/29 via ")),
        (json!({"subnet": "10.0.0.6/31", "rangeStart": "10.0.0.6"}), Ok("10.0.0.6/31 via 10.0.0.7")),
        (json!({"subnet": "10.0.0.6/32", "rangeStart": "10.0.0.6"}), Ok("10.0.0.6/32 via ")),
        (
            json!({"subnet": "10.0.0.0/29", "exclude": ["10.0.1.2"]}),
            Err("exclude[0]: 10.0.1.2 lies outside of every range"),
        ),
    ];
    for (ipam, expected) in table {
        for version in VERSIONS {
            let bed = Bed::new(&ipam);
            let outcome = bed.call_with(ours(), "ADD", "c1", &bed.conf(version)).run();
            match (answer(&outcome), expected) {
                (Ok(found), Ok(expected)) => {
                    let ip = if version < "0.3.0" { &found["ip4"] } else { &found["ips"][0] };
                    let address = ip.get("address").or(ip.get("ip")).unwrap().as_str().unwrap();
                    let gateway = ip.get("gateway").map_or("", |gateway| gateway.as_str().unwrap());
                    assert_eq!(format!("{address} via {gateway}"), expected, "{version}: {ipam}");
                }
                (Err(text), Err(expected)) => {
                    assert!(text.starts_with(expected), "{version}: {ipam}: {text}");
                    assert_eq!(outcome.json()["code"], 7, "{version}: {ipam}");
                }
                (found, _) => panic!("{version}: {ipam}: {found:?}"),
            }
        }
    }
}
