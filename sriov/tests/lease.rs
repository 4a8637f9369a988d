//! Leases and locks, on real namespaces. Needs root.
#![allow(clippy::unwrap_used)] // functions beside the tests unwrap too

use std::fs;
use std::future::Future;
use std::path::Path;
use std::time::Duration;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use sandbox::Netns;
use sriov::{Error, Leases, Owner, PciAddress, Standing};

const SOON: Duration = Duration::from_millis(100);

/// Runs in a mount namespace of its own, on the thread that libtest made for the test.
fn isolated<F: Future<Output = ()>>(test: impl FnOnce(tempfile::TempDir) -> F) {
    unshare(CloneFlags::CLONE_NEWNS).expect("root is needed");
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
    let dir = tempfile::tempdir().unwrap();
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test(dir));
}

fn leases(dir: &Path, boot_id: &str) -> Leases {
    Leases { state: dir.join("state"), locks: dir.join("lock"), boot_id: boot_id.to_owned() }
}

fn vf() -> PciAddress {
    PciAddress::try_from("0000:01:10.2").unwrap()
}

/// A bind-mounted namespace, as a container runtime makes one.
fn sandbox_at(path: &Path) -> Netns {
    fs::write(path, "").unwrap();
    std::thread::scope(|scope| {
        let new = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            mount(Some("/proc/thread-self/ns/net"), path, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
        });
        new.join().unwrap();
    });
    Netns::open(path).unwrap()
}

fn owner(call: &str, path: &Path, boot_id: &str) -> Owner {
    let netns = sandbox_at(path).id().clone();
    Owner {
        call: call.to_owned(),
        pod_uid: format!("uid-of-{call}"),
        netns,
        boot_id: boot_id.to_owned(),
        original: None,
    }
}

#[test]
fn a_vf_of_a_living_pod_is_refused_and_the_pod_named() {
    isolated(|dir| async move {
        let leases = leases(dir.path(), "boot-1");
        let lock = leases.lock(vf(), SOON).await.unwrap();
        let a = owner("call-a", &dir.path().join("ns-a"), "boot-1");
        let b = owner("call-b", &dir.path().join("ns-b"), "boot-1");
        assert_eq!(leases.acquire(&lock, &a).unwrap(), Standing::Free);
        assert_eq!(leases.acquire(&lock, &a).unwrap(), Standing::Ours);
        let error = leases.acquire(&lock, &b).unwrap_err();
        assert!(matches!(&error, Error::Busy { owner, .. } if **owner == a), "{error:?}");
        assert!(error.to_string().starts_with("pci address 0000:01:10.2 is already allocated: call-a"), "{error}");
        assert_eq!(leases.owner(vf()).unwrap(), Some(a.clone()));
        assert_eq!(leases.list().unwrap(), [vf()]);
        // A late release by somebody else touches nothing.
        assert!(!leases.release(&lock, "call-b").unwrap());
        assert_eq!(leases.owner(vf()).unwrap(), Some(a));
        assert!(leases.release(&lock, "call-a").unwrap());
        assert!(!leases.release(&lock, "call-a").unwrap());
        assert_eq!(leases.acquire(&lock, &b).unwrap(), Standing::Free);
    });
}

#[test]
fn a_dead_owner_is_handed_to_the_caller_and_replaced_only_when_taken() {
    isolated(|dir| async move {
        let leases = leases(dir.path(), "boot-1");
        let lock = leases.lock(vf(), SOON).await.unwrap();
        let path = dir.path().join("ns-a");
        let a = owner("call-a", &path, "boot-1");
        let b = owner("call-b", &dir.path().join("ns-b"), "boot-1");
        leases.acquire(&lock, &a).unwrap();
        umount2(&path, MntFlags::MNT_DETACH).unwrap();
        assert_eq!(leases.acquire(&lock, &b).unwrap(), Standing::Abandoned(Some(a.clone())), "a plain file is left");
        fs::remove_file(&path).unwrap();
        assert_eq!(leases.acquire(&lock, &b).unwrap(), Standing::Abandoned(Some(a.clone())), "nothing is left");
        let keep = Netns::open(dir.path().join("ns-b")).unwrap();
        let another = owner("x", &path, "boot-1");
        assert_ne!(another.netns.inode, keep.id().inode);
        if another.netns.inode != a.netns.inode {
            let standing = leases.acquire(&lock, &b).unwrap();
            assert_eq!(standing, Standing::Abandoned(Some(a.clone())), "another namespace at the same path");
        }
        assert_eq!(leases.owner(vf()).unwrap(), Some(a), "nothing was written yet");
        leases.take(&lock, &b).unwrap();
        assert_eq!(leases.acquire(&lock, &b).unwrap(), Standing::Ours);
        assert!(!leases.release(&lock, "call-a").unwrap(), "the former owner's late DEL");
    });
}

#[test]
fn the_draft_of_a_killed_writer_is_listed_and_goes_with_the_next_lock() {
    isolated(|dir| async move {
        let leases = leases(dir.path(), "boot-1");
        let vfs = dir.path().join("state/vfs");
        fs::create_dir_all(&vfs).unwrap();
        fs::write(vfs.join("0000:01:10.2.tmp"), "{\"call\":").unwrap();
        assert_eq!(leases.list().unwrap(), [vf()]);
        assert_eq!(leases.owner(vf()).unwrap(), None);
        drop(leases.lock(vf(), SOON).await.unwrap());
        assert_eq!(leases.list().unwrap(), []);
        assert_eq!(fs::read_dir(vfs).unwrap().count(), 0);
    });
}

#[test]
fn nothing_survives_a_reboot_or_a_torn_file() {
    isolated(|dir| async move {
        let before = leases(dir.path(), "boot-1");
        let after = leases(dir.path(), "boot-2");
        let lock = after.lock(vf(), SOON).await.unwrap();
        let a = owner("call-a", &dir.path().join("ns-a"), "boot-1");
        before.acquire(&lock, &a).unwrap();
        let b = owner("call-b", &dir.path().join("ns-b"), "boot-2");
        assert_eq!(after.acquire(&lock, &b).unwrap(), Standing::Abandoned(Some(a)));
        after.forget_torn(&lock).unwrap();
        assert_eq!(after.list().unwrap(), [vf()], "it can be read");
        fs::write(dir.path().join("state/vfs/0000:01:10.2.json"), "{\"call\":").unwrap();
        assert_eq!(after.acquire(&lock, &b).unwrap(), Standing::Abandoned(None));
        assert!(!after.release(&lock, "call-a").unwrap());
        assert!(after.is_torn(vf()).unwrap());
        after.forget_torn(&lock).unwrap();
        assert!(!after.is_torn(vf()).unwrap());
        assert_eq!(after.acquire(&lock, &b).unwrap(), Standing::Free);
    });
}

#[test]
fn a_lock_excludes_waits_and_is_none_on_a_file_that_was_replaced() {
    isolated(|dir| async move {
        let leases = leases(dir.path(), "boot-1");
        let held = leases.lock(vf(), SOON).await.unwrap();
        let path = dir.path().join("lock/vf-0000:01:10.2");
        let error = leases.lock(vf(), SOON).await.unwrap_err();
        assert!(matches!(&error, Error::LockTimeout { path: p } if *p == path), "{error:?}");
        // Another VF is not concerned.
        leases.lock(PciAddress::try_from("0000:01:10.4").unwrap(), SOON).await.unwrap();
        let waiting = leases.lock(vf(), Duration::from_secs(10));
        let (second, ()) = tokio::join!(waiting, async {
            tokio::task::yield_now().await;
            // Whoever waits has the old file open; the new one is another lock.
            fs::remove_file(&path).unwrap();
            fs::write(&path, "").unwrap();
            drop(held);
        });
        let second = second.unwrap();
        let error = leases.lock(vf(), SOON).await.unwrap_err();
        assert!(matches!(error, Error::LockTimeout { .. }), "the second lock holds the file that is in place");
        drop(second);
        leases.lock(vf(), SOON).await.unwrap();
    });
}

#[test]
fn a_lease_of_a_newer_release_is_understood_as_far_as_it_can_be_kept_and_its_vf_given_to_nobody() {
    isolated(|dir| async move {
        let leases = leases(dir.path(), "boot-1");
        let lock = leases.lock(vf(), SOON).await.unwrap();
        let file = dir.path().join("state/vfs/0000:01:10.2.json");
        let a = owner("call-a", &dir.path().join("ns-a"), "boot-1");
        leases.acquire(&lock, &a).unwrap();
        let ours = fs::read_to_string(&file).unwrap();
        assert!(ours.starts_with("{\"format\":1,\"call\":\"call-a\","), "{ours}");
        let readable = ours.replacen("{\"format\":1,", "{\"format\":2,\"representor\":{\"x\": 1.0},", 1);
        let unreadable = "{\"format\":3,\"owners\":[\"call-a\",\"call-b\"]}".to_owned();
        for (text, format, found) in [(readable, 2, Some(&a)), (unreadable, 3, None)] {
            fs::write(&file, &text).unwrap();
            assert_eq!(leases.owner(vf()).unwrap().as_ref(), found);
            assert!(!leases.is_torn(vf()).unwrap());
            for call in ["call-a", "call-b"] {
                let asking = Owner { call: call.to_owned(), ..a.clone() };
                let error = leases.acquire(&lock, &asking).unwrap_err();
                assert!(
                    matches!(&error, Error::Newer { format: f, path, .. } if *f == format && *path == file),
                    "{error}"
                );
                assert!(!leases.release(&lock, call).unwrap());
            }
            leases.forget_torn(&lock).unwrap();
            assert_eq!(leases.list().unwrap(), [vf()]);
            assert_eq!(fs::read_to_string(&file).unwrap(), text);
        }
        // One of before there was a number, and one with more in it than is known.
        for text in [ours.replacen("\"format\":1,", "", 1), ours.replacen(":1,", ":1,\"since\":[1],", 1)] {
            fs::write(&file, &text).unwrap();
            assert_eq!(leases.acquire(&lock, &a).unwrap(), Standing::Ours);
            assert!(leases.release(&lock, "call-a").unwrap());
        }
    });
}
