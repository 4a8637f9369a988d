//! A caller without records: what it holds is found by the index beside the pool, which is verified, and made again
//! whenever it may be wrong.

#![allow(clippy::unwrap_used, reason = "tests and their helpers: a panic is a failure")]

use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipam::{Error, Known, Node, Owner, Pool, Prior, RawIpam, Request, Reservation, Store, reserve_all};

const WAIT: Duration = Duration::from_secs(20);

fn pool(data: &Path, ranges: &str) -> Pool {
    let raw: RawIpam =
        serde_json::from_str(&format!(r#"{{"dataDir":"{}","ranges":{ranges}}}"#, data.display())).unwrap();
    Pool::new("net-a", &raw, &[], &Node::default()).unwrap()
}

fn owner(container: &str) -> Owner {
    Owner::new(container, "eth0").unwrap()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn request(owner: &Owner) -> Request<'_> {
    Request { owner, requested: &[], prior: Prior::Indexed, lock_wait: WAIT }
}

fn add(pool: &Pool, container: &str) -> Result<Vec<String>, Error> {
    let shown = |found: Vec<Reservation>| found.iter().map(|one| one.address.addr().to_string()).collect();
    pool.reserve(&request(&owner(container))).map(shown)
}

fn del(store: &Store, container: &str) -> Vec<String> {
    let released = store.release(&owner(container), Known::Indexed).unwrap();
    released.iter().map(IpAddr::to_string).collect()
}

fn plant(pool: &Pool, name: &str, content: &str) {
    fs::create_dir_all(&pool.directory).unwrap();
    fs::write(pool.directory.join(name), content).unwrap();
}

fn beside(pool: &Pool) -> PathBuf {
    pool.directory.parent().unwrap().join(".meta-cni/net-a")
}

fn leases(pool: &Pool) -> Vec<String> {
    let shown = |lease: &ipam::Lease| format!("{} {}", lease.address, lease.container.clone().unwrap_or_default());
    pool.store(WAIT).leases().unwrap().iter().map(shown).collect()
}

/// Every link beside the pool, as `name=target`; what `complete` says besides the directory's identity and stamp.
fn links(pool: &Pool) -> Vec<String> {
    let target = |path: &Path| fs::read_link(path).unwrap().into_os_string().into_string().unwrap();
    let entries = fs::read_dir(beside(pool).join("owners")).unwrap().map(|entry| entry.unwrap().path());
    let mut links: Vec<String> =
        entries.map(|path| format!("{}={}", path.file_name().unwrap().display(), target(&path))).collect();
    links.sort();
    if let Ok(marker) = fs::read_link(beside(pool).join("complete")) {
        links.push(format!("complete{}", marker.to_str().unwrap().splitn(3, ' ').nth(2).unwrap_or_default()));
    }
    links
}

/// read(2) calls of this thread so far; proc_pid_io(5).
fn reads() -> u64 {
    let text = fs::read_to_string("/proc/thread-self/io").unwrap();
    text.lines().find_map(|line| line.strip_prefix("syscr: ")).unwrap().parse().unwrap()
}

#[test]
fn what_was_there_before_is_known_and_what_is_made_is_entered() {
    let data = tempfile::tempdir().unwrap();
    let pool = pool(data.path(), r#"[[{"subnet":"10.0.0.0/24"}],[{"subnet":"fd00::/64"}]]"#);
    for (name, content) in
        [("10.0.0.7", "go\r\neth0"), ("fd00::7", "go\r\neth0"), ("10.0.0.8", "older\n"), ("10.0.0.9", "")]
    {
        plant(&pool, name, content);
    }
    assert_eq!(add(&pool, "c1").unwrap(), ["10.0.0.2", "fd00::2"]);
    let expected = ["c1:eth0=10.0.0.2,fd00::2", "go:eth0=10.0.0.7,fd00::7", "older:=10.0.0.8", "completeold"];
    assert_eq!(links(&pool), expected);
    for (container, held) in [("c1", "10.0.0.2"), ("go", "10.0.0.7"), ("older", "10.0.0.8")] {
        let error = add(&pool, container).unwrap_err();
        assert!(matches!(&error, Error::Duplicate { set: 0, address, .. } if *address == ip(held)), "{error}");
    }
    let store = pool.store(WAIT);
    assert_eq!(del(&store, "go"), ["10.0.0.7", "fd00::7"]);
    assert_eq!(del(&store, "go"), Vec::<String>::new());
    assert_eq!(del(&store, "older"), ["10.0.0.8"], "the old format");
    assert_eq!(del(&store, "c1"), ["10.0.0.2", "fd00::2"]);
    assert_eq!(leases(&pool), ["10.0.0.9 "]);
    store.release_orphans().unwrap();
    assert_eq!(links(&pool), ["complete"], "GC tidies the index");
}

#[test]
fn what_another_program_did_since_is_found_out() {
    let data = tempfile::tempdir().unwrap();
    let pool = pool(data.path(), r#"[[{"subnet":"10.0.0.0/24"}]]"#);
    let store = pool.store(WAIT);
    add(&pool, "c1").unwrap();
    plant(&pool, "10.0.0.9", "go\r\neth0");
    assert_eq!(del(&store, "go"), ["10.0.0.9"], "made by another program");

    plant(&pool, "10.0.0.2", "go\r\neth0");
    assert_eq!(del(&store, "c1"), Vec::<String>::new(), "removed by another program, and somebody else's now");
    assert_eq!(leases(&pool), ["10.0.0.2 go"]);

    add(&pool, "c2").unwrap();
    fs::rename(pool.directory.join("10.0.0.3"), pool.directory.join("10.0.0.99")).unwrap();
    assert_eq!(del(&store, "c2"), ["10.0.0.99"], "an entry that is wrong is as good as none");
    assert_eq!(links(&pool), ["go:eth0=10.0.0.2", "complete"], "every file was read: the index knows them now");

    // What we do after it does not hide it.
    let theirs = [("10.0.1.8", "go8"), ("10.0.1.9", "go9")];
    for (address, container) in theirs {
        plant(&pool, address, &format!("{container}\r\neth0"));
        add(&pool, "c8").unwrap();
        del(&store, "c8");
    }
    for (address, container) in theirs {
        assert_eq!(del(&store, container), [address], "made before we did something");
    }
}

#[test]
fn whatever_is_there_after_a_crash_nothing_is_lost_or_given_twice() {
    let data = tempfile::tempdir().unwrap();
    let pool = pool(data.path(), r#"[[{"subnet":"10.0.0.0/24"}],[{"subnet":"10.1.0.0/24"}]]"#);
    let store = pool.store(WAIT);
    add(&pool, "c0").unwrap();
    let entry = |name: &str| beside(&pool).join("owners").join(name);

    // Killed between the entry and the leases: the same container, and another one, may try again.
    symlink("10.0.0.3,10.1.0.3", entry("c1:eth0")).unwrap();
    assert_eq!(add(&pool, "c2").unwrap(), ["10.0.0.3", "10.1.0.3"]);
    assert_eq!(add(&pool, "c1").unwrap(), ["10.0.0.4", "10.1.0.4"]);
    assert_eq!(del(&store, "c1"), ["10.0.0.4", "10.1.0.4"]);

    // Between the first lease and the second.
    symlink("10.0.0.5,10.1.0.3", entry("c3:eth0")).unwrap();
    plant(&pool, "10.0.0.5", "c3\r\neth0");
    assert!(matches!(add(&pool, "c3").unwrap_err(), Error::Duplicate { set: 0, .. }));
    assert_eq!(del(&store, "c3"), ["10.0.0.5"]);
    assert_eq!(leases(&pool), ["10.0.0.2 c0", "10.0.0.3 c2", "10.1.0.2 c0", "10.1.0.3 c2"]);

    // While the index is made again: there is no mark, entries are missing and others stand for nothing.
    fs::remove_file(beside(&pool).join("complete")).unwrap();
    fs::remove_file(entry("c2:eth0")).unwrap();
    symlink("10.0.0.77", entry("gone:eth0")).unwrap();
    symlink("half", beside(&pool).join("draft")).unwrap();
    assert!(matches!(add(&pool, "c2").unwrap_err(), Error::Duplicate { set: 0, .. }));
    assert_eq!(links(&pool), ["c0:eth0=10.0.0.2,10.1.0.2", "c2:eth0=10.0.0.3,10.1.0.3", "complete"]);

    // Another directory has taken the place of the pool.
    fs::rename(&pool.directory, data.path().join("moved")).unwrap();
    plant(&pool, "10.0.0.9", "c9\r\neth0");
    assert_eq!(add(&pool, "c2").unwrap(), ["10.0.0.2", "10.1.0.2"]);
    assert_eq!(links(&pool), ["c2:eth0=10.0.0.2,10.1.0.2", "c9:eth0=10.0.0.9", "complete"]);
}

#[test]
fn what_is_added_to_what_an_owner_holds_is_entered_too() {
    let data = tempfile::tempdir().unwrap();
    let (one, two) = (
        pool(data.path(), r#"[[{"subnet":"10.0.0.0/24"}]]"#),
        pool(data.path(), r#"[[{"subnet":"10.0.0.0/24"}],[{"subnet":"10.1.0.0/24"}]]"#),
    );
    add(&one, "c1").unwrap();
    let (owner, wanted) = (owner("c1"), [ip("10.0.0.9")]);
    two.reserve(&Request { requested: &wanted, ..request(&owner) }).unwrap();
    assert_eq!(links(&one), ["c1:eth0=10.0.0.2,10.0.0.9,10.1.0.2", "complete"]);
    assert_eq!(del(&one.store(WAIT), "c1"), ["10.0.0.2", "10.0.0.9", "10.1.0.2"]);
    assert_eq!(leases(&one), Vec::<String>::new());
}

#[test]
fn an_index_that_cannot_be_written_is_done_without() {
    let data = tempfile::tempdir().unwrap();
    let pool = pool(data.path(), r#"[[{"subnet":"10.0.0.0/24"}]]"#);
    let store = pool.store(WAIT);
    // No name for a file.
    let long = "c".repeat(253);
    add(&pool, "c1").unwrap();
    add(&pool, &long).unwrap();
    assert_eq!(links(&pool), ["c1:eth0=10.0.0.2"], "it does not say that it is complete");
    assert!(matches!(add(&pool, &long).unwrap_err(), Error::Duplicate { .. }));
    assert!(matches!(add(&pool, "c1").unwrap_err(), Error::Duplicate { .. }));
    assert_eq!(del(&store, &long), ["10.0.0.3"]);
    assert_eq!(del(&store, "c1"), ["10.0.0.2"]);

    // An interface's name that would lead elsewhere.
    let strange = Owner::new("c2", "../../lock").unwrap();
    assert_eq!(pool.reserve(&request(&strange)).unwrap().len(), 1);
    assert!(matches!(pool.reserve(&request(&strange)).unwrap_err(), Error::Duplicate { .. }));
    assert_eq!(store.release(&strange, Known::Indexed).unwrap(), [ip("10.0.0.4")]);

    // No directory to be had.
    fs::remove_dir_all(data.path().join(".meta-cni")).unwrap();
    fs::write(data.path().join(".meta-cni"), "").unwrap();
    assert_eq!(add(&pool, "c3").unwrap(), ["10.0.0.5"]);
    assert!(matches!(add(&pool, "c3").unwrap_err(), Error::Duplicate { .. }));
    assert_eq!(del(&store, "c3"), ["10.0.0.5"]);
}

#[test]
fn who_holds_more_than_an_entry_can_say_is_looked_for_in_every_file() {
    let data = tempfile::tempdir().unwrap();
    let pool = pool(data.path(), r#"[[{"subnet":"10.0.0.0/16"}]]"#);
    for host in 2..600 {
        plant(&pool, &format!("10.0.{}.{}", host / 256, host % 256), "c1\r\neth0");
    }
    assert!(matches!(add(&pool, "c1").unwrap_err(), Error::Duplicate { .. }));
    assert_eq!(links(&pool), ["c1:eth0=many", "complete"]);
    assert_eq!(del(&pool.store(WAIT), "c1").len(), 598);
    assert_eq!(links(&pool), ["complete"]);
}

#[test]
fn what_is_reclaimed_is_forgotten() {
    let data = tempfile::tempdir().unwrap();
    let pool = pool(data.path(), r#"[[{"subnet":"10.0.0.0/24"}],[{"subnet":"10.1.0.0/24"}]]"#);
    add(&pool, "c1").unwrap();
    add(&pool, "c2").unwrap();
    let dead = pool.store(WAIT).leases().unwrap();
    pool.store(WAIT).reclaim(&dead[..3]).unwrap();
    assert_eq!(links(&pool), ["c2:eth0=10.1.0.3", "complete"]);
    assert_eq!(del(&pool.store(WAIT), "c2"), ["10.1.0.3"]);
}

/// One ADD and one DEL, with `leases` others in the pool: how many reads that takes.
fn cost(leases: u32) -> u64 {
    let data = tempfile::tempdir().unwrap();
    let pool = pool(data.path(), r#"[[{"subnet":"10.0.0.0/16"}]]"#);
    for number in 0..leases {
        // Every second address is taken.
        let host = 2 * (number + 1);
        plant(&pool, &format!("10.0.{}.{}", host / 256, host % 256), &format!("other{number}\r\neth0"));
    }
    add(&pool, "first").unwrap();
    let before = reads();
    add(&pool, "c1").unwrap();
    assert_eq!(del(&pool.store(WAIT), "c1").len(), 1);
    reads() - before
}

#[test]
fn the_cost_does_not_grow_with_the_leases() {
    let (small, large) = (cost(20), cost(2000));
    assert_eq!(small, large, "reads with 20 and with 2000 leases");
    assert!(large < 20, "{large} reads");
}

#[test]
fn several_requests_are_served_under_one_lock_or_none_is() {
    let data = tempfile::tempdir().unwrap();
    let (small, large) =
        (pool(data.path(), r#"[[{"subnet":"10.0.0.0/29"}]]"#), pool(data.path(), r#"[[{"subnet":"10.0.0.0/24"}]]"#));
    let (net1, net2) = (Owner::new("c1", "net1").unwrap(), Owner::new("c1", "net2").unwrap());
    let wanted = [ip("10.0.0.3")];
    let shown =
        |all: &[Vec<Reservation>]| -> Vec<String> { all.iter().map(|one| one[0].address.addr().to_string()).collect() };
    let requests = [
        (&small, request(&net1)),
        (&large, Request { prior: Prior::NoneKnown, ..request(&net2) }),
        (&small, Request { requested: &wanted, ..request(&net2) }),
    ];
    let error = reserve_all::<Error>(&requests, |_| panic!("nothing to record")).unwrap_err();
    assert!(matches!(&error, Error::Taken { address, holder: Some(by), .. } if *address == wanted[0] && by == "c1"));
    assert_eq!(leases(&small), Vec::<String>::new());

    let mut recorded = Vec::new();
    let reserved = reserve_all::<Error>(&requests[..2], |all| {
        recorded = shown(all);
        let lock = fs::File::open(small.directory.join("lock")).unwrap();
        assert!(lock.try_lock().is_err(), "recorded under the lock");
        Ok(())
    });
    assert_eq!(shown(&reserved.unwrap()), ["10.0.0.2", "10.0.0.3"]);
    assert_eq!(recorded, ["10.0.0.2", "10.0.0.3"]);
    assert_eq!(leases(&small), ["10.0.0.2 c1", "10.0.0.3 c1"]);
    assert_eq!(links(&small), ["c1:net1=10.0.0.2", "complete"], "who has records needs no entry");

    // The same owner twice is a duplicate, two owners of which the second finds no address leave nothing.
    let twice = [(&small, request(&net2)), (&small, request(&net2))];
    let error = reserve_all::<Error>(&twice, |_| Ok(())).unwrap_err();
    assert!(matches!(error, Error::Duplicate { address, .. } if address == ip("10.0.0.4")));
    let others: Vec<Owner> = (0..4).map(|n| Owner::new("c2", &format!("net{n}")).unwrap()).collect();
    let too_many: Vec<_> = others.iter().map(|owner| (&small, request(owner))).collect();
    assert!(matches!(reserve_all::<Error>(&too_many, |_| Ok(())).unwrap_err(), Error::Exhausted { set: 0, .. }));
    assert_eq!(leases(&small), ["10.0.0.2 c1", "10.0.0.3 c1"]);

    let elsewhere = tempfile::tempdir().unwrap();
    let elsewhere = pool(elsewhere.path(), r#"[[{"subnet":"10.0.0.0/24"}]]"#);
    let two_pools = [(&small, request(&net1)), (&elsewhere, request(&net1))];
    assert!(matches!(reserve_all::<Error>(&two_pools, |_| Ok(())).unwrap_err(), Error::SeveralPools { .. }));
    assert_eq!(reserve_all::<Error>(&[], |_| Ok(())).unwrap(), Vec::<Vec<Reservation>>::new());
}

#[test]
fn a_full_pool_is_looked_through_for_orphans_once_a_change() {
    let data = tempfile::tempdir().unwrap();
    let pool = pool(data.path(), r#"[[{"subnet":"10.0.0.0/24"}]]"#);
    for host in 2..=254 {
        plant(&pool, &format!("10.0.0.{host}"), "other\r\neth0");
    }
    let refused = || {
        let before = reads();
        assert!(matches!(add(&pool, "c1").unwrap_err(), Error::Exhausted { set: 0, withheld: None, .. }));
        reads() - before
    };
    refused();
    plant(&pool, "note", "");
    // A look is remembered only if the next change has another stamp; that ticks every few milliseconds.
    std::thread::sleep(Duration::from_millis(50));
    assert!(refused() > 253, "the first look opens every file");
    let second = refused();
    assert!(second < 60, "{second} reads though nothing has changed");

    fs::remove_file(pool.directory.join("10.0.0.200")).unwrap();
    plant(&pool, "10.0.0.200", "");
    assert_eq!(add(&pool, "c1").unwrap(), ["10.0.0.200"]);
}
