//! Sandboxes with a VF that Multus and sriov-cni attached before we came: DEL by our meta plugin.

use std::fs;

use serde_json::{Value, json};

use crate::{
    face::node,
    harness::{MULTUS_DIRECTORY, bare_add, multus_files, names},
    node::{Node, Vf},
    takeover::{attached, cache, wanted},
};

/// Attaches a container's VF as sriov-cni does and its primary network with the real plugins, and writes Multus' files.
fn born_under_multus(node: &Node, vf: &Vf, container: &str) -> String {
    let netns = attached(node, vf, container, &cache(vf));
    let path = node.conf["clusterNetwork"].as_str().unwrap();
    let primary: Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    let result = bare_add(&node.world, &primary, container, &netns);
    let of_vf = json!({
        "cniVersion": "1.0.0", "interfaces": [{"name": "net1", "sandbox": netns}],
        "ips": [{"address": "10.11.0.9/24", "interface": 0}]
    });
    multus_files(container, &netns, &[("eth0", primary, result), ("net1", wanted(vf), of_vf)]);
    netns
}

/// What is left of the files.
const ALL: [&str; 6] = ["", "no results", "torn", "torn, no results", "absent", "nothing"];

#[test]
fn vf_addresses_and_primary_are_given_back_whatever_is_left_of_the_files() {
    let node = node();
    let vf = &node.a[2];
    let file = format!("{MULTUS_DIRECTORY}/c");
    let results = format!("{MULTUS_DIRECTORY}/results");
    let executed = ["", "torn, no results"];
    for (builtin, damages) in [(true, ALL.as_slice()), (false, executed.as_slice())] {
        for damage in damages {
            for gone in [false, true] {
                let context = format!("{damage}, namespace gone: {gone}, built in: {builtin}");
                let netns = born_under_multus(&node, vf, "c");
                if damage.starts_with("torn") {
                    fs::write(&file, "[{\"Conf\":{\"cni").unwrap();
                }
                if matches!(*damage, "absent" | "nothing") {
                    fs::remove_file(&file).unwrap();
                }
                if damage.ends_with("no results") || *damage == "nothing" {
                    fs::remove_dir_all(&results).unwrap();
                }
                if gone {
                    node.world.delete_netns(&netns);
                }
                let mut conf = node.conf.clone();
                if !builtin {
                    // Then the program `sriov` is executed: sriov-cni, or our drop-in in its place.
                    conf["builtins"] = json!(["host-local", "static"]);
                }
                node.world.call("DEL", "c", &netns, &conf).pod("c").ok();
                node.assert_as_before();
                let mut left = names(MULTUS_DIRECTORY);
                left.extend(names(&results));
                left.retain(|name| name != "results");
                assert_eq!(left, Vec::<String>::new(), "{context}");
                node.world.call("DEL", "c", &netns, &conf).pod("c").ok();
                if !gone {
                    node.world.delete_netns(&netns);
                }
            }
        }
    }
}
