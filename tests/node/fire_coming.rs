//! We come to a node and leave it while its pods come and go.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::MetadataExt as _,
    path::Path,
    sync::{Mutex, atomic::Ordering::SeqCst},
    time::Duration,
};

use k8s_openapi::jiff::{SignedDuration, Timestamp};

use crate::{
    bed::{Node, enter, wait_for},
    daemonset::pod,
    fire::{Fire, NEXT_TRY},
    fire_tree::{Places, tree},
    fire_watch::Networks,
};

/// How long the runtime may take to read our configuration after it is there: it hears of it by inotify.
const HEARS: SignedDuration = SignedDuration::from_secs(1);

/// A pod's sandbox, by containerd's log: when it began to make it.
struct Sandbox {
    pod: String,
    uid: String,
    began: Timestamp,
}

/// The sandboxes that containerd made, and not those that it failed to make.
fn sandboxes(node: &Node) -> Vec<Sandbox> {
    let log = fs::read_to_string(node.path("containerd.log")).unwrap();
    let mut began = BTreeMap::new();
    let mut made = Vec::new();
    for line in log.lines() {
        let Some((head, of)) = line.split_once("RunPodSandbox for &PodSandboxMetadata{Name:") else { continue };
        let field = |key: &str| Some(of.split_once(key)?.1.split(',').next()?.to_owned());
        let (Some(uid), Some((pod, _))) = (field(",Uid:"), of.split_once(',')) else { continue };
        let time = head.split('"').nth(1).and_then(|time| time.parse::<Timestamp>().ok());
        if of.contains("returns sandbox id") {
            made.push(Sandbox { pod: pod.to_owned(), began: began[&uid], uid });
        } else if let (Some(time), true) = (time, of.ends_with(",}\"")) {
            began.insert(uid, time);
        }
    }
    made
}

/// Since when our configuration is in force: the moment of its rename, of which the kernel keeps the time.
fn in_force(node: &Node) -> Option<Timestamp> {
    let found = fs::metadata(node.path("cni/net.d/00-meta-cni.conflist")).ok()?;
    Timestamp::new(found.ctime(), i32::try_from(found.ctime_nsec()).unwrap()).ok()
}

fn apply(node: &Node, what: &str) {
    let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/base");
    let flag = if what.is_empty() { "-k" } else { "-f" };
    node.kubectl(&["apply", flag, deploy.join(what).to_str().unwrap()], "");
}

/// Panics unless every pod has its networks whose ADD began when our configuration was in force; says how near the others
/// came to that moment.
fn judge_coming(fire: &Fire<'_>, node: &Node, moment: Timestamp) -> String {
    let (mut alone, mut whole) = (Vec::new(), 0);
    for Sandbox { pod, uid, began } in sandboxes(node).into_iter().filter(|sandbox| sandbox.pod.starts_with("pod-")) {
        let Networks { eth0, net1 } = fire.containers.of_pod(&uid).unwrap_or_else(|| panic!("{pod} was not looked at"));
        assert!(eth0, "{pod}");
        match net1 {
            true => whole += 1,
            false => alone.push((began.duration_since(moment), pod)),
        }
    }
    let last = alone.iter().max().expect("pods were made before");
    assert!(
        last.0 < HEARS,
        "{} began {:?} after our configuration was there, and has the primary alone",
        last.1,
        last.0
    );
    assert!(whole >= 4, "{whole} pods with both networks");
    format!(
        "{} pods had the primary alone, the last began {:.3} s after our conf; {whole} had both",
        alone.len(),
        last.0.as_secs_f64()
    )
}

fn uninstall(node: &Node) -> (bool, String) {
    node.run(&["/opt/cni/bin/meta-cni", "uninstall"], "")
}

/// Tries while a pod of ours lives, and finds that nothing is touched.
fn is_refused(fire: &Fire<'_>, node: &Node) {
    let now = || (tree(&node.path("cni/net.d")), tree(&node.path("cni/bin")));
    let before = now();
    for _ in 0..8 {
        let (done, said) = uninstall(node);
        assert!(!done && said.contains("default/holder") && said.contains("nothing is removed"), "{said}");
        assert_eq!(now(), before);
    }
    fire.patient(&["delete", "pod", "holder", "--timeout=60s"], "");
}

#[test]
#[ignore = "takes a minute: make soak runs it"]
fn pods_come_and_go_while_we_come_to_a_node_and_leave_it() {
    let _turn = enter();
    let node = Node::without_us("coming");
    apply(&node, "crd.yaml");
    node.kubectl(&["wait", "--for=condition=Established", "--timeout=60s", "crd", "--all"], "");
    node.macvlan("net-a", "10.40.0.0/24");
    node.import_image(Path::new(env!("CARGO_BIN_EXE_meta-cni")), "meta-cni:latest");
    // What the runtime and the primary's plugins make for the first pod is there before us.
    node.create(&[pod("first", "net-a")]);
    node.wait_ready(&["first"]);
    node.kubectl(&["delete", "pod", "first", "--timeout=60s"], "");
    node.assert_free();
    let before = Places::of(&node);

    let (moment, left) = (Mutex::new(None), Mutex::new(String::new()));
    let fire = Fire::new(&node, false);
    fire.burn(|fire| {
        fire.phase("the primary alone", Duration::ZERO, || {});
        fire.phase("we are installed", NEXT_TRY, || {
            apply(&node, "");
            wait_for("our configuration is there", 60, || in_force(&node).is_some());
            *moment.lock().unwrap() = in_force(&node);
            node.rolled_out();
        });
        // From here on none asks for more than the primary, but for one.
        node.create(&[pod("holder", "net-a")]);
        node.wait_ready(&["holder"]);
        fire.ask_for("");
        fire.phase("the DaemonSet is removed", NEXT_TRY, || {
            node.kubectl(&["delete", "daemonset/meta-cni", "-n", "kube-system", "--timeout=60s"], "");
        });
        wait_for("no other pod of ours is left", 120, || {
            let networks = node.path("var/lib/cni/networks/net-a");
            crate::harness::names(networks).iter().filter(|name| name.starts_with("10.")).count() <= 1
        });
        fire.phase("uninstall is refused", NEXT_TRY, || is_refused(fire, &node));
        fire.phase("uninstall", NEXT_TRY, || {
            wait_for("it is done", 60, || {
                let (done, said) = uninstall(&node);
                assert!(done || said.contains("living pods"), "{said}");
                *left.lock().unwrap() = said;
                done
            });
        });
        assert!(in_force(&node).is_none() && node.path("cni/net.d/10-flannel.conflist").exists());
        fire.phase("the primary alone again", Duration::ZERO, || {});
    });
    println!("{}", fire.table());
    fire.judge();
    println!("{}", judge_coming(&fire, &node, moment.into_inner().unwrap().unwrap()));
    assert!(fire.made.load(SeqCst) >= 24, "{} pods", fire.made.load(SeqCst));

    // What had to stay for the pods of that time goes when they are gone.
    println!("{}", left.into_inner().unwrap());
    wait_for("nothing is left of any pod", 60, || node.leftovers().iter().all(|left| left.len() == 64));
    if node.path("cni/bin/meta-cni").exists() {
        let (done, said) = uninstall(&node);
        assert!(done, "{said}");
        println!("{said}");
    }
    node.assert_free();
    assert_eq!(Places::of(&node), before);
}
