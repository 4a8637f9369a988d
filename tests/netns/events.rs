//! Events where no API server is: they are in the log; and where it answers in ways that the real one cannot be made to.
//! `tests/control-plane/events.rs` shows the rest, on the real one.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    iter,
    net::{TcpListener, TcpStream},
    process::{Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

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

/// `REASON: MESSAGE` of the events in a log.
fn said(log: &str) -> Vec<String> {
    let lines = log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    lines.filter_map(|line| Some(format!("{}: {}", line["reason"].as_str()?, line["msg"].as_str()?))).collect()
}

#[test]
fn whatever_refuses_a_network_has_an_event_with_its_reason_and_what_refuses_the_primary_has_none() {
    let world = World::new();
    Recorder::install(&world.bin, &["main", "x"]);
    let mut conf = world.conf(&world.primary(&json!({"cniVersion": "1.0.0", "name": "main", "type": "main"})));
    conf["logFormat"] = json!("json");
    for name in ["x", "y"] {
        world.definition(name, &json!({"cniVersion": "1.0.0", "type": "x"}));
    }
    world.definition_with_resource("v", "example.com/vf", &json!({"cniVersion": "1.0.0", "type": "x"}));
    world.definition("empty", &json!({}));
    let netns = world.netns();
    let route = |name: &str| json!({"name": name, "default-route": ["10.0.0.1"]});
    let routes = json!([route("x"), route("y")]).to_string();
    for (key, value, networks, wanted) in [
        (
            "namespaceIsolation",
            json!(true),
            "other/x",
            "AttachmentRefused: other/x: a pod may use definitions of its own",
        ),
        (
            "defaultNetworks",
            json!(["/etc/cni/none.conf"]),
            "x",
            "NoNetworkFound: defaultNetworks \"/etc/cni/none.conf\"",
        ),
        (
            "defaultNetworks",
            json!(["nothing"]),
            "x",
            "NoNetworkFound: defaultNetworks \"nothing\": there is no definition",
        ),
        ("strict", json!(false), "v", "AttachmentRefused: default/v: "),
        ("strict", json!(false), "empty", "AttachmentRefused: definition default/empty: "),
        ("strict", json!(false), "x@lo", "AttachmentRefused: default/x as lo: lo is the loopback interface"),
        (
            "strict",
            json!(false),
            routes.as_str(),
            "AttachmentRefused: default/x as net1 and default/y as net2 both ask",
        ),
        ("strict", json!(false), "x,,y", "AttachmentRefused: annotation k8s.v1.cni.cncf.io/networks: "),
        // Neither plugin is found; one of them is the primary's.
        ("binDir", json!("/none"), "x", "AttachmentRefused: default/x as net1: failed to find plugin"),
        ("clusterNetwork", json!("/etc/cni/none.conf"), "x", ""),
        ("clusterNetwork", json!("nothing"), "x", ""),
    ] {
        let mut conf = conf.clone();
        conf[key] = value;
        world.pod("p", networks);
        let outcome = world.call("ADD", "c1", &netns, &conf).pod("p").env("CNI_PATH", "/none").run();
        assert_eq!(outcome.code, 1, "{outcome:#?}");
        let said = said(&outcome.stderr);
        let as_wanted =
            if wanted.is_empty() { said.is_empty() } else { said.len() == 1 && said[0].starts_with(wanted) };
        assert!(as_wanted, "{key} {networks}: {said:#?} in {outcome:#?}");
    }
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

/// Reads one request and answers it with a status; gives its first line and its body. Nothing for a connection without a
/// request: the call, whose reply was ready, gave it up.
fn answer(stream: TcpStream, code: u16, retry_after: u8) -> Option<(String, Value)> {
    let mut reader = BufReader::new(stream);
    let line = |reader: &mut BufReader<TcpStream>| {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        line.trim().to_owned()
    };
    let first = line(&mut reader);
    if first.is_empty() {
        return None;
    }
    let mut length = 0;
    loop {
        let header = line(&mut reader).to_ascii_lowercase();
        if let Some(value) = header.strip_prefix("content-length: ") {
            length = value.parse().unwrap();
        }
        if header.is_empty() {
            break;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": "as the test wants it", "reason": "", "code": code})
    .to_string();
    let asks = if retry_after > 0 { format!("Retry-After: {retry_after}\r\n") } else { String::new() };
    let head = format!("HTTP/1.1 {code} X\r\nContent-Type: application/json\r\nContent-Length: {}\r\n", status.len());
    // It may give up now as well.
    let _ = reader.into_inner().write_all(format!("{head}{asks}Connection: close\r\n\r\n{status}").as_bytes());
    Some((first, serde_json::from_slice(&body).unwrap()))
}

/// What a server that answers with these codes in turn is sent for a pod that is refused, and when. After each it asks to be
/// left alone for so many seconds.
fn sent(world: &World, codes: &'static [u16], retry_after: u8) -> Vec<(String, Value, Instant)> {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let kubeconfig = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "test",
        "clusters": [{"name": "test", "cluster": {"server": format!("http://{}", listener.local_addr().unwrap())}}],
        "users": [{"name": "test", "user": {"token": "t"}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
    });
    fs::write("/run/test/kubeconfig", kubeconfig.to_string()).unwrap();
    let mut conf = world.conf(&world.primary(&json!({"cniVersion": "1.0.0", "name": "main", "type": "main"})));
    conf.as_object_mut().unwrap().remove("manifestDir");
    conf["kubeconfig"] = json!("/run/test/kubeconfig");
    let annotations = json!({"k8s.v1.cni.cncf.io/networks": "wrong@a:b"});
    conf["runtimeConfig"] = json!({"io.kubernetes.cri.pod-annotations": annotations});
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        for code in codes {
            let sent = iter::repeat_with(|| listener.accept().unwrap().0)
                .find_map(|stream| answer(stream, *code, retry_after));
            let (line, event) = sent.unwrap();
            sender.send((line, event, Instant::now())).unwrap();
        }
    });
    world.call("ADD", "c1", &world.netns(), &conf).pod("p").fails(7);
    codes.iter().map(|_| receiver.recv_timeout(Duration::from_secs(20)).expect("another request")).collect()
}

#[test]
fn a_server_that_is_busy_is_sent_the_same_event_again() {
    let world = World::new();
    Recorder::install(&world.bin, &["main"]);
    let sent = sent(&world, &[503, 429, 500, 201], 0);
    let (_, event, _) = &sent[0];
    assert_eq!(event["reason"], "AttachmentRefused");
    let says = "annotation k8s.v1.cni.cncf.io/networks: \"wrong@a:b\": interface name contains";
    assert!(event["message"].as_str().unwrap().starts_with(says), "{event}");
    assert!(
        sent.iter()
            .all(|(line, again, _)| { line == "POST /api/v1/namespaces/default/events HTTP/1.1" && again == event })
    );
}

#[test]
fn a_server_that_asks_for_a_pause_has_it_from_the_call_and_from_the_process_that_takes_over() {
    let world = World::new();
    Recorder::install(&world.bin, &["main"]);
    // On a busy machine the call may have to hand its event over before it has read the answer, but not each time.
    let by_the_call = (0..5).any(|_| {
        let times: Vec<Instant> = sent(&world, &[429, 503, 201], 1).into_iter().map(|(_, _, time)| time).collect();
        // The server's moment is that of its answer: the pause begins after it.
        let left_alone = |pair: &[Instant]| pair[1] - pair[0] >= Duration::from_millis(950);
        assert!(left_alone(&times[1..]), "asked again after {:?}", times[2] - times[1]);
        left_alone(&times[..2])
    });
    assert!(by_the_call, "what the server asked the call for was forgotten each time");
}
