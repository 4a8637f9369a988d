//! The log: a line a step, traces, and what never gets into it.

mod file;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{BufRead as _, BufReader, Write as _},
    net::TcpListener,
    os::unix::fs::PermissionsExt as _,
    path::Path,
};

use serde_json::{Value, json};

use crate::harness::{Call, Recorder, World, names};

const DIRECTORY: &str = "/run/test/log";
const LOG: &str = "/run/test/log/meta.log";

/// A node whose networks are recording plugins, and whose log is a file; pod "p" asks for two networks.
fn logging_world() -> (World, Recorder, Value) {
    let world = World::new();
    fs::create_dir_all(DIRECTORY).unwrap();
    let recorder = Recorder::install(&world.bin, &["first", "second", "net-x", "net-y"]);
    let primary = world.primary(&json!({
        "cniVersion": "1.0.0", "name": "main", "plugins": [{"type": "first"}, {"type": "second"}]
    }));
    world.definition("x", &json!({"cniVersion": "1.0.0", "type": "net-x"}));
    world.definition("y", &json!({"cniVersion": "1.0.0", "type": "net-y"}));
    world.pod("p", "x,y");
    let mut conf = world.conf(&primary);
    conf["logFile"] = json!(LOG);
    // Where there is no API server they are lines, too.
    conf["events"] = json!("off");
    (world, recorder, conf)
}

type Line = BTreeMap<String, Value>;

/// A line of either form; panics unless it is whole.
fn parse(line: &str) -> Line {
    if line.starts_with('{') {
        return serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
    }
    let mut fields = Line::new();
    let mut rest = line;
    while !rest.is_empty() {
        let (key, after) = rest.split_once('=').unwrap_or_else(|| panic!("no key: {rest:?} in {line}"));
        assert!(key.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'), "{key:?} in {line}");
        let value;
        (value, rest) = if after.starts_with('"') {
            let mut values = serde_json::Deserializer::from_str(after).into_iter::<String>();
            let text = values.next().unwrap().unwrap_or_else(|error| panic!("{error}: {line}"));
            (text, &after[values.byte_offset()..])
        } else {
            let (text, after) = after.split_at(after.find(' ').unwrap_or(after.len()));
            (text.to_owned(), after)
        };
        assert!(fields.insert(key.to_owned(), json!(value)).is_none(), "{key} twice: {line}");
        rest = rest.strip_prefix(' ').unwrap_or(rest);
    }
    fields
}

/// The lines of a file, which must all be whole.
fn lines(path: impl AsRef<Path>) -> Vec<Line> {
    let text = fs::read_to_string(path).unwrap();
    assert!(text.is_empty() || text.ends_with('\n'), "{text}");
    text.lines().map(parse).collect()
}

/// The lines of all files, the oldest first.
fn all_lines() -> Vec<Line> {
    let mut files = names(DIRECTORY);
    // The present one is the last.
    files.sort_by_key(|name| (name == "meta.log", name.clone()));
    files.iter().flat_map(|name| lines(Path::new(DIRECTORY).join(name))).collect()
}

/// What `STEP NETWORK INTERFACE PLUGIN` say, as far as they are there.
fn short(line: &Line) -> String {
    let parts = ["step", "network", "interface", "command", "plugin"];
    parts.iter().filter_map(|key| line.get(*key)?.as_str()).collect::<Vec<_>>().join(" ")
}

fn take() -> Vec<Line> {
    let found = lines(LOG);
    fs::remove_file(LOG).unwrap();
    found
}

const OF_ADD: [&str; 11] = [
    "begin",
    "pod",
    "decide",
    "plugin main eth0 ADD first",
    "plugin main eth0 ADD second",
    "attach main eth0",
    "plugin default/x net1 ADD net-x",
    "attach default/x net1",
    "plugin default/y net2 ADD net-y",
    "attach default/y net2",
    "status",
];
const OF_DEL: [&str; 7] = [
    "plugin default/y net2 DEL net-y",
    "detach default/y net2",
    "plugin default/x net1 DEL net-x",
    "detach default/x net1",
    "plugin main eth0 DEL second",
    "plugin main eth0 DEL first",
    "detach main eth0",
];

#[test]
fn each_step_of_a_call_is_one_line_in_either_form() {
    let (world, recorder, mut conf) = logging_world();
    for format in ["text", "json"] {
        conf["logFormat"] = json!(format);
        let netns = world.netns();
        let call = |verb| world.call(verb, "c1", &netns, &conf).pod("p");
        let outcome = call("ADD").run();
        assert_eq!((outcome.code, outcome.stderr.as_str()), (0, ""), "steps are for the file alone");
        assert_eq!(fs::metadata(LOG).unwrap().permissions().mode() & 0o777, 0o600);
        let add = take();
        assert_eq!(add.iter().map(short).collect::<Vec<_>>(), [&OF_ADD[..], &["reply"]].concat());
        for (position, line) in add.iter().enumerate() {
            let common =
                ["level", "verb", "pod", "uid", "container", "conf", "ifname"].map(|key| line[key].as_str().unwrap());
            assert_eq!(common, ["INFO", "ADD", "default/p", "uid-p", "c1", "meta", "eth0"], "{line:?}");
            let time = line["time"].as_str().unwrap();
            assert!(time.len() == 24 && time.ends_with('Z') && time.as_bytes()[19] == b'.', "{time}");
            assert!(!line.contains_key("trace_id") && line["msg"].is_string(), "{line:?}");
            let ms = line.get("ms").map(|ms| ms.as_f64().or_else(|| ms.as_str()?.parse().ok()).unwrap());
            assert!(ms.is_some_and(|ms| ms > 0.0) == (position > 0), "{line:?}");
            assert_eq!(line.get("ms").is_some_and(Value::is_number), format == "json" && position > 0);
        }
        assert_eq!(add[1]["source"], "manifests");
        assert_eq!(add[2]["networks"], "main as eth0, default/x as net1, default/y as net2");

        // These plugins make no interface, and only the primary must have one.
        call("CHECK").fails(101);
        let check: Vec<String> = take().iter().map(short).collect();
        let checks = ["check main eth0", "check default/x net1", "check default/y net2"];
        assert!(checks.iter().all(|wanted| check.iter().any(|line| line == wanted)), "{check:?}");
        call("DEL").ok();
        let del: Vec<String> = take().iter().map(short).collect();
        assert_eq!(del, [&["begin"], &OF_DEL[..], &["reply"]].concat());
        call("DEL").ok();
        let again = take();
        assert_eq!(again[1]["msg"], "nothing is recorded of this call");

        // GC is of no pod, but each of its steps is.
        call("ADD").ok();
        take();
        let mut of_gc = conf.clone();
        of_gc["cniVersion"] = json!("1.1.0");
        of_gc["cni.dev/valid-attachments"] = json!([]);
        world.call("GC", "", "", &of_gc).ok();
        let gc = take();
        let steps: Vec<String> = gc.iter().map(short).collect();
        assert_eq!(steps, [&["begin"], &["collect"; 3][..], &OF_DEL[..], &["reply"]].concat());
        for line in &gc[4..11] {
            let whose = ["verb", "pod", "uid", "container"].map(|key| line[key].as_str().unwrap());
            assert_eq!(whose, ["GC", "default/p", "uid-p", "c1"], "{line:?}");
        }

        // One that fails tells which network, and that the others were undone.
        recorder.behave("net-y", "ADD", r#"echo '{"code":42,"msg":"no room","details":"at all"}'; exit 1"#);
        call("ADD").fails(42);
        let failed = take();
        let steps: Vec<String> = failed.iter().map(short).collect();
        assert_eq!(steps, [&OF_ADD[..10], &OF_DEL[..], &["reply"]].concat());
        assert!(failed[9]["msg"] == "not attached" && failed[9]["error"].as_str().unwrap().contains("no room"));
        let reply = failed.last().unwrap();
        assert_eq!((&reply["level"], &reply["details"]), (&json!("ERROR"), &json!("at all")));
        assert!(reply["code"] == 42 || reply["code"] == "42", "{reply:?}");
        recorder.relax("net-y", "ADD");
        world.assert_clean();
    }
}

#[test]
fn the_level_says_how_much_and_status_is_no_line_by_default() {
    let (world, _, mut conf) = logging_world();
    conf["cniVersion"] = json!("1.1.0");
    let status = |conf: &Value| drop(world.call("STATUS", "", "", conf).ok());
    status(&conf);
    assert!(take().is_empty(), "the runtime asks every few seconds");
    conf["logLevel"] = json!("debug");
    let outcome = world.call("STATUS", "", "", &conf).run();
    let found = take();
    assert_eq!(found.first().map(short).as_deref(), Some("begin"));
    assert_eq!(outcome.stderr.lines().map(parse).collect::<Vec<_>>(), found, "both have what was asked for");
    conf["logToStderr"] = json!(false);
    conf["logLevel"] = json!("panic");
    let netns = world.netns();
    let mut wrong = conf.clone();
    wrong["unknown"] = json!(1);
    let outcome = world.call("ADD", "c1", &netns, &wrong).pod("p").run();
    assert_eq!((outcome.code, outcome.stderr.as_str()), (0, ""));
    assert!(take().is_empty(), "a warning is less than an error");
    world.call("ADD", "c1", &netns, &conf).pod("p").fails(7);
    assert_eq!(take().iter().map(short).collect::<Vec<_>>(), ["reply"]);
}

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

#[test]
fn a_trace_is_in_every_line_and_each_plugin_has_a_span_of_its_own() {
    let (world, recorder, mut conf) = logging_world();
    for name in ["first", "second", "net-x", "net-y"] {
        for verb in ["ADD", "DEL"] {
            recorder.behave(
                name,
                verb,
                r#"echo "$CNI_COMMAND $self ${TRACEPARENT-none} ${TRACESTATE-none}" >> $dir/traces"#,
            );
        }
    }
    conf["logLevel"] = json!("debug");
    conf["logToStderr"] = json!(false);
    let run = |parent: Option<&str>, state: Option<&str>| {
        let netns = world.netns();
        for verb in ["ADD", "DEL"] {
            let mut call = world.call(verb, "c1", &netns, &conf).pod("p");
            for (key, value) in [("TRACEPARENT", parent), ("TRACESTATE", state)] {
                call = value.into_iter().fold(call, |call, value| call.env(key, value));
            }
            call.ok();
        }
        let seen = fs::read_to_string(world.bin.join("traces")).unwrap();
        fs::remove_file(world.bin.join("traces")).unwrap();
        (take(), seen.lines().map(str::to_owned).collect::<Vec<String>>())
    };
    let (log, seen) = run(Some(&format!("00-{TRACE}-00f067aa0ba902b7-01")), Some("vendor=a,other=b"));
    assert!(log.iter().all(|line| line["trace_id"] == TRACE), "{log:#?}");
    let of_plugins: Vec<String> = log
        .iter()
        .filter(|line| line.get("step") == Some(&json!("plugin")))
        .map(|line| {
            let text = |key: &str| line[key].as_str().unwrap();
            let (command, plugin, span) = (text("command"), text("plugin"), text("span_id"));
            format!("{command} {plugin} 00-{TRACE}-{span}-01 vendor=a,other=b")
        })
        .collect();
    assert_eq!(seen, of_plugins);
    let spans: BTreeSet<&str> = seen.iter().map(|line| line.split('-').rev().nth(1).unwrap()).collect();
    assert_eq!((seen.len(), spans.len()), (8, 8), "{seen:?}");
    assert!(!seen.concat().contains("00f067aa0ba902b7"), "that is the runtime's span");

    for (parent, state, told) in [(None, None, 0), (Some("00-ffff-ffff-01"), Some("vendor=a"), 2), (Some(""), None, 0)]
    {
        let (log, seen) = run(parent, state);
        assert!(log.iter().all(|line| !line.contains_key("trace_id") && !line.contains_key("span_id")), "{log:#?}");
        let about = log.iter().filter(|line| line["msg"].as_str().unwrap().contains("TRACEPARENT"));
        assert_eq!(about.map(|line| line["level"].as_str()).collect::<Vec<_>>(), vec![Some("DEBUG"); told]);
        let expected = if parent == Some("") { " " } else { "none" };
        assert!(
            seen.len() == 8
                && seen.iter().all(|line| line.contains(&format!("{expected} none")) || line.ends_with("  none")),
            "{seen:?}"
        );
    }
}

#[test]
fn the_api_server_is_told_of_the_trace() {
    let (world, _, mut conf) = logging_world();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let kubeconfig = Path::new("/run/test/kubeconfig");
    let server = format!("http://{}", listener.local_addr().unwrap());
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "c", "users": [{"name": "u", "user": {}}],
        "clusters": [{"name": "k", "cluster": {"server": server}}],
        "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
    });
    fs::write(kubeconfig, config.to_string()).unwrap();
    conf.as_object_mut().unwrap().remove("manifestDir");
    conf["kubeconfig"] = json!(kubeconfig);
    let netns = world.netns();
    let headers = |call: Call| {
        let child = call.start();
        let (mut stream, _) = listener.accept().unwrap();
        let mut head = Vec::new();
        for line in BufReader::new(stream.try_clone().unwrap()).lines() {
            match line.unwrap() {
                line if line.is_empty() => break,
                line => head.push(line.to_ascii_lowercase()),
            }
        }
        stream.write_all(b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").unwrap();
        drop(stream);
        assert_eq!(child.wait_with_output().unwrap().status.code(), Some(1));
        head.into_iter().filter(|line| line.starts_with("trace")).collect::<Vec<String>>()
    };
    let call = || world.call("ADD", "c1", &netns, &conf).pod("p");
    assert_eq!(headers(call()), Vec::<String>::new());
    let told = headers(call().env("TRACEPARENT", &format!("00-{TRACE}-00f067aa0ba902b7-01")));
    assert_eq!(told.len(), 1, "{told:?}");
    let parent = told[0].strip_prefix("traceparent: ").unwrap();
    assert!(parent.starts_with(&format!("00-{TRACE}-")) && parent.ends_with("-01") && parent.len() == 55, "{parent}");
    assert!(!parent.contains("00f067aa0ba902b7"), "that is the runtime's span");
}

#[test]
fn what_a_pod_says_does_not_make_a_line_of_its_own() {
    let (world, _, mut conf) = logging_world();
    let forged = "time=2026-01-01T00:00:00.000Z level=INFO msg=forged";
    let evil = format!("x\n{forged}\r{forged}\u{2028}{forged}\u{85}{forged}\" {forged}\n");
    for format in ["text", "json"] {
        conf["logFormat"] = json!(format);
        for (annotation, name) in [
            (evil.clone(), "p".to_owned()),
            (json!([{"name": evil, "interface": "a"}]).to_string(), "p".to_owned()),
            (json!([{"name": "x", "interface": evil, (evil.as_str()): 1}]).to_string(), "p".to_owned()),
            ("x,y".to_owned(), "p\nmsg:forged".to_owned()),
        ] {
            world.pod("p", &annotation);
            let netns = world.netns();
            let outcome = world.call("ADD", "c1", &netns, &conf).pod(&name).run();
            // A pod that no manifest describes asks for nothing.
            assert_eq!(outcome.code, i32::from(name == "p"), "{annotation:?} {name:?}: {outcome:#?}");
            let mut found = take();
            found.extend(outcome.stderr.lines().map(parse));
            assert!(found.iter().any(|line| line["level"] == "ERROR") == (outcome.code == 1), "{found:#?}");
            for line in found {
                assert!(line["msg"] != "forged" && line["container"] == "c1", "{line:#?}");
            }
            world.call("DEL", "c1", &netns, &conf).pod(&name).ok();
            take();
        }
    }
}

#[test]
fn a_configurations_secrets_are_not_logged_at_any_level() {
    let (world, recorder, mut conf) = logging_world();
    let secret = "hunter2-correct-horse";
    let with = |kind: &str| json!({"cniVersion": "1.0.0", "type": kind, "password": secret, "ipam": {"token": secret}});
    world.definition("x", &with("net-x"));
    world.definition("y", &with("net-y"));
    let networks = json!([{"name": "x", "cni-args": {"password": secret}}, {"name": "y"}]);
    world.pod("p", &networks.to_string());
    conf["logLevel"] = json!("debug");
    let netns = world.netns();
    let call = |verb| world.call(verb, "c1", &netns, &conf).pod("p");
    let mut said = String::new();
    for failing in [false, true] {
        if failing {
            recorder.behave("net-y", "ADD", "exit 3");
        }
        for verb in ["ADD", "CHECK", "DEL"] {
            said.push_str(&call(verb).run().stderr);
        }
    }
    let calls = recorder.calls();
    assert!(calls.iter().any(|call| call.0["conf"]["password"] == secret), "the plugins have it");
    let mut text = said;
    text.push_str(&fs::read_to_string(LOG).unwrap());
    assert!(text.contains("exit code 3") && text.contains("level=DEBUG"), "{text}");
    assert!(!text.contains(secret), "{text}");
}

#[test]
fn a_pods_unknown_keys_are_one_line_however_many_and_however_long() {
    let (world, _recorder, mut conf) = logging_world();
    conf["logToStderr"] = json!(false);
    let keys: BTreeMap<String, Value> = (0..5000).map(|number| (format!("key-{number}"), json!(0))).collect();
    let mut element = json!({"name": "n".repeat(20_000)});
    element.as_object_mut().unwrap().extend(keys);
    world.pod("p", &json!([element]).to_string());
    world.call("ADD", "c1", &world.netns(), &conf).pod("p").fails(7);
    let size = fs::metadata(LOG).unwrap().len();
    assert!(size < 50_000, "{size} bytes");
    let warnings: Vec<Line> = take().into_iter().filter(|line| line["level"] == "WARN").collect();
    assert_eq!(warnings.len(), 1, "{warnings:#?}");
    let told = warnings[0]["keys"].as_str().unwrap();
    assert!(told.starts_with("key-0, key-1, key-10,"), "{told}");
}
