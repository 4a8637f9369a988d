//! When addresses are taken and given back: all before anything is touched, those of one pool at once, and given back last.

use std::fs;

use serde_json::json;

use crate::{
    harness::{Interface, Recorder, ip},
    node::{Node, sriov},
};

const POOL: &str = "/var/lib/cni/networks/net-a";

/// A node whose primary network is a recording plugin, and whose VFs have addresses of a pool of so many.
fn node(subnet: &str) -> (Node, Recorder) {
    let mut node = Node::new();
    let recorder = Recorder::install(&node.world.bin, &["first"]);
    let primary = json!({"cniVersion": "1.0.0", "name": "main", "plugins": [{"type": "first"}]});
    node.conf = node.world.conf(&node.world.primary(&primary));
    let pool = json!({"ipam": {"type": "host-local", "subnet": subnet}});
    node.network("net-a", "bed.test/vf", &sriov(&pool));
    (node, recorder)
}

#[test]
fn three_vfs_on_one_pool_take_its_lock_once() {
    let (node, recorder) = node("10.11.0.0/24");
    recorder.behave("first", "ADD", "ls /var/lib/cni/networks/net-a | grep -c '^10\\.' > /run/test/taken");
    let devices = [("bed.test/vf", &node.a[0]), ("bed.test/vf", &node.a[1]), ("bed.test/vf", &node.a[2])];
    let netns = node.pod("p", "net-a,net-a,net-a", &devices);
    let trace = "/run/test/flock";
    let words = ["strace", "-f", "-qq", "-y", "-e", "trace=flock", "-o", trace];
    node.call("ADD", "p", &netns).under(&words).ok();
    let text = fs::read_to_string(trace).unwrap();
    let of_pool = |text: &str| -> Vec<String> {
        text.lines().filter(|line| line.contains(POOL) && !line.contains("LOCK_UN")).map(str::to_owned).collect()
    };
    assert_eq!(of_pool(&text).len(), 1, "{text}");
    assert_eq!(fs::read_to_string("/run/test/taken").unwrap(), "3\n", "all are taken before the primary runs");
    assert_eq!(node.world.leases("net-a"), ["10.11.0.2", "10.11.0.3", "10.11.0.4"]);
    for (interface, address) in [("net1", "10.11.0.2/24"), ("net2", "10.11.0.3/24"), ("net3", "10.11.0.4/24")] {
        assert_eq!(Interface::find(&netns, interface).unwrap().addresses(), [address]);
    }
    node.del("p", &netns);
    node.assert_as_before();
}

#[test]
fn an_exhausted_pool_is_known_before_anything_is_touched() {
    // Two addresses for pods.
    let (node, recorder) = node("10.11.0.0/29");
    let lease = |last: u8, text: &str| fs::write(format!("{POOL}/10.11.0.{last}"), text).unwrap();
    fs::create_dir_all(POOL).unwrap();
    let plain = node.world.netns();
    node.world.pod("first", "");
    node.add("first", &plain);
    recorder.take();
    for last in 2..=5 {
        lease(last, "somebody\r\neth0");
    }
    let devices = [("bed.test/vf", &node.a[0]), ("bed.test/vf", &node.a[1])];
    let netns = node.pod("p", "net-a,net-a@data0", &devices);
    let text = node.call("ADD", "p", &netns).fails(102);
    assert!(text.contains("default/net-a as net1, default/net-a as data0: failed to allocate for range 0: "), "{text}");
    assert!(text.contains("no IP addresses available in range set: 10.11.0.1-10.11.0.6"), "{text}");
    assert_eq!(recorder.take(), Vec::<String>::new(), "the primary's plugin did not run");
    assert_eq!(node.world.leases("net-a").len(), 4, "not even the one that was left");
    assert_eq!(node.world.records("p"), Vec::<String>::new());
    for last in 2..=5 {
        fs::remove_file(format!("{POOL}/10.11.0.{last}")).unwrap();
    }
    node.del("first", &plain);
    node.assert_as_before();
}

/// What fails later gives back what was reserved for attachments that were not even begun.
#[test]
fn a_primary_that_fails_gives_the_reserved_addresses_back() {
    let (node, recorder) = node("10.11.0.0/24");
    recorder.behave("first", "ADD", r#"echo '{"code":7,"msg":"not today"}'; exit 1"#);
    Recorder::install(&node.world.bin, &["watcher"]);
    let vf = json!({"type": "sriov", "ipam": {"type": "host-local", "subnet": "10.12.0.0/24"}});
    let chain = json!({"cniVersion": "1.0.0", "name": "chain", "plugins": [vf, {"type": "watcher"}]});
    node.network("chain", "bed.test/vf", &chain);
    let devices = [("bed.test/vf", &node.a[0]), ("bed.test/vf", &node.a[1])];
    let netns = node.pod("p", "net-a,chain", &devices);
    let text = node.call("ADD", "p", &netns).fails(7);
    assert!(text.contains("not today"), "{text}");
    assert_eq!(recorder.take(), ["ADD first eth0", "DEL first eth0"], "what follows a VF has nothing to undo");
    node.assert_as_before();
}

#[test]
fn an_address_is_kept_while_its_interface_is_not_given_back() {
    let (node, _) = node("10.11.0.0/24");
    let vf = &node.a[3];
    let netns = node.pod("p", "net-a", &[("bed.test/vf", vf)]);
    node.add("p", &netns);
    // Something has the VF's name in the host.
    ip(&format!("link add {} type dummy", vf.name));
    for _ in 0..2 {
        let text = node.call("DEL", "p", &netns).fails(101);
        assert!(text.contains(&vf.name), "{text}");
        assert_eq!(node.world.leases("net-a"), ["10.11.0.2"]);
    }
    // GC does no better, and the next pod gets another address.
    node.gc_fails();
    assert_eq!(node.world.leases("net-a"), ["10.11.0.2"]);
    let other = node.pod("two", "net-a", &[("bed.test/vf", &node.a[4])]);
    node.add("two", &other);
    assert_eq!(Interface::find(&other, "net1").unwrap().addresses(), ["10.11.0.3/24"]);
    ip(&format!("link delete {}", vf.name));
    node.del("p", &netns);
    assert_eq!(node.world.leases("net-a"), ["10.11.0.3"]);
    node.del("two", &other);
    node.assert_as_before();
}

#[test]
fn gc_frees_the_addresses_of_dead_vfs_and_nothing_else() {
    let (node, _) = node("10.11.0.0/24");
    for key in ["cni.dev/valid-attachments", "cni.dev/attachments"] {
        let dead = node.pod("dead", "net-a,net-a", &[("bed.test/vf", &node.a[0]), ("bed.test/vf", &node.a[1])]);
        node.add("dead", &dead);
        let live = node.pod("live", "net-a", &[("bed.test/vf", &node.a[2])]);
        node.add("live", &live);
        let other = "/var/lib/cni/networks/podman";
        fs::create_dir_all(other).unwrap();
        fs::write(format!("{other}/10.88.0.2"), "somebody\r\neth0").unwrap();
        let of_live = Interface::find(&live, "net1").unwrap().addresses()[0].replace("/24", "");
        let last = fs::read(format!("{POOL}/last_reserved_ip.0")).unwrap();
        assert_eq!(node.world.leases("net-a").len(), 3);
        node.world.delete_netns(&dead);
        let mut conf = node.conf.clone();
        conf["cniVersion"] = json!("1.1.0");
        conf[key] = json!([{"containerID": "live", "ifname": "eth0"}]);
        node.world.call("GC", "", "", &conf).ok();
        assert_eq!(node.world.leases("net-a"), [of_live], "{key}");
        assert!(fs::exists(format!("{POOL}/lock")).unwrap());
        assert_eq!(fs::read(format!("{POOL}/last_reserved_ip.0")).unwrap(), last);
        assert_eq!(node.world.leases("podman"), ["10.88.0.2"]);
        assert!(Interface::find(&live, "net1").is_some());
        node.del("live", &live);
        fs::remove_dir_all(other).unwrap();
    }
    node.assert_as_before();
}

/// What an earlier boot left of VFs' addresses, of which no record is there any more.
#[test]
fn a_pool_that_the_dead_exhausted_is_had_again_by_the_add_that_finds_it_so() {
    let (node, _) = node("10.11.0.0/29");
    fs::create_dir_all(POOL).unwrap();
    for last in 2..=6 {
        fs::write(format!("{POOL}/10.11.0.{last}"), format!("reboot-g{last}\r\nnet1")).unwrap();
    }
    let devices = [("bed.test/vf", &node.a[0]), ("bed.test/vf", &node.a[1])];
    let netns = node.pod("p", "net-a,net-a", &devices);
    node.add("p", &netns);
    assert_eq!(node.world.leases("net-a").len(), 2);
    node.del("p", &netns);
    node.assert_as_before();
}
