//! The form of a result in each version of the specification: golden, and beside a reference plugin's.

use serde_json::{Value, json};

use crate::harness::{Recorder, World};

const VERSIONS: [&str; 7] = ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// A result with everything that 1.1.0 knows.
fn full() -> Value {
    json!({
        "cniVersion": "1.1.0",
        "interfaces": [
            {"name": "veth0", "mac": "02:00:00:00:00:01", "mtu": 1450},
            {"name": "eth0", "mac": "02:00:00:00:00:02", "mtu": 1450, "sandbox": "/run/netns/x",
             "socketPath": "/run/vhost.sock", "pciID": "0000:01:10.0"}
        ],
        "ips": [{"interface": 1, "address": "10.1.0.5/24", "gateway": "10.1.0.1"},
                {"interface": 1, "address": "fd00::5/64"},
                {"interface": 1, "address": "10.2.0.5/24"}],
        "routes": [{"dst": "0.0.0.0/0", "gw": "10.1.0.1", "mtu": 1400, "advmss": 1360, "priority": 100, "table": 7, "scope": 0},
                   {"dst": "::/0", "gw": "fd00::1"}],
        "dns": {"nameservers": ["10.1.0.1"], "domain": "example.org", "search": ["a.example.org"], "options": ["ndots:2"]}
    })
}

/// What becomes of it.
fn golden(version: &str) -> Value {
    let dns = full()["dns"].clone();
    if version < "0.3.0" {
        // One address of each family, its routes with it, and nothing else.
        return json!({
            "cniVersion": version, "dns": dns,
            "ip4": {"ip": "10.1.0.5/24", "gateway": "10.1.0.1", "routes": [{"dst": "0.0.0.0/0", "gw": "10.1.0.1"}]},
            "ip6": {"ip": "fd00::5/64", "routes": [{"dst": "::/0", "gw": "fd00::1"}]}
        });
    }
    let mut result = full();
    result["cniVersion"] = json!(version);
    if version < "1.0.0" {
        result["interfaces"] = json!([
            {"name": "veth0", "mac": "02:00:00:00:00:01"},
            {"name": "eth0", "mac": "02:00:00:00:00:02", "sandbox": "/run/netns/x"}
        ]);
        for (at, family) in ["4", "6", "4"].iter().enumerate() {
            result["ips"][at]["version"] = json!(family);
        }
    }
    result
}

struct Node {
    world: World,
    recorder: Recorder,
    netns: String,
    primary: String,
}

/// A node whose primary speaks a version and prints a text.
fn node(version: &str, printed: &str) -> Node {
    let world = World::new();
    let recorder = Recorder::install(&world.bin, &["first"]);
    recorder.behave("first", "ADD", &format!("echo '{printed}'; exit 0"));
    let primary = world.primary(&json!({"cniVersion": version, "name": "main", "plugins": [{"type": "first"}]}));
    let netns = world.netns();
    Node { world, recorder, netns, primary }
}

impl Node {
    fn conf(&self, version: &str) -> Value {
        let mut conf = self.world.conf(&self.primary);
        conf["cniVersion"] = json!(version);
        conf
    }
}

#[test]
fn every_version_gets_its_own_form_of_a_full_result() {
    let node = node("1.1.0", &full().to_string());
    for version in VERSIONS {
        let conf = node.conf(version);
        let result = node.world.call("ADD", "c1", &node.netns, &conf).ok();
        assert_eq!(result, golden(version), "{version}");
        node.world.call("DEL", "c1", &node.netns, &conf).ok();
        let told = node.recorder.calls();
        let last = &told.last().unwrap().0["conf"];
        assert_eq!(last["prevResult"], full(), "the plugin gets back what it printed, whatever the runtime got");
        node.world.assert_clean();
    }
}

#[test]
fn an_old_plugin_under_a_new_runtime() {
    let node = node("0.2.0", r#"{"ip4":{"ip":"10.1.0.5/24","gateway":"10.1.0.1","routes":[{"dst":"0.0.0.0/0"}]}}"#);
    for version in VERSIONS {
        let conf = node.conf(version);
        let result = node.world.call("ADD", "c1", &node.netns, &conf).ok();
        let ip = if version < "0.3.0" { &result["ip4"]["ip"] } else { &result["ips"][0]["address"] };
        assert_eq!((ip, &result["cniVersion"]), (&json!("10.1.0.5/24"), &json!(version)));
        let (gateway, dst) = if version < "0.3.0" {
            (&result["ip4"]["gateway"], &result["ip4"]["routes"][0]["dst"])
        } else {
            (&result["ips"][0]["gateway"], &result["routes"][0]["dst"])
        };
        assert_eq!((gateway, dst), (&json!("10.1.0.1"), &json!("0.0.0.0/0")), "{version}");
        node.world.call("DEL", "c1", &node.netns, &conf).ok();
        node.world.assert_clean();
    }
}

#[test]
fn without_an_address_the_oldest_versions_have_no_form() {
    let node = node("1.0.0", r#"{"cniVersion":"1.0.0","interfaces":[{"name":"eth0","sandbox":"/run/netns/x"}]}"#);
    for version in VERSIONS {
        let call = node.world.call("ADD", "c1", &node.netns, &node.conf(version));
        if version < "0.3.0" {
            let text = call.fails(7);
            assert!(text.contains("cannot convert: no valid IP addresses") && text.contains(version), "{text}");
            assert_eq!(node.recorder.take(), ["ADD first eth0", "DEL first eth0"], "it is undone");
        } else {
            let mut expected = json!({
                "cniVersion": version, "interfaces": [{"name": "eth0", "sandbox": "/run/netns/x"}]
            });
            if version < "1.0.0" {
                expected["dns"] = json!({});
            }
            assert_eq!(call.ok(), expected);
            node.world.call("DEL", "c1", &node.netns, &node.conf(version)).ok();
            node.recorder.take();
        }
        node.world.assert_clean();
    }
}

/// Replaces what differs from one ADD to the next.
fn shape(value: &mut Value) {
    match value {
        Value::Object(object) => {
            for (key, value) in object.iter_mut() {
                let varies = ["mac", "sandbox", "address", "ip"].contains(&key.as_str());
                let host_end = key == "name" && value.as_str().is_some_and(|name| name.starts_with("veth"));
                if value.is_string() && (varies || host_end) {
                    *value = json!("*");
                } else {
                    shape(value);
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(shape),
        _ => {}
    }
}

#[test]
fn the_form_is_that_of_a_reference_plugin() {
    let world = World::new();
    world.plugins("reference", &["bridge", "host-local"]);
    let bridge = json!({
        "type": "bridge", "bridge": "cni0", "isGateway": true, "isDefaultGateway": true, "mtu": 1400,
        "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.88.0.0/24"}], [{"subnet": "fd00:88::/64"}]]}
    });
    let netns = world.netns();
    for version in VERSIONS {
        let mut plain = bridge.clone();
        plain["cniVersion"] = json!(version);
        plain["name"] = json!("podnet");
        let direct = |verb| world.call(verb, "c1", &netns, &plain).program(&world.bin.join("bridge"));
        let mut reference = direct("ADD").ok();
        direct("DEL").ok();
        // Ours converts from 1.1.0, the reference from its own newest version, which is the same.
        let primary = world.primary(&json!({"cniVersion": "1.1.0", "name": "podnet", "plugins": [bridge]}));
        let mut conf = world.conf(&primary);
        conf["cniVersion"] = json!(version);
        let mut ours = world.call("ADD", "c1", &netns, &conf).ok();
        world.call("DEL", "c1", &netns, &conf).ok();
        shape(&mut reference);
        shape(&mut ours);
        assert_eq!(ours, reference, "{version}");
        world.assert_clean();
    }
}
