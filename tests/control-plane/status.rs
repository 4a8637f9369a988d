//! Writing network-status to a server in trouble: tried again, with pauses, within the deadline; then the pod is undone.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::{
    bed::{ApiPod, Bed, NETWORKS, handed},
    front::{Answer, Front},
    harness::Interface,
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
        let conf = handed(&bed.conf(&front.kubeconfig()), &json!({NETWORKS: name}));
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
        received.windows(2).map(|pair| pair[1].0 - pair[0].0).collect()
    }

    fn patches(&self) -> usize {
        let received = self.front.received();
        let wanted = format!("PATCH /api/v1/namespaces/default/pods/{}/status", self.pod.name);
        assert!(received.iter().all(|(_, request)| *request == wanted), "{received:?}");
        received.len()
    }
}

#[test]
fn a_status_that_the_server_refuses_for_a_while_is_written_in_the_end() {
    let scene = Scene::new("retried", 31);
    for trouble in [
        Answer::Code(409, None),
        Answer::Code(429, None),
        Answer::Code(500, None),
        Answer::Code(503, None),
        Answer::Reset,
        Answer::Close,
    ] {
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
    scene.front.next("GET", &[Answer::Code(429, None), Answer::Code(503, None), Answer::Reset]);
    scene.add().ok();
    assert_eq!(scene.front.received().len(), 4);
    scene.bed.call("DEL", &scene.netns, &scene.conf, &scene.pod).ok();
    scene.bed.assert_undone(&scene.netns);
}

#[test]
fn a_status_that_is_never_written_undoes_the_pod_at_the_deadline() {
    let mut scene = Scene::new("never", 32);
    scene.conf["addTimeoutSeconds"] = json!(3);
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
        // 50, 100, 200, 400, 800 and 1600 ms, or half of that; fewer on a busy machine.
        let patches = scene.patches();
        assert!((3..=8).contains(&patches), "{trouble:?}: {patches} requests in 3 s");
        scene.bed.assert_undone(&scene.netns);
        assert_eq!(Bed::status("never"), None);
    }
    // Whoever is to come back after the deadline need not wait for it.
    scene.front.always("PATCH", Answer::Code(429, Some(60)));
    let text = scene.add().fails(11);
    assert!(text.contains("answered 429"), "{text}");
    assert_eq!(scene.patches(), 1);
    scene.bed.assert_undone(&scene.netns);
    // What does not pass is not tried again.
    for (code, says) in [
        (404, "pod default/never is gone, or another one has its name"),
        (422, "pod default/never is gone, or another one has its name"),
        (403, "deploy/rbac.yaml"),
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
