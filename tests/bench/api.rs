//! The real API server, as far as the bench needs it.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use serde_json::{Value, json};

/// A running control plane; it ends with its standard input.
pub(crate) struct ApiServer {
    directory: PathBuf,
    _child: Child,
}

impl ApiServer {
    pub(crate) fn start() -> Self {
        let directory = PathBuf::from("/run/control-plane");
        let up = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/control-plane/up");
        let mut child = Command::new(up)
            .arg(&directory)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the control plane starts");
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line.trim(), "ready");
        Self { directory, _child: child }
    }

    fn apply(&self, object: &Value) {
        let file = self.directory.join("object.json");
        fs::write(&file, object.to_string()).unwrap();
        let kubeconfig = self.directory.join("admin.kubeconfig");
        let output = Command::new(self.directory.join("kubectl"))
            .arg("--kubeconfig")
            .arg(kubeconfig)
            .args(["apply", "-f"])
            .arg(file)
            .output();
        let output = output.unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    pub(crate) fn definition(&self, name: &str, config: &Value) {
        self.apply(&json!({
            "apiVersion": "k8s.cni.cncf.io/v1", "kind": "NetworkAttachmentDefinition",
            "metadata": {"name": name, "namespace": "default"}, "spec": {"config": config.to_string()}
        }));
    }

    pub(crate) fn pod(&self, name: &str, networks: &str) {
        self.apply(&json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": "default", "annotations": {"k8s.v1.cni.cncf.io/networks": networks}},
            "spec": {"nodeName": "node-1", "automountServiceAccountToken": false,
                     "containers": [{"name": "c", "image": "localhost/test/pause:1"}]}
        }));
    }

    /// The conf with this server in place of the manifests. The runtime of the bench gives no UID.
    pub(crate) fn conf(&self, manifests: &Value) -> Value {
        let mut conf = manifests.clone();
        conf.as_object_mut().unwrap().remove("manifestDir");
        conf["kubeconfig"] = json!(self.directory.join("admin.kubeconfig"));
        conf
    }

    /// Requests so far by our user.
    pub(crate) fn requests(&self) -> usize {
        let log = fs::read_to_string(self.directory.join("audit.log")).unwrap_or_default();
        log.lines().filter(|line| is_ours(line)).count()
    }
}

/// Our requests name no user agent; kubectl and the servers do.
fn is_ours(line: &str) -> bool {
    let event: Value = serde_json::from_str(line).unwrap_or_default();
    event["stage"] == "RequestReceived" && event["userAgent"].as_str().unwrap_or_default().is_empty()
}
