//! deploy/examples: each file as it is goes to the server, and its pods get what it says. Files with VFs are for the guest
//! (tests/guest/examples.rs), but for the resource claim, which takes an API server.

use std::fs;

use serde_json::{Value, json};

use crate::{
    bed::{ApiPod, Bed, STATUS},
    dra,
    harness::{Call, Interface, Recorder, defaults, in_netns, ip, ip_in, ping},
};

/// The objects of a manifest.
pub(crate) fn documents(text: &str) -> Vec<Value> {
    let json = Bed::kubectl(&["create", "--dry-run=client", "--validate=false", "-o", "json", "-f", "-"], text);
    serde_json::Deserializer::from_str(&json).into_iter().map(Result::unwrap).collect()
}

/// The bed with a NIC eth1, whose other end is `wire`, and an example that is applied.
struct Stage {
    bed: Bed,
    conf: Value,
    pods: Vec<Value>,
}

/// A pod of the example: who it is, and its sandbox.
struct Guest {
    namespace: String,
    pod: ApiPod,
    netns: String,
}

impl Stage {
    fn with(example: &str) -> Self {
        let bed = Bed::enter();
        let conf = bed.conf(&Bed::service_account());
        bed.world.plugins("reference", &["macvlan", "bridge", "host-local", "static", "tuning", "sbr"]);
        for arguments in ["link add eth1 type veth peer name wire", "link set eth1 up", "link set wire up"] {
            ip(arguments);
        }
        let mut pods = Vec::new();
        for mut object in documents(example) {
            if object["kind"] == "Pod" {
                // Nobody schedules here, and there are no controllers, who would make a service account.
                object["spec"]["nodeName"] = json!("node-1");
                object["spec"]["automountServiceAccountToken"] = json!(false);
                pods.push(object.clone());
            }
            Bed::kubectl(&["apply", "--validate=strict", "-f", "-"], &object.to_string());
        }
        Self { bed, conf, pods }
    }

    fn guest(&self, namespace: &str, name: &str) -> Guest {
        let uid = Bed::kubectl(&["get", "pod", name, "-n", namespace, "-o", "jsonpath={.metadata.uid}"], "");
        Guest {
            namespace: namespace.to_owned(),
            pod: ApiPod { name: name.to_owned(), uid },
            netns: self.bed.world.netns(),
        }
    }

    fn call(&self, verb: &str, guest: &Guest) -> Call {
        let args = format!(
            "IgnoreUnknown=1;K8S_POD_NAMESPACE={};K8S_POD_NAME={};K8S_POD_INFRA_CONTAINER_ID={};K8S_POD_UID={}",
            guest.namespace, guest.pod.name, guest.pod.name, guest.pod.uid
        );
        self.bed.call(verb, &guest.netns, &self.conf, &guest.pod).env("CNI_ARGS", &args)
    }

    fn attach_in(&self, namespace: &str, name: &str) -> Guest {
        let guest = self.guest(namespace, name);
        self.call("ADD", &guest).ok();
        guest
    }

    fn attach(&self, name: &str) -> Guest {
        self.attach_in("default", name)
    }

    /// DEL gives back everything.
    fn detach(&self, guests: &[Guest]) {
        for guest in guests {
            self.call("DEL", guest).ok();
        }
        for guest in guests {
            self.bed.assert_undone(&guest.netns);
        }
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        let pods = json!({"apiVersion": "v1", "kind": "List", "items": self.pods}).to_string();
        Bed::kubectl_raw(&["delete", "--force", "--grace-period=0", "-f", "-"], &pods);
    }
}

impl Guest {
    fn interface(&self, name: &str) -> Interface {
        Interface::find(&self.netns, name).unwrap_or_else(|| panic!("{} has no {name}", self.pod.name))
    }

    fn addresses(&self, interface: &str) -> Vec<String> {
        self.interface(interface).addresses()
    }

    /// Network and interface of each entry of network-status, without the primary's.
    fn networks(&self) -> Vec<(String, String)> {
        let pod = Bed::kubectl(&["get", "pod", &self.pod.name, "-n", &self.namespace, "-o", "json"], "");
        let pod: Value = serde_json::from_str(&pod).unwrap();
        let status: Value = serde_json::from_str(pod["metadata"]["annotations"][STATUS].as_str().unwrap()).unwrap();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let entries = status.as_array().unwrap().iter().skip(1);
        entries.map(|entry| (text(&entry["name"]), text(&entry["interface"]))).collect()
    }
}

#[test]
fn bridge() {
    let stage = Stage::with(include_str!("../../deploy/examples/bridge.yaml"));
    let (one, two) = (stage.attach("bridge-one"), stage.attach("bridge-two"));
    assert_eq!(one.networks(), [("default/backplane".to_owned(), "net1".to_owned())]);
    assert_eq!((one.addresses("net1"), two.addresses("net1")), (list("10.60.0.1/24"), list("10.60.0.2/24")));
    assert!(ping(&one.netns, "10.60.0.2") && ping(&one.netns, "10.60.0.254"));
    assert_eq!(defaults(&one.netns)[0], ["eth0 10.244.7.1"]);
    stage.call("CHECK", &one).ok();
    stage.detach(&[one, two]);
}

fn list(address: &str) -> Vec<String> {
    vec![address.to_owned()]
}

#[test]
fn fixed_addresses() {
    let stage = Stage::with(include_str!("../../deploy/examples/fixed-addresses.yaml"));
    let fixed = stage.attach("fixed");
    assert_eq!(fixed.addresses("net1"), ["10.61.0.42/24"]);
    assert_eq!(fixed.addresses("net2"), ["10.62.0.7/24", "2001:db8:62::7/64"]);
    assert_eq!(stage.bed.world.leases("pooled"), ["10.61.0.42"]);
    stage.call("CHECK", &fixed).ok();
    stage.detach(&[fixed]);
}

#[test]
fn default_route() {
    let stage = Stage::with(include_str!("../../deploy/examples/default-route.yaml"));
    let outbound = stage.attach("outbound");
    assert_eq!(defaults(&outbound.netns)[0], ["net1 10.63.0.1"]);
    let kept = ip_in(&outbound.netns, "route show 10.244.0.0/16");
    assert!(kept.contains("via 10.244.7.1 dev eth0"), "the way to the cluster's pods: {kept}");
    stage.call("CHECK", &outbound).ok();
    stage.detach(&[outbound]);
}

#[test]
fn two_families() {
    let stage = Stage::with(include_str!("../../deploy/examples/two-families.yaml"));
    let (one, two) = (stage.attach("both-one"), stage.attach("both-two"));
    assert_eq!(one.addresses("net1"), ["10.64.0.10/24", "2001:db8:64::10/64"]);
    assert_eq!(two.addresses("net1"), ["10.64.0.11/24", "2001:db8:64::11/64"]);
    assert!(ping(&one.netns, "10.64.0.11") && ping(&one.netns, "2001:db8:64::11"));
    for (family, dst) in [("-4", "198.51.100.0/24"), ("-6", "2001:db8:100::/64")] {
        let route = ip_in(&one.netns, &format!("{family} route show {dst}"));
        assert!(route.contains("dev net1"), "{dst}: {route}");
    }
    stage.call("CHECK", &one).ok();
    stage.detach(&[one, two]);
}

#[test]
fn name_and_mac() {
    let stage = Stage::with(include_str!("../../deploy/examples/name-and-mac.yaml"));
    let named = stage.attach("named");
    assert_eq!(named.interface("data0").mac(), "02:00:00:00:65:01");
    assert!(Interface::find(&named.netns, "net1").is_none());
    stage.call("CHECK", &named).ok();
    stage.detach(&[named]);
}

#[test]
fn sysctls() {
    let stage = Stage::with(include_str!("../../deploy/examples/sysctls.yaml"));
    let tuned = stage.attach("tuned");
    let value = |key: &str| in_netns(&tuned.netns, &["sysctl", "-n", key]).trim().to_owned();
    assert_eq!(
        ["net.ipv4.conf.net1.arp_ignore", "net.ipv4.conf.net1.rp_filter", "net.core.somaxconn"].map(value),
        ["1", "2", "500"]
    );
    assert_eq!(tuned.interface("net1").mtu(), 1400);
    stage.call("CHECK", &tuned).ok();
    stage.detach(&[tuned]);
}

#[test]
fn source_routing() {
    let stage = Stage::with(include_str!("../../deploy/examples/source-routing.yaml"));
    let router = stage.bed.world.netns();
    ip(&format!("link set wire netns {}", router.replace("/run/netns/", "")));
    ip_in(&router, "addr add 10.67.0.1/24 dev wire");
    ip_in(&router, "link set wire up");
    let client = stage.bed.world.client_behind(&router);
    let answering = stage.attach("answering");
    assert_eq!(defaults(&answering.netns)[0], ["eth0 10.244.7.1"]);
    let rules = ip_in(&answering.netns, "rule show");
    assert!(rules.contains("from 10.67.0.2 lookup 100"), "{rules}");
    assert!(ping(&client, "10.67.0.2"), "the answer took another way");
    stage.detach(&[answering]);
}

#[test]
fn node_file() {
    let stage = Stage::with(include_str!("../../deploy/examples/node-file.yaml"));
    let guest = stage.guest("default", "local");
    let text = stage.call("ADD", &guest).fails(7);
    assert!(text.contains("definition default/site-lan"), "{text}");
    fs::create_dir_all("/etc/cni/multus/net.d").unwrap();
    let file = include_str!("../../deploy/examples/node/site-lan.conflist");
    fs::write("/etc/cni/multus/net.d/30-site.conflist", file).unwrap();
    stage.call("ADD", &guest).ok();
    assert_eq!(guest.addresses("net1"), ["10.68.7.2/24"]);
    stage.call("CHECK", &guest).ok();
    stage.detach(&[guest]);
}

#[test]
fn namespaces() {
    let mut stage = Stage::with(include_str!("../../deploy/examples/namespaces.yaml"));
    let keys: Value = serde_json::from_str(include_str!("../../deploy/examples/node/isolation.json")).unwrap();
    stage.conf.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
    let member = stage.attach_in("team-a", "member");
    let expected = [("team-a/private", "net1"), ("shared-networks/lan", "net2")];
    assert_eq!(member.networks(), expected.map(|(network, link)| (network.to_owned(), link.to_owned())));
    // A pod of another namespace has no part in it.
    Bed::pod_with("stranger", "team-a/private");
    let stranger = stage.guest("default", "stranger");
    let text = stage.call("ADD", &stranger).fails(7);
    let only = "team-a/private: a pod may use definitions of its own namespace and of shared-networks only";
    assert!(text.contains(only), "{text}");
    stage.detach(&[member]);
}

#[test]
fn ranges_by_node() {
    let stage = Stage::with(include_str!("../../deploy/examples/ranges-by-node.yaml"));
    stage.bed.world.drop_in("host-local");
    let identity: Value = serde_json::from_str(include_str!("../../deploy/examples/node/node.json")).unwrap();
    let become_node = |name: &str, rack: &str| {
        let mut identity = identity.clone();
        if !name.is_empty() {
            (identity["name"], identity["labels"]["rack"]) = (json!(name), json!(rack));
        }
        fs::create_dir_all("/etc/cni/meta-cni").unwrap();
        fs::write("/etc/cni/meta-cni/node.json", identity.to_string()).unwrap();
    };
    for (name, rack, address) in [("", "", "10.71.7.11/16"), ("edge-8", "r1", "10.71.1.10/16")] {
        become_node(name, rack);
        let somewhere = stage.attach("somewhere");
        assert_eq!(somewhere.addresses("net1"), [address], "on node \"{name}\" of rack \"{rack}\"");
        stage.call("CHECK", &somewhere).ok();
        stage.detach(&[somewhere]);
    }
    become_node("edge-9", "r9");
    let nowhere = stage.guest("default", "somewhere");
    let text = stage.call("ADD", &nowhere).fails(7);
    assert!(text.contains("rangesByNode has no entry for the node \"edge-9\""), "{text}");
    stage.bed.assert_undone(&nowhere.netns);
}

/// Without a scheduler and a driver: what these leave at the server is written by hand. The VF's plugin is a recording one.
#[test]
fn resource_claim() {
    let example = include_str!("../../deploy/examples/resource-claim.yaml");
    let mut stage = Stage::with(example);
    dra::grant();
    let recorder = Recorder::install(&stage.bed.world.bin, &["sriov"]);
    stage.conf["builtins"] = json!(["host-local", "static"]);
    let template = documents(example).into_iter().find(|object| object["kind"] == "ResourceClaimTemplate").unwrap();
    let guest = stage.guest("default", "claiming");
    Bed::create(&[
        json!({"apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaim",
               "metadata": {"name": "claiming-vf", "namespace": "default"}, "spec": template["spec"]["spec"]}),
        json!({"apiVersion": "resource.k8s.io/v1", "kind": "ResourceSlice", "metadata": {"name": "example"},
               "spec": {"driver": "net.example.com", "nodeName": "node-1",
                        "pool": {"name": "node-1", "generation": 1, "resourceSliceCount": 1},
                        "devices": [{"name": "vf-3", "attributes": {
                            "k8s.cni.cncf.io/deviceID": {"string": "0000:0b:00.3"},
                            "k8s.cni.cncf.io/resourceName": {"string": "example.com/port-b"}}}]}}),
    ]);
    let made = json!({"resourceClaimStatuses": [{"name": "vf", "resourceClaimName": "claiming-vf"}]});
    dra::patch_status("pod", "claiming", &made);
    let device = json!({"request": "vf", "driver": "net.example.com", "pool": "node-1", "device": "vf-3"});
    let given = json!({"allocation": {"devices": {"results": [device]}},
                       "reservedFor": [{"resource": "pods", "name": "claiming", "uid": guest.pod.uid}]});
    dra::patch_status("resourceclaim", "claiming-vf", &given);
    let _kubelet = dra::kubelet("claiming", &[]);
    stage.call("ADD", &guest).ok();
    let told = recorder.calls();
    assert_eq!(told[0].0["conf"]["deviceID"], "0000:0b:00.3", "{told:#?}");
    stage.detach(&[guest]);
}
