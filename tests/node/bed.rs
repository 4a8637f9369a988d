//! The bed: one node with us in its CNI directory, which every test uses in turn.

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
    thread::sleep,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::harness::{Recorder, beds, names};

/// What a pod asks for.
pub(crate) const NETWORKS: &str = "k8s.v1.cni.cncf.io/networks";
/// What it is told.
pub(crate) const STATUS: &str = "k8s.v1.cni.cncf.io/network-status";
/// How long a pod may take on a busy machine.
const PATIENCE: u64 = 60;

static NODE: Mutex<Option<Node>> = Mutex::new(None);

/// A running node; it ends with its standard input.
pub(crate) struct Node {
    directory: PathBuf,
    _child: Child,
}

/// The node, for one test.
pub(crate) struct Turn(MutexGuard<'static, Option<Node>>);

impl std::ops::Deref for Turn {
    type Target = Node;

    fn deref(&self) -> &Node {
        self.0.as_ref().unwrap()
    }
}

/// Installs us on the node that is to be, as a container does that sees the node's directories below a prefix.
fn install(directory: &Path) {
    let root = directory.join("root");
    for (place, target) in [("etc/cni/net.d", "cni/net.d"), ("opt/cni/bin", "cni/bin"), ("var/lib/cni", "var/lib/cni")]
    {
        let link = root.join(place);
        fs::create_dir_all(link.parent().unwrap()).unwrap();
        std::os::unix::fs::symlink(directory.join(target), link).unwrap();
    }
    // Credentials are given when there is a server to give them.
    let own = json!({"kubeconfig": directory.join("meta.kubeconfig"), "logFile": directory.join("meta-cni.log")});
    fs::write(directory.join("own.json"), own.to_string()).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_meta-cni"));
    command.args(["install", "--node-name", "node-1", "--host-root"]).arg(root);
    command.arg("--config").arg(directory.join("own.json")).env_remove("CNI_COMMAND");
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Waits for its turn; the first test starts the node. Of a test that failed, its pods are removed.
pub(crate) fn enter() -> Turn {
    let mut node = NODE.lock().unwrap_or_else(|poisoned| {
        NODE.clear_poison();
        PoisonError::into_inner(poisoned)
    });
    if node.is_none() {
        *node = Some(Node::start());
    }
    let turn = Turn(node);
    turn.sweep();
    turn
}

impl Node {
    /// A node with us in its CNI directory.
    fn start() -> Self {
        let directory = fresh_directory("node");
        fill_bin(&directory);
        fs::write(directory.join("cni/net.d/10-bridge.conflist"), primary().to_string()).unwrap();
        install(&directory);
        let node = Self { _child: up(&directory, &[]), directory };
        node.give_credentials();
        node
    }

    /// A node of its own that has its primary network and nothing of us, with the controllers that run a DaemonSet.
    pub(crate) fn without_us(name: &str) -> Self {
        let directory = fresh_directory(&format!("{name}-node"));
        fill_bin(&directory);
        fs::write(directory.join("cni/net.d/10-flannel.conflist"), flannel(1450).to_string()).unwrap();
        let node = Self { _child: up(&directory, &["--controllers"]), directory };
        node.subnet_env(true);
        node
    }

    /// Writes Flannel's subnet file, as flanneld does, or takes it away.
    pub(crate) fn subnet_env(&self, there: bool) {
        let text =
            "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.7.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n";
        let script = match there {
            true => "mkdir -p /run/flannel && cat >/run/flannel/subnet.env",
            false => "rm /run/flannel/subnet.env",
        };
        let (done, said) = self.run(&["sh", "-c", script], if there { text } else { "" });
        assert!(done, "{said}");
    }

    /// Has the API server stand still, or go on.
    pub(crate) fn api_server(&self, goes: bool) {
        let pid = fs::read_to_string(self.path("control-plane/kube-apiserver.pid")).unwrap();
        let words = ["kill", if goes { "-CONT" } else { "-STOP" }, pid.trim()];
        let output = Command::new(script("beside")).arg(&self.directory).args(words).output().unwrap();
        assert!(output.status.success(), "{output:?}");
    }

    /// Waits until the pods of our DaemonSet run.
    pub(crate) fn rolled_out(&self) {
        self.kubectl(&["rollout", "status", "daemonset/meta-cni", "-n", "kube-system", "--timeout=120s"], "");
    }

    /// A path below the node's directory.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Packs a program as deploy/image does and gives it to containerd under a name.
    pub(crate) fn import_image(&self, program: &Path, name: &str) {
        let tar = self.directory.join("image.tar");
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/image");
        let packed = Command::new(script).arg(program).arg(&tar).arg(name).status().unwrap();
        assert!(packed.success(), "deploy/image: {packed}");
        let (imported, text) =
            self.run(&["ctr", "--namespace", "k8s.io", "images", "import", tar.to_str().unwrap()], "");
        assert!(imported, "{text}");
    }

    /// A token file of deploy/base/rbac.yaml's service account, and a kubeconfig that names it.
    fn give_credentials(&self) {
        let token = self.kubectl(&["create", "token", "meta-cni", "--namespace", "kube-system"], "");
        fs::write(self.directory.join("token"), token).unwrap();
        let server = fs::read_to_string(self.directory.join("control-plane/server")).unwrap();
        let authority = self.directory.join("control-plane/pki/ca.crt");
        let kubeconfig = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "node",
            "clusters": [{"name": "node", "cluster": {"server": server.trim(), "certificate-authority": authority}}],
            "users": [{"name": "meta-cni", "user": {"tokenFile": "token"}}],
            "contexts": [{"name": "node", "context": {"cluster": "node", "user": "meta-cni"}}],
        });
        fs::write(self.directory.join("meta.kubeconfig"), kubeconfig.to_string()).unwrap();
    }

    fn sweep(&self) {
        for manifest in names(self.directory.join("manifests")) {
            fs::remove_file(self.directory.join("manifests").join(manifest)).unwrap();
        }
        self.kubectl(&["delete", "pods", "--all", "--timeout=60s"], "");
        self.kubectl(&["delete", "net-attach-def", "--all"], "");
    }

    /// A command on the node; kubectl's is given beside it, and answers while the node is off, too.
    fn command(&self, words: &[&str]) -> Command {
        let place = if words.first() == Some(&"kubectl") { "beside" } else { "enter" };
        let mut command = Command::new(script(place));
        command.arg(&self.directory).args(words);
        command
    }

    pub(crate) fn run(&self, words: &[&str], stdin: &str) -> (bool, String) {
        let mut command = self.command(words);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(stdin.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        let text = |bytes| String::from_utf8_lossy(bytes).trim().to_owned();
        match output.status.success() {
            true => (true, text(&output.stdout)),
            false => (false, format!("{} {}", text(&output.stdout), text(&output.stderr))),
        }
    }

    pub(crate) fn ip(&self, arguments: &str) -> String {
        let words: Vec<&str> = ["ip"].into_iter().chain(arguments.split(' ')).collect();
        let (success, text) = self.run(&words, "");
        assert!(success, "ip {arguments}: {text}");
        text
    }

    pub(crate) fn kubectl(&self, arguments: &[&str], stdin: &str) -> String {
        let words: Vec<&str> = ["kubectl"].into_iter().chain(arguments.iter().copied()).collect();
        let (success, text) = self.run(&words, stdin);
        assert!(success, "kubectl {arguments:?}: {text}");
        text
    }

    /// Makes objects.
    pub(crate) fn create(&self, objects: &[Value]) {
        let list = json!({"apiVersion": "v1", "kind": "List", "items": objects}).to_string();
        self.kubectl(&["create", "--validate=false", "-f", "-"], &list);
    }

    /// Makes a macvlan definition with a pool of its own.
    pub(crate) fn macvlan(&self, name: &str, subnet: &str) {
        let config = json!({"cniVersion": "1.0.0", "type": "macvlan", "master": "uplink",
                            "ipam": {"type": "host-local", "subnet": subnet}});
        self.create(&[definition(name, &config)]);
    }

    /// A plugin that records its calls, and a definition that leads to it, perhaps with devices of a resource.
    pub(crate) fn recording(&self, name: &str, resource: Option<&str>) -> Recorder {
        let mut object = definition(name, &json!({"cniVersion": "1.0.0", "type": name}));
        if let Some(resource) = resource {
            object["metadata"]["annotations"] = json!({"k8s.v1.cni.cncf.io/resourceName": resource});
        }
        self.create(&[object]);
        Recorder::install(&self.directory.join("cni/bin"), &[name])
    }

    /// Offers devices to kubelet, and waits until pods can have them.
    pub(crate) fn device_plugin(&self, resource: &str, ids: &[&str]) -> Child {
        let words = [&["control-plane", "devices", resource], ids].concat();
        let child = said_ready(self.command(&words));
        let path = format!("jsonpath={{.status.allocatable.{}}}", resource.replace('.', "\\."));
        let allocatable = || self.kubectl(&["get", "node", "node-1", "-o", &path], "");
        wait_for("the node has the devices", 30, || allocatable() == ids.len().to_string());
        child
    }

    /// Has kubelet run a pod of a file.
    pub(crate) fn static_manifest(&self, name: &str, pod: &Value) {
        let beside = self.directory.join(name);
        fs::write(&beside, pod.to_string()).unwrap();
        fs::rename(beside, self.directory.join("manifests").join(format!("{name}.json"))).unwrap();
    }

    pub(crate) fn remove_static_manifest(&self, name: &str) {
        fs::remove_file(self.directory.join("manifests").join(format!("{name}.json"))).unwrap();
    }

    /// Waits until pods are Running and Ready.
    pub(crate) fn wait_ready(&self, pods: &[&str]) {
        for pod in pods {
            // "wait" gives up at once for a pod that is not there yet: a mirror is late.
            wait_for(&format!("pod {pod} is there"), PATIENCE, || self.run(&["kubectl", "get", "pod", pod], "").0);
            let (ready, text) = self.run(
                &["kubectl", "wait", "--for=condition=Ready", &format!("--timeout={PATIENCE}s"), &format!("pod/{pod}")],
                "",
            );
            assert!(ready, "{pod}: {text}; {}; {}", self.events(pod), self.log());
        }
    }

    /// What is said of a pod to its user.
    pub(crate) fn events(&self, pod: &str) -> String {
        let of = format!("--field-selector=involvedObject.name={pod}");
        self.kubectl(&["get", "events", &of, "-o", "jsonpath={.items[*].message}"], "")
    }

    /// What is said of all pods.
    pub(crate) fn all_events(&self) -> String {
        self.kubectl(&["get", "events", "-o", "jsonpath={.items[*].message}"], "")
    }

    /// Our own log.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.directory.join("meta-cni.log")).unwrap_or_default()
    }

    /// network-status in the pod object, as it stands there.
    pub(crate) fn status_text(&self, pod: &str) -> String {
        let pod: Value = serde_json::from_str(&self.kubectl(&["get", "pod", pod, "-o", "json"], "")).unwrap();
        pod["metadata"]["annotations"][STATUS].as_str().unwrap_or_default().to_owned()
    }

    /// The container that is a pod's sandbox, by our records.
    pub(crate) fn sandbox_of(&self, pod: &str) -> String {
        let sandboxes = self.directory.join("var/lib/cni/meta-cni/sandboxes");
        let holds = |container: &String| {
            names(sandboxes.join(container)).iter().any(|record| {
                let text = fs::read_to_string(sandboxes.join(container).join(record)).unwrap_or_default();
                serde_json::from_str::<Value>(&text).is_ok_and(|record| record["pod"]["name"] == pod)
            })
        };
        let found: Vec<String> = names(&sandboxes).into_iter().filter(holds).collect();
        assert_eq!(found.len(), 1, "sandboxes of {pod}: {found:?}");
        found[0].clone()
    }

    /// The path of a pod's network namespace as it is seen from outside.
    pub(crate) fn netns_of(&self, pod: &str) -> String {
        let path = self.directory.join("var/lib/cni/meta-cni/sandboxes").join(self.sandbox_of(pod));
        let record = names(&path).into_iter().next().expect("a record");
        let record: Value = serde_json::from_str(&fs::read_to_string(path.join(record)).unwrap()).unwrap();
        let inside = record["netns"].as_str().expect("its namespace").replacen("/var/run/", "/run/", 1);
        self.inside(&inside).to_str().unwrap().to_owned()
    }

    /// Kills containerd and starts it again.
    pub(crate) fn restart_containerd(&self) {
        self.act("restart-containerd");
    }

    /// Ends everything on the node at one moment; its disk and the control plane stay.
    pub(crate) fn power_cut(&self) {
        self.act("power-cut");
    }

    /// Switches the node on again; containerd and kubelet come some moments later.
    pub(crate) fn boot(&self) {
        self.act("boot");
    }

    fn act(&self, name: &str) {
        let status =
            Command::new(script(name)).arg(&self.directory).env("META_CNI_BED_CACHE", beds()).status().unwrap();
        assert!(status.success(), "{name}: {status}");
    }

    /// The ID of the boot that is on, or was last.
    pub(crate) fn boot_id(&self) -> String {
        fs::read_to_string(self.path("boot_id")).unwrap_or_default().trim().to_owned()
    }

    /// A path on the running node, as it is seen from outside.
    pub(crate) fn inside(&self, path: &str) -> PathBuf {
        let first = fs::read_to_string(self.path("pid")).unwrap_or_default();
        PathBuf::from(format!("/proc/{}/root{path}", first.trim()))
    }

    /// What pods have left on the node: records, leases, namespaces, interfaces.
    pub(crate) fn leftovers(&self) -> Vec<String> {
        let state = self.directory.join("var/lib/cni");
        let mut left = names(state.join("meta-cni/sandboxes"));
        for network in names(state.join("networks")) {
            let leases = names(state.join("networks").join(&network));
            let held = leases.into_iter().filter(|name| name != "lock" && !name.starts_with("last_reserved_ip"));
            left.extend(held.map(|lease| format!("{network}/{lease}")));
        }
        left.extend(self.run(&["ls", "/run/netns"], "").1.split_whitespace().map(str::to_owned));
        let links: Value = serde_json::from_str(&self.ip("-j link show type veth")).unwrap();
        let veths = links.as_array().unwrap().iter().filter_map(|link| link["ifname"].as_str());
        left.extend(
            veths.filter(|name| !["node0", "uplink", "wire", "eth0", "wire0"].contains(name)).map(str::to_owned),
        );
        left
    }

    /// Waits until nothing is left: kubelet takes some seconds after a pod's object is gone.
    pub(crate) fn assert_free(&self) {
        wait_for("nothing is left of any pod", 30, || self.leftovers().is_empty());
        // The runtime repeats DELs, each of which has one for a moment.
        let locks = || self.run(&["ls", "/run/meta-cni/lock"], "").1;
        wait_for("no sandbox's lock is left", 30, || !locks().contains("sandbox-"));
    }
}

pub(crate) fn definition(name: &str, config: &Value) -> Value {
    json!({
        "apiVersion": "k8s.cni.cncf.io/v1", "kind": "NetworkAttachmentDefinition",
        "metadata": {"name": name, "namespace": "default"}, "spec": {"config": config.to_string()}
    })
}

/// Tries until something is so.
pub(crate) fn wait_for(what: &str, seconds: u64, so: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(seconds);
    while !so() {
        assert!(Instant::now() < end, "not within {seconds} s: {what}");
        sleep(Duration::from_millis(100));
    }
}

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/node").join(name)
}

/// The plugins that a node has before us.
fn fill_bin(directory: &Path) {
    for name in ["cni/net.d", "cni/bin", "var/lib/cni"] {
        fs::create_dir_all(directory.join(name)).unwrap();
    }
    for plugin in ["loopback", "bridge", "flannel", "host-local", "macvlan"] {
        fs::copy(beds().join("plugins/reference").join(plugin), directory.join("cni/bin").join(plugin)).unwrap();
    }
}

/// The primary network's configuration.
fn primary() -> Value {
    json!({
        "cniVersion": "1.0.0", "name": "podnet",
        "plugins": [{"type": "bridge", "bridge": "cni0", "isGateway": true, "isDefaultGateway": true,
                     "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.98.0.0/24"}]]}}]
    })
}

/// Flannel's chain, as its installer writes it.
pub(crate) fn flannel(mtu: u16) -> Value {
    json!({
        "cniVersion": "0.3.1", "name": "cbr0",
        "plugins": [{"type": "flannel", "delegate": {"isDefaultGateway": true, "mtu": mtu}}]
    })
}

/// A directory for the bed in cargo's own place for what tests write. It is kept, to be looked at, until the next run.
fn fresh_directory(kind: &str) -> PathBuf {
    let place = Path::new(env!("CARGO_TARGET_TMPDIR"));
    for name in names(place) {
        // A number: other beds have names of this kind, too.
        let of_nobody = |pid: &str| pid.parse::<u32>().is_ok() && !Path::new("/proc").join(pid).exists();
        if name.rsplit_once("node-").is_some_and(|(_, pid)| of_nobody(pid)) {
            // Its bed may be ending this moment: then the run after this one removes it.
            let _ = fs::remove_dir_all(place.join(name));
        }
    }
    let directory = place.join(format!("{kind}-{}", std::process::id()));
    fs::create_dir_all(&directory).unwrap();
    directory.canonicalize().unwrap()
}

fn up(directory: &Path, flags: &[&str]) -> Child {
    let mut command = Command::new(script("up"));
    command.arg(directory).args(flags).env("META_CNI_BED_CACHE", beds());
    said_ready(command)
}

/// Starts a program that says when it is ready, and ends with its standard input.
fn said_ready(mut command: Command) -> Child {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line.trim(), "ready", "{command:?} did not start: see its messages above");
    child
}
