//! Many processes on one pool, and processes that die anywhere: every address once, and none lost.

use std::{collections::BTreeSet, net::IpAddr, path::Path};

use serde_json::{Value, json};

use crate::{
    bed::{Bed, answer, ours},
    harness::{Outcome, Point, Which, census, names, trace},
};

/// Runs one call for each container, all at once, and gives their outcomes in this order.
fn all_at_once(bed: &Bed, verb: &str, containers: &[String]) -> Vec<Outcome> {
    let calls: Vec<_> = containers.iter().map(|container| bed.call(ours(), verb, container)).collect();
    let mut children: Vec<_> = calls.iter().map(|call| call.start_unfed()).collect();
    for (call, child) in calls.iter().zip(&mut children) {
        call.feed(child);
    }
    let outputs = children.into_iter().map(|child| child.wait_with_output().unwrap());
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    outputs
        .map(|output| Outcome {
            code: output.status.code().unwrap_or(-1),
            stdout: text(&output.stdout),
            stderr: text(&output.stderr),
        })
        .collect()
}

fn address(result: &Value) -> String {
    result["ips"][0]["address"].as_str().unwrap_or_default().split('/').next().unwrap_or_default().to_owned()
}

#[test]
fn two_hundred_processes_and_sixty_more_get_every_address_once_and_the_exact_error() {
    let bed = Bed::new(&json!({"subnet": "10.0.0.0/24"}));
    let first: Vec<String> = (0..200).map(|number| format!("c{number}")).collect();
    let more: Vec<String> = (200..260).map(|number| format!("c{number}")).collect();
    let mut given = BTreeSet::new();
    let mut holders = Vec::new();
    for (container, outcome) in first.iter().zip(all_at_once(&bed, "ADD", &first)) {
        let result = answer(&outcome).unwrap_or_else(|text| panic!("{container}: {text}"));
        assert!(given.insert(address(&result)), "{} was given twice", address(&result));
        holders.push(container.clone());
    }
    assert_eq!(given.len(), 200);
    let mut refused = 0;
    for (container, outcome) in more.iter().zip(all_at_once(&bed, "ADD", &more)) {
        match answer(&outcome) {
            Ok(result) => {
                assert!(given.insert(address(&result)), "{} was given twice", address(&result));
                holders.push(container.clone());
            }
            Err(text) => {
                refused += 1;
                let exact =
                    "failed to allocate for range 0: no IP addresses available in range set: 10.0.0.1-10.0.0.254";
                assert_eq!((outcome.code, text.as_str()), (1, exact));
            }
        }
    }
    assert_eq!((given.len(), refused), (253, 7));
    let leases = bed.leases();
    assert_eq!(leases.keys().cloned().collect::<BTreeSet<_>>(), given);
    let of_files: BTreeSet<_> = leases.values().cloned().collect();
    assert_eq!(of_files, holders.iter().map(|container| format!("{container}\r\neth0")).collect());

    for outcome in all_at_once(&bed, "DEL", &holders) {
        assert_eq!((outcome.code, outcome.stdout.as_str()), (0, ""));
    }
    assert_eq!(bed.leases().len(), 0);
    assert_eq!(owners(&bed), Vec::<String>::new());
}

/// The entries of the index beside the pool.
fn owners(bed: &Bed) -> Vec<String> {
    names(bed.data().join(".meta-cni/net-a/owners"))
}

/// What comes after the kill.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Then {
    /// The runtime's DEL.
    Del,
    /// GC, with the list of those that live.
    Gc,
    /// The runtime's ADD again, then a DEL.
    Add,
}

/// What is there before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Before {
    /// No pool at all.
    Nothing,
    /// A pool of the Go program's, with an empty file in it, and no index.
    Foreign,
    /// A pool of ours, with an index.
    Ours,
}

/// Each of the two sets has so many addresses.
const ROOM: usize = 5;

/// A pool in which something dies.
pub(crate) struct Scene {
    /// The pool.
    pub(crate) bed: Bed,
    /// Who else is there.
    other: Option<&'static str>,
    /// How many addresses of each set may be withheld.
    cooling: bool,
}

impl Scene {
    fn new(before: Before, cooling: bool) -> Self {
        let mut scene = Self::with(cooling);
        scene.prepare(before);
        scene
    }

    /// No pool yet.
    pub(crate) fn bare() -> Self {
        Self::with(false)
    }

    fn with(cooling: bool) -> Self {
        let cool_down = if cooling { 3600 } else { 0 };
        let bed = Bed::new(&json!({
            "ranges": [[{"subnet": "10.0.0.0/29"}], [{"subnet": "fd00::/125", "rangeEnd": "fd00::6"}]],
            "coolDownSeconds": cool_down
        }));
        Self { bed, other: None, cooling }
    }

    /// Makes what is there before.
    pub(crate) fn prepare(&mut self, before: Before) {
        match before {
            Before::Nothing => return,
            Before::Foreign => {
                self.bed.plant("10.0.0.3", "other\r\neth0");
                self.bed.plant("fd00::3", "other\r\neth0");
                self.bed.plant("10.0.0.5", "");
            }
            Before::Ours => drop(self.bed.call(ours(), "ADD", "other").ok()),
        }
        self.other = Some("other");
    }

    /// Runs a call and kills it before the point; with none, to its end.
    pub(crate) fn kill(&self, verb: &str, before: Option<usize>) -> (Vec<Point>, bool) {
        let traced = trace(&self.bed.call(ours(), verb, "c1"), Which::All, before);
        assert!(traced.killed || traced.code == Some(0), "{verb} failed: {}", traced.stdout);
        (traced.points, traced.killed)
    }

    /// The addresses that somebody holds, by the files: every file names somebody whole, and nobody but these two.
    pub(crate) fn held(&self, planted_orphan: bool) -> usize {
        let mut held = 0;
        for (name, content) in self.bed.leases() {
            if name.parse::<IpAddr>().is_err() {
                assert_eq!(name, ".reservation");
            } else if content.is_empty() {
                assert!(planted_orphan && name == "10.0.0.5", "{name} is empty");
            } else {
                assert!(["c1\r\neth0", "other\r\neth0"].contains(&content.as_str()), "{name}: {content:?}");
                held += 1;
            }
        }
        held
    }

    fn gc(&self, valid: &[&str]) {
        let mut conf = self.bed.conf("1.1.0");
        let list: Vec<Value> = valid.iter().map(|one| json!({"containerID": one, "ifname": "eth0"})).collect();
        conf["cni.dev/valid-attachments"] = json!(list);
        self.bed.call_with(ours(), "GC", "", &conf).without("CNI_CONTAINERID").without("CNI_IFNAME").ok();
    }

    pub(crate) fn carry_out(&self, then: Then) {
        match then {
            Then::Del => drop(self.bed.call(ours(), "DEL", "c1").ok()),
            Then::Gc => self.gc(&self.other.into_iter().collect::<Vec<_>>()),
            Then::Add => {
                let had = self.bed.leases().values().any(|content| content == "c1\r\neth0");
                match answer(&self.bed.call(ours(), "ADD", "c1").run()) {
                    Ok(result) => assert_eq!(result["ips"].as_array().unwrap().len(), 2),
                    Err(text) => assert!(had && text.contains("duplicate allocation is not allowed"), "{text}"),
                }
                self.bed.call(ours(), "DEL", "c1").ok();
            }
        }
    }

    /// Nothing of the dead call is left, and every address but the other's and the withheld ones can be had, once.
    pub(crate) fn count(&self) {
        let of_other = if self.other.is_some() { 2 } else { 0 };
        assert_eq!(self.held(true), of_other, "{:?}", self.bed.leases());
        let mine = owners(&self.bed).into_iter().filter(|name| name.starts_with("c1"));
        assert_eq!(mine.collect::<Vec<_>>(), Vec::<String>::new(), "entries");
        let withheld = names(self.bed.data().join(".meta-cni/net-a/withheld"));
        assert!(self.cooling || withheld.is_empty(), "{withheld:?}");
        let mut given = BTreeSet::new();
        let mut served = 0;
        let refusal = loop {
            match answer(&self.bed.call(ours(), "ADD", &format!("n{served}")).run()) {
                Ok(result) => {
                    served += 1;
                    let ips = result["ips"].as_array().unwrap();
                    assert!(ips.iter().all(|ip| given.insert(ip["address"].to_string())), "given twice: {ips:?}");
                }
                Err(text) => break text,
            }
        };
        assert!(refusal.contains("no IP addresses available in range set"), "{refusal}");
        let held_back = |v6: bool| withheld.iter().filter(|name| name.contains(':') == v6).count();
        let free = ROOM - of_other / 2 - held_back(false).max(held_back(true));
        assert_eq!(served, free, "{withheld:?}, {:?}", self.bed.leases());
        if let Some(other) = self.other {
            let again = answer(&self.bed.call(ours(), "ADD", other).run()).unwrap_err();
            assert!(again.contains("duplicate allocation is not allowed"), "the other is not known: {again}");
            self.bed.call(ours(), "DEL", other).ok();
            assert!(!self.bed.leases().values().any(|content| content.starts_with("other")), "the other's are lost");
        }
    }
}

/// Kills ADD before each of its points, and lets come what may.
fn add_killed(before: Before) {
    let whole = Scene::new(before, false).kill("ADD", None).0;
    println!("{before:?}: {} points of ADD: {}", whole.len(), census(&whole));
    for point in 0..whole.len() {
        for then in [Then::Del, Then::Gc, Then::Add] {
            let scene = Scene::new(before, false);
            let (points, killed) = scene.kill("ADD", Some(point));
            assert!(killed, "ended before point {point}");
            println!("{before:?}: killed before {:?}, then {then:?}", points.last());
            let of_other = if before == Before::Nothing { 0 } else { 2 };
            assert!((of_other..=of_other + 2).contains(&scene.held(before == Before::Foreign)));
            scene.carry_out(then);
            scene.count();
        }
    }
}

/// The same for DEL, with a time to cool down, too.
fn del_killed(before: Before, cooling: bool) {
    let add = |scene: &Scene| drop(scene.bed.call(ours(), "ADD", "c1").ok());
    let scene = Scene::new(before, cooling);
    add(&scene);
    let whole = scene.kill("DEL", None).0;
    println!("{before:?}: {} points of DEL: {}", whole.len(), census(&whole));
    for point in 0..whole.len() {
        for then in [Then::Del, Then::Gc, Then::Add] {
            let scene = Scene::new(before, cooling);
            add(&scene);
            let (points, killed) = scene.kill("DEL", Some(point));
            assert!(killed, "ended before point {point}");
            println!("{before:?}: killed before {:?}, then {then:?}", points.last());
            scene.carry_out(then);
            if cooling {
                let withheld = names(scene.bed.data().join(".meta-cni/net-a/withheld"));
                assert!(withheld.len() >= 2, "given back, and not withheld: {withheld:?}");
            }
            scene.count();
        }
    }
}

#[test]
fn add_killed_at_every_change_in_a_pool_that_is_not_there_yet() {
    add_killed(Before::Nothing);
}

#[test]
fn add_killed_at_every_change_in_a_pool_of_the_go_program() {
    add_killed(Before::Foreign);
}

#[test]
fn add_killed_at_every_change_in_a_pool_of_ours() {
    add_killed(Before::Ours);
}

#[test]
fn del_killed_at_every_change() {
    del_killed(Before::Ours, false);
}

#[test]
fn del_killed_at_every_change_while_addresses_cool_down() {
    del_killed(Before::Ours, true);
}

#[test]
fn del_killed_at_every_change_without_an_index() {
    let whole = |before: Option<usize>| {
        let scene = Scene::new(Before::Foreign, false);
        scene.bed.plant("10.0.0.2", "c1\r\neth0");
        scene.bed.plant("fd00::2", "c1\r\neth0");
        let (points, killed) = scene.kill("DEL", before);
        (scene, points, killed)
    };
    let points = whole(None).1;
    println!("{} points of DEL: {}", points.len(), census(&points));
    for point in 0..points.len() {
        for then in [Then::Del, Then::Gc, Then::Add] {
            let (scene, points, killed) = whole(Some(point));
            assert!(killed, "ended before point {point}");
            println!("killed before {:?}, then {then:?}", points.last());
            scene.carry_out(then);
            scene.count();
        }
    }
}

/// What the points are worth: the ones that make and remove leases, entries and the like are among them.
#[test]
fn the_points_are_those_that_count() {
    let scene = Scene::new(Before::Foreign, true);
    let points = scene.kill("ADD", None).0;
    let made = |call: &str, end: &Path| {
        points.iter().filter(|point| point.call.starts_with(call) && Path::new(&point.about).ends_with(end)).count()
    };
    assert_eq!(made("link", Path::new("net-a/10.0.0.2")) + made("link", Path::new("net-a/fd00::2")), 2, "{points:?}");
    assert_eq!(made("symlink", Path::new("owners/c1:eth0")), 1, "{points:?}");
    assert_eq!(made("symlink", Path::new("owners/other:eth0")), 1, "{points:?}");
    assert_eq!(made("symlink", Path::new("net-a/complete")), 1, "{points:?}");
    let points = scene.kill("DEL", None).0;
    let made = |call: &str, end: &str| {
        points.iter().filter(|point| point.call.starts_with(call) && Path::new(&point.about).ends_with(end)).count()
    };
    assert_eq!(made("unlink", "net-a/10.0.0.2") + made("unlink", "net-a/fd00::2"), 2, "{points:?}");
    assert_eq!(made("unlink", "owners/c1:eth0"), 1, "{points:?}");
    assert_eq!(made("symlink", "withheld/10.0.0.2"), 2, "once before its directory is made: {points:?}");
}
