//! What the live tests share: namespaces of a test's own, and `ip` as a second witness.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used, reason = "each test file uses its part")]

use std::future::Future;
use std::net::IpAddr;
use std::process::Command;
use std::time::Duration;

use ipnet::IpNet;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use sandbox::{IfName, Netns};
use serde_json::Value;

/// Runs the test in a new network and mount namespace: libtest gives every test a thread of its own, and namespaces
/// belong to threads.
pub fn isolated<F: Future<Output = ()>>(test: impl FnOnce() -> F) {
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).expect("root is needed");
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test());
}

pub fn new_netns() -> Netns {
    std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        Netns::current().unwrap()
    })
    .join()
    .unwrap()
}

pub fn ip(args: &str) -> Value {
    let out = Command::new("ip").args(["-j", "-d"]).args(args.split(' ')).output().unwrap();
    assert!(out.status.success(), "ip {args}: {}", String::from_utf8_lossy(&out.stderr));
    if out.stdout.is_empty() { Value::Null } else { serde_json::from_slice(&out.stdout).unwrap() }
}

pub fn ip_in(netns: &Netns, args: &str) -> Value {
    netns.run("ask ip", || Ok(ip(args))).unwrap()
}

pub fn name(text: &str) -> IfName {
    IfName::try_from(text).unwrap()
}

pub fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

pub fn addr(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// Mounts a new namespace at a path, as a container runtime does; gives it as a thread inside opened it, which does not
/// keep the mount busy.
pub fn mount_new_netns(path: &std::path::Path) -> Netns {
    std::thread::scope(|scope| {
        let made = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            mount(Some("/proc/thread-self/ns/net"), path, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
            Netns::current().unwrap()
        });
        made.join().unwrap()
    })
}

/// What a look finds, within four seconds.
pub fn eventually<T>(mut look: impl FnMut() -> Option<T>) -> T {
    for _ in 0..200 {
        if let Some(found) = look() {
            return found;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    panic!("it did not happen within four seconds");
}

/// Internet checksum of an ICMPv6 packet with its pseudo header: 0 if it is right.
pub fn checksum(ipv6: &[u8]) -> u16 {
    let payload = &ipv6[40..];
    let words = [&ipv6[8..40], &(payload.len() as u32).to_be_bytes(), &[0, 0, 0, 58], payload].concat();
    let sum: u32 = words.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !((folded & 0xffff) + (folded >> 16)) as u16
}
