//! All VFs of the node in one pod: which is which interface is the same each time.

use serde_json::{Value, json};

use crate::{
    harness::ip_in,
    node::{Node, sriov},
};

#[test]
fn fourteen_vfs_in_one_pod_are_the_same_in_two_runs() {
    let node = Node::new();
    let pool = json!({"type": "host-local", "subnet": "10.23.0.0/24"});
    node.network("four", "bed.test/a", &sriov(&json!({"ipam": pool})));
    node.network("others", "bed.test/b", &sriov(&json!({})));
    node.network("more", "bed.test/a", &sriov(&json!({"vlan": 7})));
    // The same network four times, not in a row; and whose VFs are of one resource with another's.
    let networks: Vec<&str> = (0..14)
        .map(|at| {
            if at % 2 == 1 {
                "others"
            } else if at < 8 {
                "four"
            } else {
                "more"
            }
        })
        .collect();
    for run in 0..2 {
        // Kubelet may tell them in any order.
        let (mut of_a, mut of_b): (Vec<_>, Vec<_>) = (node.a.iter().collect(), node.b.iter().collect());
        of_a.rotate_left(run * 3);
        of_b.rotate_left(run * 5);
        let devices: Vec<_> = of_a
            .into_iter()
            .map(|vf| ("bed.test/a", vf))
            .chain(of_b.into_iter().map(|vf| ("bed.test/b", vf)))
            .collect();
        let netns = node.pod("p", &networks.join(","), &devices);
        node.add("p", &netns);
        let status = node.world.status("p").unwrap();
        let told: Vec<(&Value, &Value)> =
            status.as_array().unwrap()[1..].iter().map(|e| (&e["name"], &e["interface"])).collect();
        let links: Vec<Value> = serde_json::from_str(&ip_in(&netns, "-j -d addr show")).unwrap();
        let (mut of_a, mut of_b) = (node.a.iter(), node.b.iter());
        for (at, network) in networks.iter().enumerate() {
            let name = format!("net{}", at + 1);
            assert_eq!(told[at], (&json!(format!("default/{network}")), &json!(name)));
            let vf = if *network == "others" { of_b.next() } else { of_a.next() }.unwrap();
            let found = links.iter().find(|link| link["ifname"] == name).unwrap();
            assert_eq!(found["parentdev"], vf.pci, "{name} in run {run}");
            let entry = &status[at + 1];
            let device = &entry["device-info"]["pci"]["pci-address"];
            assert_eq!((&entry["mac"], device), (&found["address"], &json!(vf.pci)));
            let infos = found["addr_info"].as_array().unwrap();
            let global = infos.iter().filter(|info| info["scope"] == "global");
            let addresses: Vec<Value> = global.map(|info| info["local"].clone()).collect();
            assert_eq!(entry["ips"].as_array().cloned().unwrap_or_default(), addresses);
            assert_eq!(addresses.len(), usize::from(*network == "four"));
        }
        node.call("CHECK", "p", &netns).ok();
        node.del("p", &netns);
        node.assert_as_before();
    }
}
