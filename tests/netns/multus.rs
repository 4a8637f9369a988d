//! Sandboxes that Multus attached, with the real plugins, and its files as it writes them (Multus 4.3): DEL and GC by us,
//! whatever is left of the files.

use std::{fs, path::Path};

use serde_json::{Value, json};

use crate::harness::{Interface, MULTUS_DIRECTORY as DIRECTORY, World, bare_add, go_bytes, multus_files, names};

/// A node whose pods Multus attached: a bridge as the primary network, and macvlan twice.
struct Node {
    world: World,
    conf: Value,
    primary: Value,
    secondary: Value,
}

impl Node {
    fn new() -> Self {
        let world = World::new();
        let path = world.bridge_primary();
        world.macvlan("net-a", "10.10.1.0/24");
        let secondary = json!({
            "cniVersion": "1.0.0", "name": "net-a", "type": "macvlan", "master": "uplink",
            "ipam": {"type": "host-local", "subnet": "10.10.1.0/24"}
        });
        let conf = world.conf(&path);
        let primary = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        Self { world, conf, primary, secondary }
    }

    /// Attaches a sandbox as Multus does, and writes its files.
    fn born_under_multus(&self, container: &str) -> String {
        let netns = self.world.netns();
        let result = bare_add(&self.world, &self.primary, container, &netns);
        let mut attachments = vec![("eth0", self.primary.clone(), result)];
        for interface in ["net1", "data0"] {
            let program = self.world.bin.join("macvlan");
            let call = self.world.call("ADD", container, &netns, &self.secondary).program(&program).if_name(interface);
            attachments.push((interface, self.secondary.clone(), call.ok()));
        }
        multus_files(container, &netns, &attachments);
        assert!(Interface::find(&netns, "data0").is_some());
        assert_eq!(self.of(container, "podnet") + self.of(container, "net-a"), 3);
        netns
    }

    /// How many addresses of a pool a container holds.
    fn of(&self, container: &str, network: &str) -> usize {
        let directory = Path::new("/var/lib/cni/networks").join(network);
        let held = |address: &String| fs::read_to_string(directory.join(address)).unwrap().starts_with(container);
        self.world.leases(network).iter().filter(|address| held(address)).count()
    }

    fn forget_results(&self, container: &str) {
        for name in names(Path::new(DIRECTORY).join("results")) {
            if name.contains(&format!("-{container}-")) {
                fs::remove_file(Path::new(DIRECTORY).join("results").join(name)).unwrap();
            }
        }
    }

    fn assert_gone(&self, context: &str) {
        assert_eq!(names(DIRECTORY), ["results"], "{context}");
        assert_eq!(names(Path::new(DIRECTORY).join("results")), Vec::<String>::new(), "{context}");
        self.world.assert_clean();
        let ports: Vec<String> = names("/sys/class/net/cni0/brif");
        assert_eq!(ports, Vec::<String>::new(), "{context}: interfaces of the bridge");
    }
}

/// A plugin that collects by the list it is given, as our host-local does, must not be told a list without them.
#[test]
fn gc_of_a_network_leaves_the_addresses_of_living_sandboxes_that_multus_attached() {
    let node = Node::new();
    let ours = node.world.drop_in("host-local");
    assert!(ours.ends_with("host-local"));
    let mut config = node.secondary.clone();
    config["cniVersion"] = json!("1.1.0");
    node.world.definition("net-a", &config);
    node.world.pod("p", "net-a");
    let (old, lost, own) = (node.born_under_multus("old"), node.world.netns(), node.world.netns());
    for (container, netns) in [("lost", &lost), ("own", &own)] {
        node.world.call("ADD", container, netns, &node.conf).pod("p").ok();
    }
    fs::remove_dir_all("/var/lib/cni/meta-cni/sandboxes/lost").unwrap();
    // One that nobody has.
    fs::write("/var/lib/cni/networks/net-a/10.10.1.99", "gone\r\nnet1").unwrap();
    let mut conf = node.conf.clone();
    conf["cniVersion"] = json!("1.1.0");
    let listed = ["old", "lost", "own"].map(|container| json!({"containerID": container, "ifname": "eth0"}));
    conf["cni.dev/valid-attachments"] = json!(listed);
    let recorder = crate::harness::Recorder::install(&node.world.bin, &["bridge"]);
    // The reference macvlan does not hand GC on to its IPAM plugin: this one does.
    recorder.behave("bridge", "GC", "exit 0");
    fs::remove_file(node.world.bin.join("macvlan")).unwrap();
    fs::write(node.world.bin.join("macvlan"), format!("#!/bin/sh\nexec {}\n", ours.display())).unwrap();
    fs::set_permissions(node.world.bin.join("macvlan"), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    node.world.call("GC", "", "", &conf).ok();
    let held = ["old", "lost", "own", "gone"].map(|container| node.of(container, "net-a"));
    assert_eq!(held, [2, 1, 1, 0]);
    drop((old, lost, own));
}

fn path(container: &str) -> std::path::PathBuf {
    Path::new(DIRECTORY).join(container)
}

/// A list went through Go's types: what only the plugins know is lost (multus#1449).
fn make_lossy(container: &str) {
    let mut delegates: Value = serde_json::from_str(&fs::read_to_string(path(container)).unwrap()).unwrap();
    let plugin = json!({"type": "bridge", "ipam": {"type": "host-local"}});
    delegates[0]["Bytes"] = go_bytes(&json!({"cniVersion": "1.0.0", "name": "podnet", "plugins": [plugin]}));
    fs::write(path(container), delegates.to_string()).unwrap();
}

/// What happened to the files before our DEL: its name, and how.
type Damage = (&'static str, fn(&Node, &str));

fn damages() -> Vec<Damage> {
    vec![
        ("good", |_, _| {}),
        ("without results", |node, container| node.forget_results(container)),
        ("empty", |_, container| fs::write(path(container), "").unwrap()),
        ("torn", |_, container| {
            let text = fs::read_to_string(path(container)).unwrap();
            fs::write(path(container), &text[..text.len() / 2]).unwrap();
        }),
        ("torn, without results", |node, container| {
            fs::write(path(container), "[{\"Conf\":").unwrap();
            node.forget_results(container);
        }),
        ("lossy", |_, container| make_lossy(container)),
        ("lossy, without results", |node, container| {
            make_lossy(container);
            node.forget_results(container);
        }),
        ("absent", |_, container| fs::remove_file(path(container)).unwrap()),
        ("nothing left at all", |node, container| {
            fs::remove_file(path(container)).unwrap();
            node.forget_results(container);
        }),
    ]
}

#[test]
fn del_by_whatever_is_left_of_the_files() {
    let node = Node::new();
    // Somebody else's sandbox is none of our business.
    let other = node.born_under_multus("other");
    let files = names(Path::new(DIRECTORY).join("results"));
    for gone in [false, true] {
        for (at, (what, damage)) in damages().into_iter().enumerate() {
            let context = format!("{what}, namespace gone: {gone}");
            let container = format!("c{at}{gone}");
            let netns = node.born_under_multus(&container);
            damage(&node, &container);
            if gone {
                node.world.delete_netns(&netns);
            }
            // The runtime hands over what it keeps until a DEL succeeded.
            let mut conf = node.conf.clone();
            conf["prevResult"] = json!({"cniVersion": "1.0.0"});
            node.world.call("DEL", &container, &netns, &conf).ok();
            assert_eq!(node.of(&container, "podnet") + node.of(&container, "net-a"), 0, "{context}");
            assert!(gone || Interface::find(&netns, "eth0").is_none(), "{context}");
            assert_eq!(names(Path::new(DIRECTORY).join("results")), files, "{context}");
            assert_eq!(names(DIRECTORY), ["other", "results"], "{context}");
            node.world.call("DEL", &container, &netns, &node.conf).ok();
            if !gone {
                node.world.delete_netns(&netns);
            }
        }
    }
    assert_eq!(node.of("other", "podnet") + node.of("other", "net-a"), 3);
    // A DEL that is merely repeated looks into nobody's lease.
    let log = "/run/opened";
    let strace = ["strace", "-f", "-qq", "-e", "trace=openat", "-o", log];
    node.world.call("DEL", "c0true", "", &node.conf).under(&strace).ok();
    let opened = fs::read_to_string(log).unwrap();
    assert!(opened.contains("/var/lib/cni/multus") && !opened.contains("networks/net-a/10."), "{opened}");
    node.world.call("DEL", "other", &other, &node.conf).ok();
    node.assert_gone("the other one");
}

/// A conf of Multus' with a directory of its own keeps it when it becomes ours: Multus' files are there, and so are records.
#[test]
fn state_is_in_the_directory_that_the_conf_names_multus_own_too() {
    let node = Node::new();
    node.world.pod("c2", "");
    let directory = Path::new("/var/lib/cni/elsewhere");
    let mut conf = node.conf.clone();
    conf["cniDir"] = json!(directory);
    let netns = node.born_under_multus("c1");
    fs::rename(DIRECTORY, directory).unwrap();
    // One of ours beside it.
    let own = node.world.netns();
    node.world.call("ADD", "c2", &own, &conf).pod("c2").ok();
    assert_eq!(names(directory.join("sandboxes/c2")), ["meta:eth0:eth0.json"]);
    assert!(!Path::new("/var/lib/cni/meta-cni").exists(), "nothing is written where the conf does not say");
    node.world.call("CHECK", "c2", &own, &conf).pod("c2").ok();

    node.world.call("DEL", "c1", &netns, &conf).ok();
    assert_eq!(node.of("c1", "podnet") + node.of("c1", "net-a"), 0);
    assert!(Interface::find(&netns, "net1").is_none());
    assert_eq!(names(directory.join("results")), Vec::<String>::new());
    assert!(!directory.join("c1").exists());
    // GC finds it there, too.
    let dead = node.born_under_multus("c3");
    node.world.delete_netns(&dead);
    for name in names(Path::new(DIRECTORY).join("results")) {
        fs::rename(Path::new(DIRECTORY).join("results").join(&name), directory.join("results").join(&name)).unwrap();
    }
    fs::rename(path("c3"), directory.join("c3")).unwrap();
    let mut gc = conf.clone();
    gc["cniVersion"] = json!("1.1.0");
    gc["cni.dev/valid-attachments"] = json!([{"containerID": "c2", "ifname": "eth0"}]);
    node.world.call("GC", "", "", &gc).ok();
    assert_eq!((node.of("c3", "net-a"), node.of("c2", "podnet")), (0, 1));
    node.world.call("DEL", "c2", &own, &conf).pod("c2").ok();
    assert_eq!(names(directory.join("sandboxes")), Vec::<String>::new());
    node.assert_gone("with a directory of its own");
}

#[test]
fn a_del_that_fails_is_reported_or_owed_and_gc_finishes_it() {
    let node = Node::new();
    let netns = node.born_under_multus("c1");
    let dead = node.born_under_multus("c2");
    node.world.delete_netns(&dead);
    let living = node.born_under_multus("c3");
    // The plugin that would undo it is away for a while.
    let (macvlan, away) = (node.world.bin.join("macvlan"), node.world.bin.join("away"));
    fs::rename(&macvlan, &away).unwrap();
    let text = node.world.call("DEL", "c1", &netns, &node.conf).fails(7);
    assert!(text.contains("net1: failed to find plugin \"macvlan\"") && text.contains("data0: failed"), "{text}");
    assert_eq!((node.of("c1", "podnet"), node.of("c1", "net-a")), (0, 2), "the primary is undone all the same");
    let outcome = node.world.call("DEL", "c2", &dead, &node.conf).run();
    assert_eq!(outcome.code, 0, "{outcome:#?}");
    assert!(outcome.stderr.contains("DEL is owed"), "{outcome:#?}");
    assert_eq!(node.of("c2", "net-a"), 2);
    fs::rename(&away, &macvlan).unwrap();
    node.world.call("DEL", "c1", &netns, &node.conf).ok();
    assert_eq!(node.of("c1", "net-a"), 0);

    let mut conf = node.conf.clone();
    conf["cniVersion"] = json!("1.1.0");
    // A list that is not there says nothing; one without the sandbox says that it is gone, unless its namespace lives.
    node.world.call("GC", "", "", &conf).ok();
    assert_eq!(node.of("c2", "net-a"), 2);
    conf["cni.dev/valid-attachments"] = json!([]);
    let outcome = node.world.call("GC", "", "", &conf).run();
    assert_eq!(outcome.code, 0, "{outcome:#?}");
    assert!(outcome.stderr.contains("has a living namespace"), "{outcome:#?}");
    assert_eq!((node.of("c2", "net-a"), node.of("c3", "net-a")), (0, 2));
    conf["cni.dev/valid-attachments"] = json!([{"containerID": "c3", "ifname": "eth0"}]);
    node.world.call("GC", "", "", &conf).ok();
    assert_eq!(node.of("c3", "net-a"), 2);
    assert!(Interface::find(&living, "net1").is_some());
    node.world.delete_netns(&living);
    conf["cni.dev/valid-attachments"] = json!([]);
    node.world.call("GC", "", "", &conf).ok();
    node.assert_gone("after GC");
}
