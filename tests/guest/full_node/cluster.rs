//! The cluster: its control plane here, its node in the guest.

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use super::guest::Guest;
use crate::harness::{beds, run};

/// How many seconds something may take on a busy machine, before it counts as never.
pub(crate) const PATIENCE: u64 = 600;

/// A control plane and its node.
pub(crate) struct Cluster {
    directory: PathBuf,
    /// The node; ends before its control plane.
    pub(crate) guest: Guest,
    _control_plane: Child,
    began: Instant,
}

impl Cluster {
    /// Starts one whose node has Flannel as its network and so many VFs of each port for pods, and nothing of us.
    pub(crate) fn start(name: &str, vfs_of_a_port: usize) -> Self {
        let began = Instant::now();
        let directory = fresh_directory(name);
        fill(&directory, vfs_of_a_port);
        let control_plane = control_plane(&directory.join("control-plane"));
        let words = ["--ip", "10.0.2.15", "--server", "https://10.0.2.2:6443"];
        let made = Command::new(beds().join("control-plane/control-plane"))
            .arg("node")
            .arg(directory.join("control-plane"))
            .arg("node-1")
            .args(words)
            .status()
            .unwrap();
        assert!(made.success(), "control-plane node: {made}");
        let guest = Guest::boot(&directory);
        let cluster = Self { directory, guest, _control_plane: control_plane, began };
        cluster.wait_ready(vfs_of_a_port);
        cluster
    }

    /// Waits until the node takes pods, also such as want VFs.
    pub(crate) fn wait_ready(&self, vfs_of_a_port: usize) {
        let wanted = json!([vfs_of_a_port.to_string(), vfs_of_a_port.to_string()]);
        self.wait_for("the node is Ready with its VFs", || {
            let node = self.get("node", "node-1");
            let ready = array(&node["status"]["conditions"]).any(|of| of["type"] == "Ready" && of["status"] == "True");
            let free = &node["status"]["allocatable"];
            ready && json!([free["intel.com/igb_a"], free["intel.com/igb_b"]]) == wanted
        });
    }

    /// Applies deploy/base, and waits until the node is ours.
    pub(crate) fn install(&self) {
        let base = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/base");
        let manifests: String = self.kubectl(&["kustomize", base], "").lines().map(for_a_slow_machine).collect();
        assert!(manifests.contains("cpu: 400m") && manifests.contains("/slow.json"), "{manifests}");
        self.kubectl(&["apply", "-f", "-"], &manifests);
        self.wait_for("the node is ours", || self.guest.try_run("test -e /etc/cni/net.d/00-meta-cni.conflist").0);
        self.kubectl(&["rollout", "status", "daemonset/meta-cni", "-n", "kube-system", "--timeout=600s"], "");
    }

    /// kubectl, as the administrator; panics unless it succeeds.
    #[track_caller]
    pub(crate) fn kubectl(&self, words: &[&str], stdin: &str) -> String {
        let mut child = Command::new(self.directory.join("control-plane/kubectl"))
            .args(words)
            .env("KUBECONFIG", self.directory.join("control-plane/admin.kubeconfig"))
            .env("HOME", &self.directory)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(stdin.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        let text = |bytes| String::from_utf8_lossy(bytes).trim().to_owned();
        assert!(output.status.success(), "kubectl {words:?}: {} {}", text(&output.stdout), text(&output.stderr));
        text(&output.stdout)
    }

    /// Objects of a kind, by their labels.
    pub(crate) fn list(&self, kind: &str, labels: &str) -> Vec<Value> {
        let text = self.kubectl(&["get", kind, "-l", labels, "-o", "json"], "");
        let list: Value = serde_json::from_str(&text).unwrap();
        array(&list["items"]).cloned().collect()
    }

    /// An object, or null.
    pub(crate) fn get(&self, kind: &str, name: &str) -> Value {
        let text = self.kubectl(&["get", kind, name, "--ignore-not-found", "-o", "json"], "");
        if text.is_empty() { Value::Null } else { serde_json::from_str(&text).unwrap() }
    }

    /// Makes objects.
    pub(crate) fn create(&self, objects: &[Value]) {
        let list = json!({"apiVersion": "v1", "kind": "List", "items": objects}).to_string();
        self.kubectl(&["create", "--validate=false", "-f", "-"], &list);
    }

    /// What is said of a pod to its user: `REASON: MESSAGE`, each.
    pub(crate) fn events(&self, pod: &str) -> Vec<String> {
        let text = self
            .kubectl(&["get", "events", "--field-selector", &format!("involvedObject.name={pod}"), "-o", "json"], "");
        let list: Value = serde_json::from_str(&text).unwrap();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        array(&list["items"]).map(|event| format!("{}: {}", text(&event["reason"]), text(&event["message"]))).collect()
    }

    /// Waits until something is so.
    #[track_caller]
    pub(crate) fn wait_for(&self, what: &str, so: impl Fn() -> bool) {
        let began = Instant::now();
        while !so() {
            if began.elapsed() > Duration::from_secs(PATIENCE) {
                let events = self.kubectl(&["get", "pods,events", "-A"], "");
                panic!(
                    "not within {PATIENCE} s: {what}; {}; {events}; logs: {}",
                    self.guest.said(),
                    self.directory.display()
                );
            }
            sleep(Duration::from_millis(200));
        }
        self.say(what);
    }

    /// Prints what has come to pass, and when.
    pub(crate) fn say(&self, what: &str) {
        println!("{:6.1} s  {what}", self.began.elapsed().as_secs_f32());
    }
}

/// The elements of an array; none of what is no array.
pub(crate) fn array(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

/// What is otherwise on a node whose CPU is twenty times slower than a real one, with a build that is not optimized:
/// numbers in our manifests.
const SLOW: [(&str, &str); 3] = [("cpu: ", "400"), ("periodSeconds: ", "20"), ("timeoutSeconds: ", "60")];

/// A line of our manifests as this node needs it. Whoever starts many pods at once needs more time than an ADD has, too.
fn for_a_slow_machine(line: &str) -> String {
    let mut text = line.to_owned();
    for (key, value) in SLOW {
        if let Some((before, rest)) = line.split_once(key) {
            text = format!("{before}{key}{value}{}", rest.trim_start_matches(|digit: char| digit.is_ascii_digit()));
        }
    }
    if line.trim() == "- --watch" {
        text = [text.as_str(), &line.replace("--watch", "--config=/host/var/lib/cni/slow.json")].join("\n");
    }
    text + "\n"
}

/// A file below `tests`.
pub(crate) fn beds_script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests").join(name).canonicalize().unwrap()
}

/// What the guest is to find.
fn fill(directory: &Path, vfs_of_a_port: usize) {
    for name in ["commands", "manifests"] {
        fs::create_dir(directory.join(name)).unwrap();
    }
    fs::write(directory.join("devices"), vfs_of_a_port.to_string()).unwrap();
    let flannel = json!({
        "cniVersion": "0.3.1", "name": "cbr0",
        "plugins": [{"type": "flannel", "delegate": {"isDefaultGateway": true, "mtu": 1450}}]
    });
    fs::write(directory.join("10-flannel.conflist"), flannel.to_string()).unwrap();
    // Without what is only for debuggers, because the guest has to unpack it.
    let program = directory.join("meta-cni");
    run("strip", &["-o", program.to_str().unwrap(), env!("CARGO_BIN_EXE_meta-cni")]);
    let packed = Command::new(beds_script("../deploy/image"))
        .arg(program)
        .arg(directory.join("image.tar"))
        .arg("meta-cni:latest")
        .status()
        .unwrap();
    assert!(packed.success(), "deploy/image: {packed}");
}

/// Runs for as long as its standard input is open.
fn control_plane(directory: &Path) -> Child {
    let mut child = Command::new(beds_script("control-plane/up"))
        .arg(directory)
        .args(["--controllers", "--port", "6443"])
        .env("META_CNI_BED_CACHE", beds())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line.trim(), "ready", "the control plane did not start: see its messages above");
    child
}

/// A directory in cargo's own place for what tests write. It is kept, to be looked at, until the next run.
fn fresh_directory(name: &str) -> PathBuf {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("full-node-{name}"));
    if directory.exists() {
        fs::remove_dir_all(&directory).unwrap();
    }
    fs::create_dir_all(&directory).unwrap();
    directory.canonicalize().unwrap()
}
