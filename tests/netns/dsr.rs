//! An answer leaves by the interface at which it was asked: with the plugin `sbr` behind a network, and not without it.

use serde_json::json;

use crate::harness::{Wire, World, defaults, in_netns, ip, ip_in, ping};

#[test]
fn a_client_behind_a_network_is_answered_through_it_with_sbr() {
    let world = World::new();
    let conf = world.conf(&world.flannel_of_two_families());
    world.plugins("reference", &["sbr"]);
    world.macvlan("plain", "10.10.1.0/24");
    let macvlan =
        json!({"type": "macvlan", "master": "uplink", "ipam": {"type": "host-local", "subnet": "10.10.2.0/24"}});
    world
        .definition("routed", &json!({"cniVersion": "1.0.0", "name": "routed", "plugins": [macvlan, {"type": "sbr"}]}));
    let router = world.netns();
    ip(&format!("link set wire netns {}", router.replace("/run/netns/", "")));
    ip_in(&router, "link set wire up");
    ip_in(&router, "addr add 10.10.1.1/24 dev wire");
    ip_in(&router, "addr add 10.10.2.1/24 dev wire");
    let client = world.client_behind(&router);
    world.pod("p", "plain,routed");
    let netns = world.netns();
    world.call("ADD", "c1", &netns, &conf).pod("p").ok();
    in_netns(&netns, &["sysctl", "-qw", "net.ipv4.conf.all.rp_filter=0", "net.ipv4.conf.eth0.rp_filter=0"]);
    assert_eq!(defaults(&netns)[0], ["eth0 10.244.7.1"], "the pod's own way out is the primary's");

    let at_node = Wire::tap("cni0", "icmp");
    let at_client = Wire::tap_in(&client, "far0", "icmp");
    assert!(!ping(&client, "10.10.1.2"), "without sbr");
    let seen = at_node.until("10.10.1.2 > 192.168.77.2: ICMP echo reply");
    assert!(!seen.contains("192.168.77.2 > 10.10.1.2"), "asked on net1, answered by eth0: {seen}");
    assert!(ping(&client, "10.10.2.2"), "with sbr");
    let seen = at_client.until("10.10.2.2 > 192.168.77.2: ICMP echo reply");
    assert!(!seen.contains("10.10.1.2 > 192.168.77.2: ICMP echo reply"), "{seen}");
    // Up to a packet that does go there, the node has seen nothing of it.
    assert!(ping(&netns, "10.244.7.1"));
    let seen = at_node.until("> 10.244.7.1: ICMP echo request");
    assert!(!seen.contains("10.10.2.2"), "{seen}");

    // macvlan's own CHECK misses the route to its gateway, which sbr has put into another table.
    let text = world.call("CHECK", "c1", &netns, &conf).pod("p").fails(103);
    assert!(text.contains("plugin macvlan (CHECK): Failed to find Gateway 10.10.2.1"), "{text}");
    world.call("DEL", "c1", &netns, &conf).pod("p").ok();
    let rules = ip_in(&netns, "-4 rule show");
    assert_eq!(rules.lines().count(), 3, "only the kernel's own are left: {rules}");
    world.assert_clean();
}

/// sbr locks the namespace's file: without one its DEL fails, whatever it is asked.
#[test]
fn without_the_namespace_the_address_is_given_back_and_nothing_is_owed() {
    let world = World::new();
    let conf = world.conf(&world.flannel_of_two_families());
    world.plugins("reference", &["sbr"]);
    world.macvlan("routed", "10.10.2.0/24");
    let macvlan =
        json!({"type": "macvlan", "master": "uplink", "ipam": {"type": "host-local", "subnet": "10.10.2.0/24"}});
    world
        .definition("routed", &json!({"cniVersion": "1.0.0", "name": "routed", "plugins": [macvlan, {"type": "sbr"}]}));
    world.pod("p", "routed");
    let netns = world.netns();
    world.call("ADD", "c1", &netns, &conf).pod("p").ok();
    assert_eq!(world.leases("routed"), ["10.10.2.2"]);
    world.delete_netns(&netns);
    world.call("DEL", "c1", &netns, &conf).pod("p").ok();
    world.assert_clean();
    assert!(!std::path::Path::new(&netns).exists(), "a file in place of the namespace");
}
