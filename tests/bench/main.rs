//! What an ADD and a DEL cost: the bare Flannel chain against meta-cni in front of it, with no and with two networks, from
//! a directory of manifests and from an API server. All in one run and in turn, so that the ratios hold on any machine.
//!
//! CPU is that of the whole process tree; "own" is our process alone, without the plugins that it executes.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a bench panics where it is wrong, and prints")]

#[path = "../harness/mod.rs"]
mod harness;

mod api;
mod own;

use std::{fs, time::Instant};

use harness::{World, bare, bare_add, ip};
use nix::sys::resource::{UsageWho, getrusage};
use own::Own;
use serde_json::{Value, json};

/// Rounds of every scenario in turn; the medians are printed.
const ROUNDS: usize = 25;

/// One measured call.
#[derive(Clone, Copy, Default)]
struct Cost {
    cpu_ms: f64,
    wall_ms: f64,
}

/// A way to attach a pod.
struct Scenario {
    name: &'static str,
    /// Our conf; nothing for the bare chain.
    conf: Option<Value>,
    pod: &'static str,
}

fn cpu_of_children() -> f64 {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).unwrap();
    let ms = |time: nix::sys::time::TimeVal| time.tv_sec() as f64 * 1e3 + time.tv_usec() as f64 / 1e3;
    ms(usage.user_time()) + ms(usage.system_time())
}

fn measured(work: impl FnOnce()) -> Cost {
    let (cpu, wall) = (cpu_of_children(), Instant::now());
    work();
    Cost { wall_ms: wall.elapsed().as_secs_f64() * 1e3, cpu_ms: cpu_of_children() - cpu }
}

impl Scenario {
    fn once(&self, world: &World, list: &Value, at: usize) -> (Cost, Cost) {
        let (netns, container) = (world.netns(), format!("bench-{at}"));
        let costs = match &self.conf {
            None => {
                let mut result = Value::Null;
                let add = measured(|| result = bare_add(world, list, &container, &netns));
                (add, measured(|| bare(world, "DEL", list, &container, &netns, &result)))
            }
            Some(conf) => {
                let add = measured(|| {
                    drop(world.call("ADD", &container, &netns, conf).env("CNI_ARGS", &args(self.pod)).ok())
                });
                (
                    add,
                    measured(|| {
                        drop(world.call("DEL", &container, &netns, conf).env("CNI_ARGS", &args(self.pod)).ok())
                    }),
                )
            }
        };
        world.delete_netns(&netns);
        costs
    }

    /// CPU and peak memory of our own process.
    fn own(&self, world: &World, conf: &Value) -> (f64, f64) {
        let mut costs = Vec::new();
        for at in 0..ROUNDS {
            let (netns, container) = (world.netns(), format!("own-{at}"));
            costs.push(Own::of(world.call("ADD", &container, &netns, conf).env("CNI_ARGS", &args(self.pod))));
            world.call("DEL", &container, &netns, conf).env("CNI_ARGS", &args(self.pod)).ok();
            world.delete_netns(&netns);
        }
        let peak = costs.iter().map(|own| own.peak_mib).fold(0.0, f64::max);
        (median(costs.iter().map(|own| own.cpu_ms).collect()), peak)
    }

    /// Programs executed in one ADD, counted by strace.
    fn execs(&self, world: &World, list: &Value) -> usize {
        let netns = world.netns();
        // A file for each process: in a common one their lines cut each other in two.
        let strace = ["strace", "-ff", "-qq", "-e", "trace=execve", "-o", "/run/trace/log"];
        let count = || {
            let files =
                fs::read_dir("/run/trace").unwrap().map(|file| fs::read_to_string(file.unwrap().path()).unwrap());
            let executed = files.map(|text| text.lines().filter(|line| line.ends_with("= 0")).count()).sum::<usize>();
            fs::remove_dir_all("/run/trace").unwrap();
            fs::create_dir("/run/trace").unwrap();
            executed
        };
        fs::create_dir_all("/run/trace").unwrap();
        let count = match &self.conf {
            Some(conf) => {
                world.call("ADD", "traced", &netns, conf).env("CNI_ARGS", &args(self.pod)).under(&strace).ok();
                let counted = count();
                world.call("DEL", "traced", &netns, conf).env("CNI_ARGS", &args(self.pod)).ok();
                counted
            }
            None => {
                let mut result = Value::Null;
                let mut total = 0;
                for plugin in list["plugins"].as_array().unwrap() {
                    let mut conf = plugin.clone();
                    conf["name"] = list["name"].clone();
                    conf["cniVersion"] = list["cniVersion"].clone();
                    if !result.is_null() {
                        conf["prevResult"] = result;
                    }
                    let program = world.bin.join(plugin["type"].as_str().unwrap());
                    result =
                        world.call("ADD", "traced", &netns, &conf).program(&program).pod("bare").under(&strace).ok();
                    total += count();
                }
                bare(world, "DEL", list, "traced", &netns, &result);
                total
            }
        };
        world.delete_netns(&netns);
        count
    }
}

/// The runtime's arguments, without a UID: the API server makes those.
fn args(pod: &str) -> String {
    format!("IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME={pod};K8S_POD_INFRA_CONTAINER_ID=x")
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() {
    let world = World::new();
    let primary = world.flannel_primary();
    // As kube-flannel runs flanneld (--ip-masq): the bridge plugin leaves masquerading to it.
    let subnet = fs::read_to_string("/run/flannel/subnet.env").unwrap();
    fs::write("/run/flannel/subnet.env", subnet.replace("IPMASQ=false", "IPMASQ=true")).unwrap();
    let list: Value = serde_json::from_str(&fs::read_to_string(&primary).unwrap()).unwrap();
    ip("link add uplink type veth peer name wire");
    ip("link set uplink up");
    let config = |subnet: &str| json!({"cniVersion": "1.0.0", "type": "macvlan", "master": "uplink", "ipam": {"type": "host-local", "subnet": subnet}});
    let definitions = [("net-a", config("10.10.1.0/24")), ("net-b", config("10.10.2.0/24"))];
    for (name, config) in &definitions {
        world.definition(name, config);
    }
    world.pod("two", "net-a,net-b");
    let manifests = world.conf(&primary);

    let server = api::ApiServer::start();
    for (name, config) in &definitions {
        server.definition(name, config);
    }
    for (pod, networks) in [("plain", ""), ("two", "net-a,net-b")] {
        server.pod(pod, networks);
    }
    let by_api = server.conf(&manifests);

    let scenarios = [
        Scenario { name: "bare Flannel chain", conf: None, pod: "bare" },
        Scenario { name: "manifests, 0 networks", conf: Some(manifests.clone()), pod: "plain" },
        Scenario { name: "manifests, 2 networks", conf: Some(manifests.clone()), pod: "two" },
        Scenario { name: "API server, 0 networks", conf: Some(by_api.clone()), pod: "plain" },
        Scenario { name: "API server, 2 networks", conf: Some(by_api.clone()), pod: "two" },
    ];
    let mut costs: Vec<Vec<(Cost, Cost)>> = scenarios.iter().map(|_| Vec::new()).collect();
    for round in 0..ROUNDS {
        for (scenario, costs) in scenarios.iter().zip(&mut costs) {
            costs.push(scenario.once(&world, &list, round));
        }
    }
    print_table(&world, &list, &scenarios, &costs, &server);
    println!("our own process in one ADD (aims: 3 ms, 8 MiB):");
    for scenario in &scenarios {
        let Some(conf) = &scenario.conf else { continue };
        let mut logging = conf.clone();
        logging["logFile"] = json!("/run/test/bench.log");
        for (conf, log) in [(conf, ""), (&logging, "and a log file")] {
            let (cpu, peak) = scenario.own(&world, conf);
            println!("{:24} {log:14} {cpu:>9.2} ms of CPU {peak:>9.1} MiB at its peak", scenario.name);
        }
    }
}

fn print_table(
    world: &World,
    list: &Value,
    scenarios: &[Scenario],
    costs: &[Vec<(Cost, Cost)>],
    server: &api::ApiServer,
) {
    println!("medians of {ROUNDS} rounds, all scenarios in turn; x is the ratio to the bare chain of the same round\n");
    println!(
        "{:24} {:>5} {:>9} {:>22} {:>22} {:>22}",
        "scenario", "execs", "requests", "ADD CPU ms", "ADD wall ms", "DEL CPU ms"
    );
    for (at, scenario) in scenarios.iter().enumerate() {
        let cell = |pick: fn(&(Cost, Cost)) -> f64| {
            let value = median(costs[at].iter().map(pick).collect());
            let ratio =
                median(costs[at].iter().zip(&costs[0]).map(|(own, bare)| pick(own) / pick(bare).max(0.001)).collect());
            format!("{value:.1} (x{ratio:.2})")
        };
        let before = server.requests();
        let execs = scenario.execs(world, list);
        let requests = server.requests() - before;
        println!(
            "{:24} {execs:>5} {requests:>9} {:>22} {:>22} {:>22}",
            scenario.name,
            cell(|cost| cost.0.cpu_ms),
            cell(|cost| cost.0.wall_ms),
            cell(|cost| cost.1.cpu_ms)
        );
    }
    println!();
}
