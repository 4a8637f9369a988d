//! VFs as a VM has them, without their PF.

use super::*;

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
                let attached = attach(&node.host, &node.pod, &original, &wanted, &net1(), None).await;
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
        let error = attach(&node.host, &node.pod, &original, &wanted, &net1(), None).await.unwrap_err();
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
fn a_vfio_vf_in_a_vm_has_no_address_that_anybody_could_set_or_tell() {
    run(async {
        let node = Node::with_vfio(Driver::Igb);
        fs::remove_file(node.device("0000:01:10.1").join("physfn")).unwrap();
        let before = node.kernel.snapshot();
        let error = node.find(&Wanted { mac: Some(MAC), ..Wanted::default() }).await.unwrap_err();
        assert!(matches!(&error, Error::Userspace { what: "mac", driver, .. } if driver == "vfio-pci"), "{error:?}");
        let wanted = Wanted { dummy_interface: true, ..Wanted::default() };
        let original = node.find(&wanted).await.unwrap();
        let attached = node.attach(&original, &wanted).await.unwrap();
        assert_eq!((attached.mac, attached.mtu, attached.dummy.unwrap().name.as_str()), (None, None, "net1"));
        node.restore(&original).await.unwrap();
        assert_eq!(node.kernel.snapshot(), before);
    });
}
