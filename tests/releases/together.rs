//! Both releases at work at once, as while a DaemonSet is rolled out and a pass of the runtime still has the former program.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use crate::{
    harness::Interface,
    site::{Release, Site},
};

/// So long pods come and go.
const TIME: Duration = Duration::from_secs(12);
/// Workers of each release.
const WORKERS: usize = 2;
/// More pods than this are not kept: the small pool has 13 addresses, so it is gone through again and again.
const MOST: usize = 8;

struct Pod {
    id: String,
    netns: String,
    addresses: Vec<String>,
}

/// What lives, and who has which address.
#[derive(Default)]
struct Node {
    pods: Mutex<Vec<Pod>>,
    holders: Mutex<BTreeMap<String, String>>,
    adds: [AtomicUsize; 2],
    taken_over: AtomicUsize,
}

impl Node {
    fn add(&self, site: &Site, which: usize, release: &Release) {
        let id = format!("{}x{}", release.name, self.adds[which].fetch_add(1, Ordering::Relaxed));
        let netns = site.world.netns();
        let conf = site.conf(release);
        site.with(release, "ADD", &id, &netns, &conf).pod("q").ok();
        let found = ["eth0", "net1"].map(|name| Interface::find(&netns, name).expect(name).addresses());
        let addresses: Vec<String> = found.concat();
        assert_eq!(addresses.len(), 2, "{id}: {addresses:?}");
        for address in &addresses {
            let before = self.holders.lock().unwrap().insert(address.clone(), id.clone());
            assert_eq!(before, None, "{address} is given to {id}, too");
        }
        site.with(release, "CHECK", &id, &netns, &conf).pod("q").ok();
        self.pods.lock().unwrap().push(Pod { id, netns, addresses });
    }

    fn delete(&self, site: &Site, release: &Release) {
        let Some(pod) = self.pods.lock().unwrap().pop() else { return };
        let is_others = !pod.id.starts_with(release.name);
        self.taken_over.fetch_add(usize::from(is_others), Ordering::Relaxed);
        // From now on it may be given to another one.
        self.holders.lock().unwrap().retain(|address, _| !pod.addresses.contains(address));
        site.with(release, "DEL", &pod.id, &pod.netns, &site.conf(release)).pod("q").ok();
        site.world.delete_netns(&pod.netns);
    }

    fn work(&self, site: &Site, which: usize, release: &Release, end: Instant) {
        while Instant::now() < end {
            let alive = self.pods.lock().unwrap().len();
            if alive < MOST {
                self.add(site, which, release);
            }
            if alive >= MOST / 2 {
                self.delete(site, release);
            }
        }
    }
}

#[test]
fn both_at_once_give_no_address_twice_and_leave_nothing() {
    let site = Site::new();
    let node = Node::default();
    let end = Instant::now() + TIME;
    thread::scope(|scope| {
        for _ in 0..WORKERS {
            for (which, release) in [&site.old, &site.new].into_iter().enumerate() {
                let (node, site) = (&node, &site);
                scope.spawn(move || node.work(site, which, release, end));
            }
        }
    });
    let left = node.pods.lock().unwrap().len();
    for at in 0..left {
        node.delete(&site, if at % 2 == 0 { &site.new } else { &site.old });
    }
    let adds = node.adds.each_ref().map(|adds| adds.load(Ordering::Relaxed));
    println!("old and new attached {adds:?} pods, {} were detached by the other", node.taken_over.into_inner());
    assert!(adds.iter().all(|adds| *adds > 0), "{adds:?}");
    site.assert_clean(&[]);
}
