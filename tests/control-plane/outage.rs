//! The API server is away or hangs: pods with networks wait, plain pods do not care, DEL never asks.

use std::{
    fs,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::{
    bed::{Bed, NETWORKS, definition, handed},
    harness::{Interface, Recorder, ip_in},
};

#[test]
fn without_an_api_server_only_pods_with_networks_wait() {
    let mut bed = Bed::enter();
    bed.macvlans(&[("away", 15)]);
    let conf = bed.conf(&Bed::service_account());
    let [with, plain, asked, earlier] =
        [("away-with", "away"), ("away-plain", ""), ("away-asked", "away"), ("earlier", "away")]
            .map(|(name, networks)| Bed::pod_with(name, networks));
    let with_conf = handed(&conf, &json!({NETWORKS: "away"}));
    let plain_conf = handed(&conf, &json!({}));
    let before = bed.world.netns();
    bed.call("ADD", &before, &with_conf, &earlier).ok();

    bed.stop();
    // DEL of a pod that was attached while the server was there.
    bed.call("DEL", &before, &with_conf, &earlier).ok();
    bed.assert_undone(&before);

    let netns = bed.world.netns();
    let text = bed.call("ADD", &netns, &with_conf, &with).fails(11);
    assert!(text.contains("definition default/away") && text.contains("cannot be reached"), "{text}");
    assert!(text.contains(&format!("{}: Connection refused", Bed::server())), "{text}");
    let text = bed.call("ADD", &netns, &conf, &asked).fails(11);
    assert!(text.contains("pod default/away-asked") && text.contains("Connection refused"), "{text}");
    bed.assert_undone(&netns);

    let began = Instant::now();
    let outcome = bed.call("ADD", &netns, &plain_conf, &plain).run();
    assert_eq!(outcome.code, 0, "{outcome:#?}");
    assert!(began.elapsed() < Duration::from_secs(3), "a plain pod waited for {:?}", began.elapsed());
    assert!(
        outcome.stderr.contains("WARN") && outcome.stderr.contains("network-status is not written"),
        "{outcome:#?}"
    );
    assert!(Interface::find(&netns, "eth0").is_some());
    bed.call("DEL", &netns, &plain_conf, &plain).ok();
    bed.assert_undone(&netns);

    bed.start();
    bed.call("ADD", &netns, &with_conf, &with).ok();
    assert_eq!(Bed::status("away-with").expect("network-status")[1]["name"], "default/away");
    bed.call("DEL", &netns, &with_conf, &with).ok();
    bed.assert_undone(&netns);
}

#[test]
fn a_server_that_hangs_is_waited_for_within_the_deadline() {
    let mut bed = Bed::enter();
    bed.macvlans(&[("hangs", 16)]);
    let mut conf = bed.conf(&Bed::service_account());
    conf["addTimeoutSeconds"] = json!(2);
    let [with, plain, earlier] = [("hangs-with", "hangs"), ("hangs-plain", ""), ("hangs-earlier", "hangs")]
        .map(|(name, networks)| Bed::pod_with(name, networks));
    let before = bed.world.netns();
    bed.call("ADD", &before, &conf, &earlier).ok();

    bed.pause();
    let began = Instant::now();
    let netns = bed.world.netns();
    let text = bed.call("ADD", &netns, &handed(&conf, &json!({NETWORKS: "hangs"})), &with).fails(11);
    let waited = began.elapsed();
    assert!(text.contains("definition default/hangs") && text.contains("deadline"), "{text}");
    assert!((Duration::from_millis(1900)..Duration::from_secs(4)).contains(&waited), "{waited:?}");
    bed.assert_undone_but(&netns, "hangs-earlier");

    conf["addTimeoutSeconds"] = json!(30);
    let began = Instant::now();
    let outcome = bed.call("ADD", &netns, &handed(&conf, &json!({})), &plain).run();
    assert_eq!(outcome.code, 0, "{outcome:#?}");
    assert!(began.elapsed() < Duration::from_secs(4), "a plain pod waited for {:?}", began.elapsed());
    assert!(outcome.stderr.contains("no answer within 1 s"), "{outcome:#?}");

    for (netns, pod) in [(&before, &earlier), (&netns, &plain)] {
        let began = Instant::now();
        bed.call("DEL", netns, &conf, pod).ok();
        assert!(began.elapsed() < Duration::from_secs(2), "DEL waited for {:?}", began.elapsed());
    }
    bed.assert_undone(&netns);
    bed.resume();
}

#[test]
fn a_server_that_hangs_before_the_status_is_written_undoes_everything() {
    let mut bed = Bed::enter();
    bed.macvlans(&[("late", 17)]);
    let recorder = Recorder::install(&bed.world.bin, &["pauser"]);
    Bed::create(&[definition("pauser", &json!({"cniVersion": "1.0.0", "type": "pauser"}))]);
    let pid = std::fs::read_to_string(Bed::path("kube-apiserver.pid")).unwrap();
    recorder.behave("pauser", "ADD", &format!("kill -STOP {}\n", pid.trim()));
    let mut conf = bed.conf(&Bed::service_account());
    conf["addTimeoutSeconds"] = json!(5);
    let pod = Bed::pod_with("late", "late,pauser");
    let netns = bed.world.netns();
    bed.was_paused();
    let text = bed.call("ADD", &netns, &conf, &pod).fails(11);
    assert!(text.contains("write network-status of pod default/late") && text.contains("deadline"), "{text}");
    assert_eq!(recorder.take(), ["ADD pauser net2", "DEL pauser net2"]);
    bed.assert_undone(&netns);
    bed.resume();
    recorder.relax("pauser", "ADD");
    bed.call("ADD", &netns, &conf, &pod).ok();
    bed.call("DEL", &netns, &conf, &pod).ok();
    bed.assert_undone(&netns);
}

#[test]
fn a_primary_that_is_a_definition_is_needed_for_add_alone() {
    let mut bed = Bed::enter();
    let mut conf = handed(&bed.conf(&Bed::service_account()), &json!({}));
    let mut object = definition(
        "podnet",
        &json!({
            "cniVersion": "1.0.0", "name": "podnet",
            "plugins": [{"type": "bridge", "bridge": "cni0", "isGateway": true,
                         "ipam": {"type": "host-local", "subnet": "10.88.0.0/24"}}]
        }),
    );
    object["metadata"]["namespace"] = json!("kube-system");
    Bed::create(&[object]);
    conf["clusterNetwork"] = json!("podnet");
    let [early, late] = ["primary-early", "primary-late"].map(|name| Bed::pod_with(name, ""));
    let netns = bed.world.netns();
    let asked = Bed::requests(|| drop(bed.call("ADD", &netns, &conf, &early).ok()));
    assert_eq!(asked, ["get network-attachment-definitions/podnet", "patch pods/primary-early/status"]);
    assert_eq!(Interface::find(&netns, "eth0").expect("eth0").addresses(), ["10.88.0.2/24"]);
    let status = Bed::status("primary-early").expect("network-status");
    assert_eq!((&status[0]["name"], &status[0]["ips"]), (&json!("kube-system/podnet"), &json!(["10.88.0.2"])));

    bed.stop();
    bed.call("DEL", &netns, &conf, &early).ok();
    bed.assert_undone(&netns);
    let text = bed.call("ADD", &netns, &conf, &late).fails(11);
    assert!(text.contains("definition kube-system/podnet") && text.contains("cannot be reached"), "{text}");
    bed.assert_undone(&netns);
    // What was refused, or is detached, has nothing to undo.
    for pod in [&late, &early] {
        bed.call("DEL", &netns, &conf, pod).ok();
    }
    // But while something says that a pod has the primary, and its namespace lives, that one is to be asked.
    let asks_its_primary = |conf: &Value| {
        let text = bed.call("DEL", &netns, conf, &late).fails(11);
        assert!(text.contains("definition kube-system/podnet"), "{text}");
    };
    let mut with_result = conf.clone();
    with_result["prevResult"] = json!({"cniVersion": "1.0.0", "interfaces": [{"name": "eth0", "sandbox": netns}]});
    asks_its_primary(&with_result);
    let lease = "/var/lib/cni/networks/podnet/10.88.0.9";
    fs::write(lease, "primary-late\r\neth0").unwrap();
    asks_its_primary(&conf);
    fs::remove_file(lease).unwrap();
    ip_in(&netns, "link add eth0 type bridge");
    asks_its_primary(&conf);
    bed.world.delete_netns(&netns);
    for gone in [netns.as_str(), ""] {
        bed.call("DEL", gone, &conf, &early).ok();
    }
    bed.world.assert_clean();
    bed.start();
}
