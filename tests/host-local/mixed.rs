//! Both programs at once on one directory.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use serde_json::{Value, json};

use crate::bed::{Bed, addresses, answer, ours, theirs};

const PROCESSES: usize = 64;

/// Which program the worker is, in turn.
fn program(worker: usize) -> &'static Path {
    [theirs(), ours()][worker % 2]
}

/// Runs a worker in each of 64 threads at once, and puts together what they say.
fn at_once<T: Send>(work: impl Fn(usize) -> Vec<T> + Sync) -> Vec<T> {
    std::thread::scope(|scope| {
        let work = &work;
        let workers: Vec<_> = (0..PROCESSES).map(|worker| scope.spawn(move || work(worker))).collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
    })
}

fn container(worker: usize, index: usize) -> String {
    format!("c{worker}-{index}")
}

/// The one address of an ADD, or the text of the refusal.
fn add(bed: &Bed, program: &Path, container: &str) -> Result<String, String> {
    let given = addresses(&answer(&bed.call(program, "ADD", container).run())?);
    assert_eq!(given.len(), 1, "{given:?}");
    Ok(given[0].split('/').next().unwrap().to_owned())
}

/// Who was given what; panics if anything was given twice.
fn holders(answers: &[(String, Result<String, String>)]) -> BTreeMap<String, String> {
    let mut holders = BTreeMap::new();
    for (container, answer) in answers {
        match answer {
            Ok(address) => {
                let earlier = holders.insert(address.clone(), format!("{container}\r\neth0"));
                assert_eq!(earlier, None, "{address} was given twice");
            }
            Err(text) => assert_eq!(
                text,
                "failed to allocate for range 0: no IP addresses available in range set: 10.0.0.1-10.0.0.254"
            ),
        }
    }
    holders
}

/// 320 asks for 253 addresses; then each program gives back what the other one gave.
#[test]
fn no_address_twice_and_none_lost() {
    let bed = Bed::new(&json!({"subnet": "10.0.0.0/24"}));
    let answers = at_once(|worker| {
        let name = |index| container(worker, index);
        (0..5).map(|index| (name(index), add(&bed, program(worker), &name(index)))).collect()
    });
    let holders = holders(&answers);
    assert_eq!(holders.len(), 253);
    assert_eq!(bed.leases(), holders, "each file names whom the address was given to");
    at_once(|worker| {
        for index in 0..5 {
            assert_eq!(bed.call(program(worker + 1), "DEL", &container(worker, index)).ok(), Value::Null);
        }
        Vec::<()>::new()
    });
    assert_eq!(bed.files().into_keys().collect::<BTreeSet<_>>(), BTreeSet::from(["last_reserved_ip.0".to_owned()]));
}

/// Pods that come and go: every process keeps one address of its three, gives the others back by the other program, and
/// its CHECK holds all the while. Our GC then takes the leases of both.
#[test]
fn pods_come_and_go_and_gc_takes_the_leases_of_both() {
    let bed = Bed::new(&json!({"subnet": "10.0.0.0/24"}));
    let answers = at_once(|worker| {
        let name = |index| container(worker, index);
        let mut kept = Vec::new();
        for index in 0..3 {
            let own = program(worker + index);
            let address = add(&bed, own, &name(index));
            bed.call(program(worker + index + 1), "CHECK", &name(index)).ok();
            match index {
                1 => kept.push((name(index), address)),
                _ => drop(bed.call(program(worker), "DEL", &name(index)).ok()),
            }
        }
        kept
    });
    let kept = holders(&answers);
    assert_eq!(kept.len(), PROCESSES, "no ask was refused");
    assert_eq!(bed.leases(), kept);
    // Every third pod lives on.
    let valid: BTreeMap<String, String> = kept.into_iter().step_by(3).collect();
    let listed: Vec<Value> = valid
        .values()
        .map(|content| {
            let (container, interface) = content.split_once("\r\n").unwrap();
            json!({"containerID": container, "ifname": interface})
        })
        .collect();
    let mut conf = bed.conf("1.1.0");
    conf["cni.dev/valid-attachments"] = json!(listed);
    bed.call_with(ours(), "GC", "", &conf).ok();
    assert_eq!(bed.leases(), valid);
    // Both go on with what is left.
    for (container, program) in [("late-1", theirs()), ("late-2", ours())] {
        let address = add(&bed, program, container).unwrap();
        assert!(!valid.contains_key(&address), "{address}");
    }
}
