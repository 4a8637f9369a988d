//! Our binary under the name `sriov`: sriov-cni's own configurations, by libcni's tool, by a runtime's call and by our
//! meta plugin that executes it. What comes out is what the built-in attachment gives.

use std::{
    fs,
    process::{Command, Output},
};

use serde_json::{Value, json};

use crate::{
    harness::{Call, Interface, Recorder, beds, names},
    node::{Node, Vf, eventually},
};

const MAC: &str = "02:00:00:00:00:71";
/// Where the drop-in keeps its records.
const RECORDS: &str = "/var/lib/cni/meta-cni/faces/sriov/sandboxes";

/// A node on which `sriov` is a link to our binary.
pub(crate) fn node() -> Node {
    let node = Node::new();
    node.world.drop_in("sriov");
    node
}

/// sriov-cni's smallest configuration, with a VF.
pub(crate) fn conf(vf: &Vf) -> Value {
    json!({"cniVersion": "1.0.0", "name": "sriov-net", "type": "sriov", "deviceID": vf.pci})
}

/// With more keys.
pub(crate) fn with(mut conf: Value, more: Value) -> Value {
    let Value::Object(more) = more else { panic!("an object") };
    conf.as_object_mut().unwrap().extend(more);
    conf
}

/// A call as Multus makes it.
pub(crate) fn call(node: &Node, verb: &str, container: &str, netns: &str, conf: &Value) -> Call {
    let call = node.world.call(verb, container, netns, conf).program(&node.world.bin.join("sriov"));
    call.pod(container).if_name("net1")
}

/// libcni's tool.
fn cnitool(node: &Node, verb: &str, netns: &str, conf: &Value, env: &[(&str, &str)]) -> Output {
    let directory = "/etc/cni/drop-in";
    fs::create_dir_all(directory).unwrap();
    let mut plugin = conf.clone();
    let (name, version) = (plugin["name"].take(), plugin["cniVersion"].take());
    plugin.as_object_mut().unwrap().retain(|_, value| !value.is_null());
    let list = json!({"cniVersion": version, "name": name, "plugins": [plugin]});
    fs::write(format!("{directory}/10-net.conflist"), list.to_string()).unwrap();
    Command::new(beds().join("plugins/cnitool"))
        .args([verb, name.as_str().unwrap(), netns])
        .envs([("NETCONFPATH", directory), ("CNI_IFNAME", "net1"), ("CNI_PATH", node.world.bin.to_str().unwrap())])
        .envs(env.iter().copied())
        .output()
        .expect("cnitool")
}

#[track_caller]
fn cnitool_ok(node: &Node, verb: &str, netns: &str, conf: &Value, env: &[(&str, &str)]) -> Value {
    let output = cnitool(node, verb, netns, conf, env);
    assert!(output.status.success(), "{verb} of {conf}: {output:?}");
    serde_json::from_slice(&output.stdout).unwrap_or(Value::Null)
}

/// The PF's row and the interface in the pod, but for what differs between two pods of one VF.
fn seen(vf: &Vf, netns: &str) -> (Value, Value, Vec<String>) {
    let found = Interface::find(netns, "net1").expect("net1");
    let mut link = found.link.clone();
    for key in ["ifindex", "addr_info", "operstate", "flags"] {
        link.as_object_mut().unwrap().remove(key);
    }
    (vf.row(), link, found.addresses())
}

#[test]
fn documented_configurations_give_what_the_built_in_attachment_gives() {
    let node = node();
    let vf = &node.b[1];
    let ipam = json!({"type": "host-local", "subnet": "10.56.217.0/24", "rangeStart": "10.56.217.171",
                      "rangeEnd": "10.56.217.181", "routes": [{"dst": "10.57.0.0/16"}], "gateway": "10.56.217.1"});
    let fixed = json!({"type": "static", "addresses": [{"address": "10.14.0.5/24"}, {"address": "fd00:14::5/64"}]});
    for more in [
        json!({}),
        json!({"ipam": {}}),
        json!({"vlan": 1000, "ipam": ipam}),
        json!({"vlan": 0, "vlanQoS": 0, "vlanProto": "802.1q", "ipam": fixed, "cniVersion": "0.3.1"}),
        json!({"vlan": 4094, "vlanQoS": 7, "vlanProto": "802.1Q", "mac": "02:00:00:00:00:7A", "spoofchk": "off",
               "trust": "on", "max_tx_rate": 300, "link_state": "", "cniVersion": "1.1.0",
               "logLevel": "debug", "logFile": "/run/test/sriov.log", "ipam": ipam}),
    ] {
        let definition = with(json!({"cniVersion": "1.0.0", "name": "sriov-net", "type": "sriov"}), more.clone());
        node.network("sriov-net", "bed.test/vf", &definition);
        let pod = node.pod("p", "sriov-net", &[("bed.test/vf", vf)]);
        node.add("p", &pod);
        let built_in = seen(vf, &pod);
        node.del("p", &pod);
        let pool = |name: &str| fs::remove_dir_all(format!("/var/lib/cni/networks/{name}"));
        let _ = pool("sriov-net");

        let conf = with(definition, json!({"deviceID": vf.pci}));
        let netns = node.world.netns();
        let result = cnitool_ok(&node, "add", &netns, &conf, &[]);
        assert_eq!(seen(vf, &netns), built_in, "{more}");
        let interfaces = result["interfaces"].as_array().expect("interfaces");
        assert_eq!(interfaces.len(), 1, "{result:#}");
        let interface = &interfaces[0];
        let found = Interface::find(&netns, "net1").unwrap();
        assert_eq!((&interface["name"], &interface["sandbox"]), (&json!("net1"), &json!(netns)), "{result:#}");
        assert_eq!(interface["mac"], found.mac(), "{result:#}");
        if conf["cniVersion"] != "0.3.1" {
            assert_eq!(interface["mtu"], found.mtu(), "{result:#}");
        }
        let ips: Vec<&Value> = result["ips"].as_array().into_iter().flatten().map(|ip| &ip["address"]).collect();
        assert_eq!(json!(ips), json!(found.addresses()), "{result:#}");
        assert_eq!(fs::read_to_string(format!("/var/lib/cni/sriov/pci/{}", vf.pci)).unwrap(), netns);
        if conf["cniVersion"] != "0.3.1" {
            cnitool_ok(&node, "check", &netns, &conf, &[]);
        }
        cnitool_ok(&node, "del", &netns, &conf, &[]);
        assert!(Interface::find(&netns, "net1").is_none());
        node.assert_as_before();
        cnitool_ok(&node, "del", &netns, &conf, &[]);
        node.assert_as_before();
    }
    assert!(fs::metadata("/run/test/sriov.log").is_ok(), "the log file that was asked for");
}

#[test]
fn every_version_of_the_protocol_has_its_form() {
    let node = node();
    let vf = &node.a[3];
    let netns = node.world.netns();
    for version in ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        let mut conf = with(conf(vf), json!({"cniVersion": version, "vlan": 9}));
        if version < "0.3.0" {
            // A result without an address cannot be said: the VF is back.
            call(&node, "ADD", "c", &netns, &conf).fails(7);
            node.assert_as_before();
        }
        conf["ipam"] = json!({"type": "static", "addresses": [{"address": "10.14.0.5/24", "gateway": "10.14.0.1"}]});
        // The result so far is none of ours: sriov-cni starts a chain.
        conf["prevResult"] =
            json!({"cniVersion": version, "ip4": {"ip": "192.0.2.1/24"}, "interfaces": [{"name": "x"}]});
        let result = call(&node, "ADD", "c", &netns, &conf).ok();
        conf.as_object_mut().unwrap().remove("prevResult");
        let mac = &vf.mac;
        let expected = match version {
            "0.1.0" | "0.2.0" => {
                json!({"cniVersion": version, "dns": {}, "ip4": {"ip": "10.14.0.5/24", "gateway": "10.14.0.1"}})
            }
            "0.3.0" | "0.3.1" | "0.4.0" => json!({
                "cniVersion": version, "dns": {}, "interfaces": [{"name": "net1", "mac": mac, "sandbox": netns}],
                "ips": [{"version": "4", "interface": 0, "address": "10.14.0.5/24", "gateway": "10.14.0.1"}]
            }),
            _ => json!({
                "cniVersion": version,
                "interfaces": [{"name": "net1", "mac": mac, "mtu": 1500, "sandbox": netns, "pciID": vf.pci}],
                "ips": [{"interface": 0, "address": "10.14.0.5/24", "gateway": "10.14.0.1"}]
            }),
        };
        assert_eq!(result, expected, "{version}");
        if version >= "0.4.0" {
            call(&node, "CHECK", "c", &netns, &with(conf.clone(), json!({"prevResult": result}))).ok();
        }
        call(&node, "DEL", "c", &netns, &conf).ok();
        node.assert_as_before();
    }
}

#[test]
fn a_mac_of_the_runtime_beats_one_of_the_arguments_and_that_the_configurations() {
    let node = node();
    let vf = &node.a[2];
    let mut conf = with(conf(vf), json!({"mac": "02:00:00:00:00:01"}));
    let argument = ("CNI_ARGS", "IgnoreUnknown=1;MAC=02:00:00:00:00:02");
    let capability = ("CAP_ARGS", r#"{"mac": "02:00:00:00:00:03", "deviceID": "0000:7f:00.0"}"#);
    for (env, declared, expected) in [
        (vec![], false, "02:00:00:00:00:01"),
        (vec![argument], false, "02:00:00:00:00:02"),
        (vec![argument, capability], false, "02:00:00:00:00:02"),
        (vec![argument, capability], true, "02:00:00:00:00:03"),
    ] {
        conf["capabilities"] = json!({"mac": declared});
        let netns = node.world.netns();
        let result = cnitool_ok(&node, "add", &netns, &conf, &env);
        assert_eq!(result["interfaces"][0]["mac"], expected, "{env:?} {result:#}");
        assert_eq!(Interface::find(&netns, "net1").unwrap().mac(), expected);
        assert_eq!(vf.row()["address"], expected);
        cnitool_ok(&node, "del", &netns, &conf, &env);
        node.assert_as_before();
    }
    // The device by capability, as some runtimes give it.
    let mut conf = conf.clone();
    conf.as_object_mut().unwrap().remove("deviceID");
    conf["capabilities"] = json!({"deviceID": true});
    let netns = node.world.netns();
    let env = [("CAP_ARGS", format!(r#"{{"deviceID": "{}"}}"#, vf.pci))];
    let env = [(env[0].0, env[0].1.as_str())];
    cnitool_ok(&node, "add", &netns, &conf, &env);
    assert_eq!(Interface::find(&netns, "net1").unwrap().link["parentdev"], vf.pci.as_str());
    cnitool_ok(&node, "del", &netns, &conf, &env);
    node.assert_as_before();
}

#[test]
fn refusals_have_sriov_cnis_words() {
    let node = node();
    let vf = &node.a[0];
    let netns = node.world.netns();
    let load = "SRIOV-CNI failed to load netconf: LoadConf(): ";
    let cases = [
        (json!({"deviceID": ""}), 7, format!("{load}VF pci addr is required")),
        (json!({"deviceID": "0000:01:00.0"}), 100, format!("{load}failed to get VF information: ")),
        (json!({"deviceID": "0000:7f:00.0"}), 100, format!("{load}failed to get VF information: ")),
        (json!({"vlan": 4095}), 7, format!("{load}vlan id 4095 invalid: value must be in the range 0-4094")),
        (json!({"vlan": 0, "vlanQoS": 3}), 7, format!("{load}non-zero vlan id must be configured to set vlan QoS")),
        (json!({"link_state": "up"}), 7, format!("{load}invalid link_state value: up")),
        (json!({"mac": "zz"}), 7, format!("{load}failed to parse MAC address zz")),
    ];
    for (more, code, expected) in cases {
        let conf = with(conf(vf), more);
        let text = call(&node, "ADD", "c", &netns, &conf).fails(code);
        assert!(text.starts_with(&expected), "{text}\nwanted: {expected}");
        node.assert_as_before();
    }
    // What the NIC refuses comes later, and everything is back: sriov-cni leaves the VLAN (sriov-cni#119).
    let cannot = with(conf(vf), json!({"vlan": 5, "link_state": "enable", "mac": MAC}));
    let text = call(&node, "ADD", "c", &netns, &cannot).fails(101);
    assert!(text.contains("link_state enable of VF") && text.contains("Operation not supported"), "{text}");
    node.assert_as_before();
    // By libcni, too.
    let output = cnitool(&node, "add", &netns, &with(conf(vf), json!({"vlan": 4095})), &[]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("vlan id 4095 invalid"), "{output:?}");
    node.assert_as_before();
}

#[test]
fn a_vf_in_use_is_refused_whoever_has_it() {
    let node = node();
    let vf = &node.a[4];
    node.network("net-a", "bed.test/vf", &json!({"cniVersion": "1.0.0", "type": "sriov"}));
    let busy = format!("pci address {} is already allocated", vf.pci);

    // The drop-in has it: refused to another container, to itself, and to the meta plugin.
    let one = node.world.netns();
    let mine = with(conf(vf), json!({"mac": MAC}));
    call(&node, "ADD", "one", &one, &mine).ok();
    let two = node.world.netns();
    let text = call(&node, "ADD", "two", &two, &conf(vf)).fails(100);
    assert!(text.starts_with(&busy) && text.contains(&one), "{text}");
    let text = call(&node, "ADD", "one", &one, &mine).fails(100);
    assert!(text.starts_with(&busy) && text.contains(&one), "{text}");
    let pod = node.pod("p", "net-a", &[("bed.test/vf", vf)]);
    let text = node.call("ADD", "p", &pod).fails(100);
    assert!(text.contains(&busy) && text.contains(&one), "{text}");
    // DELs of those who never had it touch nothing.
    call(&node, "DEL", "two", &two, &conf(vf)).ok();
    node.del("p", &pod);
    assert_eq!(Interface::find(&one, "net1").expect("it stays").mac(), MAC);
    call(&node, "CHECK", "one", &one, &mine).ok();
    call(&node, "DEL", "one", &one, &mine).ok();
    node.assert_as_before();

    // Neither takes the other one's lease for its own, be name, container and interface the same.
    let same = with(mine.clone(), json!({"name": "meta"}));
    call(&node, "ADD", "p", &one, &same).if_name("eth0").ok();
    node.del("p", &pod);
    assert_eq!(Interface::find(&one, "eth0").expect("it stays").mac(), MAC);
    call(&node, "DEL", "p", &one, &same).if_name("eth0").ok();
    node.assert_as_before();

    // The meta plugin has it.
    node.add("p", &pod);
    let text = call(&node, "ADD", "two", &two, &conf(vf)).fails(100);
    assert!(text.starts_with(&busy) && text.contains(&pod), "{text}");
    call(&node, "DEL", "two", &two, &conf(vf)).ok();
    assert!(Interface::find(&pod, "net1").is_some());
    node.del("p", &pod);
    node.assert_as_before();
}

#[test]
fn detached_with_namespace_records_or_lease_missing() {
    let node = node();
    let vf = &node.a[5];
    let conf = with(
        conf(vf),
        json!({"vlan": 12, "mac": MAC, "trust": "on", "mtu": 1600, "ipam": {"type": "host-local", "subnet": "10.11.0.0/24"}}),
    );
    let tear = || {
        for name in names(format!("{RECORDS}/c")) {
            let file = format!("{RECORDS}/c/{name}");
            let text = fs::read_to_string(&file).unwrap();
            fs::write(&file, &text[..text.len() / 2]).unwrap();
        }
    };
    for case in ["", "CNI_NETNS empty", "namespace gone", "namespace gone, no path", "torn record", "no record"] {
        let netns = node.world.netns();
        call(&node, "ADD", "c", &netns, &conf).ok();
        let net1 = Interface::find(&netns, "net1").unwrap();
        assert_eq!((net1.mac(), net1.mtu(), node.world.leases("sriov-net").len()), (MAC, 1600, 1));
        let told = match case {
            "CNI_NETNS empty" | "namespace gone, no path" => "",
            _ => netns.as_str(),
        };
        if case.starts_with("namespace gone") {
            node.world.delete_netns(&netns);
        }
        match case {
            "torn record" => tear(),
            "no record" => fs::remove_dir_all(RECORDS).unwrap(),
            _ => {}
        }
        call(&node, "DEL", "c", told, &conf).ok();
        node.assert_as_before();
        call(&node, "DEL", "c", told, &conf).ok();
    }
}

#[test]
fn killed_in_the_middle_of_add() {
    let node = node();
    let recorder = Recorder::install(&node.world.bin, &["slow-ipam"]);
    recorder.behave("slow-ipam", "ADD", "sleep 3");
    let conf = with(conf(&node.b[6]), json!({"vlan": 12, "mac": MAC, "ipam": {"type": "slow-ipam"}}));
    let netns = node.world.netns();
    let kill = || {
        let mut adding = call(&node, "ADD", "c", &netns, &conf).start();
        assert!(eventually(|| !recorder.calls().is_empty()), "the IPAM plugin is called");
        assert!(Interface::find(&netns, "net1").is_some());
        adding.kill().unwrap();
        adding.wait().unwrap();
    };
    kill();
    call(&node, "DEL", "c", &netns, &conf).ok();
    assert!(Interface::find(&netns, "net1").is_none());
    assert_eq!(recorder.take(), ["ADD slow-ipam net1", "DEL slow-ipam net1"]);
    node.assert_as_before();
    // Another ADD in place of a DEL: what was half made is undone first.
    kill();
    recorder.behave("slow-ipam", "ADD", r#"echo '{"cniVersion":"1.0.0","ips":[{"address":"10.14.0.9/24"}]}'; exit 0"#);
    let result = call(&node, "ADD", "c", &netns, &conf).ok();
    assert_eq!(result["ips"][0]["address"], "10.14.0.9/24");
    assert_eq!(recorder.take(), ["ADD slow-ipam net1", "DEL slow-ipam net1", "ADD slow-ipam net1"]);
    call(&node, "DEL", "c", &netns, &conf).ok();
    recorder.take();
    // Without a record the IPAM plugin is asked all the same.
    call(&node, "DEL", "c", &netns, &conf).ok();
    assert_eq!(recorder.take(), ["DEL slow-ipam net1"]);
    node.assert_as_before();
}

#[test]
fn check_sees_what_changed_and_lets_a_chained_plugin_pass() {
    let node = node();
    node.world.plugins("reference", &["tuning"]);
    let vf = &node.a[1];
    let conf = with(conf(vf), json!({"ipam": {"type": "static", "addresses": [{"address": "10.14.0.5/24"}]}}));
    let netns = node.world.netns();
    let result = call(&node, "ADD", "c", &netns, &conf).ok();
    let chained = json!({"cniVersion": "1.0.0", "name": "sriov-net", "type": "tuning", "mac": "02:00:00:00:00:99"});
    let tune = |verb: &str, previous: &Value| {
        let conf = with(chained.clone(), json!({"prevResult": previous}));
        node.world.call(verb, "c", &netns, &conf).program(&node.world.bin.join("tuning")).if_name("net1").ok()
    };
    let tuned = tune("ADD", &result);
    assert_eq!(tuned["interfaces"][0]["mac"], "02:00:00:00:00:99");
    call(&node, "CHECK", "c", &netns, &with(conf.clone(), json!({"prevResult": tuned}))).ok();
    // With the result as it was before the chain went on, the address is a stranger's.
    let text = call(&node, "CHECK", "c", &netns, &with(conf.clone(), json!({"prevResult": result}))).fails(101);
    assert!(text.contains("net1 has MAC 02:00:00:00:00:99, the result says"), "{text}");
    tune("DEL", &tuned);
    crate::harness::ip_in(&netns, "addr del 10.14.0.5/24 dev net1");
    let text = call(&node, "CHECK", "c", &netns, &with(conf.clone(), json!({"prevResult": result}))).fails(101);
    assert!(text.contains("10.14.0.5/24"), "{text}");
    call(&node, "DEL", "c", &netns, &conf).ok();
    node.assert_as_before();
    let text = call(&node, "CHECK", "c", &netns, &with(conf.clone(), json!({"prevResult": result}))).fails(101);
    assert!(text.contains("container c has no attachment of network"), "{text}");
}

#[test]
fn gc_and_status_speak_for_this_network() {
    let node = node();
    let ipam = json!({"type": "host-local", "subnet": "10.11.0.0/24"});
    let of = |vf: &Vf| with(conf(vf), json!({"cniVersion": "1.1.0", "vlan": 7, "ipam": ipam}));
    let (one, two, other) = (node.world.netns(), node.world.netns(), node.world.netns());
    call(&node, "ADD", "one", &one, &of(&node.a[0])).ok();
    call(&node, "ADD", "two", &two, &of(&node.a[1])).ok();
    let foreign = with(of(&node.a[2]), json!({"name": "another"}));
    call(&node, "ADD", "other", &other, &foreign).ok();
    // An address of nobody, in this network's pool and in the other one's.
    for network in ["sriov-net", "another"] {
        fs::write(format!("/var/lib/cni/networks/{network}/10.11.0.77"), "nobody\r\nnet1").unwrap();
    }
    let mut gc = of(&node.a[0]);
    gc.as_object_mut().unwrap().remove("deviceID");
    node.world.call("GC", "", "", &gc).program(&node.world.bin.join("sriov")).ok();
    assert_eq!(names(RECORDS), ["one", "other", "two"], "no list says nothing");
    gc["cni.dev/valid-attachments"] = json!([{"containerID": "two", "ifname": "net1"}]);
    node.world.call("GC", "", "", &gc).program(&node.world.bin.join("sriov")).ok();
    assert_eq!(names(RECORDS), ["other", "two"]);
    assert!(Interface::find(&one, "net1").is_none() && Interface::find(&two, "net1").is_some());
    assert_eq!(node.a[0].row()["vlan_list"][0]["vlan"], json!(null));
    assert_eq!((node.world.leases("sriov-net").len(), node.world.leases("another").len()), (1, 2));

    // STATUS: of one VF, and of all.
    let status = |conf: &Value| node.world.call("STATUS", "", "", conf).program(&node.world.bin.join("sriov"));
    let text = status(&of(&node.a[1])).fails(50);
    assert!(text.contains("no VF is left: pci address") && text.contains(&two), "{text}");
    status(&of(&node.a[0])).ok();
    gc.as_object_mut().unwrap().remove("cni.dev/valid-attachments");
    status(&gc).ok();
    let mut bad = gc.clone();
    bad["ipam"] = json!({"type": "not-installed"});
    let text = status(&bad).fails(50);
    assert!(text.contains("failed to find plugin \"not-installed\""), "{text}");
    let held: Vec<&Vf> = node.a.iter().chain(&node.b).filter(|vf| *vf != &node.a[1] && *vf != &node.a[2]).collect();
    for vf in &held {
        fs::write(format!("/var/lib/cni/sriov/pci/{}", vf.pci), &two).unwrap();
    }
    let text = status(&gc).fails(50);
    assert!(text.contains("no VF is left: all 14 are in use"), "{text}");
    for vf in &held {
        fs::remove_file(format!("/var/lib/cni/sriov/pci/{}", vf.pci)).unwrap();
    }
    // The tool of libcni DELs the attachments it made, and hands on that it lists none: a list of null says nothing.
    cnitool_ok(&node, "status", &one, &gc, &[]);
    cnitool_ok(&node, "add", &one, &of(&node.a[0]), &[]);
    assert_eq!(names(RECORDS).len(), 3);
    cnitool_ok(&node, "gc", &one, &of(&node.a[0]), &[]);
    assert_eq!(names(RECORDS), ["other", "two"]);
    call(&node, "DEL", "two", &two, &of(&node.a[1])).ok();
    call(&node, "DEL", "other", &other, &foreign).ok();
    fs::remove_file("/var/lib/cni/networks/another/10.11.0.77").unwrap();
    node.assert_as_before();
}

#[test]
fn the_meta_plugin_executes_the_drop_in() {
    let mut node = node();
    node.conf["builtins"] = json!(["host-local"]);
    let vf = &node.b[3];
    node.network(
        "net-a",
        "bed.test/vf",
        &json!({"cniVersion": "1.0.0", "type": "sriov", "vlan": 33, "mac": MAC,
                "ipam": {"type": "host-local", "subnet": "10.11.0.0/24"}}),
    );
    let netns = node.pod("p", "net-a", &[("bed.test/vf", vf)]);
    node.add("p", &netns);
    let net1 = Interface::find(&netns, "net1").unwrap();
    assert_eq!((net1.mac(), net1.addresses()), (MAC, vec!["10.11.0.2/24".to_owned()]));
    assert_eq!(vf.row()["vlan_list"][0]["vlan"], 33);
    let status = node.status("p", "net1");
    assert_eq!((&status["mac"], &status["ips"]), (&json!(MAC), &json!(["10.11.0.2"])));
    assert_eq!((names(RECORDS), node.world.records("p").len()), (vec!["p".to_owned()], 2));
    node.call("CHECK", "p", &netns).ok();
    node.del("p", &netns);
    assert!(Interface::find(&netns, "net1").is_none());
    node.assert_as_before();

    // The meta plugin's journal is lost while the pod is gone: the drop-in's is its own.
    node.add("p", &netns);
    node.world.delete_netns(&netns);
    node.del("p", &netns);
    node.assert_as_before();
}

#[test]
fn a_crash_of_the_meta_plugin_or_of_the_drop_in_that_it_executes_is_undone() {
    let mut node = node();
    node.conf["builtins"] = json!(["host-local"]);
    let recorder = Recorder::install(&node.world.bin, &["slow-ipam"]);
    let answer = r#"sleep 3; echo '{"cniVersion":"1.0.0","ips":[{"address":"10.14.0.9/24"}]}'; exit 0"#;
    recorder.behave("slow-ipam", "ADD", answer);
    let network =
        json!({"cniVersion": "1.0.0", "type": "sriov", "vlan": 12, "mac": MAC, "ipam": {"type": "slow-ipam"}});
    node.network("net-a", "bed.test/vf", &network);
    let netns = node.pod("p", "net-a", &[("bed.test/vf", &node.a[2])]);
    let start = || {
        let adding = node.call("ADD", "p", &netns).start();
        assert!(eventually(|| !recorder.calls().is_empty()), "the IPAM plugin is called");
        assert!(Interface::find(&netns, "net1").is_some());
        adding
    };
    // The drop-in goes on without its caller; DEL waits for it.
    let mut adding = start();
    adding.kill().unwrap();
    adding.wait().unwrap();
    node.del("p", &netns);
    assert!(Interface::find(&netns, "net1").is_none());
    assert_eq!(recorder.take(), ["ADD slow-ipam net1", "DEL slow-ipam net1"]);
    node.assert_as_before();

    let adding = start();
    let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", adding.id())).unwrap();
    let drop_in = nix::unistd::Pid::from_raw(children.trim().parse().expect("one child: the drop-in"));
    nix::sys::signal::kill(drop_in, nix::sys::signal::Signal::SIGKILL).unwrap();
    let output = adding.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("\"code\": 103") && text.contains("default/net-a as net1"), "{text}");
    assert_eq!(recorder.take(), ["ADD slow-ipam net1", "DEL slow-ipam net1"]);
    node.assert_as_before();
}
