//! Pods: how they are asked for, and what became of them by three witnesses: the API, the kernel, and our records.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::cluster::{Cluster, array};

const NETWORKS: &str = "k8s.v1.cni.cncf.io/networks";
const STATUS: &str = "k8s.v1.cni.cncf.io/network-status";

/// All that the node has of pods, in one go: our records, the namespaces with their interfaces, and files.
const LOOK: &str = r#"
cd /var/lib/cni
find meta-cni/sandboxes -name '*.json' -exec cat {} + 2>/dev/null | jq -c -n '[inputs]'
for name in $(ls /run/netns); do
    # One that is being deleted is none.
    ! links=$(ip -n "$name" -j -d addr show 2>/dev/null) || jq -c --arg name "$name" '{$name, links: .}' <<<"$links"
done | jq -c -n '[inputs]'
find networks results flannel meta-cni/vfs /run/k8s.cni.cncf.io/devinfo/cni /run/meta-cni/lock -type f 2>/dev/null |
    grep -v -e '/lock$' -e /last_reserved_ip -e /lock/vf- || true
"#;

/// A definition of VFs of a resource.
pub(crate) fn vf_network(name: &str, resource: &str, config: &Value) -> Value {
    let mut object = network(name, config);
    object["metadata"]["annotations"] = json!({"k8s.v1.cni.cncf.io/resourceName": resource});
    object
}

/// A definition.
pub(crate) fn network(name: &str, config: &Value) -> Value {
    json!({
        "apiVersion": "k8s.cni.cncf.io/v1", "kind": "NetworkAttachmentDefinition",
        "metadata": {"name": name, "namespace": "default"}, "spec": {"config": config.to_string()}
    })
}

/// What a pod is to be: networks, and one device of each resource. Its container says first which addresses it sees.
pub(crate) fn template(app: &str, networks: &str, resources: &[&str]) -> Value {
    let limits: BTreeMap<&str, &str> = resources.iter().map(|resource| (*resource, "1")).collect();
    json!({
        "metadata": {"labels": {"app": app}, "annotations": {NETWORKS: networks}},
        "spec": {
            "terminationGracePeriodSeconds": 0, "automountServiceAccountToken": false, "dnsPolicy": "Default",
            "containers": [{
                "name": "one", "image": "localhost/test/busybox:1", "imagePullPolicy": "IfNotPresent",
                "command": ["sh", "-c", "ip -o -4 addr show; exec sleep 100000"], "resources": {"limits": limits}
            }]
        }
    })
}

/// A pod of a name that is bound to the node without a scheduler.
pub(crate) fn bound(name: &str, mut template: Value) -> Value {
    template["apiVersion"] = json!("v1");
    template["kind"] = json!("Pod");
    template["metadata"]["name"] = json!(name);
    template["spec"]["nodeName"] = json!("node-1");
    template
}

/// A deployment, which makes a new pod for each that ends.
pub(crate) fn deployment(name: &str, replicas: usize, template: &Value) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name},
        "spec": {"replicas": replicas, "selector": {"matchLabels": template["metadata"]["labels"]}, "template": template}
    })
}

pub(crate) fn name(pod: &Value) -> String {
    pod["metadata"]["name"].as_str().unwrap().to_owned()
}

/// Whether a pod runs, is Ready, and is not about to go.
pub(crate) fn is_ready(pod: &Value) -> bool {
    let ready = array(&pod["status"]["conditions"]).any(|of| of["type"] == "Ready" && of["status"] == "True");
    ready && pod["status"]["phase"] == "Running" && pod["metadata"]["deletionTimestamp"].is_null()
}

/// The container that a pod has now.
pub(crate) fn container_of(pod: &Value) -> String {
    pod["status"]["containerStatuses"][0]["containerID"].as_str().unwrap_or_default().to_owned()
}

/// The interfaces that a pod is to have, by what it asks for.
fn wanted(pod: &Value) -> Vec<(String, String)> {
    let networks = pod["metadata"]["annotations"][NETWORKS].as_str().unwrap_or_default();
    let secondary = |(at, name): (usize, &str)| (format!("default/{name}"), format!("net{}", at + 1));
    let secondaries = networks.split(',').filter(|name| !name.is_empty()).enumerate().map(secondary);
    [("cbr0".to_owned(), "eth0".to_owned())].into_iter().chain(secondaries).collect()
}

/// network-status of a pod that names every network it asks for; panics with the pod if it does not.
#[track_caller]
pub(crate) fn status_of(pod: &Value) -> Vec<Value> {
    let text = pod["metadata"]["annotations"][STATUS].as_str().unwrap_or_default();
    let status: Vec<Value> = serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text:?} of {pod:#}"));
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let named: Vec<(String, String)> =
        status.iter().map(|entry| (text(&entry["name"]), text(&entry["interface"]))).collect();
    assert_eq!(named, wanted(pod), "network-status of {}", name(pod));
    status
}

/// A pod with all its networks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Attached {
    pub(crate) name: String,
    /// The name of its namespace on the node.
    pub(crate) netns: String,
    /// By interface.
    pub(crate) addresses: BTreeMap<String, String>,
    /// By interface: the PCI addresses of its VFs.
    pub(crate) vfs: BTreeMap<String, String>,
}

/// What the node has of pods.
pub(crate) struct Look {
    records: Vec<Value>,
    namespaces: BTreeMap<String, Vec<Value>>,
    files: Vec<String>,
}

impl Look {
    pub(crate) fn at(cluster: &Cluster) -> Self {
        let text = cluster.guest.run(LOOK);
        let mut lines = text.lines();
        let mut list = || -> Vec<Value> {
            let line = lines.next().unwrap_or_default();
            serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {text}"))
        };
        let records = list();
        let of = |entry: Value| (entry["name"].as_str().unwrap().to_owned(), array(&entry["links"]).cloned().collect());
        let namespaces = list().into_iter().map(of).collect();
        Self { records, namespaces, files: lines.map(str::to_owned).collect() }
    }

    /// A running pod; panics unless its network-status, its interfaces and our records agree on all its networks.
    #[track_caller]
    pub(crate) fn attached(&self, pod: &Value) -> Attached {
        let (pod_name, status) = (name(pod), status_of(pod));
        let own = |record: &&Value| record["pod"]["name"] == *pod_name;
        let mut records: Vec<&Value> = self.records.iter().filter(own).collect();
        records.sort_by_key(|record| record["position"].as_u64());
        let place = |record: &&Value| (record["network"].clone(), record["interface"].clone(), record["stage"].clone());
        let recorded: Vec<_> = records.iter().map(place).collect();
        let told: Vec<_> =
            status.iter().map(|entry| (entry["name"].clone(), entry["interface"].clone(), json!("done"))).collect();
        assert_eq!(recorded, told, "records of {pod_name}");
        let netns = records[0]["netns"].as_str().unwrap().rsplit('/').next().unwrap().to_owned();
        let links = self.namespaces.get(&netns).unwrap_or_else(|| panic!("{pod_name} has no namespace {netns}"));
        let mut found = Attached { name: pod_name, netns, addresses: BTreeMap::new(), vfs: BTreeMap::new() };
        for entry in &status {
            found.compare(entry, links);
        }
        let primary = &found.addresses["eth0"];
        assert_eq!(pod["status"]["podIP"].as_str(), Some(primary.as_str()), "the address that kubelet tells");
        found
    }

    /// What the node has of no pod, or of those that there are: panics unless records, leases, addresses, namespaces and
    /// results are those of these pods and of nothing else.
    pub(crate) fn surplus(&self, pods: &[Attached]) -> Vec<String> {
        let namespaces: BTreeSet<&str> = pods.iter().map(|pod| pod.netns.as_str()).collect();
        let alive = |record: &Value| {
            let netns = record["netns"].as_str().unwrap_or_default();
            namespaces.contains(netns.rsplit('/').next().unwrap_or_default())
        };
        let mut surplus: Vec<String> =
            self.namespaces.keys().filter(|name| !namespaces.contains(name.as_str())).cloned().collect();
        surplus.extend(self.records.iter().filter(|record| !alive(record)).map(ToString::to_string));
        let containers: BTreeSet<&str> = self
            .records
            .iter()
            .filter(|record| alive(record))
            .filter_map(|record| record["call"]["container"].as_str())
            .collect();
        let addresses: BTreeSet<&str> =
            pods.iter().flat_map(|pod| pod.addresses.values()).map(String::as_str).collect();
        let vfs: BTreeSet<&str> = pods.iter().flat_map(|pod| pod.vfs.values()).map(String::as_str).collect();
        let of_living = |file: &&String| {
            let last = file.rsplit('/').next().unwrap_or_default();
            addresses.contains(last)
                || last.strip_suffix(".json").is_some_and(|vf| vfs.contains(vf))
                || containers.iter().any(|container| last.contains(container))
        };
        surplus.extend(self.files.iter().filter(|file| !of_living(file)).cloned());
        surplus
    }

    /// How many files of a directory there are.
    pub(crate) fn count(&self, directory: &str) -> usize {
        self.files.iter().filter(|file| file.starts_with(directory)).count()
    }

    /// How many records there are.
    pub(crate) fn records(&self) -> usize {
        self.records.len()
    }
}

impl Attached {
    /// Compares an entry of network-status with the kernel's interface.
    #[track_caller]
    fn compare(&mut self, entry: &Value, links: &[Value]) {
        let interface = entry["interface"].as_str().unwrap();
        let link = links.iter().find(|link| link["ifname"] == interface);
        let link = link.unwrap_or_else(|| panic!("{} has no {interface}: {links:?}", self.name));
        assert_eq!(entry["mac"], link["address"], "{interface} of {}", self.name);
        let global = array(&link["addr_info"]).filter(|info| info["scope"] == "global" && info["family"] == "inet");
        let addresses: Vec<Value> = global.map(|info| info["local"].clone()).collect();
        assert_eq!(entry["ips"], json!(addresses), "{interface} of {}", self.name);
        assert_eq!(addresses.len(), 1, "{interface} of {}: {link}", self.name);
        self.addresses.insert(interface.to_owned(), addresses[0].as_str().unwrap().to_owned());
        let told = &entry["device-info"]["pci"]["pci-address"];
        assert_eq!(told, &link["parentdev"], "device-info of {interface} of {}: {entry}", self.name);
        if let Some(vf) = told.as_str() {
            self.vfs.insert(interface.to_owned(), vf.to_owned());
        }
    }
}

/// All pods of a deployment that are Ready, with all their networks.
#[track_caller]
pub(crate) fn attached(cluster: &Cluster, labels: &str) -> Vec<Attached> {
    let pods = cluster.list("pods", labels);
    let look = Look::at(cluster);
    let mut attached: Vec<Attached> = pods.iter().filter(|pod| is_ready(pod)).map(|pod| look.attached(pod)).collect();
    attached.sort_by(|one, other| one.name.cmp(&other.name));
    let addresses: BTreeSet<_> = attached.iter().flat_map(|pod| pod.addresses.values()).collect();
    let all: usize = attached.iter().map(|pod| pod.addresses.len()).sum();
    assert_eq!(addresses.len(), all, "an address twice: {attached:#?}");
    attached
}
