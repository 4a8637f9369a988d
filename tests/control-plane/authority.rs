//! The cluster's authority gives way to another one, and kubelet's client certificate to the next, while pods are made.

use std::{
    fs,
    os::unix::fs::symlink,
    path::Path,
    process::{Command, Stdio},
    sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    thread::{scope, sleep},
    time::Duration,
};

use serde_json::{Value, json};

use crate::{
    bed::{ApiPod, Bed, wait_for},
    certificates::{allow, issue},
    expiry::{Ends, place, stream},
};

const PKI: &str = "/run/test/pki";
const AUTHORITY: &str = "/run/test/pki/ca.crt";
/// Where another control plane's files are.
const OTHER: &str = "/run/test/other";

fn read(path: impl AsRef<Path>) -> String {
    fs::read_to_string(path).unwrap()
}

/// Another authority, and a certificate of the API server by it: those of a control plane that is told to stop as soon as
/// it has made them.
fn another_authority() {
    let program = Bed::path("kubectl").canonicalize().unwrap().with_file_name("control-plane");
    let mut command = Command::new(program);
    let ended = command.args(["up", OTHER]).stdin(Stdio::null()).stderr(Stdio::null()).status().unwrap();
    assert!(!ended.success(), "it was told to stop");
}

/// What the API server shows to its clients. It goes back to its own with this value.
struct Served([String; 2]);

impl Served {
    const FILES: [&str; 2] = ["pki/apiserver.key", "pki/apiserver.crt"];

    fn own() -> Self {
        Self(Self::FILES.map(|name| read(Bed::path(name))))
    }

    /// Has it show another one, and waits until it does.
    fn show(files: [&str; 2], authority: &Path) {
        for (name, text) in Self::FILES.iter().zip(files) {
            place(Bed::path(name).to_str().unwrap(), text);
        }
        let trust = format!("--certificate-authority={}", authority.display());
        wait_for("the server shows the certificate", 60, || {
            Bed::kubectl_raw(&[&trust, "get", "--raw", "/readyz"], "").0
        });
    }

    fn other() {
        let there = |name: &str| read(Path::new(OTHER).join(name));
        Self::show([&there(Self::FILES[0]), &there(Self::FILES[1])], &Path::new(OTHER).join("pki/ca.crt"));
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        Self::show([&self.0[0], &self.0[1]], &Bed::path("pki/ca.crt"));
    }
}

/// Renews a client certificate as kubelet does: the pair in one file of its own, and a link that leads to it.
fn renew_certificate(turn: usize, pair: &str) {
    let file = format!("kubelet-client-{turn}.pem");
    fs::write(Path::new(PKI).join(&file), pair).unwrap();
    symlink(&file, Path::new(PKI).join("next.pem")).unwrap();
    fs::rename(Path::new(PKI).join("next.pem"), Path::new(PKI).join("kubelet-client-current.pem")).unwrap();
    if turn > 0 {
        fs::remove_file(Path::new(PKI).join(format!("kubelet-client-{}.pem", turn - 1))).unwrap();
    }
}

fn conf(bed: &Bed) -> Value {
    let current = format!("{PKI}/kubelet-client-current.pem");
    let user = json!({"client-certificate": current, "client-key": current});
    let path = Bed::kubeconfig("of-kubelet", &Bed::server(), &user);
    let mut text: Value = serde_json::from_str(&read(&path)).unwrap();
    text["clusters"][0]["cluster"]["certificate-authority"] = json!(AUTHORITY);
    fs::write(&path, text.to_string()).unwrap();
    bed.conf(&path)
}

#[test]
fn the_clusters_authority_and_kubelets_certificate_are_replaced_in_the_middle_of_a_stream_of_pods() {
    let bed = Bed::enter();
    bed.macvlans(&[("renewed-authority", 64)]);
    allow();
    fs::create_dir_all(PKI).unwrap();
    another_authority();
    let (former, latter) = (read(Bed::path("pki/ca.crt")), read(Path::new(OTHER).join("pki/ca.crt")));
    place(AUTHORITY, &former);
    let pairs: Vec<String> = (0..3).map(|_| issue()).map(|made| made.certificate + &made.key).collect();
    renew_certificate(0, &pairs[0]);
    let conf = conf(&bed);
    let pods: Vec<ApiPod> =
        (0..2).map(|at| Bed::pod_with(&format!("renewed-authority-{at}"), "renewed-authority")).collect();

    let (ended, made) = (AtomicBool::new(false), AtomicUsize::new(0));
    scope(|scope| {
        for pod in &pods {
            let (bed, conf, ended, made) = (&bed, &conf, &ended, &made);
            scope.spawn(move || {
                let _ends = Ends(ended);
                stream(bed, conf, pod, ended, made);
            });
        }
        let _ends = Ends(&ended);
        let attached_meanwhile = |step: &str| {
            let before = made.load(Relaxed);
            wait_for(step, 60, || ended.load(Relaxed) || made.load(Relaxed) >= before + 3);
            assert!(!ended.load(Relaxed), "an ADD failed: {step}");
        };
        for turn in 1..8 {
            renew_certificate(turn, &pairs[turn % 3]);
            sleep(Duration::from_millis(200));
        }
        attached_meanwhile("kubelet's certificate is renewed");
        place(AUTHORITY, &format!("{former}{latter}"));
        attached_meanwhile("both authorities are trusted");
        let served = Served::own();
        Served::other();
        attached_meanwhile("the server has the other's certificate");
        place(AUTHORITY, &latter);
        attached_meanwhile("the other authority alone is trusted");
        place(AUTHORITY, &format!("{latter}{former}"));
        drop(served);
        attached_meanwhile("the server has its own certificate again");
    });
    bed.world.assert_clean();
}
