//! What is not installed, and why: nothing of it is left half done.

use std::{fs, path::Path};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::json;

use crate::bed::{KEPT, NET_D, Node, OURS, PRIMARY, podnet};

#[test]
fn nothing_is_written_before_the_primary_is_there_and_whole() {
    let node = Node::bare();
    let whole = podnet(json!({})).to_string();
    for (text, part) in [
        (None, "found: nothing"),
        (Some(""), "primary network's configuration cannot be used: 10-podnet.conflist: "),
        (Some(&whole[..whole.len() / 2]), "does not parse"),
        (Some(r#"{"cniVersion":"1.0.0","name":"podnet","plugins":[]}"#), "10-podnet.conflist"),
        (Some(r#"{"cniVersion":"0.3.1","name":"lo","type":"loopback"}"#), "(loopback alone)"),
        (Some(r#"{"cniVersion":"0.3.1","name":"m","type":"multus-shim"}"#), "(leads to multus-shim)"),
        (Some(r#"{"cniVersion":"9.9.9","name":"podnet","plugins":[{"type":"bridge"}]}"#), "incompatible CNI versions"),
    ] {
        if let Some(text) = text {
            fs::write(PRIMARY, text).unwrap();
        }
        let said = node.refuses("install", &[], 1);
        assert!(said.contains(part), "{said}");
        assert!(!Path::new(OURS).exists() && !Path::new(KEPT).exists());
    }
    fs::write(PRIMARY, whole).unwrap();
    node.install(&[]);
    assert!(node.is_ours_and_whole());
}

#[test]
fn a_disk_that_is_full_leaves_the_conf_that_was_there() {
    let node = Node::new();
    let primary = fs::read(PRIMARY).unwrap();
    mount(Some("tmpfs"), NET_D, Some("tmpfs"), MsFlags::empty(), Some("size=64k")).unwrap();
    fs::write(PRIMARY, primary).unwrap();
    node.install(&[]);
    let before = fs::read(OURS).unwrap();
    let fill = |number: usize| fs::write(format!("{NET_D}/fill-{number}"), vec![b'x'; 4096]);
    let full = (0..100).find(|number| fill(*number).is_err()).expect("a full disk");
    fs::remove_file(format!("{NET_D}/fill-{full}")).unwrap();
    let text = node.refuses("install", &["--node-name", "another"], 1);
    assert!(text.contains("00-meta-cni.conflist") && text.contains("No space left"), "{text}");
    assert_eq!(fs::read(OURS).unwrap(), before);
    assert!(node.is_ours_and_whole());
    fs::remove_file(format!("{NET_D}/fill-0")).unwrap();
    node.install(&["--node-name", "another"]);
    umount2(NET_D, MntFlags::MNT_DETACH).unwrap();
}

#[test]
fn what_the_runtime_would_read_before_ours_is_named_and_nothing_is_touched() {
    let node = Node::new();
    for (name, text) in [
        ("00-aaa.conf", r#"{"cniVersion":"0.3.1","name":"m","type":"multus","delegates":[]}"#),
        ("00-meta-cni.conf", r#"{"cniVersion":"1.0.0","name":"m","type":"meta-cni"}"#),
    ] {
        fs::write(format!("{NET_D}/{name}"), text).unwrap();
        let said = node.refuses("install", &[], 1);
        assert!(
            said.contains(&format!("the runtime would read {name}")) && said.contains("remove or rename it"),
            "{said}"
        );
        fs::remove_file(format!("{NET_D}/{name}")).unwrap();
    }
    // The primary's own may come first: it is taken away.
    fs::rename(PRIMARY, format!("{NET_D}/00-calico.conflist")).unwrap();
    node.install(&[]);
    assert_eq!(node.first().unwrap().0, "00-meta-cni.conflist");
}

#[test]
fn a_command_line_that_is_wrong_is_said_to_be() {
    let node = Node::new();
    for (more, part) in [
        (&["--token-file", "/t"][..], "--token-file and --ca-file, both"),
        (&["--server", "https://a"], "--token-file and --ca-file, both"),
        (&["--kubeconfig", "/k", "--server", "https://a"], "--kubeconfig says all"),
        (&["--state-dir", "relative"], "--state-dir relative is no absolute path"),
        (&["--primary", "a/b"], "--primary is a name in /etc/cni/net.d or an absolute path"),
    ] {
        let text = node.refuses("install", more, 2);
        assert!(text.contains(part), "{text}");
    }
    let text = node.refuses("install", &["--token-file", "/t", "--ca-file", "/c", "--server", "http://10.0.0.1"], 1);
    assert!(text.contains("is not reached by https"), "{text}");
    let text = node.refuses("install", &["--kubeconfig", "/run/test/none"], 1);
    assert!(text.contains("kubeconfig /run/test/none"), "{text}");
}
