//! The power of a node with thirty pods is cut, and once more while it recovers: all of them come back with all their
//! networks, no earlier look finds one without, and nothing else is left.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::PermissionsExt as _,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    thread::{scope, sleep},
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::{
    bed::{Node, STATUS, definition, enter, wait_for},
    daemonset::{install, pod},
    harness::{beds, names},
    witness::{Running, Wanted, differences, running},
};

/// How long all pods may take to come on a busy machine.
const PATIENCE: u64 = 300;

/// A macvlan plugin that takes its time for an ADD while a file says so.
const SLOW: &str = r#"#!/bin/sh
here=$(dirname "$0")
if [ "$CNI_COMMAND" = ADD ] && [ -e "$here/slowly" ]; then
    touch "$here/began"
    sleep 60
fi
exec "$here/macvlan"
"#;

/// Whether the power is cut while the node recovers, too, and once more: `make soak` says so, for it takes some minutes.
fn all_cuts() -> bool {
    std::env::var("REBOOT").is_ok_and(|which| which == "all")
}

/// The node, its pods, and what was seen of them.
struct Reboot {
    node: Node,
    /// By name.
    wanted: Mutex<BTreeMap<String, Wanted>>,
    /// Those that are Ready in the boot that is on.
    ready: Mutex<BTreeSet<String>>,
    /// How often a pod was seen Ready, with all that it should have, since the last cut.
    seen: AtomicUsize,
    /// How often the power was cut.
    cuts: AtomicUsize,
    /// When the last boot began.
    since: Mutex<Instant>,
    over: AtomicBool,
}

/// Ends the other thread when one fails, too.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, SeqCst);
    }
}

/// A node with our DaemonSet, our host-local, and the definitions.
fn start() -> Node {
    let node = Node::without_us("reboot");
    let bin = node.path("cni/bin");
    fs::copy(env!("CARGO_BIN_EXE_meta-cni"), bin.join("host-local")).unwrap();
    fs::copy(beds().join("plugins/reference/static"), bin.join("static")).unwrap();
    fs::write(bin.join("slow"), SLOW).unwrap();
    fs::set_permissions(bin.join("slow"), fs::Permissions::from_mode(0o755)).unwrap();
    install(&node);
    node.macvlan("net-a", "10.40.0.0/24");
    node.macvlan("net-b", "10.41.0.0/24");
    let macvlan = |kind: &str, ipam: Value| json!({"cniVersion": "1.0.0", "type": kind, "master": "uplink", "capabilities": {"ips": true}, "ipam": ipam});
    // Three addresses.
    let small = json!({"type": "host-local", "subnet": "10.42.0.0/24", "rangeStart": "10.42.0.10",
                       "rangeEnd": "10.42.0.12"});
    let mut objects = vec![
        definition("stable", &macvlan("macvlan", json!({"type": "host-local", "subnet": "10.43.0.0/24"}))),
        definition("slow", &macvlan("slow", json!({"type": "host-local", "subnet": "10.44.0.0/24"}))),
        definition("small", &macvlan("macvlan", small)),
    ];
    objects.extend((0..4).map(|at| {
        let ipam = json!({"type": "static", "addresses": [{"address": format!("10.45.0.{}/24", at + 10)}]});
        let config = json!({"cniVersion": "1.0.0", "type": "bridge", "bridge": "br-fixed", "ipam": ipam});
        definition(&format!("fixed-{at}"), &config)
    }));
    node.create(&objects);
    node
}

/// Pods by name, with their networks and what they are to have.
fn pods() -> Vec<(String, String, Wanted)> {
    let wanted = |interfaces: &[&'static str], leases| Wanted { interfaces: interfaces.to_vec(), bridged: 1, leases };
    let (one, two) = (wanted(&["eth0", "net1"], 2), wanted(&["eth0", "net1", "net2"], 3));
    let ips = |last: u8| format!(r#"{{"name": "stable", "ips": ["10.43.0.{last}/24"]}}"#);
    let mut pods = vec![
        ("plain".to_owned(), String::new(), wanted(&["eth0"], 1)),
        ("stable".to_owned(), format!("[{}]", ips(78)), one.clone()),
        // The address that it asks for is its own, whatever happens while it gets the next network.
        ("torn".to_owned(), format!(r#"[{}, {{"name": "slow"}}]"#, ips(79)), two.clone()),
        ("gone-0".to_owned(), "small".to_owned(), one.clone()),
        ("gone-1".to_owned(), "net-a".to_owned(), one.clone()),
    ];
    pods.extend((0..13).map(|at| (format!("mac-{at}"), "net-a".to_owned(), one.clone())));
    pods.extend((0..4).map(|at| (format!("two-{at}"), "net-a,net-b".to_owned(), two.clone())));
    pods.extend((0..2).map(|at| (format!("small-{at}"), "small".to_owned(), one.clone())));
    let fixed = Wanted { bridged: 2, leases: 1, ..one.clone() };
    pods.extend((0..4).map(|at| (format!("fixed-{at}"), format!("fixed-{at}"), fixed.clone())));
    pods.extend((0..2).map(|at| (format!("static-{at}"), "net-a".to_owned(), one.clone())));
    pods
}

impl Reboot {
    fn make(&self) {
        let mut objects = Vec::new();
        for (name, networks, wanted) in pods() {
            let mut object = pod(&name, &networks);
            if name.starts_with("static") {
                self.node.static_manifest(&name, &object);
                self.wanted.lock().unwrap().insert(format!("{name}-node-1"), wanted);
                continue;
            }
            if name == "gone-1" {
                // Its object stays until kubelet says that it ended.
                object["spec"]["terminationGracePeriodSeconds"] = json!(30);
            }
            objects.push(object);
            self.wanted.lock().unwrap().insert(name, wanted);
        }
        self.node.create(&objects);
    }

    /// Looks at all pods, again and again. What runs has its networks, by the kernel; and by its object, if that says that
    /// it is Ready.
    fn watch(&self) {
        while !self.over.load(SeqCst) {
            let cuts = self.cuts.load(SeqCst);
            let mut wanted = self.wanted.lock().unwrap().clone();
            let (_, text) = self.node.run(&["kubectl", "--request-timeout=3s", "get", "pods", "-o", "json"], "");
            let pods: Value = serde_json::from_str(&text).unwrap_or_default();
            let living: BTreeMap<String, Running> = running(&self.node)
                .into_iter()
                .filter(|one| !one.is_sandbox && one.namespace == "default")
                .map(|one| (one.id.clone(), one))
                .collect();
            // What comes and goes meanwhile is among those of before or of now.
            wanted.extend(self.wanted.lock().unwrap().clone());
            for one in living.values() {
                let wanted = wanted.get(&one.pod).unwrap_or_else(|| panic!("{one:?} runs, and is deleted"));
                assert!(wanted.is_had_by(one), "{one:?} runs, and should have {wanted:?}");
            }
            let mut ready = BTreeSet::new();
            for pod in pods["items"].as_array().into_iter().flatten() {
                // An object says so of an earlier boot until kubelet comes to it.
                let id = pod["status"]["containerStatuses"][0]["containerID"].as_str().unwrap_or_default();
                let Some(one) = living.get(id.trim_start_matches("containerd://")) else { continue };
                let conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
                if conditions.clone().any(|one| one["type"] == "Ready" && one["status"] == "True") {
                    assert_told(pod, one, &wanted[&one.pod]);
                    ready.insert(one.pod.clone());
                }
            }
            let mut published = self.ready.lock().unwrap();
            if self.cuts.load(SeqCst) == cuts {
                self.seen.fetch_add(ready.len(), SeqCst);
                *published = ready;
            }
            drop(published);
            sleep(Duration::from_millis(200));
        }
    }

    fn ready(&self) -> usize {
        self.ready.lock().unwrap().len()
    }

    fn wait_ready(&self) {
        let wanted = self.wanted.lock().unwrap().len();
        let over = || self.over.load(SeqCst);
        wait_for("all pods are Ready", PATIENCE, || self.ready() == wanted || over());
        assert!(!over(), "the watcher failed: see its message");
    }

    /// Waits until all pods are Ready with all they should have, and nothing is kept of anybody else.
    fn recovered(&self, what: &str, since: Instant) {
        let wanted = self.wanted.lock().unwrap().clone();
        self.wait_ready();
        let all = since.elapsed();
        let end = Instant::now() + Duration::from_secs(PATIENCE);
        loop {
            let found = differences(&self.node, &wanted);
            if found.is_empty() {
                break;
            }
            assert!(Instant::now() < end, "{what}: {found:#?}");
            sleep(Duration::from_millis(500));
        }
        let seen = self.seen.load(SeqCst);
        assert!(seen >= wanted.len(), "{what}: {seen} looks");
        println!(
            "{what}: {} pods are Ready after {all:.1?}, and nothing else is left after {:.1?}; {seen} looks at Ready pods",
            wanted.len(),
            since.elapsed()
        );
    }

    fn boot(&self) {
        *self.since.lock().unwrap() = Instant::now();
        self.node.boot();
    }

    fn cut(&self) {
        self.node.power_cut();
        let mut ready = self.ready.lock().unwrap();
        self.cuts.fetch_add(1, SeqCst);
        self.seen.store(0, SeqCst);
        ready.clear();
    }

    fn run(&self) {
        let began = Instant::now();
        self.make();
        self.recovered("made", began);
        self.first_cut();
        if all_cuts() {
            self.cut_while_it_recovers();
        }
        self.recovered("after the power was cut", *self.since.lock().unwrap());
        // The one address of its pool that no living pod has.
        let began = Instant::now();
        let one = self.wanted.lock().unwrap()["small-0"].clone();
        self.wanted.lock().unwrap().insert("late".to_owned(), one);
        self.node.create(&[pod("late", "small")]);
        self.recovered("one more", began);
        if all_cuts() {
            self.cut_and_the_runtime_loses_its_state();
        }
    }

    fn first_cut(&self) {
        let node = &self.node;
        self.cut();
        // Two are deleted while the node is off; one of them kubelet has to let go.
        node.kubectl(&["delete", "pod", "gone-0", "gone-1", "--wait=false"], "");
        self.wanted.lock().unwrap().retain(|name, _| !name.starts_with("gone"));
        if all_cuts() {
            fs::write(node.path("cni/bin/slowly"), "").unwrap();
        }
        self.boot();
        // flanneld comes some time after kubelet has begun.
        wait_for("pods are told what is missing", 120, || node.all_events().contains("subnet.env"));
        node.subnet_env(true);
    }

    /// In the middle of an ADD; and the API server comes later than the node.
    fn cut_while_it_recovers(&self) {
        let node = &self.node;
        let began = *self.since.lock().unwrap();
        wait_for("an ADD is under way, and some pods are back", PATIENCE, || {
            (self.ready() >= 10 && node.path("cni/bin/began").exists()) || self.over.load(SeqCst)
        });
        println!("the power is cut again after {:.1?}: {} pods are Ready", began.elapsed(), self.ready());
        node.api_server(false);
        self.cut();
        fs::remove_file(node.path("cni/bin/slowly")).unwrap();
        self.boot();
        node.subnet_env(true);
        sleep(Duration::from_secs(10));
        node.api_server(true);
    }

    /// Nobody knows the sandboxes of before any more, and nobody detaches them: all their addresses are taken.
    fn cut_and_the_runtime_loses_its_state(&self) {
        let node = &self.node;
        self.cut();
        for lost in ["containerd", "var/lib/cni/results"] {
            fs::remove_dir_all(node.path(lost)).unwrap();
            fs::create_dir(node.path(lost)).unwrap();
        }
        fs::remove_file(node.path("imported")).unwrap();
        self.boot();
        node.subnet_env(true);
        let wanted = self.wanted.lock().unwrap().len();
        self.wait_ready();
        let since = *self.since.lock().unwrap();
        println!("without containerd's state: {wanted} pods are Ready after {:.1?}", since.elapsed());
        // Ten minutes later the DEL of another pod takes along what is left.
        let lists = node.inside("/run/meta-cni/boot").join(node.boot_id());
        let list =
            names(&lists).into_iter().find(|name| name.starts_with("sandboxes-")).expect("what is left is listed");
        let text = fs::read_to_string(lists.join(&list)).unwrap();
        let (_, containers) = text.split_once('\n').unwrap();
        assert_eq!(containers.lines().count(), wanted);
        fs::write(lists.join(&list), format!("sandboxes -600 /\n{containers}")).unwrap();
        node.kubectl(&["delete", "pod", "plain", "--timeout=60s"], "");
        wait_for("plain has ended", 60, || running(node).iter().all(|one| one.pod != "plain"));
        self.wanted.lock().unwrap().remove("plain");
        self.recovered("without containerd's state", since);
    }
}

/// Panics unless a Ready pod's object says what its container has.
fn assert_told(pod: &Value, one: &Running, wanted: &Wanted) {
    let text = pod["metadata"]["annotations"][STATUS].as_str().unwrap_or_default();
    let status: Value = serde_json::from_str(text).unwrap_or_default();
    let entries: Vec<&Value> = status.as_array().into_iter().flatten().collect();
    let interfaces: Vec<&str> = entries.iter().filter_map(|entry| entry["interface"].as_str()).collect();
    assert_eq!(interfaces, wanted.interfaces, "{one:?} is Ready: {text}");
    let told: BTreeSet<_> = entries
        .iter()
        .flat_map(|entry| entry["ips"].as_array().into_iter().flatten())
        .filter_map(|address| address.as_str()?.parse().ok())
        .collect();
    assert_eq!(told, one.addresses, "{one:?} is Ready: {text}");
}

#[test]
#[ignore = "takes two minutes, with REBOOT=all four: make soak runs it"]
fn thirty_pods_come_back_with_their_networks_after_power_cuts() {
    let _turn = enter();
    let reboot = Reboot {
        node: start(),
        wanted: Mutex::default(),
        ready: Mutex::default(),
        seen: AtomicUsize::new(0),
        cuts: AtomicUsize::new(0),
        since: Mutex::new(Instant::now()),
        over: AtomicBool::new(false),
    };
    scope(|scope| {
        scope.spawn(|| {
            let _ends = Ends(&reboot.over);
            reboot.watch();
        });
        let _ends = Ends(&reboot.over);
        reboot.run();
    });
}
