//! A disk that is full or read-only: real file systems, mounted in a mount namespace of the test's own thread.
//! Needs root.

#![allow(clippy::unwrap_used, reason = "tests and their helpers: a panic is a failure")]

use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use ipam::{Error, Known, Node, Owner, Pool, Prior, RawIpam, Request};
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

const WAIT: Duration = Duration::from_secs(20);

/// Runs `test` on a tmpfs with these options; nothing of it is seen outside, and it is gone with the thread.
fn on_tmpfs(options: &'static str, test: fn(&Path)) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().to_owned();
    let thread = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNS).expect("a mount namespace: this test needs root");
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
        mount(Some("tmpfs"), &path, Some("tmpfs"), MsFlags::empty(), Some(options)).unwrap();
        test(&path);
    });
    let outcome = thread.join();
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0, "the mount was not private");
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}

fn pool(data: &Path) -> Pool {
    let json = format!(
        r#"{{"dataDir":"{}","ranges":[[{{"subnet":"10.0.0.0/24"}}],[{{"subnet":"fd00::/64"}}]]}}"#,
        data.display()
    );
    let raw: RawIpam = serde_json::from_str(&json).unwrap();
    Pool::new("net-a", &raw, &[], &Node::default()).unwrap()
}

fn reserve(pool: &Pool, container: &str) -> Result<usize, Error> {
    let owner = Owner::new(container, "eth0").unwrap();
    let request = Request { owner: &owner, requested: &[], prior: Prior::Unknown, lock_wait: WAIT };
    pool.reserve(&request).map(|found| found.len())
}

fn leases(pool: &Pool) -> Vec<String> {
    let names = fs::read_dir(&pool.directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut leases: Vec<_> = names.filter(|name| name.parse::<IpAddr>().is_ok()).collect();
    leases.sort();
    leases
}

#[track_caller]
fn refused_with(outcome: Result<usize, Error>, errno: Errno) {
    let error = outcome.unwrap_err();
    assert!(matches!(&error, Error::Io { source, .. } if source.raw_os_error() == Some(errno as i32)), "{error}");
}

/// At every number of free inodes, so that the disk is full at every step of the work.
#[test]
fn a_full_disk_gives_all_addresses_or_none() {
    on_tmpfs("size=1m,nr_inodes=64", |data| {
        let pool = pool(data);
        assert_eq!(reserve(&pool, "first").unwrap(), 2);
        let mut number = 0;
        while fs::write(data.join(format!("ballast-{number}")), "").is_ok() {
            number += 1;
        }
        let before = leases(&pool);
        let mut refusals = 0;
        for freed in 0..number {
            match reserve(&pool, "second") {
                Ok(count) => {
                    assert_eq!(count, 2);
                    assert_eq!(leases(&pool).len(), before.len() + 2);
                    assert!(refusals >= 2, "the disk was full at {refusals} steps only");
                    return;
                }
                refused => {
                    refused_with(refused, Errno::ENOSPC);
                    refusals += 1;
                    assert_eq!(leases(&pool), before);
                }
            }
            fs::remove_file(data.join(format!("ballast-{freed}"))).unwrap();
        }
        panic!("never enough room");
    });
}

#[test]
fn a_read_only_disk_is_named_and_still_answers_check() {
    on_tmpfs("size=1m", |data| {
        let pool = pool(data);
        reserve(&pool, "first").unwrap();
        let before = leases(&pool);
        mount(None::<&str>, data, None::<&str>, MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY, None::<&str>).unwrap();
        refused_with(reserve(&pool, "second"), Errno::EROFS);
        let first = Owner::new("first", "eth0").unwrap();
        let held: Vec<IpAddr> = before.iter().map(|name| name.parse().unwrap()).collect();
        let error = pool.store(WAIT).release(&first, Known::Addresses(&held)).unwrap_err();
        assert!(
            matches!(&error, Error::Io { step: "remove", path, .. } if path.starts_with(&pool.directory)),
            "{error}"
        );
        assert_eq!(leases(&pool), before);
        assert!(pool.store(WAIT).holds(&first, &held).unwrap());
    });
}

/// Without /proc a file that has no name cannot be given one, as on a file system without `O_TMPFILE`: the other way
/// is taken, and the files are the same.
#[test]
fn without_proc_reservations_are_the_same() {
    on_tmpfs("size=1m", |data| {
        mount(Some("tmpfs"), "/proc", Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
        let pool = pool(data);
        assert_eq!(reserve(&pool, "first").unwrap(), 2);
        assert_eq!(fs::read(pool.directory.join("10.0.0.2")).unwrap(), b"first\r\neth0");
        let mut names: Vec<_> = fs::read_dir(&pool.directory)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(names, ["10.0.0.2", "fd00::2", "last_reserved_ip.0", "last_reserved_ip.1", "lock"]);
        assert!(matches!(reserve(&pool, "first").unwrap_err(), Error::Duplicate { set: 0, .. }));
    });
}
