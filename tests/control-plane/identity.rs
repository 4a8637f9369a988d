//! Which pod it is: replaced, deleted and static pods, and definitions that come and go.

use serde_json::{Value, json};

use crate::{
    bed::{ApiPod, Bed, NETWORKS, STATUS, handed},
    harness::Interface,
};

#[test]
fn a_pod_that_was_replaced_under_its_name_gets_nothing() {
    let bed = Bed::enter();
    bed.macvlans(&[("replaced", 18)]);
    let conf = bed.conf(&Bed::service_account());
    let old = Bed::pod_with("replaced", "replaced");
    Bed::delete_pod("replaced");
    let new = Bed::pod_with("replaced", "replaced");
    assert_ne!(old.uid, new.uid);
    let netns = bed.world.netns();
    // The runtime hands over the old pod's annotations: the server refuses the status of the new one.
    for networks in [json!({NETWORKS: "replaced"}), json!({})] {
        let text = bed.call("ADD", &netns, &handed(&conf, &networks), &old).fails(11);
        assert!(text.contains("pod default/replaced is gone, or another one has its name"), "{text}");
        bed.assert_undone(&netns);
    }
    // It does not: the UID is compared before anything is done.
    let asked = Bed::requests(|| {
        let text = bed.call("ADD", &netns, &conf, &old).fails(11);
        assert!(text.contains(&old.uid) && text.contains(&new.uid), "{text}");
    });
    assert_eq!(asked, ["get pods/replaced"]);
    bed.assert_undone(&netns);
    assert_eq!(Bed::status("replaced"), None, "the new pod got the old one's status");
    bed.call("ADD", &netns, &conf, &new).ok();
    assert_eq!(Bed::status("replaced").expect("network-status")[1]["name"], "default/replaced");
    bed.call("DEL", &netns, &conf, &new).ok();
    bed.assert_undone(&netns);
}

/// The runtime says the pod's UID, or, as older ones do, none: both are the pod.
#[test]
fn a_uid_that_is_the_pods_or_is_not_said_is_no_obstacle() {
    let bed = Bed::enter();
    bed.macvlans(&[("known", 37)]);
    let conf = bed.conf(&Bed::service_account());
    let pod = Bed::pod_with("known", "known");
    let unsaid = ApiPod { name: pod.name.clone(), uid: String::new() };
    let handed = handed(&conf, &json!({NETWORKS: "known"}));
    for conf in [&conf, &handed] {
        for pod in [&pod, &unsaid] {
            let netns = bed.world.netns();
            bed.call("ADD", &netns, conf, pod).ok();
            let status = Bed::status("known").expect("network-status");
            assert_eq!(status[1]["mac"], Interface::find(&netns, "net1").expect("net1").mac());
            bed.call("CHECK", &netns, conf, pod).ok();
            bed.call("DEL", &netns, conf, pod).ok();
            bed.assert_undone(&netns);
        }
    }
}

#[test]
fn a_pod_that_was_deleted_gets_nothing() {
    let bed = Bed::enter();
    bed.macvlans(&[("deleted", 19)]);
    let conf = bed.conf(&Bed::service_account());
    let pod = Bed::pod_with("deleted", "deleted");
    Bed::delete_pod("deleted");
    let netns = bed.world.netns();
    for networks in [json!({NETWORKS: "deleted"}), json!({})] {
        let text = bed.call("ADD", &netns, &handed(&conf, &networks), &pod).fails(11);
        assert!(text.contains("pod default/deleted is gone"), "{text}");
        bed.assert_undone(&netns);
    }
    // An error in the form of the conf's version, and no result that is made up.
    for version in ["0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        let mut conf = conf.clone();
        conf["cniVersion"] = json!(version);
        let outcome = bed.call("ADD", &netns, &conf, &pod).run();
        let error = outcome.json();
        assert_eq!(
            (outcome.code, &error["code"], &error["cniVersion"]),
            (1, &json!(11), &json!(version)),
            "{outcome:#?}"
        );
        let text = error["msg"].as_str().unwrap();
        assert!(text.contains("pod default/deleted is not known to the API server"), "{text}");
        assert!(error.get("ips").is_none() && error.get("interfaces").is_none(), "{error}");
        bed.assert_undone(&netns);
    }
    bed.call("DEL", &netns, &conf, &pod).ok();
}

#[test]
fn a_pod_that_the_server_learns_of_late_is_waited_for() {
    let bed = Bed::enter();
    bed.macvlans(&[("new", 28)]);
    let conf = bed.conf(&Bed::service_account());
    let netns = bed.world.netns();
    let pod = ApiPod { name: "new".to_owned(), uid: String::new() };
    let adding = bed.call("ADD", &netns, &conf, &pod).start();
    std::thread::sleep(std::time::Duration::from_millis(600));
    Bed::pod_with("new", "new");
    let output = adding.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(Bed::status("new").expect("network-status")[1]["name"], "default/new");
    bed.call("DEL", &netns, &conf, &pod).ok();
    bed.assert_undone(&netns);
}

#[test]
fn definitions_and_pods_may_be_gone_before_del() {
    let bed = Bed::enter();
    bed.macvlans(&[("passing", 20)]);
    let conf = bed.conf(&Bed::service_account());
    let pod = Bed::pod_with("passing", "passing");
    let netns = bed.world.netns();
    bed.call("ADD", &netns, &conf, &pod).ok();
    assert!(Interface::find(&netns, "net1").is_some());
    Bed::delete_pod("passing");
    Bed::kubectl(&["delete", "net-attach-def", "passing"], "");
    let asked = Bed::requests(|| drop(bed.call("DEL", &netns, &conf, &pod).ok()));
    assert_eq!(asked, Vec::<String>::new());
    bed.assert_undone(&netns);

    // Now nobody can be attached to it: refused before the primary is made, all that is missing in one message.
    let next = Bed::pod_with("passing", "passing,nowhere/else,passing");
    let text = bed.call("ADD", &netns, &conf, &next).fails(7);
    assert!(text.contains("there is no definition default/passing"), "{text}");
    assert!(text.contains("there is no definition nowhere/else"), "{text}");
    bed.assert_undone(&netns);
    assert_eq!(Bed::status("passing"), None);
}

/// A static pod: kubelet knows it by the hash of its file, the API server by its mirror's UID.
fn static_pod(name: &str, networks: &str) -> (ApiPod, Value) {
    let hash = "0123456789abcdef0123456789abcdef";
    let annotations = json!({
        NETWORKS: networks, "kubernetes.io/config.source": "file", "kubernetes.io/config.hash": hash,
        "kubernetes.io/config.seen": "2026-01-01T00:00:00Z"
    });
    (ApiPod { name: name.to_owned(), uid: hash.to_owned() }, annotations)
}

#[test]
fn a_static_pods_status_is_written_to_its_mirror() {
    let bed = Bed::enter();
    bed.macvlans(&[("fixed", 21)]);
    let conf = bed.conf(&Bed::service_account());
    let (pod, annotations) = static_pod("static-node-1", "fixed");
    let netns = bed.world.netns();
    let conf_with = handed(&conf, &annotations);

    // Its mirror may be late. That does not stop it: a static pod may be what the API server needs.
    let outcome = bed.call("ADD", &netns, &conf_with, &pod).run();
    assert_eq!(outcome.code, 0, "{outcome:#?}");
    assert!(outcome.stderr.contains("the static pod has no mirror"), "{outcome:#?}");
    bed.call("DEL", &netns, &conf_with, &pod).ok();
    bed.assert_undone(&netns);

    let mut mirror = annotations.clone();
    mirror["kubernetes.io/config.mirror"] = json!(pod.uid);
    let made = Bed::pod("static-node-1", &mirror);
    assert_ne!(made.uid, pod.uid);
    for conf in [&conf, &conf_with] {
        bed.call("ADD", &netns, conf, &pod).ok();
        let status = Bed::status("static-node-1").expect("network-status");
        assert_eq!(status[1]["name"], "default/fixed");
        assert_eq!(status[1]["mac"], Interface::find(&netns, "net1").expect("net1").mac());
        bed.call("DEL", &netns, conf, &pod).ok();
        bed.assert_undone(&netns);
        Bed::kubectl(&["annotate", "pod", "static-node-1", &format!("{STATUS}-")], "");
    }
}
