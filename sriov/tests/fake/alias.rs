//! A VF of which nothing is known but its alias.

use sandbox::fake::{Driver, HOST};
use sandbox::{Links, MacAddr, VfSetting, VfVlan};
use sriov::{Original, Rate, Wanted, attach, is_owner_alias, original_by_alias, owner_alias, restore};

use crate::node::{DRIVERS, MAC, Node, POD, much, net1, node, run, vf1};

const POD_NAME: &str = "default/pod-a";
const PLACE: &str = "net1 of container 0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

/// A VF in a pod, with the alias; then its namespace dies.
async fn lose(node: &Node, wanted: &Wanted) -> Original {
    let original = node.find(wanted).await.unwrap();
    let alias = owner_alias(POD_NAME, PLACE, &original);
    attach(&node.host, &node.pod, &original, wanted, &net1(), Some(&alias)).await.unwrap();
    node.kernel.kill_netns(POD, 0);
    original
}

#[test]
fn a_lost_vf_is_given_back_by_its_alias_alone_on_every_driver() {
    for driver in DRIVERS {
        for (up, admin) in [(false, false), (true, false), (false, true)] {
            run(async {
                let node = node(driver);
                node.kernel.tweak("eth0v1", |link| (link.up, link.carrier, link.mtu) = (up, up, 1400));
                if admin {
                    let pf = node.kernel.link(HOST, "eth0").unwrap().index;
                    node.host.set_vf(pf, 1, &[VfSetting::Mac(MacAddr([2, 0, 0, 0, 0, 0x99]))]).await.unwrap();
                    while node.host.link_event(std::time::Duration::ZERO).await.unwrap() {}
                }
                let before = node.kernel.snapshot();
                // Without a change of the MTU nothing else makes igbvf take the address for its permanent one.
                let mtu = (!up).then_some(9000);
                lose(&node, &Wanted { mtu, ..much() }).await;
                let lost = node.kernel.link(HOST, "net1").unwrap();
                assert!(is_owner_alias(lost.alias.as_deref()));
                assert_eq!((lost.mac, lost.mtu), (Some(MAC), mtu.unwrap_or(1400)), "{driver:?}");
                let original = original_by_alias(&node.sysfs_now("net1"), &node.host, vf1()).await.unwrap().unwrap();
                restore(&node.host, None, &original, &node.sysfs).await.unwrap_or_else(|e| panic!("{driver:?}: {e}"));
                // iavf has its address from the PF, so the two are the same before and no lock is seen.
                if !(admin && driver == Driver::Iavf) {
                    assert_eq!(node.kernel.snapshot(), before, "{driver:?} up {up} admin {admin}");
                }
                let again = original_by_alias(&node.sysfs_now("eth0v1"), &node.host, vf1()).await.unwrap();
                assert_eq!(again, None, "the alias is gone");
            });
        }
    }
}

#[test]
fn what_the_alias_does_not_tell_becomes_clean() {
    run(async {
        let node = node(Driver::Mlx5);
        let rate = Some(Rate { min: 5, max: 50 });
        let vlan = Some(VfVlan { id: 9, qos: 2, ..VfVlan::default() });
        lose(&node, &Wanted { rate, vlan, spoofchk: Some(false), trust: Some(true), ..Wanted::default() }).await;
        // Of another release, or made shorter by somebody: who it was is not to be known.
        node.kernel.tweak("net1", |link| link.alias = Some("meta-cni: default/pod-a net1".to_owned()));
        let original = original_by_alias(&node.sysfs_now("net1"), &node.host, vf1()).await.unwrap().unwrap();
        restore(&node.host, None, &original, &node.sysfs).await.unwrap();
        let vf = node.kernel.vf(1).unwrap();
        assert_eq!((vf.vlan, vf.spoofchk, vf.trust), (Some(VfVlan::default()), Some(true), Some(false)));
        assert_eq!((vf.min_tx_rate, vf.max_tx_rate), (Some(0), Some(0)));
        assert_eq!(node.kernel.link(HOST, "net1").unwrap().alias, None);
    });
}

#[test]
fn an_alias_fits_and_keeps_the_state_whatever_the_owner_is_called() {
    run(async {
        let node = node(Driver::Bnxt);
        node.kernel.tweak("eth0v1", |link| (link.name, link.up) = ("a-long-name-v01".to_owned(), true));
        let original = original_of(&node).await;
        for pod in [POD_NAME.to_owned(), "ü".repeat(200), "n/".to_owned() + &"p".repeat(253)] {
            let alias = owner_alias(&pod, PLACE, &original);
            assert!(alias.len() <= 255, "{} bytes: {alias}", alias.len());
            let rest = format!("{PLACE}; was a-long-name-v01 52:54:00:f0:00:01 mtu 1500 up pf 00:00:00:00:00:00");
            let named = alias.strip_prefix("meta-cni: ").unwrap().strip_suffix(&rest).unwrap();
            let named = named.trim_end();
            assert!(pod.starts_with(named) && (named == pod || alias.len() > 250), "{alias}");
        }
        assert!(owner_alias("", PLACE, &original).starts_with(&format!("meta-cni: {PLACE}; was a-long-")));
    });
}

async fn original_of(node: &Node) -> Original {
    node.find(&Wanted::default()).await.unwrap()
}
