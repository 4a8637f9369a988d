//! The machine as a node: its VFs, the devices that kubelet gave out, and what its links looked like before.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::Mutex,
    thread::sleep,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::harness::{Call, World, ip, names};

/// Where kubelet's device manager keeps what it gave out.
const CHECKPOINT: &str = "/var/lib/kubelet/device-plugins/kubelet_internal_checkpoint";

/// A virtual function.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Vf {
    /// Its PCI address.
    pub(crate) pci: String,
    /// Interface of its PF.
    pub(crate) pf: String,
    /// Its number there.
    pub(crate) number: usize,
    /// Its own interface in the host.
    pub(crate) name: String,
    /// Its own address.
    pub(crate) mac: String,
}

impl Vf {
    /// What the PF says of it.
    pub(crate) fn row(&self) -> Value {
        let links: Value = serde_json::from_str(&ip(&format!("-j -d link show {}", self.pf))).unwrap();
        links[0]["vfinfo_list"][self.number].clone()
    }
}

/// A node for one test.
pub(crate) struct Node {
    /// Manifests, plugins and calls.
    pub(crate) world: World,
    /// Our configuration, with a bridge as the primary network.
    pub(crate) conf: Value,
    /// The VFs of the first port.
    pub(crate) a: Vec<Vf>,
    /// The VFs of the second port.
    pub(crate) b: Vec<Vf>,
    /// By pod: resource and device.
    given: Mutex<BTreeMap<String, Vec<(String, String)>>>,
    before: Vec<Value>,
}

impl Node {
    /// The node as new, with Flannel and both families as the primary network.
    pub(crate) fn with_flannel() -> Self {
        let mut node = Self::new();
        node.conf = node.world.conf(&node.world.flannel_of_two_families());
        delete_bridge();
        node
    }

    /// The node as new, whatever an earlier test left in files and namespaces.
    pub(crate) fn new() -> Self {
        if Path::new("/run/flannel").exists() {
            fs::remove_dir_all("/run/flannel").unwrap();
            delete_bridge();
        }
        for name in ip("netns list").lines().filter_map(|line| line.split(' ').next()).filter(|name| !name.is_empty()) {
            ip(&format!("netns delete {name}"));
        }
        for directory in ["/var/lib/cni", "/run/meta-cni", "/run/test", "/etc/cni", "/var/lib/kubelet"] {
            for name in names(directory) {
                let path = Path::new(directory).join(name);
                let _ = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
            }
        }
        Self::as_found()
    }

    /// The node with what is in its files.
    pub(crate) fn as_found() -> Self {
        let world = World::on_this_machine();
        let conf = world.conf(&world.bridge_primary());
        let (a, b) = (vfs("A"), vfs("B"));
        let before = host_links();
        Self { world, conf, a, b, given: Mutex::default(), before }
    }

    /// What [`Self::assert_as_before`] compares with is what there is now.
    pub(crate) fn look_again(&mut self) {
        self.before = host_links();
    }

    /// Writes a definition whose devices are of a resource.
    pub(crate) fn network(&self, name: &str, resource: &str, config: &Value) -> &Self {
        self.world.definition_with_resource(name, resource, config);
        self
    }

    /// A pod that asks for networks, to which kubelet gave devices; gives its namespace.
    pub(crate) fn pod(&self, name: &str, networks: &str, devices: &[(&str, &Vf)]) -> String {
        let devices: Vec<(&str, &str)> = devices.iter().map(|(resource, vf)| (*resource, vf.pci.as_str())).collect();
        self.pod_with(name, networks, &devices)
    }

    /// The same with device IDs, which may be anything.
    pub(crate) fn pod_with(&self, name: &str, networks: &str, devices: &[(&str, &str)]) -> String {
        self.world.pod(name, networks);
        self.give(name, devices);
        self.world.netns()
    }

    /// Kubelet gives devices to a pod.
    pub(crate) fn give(&self, pod: &str, devices: &[(&str, &str)]) {
        let devices = devices.iter().map(|(resource, id)| ((*resource).to_owned(), (*id).to_owned())).collect();
        let mut given = self.given.lock().unwrap();
        given.insert(pod.to_owned(), devices);
        write_checkpoint(&given);
    }

    /// Kubelet takes back what it gave to a pod: it is gone from its point of view, whatever the runtime still has.
    pub(crate) fn take_devices(&self, pod: &str) {
        let mut given = self.given.lock().unwrap();
        given.remove(pod);
        write_checkpoint(&given);
    }

    /// A call for a pod, whose container has its name.
    pub(crate) fn call(&self, verb: &str, pod: &str, netns: &str) -> Call {
        self.world.call(verb, pod, netns, &self.conf).pod(pod)
    }

    /// Attaches a pod.
    pub(crate) fn add(&self, pod: &str, netns: &str) -> Value {
        self.call("ADD", pod, netns).ok()
    }

    /// Detaches a pod.
    pub(crate) fn del(&self, pod: &str, netns: &str) {
        self.call("DEL", pod, netns).ok();
    }

    /// CHECK of pod `p` with one network fails, and says this and nothing more.
    #[track_caller]
    pub(crate) fn differs(&self, netns: &str, network: &str, expected: &str) {
        let text = self.call("CHECK", "p", netns).fails(101);
        let expected = format!("default/{network} as net1: {expected}");
        assert_eq!(text.split("; ").next(), Some(expected.as_str()), "{text}");
    }

    /// GC by a runtime that knows of no attachment.
    pub(crate) fn gc(&self) {
        self.gc_call().ok();
    }

    /// The same, whatever comes of it: what it says.
    pub(crate) fn gc_fails(&self) -> String {
        let outcome = self.gc_call().run();
        format!("{}{}", outcome.stdout, outcome.stderr)
    }

    fn gc_call(&self) -> Call {
        let mut conf = self.conf.clone();
        conf["cniVersion"] = json!("1.1.0");
        conf["cni.dev/valid-attachments"] = json!([]);
        self.world.call("GC", "", "", &conf)
    }

    /// The entry of network-status for an interface of a pod.
    pub(crate) fn status(&self, pod: &str, interface: &str) -> Value {
        let status = self.world.status(pod).unwrap_or_else(|| panic!("no network-status of {pod}"));
        let mut entries = status.as_array().unwrap().iter();
        entries.find(|entry| entry["interface"] == interface).unwrap_or_else(|| panic!("{status:#}")).clone()
    }

    /// The first address of an interface of a pod, as network-status tells it.
    pub(crate) fn address(&self, pod: &str, interface: &str) -> String {
        self.status(pod, interface)["ips"][0].as_str().expect("an address").to_owned()
    }

    /// Panics unless the host's links, with every setting that the PFs hold for their VFs, are as they were, and no
    /// record, lease or lock is left.
    #[track_caller]
    pub(crate) fn assert_as_before(&self) {
        assert_same(&self.before, &host_links());
        self.world.assert_clean();
    }
}

/// The plugin `bridge` refuses one with another network's address.
fn delete_bridge() {
    if Path::new("/sys/class/net/cni0").exists() {
        ip("link delete cni0");
    }
}

/// As kubelet writes it (`pkg/kubelet/cm/devicemanager/checkpoint`): never seen half.
fn write_checkpoint(given: &BTreeMap<String, Vec<(String, String)>>) {
    let entries: Vec<Value> = given
        .iter()
        .flat_map(|(pod, devices)| devices.iter().map(move |device| (pod, device)))
        .map(|(pod, (resource, id))| {
            json!({"PodUID": format!("uid-{pod}"), "ContainerName": "c", "ResourceName": resource,
                   "DeviceIDs": {"-1": [id]}, "AllocResp": ""})
        })
        .collect();
    let text = json!({"Data": {"PodDeviceEntries": entries, "RegisteredDevices": {}}, "Checksum": 1}).to_string();
    fs::create_dir_all(Path::new(CHECKPOINT).parent().unwrap()).unwrap();
    let draft = format!("{CHECKPOINT}.draft");
    fs::write(&draft, text).unwrap();
    fs::rename(draft, CHECKPOINT).unwrap();
}

/// Whether something comes true within ten seconds.
pub(crate) fn eventually(mut condition: impl FnMut() -> bool) -> bool {
    let began = Instant::now();
    loop {
        if condition() {
            return true;
        }
        if began.elapsed() > Duration::from_secs(10) {
            return false;
        }
        sleep(Duration::from_millis(50));
    }
}

fn vfs(port: &str) -> Vec<Vf> {
    let env = |name: &str| {
        std::env::var(name)
            .unwrap_or_else(|_| panic!("{name} is not set: this suite runs in the guest (tests/guest/suite)"))
    };
    let pf = env(&format!("PF_{port}"));
    env(&format!("VFS_{port}"))
        .split(' ')
        .enumerate()
        .map(|(number, pci)| {
            let net = PathBuf::from(format!("/sys/bus/pci/devices/{pci}/net"));
            // It comes by itself out of the namespace of a test that failed.
            let there = eventually(|| !names(&net).is_empty());
            assert!(there, "VF {pci} is not in the host: an earlier test lost it");
            let name = names(&net).remove(0);
            let mac = fs::read_to_string(net.join(&name).join("address")).unwrap().trim().to_owned();
            Vf { pci: pci.to_owned(), pf: pf.clone(), number, name, mac }
        })
        .collect()
}

/// All links of the host with the PFs' tables of their VFs, without
/// - `ifindex`: not promised, a name that is free again may come with another number;
/// - `operstate` and the flags and states that follow it: the carrier of a port settles in its own time;
/// - `qdisc` of a link that is down: the kernel makes one at the first `up` in a namespace and forgets it with a move, so it
///   tells only whether the link has ever been up there;
/// - the order of `altnames`, which means nothing;
/// - the primary's bridge and its ports: the reference plugin leaves the bridge, as it does under every runtime.
fn host_links() -> Vec<Value> {
    comparable(&ip("-j -d link show"))
}

/// The same of what `ip -j -d link show` said.
pub(crate) fn comparable(text: &str) -> Vec<Value> {
    let mut links: Vec<Value> = serde_json::from_str(text).unwrap();
    links.retain(|link| link["ifname"] != "cni0" && link["master"] != "cni0");
    for link in &mut links {
        let link = link.as_object_mut().unwrap();
        link.remove("ifindex");
        link.remove("operstate");
        if let Some(altnames) = link.get_mut("altnames").and_then(Value::as_array_mut) {
            altnames.sort_by_key(Value::to_string);
        }
        let up = link["flags"].as_array().is_some_and(|flags| flags.contains(&json!("UP")));
        if !up {
            link.remove("qdisc");
        }
        if let Some(flags) = link.get_mut("flags").and_then(Value::as_array_mut) {
            flags.retain(|flag| flag != "LOWER_UP" && flag != "NO-CARRIER");
        }
    }
    links.sort_by_key(|link| link["ifname"].to_string());
    links
}

/// Panics with all differences between the links of the host then and now.
#[track_caller]
pub(crate) fn assert_same(before: &[Value], now: &[Value]) {
    let of = |links: &[Value]| -> Vec<String> { links.iter().map(|link| link["ifname"].to_string()).collect() };
    assert_eq!(of(before), of(now), "the interfaces of the host");
    let mut differences = Vec::new();
    for (was, is) in before.iter().zip(now) {
        let keys = was.as_object().into_iter().chain(is.as_object()).flat_map(|object| object.keys());
        for key in keys.filter(|key| was[*key] != is[*key]) {
            differences.push(format!("{} {key}: was {}, is {}", was["ifname"], was[key], is[key]));
        }
    }
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

/// A configuration of `sriov` with these keys.
pub(crate) fn sriov(more: &Value) -> Value {
    let mut conf = json!({"cniVersion": "1.0.0", "type": "sriov"});
    conf.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    conf
}

/// A pool of addresses with a gateway and a route.
pub(crate) fn pool() -> Value {
    json!({"type": "host-local", "subnet": "10.11.0.0/24", "gateway": "10.11.0.1", "routes": [{"dst": "10.12.0.0/16"}]})
}
