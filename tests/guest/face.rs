//! Our binary under the name `sriov`: sriov-cni's own configurations, by libcni's tool and by a runtime's call. What comes
//! out is what the built-in attachment gives.

use std::{
    fs,
    process::{Command, Output},
};

use serde_json::{Value, json};

use crate::{
    harness::{Call, Interface, beds},
    node::{Node, Vf},
};

pub(crate) const MAC: &str = "02:00:00:00:00:71";

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
pub(crate) fn cnitool_ok(node: &Node, verb: &str, netns: &str, conf: &Value, env: &[(&str, &str)]) -> Value {
    let output = cnitool(node, verb, netns, conf, env);
    assert!(output.status.success(), "{verb} of {conf}: {output:?}");
    serde_json::from_slice(&output.stdout).unwrap_or(Value::Null)
}

/// The PF's row and the interface in the pod, but for what differs between two pods of one VF.
fn seen(vf: &Vf, netns: &str) -> (Value, Value, Vec<String>) {
    let found = Interface::find(netns, "net1").expect("net1");
    let mut link = found.link.clone();
    for key in ["ifindex", "ifalias", "addr_info", "operstate", "flags"] {
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

    // The drop-in has it: refused to another container, to itself, and to the meta plugin. (Were its pod not one that
    // kubelet gave the VF to, the meta plugin would take it for out.)
    let one = node.pod("one", "", &[("bed.test/vf", vf)]);
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
