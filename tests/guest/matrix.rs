//! The matrix of VFs: pods' lives in all pairs of versions, families, settings and more (see `AXES`). The API server has
//! its part in the matrix on the host (`tests/matrix`).
//!
//! The first tenth of the cells is run; with META_CNI_MATRIX_SECONDS all of them within this time, from the one whose
//! number META_CNI_SEED is.

#[path = "../matrix/grid.rs"]
mod grid;
#[path = "../matrix/pairs.rs"]
mod pairs;

use std::{
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
    time::{Duration, Instant},
};

use grid::{Axis, Cell, Grid, Rule};
use serde_json::{Value, json};

use crate::{
    harness::Interface,
    node::{Node, Vf},
};

const AXES: &[Axis] = &[
    ("runtime", &["1.0.0", "0.3.0", "0.3.1", "0.4.0", "1.1.0"]),
    ("network", &["1.0.0", "0.3.0", "0.3.1", "0.4.0", "1.1.0"]),
    ("family", &["v4", "v6", "dual"]),
    // In-process, or by our binary under its other name.
    ("sriov", &["built-in", "drop-in"]),
    // host-local and static in-process, or the reference host-local.
    ("ipam", &["host-local", "static", "executed", "none"]),
    ("source", &["manifests", "handed"]),
    ("form", &["conf", "conflist", "file"]),
    // The device plugin gave it, or the definition names it.
    ("device", &["given", "configured"]),
    ("set", &["nothing", "vlan", "mtu", "spoofchk"]),
    ("asks", &["nothing", "ips", "mac", "default-route", "interface"]),
];
const EXCLUDED: &[Rule] = &[
    (&[("sriov", "drop-in"), ("ipam", "executed")], "host-local is built into the drop-in"),
    (&[("family", "v6"), ("ipam", "none")], "without addresses there is no family"),
    (&[("family", "dual"), ("ipam", "none")], "without addresses there is no family"),
    (&[("asks", "ips"), ("ipam", "none")], "nobody could serve it"),
    (&[("asks", "default-route"), ("ipam", "none")], "no gateway could be reached"),
];
static MATRIX: Grid = Grid { axes: AXES, close: &[], excluded: EXCLUDED };

const CONF_DIR: &str = "/etc/cni/confs";
const MAC: &str = "02:00:00:00:07:07";

/// Addresses of a cell's families in its subnet.
fn hosts(cell: &Cell, host: u32, prefix: bool) -> Vec<String> {
    let (v4, v6) = ((format!("10.61.0.{host}"), 24), (format!("fd00:61::{host}"), 64));
    let all = match cell.get("family") {
        "v4" => vec![v4],
        "v6" => vec![v6],
        _ => vec![v4, v6],
    };
    all.into_iter().map(|(address, length)| if prefix { format!("{address}/{length}") } else { address }).collect()
}

fn interface(cell: &Cell) -> &'static str {
    if cell.is("asks", "interface") { "data0" } else { "net1" }
}

fn gateways(cell: &Cell) -> Vec<String> {
    if cell.is("asks", "default-route") { hosts(cell, 1, false) } else { Vec::new() }
}

fn addresses(cell: &Cell) -> Vec<String> {
    match (cell.get("ipam"), cell.get("asks")) {
        ("none", _) => Vec::new(),
        (_, "ips") => hosts(cell, 77, true),
        ("static", _) => hosts(cell, 5, true),
        _ => hosts(cell, 2, true),
    }
}

fn selection(cell: &Cell) -> String {
    let mut element = json!({"name": "net-a"});
    match cell.get("asks") {
        "nothing" => return "net-a".to_owned(),
        "interface" => return format!("default/net-a@{}", interface(cell)),
        "ips" => element["ips"] = json!(addresses(cell)),
        "mac" => element["mac"] = json!(MAC),
        "default-route" => element["default-route"] = json!(gateways(cell)),
        other => panic!("{other}"),
    }
    json!([element]).to_string()
}

/// The plugin's object, with the settings of the VF.
fn plugin(cell: &Cell, vf: &Vf) -> Value {
    let mut plugin = match cell.get("set") {
        "nothing" => json!({}),
        "vlan" => json!({"vlan": 100}),
        "mtu" => json!({"mtu": 1400}),
        _ => json!({"spoofchk": "off", "trust": "on"}),
    };
    plugin["type"] = json!("sriov");
    plugin["capabilities"] = json!({"ips": true, "mac": true});
    if cell.is("device", "configured") {
        plugin["deviceID"] = json!(vf.pci);
    }
    match cell.get("ipam") {
        "none" => {}
        "static" => {
            let addresses: Vec<Value> =
                hosts(cell, 5, true).into_iter().map(|address| json!({"address": address})).collect();
            plugin["ipam"] = json!({"type": "static", "addresses": addresses});
        }
        _ => {
            let sets: Vec<Value> = hosts(cell, 0, true).into_iter().map(|subnet| json!([{"subnet": subnet}])).collect();
            plugin["ipam"] = json!({"type": "host-local", "ranges": sets});
        }
    }
    plugin
}

/// Writes the definition, and the file that an empty one stands for.
fn define(cell: &Cell, node: &Node, vf: &Vf) {
    let mut conf = plugin(cell, vf);
    if cell.is("form", "conflist") {
        conf = json!({"plugins": [conf, {"type": "tuning", "mtu": 1380}]});
    }
    conf["cniVersion"] = json!(cell.get("network"));
    let mut object = json!({"kind": "NetworkAttachmentDefinition", "metadata": {"name": "net-a"}, "spec": {}});
    if cell.is("device", "given") {
        object["metadata"]["annotations"] = json!({"k8s.v1.cni.cncf.io/resourceName": "bed.test/vf"});
    }
    if cell.is("form", "file") {
        conf["name"] = json!("net-a");
        fs::create_dir_all(CONF_DIR).unwrap();
        fs::write(format!("{CONF_DIR}/30-network.conf"), conf.to_string()).unwrap();
    } else {
        object["spec"]["config"] = json!(conf.to_string());
    }
    node.world.manifest("net-a", &object.to_string());
}

/// Our conf.
fn configure(cell: &Cell, node: &mut Node) {
    node.conf["cniVersion"] = json!(cell.get("runtime"));
    node.conf["confDir"] = json!(CONF_DIR);
    node.conf["builtins"] = match (cell.get("sriov"), cell.get("ipam")) {
        ("drop-in", _) => json!(["host-local", "static"]),
        (_, "executed") => json!(["sriov"]),
        _ => json!(["sriov", "host-local", "static"]),
    };
    node.world.drop_in("sriov");
    node.world.plugins("reference", &["tuning"]);
    if cell.is("source", "handed") {
        let annotations = json!({"k8s.v1.cni.cncf.io/networks": selection(cell)});
        node.conf["capabilities"] = json!({"io.kubernetes.cri.pod-annotations": true});
        node.conf["runtimeConfig"] = json!({"io.kubernetes.cri.pod-annotations": annotations});
    }
}

/// The kernel has what was asked for, and result and status say so.
fn assert_true(cell: &Cell, node: &Node, vf: &Vf, netns: &str, result: &Value) {
    let found = Interface::find(netns, interface(cell)).expect("the VF");
    assert_eq!(found.link["parentdev"], vf.pci);
    assert_eq!(found.addresses(), addresses(cell));
    assert_eq!(found.mac(), if cell.is("asks", "mac") { MAC } else { &vf.mac });
    let mtu = if cell.is("set", "mtu") { 1400 } else { 1500 };
    assert_eq!(found.mtu(), if cell.is("form", "conflist") { 1380 } else { mtu });
    assert_eq!(default_gateways(&found), gateways(cell));
    let row = vf.row();
    assert_eq!(
        row["vlan_list"][0]["vlan"].as_u64().unwrap_or(0),
        if cell.is("set", "vlan") { 100 } else { 0 },
        "{row}"
    );
    let loose = cell.is("set", "spoofchk");
    assert_eq!((&row["spoofchk"], &row["trust"]), (&json!(!loose), &json!(loose)), "{row}");
    if cell.is("asks", "mac") {
        assert_eq!(row["address"], MAC, "{row}");
    }

    let eth0 = Interface::find(netns, "eth0").expect("eth0");
    let kept = gateways(cell).iter().all(|gateway| gateway.contains(':'));
    assert_eq!(default_gateways(&eth0), if kept { vec!["10.88.0.1"] } else { vec![] });
    assert_eq!(result["cniVersion"], cell.get("runtime"));
    assert_eq!(result["ips"][0]["address"], eth0.addresses()[0]);
    for found in [&eth0, &found] {
        let entry = node.status("p", found.link["ifname"].as_str().unwrap());
        let plain = |address: &String| address.split('/').next().unwrap().to_owned();
        assert_eq!(list(&entry["ips"]), found.addresses().iter().map(plain).collect::<Vec<_>>(), "{entry:#}");
        assert_eq!(
            (&entry["mac"], &list(&entry["gateway"])),
            (&json!(found.mac()), &default_gateways(found)),
            "{entry:#}"
        );
        if let Some(mtu) = entry.get("mtu") {
            assert_eq!(mtu, found.mtu(), "{entry:#}");
        }
    }
}

fn default_gateways(found: &Interface) -> Vec<String> {
    let routes = found.routes.iter().filter(|route| route["dst"] == "default");
    routes.map(|route| route["gateway"].as_str().unwrap_or("none").to_owned()).collect()
}

fn list(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().map(|text| text.as_str().unwrap().to_owned()).collect()
}

fn run(cell: &Cell) {
    let mut node = Node::new();
    configure(cell, &mut node);
    let vf = node.b[cell.index % 7].clone();
    define(cell, &node, &vf);
    let devices = [("bed.test/vf", &vf)];
    let given = &devices[usize::from(cell.is("device", "configured"))..];
    // What the runtime hands over is what counts.
    let in_manifest = if cell.is("source", "handed") { "another".to_owned() } else { selection(cell) };
    let netns = node.pod("p", &in_manifest, given);
    let result = node.add("p", &netns);
    assert_true(cell, &node, &vf, &netns, &result);
    if cell.get("runtime") >= "0.4.0" {
        node.conf["prevResult"] = result;
        node.call("CHECK", "p", &netns).ok();
    }
    node.del("p", &netns);
    node.assert_as_before();
    node.world.delete_netns(&netns);
    node.del("p", "");
    node.assert_as_before();
}

#[test]
fn all_values_of_vfs_that_are_not_excluded_meet_in_a_cell_and_no_others() {
    MATRIX.assert_complete();
}

#[test]
fn kernel_pf_result_and_status_agree_in_every_cell() {
    let number = |key: &str| std::env::var(key).ok().map(|text| text.parse::<u64>().expect(key));
    let mut cells = MATRIX.cells();
    let ((pairs, _), all) = (MATRIX.counts(), cells.len());
    let limit = number("META_CNI_MATRIX_SECONDS").map(Duration::from_secs);
    if limit.is_some() {
        cells.rotate_left(usize::try_from(number("META_CNI_SEED").unwrap_or(0)).unwrap() % all);
    } else {
        cells.truncate(all.div_ceil(10));
    }
    let began = Instant::now();
    let (mut done, mut failed) = (0, Vec::new());
    for cell in cells.iter().take_while(|_| limit.is_none_or(|limit| began.elapsed() < limit)) {
        println!("{cell}");
        done += 1;
        if catch_unwind(AssertUnwindSafe(|| run(cell))).is_err() {
            failed.push(cell);
            // Its VF is not to be another cell's trouble.
            let mut node = Node::as_found();
            configure(cell, &mut node);
            drop(node.call("DEL", "p", "").run());
        }
    }
    println!("matrix of VFs: {all} cells, {pairs} pairs; {done} run in {:.0?}", began.elapsed());
    let again = |cell: &&Cell| {
        let alone = "META_CNI_MATRIX_SECONDS=1 META_CNI_SEED";
        format!("{cell}\n    alone: {alone}={} tests/guest/suite kernel_pf_result", cell.index)
    };
    assert!(failed.is_empty(), "\n{}", failed.iter().map(again).collect::<Vec<_>>().join("\n"));
}
