//! A pool on a real directory, from outside: after host-local's own subjects, and what host-local does not do.

#![allow(clippy::unwrap_used, reason = "tests and their helpers: a panic is a failure")]

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use ipam::{Error, Known, Lease, Node, Owner, Pool, Prior, RawIpam, RawRange, Request, Reservation};

const WAIT: Duration = Duration::from_secs(20);

fn pool_with(data: &Path, rest: &str, extra: &str) -> Pool {
    let raw: RawIpam = serde_json::from_str(&format!(r#"{{"dataDir":"{}",{rest}}}"#, data.display())).unwrap();
    let extra: Vec<Vec<RawRange>> = serde_json::from_str(extra).unwrap();
    Pool::new("net-a", &raw, &extra, &Node::default()).unwrap()
}

fn pool(data: &Path, ranges: &str) -> Pool {
    pool_with(data, &format!(r#""ranges":{ranges}"#), "[]")
}

fn owner(container: &str) -> Owner {
    Owner::new(container, "eth0").unwrap()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn ask(pool: &Pool, container: &str, requested: &[&str]) -> Result<Vec<Reservation>, Error> {
    let requested: Vec<IpAddr> = requested.iter().map(|text| ip(text)).collect();
    let owner = owner(container);
    pool.reserve(&Request { owner: &owner, requested: &requested, prior: Prior::Unknown, lock_wait: WAIT })
}

/// What one gets, as text: `10.0.0.2/24 via 10.0.0.1`.
fn get(pool: &Pool, container: &str, requested: &[&str]) -> Vec<String> {
    let shown = |found: &Reservation| format!("{} via {}", found.address, found.gateway.unwrap());
    ask(pool, container, requested).unwrap().iter().map(shown).collect()
}

/// Every file of the pool but the lock, as `name=content`.
fn files(pool: &Pool) -> Vec<String> {
    let Ok(entries) = fs::read_dir(&pool.directory) else { return Vec::new() };
    let mut files = BTreeSet::new();
    for entry in entries {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if name != "lock" {
            files.insert(format!("{name}={}", fs::read_to_string(&path).unwrap()));
        }
    }
    files.into_iter().collect()
}

fn plant(pool: &Pool, name: &str, content: &str) {
    fs::create_dir_all(&pool.directory).unwrap();
    fs::write(pool.directory.join(name), content).unwrap();
}

#[test]
fn one_address_of_every_set_in_host_locals_format() {
    let data = tempfile::tempdir().unwrap();
    let pool = pool(data.path(), r#"[[{"subnet":"10.0.0.0/24"}],[{"subnet":"2001:db8:1::/64","gateway":"fe80::1"}]]"#);
    assert_eq!(pool.directory, data.path().join("net-a"));
    assert_eq!(get(&pool, "c1", &[]), ["10.0.0.2/24 via 10.0.0.1", "2001:db8:1::1/64 via fe80::1"]);
    assert_eq!(
        files(&pool),
        [
            "10.0.0.2=c1\r\neth0",
            "2001:db8:1::1=c1\r\neth0",
            "last_reserved_ip.0=10.0.0.2",
            "last_reserved_ip.1=2001:db8:1::1"
        ]
    );
    let released = pool.store(WAIT).release(&owner("c1"), Known::Nothing).unwrap();
    assert_eq!(released, [ip("10.0.0.2"), ip("2001:db8:1::1")]);
    assert_eq!(files(&pool), ["last_reserved_ip.0=10.0.0.2", "last_reserved_ip.1=2001:db8:1::1"]);
    assert_eq!(
        get(&pool, "c1", &[]),
        ["10.0.0.3/24 via 10.0.0.1", "2001:db8:1::2/64 via fe80::1"],
        "not the same again"
    );
}

#[test]
fn runtime_ranges_come_first_then_the_single_range() {
    let data = tempfile::tempdir().unwrap();
    let rest = r#""subnet":"10.1.0.0/24","rangeStart":"10.1.0.9","gateway":"10.1.0.254","ranges":[[{"subnet":"10.2.0.0/24"}]]"#;
    let pool = pool_with(data.path(), rest, r#"[[{"subnet":"10.0.0.0/24"}]]"#);
    let expected = ["10.0.0.2/24 via 10.0.0.1", "10.1.0.9/24 via 10.1.0.254", "10.2.0.2/24 via 10.2.0.1"];
    assert_eq!(get(&pool, "c1", &[]), expected);
}

#[test]
fn an_exhausted_set_fails_the_whole_and_leaves_nothing() {
    let data = tempfile::tempdir().unwrap();
    let pool = pool(data.path(), r#"[[{"subnet":"10.0.0.0/24"}],[{"subnet":"10.1.0.0/30"}]]"#);
    get(&pool, "c1", &[]);
    let before = files(&pool);
    let error = ask(&pool, "c2", &[]).unwrap_err();
    assert!(
        matches!(&error, Error::Exhausted { set: 1, ranges, withheld: None } if ranges == "10.1.0.1-10.1.0.2"),
        "{error}"
    );
    assert_eq!(
        error.to_string(),
        "failed to allocate for range 1: no IP addresses available in range set: 10.1.0.1-10.1.0.2"
    );
    assert_eq!(files(&pool), before);
}

#[test]
fn a_second_reservation_of_one_owner_is_refused_and_the_first_stays() {
    let data = tempfile::tempdir().unwrap();
    let pool = pool(data.path(), r#"[[{"subnet":"10.0.0.0/24"}],[{"subnet":"10.1.0.0/24"}]]"#);
    get(&pool, "c1", &[]);
    let before = files(&pool);
    let error = ask(&pool, "c1", &[]).unwrap_err();
    assert!(
        matches!(&error, Error::Duplicate { set: 0, address, container } if *address == ip("10.0.0.2") && container == "c1")
    );
    assert_eq!(
        error.to_string(),
        "failed to allocate for range 0: 10.0.0.2 has been allocated to c1, duplicate allocation is not allowed"
    );
    assert_eq!(files(&pool), before);
    let error = ask(&pool, "c1", &["10.0.0.99"]).unwrap_err();
    assert!(matches!(&error, Error::Duplicate { set: 1, .. }), "{error}");
    assert_eq!(files(&pool), before, "host-local drops the earlier reservation here");
    plant(&pool, "10.0.0.77", "c7");
    assert!(
        matches!(ask(&pool, "c7", &[]).unwrap_err(), Error::Duplicate { set: 0, address, .. } if address == ip("10.0.0.77"))
    );
    let other = Owner::new("c1", "net1").unwrap();
    let request = Request { owner: &other, requested: &[], prior: Prior::Unknown, lock_wait: WAIT };
    assert_eq!(pool.reserve(&request).unwrap().len(), 2, "another interface of the container is another owner");
}

#[test]
fn requested_addresses_are_honoured_or_refused_by_name() {
    let data = tempfile::tempdir().unwrap();
    let sets =
        r#"[[{"subnet":"10.0.0.0/24","rangeStart":"10.0.0.1","rangeEnd":"10.0.0.50"}],[{"subnet":"fd00::/64"}]]"#;
    let pool = pool(data.path(), sets);
    let expected = ["10.0.0.7/24 via 10.0.0.1", "fd00::99/64 via fd00::1"];
    assert_eq!(get(&pool, "c1", &["fd00:0::99", "::ffff:10.0.0.7"]), expected);
    assert_eq!(
        get(&pool, "c2", &[]),
        ["10.0.0.8/24 via 10.0.0.1", "fd00::9a/64 via fd00::1"],
        "the round goes on from there"
    );
    let before = files(&pool);
    let table = [
        (
            &["10.0.0.7"][..],
            "failed to allocate for range 0: requested IP address 10.0.0.7 is not available in range set 10.0.0.1-10.0.0.50",
        ),
        (&["10.0.0.1"][..], "failed to allocate for range 0: requested ip 10.0.0.1 is subnet's gateway"),
        (&["10.0.0.51", "10.0.0.3", "10.0.0.4"][..], "failed to allocate all requested IPs: 10.0.0.51 10.0.0.4"),
    ];
    for (requested, text) in table {
        assert_eq!(ask(&pool, "c3", requested).unwrap_err().to_string(), text);
    }
    let error = ask(&pool, "c3", &["10.0.0.7"]).unwrap_err();
    assert!(matches!(&error, Error::Taken { set: 0, holder: Some(holder), .. } if holder == "c1"), "{error}");
    assert_eq!(files(&pool), before);
}

#[test]
fn what_is_chosen_is_recorded_before_any_file_appears() {
    let data = tempfile::tempdir().unwrap();
    let pool = pool(data.path(), r#"[[{"subnet":"10.0.0.0/24"}]]"#);
    let owner = owner("c1");
    let request = Request { owner: &owner, requested: &[], prior: Prior::Unknown, lock_wait: WAIT };
    let seen = RefCell::new(None);
    let reserved = pool
        .reserve_with::<Error>(&request, |chosen| {
            *seen.borrow_mut() = Some((chosen.to_vec(), files(&pool)));
            Ok(())
        })
        .unwrap();
    assert_eq!(seen.into_inner(), Some((reserved, Vec::new())));

    /// What a caller's own error may look like.
    #[derive(Debug, PartialEq)]
    enum Mine {
        Ipam(String),
        DiskFull,
    }
    impl From<Error> for Mine {
        fn from(error: Error) -> Self {
            Mine::Ipam(error.to_string())
        }
    }
    let before = files(&pool);
    let second = Owner::new("c2", "eth0").unwrap();
    let failed = pool.reserve_with(&Request { owner: &second, ..request }, |_| Err(Mine::DiskFull));
    assert_eq!(failed, Err(Mine::DiskFull));
    assert_eq!(files(&pool), before);
    let failed = pool.reserve_with(&request, |_| Err(Mine::DiskFull));
    assert!(
        matches!(failed, Err(Mine::Ipam(text)) if text.contains("duplicate allocation")),
        "refused before recording"
    );
}

#[test]
fn release_leaves_strangers_alone_and_is_as_good_the_second_time() {
    let data = tempfile::tempdir().unwrap();
    let pool = pool(data.path(), r#"[[{"subnet":"10.0.0.0/24"}]]"#);
    let store = pool.store(WAIT);
    assert_eq!(store.release(&owner("c1"), Known::Nothing).unwrap(), Vec::<IpAddr>::new());
    assert_eq!(store.release(&owner("c1"), Known::Addresses(&[ip("10.0.0.2")])).unwrap(), Vec::<IpAddr>::new());
    assert!(!pool.directory.exists(), "giving back makes no pool");

    plant(&pool, "10.0.0.2", "c2\r\neth0");
    plant(&pool, "10.0.0.3", " c1\r\neth0\n");
    plant(&pool, "10.0.0.4", "c1");
    plant(&pool, "10.0.0.5", "c1\r\nnet1");
    let all = ["10.0.0.2", "10.0.0.3", "10.0.0.5", "10.0.0.9"].map(ip);
    assert_eq!(store.release(&owner("c1"), Known::Addresses(&all)).unwrap(), [ip("10.0.0.3")]);
    assert_eq!(store.release(&owner("c1"), Known::Addresses(&all)).unwrap(), Vec::<IpAddr>::new());
    assert_eq!(
        store.release(&owner("c1"), Known::Addresses(&[ip("::ffff:10.0.0.4")])).unwrap(),
        [ip("10.0.0.4")],
        "the old format"
    );
    assert_eq!(files(&pool), ["10.0.0.2=c2\r\neth0", "10.0.0.5=c1\r\nnet1"]);
}

#[test]
fn a_scan_takes_the_old_format_only_if_the_new_one_finds_nothing() {
    let data = tempfile::tempdir().unwrap();
    let pool = pool(data.path(), r#"[[{"subnet":"10.0.0.0/24"}]]"#);
    plant(&pool, "10.0.0.3", "c1\r\neth0");
    plant(&pool, "10.0.0.4", "c1\n");
    plant(&pool, "last_reserved_ip.0", "c1");
    let store = pool.store(WAIT);
    assert_eq!(store.held_by(&owner("c1")).unwrap(), [ip("10.0.0.3"), ip("10.0.0.4")]);
    assert_eq!(store.release(&owner("c1"), Known::Nothing).unwrap(), [ip("10.0.0.3")]);
    assert_eq!(store.release(&owner("c1"), Known::Nothing).unwrap(), [ip("10.0.0.4")]);
    assert_eq!(files(&pool), ["last_reserved_ip.0=c1"]);
}

#[test]
fn check_names_what_is_missing() {
    let data = tempfile::tempdir().unwrap();
    let pool = pool(data.path(), r#"[[{"subnet":"10.0.0.0/24"}]]"#);
    plant(&pool, "10.0.0.2", "c1\r\neth0");
    plant(&pool, "10.0.0.3", "c2\r\neth0");
    let store = pool.store(WAIT);
    assert!(store.holds(&owner("c1"), &[ip("10.0.0.2")]).unwrap());
    let asked = ["10.0.0.2", "10.0.0.3", "10.0.0.4"].map(ip);
    assert_eq!(store.missing(&owner("c1"), &asked).unwrap(), [ip("10.0.0.3"), ip("10.0.0.4")]);
}

#[test]
fn gc_keeps_the_listed_the_old_format_of_the_listed_and_what_is_no_lease() {
    let data = tempfile::tempdir().unwrap();
    let pool = pool(data.path(), r#"[[{"subnet":"10.0.0.0/24"}]]"#);
    for (name, content) in [
        ("10.0.0.2", "live\r\neth0"),
        ("10.0.0.3", "live\r\nnet9"),
        ("10.0.0.4", "live"),
        ("10.0.0.5", "dead\r\neth0"),
        ("10.0.0.6", "dead"),
        ("10.0.0.7", ""),
        ("10.0.0.8", "kept for the printer"),
        ("last_reserved_ip.0", "10.0.0.8"),
        ("notes", "dead"),
        ("lock", ""),
    ] {
        plant(&pool, name, content);
    }
    let released = pool.store(WAIT).release_all_but(&[owner("live")]).unwrap();
    let shown: Vec<_> = released.iter().map(|lease| (lease.address.to_string(), lease.container.as_deref())).collect();
    let expected =
        [("10.0.0.3", Some("live")), ("10.0.0.5", Some("dead")), ("10.0.0.6", Some("dead")), ("10.0.0.7", None)];
    assert_eq!(shown, expected.map(|(address, container)| (address.to_owned(), container)));
    assert!(pool.directory.join("lock").exists());
    assert_eq!(pool.store(WAIT).release_all_but(&[]).unwrap().len(), 2, "an empty list keeps nobody");
    assert_eq!(files(&pool), ["10.0.0.8=kept for the printer", "last_reserved_ip.0=10.0.0.8", "notes=dead"]);
}

#[test]
fn orphans_are_free_and_foreign_words_are_not() {
    let data = tempfile::tempdir().unwrap();
    let pool = pool(data.path(), r#"[[{"subnet":"10.0.0.0/29"}]]"#);
    plant(&pool, "10.0.0.2", "");
    plant(&pool, "10.0.0.3", "kept for the printer");
    plant(&pool, "10.0.0.4", "\0\0\0\0\0\0");
    fs::create_dir(pool.directory.join("10.0.0.5")).unwrap();
    assert_eq!(get(&pool, "c1", &[]), ["10.0.0.2/29 via 10.0.0.1"]);
    assert_eq!(get(&pool, "c2", &["10.0.0.4"]), ["10.0.0.4/29 via 10.0.0.1"]);
    assert_eq!(get(&pool, "c3", &[]), ["10.0.0.6/29 via 10.0.0.1"]);
    assert!(matches!(ask(&pool, "c4", &[]).unwrap_err(), Error::Exhausted { set: 0, .. }));
}

#[test]
fn an_orphan_deep_in_a_full_pool_is_found_before_giving_up() {
    let data = tempfile::tempdir().unwrap();
    let pool = pool(data.path(), r#"[[{"subnet":"10.0.0.0/24"}]]"#);
    for host in 2..=254 {
        plant(&pool, &format!("10.0.0.{host}"), if host == 200 { "" } else { "other\r\neth0" });
    }
    assert_eq!(get(&pool, "c1", &[]), ["10.0.0.200/24 via 10.0.0.1"]);
    assert!(matches!(ask(&pool, "c2", &[]).unwrap_err(), Error::Exhausted { set: 0, .. }));
    pool.store(WAIT).release(&owner("c1"), Known::Addresses(&[ip("10.0.0.200")])).unwrap();
    assert_eq!(get(&pool, "c2", &[]), ["10.0.0.200/24 via 10.0.0.1"]);
}

#[test]
fn what_a_crash_leaves_harms_nobody() {
    let data = tempfile::tempdir().unwrap();
    let pool = pool(data.path(), r#"[[{"subnet":"10.0.0.0/24"}]]"#);
    plant(&pool, ".reservation", "c1\r\neth0");
    plant(&pool, "last_reserved_ip.0", "10.0.");
    assert_eq!(get(&pool, "c1", &[]), ["10.0.0.2/24 via 10.0.0.1"], "a draft is no reservation");
    pool.store(WAIT).release(&owner("c1"), Known::Nothing).unwrap();
    assert_eq!(files(&pool), ["last_reserved_ip.0=10.0.0.2"]);

    // The same when it is known which address is given back.
    get(&pool, "c2", &[]);
    plant(&pool, ".reservation", "c2\r\neth0");
    pool.store(WAIT).release(&owner("c2"), Known::Addresses(&[ip("10.0.0.3")])).unwrap();
    assert_eq!(files(&pool), ["last_reserved_ip.0=10.0.0.3"]);
}

#[test]
fn leases_that_name_nobody_are_removed_and_all_others_stay() {
    let data = tempfile::tempdir().unwrap();
    let pool = pool(data.path(), r#"[[{"subnet":"10.0.0.0/24"}]]"#);
    assert_eq!(pool.store(WAIT).release_orphans().unwrap(), [], "no pool yet");
    get(&pool, "c1", &[]);
    plant(&pool, "10.0.0.3", "");
    plant(&pool, "10.0.0.4", "\0\0\0\0");
    plant(&pool, "10.0.0.5", "old");
    let removed = pool.store(WAIT).release_orphans().unwrap();
    let removed: Vec<_> = removed.into_iter().map(|lease| (lease.address, lease.container)).collect();
    assert_eq!(removed, [(ip("10.0.0.3"), None), (ip("10.0.0.4"), None)]);
    assert_eq!(files(&pool), ["10.0.0.2=c1\r\neth0", "10.0.0.5=old", "last_reserved_ip.0=10.0.0.2"]);
}

#[test]
fn names_and_directories_that_would_lead_elsewhere_are_refused() {
    let raw: RawIpam = serde_json::from_str(r#"{"subnet":"10.0.0.0/24"}"#).unwrap();
    for name in ["", "..", "a/b", ".hidden", "a b"] {
        assert!(
            matches!(Pool::new(name, &raw, &[], &Node::default()).unwrap_err(), Error::NetworkName { name: found } if found == name)
        );
    }
    assert_eq!(
        Pool::new("net-a", &raw, &[], &Node::default()).unwrap().directory,
        Path::new("/var/lib/cni/networks/net-a")
    );
    let raw: RawIpam = serde_json::from_str(r#"{"subnet":"10.0.0.0/24","dataDir":"relative"}"#).unwrap();
    assert!(
        matches!(Pool::new("net-a", &raw, &[], &Node::default()).unwrap_err(), Error::DataDir { path } if path == Path::new("relative"))
    );
    assert!(matches!(Pool::new("net-a", &RawIpam::default(), &[], &Node::default()).unwrap_err(), Error::NoRanges));
}

#[test]
fn all_leases_are_listed_and_only_what_still_says_the_same_is_reclaimed() {
    let data = tempfile::tempdir().unwrap();
    let pool = pool(data.path(), r#"[[{"subnet":"10.0.0.0/24"}]]"#);
    let store = pool.store(WAIT);
    assert_eq!(store.leases().unwrap(), [], "no pool yet");
    for (name, content) in [
        ("10.0.0.2", "dead\r\neth0"),
        ("10.0.0.3", "dead\n"),
        ("10.0.0.4", ""),
        ("10.0.0.5", "kept for the printer"),
        ("10.0.0.6", "passed\r\neth0"),
        ("last_reserved_ip.0", "10.0.0.6"),
    ] {
        plant(&pool, name, content);
    }
    let leases = store.leases().unwrap();
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    let shown = leases.iter().map(|one| format!("{} {} {}", one.address, text(&one.container), text(&one.interface)));
    let expected = [
        "10.0.0.2 dead eth0",
        "10.0.0.3 dead ",
        "10.0.0.4  ",
        "10.0.0.5 kept for the printer ",
        "10.0.0.6 passed eth0",
    ];
    assert_eq!(shown.collect::<Vec<_>>(), expected);
    assert_eq!(leases.iter().map(Lease::is_foreign).collect::<Vec<_>>(), [false, false, false, true, false]);

    plant(&pool, "10.0.0.6", "new\r\neth0");
    let reclaimed = store.reclaim(&leases).unwrap();
    let addresses: Vec<_> = reclaimed.iter().map(|lease| lease.address).collect();
    assert_eq!(addresses, ["10.0.0.2", "10.0.0.3", "10.0.0.4"].map(ip));
    assert_eq!(store.reclaim(&leases).unwrap(), []);
    assert_eq!(files(&pool), ["10.0.0.5=kept for the printer", "10.0.0.6=new\r\neth0", "last_reserved_ip.0=10.0.0.6"]);
}
