//! attach and restore on the kernel in memory: every step made to fail, every driver's ways.
#![allow(clippy::unwrap_used)] // functions beside the tests unwrap too

use std::fs;
use std::future::Future;
use std::os::unix::fs::symlink;
use std::rc::Rc;
use std::time::Duration;

use nix::errno::Errno;
use sandbox::fake::{Driver, FakeKernel, FakeLinks, Fault, HOST};
use sandbox::{IfName, LinkState, Links, MacAddr, NewAddress, RouteSpec, VfVlan, VlanProto, configure, read_back_of};
use sriov::{Attached, Error, Original, PciAddress, Rate, Sysfs, Wanted, attach, find, restore};

const POD: u32 = 1;
const DRIVERS: [Driver; 4] = [Driver::Igb, Driver::Iavf, Driver::Mlx5, Driver::Bnxt];
const OWNER: &str = "default/p net1";
const MAC: MacAddr = MacAddr([0x02, 0, 0, 0, 0, 0x42]);

/// A node: a kernel in memory and the sysfs tree that goes with it.
struct Node {
    kernel: FakeKernel,
    host: FakeLinks,
    pod: FakeLinks,
    sysfs: Sysfs,
    _dir: Rc<tempfile::TempDir>,
}

fn node(driver: Driver) -> Node {
    node_on(driver, &tree(driver))
}

/// A node on a tree that is there already: making one takes longer than an ADD and a DEL.
fn node_on(driver: Driver, tree: &Rc<tempfile::TempDir>) -> Node {
    let kernel = FakeKernel::with_pf(driver, 3);
    let (host, pod) = (kernel.links(HOST), kernel.links(POD));
    Node { host, pod, sysfs: Sysfs { root: tree.path().to_owned() }, kernel, _dir: Rc::clone(tree) }
}

/// The sysfs of a fresh kernel with that driver.
fn tree(driver: Driver) -> Rc<tempfile::TempDir> {
    let kernel = FakeKernel::with_pf(driver, 3);
    let dir = tempfile::tempdir().unwrap();
    let devices = dir.path().join("bus/pci/devices");
    let pf = devices.join("0000:01:00.0");
    let netdev = |device: &std::path::Path, name: &str| {
        let net = device.join("net").join(name);
        fs::create_dir_all(&net).unwrap();
        fs::write(net.join("ifindex"), kernel.link(HOST, name).unwrap().index.to_string()).unwrap();
    };
    netdev(&pf, "eth0");
    fs::write(pf.join("sriov_numvfs"), "3").unwrap();
    let name = match driver {
        Driver::Igb => "igb",
        Driver::Iavf => "i40e",
        Driver::Mlx5 => "mlx5_core",
        Driver::Bnxt => "bnxt_en",
    };
    symlink(format!("../../drivers/{name}"), pf.join("driver")).unwrap();
    for number in 0..3 {
        let vf = devices.join(format!("0000:01:10.{number}"));
        netdev(&vf, &format!("eth0v{number}"));
        symlink("../0000:01:00.0", vf.join("physfn")).unwrap();
        symlink(format!("../../drivers/{name}vf"), vf.join("driver")).unwrap();
        symlink(format!("../0000:01:10.{number}"), pf.join(format!("virtfn{number}"))).unwrap();
    }
    Rc::new(dir)
}

impl Node {
    async fn find(&self, wanted: &Wanted) -> Result<Original, Error> {
        find(&self.sysfs, &self.host, vf1(), wanted).await
    }

    async fn attach(&self, original: &Original, wanted: &Wanted) -> Result<Attached, Error> {
        attach(&self.host, &self.pod, original, wanted, &net1(), Some(OWNER)).await
    }

    async fn restore(&self, original: &Original) -> Result<(), Error> {
        restore(&self.host, Some(&self.pod), original, &self.sysfs).await
    }
}

fn vf1() -> PciAddress {
    PciAddress::try_from("0000:01:10.1").unwrap()
}

fn net1() -> IfName {
    IfName::try_from("net1").unwrap()
}

fn run<T>(test: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test)
}

/// All that igb can do.
fn much() -> Wanted {
    Wanted {
        mac: Some(MAC),
        vlan: Some(VfVlan { id: 100, qos: 3, proto: VlanProto::Dot1Q }),
        spoofchk: Some(false),
        trust: Some(true),
        rate: Some(Rate { min: 0, max: 200 }),
        link_state: None,
        mtu: Some(9000),
        ..Wanted::default()
    }
}

/// A VF with everything set that can be found on one.
fn decorate(kernel: &FakeKernel) {
    kernel.tweak("eth0v1", |link| {
        link.altnames = vec!["enp1s0f0v1".to_owned(), "net1".to_owned(), "in-the-pod".to_owned()];
        link.alias = Some("rack 7".to_owned());
        (link.txqlen, link.promisc, link.up, link.carrier) = (500, true, true, true);
    });
    let plain = kernel.add_plain(POD, "lo0");
    kernel.tweak("lo0", |link| link.altnames = vec!["in-the-pod".to_owned()]);
    assert_ne!(plain, 0);
    kernel.tweak_vf(1, |vf| {
        vf.vlan = Some(VfVlan { id: 7, qos: 1, proto: VlanProto::Dot1Q });
        vf.max_tx_rate = Some(50);
    });
}

#[test]
fn a_vf_gets_all_that_was_asked_for_and_gives_all_back_on_every_driver() {
    for driver in DRIVERS {
        run(async {
            let node = node(driver);
            decorate(&node.kernel);
            let before = node.kernel.snapshot();
            let wanted = much();
            let original = node.find(&wanted).await.unwrap();
            let attached = node.attach(&original, &wanted).await.unwrap_or_else(|e| panic!("{driver:?}: {e}"));
            assert_eq!((attached.mac, attached.mtu, attached.link.up), (MAC, 9000, true), "{driver:?}");
            let net1 = node.kernel.link(POD, "net1").unwrap();
            assert_eq!(net1.alias.as_deref(), Some(OWNER), "the VF says whose it is");
            assert_eq!((net1.mac, net1.altnames.as_slice()), (Some(MAC), &["enp1s0f0v1".to_owned()][..]));
            assert_eq!(node.kernel.sysctl(POD, "ipv4/conf/net1/arp_notify").as_deref(), Some("1"));
            let vf = node.kernel.vf(1).unwrap();
            assert_eq!((vf.mac, vf.vlan, vf.spoofchk), (Some(MAC), wanted.vlan, Some(false)));
            assert_eq!((vf.trust, vf.max_tx_rate), ((driver != Driver::Bnxt).then_some(true), Some(200)));

            node.restore(&original).await.unwrap_or_else(|e| panic!("{driver:?}: {e}"));
            assert_eq!(node.kernel.snapshot(), with_altnames_sorted(&before, &node.kernel), "{driver:?}");
            // Once more: nothing to do, and nothing done.
            node.restore(&original).await.unwrap();
            assert_eq!(node.kernel.snapshot(), with_altnames_sorted(&before, &node.kernel), "{driver:?}");
        });
    }
}

/// Alternative names are a set: those that were taken away and given back stand at the end.
fn with_altnames_sorted(before: &sandbox::fake::Snapshot, now: &FakeKernel) -> sandbox::fake::Snapshot {
    let mut before = before.clone();
    for device in &mut before {
        if let Some(link) = now.link(device.ns, &device.link.name) {
            let mut sorted = (device.link.altnames.clone(), link.altnames.clone());
            sorted.0.sort();
            sorted.1.sort();
            if sorted.0 == sorted.1 {
                device.link.altnames = link.altnames;
            }
        }
    }
    before
}

/// Each message of an ADD in turn gets each errno, with and without taking effect all the same; whatever comes of it,
/// restoring leads back to the beginning.
#[test]
fn after_a_failure_at_any_step_the_start_is_reached_again() {
    let mut points = 0;
    for driver in DRIVERS {
        let tree = tree(driver);
        for errno in [Errno::EIO, Errno::EEXIST, Errno::EAGAIN, Errno::EBUSY, Errno::EADDRNOTAVAIL, Errno::ENODEV] {
            for takes_effect in [false, true] {
                for step in 1.. {
                    let done = run(async {
                        let node = node_on(driver, &tree);
                        decorate(&node.kernel);
                        let before = node.kernel.snapshot();
                        let wanted = much();
                        let original = node.find(&wanted).await.unwrap();
                        node.kernel.fail(Fault { step, errno, takes_effect });
                        let result = node.attach(&original, &wanted).await;
                        let done = (node.kernel.messages().len() as u32) < step;
                        assert!(!done || result.is_ok(), "{driver:?}: nothing failed and yet {result:?}");
                        node.kernel.heal();
                        let at = format!("{driver:?} {errno} {takes_effect} at {step}");
                        node.restore(&original).await.unwrap_or_else(|e| panic!("{at}: {e}"));
                        assert_eq!(node.kernel.snapshot(), with_altnames_sorted(&before, &node.kernel), "{at}");
                        done
                    });
                    points += 1;
                    if done {
                        break;
                    }
                }
            }
        }
    }
    println!("{points} fault points");
    assert!(points > 500, "{points}");
}

/// The same for the way back: a restore that fails says so, and the next one finishes it.
#[test]
fn a_restore_that_fails_at_any_step_is_finished_by_the_next() {
    let mut failed = 0;
    for driver in DRIVERS {
        let tree = tree(driver);
        for errno in [Errno::EIO, Errno::EEXIST, Errno::EAGAIN, Errno::ENODEV] {
            for takes_effect in [false, true] {
                for step in 1.. {
                    let done = run(async {
                        let node = node_on(driver, &tree);
                        decorate(&node.kernel);
                        let before = node.kernel.snapshot();
                        let wanted = much();
                        let original = node.find(&wanted).await.unwrap();
                        node.attach(&original, &wanted).await.unwrap();
                        node.kernel.fail(Fault { step, errno, takes_effect });
                        let first = node.restore(&original).await;
                        let done = (node.kernel.messages().len() as u32) < step;
                        node.kernel.heal();
                        let at = format!("{driver:?} {errno} {takes_effect} at {step}");
                        match first {
                            // Success is a promise.
                            Ok(()) => {}
                            Err(Error::NotRestored { ref problems, .. }) => {
                                assert!(!done && !problems.is_empty(), "{at}");
                                failed += 1;
                                node.restore(&original).await.unwrap_or_else(|e| panic!("{at}: {e} after {first:?}"));
                            }
                            Err(other) => panic!("{at}: {other}"),
                        }
                        assert_eq!(node.kernel.snapshot(), with_altnames_sorted(&before, &node.kernel), "{at}");
                        done
                    });
                    if done {
                        break;
                    }
                }
            }
        }
    }
    assert!(failed > 200, "{failed}");
}

/// Without trust a VF has no right to its address once the PF set one: the order matters.
#[test]
fn an_address_alone_is_set_on_both_sides_without_trust_on_every_driver() {
    for driver in DRIVERS {
        for locked_before in [false, true] {
            run(async {
                let node = node(driver);
                if locked_before {
                    let eth0 = node.kernel.link(HOST, "eth0").unwrap().index;
                    let admin = MacAddr([2, 0, 0, 0, 0, 0x99]);
                    node.host.set_vf(eth0, 1, &[sandbox::VfSetting::Mac(admin)]).await.unwrap();
                    while node.host.link_event(Duration::ZERO).await.unwrap() {}
                }
                let before = node.kernel.snapshot();
                let wanted = Wanted { mac: Some(MAC), ..Wanted::default() };
                let original = node.find(&wanted).await.unwrap();
                let attached = node.attach(&original, &wanted).await;
                let attached = attached.unwrap_or_else(|error| panic!("{driver:?}: {error}"));
                assert_eq!((attached.mac, node.kernel.vf(1).unwrap().mac), (MAC, Some(MAC)), "{driver:?}");
                node.restore(&original).await.unwrap_or_else(|error| panic!("{driver:?}: {error}"));
                // iavf has its address from the PF, so the two are the same before and no lock is seen.
                if !(locked_before && driver == Driver::Iavf) {
                    assert_eq!(node.kernel.snapshot(), before, "{driver:?} {locked_before}");
                }
            });
        }
    }
}

#[test]
fn an_attribute_that_the_driver_refuses_is_named() {
    let igb = |wanted: Wanted, pf_up: bool| {
        run(async move {
            let node = node(Driver::Igb);
            node.kernel.tweak("eth0", |link| link.up = pf_up);
            let before = node.kernel.snapshot();
            let wanted = Wanted { vlan: wanted.vlan.or(much().vlan), spoofchk: Some(false), ..wanted };
            let original = node.find(&wanted).await.unwrap();
            let error = node.attach(&original, &wanted).await.unwrap_err();
            assert_eq!(node.kernel.vf(1).unwrap().mac, original.report().unwrap().mac);
            node.restore(&original).await.unwrap();
            assert_eq!(node.kernel.snapshot(), before);
            assert!(matches!(error, Error::Attribute { .. }), "{error:?}");
            error.to_string()
        })
    };
    let link_state = Wanted { link_state: Some(LinkState::Auto), ..Wanted::default() };
    assert_eq!(
        igb(link_state, true),
        "link_state auto of VF 0000:01:10.1 (VF 1 of PF eth0, driver igb): Operation not supported (os error 95)"
    );
    let qinq = Wanted { vlan: Some(VfVlan { id: 5, qos: 0, proto: VlanProto::Dot1Ad }), ..Wanted::default() };
    assert_eq!(
        igb(qinq, true),
        "vlan 5 proto 802.1ad of VF 0000:01:10.1 (VF 1 of PF eth0, driver igb): Protocol not supported (os error 93)"
    );
    let min = Wanted { rate: Some(Rate { min: 10, max: 100 }), ..Wanted::default() };
    assert_eq!(
        igb(min, true),
        "min_tx_rate 10 max_tx_rate 100 of VF 0000:01:10.1 (VF 1 of PF eth0, driver igb): Invalid argument (os error 22)"
    );
    let max = Wanted { rate: Some(Rate { min: 0, max: 100 }), ..Wanted::default() };
    assert_eq!(
        igb(max, false),
        "max_tx_rate 100 of VF 0000:01:10.1 (VF 1 of PF eth0, driver igb): Invalid argument (os error 22); \
         the PF is down: bring it up (ip link set eth0 up)"
    );
}

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

#[test]
fn what_cannot_be_had_is_refused_before_anything_is_touched() {
    run(async {
        let node = node(Driver::Igb);
        let before = node.kernel.snapshot();
        let with_mac = |mac| Wanted { mac: Some(mac), ..Wanted::default() };
        let other = node.kernel.link(HOST, "eth0v2").unwrap().mac.unwrap();
        let error = node.find(&with_mac(other)).await.unwrap_err();
        assert!(matches!(&error, Error::MacInUse { holder, .. } if holder == "VF 2 of PF eth0"), "{error:?}");
        let pf = node.kernel.link(HOST, "eth0").unwrap().mac.unwrap();
        let error = node.find(&with_mac(pf)).await.unwrap_err();
        assert!(matches!(&error, Error::MacInUse { holder, .. } if holder == "PF eth0"), "{error:?}");
        // In a pod already: sysfs of the host shows no interface.
        fs::remove_dir_all(node.sysfs.root.join("bus/pci/devices/0000:01:10.1/net")).unwrap();
        let error = node.find(&much()).await.unwrap_err();
        assert!(matches!(&error, Error::NoNetdev { pci, .. } if *pci == vf1()), "{error:?}");
        assert_eq!(node.kernel.snapshot(), before);
    });
}

#[test]
fn the_original_survives_its_record() {
    run(async {
        let node = node(Driver::Bnxt);
        decorate(&node.kernel);
        let original = node.find(&much()).await.unwrap();
        assert_eq!(original.report().unwrap().trust, None, "not reported stays not reported");
        let json = serde_json::to_string(&original).unwrap();
        assert_eq!(serde_json::from_str::<Original>(&json).unwrap(), original);
    });
}

/// An MTU that the device cannot have is named, although it goes in one message with the move.
#[test]
fn an_mtu_that_is_refused_is_named_and_the_vf_comes_home() {
    run(async {
        let node = node(Driver::Igb);
        let before = node.kernel.snapshot();
        let wanted = Wanted { mtu: Some(9999), ..Wanted::default() };
        let original = node.find(&wanted).await.unwrap();
        let error = node.attach(&original, &wanted).await.unwrap_err();
        let Error::Attribute { attribute, .. } = &error else { panic!("{error:?}") };
        assert_eq!(attribute, "mtu 9999");
        assert!(node.kernel.link(POD, "eth0v1").is_some(), "it has moved, and has its own name still");
        node.restore(&original).await.unwrap();
        assert_eq!(node.kernel.snapshot(), before);
    });
}

/// The budget: a VF with VLAN, spoofchk, trust and one address with a route.
#[test]
fn an_attachment_takes_ten_messages() {
    run(async {
        let node = node(Driver::Igb);
        let wanted = Wanted { vlan: much().vlan, spoofchk: Some(true), trust: Some(true), ..Wanted::default() };
        node.kernel.heal();
        let original = node.find(&wanted).await.unwrap();
        let attached = node.attach(&original, &wanted).await.unwrap();
        let address = NewAddress { net: "10.56.217.3/24".parse().unwrap(), dad: sandbox::Dad::Skip };
        let route = RouteSpec::new("10.57.0.0/16".parse().unwrap(), None);
        let gateway = "10.56.217.1".parse().unwrap();
        configure(&node.pod, &attached.link, &[address], &[gateway], &[route]).await.unwrap();
        read_back_of(&node.pod, attached.link).await.unwrap();
        let messages = node.kernel.messages();
        let kinds: Vec<&str> = messages.iter().map(|message| message.split(' ').next().unwrap()).collect();
        let wanted = ["read", "read", "set", "move", "set", "read", "add", "add", "read", "list"];
        assert_eq!(kinds, wanted, "{messages:#?}");
        assert_eq!(messages[1], format!("read a PF and its VFs link {}", original.pf.as_ref().unwrap().index));
        assert_eq!(
            messages[2],
            format!("set vlan 100 qos 3, spoofchk on, trust on VF 1 of link {}", original.pf.as_ref().unwrap().index)
        );
        assert_eq!(messages[3], format!("move to 1 as net1, alias link {}", original.interface().unwrap().index));
    });
}
