//! deploy/base/policy.yaml: what the token of a node may do of all that its role allows.

use std::{
    fs,
    path::Path,
    thread::sleep,
    time::{Duration, Instant},
};

use http::Request;
use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use serde_json::{Value, json};

use crate::{
    bed::{ApiPod, Bed, NETWORKS, STATUS, USER, wait_for},
    harness::names,
};

/// deploy/base.
const BASE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/base");

/// Manifests that are in force until this is dropped: other tests come with tokens of no node.
struct Policy(String);

impl Policy {
    fn apply(manifests: String) -> Self {
        Bed::kubectl(&["apply", "-f", "-"], &manifests);
        Self(manifests)
    }

    /// deploy/base/policy.yaml.
    fn enforce(probe: &str) -> Self {
        let policy = Self::apply(fs::read_to_string(Path::new(BASE).join("policy.yaml")).unwrap());
        let probe = Bed::pod(probe, &json!({}));
        let (unbound, write) = (Bed::service_account(), status_annotation("probed"));
        let refusal = || patch_status(unbound.to_str().unwrap(), &probe, &write).err().unwrap_or_default();
        wait_for("the server goes by the policy", 20, || refusal().contains("the token names no node"));
        policy
    }
}

impl Drop for Policy {
    fn drop(&mut self) {
        Bed::kubectl_raw(&["delete", "-f", "-"], &self.0);
        // The server goes by what was deleted for a moment yet, and the next test's token may be of no node.
        let event = json!({
            "apiVersion": "v1", "kind": "Event", "metadata": {"name": "probe", "namespace": "default"},
            "involvedObject": {"kind": "Pod", "name": "probe", "namespace": "default"}, "type": "Normal",
        });
        let (unbound, end) = (Bed::service_account(), Instant::now() + Duration::from_secs(20));
        let create =
            ["--kubeconfig", unbound.to_str().unwrap(), "create", "--dry-run=server", "--validate=false", "-f", "-"];
        while Instant::now() < end && !Bed::kubectl_raw(&create, &event.to_string()).0 {
            sleep(Duration::from_millis(100));
        }
    }
}

/// A kubeconfig with a token as kubelet projects it into the pods of the DaemonSet on a node.
fn of_node(node: &str) -> String {
    of_node_as(("kube-system", "meta-cni"), node)
}

/// [`of_node`], of another namespace and account.
fn of_node_as((namespace, account): (&str, &str), node: &str) -> String {
    let name = format!("installer-{node}");
    Bed::create(&[json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": namespace},
        "spec": {"nodeName": node, "serviceAccountName": account, "automountServiceAccountToken": false,
                 "containers": [{"name": "c", "image": "localhost/test/pause:1"}]}
    })]);
    with_token((namespace, account), ("Pod", &name), node)
}

/// A kubeconfig with a token that ends with an object, and names its node.
fn with_token((namespace, account): (&str, &str), (kind, name): (&str, &str), node: &str) -> String {
    let bound = ["--bound-object-kind", kind, "--bound-object-name", name];
    let create = ["create", "token", account, "--namespace", namespace];
    let token = Bed::kubectl(&[create.as_slice(), &bound].concat(), "");
    let path = Bed::kubeconfig(&format!("of-{kind}-{node}"), &Bed::server(), &json!({"token": token}));
    path.to_str().unwrap().to_owned()
}

fn status_annotation(text: &str) -> Value {
    json!({"metadata": {"annotations": {STATUS: text}}})
}

/// Patches a pod's status with a kubeconfig: one request, as we send it. What the server made of it, or why not.
fn patch_status(kubeconfig: &str, pod: &ApiPod, patch: &Value) -> Result<Value, String> {
    let request = Request::patch(format!("/api/v1/namespaces/default/pods/{}/status", pod.name))
        .header("content-type", "application/merge-patch+json")
        .body(patch.to_string().into_bytes())
        .unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let kubeconfig = Kubeconfig::read_from(kubeconfig).unwrap();
        let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
        match Client::try_from(config).unwrap().request(request).await {
            Ok(object) => Ok(object),
            Err(kube::Error::Api(status)) => Err(format!("{}: {}", status.reason, status.message)),
            Err(other) => panic!("{other}"),
        }
    })
}

/// A pod without the fields that the server itself counts up.
fn object(name: &str) -> Value {
    let mut pod: Value = serde_json::from_str(&Bed::kubectl(&["get", "pod", name, "-o", "json"], "")).unwrap();
    for key in ["resourceVersion", "managedFields", "generation"] {
        pod["metadata"].as_object_mut().unwrap().remove(key);
    }
    pod
}

#[test]
fn a_nodes_token_writes_the_status_annotation_of_its_own_pods_alone() {
    let bed = Bed::enter();
    bed.macvlans(&[("policed", 15)]);
    let _policy = Policy::enforce("probe-status");
    let node_1 = of_node("node-1");
    let pod = Bed::pod("policed", &json!({NETWORKS: "policed", "others": "kept", STATUS: "before"}));

    // What we do is allowed.
    let conf = bed.conf(node_1.as_ref());
    let netns = bed.world.netns();
    bed.call("ADD", &netns, &conf, &pod).ok();
    let networks: Vec<Value> =
        Bed::status("policed").unwrap().as_array().unwrap().iter().map(|entry| entry["name"].clone()).collect();
    assert_eq!(networks, ["cbr0", "default/policed"]);
    bed.call("DEL", &netns, &conf, &pod).ok();
    bed.assert_undone(&netns);

    // Nothing else is.
    let before = object("policed");
    let annotated = |key: &str, value: Value| json!({"metadata": {"annotations": {key: value, STATUS: "written"}}});
    for (patch, reason) in [
        (annotated("others", json!("changed")), "writes k8s.v1.cni.cncf.io/network-status alone"),
        (annotated("others", Value::Null), "writes k8s.v1.cni.cncf.io/network-status alone"),
        (annotated("more", json!("added")), "writes k8s.v1.cni.cncf.io/network-status alone"),
        (annotated(NETWORKS, json!("other-net")), "writes k8s.v1.cni.cncf.io/network-status alone"),
        (json!({"metadata": {"labels": {"app": "stolen"}}}), "labels are not"),
        (json!({"metadata": {"finalizers": ["example.com/for-ever"]}}), "finalizers are not"),
        (json!({"status": {"phase": "Failed"}}), "of a pod's status"),
        (json!({"status": {"podIP": "10.0.0.1"}}), "of a pod's status"),
    ] {
        let said = patch_status(&node_1, &pod, &patch).unwrap_err();
        assert!(said.starts_with("Forbidden: ") && said.contains(reason), "{patch}: {said}");
    }
    let said = patch_status(&of_node("node-2"), &pod, &status_annotation("from elsewhere")).unwrap_err();
    assert!(said.contains("the pod is on node node-1, the token is of node node-2"), "{said}");
    let unbound = Bed::service_account();
    let said = patch_status(unbound.to_str().unwrap(), &pod, &status_annotation("from nowhere")).unwrap_err();
    assert!(said.contains("the token names no node"), "{said}");
    // The server drops what is no part of the status.
    patch_status(&node_1, &pod, &json!({"spec": {"activeDeadlineSeconds": 1}})).unwrap();
    assert_eq!(object("policed"), before);
}

/// The README's way to a token where no DaemonSet projects one.
#[test]
fn a_token_made_by_hand_for_a_node_is_that_nodes_token() {
    let bed = Bed::enter();
    bed.macvlans(&[("by-hand", 17)]);
    let _policy = Policy::enforce("probe-by-hand");
    for name in ["node-1", "node-7"] {
        Bed::kubectl(
            &["create", "-f", "-"],
            &json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}}).to_string(),
        );
    }
    let made = |node: &str| with_token(("kube-system", "meta-cni"), ("Node", node), node);
    let pod = Bed::pod("by-hand", &json!({NETWORKS: "by-hand"}));
    let conf = bed.conf(made("node-1").as_ref());
    let netns = bed.world.netns();
    bed.call("ADD", &netns, &conf, &pod).ok();
    assert_eq!(Bed::status("by-hand").unwrap()[1]["name"], "default/by-hand");
    bed.call("DEL", &netns, &conf, &pod).ok();
    let said = patch_status(&made("node-7"), &pod, &status_annotation("from elsewhere")).unwrap_err();
    assert!(said.contains("the pod is on node node-1, the token is of node node-7"), "{said}");
    Bed::kubectl(&["delete", "node", "node-1", "node-7"], "");
    bed.assert_undone(&netns);
}

/// An administrator's kustomization gives all that is ours other names, and another namespace.
#[test]
fn the_policies_hold_for_an_account_that_a_kustomization_renamed() {
    let _bed = Bed::enter();
    let own = tempfile::tempdir().unwrap();
    fs::create_dir(own.path().join("base")).unwrap();
    for name in names(BASE) {
        fs::copy(Path::new(BASE).join(&name), own.path().join("base").join(&name)).unwrap();
    }
    let text = "namespace: networking\nnamePrefix: team-\nnameSuffix: -two\nresources: [base]\n";
    fs::write(own.path().join("kustomization.yaml"), text).unwrap();
    let rendered = Bed::kubectl(&["kustomize", own.path().to_str().unwrap()], "");
    // The definitions of other tests are of the kind that this has, too.
    let rest: Vec<&str> = rendered.split("\n---\n").filter(|text| !text.contains("CustomResourceDefinition")).collect();
    Bed::kubectl(&["create", "namespace", "networking"], "");
    let _policy = Policy::apply(rest.join("\n---\n"));

    let account = ("networking", "team-meta-cni-two");
    let pod = Bed::pod("renamed", &json!({}));
    let (node_1, node_8) = (of_node_as(account, "node-1"), of_node_as(account, "node-8"));
    let write = |kubeconfig: &str, patch: &Value| patch_status(kubeconfig, &pod, patch).err().unwrap_or_default();
    let written = status_annotation("written");
    let foreign = "the pod is on node node-1, the token is of node node-8";
    wait_for("the server goes by the policy", 20, || write(&node_8, &written).contains(foreign));
    assert_eq!(write(&node_1, &written), "");
    let labels = json!({"metadata": {"labels": {"app": "stolen"}}});
    assert!(write(&node_1, &labels).contains("labels are not meta-cni's to change"));
    let forged = json!({
        "apiVersion": "v1", "kind": "Event", "metadata": {"name": "forged-renamed", "namespace": "default"},
        "involvedObject": {"kind": "Pod", "name": "renamed", "namespace": "default"}, "type": "Normal",
        "reportingComponent": "meta-cni", "reportingInstance": "node-1", "source": {"component": "meta-cni"},
    });
    let (made, _, said) = Bed::kubectl_raw(&["--kubeconfig", &node_8, "create", "-f", "-"], &forged.to_string());
    assert!(!made && said.contains("the event is of node node-1, the token is of node node-8"), "{said}");
    let daemon = rest.iter().find(|text| text.contains("kind: DaemonSet")).unwrap();
    assert!(daemon.contains("serviceAccountName: team-meta-cni-two"), "{daemon}");
}

#[test]
fn a_nodes_token_makes_events_of_its_own_node_alone() {
    let bed = Bed::enter();
    let _policy = Policy::enforce("probe-events");
    let node = of_node("node-4");
    let pod = Bed::pod("eventful", &json!({NETWORKS: "nowhere"}));
    let mut conf = bed.conf(node.as_ref());
    conf["nodeName"] = json!("node-4");
    let netns = bed.world.netns();
    bed.call("ADD", &netns, &conf, &pod).fails(7);
    let made = || -> Vec<Value> {
        let words = ["get", "events", "--field-selector=involvedObject.name=eventful", "-o", "json"];
        let list: Value = serde_json::from_str(&Bed::kubectl(&words, "")).unwrap();
        list["items"].as_array().unwrap().clone()
    };
    wait_for("what we say is taken", 15, || made().len() == 1);
    let mut event = made().remove(0);
    assert_eq!((&event["reason"], &event["reportingInstance"]), (&json!("NoNetworkFound"), &json!("node-4")));

    event["metadata"] = json!({"name": "forged", "namespace": "default"});
    for (key, value, reason) in [
        ("reportingInstance", json!("node-1"), "the event is of node node-1, the token is of node node-4"),
        ("reportingComponent", json!("kubelet"), "the event is not meta-cni's"),
        ("source", json!({"component": "kubelet", "host": "node-4"}), "the event is not meta-cni's"),
        ("source", json!({"component": "meta-cni", "host": "node-1"}), "the event is not meta-cni's"),
        ("involvedObject", json!({"kind": "Service", "name": "s", "namespace": "default"}), "are about pods"),
    ] {
        let mut forged = event.clone();
        forged[key] = value;
        let (made, _, said) = Bed::kubectl_raw(&["--kubeconfig", &node, "create", "-f", "-"], &forged.to_string());
        assert!(!made && said.contains("Forbidden") && said.contains(reason), "{key}: {said}");
    }
    bed.assert_undone(&netns);
}

#[test]
fn a_nodes_token_comes_to_nothing_but_pods_and_definitions() {
    let bed = Bed::enter();
    bed.macvlans(&[("barred", 16)]);
    let node = of_node("node-3");
    Bed::pod("barred", &json!({}));
    let config = r#"{"spec": {"config": "{}"}}"#;
    let spec = r#"{"spec": {"activeDeadlineSeconds": 1}}"#;
    for words in [
        vec!["get", "secrets", "--all-namespaces"],
        vec!["get", "pods"],
        vec!["get", "nodes"],
        vec!["patch", "pod", "barred", "--type=merge", "-p", spec],
        vec!["patch", "pod", "barred", "--type=merge", "-p", r#"{"metadata": {"labels": {"app": "stolen"}}}"#],
        vec!["delete", "pod", "barred"],
        vec!["patch", "net-attach-def", "barred", "--type=merge", "-p", config],
        vec!["delete", "net-attach-def", "barred"],
        vec!["create", "token", "meta-cni", "--namespace", "kube-system"],
    ] {
        let (success, stdout, stderr) =
            Bed::kubectl_raw(&[["--kubeconfig", node.as_str()].as_slice(), &words].concat(), "");
        let refused = format!("User \"{USER}\" cannot {}", words[0]);
        let listed = format!("User \"{USER}\" cannot list");
        let created = format!("User \"{USER}\" cannot create");
        assert!(
            !success && [refused, listed, created].iter().any(|text| stderr.contains(text)),
            "{words:?}: {stdout}{stderr}"
        );
    }
}
