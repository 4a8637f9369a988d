//! VFs that are bound to a driver for user space.

use super::*;

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
        let error = attach(&node.host, &node.pod, &original, &Wanted::default(), &net1(), None).await.unwrap_err();
        assert!(matches!(error, Error::NoNetdev { .. }), "{error:?}");
        assert_eq!(node.kernel.snapshot(), before);
        let node = Node::new(Driver::Igb);
        let error = node.find(&much()).await.unwrap_err();
        assert!(matches!(&error, Error::DummyForKernel { driver, .. } if driver == "some-vf"), "{error:?}");
    });
}
