//! A pool that depends on the node, and what of a pool's configuration reaches the kernel.

use std::fs;

use serde_json::{Value, json};

use crate::{
    harness::{Interface, ip_in},
    node::Node,
};

#[test]
fn a_pool_of_this_node_alone() {
    const FILE: &str = "/run/test/node.json";
    let mut node = Node::new();
    node.conf["nodeFile"] = json!(FILE);
    node.conf["nodeName"] = json!("edge-7");
    let route = json!({"dst": "10.60.0.0/16", "mtu": 1400, "advmss": 1300, "priority": 77, "table": 100});
    node.network(
        "net-a",
        "bed.test/vf",
        &json!({
            "cniVersion": "1.1.0", "type": "sriov",
            "ipam": {"type": "host-local", "routes": [route], "sliceByNode": true, "exclude": ["10.20.7.0/30"],
                "rangesByNode": [
                    {"node": "edge-*", "labels": {"rack": "r2"}, "ranges": [[{"subnet": "10.30.0.0/16"}]]},
                    {"node": "edge-?", "ranges": [[{"subnet": "10.20.0.0/16", "gateway": "none"}]]},
                ]}
        }),
    );
    let netns = node.pod("p", "net-a", &[("bed.test/vf", &node.a[0])]);
    let text = node.call("ADD", "p", &netns).fails(7);
    assert!(text.contains("labels") && text.contains(FILE) && text.contains("does not exist"), "{text}");
    node.assert_as_before();

    let write = |rack: &str| {
        let pods = ("10.244.0.0/16", "10.244.7.0/24");
        let content = json!({"name": "w1", "labels": {"rack": rack}, "podNetwork": pods.0, "podRange": pods.1});
        fs::write(FILE, content.to_string()).unwrap();
    };
    write("r1");
    node.add("p", &netns);
    let net1 = Interface::find(&netns, "net1").unwrap();
    assert_eq!((net1.addresses(), net1.default_gateway()), (vec!["10.20.7.4/16".to_owned()], None));
    assert_eq!(node.world.leases("net-a"), ["10.20.7.4"]);
    let routes: Value = serde_json::from_str(&ip_in(&netns, "-j route show table 100")).unwrap();
    let found = &routes[0];
    assert_eq!(
        (&found["dst"], &found["gateway"], &found["dev"], &found["metric"]),
        (&json!("10.60.0.0/16"), &Value::Null, &json!("net1"), &json!(77)),
        "{routes:#}"
    );
    assert_eq!(found["metrics"], json!([{"mtu": 1400, "advmss": 1300}]), "{routes:#}");
    node.call("CHECK", "p", &netns).ok();

    // The node is another one now: the next pod gets of other ranges, this one gives back what it has.
    write("r2");
    let other = node.pod("two", "net-a", &[("bed.test/vf", &node.a[1])]);
    node.add("two", &other);
    let of_other = Interface::find(&other, "net1").unwrap();
    assert_eq!((of_other.addresses(), of_other.default_gateway()), (vec!["10.30.7.0/16".to_owned()], None));
    node.del("two", &other);
    node.del("p", &netns);
    assert_eq!(node.world.leases("net-a"), Vec::<String>::new());
    node.assert_as_before();
}
