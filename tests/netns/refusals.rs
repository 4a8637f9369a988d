//! Bad input: what a pod, a definition or an administrator must not ask for is refused before anything is touched, with
//! the code of the table, and a text that names the network, what was found and what to do.

use std::fs;

use serde_json::{Value, json};

use crate::harness::{Interface, Recorder, World, ip_in};

const BOTH: [&str; 2] = ["x", "y"];

/// A node whose primary and secondary networks are recording plugins, with definitions "x" and "y".
struct Node {
    world: World,
    recorder: Recorder,
    netns: String,
    conf: Value,
}

impl Node {
    fn new() -> Self {
        let world = World::new();
        let recorder = Recorder::install(&world.bin, &["first", "net-x", "host-local"]);
        let primary = world.primary(&json!({"cniVersion": "1.0.0", "name": "main", "plugins": [{"type": "first"}]}));
        for name in BOTH {
            world.definition(name, &json!({"cniVersion": "1.0.0", "type": "net-x"}));
        }
        let netns = world.netns();
        let conf = world.conf(&primary);
        Self { world, recorder, netns, conf }
    }

    /// ADD of a pod that asks for networks fails with a code and texts; nothing was executed and nothing is left.
    fn refuses(&self, networks: &str, code: u64, says: &[&str]) {
        self.world.pod("p", networks);
        self.refuses_conf(&self.conf, code, says);
    }

    fn refuses_conf(&self, conf: &Value, code: u64, says: &[&str]) {
        let text = self.world.call("ADD", "c1", &self.netns, conf).pod("p").fails(code);
        for part in says {
            assert!(text.contains(part), "\"{text}\" does not say \"{part}\"");
        }
        self.nothing_happened(&text);
    }

    fn nothing_happened(&self, what: &str) {
        assert_eq!(self.recorder.take(), Vec::<String>::new(), "executed in spite of: {what}");
        assert!(self.world.status("p").is_none(), "a status was written: {what}");
        let links: Vec<Value> = serde_json::from_str(&ip_in(&self.netns, "-j link show")).unwrap();
        assert_eq!(links.len(), 1, "more than lo: {links:?}");
        self.world.assert_clean();
    }

    /// The pod is attached to these interfaces, and all is undone again.
    fn accepts(&self, conf: &Value, expected: &[&str]) {
        self.world.call("ADD", "c1", &self.netns, conf).pod("p").ok();
        assert_eq!(self.recorder.take(), expected);
        self.world.call("DEL", "c1", &self.netns, conf).pod("p").ok();
        self.recorder.take();
        self.world.assert_clean();
    }

    fn with(&self, key: &str, value: Value) -> Value {
        let mut conf = self.conf.clone();
        conf[key] = value;
        conf
    }
}

#[test]
fn an_annotation_that_is_wrong() {
    let node = Node::new();
    let annotation = "annotation k8s.v1.cni.cncf.io/networks";
    for text in
        [r#"[{"name":"x""#, r#"{"name":"x"}"#, r#"["x"]"#, r#"[{"name":7}]"#, r#"[{"name":"x","ips":"10.0.0.1"}]"#]
    {
        node.refuses(text, 6, &[annotation, "does not parse"]);
    }
    for (text, says) in [
        ("x,,y", "a comma too many"),
        ("x,", "a comma too many"),
        ("X", "\"X\" is no name of a definition"),
        ("a/b/x", "is no name of a definition"),
        ("../x", "is no name of a namespace"),
        ("x@", "interface name is empty"),
        ("x@sixteen-letters-", "interface name is too long"),
        ("x@a:b", "interface name contains / or :"),
        ("x@..", "interface name is . or .."),
        (r#"[{"namespace":"default"}]"#, "element 1 (no name)"),
        (r#"[{"name":"x"},{"name":"y","mac":"aa:bb"}]"#, "element 2 (y): \"mac\": \"aa:bb\" is no hardware address"),
        (r#"[{"name":"x","ips":["10.0.0.256"]}]"#, "\"10.0.0.256\" is neither an address"),
        (r#"[{"name":"x","default-route":["gateway"]}]"#, "not all are IP addresses"),
        (r#"[{"name":"x","default-route":["10.0.0.1","10.0.0.2"]}]"#, "more than one gateway of a family"),
        (r#"[{"name":"x","ips":["10.0.0.1"],"ipam-claim-reference":"c"}]"#, "exclude each other"),
    ] {
        node.refuses(text, 7, &[annotation, says]);
    }
    // All that is wrong is said at once.
    node.refuses("x@lo:0,Y,x/y/z", 7, &["\"x@lo:0\"", "\"Y\"", "\"x/y/z\""]);
}

#[test]
fn a_namespace_that_is_none() {
    let node = Node::new();
    node.world.pod("p", "x,y");
    fs::write("/run/test/plain", "").unwrap();
    for (path, says) in [
        ("/run/netns/nothing", "/run/netns/nothing is no network namespace"),
        ("fsdadfad", "fsdadfad"),
        ("/run/test/plain", "/run/test/plain is no network namespace"),
        ("/run/test", "/run/test is no network namespace"),
    ] {
        for verb in ["ADD", "CHECK"] {
            let text = node.world.call(verb, "c1", path, &node.conf).pod("p").fails(8);
            assert!(text.contains(says), "{verb}: {text}");
            node.nothing_happened(&text);
        }
        // There is nothing to be undone in it.
        node.world.call("DEL", "c1", path, &node.conf).pod("p").ok();
        node.recorder.take();
        node.world.assert_clean();
    }
}

#[test]
fn a_definition_that_does_not_exist() {
    let node = Node::new();
    node.refuses("x,missing,other/x", 7, &["no definition default/missing", "no definition other/x", "manifest"]);
    fs::write(node.world.manifests.join("zz-broken.yaml"), "kind: [").unwrap();
    node.refuses("missing", 6, &["zz-broken.yaml"]);
    let mut conf = node.conf.clone();
    conf.as_object_mut().unwrap().remove("manifestDir");
    conf["runtimeConfig"] = json!({"io.kubernetes.cri.pod-annotations": {"k8s.v1.cni.cncf.io/networks": "x"}});
    node.refuses_conf(&conf, 7, &["default/x", "neither \"kubeconfig\" nor \"manifestDir\""]);
}

#[test]
fn interface_names_that_collide() {
    let node = Node::new();
    node.refuses("x@eth0", 7, &["default/x as eth0: main has an interface of that name"]);
    node.refuses("x@lo", 7, &["default/x as lo: lo is the loopback interface"]);
    node.refuses("x@data0,y@data0", 7, &["default/y as data0: default/x has an interface of that name"]);
    // net2 is what the second network is called that does not choose.
    node.refuses("x@net2,y", 7, &["default/y as net2: default/x has an interface of that name"]);
    node.refuses("x@lo,y@eth0", 7, &["default/x as lo", "default/y as eth0"]);
    let both = r#"[{"name":"x","default-route":["10.0.0.1"]},{"name":"y","default-route":["10.0.0.2"]}]"#;
    node.refuses(both, 7, &["default/x as net1 and default/y as net2", "IPv4 default route"]);
    // A second call of the same runtime names its interface like a network of the first one.
    node.world.pod("p", "x");
    let text = node.world.call("ADD", "c1", &node.netns, &node.conf).pod("p").if_name("net1").fails(7);
    assert!(text.contains("default/x as net1: main has an interface of that name"), "{text}");
    node.nothing_happened(&text);
}

#[test]
fn a_definition_that_is_wrong() {
    let node = Node::new();
    fs::create_dir_all("/run/pools").unwrap();
    std::os::unix::fs::symlink("/etc", "/run/pools/link").unwrap();
    for (config, code, says) in [
        (json!({"cniVersion": "1.0.0"}), 7, "neither \"type\" nor \"plugins\""),
        (json!({"cniVersion": "1.0.0", "plugins": []}), 7, "\"plugins\" is empty"),
        (json!({"cniVersion": "1.0.0", "plugins": [{"mtu": 9000}]}), 7, "a plugin has no \"type\""),
        (json!({"cniVersion": "1.0.0", "plugins": {"type": "net-x"}}), 7, "\"plugins\" is not what it should be"),
        (json!({"cniVersion": "1.0.0", "type": 7}), 7, "\"type\" is not what it should be"),
        (json!({"cniVersion": "1.0.0", "type": "net-x", "name": "a/b"}), 7, "invalid characters found in network name"),
        (json!({"cniVersion": "1.2.0", "type": "net-x"}), 1, "incompatible CNI versions; config is \"1.2.0\""),
        (json!({"cniVersion": "1.0.0", "cniVersions": ["new"], "type": "net-x"}), 7, "\"new\" is no version"),
        (json!({"cniVersion": "1.0.0", "type": "net-x", "disableCheck": "maybe"}), 7, "must be true or false"),
        (json!({"cniVersion": "1.0.0", "type": "net-x", "capabilities": ["ips"]}), 7, "\"capabilities\""),
        (json!({"type": "../net-x"}), 7, "plugin type \"../net-x\" is a path"),
        (json!({"type": "/bin/sh"}), 7, "plugin type \"/bin/sh\" is a path"),
        (json!({"type": ".."}), 7, "is a path"),
        (json!({"type": "net-x", "ipam": {"type": "../../bin/sh"}}), 7, "IPAM type \"../../bin/sh\" is a path"),
        (json!({"type": "net-x", "ipam": {"type": "host-local", "dataDir": "/etc/cni"}}), 7, "/etc/cni is not below"),
        (json!({"type": "net-x", "ipam": {"dataDir": "/run/pools/link/x"}}), 7, "/run/pools/link/x is not below"),
        (json!({"type": "net-x", "ipam": {"dataDir": "/run/../etc"}}), 7, "/run/../etc is not below"),
        (json!({"type": "net-x", "ipam": {"dataDir": "pools"}}), 7, "pools is not below"),
    ] {
        node.world.definition("x", &config);
        node.refuses("y,x", code, &["default/x", says]);
    }
    node.world.definition("x", &json!({"cniVersion": "1.0.0", "type": "not-there"}));
    node.refuses(
        "y,x",
        7,
        &["default/x as net2", "failed to find plugin \"not-there\"", "/run/test/bin", "install it"],
    );
    // Text that is no JSON, nothing at all, and an `args` that the pod's arguments cannot be written into.
    for (config, networks, code, says) in [
        ("{", "x", 6, "spec.config of definition default/x does not parse"),
        ("macvlan", "x", 6, "spec.config of definition default/x does not parse"),
        ("", "x", 7, "no configuration named \"x\" in /etc/cni/multus/net.d"),
        (r#"{"type":"net-x","args":"a=b"}"#, r#"[{"name":"x","cni-args":{"a":1}}]"#, 7, "\"args\""),
    ] {
        let definition =
            json!({"kind": "NetworkAttachmentDefinition", "metadata": {"name": "x"}, "spec": {"config": config}});
        node.world.manifest("x", &definition.to_string());
        node.refuses(networks, code, &["default/x", says]);
    }
}

#[test]
fn a_configuration_that_leads_back_to_us() {
    let node = Node::new();
    for kind in ["meta-cni", "multus", "multus-shim"] {
        for config in [
            json!({"type": kind}),
            json!({"plugins": [{"type": "net-x"}, {"type": kind}]}),
            json!({"type": "net-x", "delegate": {"Type": kind}}),
            json!({"type": "net-x", "deep": [[{"delegates": [{"more": {"type": kind}}]}]]}),
        ] {
            node.world.definition("x", &config);
            node.refuses("y,x", 7, &["default/x", &format!("\"{kind}\" would call the meta plugin again")]);
            let mut list = config.clone();
            list["name"] = json!("main");
            list["cniVersion"] = json!("1.0.0");
            node.world.primary(&list);
            node.refuses("y", 7, &["the network main would call the meta plugin again", &format!("\"{kind}\"")]);
            let mut conf = node.with("delegates", json!([config]));
            conf.as_object_mut().unwrap().remove("clusterNetwork");
            node.refuses_conf(&conf, 7, &["would call the meta plugin again", kind]);
            node.world.primary(&json!({"cniVersion": "1.0.0", "name": "main", "type": "first"}));
        }
    }
    // Our own conf as its own primary: what comes of a clusterNetwork that names the runtime's directory.
    let own = node.world.primary(&node.conf);
    node.refuses_conf(&node.with("clusterNetwork", json!(own)), 7, &["would call the meta plugin again"]);
}

#[test]
fn a_plugin_that_is_us_under_another_name() {
    let node = Node::new();
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_meta-cni"), node.world.bin.join("disguised")).unwrap();
    // What the plugin gets is a complete conf of ours: only the mark in its environment tells.
    let mut disguised = node.conf.clone();
    disguised["type"] = json!("disguised");
    disguised["clusterNetwork"] = json!("/etc/cni/primary/20-inner.conflist");
    let inner = json!({"cniVersion": "1.0.0", "name": "inner", "plugins": [{"type": "first"}]});
    fs::write("/etc/cni/primary/20-inner.conflist", inner.to_string()).unwrap();
    node.world.definition("x", &disguised);
    node.world.pod("p", "y,x");
    let text = node.world.call("ADD", "c1", &node.netns, &node.conf).pod("p").fails(7);
    assert!(text.contains("default/x as net2: plugin disguised (ADD): meta-cni was called by a plugin"), "{text}");
    assert_eq!(node.recorder.take(), ["ADD first eth0", "ADD net-x net1", "DEL net-x net1", "DEL first eth0"]);
    node.nothing_happened(&text);
    for verb in ["ADD", "CHECK", "GC", "STATUS"] {
        let conf = node.with("cniVersion", json!("1.1.0"));
        let call = node.world.call(verb, "c1", &node.netns, &conf).env("META_CNI_CALLER", "1");
        let text = call.fails(7);
        assert!(text.contains("a configuration leads back to it"), "{text}");
        node.nothing_happened(&text);
    }
}

#[test]
fn flannel_twice_in_one_pod() {
    let node = Node::new();
    Recorder::install(&node.world.bin, &["flannel"]);
    node.world.definition("y", &json!({"cniVersion": "1.0.0", "type": "flannel"}));
    node.world.definition("x", &json!({"cniVersion": "1.0.0", "plugins": [{"type": "net-x"}, {"type": "flannel"}]}));
    let says = ["default/x as net2: default/y as net1 already runs the plugin flannel", "a pod can have it once"];
    node.refuses("y,x", 7, &says);
    let primary = json!({"cniVersion": "0.3.1", "name": "cbr0", "plugins": [{"type": "flannel"}]});
    node.world.primary(&primary);
    node.world.subnet_env("10.244.7.1/24");
    node.refuses("y", 7, &["default/y as net1: cbr0 as eth0 already runs the plugin flannel"]);
}

/// Kubelet's device manager gave these devices of "intel.com/vf" to the pod.
fn checkpoint(world: &World, devices: &[&str]) {
    let given = |uid, devices: &[&str]| (uid, "intel.com/vf", json!({"-1": devices}));
    world.devices_given(&[given("uid-p", devices), given("uid-other", &["0000:98:10.1"])]);
}

#[test]
fn devices_that_are_not_there() {
    let node = Node::new();
    for name in BOTH {
        let config = json!({"cniVersion": "0.4.0", "type": "sriov", "vlan": 100});
        node.world.definition_with_resource(name, "intel.com/vf", &config);
    }
    node.refuses("x", 11, &["kubelet_internal_checkpoint", "kubelet.sock", "is kubelet running?"]);
    checkpoint(&node.world, &[]);
    let none = ["resource intel.com/vf", "1 device(s) wanted for default/x", "gave the pod none", "pod's resources"];
    node.refuses("x", 7, &none);
    checkpoint(&node.world, &["0000:99:10.0"]);
    let few = ["2 device(s) wanted for default/x, default/y", "gave the pod 0000:99:10.0", "request as many"];
    node.refuses("x,y", 7, &few);
    node.refuses("x,x", 7, &["2 device(s) wanted for default/x, default/x"]);
    node.refuses("x", 100, &["default/x as net1", "0000:99:10.0"]);
    checkpoint(&node.world, &["mlx5_0"]);
    node.refuses("x", 7, &["default/x as net1", "mlx5_0"]);
    fs::write("/var/lib/kubelet/device-plugins/kubelet_internal_checkpoint", "torn {").unwrap();
    node.refuses("x", 6, &["kubelet_internal_checkpoint does not parse"]);

    node.world.definition_with_resource("y", "intel.com/unknown", &json!({"cniVersion": "0.4.0", "type": "sriov"}));
    checkpoint(&node.world, &["0000:99:10.0"]);
    node.refuses("y", 7, &["resource intel.com/unknown", "default/y", "none"]);
    node.world.definition("y", &json!({"cniVersion": "0.4.0", "type": "sriov"}));
    node.refuses("y", 7, &["default/y as net1", "VF pci addr is required", "k8s.v1.cni.cncf.io/resourceName"]);
    node.world.definition("y", &json!({"cniVersion": "0.4.0", "type": "sriov", "deviceID": "0000:99:10.7"}));
    node.refuses("y", 100, &["default/y as net1", "0000:99:10.7"]);
    node.refuses("x,y", 100, &["default/x as net1", "0000:99:10.0", "default/y as net2", "0000:99:10.7"]);
}

#[test]
fn a_definition_of_another_namespace() {
    let node = Node::new();
    let definition = json!({
        "kind": "NetworkAttachmentDefinition", "metadata": {"name": "x", "namespace": "other"},
        "spec": {"config": r#"{"cniVersion":"1.0.0","type":"net-x"}"#}
    });
    node.world.manifest("other-x", &definition.to_string());
    node.world.pod("p", "other/x");
    node.accepts(&node.conf, &["ADD first eth0", "ADD net-x net1"]);
    for isolation in [json!(true), json!("true")] {
        let mut conf = node.with("namespaceIsolation", isolation);
        node.refuses_conf(&conf, 7, &["other/x", "its own namespace and of default only", "namespaceIsolation"]);
        conf["globalNamespaces"] = json!("third, other");
        node.accepts(&conf, &["ADD first eth0", "ADD net-x net1"]);
    }
    // Its own namespace needs no permission.
    let args = "K8S_POD_NAMESPACE=other;K8S_POD_NAME=q";
    let pod = json!({"kind": "Pod", "metadata": {"name": "q", "namespace": "other",
                     "annotations": {"k8s.v1.cni.cncf.io/networks": "x"}}});
    node.world.manifest("pod-q", &pod.to_string());
    let conf = node.with("namespaceIsolation", json!(true));
    node.world.call("ADD", "c1", &node.netns, &conf).env("CNI_ARGS", args).ok();
    assert_eq!(node.recorder.take(), ["ADD first eth0", "ADD net-x net1"]);
}

#[test]
fn an_exhausted_range_undoes_the_primary() {
    let world = World::new();
    let conf = world.conf(&world.bridge_primary());
    world.plugins("reference", &["macvlan"]);
    crate::harness::ip("link add uplink type veth peer name wire");
    world.definition(
        "one",
        &json!({"cniVersion": "1.0.0", "type": "macvlan", "master": "uplink", "ipam": {"type": "host-local",
                "ranges": [[{"subnet": "10.10.1.0/24", "rangeStart": "10.10.1.7", "rangeEnd": "10.10.1.7"}]]}}),
    );
    let (first, second) = (world.netns(), world.netns());
    world.pod("p1", "one");
    world.pod("p2", "one");
    world.call("ADD", "c1", &first, &conf).pod("p1").ok();
    let text = world.call("ADD", "c2", &second, &conf).pod("p2").fails(103);
    assert!(text.contains("default/one as net1: plugin macvlan (ADD): ") && text.contains("no IP addresses"), "{text}");
    assert_eq!(world.leases("podnet").len(), 1, "the address of the primary was given back");
    assert_eq!(world.records("c2"), Vec::<String>::new());
    for name in ["eth0", "net1"] {
        assert!(Interface::find(&second, name).is_none(), "{name}");
        assert!(Interface::find(&first, name).is_some(), "{name} of the other pod");
    }
    world.call("DEL", "c1", &first, &conf).pod("p1").ok();
    world.call("ADD", "c2", &second, &conf).pod("p2").ok();
    world.call("DEL", "c2", &second, &conf).pod("p2").ok();
    world.assert_clean();
}
