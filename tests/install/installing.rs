//! A node is installed, and what it is then.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink},
    path::Path,
};

use serde_json::{Value, json};

use crate::{
    bed::{KEPT, NET_D, Node, OURS, PRIMARY, our_plugin, ours, podnet},
    harness::{Interface, names},
};

#[test]
fn a_node_is_installed_and_its_pods_get_their_networks() {
    let node = Node::new();
    fs::write(format!("{NET_D}/00-multus.conf"), r#"{"name":"m","type":"multus","delegates":[{"type":"x"}]}"#).unwrap();
    let podman = r#"{"cniVersion":"0.4.0","name":"podman","plugins":[{"type":"bridge"}]}"#;
    fs::write(format!("{NET_D}/87-podman-bridge.conflist"), podman).unwrap();
    let before = fs::read(PRIMARY).unwrap();
    let text = node.install(&["--node-name", "node-1"]);
    assert!(text.contains("10-podnet.conflist is taken over (network podnet)"), "{text}");
    assert!(text.contains("note: behind ours there is 00-multus.conf (leads to multus), 87-podman-bridge"), "{text}");

    assert!(node.is_ours_and_whole());
    assert_eq!(
        ours(),
        json!({
            "cniVersion": "1.0.0", "cniVersions": ["0.3.1", "0.4.0", "1.0.0", "1.1.0"], "name": "meta-cni",
            "plugins": [{
                "type": "meta-cni", "clusterNetwork": KEPT, "nodeName": "node-1", "binDir": node.bin,
                "capabilities": {"portMappings": true, "io.kubernetes.cri.pod-annotations": true},
                "manifestDir": node.world.manifests,
            }]
        })
    );
    assert_eq!(fs::metadata(OURS).unwrap().mode() & 0o7777, 0o600);
    assert!(!Path::new(PRIMARY).exists());
    assert_eq!((fs::read(KEPT).unwrap(), fs::metadata(KEPT).unwrap().mode() & 0o7777), (before, 0o640));
    let program = node.bin.join("meta-cni");
    assert!(node.has_own_program());
    assert_eq!(fs::metadata(&program).unwrap().mode() & 0o7777, 0o755);

    let netns = node.world.netns();
    node.add("p", &netns);
    assert!(Interface::find(&netns, "eth0").is_some() && Interface::find(&netns, "net1").is_some());
    node.del("p", &netns);
    node.world.assert_clean();

    // Once more: every file is the one that it was.
    let inodes = || [OURS, KEPT, program.to_str().unwrap()].map(|path| fs::metadata(path).unwrap().ino());
    let then = (node.tree(), inodes());
    assert!(node.install(&["--node-name", "node-1"]).starts_with("everything is in place\n"));
    assert_eq!((node.tree(), inodes()), then);
}

#[test]
fn a_conf_of_ours_is_whole_in_every_version_that_a_runtime_may_choose() {
    let node = Node::new();
    node.install(&[]);
    for version in ours()["cniVersions"].as_array().unwrap() {
        let mut conf = our_plugin();
        conf["name"] = json!("meta-cni");
        conf["cniVersion"] = version.clone();
        let netns = node.world.netns();
        node.world.pod("p", "net-a");
        let result = node.world.call("ADD", "p", &netns, &conf).pod("p").ok();
        assert_eq!(&result["cniVersion"], version);
        node.world.call("DEL", "p", &netns, &conf).pod("p").ok();
    }
    node.world.assert_clean();
}

#[test]
fn further_names_are_copies_and_programs_of_these_names_are_put_aside_only_if_that_is_asked_for() {
    let node = Node::new();
    fs::write(node.bin.join("sriov"), "another's").unwrap();
    fs::set_permissions(node.bin.join("sriov"), fs::Permissions::from_mode(0o755)).unwrap();
    // As an administrator, or an earlier installer, made it.
    symlink("meta-cni", node.bin.join("passthru")).unwrap();
    let names_asked = ["--names", "multus,sriov"];
    let text = node.refuses("install", &names_asked, 1);
    assert!(text.contains("sriov in /run/test/bin is another program") && text.contains("--replace"), "{text}");
    assert!(!Path::new(OURS).exists());

    node.install(&[&names_asked[..], &["--replace"]].concat());
    let program = fs::read(node.program()).unwrap();
    let inode = |name: &str| fs::symlink_metadata(node.bin.join(name)).unwrap().ino();
    let inodes: BTreeSet<u64> = ["meta-cni", "multus", "sriov", "passthru"].map(inode).into();
    assert_eq!(inodes.len(), 4, "each is a file of its own");
    for name in ["multus", "sriov", "passthru"] {
        let there = fs::symlink_metadata(node.bin.join(name)).unwrap();
        assert!(there.is_file() && there.mode() & 0o7777 == 0o755 && fs::read(node.bin.join(name)).unwrap() == program);
    }
    assert_eq!(fs::read_to_string(node.bin.join("sriov.meta-cni-saved")).unwrap(), "another's");
    let version = node.world.call("VERSION", "", "", &Value::Null).program(&node.bin.join("sriov")).ok();
    assert_eq!(version["cniVersion"], "1.1.0");
    // Its owner puts a newer one there: that is put aside in its place. And what was asked for once stays.
    fs::remove_file(node.bin.join("sriov")).unwrap();
    fs::write(node.bin.join("sriov"), "a newer one").unwrap();
    node.install(&["--names", "sriov", "--replace"]);
    assert_eq!(fs::read_to_string(node.bin.join("sriov.meta-cni-saved")).unwrap(), "a newer one");
    assert!(node.bin.join("multus").exists());
    // Another build, which is told nothing of names, renews them all.
    let node = node.another_build();
    node.install(&[]);
    assert!(node.has_own_program());
    for name in ["multus", "sriov", "passthru"] {
        assert!(fs::read(node.bin.join(name)).unwrap() == fs::read(node.program()).unwrap(), "{name}");
    }
    let text = node.refuses("install", &["--names", "bridge"], 2);
    assert!(text.contains("\"bridge\" is none of multus, multus-shim, passthru, sriov, host-local"), "{text}");
    node.uninstall(&[]);
    assert_eq!(fs::read_to_string(node.bin.join("sriov")).unwrap(), "a newer one");
    assert!(["multus", "passthru", "meta-cni"].iter().all(|name| !node.bin.join(name).exists()));
}

#[test]
fn an_upgrade_replaces_a_program_that_runs() {
    let node = Node::new();
    node.install(&[]);
    let netns = node.world.netns();
    let mut conf = our_plugin();
    conf["name"] = json!("meta-cni");
    conf["cniVersion"] = json!("1.0.0");
    node.world.pod("p", "net-a");
    let call = node.world.call("ADD", "p", &netns, &conf).program(&node.bin.join("meta-cni")).pod("p");
    let mut running = call.start_unfed();
    let node = node.another_build();
    let text = node.install(&[]);
    assert!(text.contains("/run/test/bin/meta-cni is version "), "{text}");
    assert!(node.has_own_program());
    call.feed(&mut running);
    assert!(running.wait().unwrap().success());
    assert!(Interface::find(&netns, "net1").is_some());
    node.del("p", &netns);
    node.world.assert_clean();
}

#[test]
fn in_a_container_files_go_below_the_prefix_and_name_the_nodes_own_paths() {
    let node = Node::bare();
    let host = Path::new("/run/test/host");
    fs::create_dir_all(host.join("etc/cni/net.d")).unwrap();
    fs::write(host.join("etc/cni/net.d/10-a.conflist"), podnet(json!({})).to_string()).unwrap();
    for (file, text) in [("token", "eyJ.e30.x"), ("ca", "-----BEGIN CERTIFICATE-----\n")] {
        fs::write(format!("/run/test/{file}"), text).unwrap();
    }
    let more = ["--host-root", "/run/test/host", "--token-file", "/run/test/token", "--ca-file", "/run/test/ca"];
    let server = ["--server", "https://[fd00::1]:6443", "--cni-bin-dir", "/opt/cni/bin", "--no-config"];
    node.install(&[&more[..], &server].concat());
    let read = |path: &str| serde_json::from_slice::<Value>(&fs::read(host.join(path)).unwrap()).unwrap();
    let plugin = &read("etc/cni/net.d/00-meta-cni.conflist")["plugins"][0];
    assert_eq!(plugin["clusterNetwork"], "/etc/cni/net.d/10-a.conflist.meta-cni");
    assert_eq!(plugin["kubeconfig"], "/var/lib/cni/meta-cni/credentials/kubeconfig");
    assert_eq!(plugin["binDir"], Value::Null);
    let kubeconfig = read("var/lib/cni/meta-cni/credentials/kubeconfig");
    let cluster = &kubeconfig["clusters"][0]["cluster"];
    assert_eq!(cluster["server"], "https://[fd00::1]:6443");
    assert_eq!(cluster["certificate-authority"], "/var/lib/cni/meta-cni/credentials/ca.crt");
    assert_eq!(kubeconfig["users"][0]["user"]["tokenFile"], "/var/lib/cni/meta-cni/credentials/token");
    assert!(host.join("opt/cni/bin/meta-cni").is_file() && !Path::new(OURS).exists());
}

#[test]
fn an_administrators_keys_stay_and_plugins_that_others_put_behind_ours_too() {
    let node = Node::new();
    let own = |keys: Value| fs::write("/run/test/other.json", keys.to_string()).unwrap();
    own(json!({"logLevel": "debug", "namespaceIsolation": true}));
    node.install(&["--config", "/run/test/other.json", "--node-name", "n"]);
    let mut list = ours();
    list["plugins"].as_array_mut().unwrap().push(json!({"type": "istio-cni", "log_level": "info"}));
    fs::write(OURS, list.to_string()).unwrap();
    // Without a file of keys, and without a name: as they were.
    node.install(&["--no-config"]);
    assert_eq!((&our_plugin()["logLevel"], &our_plugin()["nodeName"]), (&json!("debug"), &json!("n")));
    assert_eq!(ours()["plugins"][1], json!({"type": "istio-cni", "log_level": "info"}));
    // With one, those in it and no others.
    own(json!({"logLevel": "error"}));
    node.install(&["--config", "/run/test/other.json"]);
    assert_eq!((&our_plugin()["logLevel"], &our_plugin()["namespaceIsolation"]), (&json!("error"), &Value::Null));
    for (keys, part) in [
        (json!({"clusterNetwork": "x"}), "\"clusterNetwork\" in --config is what the installer writes"),
        (json!({"strict": true, "logLevle": "debug"}), "did you mean \"logLevel\""),
        (json!({"confDir": "relative"}), "is no absolute path"),
    ] {
        own(keys);
        let text = node.refuses("install", &["--config", "/run/test/other.json"], 1);
        assert!(text.contains(part), "{text}");
    }
}

#[test]
fn confs_of_the_primarys_own_directory_stay_in_its_chain() {
    let node = Node::new();
    fs::create_dir(format!("{NET_D}/podnet")).unwrap();
    fs::write(format!("{NET_D}/podnet/a.conf"), r#"{"type":"portmap","capabilities":{"bandwidth":true}}"#).unwrap();
    node.install(&[]);
    assert_eq!(our_plugin()["capabilities"]["bandwidth"], true);
    let netns = node.world.netns();
    node.add("p", &netns);
    let records = node.world.records("p");
    assert_eq!(records.len(), 2, "{records:?}");
    let kept = names("/var/lib/cni/meta-cni/confs")
        .iter()
        .any(|name| fs::read_to_string(format!("/var/lib/cni/meta-cni/confs/{name}")).unwrap().contains("portmap"));
    assert!(kept, "the chained plugin was run");
    node.del("p", &netns);
}

#[test]
fn another_primary_is_taken_when_it_is_named_and_stays_the_primary() {
    let node = Node::new();
    let mut other = podnet(json!({"bandwidth": true}));
    other["plugins"][0]["bridge"] = json!("cni9");
    fs::write(format!("{NET_D}/99-other.conflist"), other.to_string()).unwrap();
    node.install(&[]);
    assert_eq!(our_plugin()["clusterNetwork"], KEPT);
    node.install(&["--primary", "99-other.conflist"]);
    assert_eq!(our_plugin()["clusterNetwork"], format!("{NET_D}/99-other.conflist.meta-cni"));
    assert_eq!(our_plugin()["capabilities"]["bandwidth"], true);
    assert_eq!(our_plugin()["capabilities"]["portMappings"], Value::Null);
    node.install(&[]);
    assert_eq!(our_plugin()["clusterNetwork"], format!("{NET_D}/99-other.conflist.meta-cni"));
    // One outside of the runtime's directory is used where it is.
    let elsewhere = node.world.bridge_primary();
    node.install(&["--primary", &elsewhere]);
    assert_eq!(our_plugin()["clusterNetwork"], json!(elsewhere));
    assert_eq!(names(NET_D), ["00-meta-cni.conflist", "10-podnet.conflist.meta-cni", "99-other.conflist.meta-cni"]);
}
