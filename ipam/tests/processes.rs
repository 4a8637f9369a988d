//! Many processes on one pool, and processes killed at any point. This program is parent and child: run with
//! `IPAM_CHILD` set to a container ID it works on the pool as that container, else it is the test.

#![allow(clippy::unwrap_used, reason = "tests and their helpers: a panic is a failure")]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a test program of its own, without libtest")]

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use ipam::{Error, Known, Node, Owner, Pool, Prior, RawIpam, Request};

const WAIT: Duration = Duration::from_secs(60);

fn pool(data: &Path) -> Pool {
    let json = format!(
        r#"{{"dataDir":"{}","ranges":[[{{"subnet":"10.0.0.0/24"}}],[{{"subnet":"fd00::/64"}}]]}}"#,
        data.display()
    );
    let raw: RawIpam = serde_json::from_str(&json).unwrap();
    Pool::new("net-a", &raw, &[], &Node::default()).unwrap()
}

fn owner(container: &str) -> Owner {
    Owner::new(container, "eth0").unwrap()
}

/// A child's work: reserve for `CONTAINER-0`, `CONTAINER-1`, ... and print what came of it.
fn reserve_many(pool: &Pool, container: &str, calls: u32) {
    for index in 0..calls {
        let owner = owner(&format!("{container}-{index}"));
        let request = Request { owner: &owner, requested: &[], prior: Prior::NoneKnown, lock_wait: WAIT };
        match pool.reserve(&request) {
            Ok(found) => println!("{}", found[0].address.addr()),
            Err(error @ Error::Exhausted { set: 0, .. }) => println!("{error}"),
            Err(error) => panic!("{error}"),
        }
    }
}

/// A child's work: reserve and release until killed.
fn churn(pool: &Pool, container: &str) {
    loop {
        let owner = owner(container);
        let request = Request { owner: &owner, requested: &[], prior: Prior::NoneKnown, lock_wait: WAIT };
        let found = pool.reserve(&request).unwrap();
        let addresses: Vec<IpAddr> = found.iter().map(|found| found.address.addr()).collect();
        assert_eq!(pool.store(WAIT).release(&owner, Known::Addresses(&addresses)).unwrap(), addresses);
    }
}

fn spawn(data: &Path, container: &str, work: &str) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .env("IPAM_CHILD", container)
        .env("IPAM_DATA", data)
        .env("IPAM_WORK", work)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

/// 200 processes, two calls each, on 253 addresses: 253 different ones, then host-local's text.
fn every_address_once_then_the_exact_text() {
    let data = tempfile::tempdir().unwrap();
    let mut lines = Vec::new();
    for batch in 0..10 {
        let children: Vec<Child> = (0..20).map(|n| spawn(data.path(), &format!("c{batch}-{n}"), "reserve")).collect();
        for child in children {
            let output = child.wait_with_output().unwrap();
            assert!(output.status.success(), "{:?}", output.status);
            lines.extend(String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned));
        }
    }
    assert_eq!(lines.len(), 400);
    let (served, refused): (Vec<_>, Vec<_>) = lines.into_iter().partition(|line| line.parse::<IpAddr>().is_ok());
    let text = "failed to allocate for range 0: no IP addresses available in range set: 10.0.0.1-10.0.0.254";
    assert!(refused.iter().all(|line| line == text), "{refused:?}");
    assert_eq!((served.len(), refused.len()), (253, 147));
    assert_eq!(served.iter().collect::<BTreeSet<_>>().len(), 253);
}

/// A process that dies by SIGKILL wherever it is leaves whole reservations or none, and a pool that works on.
fn killed_anywhere_the_pool_works_on() {
    let data = tempfile::tempdir().unwrap();
    let pool = pool(data.path());
    let mut held = 0;
    let kills = 60;
    for kill in 0..kills {
        let names: Vec<String> = (0..3).map(|n| format!("k{kill}-{n}")).collect();
        let children: Vec<Child> = names.iter().map(|name| spawn(data.path(), name, "churn")).collect();
        std::thread::sleep(Duration::from_micros(15_000 + 997 * kill));
        for mut child in children {
            // Dead by its own fault would not be a kill.
            assert!(child.try_wait().unwrap().is_none(), "a child ended by itself");
            child.kill().unwrap();
            child.wait().unwrap();
        }
        for entry in fs::read_dir(&pool.directory).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            let content = fs::read_to_string(&path).unwrap();
            if name.parse::<IpAddr>().is_ok() {
                held += 1;
                assert!(names.iter().any(|name| content == format!("{name}\r\neth0")), "{name}: {content:?}");
            } else if name.starts_with("last_reserved_ip.") {
                assert!(content.parse::<IpAddr>().is_ok(), "{name}: {content:?}");
            }
        }
        for name in &names {
            pool.store(WAIT).release(&owner(name), Known::Nothing).unwrap();
        }
        let left =
            fs::read_dir(&pool.directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let left: Vec<_> = left.filter(|name| name.parse::<IpAddr>().is_ok()).collect();
        assert_eq!(left, Vec::<String>::new(), "after giving back what the dead ones held");
    }
    println!("  {kills} times 3 processes killed, {held} addresses were held and given back");
    assert!(held > 0, "no process was killed while it held an address: the test shows nothing");
    reserve_many(&pool, "after", 1);
}

fn main() {
    if let Ok(container) = std::env::var("IPAM_CHILD") {
        let pool = pool(Path::new(&std::env::var("IPAM_DATA").unwrap()));
        match std::env::var("IPAM_WORK").unwrap().as_str() {
            "reserve" => reserve_many(&pool, &container, 2),
            _ => churn(&pool, &container),
        }
        return;
    }
    let tests: [(&str, fn()); 2] = [
        ("every_address_once_then_the_exact_text", every_address_once_then_the_exact_text),
        ("killed_anywhere_the_pool_works_on", killed_anywhere_the_pool_works_on),
    ];
    let filter = std::env::args().skip(1).find(|argument| !argument.starts_with('-'));
    for (name, test) in tests {
        if filter.as_ref().is_none_or(|filter| name.contains(filter.as_str())) {
            test();
            println!("test {name} ... ok");
        }
    }
}
