//! What a pod's events say, as `kubectl describe pod` shows them. `posting` is how they get there.

use std::fs;

use serde_json::{Value, json};

use crate::{
    bed::{ApiPod, Bed, NETWORKS, definition, handed, wait_for},
    harness::{Interface, Recorder, ip_in},
    posting::all_posted,
    rbac::{EVENTS, role_without, set_rules},
};

/// Our conf, with the node's name and a choice of events.
pub(crate) fn conf(bed: &Bed, events: &str) -> Value {
    let mut conf = bed.conf(&Bed::service_account());
    conf["nodeName"] = json!("node-1");
    conf["events"] = json!(events);
    conf
}

/// The events of a pod.
pub(crate) fn events(pod: &str) -> Vec<Value> {
    let selector = format!("involvedObject.name={pod}");
    let list = Bed::kubectl(&["get", "events", "--field-selector", &selector, "-o", "json"], "");
    let list: Value = serde_json::from_str(&list).unwrap();
    list["items"].as_array().unwrap().clone()
}

/// `REASON: MESSAGE` of a pod's events, sorted, once there are so many.
pub(crate) fn said(pod: &str, count: usize) -> Vec<String> {
    wait_for(&format!("{count} events of {pod}"), 20, || events(pod).len() >= count);
    let text = |event: &Value, key: &str| event[key].as_str().unwrap().to_owned();
    let mut said: Vec<String> =
        events(pod).iter().map(|event| format!("{}: {}", text(event, "reason"), text(event, "message"))).collect();
    said.sort();
    said
}

/// What is refused before the server is asked for anything.
pub(crate) fn wrong() -> Value {
    json!({NETWORKS: "[{\"name\":\"wrong\",\"ips\":[\"nonsense\"]}]"})
}

#[test]
fn networks_that_are_not_there_are_in_the_description_of_the_pod_and_only_once() {
    let bed = Bed::enter();
    let conf = conf(&bed, "failures");
    let networks = "no-such,nowhere/else,no-such@again";
    let pod = Bed::pod_with("absent", networks);
    let netns = bed.world.netns();
    let conf = handed(&conf, &json!({NETWORKS: networks}));
    bed.call("ADD", &netns, &conf, &pod).fails(7);
    let text = |name| {
        format!(
            "there is no definition {name}: create the NetworkAttachmentDefinition, or correct the pod's annotation"
        )
    };
    let wanted = ["default/no-such", "nowhere/else"].map(|name| format!("NoNetworkFound: {}", text(name)));
    assert_eq!(said("absent", 2), wanted);
    let event = &events("absent")[0];
    let reference =
        json!({"apiVersion": "v1", "kind": "Pod", "namespace": "default", "name": "absent", "uid": pod.uid});
    assert_eq!(event["involvedObject"], reference);
    assert_eq!(event["source"], json!({"component": "meta-cni", "host": "node-1"}));
    assert_eq!((&event["reportingComponent"], &event["reportingInstance"]), (&json!("meta-cni"), &json!("node-1")));
    assert_eq!((&event["type"], &event["count"]), (&json!("Warning"), &json!(1)));
    assert_eq!(event["metadata"]["namespace"], "default");
    assert_eq!(event["firstTimestamp"], event["lastTimestamp"]);
    let made = event["metadata"]["creationTimestamp"].as_str().unwrap();
    assert_eq!(event["firstTimestamp"].as_str().unwrap()[..13], made[..13], "the hour");
    let description = Bed::kubectl(&["describe", "pod", "absent"], "");
    for name in ["default/no-such", "nowhere/else"] {
        let line = description.lines().find(|line| line.contains(&text(name))).expect("a line of the description");
        assert!(line.contains("Warning") && line.contains("meta-cni"), "{line}");
    }

    all_posted();
    let asked = Bed::requests(|| {
        bed.call("ADD", &netns, &conf, &pod).fails(7);
        all_posted();
    });
    assert!(asked.iter().any(|request| request.starts_with("create events/")), "{asked:?}");
    assert_eq!(said("absent", 2), wanted);
    assert!(events("absent").iter().all(|event| event["count"] == 1));
    bed.assert_undone(&netns);

    // Not as many as an annotation can name.
    let many: Vec<String> = (0..80).map(|number| format!("no-such-{number}")).collect();
    let pod = Bed::pod_with("absent-many", &many.join(","));
    let conf = handed(&conf, &json!({NETWORKS: many.join(",")}));
    let outcome = bed.call("ADD", &netns, &conf, &pod).run();
    assert!(outcome.stderr.contains("a pod gets no more than 64 events of a call"), "{outcome:#?}");
    assert_eq!(said("absent-many", 64).len(), 64);
}

#[test]
fn each_network_that_is_refused_or_fails_has_an_event_with_its_own_error() {
    let bed = Bed::enter();
    let conf = conf(&bed, "failures");
    let recorder = Recorder::install(&bed.world.bin, &["failing"]);
    recorder.behave("failing", "ADD", "echo '{\"code\":110,\"msg\":\"no port left\",\"details\":\"of 3\"}'\nexit 1\n");
    Bed::create(&[
        definition("failing", &json!({"cniVersion": "1.0.0", "type": "failing"})),
        definition("not-installed", &json!({"cniVersion": "1.0.0", "type": "nobody-has-this"})),
        definition("recursive", &json!({"cniVersion": "1.0.0", "type": "multus"})),
        definition("empty", &json!({"cniVersion": "1.0.0", "plugins": []})),
    ]);
    let netns = bed.world.netns();
    // Before anything is touched, all at once.
    let pod = Bed::pod_with("refused-both", "recursive,empty,failing");
    let message = bed.call("ADD", &netns, &conf, &pod).fails(7);
    let said_of_both = said("refused-both", 2);
    for (event, name) in said_of_both.iter().zip(["empty", "recursive"]) {
        let text = event.strip_prefix("AttachmentRefused: ").expect("the reason");
        assert!(text.starts_with(&format!("definition default/{name}: ")), "{text}");
        assert!(message.contains(text), "{text} is not in {message}");
    }
    let pod = Bed::pod_with("uninstalled", "not-installed");
    bed.call("ADD", &netns, &conf, &pod).fails(7);
    let wanted = "AttachmentRefused: default/not-installed as net1: failed to find plugin \"nobody-has-this\"";
    assert!(said("uninstalled", 1)[0].starts_with(wanted), "{:?}", said("uninstalled", 1));
    // While it is attached.
    let pod = Bed::pod_with("failed", "failing");
    bed.call("ADD", &netns, &conf, &pod).fails(110);
    assert_eq!(
        said("failed", 1),
        ["AttachmentRefused: default/failing as net1: plugin failing (ADD): no port left; of 3"]
    );
    bed.assert_undone(&netns);
    // Kubelet tries again, with another container, and the plugin tells times: that is the same event.
    recorder.behave(
        "failing",
        "ADD",
        "echo '{\"code\":110,\"msg\":\"'\"no port for $CNI_CONTAINERID at $CNI_NETNS after $(date +%N) ms\"'\"}'\nexit 1\n",
    );
    let pod = Bed::pod_with("failed-again", "failing");
    for container in ["one-try", "next-try"] {
        let netns = bed.world.netns();
        bed.call("ADD", &netns, &conf, &pod).env("CNI_CONTAINERID", container).fails(110);
        all_posted();
    }
    assert_eq!(said("failed-again", 1).len(), 1, "{:?}", said("failed-again", 1));

    // While what was made before is undone.
    let undoing = Recorder::install(&bed.world.bin, &["slow"]);
    undoing.behave("slow", "DEL", "while [ ! -e /run/test/go-on ]; do sleep 0.05; done\n");
    Bed::create(&[definition("slow", &json!({"cniVersion": "1.0.0", "type": "slow"}))]);
    let pod = Bed::pod_with("undone-slowly", "slow,failing");
    let mut adding = bed.call("ADD", &netns, &conf, &pod).start();
    assert_eq!(said("undone-slowly", 1).len(), 1);
    assert!(adding.try_wait().unwrap().is_none(), "the event came after the rollback");
    fs::write("/run/test/go-on", "").unwrap();
    assert_eq!(adding.wait().unwrap().code(), Some(1));
    bed.assert_undone(&netns);

    // What the primary or the server is the cause of, kubelet says.
    let mut broken = conf.clone();
    broken["clusterNetwork"] = json!("/etc/cni/primary/none.conflist");
    let pod = Bed::pod_with("primary", "failing");
    let asked = Bed::requests(|| {
        bed.call("ADD", &netns, &broken, &pod).fails(11);
        bed.call("ADD", &netns, &conf, &ApiPod { uid: "another".to_owned(), ..pod.clone() }).fails(11);
        all_posted();
    });
    assert!(!asked.iter().any(|request| request.contains("events")), "{asked:?}");
    bed.assert_undone(&netns);
}

#[test]
fn what_no_plugin_declares_to_serve_is_attached_with_an_event_or_refused_with_one_if_strict() {
    let bed = Bed::enter();
    Recorder::install(&bed.world.bin, &["plain"]);
    Bed::create(&[definition("undeclared", &json!({"cniVersion": "1.0.0", "type": "plain"}))]);
    let networks = json!([{"name": "undeclared", "ips": ["10.1.1.9/24"], "mac": "02:00:00:00:00:07",
        "infiniband-guid": "c2:11:22:33:44:55:66:77", "bandwidth": {"ingressRate": 1000, "ingressBurst": 1000},
        "portMappings": [{"hostPort": 8080, "containerPort": 80}]}])
    .to_string();
    let netns = bed.world.netns();
    let mut conf = conf(&bed, "failures");
    let pod = Bed::pod_with("unserved", &networks);
    bed.call("ADD", &netns, &conf, &pod).ok();
    assert_eq!(
        said("unserved", 1),
        ["CapabilityNotServed: default/undeclared as net1: the pod asks for ips, mac, infiniband-guid, portMappings, \
          bandwidth, which no plugin of the network (plain) declares to serve, so it may have no effect: declare \
          \"capabilities\": {\"ips\": true, \"mac\": true, \"infinibandGUID\": true, \"portMappings\": true, \
          \"bandwidth\": true} of the plugin that does, or take it out of the pod's annotation"]
    );
    assert_eq!(events("unserved")[0]["type"], "Warning");
    bed.call("DEL", &netns, &conf, &pod).ok();
    bed.assert_undone(&netns);

    conf["capabilityCheck"] = json!("strict");
    let pod = Bed::pod_with("unserved-strict", &networks);
    let text = bed.call("ADD", &netns, &conf, &pod).fails(7);
    let said = said("unserved-strict", 1);
    assert!(said[0].starts_with("AttachmentRefused: default/undeclared: the pod asks for ips, mac, "), "{said:?}");
    assert!(text.contains(said[0].trim_start_matches("AttachmentRefused: ")), "{text}");
    bed.assert_undone(&netns);
}

#[test]
fn all_says_what_was_attached_failures_what_was_not_and_off_nothing() {
    let bed = Bed::enter();
    bed.macvlans(&[("told-a", 41), ("told-b", 42)]);
    let netns = bed.world.netns();
    let pod = Bed::pod_with("told", "told-a,told-b@data0");
    for quiet in ["failures", "off"] {
        let conf = conf(&bed, quiet);
        let asked = Bed::requests(|| {
            bed.call("ADD", &netns, &conf, &pod).ok();
            ip_in(&netns, "link delete net1");
            assert_eq!(bed.call("CHECK", &netns, &conf, &pod).run().code, 1);
            bed.call("DEL", &netns, &conf, &pod).ok();
            all_posted();
        });
        assert!(!asked.iter().any(|request| request.contains("events")), "{quiet}: {asked:?}");
    }
    let refused = Bed::pod("silent", &wrong());
    let asked = Bed::requests(|| {
        bed.call("ADD", &netns, &conf(&bed, "off"), &refused).fails(7);
        all_posted();
    });
    assert_eq!(asked, ["get pods/silent"]);

    let conf = conf(&bed, "all");
    bed.call("ADD", &netns, &conf, &pod).ok();
    let addresses = |interface: &str| Interface::find(&netns, interface).expect("it is there").addresses().join(" ");
    let mut wanted =
        [("eth0", "cbr0"), ("net1", "default/told-a"), ("data0", "default/told-b")].map(|(interface, network)| {
            format!("AddedInterface: Add {interface} [{}] from {network}", addresses(interface))
        });
    wanted.sort();
    assert_eq!(said("told", 3), wanted);
    assert!(events("told").iter().all(|event| event["type"] == "Normal"));
    bed.call("DEL", &netns, &conf, &pod).ok();
    bed.assert_undone(&netns);

    let mut wrong_key = conf;
    wrong_key["events"] = json!("some");
    let text = bed.call("ADD", &netns, &wrong_key, &pod).fails(7);
    assert!(text.contains("\"events\" is all, failures or off, not \"some\""), "{text}");
}

#[test]
fn the_events_of_a_static_pod_are_where_kubectl_looks_for_those_of_its_mirror() {
    let bed = Bed::enter();
    let hash = "0123456789abcdef0123456789abcdef";
    let mut annotations = wrong();
    annotations["kubernetes.io/config.source"] = json!("file");
    annotations["kubernetes.io/config.hash"] = json!(hash);
    annotations["kubernetes.io/config.mirror"] = json!(hash);
    let mirror = Bed::pod("static-refused", &annotations);
    let pod = ApiPod { uid: hash.to_owned(), ..mirror.clone() };
    let netns = bed.world.netns();
    for conf in [conf(&bed, "failures"), handed(&conf(&bed, "failures"), &annotations)] {
        bed.call("ADD", &netns, &conf, &pod).fails(7);
        assert_eq!(said("static-refused", 1).len(), 1);
        all_posted();
    }
    assert_ne!(mirror.uid, hash);
    assert_eq!(events("static-refused")[0]["involvedObject"]["uid"], hash);
    let description = Bed::kubectl(&["describe", "pod", "static-refused"], "");
    assert!(description.contains("AttachmentRefused"), "{description}");
    bed.assert_undone(&netns);
}

#[test]
fn without_the_right_to_make_events_a_pod_is_not_harmed_and_the_log_says_so_once() {
    let bed = Bed::enter();
    bed.macvlans(&[("rightless", 43)]);
    let (role, fewer) = role_without(EVENTS);
    set_rules(&role, &fewer, Some(EVENTS));
    let mut conf = conf(&bed, "all");
    conf["logFile"] = json!("/run/test/events.log");
    let pod = Bed::pod_with("rightless", "rightless");
    let netns = bed.world.netns();
    bed.call("ADD", &netns, &conf, &pod).ok();
    all_posted();
    let log = fs::read_to_string("/run/test/events.log").unwrap();
    let warnings: Vec<&str> = log.lines().filter(|line| line.contains("level=WARN")).collect();
    assert_eq!(warnings.len(), 1, "{log}");
    assert!(warnings[0].contains("WARN") && warnings[0].contains("no event is posted"), "{log}");
    assert!(
        // As the log writes it.
        warnings[0].contains(r#"cannot create resource \"events\""#) && warnings[0].contains("deploy/base/rbac.yaml"),
        "{log}"
    );
    set_rules(&role, role["rules"].as_array().unwrap(), None);
    bed.call("DEL", &netns, &conf, &pod).ok();
    bed.assert_undone(&netns);
    assert_eq!(events("rightless"), Vec::<Value>::new());
}
