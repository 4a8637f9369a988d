//! DEL with everything missing that can be: it succeeds, and nothing leaks.

use std::{fs, os::unix::fs::MetadataExt as _, thread::sleep, time::Duration};

use serde_json::{Value, json};

use crate::harness::{Interface, Recorder, World, ip};

/// A pod with the bridge as primary and a macvlan network, attached.
fn attached() -> (World, Value, String) {
    let world = World::new();
    let conf = world.conf(&world.bridge_primary());
    world.macvlan("net-a", "10.10.1.0/24");
    world.pod("p", "net-a");
    let netns = world.netns();
    world.call("ADD", "c1", &netns, &conf).pod("p").ok();
    assert_eq!(world.leases("net-a").len(), 1);
    assert_eq!(world.leases("podnet").len(), 1);
    (world, conf, netns)
}

#[test]
fn with_the_definition_deleted() {
    let (world, conf, netns) = attached();
    fs::remove_file(world.manifests.join("net-a.yaml")).unwrap();
    fs::remove_file(world.manifests.join("pod-p.yaml")).unwrap();
    world.call("DEL", "c1", &netns, &conf).pod("p").ok();
    assert!(Interface::find(&netns, "net1").is_none());
    world.assert_clean();
    world.call("DEL", "c1", &netns, &conf).pod("p").ok();
}

#[test]
fn with_the_namespace_deleted() {
    let (world, conf, netns) = attached();
    world.delete_netns(&netns);
    world.call("DEL", "c1", &netns, &conf).pod("p").ok();
    world.assert_clean();
    world.call("DEL", "c1", &netns, &conf).pod("p").ok();
    world.call("DEL", "c1", "", &conf).pod("p").ok();
}

#[test]
fn with_no_namespace_named_while_it_lives() {
    let (world, conf, _) = attached();
    world.call("DEL", "c1", "", &conf).pod("p").ok();
    world.assert_clean();
}

#[test]
fn with_a_plain_file_in_place_of_the_namespace() {
    let (world, conf, netns) = attached();
    world.delete_netns(&netns);
    fs::write(&netns, "").unwrap();
    world.call("DEL", "c1", &netns, &conf).pod("p").ok();
    world.assert_clean();
}

/// The kernel gives the inode of a dead namespace to the next one, which may be mounted at the same path: the plugins must
/// not be sent into that.
#[test]
fn with_another_namespace_at_the_path_and_with_the_inode_of_the_dead_one() {
    let world = World::new();
    let recorder = Recorder::install(&world.bin, &["first"]);
    let primary = json!({"cniVersion": "1.0.0", "name": "main", "plugins": [{"type": "first"}]});
    let conf = world.conf(&world.primary(&primary));
    world.pod("p", "");
    let netns = world.netns();
    let inode = || fs::metadata(&netns).unwrap().ino();
    // It takes the dead one apart in its own time, and other tests make namespaces too: try until the inode is the same.
    for _ in 0..100 {
        world.call("ADD", "c1", &netns, &conf).pod("p").ok();
        let dead = inode();
        world.delete_netns(&netns);
        sleep(Duration::from_millis(50));
        ip(&format!("netns add {}", netns.trim_start_matches("/run/netns/")));
        recorder.take();
        world.call("DEL", "c1", &netns, &conf).pod("p").ok();
        let told = &recorder.calls()[0].0;
        assert_eq!((told["verb"].as_str(), told["netns"].as_str()), (Some("DEL"), Some("")), "{told}");
        world.assert_clean();
        if inode() == dead {
            return;
        }
    }
    panic!("the inode was not used again");
}

#[test]
fn with_torn_records() {
    let (world, conf, netns) = attached();
    for name in world.records("c1") {
        fs::write(format!("/var/lib/cni/meta-cni/sandboxes/c1/{name}"), "{\"format\": 1, \"sta").unwrap();
    }
    world.call("DEL", "c1", &netns, &conf).pod("p").ok();
    assert!(Interface::find(&netns, "eth0").is_none(), "the primary's chain was asked with the conf on disk");
    world.assert_clean();
    world.call("DEL", "c1", &netns, &conf).pod("p").ok();
}

#[test]
fn without_any_record_the_primary_s_chain_is_asked() {
    let world = World::new();
    let primary = world.flannel_primary();
    let netns = world.netns();
    // A pod born under the bare chain, before this node had us: libcni runs it.
    let list: Value = serde_json::from_str(&fs::read_to_string(&primary).unwrap()).unwrap();
    let result = crate::harness::bare_add(&world, &list, "c1", &netns);
    assert!(Interface::find(&netns, "eth0").is_some());
    assert_eq!(world.leases("cbr0").len(), 1);
    let mut conf = world.conf(&primary);
    conf["prevResult"] = result;
    world.call("DEL", "c1", &netns, &conf).pod("p").ok();
    assert!(Interface::find(&netns, "eth0").is_none());
    world.assert_clean();
}

#[test]
fn a_delegate_that_fails_is_reported_while_the_namespace_lives_and_owed_afterwards() {
    let world = World::new();
    let recorder = Recorder::install(&world.bin, &["first", "net-x"]);
    let primary = world.primary(&json!({"cniVersion": "1.1.0", "name": "main", "plugins": [{"type": "first"}]}));
    world.definition("x", &json!({"cniVersion": "1.0.0", "type": "net-x"}));
    world.pod("p", "x");
    let mut conf = world.conf(&primary);
    conf["cniVersion"] = json!("1.1.0");
    let netns = world.netns();
    world.call("ADD", "c1", &netns, &conf).pod("p").ok();
    recorder.take();
    recorder.behave("net-x", "DEL", r#"echo '{"code":42,"msg":"not now"}'; exit 1"#);
    let text = world.call("DEL", "c1", &netns, &conf).pod("p").fails(42);
    assert!(text.contains("default/x as net1") && text.contains("not now"), "{text}");
    assert_eq!(recorder.take(), ["DEL net-x net1", "DEL first eth0"], "the rest is done all the same");
    assert_eq!(world.records("c1").len(), 1);

    world.delete_netns(&netns);
    world.call("DEL", "c1", "", &conf).pod("p").ok();
    let file = format!("/var/lib/cni/meta-cni/sandboxes/c1/{}", world.records("c1")[0]);
    let record: Value = serde_json::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
    assert_eq!(record["stage"], "owed");
    assert!(record["owedBecause"].as_str().unwrap().contains("not now"));

    recorder.take();
    recorder.relax("net-x", "DEL");
    world.call("GC", "", "", &conf).ok();
    assert_eq!(
        recorder.take(),
        ["DEL net-x net1"],
        "GC pays the debt, and a list that is absent says nothing to plugins"
    );
    world.assert_clean();
}

#[test]
fn a_record_of_a_newer_release_is_kept() {
    let (world, conf, netns) = attached();
    let file = "/var/lib/cni/meta-cni/sandboxes/c1/meta:eth0:net1.json";
    let mut record: Value = serde_json::from_str(&fs::read_to_string(file).unwrap()).unwrap();
    record["format"] = json!(2);
    record["something"] = json!({"new": [1, 2]});
    fs::write(file, record.to_string()).unwrap();
    world.call("DEL", "c1", &netns, &conf).pod("p").ok();
    assert!(Interface::find(&netns, "net1").is_none(), "what is understood of it is undone");
    let after: Value = serde_json::from_str(&fs::read_to_string(file).unwrap()).unwrap();
    assert_eq!(after["something"], json!({"new": [1, 2]}), "unknown keys are kept");
}

#[test]
fn an_unknown_key_under_strict_stops_add_and_not_del() {
    let (world, mut conf, netns) = attached();
    conf["strict"] = json!(true);
    conf["clusternetwrok"] = json!("x");
    let other = world.netns();
    let text = world.call("ADD", "c2", &other, &conf).pod("p").fails(7);
    assert!(text.contains("did you mean \"clusterNetwork\"?"), "{text}");
    world.call("DEL", "c1", &netns, &conf).pod("p").ok();
    world.assert_clean();
}
