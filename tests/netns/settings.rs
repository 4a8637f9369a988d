//! The configuration of the meta plugin itself: what is wrong in it, and what nobody knows.

use serde_json::json;

use super::requests::Node;

#[test]
fn a_wrong_configuration_of_the_meta_plugin() {
    let node = Node::new();
    node.refuses(
        &node.with("kubeconfig", json!("/etc/kubeconfig")),
        7,
        &["\"kubeconfig\" and \"manifestDir\" exclude"],
    );
    node.refuses(
        &node.without_cluster_network(),
        7,
        &["neither \"clusterNetwork\" nor \"delegates\"", "name the primary"],
    );
    for (key, value, says) in [
        ("confDir", json!("etc/cni"), "\"etc/cni\" is no absolute path"),
        ("binDir", json!("./bin"), "\"binDir\": \"./bin\" is no absolute path"),
        ("clusterNetwork", json!(7), "\"clusterNetwork\" is not what it should be"),
        ("delegates", json!({"type": "first"}), "\"delegates\" is not what it should be"),
        ("namespaceIsolation", json!("perhaps"), "\"namespaceIsolation\" must be true or false"),
        ("readinessTimeoutSeconds", json!(0), "\"readinessTimeoutSeconds\" must be at least 1 second"),
        ("addTimeoutSeconds", json!(-1), "\"addTimeoutSeconds\" is not what it should be"),
        ("builtins", json!(["sriov", "macvlan"]), "\"macvlan\" is not built in, only sriov, host-local, static"),
        ("builtins", json!("sriov"), "\"builtins\" is not what it should be"),
        ("capabilityCheck", json!("lax"), "\"capabilityCheck\" is strict or compat, not \"lax\""),
        ("allowDeviceID", json!("perhaps"), "\"allowDeviceID\" must be true or false"),
        ("strict", json!("very"), "\"strict\" must be true or false"),
    ] {
        node.refuses(&node.with(key, value), 7, &[says]);
    }
    // A time beyond all bounds is merely long.
    let mut conf = node.conf.clone();
    for key in ["addTimeoutSeconds", "delTimeoutSeconds", "readinessTimeoutSeconds"] {
        conf[key] = json!(u64::MAX);
    }
    node.world.pod("p", "x");
    node.attaches(&conf, &["ADD first eth0", "ADD net-x net1"]);
}

#[test]
fn an_unknown_key_is_named_and_refused_if_strict() {
    let node = Node::new();
    let mut conf = node.with("clusterNetwrok", json!("main"));
    conf["wholly-other"] = json!(1);
    let outcome = node.world.call("ADD", "c1", &node.netns, &conf).pod("p").run();
    assert_eq!(outcome.code, 0, "{outcome:#?}");
    for says in ["\"clusterNetwrok\" (did you mean \"clusterNetwork\"?)", "\"wholly-other\"", "ignored"] {
        let stderr = outcome.stderr.replace("\\\"", "\"");
        assert!(stderr.contains(says), "{stderr}");
    }
    node.recorder.take();
    node.world.call("DEL", "c1", &node.netns, &conf).pod("p").ok();
    node.recorder.take();
    for strict in [json!(true), json!("true")] {
        conf["strict"] = strict;
        node.refuses(
            &conf,
            7,
            &["unknown key", "\"clusterNetwrok\" (did you mean \"clusterNetwork\"?)", "\"wholly-other\""],
        );
    }
    // A key that another one puts out of force is not passed over in silence either.
    let two = node.with("delegates", json!([{"cniVersion": "1.0.0", "name": "one", "type": "net-y"}]));
    let outcome = node.world.call("ADD", "c1", &node.netns, &two).pod("p").run();
    assert!(outcome.code == 0 && outcome.stderr.contains("has no effect beside"), "{outcome:#?}");
    assert_eq!(node.recorder.take(), ["ADD first eth0"]);
    node.world.call("DEL", "c1", &node.netns, &two).pod("p").ok();
    node.recorder.take();
    // Every key that is known is known in any case, as Go's programs read them.
    let mut odd = node.with("STRICT", json!(true));
    odd["READINESSTIMEOUTSECONDS"] = odd["readinessTimeoutSeconds"].take();
    odd.as_object_mut().unwrap().remove("readinessTimeoutSeconds");
    node.attaches(&odd, &["ADD first eth0"]);
    // In a definition of the built-in plugin, too; in others' they are the plugin's business.
    node.world
        .definition("x", &json!({"cniVersion": "1.0.0", "type": "sriov", "deviceID": "0000:99:10.0", "vlann": 1}));
    node.world.definition("y", &json!({"cniVersion": "1.0.0", "type": "net-y", "vlann": 1}));
    node.world.pod("p", "x");
    let strict = node.with("strict", json!(true));
    let text = node.world.call("ADD", "c1", &node.netns, &strict).pod("p").fails(7);
    assert!(text.contains("default/x") && text.contains("\"vlann\" (did you mean \"vlan\"?)"), "{text}");
    node.world.pod("p", "y");
    node.attaches(&strict, &["ADD first eth0", "ADD net-y net1"]);
}
