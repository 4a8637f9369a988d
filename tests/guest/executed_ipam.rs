//! An IPAM plugin that is executed for a VF: what it is told, what it may answer, and when.

use std::fs;

use serde_json::{Value, json};

use crate::{
    harness::{Interface, Recorder},
    node::{Node, sriov},
};

/// What it answers with this result.
fn answers(recorder: &Recorder, result: &str) {
    recorder.behave("other-ipam", "ADD", &format!("printf '%s' '{result}'; exit 0"));
}

const GOOD: &str = r#"{"cniVersion":"1.0.0","ips":[{"address":"10.14.0.9/24","gateway":"10.14.0.1"}]}"#;

fn node() -> (Node, Recorder) {
    let node = Node::new();
    let recorder = Recorder::install(&node.world.bin, &["other-ipam"]);
    answers(&recorder, GOOD);
    (node, recorder)
}

#[test]
fn it_reads_the_definition_as_it_stands_while_no_pool_is_locked() {
    let (node, recorder) = node();
    let text =
        r#"{"cniVersion":"1.0.0","type":"sriov","vlan":7,"ipam":{"type":"other-ipam","z":1.50,"a":[{"b":null}]}}"#;
    let manifest = json!({
        "apiVersion": "k8s.cni.cncf.io/v1", "kind": "NetworkAttachmentDefinition",
        "metadata": {"name": "net-x", "annotations": {"k8s.v1.cni.cncf.io/resourceName": "bed.test/vf"}},
        "spec": {"config": text}
    });
    node.world.manifest("net-x", &manifest.to_string());
    node.network("net-a", "bed.test/vf", &sriov(&json!({"ipam": {"type": "host-local", "subnet": "10.11.0.0/24"}})));
    // Every pool there is can be locked.
    let free = "for pool in /var/lib/cni/networks/*/; do flock -n $pool/lock true || exit 9; done";
    recorder.behave("other-ipam", "ADD", &format!("{free}; printf '%s' '{GOOD}'; exit 0"));
    recorder.behave("other-ipam", "DEL", free);
    let annotation = json!([{"name": "net-a"}, {"name": "net-x", "ipam-claim-reference": "vm.net-x"}]).to_string();
    let netns = node.pod("p", &annotation, &[("bed.test/vf", &node.a[0]), ("bed.test/vf", &node.a[1])]);
    node.add("p", &netns);
    assert_eq!(Interface::find(&netns, "net2").unwrap().addresses(), ["10.14.0.9/24"]);
    node.call("CHECK", "p", &netns).ok();
    let log = fs::read_to_string(node.world.bin.join("log")).unwrap();
    assert!(log.contains(r#""ipam":{"type":"other-ipam","z":1.50,"a":[{"b":null}]}"#), "{log}");
    node.del("p", &netns);
    let calls: Vec<Value> = recorder.calls().into_iter().map(|call| call.0).collect();
    assert_eq!(calls.iter().map(|call| call["verb"].as_str().unwrap()).collect::<Vec<_>>(), ["ADD", "CHECK", "DEL"]);
    for call in &calls {
        assert_eq!((&call["conf"]["name"], &call["conf"]["vlan"]), (&json!("net-x"), &json!(7)));
        assert_eq!((&call["container"], &call["ifname"], &call["netns"]), (&json!("p"), &json!("net2"), &json!(netns)));
        assert_eq!(call["conf"]["args"]["cni"]["ipam-claim-reference"], "vm.net-x");
    }
    assert_eq!(calls[0]["conf"]["prevResult"], Value::Null);
    for call in &calls[1..] {
        assert_eq!(call["conf"]["prevResult"]["ips"][0]["address"], "10.14.0.9/24");
    }
    node.assert_as_before();
}

#[test]
fn an_answer_that_is_none_fails_and_is_taken_back() {
    let (node, recorder) = node();
    node.network("net-x", "bed.test/vf", &sriov(&json!({"ipam": {"type": "other-ipam"}})));
    let netns = node.pod("p", "net-x", &[("bed.test/vf", &node.a[0])]);
    let with = |address: &str| format!(r#"{{"cniVersion":"1.0.0","ips":[{{"address":"{address}"}}]}}"#);
    for (result, code, part) in [
        (r#"{"cniVersion":"1.0.0"}"#.to_owned(), 103, "IPAM plugin other-ipam returned missing IP config"),
        (String::new(), 103, "IPAM plugin other-ipam returned missing IP config"),
        (with("10.14.0.9"), 6, "the result of other-ipam does not parse"),
        (with("10.14.0.9/33"), 6, "the result of other-ipam does not parse"),
        (with("not an address"), 6, "the result of other-ipam does not parse"),
        (with("0.0.0.0/24"), 103, "IPAM plugin other-ipam gave 0.0.0.0/24, which no interface can have"),
        (with("224.0.0.5/24"), 103, "IPAM plugin other-ipam gave 224.0.0.5/24, which no interface can have"),
        (with("127.0.0.2/8"), 103, "IPAM plugin other-ipam gave 127.0.0.2/8, which no interface can have"),
        (
            r#"{"cniVersion":"7.0.0","ips":[{"address":"10.14.0.9/24"}]}"#.to_owned(),
            6,
            "its cniVersion \"7.0.0\" is none that is known",
        ),
        (r#"{"cniVersion":"1.0.0","ips":"many"}"#.to_owned(), 6, "the result of other-ipam does not parse"),
        ("words".to_owned(), 103, "printed what is no result"),
    ] {
        answers(&recorder, &result);
        recorder.take();
        let text = node.call("ADD", "p", &netns).fails(code);
        assert!(text.contains("default/net-x as net1") && text.contains(part), "{result}: {text}");
        assert_eq!(recorder.take(), ["ADD other-ipam net1", "DEL other-ipam net1"], "{result}");
        assert!(Interface::find(&netns, "net1").is_none());
    }
    node.assert_as_before();
}

#[test]
fn a_check_or_a_del_that_it_refuses_is_said() {
    let (node, recorder) = node();
    node.network("net-x", "bed.test/vf", &sriov(&json!({"ipam": {"type": "other-ipam"}})));
    let netns = node.pod("p", "net-x", &[("bed.test/vf", &node.a[0])]);
    node.add("p", &netns);
    recorder.behave("other-ipam", "CHECK", r#"echo '{"code":130,"msg":"not mine"}'; exit 1"#);
    assert!(node.call("CHECK", "p", &netns).fails(130).contains("not mine"));
    recorder.behave("other-ipam", "DEL", r#"echo '{"code":131,"msg":"later"}'; exit 1"#);
    assert!(node.call("DEL", "p", &netns).fails(131).contains("later"));
    recorder.relax("other-ipam", "DEL");
    node.del("p", &netns);
    node.assert_as_before();
}

#[test]
fn a_claim_is_refused_where_nobody_would_keep_it() {
    let (node, _) = node();
    node.network("net-a", "bed.test/vf", &sriov(&json!({"ipam": {"type": "host-local", "subnet": "10.11.0.0/24"}})));
    let fixed = json!({"ipam": {"type": "static", "addresses": [{"address": "10.14.0.1/24"}]}});
    node.network("net-b", "bed.test/vf", &sriov(&fixed));
    for (network, kind) in [("net-a", "host-local"), ("net-b", "static")] {
        let annotation = json!([{"name": network, "ipam-claim-reference": "vm.net"}]).to_string();
        let netns = node.pod("p", &annotation, &[("bed.test/vf", &node.a[0])]);
        let text = node.call("ADD", "p", &netns).fails(2);
        let part = format!("ipam-claim-reference \"vm.net\": the built-in {kind} keeps no claims");
        assert!(text.contains(&part) && text.contains(network), "{text}");
    }
    node.assert_as_before();
}
