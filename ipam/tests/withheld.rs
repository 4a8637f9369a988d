//! Addresses that nobody has and nobody gets: for a while after they were given back, and after a conflict.

#![allow(clippy::unwrap_used, reason = "tests and their helpers: a panic is a failure")]

use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipam::{Error, Known, Node, Owner, Pool, Prior, RawIpam, Reason, Request, Reservation};

const WAIT: Duration = Duration::from_secs(20);
const HOUR: Duration = Duration::from_secs(3600);

fn pool(data: &Path, ranges: &str, cool_down: Duration) -> Pool {
    let raw: RawIpam =
        serde_json::from_str(&format!(r#"{{"dataDir":"{}","ranges":{ranges}}}"#, data.display())).unwrap();
    Pool { cool_down, ..Pool::new("net-a", &raw, &[], &Node::default()).unwrap() }
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn add(pool: &Pool, container: &str, requested: &[IpAddr]) -> Result<Vec<String>, Error> {
    let owner = Owner::new(container, "eth0").unwrap();
    let shown = |found: Vec<Reservation>| found.iter().map(|one| one.address.addr().to_string()).collect();
    pool.reserve(&Request { owner: &owner, requested, prior: Prior::NoneKnown, lock_wait: WAIT }).map(shown)
}

fn del(pool: &Pool, container: &str, address: &str) {
    let owner = Owner::new(container, "eth0").unwrap();
    let released = pool.store(WAIT).release(&owner, Known::Addresses(&[ip(address)])).unwrap();
    assert_eq!(released, [ip(address)]);
}

fn link(pool: &Pool, address: &str) -> PathBuf {
    pool.directory.parent().unwrap().join(".meta-cni/net-a/withheld").join(address)
}

fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap().trim().to_owned()
}

#[test]
fn what_was_given_back_is_not_given_out_until_its_time_is_over() {
    let data = tempfile::tempdir().unwrap();
    let pool = pool(data.path(), r#"[[{"subnet":"10.0.0.0/29","rangeStart":"10.0.0.2","rangeEnd":"10.0.0.4"}]]"#, HOUR);
    for (container, address) in [("c1", "10.0.0.2"), ("c2", "10.0.0.3"), ("c3", "10.0.0.4")] {
        assert_eq!(add(&pool, container, &[]).unwrap(), [address]);
    }
    assert!(!add(&pool, "c4", &[]).unwrap_err().to_string().contains("withheld"), "nothing is withheld yet");
    del(&pool, "c2", "10.0.0.3");
    let error = add(&pool, "c4", &[]).unwrap_err();
    let Error::Exhausted { set: 0, withheld: Some((1, left)), .. } = &error else { panic!("{error}") };
    assert!(*left > HOUR - WAIT && *left <= HOUR + Duration::from_secs(1), "{left:?}");
    let text = format!(
        "failed to allocate for range 0: no IP addresses available in range set: 10.0.0.2-10.0.0.4; \
         1 address is withheld, until {} s from now",
        left.as_secs()
    );
    assert_eq!(error.to_string(), text);
    let error = add(&pool, "c4", &[ip("10.0.0.3")]).unwrap_err();
    assert!(matches!(&error, Error::Withheld { set: 0, reason: Reason::CoolDown, .. }), "{error}");
    assert!(error.to_string().ends_with(" s: cool-down"), "{error}");
    del(&pool, "c3", "10.0.0.4");
    assert!(add(&pool, "c4", &[]).unwrap_err().to_string().contains("; 2 addresses are withheld, the next until "));
    assert_eq!(pool.store(WAIT).withheld().unwrap().len(), 2);

    // The time is over; and another boot has no memory.
    fs::remove_file(link(&pool, "10.0.0.3")).unwrap();
    symlink(format!("1 {} cool-down", boot_id()), link(&pool, "10.0.0.3")).unwrap();
    assert_eq!(add(&pool, "c4", &[]).unwrap(), ["10.0.0.3"]);
    assert!(link(&pool, "10.0.0.3").symlink_metadata().is_err(), "what is over is removed");
    fs::remove_file(link(&pool, "10.0.0.4")).unwrap();
    symlink("99999999999 3a1b cool-down", link(&pool, "10.0.0.4")).unwrap();
    assert_eq!(pool.store(WAIT).withheld().unwrap(), []);
    assert_eq!(add(&pool, "c5", &[]).unwrap(), ["10.0.0.4"]);
}

#[test]
fn a_conflict_is_withheld_and_a_shorter_time_does_not_end_it() {
    let data = tempfile::tempdir().unwrap();
    let pool = pool(data.path(), r#"[[{"subnet":"10.0.0.0/29"}]]"#, Duration::from_secs(60));
    let conflict = Reason::Conflict { mac: "02:00:00:00:00:09".to_owned() };
    assert_eq!(add(&pool, "c1", &[]).unwrap(), ["10.0.0.2"]);
    pool.store(WAIT).withhold(ip("10.0.0.2"), HOUR, &conflict).unwrap();
    del(&pool, "c1", "10.0.0.2");
    pool.store(WAIT).withhold(ip("10.0.0.4"), HOUR, &conflict).unwrap();
    let withheld = pool.store(WAIT).withheld().unwrap();
    let shown = withheld.iter().map(|one| (one.address.to_string(), one.reason.clone(), one.left > HOUR - WAIT));
    assert_eq!(
        shown.collect::<Vec<_>>(),
        [("10.0.0.2".to_owned(), conflict.clone(), true), ("10.0.0.4".to_owned(), conflict.clone(), true)]
    );
    assert_eq!(add(&pool, "c2", &[]).unwrap(), ["10.0.0.3"]);
    assert_eq!(add(&pool, "c3", &[]).unwrap(), ["10.0.0.5"]);
    let error = add(&pool, "c4", &[ip("10.0.0.2")]).unwrap_err();
    assert!(error.to_string().ends_with(" s: conflict 02:00:00:00:00:09"), "{error}");
}

/// Beyond the first few looks addresses are judged by listings.
#[test]
fn deep_in_a_large_pool_what_is_withheld_is_left_out_too() {
    let data = tempfile::tempdir().unwrap();
    let pool = pool(data.path(), r#"[[{"subnet":"10.0.0.0/24"}]]"#, HOUR);
    for host in 2..=254 {
        assert_eq!(add(&pool, &format!("c{host}"), &[]).unwrap(), [format!("10.0.0.{host}")]);
    }
    for host in [100, 150] {
        del(&pool, &format!("c{host}"), &format!("10.0.0.{host}"));
    }
    let uncooled = Pool { cool_down: Duration::ZERO, ..pool.clone() };
    del(&uncooled, "c200", "10.0.0.200");
    assert_eq!(add(&pool, "d1", &[]).unwrap(), ["10.0.0.200"]);
    let error = add(&pool, "d2", &[]).unwrap_err();
    assert!(matches!(error, Error::Exhausted { withheld: Some((2, _)), .. }), "{error}");
}

#[test]
fn gc_cools_down_what_it_gives_back_and_what_is_reclaimed_is_free_at_once() {
    let data = tempfile::tempdir().unwrap();
    let pool = pool(data.path(), r#"[[{"subnet":"10.0.0.0/24"}]]"#, HOUR);
    let store = pool.store(WAIT);
    for container in ["c1", "c2", "c3"] {
        add(&pool, container, &[]).unwrap();
    }
    fs::write(pool.directory.join("10.0.0.9"), "").unwrap();
    let dead = store.leases().unwrap();
    store.reclaim(&dead[..1]).unwrap();
    assert_eq!(store.withheld().unwrap(), [], "of another boot, or nobody's");
    let c2 = Owner::new("c2", "eth0").unwrap();
    assert_eq!(store.release_all_but(&[c2]).unwrap().len(), 2);
    let withheld = store.withheld().unwrap();
    assert_eq!(withheld.iter().map(|one| one.address).collect::<Vec<_>>(), [ip("10.0.0.4")]);

    // A walk through the pool removes what is over.
    fs::remove_file(link(&pool, "10.0.0.4")).unwrap();
    symlink("1 another-boot cool-down", link(&pool, "10.0.0.4")).unwrap();
    store.release_orphans().unwrap();
    assert!(link(&pool, "10.0.0.4").symlink_metadata().is_err());
}

/// Withheld first, then given back: if the first cannot be done the lease stays, and DEL is repeated.
#[test]
fn what_cannot_be_withheld_is_not_given_back() {
    let data = tempfile::tempdir().unwrap();
    let pool = pool(data.path(), r#"[[{"subnet":"10.0.0.0/24"}]]"#, HOUR);
    add(&pool, "c1", &[]).unwrap();
    fs::write(data.path().join(".meta-cni"), "").unwrap();
    let owner = Owner::new("c1", "eth0").unwrap();
    let error = pool.store(WAIT).release(&owner, Known::Nothing).unwrap_err();
    assert!(matches!(&error, Error::Io { step: "hold back", .. }), "{error}");
    assert!(pool.store(WAIT).holds(&owner, &[ip("10.0.0.2")]).unwrap());
    fs::remove_file(data.path().join(".meta-cni")).unwrap();
    assert_eq!(pool.store(WAIT).release(&owner, Known::Nothing).unwrap(), [ip("10.0.0.2")]);
    assert_eq!(pool.store(WAIT).withheld().unwrap().len(), 1);
}
