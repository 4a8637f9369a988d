//! What lives on the node by the runtime's own files and the kernel's, and whether all that is kept on disk says the same.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
};

use serde_json::Value;

use crate::{bed::Node, harness::names};

/// Where containerd keeps what runs.
const TASKS: &str = "/run/containerd/io.containerd.runtime.v2.task/k8s.io";

/// A container that runs.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) id: String,
    /// Whether it is a pod's sandbox, and none of the containers in one.
    pub(crate) is_sandbox: bool,
    pub(crate) pod: String,
    pub(crate) namespace: String,
    /// Its interfaces, but for the loopback.
    pub(crate) interfaces: BTreeSet<String>,
    /// Its addresses, but for the loopback's.
    pub(crate) addresses: BTreeSet<Ipv4Addr>,
}

/// The containers that run at this moment. Of one that ends meanwhile nothing is said.
pub(crate) fn running(node: &Node) -> Vec<Running> {
    names(node.inside(TASKS)).into_iter().filter_map(|id| look(node, id)).collect()
}

fn look(node: &Node, id: String) -> Option<Running> {
    let task = node.inside(TASKS).join(&id);
    let spec: Value = serde_json::from_str(&fs::read_to_string(task.join("config.json")).ok()?).ok()?;
    let said = |key: &str| spec["annotations"][format!("io.kubernetes.cri.{key}")].as_str().map(str::to_owned);
    let pid = fs::read_to_string(task.join("init.pid")).ok()?;
    let of_process = |file: &str| fs::read_to_string(node.inside(&format!("/proc/{pid}/net/{file}"))).ok();
    let named = of_process("dev")?;
    let named = named.lines().filter_map(|line| Some(line.split_once(':')?.0.trim().to_owned()));
    Some(Running {
        is_sandbox: said("container-type")? == "sandbox",
        pod: said("sandbox-name")?,
        namespace: said("sandbox-namespace")?,
        interfaces: named.filter(|name| name != "lo").collect(),
        addresses: local_addresses(&of_process("fib_trie")?),
        id,
    })
}

/// An address of the kernel's own is a line `|-- ADDRESS`, and the next one says so.
fn local_addresses(trie: &str) -> BTreeSet<Ipv4Addr> {
    let lines: Vec<&str> = trie.lines().map(str::trim).collect();
    let own = lines.windows(2).filter(|pair| pair[1].starts_with("/32 host LOCAL"));
    let addresses = own.filter_map(|pair| pair[0].strip_prefix("|-- ")?.parse().ok());
    addresses.filter(|address: &Ipv4Addr| !address.is_loopback()).collect()
}

/// What a pod is to have.
#[derive(Debug, Clone)]
pub(crate) struct Wanted {
    pub(crate) interfaces: Vec<&'static str>,
    /// How many of them are on a bridge of the node's.
    pub(crate) bridged: usize,
    /// How many addresses it has from a pool. Each interface has one.
    pub(crate) leases: usize,
}

impl Wanted {
    /// Whether a container has all of it.
    pub(crate) fn is_had_by(&self, one: &Running) -> bool {
        let names: BTreeSet<&str> = one.interfaces.iter().map(String::as_str).collect();
        names == self.interfaces.iter().copied().collect() && one.addresses.len() == names.len()
    }
}

/// Where what is kept on the node differs from what lives and is wanted. Empty if all agree.
pub(crate) fn differences(node: &Node, wanted: &BTreeMap<String, Wanted>) -> Vec<String> {
    let sandboxes: Vec<Running> =
        running(node).into_iter().filter(|one| one.is_sandbox && one.namespace == "default").collect();
    let mut found = Vec::new();
    let mut same = |what: &str, is: Vec<String>, should: Vec<String>| {
        let (is, should): (BTreeSet<_>, BTreeSet<_>) = (is.into_iter().collect(), should.into_iter().collect());
        let surplus = is.difference(&should).map(|one| format!("{what}: {one} is too much"));
        found.extend(surplus.chain(should.difference(&is).map(|one| format!("{what}: {one} is missing"))));
    };
    let each = |of: &dyn Fn(&Running) -> Vec<String>| sandboxes.iter().flat_map(of).collect::<Vec<String>>();
    let interfaces = |one: &Running| wanted.get(&one.pod).map(|wanted| wanted.interfaces.clone()).unwrap_or_default();
    let ids = || each(&|one| vec![one.id.clone()]);
    let pods: Vec<String> = sandboxes.iter().map(|one| one.pod.clone()).collect();
    if pods.len() != wanted.len() {
        same("sandboxes", vec![pods.len().to_string()], vec![wanted.len().to_string()]);
    }
    same("pods with a sandbox", pods, wanted.keys().cloned().collect());

    let state = node.path("var/lib/cni");
    let attachment = |one: &Running, name: &str| format!("{} {} {name}", one.pod, one.id);
    let (records, results, leases) = (records(&state), results(&state), leases(&state));
    let living: Vec<String> = each(&|one| interfaces(one).iter().map(|name| attachment(one, name)).collect());
    let of_records = |at: usize| records.iter().map(|record| record[at].clone()).collect::<Vec<String>>();
    same("records", of_records(0), living.clone());
    same("boots of records", of_records(1), vec![node.boot_id()]);
    same("stages of records", of_records(2), vec!["done".to_owned()]);
    // Each sandbox once, by whatever name the runtime calls it.
    same("results", results, ids());
    same("Flannel's files", names(state.join("flannel")), ids());
    same("locks", names(node.inside("/run/meta-cni/lock")), each(&|one| vec![format!("sandbox-{}", one.id)]));
    // Whoever holds an address lives and has it on an interface.
    let held: BTreeMap<&String, &Running> = sandboxes.iter().map(|one| (&one.id, one)).collect();
    let real = |(address, container): &(Ipv4Addr, String)| {
        held.get(container).is_some_and(|one| one.addresses.contains(address))
    };
    let stale = leases.iter().filter(|lease| !real(lease)).map(|(address, container)| format!("{address} {container}"));
    same("leases", stale.collect(), Vec::new());
    let count = |of: &dyn Fn(&Wanted) -> usize| wanted.values().map(of).sum::<usize>();
    same("number of leases", vec![leases.len().to_string()], vec![count(&|one| one.leases).to_string()]);
    let namespaces = names(node.inside("/run/netns")).len();
    same("namespaces", vec![namespaces.to_string()], vec![sandboxes.len().to_string()]);
    same("interfaces of the node", host_interfaces(node, count(&|one| one.bridged)), Vec::new());
    same("interfaces", each(&|one| one.interfaces.iter().map(|name| attachment(one, name)).collect()), living);
    found
}

/// Of each record: its attachment (`POD CONTAINER INTERFACE`), boot and stage.
fn records(state: &Path) -> Vec<[String; 3]> {
    let sandboxes = state.join("meta-cni/sandboxes");
    let of_container = |container: String| {
        let directory = sandboxes.join(container);
        names(&directory).into_iter().map(move |name| directory.join(name))
    };
    let read = |path: PathBuf| {
        let record: Value = serde_json::from_str(&fs::read_to_string(path).ok()?).unwrap_or_default();
        let text = |pointer: &str| record.pointer(pointer).and_then(Value::as_str).unwrap_or("?").to_owned();
        let attachment = format!("{} {} {}", text("/pod/name"), text("/call/container"), text("/interface"));
        Some([attachment, text("/bootId"), text("/stage")])
    };
    names(&sandboxes).into_iter().flat_map(of_container).filter_map(read).collect()
}

/// The containers whose results the runtime's library keeps.
fn results(state: &Path) -> Vec<String> {
    let is_id = |word: &&str| word.len() == 64 && word.bytes().all(|byte| byte.is_ascii_hexdigit());
    let of_file = |name: String| Some(name.split('-').find(is_id)?.to_owned());
    names(state.join("results")).into_iter().filter_map(of_file).collect()
}

/// Addresses in the pools, with their holders.
fn leases(state: &Path) -> Vec<(Ipv4Addr, String)> {
    let networks = state.join("networks");
    let mut found = Vec::new();
    for network in names(&networks) {
        for name in names(networks.join(&network)) {
            let holder = fs::read_to_string(networks.join(&network).join(&name)).unwrap_or_default();
            let holder = holder.lines().next().unwrap_or_default().to_owned();
            found.extend(name.parse().ok().map(|address| (address, holder)));
        }
    }
    found
}

/// Interfaces of the node that should not be there: a veth for each interface on a bridge is right.
fn host_interfaces(node: &Node, ports: usize) -> Vec<String> {
    let (_, text) = node.run(&["ip", "-j", "-d", "link", "show"], "");
    let links: Vec<Value> = serde_json::from_str(&text).unwrap_or_default();
    let of_kind = |kind: &str| {
        let of_link = |link: &&Value| link["linkinfo"]["info_kind"] == kind;
        links.iter().filter(of_link).filter_map(|link| link["ifname"].as_str().map(str::to_owned)).collect::<Vec<_>>()
    };
    let mut veths = of_kind("veth");
    veths.retain(|name| !["node0", "uplink", "wire"].contains(&name.as_str()));
    let mut surplus = of_kind("macvlan");
    if veths.len() != ports {
        surplus.push(format!("{} veths for {ports}", veths.len()));
    }
    surplus
}
