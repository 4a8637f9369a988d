//! The state in which a VF is given back, and what is compared meanwhile.

use super::*;

#[test]
fn a_clean_restore_puts_back_nothing_that_an_administrator_left() {
    for driver in DRIVERS {
        for (policy, mac) in
            [(RestorePolicy::Original, Some(MAC)), (RestorePolicy::Clean, Some(MAC)), (RestorePolicy::Clean, None)]
        {
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
                let wanted = Wanted { mac, restore_policy: policy, ..Wanted::default() };
                let original = node.find(&wanted).await.unwrap();
                attach(&node.host, &node.pod, &original, &wanted, &net1(), None).await.unwrap();
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
                if driver == Driver::Igb {
                    assert_eq!(vf.mac, link.mac, "{at}: or the PF drops its frames");
                }
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
        attach(&node.host, &node.pod, &original, &wanted, &net1(), None).await.unwrap();
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

#[test]
fn an_administrative_address_that_came_meanwhile_is_taken_back() {
    for driver in [Driver::Igb, Driver::Iavf] {
        run(async {
            let node = Node::new(driver);
            let before = node.kernel.snapshot();
            let original = node.find(&Wanted::default()).await.unwrap();
            attach(&node.host, &node.pod, &original, &Wanted::default(), &net1(), None).await.unwrap();
            node.set_admin_mac(ADMIN).await;
            // Since its next reset the VF has it for its own.
            node.kernel.tweak("net1", |link| link.mac = Some(ADMIN));
            node.restore(&original).await.unwrap_or_else(|error| panic!("{driver:?}: {error}"));
            assert_eq!(node.kernel.snapshot(), before, "{driver:?}");
        });
    }
}
