//! What is understood: the forms in which a pod, a definition and an administrator may say what they want.

use std::fs;

use serde_json::{Value, json};

use crate::harness::{Recorder, World, ip_in};

/// A node whose primary and secondary networks are recording plugins, with definitions "x" and "y" of "net-x" and "net-y".
pub(super) struct Node {
    pub(super) world: World,
    pub(super) recorder: Recorder,
    pub(super) netns: String,
    pub(super) conf: Value,
}

impl Node {
    pub(super) fn new() -> Self {
        let world = World::new();
        let recorder = Recorder::install(&world.bin, &["first", "net-x", "net-y", "sriov"]);
        let primary = world.primary(&json!({"cniVersion": "1.0.0", "name": "main", "plugins": [{"type": "first"}]}));
        for name in ["x", "y"] {
            world.definition(name, &json!({"cniVersion": "1.0.0", "type": format!("net-{name}")}));
        }
        let netns = world.netns();
        let conf = world.conf(&primary);
        Self { world, recorder, netns, conf }
    }

    pub(super) fn with(&self, key: &str, value: Value) -> Value {
        let mut conf = self.conf.clone();
        conf[key] = value;
        conf
    }

    pub(super) fn without_cluster_network(&self) -> Value {
        let mut conf = self.conf.clone();
        conf.as_object_mut().unwrap().remove("clusterNetwork");
        conf
    }

    /// ADD of the pod executes these plugins; DEL the same ones in reverse. Gives what the plugins were told by ADD.
    pub(super) fn attaches(&self, conf: &Value, expected: &[&str]) -> Vec<Value> {
        self.world.call("ADD", "c1", &self.netns, conf).pod("p").ok();
        let told = self.recorder.calls().into_iter().map(|call| call.0).collect();
        assert_eq!(self.recorder.take(), expected);
        self.world.call("DEL", "c1", &self.netns, conf).pod("p").ok();
        let undone: Vec<String> = expected.iter().rev().map(|call| call.replacen("ADD", "DEL", 1)).collect();
        assert_eq!(self.recorder.take(), undone);
        self.world.assert_clean();
        told
    }

    /// ADD fails with a code and texts; nothing was executed, the sandbox is as before, and nothing is left.
    pub(super) fn refuses(&self, conf: &Value, code: u64, says: &[&str]) {
        let sandbox = || ip_in(&self.netns, "-j addr show");
        let before = sandbox();
        let text = self.world.call("ADD", "c1", &self.netns, conf).pod("p").fails(code);
        for part in says {
            assert!(text.contains(part), "\"{text}\" does not say \"{part}\"");
        }
        assert_eq!(self.recorder.take(), Vec::<String>::new());
        assert_eq!(sandbox(), before);
        assert!(self.world.status("p").is_none(), "a status was written: {text}");
        self.world.assert_clean();
    }
}

#[test]
fn every_form_of_the_annotation() {
    let node = Node::new();
    for (networks, expected) in [
        ("", vec![]),
        ("  ", vec![]),
        ("[]", vec![]),
        ("x", vec!["ADD net-x net1"]),
        (" x , y ", vec!["ADD net-x net1", "ADD net-y net2"]),
        ("default/y@data0,x", vec!["ADD net-y data0", "ADD net-x net2"]),
        ("x,x", vec!["ADD net-x net1", "ADD net-x net2"]),
        ("x@b,x@a,x", vec!["ADD net-x b", "ADD net-x a", "ADD net-x net3"]),
        (r#"[{"name":"y"},{"name":"x","namespace":"default"}]"#, vec!["ADD net-y net1", "ADD net-x net2"]),
        (
            r#"[{"name":"x","interface":"data0"},{"name":"y","interfaceRequest":"data1"}]"#,
            vec!["ADD net-x data0", "ADD net-y data1"],
        ),
        (
            r#"[{"name":"x","interface":""},{"name":"y","unknown":{"a":1},"ips":null}]"#,
            vec!["ADD net-x net1", "ADD net-y net2"],
        ),
    ] {
        node.world.pod("p", networks);
        node.attaches(&node.conf, &[&["ADD first eth0"][..], &expected].concat());
    }
}

#[test]
fn what_an_element_asks_for_reaches_the_plugins_that_can_serve_it() {
    let node = Node::new();
    let capabilities = json!({"ips": true, "mac": true, "portMappings": true, "bandwidth": true, "infinibandGUID": true,
                              "deviceID": true});
    node.world.definition(
        "x",
        &json!({"cniVersion": "1.0.0", "type": "net-x", "capabilities": capabilities, "args": {"cni": {"kept": 1, "a": 0}},
                "runtimeConfig": {"mac": "00:00:00:00:00:00"}}),
    );
    let element = json!({
        "name": "x", "ips": ["10.1.0.7/24", "fd00::7"], "mac": "02:00:00:00:00:07", "deviceID": "dev-7",
        "infiniband-guid": "c2:11:22:33:44:55:66:77", "portMappings": [{"hostPort": 8080, "containerPort": 80}],
        "bandwidth": {"ingressRate": 1000}, "cni-args": {"a": {"b": [1, 2]}}
    });
    node.world.pod("p", &json!([element, {"name": "y", "ips": ["10.1.0.8", "fd00::8"]}]).to_string());
    // A device of its own choice takes an administrator's leave.
    node.refuses(&node.conf, 7, &["default/x: \"deviceID\": a pod may not choose a device", "\"allowDeviceID\": true"]);
    let conf = node.with("allowDeviceID", json!(true));
    let told = node.attaches(&conf, &["ADD first eth0", "ADD net-x net1", "ADD net-y net2"]);
    assert_eq!(
        told[1]["conf"]["runtimeConfig"],
        json!({
            "ips": ["10.1.0.7/24", "fd00::7"], "mac": "02:00:00:00:00:07", "deviceID": "dev-7",
            "infinibandGUID": "c2:11:22:33:44:55:66:77", "portMappings": [{"hostPort": 8080, "containerPort": 80}],
            "bandwidth": {"ingressRate": 1000}
        })
    );
    assert_eq!(told[1]["conf"]["args"], json!({"cni": {"kept": 1, "a": {"b": [1, 2]}}}));
    let args: Vec<&str> = told[1]["args"].as_str().unwrap().split(';').collect();
    for pair in ["MAC=02:00:00:00:00:07", "K8S_POD_NAME=p", "K8S_POD_UID=uid-p"] {
        assert_eq!(args.iter().filter(|found| **found == pair).count(), 1, "{args:?}");
    }
    assert_eq!(told[2]["conf"].get("runtimeConfig"), None, "it declares nothing");
    assert!(told[2]["args"].as_str().unwrap().contains("IP=10.1.0.8,fd00::8"));
    assert!(
        !told[1]["args"].as_str().unwrap().contains("IP="),
        "more than one, which most plugins refuse, and it is told"
    );
    assert!(!told[0]["args"].as_str().unwrap().contains("IP="), "the primary is asked for nothing");
    // What nobody declares to serve has no effect, and is refused where the administrator wants it so.
    let mut strict = conf.clone();
    strict["capabilityCheck"] = json!("strict");
    node.refuses(&strict, 7, &["default/y: the pod asks for ips, which no plugin of the network (net-y) declares"]);
    node.world.pod("p", r#"[{"name":"y","bandwidth":{"ingressRate":1000}}]"#);
    node.refuses(&strict, 7, &["default/y: the pod asks for bandwidth"]);
    strict["capabilityCheck"] = json!("compat");
    node.attaches(&strict, &["ADD first eth0", "ADD net-y net1"]);
    // On a VF it could not have any.
    node.world.definition("x", &json!({"cniVersion": "1.0.0", "plugins": [{"type": "sriov", "deviceID": "0000:99:10.0"}, {"type": "bandwidth"}]}));
    crate::harness::Recorder::install(&node.world.bin, &["bandwidth"]);
    node.world.pod("p", "x");
    node.refuses(&node.conf, 7, &["plugin bandwidth shapes traffic in the host", "\"max_tx_rate\""]);
}

#[test]
fn every_form_of_a_definition() {
    let node = Node::new();
    fs::create_dir_all("/etc/cni/multus/net.d").unwrap();
    let in_conf_dir = json!({"cniVersion": "1.0.0", "name": "x", "plugins": [{"type": "net-y"}, {"type": "net-x"}]});
    fs::write("/etc/cni/multus/net.d/30-x.conflist", in_conf_dir.to_string()).unwrap();
    fs::write("/etc/cni/multus/net.d/10-broken.conflist", "{").unwrap();
    node.world.pod("p", "x");
    let raw = |spec: Value| {
        let definition = json!({"kind": "NetworkAttachmentDefinition", "metadata": {"name": "x"}, "spec": spec});
        node.world.manifest("x", &definition.to_string());
    };
    for (config, name, version, expected) in [
        // As in older howtos: no name, no version.
        (r#"{"type":"net-x"}"#, "x", "0.1.0", vec!["ADD net-x net1"]),
        (r#"{"cniVersion":"0.4.0","type":"net-x","vlan":100}"#, "x", "0.4.0", vec!["ADD net-x net1"]),
        (r#"{"CniVersion":"0.4.0","Type":"net-x","NAME":"own"}"#, "own", "0.4.0", vec!["ADD net-x net1"]),
        (
            r#"{"cniVersion":"1.1.0","plugins":[{"type":"net-x"},{"type":"net-y"}]}"#,
            "x",
            "1.1.0",
            vec!["ADD net-x net1", "ADD net-y net1"],
        ),
        (
            r#"{"cniVersions":["0.4.0","1.0.0"],"name":"n","plugins":[{"type":"net-x"}]}"#,
            "n",
            "1.0.0",
            vec!["ADD net-x net1"],
        ),
        // Nothing: the configuration of that name on the node.
        ("", "x", "1.0.0", vec!["ADD net-y net1", "ADD net-x net1"]),
    ] {
        raw(json!({"config": config}));
        if version == "0.1.0" {
            node.recorder.behave("net-x", "ADD", r#"echo '{"ip4":{"ip":"10.1.0.5/24"}}'; exit 0"#);
        }
        let told = node.attaches(&node.conf, &[&["ADD first eth0"][..], &expected].concat());
        if version == "0.1.0" {
            node.recorder.relax("net-x", "ADD");
        }
        for call in &told[1..] {
            assert_eq!(
                (&call["conf"]["name"], &call["conf"]["cniVersion"]),
                (&json!(name), &json!(version)),
                "{config}"
            );
        }
    }
    raw(Value::Null);
    node.attaches(&node.conf, &["ADD first eth0", "ADD net-y net1", "ADD net-x net1"]);
}

#[test]
fn annotations_that_the_runtime_hands_over_are_taken_as_they_are() {
    let node = Node::new();
    node.world.pod("p", "y");
    let key = "io.kubernetes.cri.pod-annotations";
    let networks = |networks: &str| json!({"k8s.v1.cni.cncf.io/networks": networks, "other": "annotation"});
    for (handed, expected) in [
        (Some(networks("x")), vec!["ADD net-x net1"]),
        (Some(json!({})), vec![]),
        (Some(json!({"other": "annotation"})), vec![]),
        // Not handed over: the pod is asked for.
        (Some(Value::Null), vec!["ADD net-y net1"]),
        (None, vec!["ADD net-y net1"]),
    ] {
        let mut conf = node.with("capabilities", json!({key: true, "portMappings": true}));
        conf["runtimeConfig"] = json!({"portMappings": []});
        if let Some(handed) = handed {
            conf["runtimeConfig"][key] = handed;
        }
        node.attaches(&conf, &[&["ADD first eth0"][..], &expected].concat());
    }
    let mut conf = node.conf.clone();
    conf["runtimeConfig"] = json!({key: "x"});
    let text = node.world.call("ADD", "c1", &node.netns, &conf).pod("p").fails(7);
    assert!(text.contains(key), "{text}");
    conf["runtimeConfig"] = json!(["x"]);
    let text = node.world.call("ADD", "c1", &node.netns, &conf).pod("p").fails(7);
    assert!(text.contains("\"runtimeConfig\" is not what it should be"), "{text}");
    // A pod that no runtime names asks for nothing.
    node.world.call("ADD", "c1", &node.netns, &node.conf).ok();
    assert_eq!(node.recorder.take(), ["ADD first eth0"]);
    node.world.call("DEL", "c1", &node.netns, &node.conf).ok();
    node.world.assert_clean();
}

#[test]
fn every_form_of_the_primary() {
    let node = Node::new();
    node.world.pod("p", "x");
    fs::create_dir_all("/etc/cni/multus/net.d").unwrap();
    let single = json!({"cniVersion": "0.3.1", "name": "single", "type": "net-y"});
    fs::write("/etc/cni/multus/net.d/10-single.conf", single.to_string()).unwrap();
    node.world.manifest(
        "primary",
        &json!({
            "kind": "NetworkAttachmentDefinition", "metadata": {"name": "nad", "namespace": "kube-system"},
            "spec": {"config": r#"{"cniVersion":"1.0.0","type":"net-y"}"#}
        })
        .to_string(),
    );
    for name in ["single", "/etc/cni/multus/net.d/10-single.conf", "nad", "kube-system/nad"] {
        node.attaches(&node.with("clusterNetwork", json!(name)), &["ADD net-y eth0", "ADD net-x net1"]);
    }
    // A directory: its first configuration by name that does not lead back to us.
    fs::write("/etc/cni/multus/net.d/00-ours.conf", node.conf.to_string()).unwrap();
    fs::write("/etc/cni/multus/net.d/05-note.txt", "first by name").unwrap();
    let directory = node.with("clusterNetwork", json!("/etc/cni/multus/net.d"));
    node.attaches(&directory, &["ADD net-y eth0", "ADD net-x net1"]);
    fs::remove_file("/etc/cni/multus/net.d/00-ours.conf").unwrap();
    // `delegates`: the first is the primary, the others are every pod's, and the pod's own come after them.
    let mut conf = node.without_cluster_network();
    conf["delegates"] = json!([
        {"cniVersion": "1.0.0", "name": "one", "type": "first"},
        {"cniVersion": "1.0.0", "plugins": [{"type": "net-y"}, {"type": "first"}]}
    ]);
    let told = node.attaches(&conf, &["ADD first eth0", "ADD net-y net1", "ADD first net1", "ADD net-x net2"]);
    assert_eq!(told[0]["conf"]["name"], "one");
    conf["delegates"][1]["type"] = json!("../first");
    conf["delegates"][1].as_object_mut().unwrap().remove("plugins");
    let text = node.world.call("ADD", "c1", &node.netns, &conf).pod("p").fails(7);
    assert!(text.contains("delegates[1]: plugin type \"../first\" is a path"), "{text}");

    for (primary, code, says) in [
        ("/etc/cni/primary/missing.conflist", 11, "/etc/cni/primary/missing.conflist"),
        ("nowhere", 7, "no definition kube-system/nowhere"),
    ] {
        let text = node.world.call("ADD", "c1", &node.netns, &node.with("clusterNetwork", json!(primary))).fails(code);
        assert!(text.contains(says), "{text}");
    }
    fs::write("/etc/cni/primary/broken.conflist", "{\"name\":").unwrap();
    fs::write("/etc/cni/primary/missing-plugin.conf", r#"{"cniVersion":"1.0.0","name":"m","type":"absent"}"#).unwrap();
    for (file, code, says) in [
        ("broken.conflist", 6, "broken.conflist does not parse"),
        ("missing-plugin.conf", 7, "failed to find plugin \"absent\""),
    ] {
        let conf = node.with("clusterNetwork", json!(format!("/etc/cni/primary/{file}")));
        let text = node.world.call("ADD", "c1", &node.netns, &conf).pod("p").fails(code);
        assert!(text.contains(says), "{text}");
    }
    assert_eq!(node.recorder.take(), Vec::<String>::new());
    node.world.assert_clean();
}

#[test]
fn devices_go_to_networks_in_order_and_none_twice() {
    let node = Node::new();
    node.world.devices_given(&[
        ("uid-p", "intel.com/vf", json!({"1": ["d3"], "0": ["d2", "d1"]})),
        ("uid-other", "intel.com/vf", json!(["d0"])),
    ]);
    let plugin = json!({"cniVersion": "0.4.0", "type": "sriov", "vlan": 100, "deviceID": "from the definition"});
    let chained = json!({"type": "net-x", "vlan": 100, "args": {"cni": {"kept": 1, "a": 0}}});
    let list = json!({"cniVersion": "0.4.0", "plugins": [plugin, chained]});
    node.world.definition_with_resource("y", "intel.com/vf", &plugin);
    node.world.definition_with_resource("x", "intel.com/vf", &list);
    node.world.pod("p", r#"[{"name":"y"},{"name":"x","cni-args":{"a":2}},{"name":"y"}]"#);
    // `sriov` is executed here: IDs are opaque to us then.
    let conf = node.with("builtins", json!(["host-local", "static"]));
    let calls = ["ADD first eth0", "ADD sriov net1", "ADD sriov net2", "ADD net-x net2", "ADD sriov net3"];
    let told = node.attaches(&conf, &calls);
    assert_eq!(told[2]["conf"]["args"], json!({"cni": {"a": 2}}), "every plugin of the list has the pod's arguments");
    assert_eq!(told[3]["conf"]["args"], json!({"cni": {"kept": 1, "a": 2}}), "beside its own");
    // And its device, by both names.
    for (call, id) in told[1..].iter().zip(["d1", "d2", "d2", "d3"]) {
        assert_eq!((&call["conf"]["deviceID"], &call["conf"]["pciBusID"]), (&json!(id), &json!(id)));
        assert_eq!(call["conf"]["vlan"], 100);
    }
}
