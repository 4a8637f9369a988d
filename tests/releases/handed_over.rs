//! What one release has attached the other one checks, refuses to attach again, collects and detaches.

use serde_json::json;

use crate::{harness::names, site::Site};

#[test]
fn what_one_release_attached_the_other_checks_and_detaches() {
    let site = Site::new();
    for (at, (first, second)) in site.directions().into_iter().enumerate() {
        let (id, netns) = (format!("c{at}"), site.world.netns());
        let call = |release, verb| site.call(release, verb, &id, &netns);
        call(first, "ADD").ok();
        site.assert_attached(&netns);
        let files = || names(format!("/var/lib/cni/meta-cni/sandboxes/{id}"));
        assert_eq!(files().len(), 5, "{} wrote a record for each network", first.name);
        for release in [second, first] {
            call(release, "CHECK").ok();
            call(release, "STATUS").ok();
        }
        let text = call(second, "ADD").fails(7);
        assert!(text.contains("already has eth0"), "{} after {}: {text}", second.name, first.name);
        site.gc(second, &[&id]);
        site.assert_attached(&netns);
        call(first, "CHECK").ok();
        call(second, "DEL").ok();
        site.assert_clean(&[&netns]);
        // Late and repeated ones.
        for release in [first, second] {
            call(release, "DEL").ok();
            site.with(release, "DEL", &id, "", &site.conf(release)).pod("p").ok();
        }
        site.assert_clean(&[&netns]);
        site.world.delete_netns(&netns);
    }
}

/// A pod whose namespace is gone, one that the runtime does not list any more, and one of an earlier boot.
#[test]
fn what_is_left_of_one_release_the_other_collects() {
    let site = Site::new();
    for (at, (first, second)) in site.directions().into_iter().enumerate() {
        let id = format!("late{at}");
        let netns = site.world.netns();
        site.call(first, "ADD", &id, &netns).ok();
        site.world.delete_netns(&netns);
        site.with(second, "DEL", &id, "", &site.conf(second)).pod("p").ok();
        site.assert_clean(&[]);

        let (id, netns) = (format!("unlisted{at}"), site.world.netns());
        site.call(first, "ADD", &id, &netns).ok();
        site.gc(second, &["another"]);
        site.assert_clean(&[&netns]);
        assert_eq!(names("/var/lib/cni/meta-cni/confs"), Vec::<String>::new(), "configurations");

        site.call(first, "ADD", &format!("before{at}"), &netns).ok();
        site.world.reboot();
        site.gc(second, &[]);
        site.assert_clean(&[]);
        assert_eq!(names("/var/lib/cni/meta-cni/confs"), Vec::<String>::new(), "configurations");
    }
}

/// A plugin that fails once the namespace is gone: DEL is owed, and paid at the other's GC.
#[test]
fn what_one_release_owes_the_other_pays() {
    let site = Site::new();
    for (at, (first, second)) in site.directions().into_iter().enumerate() {
        let (id, netns) = (format!("owed{at}"), site.world.netns());
        site.call(first, "ADD", &id, &netns).ok();
        site.world.delete_netns(&netns);
        let mut conf = site.conf(first);
        // No plugin is found there.
        conf["binDir"] = json!("/run/test/nowhere");
        site.with(first, "DEL", &id, "", &conf).env("CNI_PATH", "/run/test/nowhere").pod("p").ok();
        assert_eq!(site.world.records(&id).len(), 5, "what could not be undone is remembered");
        site.gc(second, &[]);
        site.assert_clean(&[]);
    }
}
