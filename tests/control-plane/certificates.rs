//! Certificates, keys and authorities that are replaced while pods are made: one file after the other, in place, so that
//! for a moment they are not whole or do not belong together.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread::sleep,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::bed::{ApiPod, Bed};

/// A certificate, its key and the server's authority, as texts.
#[derive(Clone)]
pub(crate) struct Credentials {
    pub(crate) certificate: String,
    pub(crate) key: String,
    authority: String,
}

/// Issues a certificate for the node where the bed's pods are, and allows it what our user is allowed.
pub(crate) fn issue() -> Credentials {
    let control_plane = Bed::path("kubectl").canonicalize().unwrap();
    let status = Command::new(control_plane.with_file_name("control-plane"))
        .args(["node", Bed::path("").to_str().unwrap(), "node-1"])
        .status()
        .unwrap();
    assert!(status.success());
    let read = |name: &str| fs::read_to_string(Bed::path("pki").join(name)).unwrap();
    Credentials { certificate: read("node-1.crt"), key: read("node-1.key"), authority: read("ca.crt") }
}

pub(crate) fn allow() {
    let binding = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": "certified"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "meta-cni"},
        "subjects": [{"kind": "User", "name": "system:node:node-1", "apiGroup": "rbac.authorization.k8s.io"}]
    });
    Bed::kubectl(&["apply", "-f", "-"], &binding.to_string());
}

const DIRECTORY: &str = "/run/test/rotating";

fn file(name: &str) -> PathBuf {
    Path::new(DIRECTORY).join(name)
}

impl Credentials {
    fn write(&self) {
        fs::create_dir_all(DIRECTORY).unwrap();
        for (name, text) in [("authority", &self.authority), ("certificate", &self.certificate), ("key", &self.key)] {
            fs::write(file(name), text).unwrap();
        }
    }
}

/// A kubeconfig that names the files.
fn kubeconfig() -> PathBuf {
    let user = json!({"client-certificate": file("certificate"), "client-key": file("key")});
    let path = Bed::kubeconfig("rotating", &Bed::server(), &user);
    let mut text: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    text["clusters"][0]["cluster"]["certificate-authority"] = json!(file("authority"));
    fs::write(&path, text.to_string()).unwrap();
    path
}

/// A pod with a network of its own pool, and our conf with the files.
fn scene(name: &str, pool: u8) -> (Bed, Value, ApiPod, String) {
    let bed = Bed::enter();
    bed.macvlans(&[(name, pool)]);
    allow();
    issue().write();
    let conf = bed.conf(&kubeconfig());
    let pod = Bed::pod_with(name, name);
    let netns = bed.world.netns();
    (bed, conf, pod, netns)
}

/// What a rotation looks like at the wrong moment.
type Moment = (&'static str, fn(&Credentials, &Path));

const MOMENTS: [Moment; 7] = [
    ("another key's certificate", |other, _| fs::write(file("certificate"), &other.certificate).unwrap()),
    ("no certificate", |_, _| fs::remove_file(file("certificate")).unwrap()),
    ("half a key", |whole, _| fs::write(file("key"), &whole.key[..whole.key.len() / 2]).unwrap()),
    ("an empty key", |_, _| fs::write(file("key"), "").unwrap()),
    ("an empty authority", |_, _| fs::write(file("authority"), "").unwrap()),
    ("another authority", |other, _| fs::write(file("authority"), &other.certificate).unwrap()),
    ("half a kubeconfig", |_, kubeconfig| {
        let text = fs::read_to_string(kubeconfig).unwrap();
        fs::write(kubeconfig, &text[..text.len() / 2]).unwrap();
    }),
];

#[test]
fn credentials_in_the_middle_of_a_rotation_are_read_again() {
    let (bed, conf, pod, netns) = scene("between", 34);
    let path = PathBuf::from(conf["kubeconfig"].as_str().unwrap());
    let text = fs::read_to_string(&path).unwrap();
    for (what, moment) in MOMENTS {
        let (next, other) = (issue(), issue());
        moment(&other, &path);
        let adding = bed.call("ADD", &netns, &conf, &pod).start();
        sleep(Duration::from_millis(400));
        next.write();
        fs::write(&path, &text).unwrap();
        let output = adding.wait_with_output().unwrap();
        assert!(output.status.success(), "{what}: {output:?}");
        bed.call("DEL", &netns, &conf, &pod).ok();
        bed.assert_undone(&netns);
    }
    // What stays so is said soon.
    for (which, code, says) in [
        (0, 11, "rotating.kubeconfig: rustls tls error: invalid private key: keys may not be consistent"),
        (1, 11, "/run/test/rotating/certificate"),
        (5, 11, "invalid peer certificate: UnknownIssuer"),
    ] {
        let (what, moment) = MOMENTS[which];
        moment(&issue(), &path);
        let began = Instant::now();
        let text = bed.call("ADD", &netns, &conf, &pod).fails(code);
        assert!(text.contains(says), "{what}: {text}");
        assert!(began.elapsed() < Duration::from_secs(8), "{what}: {:?}", began.elapsed());
        bed.assert_undone(&netns);
        issue().write();
    }
}

#[test]
fn certificates_and_authority_are_replaced_in_the_middle_of_a_stream_of_pods() {
    let (bed, conf, _, _) = scene("stream", 35);
    let all = [issue(), issue(), issue()];
    let pods: Vec<ApiPod> = (0..16).map(|at| Bed::pod_with(&format!("stream-{at}"), "stream")).collect();
    let (ended, rotations) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // The pace of the rotation, a fraction of the time that a pod takes.
            let pace = Duration::from_millis(25);
            for next in all.iter().cycle().take_while(|_| !ended.load(Ordering::Relaxed)) {
                let bundle = format!("{}{}", all[0].authority, next.authority);
                let steps = [("authority", &bundle), ("certificate", &next.certificate), ("key", &next.key)];
                for (name, text) in steps {
                    fs::write(file(name), &text[..text.len() / 3]).unwrap();
                    sleep(pace);
                    fs::write(file(name), text).unwrap();
                    sleep(pace);
                }
                rotations.fetch_add(1, Ordering::Relaxed);
                sleep(pace * 3);
            }
        });
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for four in pods.chunks(4) {
                let netns: Vec<String> = four.iter().map(|_| bed.world.netns()).collect();
                let started: Vec<_> =
                    four.iter().zip(&netns).map(|(pod, netns)| bed.call("ADD", netns, &conf, pod).start()).collect();
                for (child, pod) in started.into_iter().zip(four) {
                    let output = child.wait_with_output().unwrap();
                    assert!(output.status.success(), "{}: {output:?}", pod.name);
                    assert_eq!(Bed::status(&pod.name).expect("network-status")[1]["name"], "default/stream");
                }
                for (pod, netns) in four.iter().zip(&netns) {
                    bed.call("DEL", netns, &conf, pod).ok();
                }
            }
        }));
        ended.store(true, Ordering::Relaxed);
        outcome.unwrap();
    });
    bed.world.assert_clean();
    let rotations = rotations.into_inner();
    assert!(rotations >= 8, "{rotations} rotations");
}
