//! Token and CA on the node, kept as fresh as those of the container.

use std::{
    fs,
    os::unix::fs::{MetadataExt as _, symlink},
    path::{Path, PathBuf},
};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::{
    bed::{Node, OURS, STATE, our_plugin},
    harness::names,
};

pub(crate) const CA: &str = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n";

/// A projected volume, as kubelet mounts and renews it: the names are links into a directory that a link is exchanged for.
pub(crate) struct Projected {
    directory: PathBuf,
    version: u32,
}

impl Projected {
    fn new(token: &str) -> Self {
        Self::at("/run/test/projected", token)
    }

    pub(crate) fn at(directory: &str, token: &str) -> Self {
        fs::create_dir_all(directory).unwrap();
        let mut volume = Self { directory: directory.into(), version: 0 };
        volume.renew(token, CA);
        for name in ["token", "ca.crt"] {
            symlink(format!("..data/{name}"), volume.directory.join(name)).unwrap();
        }
        volume
    }

    pub(crate) fn renew(&mut self, token: &str, ca: &str) {
        let version = |number: u32| format!("..version-{number}");
        self.version += 1;
        let directory = self.directory.join(version(self.version));
        fs::create_dir(&directory).unwrap();
        fs::write(directory.join("token"), token).unwrap();
        fs::write(directory.join("ca.crt"), ca).unwrap();
        symlink(version(self.version), self.directory.join("..data_tmp")).unwrap();
        fs::rename(self.directory.join("..data_tmp"), self.directory.join("..data")).unwrap();
        let _ = fs::remove_dir_all(self.directory.join(version(self.version - 1)));
    }
}

const MORE: [&str; 5] =
    ["--token-file", "/run/test/projected/token", "--ca-file", "/run/test/projected/ca.crt", "--no-config"];

pub(crate) fn kept(name: &str) -> String {
    fs::read_to_string(format!("{STATE}/credentials/{name}")).unwrap_or_default()
}

fn server() -> Value {
    let kubeconfig: Value = serde_json::from_str(&kept("kubeconfig")).unwrap();
    kubeconfig["clusters"][0]["cluster"]["server"].clone()
}

#[test]
fn token_and_ca_are_renewed_on_the_node_whenever_kubelet_renews_them() {
    let node = Node::new();
    let mut volume = Projected::new("eyJ.first.x");
    let watch = node.watch(&[&MORE[..], &["--server", "https://10.0.0.1:6443"]].concat());
    watch.until("it is installed", || Path::new(OURS).exists());
    assert_eq!((kept("token").as_str(), kept("ca.crt").as_str()), ("eyJ.first.x", CA));
    assert_eq!(our_plugin()["kubeconfig"], format!("{STATE}/credentials/kubeconfig"));
    assert_eq!(server(), "https://10.0.0.1:6443");
    for name in ["token", "ca.crt", "kubeconfig"] {
        assert_eq!(fs::metadata(format!("{STATE}/credentials/{name}")).unwrap().mode() & 0o7777, 0o600, "{name}");
    }
    assert_eq!(fs::metadata(format!("{STATE}/credentials")).unwrap().mode() & 0o7777, 0o700);
    for turn in 0..10 {
        let (token, ca) = (format!("eyJ.turn-{turn}.x"), format!("{CA}{turn}"));
        volume.renew(&token, &ca);
        watch.until("they are renewed", || kept("token") == token && kept("ca.crt") == ca);
    }
    // What is no token does not come into force, and the rest goes on.
    volume.renew("", CA);
    watch.says("/run/test/projected/token holds no token");
    assert_eq!(kept("token"), "eyJ.turn-9.x");
    fs::remove_file(OURS).unwrap();
    watch.until("our conf is put back without a token", || Path::new(OURS).exists());
    volume.renew("eyJ.last.x", CA);
    watch.until("it is renewed", || kept("token") == "eyJ.last.x");
    // A primary that cannot be followed keeps no token from being renewed.
    fs::write("/etc/cni/net.d/00-aaa.conf", "{").unwrap();
    watch.says("the runtime would read 00-aaa.conf");
    volume.renew("eyJ.after.x", CA);
    watch.until("it is renewed", || kept("token") == "eyJ.after.x");
    assert_eq!(watch.end(Signal::SIGTERM), Some(0));
    assert_eq!(names(format!("{STATE}/credentials")), ["ca.crt", "kubeconfig", "token"]);
}

#[test]
fn the_server_is_kubelets_own_where_none_is_named() {
    let node = Node::new();
    let _volume = Projected::new("eyJ.e30.x");
    let text = node.refuses("install", &MORE, 1);
    assert!(text.contains("no API server is known") && text.contains("--kubelet-kubeconfig"), "{text}");
    let service = |host: &str| {
        let call = node.command("install", &MORE).env("KUBERNETES_SERVICE_HOST", host);
        let outcome = call.env("KUBERNETES_SERVICE_PORT", "443").run();
        assert_eq!(outcome.code, 0, "{outcome:#?}");
        server()
    };
    assert_eq!(service("10.96.0.1"), "https://10.96.0.1:443");
    assert_eq!(service("fd00:96::1"), "https://[fd00:96::1]:443");
    let kubelet = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
        "clusters": [{"name": "k", "cluster": {"server": "https://10.0.0.7:6443"}}],
    });
    fs::write("/run/test/kubelet.conf", kubelet.to_string()).unwrap();
    let outcome = node.command("install", &[&MORE[..], &["--kubelet-kubeconfig", "/run/test/kubelet.conf"]].concat());
    let outcome = outcome.env("KUBERNETES_SERVICE_HOST", "10.96.0.1").env("KUBERNETES_SERVICE_PORT", "443").run();
    assert_eq!(outcome.code, 0, "{outcome:#?}");
    assert_eq!(server(), "https://10.0.0.7:6443");
}

#[test]
fn wrong_credentials_are_refused_before_anything_is_touched() {
    let node = Node::new();
    let mut volume = Projected::new("  \n");
    let more = [&MORE[..], &["--server", "https://10.0.0.1"]].concat();
    assert!(node.refuses("install", &more, 1).contains("token holds no token"));
    volume.renew("eyJ.e30.x y", CA);
    assert!(node.refuses("install", &more, 1).contains("token holds no token"));
    volume.renew("eyJ.e30.x", "not a certificate");
    assert!(node.refuses("install", &more, 1).contains("ca.crt holds no certificate"));
    fs::remove_file("/run/test/projected/..data").unwrap();
    assert!(node.refuses("install", &more, 1).contains("/run/test/projected/token"));
    assert!(!Path::new(OURS).exists());
}
