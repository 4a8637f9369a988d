//! The installation is shaken while pods come and go: none ever runs without its networks.

use std::{
    fs,
    io::Write as _,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    thread::{scope, sleep},
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::{
    bed::{Node, enter, flannel, wait_for},
    daemonset::{install, interfaces, pod},
    harness::Interface,
};

/// How many seconds the API server stands still, if all is to be done: `make soak` says so, for it takes some minutes.
fn api_pause() -> Option<Duration> {
    let seconds = std::env::var("FIRE_API_PAUSE").ok()?;
    Some(Duration::from_secs(seconds.parse().unwrap()))
}

/// What is done to the node while pods come and go.
struct Fire<'a> {
    node: &'a Node,
    /// What is being done.
    phase: Mutex<&'static str>,
    /// Of each pod: what was being done when it was made, and how long it took to be Ready.
    delays: Mutex<Vec<(&'static str, Duration)>>,
    made: AtomicUsize,
    over: AtomicBool,
}

impl Fire<'_> {
    /// Makes one pod after the other.
    fn stream(&self) {
        while !self.over.load(SeqCst) {
            let name = format!("pod-{}", self.made.fetch_add(1, SeqCst));
            let phase = *self.phase.lock().unwrap();
            let began = Instant::now();
            self.patient(&["create", "-f", "-"], &pod(&name, "net-a").to_string());
            let ready = r#"-o=jsonpath={.status.conditions[?(@.type=="Ready")].status}"#;
            wait_for("the pod is Ready", 180, || self.patient(&["get", "pod", &name, ready], "") == "True");
            self.delays.lock().unwrap().push((phase, began.elapsed()));
            let status = self.patient(&["get", "pod", &name, "-o", "json"], "");
            assert_eq!(interfaces(&status), ["eth0", "net1"], "{phase}");
            let netns = self.node.netns_of(&name);
            assert!(Interface::find(&netns, "net1").is_some_and(|net1| net1.addresses().len() == 1), "{phase}");
            self.patient(&["delete", "pod", &name, "--ignore-not-found", "--timeout=60s"], "");
        }
    }

    /// kubectl, again while the server does not answer.
    fn patient(&self, words: &[&str], stdin: &str) -> String {
        let end = Instant::now() + Duration::from_secs(180);
        loop {
            let (done, text) = self.node.run(&[&["kubectl"], words].concat(), stdin);
            // What an earlier try made is there.
            if done || text.contains("AlreadyExists") {
                return text;
            }
            assert!(Instant::now() < end, "kubectl {words:?}: {text}");
            sleep(Duration::from_millis(200));
        }
    }

    /// Looks at all pods, again and again: one that runs has its networks.
    fn watch(&self) {
        while !self.over.load(SeqCst) {
            let phase = *self.phase.lock().unwrap();
            let (_, text) = self.node.run(&["kubectl", "--request-timeout=3s", "get", "pods", "-o", "json"], "");
            let pods: Value = serde_json::from_str(&text).unwrap_or_default();
            for pod in pods["items"].as_array().into_iter().flatten().filter(|pod| pod["status"]["phase"] == "Running")
            {
                let status = pod["metadata"]["annotations"]["k8s.v1.cni.cncf.io/network-status"].as_str();
                let whole = status.is_some_and(|status| status.contains("net1"));
                assert!(whole, "{phase}: {} runs with {status:?}", pod["metadata"]["name"]);
            }
            sleep(Duration::from_millis(300));
        }
    }

    /// Does something, and goes on until pods were made meanwhile and after it.
    fn phase(&self, name: &'static str, work: impl FnOnce()) {
        *self.phase.lock().unwrap() = name;
        work();
        let until = self.made.load(SeqCst) + 3;
        wait_for("pods are made", 120, || self.made.load(SeqCst) >= until || self.over.load(SeqCst));
    }

    fn shake(&self) {
        let node = self.node;
        self.phase("another build is rolled out", || {
            let image = "daemonset/meta-cni install=meta-cni:next";
            let words: Vec<&str> = ["set", "image", "-n", "kube-system"].into_iter().chain(image.split(' ')).collect();
            node.kubectl(&words, "");
            node.rolled_out();
        });
        let installed = || fs::metadata(node.path("cni/bin/meta-cni")).map(|found| found.len()).unwrap_or_default();
        let next = fs::metadata(node.path("next")).unwrap().len();
        wait_for("the new build is on the node", 30, || installed() == next);
        if let Some(pause) = api_pause() {
            self.shake_more(pause);
        }
    }

    fn shake_more(&self, pause: Duration) {
        let node = self.node;
        self.phase("the container is deleted", || {
            node.kubectl(&["delete", "pods", "-n", "kube-system", "-l", "app.kubernetes.io/name=meta-cni"], "");
            node.rolled_out();
        });
        self.phase("the primary's owner writes its configuration anew", || {
            let file = node.path("cni/net.d/10-flannel.conflist");
            fs::write(node.path("draft"), flannel(1400).to_string()).unwrap();
            fs::rename(node.path("draft"), &file).unwrap();
            wait_for("it is taken over", 30, || !file.exists());
        });
        self.phase("subnet.env is away", || {
            node.subnet_env(false);
            sleep(Duration::from_secs(4));
            node.subnet_env(true);
        });
        self.phase("the API server stands still", || {
            node.api_server(false);
            sleep(pause);
            node.api_server(true);
        });
        self.phase("quiet again", || {});
        // What the primary's owner wrote is in force.
        node.create(&[pod("last", "net-a")]);
        node.wait_ready(&["last"]);
        assert_eq!(Interface::find(&node.netns_of("last"), "eth0").unwrap().mtu(), 1400);
    }
}

/// Ends the others when one of them fails, too.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, SeqCst);
    }
}

#[test]
fn no_pod_runs_without_its_networks_while_the_installation_is_shaken() {
    let _turn = enter();
    let node = Node::without_us("fire");
    install(&node);
    // The same program with some bytes behind it is another build.
    let next = node.path("next");
    fs::copy(env!("CARGO_BIN_EXE_meta-cni"), &next).unwrap();
    fs::OpenOptions::new().append(true).open(&next).unwrap().write_all(b"the next build").unwrap();
    node.import_image(&next, "meta-cni:next");
    node.macvlan("net-a", "10.40.0.0/24");

    let fire = Fire {
        node: &node,
        phase: Mutex::new("quiet"),
        delays: Mutex::default(),
        made: AtomicUsize::new(0),
        over: AtomicBool::new(false),
    };
    scope(|scope| {
        for work in [Fire::stream, Fire::stream, Fire::watch, Fire::shake] {
            let fire = &fire;
            scope.spawn(move || {
                let _ends = Ends(&fire.over);
                work(fire);
            });
        }
    });

    let delays = fire.delays.into_inner().unwrap();
    let mut phases: Vec<&str> = delays.iter().map(|(phase, _)| *phase).collect();
    phases.dedup();
    for phase in phases {
        let of_phase: Vec<Duration> =
            delays.iter().filter(|(other, _)| *other == phase).map(|(_, delay)| *delay).collect();
        println!("{phase}: {} pods, the longest took {:.1?}", of_phase.len(), of_phase.iter().max().unwrap());
    }
}
