//! The primary network: Flannel's chain unchanged, and what ADD and STATUS say while it is not ready.

use std::{fs, time::Instant};

use serde_json::json;

use crate::harness::{Interface, World, at, ping};

#[test]
fn a_pod_without_annotation_gets_flannel_alone_and_leaves_nothing() {
    let world = World::new();
    let conf = world.conf(&world.flannel_primary());
    let netns = world.netns();
    let result = world.call("ADD", "c1", &netns, &conf).pod("plain").ok();
    assert_eq!(result["cniVersion"], "1.0.0");
    let eth0 = Interface::find(&netns, "eth0").expect("eth0");
    assert_eq!(at(&result, "/ips/0/address"), &json!(eth0.addresses()[0]));
    assert_eq!(eth0.default_gateway(), Some("10.244.7.1"));
    assert_eq!(eth0.mtu(), 1450);
    assert!(ping(&netns, "10.244.7.1"));
    let status = world.status("plain").expect("network-status is written for every pod");
    assert_eq!(status[0]["name"], "cbr0");
    assert_eq!(status[0]["ips"], json!([eth0.addresses()[0].trim_end_matches("/24")]));
    assert_eq!(status[0]["mac"], eth0.mac());
    assert_eq!(status[0]["default"], true);
    assert_eq!(status[0]["gateway"], json!(["10.244.7.1"]));

    world.call("CHECK", "c1", &netns, &conf).pod("plain").ok();
    world.call("DEL", "c1", &netns, &conf).pod("plain").ok();
    assert!(Interface::find(&netns, "eth0").is_none());
    world.assert_clean();
    assert!(world.status("plain").is_none(), "the status of a pod that is gone stays");
    world.call("DEL", "c1", &netns, &conf).pod("plain").ok();
}

#[test]
fn flannel_with_two_macvlan_networks() {
    let world = World::new();
    let conf = world.conf(&world.flannel_primary());
    world.macvlan("net-a", "10.10.1.0/24");
    world.macvlan("net-b", "10.10.2.0/24");
    let mut pods = Vec::new();
    for name in ["one", "two"] {
        world.pod(name, "net-a,net-b@data0");
        let netns = world.netns();
        world.call("ADD", name, &netns, &conf).pod(name).ok();
        pods.push(netns);
    }
    for (name, netns) in ["one", "two"].iter().zip(&pods) {
        let status = world.status(name).expect("status");
        let names: Vec<_> = status
            .as_array()
            .unwrap()
            .iter()
            .map(|entry| (entry["name"].clone(), entry["interface"].clone()))
            .collect();
        assert_eq!(
            names,
            [("cbr0", "eth0"), ("default/net-a", "net1"), ("default/net-b", "data0")]
                .map(|(a, b)| (json!(a), json!(b)))
        );
        for entry in status.as_array().unwrap() {
            let found = Interface::find(netns, entry["interface"].as_str().unwrap()).expect("the interface");
            assert_eq!(entry["mac"], found.mac());
            let ips: Vec<String> =
                found.addresses().iter().map(|text| text.split('/').next().unwrap().to_owned()).collect();
            assert_eq!(entry["ips"], json!(ips));
        }
    }
    let status = world.status("two").expect("status");
    for entry in status.as_array().unwrap() {
        assert!(ping(&pods[0], entry["ips"][0].as_str().unwrap()), "one reaches two on {}", entry["name"]);
    }
    for (name, netns) in ["one", "two"].iter().zip(&pods) {
        world.call("CHECK", name, netns, &conf).pod(name).ok();
        world.call("DEL", name, netns, &conf).pod(name).ok();
        for interface in ["eth0", "net1", "data0"] {
            assert!(Interface::find(netns, interface).is_none(), "{interface} is left");
        }
    }
    world.assert_clean();
}

#[test]
fn without_subnet_env_add_waits_and_says_what_is_missing() {
    let world = World::new();
    let conf = world.conf(&world.flannel_primary());
    fs::remove_file("/run/flannel/subnet.env").unwrap();
    let netns = world.netns();
    let before = Instant::now();
    let text = world.call("ADD", "c1", &netns, &conf).pod("p").fails(11);
    assert!(text.contains("/run/flannel/subnet.env") && text.contains("flanneld"), "{text}");
    assert!(before.elapsed().as_millis() >= 800, "it did not wait");
    world.assert_clean();

    let mut status_conf = conf.clone();
    status_conf["cniVersion"] = json!("1.1.0");
    let text = world.call("STATUS", "", "", &status_conf).fails(50);
    assert!(text.contains("subnet.env"), "{text}");
    // It comes while ADD waits.
    let waiting = world.call("ADD", "c1", &netns, &conf).pod("p").start();
    std::thread::sleep(std::time::Duration::from_millis(300));
    world.subnet_env("10.244.7.1/24");
    let output = waiting.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    world.call("STATUS", "", "", &status_conf).ok();
    world.call("DEL", "c1", &netns, &conf).pod("p").ok();
    world.assert_clean();
}

#[test]
fn the_plugins_that_debian_ships_do_as_well() {
    let world = World::new();
    let conf = world.conf(&world.bridge_primary());
    world.macvlan("net-a", "10.10.1.0/24");
    world.plugins("debian", &["bridge", "macvlan", "host-local"]);
    world.pod("p", "net-a");
    let netns = world.netns();
    let result = world.call("ADD", "c1", &netns, &conf).pod("p").ok();
    assert_eq!(at(&result, "/ips/0/address"), &json!(Interface::find(&netns, "eth0").expect("eth0").addresses()[0]));
    assert_eq!(world.status("p").expect("status")[1]["mac"], Interface::find(&netns, "net1").expect("net1").mac());
    world.call("CHECK", "c1", &netns, &conf).pod("p").ok();
    world.call("DEL", "c1", &netns, &conf).pod("p").ok();
    world.assert_clean();
}
