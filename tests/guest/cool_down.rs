//! An address cools down after its attachment, in the time that the kernel counts since its boot: here the wall clock can
//! really be set.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::json;

use crate::{
    harness::{Interface, Recorder, names, run},
    node::Node,
};

/// The wall clock set to another time, until this is gone.
struct Clock {
    set: SystemTime,
    before: SystemTime,
}

impl Clock {
    fn jump_to(set: SystemTime) -> Self {
        let before = SystemTime::now();
        date(set);
        Self { set, before }
    }
}

impl Drop for Clock {
    fn drop(&mut self) {
        let passed = SystemTime::now().duration_since(self.set).unwrap_or_default();
        date(self.before + passed);
    }
}

fn date(time: SystemTime) {
    run("date", &["-s", &format!("@{}", time.duration_since(UNIX_EPOCH).unwrap().as_secs())]);
}

#[test]
fn an_address_cools_down_whatever_the_wall_clock_says() {
    let node = Node::new();
    node.network(
        "net-a",
        "bed.test/vf",
        &json!({
            "cniVersion": "1.0.0", "type": "sriov",
            "ipam": {"type": "host-local", "subnet": "10.11.0.0/24", "coolDownSeconds": 86400}
        }),
    );
    let year = Duration::from_secs(365 * 86400);
    let netns = node.pod("p", "net-a", &[("bed.test/vf", &node.a[0])]);
    let attach = || {
        node.add("p", &netns);
        let address = Interface::find(&netns, "net1").unwrap().addresses();
        node.del("p", &netns);
        address
    };
    assert_eq!(attach(), ["10.11.0.2/24"]);
    // The round would go on from there by itself; it is to begin anew each time.
    let restart = || std::fs::remove_file("/var/lib/cni/networks/net-a/last_reserved_ip.0").unwrap();
    for (jump, expected) in [(None, "10.11.0.3/24"), (Some(true), "10.11.0.4/24"), (Some(false), "10.11.0.5/24")] {
        restart();
        let now = SystemTime::now();
        let _clock = jump.map(|ahead| Clock::jump_to(if ahead { now + 10 * year } else { now - 10 * year }));
        assert_eq!(attach(), [expected], "jumped ahead: {jump:?}");
    }
    let withheld = names("/var/lib/cni/networks/.meta-cni/net-a/withheld");
    assert_eq!(withheld, ["10.11.0.2", "10.11.0.3", "10.11.0.4", "10.11.0.5"]);
    node.assert_as_before();
}

/// What was reserved for a pod that then could not be attached was on no interface.
#[test]
fn a_pod_that_fails_before_its_vf_is_touched_uses_up_no_address() {
    let node = Node::new();
    let ipam = json!({"type": "host-local", "subnet": "10.11.0.0/29", "coolDownSeconds": 86400});
    node.network("net-a", "bed.test/vf", &json!({"cniVersion": "1.0.0", "type": "sriov", "ipam": ipam}));
    let netns = node.pod("p", "net-a", &[("bed.test/vf", &node.a[0])]);
    let recorder = Recorder::install(&node.world.bin, &["broken"]);
    recorder.behave("broken", "ADD", "echo no >&2; exit 1");
    let primary = json!({"cniVersion": "1.0.0", "name": "broken", "type": "broken"});
    std::fs::write("/etc/cni/primary/20-broken.conf", primary.to_string()).unwrap();
    let mut conf = node.conf.clone();
    conf["clusterNetwork"] = json!("/etc/cni/primary/20-broken.conf");
    for _ in 0..7 {
        let text = node.world.call("ADD", "p", &netns, &conf).pod("p").fails(103);
        assert!(text.contains("broken failed with exit code 1"), "{text}");
        node.assert_as_before();
    }
    node.add("p", &netns);
    node.del("p", &netns);
    node.assert_as_before();
}
