//! The CNI protocol as a plugin: environment, standard input and versions. Every case runs on our binary and on a plugin
//! built on the reference library (containernetworking/plugins' host-local), which must agree on exit code, CNI code and
//! the beginning of the text; where we differ on purpose the case stands in a table of its own, with the reason.

use std::fs;

use serde_json::{Value, json};

use crate::harness::{Call, Outcome, Recorder, World};

/// All versions of the specification, oldest first.
const VERSIONS: [&str; 7] = ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// Which variables a verb needs, in the order in which they are listed when they are missing.
const REQUIRED: [(&str, &[&str]); 6] = [
    ("ADD", &["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"]),
    ("CHECK", &["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"]),
    ("DEL", &["CNI_CONTAINERID", "CNI_IFNAME", "CNI_PATH"]),
    ("GC", &["CNI_PATH"]),
    ("STATUS", &["CNI_PATH"]),
    ("VERSION", &[]),
];

const VARIABLES: [&str; 5] = ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_ARGS", "CNI_PATH"];

/// Our binary and the reference plugin on one node.
struct Pair {
    world: World,
    recorder: Recorder,
    netns: String,
    /// What follows `cniVersion` and `name` in the conf of each.
    rest: [Value; 2],
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Side {
    Ours,
    Reference,
}

const SIDES: [Side; 2] = [Side::Ours, Side::Reference];

impl Pair {
    fn new() -> Self {
        let world = World::new();
        world.plugins("reference", &["host-local"]);
        let recorder = Recorder::install(&world.bin, &["first"]);
        // CHECK wants to see the interface; a second ADD of the same name must find none.
        recorder.behave("first", "ADD", "nsenter --net=$CNI_NETNS ip link add $CNI_IFNAME type veth peer name peer0");
        recorder.behave("first", "DEL", "[ -e \"$CNI_NETNS\" ] && nsenter --net=$CNI_NETNS ip link delete $CNI_IFNAME");
        let primary = world.primary(&json!({"cniVersion": "1.1.0", "name": "main", "plugins": [{"type": "first"}]}));
        let ours = world.conf(&primary);
        let reference = json!({"type": "host-local", "ipam": {"type": "host-local", "subnet": "10.90.0.0/24"}});
        let netns = world.netns();
        Self { world, recorder, netns, rest: [ours, reference] }
    }

    fn conf(&self, side: Side, version: &str) -> Value {
        let mut conf = self.rest[side as usize].clone();
        conf["cniVersion"] = json!(version);
        conf["name"] = json!("meta");
        conf
    }

    /// A conf whose text begins with `head`, which has the keys of version and name.
    fn text(&self, side: Side, head: &str) -> String {
        let mut rest = self.rest[side as usize].clone();
        rest.as_object_mut().unwrap().retain(|key, _| key != "name" && key != "cniVersion");
        format!("{{{head},{}", rest.to_string().strip_prefix('{').unwrap())
    }

    fn call(&self, side: Side, verb: &str, version: &str) -> Call {
        let call =
            self.world.call(verb, "c1", &self.netns, &self.conf(side, version)).env("CNI_ARGS", "IgnoreUnknown=1");
        match side {
            Side::Ours => call,
            Side::Reference => call.program(&self.world.bin.join("host-local")),
        }
    }

    /// Both refuse a call with this code and a text that begins like this; nothing was executed and nothing is left.
    fn both_refuse(&self, code: u64, text: &str, call: impl Fn(Side) -> Call) {
        for side in SIDES {
            refused(side, &call(side).run(), code, text);
        }
        assert_eq!(self.recorder.take(), Vec::<String>::new(), "{text}: nothing is executed");
        self.world.assert_clean();
    }

    /// Both accept an ADD, and the DEL after it.
    fn both_accept(&self, what: &str, call: impl Fn(Side, &str) -> Call) {
        for side in SIDES {
            for verb in ["ADD", "DEL"] {
                let outcome = call(side, verb).run();
                assert_eq!(outcome.code, 0, "{side:?} {verb} {what}: {outcome:#?}");
            }
        }
        self.world.assert_clean();
        self.recorder.take();
    }
}

fn refused(side: Side, outcome: &Outcome, code: u64, text: &str) {
    assert_eq!(outcome.code, 1, "{side:?} should say \"{text}\": {outcome:#?}");
    let error = outcome.json();
    assert_eq!(error["code"], code, "{side:?} {error}");
    let msg = error["msg"].as_str().unwrap();
    assert!(msg.starts_with(text), "{side:?} says \"{msg}\", not \"{text}\"");
    // The reference puts the offending value into the details, we name it in the message: it is there in both.
    if let (Side::Ours, Some(version)) = (side, error.get("cniVersion")) {
        assert!(VERSIONS.iter().any(|known| version == known), "{error}");
    }
}

#[test]
fn each_required_variable_is_missed_and_no_other() {
    let pair = Pair::new();
    let mut checked = 0;
    for (verb, required) in REQUIRED {
        for variable in required {
            let text = format!("required env variables [{variable}] missing");
            pair.both_refuse(4, &text, |side| pair.call(side, verb, "1.1.0").without(variable));
            pair.both_refuse(4, &text, |side| pair.call(side, verb, "1.1.0").env(variable, ""));
            checked += 2;
        }
        if !required.is_empty() {
            let text = format!("required env variables [{}] missing", required.join(","));
            pair.both_refuse(4, &text, |side| {
                VARIABLES.iter().fold(pair.call(side, verb, "1.1.0"), |call, variable| call.without(variable))
            });
        }
    }
    for (verb, required) in REQUIRED {
        for variable in VARIABLES.iter().filter(|variable| !required.contains(variable)) {
            for side in SIDES {
                for without in [true, false] {
                    let before = (verb == "CHECK").then(|| pair.call(side, "ADD", "1.1.0").run());
                    let call = pair.call(side, verb, "1.1.0");
                    let call = if without { call.without(variable) } else { call.env(variable, "") };
                    let outcome = call.run();
                    assert_eq!(outcome.code, 0, "{side:?} {verb} without {variable}: {outcome:#?} {before:#?}");
                    pair.call(side, "DEL", "1.1.0").ok();
                    checked += 1;
                }
            }
        }
    }
    // 13 of the 30 pairs are required: both programs at once, missing and empty; of the others each program by itself.
    assert_eq!(checked, 13 * 2 + 17 * 4);
    pair.world.assert_clean();
}

#[test]
fn names_are_checked_before_anything_else() {
    let pair = Pair::new();
    let too_long = "interface name is too long";
    let characters = "interface name contains / or : or whitespace characters";
    let dots = "interface name is . or ..";
    for (name, text) in [
        ("sixteen-letters-", too_long),
        (".", dots),
        ("..", dots),
        ("a/b", characters),
        ("a:b", characters),
        ("a b", characters),
        ("a\tb", characters),
        ("a\u{a0}b", characters),
    ] {
        for verb in ["ADD", "CHECK", "DEL"] {
            pair.both_refuse(4, text, |side| pair.call(side, verb, "1.0.0").env("CNI_IFNAME", name));
        }
    }
    for container in ["-a", ".a", "_a", "a/b", "a b", "../../etc", "ä"] {
        for verb in ["ADD", "CHECK", "DEL"] {
            let text = "invalid characters in containerID";
            pair.both_refuse(4, text, |side| pair.call(side, verb, "1.0.0").env("CNI_CONTAINERID", container));
        }
    }
    for (variable, value) in
        [("CNI_CONTAINERID", "0a_.-Z"), ("CNI_IFNAME", "fifteen-letters"), ("CNI_IFNAME", "ä-ö"), ("CNI_IFNAME", "a@b")]
    {
        pair.both_accept(value, |side, verb| pair.call(side, verb, "1.0.0").env(variable, value));
    }
    // A verb that is about no container does not look at the names.
    for verb in ["GC", "STATUS"] {
        for side in SIDES {
            let call = pair.call(side, verb, "1.1.0").env("CNI_IFNAME", "a/b").env("CNI_CONTAINERID", "a b");
            let outcome = call.env("CNI_ARGS", "no pair").run();
            assert_eq!(outcome.code, 0, "{side:?} {verb}: {outcome:#?}");
        }
    }
}

#[test]
fn version_needs_no_stdin_and_no_command_prints_who_we_are() {
    let pair = Pair::new();
    let closed = ["sh", "-c", "exec \"$0\" <&-"];
    let mut answers = Vec::new();
    for side in SIDES {
        for call in [pair.call(side, "VERSION", "0.1.0").under(&closed), pair.call(side, "VERSION", "1.1.0").stdin("{")]
        {
            let outcome = call.run();
            assert_eq!((outcome.code, outcome.stderr.as_str()), (0, ""), "{side:?}");
            answers.push(outcome.stdout);
        }
    }
    assert!(answers.iter().all(|answer| *answer == answers[0]), "{answers:#?}");
    let answer: Value = serde_json::from_str(&answers[0]).unwrap();
    assert_eq!(answer, json!({"cniVersion": "1.1.0", "supportedVersions": VERSIONS}));

    for side in SIDES {
        for call in [pair.call(side, "", "1.0.0"), pair.call(side, "", "1.0.0").without("CNI_COMMAND")] {
            let outcome = call.run();
            assert_eq!((outcome.code, outcome.stdout.as_str()), (0, ""), "{side:?}: {outcome:#?}");
            let expected = format!("CNI protocol versions supported: {}\n", VERSIONS.join(", "));
            assert!(outcome.stderr.ends_with(&expected), "{side:?}: {outcome:#?}");
        }
    }
    for verb in ["UPDATE", "add", " ADD", "ADD "] {
        pair.both_refuse(4, &format!("unknown CNI_COMMAND: {verb}"), |side| pair.call(side, verb, "1.0.0"));
    }
}

#[test]
fn the_name_and_version_of_a_conf_are_judged_alike() {
    let pair = Pair::new();
    let incompatible = "incompatible CNI versions";
    let cases = [
        (r#""cniVersion":"1.2.0","name":"n""#, 1, incompatible),
        (r#""cniVersion":"1.0","name":"n""#, 1, incompatible),
        (r#""cniVersion":"01.0.0","name":"n""#, 1, incompatible),
        (r#""cniVersion":"v1.0.0","name":"n""#, 1, incompatible),
        (r#""cniVersion":"0.0.1","name":"n""#, 1, incompatible),
        (r#""CNIVERSION":"7.0.0","name":"n""#, 1, incompatible),
        (r#""cniVersion":"1.0.0","CNIVersion":"7.0.0","name":"n""#, 1, incompatible),
        (r#""cniVersion":"1.0.0""#, 7, "missing network name"),
        (r#""cniVersion":"1.0.0","name":"""#, 7, "missing network name"),
        (r#""cniVersion":"1.0.0","name":null"#, 7, "missing network name"),
        (r#""cniVersion":"1.0.0","name":"a/b""#, 7, "invalid characters found in network name"),
        (r#""cniVersion":"1.0.0","name":"-a""#, 7, "invalid characters found in network name"),
        (r#""cniVersion":"1.0.0","name":"a b""#, 7, "invalid characters found in network name"),
        // A name is judged before a version, a text before both; the words after the code are the parser's own.
        (r#""cniVersion":"9.9.9""#, 7, "missing network name"),
        (r#""cniVersion":"1.0.0","name":7"#, 6, ""),
        (r#""cniVersion":7,"name":"n""#, 6, ""),
        (r#""cniVersion":"1.0.0""name":"n""#, 6, ""),
    ];
    for (head, code, text) in cases {
        for verb in ["ADD", "DEL"] {
            pair.both_refuse(code, text, |side| pair.call(side, verb, "").stdin(&pair.text(side, head)));
        }
    }
    for stdin in ["", "x", "[1]", "7", "\"conf\"", "{\"name\":\"n\"", "{\"name\":\"n\"}x"] {
        for verb in ["ADD", "DEL", "CHECK", "GC", "STATUS"] {
            pair.both_refuse(6, "", |side| pair.call(side, verb, "").stdin(stdin));
        }
    }
    for head in [
        r#""cniVersion":"1.0.0","name":"a_.-9""#,
        r#""CniVersion":"1.0.0","NAME":"n""#,
        r#""CNIVersion":"7.0.0","cniVersion":"1.0.0","name":"n""#,
        r#""cniVersion":null,"name":"n""#,
        r#""name":"n""#,
    ] {
        // Without an address our own result has no form below 0.3.0: the plugin gives one.
        pair.recorder.behave("first", "ADD", &with_address());
        pair.both_accept(head, |side, verb| pair.call(side, verb, "").stdin(&pair.text(side, head)));
    }
}

/// A behaviour of the primary: the interface is made, and has an address in the result.
fn with_address() -> String {
    r#"nsenter --net=$CNI_NETNS ip link add $CNI_IFNAME type veth peer name peer0
echo '{"cniVersion":"1.1.0","ips":[{"address":"10.1.0.5/24"}]}'; exit 0"#
        .to_owned()
}

#[test]
fn a_verb_that_the_version_does_not_know_is_refused() {
    let pair = Pair::new();
    for (verb, since) in [("CHECK", "0.4.0"), ("GC", "1.1.0"), ("STATUS", "1.1.0")] {
        for version in VERSIONS.iter().chain(&["", "1.2.0"]) {
            let text = format!("config version does not allow {verb}");
            if *version == "1.2.0" {
                // "plugin version does not allow CHECK" says the library, though it is the conf's version that is wrong.
                pair.both_refuse(1, "", |side| pair.call(side, verb, version));
                refused(Side::Ours, &pair.call(Side::Ours, verb, version).run(), 1, "incompatible CNI versions");
            } else if *version < since {
                pair.both_refuse(1, &text, |side| pair.call(side, verb, version));
            } else {
                for side in SIDES {
                    let outcome = pair.call(side, verb, version).run();
                    // Nothing was added: only CHECK has something to say, and it is not about the version.
                    assert_eq!(outcome.code, i32::from(verb == "CHECK"), "{side:?} {verb} {version}: {outcome:#?}");
                    assert_ne!(outcome.json()["code"], 1, "{side:?} {verb} {version}");
                }
                // The primary's own plugin was asked for its STATUS.
                pair.recorder.take();
            }
        }
    }
}

#[test]
fn a_plugin_does_not_work_in_its_own_namespace() {
    let pair = Pair::new();
    let own = "/proc/thread-self/ns/net";
    let text = "plugin's netns and netns from CNI_NETNS should not be the same";
    for verb in ["ADD", "DEL", "CHECK"] {
        refused(Side::Ours, &pair.call(Side::Ours, verb, "1.0.0").env("CNI_NETNS", own).run(), 8, text);
        assert_eq!(pair.recorder.take(), Vec::<String>::new());
        pair.world.assert_clean();
    }
    // The reference looks only after its work, and prints its error after its result: ours must not.
    pair.world.plugins("reference", &["tuning"]);
    let conf = json!({"cniVersion": "1.0.0", "name": "n", "type": "tuning", "prevResult": {"cniVersion": "1.0.0"}});
    let call = pair.world.call("ADD", "c1", own, &conf).program(&pair.world.bin.join("tuning"));
    let outcome = call.run();
    assert_eq!(outcome.code, 1);
    let documents: Vec<Value> =
        serde_json::Deserializer::from_str(&outcome.stdout).into_iter().map(Result::unwrap).collect();
    assert_eq!(documents.len(), 2, "{documents:#?}");
    assert_eq!((&documents[1]["code"], &documents[1]["msg"]), (&json!(8), &json!(text)));

    // GC and STATUS are about no namespace, and a path that is gone is not ours.
    for verb in ["GC", "STATUS"] {
        pair.call(Side::Ours, verb, "1.1.0").env("CNI_NETNS", own).ok();
    }
    for value in ["1", "true", "TRUE", "True"] {
        let netns = pair.call(Side::Ours, "DEL", "1.0.0").env("CNI_NETNS", own);
        netns.env("CNI_NETNS_OVERRIDE", value).ok();
    }
    for value in ["0", "yes", ""] {
        let call = pair.call(Side::Ours, "DEL", "1.0.0").env("CNI_NETNS", own).env("CNI_NETNS_OVERRIDE", value);
        refused(Side::Ours, &call.run(), 8, text);
    }
}

/// Where we differ from the reference library, and why. A case that begins to agree has no place here any more.
#[test]
fn true_differences() {
    let pair = Pair::new();
    let not_a_pair = |side| pair.call(side, "ADD", "1.0.0").env("CNI_ARGS", "IgnoreUnknown=1;a=b=c");
    let text = "ARGS: invalid pair \"a=b=c\"";
    // The library has no code for it (999 is its word for that); it is a bad environment.
    refused(Side::Reference, &not_a_pair(Side::Reference).run(), 999, text);
    refused(Side::Ours, &not_a_pair(Side::Ours).run(), 4, text);

    // A semicolon at the end separates nothing: runtimes that join pairs carelessly are no reason to stop a pod.
    let trailing = |side, verb| pair.call(side, verb, "1.0.0").env("CNI_ARGS", "IgnoreUnknown=1;");
    refused(Side::Reference, &trailing(Side::Reference, "ADD").run(), 999, "ARGS: invalid pair \"\"");
    trailing(Side::Ours, "ADD").ok();
    trailing(Side::Ours, "DEL").ok();

    // Unknown arguments are for other plugins of the chain, and a meta plugin cannot know them all.
    let unknown = |side, verb| pair.call(side, verb, "1.0.0").env("CNI_ARGS", "SOME=thing");
    refused(Side::Reference, &unknown(Side::Reference, "ADD").run(), 999, "ARGS: unknown args [\"SOME=thing\"]");
    unknown(Side::Ours, "ADD").ok();
    unknown(Side::Ours, "DEL").ok();

    // `null` is no object, and saying that a name is missing in it helps nobody.
    refused(Side::Reference, &pair.call(Side::Reference, "ADD", "").stdin("null").run(), 7, "missing network name");
    refused(Side::Ours, &pair.call(Side::Ours, "ADD", "").stdin("null").run(), 6, "the network configuration on stdin");

    // With one variable missing and another one wrong the library stops at the wrong one; both are worth fixing at once,
    // and the missing ones are listed first.
    let both = |side| pair.call(side, "ADD", "1.0.0").without("CNI_NETNS").env("CNI_CONTAINERID", "a b");
    refused(Side::Reference, &both(Side::Reference).run(), 4, "invalid characters in containerID");
    refused(Side::Ours, &both(Side::Ours).run(), 4, "required env variables [CNI_NETNS] missing");

    // CHECK of what was never added: the library has no code for it.
    refused(
        Side::Reference,
        &pair.call(Side::Reference, "CHECK", "1.0.0").run(),
        999,
        "host-local: Failed to find address",
    );
    refused(Side::Ours, &pair.call(Side::Ours, "CHECK", "1.0.0").run(), 101, "container c1 has no attachment");

    // Our errors name the version that the specification wants in them; the library's have none.
    let error = pair.call(Side::Ours, "CHECK", "0.3.1").run().json();
    assert_eq!(error["cniVersion"], "0.3.1");
    assert!(pair.call(Side::Reference, "CHECK", "0.3.1").run().json().get("cniVersion").is_none());
    fs::remove_dir_all("/var/lib/cni/networks/meta").unwrap();
    pair.world.assert_clean();
}
