//! Looking at containers that run, by the kernel's word alone: no API server, no runtime and no record of ours is asked, so
//! none of them can hide a pod without its networks.

use std::{
    collections::BTreeMap,
    fs,
    path::PathBuf,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use crate::{bed::Node, harness::names};

/// What every container of a test's pods runs, as the kernel has it.
const COMMAND: &[u8] = b"sleep\x00100000\x00";

/// Which interfaces a container was always seen to have routes by: those that are up and have an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Networks {
    pub(crate) eth0: bool,
    pub(crate) net1: bool,
}

/// The containers of one node, by the UID of their pods.
pub(crate) struct Containers {
    cgroup: String,
    seen: Mutex<BTreeMap<String, Networks>>,
    looks: AtomicUsize,
}

impl Containers {
    pub(crate) fn of(node: &Node) -> Self {
        let cgroup = fs::read_to_string(node.path("cgroup")).unwrap();
        Self { cgroup: format!("/{}/", cgroup.trim()), seen: Mutex::default(), looks: AtomicUsize::new(0) }
    }

    /// Looks at all of them, and gives those that run now.
    pub(crate) fn look(&self) -> Vec<(String, Networks)> {
        let processes = names("/proc").into_iter().filter(|name| name.bytes().all(|byte| byte.is_ascii_digit()));
        let found: Vec<(String, Networks)> = processes.filter_map(|process| self.look_at(&process)).collect();
        let mut seen = self.seen.lock().unwrap();
        for (pod, networks) in &found {
            let known = seen.entry(pod.clone()).or_insert(*networks);
            known.eth0 &= networks.eth0;
            known.net1 &= networks.net1;
        }
        self.looks.fetch_add(1, Relaxed);
        found
    }

    fn look_at(&self, process: &str) -> Option<(String, Networks)> {
        let directory = PathBuf::from("/proc").join(process);
        // What has ended has no command line any more, and its namespace may be torn down.
        let runs = || fs::read(directory.join("cmdline")).is_ok_and(|line| line == COMMAND);
        if !runs() {
            return None;
        }
        let cgroup = fs::read_to_string(directory.join("cgroup")).ok()?;
        let (_, below) = cgroup.split_once(&self.cgroup)?;
        let pod = below.split('/').find_map(|part| part.strip_prefix("pod"))?;
        let routes = fs::read_to_string(directory.join("net/route")).ok()?;
        let has = |name: &str| routes.lines().any(|line| line.split('\t').next() == Some(name));
        let networks = Networks { eth0: has("eth0"), net1: has("net1") };
        runs().then(|| (pod.to_owned(), networks))
    }

    /// What was seen of a pod's container until now.
    pub(crate) fn of_pod(&self, uid: &str) -> Option<Networks> {
        self.seen.lock().unwrap().get(uid).copied()
    }

    pub(crate) fn looks(&self) -> usize {
        self.looks.load(Relaxed)
    }
}
