//! Pods that want VFs, more of them than there are, on a node whose kubelet and containerd are killed meanwhile.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::{
    cluster::Cluster,
    pods::{Attached, Look, attached, bound, deployment, is_ready, name, template, vf_network},
};
use crate::node::{assert_same, comparable};

const RESOURCES: [&str; 2] = ["intel.com/igb_a", "intel.com/igb_b"];
const APP: &str = "app=vfs";
/// How many VFs of each port pods may have: few, so that they are soon too few.
const OFFERED: usize = 3;

fn definitions() -> [Value; 2] {
    let pool = |subnet: &str| json!({"type": "host-local", "subnet": subnet});
    let a = json!({"cniVersion": "1.0.0", "type": "sriov", "vlan": 12, "trust": "on", "ipam": pool("10.11.0.0/24")});
    let b = json!({"cniVersion": "1.0.0", "type": "sriov", "mtu": 1600, "ipam": pool("10.12.0.0/24")});
    [vf_network("net-a", RESOURCES[0], &a), vf_network("net-b", RESOURCES[1], &b)]
}

/// Waits until as many pods are Ready as have VFs and one waits for some, but none of those that were deleted is left;
/// gives them.
#[track_caller]
fn full(cluster: &Cluster, what: &str, without: &[&str]) -> Vec<Attached> {
    cluster.wait_for(what, || {
        let pods = cluster.list("pods", APP);
        let gone = !pods.iter().any(|pod| without.contains(&name(pod).as_str()));
        gone && pods.iter().filter(|pod| is_ready(pod)).count() == OFFERED
            && pods.iter().filter(|pod| pod["status"]["phase"] == "Pending").count() == 1
    });
    let pods = attached(cluster, APP);
    // Each has its own, and all that are offered are in use.
    let vfs: Vec<&String> = pods.iter().flat_map(|pod| pod.vfs.values()).collect();
    assert_eq!(vfs.iter().collect::<BTreeSet<_>>().len(), 2 * OFFERED, "{pods:#?}");
    for pod in &pods {
        assert!(pod.vfs["net1"].starts_with("0000:01:") && pod.vfs["net2"].starts_with("0000:02:"), "{pod:#?}");
    }
    assert_eq!(Look::at(cluster).surplus(&pods), [""; 0], "of nobody");
    pods
}

/// Each pod reaches the next one on every network.
fn ping_around(cluster: &Cluster, pods: &[Attached]) {
    let next = pods.iter().cycle().skip(1);
    let pings = pods.iter().zip(next).flat_map(|(from, to)| to.addresses.values().map(move |address| (from, address)));
    // The first answer is enough; a busy machine may be late with it.
    let ping = |(from, address): (&Attached, &String)| {
        format!(
            "ip netns exec {} ping -q -c 1 -w 30 {address} || {{ echo {} {address}; exit 1; }}",
            from.netns, from.name
        )
    };
    let script: Vec<String> = pings.map(ping).collect();
    assert_eq!(script.len(), 3 * pods.len());
    cluster.guest.run(&script.join("\n"));
    cluster.say("they reach each other on eth0, net1 and net2");
}

/// Those who are among both are the same in everything: namespace, interfaces, addresses, VFs.
fn assert_kept(before: &[Attached], after: &[Attached], all_but: &str) {
    let of = |pods: &[Attached], name: &str| pods.iter().find(|pod| pod.name == name).cloned();
    for pod in before.iter().filter(|pod| pod.name != all_but) {
        assert_eq!(of(after, &pod.name).as_ref(), Some(pod));
    }
}

fn the_waiting_one(cluster: &Cluster) -> Value {
    let pods = cluster.list("pods", APP);
    let waiting: Vec<&Value> = pods.iter().filter(|pod| pod["status"]["phase"] == "Pending").collect();
    assert_eq!(waiting.len(), 1, "{waiting:#?}");
    waiting[0].clone()
}

/// A pod that nobody schedules is refused by kubelet; one that is to be scheduled waits. Both are told why.
fn assert_told_why(cluster: &Cluster) {
    let waiting = name(&the_waiting_one(cluster));
    let why = "0/1 nodes are available: 1 Insufficient intel.com/igb_a, 1 Insufficient intel.com/igb_b";
    let is_told =
        || cluster.events(&waiting).iter().any(|event| event.starts_with(&format!("FailedScheduling: {why}")));
    cluster.wait_for("the fourth pod waits, and is told for which resources", is_told);

    cluster.create(&[bound("late", template("late", "net-a,net-b", &RESOURCES))]);
    let status = || cluster.get("pod", "late")["status"].clone();
    cluster.wait_for("a pod that was not scheduled is refused", || status()["phase"] == "Failed");
    assert_eq!(status()["reason"], "UnexpectedAdmissionError", "{}", status());
    let message = status()["message"].as_str().unwrap().to_owned();
    assert!(message.contains("Requested: 1, Available: 0"), "{message}");
    let events = cluster.events("late");
    assert!(events.iter().any(|event| event.starts_with("UnexpectedAdmissionError: ")), "{events:?}");
    cluster.kubectl(&["delete", "pod", "late", "--timeout=120s"], "");
}

fn delete(cluster: &Cluster, pod: &str) {
    cluster.kubectl(&["delete", "pod", pod, "--wait=false"], "");
}

#[test]
fn pods_get_vfs_wait_for_vfs_and_give_them_back() {
    let cluster = Cluster::start("vfs", OFFERED);
    let links = || comparable(&cluster.guest.run("ip -j -d link show"));
    let before = links();
    cluster.install();
    cluster.create(&definitions());
    cluster.create(&[deployment("vfs", OFFERED + 1, &template("vfs", "net-a,net-b", &RESOURCES))]);
    let first = full(&cluster, "three pods have two VFs each", &[]);
    ping_around(&cluster, &first);
    assert_told_why(&cluster);

    let waiting = name(&the_waiting_one(&cluster));
    delete(&cluster, &first[0].name);
    let second = full(&cluster, "a pod is deleted, and its VFs go to another one", &[&first[0].name]);
    assert_kept(&first, &second, &first[0].name);
    println!("         (the one that waited has them: {})", second.iter().any(|pod| pod.name == waiting));

    cluster.guest.run("kill -9 $(cat $dir/kubelet.pid)");
    delete(&cluster, &second[0].name);
    cluster.guest.run("kubelet");
    let third = full(&cluster, "kubelet was killed, and what it missed is made good", &[&second[0].name]);
    assert_kept(&second, &third, &second[0].name);

    cluster.guest.run("kill -9 $(cat $dir/containerd.pid)");
    delete(&cluster, &third[0].name);
    cluster.guest.run("$node/containerd $dir");
    let fourth = full(&cluster, "containerd was killed, and what was missed is made good", &[&third[0].name]);
    assert_kept(&third, &fourth, &third[0].name);
    ping_around(&cluster, &fourth);

    cluster.kubectl(&["delete", "deployment", "vfs", "--timeout=120s"], "");
    cluster.wait_for("all pods are gone", || cluster.list("pods", APP).is_empty());
    cluster.wait_for("nothing is left of them", || Look::at(&cluster).surplus(&[]).is_empty());
    assert_same(&before, &links());
}
