//! Devices of resource claims: objects as the scheduler and a driver leave them at the API server, and kubelet, which tells
//! of the claims but not of what our networks need.

use std::{fs, path::Path};

use serde_json::{Value, json};

use crate::{
    bed::{ApiPod, Bed, NETWORKS, USER, definition, handed, wait_for},
    harness::{Answer, ClaimResource, DynamicResource, Kubelet, PodResources, Recorder},
};

const RESOURCE: &str = "example.org/vf";
const DRIVER: &str = "net.example.org";
const RIGHTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/overlays/dra/rbac.yaml");

/// A node with a definition "dra-card", whose plugin records what it is told.
struct Node {
    bed: Bed,
    recorder: Recorder,
    conf: Value,
    netns: String,
}

impl Node {
    fn new() -> Self {
        let bed = Bed::enter();
        let mut card = definition("dra-card", &json!({"cniVersion": "1.0.0", "type": "card"}));
        card["metadata"]["annotations"] = json!({"k8s.v1.cni.cncf.io/resourceName": RESOURCE});
        Bed::kubectl(&["apply", "--validate=false", "-f", "-"], &card.to_string());
        // Claims with admin access are allowed only there.
        Bed::kubectl(&["label", "namespace", "default", "--overwrite", "resource.kubernetes.io/admin-access=true"], "");
        for kind in ["resourceslices", "resourceclaims"] {
            Bed::kubectl(&["delete", kind, "--all"], "");
        }
        let recorder = Recorder::install(&bed.world.bin, &["card"]);
        let conf = bed.conf(&Bed::service_account());
        let netns = bed.world.netns();
        Self { bed, recorder, conf, netns }
    }

    /// ADD with the pod's annotations handed over: what was asked for, and the devices that the networks got.
    fn attach(&self, pod: &ApiPod, networks: &str) -> (Vec<String>, Vec<Value>) {
        let conf = handed(&self.conf, &json!({NETWORKS: networks}));
        let asked = Bed::requests(|| drop(self.bed.call("ADD", &self.netns, &conf, pod).ok()));
        let calls = self.recorder.calls();
        self.recorder.take();
        let devices = calls.iter().map(|call| call.0["conf"]["deviceID"].clone()).collect();
        calls.iter().for_each(|call| assert_eq!(call.0["conf"]["pciBusID"], call.0["conf"]["deviceID"]));
        (asked, devices)
    }

    fn detach(&self, pod: &ApiPod) {
        let asked = Bed::requests(|| drop(self.bed.call("DEL", &self.netns, &self.conf, pod).ok()));
        assert_eq!(asked, Vec::<String>::new(), "DEL asks for nothing");
        self.recorder.take();
        self.bed.assert_undone(&self.netns);
    }

    /// ADD fails with a code and a text; nothing was executed.
    fn refuses(&self, pod: &ApiPod, networks: &str, code: u64) -> String {
        let conf = handed(&self.conf, &json!({NETWORKS: networks}));
        let text = self.bed.call("ADD", &self.netns, &conf, pod).fails(code);
        assert_eq!(self.recorder.take(), Vec::<String>::new());
        self.bed.assert_undone(&self.netns);
        text
    }
}

/// A pod that names claims of its own, and has others by a template.
fn pod(name: &str, own: &[&str], made: &[&str]) -> ApiPod {
    let own_entries = own.iter().map(|claim| json!({"name": claim, "resourceClaimName": claim}));
    let template = |claim: &&str| json!({"name": claim, "resourceClaimTemplateName": "template"});
    let made_entries = made.iter().map(template);
    let objects = Bed::create(&[json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "default"},
        "spec": {"nodeName": "node-1", "automountServiceAccountToken": false,
                 "resourceClaims": own_entries.chain(made_entries).collect::<Vec<_>>(),
                 "containers": [{"name": "c", "image": "localhost/test/pause:1"}]}
    })]);
    let statuses: Vec<Value> =
        made.iter().map(|claim| json!({"name": claim, "resourceClaimName": format!("{name}-{claim}")})).collect();
    if !statuses.is_empty() {
        patch_status("pod", name, &json!({"resourceClaimStatuses": statuses}));
    }
    ApiPod { name: name.to_owned(), uid: objects[0]["metadata"]["uid"].as_str().unwrap().to_owned() }
}

pub(crate) fn patch_status(kind: &str, name: &str, status: &Value) {
    let patch = json!({"status": status}).to_string();
    Bed::kubectl(&["patch", kind, name, "--subresource=status", "--type=merge", "-p", &patch], "");
}

/// A claim with two requests: "nic", and "look", which has admin access.
fn claim(name: &str) {
    let exactly = |admin: bool| json!({"deviceClassName": "nic", "adminAccess": admin, "allocationMode": "All"});
    Bed::create(&[json!({
        "apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaim", "metadata": {"name": name, "namespace": "default"},
        "spec": {"devices": {"requests": [
            {"name": "nic", "exactly": exactly(false)}, {"name": "look", "exactly": exactly(true)}]}}
    })]);
}

/// The scheduler's part: devices (request and name) for a claim, which is reserved for pods.
fn allocate(claim: &str, devices: &[(&str, &str)], pods: &[&ApiPod]) {
    let results: Vec<Value> = devices
        .iter()
        .map(|(request, device)| {
            let mut result = json!({"request": request, "driver": DRIVER, "pool": "node-1", "device": device});
            if *request == "look" {
                result["adminAccess"] = json!(true);
            }
            result
        })
        .collect();
    let reserved: Vec<Value> =
        pods.iter().map(|pod| json!({"resource": "pods", "name": pod.name, "uid": pod.uid})).collect();
    let status = json!({"allocation": {"devices": {"results": results}}, "reservedFor": reserved});
    patch_status("resourceclaim", claim, &status);
}

/// What a driver publishes: device and ID, without attributes if that is empty.
fn slice(name: &str, (driver, node): (&str, &str), (generation, count): (i64, i64), devices: &[(&str, &str)]) {
    let device = |(name, id): &(&str, &str)| match *id {
        "" => json!({"name": name}),
        id => json!({"name": name, "attributes": {
            "k8s.cni.cncf.io/deviceID": {"string": id}, "k8s.cni.cncf.io/resourceName": {"string": RESOURCE}}}),
    };
    Bed::create(&[json!({
        "apiVersion": "resource.k8s.io/v1", "kind": "ResourceSlice", "metadata": {"name": name},
        "spec": {"driver": driver, "nodeName": node, "devices": devices.iter().map(device).collect::<Vec<_>>(),
                 "pool": {"name": "node-1", "generation": generation, "resourceSliceCount": count}}
    })]);
}

/// kubelet, which gave the pod devices of a device plugin, and tells of a claim.
pub(crate) fn kubelet(pod: &str, ids: &[&str]) -> Kubelet {
    let mut entry = PodResources::new(pod, &[&[(RESOURCE, ids)]]);
    entry.containers[0].dynamic_resources = vec![DynamicResource {
        claim_name: "elsewhere".to_owned(),
        claim_namespace: "default".to_owned(),
        resources: vec![ClaimResource { driver: DRIVER.to_owned(), ..ClaimResource::default() }],
    }];
    Kubelet::serve([Answer::pod(entry)])
}

/// Whether our user may do something.
fn may(verb: &str, resource: &str) -> bool {
    let user = format!("--as={USER}");
    Bed::kubectl_raw(&["auth", "can-i", verb, resource, &user, "-n", "default"], "").1 == "yes"
}

/// Gives our user the rights of deploy/overlays/dra/rbac.yaml.
pub(crate) fn grant() {
    Bed::kubectl(&["apply", "-f", RIGHTS], "");
    wait_for("the server knows the rights", 10, || {
        may("get", "resourceclaims.resource.k8s.io") && may("list", "resourceslices.resource.k8s.io")
    });
}

#[test]
fn devices_of_resource_claims_go_to_networks_beside_those_of_device_plugins() {
    let node = Node::new();
    grant();
    let here = (DRIVER, "node-1");
    slice("former", here, (1, 1), &[("a", "0000:0a:00.9"), ("b", "0000:0a:00.9")]);
    slice("first", here, (2, 2), &[("a", "0000:0a:00.1"), ("b", "0000:0a:00.3"), ("seen", "0000:0a:00.0")]);
    slice("second", here, (2, 2), &[("plugged", "0000:0a:00.2")]);
    // What does not concern us: another node's, and another driver's, of the same names.
    slice("far", (DRIVER, "node-2"), (9, 1), &[("a", "0000:0a:00.8"), ("b", "0000:0a:00.8")]);
    slice("other", ("other.example.org", "node-1"), (9, 1), &[("a", "0000:0a:00.7"), ("b", "0000:0a:00.7")]);
    ["own", "dra-made"].into_iter().for_each(claim);
    let pod = pod("dra", &["own"], &["made"]);
    let neighbour = ApiPod { name: "neighbour".to_owned(), uid: "00000000-0000-4000-8000-000000000001".to_owned() };
    allocate("own", &[("nic", "b"), ("nic", "plugged")], &[&neighbour, &pod]);
    allocate("dra-made", &[("nic", "a"), ("look", "seen")], &[&pod]);
    let info = Path::new("/var/run/k8s.cni.cncf.io/devinfo/dp");
    fs::create_dir_all(info).unwrap();
    fs::write(info.join("example.org-vf-0000:0a:00.1-device.json"), r#"{"type":"pci","version":"1.1.0"}"#).unwrap();

    // One that the device plugin gave, too, and two of claims.
    let told = kubelet("dra", &["0000:0a:00.2"]);
    let networks = "dra-card,dra-card,dra-card";
    let (asked, devices) = node.attach(&pod, networks);
    assert_eq!(devices, ["0000:0a:00.1", "0000:0a:00.2", "0000:0a:00.3"]);
    let wanted = [
        "get network-attachment-definitions/dra-card",
        "get pods/dra",
        "get resourceclaims/dra-made",
        "get resourceclaims/own",
        "list resourceslices/",
        "patch pods/dra/status",
    ];
    assert_eq!(asked, wanted);
    assert_eq!(told.asked(), ["Get default/dra"]);
    let status = Bed::status("dra").expect("network-status");
    assert_eq!(status[1]["device-info"], json!({"type": "pci", "version": "1.1.0"}), "{status:#}");
    node.detach(&pod);

    // The device that it may only look at is nobody's, and one network more than devices is refused.
    let text = node.refuses(&pod, "dra-card,dra-card,dra-card,dra-card", 7);
    let lack = "kubelet and the pod's resource claims (dra-made, own) gave 0000:0a:00.1, 0000:0a:00.2, 0000:0a:00.3";
    assert!(text.contains("4 device(s) wanted for default/dra-card") && text.contains(lack), "{text}");

    // With enough of device plugins nobody is asked for claims.
    drop(told);
    let _kubelet = kubelet("dra", &["0000:0b:00.1"]);
    let (asked, devices) = node.attach(&pod, "dra-card");
    assert_eq!(devices, ["0000:0b:00.1"]);
    assert_eq!(asked, ["get network-attachment-definitions/dra-card", "patch pods/dra/status"]);
    node.detach(&pod);
}

#[test]
fn what_a_pods_resource_claims_lack_is_said() {
    let node = Node::new();
    grant();
    let told = kubelet("dra-plain", &[]);
    let plain = pod("dra-plain", &[], &[]);
    let conf = handed(&node.conf, &json!({NETWORKS: "dra-card"}));
    let asked = Bed::requests(|| {
        let text = node.bed.call("ADD", &node.netns, &conf, &plain).fails(7);
        assert!(text.contains("1 device(s) wanted for default/dra-card, kubelet gave the pod none: request"), "{text}");
    });
    let asked: Vec<&str> = asked.iter().map(String::as_str).filter(|one| !one.ends_with("events/")).collect();
    assert_eq!(asked, ["get network-attachment-definitions/dra-card", "get pods/dra-plain"]);

    drop(told);
    let told = kubelet("dra-poor", &[]);
    let poor = pod("dra-poor", &["nic"], &[]);
    let says = |code, parts: &[&str]| {
        let text = node.refuses(&poor, "dra-card", code);
        for part in parts.iter().chain(&["1 device(s) wanted for default/dra-card"]) {
            assert!(text.contains(part), "\"{text}\" does not say \"{part}\"");
        }
    };
    says(11, &["resource claim default/nic of the pod does not exist"]);
    claim("nic");
    says(11, &["resource claim default/nic of the pod has no devices allocated yet"]);
    let stranger = ApiPod { name: "stranger".to_owned(), uid: "00000000-0000-4000-8000-000000000002".to_owned() };
    allocate("nic", &[("nic", "bare")], &[&stranger]);
    says(11, &["resource claim default/nic is not reserved for the pod", &poor.uid]);
    patch_status(
        "resourceclaim",
        "nic",
        &json!({"reservedFor": [
        {"resource": "pods", "name": poor.name, "uid": poor.uid}]}),
    );
    let bare = "device net.example.org/node-1/bare of resource claim default/nic";
    says(11, &["claims (nic) gave none", &format!("{bare} is in no ResourceSlice of node node-1")]);
    slice("half", (DRIVER, "node-1"), (1, 2), &[("good", "0000:0a:00.1")]);
    says(
        11,
        &[&format!("{bare} is not among what its driver publishes (1 of 2 ResourceSlices of generation 1 are there)")],
    );
    slice("whole", (DRIVER, "node-1"), (1, 2), &[("bare", "")]);
    says(7, &[&format!("{bare} has no attribute k8s.cni.cncf.io/resourceName")]);
    // A driver that publishes anew: what it published before does not count any more, and the rest is to come.
    slice("anew", (DRIVER, "node-1"), (2, 2), &[("good", "0000:0a:00.1")]);
    says(
        11,
        &[&format!("{bare} is not among what its driver publishes (1 of 2 ResourceSlices of generation 2 are there)")],
    );
    Bed::kubectl(&["delete", "resourceslice", "anew"], "");
    // It does not matter where no network goes without.
    drop(told);
    let _kubelet = kubelet("dra-rich", &[]);
    let rich = pod("dra-rich", &["both"], &[]);
    claim("both");
    allocate("both", &[("nic", "bare"), ("nic", "good")], &[&rich]);
    assert_eq!(node.attach(&rich, "dra-card").1, ["0000:0a:00.1"]);
    node.detach(&rich);
}

#[test]
fn the_rights_for_resource_claims_are_needed_and_their_lack_is_named() {
    let node = Node::new();
    Bed::kubectl(&["delete", "clusterrole,clusterrolebinding", "meta-cni-dra", "--ignore-not-found"], "");
    slice("rights", (DRIVER, "node-1"), (1, 1), &[("a", "0000:0a:00.1")]);
    let pod = pod("dra-rights", &["rights"], &[]);
    claim("rights");
    allocate("rights", &[("nic", "a")], &[&pod]);
    let _kubelet = kubelet("dra-rights", &[]);
    wait_for("the server forgot the rights", 10, || !may("get", "resourceclaims.resource.k8s.io"));
    let lacks = |right: &str| {
        let text = node.refuses(&pod, "dra-card", 11);
        assert!(text.contains(right) && text.contains("deploy/overlays/dra/rbac.yaml"), "{text}");
    };
    lacks("cannot get resource \"resourceclaims\"");
    grant();
    let drop_second = json!([{"op": "remove", "path": "/rules/1"}]).to_string();
    Bed::kubectl(&["patch", "clusterrole", "meta-cni-dra", "--type=json", "-p", &drop_second], "");
    wait_for("the server forgot a right", 10, || !may("list", "resourceslices.resource.k8s.io"));
    lacks("cannot list resource \"resourceslices\"");
    grant();
    assert_eq!(node.attach(&pod, "dra-card").1, ["0000:0a:00.1"]);
    node.detach(&pod);
}

#[test]
fn a_device_of_a_resource_that_the_scheduler_turned_into_a_claim_is_the_networks() {
    let node = Node::new();
    grant();
    // The driver names no resource: the pod does, as it would ask a device plugin.
    let device = |name: &str| {
        let id = format!("0000:0a:00.{name}");
        json!({"name": name, "attributes": {"k8s.cni.cncf.io/deviceID": {"string": id}}})
    };
    let devices = ["1", "2"].map(device);
    Bed::create(&[json!({
        "apiVersion": "resource.k8s.io/v1", "kind": "ResourceSlice", "metadata": {"name": "extended"},
        "spec": {"driver": DRIVER, "nodeName": "node-1", "devices": devices,
                 "pool": {"name": "node-1", "generation": 1, "resourceSliceCount": 1}}
    })]);
    let made = Bed::create(&[json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "dra-extended", "namespace": "default"},
        "spec": {"nodeName": "node-1", "automountServiceAccountToken": false, "containers": [
            {"name": "c", "image": "localhost/test/pause:1", "resources": {"limits": {RESOURCE: "1"}}}]}
    })]);
    let pod = ApiPod { name: "dra-extended".to_owned(), uid: made[0]["metadata"]["uid"].as_str().unwrap().to_owned() };
    claim("dra-extended-0x1f");
    allocate("dra-extended-0x1f", &[("nic", "1")], &[&pod]);
    let mapping = json!({"containerName": "c", "resourceName": RESOURCE, "requestName": "nic"});
    let status = json!({"resourceClaimName": "dra-extended-0x1f", "requestMappings": [mapping]});
    patch_status("pod", "dra-extended", &json!({"extendedResourceClaimStatus": status}));
    let kept =
        Bed::kubectl(&["get", "pod", "dra-extended", "-o", "jsonpath={.status.extendedResourceClaimStatus}"], "");
    assert_eq!(serde_json::from_str::<Value>(&kept).unwrap(), status, "the server kept it");
    let _kubelet = kubelet("dra-extended", &[]);
    assert_eq!(node.attach(&pod, "dra-card").1, ["0000:0a:00.1"]);
    node.detach(&pod);
    let text = node.refuses(&pod, "dra-card,dra-card", 7);
    assert!(text.contains("resource claims (dra-extended-0x1f) gave 0000:0a:00.1: ask for as many"), "{text}");
}
