//! attach and restore on a real SR-IOV NIC: for the guest of tests/guest (PF `enp1s0`, driver igb, with seven VFs
//! `enp1s0v0`...). Not run by `cargo test`; build it there and start the binary in the guest with --test-threads=1.
#![allow(clippy::unwrap_used)] // functions beside the tests unwrap too

use std::future::Future;
use std::net::IpAddr;
use std::process::Command;

use sandbox::{
    Dad, IfName, LinkChange, LinkState, Links, MacAddr, Netns, NewAddress, Rtnl, VfVlan, VlanProto, configure,
};
use serde_json::Value;
use sriov::{Error, Original, PciAddress, Rate, Sysfs, Wanted, attach, find, restore};

const MAC: MacAddr = MacAddr([0x02, 0, 0, 0, 0, 0x42]);

fn run<T>(test: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test)
}

fn sh(command: &str) -> (bool, String) {
    let out = Command::new("sh").arg("-c").arg(command).output().unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    (out.status.success(), text)
}

fn ok(command: &str) -> String {
    let (success, text) = sh(command);
    assert!(success, "{command}: {text}");
    text
}

/// A pod: a namespace with a name, gone when dropped.
struct Pod(&'static str);

impl Pod {
    fn new(name: &'static str) -> (Self, Rtnl) {
        ok(&format!("ip netns add {name}"));
        let links = Rtnl::open(&Netns::open(format!("/run/netns/{name}")).unwrap()).unwrap();
        (Self(name), links)
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        sh(&format!("ip netns del {}", self.0));
    }
}

fn vf(number: u8) -> PciAddress {
    let function = 0x80 + 2 * number;
    PciAddress::try_from(format!("0000:01:{:02x}.{}", function >> 3, function & 7).as_str()).unwrap()
}

fn host() -> Rtnl {
    Rtnl::open(&Netns::current().unwrap()).unwrap()
}

fn sysfs() -> Sysfs {
    Sysfs { root: "/sys".into() }
}

fn net1() -> IfName {
    IfName::try_from("net1").unwrap()
}

/// The host's links are as they were; says where not.
#[track_caller]
fn assert_same(before: &Value) {
    let now = host_links();
    if now == *before {
        return;
    }
    let mut differences = Vec::new();
    for (was, is) in before.as_array().unwrap().iter().zip(now.as_array().unwrap()) {
        let (was, is) = (was.as_object().unwrap(), is.as_object().unwrap());
        for key in was.keys().chain(is.keys().filter(|key| !was.contains_key(*key))) {
            if was.get(key) != is.get(key) {
                differences.push(format!("{} {key}: was {:?}, is {:?}", was["ifname"], was.get(key), is.get(key)));
            }
        }
    }
    panic!("{}", differences.join("\n"));
}

/// All links of the host with the PFs' VF tables, without what changes by itself.
fn host_links() -> Value {
    let mut links: Vec<Value> = serde_json::from_str(&ok("ip -j -d link show")).unwrap();
    for link in &mut links {
        let link = link.as_object_mut().unwrap();
        link.remove("ifindex");
        // A port that went down keeps its old answer for a while; names of carrier states, not settings.
        link.remove("operstate");
    }
    links.sort_by_key(|link| link["ifname"].to_string());
    Value::Array(links)
}

fn table(number: usize) -> Value {
    let links: Value = serde_json::from_str(&ok("ip -j -d link show enp1s0")).unwrap();
    links[0]["vfinfo_list"][number].clone()
}

async fn give(number: u8, wanted: &Wanted, host: &Rtnl, pod: &Rtnl) -> Original {
    let original = find(&sysfs(), host, vf(number), wanted).await.unwrap();
    let attached = attach(host, pod, &original, wanted, &net1(), Some("default/p"))
        .await
        .unwrap_or_else(|error| panic!("{error}"));
    let net = format!("10.77.0.{}/24", number + 1).parse().unwrap();
    configure(pod, &attached.link, &[NewAddress { net, dad: Dad::Skip }], &[] as &[IpAddr], &[]).await.unwrap();
    original
}

fn ping(from: &str, to: &str) -> bool {
    sh(&format!("ip netns exec {from} ping -c 1 -W 1 -i 0.2 -w 6 {to}")).0
}

#[test]
fn every_attribute_is_in_the_pfs_own_report_and_is_back_afterwards() {
    run(async {
        let before = host_links();
        let (_pod, pod) = Pod::new("pod1");
        let host = host();
        let wanted = Wanted {
            mac: Some(MAC),
            vlan: Some(VfVlan { id: 100, qos: 3, proto: VlanProto::Dot1Q }),
            spoofchk: Some(false),
            trust: Some(true),
            rate: Some(Rate { min: 0, max: 200 }),
            link_state: None,
            mtu: Some(9000),
            ..Wanted::default()
        };
        let original = give(1, &wanted, &host, &pod).await;
        let row = table(1);
        assert_eq!(
            (&row["address"], &row["mac"]).0.as_str().or(row["mac"].as_str()),
            Some("02:00:00:00:00:42"),
            "{row}"
        );
        assert_eq!(row["vlan_list"][0]["vlan"].as_u64().or(row["vlan"].as_u64()), Some(100), "{row}");
        assert_eq!((&row["spoofchk"], &row["trust"]), (&Value::Bool(false), &Value::Bool(true)), "{row}");
        let shown: Value = serde_json::from_str(&ok("ip -n pod1 -j -d link show net1")).unwrap();
        assert_eq!((&shown[0]["address"], &shown[0]["mtu"]), (&"02:00:00:00:00:42".into(), &9000.into()));
        assert_eq!(shown[0]["ifalias"], "default/p");
        assert_eq!(shown[0]["parentdev"], vf(1).to_string());
        restore(&host, Some(&pod), &original, &sysfs()).await.unwrap();
        assert_same(&before);
        restore(&host, Some(&pod), &original, &sysfs()).await.unwrap();
        assert_same(&before);
        // Not locked: the VF may set its own address, and have its own again.
        host.change(original.interface().unwrap().index, &[LinkChange::Mac(MAC)]).await.unwrap();
        host.change(original.interface().unwrap().index, &[LinkChange::Mac(original.interface().unwrap().mac)])
            .await
            .unwrap();
        assert_same(&before);
    });
}

#[test]
fn what_igb_cannot_do_is_named_and_leaves_nothing_behind() {
    run(async {
        let before = host_links();
        let (_pod, pod) = Pod::new("pod1");
        let host = host();
        let vlan = |proto| Some(VfVlan { id: 5, qos: 0, proto });
        let base = Wanted { mac: Some(MAC), vlan: vlan(VlanProto::Dot1Q), spoofchk: Some(false), ..Wanted::default() };
        let tail = "of VF 0000:01:10.4 (VF 2 of PF enp1s0, driver igb)";
        let cases = [
            (
                Wanted { link_state: Some(LinkState::Auto), ..base.clone() },
                format!("link_state auto {tail}: Operation not supported (os error 95)"),
            ),
            (
                Wanted { vlan: vlan(VlanProto::Dot1Ad), ..base.clone() },
                format!("vlan 5 proto 802.1ad {tail}: Protocol not supported (os error 93)"),
            ),
            (
                Wanted { rate: Some(Rate { min: 10, max: 100 }), ..base.clone() },
                format!("min_tx_rate 10 max_tx_rate 100 {tail}: Invalid argument (os error 22)"),
            ),
        ];
        for (wanted, text) in cases {
            let original = find(&sysfs(), &host, vf(2), &wanted).await.unwrap();
            let error = attach(&host, &pod, &original, &wanted, &net1(), None).await.unwrap_err();
            assert!(matches!(error, Error::Attribute { .. }), "{error:?}");
            assert!(error.to_string().starts_with(&text), "{error}");
            restore(&host, Some(&pod), &original, &sysfs()).await.unwrap();
            assert_same(&before);
        }
    });
}

#[test]
fn frames_pass_with_an_address_of_ours_and_afterwards_with_the_vfs_own() {
    run(async {
        let before = host_links();
        let host = host();
        let (_one, one) = Pod::new("pod1");
        let (_two, two) = Pod::new("pod2");
        for wanted in [Wanted { mac: Some(MAC), ..Wanted::default() }, Wanted::default()] {
            let a = give(3, &wanted, &host, &one).await;
            let b = give(4, &Wanted::default(), &host, &two).await;
            assert!(ping("pod1", "10.77.0.5"), "{wanted:?}");
            restore(&host, Some(&one), &a, &sysfs()).await.unwrap();
            restore(&host, Some(&two), &b, &sysfs()).await.unwrap();
            assert_same(&before);
        }
        // A VLAN on one side isolates, on both it does not.
        let tagged = Wanted { vlan: Some(VfVlan { id: 100, ..VfVlan::default() }), ..Wanted::default() };
        let a = give(3, &tagged, &host, &one).await;
        for (wanted, reachable) in [(Wanted::default(), false), (tagged.clone(), true)] {
            let b = give(4, &wanted, &host, &two).await;
            assert_eq!(ping("pod1", "10.77.0.5"), reachable, "{wanted:?}");
            restore(&host, Some(&two), &b, &sysfs()).await.unwrap();
        }
        restore(&host, Some(&one), &a, &sysfs()).await.unwrap();
        assert_same(&before);
    });
}

#[test]
fn a_vf_comes_back_from_a_namespace_that_died() {
    run(async {
        let before = host_links();
        let host = host();
        let wanted = Wanted { mac: Some(MAC), mtu: Some(2000), ..Wanted::default() };
        let original = {
            let (_pod, pod) = Pod::new("pod1");
            give(5, &wanted, &host, &pod).await
        };
        restore(&host, None, &original, &sysfs()).await.unwrap();
        assert_same(&before);
    });
}

#[test]
fn a_vf_is_found_in_whatever_namespace_it_is() {
    run(async {
        let before = host_links();
        let host = host();
        let device = vf(2).to_string();
        let place = async || {
            let found = sandbox::namespace_of_device(&device).await;
            let listed: Vec<Netns> = sandbox::namespaces().collect();
            found.unwrap_or_else(|| panic!("the VF is in none of {listed:#?}"))
        };
        assert!(place().await.same_as(host.netns()));
        let (named, pod) = Pod::new("pod1");
        let original = give(2, &Wanted::default(), &host, &pod).await;
        assert!(place().await.same_as(pod.netns()));
        assert_eq!(place().await.path().to_str(), Some("/run/netns/pod1"), "the mount is the cheapest to find");
        // The mount is gone, and a process lives on inside.
        let mut inside = Command::new("ip").args(["netns", "exec", "pod1", "sleep", "60"]).spawn().unwrap();
        let home = format!("/proc/{}/ns/net", inside.id());
        while !Netns::open(&home).unwrap().same_as(pod.netns()) {
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        drop(named);
        let found = place().await;
        assert!(found.same_as(pod.netns()));
        assert_eq!(found.path().to_str(), Some(home.as_str()));
        // Only an open descriptor is left.
        let held = pod.netns().clone();
        drop(found);
        drop(pod);
        inside.kill().unwrap();
        inside.wait().unwrap();
        let found = place().await;
        assert!(found.same_as(&held));
        assert!(found.path().starts_with("/proc") && found.path().to_string_lossy().contains("/fd/"), "{found:?}");
        let pod = Rtnl::open(&found).unwrap();
        restore(&host, Some(&pod), &original, &sysfs()).await.unwrap();
        assert!(place().await.same_as(host.netns()));
        assert_same(&before);
    });
}

#[test]
fn altnames_and_alias_come_back_and_a_clash_does_not_stop_the_move() {
    run(async {
        ok("ip link property add dev enp1s0v6 altname net1");
        ok("ip link property add dev enp1s0v6 altname a-long-name-that-is-taken-in-the-pod");
        ok("ip link set enp1s0v6 alias 'rack 7' txqueuelen 500");
        let before = host_links();
        let host = host();
        let (_pod, pod) = Pod::new("pod1");
        ok("ip -n pod1 link property add dev lo altname a-long-name-that-is-taken-in-the-pod");
        let original = give(6, &Wanted::default(), &host, &pod).await;
        restore(&host, Some(&pod), &original, &sysfs()).await.unwrap();
        assert_same(&before);
        for altname in ["net1", "a-long-name-that-is-taken-in-the-pod"] {
            ok(&format!("ip link property del dev enp1s0v6 altname {altname}"));
        }
        ok("ip link set enp1s0v6 alias '' txqueuelen 1000");
    });
}
