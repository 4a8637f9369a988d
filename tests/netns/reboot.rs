//! The machine is rebooted: what the dead left in the pools and in Flannel's directory is given back, by GC and by the ADD
//! that needs it; and nothing that lives, or that is not ours.
//!
//! Every test has addresses of its own: those of another test's pods live on this machine, too.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
};

use serde_json::{Value, json};

use crate::harness::{Interface, World, bare_add, ip_in, names};

/// One test at a time: who looks at all namespaces of the machine holds each for a moment, and so those that another test
/// has just deleted.
pub(super) fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Flannel as the primary network on a /29: five addresses for pods, and its configuration.
pub(super) fn flannel(world: &World, subnet: &str) -> (Value, Value) {
    let path = world.flannel_primary();
    world.subnet_env(subnet);
    let list = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    (world.conf(&path), list)
}

/// Attaches a pod with these networks, and gives its namespace.
pub(super) fn add(world: &World, conf: &Value, pod: &str, networks: &str) -> String {
    world.pod(pod, networks);
    let netns = world.netns();
    world.call("ADD", pod, &netns, conf).pod(pod).ok();
    netns
}

/// GC by a runtime with this list.
pub(super) fn gc(world: &World, conf: &Value, valid: &Value) {
    let mut conf = conf.clone();
    conf["cniVersion"] = json!("1.1.0");
    conf["cni.dev/valid-attachments"] = valid.clone();
    world.call("GC", "", "", &conf).ok();
}

fn pool(network: &str) -> String {
    format!("/var/lib/cni/networks/{network}")
}

pub(super) fn lease(network: &str, address: &str, owner: &str) {
    fs::create_dir_all(pool(network)).unwrap();
    fs::write(format!("{}/{address}", pool(network)), owner).unwrap();
}

/// Pods of all kinds, then another boot: one of the bare Flannel chain, one of ours with a macvlan network, one of the
/// same of which the records are lost, and lease files that a power cut left empty.
fn left_behind(subnet: &str, macvlan: &str) -> (World, Value) {
    let world = World::new();
    let (conf, list) = flannel(&world, subnet);
    world.macvlan("net-a", macvlan);
    bare_add(&world, &list, "reboot-bare", &world.netns());
    add(&world, &conf, "reboot-ours", "net-a");
    add(&world, &conf, "reboot-lost", "net-a");
    fs::remove_dir_all("/var/lib/cni/meta-cni/sandboxes/reboot-lost").unwrap();
    lease("cbr0", &subnet.replace(".1/24", ".77"), "");
    lease("net-a", &macvlan.replace(".0/24", ".77"), "");
    world.reboot();
    world.subnet_env(subnet);
    assert_eq!((world.leases("cbr0").len(), world.leases("net-a").len()), (4, 3));
    assert_eq!(names("/var/lib/cni/flannel"), ["reboot-bare", "reboot-lost", "reboot-ours"]);
    (world, conf)
}

#[test]
fn gc_gives_back_everything_of_an_earlier_boot() {
    let _alone = alone();
    let (world, conf) = left_behind("10.231.1.1/24", "10.232.1.0/24");
    gc(&world, &conf, &json!([]));
    world.assert_clean();
    assert!(Path::new(&pool("cbr0")).join("lock").exists(), "the pool's own files stay");
    assert!(Path::new(&pool("cbr0")).join("last_reserved_ip.0").exists());
    // Once more, and DELs that come late.
    gc(&world, &conf, &json!([]));
    for container in ["reboot-bare", "reboot-ours", "reboot-lost"] {
        world.call("DEL", container, "", &conf).ok();
    }
    world.assert_clean();
}

#[test]
fn gc_without_a_list_gives_it_back_too() {
    let _alone = alone();
    let (world, conf) = left_behind("10.231.2.1/24", "10.232.2.0/24");
    gc(&world, &conf, &Value::Null);
    world.assert_clean();
}

/// Flannel's plugin does nothing without its file: what it would have handed on to host-local is handed on all the same.
#[test]
fn leases_of_the_primary_whose_flannel_files_are_lost_or_torn_are_given_back() {
    let _alone = alone();
    let world = World::new();
    let (conf, list) = flannel(&world, "10.231.3.1/24");
    for container in ["reboot-gone", "reboot-torn", "reboot-empty"] {
        bare_add(&world, &list, container, &world.netns());
    }
    fs::remove_file("/var/lib/cni/flannel/reboot-gone").unwrap();
    fs::write("/var/lib/cni/flannel/reboot-torn", r#"{"name":"cbr0","ip"#).unwrap();
    fs::write("/var/lib/cni/flannel/reboot-empty", "").unwrap();
    // host-local gave the address back, and then the machine went down: the file alone is left.
    let subnet = json!({"type": "host-local", "subnet": "10.231.3.0/24"});
    let scratch = json!({"type": "bridge", "name": "cbr0", "cniVersion": "0.3.1", "ipam": subnet});
    fs::write("/var/lib/cni/flannel/reboot-alone", scratch.to_string()).unwrap();
    // Whose addresses are given elsewhere may live: nobody can tell.
    let elsewhere = r#"{"type":"bridge","name":"cbr0","cniVersion":"0.3.1","ipam":{"type":"whereabouts"}}"#;
    fs::write("/var/lib/cni/flannel/reboot-elsewhere", elsewhere).unwrap();
    world.reboot();
    world.subnet_env("10.231.3.1/24");
    gc(&world, &conf, &json!([]));
    assert_eq!(world.leases("cbr0"), Vec::<String>::new());
    // What Flannel's plugin cannot read it does not remove, and nobody else may.
    assert_eq!(names("/var/lib/cni/flannel"), ["reboot-elsewhere", "reboot-empty", "reboot-torn"]);
}

#[test]
fn an_add_that_finds_the_primarys_pool_exhausted_has_the_dead_detached() {
    let _alone = alone();
    let world = World::new();
    let (conf, list) = flannel(&world, "10.231.4.1/29");
    for container in ["reboot-f1", "reboot-f2", "reboot-f3"] {
        bare_add(&world, &list, container, &world.netns());
    }
    add(&world, &conf, "reboot-f4", "");
    add(&world, &conf, "reboot-f5", "");
    fs::remove_file("/var/lib/cni/flannel/reboot-f2").unwrap();
    world.reboot();
    world.subnet_env("10.231.4.1/29");
    assert_eq!(world.leases("cbr0").len(), 5);
    let netns = add(&world, &conf, "reboot-new", "");
    assert_eq!(Interface::find(&netns, "eth0").unwrap().addresses().len(), 1);
    assert_eq!(world.leases("cbr0").len(), 1, "all five are detached, and one address is given");
    assert_eq!(names("/var/lib/cni/flannel"), ["reboot-new"]);
    assert_eq!(names("/var/lib/cni/meta-cni/sandboxes"), ["reboot-new"]);
    assert_eq!(names("/run/meta-cni/lock"), ["sandbox-reboot-new"]);
    world.call("DEL", "reboot-new", &netns, &conf).pod("reboot-new").ok();
    world.assert_clean();
}

#[test]
fn an_add_that_finds_a_macvlan_pool_exhausted_has_it_again() {
    let _alone = alone();
    let world = World::new();
    let (conf, _) = flannel(&world, "10.231.5.1/24");
    world.macvlan("net-a", "10.232.5.0/29");
    for number in 1..=5 {
        add(&world, &conf, &format!("reboot-m{number}"), "net-a");
    }
    for lost in ["reboot-m1", "reboot-m2", "reboot-m3"] {
        fs::remove_dir_all(format!("/var/lib/cni/meta-cni/sandboxes/{lost}")).unwrap();
    }
    world.reboot();
    world.subnet_env("10.231.5.1/24");
    let netns = add(&world, &conf, "reboot-new", "net-a");
    assert_eq!(world.leases("net-a").len(), 1);
    assert_eq!(Interface::find(&netns, "net1").unwrap().addresses().len(), 1);
    assert_eq!(world.leases("cbr0").len(), 6, "the primary's pool was not exhausted");
    gc(&world, &conf, &json!([{"containerID": "reboot-new", "ifname": "eth0"}]));
    assert_eq!((world.leases("net-a").len(), world.leases("cbr0").len()), (1, 1));
    world.call("CHECK", "reboot-new", &netns, &conf).pod("reboot-new").ok();
    world.call("DEL", "reboot-new", &netns, &conf).pod("reboot-new").ok();
    world.assert_clean();
}

/// A pod's own address is not lost to it because the runtime has forgotten the sandbox that had it.
#[test]
fn an_add_that_asks_for_an_address_of_the_dead_gets_it() {
    let _alone = alone();
    let world = World::new();
    let (conf, _) = flannel(&world, "10.231.14.1/24");
    world.macvlan("net-a", "10.232.14.0/24");
    let ipam = json!({"type": "host-local", "subnet": "10.232.14.0/24"});
    let config = json!({"cniVersion": "1.0.0", "type": "macvlan", "master": "uplink", "capabilities": {"ips": true},
                        "ipam": ipam});
    world.definition("net-a", &config);
    let networks = r#"[{"name": "net-a", "ips": ["10.232.14.77/24"]}]"#;
    add(&world, &conf, "reboot-fixed", networks);
    add(&world, &conf, "reboot-lost", "net-a");
    fs::remove_dir_all("/var/lib/cni/meta-cni/sandboxes/reboot-fixed").unwrap();
    world.reboot();
    world.subnet_env("10.231.14.1/24");
    let netns = add(&world, &conf, "reboot-again", networks);
    assert_eq!(Interface::find(&netns, "net1").unwrap().addresses(), ["10.232.14.77/24"]);
    assert_eq!(world.leases("net-a"), ["10.232.14.77"]);
    // Somebody who lives has it now.
    world.pod("reboot-other", networks);
    let text = world.call("ADD", "reboot-other", &world.netns(), &conf).pod("reboot-other").fails(103);
    assert!(text.contains("requested IP address 10.232.14.77 is not available in range set"), "{text}");
    world.call("DEL", "reboot-again", &netns, &conf).pod("reboot-again").ok();
    assert_eq!(world.leases("net-a"), Vec::<String>::new());
}

#[test]
fn a_pool_full_of_the_living_stays_so() {
    let _alone = alone();
    let world = World::new();
    let (conf, list) = flannel(&world, "10.231.6.1/29");
    world.reboot();
    world.subnet_env("10.231.6.1/29");
    // Attached in this boot by somebody else, before our first verb.
    for number in 1..=5 {
        bare_add(&world, &list, &format!("reboot-l{number}"), &world.netns());
    }
    world.pod("reboot-new", "");
    let text = world.call("ADD", "reboot-new", &world.netns(), &conf).pod("reboot-new").fails(103);
    assert!(text.contains("no IP addresses available in range set"), "{text}");
    assert_eq!((world.leases("cbr0").len(), names("/var/lib/cni/flannel").len()), (5, 5));
}

#[test]
fn what_lives_and_what_is_new_is_kept() {
    let _alone = alone();
    let world = World::new();
    let (conf, list) = flannel(&world, "10.231.7.1/24");
    world.macvlan("net-a", "10.232.7.0/24");
    add(&world, &conf, "reboot-dead", "net-a");
    lease("cbr0", "10.231.7.20", "reboot-changed\r\neth0");
    lease("net-a", "10.232.7.20", "reboot-changed\r\nnet1");
    lease("net-a", "10.232.7.30", "reboot-alive\r\nnet1");
    // Two addresses of one owner: the one in use speaks for the other, which a program without an interface may have.
    lease("net-a", "10.232.7.31", "reboot-alive\r\nnet2");
    lease("net-a", "10.232.7.40", "reboot-process\r\nnet1");
    lease("net-a", "10.232.7.50", "reboot-listed\r\nnet1");
    lease("net-a", "10.232.7.60", "for the printer");
    world.reboot();
    world.subnet_env("10.231.7.1/24");
    // Attached by the bare chain in this boot, before our first verb: without a record.
    let bare = world.netns();
    bare_add(&world, &list, "reboot-bare", &bare);
    let alive = world.netns();
    ip_in(&alive, "link add net1 type veth peer name far");
    ip_in(&alive, "addr add 10.232.7.30/24 dev net1");
    let mut process =
        Command::new("sleep").arg("600").env("CNI_CONTAINERID", "reboot-process").stdin(Stdio::null()).spawn().unwrap();

    // The first verb of the boot lists the pools.
    let netns = add(&world, &conf, "reboot-first", "net-a");
    lease("net-a", "10.232.7.21", "reboot-stranger\r\nnet1");
    lease("cbr0", "10.231.7.21", "reboot-stranger\r\neth0");
    lease("net-a", "10.232.7.20", "reboot-owner\r\nnet1");
    lease("cbr0", "10.231.7.20", "reboot-owner\r\neth0");
    let first = world.leases("cbr0");
    gc(
        &world,
        &conf,
        &json!([{"containerID": "reboot-first", "ifname": "eth0"}, {"containerID": "reboot-listed", "ifname": "eth0"}]),
    );
    process.kill().unwrap();
    process.wait().unwrap();
    let of_first = Interface::find(&netns, "net1").unwrap().addresses()[0].replace("/24", "");
    let mut expected: Vec<String> =
        ["20", "21", "30", "31", "40", "50", "60"].iter().map(|last| format!("10.232.7.{last}")).collect();
    expected.push(of_first);
    expected.sort();
    assert_eq!(world.leases("net-a"), expected);
    // The dead one's of the primary is gone, the other four are there.
    assert_eq!(first.len(), 5);
    assert_eq!(world.leases("cbr0").len(), 4, "{first:?}");
    assert_eq!(names("/var/lib/cni/flannel"), ["reboot-bare", "reboot-first"]);
    for (netns, interface) in [(&bare, "eth0"), (&netns, "eth0"), (&netns, "net1")] {
        assert!(Interface::find(netns, interface).is_some());
    }
    // The process ended, and the runtime does not name the other any more.
    gc(&world, &conf, &json!([{"containerID": "reboot-first", "ifname": "eth0"}]));
    expected.retain(|address| address != "10.232.7.40" && address != "10.232.7.50");
    assert_eq!(world.leases("net-a"), expected);
}

#[test]
fn another_runtimes_pool_is_left_alone() {
    let _alone = alone();
    let world = World::new();
    let (conf, _) = flannel(&world, "10.231.8.1/24");
    lease("podman", "10.88.231.2", "reboot-podman\r\neth0");
    lease("podman", "10.88.231.3", "");
    world.reboot();
    world.subnet_env("10.231.8.1/24");
    gc(&world, &conf, &json!([]));
    assert_eq!(world.leases("podman"), ["10.88.231.2", "10.88.231.3"]);
    // Until a network of ours gives out of it, and finds it exhausted.
    world.macvlan("podman", "10.88.231.0/30");
    fs::rename(pool("podman") + "/10.88.231.3", pool("podman") + "/10.88.231.1").unwrap();
    let netns = add(&world, &conf, "reboot-new", "podman");
    assert_eq!(world.leases("podman"), ["10.88.231.2"], "the only address, and no orphan");
    world.call("DEL", "reboot-new", &netns, &conf).pod("reboot-new").ok();
}

/// The files of a pool with what is in them.
fn content(network: &str) -> Vec<(String, String)> {
    let read = |name: String| (name.clone(), fs::read_to_string(format!("{}/{name}", pool(network))).unwrap());
    names(pool(network)).into_iter().map(read).collect()
}

/// In one boot: the list decides, under either of its names.
#[test]
fn gc_frees_what_belongs_to_no_valid_attachment_and_nothing_else() {
    let _alone = alone();
    for (number, key) in [(12, "cni.dev/valid-attachments"), (13, "cni.dev/attachments")] {
        let world = World::new();
        let (mut conf, _) = flannel(&world, &format!("10.231.{number}.1/24"));
        world.macvlan("net-a", &format!("10.232.{number}.0/24"));
        let live = add(&world, &conf, "reboot-live", "net-a");
        add(&world, &conf, "reboot-dead", "net-a");
        add(&world, &conf, "reboot-lost", "net-a");
        fs::remove_dir_all("/var/lib/cni/meta-cni/sandboxes/reboot-lost").unwrap();
        lease("podman", "10.88.0.2", "reboot-podman\r\neth0");
        lease("podman", "last_reserved_ip.0", "10.88.0.2");
        lease("podman", "lock", "");
        let of_others = content("podman");
        let own = |network: &str| -> Vec<(String, String)> {
            let mut all = content(network);
            all.retain(|(name, text)| name.starts_with("l") || text.starts_with("reboot-live"));
            all
        };
        let (of_primary, of_macvlan) = (own("cbr0"), own("net-a"));
        conf["cniVersion"] = json!("1.1.0");
        conf[key] = json!([{"containerID": "reboot-live", "ifname": "eth0"}]);
        world.call("GC", "", "", &conf).ok();
        // Of the lost one nothing says that it is dead, and in this boot somebody else may have attached it.
        let lost = |network: &str| content(network).into_iter().filter(|(_, text)| text.starts_with("reboot-lost"));
        for (network, kept) in [("cbr0", of_primary), ("net-a", of_macvlan)] {
            let mut now = content(network);
            assert_eq!(lost(network).count(), 1);
            now.retain(|(_, text)| !text.starts_with("reboot-lost"));
            assert_eq!(now, kept, "{network} by {key}");
        }
        assert_eq!(content("podman"), of_others);
        world.call("CHECK", "reboot-live", &live, &conf).pod("reboot-live").ok();
        // The DEL of the runtime, which knows it, has all of it: the primary by its chain, the rest by the pools' files.
        conf["prevResult"] = json!({"cniVersion": "1.1.0"});
        world.call("DEL", "reboot-lost", "", &conf).pod("reboot-lost").ok();
        assert_eq!((lost("cbr0").count(), lost("net-a").count()), (0, 0));
    }
}

/// A DEL of another one takes them along, once the runtime had ten minutes for what it remembers.
#[test]
fn sandboxes_that_the_runtime_has_forgotten_are_detached() {
    let _alone = alone();
    let world = World::new();
    let (conf, _) = flannel(&world, "10.231.15.1/24");
    world.macvlan("net-a", "10.232.15.0/24");
    for container in ["reboot-one", "reboot-two"] {
        add(&world, &conf, container, "net-a");
    }
    world.reboot();
    world.subnet_env("10.231.15.1/24");
    let live = add(&world, &conf, "reboot-live", "net-a");
    let del = |container: &str| world.call("DEL", container, "", &conf).ok();
    let count = || (world.leases("cbr0").len(), world.leases("net-a").len(), names("/var/lib/cni/flannel").len());
    del("reboot-nobody");
    assert_eq!(count(), (3, 3, 3));

    let boot = format!("/run/meta-cni/boot/{}", names("/run/meta-cni/boot")[0]);
    let list = names(&boot).into_iter().find(|name| name.starts_with("sandboxes-")).expect("a list of the sandboxes");
    let list = format!("{boot}/{list}");
    let text = fs::read_to_string(&list).unwrap();
    let (head, containers) = text.split_once('\n').unwrap();
    assert_eq!(containers, "reboot-one\nreboot-two\n");
    let mut words: Vec<&str> = head.split(' ').collect();
    let earlier = (words[1].parse::<i64>().unwrap() - 600).to_string();
    words[1] = &earlier;
    fs::write(&list, format!("{}\n{containers}", words.join(" "))).unwrap();
    // The power failed before all of one was on the disk.
    let torn = "/var/lib/cni/meta-cni/sandboxes/reboot-one";
    let of_net1 = names(torn).into_iter().find(|name| name.ends_with(":net1.json")).expect("a record of net1");
    fs::write(format!("{torn}/{of_net1}"), "").unwrap();
    // One of them is being worked on.
    let lock = fs::File::create("/run/meta-cni/lock/sandbox-reboot-two").unwrap();
    lock.lock().unwrap();
    del("reboot-nobody");
    assert_eq!(
        (count(), names("/var/lib/cni/meta-cni/sandboxes")),
        ((2, 2, 2), vec!["reboot-live".to_owned(), "reboot-two".to_owned()])
    );
    assert!(Path::new(&list).exists());
    drop(lock);
    del("reboot-nobody");
    assert_eq!((count(), names("/var/lib/cni/meta-cni/sandboxes")), ((1, 1, 1), vec!["reboot-live".to_owned()]));
    assert!(!Path::new(&list).exists());
    assert_eq!(names("/run/meta-cni/lock"), ["sandbox-reboot-live"]);

    world.call("CHECK", "reboot-live", &live, &conf).pod("reboot-live").ok();
    world.call("DEL", "reboot-live", &live, &conf).pod("reboot-live").ok();
    world.assert_clean();
}
