//! What is in deploy/: a real API server takes it, every field of it.

use std::fs;

use serde_json::Value;

use crate::{bed::Bed, examples, harness::names};

const DEPLOY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy");

/// The objects of a kustomization, by kind and name.
fn objects(directory: &str) -> Vec<Value> {
    let text = Bed::kubectl(&["kustomize", directory], "");
    Bed::kubectl(&["apply", "--dry-run=server", "--validate=strict", "-f", "-"], &text);
    let json = Bed::kubectl(&["create", "--dry-run=client", "--validate=false", "-o", "json", "-f", "-"], &text);
    serde_json::Deserializer::from_str(&json).into_iter().map(Result::unwrap).collect()
}

fn find<'a>(objects: &'a [Value], kind: &str, name: &str) -> Option<&'a Value> {
    objects.iter().find(|object| object["kind"] == kind && object["metadata"]["name"] == name)
}

#[test]
fn the_server_takes_the_base_and_each_overlay() {
    let _bed = Bed::enter();
    let base = objects(&format!("{DEPLOY}/base"));
    for (kind, name) in [
        ("CustomResourceDefinition", "network-attachment-definitions.k8s.cni.cncf.io"),
        ("ServiceAccount", "meta-cni"),
        ("ClusterRole", "meta-cni"),
        ("ClusterRoleBinding", "meta-cni"),
        ("ValidatingAdmissionPolicy", "meta-cni-pod-status"),
        ("ValidatingAdmissionPolicyBinding", "meta-cni-pod-status"),
        ("ValidatingAdmissionPolicy", "meta-cni-events"),
        ("ValidatingAdmissionPolicyBinding", "meta-cni-events"),
        ("DaemonSet", "meta-cni"),
    ] {
        assert!(find(&base, kind, name).is_some(), "{kind} {name} is missing");
    }
    let overlays = names(format!("{DEPLOY}/overlays"));
    assert_eq!(overlays, ["dra", "k3s", "no-policy", "openshift"]);
    let of = |overlay: &str| objects(&format!("{DEPLOY}/overlays/{overlay}"));
    let policies = |objects: Vec<Value>| {
        objects.iter().filter(|object| object["kind"].as_str().unwrap().starts_with("ValidatingAdmission")).count()
    };
    assert_eq!((policies(of("dra")), policies(of("no-policy"))), (4, 0));
    assert!(find(&of("dra"), "ClusterRole", "meta-cni-dra").is_some());
    assert!(find(&of("openshift"), "ClusterRole", "meta-cni-scc").is_some());
    let path = |objects: &[Value], volume: &str| {
        let volumes = find(objects, "DaemonSet", "meta-cni").unwrap()["spec"]["template"]["spec"]["volumes"].clone();
        let found = volumes.as_array().unwrap().iter().find(|one| one["name"] == volume).unwrap().clone();
        found["hostPath"]["path"].as_str().unwrap().to_owned()
    };
    assert_eq!(path(&base, "conf"), "/etc/cni/net.d");
    assert_eq!(path(&of("k3s"), "conf"), "/var/lib/rancher/k3s/agent/etc/cni/net.d");
    assert_eq!(path(&of("openshift"), "conf"), "/etc/kubernetes/cni/net.d");
    assert_eq!(path(&of("openshift"), "kubelet"), "/var/lib/kubelet/kubeconfig");
    for overlay in &overlays {
        let rendered = of(overlay);
        let spec = &find(&rendered, "DaemonSet", "meta-cni").unwrap()["spec"]["template"]["spec"];
        let list = |from: &Value| from.as_array().unwrap().clone();
        let names = |from: &Value| list(from).iter().map(|one| one["name"].clone()).collect::<Vec<_>>();
        // Each mount has its volume, and lies where the arguments of the container say.
        assert_eq!(names(&spec["volumes"]), names(&spec["containers"][0]["volumeMounts"]), "{overlay}");
        assert_eq!(names(&spec["volumes"]).contains(&"kubelet".into()), overlay != "k3s", "{overlay}");
        for (mount, volume) in list(&spec["containers"][0]["volumeMounts"]).iter().zip(list(&spec["volumes"])) {
            if let Some(path) = volume["hostPath"]["path"].as_str() {
                assert_eq!(mount["mountPath"], format!("/host{path}"), "{overlay}");
            }
        }
        let probe = &spec["containers"][0]["readinessProbe"]["exec"]["command"];
        let status = list(probe).into_iter().find(|word| word.as_str().unwrap().starts_with("--status-file")).unwrap();
        assert!(list(&spec["containers"][0]["args"]).contains(&status), "{overlay}");
    }
}

#[test]
fn the_server_takes_the_examples() {
    let _bed = Bed::enter();
    for name in names(format!("{DEPLOY}/examples")).iter().filter(|name| name.ends_with(".yaml")) {
        let text = fs::read_to_string(format!("{DEPLOY}/examples/{name}")).unwrap();
        // What is in a namespace can be tried only where that is there.
        for namespace in examples::documents(&text).iter().filter(|object| object["kind"] == "Namespace") {
            Bed::kubectl(&["apply", "-f", "-"], &namespace.to_string());
        }
        Bed::kubectl(&["apply", "--dry-run=server", "--validate=strict", "-f", "-"], &text);
    }
}
