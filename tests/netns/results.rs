//! The CNI protocol as a runtime of other plugins: what each plugin of a chain is told, and what comes of their answers in
//! every version. The witness is libcni itself, by way of its own `cnitool`: the same chain is run by both, and a
//! recording plugin must be told the same.

use std::{fs, path::Path, process::Command};

use serde_json::{Value, json};

use crate::harness::{Call, Interface, Recorder, World, beds};

const VERSIONS: [&str; 7] = ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

const ARGS: &str = "IgnoreUnknown=1;COLOUR=blue";

/// A node with three recording plugins, for us and for libcni.
struct Chain {
    world: World,
    recorder: Recorder,
    netns: String,
    runtime_config: Value,
}

/// What a runtime's verb came to, and what the plugins were told.
#[derive(Debug, PartialEq)]
struct Run {
    answer: Option<Value>,
    told: Vec<Value>,
}

impl Chain {
    fn new() -> Self {
        let world = World::new();
        let recorder = Recorder::install(&world.bin, &["a", "b", "c"]);
        let netns = world.netns();
        Self { world, recorder, netns, runtime_config: Value::Null }
    }

    /// All plugins answer ADD with this; the first one makes the interface.
    fn answers(&self, text: &str) {
        let make = "nsenter --net=$CNI_NETNS sh -c 'ip link add $CNI_IFNAME type veth peer name peer0; \
                    ip addr add 10.1.0.5/24 dev $CNI_IFNAME'\n";
        for (plugin, first) in [("a", make), ("b", ""), ("c", "")] {
            self.recorder.behave(plugin, "ADD", &format!("{first}echo '{text}'; exit 0"));
        }
        self.recorder.behave("a", "DEL", "nsenter --net=$CNI_NETNS ip link delete $CNI_IFNAME 2> /dev/null");
    }

    fn told(&self) -> Vec<Value> {
        let told = self.recorder.calls().into_iter().map(|call| call.0).collect();
        self.recorder.take();
        told
    }

    /// libcni's way with a configuration.
    fn libcni(&self, verb: &str, name: &str) -> Run {
        let output = Command::new(beds().join("plugins/cnitool"))
            .args([verb, name, &self.netns])
            .env("NETCONFPATH", "/etc/cni/primary")
            .env("CNI_PATH", &self.world.bin)
            .env("CNI_ARGS", ARGS)
            .env("CAP_ARGS", self.runtime_config.to_string())
            .output()
            .expect("cnitool");
        let answer = output.status.success().then(|| serde_json::from_slice(&output.stdout).unwrap_or(Value::Null));
        Run { answer, told: self.told() }
    }

    /// The container of libcni's tool: it is made from the namespace's path.
    fn container(&self, told: &[Value]) -> String {
        told.first().map_or_else(|| "c1".to_owned(), |call| call["container"].as_str().unwrap().to_owned())
    }

    fn call(&self, verb: &str, container: &str, version: &str) -> Call {
        let mut conf = self.world.conf("/etc/cni/primary/10-primary.conflist");
        conf["cniVersion"] = json!(version);
        if !self.runtime_config.is_null() {
            conf["runtimeConfig"] = self.runtime_config.clone();
        }
        self.world.call(verb, container, &self.netns, &conf).env("CNI_ARGS", ARGS)
    }

    fn ours(&self, verb: &str, container: &str, version: &str) -> Run {
        let outcome = self.call(verb, container, version).run();
        let answer = (outcome.code == 0).then(|| outcome.json());
        Run { answer, told: self.told() }
    }

    /// Runs verbs by libcni and then by us, and compares.
    fn compare(&self, name: &str, version: &str, verbs: &[&str]) -> Vec<Run> {
        let theirs: Vec<Run> = verbs.iter().map(|verb| self.libcni(verb, name)).collect();
        let container = self.container(&theirs[0].told);
        for (verb, theirs) in verbs.iter().zip(&theirs) {
            let ours = self.ours(&verb.to_uppercase(), &container, version);
            assert_eq!(ours, *theirs, "{verb} of {name} in {version}");
        }
        theirs
    }
}

/// A result as a plugin of a version prints it, in libcni's full form.
fn result_of(version: &str) -> Value {
    if version < "0.3.0" {
        return json!({"cniVersion": version, "dns": {"nameservers": ["10.1.0.1"]}, "ip4": {
            "ip": "10.1.0.5/24", "gateway": "10.1.0.1", "routes": [{"dst": "0.0.0.0/0", "gw": "10.1.0.1"}]
        }});
    }
    let mut result = json!({
        "cniVersion": version, "dns": {"nameservers": ["10.1.0.1"]},
        "interfaces": [{"name": "eth0", "mac": "02:00:00:00:00:05", "sandbox": "/run/netns/x"}],
        "ips": [{"interface": 0, "address": "10.1.0.5/24", "gateway": "10.1.0.1"}],
        "routes": [{"dst": "0.0.0.0/0", "gw": "10.1.0.1"}]
    });
    if version < "1.0.0" {
        result["ips"][0]["version"] = json!("4");
    }
    result
}

#[test]
fn a_chain_is_told_what_libcni_tells_it_in_every_version() {
    let mut chain = Chain::new();
    chain.runtime_config = json!({"portMappings": [{"hostPort": 80}], "ips": ["10.1.0.5"], "mac": "02:00:00:00:00:05"});
    for version in VERSIONS {
        chain.world.primary(&json!({"cniVersion": version, "name": "chain", "extra": {"of": "the list"}, "plugins": [
            {"type": "a", "name": "other", "cniVersion": "0.2.0", "capabilities": {"portMappings": true, "mac": false},
             "keep": [1.25, null, {"Odd": "Case"}], "ipam": {}},
            {"type": "b", "capabilities": {"ips": true, "mac": true, "bandwidth": true}},
            {"type": "c"}]}));
        chain.answers(&result_of(version).to_string());
        let mut verbs = vec!["add", "del", "del"];
        if version >= "0.4.0" {
            verbs.insert(1, "check");
        }
        let runs = chain.compare("chain", version, &verbs);
        let add = &runs[0];
        assert_eq!(add.answer, Some(result_of(version)), "what the last plugin printed");
        // The comparison must have had something to compare.
        assert_eq!(add.told.len(), 3);
        assert_eq!(add.told[0]["conf"]["runtimeConfig"], json!({"portMappings": [{"hostPort": 80}]}));
        assert_eq!(add.told[1]["conf"]["runtimeConfig"]["mac"], "02:00:00:00:00:05");
        assert_eq!(add.told[2]["conf"].get("runtimeConfig"), None);
        assert_eq!(add.told[2]["conf"]["prevResult"], result_of(version));
        let del = &runs[verbs.len() - 2];
        assert_eq!(del.told.iter().map(|call| &call["plugin"]).collect::<Vec<_>>(), ["c", "b", "a"]);
        assert_eq!(del.told[0]["conf"].get("prevResult").is_some(), version >= "0.4.0", "{version}");
        chain.world.assert_clean();
    }
}

#[test]
fn what_a_list_says_about_itself_is_understood_as_libcni_does() {
    let chain = Chain::new();
    let three = json!([{"type": "a"}, {"type": "b"}, {"type": "c"}]);
    for disable in [json!(true), json!("true"), json!("TRUE"), json!(false), json!("false")] {
        let list = json!({"cniVersion": "1.0.0", "name": "chain", "disableCheck": disable, "plugins": three});
        chain.world.primary(&list);
        chain.answers(&result_of("1.0.0").to_string());
        let runs = chain.compare("chain", "1.0.0", &["add", "check", "del"]);
        let disabled = disable.as_bool().unwrap_or_else(|| disable.as_str().unwrap().eq_ignore_ascii_case("true"));
        assert_eq!(runs[1].told.len(), if disabled { 0 } else { 3 }, "disableCheck {disable}");
    }
    // Plugins from the directory beside the list, after its own, unless it says otherwise.
    fs::create_dir_all("/etc/cni/primary/chain").unwrap();
    for plugin in ["b", "c"] {
        fs::write(format!("/etc/cni/primary/chain/{plugin}.conf"), json!({"type": plugin}).to_string()).unwrap();
    }
    fs::write("/etc/cni/primary/chain/note.txt", "no configuration").unwrap();
    for (list, expected) in [
        (json!({"cniVersion": "1.0.0", "name": "chain", "plugins": [{"type": "a"}]}), 3),
        (json!({"cniVersion": "1.0.0", "name": "chain"}), 2),
        (
            json!({"cniVersion": "1.0.0", "name": "chain", "loadOnlyInlinedPlugins": true, "plugins": [{"type": "a"}]}),
            1,
        ),
        (json!({"cniVersion": "1.0.0", "name": "chain", "loadOnlyInlinedPlugins": true}), 0),
    ] {
        chain.world.primary(&list);
        chain.answers(&result_of("1.0.0").to_string());
        let verbs: &[&str] = if expected > 0 { &["add", "del"] } else { &["add"] };
        let runs = chain.compare("chain", "1.0.0", verbs);
        if expected == 0 {
            // libcni refuses the DEL, too; we know that nothing was attached.
            assert_eq!(chain.ours("DEL", "c1", "1.0.0"), Run { answer: Some(Value::Null), told: Vec::new() });
        }
        assert_eq!(runs[0].told.len(), expected, "{list}");
        assert_eq!(runs[0].answer.is_some(), expected > 0, "{list}");
    }
    chain.world.assert_clean();
}

#[test]
fn the_version_of_a_list_is_chosen_as_libcni_chooses_it() {
    let chain = Chain::new();
    for (own, offered, chosen) in [
        ("0.4.0", json!(["0.4.0", "1.0.0"]), Some("1.0.0")),
        ("1.0.0", json!(["0.3.1", "0.4.0"]), Some("1.0.0")),
        ("0.4.0", json!(["1.0.0", "1.1.0", "1.2.0", "10.0.0"]), Some("1.1.0")),
        ("", json!(["0.3.1"]), Some("0.3.1")),
        ("1.0.0", json!([]), Some("1.0.0")),
        ("1.0.0", json!(["one"]), None),
        ("1.0.0", json!(["2.0.0"]), Some("1.0.0")),
    ] {
        let mut list = json!({"cniVersion": own, "name": "chain", "cniVersions": offered, "plugins": [{"type": "c"}]});
        if own.is_empty() {
            list.as_object_mut().unwrap().remove("cniVersion");
        }
        chain.world.primary(&list);
        let theirs = chain.libcni("add", "chain");
        let version = theirs.told.first().map(|call| call["conf"]["cniVersion"].as_str().unwrap());
        assert_eq!(version, chosen, "libcni, {list}");
        chain.libcni("del", "chain");
        let ours = chain.ours("ADD", "c1", "1.0.0");
        let version = ours.told.first().map(|call| call["conf"]["cniVersion"].as_str().unwrap());
        assert_eq!(version, chosen, "we, {list}");
        chain.ours("DEL", "c1", "1.0.0");
        if chosen.is_none() {
            let text = chain.call("ADD", "c1", "1.0.0").fails(7);
            assert!(text.contains("10-primary.conflist") && text.contains("is no version"), "{text}");
        }
    }
    // libcni hands on versions that nobody speaks; we say so before anything is executed.
    chain
        .world
        .primary(&json!({"cniVersion": "1.0.0", "name": "chain", "cniVersions": ["1.0"], "plugins": [{"type": "c"}]}));
    assert_eq!(chain.libcni("add", "chain").told[0]["conf"]["cniVersion"], "1.0");
    let text = chain.call("ADD", "c1", "1.0.0").fails(7);
    assert!(text.contains("\"1.0\" is no version"), "{text}");
    chain.world.primary(&json!({"cniVersion": "1.2.0", "name": "chain", "plugins": [{"type": "c"}]}));
    assert_eq!(chain.libcni("add", "chain").told.len(), 1);
    let text = chain.call("ADD", "c1", "1.0.0").fails(1);
    assert!(text.contains("incompatible CNI versions; config is \"1.2.0\""), "{text}");
    assert_eq!(chain.told(), Vec::<Value>::new());
    chain.world.assert_clean();
}

#[test]
fn sloppy_answers_are_understood_and_foreign_ones_converted() {
    let chain = Chain::new();
    chain.world.primary(&json!({"cniVersion": "1.0.0", "name": "chain", "plugins": [{"type": "b"}, {"type": "c"}]}));
    let ips = json!([{"address": "10.1.0.5/24"}]);
    let with_ips = json!({"cniVersion": "1.0.0", "ips": ips});
    for (printed, handed_on) in [
        (json!({"cniVersion": "1.0.0", "ips": ips}).to_string(), with_ips.clone()),
        (json!({"ips": ips}).to_string(), with_ips.clone()),
        (json!({"cniVersion": "", "ips": ips}).to_string(), with_ips.clone()),
        (" { \"ips\" : [ {\"address\":\"10.1.0.5/24\"} ] }\n\n".to_owned(), with_ips.clone()),
        ("null".to_owned(), json!({"cniVersion": "1.0.0"})),
    ] {
        chain.answers(&printed);
        let theirs = chain.libcni("add", "chain");
        assert_eq!(theirs.told[1]["conf"]["prevResult"], handed_on, "libcni, {printed}");
        chain.libcni("del", "chain");
        let ours = chain.ours("ADD", "c1", "1.0.0");
        assert_eq!(ours.told[1]["conf"]["prevResult"], handed_on, "we, {printed}");
        assert_eq!(ours.answer, Some(handed_on), "{printed}");
        chain.ours("DEL", "c1", "1.0.0");
    }
    // libcni hands another version on as it is, and the next plugin cannot read it; we convert it.
    let old = json!({"cniVersion": "0.4.0", "ips": [{"version": "4", "address": "10.1.0.5/24"}]});
    let oldest = json!({"cniVersion": "0.2.0", "ip4": {"ip": "10.1.0.5/24"}, "dns": {}});
    for (printed, without_version) in [(old.to_string(), true), (oldest.to_string(), true), (String::new(), false)] {
        chain.answers(&printed);
        let ours = chain.ours("ADD", "c1", "1.0.0");
        let expected = if without_version { &with_ips } else { &json!({"cniVersion": "1.0.0"}) };
        assert_eq!(ours.told[1]["conf"]["prevResult"], *expected, "{printed}");
        assert_eq!(ours.answer.as_ref(), Some(expected));
        chain.ours("DEL", "c1", "1.0.0");
    }
    for (printed, code, says) in [
        (r#"{"cniVersion":"9.9.9"}"#, 6, "the result of b does not parse: its cniVersion \"9.9.9\""),
        (r#"{"cniVersion":"1.0.0","ips":[{"address":"10.1.0.555/24"}]}"#, 6, "result of b"),
        ("[]", 6, "result of b"),
        ("7 7", 103, "plugin b printed what is no result"),
    ] {
        chain.answers(printed);
        let text = chain.call("ADD", "c1", "1.0.0").fails(code);
        assert!(text.contains("chain as eth0") && text.contains(says), "{printed}: {text}");
        let told = chain.told();
        let verbs: Vec<String> = told.iter().map(|call| format!("{} {}", call["verb"], call["plugin"])).collect();
        assert_eq!(verbs, ["\"ADD\" \"b\"", "\"DEL\" \"c\"", "\"DEL\" \"b\""], "{printed}");
        chain.world.assert_clean();
    }
}

#[test]
fn a_failure_in_the_middle_undoes_the_whole_chain_in_reverse() {
    let chain = Chain::new();
    chain.world.primary(&json!({
        "cniVersion": "1.0.0", "name": "chain", "plugins": [{"type": "a"}, {"type": "b"}, {"type": "c"}]
    }));
    for (behaviour, code, says) in [
        (r#"echo '{"code":7,"msg":"bad","details":"very"}'; exit 1"#, 7, "plugin b (ADD): bad; very"),
        (r#"echo '{"cniVersion":"1.0.0","code":120,"msg":"full"}'; exit 77"#, 120, "plugin b (ADD): full; "),
        // 999 is the library's "no code"; 3 would tell the runtime that nothing is to be cleaned up; 0 is none.
        (r#"echo '{"code":999,"msg":"some Go error"}'; exit 1"#, 103, "plugin b (ADD): some Go error; "),
        (r#"echo '{"code":3,"msg":"unknown"}'; exit 1"#, 103, "plugin b (ADD): unknown; "),
        (r#"echo '{"code":0,"msg":"zero"}'; exit 1"#, 103, "plugin b (ADD): zero; "),
        ("echo oops; exit 1", 103, "plugin b failed with exit code 1: oops"),
        ("echo oops; echo why >&2; exit 2", 103, "plugin b failed with exit code 2: why"),
    ] {
        chain.answers(&result_of("1.0.0").to_string());
        chain.recorder.behave("b", "ADD", behaviour);
        let text = chain.call("ADD", "c1", "1.0.0").fails(code);
        assert!(text.starts_with("chain as eth0: ") && text.contains(says), "{text}");
        assert_eq!(chain.recorder.take(), ["ADD a eth0", "ADD b eth0", "DEL c eth0", "DEL b eth0", "DEL a eth0"]);
        assert!(crate::harness::Interface::find(&chain.netns, "eth0").is_none());
        assert!(!Path::new("/var/lib/cni/results").exists(), "no cache is left for another runtime to find");
        chain.world.assert_clean();
    }
}

/// `tuning` changes the MTU, and passes on the result of the plugin before it as that was.
#[test]
fn network_status_tells_the_mtu_that_a_chain_left() {
    let world = World::new();
    let recorder = Recorder::install(&world.bin, &["first", "second"]);
    for (plugin, name) in [("first", "eth0"), ("second", "net1")] {
        let result =
            json!({"cniVersion": "1.1.0", "interfaces": [{"name": name, "mtu": 1500, "sandbox": "/run/netns/x"}]});
        let make = format!("nsenter --net=$CNI_NETNS ip link add {name} type veth peer name peer-{name}");
        recorder.behave(plugin, "ADD", &format!("{make}; echo '{result}'; exit 0"));
    }
    world.plugins("reference", &["tuning"]);
    let primary = world.primary(&json!({"cniVersion": "1.1.0", "name": "main", "plugins": [{"type": "first"}]}));
    let plugins = json!([{"type": "second"}, {"type": "tuning", "mtu": 1380}]);
    world.definition("net-a", &json!({"cniVersion": "1.1.0", "plugins": plugins}));
    world.pod("p", "net-a");
    let (conf, netns) = (world.conf(&primary), world.netns());
    world.call("ADD", "c1", &netns, &conf).pod("p").ok();
    assert_eq!(Interface::find(&netns, "net1").unwrap().mtu(), 1380);
    let status = world.status("p").unwrap();
    assert_eq!((&status[0]["mtu"], &status[1]["mtu"]), (&json!(1500), &json!(1380)), "{status:#}");
    // The plugins get back what they printed.
    world.call("DEL", "c1", &netns, &conf).pod("p").ok();
    let told = recorder
        .calls()
        .into_iter()
        .map(|call| call.0)
        .find(|call| call["plugin"] == "second" && call["verb"] == "DEL");
    assert_eq!(told.unwrap()["conf"]["prevResult"]["interfaces"][0]["mtu"], 1500);
    world.assert_clean();
}
