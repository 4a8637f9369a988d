//! Writing network-status to a server in trouble: tried again, with pauses, within the deadline; then the pod is undone.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::{
    bed::{ApiPod, Bed, NETWORKS, STATUS, definition, handed},
    front::{Answer, Front, tunnel},
    harness::{Interface, Recorder},
};

/// A pod with a network, and a front between us and the server.
struct Scene {
    bed: Bed,
    front: Front,
    conf: Value,
    pod: ApiPod,
    netns: String,
}

impl Scene {
    fn new(name: &str, pool: u8) -> Self {
        let bed = Bed::enter();
        bed.macvlans(&[(name, pool)]);
        let front = Front::start();
        // The annotations come with the call, so that a patch is all that is asked for but the definition.
        let conf = handed(&bed.conf(&front.kubeconfig(&json!({"token": "any"}))), &json!({NETWORKS: name}));
        let pod = Bed::pod_with(name, name);
        let netns = bed.world.netns();
        Self { bed, front, conf, pod, netns }
    }

    fn add(&self) -> crate::harness::Call {
        self.bed.call("ADD", &self.netns, &self.conf, &self.pod)
    }

    /// The pauses between the requests that were made.
    fn pauses(&self) -> Vec<Duration> {
        let received = self.front.received();
        received.windows(2).map(|pair| pair[1].at - pair[0].at).collect()
    }

    fn patches(&self) -> usize {
        let received = self.front.received();
        let wanted = format!("PATCH /api/v1/namespaces/default/pods/{}/status", self.pod.name);
        assert!(received.iter().all(|received| received.request == wanted), "{received:?}");
        received.len()
    }
}

#[test]
fn a_status_that_the_server_refuses_for_a_while_is_written_in_the_end() {
    let scene = Scene::new("retried", 31);
    for trouble in [Answer::Code(409, None), Answer::Code(503, None), Answer::Reset, Answer::Close] {
        scene.front.next("PATCH", &[trouble; 3]);
        scene.add().ok();
        assert_eq!(scene.patches(), 4, "{trouble:?}");
        let pauses = scene.pauses();
        for (pause, longest) in pauses.iter().zip([50, 100, 200]) {
            assert!(*pause >= Duration::from_millis(longest / 2), "{trouble:?}: {pauses:?}");
        }
        let status = Bed::status("retried").expect("network-status");
        assert_eq!(status[1]["mac"], Interface::find(&scene.netns, "net1").expect("net1").mac(), "{trouble:?}");
        scene.bed.call("DEL", &scene.netns, &scene.conf, &scene.pod).ok();
        scene.bed.assert_undone(&scene.netns);
    }
    // It is left alone for as long as it wants to be.
    scene.front.next("PATCH", &[Answer::Code(429, Some(1)), Answer::Code(503, Some(2))]);
    scene.add().ok();
    assert_eq!(scene.patches(), 3);
    let pauses = scene.pauses();
    assert!(pauses[0] >= Duration::from_secs(1) && pauses[1] >= Duration::from_secs(2), "{pauses:?}");
    scene.bed.call("DEL", &scene.netns, &scene.conf, &scene.pod).ok();
    // The definition is asked for with the same patience.
    scene.front.next("GET", &[Answer::Code(429, None), Answer::Code(500, None), Answer::Reset]);
    scene.add().ok();
    assert_eq!(scene.front.received().len(), 4);
    scene.bed.call("DEL", &scene.netns, &scene.conf, &scene.pod).ok();
    scene.bed.assert_undone(&scene.netns);
}

#[test]
fn a_status_that_is_never_written_undoes_the_pod_at_the_deadline() {
    let mut scene = Scene::new("never", 32);
    scene.conf["addTimeoutSeconds"] = json!(2);
    for (trouble, says) in [
        (Answer::Code(409, None), "answered 409: said by the front"),
        (Answer::Code(429, None), "answered 429: said by the front"),
        (Answer::Code(500, None), "answered 500: said by the front"),
        (Answer::Code(503, None), "answered 503: said by the front"),
        (Answer::Close, "broke off its answer"),
    ] {
        scene.front.always("PATCH", trouble);
        let began = Instant::now();
        let text = scene.add().fails(11);
        assert!(text.contains("cannot write network-status of pod default/never") && text.contains(says), "{text}");
        assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
        // 50, 100, 200, 400 and 800 ms, or half of that; fewer on a busy machine.
        let patches = scene.patches();
        assert!((2..=7).contains(&patches), "{trouble:?}: {patches} requests in 2 s");
        scene.bed.assert_undone(&scene.netns);
        assert_eq!(Bed::status("never"), None);
    }
    // Whoever is to come back after the deadline need not wait for it.
    for seconds in [60, u64::MAX] {
        scene.front.always("PATCH", Answer::Code(429, Some(seconds)));
        let text = scene.add().fails(11);
        assert!(text.contains("answered 429"), "{text}");
        assert_eq!(scene.patches(), 1, "{seconds}");
        scene.bed.assert_undone(&scene.netns);
    }
    // What does not pass is not tried again.
    for (code, says) in [
        (404, "pod default/never is gone, or another one has its name"),
        // Not what a pod of another UID is answered (`identity`).
        (422, "answered 422: said by the front"),
        (403, "deploy/base/rbac.yaml"),
        (400, "answered 400: said by the front"),
    ] {
        scene.front.always("PATCH", Answer::Code(code, None));
        let text = scene.add().fails(11);
        assert!(text.contains(says), "{code}: {text}");
        assert_eq!(scene.patches(), 1, "{code}");
        scene.bed.assert_undone(&scene.netns);
    }
}

#[test]
fn a_load_balancer_that_drops_connections_for_a_while_is_tried_again() {
    let bed = Bed::enter();
    bed.macvlans(&[("dropped", 39)]);
    let conf = bed.conf(&Bed::kubeconfig("tunnel", &tunnel(4), &json!({"token": Bed::token()})));
    let pod = Bed::pod_with("dropped", "dropped");
    let netns = bed.world.netns();
    let asked = Bed::requests(|| drop(bed.call("ADD", &netns, &conf, &pod).ok()));
    let wanted = ["get pods/dropped", "get network-attachment-definitions/dropped", "patch pods/dropped/status"];
    assert_eq!(asked, wanted, "what was dropped never reached the server");
    bed.call("DEL", &netns, &conf, &pod).ok();
    bed.assert_undone(&netns);
}

/// The token is renewed, and the former one is no longer accepted, while a pod's plugins are at work.
#[test]
fn a_token_that_is_refused_in_the_middle_of_a_pod_is_read_anew() {
    let mut scene = Scene::new("renewed", 38);
    let recorder = Recorder::install(&scene.bed.world.bin, &["renewer"]);
    Bed::create(&[definition("renewer", &json!({"cniVersion": "1.0.0", "type": "renewer"}))]);
    let token = "/run/test/renewed.token";
    std::fs::write(token, "former").unwrap();
    recorder.behave("renewer", "ADD", &format!("echo latter > {token}\n"));
    let kubeconfig = scene.front.kubeconfig(&json!({"tokenFile": token}));
    scene.conf = handed(&scene.bed.conf(&kubeconfig), &json!({NETWORKS: "renewed,renewer"}));
    scene.front.next("PATCH", &[Answer::Code(401, None)]);
    scene.add().ok();
    let with: Vec<String> = scene.front.received().into_iter().map(|received| received.authorization).collect();
    assert_eq!(with, ["Bearer former", "Bearer latter"]);
    assert_eq!(Bed::status("renewed").expect("network-status")[1]["name"], "default/renewed");
    scene.bed.call("DEL", &scene.netns, &scene.conf, &scene.pod).ok();
    scene.bed.assert_undone(&scene.netns);
    // Nothing better comes: it is said soon.
    scene.front.always("PATCH", Answer::Code(401, None));
    let began = Instant::now();
    let text = scene.add().fails(11);
    assert!(text.contains("does not accept our credentials"), "{text}");
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
    assert!((2..=12).contains(&scene.patches()), "{} requests", scene.patches());
    scene.bed.assert_undone(&scene.netns);
}

#[test]
fn a_plain_pod_does_not_wait_for_a_server_in_trouble() {
    let mut scene = Scene::new("unheard", 33);
    scene.conf = handed(&scene.conf, &json!({}));
    scene.front.always("PATCH", Answer::Code(503, None));
    let began = Instant::now();
    let outcome = scene.add().run();
    assert_eq!(outcome.code, 0, "{outcome:#?}");
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
    assert!(outcome.stderr.contains("network-status is not written"), "{outcome:#?}");
    assert!(scene.patches() > 1, "it was tried once only");
    assert!(Interface::find(&scene.netns, "eth0").is_some());
    scene.bed.call("DEL", &scene.netns, &scene.conf, &scene.pod).ok();
    scene.bed.assert_undone(&scene.netns);
}

fn object(pod: &str) -> Value {
    serde_json::from_str(&Bed::kubectl(&["get", "pod", pod, "-o", "json", "--show-managed-fields=false"], "")).unwrap()
}

/// The sandbox of a pod is made anew, with what the former one left in the object.
#[test]
fn the_status_of_a_former_sandbox_is_replaced_and_nothing_else_changes() {
    let bed = Bed::enter();
    bed.macvlans(&[("anew", 36)]);
    let conf = bed.conf(&Bed::service_account());
    let stale = json!([{"name": "cbr0", "interface": "eth0"}, {"name": "a", "interface": "net1"}, {"name": "b"}]);
    let annotations = json!({NETWORKS: "anew", "other/annotation": "k8s.v1.cni.cncf.io/", STATUS: stale.to_string()});
    let pod = Bed::pod("anew", &annotations);
    let before = object("anew");
    let mut macs = Vec::new();
    for _ in 0..2 {
        let netns = bed.world.netns();
        bed.call("ADD", &netns, &conf, &pod).ok();
        let status = Bed::status("anew").expect("network-status");
        let interfaces: Vec<&Value> = status.as_array().unwrap().iter().map(|entry| &entry["interface"]).collect();
        assert_eq!(interfaces, ["eth0", "net1"]);
        assert_eq!(status[1]["mac"], Interface::find(&netns, "net1").expect("net1").mac());
        macs.push(status[1]["mac"].clone());
        let mut after = object("anew");
        after["metadata"]["annotations"][STATUS] = before["metadata"]["annotations"][STATUS].clone();
        after["metadata"]["resourceVersion"] = before["metadata"]["resourceVersion"].clone();
        assert_eq!(after, before, "labels, other annotations, specification and status are as before");
        bed.call("DEL", &netns, &conf, &pod).ok();
        bed.assert_undone(&netns);
        let kept = Bed::status("anew").expect("network-status");
        assert_eq!(kept, status, "DEL asks for nothing, and the pod's object ends with the pod");
    }
    assert_ne!(macs[0], macs[1]);
}

/// A patch that says what is there already: the server makes no new version of the object, and wakes nobody who watches it.
#[test]
fn an_equal_status_makes_no_new_version_of_the_pod() {
    let bed = Bed::enter();
    let recorder = Recorder::install(&bed.world.bin, &["unchanging", "first"]);
    Bed::create(&[definition("unchanging", &json!({"cniVersion": "1.0.0", "type": "unchanging"}))]);
    let mut conf = bed.conf(&Bed::service_account());
    conf["clusterNetwork"] = json!(bed.world.primary(&json!({"cniVersion": "1.0.0", "name": "main", "type": "first"})));
    let address =
        |last: u8| format!(r#"echo '{{"cniVersion":"1.0.0","ips":[{{"address":"10.1.0.{last}/24"}}]}}'; exit 0"#);
    let pod = Bed::pod_with("equal", "unchanging");
    let mut versions = Vec::new();
    for last in [5, 5, 6] {
        recorder.behave("unchanging", "ADD", &address(last));
        let netns = bed.world.netns();
        let asked = Bed::requests(|| drop(bed.call("ADD", &netns, &conf, &pod).ok()));
        assert_eq!(asked.last().map(String::as_str), Some("patch pods/equal/status"));
        assert_eq!(Bed::status("equal").expect("network-status")[1]["ips"], json!([format!("10.1.0.{last}")]));
        versions.push(object("equal")["metadata"]["resourceVersion"].clone());
        bed.call("DEL", &netns, &conf, &pod).ok();
    }
    assert!(versions[0] == versions[1] && versions[1] != versions[2], "{versions:?}");
    bed.world.assert_clean();
}
