//! The node loses its power with pods on it, and starts again with its disk: kubelet's, containerd's and our state
//! is what reached the disk, `/run` is empty, the boot ID another one. The control plane knows nothing of it.

use std::{
    collections::BTreeSet,
    thread::sleep,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use super::{
    cluster::Cluster,
    pods::{
        Attached, Look, attached, bound, container_of, deployment, is_ready, network, status_of, template, vf_network,
    },
};

/// How many pods there are: a third has a VF of the first port, if there are as many, a third one of the second, the rest
/// has something else. META_CNI_PODS says another number: an emulated CPU, shared by all of them, needs five seconds for
/// each, and when there are so many at once that each takes longer than a plugin may, none gets anywhere.
fn count() -> Count {
    let all = std::env::var("META_CNI_PODS").map_or(12, |count| count.parse().unwrap());
    Count { all, vfs_of_a_port: (all / 3).min(7) }
}

#[derive(Clone, Copy)]
struct Count {
    all: usize,
    vfs_of_a_port: usize,
}

const LABELS: &str = "app in (macvlan,vf-a,vf-b)";
/// How long all of them may take to come up on a busy machine: an emulated CPU starts one in five seconds.
const PATIENCE: Duration = Duration::from_secs(900);

fn workload(count: Count) -> Vec<Value> {
    let pool = |subnet: &str| json!({"type": "host-local", "subnet": subnet});
    let macvlan = json!({"cniVersion": "1.0.0", "type": "macvlan", "master": "uplink", "ipam": pool("10.40.0.0/24")});
    let vf = |subnet: &str| json!({"cniVersion": "1.0.0", "type": "sriov", "vlan": 12, "ipam": pool(subnet)});
    let mut objects = vec![
        network("net-m", &macvlan),
        vf_network("net-a", "intel.com/igb_a", &vf("10.11.0.0/24")),
        vf_network("net-b", "intel.com/igb_b", &vf("10.12.0.0/24")),
    ];
    let pod = |at| bound(&format!("macvlan-{at}"), template("macvlan", "net-m", &[]));
    objects.extend((2 * count.vfs_of_a_port..count.all).map(pod));
    // kubelet refuses pods with devices that it finds when it starts, until the device plugin has registered: so they are
    // such that somebody replaces.
    objects.push(deployment("vf-a", count.vfs_of_a_port, &template("vf-a", "net-a", &["intel.com/igb_a"])));
    objects.push(deployment("vf-b", count.vfs_of_a_port, &template("vf-b", "net-b", &["intel.com/igb_b"])));
    objects
}

/// Looks at all pods until all run in containers that are none of these: at no look has one that is Ready not all its
/// networks.
fn all_ready(cluster: &Cluster, all: usize, old: &BTreeSet<String>) {
    let (began, mut last) = (Instant::now(), all);
    loop {
        let pods = cluster.list("pods", LABELS);
        let new: Vec<&Value> = pods.iter().filter(|pod| is_ready(pod) && !old.contains(&container_of(pod))).collect();
        for pod in &new {
            status_of(pod);
        }
        if new.len() != last {
            last = new.len();
            cluster.say(&format!("{last} pods of {all} are Ready"));
        }
        if last == all {
            return;
        }
        assert!(began.elapsed() < PATIENCE, "{}", cluster.kubectl(&["get", "pods,events"], ""));
        sleep(Duration::from_millis(500));
    }
}

/// Panics unless there are all pods, each with all its networks, and nothing but what is theirs.
fn assert_whole(cluster: &Cluster, count: Count) -> Vec<Attached> {
    let pods = attached(cluster, LABELS);
    assert_eq!(pods.len(), count.all, "{pods:#?}");
    let vfs: BTreeSet<&String> = pods.iter().flat_map(|pod| pod.vfs.values()).collect();
    assert_eq!(vfs.len(), 2 * count.vfs_of_a_port, "{vfs:?}");
    assert!(pods.iter().all(|pod| pod.addresses.contains_key("net1")), "{pods:#?}");
    cluster.wait_for("records, leases and addresses are theirs alone", || Look::at(cluster).surplus(&pods).is_empty());
    let look = Look::at(cluster);
    assert_eq!(
        (look.records(), look.count("meta-cni/vfs/"), look.count("networks/")),
        (2 * count.all, vfs.len(), 2 * count.all)
    );
    pods
}

/// Panics unless the containers that run had all networks when they began: each has said which addresses it saw.
fn assert_never_alone(cluster: &Cluster, pods: &[Attached]) {
    let script = "for log in /var/log/pods/default_*/one/*.log; do
        awk -v file=\"$log\" '$6 == \"inet\" { seen = seen \" \" $5 \" \" $7 } END { print file seen }' \"$log\"; done";
    let text = cluster.guest.run(script);
    for pod in pods {
        let addresses = |interface: &str| format!(" {interface} {}/24", pod.addresses[interface]);
        let own = |line: &&str| line.starts_with(&format!("/var/log/pods/default_{}_", pod.name));
        // The last one: those of the boot before come first.
        let saw = text.lines().rfind(own).unwrap_or_else(|| panic!("no log of {}: {text}", pod.name));
        assert!(saw.contains(&addresses("eth0")) && saw.contains(&addresses("net1")), "{saw}: {pod:?}");
    }
}

#[test]
fn pods_come_back_after_a_power_cut_with_all_their_networks() {
    let count = count();
    let mut cluster = Cluster::start("reboot", count.vfs_of_a_port);
    cluster.install();
    cluster.create(&workload(count));
    all_ready(&cluster, count.all, &BTreeSet::new());
    let before = assert_whole(&cluster, count);
    let boot_id = |cluster: &Cluster| cluster.guest.run("cat /proc/sys/kernel/random/boot_id");
    let (old_boot, old) = (boot_id(&cluster), cluster.list("pods", LABELS).iter().map(container_of).collect());

    cluster.guest.reset();
    cluster.say("the power is cut");
    all_ready(&cluster, count.all, &old);
    assert_ne!(boot_id(&cluster), old_boot);
    // As long as the object of a refused pod is there, kubelet keeps what is left of its sandbox, and has no DEL made.
    let refused = cluster.list("pods", LABELS).iter().filter(|pod| pod["status"]["phase"] == "Failed").count();
    cluster.kubectl(&["delete", "pods", "--field-selector=status.phase=Failed", "--timeout=300s"], "");
    let after = assert_whole(&cluster, count);
    assert_never_alone(&cluster, &after);

    let same = after.iter().filter(|pod| before.iter().any(|other| other.name == pod.name)).count();
    println!("         ({same} are the pods of before; {refused} were refused by kubelet, and replaced)");
    assert!(same >= count.all - 2 * count.vfs_of_a_port, "{after:#?}");
}
