//! VFs that are not a kernel VF with its PF beside it: bound to a driver for user space, given to a VM without their PF,
//! or to be given back clean. On the kernel in memory, with every step made to fail.
#![allow(clippy::unwrap_used)] // functions beside the tests unwrap too

use std::fs;
use std::future::Future;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::rc::Rc;

use nix::errno::Errno;
use sandbox::fake::{Driver, FakeKernel, FakeLinks, Fault, HOST};
use sandbox::{
    Dad, IfName, LinkChange, LinkState, Links, MacAddr, NewAddress, RouteSpec, VfSetting, VfVlan, configure,
};
use sriov::{
    AttachedUserspace, Error, Original, PciAddress, Rate, RestorePolicy, Sysfs, Wanted, attach, attach_userspace,
    check, find, restore,
};

const POD: u32 = 1;
const DRIVERS: [Driver; 4] = [Driver::Igb, Driver::Iavf, Driver::Mlx5, Driver::Bnxt];
const MAC: MacAddr = MacAddr([0x02, 0, 0, 0, 0, 0x42]);
const ADMIN: MacAddr = MacAddr([0x02, 0, 0, 0, 0, 0x99]);

/// A kernel in memory with a PF of three VFs, and its sysfs.
struct Node {
    kernel: FakeKernel,
    host: FakeLinks,
    pod: FakeLinks,
    sysfs: Sysfs,
    dir: Rc<tempfile::TempDir>,
}

impl Node {
    fn new(driver: Driver) -> Self {
        let kernel = FakeKernel::with_pf(driver, 3);
        let dir = Rc::new(tempfile::tempdir().unwrap());
        let (host, pod, sysfs) = (kernel.links(HOST), kernel.links(POD), Sysfs { root: dir.path().to_owned() });
        let node = Self { kernel, host, pod, sysfs, dir };
        let pf = node.device("0000:01:00.0");
        node.netdev(&pf, "eth0");
        fs::write(pf.join("sriov_numvfs"), "3").unwrap();
        symlink("../../drivers/some", pf.join("driver")).unwrap();
        for number in 0..3 {
            let vf = node.device(&format!("0000:01:10.{number}"));
            node.netdev(&vf, &format!("eth0v{number}"));
            fs::write(vf.join("class"), "0x020000").unwrap();
            symlink("../0000:01:00.0", vf.join("physfn")).unwrap();
            symlink("../../drivers/some-vf", vf.join("driver")).unwrap();
            symlink(format!("../0000:01:10.{number}"), pf.join(format!("virtfn{number}"))).unwrap();
        }
        node
    }

    /// The same with VF 1 bound to vfio-pci.
    fn with_vfio(driver: Driver) -> Self {
        let node = Self::new(driver);
        node.kernel.unbind(1);
        node.rebind_to("vfio-pci");
        fs::remove_dir_all(node.device("0000:01:10.1").join("net")).unwrap();
        node
    }

    /// Another kernel of the same driver on the same tree: making one takes longer than attaching and restoring.
    fn another_with_vfio(&self, driver: Driver) -> Self {
        let kernel = FakeKernel::with_pf(driver, 3);
        kernel.unbind(1);
        let (host, pod) = (kernel.links(HOST), kernel.links(POD));
        Self { host, pod, kernel, sysfs: self.sysfs.clone(), dir: Rc::clone(&self.dir) }
    }

    /// The same as a VM sees it: no PF.
    fn in_a_vm(driver: Driver) -> Self {
        let node = Self::new(driver);
        fs::remove_file(node.device("0000:01:10.1").join("physfn")).unwrap();
        fs::remove_dir_all(node.device("0000:01:00.0")).unwrap();
        node
    }

    fn device(&self, pci: &str) -> std::path::PathBuf {
        let path = self.dir.path().join("bus/pci/devices").join(pci);
        fs::create_dir_all(&path).unwrap();
        path
    }

    fn netdev(&self, device: &Path, name: &str) {
        let net = device.join("net").join(name);
        fs::create_dir_all(&net).unwrap();
        fs::write(net.join("ifindex"), self.kernel.link(HOST, name).unwrap().index.to_string()).unwrap();
    }

    fn rebind_to(&self, driver: &str) {
        let link = self.device("0000:01:10.1").join("driver");
        let _ = fs::remove_file(&link);
        symlink(format!("../../drivers/{driver}"), link).unwrap();
    }

    async fn find(&self, wanted: &Wanted) -> Result<Original, Error> {
        find(&self.sysfs, &self.host, vf1(), wanted).await
    }

    async fn attach(&self, original: &Original, wanted: &Wanted) -> Result<AttachedUserspace, Error> {
        attach_userspace(&self.host, &self.pod, original, wanted, &net1()).await
    }

    async fn restore(&self, original: &Original) -> Result<(), Error> {
        restore(&self.host, Some(&self.pod), original, &self.sysfs).await
    }

    async fn set_admin_mac(&self, mac: MacAddr) {
        let pf = self.kernel.link(HOST, "eth0").unwrap().index;
        self.host.set_vf(pf, 1, &[VfSetting::Mac(mac)]).await.unwrap();
        while self.host.link_event(std::time::Duration::ZERO).await.unwrap() {}
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

/// All that can be set on a VF without an interface, on every driver.
fn much() -> Wanted {
    Wanted {
        mac: Some(MAC),
        vlan: Some(VfVlan { id: 100, qos: 3, ..VfVlan::default() }),
        spoofchk: Some(false),
        trust: Some(true),
        rate: Some(Rate { min: 0, max: 200 }),
        dummy_interface: true,
        ..Wanted::default()
    }
}

#[test]
fn a_vfio_vf_is_set_at_its_pf_and_a_dummy_link_stands_for_it() {
    for driver in DRIVERS {
        run(async {
            let node = Node::with_vfio(driver);
            let before = node.kernel.snapshot();
            let wanted = much();
            let original = node.find(&wanted).await.unwrap();
            assert_eq!((original.netdev.is_none(), original.driver.as_deref()), (true, Some("vfio-pci")));
            let attached = node.attach(&original, &wanted).await.unwrap_or_else(|error| panic!("{driver:?}: {error}"));
            assert_eq!((attached.mac, attached.mtu), (Some(MAC), Some(1500)), "{driver:?}");
            let vf = node.kernel.vf(1).unwrap();
            assert_eq!((vf.mac, vf.vlan, vf.spoofchk), (Some(MAC), wanted.vlan, Some(false)), "{driver:?}");
            assert_eq!(check(&node.sysfs, &node.host, &original, &wanted, None, false).await.unwrap(), []);
            let dummy = attached.dummy.unwrap();
            let address = NewAddress { net: "10.56.217.3/24".parse().unwrap(), dad: Dad::Skip };
            let route = RouteSpec::new("10.57.0.0/16".parse().unwrap(), None);
            configure(&node.pod, &dummy, &[address], &["10.56.217.1".parse().unwrap()], &[route]).await.unwrap();
            let link = node.kernel.link(POD, "net1").unwrap();
            assert_eq!((link.kind.as_deref(), link.alias.as_deref()), (Some("dummy"), Some("0000:01:10.1")));
            assert_eq!((link.mac, link.mtu, link.up), (Some(MAC), 1500, true));

            // The pod may rename it; a dummy of its own stays.
            node.kernel.tweak("net1", |link| link.name = "dpdk0".to_owned());
            node.pod.add_dummy("net1").await.unwrap();
            node.restore(&original).await.unwrap_or_else(|error| panic!("{driver:?}: {error}"));
            assert!(node.kernel.link(POD, "dpdk0").is_none());
            let own = node.kernel.link(POD, "net1").unwrap();
            node.pod.del_link(own.index).await.unwrap();
            assert_eq!(node.kernel.addresses_and_routes(POD), (Vec::new(), Vec::new()));
            assert_eq!(admin_free(node.kernel.snapshot()), admin_free(before), "{driver:?}");
            node.restore(&original).await.unwrap();
        });
    }
}

/// What was reported of a VF without an interface is put back as an administrative address; whether it was one before
/// cannot be known. The rest of the model is compared.
fn admin_free(snapshot: sandbox::fake::Snapshot) -> Vec<String> {
    let texts = snapshot.iter().map(|device| format!("{device:?}"));
    texts
        .map(|text| text.replace("locked: true", "locked: false").replace("resetting: 3", "resetting: 0"))
        .map(without_reset)
        .collect()
}

/// A reset of a VF without a driver ends unseen.
fn without_reset(text: String) -> String {
    match (text.find("reset_to: "), text.find(", absent")) {
        (Some(start), Some(end)) => format!("{}{}", &text[..start], &text[end..]),
        _ => text,
    }
}

#[test]
fn after_a_failure_at_any_step_of_attaching_or_restoring_a_vfio_vf_the_start_is_reached_again() {
    let mut points = 0;
    for driver in DRIVERS {
        let first = Node::with_vfio(driver);
        for errno in [Errno::EIO, Errno::EEXIST, Errno::EBUSY, Errno::EINVAL, Errno::ENODEV, Errno::EOPNOTSUPP] {
            for takes_effect in [false, true] {
                for restoring in [false, true] {
                    for step in 1.. {
                        let done = run(async {
                            let node = first.another_with_vfio(driver);
                            let wanted = much();
                            let before = admin_free(node.kernel.snapshot());
                            let original = node.find(&wanted).await.unwrap();
                            let at = format!("{driver:?} {errno} {takes_effect} at {step} restoring {restoring}");
                            let fault = Fault { step, errno, takes_effect };
                            if restoring {
                                node.attach(&original, &wanted).await.unwrap();
                                node.kernel.fail(fault);
                                let first = node.restore(&original).await;
                                assert!(matches!(first, Ok(()) | Err(Error::NotRestored { .. })), "{at}: {first:?}");
                            } else {
                                node.kernel.fail(fault);
                                let result = node.attach(&original, &wanted).await;
                                let done = (node.kernel.messages().len() as u32) < step;
                                assert!(!done || result.is_ok(), "{at}: nothing failed and yet {result:?}");
                            }
                            let done = (node.kernel.messages().len() as u32) < step;
                            node.kernel.heal();
                            node.restore(&original).await.unwrap_or_else(|error| panic!("{at}: {error}"));
                            assert_eq!(admin_free(node.kernel.snapshot()), before, "{at}");
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
    }
    println!("{points} fault points");
    assert!(points > 500, "{points}");
}

#[test]
fn a_link_of_the_pod_with_the_name_is_named_and_stays() {
    run(async {
        let node = Node::with_vfio(Driver::Igb);
        node.pod.add_dummy("net1").await.unwrap();
        let before = node.kernel.snapshot();
        let wanted = Wanted { dummy_interface: true, ..Wanted::default() };
        let original = node.find(&wanted).await.unwrap();
        let error = node.attach(&original, &wanted).await.unwrap_err();
        assert!(matches!(&error, Error::NameTaken { name, place: "the pod", .. } if name == "net1"), "{error:?}");
        node.restore(&original).await.unwrap();
        assert_eq!(node.kernel.snapshot(), before);
    });
}

#[test]
fn the_address_at_the_pf_is_zero_or_administrative_as_before() {
    run(async {
        for before in [MacAddr::ZERO, ADMIN] {
            let node = Node::with_vfio(Driver::Mlx5);
            node.set_admin_mac(before).await;
            let wanted = Wanted { mac: Some(MAC), ..Wanted::default() };
            let original = node.find(&wanted).await.unwrap();
            node.attach(&original, &wanted).await.unwrap();
            node.restore(&original).await.unwrap();
            assert_eq!(node.kernel.vf(1).unwrap().mac, Some(before));
            // Nothing asked for, and the program sets an address of its own: it must not reach the next pod.
            let original = node.find(&Wanted::default()).await.unwrap();
            node.attach(&original, &Wanted::default()).await.unwrap();
            node.kernel.tweak_vf(1, |vf| vf.mac = Some(MAC));
            node.restore(&original).await.unwrap();
            assert_eq!(node.kernel.vf(1).unwrap().mac, Some(before));
        }
        // The program's reset made the PF forget an address that only the former driver had set: nothing to put back.
        let node = Node::with_vfio(Driver::Igb);
        let original = node.find(&Wanted::default()).await.unwrap();
        assert_ne!(original.report().unwrap().mac, Some(MacAddr::ZERO));
        node.kernel.tweak_vf(1, |vf| vf.mac = Some(MacAddr::ZERO));
        node.restore(&original).await.unwrap();
        assert_eq!(node.kernel.vf(1).unwrap().mac, Some(MacAddr::ZERO));
    });
}

#[test]
fn a_driver_that_took_the_vf_back_meanwhile_does_not_keep_the_pods_address() {
    for before in [None, Some(MacAddr::ZERO), Some(ADMIN)] {
        for driver in DRIVERS {
            run(async {
                let node = Node::with_vfio(driver);
                if let Some(mac) = before {
                    node.set_admin_mac(mac).await;
                }
                let wanted = Wanted { mac: Some(MAC), ..Wanted::default() };
                let original = node.find(&wanted).await.unwrap();
                node.attach(&original, &wanted).await.unwrap();
                node.kernel.bind(1, "eth5");
                node.rebind_to("some-vf");
                node.netdev(&node.device("0000:01:10.1"), "eth5");
                let at = format!("{driver:?} {before:?}");
                for _ in 0..2 {
                    node.restore(&original).await.unwrap_or_else(|error| panic!("{at}: {error}"));
                    let link = node.kernel.link(HOST, "eth5").unwrap();
                    assert_ne!(link.mac, Some(MAC), "{at}");
                    assert_ne!(node.kernel.vf(1).unwrap().mac, Some(MAC), "{at}");
                    if before == Some(ADMIN) {
                        assert_eq!(node.kernel.vf(1).unwrap().mac, Some(ADMIN), "{at}");
                    }
                    if driver == Driver::Igb {
                        let reported = node.kernel.vf(1).unwrap().mac;
                        assert_eq!((link.mac, link.perm_mac), (reported, reported), "{at}: or the PF drops its frames");
                    }
                }
            });
        }
    }
}

#[test]
fn what_needs_an_interface_is_refused_for_a_vfio_vf_and_a_dummy_for_a_kernel_vf() {
    run(async {
        let node = Node::with_vfio(Driver::Igb);
        let before = node.kernel.snapshot();
        let error = node.find(&Wanted { mtu: Some(9000), ..Wanted::default() }).await.unwrap_err();
        assert_eq!(
            error.to_string(),
            "mtu of VF 0000:01:10.1: it is bound to vfio-pci, a driver for user space: there is no interface to set it \
             on, the program in the pod sets its own"
        );
        let original = node.find(&Wanted::default()).await.unwrap();
        let error = attach(&node.host, &node.pod, &original, &Wanted::default(), &net1()).await.unwrap_err();
        assert!(matches!(error, Error::NoNetdev { .. }), "{error:?}");
        assert_eq!(node.kernel.snapshot(), before);
        let node = Node::new(Driver::Igb);
        let error = node.find(&much()).await.unwrap_err();
        assert!(matches!(&error, Error::DummyForKernel { driver, .. } if driver == "some-vf"), "{error:?}");
    });
}

#[test]
fn a_vf_in_a_vm_moves_with_its_address_and_mtu_and_comes_back() {
    let wanted = Wanted { mac: Some(MAC), mtu: Some(9000), ..Wanted::default() };
    for driver in DRIVERS {
        for step in 1.. {
            let done = run(async {
                let node = Node::in_a_vm(driver);
                let before = node.kernel.snapshot();
                let original = node.find(&wanted).await.unwrap();
                assert_eq!(original.pf, None);
                node.kernel.fail(Fault { step, errno: Errno::EIO, takes_effect: step % 2 == 0 });
                let attached = attach(&node.host, &node.pod, &original, &wanted, &net1()).await;
                let done = (node.kernel.messages().len() as u32) < step;
                node.kernel.heal();
                if done {
                    let attached = attached.unwrap_or_else(|error| panic!("{driver:?}: {error}"));
                    assert_eq!((attached.mac, attached.mtu), (MAC, 9000));
                    let link = node.pod.by_name("net1").await.unwrap();
                    let found = check(&node.sysfs, &node.host, &original, &wanted, link.as_ref(), false).await;
                    assert_eq!(found.unwrap(), []);
                }
                node.restore(&original).await.unwrap_or_else(|error| panic!("{driver:?} at {step}: {error}"));
                assert_eq!(node.kernel.snapshot(), before, "{driver:?} at {step}");
                done
            });
            if done {
                break;
            }
        }
    }
    // Locked by the hypervisor's PF: said so, and back.
    run(async {
        let node = Node::new(Driver::Igb);
        node.set_admin_mac(ADMIN).await;
        let before = node.kernel.snapshot();
        fs::remove_file(node.device("0000:01:10.1").join("physfn")).unwrap();
        let original = node.find(&wanted).await.unwrap();
        let error = attach(&node.host, &node.pod, &original, &wanted, &net1()).await.unwrap_err();
        assert_eq!(
            error.to_string(),
            "mac 02:00:00:00:00:42 of VF 0000:01:10.1 (its PF is not visible in this machine): Cannot assign requested \
             address (os error 99); it may be locked where the PF is: set it, or allow it (trust), there"
        );
        node.restore(&original).await.unwrap();
        assert_eq!(node.kernel.snapshot(), before);
    });
}

#[test]
fn in_a_vm_options_of_the_pf_and_the_machines_own_nics_are_refused() {
    run(async {
        let node = Node::in_a_vm(Driver::Igb);
        let refused = async |wanted: Wanted| node.find(&wanted).await.unwrap_err().to_string();
        let tail =
            "of VF 0000:01:10.1: the PF of VF 0000:01:10.1 is not visible in this machine: set it where the PF is";
        let vlan = Some(VfVlan { id: 5, ..VfVlan::default() });
        for (wanted, option) in [
            (Wanted { vlan, mac: Some(MAC), ..Wanted::default() }, "vlan 5"),
            (Wanted { spoofchk: Some(false), trust: Some(true), ..Wanted::default() }, "spoofchk off, trust on"),
            (Wanted { rate: Some(Rate { min: 0, max: 9 }), ..Wanted::default() }, "max_tx_rate 9"),
            (Wanted { link_state: Some(LinkState::Enable), ..Wanted::default() }, "link_state enable"),
        ] {
            assert_eq!(refused(wanted).await, format!("{option} {tail}"));
        }
        // The machine's own.
        let used = async || match node.find(&Wanted::default()).await {
            Err(Error::UsedByHost { pci, name, found }) => {
                assert_eq!((pci, name.as_str()), (vf1(), "eth0v1"));
                found
            }
            other => panic!("{other:?}"),
        };
        let bond = node.kernel.add_plain(HOST, "bond0");
        node.kernel.tweak("eth0v1", |link| link.master = Some(bond));
        assert_eq!(used().await, "belongs to bond0");
        node.kernel.tweak("eth0v1", |link| link.master = None);
        node.find(&Wanted::default()).await.unwrap();
        let index = node.kernel.link(HOST, "eth0v1").unwrap().index;
        let address = NewAddress { net: "192.0.2.7/24".parse().unwrap(), dad: Dad::Skip };
        node.host.add_address(index, &address).await.unwrap();
        node.host.change(index, &[LinkChange::Up(true)]).await.unwrap();
        assert_eq!(used().await, "is up and has the address 192.0.2.7/24");
        let has = node.host.addresses(index).await.unwrap();
        node.host.del_address(index, &has[0]).await.unwrap();
        let link = node.kernel.link(HOST, "eth0v1").unwrap();
        let route = |dst: &str| [RouteSpec::new(dst.parse().unwrap(), None)];
        configure(&node.host, &link, &[], &[], &route("fe80::/64")).await.unwrap();
        node.find(&Wanted::default()).await.unwrap();
        configure(&node.host, &link, &[], &[], &route("198.51.100.0/24")).await.unwrap();
        assert_eq!(used().await, "is up and has the route to 198.51.100.0/24");
    });
}

#[test]
fn a_clean_restore_puts_back_nothing_that_an_administrator_left() {
    for driver in DRIVERS {
        for policy in [RestorePolicy::Original, RestorePolicy::Clean] {
            run(async {
                let node = Node::new(driver);
                node.set_admin_mac(ADMIN).await;
                node.kernel.tweak("eth0v1", |link| {
                    (link.alias, link.promisc, link.allmulti) = (Some("rack 7".to_owned()), true, true);
                    (link.mtu, link.txqlen) = (1400, 500);
                });
                node.kernel.tweak_vf(1, |vf| {
                    vf.vlan = Some(VfVlan { id: 7, qos: 1, ..VfVlan::default() });
                    (vf.spoofchk, vf.max_tx_rate) = (Some(false), Some(50));
                    vf.trust = vf.trust.map(|_| true);
                });
                let (was, link_was) = (node.kernel.vf(1).unwrap(), node.kernel.link(HOST, "eth0v1").unwrap());
                let wanted = Wanted { mac: Some(MAC), restore_policy: policy, ..Wanted::default() };
                let original = node.find(&wanted).await.unwrap();
                attach(&node.host, &node.pod, &original, &wanted, &net1()).await.unwrap();
                let at = format!("{driver:?} {policy:?}");
                node.restore(&original).await.unwrap_or_else(|error| panic!("{at}: {error}"));
                let (vf, link) = (node.kernel.vf(1).unwrap(), node.kernel.link(HOST, "eth0v1").unwrap());
                // Who it is stays.
                assert_eq!((link.mac, link.mtu, link.txqlen), (link_was.mac, 1400, 500), "{at}");
                if policy == RestorePolicy::Original {
                    assert_eq!(
                        (vf.vlan, vf.spoofchk, vf.trust, vf.max_tx_rate),
                        (was.vlan, was.spoofchk, was.trust, was.max_tx_rate)
                    );
                    assert_eq!(
                        (link.alias.as_deref(), link.promisc, link.allmulti),
                        (Some("rack 7"), true, true),
                        "{at}"
                    );
                    return;
                }
                assert_eq!(
                    (vf.vlan, vf.spoofchk, vf.max_tx_rate),
                    (Some(VfVlan::default()), Some(true), Some(0)),
                    "{at}"
                );
                assert_eq!(vf.trust, (driver != Driver::Bnxt).then_some(false), "{at}: not reported stays untouched");
                assert_eq!((link.alias, link.promisc, link.allmulti), (None, false, false), "{at}");
                assert_ne!(vf.mac, Some(MAC), "{at}");
                // Not locked: the VF may change its address and have its own again, and the PF follows.
                node.host.change(link.index, &[LinkChange::Mac(MAC)]).await.unwrap();
                node.host.change(link.index, &[LinkChange::Mac(link.mac.unwrap())]).await.unwrap();
                assert!([link.mac, Some(MacAddr::ZERO)].contains(&vf.mac), "{at}: {:?}", vf.mac);
            });
        }
    }
}

#[test]
fn check_names_another_driver_another_interface_and_a_vf_that_is_gone() {
    run(async {
        let node = Node::new(Driver::Igb);
        let wanted = Wanted { vlan: much().vlan, ..Wanted::default() };
        let original = node.find(&wanted).await.unwrap();
        attach(&node.host, &node.pod, &original, &wanted, &net1()).await.unwrap();
        let link = node.kernel.link(POD, "net1").unwrap();
        let texts = async |link: &sandbox::Link| -> Vec<String> {
            let found = check(&node.sysfs, &node.host, &original, &wanted, Some(link), false).await.unwrap();
            found.iter().map(ToString::to_string).collect()
        };
        assert_eq!(texts(&link).await, Vec::<String>::new());
        let other = sandbox::Link { parent_dev: Some("0000:01:10.2".to_owned()), ..link.clone() };
        assert_eq!(texts(&other).await, ["wanted net1 to be VF 0000:01:10.1, found that of device 0000:01:10.2"]);
        node.kernel.tweak_vf(1, |vf| vf.vlan = Some(VfVlan { id: 5, ..VfVlan::default() }));
        assert_eq!(texts(&link).await, ["wanted vlan 100 qos 3, found vlan 5"]);
        node.rebind_to("vfio-pci");
        assert_eq!(texts(&link).await[0], "wanted driver some-vf, found driver vfio-pci");
        fs::remove_dir_all(node.device("0000:01:10.1")).unwrap();
        assert_eq!(texts(&link).await, ["wanted VF 0000:01:10.1, found no such device"]);
    });
}
