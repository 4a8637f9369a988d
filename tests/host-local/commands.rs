//! `meta-cni ipam` for people: what it says of real pods, of leases that were planted, and of what is left of the dead.

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

use serde_json::{Value, json};

use crate::{
    bed::{Bed, ours, theirs},
    harness::{World, ip_in},
};

mod releasing;

const POOLS: &str = "/var/lib/cni/networks";

/// Runs our binary as a person does, where only its own processes and the mounts of this test are seen: other tests have
/// namespaces, too.
fn run(line: &str) -> Output {
    Command::new("unshare")
        .args(["--pid", "--fork", "--mount-proc", env!("CARGO_BIN_EXE_meta-cni")])
        .args(line.split(' '))
        .env_remove("CNI_COMMAND")
        .output()
        .unwrap()
}

/// Runs it and gives its exit code and what it said: on stdout, or on stderr if there is nothing.
fn said(line: &str) -> (i32, String) {
    let output = run(line);
    let text = if output.stdout.is_empty() { &output.stderr } else { &output.stdout };
    (output.status.code().unwrap(), String::from_utf8(text.clone()).unwrap())
}

fn json_of(line: &str) -> (i32, Value) {
    let (code, text) = said(line);
    (code, serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}")))
}

fn plant(network: &str, address: &str, content: &str) {
    let directory = Path::new(POOLS).join(network);
    fs::create_dir_all(&directory).unwrap();
    fs::write(directory.join(address), content).unwrap();
}

/// A namespace with an address on an interface, made by nobody that we know.
fn stranger(world: &World, interface: &str, address: &str) -> String {
    let netns = world.netns();
    ip_in(&netns, &format!("link add {interface} type veth peer name other"));
    ip_in(&netns, &format!("addr add {address} dev {interface}"));
    netns
}

/// A node with two pods on a bridge and a macvlan network, and the runtime's directory.
struct Node {
    world: World,
    conf: Value,
    /// The namespaces of the pods p (container c1) and q (c2).
    netns: [String; 2],
}

impl Node {
    fn new() -> Self {
        let world = World::new();
        let primary = world.bridge_primary();
        Self::with_primary(world, &primary)
    }

    fn with_primary(world: World, primary: &str) -> Self {
        let conf = world.conf(primary);
        fs::create_dir_all("/etc/cni/net.d").unwrap();
        let list = json!({"cniVersion": "1.0.0", "name": "meta", "plugins": [conf]});
        fs::write("/etc/cni/net.d/00-meta-cni.conflist", list.to_string()).unwrap();
        world.macvlan("net-a", "10.10.1.0/24");
        let netns = [world.netns(), world.netns()];
        let node = Self { world, conf, netns };
        node.add("c1", "p", &node.netns[0]);
        node.add("c2", "q", &node.netns[1]);
        node
    }

    fn add(&self, container: &str, pod: &str, netns: &str) {
        self.world.pod(pod, "net-a");
        self.world.call("ADD", container, netns, &self.conf).pod(pod).ok();
    }

    /// Ends the pod q: its namespace is gone, and no DEL comes.
    fn kill_q(&self) {
        self.world.delete_netns(&self.netns[1]);
    }
}

#[test]
fn every_lease_is_listed_with_its_holder_and_whether_that_lives() {
    let node = Node::new();
    node.kill_q();
    plant("net-a", "10.10.1.50", "");
    plant("net-a", "10.10.1.51", "kept for the printer");
    plant("net-a", "10.10.1.52", "stranger\r\neth0");
    plant("net-a", "10.10.1.53", "bare\r\neth0");
    let bare = stranger(&node.world, "eth7", "10.10.1.53/24");
    let netns = &node.netns[0];
    let expected = format!(
        "\
2 pools, 8 leases (3 live, 2 dead, 1 unknown, 1 orphan, 1 foreign)

net-a (/var/lib/cni/networks/net-a): 6 leases (2 live, 1 dead, 1 unknown, 1 orphan, 1 foreign); 5 used, 248 free
  range set 0: 10.10.1.1-10.10.1.254 of 10.10.1.0/24, gateway 10.10.1.1
  ADDRESS     STATE    POD        INTERFACE  CONTAINER             NAMESPACE
  10.10.1.2   live     default/p  net1       c1                    {netns}
  10.10.1.3   dead     default/q  net1       c2                    -
  10.10.1.50  orphan   -          -          -                     -
  10.10.1.51  foreign  -          -          kept for the printer  -
  10.10.1.52  unknown  -          eth0       stranger              -
  10.10.1.53  live     -          eth0       bare                  {bare} (on eth7)

podnet (/var/lib/cni/networks/podnet): 2 leases (1 live, 1 dead); 2 used, 251 free
  range set 0: 10.88.0.1-10.88.0.254 of 10.88.0.0/24, gateway 10.88.0.1
  ADDRESS    STATE  POD        INTERFACE  CONTAINER  NAMESPACE
  10.88.0.2  live   default/p  eth0       c1         {netns}
  10.88.0.3  dead   default/q  eth0       c2         -
"
    );
    assert_eq!(said("ipam list"), (0, expected));

    let (code, listing) = json_of("ipam list --network net-a -o json");
    assert_eq!((code, listing["pools"].as_array().unwrap().len()), (0, 1));
    assert_eq!(listing["states"], json!({"live": 2, "dead": 1, "unknown": 1, "orphan": 1, "foreign": 1}));
    let pool = &listing["pools"][0];
    assert_eq!((&pool["network"], &pool["used"], &pool["free"]), (&json!("net-a"), &json!(5), &json!(248)));
    assert_eq!(
        pool["rangeSets"],
        json!([[{"subnet": "10.10.1.0/24", "rangeStart": "10.10.1.1", "rangeEnd": "10.10.1.254", "gateway": "10.10.1.1"}]])
    );
    assert_eq!(
        pool["leases"][0],
        json!({"address": "10.10.1.2", "state": "live", "because": "record", "container": "c1", "interface": "net1", "namespace": netns,
               "pod": {"namespace": "default", "name": "p", "uid": "uid-p"}, "foundOn": null})
    );
}

#[test]
fn ranges_are_those_of_the_files_before_those_that_were_kept() {
    let node = Node::new();
    let free = |line: &str| json_of(line).1["pools"][0]["free"].clone();
    assert_eq!(free("ipam list --network podnet -o json"), 251);
    let path = "/etc/cni/primary/10-primary.conflist";
    let text = fs::read_to_string(path).unwrap();
    fs::write(path, text.replace("10.88.0.0/24", "10.88.0.0/28")).unwrap();
    assert_eq!(free("ipam list --network podnet -o json"), 11);
    fs::write(path, text).unwrap();
    // Of a definition that was changed nobody knows which form counts, unless he is told.
    node.world.macvlan("net-a", "10.10.1.0/25");
    let netns = node.world.netns();
    node.add("c3", "r", &netns);
    assert_eq!(free("ipam list --network net-a -o json"), Value::Null);
    assert!(said("ipam list --network net-a").1.contains("; 3 used, its ranges differ between configurations (--conf"));
    fs::write("/etc/cni/net-a", r#"{"type": "macvlan", "ipam": {"type": "host-local", "subnet": "10.10.1.0/25"}}"#)
        .unwrap();
    assert_eq!(free("ipam list --network net-a --conf /etc/cni/net-a -o json"), 125 - 3);
    let (code, text) = said("ipam list --conf /etc/cni/net-a");
    assert!(code == 1 && text.starts_with("meta-cni: /etc/cni/net-a: "), "{text}");
}

#[test]
fn a_lease_is_dead_only_if_nothing_speaks_for_its_holder() {
    let node = Node::new();
    let flush = |interface: &str| ip_in(&node.netns[1], &format!("addr flush dev {interface}"));
    flush("net1");
    let states = || {
        let (_, listing) = json_of("ipam list --network net-a -o json");
        let leases = listing["pools"][0]["leases"].as_array().unwrap().clone();
        let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
        leases.iter().map(|lease| text(&lease["state"]) + " " + &text(&lease["because"])).collect::<Vec<_>>()
    };
    assert_eq!(states(), ["live record", "live record"]);
    let of_another_boot = || {
        let script = format!(
            "mount --bind /etc/cni/boot /proc/sys/kernel/random/boot_id && exec {} ipam list --network net-a",
            env!("CARGO_BIN_EXE_meta-cni")
        );
        fs::write("/etc/cni/boot", "c0ffee00-0000-4000-8000-000000000000\n").unwrap();
        let words = ["--pid", "--fork", "--mount-proc", "sh", "-c", &script];
        String::from_utf8(Command::new("unshare").args(words).output().unwrap().stdout).unwrap()
    };
    let text = of_another_boot();
    assert!(text.contains("10.10.1.3  live   default/q  net1       c2         (other-address)\n"), "{text}");
    flush("eth0");
    let text = of_another_boot();
    assert!(text.starts_with("1 pool, 2 leases (1 live, 1 dead)\n"), "only an address that is in use lives on: {text}");

    node.kill_q();
    assert_eq!(states(), ["live record", "dead -"]);
    // A process of the container, as a runtime starts it.
    let script = format!(
        "sh -c 'sleep 60; exit' watcher -id c2 & {} ipam list --network net-a; kill $!",
        env!("CARGO_BIN_EXE_meta-cni")
    );
    let words = ["--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", &script];
    let text = String::from_utf8(Command::new("unshare").args(words).output().unwrap().stdout).unwrap();
    assert!(text.contains("10.10.1.3  live   default/q  net1       c2         (process)\n"), "{text}");

    // A record that cannot be read may claim anything of its container.
    for name in node.world.records("c2") {
        fs::write(format!("/var/lib/cni/meta-cni/sandboxes/c2/{name}"), "{").unwrap();
    }
    assert_eq!(states(), ["live record", "live torn-record"]);
    let (code, text) = said("ipam release 10.10.1.3");
    assert!(code == 1 && text.contains("container c2, interface net1, of which a record cannot be read; "), "{text}");
}

#[test]
fn a_range_that_two_networks_use_is_told_apart_by_the_records() {
    let node = Node::new();
    node.world.macvlan("net-b", "10.10.1.0/24");
    node.world.pod("r", "net-b");
    let netns = node.world.netns();
    node.world.call("ADD", "c3", &netns, &node.conf).pod("r").ok();
    assert_eq!(node.world.leases("net-b"), ["10.10.1.2"]);
    // The same address, once held by a dead pod of the other network.
    plant("net-a", "10.10.1.2", "gone\r\nnet1");
    node.world.delete_netns(&node.netns[0]);
    let (_, listing) = json_of("ipam list -o json");
    let state = |pool: usize| listing["pools"][pool]["leases"][0]["state"].clone();
    assert_eq!((listing["pools"][0]["network"].as_str(), state(0)), (Some("net-a"), json!("unknown")));
    assert_eq!((listing["pools"][1]["network"].as_str(), state(1)), (Some("net-b"), json!("live")));
    let (code, text) = said("ipam release 10.10.1.2");
    assert_eq!(
        (code, text.as_str()),
        (
            1,
            "meta-cni: more than one pool has a lease of 10.10.1.2: /var/lib/cni/networks/net-a, \
             /var/lib/cni/networks/net-b; say which is meant (--network NAME, --data-dir DIR)\n"
        )
    );
    let (code, text) = said("ipam release 10.10.1.2 --network net-a");
    assert_eq!(
        (code, text.as_str()),
        (0, "10.10.1.2 of net-a is free; it was held for container gone net1 (unknown)\n")
    );
    assert_eq!(node.world.leases("net-a"), ["10.10.1.3"]);
    assert_eq!(node.world.leases("net-b"), ["10.10.1.2"]);
}

#[test]
fn what_does_not_agree_is_found_and_said() {
    let node = Node::new();
    assert_eq!(said("ipam verify"), (0, "pools 2, leases 4, records 4: nothing is wrong\n".to_owned()));
    let p = &node.netns[0];
    fs::remove_file(format!("{POOLS}/net-a/10.10.1.2")).unwrap();
    plant("net-a", "10.10.1.3", "other\r\nnet1");
    let twice = stranger(&node.world, "eth7", "10.88.0.2/24");
    let strange = stranger(&node.world, "eth8", "10.10.1.60/24");
    plant("net-a", "10.10.1.50", "");
    plant("net-a", "10.10.1.52", "stranger\r\neth0");
    let netns = node.world.netns();
    node.add("c3", "r", &netns);
    node.world.delete_netns(&netns);
    let expected = format!(
        "\
pools 2, leases 7, records 6: 8 findings

net-a 10.10.1.2: lease-missing: container c1 as net1 (pod default/p) lives and has it, and there is no lease
  delete the pod, so that it is given an address of its own; before that nothing keeps 10.10.1.2 from others

net-a 10.10.1.3: lease-of-another: container c2 as net1 (pod default/q) lives and has it, and the lease is held for container other as net1
  two may have it: delete the pod of c2, or the other one

net-a 10.10.1.4: dead-owner: held for container c3 as net1 (pod default/r), which is gone
  the runtime's DEL or GC gives it back; if it never comes: meta-cni ipam release 10.10.1.4 --network net-a

net-a 10.10.1.50: orphan: the lease names nobody: its writer died before it was written
  the next GC, or whoever is given the address, removes it; so does: meta-cni ipam release 10.10.1.50 --network net-a

net-a 10.10.1.52: no-record: held for container stranger as eth0, of which there is no record, and on no interface of this node
  a pod that another program is attaching just now, or a leftover: look again; if the runtime does not know the container: meta-cni ipam release 10.10.1.52 --network net-a

net-a 10.10.1.60: no-lease: it is on eth8 in {strange}, and there is no lease
  whoever has it was given it by another way: exclude it from the pool (\"exclude\"), or take it off that interface, before a pod is given it

podnet 10.88.0.2: twice: more than one interface has it: eth0 in {p}, eth7 in {twice}
  one of them was given it by another way, or by mistake: delete that pod

podnet 10.88.0.4: dead-owner: held for container c3 as eth0 (pod default/r), which is gone
  the runtime's DEL or GC gives it back; if it never comes: meta-cni ipam release 10.88.0.4 --network podnet
"
    );
    let (code, text) = said("ipam verify");
    assert_eq!((code, text), (1, expected));
    let (code, report) = json_of("ipam verify --network podnet -o json");
    let kinds: Vec<&Value> = report["findings"].as_array().unwrap().iter().map(|finding| &finding["kind"]).collect();
    assert_eq!((code, kinds), (1, vec![&json!("twice"), &json!("dead-owner")]));
}

#[test]
fn what_is_held_back_and_what_the_index_says_in_vain_is_shown() {
    let _world = World::new();
    let bed = Bed::new(&json!({"ranges": [[{"subnet": "10.0.0.0/29"}]], "coolDownSeconds": 3600}));
    for container in ["c1", "c2", "c3"] {
        bed.call(ours(), "ADD", container).ok();
    }
    bed.call(ours(), "DEL", "c1").ok();
    // The other program knows of no index.
    bed.call(theirs(), "DEL", "c2").ok();
    let conf = bed.data().join("conf");
    fs::write(&conf, bed.conf("1.0.0").to_string()).unwrap();
    let line = format!("--data-dir {} --conf {}", bed.data().display(), conf.display());
    let (code, listing) = json_of(&format!("ipam list {line} -o json"));
    let pool = &listing["pools"][0];
    // Of .2 to .6 one is held, and one is held back.
    assert_eq!((code, &pool["used"], &pool["free"]), (0, &json!(1), &json!(3)), "{listing}");
    let withheld = &pool["withheld"];
    assert_eq!((&withheld[0]["address"], &withheld[0]["reason"]), (&json!("10.0.0.2"), &json!("cool-down")));
    assert!((3500..=3601).contains(&withheld[0]["secondsLeft"].as_u64().unwrap()), "{withheld}");
    let (_, text) = said(&format!("ipam list {line}"));
    assert!(text.contains("\n  WITHHELD  FOR     REASON\n  10.0.0.2  36"), "{text}");
    assert!(text.contains(" s  cool-down\n"), "{text}");

    let (code, report) = json_of(&format!("ipam verify {line} -o json"));
    let findings: Vec<[&Value; 3]> = report["findings"]
        .as_array()
        .unwrap()
        .iter()
        .map(|finding| ["address", "kind", "container"].map(|key| &finding[key]))
        .collect();
    let expected = [json!(["10.0.0.3", "index", "c2"]), json!(["10.0.0.4", "no-record", "c3"])];
    assert_eq!((code, json!(findings)), (1, json!(expected)));
}

#[test]
fn all_namespaces_are_looked_at_once_however_many_leases_there_are() {
    let node = Node::new();
    let entered = || {
        let words =
            ["--pid", "--fork", "--mount-proc", "strace", "-f", "-e", "trace=setns", env!("CARGO_BIN_EXE_meta-cni")];
        let output = Command::new("unshare").args(words).args(["ipam", "list"]).output().unwrap();
        let (text, trace) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
        (text, trace.matches("setns(").count())
    };
    let (_, few) = entered();
    assert!(few > 0);
    for number in 1..=5000 {
        plant("net-a", &format!("10.11.{}.{}", number / 250, number % 250), &format!("dead{number:04}\r\nnet1"));
    }
    let (text, many) = entered();
    assert_eq!(many, few);
    assert!(
        text.contains("net-a (/var/lib/cni/networks/net-a): 5002 leases (2 live, 5000 unknown); 5002 used, 251 free\n")
    );
    assert!(text.contains("\n  2 live ones are not shown (--all shows them)\n"));
    assert_eq!(node.world.leases("net-a").len(), 5002, "nothing was changed");
}

#[test]
fn the_command_line_is_for_people_and_a_runtime_s_calls_are_not_touched_by_it() {
    let _world = World::new();
    let (code, text) = said("--help");
    assert_eq!(code, 0);
    for command in ["ipam list", "ipam release ADDRESS", "ipam verify"] {
        assert!(text.contains(&format!("\n  {command} ")), "{text}");
    }
    let (code, text) = said("--version");
    assert!(code == 0 && text.starts_with(&format!("meta-cni {}", env!("CARGO_PKG_VERSION"))), "{text}");
    let (code, text) = said("ipam lits");
    assert_eq!(
        (code, text.as_str()),
        (2, "meta-cni: there is no command \"ipam lits\"; meta-cni --help lists what there is\n")
    );
    let (code, text) = said("ipam list -o yaml");
    assert!(code == 2 && text.starts_with("meta-cni: --output is table or json, not \"yaml\""), "{text}");
    let (code, text) = said("ipam list --network nowhere");
    assert_eq!(
        (code, text.as_str()),
        (1, "meta-cni: there is no pool of a network \"nowhere\" in /var/lib/cni/networks\n")
    );
    assert_eq!(said("ipam list"), (0, "0 pools, 0 leases\n".to_owned()));

    let binary = env!("CARGO_BIN_EXE_meta-cni");
    let output = Command::new("setpriv").args(["--reuid", "65534", binary, "ipam", "list"]).output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.starts_with("meta-cni: \"ipam list\" needs root"), "{text}");
    let output = Command::new(binary).arg("--help").env("CNI_COMMAND", "VERSION").output().unwrap();
    assert!(String::from_utf8(output.stdout).unwrap().contains("supportedVersions"));
}
