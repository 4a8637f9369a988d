//! Killed at every system call that changes something, ADD and DEL leave nothing behind that the runtime's next call, or
//! GC alone, does not put right.
//!
//! As it is, at the points that change the kernel's state, records or leases, most of them in one way. For the long run
//! `META_CNI_CRASH_SECONDS` takes all points in all ways, in an order of `META_CNI_SEED`, for so long.

use std::{
    fmt, fs,
    panic::{AssertUnwindSafe, catch_unwind},
    time::{Duration, Instant},
};

use serde_json::json;

use crate::{
    harness::{Call, Interface, Point, Which, census, ip_in, names, trace},
    node::Node,
    random::{Random, number},
};

/// What is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Killed {
    Add,
    Del,
}

/// What comes then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Then {
    /// The runtime's DEL.
    Del,
    /// The namespace is deleted, and GC finds out by itself.
    Gc,
    /// The runtime's ADD once more, which must succeed, and a DEL.
    Add,
}

/// One run: what is killed before which point, and what comes then.
#[derive(Debug, Clone, Copy)]
struct Run {
    killed: Killed,
    then: Then,
    before: usize,
}

impl fmt::Display for Run {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{:?} killed before point {}, then {:?}", self.killed, self.before, self.then)
    }
}

/// A pod with a bridge and a VF, and the namespace it has at the moment.
struct Scene {
    node: Node,
    netns: String,
}

impl Scene {
    fn new() -> Self {
        let node = Node::new();
        node.network(
            "net-a",
            "bed.test/vf",
            &json!({
                "cniVersion": "1.0.0", "type": "sriov", "vlan": 12, "mac": "02:00:00:00:00:51", "trust": "on",
                "mtu": 1600, "ipam": {"type": "host-local", "subnet": "10.11.0.0/24"}
            }),
        );
        let netns = node.pod("p", "net-a", &[("bed.test/vf", &node.a[5])]);
        Self { node, netns }
    }

    fn call(&self, verb: Killed) -> Call {
        self.node.call(if verb == Killed::Add { "ADD" } else { "DEL" }, "p", &self.netns)
    }

    /// Forgets all directories of ours, which are empty or hold only what may stay: on a fresh node the points are the
    /// same each time, and more.
    fn freshen(&self) {
        for directory in ["/var/lib/cni/meta-cni", "/var/lib/cni/networks", "/var/lib/cni/sriov", "/run/meta-cni"] {
            let _ = fs::remove_dir_all(directory);
        }
    }

    /// The points of a whole ADD and a whole DEL.
    fn record(&self, which: Which) -> [(Killed, Vec<Point>); 2] {
        self.freshen();
        [Killed::Add, Killed::Del].map(|verb| {
            let traced = trace(&self.call(verb), which, None);
            assert_eq!(traced.code, Some(0), "{verb:?} under the tracer: {}", traced.stdout);
            (verb, traced.points)
        })
    }

    /// Carries out a run and panics unless all is as before. Gives the point, or none if it was not reached.
    fn carry_out(&mut self, run: Run, which: Which, point: &mut Option<Point>) {
        self.freshen();
        if run.killed == Killed::Del {
            self.node.add("p", &self.netns);
        }
        let traced = trace(&self.call(run.killed), which, Some(run.before));
        if traced.killed {
            *point = traced.points.last().cloned();
        } else {
            assert_eq!(traced.code, Some(0), "not killed, and failed: {}", traced.stdout);
        }
        match run.then {
            Then::Del => self.node.del("p", &self.netns),
            Then::Add => {
                // If it had ended before, this is another pod's turn.
                if !traced.killed {
                    self.node.del("p", &self.netns);
                }
                // Killed when all was done but the answer: that stands, and the runtime is told to DEL it.
                let answering = point.as_ref().is_some_and(|point| point.is_answer());
                if traced.killed && answering {
                    let refusal = self.call(Killed::Add).fails(7);
                    assert!(refusal.contains("must DEL it before another ADD"), "{refusal}");
                    self.node.del("p", &self.netns);
                }
                self.node.add("p", &self.netns);
                let net1 = Interface::find(&self.netns, "net1").expect("the VF is attached");
                assert_eq!((net1.mac(), net1.mtu()), ("02:00:00:00:00:51", 1600));
                assert_eq!(self.node.world.leases("net-a").len(), 1, "one address");
                self.node.del("p", &self.netns);
            }
            Then::Gc => {
                self.node.world.delete_netns(&self.netns);
                self.node.gc();
                assert_eq!(names("/var/lib/cni/meta-cni/confs"), Vec::<String>::new(), "configurations");
                self.netns = self.node.world.netns();
            }
        }
        assert_eq!(ip_in(&self.netns, "-o link show").lines().count(), 1, "only lo is left");
        self.node.assert_as_before();
    }
}

/// The runs of `make test`: each point of ADD and DEL once with DEL, some of them with what else may come.
fn chosen(points: &[(Killed, Vec<Point>); 2]) -> Vec<Run> {
    let mut runs = Vec::new();
    for (killed, points) in points {
        for before in 0..points.len() {
            let other = if before % 4 == 0 { Some(Then::Gc) } else { None };
            let again = if before % 6 == 1 && *killed == Killed::Add { Some(Then::Add) } else { None };
            for then in [Some(Then::Del), other, again].into_iter().flatten() {
                runs.push(Run { killed: *killed, then, before });
            }
        }
    }
    runs
}

/// All runs.
fn all(points: &[(Killed, Vec<Point>); 2]) -> Vec<Run> {
    let mut runs = Vec::new();
    for (killed, points) in points {
        for then in [Then::Del, Then::Gc, Then::Add] {
            let possible = *killed == Killed::Add || then != Then::Add;
            runs.extend((0..points.len()).filter(|_| possible).map(|before| Run { killed: *killed, then, before }));
        }
    }
    runs
}

#[test]
fn killed_before_every_change_of_add_and_del() {
    let limit = number("META_CNI_CRASH_SECONDS", 0);
    let seed = number("META_CNI_SEED", 1);
    let which = if limit == 0 { Which::State } else { Which::All };
    let began = Instant::now();
    let mut scene = Scene::new();
    let points = scene.record(which);
    scene.node.assert_as_before();
    for (verb, points) in &points {
        println!("crash: {} kill points in {verb:?}: {}", points.len(), census(points));
    }
    let mut runs = if limit == 0 { chosen(&points) } else { all(&points) };
    if limit > 0 {
        Random::new(seed).shuffle(&mut runs);
    }

    let (mut done, mut missed, mut failures) = (0, 0, Vec::new());
    for run in &runs {
        if limit > 0 && began.elapsed() > Duration::from_secs(limit) {
            break;
        }
        let mut point = None;
        let outcome = catch_unwind(AssertUnwindSafe(|| scene.carry_out(*run, which, &mut point)));
        done += 1;
        let recorded = points.iter().find(|(verb, _)| *verb == run.killed).map(|(_, points)| points[run.before].call);
        missed += usize::from(point.as_ref().map(|point| point.call) != recorded);
        if outcome.is_err() {
            failures.push(format!("{run}: {point:?}"));
            // What it left is where the next one starts.
            scene = Scene::new();
        }
    }
    println!(
        "crash: seed {seed}: {done} of {} runs in {} s, {} failed; {missed} did not come to their point",
        runs.len(),
        began.elapsed().as_secs(),
        failures.len()
    );
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    assert!(missed * 20 < done, "{missed} of {done} runs did not come to their point");
}
