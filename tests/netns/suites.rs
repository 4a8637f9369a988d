//! What the end-to-end suites of Multus run, with the real plugins; what these only print is asserted here.

use std::fs;

use serde_json::{Value, json};

use crate::harness::{Interface, World, in_netns, ping};

const DIRECTORY: &str = "/etc/cni/primary";

/// A macvlan network whose addresses are the pods' to choose.
fn macvlan(world: &World, name: &str, more: &Value) {
    world.macvlan(name, "10.1.1.0/24");
    world.plugins("reference", &["static"]);
    let mut config = json!({"cniVersion": "1.0.0", "type": "macvlan", "master": "uplink", "mode": "bridge", "ipam": {"type": "static"}});
    config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    world.definition(name, &config);
}

/// test-simple-macvlan1: the addresses are asked for by the capability `ips`.
#[test]
fn two_pods_on_a_macvlan_have_the_addresses_that_they_ask_for_and_reach_each_other() {
    let world = World::new();
    let conf = world.conf(&world.flannel_primary());
    macvlan(&world, "macvlan1-config", &json!({"capabilities": {"ips": true}}));
    let mut pods = Vec::new();
    for (name, address) in [("worker1", "10.1.1.11/24"), ("worker2", "10.1.1.12/24")] {
        world.pod(name, &json!([{"name": "macvlan1-config", "ips": [address]}]).to_string());
        let netns = world.netns();
        world.call("ADD", name, &netns, &conf).pod(name).ok();
        let net1 = Interface::find(&netns, "net1").expect("net1");
        assert_eq!(net1.addresses(), [address]);
        let status = world.status(name).expect("network-status");
        assert_eq!(status[1]["ips"], json!([address.trim_end_matches("/24")]));
        pods.push((name, netns));
    }
    assert!(ping(&pods[0].1, "10.1.1.12") && ping(&pods[1].1, "10.1.1.11"));
    for (name, netns) in pods {
        world.call("CHECK", name, &netns, &conf).pod(name).ok();
        world.call("DEL", name, &netns, &conf).pod(name).ok();
        assert!(Interface::find(&netns, "net1").is_none());
    }
    world.assert_clean();
}

/// test-default-route1: the address reaches the plugin in `CNI_ARGS`, for nothing declares `ips`.
#[test]
fn one_pod_has_its_default_route_over_the_macvlan_and_the_other_over_the_primary() {
    let world = World::new();
    let conf = world.conf(&world.flannel_primary());
    macvlan(&world, "macvlan1-config", &json!({}));
    for (name, address, more, on_eth0, on_net1) in [
        ("first", "10.1.1.11/24", json!({"default-route": ["10.1.1.254"]}), None, Some("10.1.1.254")),
        ("second", "10.1.1.12/24", json!({}), Some("10.244.7.1"), None),
    ] {
        let mut element = json!({"name": "macvlan1-config", "ips": [address]});
        element.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        world.pod(name, &json!([element]).to_string());
        let netns = world.netns();
        let result = world.call("ADD", name, &netns, &conf).pod(name).ok();
        let (eth0, net1) = (Interface::find(&netns, "eth0").unwrap(), Interface::find(&netns, "net1").unwrap());
        assert_eq!(net1.addresses(), [address]);
        assert_eq!((eth0.default_gateway(), net1.default_gateway()), (on_eth0, on_net1), "{name}");
        let of_result = result["routes"].as_array().unwrap().iter().find(|route| route["dst"] == "0.0.0.0/0");
        assert_eq!(of_result.is_some(), on_eth0.is_some(), "{result:#}");
        let status = world.status(name).expect("network-status");
        for (entry, gateway) in [(0, on_eth0), (1, on_net1)] {
            assert_eq!(status[entry].get("gateway"), gateway.map(|gateway| json!([gateway])).as_ref(), "{status:#}");
        }
        world.call("CHECK", name, &netns, &conf).pod(name).ok();
        world.call("DEL", name, &netns, &conf).pod(name).ok();
    }
    world.assert_clean();
}

/// A tuning of the primary's interface in a file of its own, as test-subdirectory-chaining has it.
fn tuning(world: &World, directory: &str) {
    world.plugins("reference", &["tuning"]);
    fs::create_dir_all(format!("{DIRECTORY}/{directory}")).unwrap();
    let text = json!({"cniVersion": "1.0.0", "name": "tuning", "type": "tuning", "sysctl": {"net.ipv4.conf.eth0.arp_filter": "1"}});
    fs::write(format!("{DIRECTORY}/{directory}/10-tuning.conf"), text.to_string()).unwrap();
}

fn arp_filter(netns: &str) -> String {
    in_netns(netns, &["sysctl", "-n", "net.ipv4.conf.eth0.arp_filter"]).trim().to_owned()
}

/// test-subdirectory-chaining and test-subdirectory-chaining-passthru.
#[test]
fn a_tuning_in_a_directory_beside_the_primary_is_in_the_kernel() {
    for (auxiliary, directory) in [(None, "podnet"), (Some("vendor-cni-chain"), "vendor-cni-chain")] {
        let world = World::new();
        let mut conf = world.conf(&world.bridge_primary());
        if let Some(name) = auxiliary {
            conf["auxiliaryCNIChainName"] = json!(name);
            world.drop_in("passthru");
        }
        let add = |container: &str| {
            let netns = world.netns();
            world.call("ADD", container, &netns, &conf).pod("plain").ok();
            netns
        };
        let without = add("before");
        assert_eq!(arp_filter(&without), "0");
        // From then on, without a word to anybody.
        tuning(&world, directory);
        let with = add("after");
        assert_eq!(arp_filter(&with), "1", "{directory}");
        assert_eq!(world.leases("podnet").len(), 2);
        for (container, netns) in [("before", &without), ("after", &with)] {
            world.call("CHECK", container, netns, &conf).pod("plain").ok();
        }
        // In the primary's chain the plugin checks eth0; in the other one it looks for net1, which nobody made, and cannot.
        in_netns(&with, &["sysctl", "-w", "net.ipv4.conf.eth0.arp_filter=0"]);
        let outcome = world.call("CHECK", "after", &with, &conf).pod("plain").run();
        let (code, says) = match auxiliary {
            None => (1, "arp_filter"),
            Some(_) => (0, "cannot be checked"),
        };
        assert!(outcome.code == code && format!("{outcome:?}").contains(says), "{outcome:#?}");
        for (container, netns) in [("before", &without), ("after", &with)] {
            world.call("DEL", container, netns, &conf).pod("plain").ok();
            assert!(Interface::find(netns, "eth0").is_none());
        }
        world.assert_clean();
        if auxiliary.is_none() {
            // A list that wants only what is in it.
            let mut list: Value =
                serde_json::from_str(&fs::read_to_string(conf["clusterNetwork"].as_str().unwrap()).unwrap()).unwrap();
            list["loadOnlyInlinedPlugins"] = json!(true);
            world.primary(&list);
            let netns = add("inlined");
            assert_eq!(arp_filter(&netns), "0");
            world.call("DEL", "inlined", &netns, &conf).pod("plain").ok();
        }
        fs::remove_dir_all(DIRECTORY).unwrap();
    }
}
