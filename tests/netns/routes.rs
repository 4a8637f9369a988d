//! The pod's default routes on a node with both families: kernel, result and network-status say the same, CHECK sees what
//! becomes of them, and DEL leaves nothing.

use serde_json::{Value, json};

use crate::harness::{
    FLANNELS_DEFAULTS, Interface, Point, Recorder, Which, World, assert_check_sees_changes, assert_defaults,
    assert_no_network, defaults, ip_in, trace,
};

/// Flannel with both families, and two macvlan networks with both.
fn world() -> (World, Value) {
    let world = World::new();
    let conf = world.conf(&world.flannel_of_two_families());
    for number in [1, 2] {
        world.macvlan(&format!("net-{number}"), "");
        world.definition(&format!("net-{number}"), &macvlan(number, &[]));
    }
    (world, conf)
}

/// A network of both families, with routes of its own.
fn macvlan(number: u8, routes: &[&str]) -> Value {
    let routes: Vec<Value> = routes.iter().map(|dst| json!({"dst": dst})).collect();
    json!({"cniVersion": "1.0.0", "type": "macvlan", "master": "uplink", "ipam": {
        "type": "host-local", "routes": routes,
        "ranges": [[{"subnet": format!("10.10.{number}.0/24")}], [{"subnet": format!("fd00:10:{number}::/64")}]]}})
}

/// A pod with these networks has these default routes, and CHECK sees each change of one that the pod chose.
fn leads(networks: &Value, expected: [&str; 2]) {
    let (world, conf) = world();
    world.pod("p", &networks.to_string());
    let netns = world.netns();
    let call = |verb| world.call(verb, "c1", &netns, &conf).pod("p");
    let result = call("ADD").ok();
    assert_defaults(&world, &netns, &result, expected);
    call("CHECK").ok();
    let title = |link: &str| format!("default/net-{} as {link}", &link[3..]);
    assert_check_sees_changes(&|| call("CHECK"), &netns, &title, expected);
    call("DEL").ok();
    assert_no_network(&netns);
    world.assert_clean();
}

#[test]
fn the_ipv4_default_route_goes_and_the_ipv6_one_stays() {
    leads(&json!([{"name": "net-1", "default-route": ["10.10.1.254"]}]), ["net1 10.10.1.254", FLANNELS_DEFAULTS[1]]);
}

#[test]
fn the_ipv6_default_route_goes_and_the_ipv4_one_stays() {
    leads(
        &json!([{"name": "net-1", "default-route": ["fd00:10:1::fe"]}]),
        [FLANNELS_DEFAULTS[0], "net1 fd00:10:1::fe"],
    );
}

#[test]
fn both_default_routes_go_to_one_network() {
    let networks = json!([{"name": "net-1", "default-route": ["fd00:10:1::fe", "10.10.1.254"]}, {"name": "net-2"}]);
    leads(&networks, ["net1 10.10.1.254", "net1 fd00:10:1::fe"]);
}

#[test]
fn each_default_route_goes_to_a_network_of_its_own() {
    let networks = json!([{"name": "net-1", "default-route": ["fd00:10:1::fe"]}, {"name": "net-2", "default-route": ["10.10.2.254"]}]);
    leads(&networks, ["net2 10.10.2.254", "net1 fd00:10:1::fe"]);
}

#[test]
fn an_empty_list_keeps_both_default_routes() {
    leads(&json!([{"name": "net-1", "default-route": []}, {"name": "net-2", "default-route": []}]), FLANNELS_DEFAULTS);
}

/// Several of one family, those with a metric, and those that a network's own IPAM gave all make room; other tables and
/// rules are none of ours.
#[test]
fn every_default_route_of_the_family_makes_room_and_no_other_table() {
    let (world, mut conf) = world();
    let recorder = Recorder::install(&world.bin, &["watcher"]);
    let primary = json!({"name": "cbr0", "cniVersion": "1.0.0", "plugins": [
        {"type": "bridge", "bridge": "cni0", "isDefaultGateway": true, "ipam": {"type": "host-local", "subnet": "10.88.0.0/24"}},
        {"type": "watcher"}]});
    conf["clusterNetwork"] = json!(world.primary(&primary));
    let more = [
        "route add default via 10.88.0.9 metric 50",
        "route add default via 10.88.0.8 metric 60 mtu 1400",
        "route append default via 10.88.0.7",
        "route add default via 10.88.0.1 table 100",
        "rule add from 10.88.0.0/24 table 100",
        "route add unreachable default metric 4278198272",
    ];
    let script: String = more.iter().map(|words| format!("ip -n \"${{CNI_NETNS##*/}}\" {words} || exit 1\n")).collect();
    recorder.behave("watcher", "ADD", &format!(r#"{script} echo "$conf" | jq .prevResult; exit"#));
    // It has a default route of its own, in front of the others; and one of a table that nobody goes by.
    let mut own = macvlan(2, &["0.0.0.0/0"]);
    let of_table = json!({"dst": "0.0.0.0/0", "gw": "10.10.2.9", "table": 200});
    own["ipam"]["routes"].as_array_mut().unwrap().push(of_table);
    own["cniVersion"] = json!("1.1.0");
    world.definition("net-2", &own);
    world.pod("p", r#"[{"name":"net-1","default-route":["10.10.1.254"]},{"name":"net-2"}]"#);
    let netns = world.netns();
    let call = |verb| world.call(verb, "c1", &netns, &conf).pod("p");
    let result = call("ADD").ok();
    assert_eq!(defaults(&netns)[0], ["net1 10.10.1.254"]);
    let table = |table: &str| ip_in(&netns, &format!("-4 route show table {table}"));
    assert!(table("100").contains("default via 10.88.0.1 dev eth0"), "{}", table("100"));
    assert!(table("200").contains("default via 10.10.2.9 dev net2"), "{}", table("200"));
    assert!(table("all").contains("unreachable default"), "what leads nowhere stands in nobody's way");
    assert!(ip_in(&netns, "-4 rule show").contains("from 10.88.0.0/24 lookup 100"));
    assert!(!result["routes"].to_string().contains("0.0.0.0/0"), "{result:#}");
    let status = world.status("p").unwrap();
    let gateways: Vec<&Value> = status.as_array().unwrap().iter().map(|entry| &entry["gateway"]).collect();
    assert_eq!(gateways, [&Value::Null, &json!(["10.10.1.254"]), &Value::Null]);
    // The one whose default route was taken is told so, and what it has in another table it keeps.
    call("CHECK").ok();
    let record = std::fs::read_to_string("/var/lib/cni/meta-cni/sandboxes/c1/meta:eth0:net2.json").unwrap();
    let record: Value = serde_json::from_str(&record).unwrap();
    assert_eq!(record["result"]["routes"], json!([{"dst": "0.0.0.0/0", "gw": "10.10.2.9", "table": 200}]));
    call("DEL").ok();
    // Where nobody chooses, the status tells the one of the main table.
    world.pod("p", "net-2");
    let other = world.netns();
    world.call("ADD", "c2", &other, &conf).pod("p").ok();
    assert_eq!(world.status("p").unwrap()[1]["gateway"], json!(["10.10.2.1"]));
    world.call("DEL", "c2", &other, &conf).pod("p").ok();
    assert_eq!(ip_in(&netns, "-o link show").lines().count(), 1);
    world.assert_clean();
}

#[test]
fn a_gateway_that_its_network_does_not_reach_undoes_the_pod() {
    let (world, conf) = world();
    let netns = world.netns();
    let has = "net1 has 10.10.1.2/24, fd00:10:1::2/64";
    for (gateways, says) in [
        (json!(["192.0.2.1"]), "default-route 192.0.2.1"),
        (json!(["fd00:99::1"]), "default-route fd00:99::1"),
        // The interface's own.
        (json!(["10.10.1.2"]), "default-route 10.10.1.2"),
        // One of the two is good.
        (json!(["10.10.1.254", "fd00:99::1"]), "default-route 10.10.1.254, fd00:99::1"),
        // Of the primary's subnet.
        (json!(["10.244.7.1"]), "default-route 10.244.7.1"),
    ] {
        world.pod("p", &json!([{"name": "net-1", "default-route": gateways}]).to_string());
        // The reference host-local goes round: each pod would have another address.
        let _ = std::fs::remove_dir_all("/var/lib/cni/networks/net-1");
        let text = world.call("ADD", "c1", &netns, &conf).pod("p").fails(7);
        assert!(text.starts_with(&format!("default/net-1 as net1: {says}: {has}")), "{text}");
        assert!(Interface::find(&netns, "eth0").is_none());
        assert!(!ip_in(&netns, "route show table all").contains("default"));
        world.assert_clean();
    }
}

/// Another call of the same container has the pod's default route; the call that takes it is killed on the way.
#[test]
fn killed_while_it_takes_the_default_route_its_del_gives_it_back() {
    let (world, conf) = world();
    Recorder::install(&world.bin, &["other"]);
    let mut second = conf.clone();
    second["name"] = json!("meta-second");
    second["clusterNetwork"] = json!("/etc/cni/primary/20-other.conflist");
    let other = json!({"cniVersion": "1.0.0", "name": "other-net", "plugins": [{"type": "other"}]});
    std::fs::write("/etc/cni/primary/20-other.conflist", other.to_string()).unwrap();
    let netns = world.netns();
    world.pod("plain", "");
    world.call("ADD", "c1", &netns, &conf).pod("plain").ok();
    world.pod("p", r#"[{"name":"net-1","default-route":["10.10.1.254","fd00:10:1::fe"]}]"#);
    let call = |verb| world.call(verb, "c1", &netns, &second).pod("p").if_name("data9");
    let whole = trace(&call("ADD"), Which::State, None);
    assert_eq!(whole.code, Some(0), "{}", whole.stdout);
    assert_eq!(defaults(&netns), [["net1 10.10.1.254"], ["net1 fd00:10:1::fe"]]);
    call("DEL").ok();
    assert_eq!(defaults(&netns), FLANNELS_DEFAULTS.map(|way| [way]));
    // RTM_DELROUTE: two routes are deleted, two are added.
    let is_deletion = |point: &Point| point.about.starts_with("message 25 ");
    let first = whole.points.iter().position(is_deletion).expect("a route is deleted");
    let mut between = 0;
    for before in first..first + 5 {
        let killed = trace(&call("ADD"), Which::State, Some(before));
        assert!(killed.killed, "before point {before}");
        between += usize::from(defaults(&netns) != FLANNELS_DEFAULTS.map(|way| [way]));
        call("DEL").ok();
        assert_eq!(defaults(&netns), FLANNELS_DEFAULTS.map(|way| [way]), "killed before {:?}", killed.points.last());
    }
    assert!(between >= 3, "{:?}", &whole.points[first..]);
    world.call("DEL", "c1", &netns, &conf).pod("plain").ok();
    assert_no_network(&netns);
    world.assert_clean();
}
