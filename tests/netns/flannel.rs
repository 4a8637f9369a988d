//! What Flannel leaves and what it has not written yet: its subnet file, its bridge, and the leases of an earlier boot.

use std::{fs, path::Path};

use serde_json::{Value, json};

use super::reboot::{add, alone, gc};
use crate::harness::{World, bare_add, ip, names};

const FILE: &str = "/run/flannel/subnet.env";
const WHOLE: &str =
    "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.7.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";

fn status(world: &World, conf: &Value) -> crate::harness::Call {
    let mut conf = conf.clone();
    conf["cniVersion"] = json!("1.1.0");
    world.call("STATUS", "", "", &conf)
}

#[test]
fn a_subnet_file_that_is_not_whole_is_named_by_status_and_waited_for_by_add() {
    let world = World::new();
    let conf = world.conf(&world.flannel_primary());
    let lacks = |text: &str, keys: &str| {
        fs::write(FILE, text).unwrap();
        let told = status(&world, &conf).fails(50);
        let expected = format!("the network is not ready: Flannel's {FILE} is not whole: {keys} missing or torn");
        assert!(told.starts_with(&expected), "{text:?}: {told}");
    };
    // Torn anywhere: within a line, after it, and before the last newline.
    let end = |line: &str| WHOLE.find(line).unwrap() + line.len();
    lacks("", "FLANNEL_NETWORK, FLANNEL_SUBNET, FLANNEL_MTU, FLANNEL_IPMASQ");
    lacks(&WHOLE[..end("NETWORK=10.24")], "FLANNEL_NETWORK, FLANNEL_SUBNET, FLANNEL_MTU, FLANNEL_IPMASQ");
    lacks(&WHOLE[..end("10.244.0.0/16\n")], "FLANNEL_SUBNET, FLANNEL_MTU, FLANNEL_IPMASQ");
    lacks(&WHOLE[..end("SUBNET=10.244.7.1/2")], "FLANNEL_MTU, FLANNEL_IPMASQ");
    lacks(&WHOLE[..end("MTU=145")], "FLANNEL_IPMASQ");
    lacks(&WHOLE[..end("IPMASQ=tru")], "FLANNEL_IPMASQ");
    lacks(&WHOLE.replace("10.244.7.1/24", "10.244.7.x"), "FLANNEL_SUBNET");
    lacks(&WHOLE.replace("1450", "-1"), "FLANNEL_MTU");
    // One family is enough, whichever it is; and Flannel may know several networks.
    let v6 = WHOLE.replace("10.244.0.0/16", "fd00:244::/48").replace("10.244.7.1/24", "fd00:244:0:7::1/64");
    let v6 = v6.replace("FLANNEL_NET", "FLANNEL_IPV6_NET").replace("FLANNEL_SUB", "FLANNEL_IPV6_SUB");
    lacks(&v6.replace("fd00:244::/48", "fd00:244::"), "FLANNEL_IPV6_NETWORK");
    for good in [v6, WHOLE.replace("10.244.0.0/16", "10.1.0.0/16,10.244.0.0/16"), WHOLE.trim_end().to_owned()] {
        fs::write(FILE, good).unwrap();
        status(&world, &conf).ok();
    }

    // ADD waits for the rest of it.
    fs::write(FILE, &WHOLE[..end("MTU=145")]).unwrap();
    let netns = world.netns();
    let text = world.call("ADD", "c1", &netns, &conf).pod("p").fails(11);
    assert!(text.contains("is not whole: FLANNEL_IPMASQ missing or torn"), "{text}");
    world.assert_clean();
    let mut patient = conf.clone();
    patient["readinessTimeoutSeconds"] = json!(60);
    let waiting = world.call("ADD", "c1", &netns, &patient).pod("p").start();
    // It has begun: its lock is there.
    while names("/run/meta-cni/lock").is_empty() {
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    fs::write(FILE, WHOLE).unwrap();
    let output = waiting.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    world.call("DEL", "c1", &netns, &conf).pod("p").ok();
    world.assert_clean();
}

/// flanneld came back with another lease: every ADD would fail, and pods that did not would be cut off.
#[test]
fn a_bridge_of_another_subnet_is_named_and_harms_no_pod() {
    let world = World::new();
    let conf = world.conf(&world.flannel_of_two_families());
    let whole = fs::read_to_string(FILE).unwrap();
    let netns = add(&world, &conf, "c1", "");
    status(&world, &conf).ok();
    for (was, is, bridge) in [
        ("10.244.7.1/24", "10.244.9.1/24", "10.244.7.1/24"),
        ("fd00:244:0:7::1/64", "fd00:244:0:9::1/64", "fd00:244:0:7::1/64"),
    ] {
        fs::write(FILE, whole.replace(was, is)).unwrap();
        let text = status(&world, &conf).fails(50);
        let expected = format!("bridge cni0 has {bridge}, {FILE} says {is}: delete the bridge (ip link delete cni0)");
        assert!(text.contains(&expected), "{text}");
    }
    fs::write(FILE, whole.replace("10.244.7.1/24", "10.244.9.1/24")).unwrap();
    let other = world.netns();
    let text = world.call("ADD", "c2", &other, &conf).pod("q").fails(103);
    assert!(text.contains("already has an IP address different from 10.244.9.1/24"), "{text}");
    assert_eq!(world.leases("cbr0"), ["10.244.7.2", "fd00:244:0:7::2"]);
    world.call("DEL", "c1", &netns, &conf).pod("c1").ok();
    // As the message says.
    ip("link delete cni0");
    status(&world, &conf).ok();
    world.call("ADD", "c2", &other, &conf).pod("q").ok();
    world.call("DEL", "c2", &other, &conf).pod("q").ok();
    world.assert_clean();
}

/// Attached by the real chain, fifty pods; the reboot comes, and Flannel is not back yet. `last` makes the addresses of a
/// test its own: those of another test's pods live on this machine, too.
fn fifty_pods_and_a_reboot(last: u8, prepare: impl Fn(&World)) {
    let _alone = alone();
    let world = World::new();
    let path = world.flannel_primary();
    prepare(&world);
    let subnet = format!("10.231.{last}.1/26");
    let write = || {
        fs::create_dir_all("/run/flannel").unwrap();
        fs::write(FILE, WHOLE.replace("10.244.0.0/16", "10.231.0.0/16").replace("10.244.7.1/24", &subnet)).unwrap();
    };
    write();
    let conf = world.conf(&path);
    let list = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    for number in 0..50 {
        bare_add(&world, &list, &format!("reboot-{last}-{number}"), &world.netns());
    }
    world.reboot();
    assert_eq!((world.leases("cbr0").len(), names("/var/lib/cni/flannel").len()), (50, 50));
    assert!(!Path::new(FILE).exists());
    let text = world.call("ADD", "reboot-early", &world.netns(), &conf).pod("reboot-early").fails(11);
    assert!(text.contains(FILE) && text.contains("flanneld"), "{text}");
    assert!(status(&world, &conf).fails(50).contains(FILE));
    // GC does not wait for Flannel.
    gc(&world, &conf, &json!([]));
    world.assert_clean();
    // Each address of the pool can be had: 62 hosts but for the bridge.
    let program = world.bin.join("host-local");
    let ipam = json!({"cniVersion": "0.3.1", "name": "cbr0", "type": "bridge", "ipam": {
        "type": "host-local", "ranges": [[{"subnet": subnet.replace(".1/", ".0/")}]], "routes": [{"dst": "10.231.0.0/16"}]}});
    for number in 0..61 {
        world.call("ADD", &format!("reboot-again-{number}"), "/none", &ipam).program(&program).ok();
    }
    assert_eq!(world.leases("cbr0").len(), 61);
    // Another boot; of these Flannel's plugin knows nothing. The pod that comes first needs the pool, and GC never came.
    world.reboot();
    write();
    let netns = add(&world, &conf, "reboot-new", "");
    assert_eq!((world.leases("cbr0").len(), names("/var/lib/cni/flannel").len()), (1, 1));
    for number in 0..60 {
        world.call("ADD", &format!("reboot-more-{number}"), "/none", &ipam).program(&program).ok();
    }
    assert_eq!(world.leases("cbr0").len(), 61);
    world.call("DEL", "reboot-new", &netns, &conf).pod("reboot-new").ok();
    assert_eq!(world.leases("cbr0").len(), 60);
}

#[test]
fn all_addresses_are_usable_after_a_reboot_with_the_reference_host_local() {
    fifty_pods_and_a_reboot(21, |_| {});
}

#[test]
fn all_addresses_are_usable_after_a_reboot_with_the_drop_in_host_local() {
    fifty_pods_and_a_reboot(22, |world| {
        world.drop_in("host-local");
    });
}
