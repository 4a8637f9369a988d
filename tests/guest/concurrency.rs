//! Fourteen pods on the fourteen VFs of two ports: several calls at a time, in random order, killed at random moments,
//! namespaces deleted under them, the DEL of a former pod while the next one has its VF. An observer looks all along.
//!
//! `META_CNI_CONCURRENCY_SECONDS` says for how long (10), `META_CNI_SEED` repeats a choice of what is done.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    thread::{scope, sleep},
    time::{Duration, Instant},
};

use sandbox::{Links as _, Netns, Rtnl};
use serde_json::json;

use crate::{
    node::{Node, Vf, eventually},
    random::{Random, number},
};

/// How many calls are under way at a time.
const WORKERS: u64 = 4;

/// The VLAN of all VFs while they are in a pod.
const VLAN: u16 = 12;

/// A sandbox that the runtime made and has not deleted yet.
struct Sandbox {
    pod: String,
    container: String,
    netns: String,
    /// Its namespace was deleted.
    is_dead: bool,
}

/// A VF and who has it.
struct Slot {
    number: usize,
    vf: Vf,
    sandbox: Mutex<Option<Sandbox>>,
    /// What the observer may expect. Its lock is held while it looks, so nothing that is expected is undone meanwhile.
    expected: Mutex<Expected>,
}

/// What is true of a VF's pod until a worker says otherwise.
#[derive(Default)]
struct Expected {
    /// The namespace of the pod that has the VF.
    netns: Option<String>,
    /// The address that the answer of ADD gave its `net1`: until DEL begins the VF is there.
    address: Option<String>,
}

#[derive(Debug, Default)]
struct Count {
    adds: AtomicU64,
    killed: AtomicU64,
    refused: AtomicU64,
    deletions: AtomicU64,
    late: AtomicU64,
    vanished: AtomicU64,
    looks: AtomicU64,
}

fn more(count: &AtomicU64) -> u64 {
    count.fetch_add(1, Ordering::Relaxed) + 1
}

struct Bed {
    node: Node,
    slots: Vec<Slot>,
    /// Sandboxes whose namespace is gone and whose DEL comes some day; their VF may have another owner by then.
    late: Mutex<Vec<Sandbox>>,
    count: Count,
    /// What must not be.
    wrong: Mutex<Vec<String>>,
    is_over: AtomicBool,
}

impl Bed {
    fn new() -> Self {
        let node = Node::new();
        // A primary that costs little, so that most of the time goes to the VFs.
        node.world.plugins("reference", &["loopback"]);
        node.world.primary(&json!({"cniVersion": "1.0.0", "name": "lo", "plugins": [{"type": "loopback"}]}));
        node.network(
            "net-a",
            "bed.test/vf",
            &json!({"cniVersion": "1.0.0", "type": "sriov", "vlan": VLAN, "trust": "on", "mtu": 1600,
                    "ipam": {"type": "host-local", "subnet": "10.11.0.0/24"}}),
        );
        let vfs: Vec<Vf> = node.a.iter().chain(&node.b).cloned().collect();
        for number in 0..vfs.len() {
            for name in pods(number, true) {
                node.world.pod(&name, "net-a");
            }
        }
        let slots = vfs.into_iter().enumerate().map(|(number, vf)| Slot {
            number,
            vf,
            sandbox: Mutex::default(),
            expected: Mutex::default(),
        });
        Self {
            slots: slots.collect(),
            node,
            late: Mutex::default(),
            count: Count::default(),
            wrong: Mutex::default(),
            is_over: AtomicBool::new(false),
        }
    }

    fn wrong(&self, what: String) {
        self.wrong.lock().unwrap().push(what);
    }

    /// A new pod on a VF; kubelet takes it back from the former one.
    fn attach(&self, slot: &Slot, random: &mut Random) -> Sandbox {
        let turn = more(&self.count.adds);
        let [pod, former] = pods(slot.number, turn.is_multiple_of(2));
        self.node.take_devices(&former);
        self.node.give(&pod, &[("bed.test/vf", &slot.vf.pci)]);
        let netns = self.node.world.netns();
        slot.expected.lock().unwrap().netns = Some(netns.clone());
        let sandbox = Sandbox { container: format!("{pod}-{turn}"), pod, netns, is_dead: false };

        let mut child = self.call("ADD", &sandbox).start();
        if random.below(4) == 0 {
            sleep(Duration::from_millis(random.below(500)));
            // It may have ended by itself.
            let _ = child.kill();
        }
        let output = child.wait_with_output().unwrap();
        match output.status.code() {
            Some(0) => slot.expected.lock().unwrap().address = Some(self.node.address(&sandbox.pod, "net1")),
            Some(_) => {
                more(&self.count.refused);
                println!("refused: {}", String::from_utf8_lossy(&output.stdout).replace('\n', " "));
            }
            None => drop(more(&self.count.killed)),
        }
        sandbox
    }

    fn call(&self, verb: &str, sandbox: &Sandbox) -> crate::harness::Call {
        let netns = if sandbox.is_dead { "" } else { sandbox.netns.as_str() };
        self.node.world.call(verb, &sandbox.container, netns, &self.node.conf).pod(&sandbox.pod)
    }

    /// The end of a sandbox on a VF: its DEL now, or its namespace first and the DEL then or later. Says whether later.
    fn detach(&self, slot: &Slot, mut sandbox: Sandbox, random: &mut Random) -> bool {
        *slot.expected.lock().unwrap() = Expected::default();
        if random.below(2) == 0 {
            self.node.world.delete_netns(&sandbox.netns);
            sandbox.is_dead = true;
            more(&self.count.vanished);
            if random.below(4) > 0 {
                self.late.lock().unwrap().push(sandbox);
                return true;
            }
        }
        self.del(&sandbox, random);
        false
    }

    /// DEL, perhaps killed once.
    fn del(&self, sandbox: &Sandbox, random: &mut Random) {
        if random.below(4) == 0 {
            let mut child = self.call("DEL", sandbox).start();
            sleep(Duration::from_millis(random.below(300)));
            let _ = child.kill();
            child.wait().unwrap();
        }
        let outcome = self.call("DEL", sandbox).run();
        if outcome.code != 0 {
            self.wrong(format!("DEL of {}: {}", sandbox.container, outcome.stdout));
        }
        more(&self.count.deletions);
        if !sandbox.is_dead {
            self.node.world.delete_netns(&sandbox.netns);
        }
    }

    /// The DELs that are late.
    fn pay(&self, random: &mut Random) {
        let late: Vec<Sandbox> = self.late.lock().unwrap().drain(..).collect();
        for sandbox in late {
            self.del(&sandbox, random);
            more(&self.count.late);
        }
    }

    fn work(&self, mut random: Random, until: Instant) {
        while Instant::now() < until {
            if random.below(4) == 0 {
                let late = self.late.lock().unwrap().pop();
                if let Some(sandbox) = late {
                    self.del(&sandbox, &mut random);
                    more(&self.count.late);
                    continue;
                }
            }
            let slot = &self.slots[random.index(self.slots.len())];
            // Another worker is at it.
            let Ok(mut place) = slot.sandbox.try_lock() else { continue };
            match place.take() {
                None => *place = Some(self.attach(slot, &mut random)),
                Some(sandbox) => {
                    if self.detach(slot, sandbox, &mut random) {
                        // So that the DEL meets the next owner.
                        *place = Some(self.attach(slot, &mut random));
                    }
                }
            }
        }
    }

    /// Looks into the pods, one after another, until all is over. With the library's own eyes: iproute2 takes as long for
    /// a namespace as a whole DEL here.
    fn observe(&self) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        while !self.is_over.load(Ordering::Relaxed) {
            let mut addresses = BTreeMap::new();
            for slot in &self.slots {
                let expected = slot.expected.lock().unwrap();
                more(&self.count.looks);
                let Some(netns) = &expected.netns else { continue };
                let found = runtime.block_on(look(netns));
                for (device, ..) in found.iter().filter(|(device, ..)| *device != slot.vf.pci) {
                    self.wrong(format!("{device} is in {netns}, whose VF is {}", slot.vf.pci));
                }
                if let Some(address) = &expected.address {
                    let there = (slot.vf.pci.clone(), "net1".to_owned(), vec![address.clone()]);
                    if found != [there] {
                        self.wrong(format!("{netns} has {found:?}, was promised {} with {address}", slot.vf.pci));
                    }
                    let vlan = runtime.block_on(vlan(&slot.vf));
                    if vlan != Some(VLAN) {
                        self.wrong(format!("{} in {netns} has VLAN {vlan:?}", slot.vf.pci));
                    }
                    // The lock goes with the slot, so this pod may be gone by the time the same address is met again.
                    addresses.entry(address.clone()).or_insert_with(Vec::new).push(netns.clone());
                }
            }
            for (address, spaces) in addresses.into_iter().filter(|(_, spaces)| spaces.len() > 1) {
                let held =
                    self.slots.iter().filter(|slot| slot.expected.lock().unwrap().address.as_ref() == Some(&address));
                if held.count() > 1 {
                    self.wrong(format!("{address} is given to {spaces:?}"));
                }
            }
            sleep(Duration::from_millis(100));
        }
    }
}

/// The two pods that have a VF in turn: the one whose turn it is, and the other.
fn pods(number: usize, turn: bool) -> [String; 2] {
    let name = |turn| format!("p{number}{}", if turn { 'x' } else { 'y' });
    [name(turn), name(!turn)]
}

/// The VFs in a namespace: device, name, addresses.
async fn look(netns: &str) -> Vec<(String, String, Vec<String>)> {
    let links = Rtnl::open(&Netns::open(netns).unwrap()).unwrap();
    let mut found = Vec::new();
    for link in links.list().await.unwrap() {
        let Some(device) = link.parent_dev else { continue };
        let addresses = links.addresses(link.index).await.unwrap();
        let global = addresses.iter().filter(|address| address.net.addr().is_ipv4());
        found.push((device, link.name, global.map(|address| address.net.addr().to_string()).collect()));
    }
    found
}

/// The VLAN of a VF, as its PF has it.
async fn vlan(vf: &Vf) -> Option<u16> {
    let host = Rtnl::open(&Netns::current().unwrap()).unwrap();
    let pf = host.by_name(&vf.pf).await.unwrap().expect("the PF");
    let report = host.pf_report(pf.index).await.unwrap();
    report.vf(u32::try_from(vf.number).unwrap()).and_then(|row| row.vlan).map(|vlan| vlan.id)
}

/// Tells the observer to end, also when a worker panics: else its scope would never end.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// All pods come, then whatever comes by chance, then all go; observed all along.
fn live(bed: &Bed, seed: u64, seconds: u64) {
    let next = &AtomicUsize::new(0);
    let work = move |worker| {
        let mut random = Random::new(seed * 100 + worker);
        while let Some(slot) = bed.slots.get(next.fetch_add(1, Ordering::Relaxed)) {
            let mut place = slot.sandbox.lock().unwrap();
            *place = Some(bed.attach(slot, &mut random));
        }
        bed.work(random, Instant::now() + Duration::from_secs(seconds));
    };
    scope(|threads| {
        let over = Over(&bed.is_over);
        let observer = threads.spawn(|| bed.observe());
        let workers: Vec<_> = (0..WORKERS).map(|worker| threads.spawn(move || work(worker))).collect();
        for worker in workers {
            worker.join().unwrap();
        }
        // The late ones first: they must leave alone who has their VF now.
        let mut random = Random::new(seed);
        bed.pay(&mut random);
        let looked = bed.count.looks.load(Ordering::Relaxed);
        assert!(eventually(|| bed.count.looks.load(Ordering::Relaxed) > looked + 2 * 14), "the observer looks twice");
        for slot in &bed.slots {
            if let Some(sandbox) = slot.sandbox.lock().unwrap().take() {
                bed.detach(slot, sandbox, &mut random);
            }
        }
        bed.pay(&mut random);
        drop(over);
        observer.join().unwrap();
    });
}

#[test]
fn fourteen_pods_on_fourteen_vfs() {
    let seconds = number("META_CNI_CONCURRENCY_SECONDS", 10);
    let seed = number("META_CNI_SEED", 1);
    let bed = Bed::new();
    assert_eq!(bed.slots.len(), 14);
    live(&bed, seed, seconds);
    println!("concurrency: seed {seed}, {seconds} s: {:?}", bed.count);
    let wrong = bed.wrong.lock().unwrap();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    bed.node.assert_as_before();
}
