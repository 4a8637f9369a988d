//! What the allocator must keep whatever the configuration and whatever came before: never an address twice, never one
//! outside, excluded or the gateway, all of them before it is exhausted, in turn, and what was released again.
//!
//! Configurations and operations are random, from printed seeds; what may be given out is worked out in the plainest way,
//! address by address.

#![allow(clippy::unwrap_used, reason = "tests and their helpers: a panic is a failure")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::time::Duration;

use ipam::{Error, Known, Node, Owner, Pool, Prior, RawIpam, Request, Slice};
use serde_json::{Value, json};

const WAIT: Duration = Duration::from_secs(60);

/// xorshift, so that a failure can be seen again.
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Random {
        // Small seeds are much alike in their first numbers.
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        for _ in 0..8 {
            random.below(2);
        }
        random
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }

    fn one_in(&mut self, count: u64) -> bool {
        self.below(count) == 0
    }
}

/// A range as numbers within its subnet, which has 2^`bits` addresses.
#[derive(Debug)]
struct Model {
    base: IpAddr,
    bits: u64,
    start: u64,
    end: u64,
    gateway: Option<u64>,
    excluded: BTreeSet<u64>,
    json: Value,
}

fn nth(base: IpAddr, number: u64) -> IpAddr {
    match base {
        IpAddr::V4(base) => IpAddr::V4(Ipv4Addr::from(u32::from(base) + u32::try_from(number).unwrap())),
        IpAddr::V6(base) => IpAddr::V6(Ipv6Addr::from(u128::from(base) + u128::from(number))),
    }
}

impl Model {
    /// A random range on subnet number `index`.
    fn random(random: &mut Random, index: u64, v6: bool) -> Model {
        let bits = 1 + random.below(2) + random.below(5);
        let size = 1 << bits;
        let base: IpAddr = match v6 {
            true => format!("fd00:{index:x}::ff00").parse().unwrap(),
            false => format!("10.{index}.255.0").parse().unwrap(),
        };
        let small = bits < 2;
        let prefix = if v6 { 128 - bits } else { 32 - bits };
        let mut json = json!({"subnet": format!("{base}/{prefix}")});
        // Defaults first, then what is written.
        let (mut start, mut end) = if small { (0, size - 1) } else { (1, if v6 { size - 1 } else { size - 2 }) };
        if small || random.one_in(2) {
            start = random.below(size);
            end = end.max(start);
            json["rangeStart"] = json!(nth(base, start).to_string());
        }
        if end < start || random.one_in(2) {
            end = start + random.below(size - start);
            json["rangeEnd"] = json!(nth(base, end).to_string());
        } else if end == size - 1 && !v6 && !small {
            json["rangeEnd"] = json!(nth(base, end).to_string());
        }
        let gateway = match random.below(4) {
            0 => None,
            1 => Some(random.below(size)),
            _ => Some(1),
        };
        match gateway {
            None => json["gateway"] = json!("none"),
            Some(1) if random.one_in(2) => {}
            Some(number) => json["gateway"] = json!(nth(base, number).to_string()),
        }
        let mut model = Model { base, bits, start, end, gateway, excluded: BTreeSet::new(), json };
        model.exclude(random, if v6 { 128 } else { 32 });
        model
    }

    /// Excludes random addresses and blocks that have something of the range.
    fn exclude(&mut self, random: &mut Random, longest: u64) {
        let mut entries = Vec::new();
        for _ in 0..random.below(4) {
            let bits = random.below(self.bits.min(3));
            let first = random.below(1 << self.bits) >> bits << bits;
            let block = first..first + (1 << bits);
            if block.end <= self.start || block.start > self.end {
                continue;
            }
            let address = nth(self.base, first);
            entries.push(if bits == 0 { address.to_string() } else { format!("{address}/{}", longest - bits) });
            self.excluded.extend(block);
        }
        if !entries.is_empty() {
            self.json["exclude"] = json!(entries);
        }
    }

    /// The addresses that may be given out, in order.
    fn allowed(&self, slice: Option<(u64, u64)>) -> Vec<IpAddr> {
        let part =
            |number: u64| slice.is_none_or(|(index, bits)| self.bits >= bits && number >> (self.bits - bits) == index);
        (self.start..=self.end)
            .filter(|number| Some(*number) != self.gateway && !self.excluded.contains(number) && part(*number))
            .map(|number| nth(self.base, number))
            .collect()
    }
}

/// A pool of random shape, and what it may give out, in the order in which its sets do.
struct Case {
    pool: Pool,
    allowed: Vec<Vec<IpAddr>>,
    text: String,
}

/// `None` if the configuration is one that has nothing to give out: then it is refused, or every ADD is.
fn case(random: &mut Random, data: &Path) -> Option<Case> {
    let mut number = 0;
    let slice = random.one_in(5).then(|| {
        let bits = 1 + random.below(2);
        (random.below(1 << bits), bits)
    });
    let models: Vec<Vec<Model>> = (0..1 + random.below(2))
        .map(|_| {
            let v6 = random.one_in(3);
            (0..1 + random.below(3))
                .map(|_| {
                    number += 1;
                    Model::random(random, number, v6)
                })
                .collect()
        })
        .collect();
    let sets: Vec<Vec<&Value>> = models.iter().map(|set| set.iter().map(|model| &model.json).collect()).collect();
    let ipam = json!({"dataDir": data, "ranges": sets, "sliceByNode": slice.is_some()});
    let node = Node {
        slice: slice
            .map(|(index, bits)| Slice::new("0.0.0.0/0", &format!("{}.0.0.0/{bits}", index << (8 - bits))).unwrap()),
        ..Node::default()
    };
    let of_ranges: Vec<Vec<Vec<IpAddr>>> =
        models.iter().map(|set| set.iter().map(|model| model.allowed(slice)).collect()).collect();
    let raw: RawIpam = serde_json::from_value(ipam.clone()).unwrap();
    match Pool::new("net-a", &raw, &[], &node) {
        Ok(pool) => Some(Case {
            pool,
            allowed: of_ranges.into_iter().map(|set| set.concat()).collect(),
            text: format!("{ipam} on {slice:?}"),
        }),
        Err(Error::NothingToGive { .. } | Error::SliceTooSmall { .. }) => {
            assert!(of_ranges.iter().flatten().any(Vec::is_empty), "{ipam} on {slice:?} has something to give out");
            None
        }
        Err(other) => panic!("{ipam}: {other}"),
    }
}

fn add(pool: &Pool, owner: &Owner, requested: &[IpAddr]) -> Result<Vec<IpAddr>, Error> {
    let request = Request { owner, requested, prior: Prior::Unknown, lock_wait: WAIT };
    pool.reserve(&request).map(|found| found.iter().map(|one| one.address.addr()).collect())
}

fn owner(number: u64) -> Owner {
    Owner::new(&format!("c{number}"), "eth0").unwrap()
}

/// The first free one after `last` in the round.
fn expected(allowed: &[IpAddr], place: usize, held: &BTreeMap<IpAddr, u64>) -> Option<usize> {
    (0..allowed.len()).map(|step| (place + step) % allowed.len()).find(|at| !held.contains_key(&allowed[*at]))
}

/// Random operations on a pool, each answer against the model: which address, or which refusal.
fn exercise(random: &mut Random, case: &Case, seed: u64) -> (u32, u32) {
    let Case { pool, allowed, text } = case;
    let mut held: BTreeMap<IpAddr, u64> = BTreeMap::new();
    // Where the round goes on, for each set.
    let mut places = vec![0_usize; allowed.len()];
    let (mut served, mut exhausted) = (0, 0);
    for number in 0..60 + random.below(60) {
        let context = format!("seed {seed}, operation {number}, {held:?}: {text}");
        if !held.is_empty() && random.one_in(3) {
            let victim = *held.values().nth(usize::try_from(random.below(held.len() as u64)).unwrap()).unwrap();
            let released: BTreeSet<IpAddr> =
                pool.store(WAIT).release(&owner(victim), Known::Nothing).unwrap().into_iter().collect();
            let had: BTreeSet<IpAddr> = held.iter().filter(|(_, of)| **of == victim).map(|(ip, _)| *ip).collect();
            assert_eq!(released, had, "{context}");
            held.retain(|_, of| *of != victim);
            continue;
        }
        let wanted: Vec<IpAddr> = match random.one_in(4) && !allowed[0].is_empty() {
            true => {
                let set = &allowed[0];
                vec![set[usize::try_from(random.below(set.len() as u64)).unwrap()]]
            }
            false => Vec::new(),
        };
        let mut choice = Vec::new();
        for (index, set) in allowed.iter().enumerate() {
            choice.push(match wanted.first().filter(|_| index == 0) {
                Some(address) if held.contains_key(address) => None,
                Some(address) => set.iter().position(|one| one == address),
                None => expected(set, places[index], &held),
            });
        }
        let answer = add(pool, &owner(number), &wanted);
        if choice.iter().any(Option::is_none) {
            match answer {
                Err(Error::Exhausted { set, .. } | Error::Taken { set, .. }) => {
                    assert!(choice[set].is_none(), "{context}: set {set} has an address");
                }
                other => panic!("{context}: {other:?} where nothing is left"),
            }
            exhausted += 1;
            continue;
        }
        let given = answer.unwrap_or_else(|error| panic!("{context}: {error}"));
        for (index, address) in given.iter().enumerate() {
            let at = choice[index].unwrap();
            assert_eq!(*address, allowed[index][at], "{context}: set {index}");
            assert_eq!(held.insert(*address, number), None, "{context}: {address} is given twice");
            places[index] = at + 1;
        }
        served += 1;
    }
    let leases: BTreeSet<IpAddr> = std::fs::read_dir(&pool.directory)
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok())
        .collect();
    assert_eq!(leases, held.keys().copied().collect(), "seed {seed}: {text}");
    (served, exhausted)
}

#[test]
fn every_answer_is_the_one_of_a_plain_model() {
    let (mut pools, mut empty, mut served, mut exhausted) = (0, 0, 0, 0);
    for seed in 1..=160 {
        let (data, mut random) = (tempfile::tempdir().unwrap(), Random::new(seed));
        let Some(case) = case(&mut random, data.path()) else {
            empty += 1;
            continue;
        };
        pools += 1;
        let counts = exercise(&mut random, &case, seed);
        served += counts.0;
        exhausted += counts.1;
    }
    assert!(pools > 60 && empty > 10, "{pools} pools and {empty} refused say little");
    assert!(served > 1500 && exhausted > 800, "{served} served and {exhausted} refused say little");
}

/// From an empty pool: as many different addresses as there are, in turn; then none; then, all released, the same again
/// from where the round was.
#[test]
fn a_pool_gives_all_it_has_and_wraps() {
    for seed in 1001..=1050 {
        let (data, mut random) = (tempfile::tempdir().unwrap(), Random::new(seed));
        let Some(Case { pool, allowed, text }) = case(&mut random, data.path()) else { continue };
        let context = format!("seed {seed}: {text}");
        let count = allowed.iter().map(Vec::len).min().unwrap() as u64;
        for round in 0..3 {
            for number in 0..count {
                let given = add(&pool, &owner(number), &[]).unwrap_or_else(|error| panic!("{context}: {error}"));
                for (address, set) in given.iter().zip(&allowed) {
                    let at = usize::try_from(round * count + number).unwrap() % set.len();
                    assert_eq!(*address, set[at], "{context}: round {round}, number {number}");
                }
            }
            let error = add(&pool, &owner(count), &[]).unwrap_err();
            assert!(matches!(error, Error::Exhausted { .. }), "{context}: {error}");
            assert_eq!(pool.store(WAIT).release_all_but(&[]).unwrap().len() as u64, count * allowed.len() as u64);
        }
    }
}

/// Nothing of an address space that cannot be walked is walked: each of these would take centuries.
#[test]
fn huge_ranges_and_huge_gaps_take_no_time() {
    let data = tempfile::tempdir().unwrap();
    let table = [
        (json!([[{"subnet": "2001:db8::/32"}]]), vec!["2001:db8::2"]),
        (
            json!([[{"subnet": "2001:db8::/64", "gateway": "none", "exclude": ["2001:db8::/66", "2001:db8::4000:0:0:0/67"]}]]),
            vec!["2001:db8::6000:0:0:0"],
        ),
        (
            json!([[{"subnet": "2001:db8::/64", "rangeEnd": "2001:db8::8000:0:0:1", "exclude": ["2001:db8::/65", "2001:db8::8000:0:0:0"]},
                 {"subnet": "2001:db8:1::/64", "exclude": ["2001:db8:1::/65"]}]]),
            vec!["2001:db8::8000:0:0:1", "2001:db8:1:0:8000::", "2001:db8:1:0:8000::1"],
        ),
        (
            json!([[{"subnet": "::/0", "rangeStart": "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"}]]),
            vec!["ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"],
        ),
    ];
    for (index, (ranges, expected)) in table.into_iter().enumerate() {
        let raw = serde_json::from_value(json!({"dataDir": data.path(), "ranges": ranges})).unwrap();
        let pool = Pool::new(&format!("net-{index}"), &raw, &[], &Node::default()).unwrap();
        for (number, address) in expected.iter().enumerate() {
            let given = add(&pool, &owner(number as u64), &[]).unwrap_or_else(|error| panic!("{ranges}: {error}"));
            assert_eq!(given[0], address.parse::<IpAddr>().unwrap(), "{ranges}");
        }
    }
}

/// The last address given out may be any: of a range that was changed, excluded by now, the gateway, another family's.
#[test]
fn whatever_was_given_out_last_the_search_ends() {
    for seed in 2001..=2040 {
        let (data, mut random) = (tempfile::tempdir().unwrap(), Random::new(seed));
        let Some(Case { pool, allowed, text }) = case(&mut random, data.path()) else { continue };
        std::fs::create_dir_all(&pool.directory).unwrap();
        for host in [0, 1, 2, 3, 6, 11] {
            for last in [format!("10.1.255.{host}"), format!("fd00:1::ff0{host:x}"), "no address".to_owned()] {
                std::fs::write(pool.directory.join("last_reserved_ip.0"), &last).unwrap();
                let context = format!("seed {seed}: {text} after {last}");
                let mut seen = BTreeSet::new();
                for number in 0..allowed[0].len().min(allowed.iter().map(Vec::len).min().unwrap()) {
                    let given = add(&pool, &owner(number as u64), &[]).unwrap_or_else(|e| panic!("{context}: {e}"));
                    assert!(allowed[0].contains(&given[0]) && seen.insert(given[0]), "{context}: {}", given[0]);
                }
                assert!(matches!(add(&pool, &owner(99), &[]), Err(Error::Exhausted { .. })), "{context}");
                pool.store(WAIT).release_all_but(&[]).unwrap();
            }
        }
    }
}
