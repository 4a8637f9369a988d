//! Pods that sriov-cni itself attached, detached by our binary in its place: by the files that sriov-cni left.

use std::fs;

use serde_json::{Value, json};

use crate::{
    face::{call, conf, node, with},
    harness::{Interface, ip, ip_in, names},
    node::{Node, Vf, eventually},
};

const MAC: &str = "02:00:00:00:00:81";
const DIRECTORY: &str = "/var/lib/cni/sriov";
const POOL: &str = "/var/lib/cni/networks/sriov-net";

/// The configuration with which the container was attached.
pub(crate) fn wanted(vf: &Vf) -> Value {
    let ipam = json!({"type": "host-local", "subnet": "10.11.0.0/24"});
    with(
        conf(vf),
        json!({"vlan": 100, "vlanQoS": 3, "mac": MAC, "spoofchk": "off", "trust": "on", "max_tx_rate": 200, "ipam": ipam}),
    )
}

/// What sriov-cni v2.10 writes down of it.
pub(crate) fn cache(vf: &Vf) -> Value {
    json!({
        "cniVersion": "1.0.0", "name": "sriov-net", "type": "sriov", "ipam": {"type": "host-local"}, "dns": {},
        "OrigVfState": {
            "HostIFName": vf.name, "SpoofChk": true, "Trust": false, "AdminMAC": vf.mac, "EffectiveMAC": vf.mac,
            "Vlan": 0, "VlanQoS": 0, "VlanProto": 33024, "MinTxRate": 0, "MaxTxRate": 0, "LinkState": 0, "MTU": 1500
        },
        "Master": vf.pf, "MAC": MAC, "MTU": 1500, "vlan": 100, "vlanQoS": 3, "vlanProto": "802.1q",
        "deviceID": vf.pci, "VFID": vf.number, "min_tx_rate": null, "max_tx_rate": 200, "spoofchk": "off",
        "trust": "on", "runtimeConfig": {}
    })
}

/// Attaches a container as sriov-cni does, by hand, and leaves the files that it leaves; gives the namespace.
pub(crate) fn attached(node: &Node, vf: &Vf, container: &str, cache: &Value) -> String {
    let netns = node.world.netns();
    let vf_of_pf = format!("link set {} vf {}", vf.pf, vf.number);
    ip(&format!("link set {} address {MAC}", vf.name));
    for setting in ["vlan 100 qos 3", &format!("mac {MAC}"), "max_tx_rate 200", "spoofchk off", "trust on"] {
        ip(&format!("{vf_of_pf} {setting}"));
    }
    ip(&format!("link set {} netns {} name net1", vf.name, netns.trim_start_matches("/run/netns/")));
    ip_in(&netns, "link set net1 up");
    ip_in(&netns, "link set net1 mtu 1600");
    ip_in(&netns, "addr add 10.11.0.9/24 dev net1");
    fs::create_dir_all(POOL).unwrap();
    fs::write(format!("{POOL}/10.11.0.9"), format!("{container}\r\nnet1")).unwrap();
    fs::create_dir_all(format!("{DIRECTORY}/pci/vf_lock")).unwrap();
    fs::write(format!("{DIRECTORY}/{container}-net1"), cache.to_string()).unwrap();
    fs::write(format!("{DIRECTORY}/pci/{}", vf.pci), &netns).unwrap();
    assert_eq!(vf.row()["address"], MAC);
    netns
}

#[test]
fn everything_is_given_back_as_sriov_cni_found_it() {
    let node = node();
    let vf = &node.a[3];
    for case in ["", "namespace gone", "CNI_NETNS empty", "both", "without an allocation", "altname"] {
        let netns = attached(&node, vf, "c", &cache(vf));
        call(&node, "CHECK", "c", &netns, &wanted(vf)).ok();
        match case {
            "namespace gone" | "both" => node.world.delete_netns(&netns),
            "without an allocation" => fs::remove_file(format!("{DIRECTORY}/pci/{}", vf.pci)).unwrap(),
            // Kernels before 6.x leave the old name as an alternative one; udev gives others.
            "altname" => drop(ip_in(&netns, &format!("link property add dev net1 altname {}", vf.name))),
            _ => {}
        }
        let told = if matches!(case, "CNI_NETNS empty" | "both") { "" } else { netns.as_str() };
        call(&node, "DEL", "c", told, &wanted(vf)).ok();
        node.assert_as_before();
        call(&node, "DEL", "c", told, &wanted(vf)).ok();
        node.assert_as_before();
    }
}

#[test]
fn a_file_of_an_old_release_is_enough() {
    let node = node();
    let vf = &node.b[4];
    let mut old = cache(vf);
    for key in ["Trust", "VlanProto", "MTU"] {
        old["OrigVfState"].as_object_mut().unwrap().remove(key);
    }
    for key in ["vlanProto", "MTU"] {
        old.as_object_mut().unwrap().remove(key);
    }
    let netns = attached(&node, vf, "c", &old);
    fs::remove_dir_all(format!("{DIRECTORY}/pci")).unwrap();
    // It does not tell the MTU: that stays.
    ip_in(&netns, "link set net1 mtu 1500");
    call(&node, "DEL", "c", &netns, &wanted(vf)).ok();
    node.assert_as_before();
}

#[test]
fn a_vf_that_another_pod_has_by_now_is_left_alone() {
    let node = node();
    let vf = &node.a[6];
    let netns = attached(&node, vf, "c", &cache(vf));
    // The namespace dies, and the VF with all that was set on it goes to a container of ours, then of sriov-cni's.
    let saved = fs::read(format!("{DIRECTORY}/c-net1")).unwrap();
    call(&node, "DEL", "c", &netns, &wanted(vf)).ok();
    node.world.delete_netns(&netns);
    for by_sriov_cni in [false, true] {
        let mine = with(conf(vf), json!({"mac": "02:00:00:00:00:82", "vlan": 55}));
        let two = if by_sriov_cni {
            attached(&node, vf, "two", &cache(vf))
        } else {
            let two = node.world.netns();
            call(&node, "ADD", "two", &two, &mine).ok();
            two
        };
        fs::write(format!("{DIRECTORY}/c-net1"), &saved).unwrap();
        fs::create_dir_all(POOL).unwrap();
        fs::write(format!("{POOL}/10.11.0.8"), "c\r\nnet1").unwrap();
        let before = (vf.row(), Interface::find(&two, "net1").unwrap().link);
        for told in [netns.as_str(), ""] {
            call(&node, "DEL", "c", told, &wanted(vf)).ok();
            let after = (vf.row(), Interface::find(&two, "net1").expect("it stays in its new pod").link);
            assert_eq!(
                (&after.0, &after.1["address"], &after.1["mtu"]),
                (&before.0, &before.1["address"], &before.1["mtu"])
            );
            assert_eq!(fs::read_to_string(format!("{DIRECTORY}/pci/{}", vf.pci)).unwrap(), two);
            assert!(!names(DIRECTORY).contains(&"c-net1".to_owned()) && !names(POOL).contains(&"10.11.0.8".to_owned()));
            fs::write(format!("{DIRECTORY}/c-net1"), &saved).unwrap();
            fs::write(format!("{POOL}/10.11.0.8"), "c\r\nnet1").unwrap();
        }
        fs::remove_file(format!("{DIRECTORY}/c-net1")).unwrap();
        fs::remove_file(format!("{POOL}/10.11.0.8")).unwrap();
        call(&node, "DEL", "two", &two, &if by_sriov_cni { wanted(vf) } else { mine }).ok();
        node.assert_as_before();
    }
}

#[test]
fn a_vf_that_sriov_cni_holds_is_refused_while_its_pod_lives() {
    let node = node();
    let vf = &node.b[0];
    node.network("net-a", "bed.test/vf", &json!({"cniVersion": "1.0.0", "type": "sriov"}));
    let pod = node.pod("p", "net-a", &[("bed.test/vf", vf)]);
    let (living, netns) = (node.world.netns(), node.world.netns());
    let allocation = format!("{DIRECTORY}/pci/{}", vf.pci);
    fs::create_dir_all(format!("{DIRECTORY}/pci")).unwrap();
    fs::write(&allocation, &living).unwrap();
    let expected = format!("pci address {} is already allocated: the sandbox in {living} holds it", vf.pci);
    let text = call(&node, "ADD", "c", &netns, &conf(vf)).fails(100);
    assert!(text.starts_with(&expected), "{text}");
    let text = node.call("ADD", "p", &pod).fails(100);
    assert!(text.contains(&expected), "{text}");
    assert_eq!(fs::read_to_string(&allocation).unwrap(), living);
    node.world.delete_netns(&living);
    call(&node, "ADD", "c", &netns, &conf(vf)).ok();
    assert_eq!(fs::read_to_string(&allocation).unwrap(), netns, "sriov-cni would refuse it now");
    call(&node, "DEL", "c", &netns, &conf(vf)).ok();
    node.add("p", &pod);
    assert_eq!(fs::read_to_string(&allocation).unwrap(), pod);
    node.del("p", &pod);
    node.assert_as_before();
}

#[test]
fn our_late_del_leaves_the_vf_of_a_pod_of_sriov_cnis_alone() {
    let node = node();
    let vf = &node.b[2];
    let mine = with(conf(vf), json!({"vlan": 77, "ipam": {"type": "host-local", "subnet": "10.11.0.0/24"}}));
    let netns = node.world.netns();
    call(&node, "ADD", "c", &netns, &mine).ok();
    node.world.delete_netns(&netns);
    // sriov-cni sees that the holder is dead, and takes the VF.
    assert!(eventually(|| !names(format!("/sys/bus/pci/devices/{}/net", vf.pci)).is_empty()));
    let back = names(format!("/sys/bus/pci/devices/{}/net", vf.pci)).remove(0);
    if back != vf.name {
        ip(&format!("link set {back} name {}", vf.name));
    }
    let two = attached(&node, vf, "two", &cache(vf));
    call(&node, "DEL", "c", &netns, &mine).ok();
    assert_eq!(vf.row()["vlan_list"][0]["vlan"], 100);
    assert_eq!(Interface::find(&two, "net1").expect("it stays").mac(), MAC);
    assert_eq!(node.world.leases("sriov-net"), ["10.11.0.9"], "its own address is given back");
    call(&node, "DEL", "two", &two, &wanted(vf)).ok();
    node.assert_as_before();
}

#[test]
fn gc_gives_back_what_sriov_cni_lost_and_touches_no_vf_that_is_at_home() {
    let mut node = node();
    let (lost, home) = (node.a[1].clone(), node.a[2].clone());
    let netns = attached(&node, &lost, "c", &cache(&lost));
    // A file of an earlier boot, in which the VF had another address.
    let mut stale = cache(&home);
    stale["OrigVfState"]["EffectiveMAC"] = json!("02:00:00:00:00:99");
    fs::write(format!("{DIRECTORY}/old-net1"), stale.to_string()).unwrap();
    fs::write(format!("{DIRECTORY}/pci/{}", home.pci), "/run/netns/gone").unwrap();
    node.conf["cniVersion"] = json!("1.1.0");
    node.conf["cni.dev/valid-attachments"] = json!([]);
    node.world.call("GC", "", "", &node.conf).ok();
    assert_eq!(Interface::find(&netns, "net1").expect("its pod lives").mac(), MAC);
    node.world.delete_netns(&netns);
    assert!(eventually(|| names("/sys/class/net").contains(&"net1".to_owned())), "it came back under the pod's name");
    node.world.call("GC", "", "", &node.conf).ok();
    assert_eq!(names(format!("/sys/bus/pci/devices/{}/net", lost.pci)), std::slice::from_ref(&lost.name));
    assert_eq!(lost.row()["vlan_list"][0]["vlan"], json!(null));
    assert_eq!(node.world.leases("sriov-net"), ["10.11.0.9"], "the address is for the DEL to free");
    call(&node, "DEL", "c", &netns, &wanted(&lost)).ok();
    fs::remove_file(format!("{DIRECTORY}/old-net1")).unwrap();
    fs::remove_file(format!("{DIRECTORY}/pci/{}", home.pci)).unwrap();
    node.assert_as_before();
}

#[test]
fn files_stay_until_the_vf_is_back() {
    let node = node();
    let vf = &node.a[1];
    let netns = attached(&node, vf, "c", &cache(vf));
    // Somebody took it out of the pod: sriov-cni fails once, forgets its file, and the next DEL is a success (sriov-cni#278).
    let elsewhere = node.world.netns();
    ip_in(&netns, &format!("link set net1 netns {}", elsewhere.trim_start_matches("/run/netns/")));
    for _ in 0..2 {
        let text = call(&node, "DEL", "c", &netns, &wanted(vf)).fails(100);
        assert!(text.contains(&vf.pci) && text.contains(&elsewhere), "{text}");
        assert_eq!(
            (names(DIRECTORY), node.world.leases("sriov-net")),
            (vec!["c-net1".into(), "pci".into()], vec!["10.11.0.9".into()])
        );
    }
    node.world.delete_netns(&elsewhere);
    call(&node, "DEL", "c", &netns, &wanted(vf)).ok();
    node.assert_as_before();
}

#[test]
fn a_torn_file_stops_nothing() {
    let node = node();
    let vf = &node.a[0];
    fs::create_dir_all(DIRECTORY).unwrap();
    fs::create_dir_all(POOL).unwrap();
    fs::write(format!("{DIRECTORY}/c-net1"), &cache(vf).to_string()[..90]).unwrap();
    fs::write(format!("{POOL}/10.11.0.9"), "c\r\nnet1").unwrap();
    let netns = node.world.netns();
    let outcome = call(&node, "DEL", "c", &netns, &wanted(vf)).run();
    assert_eq!(outcome.code, 0, "{outcome:#?}");
    assert!(outcome.stderr.contains("sriov-cni's file is torn"), "{outcome:#?}");
    assert_eq!(node.world.leases("sriov-net"), Vec::<String>::new());
    fs::remove_file(format!("{DIRECTORY}/c-net1")).unwrap();
    node.assert_as_before();
}
