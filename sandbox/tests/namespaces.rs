#![allow(clippy::unwrap_used)] // functions beside the tests unwrap too

//! Which namespace is which, and where they are, on the running kernel. Needs root.

mod support;

use std::process::Command;
use std::time::Duration;

use sandbox::{Netns, Rtnl};
use support::{eventually, isolated, mount_new_netns, new_netns};

/// The kernel gives the inode of a dead namespace to the next one; only the cookie tells them apart.
#[test]
fn a_namespace_in_the_place_of_a_dead_one_is_another() {
    isolated(|| async {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("netns");
        std::fs::write(&path, "").unwrap();
        // The kernel takes a namespace apart in its own time and then gives out its numbers again, the lowest first; other
        // tests make namespaces too. So try until one gets the inode of one before it.
        let mut dead: Vec<sandbox::NetnsId> = Vec::new();
        let (first, second) = loop {
            let now = mount_new_netns(&path);
            if let Some(first) = dead.iter().find(|dead| dead.inode == now.id().inode) {
                break (first.clone(), now);
            }
            drop(now);
            let id = Rtnl::open(&Netns::open(&path).unwrap()).unwrap().netns().id().clone();
            assert_eq!(id, Netns::open(&path).unwrap().identify().unwrap(), "the socket's answer, and another's");
            assert!(id.cookie.is_some(), "Linux 5.14 has cookies");
            assert!(id.is_alive().unwrap());
            // The socket is closed when the runtime comes to it.
            tokio::time::sleep(Duration::from_millis(50)).await;
            nix::mount::umount(&path).unwrap();
            assert!(!id.is_alive().unwrap(), "a plain file");
            dead.push(id);
            assert!(dead.len() < 100, "no inode is used again");
        };
        assert_eq!((second.id().dev, second.id().inode), (first.dev, first.inode));
        assert!(!first.is_alive().unwrap() && !first.is_of(&second).unwrap(), "told apart by the cookie");
        assert_ne!(second.identify().unwrap().cookie, first.cookie);
        // What was written down without a cookie can only be compared by what it has.
        let old: sandbox::NetnsId =
            serde_json::from_value(serde_json::json!({"path": path, "dev": first.dev, "inode": first.inode})).unwrap();
        assert!(old.cookie.is_none() && old.is_alive().unwrap());
        assert!(!serde_json::to_string(&old).unwrap().contains("cookie"));
    });
}

/// Held by a mount, by a process, by a thread, by a descriptor: each is listed, once.
#[test]
fn every_namespace_that_somebody_holds_is_listed_once() {
    isolated(|| async {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("with blank");
        std::fs::write(&path, "").unwrap();
        drop(mount_new_netns(&path));
        let mounted = Netns::open(&path).unwrap().id().clone();
        let mut child = Command::new("unshare").args(["--net", "sleep", "60"]).spawn().unwrap();
        let of_child = format!("/proc/{}/ns/net", child.id());
        let own = Netns::current().unwrap();
        let of_process = eventually(|| Netns::open(&of_child).ok().filter(|netns| !netns.same_as(&own)));
        let of_process = of_process.id().clone();
        let open = new_netns();
        // One that was opened by a path which is gone: its descriptor does not show as a namespace.
        let other = dir.path().join("other");
        std::fs::write(&other, "").unwrap();
        drop(mount_new_netns(&other));
        let by_path = Netns::open(&other).unwrap();
        nix::mount::umount2(&other, nix::mount::MntFlags::MNT_DETACH).unwrap();

        let listed: Vec<sandbox::NetnsId> = sandbox::namespaces().map(|netns| netns.id().clone()).collect();
        let position = |id: &sandbox::NetnsId| {
            let at: Vec<usize> =
                listed.iter().enumerate().filter(|(_, l)| l.inode == id.inode).map(|(n, _)| n).collect();
            assert_eq!(at.len(), 1, "{id:?} in {listed:#?}");
            at[0]
        };
        assert_eq!(listed[position(&mounted)].path, path);
        assert!(position(&mounted) < position(&of_process) && position(&of_process) < position(open.id()));
        assert!(position(&of_process) < position(own.id()), "only a thread lives in it");
        assert!(position(&of_process) < position(by_path.id()));
        assert!(listed.iter().all(|id| id.cookie.is_some()));
        let inodes: std::collections::HashSet<u64> = listed.iter().map(|id| id.inode).collect();
        assert_eq!(inodes.len(), listed.len(), "each once: {listed:#?}");
        // A veth has no parent device, and nothing has this one.
        assert!(sandbox::namespace_of_device("0000:ff:1f.7").await.is_none());
        child.kill().unwrap();
        child.wait().unwrap();
    });
}
