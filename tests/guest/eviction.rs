//! Who may take a VF from an owner that still lives: the pod that kubelet gives it to, and nobody else.

use std::fs;

use serde_json::json;

use crate::{
    harness::{Answer, Interface, KUBELET_SOCKET, Kubelet, PodResources},
    ownership::{STATE, attached, given_to_b, node, state_of_b},
};

/// The runtime has lost a sandbox, and yet it lives: kubelet has given its device to another pod.
#[test]
fn a_sandbox_that_still_lives_loses_its_vf_to_the_pod_that_kubelet_gave_it_to() {
    let node = node();
    let vf = &node.a[3];
    for way in ["at its path", "by a stray mount", "a plain file at its path and a stray mount"] {
        let a = attached(&node, "a", "net-a", vf);
        if way != "at its path" {
            fs::write("/run/test/stray", "").unwrap();
            ip_mount(&a, "/run/test/stray");
            node.world.delete_netns(&a);
        }
        if way.starts_with("a plain file") {
            fs::write(&a, "").unwrap();
        }
        let alive = if way == "at its path" { a.as_str() } else { "/run/test/stray" };
        assert!(Interface::find(alive, "net1").is_some(), "{way}");
        let b = given_to_b(&node, vf);
        node.add("b", &b);
        assert!(Interface::find(alive, "net1").is_none(), "{way}");
        let before = state_of_b(&b, vf);
        node.del("a", &a);
        assert_eq!(state_of_b(&b, vf), before, "{way}");
        node.del("b", &b);
        if way != "at its path" {
            nix::mount::umount("/run/test/stray").unwrap();
        }
        let _ = fs::remove_file(&a).or_else(|_| fs::remove_file("/run/test/stray"));
        node.assert_as_before();
    }
}

fn ip_mount(from: &str, to: &str) {
    let none: Option<&str> = None;
    nix::mount::mount(Some(from), to, none, nix::mount::MsFlags::MS_BIND, none).unwrap();
}

#[test]
fn a_device_id_written_by_hand_and_a_device_of_two_pods_give_no_right_to_evict() {
    let node = node();
    let vf = &node.a[4];
    let a = attached(&node, "a", "net-a", vf);
    let lease = fs::read_to_string(format!("{STATE}/vfs/{}.json", vf.pci)).unwrap();
    node.world.definition("by-hand", &json!({"cniVersion": "1.0.0", "type": "sriov", "deviceID": vf.pci}));
    let second = node.pod("second", "net-b", &[("bed.test/vf", vf)]);
    let third = node.pod("third", "by-hand", &[]);
    // To the second kubelet gives what the owner still has, the third was never given anything.
    for (pod, netns) in [("second", &second), ("third", &third)] {
        if pod == "third" {
            node.take_devices("second");
            node.take_devices("a");
        }
        let text = node.call("ADD", pod, netns).fails(100);
        for part in ["is already allocated", &vf.pci, "meta:a:eth0:net1", "uid-a", &a] {
            assert!(text.contains(part), "{part} is not in: {text}");
        }
        node.del(pod, netns);
        assert_eq!(fs::read_to_string(format!("{STATE}/vfs/{}.json", vf.pci)).unwrap(), lease);
        assert_eq!(Interface::find(&a, "net1").unwrap().mac(), "02:00:00:00:00:0a");
        assert_eq!(vf.row()["vlan_list"][0]["vlan"], 12);
    }
    node.del("a", &a);
    node.assert_as_before();
}

#[test]
fn kubelet_is_asked_who_else_has_a_vf_before_its_owner_loses_it() {
    let node = node();
    let vf = &node.a[4];
    let a = attached(&node, "a", "net-a", vf);
    let entry = |pod: &str| PodResources::new(pod, &[&[("bed.test/vf", &[&vf.pci])]]);
    // What the checkpoint says does not count while kubelet itself answers.
    let b = given_to_b(&node, vf);
    let kubelet = Kubelet::serve([Answer::pod(entry("b")), Answer::pods(vec![entry("a"), entry("b")])]);
    let text = node.call("ADD", "b", &b).fails(100);
    assert!(text.contains("is already allocated") && text.contains("meta:a:eth0:net1"), "{text}");
    assert_eq!(kubelet.asked(), ["Get default/b", "List"]);
    assert_eq!(Interface::find(&a, "net1").unwrap().mac(), "02:00:00:00:00:0a");
    drop(kubelet);

    let others = PodResources::new("a", &[&[("bed.test/vf", &["0000:ff:1f.7"])]]);
    let kubelet = Kubelet::serve([Answer::pod(entry("b")), Answer::pods(vec![others, entry("b")])]);
    node.add("b", &b);
    assert_eq!(kubelet.asked(), ["Get default/b", "List"]);
    assert!(Interface::find(&a, "net1").is_none());
    state_of_b(&b, vf);
    drop(kubelet);
    fs::remove_file(KUBELET_SOCKET).unwrap();
    node.del("a", &a);
    node.del("b", &b);
    node.assert_as_before();
}
