//! What is not installed, and why: nothing of it is left half done.

use std::{fs, os::unix::fs::symlink, path::Path};

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::stat::Mode,
    unistd::mkfifo,
};
use serde_json::json;

use crate::{
    bed::{KEPT, NET_D, Node, OURS, PRIMARY, STATE, podnet},
    harness::names,
};

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
fn a_directory_that_cannot_be_written_is_named_and_the_runtime_keeps_its_conf() {
    let node = Node::new();
    let primary = fs::read(PRIMARY).unwrap();
    let bin = node.bin.to_str().unwrap().to_owned();
    let credentials =
        ["--token-file", "/run/test/token", "--ca-file", "/run/test/ca", "--server=https://10.0.0.1:6443"];
    fs::write("/run/test/token", "eyJ.e30.x").unwrap();
    fs::write("/run/test/ca", "-----BEGIN CERTIFICATE-----\n").unwrap();
    let read_only = || (MsFlags::MS_RDONLY, None);
    // A disk of one page, and one for some small files but no program.
    let full = |size| (MsFlags::empty(), Some(size));
    for (directory, (flags, data), parts) in [
        (bin.as_str(), read_only(), ["write /run/test/bin/meta-cni", "Read-only file system"]),
        (bin.as_str(), full("size=1m"), ["write /run/test/bin/meta-cni", "No space left on device"]),
        (STATE, full("size=4k,nr_inodes=1"), ["write /var/lib/cni/meta-cni/installed.json", "No space left on device"]),
        (STATE, full("size=4k,nr_inodes=5"), ["write /var/lib/cni/meta-cni/credentials/", "No space left on device"]),
    ] {
        fs::create_dir_all(directory).unwrap();
        mount(Some("tmpfs"), directory, Some("tmpfs"), flags, data).unwrap();
        let outcome = node.run("install", &[&credentials[..], &["--no-config"]].concat());
        umount2(directory, MntFlags::MNT_DETACH).unwrap();
        assert_eq!(outcome.code, 1, "{outcome:#?}");
        assert!(parts.iter().all(|part| outcome.stderr.contains(part)), "{outcome:#?}");
        assert_eq!(names(NET_D), ["10-podnet.conflist"], "{parts:?}");
        assert_eq!(fs::read(PRIMARY).unwrap(), primary);
    }
    node.install(&[]);
    assert!(node.is_ours_and_whole());
}

#[test]
fn what_is_no_file_in_the_place_of_one_is_named() {
    let node = Node::new();
    for (path, problem) in [
        (OURS.to_owned(), "write /etc/cni/net.d/00-meta-cni.conflist: Is a directory"),
        (KEPT.to_owned(), "write /etc/cni/net.d/10-podnet.conflist.meta-cni: Is a directory"),
        (format!("{}/meta-cni", node.bin.display()), "write /run/test/bin/meta-cni: Is a directory"),
    ] {
        let _ = fs::remove_file(&path);
        fs::create_dir(&path).unwrap();
        let outcome = node.run("install", &[]);
        fs::remove_dir(&path).unwrap();
        let _ = fs::remove_file(KEPT);
        assert!(outcome.code == 1 && outcome.stderr.contains(problem), "{outcome:#?}");
        assert!(Path::new(PRIMARY).exists() && !Path::new(OURS).exists());
    }
    // Of a pipe nobody reads for ever.
    let pipe = format!("{NET_D}/05-pipe.conflist");
    mkfifo(Path::new(&pipe), Mode::S_IRUSR).unwrap();
    let outcome = node.run("install", &[]);
    assert!(outcome.stderr.contains("cannot be used: 05-pipe.conflist: it is no plain file"), "{outcome:#?}");
    assert!(outcome.code == 1 && Path::new(PRIMARY).exists() && !Path::new(OURS).exists());
    fs::remove_file(&pipe).unwrap();
    // The directory may be a link.
    fs::rename(NET_D, "/etc/cni/elsewhere").unwrap();
    symlink("elsewhere", NET_D).unwrap();
    node.install(&[]);
    assert!(node.is_ours_and_whole() && Path::new("/etc/cni/elsewhere/00-meta-cni.conflist").exists());
    node.uninstall(&[]);
    assert_eq!(names("/etc/cni/elsewhere"), ["10-podnet.conflist"]);
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
