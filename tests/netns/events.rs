//! Events where no API server is: they are in the log. `tests/control-plane/events.rs` shows the rest.

use std::{
    io::Write as _,
    process::{Command, Stdio},
};

use serde_json::json;

use crate::harness::{Recorder, World};

#[test]
fn without_an_api_server_events_are_in_the_log_alone() {
    let world = World::new();
    Recorder::install(&world.bin, &["main", "x"]);
    let mut conf = world.conf(&world.primary(&json!({"cniVersion": "1.0.0", "name": "main", "type": "main"})));
    conf["logLevel"] = json!("info");
    conf["events"] = json!("all");
    world.definition("x", &json!({"cniVersion": "1.0.0", "type": "x"}));
    let netns = world.netns();
    world.pod("p", "missing");
    let outcome = world.call("ADD", "c1", &netns, &conf).pod("p").run();
    let line = outcome.stderr.lines().find(|line| line.contains("NoNetworkFound")).expect("a line in the log");
    assert!(line.contains("WARN") && line.contains("there is no definition default/missing"), "{line}");
    world.pod("p", "x");
    let outcome = world.call("ADD", "c1", &netns, &conf).pod("p").run();
    assert_eq!(outcome.code, 0, "{outcome:#?}");
    for added in ["Add eth0 [] from main", "Add net1 [] from default/x"] {
        let line = outcome.stderr.lines().find(|line| line.contains(added)).expect("a line in the log");
        assert!(line.contains("INFO") && line.contains("AddedInterface"), "{line}");
    }
    world.call("DEL", "c1", &netns, &conf).pod("p").ok();
    world.assert_clean();
}

#[test]
fn the_command_that_events_are_handed_to_says_that_it_is_not_for_people() {
    let binary = env!("CARGO_BIN_EXE_meta-cni");
    let help = Command::new(binary).arg("--help").output().unwrap();
    assert!(!String::from_utf8(help.stdout).unwrap().contains("post-events"));
    for input in ["", "yes", "{}"] {
        let mut child = Command::new(binary)
            .arg("post-events")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(2), &b""[..]), "{text}");
        assert!(text.starts_with("meta-cni: post-events is what meta-cni itself starts"), "{text}");
    }
}
