//! A pool under load: what a reservation costs in a large pool, a lock that is not given back, many threads at once.

#![allow(clippy::unwrap_used, reason = "tests and their helpers: a panic is a failure")]

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use ipam::{Error, Known, Node, Owner, Pool, Prior, RawIpam, Request, Reservation};

const WAIT: Duration = Duration::from_secs(20);

fn pool(data: &Path, ranges: &str) -> Pool {
    let json = format!(r#"{{"dataDir":"{}","ranges":{ranges}}}"#, data.display());
    let raw: RawIpam = serde_json::from_str(&json).unwrap();
    Pool::new("net-a", &raw, &[], &Node::default()).unwrap()
}

fn owner(container: &str) -> Owner {
    Owner::new(container, "eth0").unwrap()
}

fn ask(pool: &Pool, container: &str) -> Result<Vec<Reservation>, Error> {
    let owner = owner(container);
    pool.reserve(&Request { owner: &owner, requested: &[], prior: Prior::Unknown, lock_wait: WAIT })
}

fn plant(pool: &Pool, name: &str, content: &str) {
    fs::create_dir_all(&pool.directory).unwrap();
    fs::write(pool.directory.join(name), content).unwrap();
}

/// read(2) calls of this thread so far; proc_pid_io(5).
fn reads() -> u64 {
    let text = fs::read_to_string("/proc/thread-self/io").unwrap();
    text.lines().find_map(|line| line.strip_prefix("syscr: ")).unwrap().parse().unwrap()
}

/// One reservation and its release, with `leases` others in the pool: how many reads that takes.
fn cost(leases: u32, prior: Prior) -> u64 {
    let data = tempfile::tempdir().unwrap();
    let pool = pool(data.path(), r#"[[{"subnet":"10.0.0.0/16"}]]"#);
    for number in 0..leases {
        // Every second address is taken.
        let host = 2 * (number + 1);
        plant(&pool, &format!("10.0.{}.{}", host / 256, host % 256), "other\r\neth0");
    }
    let owner = owner("c1");
    let before = reads();
    let request = Request { owner: &owner, requested: &[], prior, lock_wait: WAIT };
    let reserved = pool.reserve(&request).unwrap();
    pool.store(WAIT).release(&owner, Known::Addresses(&[reserved[0].address.addr()])).unwrap();
    reads() - before
}

#[test]
fn with_records_the_cost_does_not_grow_with_the_leases() {
    let (small, large) = (cost(1, Prior::NoneKnown), cost(2000, Prior::NoneKnown));
    assert_eq!(small, large, "reads with 1 and with 2000 leases");
    assert!(large < 20, "{large} reads");
    assert!(cost(2000, Prior::Unknown) > 2000, "without records every lease is read: the count counts");
}

#[test]
fn a_lock_held_too_long_is_an_error_and_nothing_is_done() {
    let data = tempfile::tempdir().unwrap();
    let pool = pool(data.path(), r#"[[{"subnet":"10.0.0.0/24"}]]"#);
    ask(&pool, "c1").unwrap();
    let lock = fs::File::open(pool.directory.join("lock")).unwrap();
    lock.lock().unwrap();
    let before = fs::read_dir(&pool.directory).unwrap().count();
    let (owner, short) = (owner("c2"), Duration::from_millis(20));
    let request = Request { owner: &owner, requested: &[], prior: Prior::NoneKnown, lock_wait: short };
    let error = pool.reserve(&request).unwrap_err();
    assert!(matches!(&error, Error::LockTimeout { holder: Some(by), .. } if by.pid == std::process::id()), "{error}");
    let error = pool.store(short).release(&owner, Known::Nothing).unwrap_err();
    assert!(matches!(&error, Error::LockTimeout { waited, .. } if *waited == short), "{error}");
    assert_eq!(fs::read_dir(&pool.directory).unwrap().count(), before);
    assert!(
        pool.store(short).holds(&Owner::new("c1", "eth0").unwrap(), &[IpAddr::from([10, 0, 0, 2])]).unwrap(),
        "CHECK needs no lock"
    );
}

/// Whoever waited for the lock of a directory that is gone by then has no lock of the one that took its place.
#[test]
fn a_pool_that_was_made_anew_while_its_lock_was_waited_for_is_locked_anew() {
    let data = tempfile::tempdir().unwrap();
    let pool = pool(data.path(), r#"[[{"subnet":"10.0.0.0/24"}]]"#);
    ask(&pool, "c1").unwrap();
    let lock = || fs::OpenOptions::new().create(true).append(true).open(pool.directory.join("lock")).unwrap();
    let old = lock();
    old.lock().unwrap();
    std::thread::scope(|scope| {
        let asking = scope.spawn(|| ask(&pool, "c2"));
        std::thread::sleep(Duration::from_millis(100));
        fs::remove_dir_all(&pool.directory).unwrap();
        fs::create_dir(&pool.directory).unwrap();
        // Another program is at work: it has made its file, and is about to write it.
        let new = lock();
        new.lock().unwrap();
        plant(&pool, "10.0.0.2", "");
        drop(old);
        std::thread::sleep(Duration::from_millis(100));
        assert!(!asking.is_finished(), "it works without the lock");
        plant(&pool, "10.0.0.2", "other\r\neth0");
        drop(new);
        let found = asking.join().unwrap().unwrap();
        assert_eq!(found[0].address.addr(), IpAddr::from([10, 0, 0, 3]));
    });
}

#[test]
fn many_threads_never_get_the_same_address() {
    let data = tempfile::tempdir().unwrap();
    let pool = pool(data.path(), r#"[[{"subnet":"10.0.0.0/25"}],[{"subnet":"fd00::/64"}]]"#);
    let mut seen = Vec::new();
    std::thread::scope(|scope| {
        let worker = |number: usize| {
            let pool = &pool;
            move || {
                let one = |index: usize| ask(pool, &format!("c{number}-{index}"));
                (0..20).map(one).collect::<Vec<_>>()
            }
        };
        let workers: Vec<_> = (0..8).map(|number| scope.spawn(worker(number))).collect();
        for worker in workers {
            seen.extend(worker.join().unwrap());
        }
    });
    let (served, refused): (Vec<_>, Vec<_>) = seen.into_iter().partition(Result::is_ok);
    let addresses: BTreeSet<IpAddr> =
        served.into_iter().flat_map(Result::unwrap).map(|found| found.address.addr()).collect();
    assert_eq!(addresses.len(), 2 * 125, "a /25 has 125 addresses to give, and each comes with one of fd00::/64");
    assert_eq!(refused.len(), 8 * 20 - 125);
    assert!(refused.iter().all(|refusal| matches!(refusal, Err(Error::Exhausted { set: 0, .. }))));
}
