//! The drop-in alone after a reboot: what the dead left is given back by the ADD that finds the pool exhausted.

use std::{fs, path::Path};

use serde_json::{Value, json};

use crate::harness::{Call, World, ip_in};

const POOL: &str = "/var/lib/cni/networks/net-a";

/// A configuration of a plugin that delegates to it, with five addresses for pods.
fn conf(subnet: &str) -> Value {
    json!({"cniVersion": "1.0.0", "name": "net-a", "type": "bridge", "ipam": {"type": "host-local", "subnet": subnet}})
}

fn call(world: &World, verb: &str, container: &str, conf: &Value) -> Call {
    world.call(verb, container, "/var/run/netns/x", conf).program(&world.drop_in("host-local"))
}

/// Five pods, and another boot.
fn exhausted(subnet: &str) -> (World, Value) {
    let world = World::new();
    let conf = conf(subnet);
    for number in 1..=5 {
        call(&world, "ADD", &format!("reboot-h{number}"), &conf).ok();
    }
    world.reboot();
    (world, conf)
}

#[test]
fn an_add_that_finds_the_pool_exhausted_takes_back_what_the_dead_had() {
    let (world, conf) = exhausted("10.233.1.0/29");
    assert_eq!(world.leases("net-a").len(), 5);
    // One lives: its address is on an interface. Another one's container has an address in use elsewhere.
    let netns = world.netns();
    ip_in(&netns, "link add eth0 type veth peer name far");
    ip_in(&netns, "addr add 10.233.1.3/29 dev eth0");
    ip_in(&netns, "addr add 10.233.1.66/27 dev eth0");
    fs::create_dir_all("/var/lib/cni/networks/net-b").unwrap();
    fs::write("/var/lib/cni/networks/net-b/10.233.1.66", "reboot-h4\r\nnet1").unwrap();
    let result = call(&world, "ADD", "reboot-new", &conf).ok();
    assert!(result["ips"][0]["address"].as_str().unwrap().starts_with("10.233.1."), "{result}");
    let owner = |address: &str| fs::read_to_string(format!("{POOL}/{address}")).unwrap_or_default();
    assert_eq!(world.leases("net-a").len(), 3);
    assert_eq!((owner("10.233.1.3"), owner("10.233.1.5")), ("reboot-h2\r\neth0".into(), "reboot-h4\r\neth0".into()));
}

#[test]
fn an_add_that_asks_for_an_address_of_the_dead_gets_it() {
    let (world, conf) = exhausted("10.233.4.0/28");
    let asked = |container| call(&world, "ADD", container, &conf).env("CNI_ARGS", "IP=10.233.4.4");
    assert_eq!(asked("reboot-new").ok()["ips"][0]["address"], "10.233.4.4/28");
    assert_eq!(world.leases("net-a").len(), 1);
    let text = asked("reboot-other").fails(102);
    assert!(text.contains("requested IP address 10.233.4.4 is not available in range set"), "{text}");
}

#[test]
fn what_is_newer_than_the_list_is_nobodys_to_take() {
    let (world, conf) = exhausted("10.233.2.0/29");
    // The first verb of the boot lists the pool.
    call(&world, "DEL", "reboot-h1", &conf).ok();
    fs::write(format!("{POOL}/10.233.2.2"), "reboot-stranger\r\neth0").unwrap();
    fs::write(format!("{POOL}/10.233.2.3"), "reboot-stranger\r\neth1").unwrap();
    call(&world, "ADD", "reboot-new", &conf).ok();
    let mut left = world.leases("net-a");
    left.retain(|address| {
        let text = fs::read_to_string(Path::new(POOL).join(address)).unwrap();
        text.starts_with("reboot-stranger")
    });
    assert_eq!(left, ["10.233.2.2", "10.233.2.3"]);
    assert_eq!(world.leases("net-a").len(), 3);
}

/// The meta plugin has the dead detached by the chain, of which this call is a part.
#[test]
fn under_the_meta_plugin_it_takes_nothing_back_by_itself() {
    let (world, conf) = exhausted("10.233.3.0/29");
    let text = call(&world, "ADD", "reboot-new", &conf).env("META_CNI_CALLER", "1").fails(102);
    assert!(text.contains("no IP addresses available in range set: 10.233.3.1-10.233.3.6"), "{text}");
    assert_eq!(world.leases("net-a").len(), 5);
}
