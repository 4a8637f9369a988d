//! All or nothing, with recording plugins: order, rollback, plugins that misbehave, and our own death.

use std::{
    fs,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::harness::{Recorder, World};

/// A node whose primary and secondary networks are recording plugins; pod "p" asks for two networks.
fn recording_world() -> (World, Recorder, Value) {
    let world = World::new();
    let recorder = Recorder::install(&world.bin, &["first", "second", "net-x", "net-y"]);
    let primary = world.primary(&json!({
        "cniVersion": "1.0.0", "name": "main", "plugins": [{"type": "first"}, {"type": "second"}]
    }));
    world.definition("x", &json!({"cniVersion": "1.0.0", "type": "net-x"}));
    world.definition("y", &json!({"cniVersion": "1.0.0", "type": "net-y"}));
    world.pod("p", "x,y");
    let conf = world.conf(&primary);
    (world, recorder, conf)
}

const FORWARD: [&str; 4] = ["ADD first eth0", "ADD second eth0", "ADD net-x net1", "ADD net-y net2"];
const BACKWARD: [&str; 4] = ["DEL net-y net2", "DEL net-x net1", "DEL second eth0", "DEL first eth0"];

#[test]
fn attachments_are_made_in_order_and_undone_in_reverse() {
    let (world, recorder, conf) = recording_world();
    let netns = world.netns();
    world.call("ADD", "c1", &netns, &conf).pod("p").ok();
    assert_eq!(recorder.take(), FORWARD);
    world.call("DEL", "c1", &netns, &conf).pod("p").ok();
    assert_eq!(recorder.take(), BACKWARD);
    world.assert_clean();
}

#[test]
fn each_plugin_gets_its_object_as_it_stands() {
    let (world, recorder, conf) = recording_world();
    let config =
        r#"{"z":1.50,"big":12345678901234567890123,"type":"net-x","capabilities":{"ips":true},"cniVersion":"0.4.0"}"#;
    world.manifest(
        "x",
        &json!({
            "kind": "NetworkAttachmentDefinition", "metadata": {"name": "x"}, "spec": {"config": config}
        })
        .to_string(),
    );
    world.pod("p", r#"[{"name":"x","ips":["10.1.1.7"],"mac":"02:00:00:00:00:07","portMappings":[{"hostPort":80}]}]"#);
    let netns = world.netns();
    let mut conf = conf;
    conf["runtimeConfig"] = json!({"portMappings": [{"hostPort": 81}]});
    world.call("ADD", "c1", &netns, &conf).pod("p").ok();
    let text = fs::read_to_string(world.bin.join("log")).unwrap();
    assert!(text.contains(r#""z":1.50,"big":12345678901234567890123"#), "{text}");
    let calls = recorder.calls();
    let x = &calls[2].0;
    assert_eq!(x["conf"]["runtimeConfig"], json!({"ips": ["10.1.1.7"]}), "only what it declares");
    assert_eq!(x["conf"]["name"], "x");
    let args = x["args"].as_str().unwrap();
    assert!(args.contains("IP=10.1.1.7") && args.contains("MAC=02:00:00:00:00:07"), "{args}");
    assert_eq!(args.matches("K8S_POD_NAME=").count(), 1, "{args}");
    assert!(calls[0].0["conf"].get("runtimeConfig").is_none(), "the primary declares nothing");
    assert_eq!(calls[1].0["conf"]["prevResult"]["cniVersion"], "1.0.0");
    assert!(x["conf"].get("prevResult").is_none());
}

/// DEL tells each plugin, of lists too, to the letter what ADD told it, whatever became of the files since.
#[test]
fn del_gives_each_plugin_the_very_text_that_add_gave() {
    let (world, recorder, conf) = recording_world();
    let odd = r#""z":1.50,"big":12345678901234567890123,"A":{"b":[9007199254740993,1e2],"a":null}"#;
    let single = format!(r#"{{{odd},"type":"net-x","cniVersion":"1.0.0","capabilities":{{"ips":true}}}}"#);
    let list = format!(r#"{{"cniVersion":"1.0.0","plugins":[{{{odd},"type":"net-y"}},{{"type":"net-x",{odd}}}]}}"#);
    for (name, config) in [("x", &single), ("y", &list)] {
        let definition =
            json!({"kind": "NetworkAttachmentDefinition", "metadata": {"name": name}, "spec": {"config": config}});
        world.manifest(name, &definition.to_string());
    }
    let primary = format!(
        r#"{{"cniVersion":"1.0.0","name":"main","plugins":[{{"type":"first",{odd}}},{{{odd},"type":"second"}}]}}"#
    );
    fs::write("/etc/cni/primary/10-primary.conflist", primary).unwrap();
    world.pod("p", r#"[{"name":"x","ips":["10.1.1.7"],"cni-args":{"big":9007199254740993}},{"name":"y"}]"#);
    let netns = world.netns();
    world.call("ADD", "c1", &netns, &conf).pod("p").ok();
    fs::remove_dir_all(&world.manifests).unwrap();
    fs::create_dir(&world.manifests).unwrap();
    fs::remove_file("/etc/cni/primary/10-primary.conflist").unwrap();
    world.call("DEL", "c1", &netns, &conf).pod("p").ok();
    // The recorder writes what it read, untouched; only the result so far differs.
    let text = fs::read_to_string(world.bin.join("log")).unwrap();
    let without_result = |line: &str| {
        let conf = line.split_once(r#""conf":"#).unwrap().1;
        match conf.split_once(r#","prevResult":"#) {
            Some((before, result)) => format!("{before}{}", result.split_once('}').unwrap().1),
            None => conf.to_owned(),
        }
    };
    let told: Vec<String> = text.lines().map(without_result).collect();
    assert_eq!(told.len(), 10, "{text}");
    let undone: Vec<String> = told[5..].iter().rev().cloned().collect();
    assert_eq!(told[..5], undone);
    assert!(told.iter().all(|conf| conf.contains(odd)), "{text}");
    recorder.take();
    world.assert_clean();
}

#[test]
fn a_plugin_that_fails_undoes_everything_in_reverse() {
    let (world, recorder, conf) = recording_world();
    recorder.behave("net-y", "ADD", r#"echo '{"code":42,"msg":"no room","details":"at all"}'; exit 1"#);
    let netns = world.netns();
    let text = world.call("ADD", "c1", &netns, &conf).pod("p").fails(42);
    assert!(text.contains("default/y as net2") && text.contains("no room; at all"), "{text}");
    assert_eq!(recorder.take(), [&FORWARD[..], &BACKWARD[..]].concat());
    world.assert_clean();

    recorder.behave("first", "ADD", "echo broken >&2; exit 3");
    let text = world.call("ADD", "c1", &netns, &conf).pod("p").fails(103);
    assert!(text.contains("main as eth0: plugin first failed with exit code 3: broken"), "{text}");
    assert_eq!(recorder.take(), ["ADD first eth0", "DEL second eth0", "DEL first eth0"]);
    world.assert_clean();
}

#[test]
fn a_plugin_that_misbehaves_is_stopped_within_bounds() {
    let (world, recorder, mut conf) = recording_world();
    conf["addTimeoutSeconds"] = json!(2);
    let netns = world.netns();
    for (behaviour, says) in [
        ("sleep 100", "did not end within the deadline"),
        ("echo garbage; exit 0", "printed what is no result"),
        ("exec head -c 100000000 /dev/zero", "more than 1024 KiB"),
        ("kill -9 $$", "was killed by signal 9"),
        ("exit 0", ""),
    ] {
        recorder.behave("net-y", "ADD", behaviour);
        let before = Instant::now();
        let call = world.call("ADD", "c1", &netns, &conf).pod("p").under(&["/usr/bin/env", "time", "-f", "rss=%M"]);
        if says.is_empty() {
            // No output at all is an empty result, which libcni accepts.
            call.ok();
            world.call("DEL", "c1", &netns, &conf).pod("p").ok();
        } else {
            let outcome = call.run();
            assert_eq!(outcome.code, 1, "{outcome:#?}");
            let error = outcome.json();
            assert_eq!(error["code"], 103);
            assert!(error["msg"].as_str().unwrap().contains(says), "{error}");
            let rss: u64 = outcome.stderr.rsplit_once("rss=").unwrap().1.trim().parse().unwrap();
            assert!(rss < 40_000, "{behaviour}: {rss} KiB in memory");
            assert_eq!(recorder.take()[4..], BACKWARD);
        }
        assert!(before.elapsed() < Duration::from_secs(5), "{behaviour} took {:?}", before.elapsed());
        recorder.take();
        world.assert_clean();
    }
}

/// Waits until a file is there.
fn wait_for(path: &Path) {
    let give_up = Instant::now() + Duration::from_secs(10);
    while !path.exists() {
        assert!(Instant::now() < give_up, "{} does not come", path.display());
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn killed_while_a_plugin_works_the_next_del_waits_for_it_and_undoes_all() {
    let (world, recorder, conf) = recording_world();
    recorder.behave("net-x", "ADD", "touch $dir/working; sleep 2; touch $dir/finished");
    let netns = world.netns();
    let mut child = world.call("ADD", "c1", &netns, &conf).pod("p").start();
    wait_for(&world.bin.join("working"));
    child.kill().unwrap();
    child.wait().unwrap();
    let before = Instant::now();
    world.call("DEL", "c1", &netns, &conf).pod("p").ok();
    assert!(world.bin.join("finished").exists(), "DEL ran while the plugin was still working");
    assert!(before.elapsed() < Duration::from_secs(8));
    assert_eq!(recorder.take(), [&FORWARD[..3], &BACKWARD[1..]].concat());
    world.assert_clean();
    world.call("DEL", "c1", &netns, &conf).pod("p").ok();
}

#[test]
fn killed_while_a_plugin_hangs_the_next_del_ends_it() {
    let (world, recorder, conf) = recording_world();
    recorder.behave("net-x", "ADD", "echo $$ > $dir/pid; touch $dir/working; sleep 300");
    let netns = world.netns();
    let mut child = world.call("ADD", "c1", &netns, &conf).pod("p").start();
    wait_for(&world.bin.join("working"));
    child.kill().unwrap();
    child.wait().unwrap();
    let before = Instant::now();
    world.call("DEL", "c1", &netns, &conf).pod("p").ok();
    let took = before.elapsed();
    assert!((9..20).contains(&took.as_secs()), "{took:?}");
    let pid = fs::read_to_string(world.bin.join("pid")).unwrap();
    // Whoever inherits it may take a while to reap it.
    let stat = fs::read_to_string(Path::new("/proc").join(pid.trim()).join("stat")).unwrap_or_default();
    assert!(stat.is_empty() || stat.contains(") Z "), "the plugin still runs: {stat}");
    assert_eq!(recorder.take(), [&FORWARD[..3], &BACKWARD[1..]].concat());
    world.assert_clean();
}

#[test]
fn killed_between_two_networks_the_next_add_starts_afresh() {
    let (world, recorder, conf) = recording_world();
    recorder.behave("net-y", "ADD", "touch $dir/working; kill -9 $PPID; sleep 0.2");
    let netns = world.netns();
    let outcome = world.call("ADD", "c1", &netns, &conf).pod("p").run();
    assert_eq!(outcome.code, -1, "{outcome:#?}");
    assert_eq!(recorder.take(), FORWARD);
    recorder.relax("net-y", "ADD");
    world.call("ADD", "c1", &netns, &conf).pod("p").ok();
    assert_eq!(recorder.take(), [&BACKWARD[..], &FORWARD[..]].concat());
    world.call("DEL", "c1", &netns, &conf).pod("p").ok();
    world.assert_clean();
}

#[test]
fn a_second_add_of_a_finished_call_is_refused_and_harms_nothing() {
    let (world, recorder, conf) = recording_world();
    let netns = world.netns();
    world.call("ADD", "c1", &netns, &conf).pod("p").ok();
    recorder.take();
    let records = world.records("c1");
    let text = world.call("ADD", "c1", &netns, &conf).pod("p").fails(7);
    assert!(text.contains("already has eth0"), "{text}");
    assert_eq!(recorder.take(), Vec::<String>::new());
    assert_eq!(world.records("c1"), records);
    world.call("CHECK", "c1", &netns, &conf).pod("p").fails(101);
}

#[test]
fn two_verbs_of_one_container_do_not_overlap() {
    let (world, recorder, conf) = recording_world();
    recorder.behave("net-y", "ADD", "touch $dir/working; sleep 1");
    let netns = world.netns();
    let add = world.call("ADD", "c1", &netns, &conf).pod("p").start();
    wait_for(&world.bin.join("working"));
    world.call("DEL", "c1", &netns, &conf).pod("p").ok();
    assert!(add.wait_with_output().unwrap().status.success());
    assert_eq!(recorder.take(), [&FORWARD[..], &BACKWARD[..]].concat());
    world.assert_clean();
}

#[test]
fn what_cannot_be_written_down_is_not_done() {
    let (world, recorder, conf) = recording_world();
    let netns = world.netns();
    fs::create_dir_all("/var/lib/cni/meta-cni").unwrap();
    let status =
        Command::new("mount").args(["-t", "tmpfs", "-o", "ro", "none", "/var/lib/cni/meta-cni"]).status().unwrap();
    assert!(status.success());
    let text = world.call("ADD", "c1", &netns, &conf).pod("p").fails(5);
    assert!(text.contains("/var/lib/cni/meta-cni") && text.contains("Read-only"), "{text}");
    assert_eq!(recorder.take(), Vec::<String>::new());
}
