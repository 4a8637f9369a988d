//! The DaemonSet's pods come and go: while it is rolled out the token on the node is at each moment one whose pod is there.

use std::{
    fs,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    thread::{scope, sleep},
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::{
    bed::{Node, wait_for},
    fire::Ends,
};

const NAMESPACE: &str = "kube-system";
const OURS: [&str; 4] = ["-n", NAMESPACE, "-l", "app.kubernetes.io/name=meta-cni"];

/// The UID of the pod that the token on the node ends with.
fn pod_of_token(node: &Node) -> String {
    let token = fs::read_to_string(node.path("var/lib/cni/meta-cni/credentials/token")).unwrap();
    let claims: Value = serde_json::from_slice(&decode(token.split('.').nth(1).unwrap())).unwrap();
    claims["kubernetes.io"]["pod"]["uid"].as_str().expect("a token of a pod").to_owned()
}

/// Base64 as tokens have it.
fn decode(text: &str) -> Vec<u8> {
    let digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let (mut bits, mut count, mut bytes) = (0_u32, 0, Vec::new());
    for letter in text.chars() {
        bits = bits << 6 | u32::try_from(digits.find(letter).unwrap()).unwrap();
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push(u8::try_from(bits >> count & 0xff).unwrap());
        }
    }
    bytes
}

/// The UIDs of the DaemonSet's pods that the API server has.
fn pods(node: &Node) -> String {
    node.kubectl(&[&["get", "pods", "-o", "jsonpath={.items[*].metadata.uid}"][..], &OURS].concat(), "")
}

/// Whether the token on the node is one of a pod that is gone.
fn is_orphaned(node: &Node) -> bool {
    let pod = pod_of_token(node);
    // The pod may have gone after another one's token had come.
    !pods(node).contains(&pod) && pod_of_token(node) == pod
}

/// The DaemonSet is rolled out; with another build it is in `fire`. Gives how long that took.
pub(crate) fn leaves_no_hole(node: &Node) -> Duration {
    let (before, began) = (pod_of_token(node), Instant::now());
    let (over, looks) = (AtomicBool::new(false), AtomicUsize::new(0));
    scope(|scope| {
        scope.spawn(|| {
            while !over.load(SeqCst) {
                assert!(!is_orphaned(node), "the token on the node is of a pod that is gone: {}", pods(node));
                looks.fetch_add(1, SeqCst);
                sleep(Duration::from_millis(20));
            }
        });
        let _ends = Ends(&over);
        node.kubectl(&["rollout", "restart", "-n", NAMESPACE, "daemonset/meta-cni"], "");
        node.rolled_out();
        wait_for("the pod of before is gone", 60, || !pods(node).contains(&before));
    });
    let looks = looks.into_inner();
    assert!(looks >= 5, "{looks}");
    assert_ne!(pod_of_token(node), before);
    began.elapsed()
}

/// A pod that somebody deletes takes its token with it, until the next one is there: gives how long that took, where it
/// was asked to end and where not.
pub(crate) fn replaces_deleted_pods(node: &Node) -> [Duration; 2] {
    [&["--timeout=60s"][..], &["--force", "--grace-period=0"]].map(|how| {
        let before = pods(node);
        node.kubectl(&[&["delete", "pods"][..], &OURS, how].concat(), "");
        let gone = Instant::now();
        wait_for("the next pod's token is on the node", 60, || pod_of_token(node) != before);
        let missed = gone.elapsed();
        wait_for("one pod is there", 60, || pods(node) == pod_of_token(node));
        missed
    })
}

/// kubelet's kubeconfig is mounted alone: one that is put in its place by a rename is seen all the same.
pub(crate) fn sees_kubelets_next_kubeconfig(node: &Node) {
    let file = node.path("kubernetes/kubelet.conf");
    let next = fs::read_to_string(&file).unwrap().replace("https://127.0.0.1:", "https://localhost:");
    fs::write(node.path("kubernetes/next"), &next).unwrap();
    fs::rename(node.path("kubernetes/next"), &file).unwrap();
    let kubeconfig = node.path("var/lib/cni/meta-cni/credentials/kubeconfig");
    wait_for("its server is ours, too", 60, || fs::read_to_string(&kubeconfig).unwrap().contains("https://localhost:"));
    let pod = pods(node);
    node.rolled_out();
    assert_eq!(pods(node), pod, "the container was started again, not the pod");
}
