//! What the node's configuration gives to pods beside what they ask for, and which primary a pod may choose; the names and
//! keys of Multus.

use std::fs;

use serde_json::{Value, json};

use super::requests::Node;

const NETWORKS: &str = "k8s.v1.cni.cncf.io/networks";
const DEFAULT_NETWORK: &str = "v1.multus-cni.io/default-network";

/// A definition in any namespace.
fn definition(node: &Node, namespace: &str, name: &str, resource: &str, config: &Value) {
    let annotations = json!({"k8s.v1.cni.cncf.io/resourceName": resource});
    let object = json!({
        "kind": "NetworkAttachmentDefinition",
        "metadata": {"name": name, "namespace": namespace, "annotations": annotations},
        "spec": {"config": config.to_string()}
    });
    node.world.manifest(&format!("{namespace}-{name}"), &object.to_string());
}

fn status_names(node: &Node) -> Vec<(String, String)> {
    let status = node.world.status("p").unwrap();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    status.as_array().unwrap().iter().map(|entry| (text(&entry["name"]), text(&entry["interface"]))).collect()
}

#[test]
fn default_networks_come_after_the_primary_and_before_the_pods_own() {
    let node = Node::new();
    fs::create_dir_all("/etc/cni/multus/net.d").unwrap();
    let file = json!({"cniVersion": "1.0.0", "name": "by-file", "type": "net-x"});
    fs::write("/etc/cni/multus/net.d/10-x.conf", file.to_string()).unwrap();
    definition(&node, "kube-system", "by-definition", "", &json!({"cniVersion": "1.0.0", "type": "net-y"}));
    let names = json!(["by-file", "by-definition", "/etc/cni/multus/net.d/10-x.conf"]);
    let conf = node.with("defaultNetworks", names);
    node.world.pod("p", "y@data0,x");
    let told = node.attaches(
        &conf,
        &["ADD first eth0", "ADD net-x net1", "ADD net-y net2", "ADD net-x net3", "ADD net-y data0", "ADD net-x net5"],
    );
    assert_eq!((&told[1]["conf"]["name"], &told[2]["conf"]["name"]), (&json!("by-file"), &json!("by-definition")));

    // A system namespace's pods get none; by default that is kube-system.
    let of_namespace = |namespace: &str, conf: &Value| {
        let args = format!("IgnoreUnknown=1;K8S_POD_NAMESPACE={namespace};K8S_POD_NAME=q");
        let call = |verb| node.world.call(verb, "c1", &node.netns, conf).env("CNI_ARGS", &args);
        call("ADD").ok();
        let added = node.recorder.take().len();
        call("DEL").ok();
        node.recorder.take();
        added
    };
    assert_eq!(of_namespace("kube-system", &conf), 1);
    assert_eq!(of_namespace("other", &conf), 4);
    let mut others = conf.clone();
    others["systemNamespaces"] = json!(["other"]);
    assert_eq!((of_namespace("kube-system", &others), of_namespace("other", &others)), (4, 1));
    // The namespace of the node's definitions can be another one.
    definition(&node, "nets", "elsewhere", "", &json!({"cniVersion": "1.0.0", "type": "net-y"}));
    others["multusNamespace"] = json!("nets");
    others["defaultNetworks"] = json!(["elsewhere", "kube-system/by-definition"]);
    node.world.pod("p", "");
    node.attaches(&others, &["ADD first eth0", "ADD net-y net1", "ADD net-y net2"]);

    let wrong = node.with("defaultNetworks", json!(["nowhere", "by-file", "nothing"]));
    let says = ["defaultNetworks \"nowhere\"", "no definition kube-system/nowhere", "defaultNetworks \"nothing\""];
    node.refuses(&wrong, 7, &says);
    definition(&node, "kube-system", "loop", "", &json!({"cniVersion": "1.0.0", "type": "multus"}));
    node.refuses(&node.with("defaultNetworks", json!(["loop"])), 7, &["call the meta plugin again"]);
}

#[test]
fn a_pod_chooses_its_primary_and_what_it_asks_for_is_given_to_it() {
    let node = Node::new();
    let wanting = json!({"cniVersion": "1.0.0", "type": "net-y", "capabilities": {"ips": true, "mac": true, "portMappings": true}});
    definition(&node, "kube-system", "other", "", &wanting);
    definition(&node, "default", "own", "", &wanting);
    let choose = |text: &str| node.world.annotated_pod("default", "p", &json!({DEFAULT_NETWORK: text, NETWORKS: "x"}));
    choose(r#"[{"name":"other","ips":["10.9.0.7/24"],"mac":"02:00:00:00:00:07"}]"#);
    let mut conf = node.with("runtimeConfig", json!({"portMappings": [{"hostPort": 80, "containerPort": 80}]}));
    let told = node.attaches(&conf, &["ADD net-y eth0", "ADD net-x net1"]);
    let expected = json!({"ips": ["10.9.0.7/24"], "mac": "02:00:00:00:00:07", "portMappings": [{"hostPort": 80, "containerPort": 80}]});
    assert_eq!(told[0]["conf"]["runtimeConfig"], expected, "Multus forgets it (multus#873)");
    assert!(told[0]["args"].as_str().unwrap().contains("IP=10.9.0.7/24;MAC=02:00:00:00:00:07"), "{told:#?}");
    assert_eq!(told[1]["conf"].get("runtimeConfig"), None, "what the runtime gives is the primary's alone");

    // Its name in the status, which is the default one.
    node.world.call("ADD", "c1", &node.netns, &conf).pod("p").ok();
    assert_eq!(
        status_names(&node),
        [("kube-system/other", "eth0"), ("default/x", "net1")].map(|(a, b)| (a.into(), b.into()))
    );
    assert_eq!(node.world.status("p").unwrap()[0]["default"], true);
    node.world.call("DEL", "c1", &node.netns, &conf).pod("p").ok();
    node.recorder.take();

    // Isolation holds for it, too: of the pod's namespace, the global ones, and where the administrator's are.
    conf["namespaceIsolation"] = json!(true);
    for (text, primary) in [("other", "ADD net-y eth0"), ("default/own", "ADD net-y eth0")] {
        choose(text);
        node.attaches(&conf, &[primary, "ADD net-x net1"]);
    }
    definition(&node, "private", "secret", "", &wanting);
    choose("private/secret");
    node.refuses(&conf, 7, &["private/secret: a pod may use definitions of its own namespace and of default only"]);
    // In vain for a network of the pod's own choice: kube-system is no global namespace.
    node.world.annotated_pod("default", "p", &json!({NETWORKS: "kube-system/other"}));
    node.refuses(&conf, 7, &["kube-system/other: a pod may use definitions"]);

    conf["namespaceIsolation"] = json!(false);
    for (text, says) in [
        ("other,default/own", "a pod has one default network, not several"),
        ("absent", "no definition kube-system/absent"),
        ("Other", "annotation v1.multus-cni.io/default-network: \"Other\": \"Other\" is no name of a definition"),
        (r#"[{"name":"other","interface":"eth5"}]"#, "cannot be interface eth5: the runtime asks for eth0"),
    ] {
        choose(text);
        node.refuses(&conf, 7, &[says]);
    }
}

#[test]
fn no_device_is_given_twice_whoever_names_the_network() {
    let node = Node::new();
    node.world.devices_given(&[("uid-p", "r/a", json!(["a1", "a2", "a3"])), ("uid-p", "r/b", json!(["b1"]))]);
    let config = |kind: &str| json!({"cniVersion": "1.0.0", "type": kind});
    definition(&node, "kube-system", "main", "r/a", &config("net-y"));
    definition(&node, "kube-system", "every", "r/a", &config("net-x"));
    definition(&node, "default", "own", "r/a", &config("net-x"));
    // The element's resource takes the place of its definition's (multus#1520).
    let networks = r#"[{"name":"own"},{"name":"own","resourceName":"r/b"}]"#;
    node.world.annotated_pod("default", "p", &json!({DEFAULT_NETWORK: "main", NETWORKS: networks}));
    let conf = node.with("defaultNetworks", json!(["every"]));
    let told = node.attaches(&conf, &["ADD net-y eth0", "ADD net-x net1", "ADD net-x net2", "ADD net-x net3"]);
    let devices: Vec<&str> = told.iter().map(|call| call["conf"]["deviceID"].as_str().unwrap()).collect();
    assert_eq!(devices, ["a1", "a2", "a3", "b1"]);
    node.world.annotated_pod("default", "p", &json!({DEFAULT_NETWORK: "main", NETWORKS: "own,own"}));
    node.refuses(
        &conf,
        7,
        &[
            "resource r/a: 4 device(s) wanted for kube-system/main, kube-system/every, default/own, default/own",
            "a1, a2, a3",
        ],
    );
}

#[test]
fn the_auxiliary_chain_comes_last_and_only_with_files() {
    let node = Node::new();
    let recorder = crate::harness::Recorder::install(&node.world.bin, &["passthru", "net-z"]);
    let conf = node.with("auxiliaryCNIChainName", json!("vendor"));
    node.world.pod("p", "x");
    node.attaches(&conf, &["ADD first eth0", "ADD net-x net1"]);
    let directory = "/etc/cni/primary/vendor";
    fs::create_dir_all(directory).unwrap();
    fs::write(format!("{directory}/20-z.conf"), r#"{"type":"net-z","deep":{"k":1.0}}"#).unwrap();
    fs::write(format!("{directory}/30-z.json"), r#"{"type":"absent"}"#).unwrap();
    node.world.call("ADD", "c1", &node.netns, &conf).pod("p").ok();
    let calls = recorder.calls();
    assert_eq!(recorder.take(), ["ADD first eth0", "ADD net-x net1", "ADD passthru net2", "ADD net-z net2"]);
    assert_eq!(
        (&calls[3].0["conf"]["name"], &calls[3].0["conf"]["prevResult"]),
        (&json!("vendor"), &json!({"cniVersion": "1.0.0"}))
    );
    node.world.call("DEL", "c1", &node.netns, &conf).pod("p").ok();
    assert_eq!(recorder.take(), ["DEL net-z net2", "DEL passthru net2", "DEL net-x net1", "DEL first eth0"]);
    node.world.assert_clean();
    // Our binary does for passthru, under that name.
    node.world.drop_in("passthru");
    node.world.call("ADD", "c1", &node.netns, &conf).pod("p").ok();
    let calls = recorder.calls();
    assert_eq!(recorder.take(), ["ADD first eth0", "ADD net-x net1", "ADD net-z net2"]);
    assert_eq!(calls[2].0["conf"]["prevResult"], json!({"cniVersion": "1.0.0"}));
    // Recording plugins make no interface, which the primary is to have; a chain that only changes things has none.
    crate::harness::ip_in(&node.netns, "link add eth0 type veth peer name other");
    node.world.call("CHECK", "c1", &node.netns, &conf).pod("p").ok();
    assert_eq!(recorder.take(), ["CHECK first eth0", "CHECK net-x net1", "CHECK net-z net2"]);
    node.world.call("DEL", "c1", &node.netns, &conf).pod("p").ok();
    recorder.take();
    node.world.assert_clean();

    node.refuses(
        &node.with("auxiliaryCNIChainName", json!("../primary")),
        7,
        &["\"auxiliaryCNIChainName\"", "invalid characters"],
    );
    let mut named = conf.clone();
    fs::create_dir_all("/etc/cni/multus/net.d").unwrap();
    fs::copy("/etc/cni/primary/10-primary.conflist", "/etc/cni/multus/net.d/10.conflist").unwrap();
    named["clusterNetwork"] = json!("main");
    node.refuses(&named, 7, &["\"auxiliaryCNIChainName\" needs a path"]);
}

/// A conf that Multus' thin or thick installer wrote works when its type, or just the program behind it, is ours.
#[test]
fn a_conf_of_multus_works_as_it_is() {
    let node = Node::new();
    node.world.pod("p", "x");
    let mut conf = node.conf.clone();
    for (key, value) in [
        ("type", json!("multus-shim")),
        ("logToStderr", json!(true)),
        ("logLevel", json!("verbose")),
        ("logOptions", json!({"maxAge": 5, "maxSize": 100, "maxBackups": 5, "compress": true})),
        ("capabilities", json!({"portMappings": true})),
        ("retryDeleteOnError", json!(true)),
        ("multusNamespace", json!("kube-system")),
        ("systemNamespaces", json!(["kube-system"])),
        ("daemonSocketDir", json!("/run/multus/socket")),
        ("chrootDir", json!("/hostroot")),
        ("multusConfigFile", json!("auto")),
        ("multusAutoconfigDir", json!("/host/etc/cni/net.d")),
        ("socketDir", json!("/host/run/multus/")),
        ("metricsPort", json!(9091)),
        ("connectionLimit", json!(1)),
        ("strict", json!(true)),
    ] {
        conf[key] = value;
    }
    for name in ["multus", "multus-shim"] {
        let program = node.world.drop_in(name);
        let call = |verb| node.world.call(verb, "c1", &node.netns, &conf).program(&program).pod("p");
        let outcome = call("ADD").run();
        assert_eq!(outcome.code, 0, "{outcome:#?}");
        let warned: Vec<&str> =
            outcome.stderr.lines().filter(|line| line.contains("WARN") && line.contains("daemon")).collect();
        assert_eq!(warned.len(), 1, "{outcome:#?}");
        let compressing = outcome.stderr.lines().filter(|line| line.contains("compress") && line.contains("no effect"));
        assert_eq!(compressing.count(), 1, "{outcome:#?}");
        for key in [
            "daemonSocketDir",
            "chrootDir",
            "multusConfigFile",
            "multusAutoconfigDir",
            "socketDir",
            "metricsPort",
            "connectionLimit",
        ] {
            assert!(warned[0].contains(key), "{key}: {}", warned[0]);
        }
        assert_eq!(node.recorder.take(), ["ADD first eth0", "ADD net-x net1"]);
        call("DEL").ok();
        assert_eq!(node.recorder.take(), ["DEL net-x net1", "DEL first eth0"]);
    }
    node.world.assert_clean();
}

#[test]
fn what_is_said_of_a_device_reaches_its_plugin_and_the_pod() {
    let node = Node::new();
    node.world.devices_given(&[("uid-p", "r/a", json!(["d1", "d2", "d3"]))]);
    let devices = "/run/k8s.cni.cncf.io/devinfo";
    fs::create_dir_all(format!("{devices}/dp")).unwrap();
    let info =
        |id: &str| json!({"type": "pci", "version": "1.1.0", "pci": {"pci-address": id, "rdma-device": "mlx5_2"}});
    for id in ["d1", "d2"] {
        fs::write(format!("{devices}/dp/r-a-{id}-device.json"), info(id).to_string()).unwrap();
    }
    let declaring = json!({"CNIDeviceInfoFile": true, "deviceID": true});
    definition(
        &node,
        "default",
        "own",
        "r/a",
        &json!({"cniVersion": "1.0.0", "type": "net-x", "capabilities": declaring}),
    );
    definition(&node, "default", "silent", "r/a", &json!({"cniVersion": "1.0.0", "type": "net-y"}));
    node.world.pod("p", "own,silent@data0,own");
    // The third device's plugin writes the file by itself.
    let writes = format!(
        r#"[ "$CNI_IFNAME" = net3 ] && printf '{{"type":"vdpa","version":"1.1.0"}}' > {devices}/cni/default-own-c1_net3"#
    );
    node.recorder.behave("net-x", "ADD", &format!("{writes}; true"));
    node.world.call("ADD", "c1", &node.netns, &node.conf).pod("p").ok();
    let calls = node.recorder.calls();
    let told = &calls[1].0["conf"]["runtimeConfig"];
    assert_eq!(
        *told,
        json!({"CNIDeviceInfoFile": "/var/run/k8s.cni.cncf.io/devinfo/cni/default-own-c1_net1", "deviceID": "d1"})
    );
    assert_eq!(calls[2].0["conf"].get("runtimeConfig"), None, "it does not declare the capability");
    let status = node.world.status("p").unwrap();
    let said: Vec<&Value> = status.as_array().unwrap().iter().map(|entry| &entry["device-info"]).collect();
    assert_eq!(said, [&Value::Null, &info("d1"), &info("d2"), &json!({"type": "vdpa", "version": "1.1.0"})]);
    let file = fs::metadata(format!("{devices}/cni/default-silent-c1_data0")).unwrap();
    assert_eq!(std::os::unix::fs::MetadataExt::mode(&file) & 0o7777, 0o444);
    node.world.call("DEL", "c1", &node.netns, &node.conf).pod("p").ok();
    assert_eq!(crate::harness::names(format!("{devices}/cni")), Vec::<String>::new());
    // An ADD that fails leaves none either.
    node.recorder.behave("net-y", "ADD", "exit 1");
    node.world.call("ADD", "c1", &node.netns, &node.conf).pod("p").fails(103);
    assert_eq!(crate::harness::names(format!("{devices}/cni")), Vec::<String>::new());
}

#[test]
fn status_asks_the_primarys_own_plugins_and_keeps_their_codes() {
    let node = Node::new();
    let list = |version: &str| json!({"cniVersion": version, "name": "main", "plugins": [{"type": "first"}, {"type": "net-x"}]});
    let status = || {
        let conf = node.with("cniVersion", json!("1.1.0"));
        node.world.call("STATUS", "", "", &conf)
    };
    node.world.primary(&list("1.0.0"));
    status().ok();
    assert_eq!(node.recorder.take(), Vec::<String>::new(), "1.0.0 has no STATUS");
    node.world.primary(&list("1.1.0"));
    status().ok();
    assert_eq!(node.recorder.take(), ["STATUS first ", "STATUS net-x "]);
    for code in [50, 51] {
        let says = format!(r#"echo '{{"cniVersion":"1.1.0","code":{code},"msg":"the uplink is down"}}'; exit 1"#);
        node.recorder.behave("net-x", "STATUS", &says);
        let text = status().fails(code);
        assert!(text.contains("the uplink is down"), "{text}");
    }
    // Anything else is "not ready", with what was said; so is a plugin that does not come to an end.
    node.recorder.behave("net-x", "STATUS", "echo broken >&2; exit 3");
    assert!(status().fails(50).contains("failed with exit code 3: broken"));
    node.recorder.behave("net-x", "STATUS", "sleep 60");
    assert!(status().fails(50).contains("did not end within the deadline"));
}

/// Names, order and devices of many networks are the same each time, whatever order kubelet says its devices in.
#[test]
fn sixteen_networks_and_one_of_them_four_times_are_the_same_in_twenty_runs() {
    let node = Node::new();
    for name in ["x", "y"] {
        definition(
            &node,
            "default",
            name,
            &format!("r/{name}"),
            &json!({"cniVersion": "1.0.0", "type": format!("net-{name}")}),
        );
    }
    let networks: Vec<&str> = (0..16).map(|at| if at % 4 == 0 { "y" } else { "x" }).collect();
    node.world.pod("p", &networks.join(","));
    let ids = |name: &str, count: usize| -> Vec<String> { (0..count).map(|at| format!("{name}{at:02}")).collect() };
    let mut expected = vec![("first".to_owned(), "eth0".to_owned(), Value::Null)];
    let (mut of_x, mut of_y) = (ids("x", 12).into_iter(), ids("y", 4).into_iter());
    for (at, network) in networks.iter().enumerate() {
        let id = if *network == "x" { of_x.next() } else { of_y.next() };
        expected.push((format!("net-{network}"), format!("net{}", at + 1), json!(id.unwrap())));
    }
    for run in 0..20 {
        let (mut of_x, mut of_y) = (ids("x", 12), ids("y", 4));
        of_x.rotate_left(run % 12);
        of_y.rotate_left(run % 4);
        node.world.devices_given(&[("uid-p", "r/x", json!(of_x)), ("uid-p", "r/y", json!(of_y))]);
        node.world.call("ADD", "c1", &node.netns, &node.conf).pod("p").ok();
        let text = |call: &Value, key: &str| call[key].as_str().unwrap().to_owned();
        let calls = node.recorder.calls();
        let found: Vec<_> = calls
            .iter()
            .map(|call| (text(&call.0, "plugin"), text(&call.0, "ifname"), call.0["conf"]["deviceID"].clone()))
            .collect();
        assert_eq!(found, expected, "run {run}");
        let names: Vec<String> = status_names(&node).into_iter().map(|(_, interface)| interface).collect();
        assert_eq!(names, expected.iter().map(|(_, interface, _)| interface.clone()).collect::<Vec<_>>());
        node.recorder.take();
        node.world.call("DEL", "c1", &node.netns, &node.conf).pod("p").ok();
        let undone = node.recorder.take();
        assert_eq!(undone.len(), 17);
        assert_eq!(undone.first().map(String::as_str), Some("DEL net-x net16"));
    }
    node.world.assert_clean();
}
