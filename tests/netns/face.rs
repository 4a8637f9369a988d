//! The drop-in `sriov` as far as it can be seen without a VF: the protocol, STATUS over a tree of sysfs, addresses.

use std::{fs, os::unix::fs::symlink, path::Path};

use nix::mount::{MsFlags, mount};
use serde_json::{Value, json};

use crate::harness::{Call, Recorder, World, ip, names};

const VERSIONS: [&str; 7] = ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

fn conf(version: &str) -> Value {
    json!({"cniVersion": version, "name": "net-a", "type": "sriov"})
}

fn call(world: &World, verb: &str, netns: &str, conf: &Value) -> Call {
    world.call(verb, "c", netns, conf).program(&world.bin.join("sriov")).if_name("net1")
}

fn world() -> World {
    let world = World::new();
    world.drop_in("sriov");
    world
}

#[test]
fn the_protocol_is_spoken_in_every_version() {
    let world = world();
    let netns = world.netns();
    let report = call(&world, "VERSION", "", &Value::Null).ok();
    assert_eq!(report["supportedVersions"], json!(VERSIONS));
    let about = call(&world, "ADD", "", &Value::Null).without("CNI_COMMAND").run();
    assert!(about.stderr.contains("called as sriov: a CNI plugin in place of sriov-cni"), "{about:#?}");
    for version in VERSIONS {
        let outcome = call(&world, "ADD", &netns, &conf(version)).run();
        let error = outcome.json();
        assert_eq!((&error["cniVersion"], &error["code"]), (&json!(version), &json!(7)), "{error}");
        let text = error["msg"].as_str().unwrap();
        assert!(text.starts_with("SRIOV-CNI failed to load netconf: LoadConf(): VF pci addr is required"), "{text}");
        assert_eq!(call(&world, "DEL", &netns, &conf(version)).ok(), Value::Null);
        for (verb, since) in [("CHECK", "0.4.0"), ("GC", "1.1.0"), ("STATUS", "1.1.0")] {
            let call = call(&world, verb, &netns, &conf(version));
            match (version < since, verb) {
                (true, _) => {
                    assert!(call.fails(1).starts_with(&format!("config version does not allow {verb}")));
                }
                // Nothing is attached.
                (false, "CHECK") => assert!(call.fails(101).contains("container c has no attachment")),
                (false, _) => assert_eq!(call.ok(), Value::Null),
            }
        }
    }
    let text = call(&world, "ADD", &netns, &conf("0.9.0")).fails(1);
    assert!(text.starts_with("incompatible CNI versions"), "{text}");
    world.assert_clean();
    assert_eq!(names("/run/meta-cni/lock"), Vec::<String>::new());
}

#[test]
fn the_name_decides_and_only_the_meta_plugin_refuses_to_be_called_by_itself() {
    let world = world();
    world.drop_in("sriov-cni");
    let status = |name: &str| world.call("STATUS", "", "", &conf("1.1.0")).program(&world.bin.join(name));
    let mark = |call: Call| call.env("META_CNI_CALLER", "1");
    status("sriov").ok();
    mark(status("sriov")).ok();
    assert!(status("sriov-cni").fails(7).contains("clusterNetwork"), "another name is the meta plugin");
    assert!(mark(status("sriov-cni")).fails(7).contains("called by a plugin that it executed"));
    // Keys of ours are none of its own: what a meta plugin would do with these is another matter.
    let mut odd = conf("1.1.0");
    for (key, value) in
        [("cniDir", "relative"), ("binDir", "relative"), ("logLevel", "loud"), ("logFile", "/no/such/dir/x")]
    {
        odd[key] = json!(value);
    }
    odd["builtins"] = json!(["nothing"]);
    odd["strict"] = json!(true);
    let outcome = world.call("STATUS", "", "", &odd).program(&world.bin.join("sriov")).run();
    assert_eq!(outcome.code, 0, "{outcome:#?}");
    assert!(Path::new("/var/lib/cni/meta-cni/vfs").is_dir() && !Path::new("relative").exists());
}

/// A tree of sysfs with one PF and two VFs; its interface is one of this namespace.
fn sysfs() {
    let none: Option<&str> = None;
    mount(Some("tmpfs"), "/sys", Some("tmpfs"), MsFlags::empty(), none).unwrap();
    ip("link add pf0 type veth peer name wire");
    let links: Value = serde_json::from_str(&ip("-j link show dev pf0")).unwrap();
    let devices = Path::new("/sys/bus/pci/devices");
    let pf = devices.join("0000:01:00.0");
    fs::create_dir_all(pf.join("net/pf0")).unwrap();
    fs::write(pf.join("net/pf0/ifindex"), links[0]["ifindex"].to_string()).unwrap();
    fs::write(pf.join("sriov_numvfs"), "2").unwrap();
    for number in 0..2 {
        let vf = devices.join(format!("0000:01:10.{number}"));
        fs::create_dir_all(&vf).unwrap();
        symlink("../0000:01:00.0", vf.join("physfn")).unwrap();
        symlink(format!("../0000:01:10.{number}"), pf.join(format!("virtfn{number}"))).unwrap();
    }
}

#[test]
fn status_tells_a_pf_that_is_down_or_missing_and_vfs_that_are_all_in_use() {
    let world = world();
    sysfs();
    let any = conf("1.1.0");
    let mut first = any.clone();
    first["deviceID"] = json!("0000:01:10.0");
    let both = [&any, &first];
    let status = |conf: &Value| call(&world, "STATUS", "", conf);
    for conf in both {
        let text = status(conf).fails(51);
        assert!(text.contains("PF pf0 is down: bring it up (ip link set pf0 up)"), "{text}");
    }
    ip("link set pf0 up");
    both.iter().for_each(|conf| drop(status(conf).ok()));

    let holder = world.netns();
    fs::create_dir_all("/var/lib/cni/sriov/pci").unwrap();
    fs::write("/var/lib/cni/sriov/pci/0000:01:10.0", &holder).unwrap();
    status(&any).ok();
    let text = status(&first).fails(50);
    assert!(
        text.contains("no VF is left: pci address 0000:01:10.0 is already allocated") && text.contains(&holder),
        "{text}"
    );
    fs::write("/var/lib/cni/sriov/pci/0000:01:10.1", &holder).unwrap();
    assert!(status(&any).fails(50).contains("no VF is left: all 2 are in use"));
    world.delete_netns(&holder);
    both.iter().for_each(|conf| drop(status(conf).ok()));
    // A dead holder is left to the next ADD: STATUS changes nothing.
    assert!(Path::new("/var/lib/cni/sriov/pci/0000:01:10.0").exists());

    first["deviceID"] = json!("0000:09:10.0");
    assert!(status(&first).fails(50).contains("no PCI device 0000:09:10.0 on this node"));
    fs::remove_dir_all("/sys/bus/pci/devices/0000:01:00.0/net").unwrap();
    assert!(status(&any).fails(51).contains("PF network device not found: PF 0000:01:00.0"));
    // A machine that was given VFs: none of its devices looks like one.
    fs::remove_dir_all("/sys/bus/pci/devices").unwrap();
    status(&any).ok();

    let mut plugin = any.clone();
    let recorder = Recorder::install(&world.bin, &["other-ipam"]);
    plugin["ipam"] = json!({"type": "other-ipam"});
    status(&plugin).ok();
    assert_eq!(recorder.take(), ["STATUS other-ipam "]);
    recorder.behave("other-ipam", "STATUS", r#"echo '{"code":51,"msg":"the server is away"}'; exit 1"#);
    assert!(status(&plugin).fails(51).contains("the server is away"));
    plugin["ipam"] = json!({"type": "host-local"});
    assert!(status(&plugin).fails(50).contains("the network is not ready: "));
    // A state directory that cannot be written.
    let none: Option<&str> = None;
    mount(Some("none"), "/var/lib/cni", Some("tmpfs"), MsFlags::MS_RDONLY, none).unwrap();
    assert!(status(&any).fails(50).contains("/var/lib/cni/meta-cni"));
}

#[test]
fn addresses_of_the_unknown_are_given_back_and_gc_keeps_those_of_the_list() {
    let world = world();
    let netns = world.netns();
    let recorder = Recorder::install(&world.bin, &["other-ipam"]);
    let mut conf = conf("1.1.0");
    conf["ipam"] = json!({"type": "host-local", "subnet": "10.11.0.0/24"});
    let pool = "/var/lib/cni/networks/net-a";
    let reserve = |address: &str, container: &str| {
        fs::create_dir_all(pool).unwrap();
        fs::write(format!("{pool}/{address}"), format!("{container}\r\nnet1")).unwrap();
    };
    for netns in [netns.as_str(), "", "/run/netns/gone"] {
        reserve("10.11.0.5", "c");
        reserve("10.11.0.6", "other");
        call(&world, "DEL", netns, &conf).ok();
        assert_eq!(world.leases("net-a"), ["10.11.0.6"], "{netns}");
    }
    // Neither a wrong range nor a plugin's own keys stop DEL.
    let mut wrong = conf.clone();
    wrong["ipam"]["subnet"] = json!("10.11.0.0/99");
    call(&world, "DEL", &netns, &wrong).ok();

    reserve("10.11.0.7", "c");
    let gc = |list: Value| {
        let mut conf = conf.clone();
        conf["cni.dev/valid-attachments"] = list;
        call(&world, "GC", "", &conf).ok();
        world.leases("net-a")
    };
    assert_eq!(gc(Value::Null), ["10.11.0.6", "10.11.0.7"]);
    assert_eq!(gc(json!([{"containerID": "c", "ifname": "net1"}])), ["10.11.0.7"]);
    assert_eq!(gc(json!([])), Vec::<String>::new());

    conf["ipam"] = json!({"type": "other-ipam"});
    conf["prevResult"] = json!({"cniVersion": "1.1.0", "ips": [{"address": "10.14.0.9/24"}]});
    call(&world, "DEL", &netns, &conf).ok();
    let told = recorder.calls().remove(0).0;
    assert_eq!((&told["verb"], &told["netns"]), (&json!("DEL"), &json!(netns)));
    assert_eq!(told["conf"]["prevResult"]["ips"][0]["address"], "10.14.0.9/24");
    recorder.take();
    conf["cni.dev/valid-attachments"] = json!([{"containerID": "c", "ifname": "net1"}]);
    call(&world, "GC", "", &conf).ok();
    let told = recorder.calls().remove(0).0;
    assert_eq!(
        (&told["verb"], &told["conf"]["cni.dev/valid-attachments"][0]["containerID"]),
        (&json!("GC"), &json!("c"))
    );
    world.assert_clean();
}
