//! The long run on the host: pods come and go in random order, calls are killed at random moments, plugins fail at
//! random, namespaces vanish. After each round everything is detached, and nothing may be left.
//!
//! `CHURN_SECONDS` says for how long, `CHURN_SEED` repeats a run.

#![allow(clippy::unwrap_used, reason = "a test panics where it is wrong")]

#[path = "../harness/mod.rs"]
mod harness;

use std::time::{Duration, Instant};

use harness::{Recorder, World, ip};
use serde_json::{Value, json};

/// A small generator (Marsaglia's xorshift64): a run is repeated by its seed.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

fn number(key: &str, default: u64) -> u64 {
    std::env::var(key).ok().map_or(default, |text| text.parse().expect(key))
}

struct Pod {
    container: String,
    netns: String,
    alive: bool,
}

/// What happened, for the summary.
#[derive(Debug, Default)]
struct Count {
    rounds: u32,
    adds: u32,
    failed: u32,
    killed: u32,
    deletions: u32,
    vanished: u32,
}

fn node(world: &World) -> Value {
    let primary = world.bridge_primary();
    world.plugins("reference", &["macvlan"]);
    let recorder = Recorder::install(&world.bin, &["flaky"]);
    recorder.behave(
        "flaky",
        "ADD",
        r#"case $(od -An -N1 -tu1 /dev/urandom) in *[05]) exit 1 ;; *7) kill -9 $PPID ;; esac"#,
    );
    ip("link add uplink type veth peer name wire");
    ip("link set uplink up");
    for name in ["net-a", "net-b"] {
        world.definition(name, &json!({
            "cniVersion": "1.0.0", "type": "macvlan", "master": "uplink",
            "ipam": {"type": "host-local", "subnet": format!("10.10.{}.0/24", name.len() + usize::from(name == "net-b"))}
        }));
    }
    world.definition("flaky", &json!({"cniVersion": "1.0.0", "type": "flaky"}));
    for (pod, networks) in [("p0", "net-a"), ("p1", "net-a,flaky"), ("p2", "flaky,net-b,net-a"), ("p3", "net-b,net-b")]
    {
        world.pod(pod, networks);
    }
    world.conf(&primary)
}

fn add(world: &World, conf: &Value, random: &mut Random, pods: &mut Vec<Pod>, count: &mut Count) {
    let container = format!("c{}-{}", count.rounds, count.adds);
    let netns = world.netns();
    count.adds += 1;
    let mut child = world.call("ADD", &container, &netns, conf).pod(&format!("p{}", random.below(4))).start();
    if random.below(4) == 0 {
        std::thread::sleep(Duration::from_millis(random.below(120)));
        // It may have ended by itself.
        let _ = child.kill();
    }
    match child.wait_with_output().unwrap().status.code() {
        Some(0) => {}
        Some(_) => count.failed += 1,
        None => count.killed += 1,
    }
    pods.push(Pod { container, netns, alive: true });
}

fn delete(world: &World, conf: &Value, random: &mut Random, mut pod: Pod, count: &mut Count) {
    if random.below(3) == 0 {
        world.delete_netns(&pod.netns);
        pod.alive = false;
        count.vanished += 1;
    }
    let named = if random.below(3) == 0 { "" } else { pod.netns.as_str() };
    if random.below(4) == 0 {
        let mut child = world.call("DEL", &pod.container, named, conf).pod("p0").start();
        std::thread::sleep(Duration::from_millis(random.below(60)));
        let _ = child.kill();
        child.wait().unwrap();
    }
    world.call("DEL", &pod.container, named, conf).pod("p0").ok();
    count.deletions += 1;
    if pod.alive {
        world.delete_netns(&pod.netns);
    }
}

#[test]
fn pods_come_and_go_and_nothing_is_left() {
    let world = World::new();
    let conf = node(&world);
    let seed = number("CHURN_SEED", 1).max(1);
    let end = Instant::now() + Duration::from_secs(number("CHURN_SECONDS", 20));
    let mut random = Random(seed);
    let mut count = Count::default();
    while Instant::now() < end {
        let mut pods = Vec::new();
        for _ in 0..20 {
            if pods.is_empty() || random.below(5) < 3 {
                add(&world, &conf, &mut random, &mut pods, &mut count);
            } else {
                let at = usize::try_from(random.below(pods.len() as u64)).unwrap();
                let pod = pods.swap_remove(at);
                delete(&world, &conf, &mut random, pod, &mut count);
            }
        }
        for pod in pods {
            delete(&world, &conf, &mut random, pod, &mut count);
        }
        world.assert_clean();
        count.rounds += 1;
    }
    println!("churn: seed {seed}: {count:?}");
    assert!(count.adds > 0 && count.deletions == count.adds);
}
