//! restore, from wherever the VF is and whatever was done to it.

use std::fs;

use sandbox::fake::{Driver, HOST};
use sandbox::{Links, MacAddr, VfVlan};
use sriov::{Error, Wanted, restore, restore_from_anywhere};

use crate::node::{MAC, POD, much, node, run, vf1};

#[test]
fn an_administrative_address_found_is_put_back_and_an_own_one_is_not_made_administrative() {
    run(async {
        // Set by an administrator before us: locked, and another than the VF's own.
        let node = node(Driver::Igb);
        let admin = MacAddr([2, 0, 0, 0, 0, 0x99]);
        let eth0 = node.kernel.link(HOST, "eth0").unwrap().index;
        node.host.set_vf(eth0, 1, &[sandbox::VfSetting::Mac(admin)]).await.unwrap();
        let before = node.kernel.snapshot();
        let wanted = much();
        let original = node.find(&wanted).await.unwrap();
        let attached = node.attach(&original, &wanted).await.unwrap();
        assert_eq!(attached.mac, MAC);
        node.restore(&original).await.unwrap();
        assert_eq!(node.kernel.snapshot(), before);
        assert_eq!(node.kernel.vf(1).unwrap().mac, Some(admin));
    });
    run(async {
        // Not asked for an address: none is touched, in spite of the driver's showing one.
        let node = node(Driver::Igb);
        let wanted = Wanted { trust: Some(true), ..Wanted::default() };
        let original = node.find(&wanted).await.unwrap();
        node.attach(&original, &wanted).await.unwrap();
        node.kernel.heal();
        node.restore(&original).await.unwrap();
        let messages = node.kernel.messages();
        assert!(messages.iter().all(|message| !message.contains("mac")), "{messages:#?}");
        // The VF may still change its own address.
        let vf = node.kernel.link(HOST, "eth0v1").unwrap();
        node.host.change(vf.index, &[sandbox::LinkChange::Mac(MAC)]).await.unwrap();
    });
}

/// As operators do on drivers that do not tell the VF: the administrative address is the VF's own. Where the report is of
/// the VF's own address anyway (igb), there is nothing to see, and nothing is locked.
#[test]
fn an_administrative_address_that_equals_the_vfs_own_comes_back_where_it_can_be_told() {
    for driver in [Driver::Mlx5, Driver::Bnxt] {
        for wanted in [much(), Wanted { mac: None, ..much() }] {
            run(async {
                let node = node(driver);
                let own = node.kernel.link(HOST, "eth0v1").unwrap().mac.unwrap();
                let pf = node.kernel.link(HOST, "eth0").unwrap().index;
                node.host.set_vf(pf, 1, &[sandbox::VfSetting::Mac(own)]).await.unwrap();
                let before = node.kernel.snapshot();
                let original = node.find(&wanted).await.unwrap();
                node.attach(&original, &wanted).await.unwrap();
                node.restore(&original).await.unwrap_or_else(|error| panic!("{driver:?}: {error}"));
                assert_eq!(node.kernel.snapshot(), before, "{driver:?}");
            });
        }
    }
}

#[test]
fn what_the_pod_did_to_its_vf_is_undone() {
    run(async {
        let node = node(Driver::Igb);
        let before = node.kernel.snapshot();
        let wanted = Wanted::default();
        let original = node.find(&wanted).await.unwrap();
        let link = node.attach(&original, &wanted).await.unwrap().link;
        use sandbox::LinkChange::*;
        let mischief = [Mac(MAC), Mtu(2000), TxQueueLen(1), Promisc(true), AllMulti(true), Alias("mine".into())];
        node.pod.change(link.index, &mischief).await.unwrap();
        node.pod.change(link.index, &[Name("renamed".into())]).await.unwrap();
        node.pod.add_altname(link.index, "another").await.unwrap();
        node.restore(&original).await.unwrap();
        assert_eq!(node.kernel.snapshot(), before);
    });
}

#[test]
fn a_vf_whose_namespace_died_is_awaited_and_given_its_own_name_and_address() {
    for events in [0, 1, 5] {
        run(async {
            let node = node(Driver::Igb);
            let before = node.kernel.snapshot();
            let wanted = much();
            let original = node.find(&wanted).await.unwrap();
            node.attach(&original, &wanted).await.unwrap();
            node.kernel.kill_netns(POD, events);
            restore(&node.host, None, &original, &node.sysfs).await.unwrap();
            assert_eq!(node.kernel.snapshot(), before);
        });
    }
    // Somebody keeps the namespace alive: an error, and later all is well.
    run(async {
        let node = node(Driver::Igb);
        let before = node.kernel.snapshot();
        let wanted = much();
        let original = node.find(&wanted).await.unwrap();
        node.attach(&original, &wanted).await.unwrap();
        let error = restore(&node.host, None, &original, &node.sysfs).await.unwrap_err();
        let Error::NotRestored { problems, .. } = &error else { panic!("{error:?}") };
        assert!(matches!(problems.as_slice(), [Error::NotBack { .. }]), "{problems:?}");
        assert_eq!(node.kernel.vf(1).unwrap().vlan, Some(VfVlan::default()), "the PF's side is done already");
        node.kernel.kill_netns(POD, 0);
        restore(&node.host, None, &original, &node.sysfs).await.unwrap();
        assert_eq!(node.kernel.snapshot(), before);
    });
}

#[test]
fn an_unplugged_vf_counts_as_restored() {
    run(async {
        let node = node(Driver::Igb);
        let wanted = much();
        let original = node.find(&wanted).await.unwrap();
        node.attach(&original, &wanted).await.unwrap();
        node.kernel.unplug("net1");
        fs::remove_dir_all(node.sysfs.root.join("bus/pci/devices/0000:01:10.1")).unwrap();
        node.restore(&original).await.unwrap();
    });
}

#[test]
fn a_vf_that_lost_its_driver_is_restored_at_the_pf() {
    run(async {
        let node = node(Driver::Igb);
        let wanted = much();
        let original = node.find(&wanted).await.unwrap();
        node.attach(&original, &wanted).await.unwrap();
        node.kernel.unplug("net1");
        fs::remove_file(node.sysfs.root.join("bus/pci/devices/0000:01:10.1/driver")).unwrap();
        node.restore(&original).await.unwrap();
        let vf = node.kernel.vf(1).unwrap();
        let before = original.report().unwrap().clone();
        assert_eq!(vf.mac, Some(MacAddr::ZERO), "the driver gives it one when it comes back");
        assert_eq!((vf.vlan, vf.trust, vf.spoofchk), (before.vlan, before.trust, before.spoofchk));
    });
}

#[test]
fn names_that_are_taken_are_reported_and_all_else_comes_back() {
    // By the name of another interface, or by an alternative one; then the VF has moved, under its own name. Where that
    // is taken in the pod too, it has not.
    for (other, altname, stays) in [("net1", None, false), ("other", Some("net1"), false), ("net1", None, true)] {
        run(async {
            let node = node(Driver::Igb);
            let holder = node.kernel.add_plain(POD, other);
            node.kernel.tweak(other, |link| link.altnames.extend(altname.map(str::to_owned)));
            if stays {
                node.kernel.add_plain(POD, "eth0v1");
            }
            let before = node.kernel.snapshot();
            let original = node.find(&much()).await.unwrap();
            let error = node.attach(&original, &much()).await.unwrap_err();
            let Error::NameTaken { name, place: "the pod", other: named, .. } = &error else { panic!("{error:?}") };
            assert_eq!((name.as_str(), named.clone()), ("net1", format!("{other}, index {holder}")));
            let place = if stays { HOST } else { POD };
            assert_eq!(node.kernel.link(place, "eth0v1").unwrap().index, original.interface().unwrap().index);
            node.restore(&original).await.unwrap();
            assert_eq!(node.kernel.snapshot(), before);
        });
    }
    run(async {
        let node = node(Driver::Igb);
        let original = node.find(&much()).await.unwrap();
        node.attach(&original, &much()).await.unwrap();
        node.kernel.add_plain(HOST, "eth0v1");
        let error = node.restore(&original).await.unwrap_err();
        let Error::NotRestored { problems, .. } = &error else { panic!("{error:?}") };
        assert!(matches!(&problems[0], Error::NameTaken { name, .. } if name == "eth0v1"), "{problems:?}");
        let spare = node.kernel.link(HOST, &format!("dev{}", original.interface().unwrap().index)).unwrap();
        assert_eq!((spare.mac, spare.mtu), (Some(original.interface().unwrap().mac), 1500), "all but the name is back");
        node.kernel.tweak("eth0v1", |link| link.name = "gone".into());
        node.restore(&original).await.unwrap();
        assert_eq!(node.kernel.link(HOST, "eth0v1").unwrap().mac, Some(original.interface().unwrap().mac));
    });
}

#[test]
fn a_kernel_without_parent_devices_works_by_permanent_address() {
    run(async {
        let node = node(Driver::Igb);
        node.kernel.without_parent_devices();
        let before = node.kernel.snapshot();
        let original = node.find(&much()).await.unwrap();
        assert!(original.interface().unwrap().perm_mac.is_some());
        node.attach(&original, &much()).await.unwrap();
        node.kernel.kill_netns(POD, 2);
        restore(&node.host, None, &original, &node.sysfs).await.unwrap();
        assert_eq!(node.kernel.snapshot(), before);
    });
}

/// Its namespace has no path any more, but somebody holds it: the VF is taken out at once, not awaited.
#[test]
fn a_vf_in_a_namespace_that_is_held_open_is_looked_for_and_brought_home() {
    for takes_pod in [false, true] {
        run(async {
            let node = node(Driver::Igb);
            let before = node.kernel.snapshot();
            let wanted = much();
            let original = node.find(&wanted).await.unwrap();
            node.attach(&original, &wanted).await.unwrap();
            // The pod's own namespace lives and has it no more: it moved the VF on into one of its own.
            let other = node.kernel.links(7);
            if takes_pod {
                let net1 = node.kernel.link(POD, "net1").unwrap();
                node.pod.move_to(net1.index, &other, &"inner".try_into().unwrap()).await.unwrap();
            }
            let pod = takes_pod.then_some(&node.pod);
            let holder = if takes_pod { &other } else { &node.pod };
            node.kernel.heal();
            let elsewhere = async || Ok(Some(holder.clone()));
            restore_from_anywhere(&node.host, pod, &original, &node.sysfs, elsewhere).await.unwrap();
            assert_eq!(node.kernel.snapshot(), before);
            let looks = node.kernel.messages().iter().filter(|message| *message == "list links all").count();
            assert!(looks <= 5, "it was awaited: {looks} looks");
        });
    }
}

#[test]
fn a_vf_that_somebody_else_has_by_now_is_not_touched_at_all() {
    run(async {
        let node = node(Driver::Igb);
        let wanted = much();
        let original = node.find(&wanted).await.unwrap();
        node.attach(&original, &wanted).await.unwrap();
        let before = node.kernel.snapshot();
        let elsewhere = async || Err(Error::Foreign { pci: vf1(), netns: "/run/netns/theirs".into() });
        let error = restore_from_anywhere(&node.host, None, &original, &node.sysfs, elsewhere).await.unwrap_err();
        let Error::NotRestored { problems, .. } = &error else { panic!("{error:?}") };
        assert!(
            matches!(problems.as_slice(), [Error::Foreign { netns, .. }] if netns.ends_with("theirs")),
            "{problems:?}"
        );
        assert_eq!(node.kernel.snapshot(), before);
    });
}

#[test]
fn a_vf_and_a_pf_that_were_renamed_are_found() {
    for dead in [false, true] {
        run(async {
            let node = node(Driver::Igb);
            let before = node.kernel.snapshot();
            let original = node.find(&much()).await.unwrap();
            node.attach(&original, &much()).await.unwrap();
            if dead {
                // It came back by itself, and udev had its own idea of a name.
                node.kernel.kill_netns(POD, 0);
                node.kernel.tweak("net1", |link| link.name = "enp1s0f1v0".into());
            }
            node.kernel.tweak("eth0", |link| link.name = "uplink".into());
            let net = node.sysfs.root.join("bus/pci/devices/0000:01:00.0/net");
            fs::rename(net.join("eth0"), net.join("uplink")).unwrap();
            restore(&node.host, (!dead).then_some(&node.pod), &original, &node.sysfs).await.unwrap();
            node.kernel.tweak("uplink", |link| link.name = "eth0".into());
            assert_eq!(node.kernel.snapshot(), before);
        });
    }
}
