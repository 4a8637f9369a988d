//! In place of the reference plugin: the real bridge plugin and Flannel's chain with our link as `host-local`, called bare
//! (as libcni would) and by the meta plugin. Pods come and go, several at once.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};

use crate::harness::{Interface, World, bare, bare_add, names};

const NETWORKS: &str = "/var/lib/cni/networks";

/// The manifests have one pod, which every sandbox of these tests is.
const POD: &str = "p";

/// Who calls the chain.
enum Caller {
    /// libcni, plugin by plugin.
    Bare(Value),
    /// The meta plugin, with this conf.
    Meta(Value),
}

struct Pod {
    container: String,
    netns: String,
}

impl Caller {
    fn add(&self, world: &World, pod: &Pod) -> Value {
        match self {
            Self::Bare(list) => bare_add(world, list, &pod.container, &pod.netns),
            Self::Meta(conf) => world.call("ADD", &pod.container, &pod.netns, conf).pod(POD).ok(),
        }
    }

    fn again(&self, world: &World, verb: &str, pod: &Pod, result: &Value) {
        match self {
            Self::Bare(list) => bare(world, verb, list, &pod.container, &pod.netns, result),
            Self::Meta(conf) => drop(world.call(verb, &pod.container, &pod.netns, conf).pod(POD).ok()),
        }
    }

    /// GC with the living ones; bare, a plugin that forwards it to us calls us like this.
    fn gc(&self, world: &World, living: &[&Pod]) {
        let valid: Vec<Value> =
            living.iter().map(|pod| json!({"containerID": pod.container, "ifname": "eth0"})).collect();
        let (mut conf, program) = match self {
            Self::Bare(list) => {
                let mut conf = list["plugins"][0].clone();
                conf["name"] = list["name"].clone();
                if conf["type"] == "flannel" {
                    // What flannel hands on.
                    conf["ipam"] = json!({"type": "host-local", "ranges": [[{"subnet": "10.244.7.0/24"}]]});
                }
                (conf, world.bin.join("host-local"))
            }
            Self::Meta(conf) => (conf.clone(), PathBuf::from(env!("CARGO_BIN_EXE_meta-cni"))),
        };
        conf["cniVersion"] = json!("1.1.0");
        conf["cni.dev/valid-attachments"] = json!(valid);
        conf["cni.dev/attachments"] = json!(valid);
        world.call("GC", "", "", &conf).program(&program).ok();
    }
}

fn at_once<T: Send>(pods: &[&Pod], work: impl Fn(&Pod) -> T + Sync) -> Vec<T> {
    std::thread::scope(|scope| {
        let work = &work;
        let threads: Vec<_> = pods.iter().map(|pod| scope.spawn(move || work(pod))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

/// The leases of a network: address and owner.
fn leases(world: &World, network: &str) -> BTreeMap<String, String> {
    let content = |address: &String| fs::read_to_string(Path::new(NETWORKS).join(network).join(address)).unwrap();
    world.leases(network).into_iter().map(|address| (address.clone(), content(&address))).collect()
}

/// The index by container, which no other program writes: it was ours that ran.
fn index(network: &str) -> BTreeSet<String> {
    names(Path::new(NETWORKS).join(".meta-cni").join(network).join("owners")).into_iter().collect()
}

/// Panics unless leases, index and the interfaces in the pods agree, for exactly these pods.
fn assert_agree(world: &World, network: &str, interface: &str, pods: &[&Pod]) {
    let mut expected = BTreeMap::new();
    for pod in pods {
        let addresses = Interface::find(&pod.netns, interface).expect("the interface").addresses();
        assert_eq!(addresses.len(), 1, "{addresses:?}");
        let address = addresses[0].split('/').next().unwrap().to_owned();
        let earlier = expected.insert(address, format!("{}\r\n{interface}", pod.container));
        assert_eq!(earlier, None, "an address was given twice");
    }
    assert_eq!(leases(world, network), expected);
    let keys: BTreeSet<String> = pods.iter().map(|pod| format!("{}:{interface}", pod.container)).collect();
    assert_eq!(index(network), keys, "ours was not the one that ran, or its index is wrong");
}

/// A few dozen pods on one network.
fn come_and_go(world: &World, caller: &Caller, network: &str, also: &[(&str, &str)]) {
    let pods: Vec<Pod> = (0..30).map(|at| Pod { container: format!("c{at}"), netns: world.netns() }).collect();
    let all: Vec<&Pod> = pods.iter().collect();
    let agree = |living: &[&Pod]| {
        assert_agree(world, network, "eth0", living);
        also.iter().for_each(|(network, interface)| assert_agree(world, network, interface, living));
    };
    let (first, late) = all.split_at(18);
    let mut results: BTreeMap<String, Value> = BTreeMap::new();
    let keyed = |pod: &Pod| (pod.container.clone(), caller.add(world, pod));
    // The first one alone: the bridge gets its address from it, and pods added meanwhile would have reported another.
    let (only, others) = first.split_at(1);
    results.extend(at_once(only, keyed));
    results.extend(at_once(others, keyed));
    agree(first);
    at_once(first, |pod| caller.again(world, "CHECK", pod, &results[&pod.container]));

    // Half of them go while others come.
    let (leaving, staying) = first.split_at(9);
    let both: Vec<&Pod> = leaving.iter().chain(late).copied().collect();
    let added = at_once(&both, |pod| match results.get(&pod.container) {
        Some(result) => {
            caller.again(world, "DEL", pod, result);
            None
        }
        None => Some(keyed(pod)),
    });
    results.extend(added.into_iter().flatten());
    let living: Vec<&Pod> = staying.iter().chain(late).copied().collect();
    agree(&living);
    at_once(&living, |pod| caller.again(world, "CHECK", pod, &results[&pod.container]));

    // Sandboxes that died without a DEL.
    let (lost, living) = living.split_at(5);
    lost.iter().for_each(|pod| world.delete_netns(&pod.netns));
    caller.gc(world, living);
    agree(living);
    at_once(living, |pod| caller.again(world, "CHECK", pod, &results[&pod.container]));
    at_once(living, |pod| caller.again(world, "DEL", pod, &results[&pod.container]));
    agree(&[]);
    // Once more, as runtimes do.
    at_once(living, |pod| caller.again(world, "DEL", pod, &results[&pod.container]));
}

/// The bridge's list, with us behind it.
fn bridge(world: &World) -> (String, Value) {
    let path = world.bridge_primary();
    world.drop_in("host-local");
    let list = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    (path, list)
}

/// Flannel's list in a version that has CHECK, with us behind it.
fn flannel(world: &World) -> (String, Value) {
    let path = world.flannel_primary();
    world.drop_in("host-local");
    let mut list: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    list["cniVersion"] = json!("0.4.0");
    (world.primary(&list), list)
}

#[test]
fn behind_the_bridge_plugin() {
    let world = World::new();
    let (_, list) = bridge(&world);
    come_and_go(&world, &Caller::Bare(list), "podnet", &[]);
    world.assert_clean();
}

#[test]
fn behind_flannels_chain() {
    let world = World::new();
    let (_, list) = flannel(&world);
    come_and_go(&world, &Caller::Bare(list), "cbr0", &[]);
    // The sandboxes that GC found dead were not DELed by flannel itself.
    names("/var/lib/cni/flannel")
        .iter()
        .for_each(|name| fs::remove_file(Path::new("/var/lib/cni/flannel").join(name)).unwrap());
    world.assert_clean();
}

/// The meta plugin's verbs hold the sandbox's lock meanwhile, and mark what they execute.
#[test]
fn behind_the_bridge_plugin_that_the_meta_plugin_executes() {
    let world = World::new();
    let (primary, _) = bridge(&world);
    world.pod(POD, "");
    come_and_go(&world, &Caller::Meta(world.conf(&primary)), "podnet", &[]);
    world.assert_clean();
}

#[test]
fn behind_flannels_chain_and_macvlan_that_the_meta_plugin_executes() {
    let world = World::new();
    world.macvlan("net-a", "10.10.1.0/24");
    let (primary, _) = flannel(&world);
    world.pod(POD, "net-a");
    come_and_go(&world, &Caller::Meta(world.conf(&primary)), "cbr0", &[("net-a", "net1")]);
    world.assert_clean();
}

/// What the reference bridge makes of our answers.
#[test]
fn check_and_status_reach_us_through_the_bridge_plugin() {
    let world = World::new();
    let (_, list) = bridge(&world);
    let pod = Pod { container: "c1".to_owned(), netns: world.netns() };
    let caller = Caller::Bare(list.clone());
    let result = caller.add(&world, &pod);
    let mut conf = list["plugins"][0].clone();
    conf["name"] = list["name"].clone();
    conf["cniVersion"] = json!("1.1.0");
    conf["prevResult"] = result;
    let call = |verb: &str, conf: &Value| world.call(verb, "c1", &pod.netns, conf).program(&world.bin.join("bridge"));
    call("CHECK", &conf).ok();
    call("STATUS", &conf).ok();
    let lease = Path::new(NETWORKS).join("podnet").join(&world.leases("podnet")[0]);
    fs::remove_file(&lease).unwrap();
    let text = call("CHECK", &conf).fails(101);
    assert!(
        text.contains("Failed to find address added by container c1: not reserved for its interface eth0"),
        "{text}"
    );
    let mut wrong = conf.clone();
    wrong["ipam"]["subnet"] = json!("10.88.0.0/32");
    let text = call("STATUS", &wrong).fails(50);
    assert!(text.contains("Network 10.88.0.0/32 too small to allocate from"), "{text}");
    call("DEL", &conf).ok();
    world.assert_clean();
}
