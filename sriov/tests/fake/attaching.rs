//! What attach does, and what it refuses.

use std::fs;
use std::time::Duration;

use sandbox::fake::{Driver, HOST};
use sandbox::{LinkState, Links, MacAddr, NewAddress, RouteSpec, VfVlan, VlanProto, configure, read_back_of};
use sriov::{Error, Original, Rate, Wanted};

use crate::node::{DRIVERS, MAC, OWNER, POD, decorate, much, node, run, vf1, with_altnames_sorted};

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
