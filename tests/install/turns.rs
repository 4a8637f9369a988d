//! Several installers that stay at once, as while a DaemonSet is rolled out: the one that came last does the work, and a
//! readiness probe hears how each is getting on.

use std::{fs, path::Path};

use nix::sys::signal::Signal;

use crate::{
    bed::{NET_D, Node, OURS, Watch},
    credentials::{CA, Projected, kept},
};

/// A pod of the DaemonSet: its volumes, and its installer.
struct Pod {
    name: &'static str,
    volume: Projected,
    installer: Watch,
}

impl Pod {
    fn start(node: &Node, name: &'static str) -> Self {
        let place = format!("/run/test/{name}");
        let volume = Projected::at(&place, &format!("eyJ.{name}-1.x"));
        let (token, ca) = (format!("{place}/token"), format!("{place}/ca.crt"));
        let status = format!("{place}-status");
        let installer = node.watch(&[
            "--token-file",
            &token,
            "--ca-file",
            &ca,
            "--server=https://10.0.0.1:6443",
            "--status-file",
            &status,
            "--no-config",
        ]);
        Self { name, volume, installer }
    }

    /// What its readiness probe says, and whether that is yes.
    fn probe(node: &Node, name: &str) -> (bool, String) {
        let outcome = node.run("install", &["--ready", "--status-file", &format!("/run/test/{name}-status")]);
        (outcome.code == 0, outcome.stdout + &outcome.stderr)
    }

    fn is_ready(&self, node: &Node) -> bool {
        Self::probe(node, self.name).0
    }

    fn renew(&mut self, turn: u32) -> String {
        let token = format!("eyJ.{}-{turn}.x", self.name);
        self.volume.renew(&token, CA);
        token
    }
}

#[test]
fn the_installer_that_came_last_does_the_work_and_the_one_before_goes_on_when_it_ends() {
    let node = Node::new();
    let mut old = Pod::start(&node, "old");
    old.installer.until("it is ready", || old.is_ready(&node));
    assert_eq!(kept("token"), "eyJ.old-1.x");
    assert!(node.has_own_program());

    let before = fs::read(node.bin.join("meta-cni")).unwrap();
    let node = node.another_build();
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        let _ = fs::remove_dir_all("/run/test/new");
        let mut new = Pod::start(&node, "new");
        new.installer.until("the later one is ready", || new.is_ready(&node));
        assert_eq!(kept("token"), "eyJ.new-1.x");
        assert!(node.has_own_program());
        old.installer.says("an installer that came later does the work");
        old.installer.until("its probe says so", || {
            Pod::probe(&node, "old") == (true, "an installer that came later does the work\n".to_owned())
        });
        // What is renewed for the old one does not come to the node, whatever else wakes it.
        old.renew(2);
        fs::remove_file(OURS).unwrap();
        fs::remove_file(node.bin.join("meta-cni")).unwrap();
        let token = new.renew(2);
        new.installer.until("all is put back", || {
            assert!(!kept("token").contains("old"), "{}", kept("token"));
            kept("token") == token && Path::new(OURS).exists() && node.bin.join("meta-cni").exists()
        });
        assert!(node.has_own_program());
        // However it ends, the old one's token is there at once, and its program.
        new.installer.end(signal);
        let late = old.installer.until("the old one does the work", || kept("token") == "eyJ.old-2.x");
        old.installer
            .until("its program is back", || fs::read(node.bin.join("meta-cni")).is_ok_and(|now| now == before));
        old.installer.says("the installer that came later has ended");
        println!("{signal}: its token is back after {late:?}");
    }
    old.installer.until("it is ready again", || old.is_ready(&node));
    // The end of the old one, as a roll-out has it: the new one's token is there before and after.
    let _ = fs::remove_dir_all("/run/test/new");
    let new = Pod::start(&node, "new");
    new.installer.until("the later one is ready", || new.is_ready(&node));
    old.installer.end(Signal::SIGTERM);
    assert_eq!(kept("token"), "eyJ.new-1.x");
    assert!(new.is_ready(&node));
    drop(new);
    node.uninstall(&[]);
}

#[test]
fn a_probe_says_why_a_node_is_not_ready() {
    let node = Node::bare();
    let says = |text: &str| {
        let (ready, said) = Pod::probe(&node, "one");
        !ready && said.contains(text)
    };
    assert!(says("it has not looked at the node yet"), "{:?}", Pod::probe(&node, "one"));
    assert!(node.refuses("install", &["--ready"], 2).contains("--ready asks in a --status-file"));
    let mut one = Pod::start(&node, "one");
    one.installer.until("the primary is missed", || says("the primary network's configuration is not there"));
    node.own_primary(&crate::bed::podnet(serde_json::json!({})));
    one.installer.until("it is ready", || one.is_ready(&node));
    one.volume.renew("", CA);
    one.installer.until("the token is missed", || says("/run/test/one/token holds no token"));
    one.renew(2);
    one.installer.until("it is ready again", || one.is_ready(&node));
    assert_eq!(one.installer.end(Signal::SIGTERM), Some(0));
    // Nobody is there any more who would look.
    fs::write(OURS, "").unwrap();
    fs::write("/etc/cni/net.d/00-a.conf", "{}").unwrap();
    assert!(says("the runtime reads 00-a.conf, not 00-meta-cni.conflist"));
    fs::remove_file("/etc/cni/net.d/00-a.conf").unwrap();
    one.volume.renew("eyJ.one-3.x", CA);
    assert!(says("credentials/token is not the token in /run/test/one/token"));
    // The container's next one, which comes to nothing for now: what the one before it told is no more.
    let busy = fs::File::open(NET_D).unwrap();
    busy.lock().unwrap();
    let next = node.watch(&["--status-file", "/run/test/one-status", "--no-config"]);
    next.until("it has not looked yet", || says("it has not looked at the node yet"));
    drop(busy);
    next.until("it has", || Pod::probe(&node, "one").0);
}
