//! The installation is shaken while pods come and go: none ever runs without its networks, and each comes in time.

use std::{
    fs,
    io::Write as _,
    path::PathBuf,
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
    fire_watch::Containers,
    harness::Interface,
};

/// How long a pod may take on a busy machine where nothing is shaken.
const CALM: Duration = Duration::from_secs(30);
/// How long after a disturbance kubelet may try a pod again whose last try met its end: 10 to 15 s, and the time for which
/// that try itself waited for what was away.
pub(crate) const NEXT_TRY: Duration = Duration::from_secs(15 + 5);
/// How long kubelet's own watches may pause at most between two tries, after the server was away.
const WATCHES: Duration = Duration::from_secs(30);

/// How many seconds the API server stands still, if all is to be done: `make soak` says so, for it takes some minutes.
fn api_pause() -> Option<Duration> {
    let seconds = std::env::var("FIRE_API_PAUSE").ok()?;
    Some(Duration::from_secs(seconds.parse().unwrap()))
}

/// Something that is done to the node, and how much longer than that a pod may take which lived through it.
struct Phase {
    name: &'static str,
    disturbance: Duration,
    aftermath: Duration,
}

/// How long a pod took, and the phases in which it was made and became Ready.
struct Delay {
    made: usize,
    ready: usize,
    took: Duration,
}

/// What is done to the node while pods come and go.
pub(crate) struct Fire<'a> {
    node: &'a Node,
    pub(crate) containers: Containers,
    phases: Mutex<Vec<Phase>>,
    delays: Mutex<Vec<Delay>>,
    pub(crate) made: AtomicUsize,
    /// What the next pods ask for.
    networks: Mutex<&'static str>,
    /// Whether every pod has to have what it asks for: not while there is nobody yet who could give it.
    strict: bool,
    over: AtomicBool,
    /// How often all pods were asked for at the API server, and how often it answered.
    asked: AtomicUsize,
    answered: AtomicUsize,
}

impl<'a> Fire<'a> {
    pub(crate) fn new(node: &'a Node, strict: bool) -> Self {
        let quiet = Phase { name: "quiet", disturbance: Duration::ZERO, aftermath: Duration::ZERO };
        Self {
            node,
            containers: Containers::of(node),
            phases: Mutex::new(vec![quiet]),
            delays: Mutex::default(),
            made: AtomicUsize::new(0),
            networks: Mutex::new("net-a"),
            strict,
            over: AtomicBool::new(false),
            asked: AtomicUsize::new(0),
            answered: AtomicUsize::new(0),
        }
    }

    /// Has two streams of pods come and go while something is done, and looks at all that runs.
    pub(crate) fn burn(&self, shake: impl FnOnce(&Self) + Send) {
        scope(|scope| {
            for work in [Self::stream, Self::stream, Self::watch_containers, Self::watch_pods] {
                scope.spawn(move || {
                    let _ends = Ends(&self.over);
                    work(self);
                });
            }
            let _ends = Ends(&self.over);
            shake(self);
        });
    }

    fn now(&self) -> usize {
        self.phases.lock().unwrap().len() - 1
    }

    fn name_of_now(&self) -> &'static str {
        self.phases.lock().unwrap().last().unwrap().name
    }

    /// Makes one pod after the other.
    fn stream(&self) {
        while !self.over.load(SeqCst) {
            let networks = *self.networks.lock().unwrap();
            let kind = if networks.is_empty() { "plain" } else { "pod" };
            let name = format!("{kind}-{}", self.made.fetch_add(1, SeqCst));
            let (made, began) = (self.now(), Instant::now());
            self.patient(&["create", "-f", "-"], &pod(&name, networks).to_string());
            let ready = r#"-o=jsonpath={.metadata.uid} {.status.conditions[?(@.type=="Ready")].status}"#;
            let uid = Mutex::new(String::new());
            wait_for("the pod is Ready", 240, || {
                let text = self.patient(&["get", "pod", &name, ready], "");
                let (found, state) = text.split_once(' ').unwrap_or_default();
                found.clone_into(&mut uid.lock().unwrap());
                state == "True"
            });
            self.delays.lock().unwrap().push(Delay { made, ready: self.now(), took: began.elapsed() });
            let uid = uid.into_inner().unwrap();
            // Also when the others have ended: no pod goes without having been looked at.
            wait_for("its container is looked at", 60, || {
                self.look();
                self.containers.of_pod(&uid).is_some()
            });
            if self.strict {
                let status = self.patient(&["get", "pod", &name, "-o", "json"], "");
                assert_eq!(interfaces(&status), ["eth0", "net1"], "{}", self.name_of_now());
                let netns = self.node.netns_of(&name);
                let whole = Interface::find(&netns, "net1").is_some_and(|net1| net1.addresses().len() == 1);
                assert!(whole, "{}", self.name_of_now());
            }
            self.patient(&["delete", "pod", &name, "--ignore-not-found", "--timeout=60s"], "");
        }
    }

    /// kubectl, again while the server does not answer.
    pub(crate) fn patient(&self, words: &[&str], stdin: &str) -> String {
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

    /// Looks at all containers, again and again: one that runs has its networks.
    fn watch_containers(&self) {
        while !self.over.load(SeqCst) {
            self.look();
            sleep(Duration::from_millis(200));
        }
    }

    fn look(&self) {
        for (pod, networks) in self.containers.look() {
            let whole = networks.eth0 && (networks.net1 || !self.strict);
            assert!(whole, "{}: a container of pod {pod} runs with {networks:?}", self.name_of_now());
        }
    }

    /// Looks at all pods, again and again: one that runs is said to have its networks.
    fn watch_pods(&self) {
        while !self.over.load(SeqCst) {
            let (_, text) = self.node.run(&["kubectl", "--request-timeout=3s", "get", "pods", "-o", "json"], "");
            self.asked.fetch_add(1, SeqCst);
            // While the server stands still nothing is seen, and nothing counted.
            if let Some(pods) =
                serde_json::from_str::<Value>(&text).ok().and_then(|list| list["items"].as_array().cloned())
            {
                self.answered.fetch_add(1, SeqCst);
                for pod in pods.iter().filter(|pod| self.strict && pod["status"]["phase"] == "Running") {
                    let status = pod["metadata"]["annotations"]["k8s.v1.cni.cncf.io/network-status"].as_str();
                    let whole = status.is_some_and(|status| status.contains("net1"));
                    assert!(whole, "{}: {} runs with {status:?}", self.name_of_now(), pod["metadata"]["name"]);
                }
            }
            sleep(Duration::from_millis(300));
        }
    }

    /// What the pods ask for that are made from now on.
    pub(crate) fn ask_for(&self, networks: &'static str) {
        *self.networks.lock().unwrap() = networks;
    }

    /// Does something, and goes on until pods were made meanwhile and after it.
    pub(crate) fn phase(&self, name: &'static str, aftermath: Duration, work: impl FnOnce()) {
        self.phases.lock().unwrap().push(Phase { name, disturbance: Duration::ZERO, aftermath });
        let began = Instant::now();
        work();
        self.phases.lock().unwrap().last_mut().unwrap().disturbance = began.elapsed();
        let until = self.made.load(SeqCst) + 4;
        wait_for("pods are made", 240, || self.made.load(SeqCst) >= until || self.over.load(SeqCst));
    }

    /// How long a pod may take at most that was made in one phase and Ready in another.
    fn limit(phases: &[Phase], delay: &Delay) -> Duration {
        let through = &phases[delay.made..=delay.ready];
        CALM + through.iter().map(|phase| phase.disturbance + phase.aftermath).sum::<Duration>()
    }

    /// How long pods took, by what was done meanwhile. One that lived through several phases counts to the longest: so one
    /// that was made just before the API server stood still, and was Ready when nobody could hear of it, counts to that.
    pub(crate) fn table(&self) -> String {
        let (phases, delays) = (self.phases.lock().unwrap(), self.delays.lock().unwrap());
        let counts_to = |delay: &Delay| {
            (delay.made..=delay.ready).max_by_key(|at| (phases[*at].disturbance + phases[*at].aftermath, *at))
        };
        let mut lines =
            vec![["seconds until Ready", "pods", "shortest", "median", "longest", "bound"].map(str::to_owned)];
        for (at, phase) in phases.iter().enumerate() {
            let mut of_phase: Vec<&Delay> = delays.iter().filter(|delay| counts_to(delay) == Some(at)).collect();
            of_phase.sort_by_key(|delay| delay.took);
            let Some(longest) = of_phase.last() else { continue };
            let times =
                [of_phase[0].took, of_phase[of_phase.len() / 2].took, longest.took, Self::limit(&phases, longest)];
            let [shortest, median, longest, bound] = times.map(|time| format!("{:.1}", time.as_secs_f64()));
            lines.push([phase.name.to_owned(), of_phase.len().to_string(), shortest, median, longest, bound]);
        }
        let line = |[name, pods, shortest, median, longest, bound]: [String; 6]| {
            format!("{name:40} {pods:>5} {shortest:>9} {median:>9} {longest:>9} {bound:>9}\n")
        };
        let (asked, answered) = (self.asked.load(SeqCst), self.answered.load(SeqCst));
        let looks = self.containers.looks();
        lines.into_iter().map(line).collect::<String>()
            + &format!("containers were looked at {looks} times, pods {answered} of {asked} times")
    }

    /// Panics if a pod took longer than what it lived through explains, or if too little was looked at to say anything.
    pub(crate) fn judge(&self) {
        let (phases, delays) = (self.phases.lock().unwrap(), self.delays.lock().unwrap());
        for delay in delays.iter() {
            let (from, to) = (phases[delay.made].name, phases[delay.ready].name);
            assert!(delay.took <= Self::limit(&phases, delay), "{from}, {to}: a pod took {:?}", delay.took);
        }
        let looks = self.containers.looks();
        assert!(looks >= 2 * delays.len(), "{looks} looks for {} pods", delays.len());
        let (asked, answered) = (self.asked.load(SeqCst), self.answered.load(SeqCst));
        assert!(answered * 2 >= asked && answered >= 10, "{answered} of {asked} looks");
    }
}

/// Ends the others when one of them fails, too.
pub(crate) struct Ends<'a>(pub(crate) &'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, SeqCst);
    }
}

/// The same program with some bytes behind it is another build.
fn next_build(node: &Node) -> PathBuf {
    let next = node.path("next");
    fs::copy(env!("CARGO_BIN_EXE_meta-cni"), &next).unwrap();
    fs::OpenOptions::new().append(true).open(&next).unwrap().write_all(b"the next build").unwrap();
    node.import_image(&next, "meta-cni:next");
    next
}

fn roll_out(fire: &Fire<'_>, next: &PathBuf) {
    let node = fire.node;
    let length = |path: &PathBuf| fs::metadata(path).map(|found| found.len()).unwrap_or_default();
    // No ADD has to be tried again: the next pod's token is on the node before the one of the former pod ends.
    fire.phase("another build is rolled out", NEXT_TRY, || {
        let image = "daemonset/meta-cni install=meta-cni:next";
        let words: Vec<&str> = ["set", "image", "-n", "kube-system"].into_iter().chain(image.split(' ')).collect();
        node.kubectl(&words, "");
        node.rolled_out();
        wait_for("the new build is on the node", 30, || length(&node.path("cni/bin/meta-cni")) == length(next));
    });
}

fn shake(fire: &Fire<'_>, pause: Duration) {
    let node = fire.node;
    // The node's token ends with its pod. What is refused until the next one has installed is tried again by kubelet.
    fire.phase("the DaemonSet's pod is deleted", NEXT_TRY, || {
        node.kubectl(&["delete", "pods", "-n", "kube-system", "-l", "app.kubernetes.io/name=meta-cni"], "");
        node.rolled_out();
    });
    fire.phase("the primary's owner writes its conf anew", Duration::ZERO, || {
        let file = node.path("cni/net.d/10-flannel.conflist");
        fs::write(node.path("draft"), flannel(1400).to_string()).unwrap();
        fs::rename(node.path("draft"), &file).unwrap();
        wait_for("it is taken over", 30, || !file.exists());
    });
    fire.phase("subnet.env is away", NEXT_TRY, || {
        node.subnet_env(false);
        sleep(Duration::from_secs(4));
        node.subnet_env(true);
    });
    fire.phase("the API server stands still", NEXT_TRY + WATCHES, || {
        node.api_server(false);
        sleep(pause);
        node.api_server(true);
    });
    fire.phase("quiet again", Duration::ZERO, || {});
    // What the primary's owner wrote is in force.
    node.create(&[pod("last", "net-a")]);
    node.wait_ready(&["last"]);
    assert_eq!(Interface::find(&node.netns_of("last"), "eth0").unwrap().mtu(), 1400);
}

#[test]
fn no_pod_runs_without_its_networks_while_the_installation_is_shaken() {
    let _turn = enter();
    let node = Node::without_us("fire");
    install(&node);
    let next = next_build(&node);
    node.macvlan("net-a", "10.40.0.0/24");
    let fire = Fire::new(&node, true);
    fire.burn(|fire| {
        roll_out(fire, &next);
        if let Some(pause) = api_pause() {
            shake(fire, pause);
        }
    });
    println!("{}", fire.table());
    fire.judge();
}
