//! A node whose power may fail at any moment: `/var/lib/cni` is a file system on a disk, of which the machine's memory
//! holds what was not written yet. `tests/guest/power-cut` starts this again and again and kills the machine meanwhile.
//!
//! Usage: power SEED HOW [churn]. First what the boot before left is given back, as HOW says (by GC alone, by the DELs of
//! a runtime that finds its sandboxes dead, or by GC after new pods were attached to every VF), and all must be as on a
//! fresh node. With `churn`, pods then come and go until the end, and `$OUT/churning` says so.

#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "a test")]

#[path = "../harness/mod.rs"]
mod harness;
#[allow(dead_code, reason = "the suite uses the rest")]
mod node;
#[allow(dead_code, reason = "the suite uses the rest")]
mod random;

use std::{fs, path::Path, thread, time::Duration};

use serde_json::json;

use crate::{
    harness::{World, names},
    node::{Node, Vf},
    random::Random,
};

const SANDBOXES: &str = "/var/lib/cni/meta-cni/sandboxes";

/// A node with a network of VFs with addresses; its files as the boot before left them.
fn node() -> Node {
    let node = Node::as_found();
    node.network(
        "net-a",
        "bed.test/vf",
        &json!({"cniVersion": "1.0.0", "type": "sriov", "vlan": 12, "trust": "on", "mtu": 1600,
                "ipam": {"type": "host-local", "subnet": "10.11.0.0/24"}}),
    );
    node
}

/// The files of ours that the boot before left, but for those that stay.
fn left() -> Vec<String> {
    let mut files = Vec::new();
    for container in names(SANDBOXES) {
        let directory = Path::new(SANDBOXES).join(&container);
        files.extend(names(&directory).into_iter().map(|name| describe(&directory.join(name))));
        files.push(format!("{container}/"));
    }
    files.extend(names("/var/lib/cni/meta-cni/vfs").iter().map(|name| format!("lease {name}")));
    for network in names("/var/lib/cni/networks") {
        let directory = Path::new("/var/lib/cni/networks").join(&network);
        files
            .extend(names(&directory).into_iter().map(|name| format!("{network}/{}", describe(&directory.join(name)))));
    }
    files
}

fn describe(path: &Path) -> String {
    let length = fs::metadata(path).map_or(0, |found| found.len());
    format!("{} ({length})", path.file_name().unwrap_or_default().display())
}

fn all_vfs(node: &Node) -> Vec<Vf> {
    node.a.iter().chain(&node.b).cloned().collect()
}

fn give_back(node: &Node, how: &str) {
    match how {
        "gc" => node.gc(),
        "del" => {
            for container in names(SANDBOXES) {
                let pod = container.split('-').next().unwrap();
                node.world.call("DEL", &container, "", &node.conf).pod(pod).ok();
            }
            // Of leases alone, without a record, the runtime knows nothing.
            node.gc();
        }
        "add" => {
            let vfs = all_vfs(node);
            let attach = |(number, vf): (usize, &Vf)| {
                let pod = format!("new{number}");
                let netns = node.pod(&pod, "net-a", &[("bed.test/vf", vf)]);
                node.add(&pod, &netns);
                (pod, netns)
            };
            let pods: Vec<(String, String)> = vfs.iter().enumerate().map(attach).collect();
            for (pod, netns) in &pods {
                node.del(pod, netns);
            }
            node.gc();
        }
        _ => panic!("usage: power SEED gc|del|add [churn]"),
    }
    node.assert_as_before();
    assert_eq!(names("/var/lib/cni/meta-cni/confs"), Vec::<String>::new(), "configurations");
    // The addresses that a new pod gets are the next ones, all free.
    assert_eq!(World::leases(&node.world, "podnet"), Vec::<String>::new());
}

/// Pods come and go on all VFs, and what is in memory is written to the disk at random moments, as the kernel does.
fn churn(node: &Node, mut random: Random) -> ! {
    let vfs = all_vfs(node);
    thread::spawn({
        let mut random = Random::new(random.below(u64::MAX));
        move || {
            loop {
                thread::sleep(Duration::from_millis(random.below(3000)));
                nix::unistd::sync();
            }
        }
    });
    let mut attached: Vec<Option<(String, String)>> = vec![None; vfs.len()];
    for turn in 0_u64.. {
        let number = random.index(vfs.len());
        attached[number] = match attached[number].take() {
            None => {
                let pod = format!("p{number}");
                let netns = node.pod(&pod, "net-a", &[("bed.test/vf", &vfs[number])]);
                let container = format!("{pod}-{turn}");
                node.world.call("ADD", &container, &netns, &node.conf).pod(&pod).ok();
                Some((container, netns))
            }
            Some((container, netns)) => {
                node.world.call("DEL", &container, &netns, &node.conf).pod(&format!("p{number}")).ok();
                node.world.delete_netns(&netns);
                None
            }
        };
        if turn == 2 {
            fs::write(Path::new(&std::env::var("OUT").unwrap()).join("churning"), "").unwrap();
        }
    }
    unreachable!("the counter of turns has no end that power lasts to")
}

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let seed = words[0].parse().unwrap();
    let node = node();
    println!("power: found {:?}", left());
    give_back(&node, &words[1]);
    println!("power: as on a fresh node, by {}", words[1]);
    if words.get(2).is_some_and(|word| word == "churn") {
        churn(&node, Random::new(seed));
    }
}
