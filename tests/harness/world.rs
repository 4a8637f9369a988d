//! A node of a test's own: network and mount namespaces of the test's thread, with an empty /run, /var/lib/cni and
//! /etc/cni. Everything that the thread starts lives there and is gone with it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
};

use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};
use serde_json::{Value, json};

use super::{Call, ip};

/// Where the kernel says which boot this is.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Where `make test` installs plugins and servers.
pub fn beds() -> PathBuf {
    let beds = std::env::var_os("META_CNI_BED_CACHE")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/beds"), PathBuf::from);
    beds.canonicalize().unwrap_or_else(|_| panic!("{} is missing: run make beds", beds.display()))
}

/// `CNI_ARGS` of a pod as containerd gives them.
pub fn pod_args(name: &str) -> String {
    format!(
        "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME={name};K8S_POD_INFRA_CONTAINER_ID=x;K8S_POD_UID=uid-{name}"
    )
}

/// A test's node.
pub struct World {
    /// Plugins are looked for here.
    pub bin: PathBuf,
    /// `manifestDir`.
    pub manifests: PathBuf,
    pods: AtomicU32,
    boots: AtomicU32,
}

impl World {
    /// Isolates this thread. libtest gives every test a thread of its own, so tests do not see each other.
    pub fn new() -> Self {
        unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET).expect("the suites need root and namespaces");
        let none: Option<&str> = None;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).expect("make mounts private");
        for directory in ["/run", "/var/lib/cni", "/etc/cni", "/var/lib/kubelet"] {
            fs::create_dir_all(directory).expect(directory);
            mount(Some("tmpfs"), directory, Some("tmpfs"), MsFlags::empty(), none).expect(directory);
        }
        mount(Some("sysfs"), "/sys", Some("sysfs"), MsFlags::empty(), none).expect("/sys of the new namespace");
        ip("link set lo up");
        Self::on_this_machine()
    }

    /// A world whose node is the machine itself: for the guest, whose VFs are in its first namespace.
    pub fn on_this_machine() -> Self {
        let world = Self {
            bin: "/run/test/bin".into(),
            manifests: "/etc/cni/manifests".into(),
            pods: AtomicU32::new(0),
            boots: AtomicU32::new(1),
        };
        for directory in [&world.bin, &world.manifests, Path::new("/etc/cni/primary")] {
            fs::create_dir_all(directory).expect("a directory of the test");
        }
        world
    }

    /// Links plugins of a set ("reference", "debian") into the world's directory.
    pub fn plugins(&self, set: &str, names: &[&str]) -> &Self {
        for name in names {
            let target = beds().join("plugins").join(set).join(name);
            assert!(target.is_file(), "{} is missing: run make beds", target.display());
            let link = self.bin.join(name);
            // A world is used by one test, but in the guest by several in turn.
            let _ = fs::remove_file(&link);
            std::os::unix::fs::symlink(target, link).expect("link a plugin");
        }
        self
    }

    /// Links our binary under another name into the world's directory, as an administrator does for a drop-in.
    pub fn drop_in(&self, name: &str) -> PathBuf {
        let link = self.bin.join(name);
        let _ = fs::remove_file(&link);
        std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_meta-cni"), &link).expect("link our binary");
        link
    }

    /// Writes the primary's configuration and gives its path.
    pub fn primary(&self, conf: &Value) -> String {
        let path = Path::new("/etc/cni/primary/10-primary.conflist");
        fs::write(path, conf.to_string()).expect("write the primary's configuration");
        path.display().to_string()
    }

    /// A bridge with host-local as the primary network.
    pub fn bridge_primary(&self) -> String {
        self.plugins("reference", &["bridge", "host-local"]);
        self.primary(&json!({
            "cniVersion": "1.0.0", "name": "podnet",
            "plugins": [{"type": "bridge", "bridge": "cni0", "isGateway": true, "isDefaultGateway": true,
                         "ipam": {"type": "host-local", "subnet": "10.88.0.0/24"}}]
        }))
    }

    /// Flannel's chain as kube-flannel.yml has it, and the subnet that flanneld would have written.
    pub fn flannel_primary(&self) -> String {
        self.plugins("reference", &["flannel", "bridge", "host-local", "portmap", "macvlan"]);
        self.subnet_env("10.244.7.1/24");
        self.primary(&json!({
            "name": "cbr0", "cniVersion": "0.3.1",
            "plugins": [{"type": "flannel", "delegate": {"hairpinMode": true, "isDefaultGateway": true}},
                        {"type": "portmap", "capabilities": {"portMappings": true}}]
        }))
    }

    /// Writes Flannel's subnet file.
    pub fn subnet_env(&self, subnet: &str) {
        fs::create_dir_all("/run/flannel").expect("/run/flannel");
        let text =
            format!("FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET={subnet}\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n");
        fs::write("/run/flannel/subnet.env", text).expect("subnet.env");
    }

    /// Flannel's chain on a node with both families, 10.244.7.0/24 and fd00:244:0:7::/64; flanneld masquerades by itself.
    pub fn flannel_of_two_families(&self) -> String {
        let path = self.flannel_primary();
        let text = "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.7.1/24\nFLANNEL_IPV6_NETWORK=fd00:244::/48\n\
                    FLANNEL_IPV6_SUBNET=fd00:244:0:7::1/64\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";
        fs::write("/run/flannel/subnet.env", text).expect("subnet.env");
        path
    }

    /// A client at 192.168.77.2 behind a namespace that forwards, and that nothing else leads to; gives its namespace.
    pub fn client_behind(&self, router: &str) -> String {
        let client = self.netns();
        super::in_netns(router, &["sysctl", "-qw", "net.ipv4.ip_forward=1"]);
        super::ip_in(
            router,
            &format!("link add to-client type veth peer name far0 netns {}", client.replace("/run/netns/", "")),
        );
        for (netns, link, address) in
            [(router, "to-client", "192.168.77.1/24"), (client.as_str(), "far0", "192.168.77.2/24")]
        {
            super::ip_in(netns, &format!("addr add {address} dev {link}"));
            super::ip_in(netns, &format!("link set {link} up"));
        }
        super::ip_in(&client, "route add default via 192.168.77.1");
        client
    }

    /// Our conf for a primary at a path.
    pub fn conf(&self, primary: &str) -> Value {
        json!({
            "cniVersion": "1.0.0", "name": "meta", "type": "meta-cni", "clusterNetwork": primary,
            "binDir": self.bin, "manifestDir": self.manifests,
            "readinessTimeoutSeconds": 1,
        })
    }

    /// Writes a manifest.
    pub fn manifest(&self, name: &str, text: &str) {
        fs::write(self.manifests.join(format!("{name}.yaml")), text).expect("write a manifest");
    }

    /// A definition in "default".
    pub fn definition(&self, name: &str, config: &Value) {
        self.manifest(
            name,
            &json!({
                "apiVersion": "k8s.cni.cncf.io/v1", "kind": "NetworkAttachmentDefinition",
                "metadata": {"name": name, "namespace": "default"}, "spec": {"config": config.to_string()}
            })
            .to_string(),
        );
    }

    /// A macvlan network with host-local, on an uplink of the node's own.
    pub fn macvlan(&self, name: &str, subnet: &str) {
        self.plugins("reference", &["macvlan", "host-local"]);
        if !Path::new("/sys/class/net/uplink").exists() {
            ip("link add uplink type veth peer name wire");
            ip("link set uplink up");
            ip("link set wire up");
        }
        self.definition(
            name,
            &json!({
                "cniVersion": "1.0.0", "type": "macvlan", "master": "uplink",
                "ipam": {"type": "host-local", "subnet": subnet}
            }),
        );
    }

    /// A definition in "default" whose devices come from a resource.
    pub fn definition_with_resource(&self, name: &str, resource: &str, config: &Value) {
        self.manifest(
            name,
            &json!({
                "apiVersion": "k8s.cni.cncf.io/v1", "kind": "NetworkAttachmentDefinition",
                "metadata": {"name": name, "namespace": "default",
                             "annotations": {"k8s.v1.cni.cncf.io/resourceName": resource}},
                "spec": {"config": config.to_string()}
            })
            .to_string(),
        );
    }

    /// A pod in "default" that asks for networks.
    pub fn pod(&self, name: &str, networks: &str) {
        self.annotated_pod("default", name, &json!({"k8s.v1.cni.cncf.io/networks": networks}));
    }

    /// A pod with annotations.
    pub fn annotated_pod(&self, namespace: &str, name: &str, annotations: &Value) {
        let metadata = json!({"name": name, "namespace": namespace, "annotations": annotations});
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata});
        self.manifest(&format!("pod-{name}"), &pod.to_string());
    }

    /// Kubelet's device manager gave devices: by UID of the pod, resource, and IDs (a list, or lists by NUMA node).
    pub fn devices_given(&self, given: &[(&str, &str, Value)]) {
        let directory = Path::new("/var/lib/kubelet/device-plugins");
        fs::create_dir_all(directory).expect("kubelet's directory");
        let entries: Vec<Value> = given
            .iter()
            .map(|(uid, resource, ids)| {
                json!({"PodUID": uid, "ContainerName": "c", "ResourceName": resource, "DeviceIDs": ids})
            })
            .collect();
        let checkpoint = json!({"Data": {"PodDeviceEntries": entries, "RegisteredDevices": {}}, "Checksum": 1});
        fs::write(directory.join("kubelet_internal_checkpoint"), checkpoint.to_string()).expect("the checkpoint");
    }

    /// The network-status that was written for a pod.
    pub fn status(&self, pod: &str) -> Option<Value> {
        let text = fs::read_to_string(self.manifests.join(format!("network-status/default.{pod}.json"))).ok()?;
        Some(serde_json::from_str(&text).expect("network-status is JSON"))
    }

    /// A new namespace for a sandbox; gives its path.
    pub fn netns(&self) -> String {
        let name = format!("t{}-{}", std::process::id(), self.pods.fetch_add(1, Ordering::Relaxed));
        ip(&format!("netns add {name}"));
        let path = format!("/run/netns/{name}");
        super::ip_in(&path, "link set lo up");
        path
    }

    /// Deletes a namespace, whatever is in it.
    pub fn delete_netns(&self, path: &str) {
        ip(&format!("netns delete {}", path.trim_start_matches("/run/netns/")));
    }

    /// The machine starts anew as far as it can be had in a test: namespaces of sandboxes and what is in them are gone, the
    /// primary's bridge too, /run is empty but for what the test itself keeps there, and the kernel has another boot ID.
    pub fn reboot(&self) {
        for name in names("/run/netns") {
            ip(&format!("netns delete {name}"));
        }
        if Path::new("/sys/class/net/cni0").exists() {
            ip("link delete cni0");
        }
        for name in names("/run").iter().filter(|name| *name != "test" && *name != "netns") {
            let path = Path::new("/run").join(name);
            let _ = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
        }
        let id = self.boots.fetch_add(1, Ordering::Relaxed);
        let file = format!("/run/test/boot_id-{id}");
        fs::write(&file, format!("00000000-0000-4000-8000-{id:012}\n")).expect("a boot ID");
        let none: Option<&str> = None;
        mount(Some(file.as_str()), BOOT_ID, none, MsFlags::MS_BIND, none).expect("another boot ID");
    }

    /// A call of our binary, with a runtime's environment.
    pub fn call(&self, verb: &str, container: &str, netns: &str, conf: &Value) -> Call {
        Call::new(Path::new(env!("CARGO_BIN_EXE_meta-cni")), &self.bin, verb, container, netns, conf)
    }

    /// Records of a container.
    pub fn records(&self, container: &str) -> Vec<String> {
        names(Path::new("/var/lib/cni/meta-cni/sandboxes").join(container))
    }

    /// Addresses reserved in a pool.
    pub fn leases(&self, network: &str) -> Vec<String> {
        let mut all = names(Path::new("/var/lib/cni/networks").join(network));
        // A directory that is no network's lies beside the pools.
        all.retain(|name| name != "lock" && !name.starts_with("last_reserved_ip") && !network.starts_with('.'));
        all
    }

    /// Panics unless nothing of any pod is left: records, leases, VF leases, host interfaces of the bridge.
    pub fn assert_clean(&self) {
        assert_eq!(names("/var/lib/cni/meta-cni/sandboxes"), Vec::<String>::new(), "records");
        assert_eq!(
            names("/var/lib/cni/meta-cni/faces/sriov/sandboxes"),
            Vec::<String>::new(),
            "records of the drop-in"
        );
        let mut of_sriov_cni = [names("/var/lib/cni/sriov"), names("/var/lib/cni/sriov/pci")].concat();
        of_sriov_cni.retain(|name| name != "pci" && name != "vf_lock");
        assert_eq!(of_sriov_cni, Vec::<String>::new(), "files in sriov-cni's directory");
        assert_eq!(names("/var/lib/cni/meta-cni/vfs"), Vec::<String>::new(), "VF leases");
        // What begins with a dot lies beside the pools.
        for network in names("/var/lib/cni/networks").iter().filter(|name| !name.starts_with('.')) {
            assert_eq!(self.leases(network), Vec::<String>::new(), "leases of {network}");
        }
        for network in names("/var/lib/cni/networks/.meta-cni") {
            let owners = format!("/var/lib/cni/networks/.meta-cni/{network}/owners");
            assert_eq!(names(owners), Vec::<String>::new(), "the index of {network}");
        }
        assert_eq!(names("/var/lib/cni/flannel"), Vec::<String>::new(), "Flannel's scratch files");
        let locks = names("/run/meta-cni/lock");
        let of_sandboxes = |name: &String| name.starts_with("sandbox-") || name.starts_with("sriov-");
        assert!(!locks.iter().any(of_sandboxes), "locks {locks:?}");
    }
}

/// The names in a directory, sorted; none when it does not exist.
pub fn names(path: impl AsRef<Path>) -> Vec<String> {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    names
}

/// Runs a program and panics with its output unless it succeeds.
pub fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap_or_else(|error| panic!("{program}: {error}"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{program} {arguments:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

/// Runs ADD of a list as libcni does, without us: each plugin in turn with the result so far. Gives the last result.
pub fn bare_add(world: &World, list: &Value, container: &str, netns: &str) -> Value {
    let mut previous = None;
    for plugin in list["plugins"].as_array().expect("a list") {
        let mut conf = plugin.clone();
        conf["name"] = list["name"].clone();
        conf["cniVersion"] = list["cniVersion"].clone();
        if let Some(previous) = previous {
            conf["prevResult"] = previous;
        }
        let program = world.bin.join(plugin["type"].as_str().expect("a type"));
        previous = Some(world.call("ADD", container, netns, &conf).program(&program).pod("bare").ok());
    }
    previous.expect("a plugin")
}

/// Runs a later verb of a list as libcni does, without us, with the result of ADD: DEL from the last plugin to the first.
pub fn bare(world: &World, verb: &str, list: &Value, container: &str, netns: &str, result: &Value) {
    let mut plugins: Vec<&Value> = list["plugins"].as_array().expect("a list").iter().collect();
    if verb == "DEL" {
        plugins.reverse();
    }
    for plugin in plugins {
        let mut conf = plugin.clone();
        conf["name"] = list["name"].clone();
        conf["cniVersion"] = list["cniVersion"].clone();
        conf["prevResult"] = result.clone();
        let program = world.bin.join(plugin["type"].as_str().expect("a type"));
        world.call(verb, container, netns, &conf).program(&program).pod("bare").ok();
    }
}
