//! The bed: one control plane in the namespaces of one world, which every test enters in turn and finds swept.

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
    thread::sleep,
    time::{Duration, Instant},
};

use nix::sched::{CloneFlags, setns, unshare};
use serde_json::{Value, json};

use crate::harness::{Call, World, beds, ip, ip_in, names};

/// The service account of deploy/base/rbac.yaml, as the API server knows it.
pub(crate) const USER: &str = "system:serviceaccount:kube-system:meta-cni";
/// By which containerd hands over annotations.
const ANNOTATIONS: &str = "io.kubernetes.cri.pod-annotations";
/// What a pod asks for.
pub(crate) const NETWORKS: &str = "k8s.v1.cni.cncf.io/networks";
/// What it is told.
pub(crate) const STATUS: &str = "k8s.v1.cni.cncf.io/network-status";
/// Where the control plane runs: below /run of the shared world.
const DIRECTORY: &str = "/run/control-plane";

static SHARED: Mutex<Option<Shared>> = Mutex::new(None);

/// A started control plane and the namespaces where it is.
struct Shared {
    net: File,
    mounts: File,
    commands: ChildStdin,
    answers: BufReader<ChildStdout>,
    server: Server,
    _child: Child,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Server {
    Serves,
    Stopped,
    Paused,
}

/// The bed, for one test.
pub(crate) struct Bed {
    pub(crate) world: World,
    shared: MutexGuard<'static, Option<Shared>>,
}

/// A pod that exists at the API server.
#[derive(Debug, Clone)]
pub(crate) struct ApiPod {
    pub(crate) name: String,
    pub(crate) uid: String,
}

impl Bed {
    /// Waits for its turn, enters the bed (the first test starts it), and sweeps what a failed test may have left.
    pub(crate) fn enter() -> Self {
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        let world = match shared.as_ref() {
            Some(there) => {
                // A mount namespace is entered only by a thread that shares its working directory with no other.
                unshare(CloneFlags::CLONE_FS).unwrap();
                setns(&there.mounts, CloneFlags::CLONE_NEWNS).unwrap();
                setns(&there.net, CloneFlags::CLONE_NEWNET).unwrap();
                sweep();
                World::on_this_machine()
            }
            None => {
                let world = World::new();
                *shared = Some(Shared::start());
                world
            }
        };
        let mut bed = Self { world, shared };
        bed.revive();
        bed
    }

    fn revive(&mut self) {
        match self.shared().server {
            Server::Serves => {}
            Server::Stopped => self.start(),
            Server::Paused => self.resume(),
        }
    }

    fn shared(&mut self) -> &mut Shared {
        self.shared.as_mut().unwrap()
    }

    pub(crate) fn stop(&mut self) {
        self.shared().command("stop", "stopped", Server::Stopped);
    }

    pub(crate) fn start(&mut self) {
        self.shared().command("start", "ready", Server::Serves);
    }

    pub(crate) fn pause(&mut self) {
        self.shared().command("pause", "paused", Server::Paused);
    }

    pub(crate) fn resume(&mut self) {
        self.shared().command("resume", "resumed", Server::Serves);
    }

    /// Says that a test's plugin paused the server, so that the next test resumes it.
    pub(crate) fn was_paused(&mut self) {
        self.shared().server = Server::Paused;
    }

    pub(crate) fn path(name: &str) -> PathBuf {
        Path::new(DIRECTORY).join(name)
    }

    pub(crate) fn server() -> String {
        fs::read_to_string(Self::path("server")).unwrap().trim().to_owned()
    }

    /// Runs kubectl as the administrator; gives its exit, stdout and stderr.
    pub(crate) fn kubectl_raw(arguments: &[&str], stdin: &str) -> (bool, String, String) {
        let mut child = Command::new(Self::path("kubectl"))
            .args(arguments)
            .env("HOME", DIRECTORY)
            .env("KUBECONFIG", Self::path("admin.kubeconfig"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(stdin.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        let text = |bytes| String::from_utf8_lossy(bytes).trim().to_owned();
        (output.status.success(), text(&output.stdout), text(&output.stderr))
    }

    /// Runs kubectl and panics unless it succeeds.
    pub(crate) fn kubectl(arguments: &[&str], stdin: &str) -> String {
        let (success, stdout, stderr) = Self::kubectl_raw(arguments, stdin);
        assert!(success, "kubectl {arguments:?}: {stdout}{stderr}");
        stdout
    }

    /// Makes objects and gives them as the server has them.
    pub(crate) fn create(objects: &[Value]) -> Vec<Value> {
        let list = json!({"apiVersion": "v1", "kind": "List", "items": objects}).to_string();
        let made = Self::kubectl(&["create", "--validate=false", "-o", "json", "-f", "-"], &list);
        // One document after another, without anything between them.
        serde_json::Deserializer::from_str(&made).into_iter().map(Result::unwrap).collect()
    }

    /// Makes a pod with annotations, scheduled to a node that does not exist: nothing touches it.
    pub(crate) fn pod(name: &str, annotations: &Value) -> ApiPod {
        let made = Self::create(&[json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": "default", "annotations": annotations},
            "spec": {"nodeName": "node-1", "automountServiceAccountToken": false,
                     "containers": [{"name": "c", "image": "localhost/test/pause:1"}]}
        })]);
        ApiPod { name: name.to_owned(), uid: made[0]["metadata"]["uid"].as_str().unwrap().to_owned() }
    }

    /// Makes a pod that asks for networks.
    pub(crate) fn pod_with(name: &str, networks: &str) -> ApiPod {
        Self::pod(name, &json!({NETWORKS: networks}))
    }

    pub(crate) fn delete_pod(name: &str) {
        Self::kubectl(&["delete", "pod", name, "--force", "--grace-period=0"], "");
    }

    /// Makes macvlan definitions with a pool each (10.N.0.0/24), and the interface below them.
    pub(crate) fn macvlans(&self, pools: &[(&str, u8)]) {
        ip("link add uplink type veth peer name wire");
        ip("link set uplink up");
        ip("link set wire up");
        let objects: Vec<Value> = pools
            .iter()
            .map(|(name, pool)| {
                let config = json!({"cniVersion": "1.0.0", "type": "macvlan", "master": "uplink",
                    "ipam": {"type": "host-local", "subnet": format!("10.{pool}.0.0/24")}});
                definition(name, &config)
            })
            .collect();
        Self::create(&objects);
    }

    /// Our conf with Flannel as the primary and a kubeconfig.
    pub(crate) fn conf(&self, kubeconfig: &Path) -> Value {
        let mut conf = self.world.conf(&self.world.flannel_primary());
        conf.as_object_mut().unwrap().remove("manifestDir");
        conf["kubeconfig"] = json!(kubeconfig);
        conf["capabilities"] = json!({ANNOTATIONS: true});
        conf
    }

    /// A kubeconfig for a user, written as `NAME.kubeconfig`.
    pub(crate) fn kubeconfig(name: &str, server: &str, user: &Value) -> PathBuf {
        let path = PathBuf::from(format!("/run/test/{name}.kubeconfig"));
        let text = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "bed",
            "clusters": [{"name": "bed", "cluster": {"server": server, "certificate-authority": Self::path("pki/ca.crt")}}],
            "users": [{"name": "meta-cni", "user": user}],
            "contexts": [{"name": "bed", "context": {"cluster": "bed", "user": "meta-cni"}}],
        });
        fs::write(&path, text.to_string()).unwrap();
        path
    }

    pub(crate) fn token() -> String {
        Self::kubectl(&["create", "token", "meta-cni", "--namespace", "kube-system"], "")
    }

    /// A kubeconfig with a token of the service account of deploy/base/rbac.yaml.
    pub(crate) fn service_account() -> PathBuf {
        Self::kubeconfig("service-account", &Self::server(), &json!({"token": Self::token()}))
    }

    /// A call for a pod of the API server, with its UID as kubelet gives it.
    pub(crate) fn call(&self, verb: &str, netns: &str, conf: &Value, pod: &ApiPod) -> Call {
        let args = format!(
            "K8S_POD_UID={};IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME={};K8S_POD_INFRA_CONTAINER_ID={}",
            pod.uid, pod.name, pod.name
        );
        self.world.call(verb, &pod.name, netns, conf).env("CNI_ARGS", &args)
    }

    /// What our user asked the server for while something was done.
    pub(crate) fn requests(work: impl FnOnce()) -> Vec<String> {
        let log = Self::path("audit.log");
        let before = usize::try_from(fs::metadata(&log).unwrap().len()).unwrap();
        work();
        let text = fs::read(&log).unwrap();
        let lines = text[before..].split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        let events = lines.map(|line| serde_json::from_slice::<Value>(line).unwrap());
        events
            .filter(|event| event["stage"] == "RequestReceived" && event["user"]["username"] == USER)
            .map(short)
            .collect()
    }

    /// network-status in the pod object.
    pub(crate) fn status(name: &str) -> Option<Value> {
        let pod: Value = serde_json::from_str(&Self::kubectl(&["get", "pod", name, "-o", "json"], "")).unwrap();
        let text = pod["metadata"]["annotations"][STATUS].as_str()?.to_owned();
        Some(serde_json::from_str(&text).unwrap())
    }

    /// Panics unless nothing is left of a failed ADD or a DEL: no interface but loopback, no record, no lease.
    pub(crate) fn assert_undone(&self, netns: &str) {
        assert_only_loopback(netns);
        self.world.assert_clean();
    }

    /// Panics unless a namespace is empty, whatever others have.
    pub(crate) fn assert_gone(&self, netns: &str) {
        assert_only_loopback(netns);
    }

    /// The same while one other container is attached.
    pub(crate) fn assert_undone_but(&self, netns: &str, other: &str) {
        assert_only_loopback(netns);
        assert_eq!(names("/var/lib/cni/meta-cni/sandboxes"), [other], "records");
        for network in names("/var/lib/cni/networks") {
            assert_eq!(self.world.leases(&network).len(), 1, "leases of {network}");
        }
    }
}

fn assert_only_loopback(netns: &str) {
    let links: Value = serde_json::from_str(&ip_in(netns, "-j link show")).unwrap();
    let left: Vec<&Value> = links.as_array().unwrap().iter().map(|link| &link["ifname"]).collect();
    assert_eq!(left, [&json!("lo")], "interfaces are left");
}

impl Shared {
    fn start() -> Self {
        let mut child = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/control-plane/up"))
            .arg(DIRECTORY)
            .env("META_CNI_BED_CACHE", beds())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut shared = Self {
            net: File::open("/proc/thread-self/ns/net").unwrap(),
            mounts: File::open("/proc/thread-self/ns/mnt").unwrap(),
            commands: child.stdin.take().unwrap(),
            answers: BufReader::new(child.stdout.take().unwrap()),
            server: Server::Serves,
            _child: child,
        };
        shared.expect("ready");
        shared
    }

    fn command(&mut self, command: &str, answer: &str, then: Server) {
        writeln!(self.commands, "{command}").unwrap();
        self.expect(answer);
        self.server = then;
    }

    fn expect(&mut self, answer: &str) {
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        assert_eq!(line.trim(), answer, "the control plane ended: see its messages above");
    }
}

/// The conf as the runtime hands it over with a pod's annotations.
pub(crate) fn handed(conf: &Value, annotations: &Value) -> Value {
    let mut conf = conf.clone();
    conf["runtimeConfig"] = json!({ANNOTATIONS: annotations});
    conf
}

/// A definition in "default".
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
        sleep(Duration::from_millis(50));
    }
}

/// `VERB RESOURCE/NAME`, with the subresource.
fn short(event: Value) -> String {
    let text = |key: &str| event["objectRef"][key].as_str().unwrap_or_default().to_owned();
    let name = match text("subresource").as_str() {
        "" => text("name"),
        sub => format!("{}/{sub}", text("name")),
    };
    format!("{} {}/{name}", event["verb"].as_str().unwrap_or_default(), text("resource"))
}

/// Makes the shared node as good as new.
fn sweep() {
    // Before the namespaces: a link whose other end is in one would go with it, in its own time.
    let made = ["cni0", "uplink", "eth1", "br-back", "br-team-a"];
    for link in names("/sys/class/net").iter().filter(|link| made.contains(&link.as_str())) {
        ip(&format!("link delete {link}"));
    }
    for netns in names("/run/netns") {
        ip(&format!("netns delete {netns}"));
    }
    for directory in [
        "/var/lib/cni",
        "/run/test",
        "/run/flannel",
        "/run/meta-cni",
        "/run/k8s.cni.cncf.io",
        "/etc/cni",
        "/var/lib/kubelet",
    ] {
        let inside = names(directory);
        for path in inside.iter().map(|name| Path::new(directory).join(name)) {
            if path.is_dir() { fs::remove_dir_all(&path).unwrap() } else { fs::remove_file(&path).unwrap() }
        }
    }
}
