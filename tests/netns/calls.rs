//! Several calls of one container, GC and its list, and the default route.

use std::{fs, path::Path};

use serde_json::{Value, json};

use crate::harness::{Interface, Recorder, World, at, names};

fn two_call_world() -> (World, Recorder, Value, Value) {
    let world = World::new();
    let recorder = Recorder::install(&world.bin, &["first", "net-x", "other"]);
    let primary = world.primary(&json!({"cniVersion": "1.1.0", "name": "main", "plugins": [{"type": "first"}]}));
    world.definition("x", &json!({"cniVersion": "1.1.0", "type": "net-x"}));
    world.pod("p", "x");
    let mut conf = world.conf(&primary);
    conf["cniVersion"] = json!("1.1.0");
    let mut second = conf.clone();
    second["name"] = json!("meta-second");
    second["clusterNetwork"] = json!("/etc/cni/primary/20-other.conflist");
    fs::write(
        "/etc/cni/primary/20-other.conflist",
        r#"{"cniVersion":"1.1.0","name":"other-net","plugins":[{"type":"other"}]}"#,
    )
    .unwrap();
    (world, recorder, conf, second)
}

#[test]
fn two_calls_of_one_container_live_and_die_independently() {
    let (world, recorder, conf, second) = two_call_world();
    let netns = world.netns();
    world.call("ADD", "c1", &netns, &conf).pod("p").ok();
    // The second call is for a pod without annotation: it makes one attachment.
    world.call("ADD", "c1", &netns, &second).pod("plain").if_name("data9").ok();
    assert_eq!(recorder.take(), ["ADD first eth0", "ADD net-x net1", "ADD other data9"]);
    world.call("DEL", "c1", &netns, &conf).pod("p").ok();
    assert_eq!(recorder.take(), ["DEL net-x net1", "DEL first eth0"]);
    assert_eq!(world.records("c1"), ["meta-second:data9:data9.json"]);
    world.call("ADD", "c1", &netns, &conf).pod("p").ok();
    recorder.take();
    world.call("DEL", "c1", &netns, &second).pod("plain").if_name("data9").ok();
    assert_eq!(recorder.take(), ["DEL other data9"]);
    world.call("DEL", "c1", &netns, &conf).pod("p").ok();
    world.assert_clean();
}

#[test]
fn a_name_that_another_call_has_taken_is_refused_beforehand() {
    let (world, recorder, conf, second) = two_call_world();
    let netns = world.netns();
    world.call("ADD", "c1", &netns, &conf).pod("p").ok();
    recorder.take();
    let text = world.call("ADD", "c1", &netns, &second).pod("plain").if_name("net1").fails(7);
    assert!(text.contains("another call of this container has an interface of that name"), "{text}");
    assert_eq!(recorder.take(), Vec::<String>::new());
}

#[test]
fn gc_leaves_secondaries_of_a_live_pod_alone_and_undoes_a_dead_one_whole() {
    let (world, recorder, conf, second) = two_call_world();
    let (live, dead) = (world.netns(), world.netns());
    world.call("ADD", "live", &live, &conf).pod("p").ok();
    world.call("ADD", "dead", &dead, &conf).pod("p").ok();
    world.call("ADD", "dead", &dead, &second).pod("plain").if_name("data9").ok();
    recorder.take();
    let valid = json!([{"containerID": "live", "ifname": "eth0"}]);
    for key in ["cni.dev/valid-attachments", "cni.dev/attachments"] {
        let mut gc = conf.clone();
        gc[key] = valid.clone();
        world.call("GC", "", "", &gc).ok();
    }
    let calls = recorder.calls();
    let handed: Vec<&Value> = calls.iter().filter(|call| call.0["verb"] == "GC").map(|call| &call.0["conf"]).collect();
    assert_eq!(handed[0]["cni.dev/valid-attachments"], valid, "the primary gets the list unchanged");
    assert_eq!(handed[0]["cni.dev/attachments"], valid);
    assert_eq!(handed[1]["cni.dev/valid-attachments"], json!([{"containerID": "live", "ifname": "net1"}]));
    let expected = ["DEL net-x net1", "DEL first eth0", "GC first ", "GC net-x ", "GC first ", "GC net-x "];
    assert_eq!(recorder.take(), expected, "the second GC finds nothing more to undo");
    assert_eq!(world.records("live").len(), 2);
    assert_eq!(world.records("dead"), ["meta-second:data9:data9.json"], "another conf's call is not judged");

    // An absent or null list says nothing; an empty one says that nothing is valid.
    for list in [None, Some(Value::Null)] {
        let mut gc = conf.clone();
        if let Some(list) = list {
            gc["cni.dev/valid-attachments"] = list;
        }
        world.call("GC", "", "", &gc).ok();
        assert_eq!(world.records("live").len(), 2);
    }
    let mut gc = conf.clone();
    gc["cni.dev/valid-attachments"] = json!([]);
    world.call("GC", "", "", &gc).ok();
    assert_eq!(world.records("live"), Vec::<String>::new());
    let confs = || names("/var/lib/cni/meta-cni/confs");
    assert_eq!(confs().len(), 1, "the configuration of the other call is kept");
    fs::write("/var/lib/cni/meta-cni/confs/.tmp-of-a-killed-writer", "").unwrap();
    gc["name"] = json!("meta-second");
    world.call("GC", "", "", &gc).ok();
    assert_eq!(confs(), Vec::<String>::new(), "a configuration that no record names is dropped");
    world.assert_clean();
}

/// GC and STATUS are about no container, and come without its variables: nothing of them is missed, by us or by plugins. The
/// primary and the network are single plugins here, no lists.
#[test]
fn gc_and_status_of_single_plugins_need_nothing_of_a_container() {
    let (world, recorder, conf, _) = two_call_world();
    let primary = "/etc/cni/primary/30-single.conf";
    fs::write(primary, r#"{"cniVersion":"1.1.0","name":"main","type":"first","k":1.50}"#).unwrap();
    let mut by_file = conf.clone();
    by_file["clusterNetwork"] = json!(primary);
    let mut by_delegate = conf.clone();
    by_delegate.as_object_mut().unwrap().remove("clusterNetwork");
    by_delegate["delegates"] = json!([{"cniVersion": "1.1.0", "name": "main", "type": "first", "k": 1.5}]);
    for conf in [by_file, by_delegate] {
        let netns = world.netns();
        world.call("ADD", "live", &netns, &conf).pod("p").ok();
        recorder.take();
        let mut gc = conf.clone();
        gc["cni.dev/valid-attachments"] = json!([{"containerID": "live", "ifname": "eth0"}]);
        for (verb, conf, expected) in
            [("GC", &gc, vec!["GC first ", "GC net-x "]), ("STATUS", &conf, vec!["STATUS first "])]
        {
            let call = world.call(verb, "", "", conf);
            let call = ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_ARGS"]
                .into_iter()
                .fold(call, |call, key| call.without(key));
            call.ok();
            let told = recorder.calls();
            assert_eq!(recorder.take(), expected);
            for call in told {
                let of_container = ["container", "netns", "ifname", "args"].map(|key| call.0[key].clone());
                assert_eq!(of_container, ["", "", "", ""], "{call:?}");
            }
        }
        recorder.behave("first", "GC", r#"echo '{"cniVersion":"1.1.0","code":42,"msg":"cannot collect"}'; exit 1"#);
        let text = world.call("GC", "", "", &gc).fails(42);
        assert!(text.contains("cannot collect"), "{text}");
        recorder.relax("first", "GC");
        recorder.take();
        world.call("DEL", "live", &netns, &conf).pod("p").ok();
        recorder.take();
        world.assert_clean();
    }
}

#[test]
fn gc_removes_the_locks_and_leases_of_nobody() {
    let (world, _, conf, _) = two_call_world();
    let netns = world.netns();
    world.call("ADD", "live", &netns, &conf).pod("p").ok();
    // As left by an ADD that was killed before its first record, one that is at that point now, and a power cut.
    let locks = Path::new("/run/meta-cni/lock");
    fs::write(locks.join("sandbox-killed"), "").unwrap();
    let at_work = fs::File::create(locks.join("sandbox-at-work")).unwrap();
    at_work.lock().unwrap();
    let pool = Path::new("/var/lib/cni/networks/main");
    let of_another = Path::new("/var/lib/cni/networks/podman");
    for pool in [pool, of_another] {
        fs::create_dir_all(pool).unwrap();
        fs::write(pool.join("10.88.0.4"), "").unwrap();
    }
    for (name, text) in [("10.88.0.2", "live\r\neth0"), ("10.88.0.3", ""), ("last_reserved_ip.0", "10.88.0.3")] {
        fs::write(pool.join(name), text).unwrap();
    }
    let mut gc = conf;
    gc["cni.dev/valid-attachments"] = json!([{"containerID": "live", "ifname": "eth0"}]);
    world.call("GC", "", "", &gc).ok();
    assert_eq!(names(locks), ["sandbox-at-work", "sandbox-live"]);
    assert_eq!(names(pool), ["10.88.0.2", "last_reserved_ip.0", "lock"]);
    assert!(of_another.join("10.88.0.4").exists(), "a network that is not ours");
    assert_eq!(world.records("live").len(), 2);
}

#[test]
fn leftovers_of_an_earlier_boot_are_undone() {
    let (world, recorder, conf, _) = two_call_world();
    let netns = world.netns();
    world.call("ADD", "c1", &netns, &conf).pod("p").ok();
    for name in world.records("c1") {
        let file = format!("/var/lib/cni/meta-cni/sandboxes/c1/{name}");
        let mut record: Value = serde_json::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
        record["bootId"] = json!("another-boot");
        fs::write(file, record.to_string()).unwrap();
    }
    recorder.take();
    world.call("GC", "", "", &conf).ok();
    assert_eq!(recorder.take(), ["DEL net-x net1", "DEL first eth0"]);
    world.assert_clean();
}

#[test]
fn the_default_route_goes_where_the_pod_wants_it() {
    let world = World::new();
    let conf = world.conf(&world.bridge_primary());
    world.macvlan("net-a", "10.10.1.0/24");
    world.pod("p", r#"[{"name":"net-a","default-route":["10.10.1.254"]}]"#);
    let netns = world.netns();
    let result = world.call("ADD", "c1", &netns, &conf).pod("p").ok();
    let (eth0, net1) = (Interface::find(&netns, "eth0").unwrap(), Interface::find(&netns, "net1").unwrap());
    assert_eq!(net1.default_gateway(), Some("10.10.1.254"));
    assert_eq!(eth0.default_gateway(), None, "one default route in the sandbox");
    let routes = result["routes"].as_array().cloned().unwrap_or_default();
    assert!(!routes.iter().any(|route| route["dst"] == "0.0.0.0/0"), "the result tells it too: {result}");
    let status = world.status("p").unwrap();
    assert_eq!(at(&status, "/1/gateway"), &json!(["10.10.1.254"]));
    assert!(status[0].get("gateway").is_none());
    world.call("CHECK", "c1", &netns, &conf).pod("p").ok();
    world.call("DEL", "c1", &netns, &conf).pod("p").ok();
    world.assert_clean();
}

/// An empty list keeps what the plugins made; Multus takes every default route away (multus#1011).
#[test]
fn an_empty_default_route_keeps_the_primarys() {
    let world = World::new();
    let conf = world.conf(&world.bridge_primary());
    world.macvlan("net-a", "10.10.1.0/24");
    world.pod("p", r#"[{"name":"net-a","default-route":[]}]"#);
    let netns = world.netns();
    let result = world.call("ADD", "c1", &netns, &conf).pod("p").ok();
    assert_eq!(Interface::find(&netns, "eth0").unwrap().default_gateway(), Some("10.88.0.1"));
    assert_eq!(Interface::find(&netns, "net1").unwrap().default_gateway(), None);
    assert_eq!(at(&result, "/routes/0/dst"), "0.0.0.0/0");
    let status = world.status("p").unwrap();
    assert_eq!(at(&status, "/0/gateway"), &json!(["10.88.0.1"]));
    assert!(status[1].get("gateway").is_none(), "{status}");
    world.call("CHECK", "c1", &netns, &conf).pod("p").ok();
    world.call("DEL", "c1", &netns, &conf).pod("p").ok();
    world.assert_clean();
}

#[test]
fn a_default_route_that_leads_nowhere_undoes_the_pod() {
    let world = World::new();
    let conf = world.conf(&world.bridge_primary());
    world.macvlan("net-a", "10.10.1.0/24");
    world.pod("p", r#"[{"name":"net-a","default-route":["192.0.2.1"]}]"#);
    let netns = world.netns();
    let text = world.call("ADD", "c1", &netns, &conf).pod("p").fails(7);
    assert!(text.contains("default/net-a as net1") && text.contains("192.0.2.1"), "{text}");
    assert!(Interface::find(&netns, "eth0").is_none());
    world.assert_clean();
}
