//! VFs that sriov-cni attached, given back on the kernel in memory: every driver's ways, from wherever they are.
#![allow(clippy::unwrap_used)] // functions beside the tests unwrap too

use std::fs;
use std::future::Future;
use std::os::unix::fs::symlink;
use std::path::Path;

use nix::errno::Errno;
use sandbox::fake::{Driver, FakeKernel, FakeLinks, Fault, HOST};
use sandbox::{IfName, Link, MacAddr, VfReport, VfVlan, VlanProto};
use sriov::{Cached, Error, PciAddress, Rate, SriovCni, Sysfs, Wanted, attach, find, release_cached};

const POD: u32 = 1;
const DRIVERS: [Driver; 4] = [Driver::Igb, Driver::Iavf, Driver::Mlx5, Driver::Bnxt];
const MAC: MacAddr = MacAddr([0x02, 0, 0, 0, 0, 0x42]);

struct Node {
    kernel: FakeKernel,
    host: FakeLinks,
    pod: FakeLinks,
    sysfs: Sysfs,
    dir: tempfile::TempDir,
}

fn node(driver: Driver) -> Node {
    let kernel = FakeKernel::with_pf(driver, 1);
    let dir = tempfile::tempdir().unwrap();
    let devices = dir.path().join("bus/pci/devices");
    let netdev = |device: &Path, name: &str| {
        let net = device.join("net").join(name);
        fs::create_dir_all(&net).unwrap();
        fs::write(net.join("ifindex"), kernel.link(HOST, name).unwrap().index.to_string()).unwrap();
    };
    let (pf, vf) = (devices.join("0000:01:00.0"), devices.join("0000:01:10.0"));
    netdev(&pf, "eth0");
    netdev(&vf, "eth0v0");
    fs::write(pf.join("sriov_numvfs"), "1").unwrap();
    symlink("../../drivers/pf", pf.join("driver")).unwrap();
    symlink("../../drivers/vf", vf.join("driver")).unwrap();
    symlink("../0000:01:00.0", vf.join("physfn")).unwrap();
    symlink("../0000:01:10.0", pf.join("virtfn0")).unwrap();
    let (host, pod) = (kernel.links(HOST), kernel.links(POD));
    Node { kernel, host, pod, sysfs: Sysfs { root: dir.path().to_owned() }, dir }
}

fn run<T>(test: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test)
}

fn net1() -> IfName {
    IfName::try_from("net1").unwrap()
}

/// sriov-cni's file of a VF as it is now, for a configuration that asks for everything.
fn file(node: &Node) -> String {
    let (link, vf): (Link, VfReport) = (node.kernel.link(HOST, "eth0v0").unwrap(), node.kernel.vf(0).unwrap());
    let text = |mac: Option<MacAddr>| mac.unwrap_or(MacAddr::ZERO).to_string();
    let vlan = vf.vlan.unwrap_or_default();
    format!(
        r#"{{"cniVersion":"1.0.0","name":"n","type":"sriov","ipam":{{}},"dns":{{}},"OrigVfState":{{"HostIFName":"eth0v0",
        "SpoofChk":{},"Trust":{},"AdminMAC":"{}","EffectiveMAC":"{}","Vlan":{},"VlanQoS":{},"VlanProto":{},"MinTxRate":0,
        "MaxTxRate":{},"LinkState":0,"MTU":{}}},"Master":"eth0","MAC":"{MAC}","vlan":100,"vlanQoS":3,"vlanProto":"802.1q",
        "deviceID":"0000:01:10.0","VFID":0,"min_tx_rate":null,"max_tx_rate":200,"spoofchk":"off","trust":"on",
        "runtimeConfig":{{}}}}"#,
        vf.spoofchk != Some(false),
        vf.trust != Some(false),
        text(vf.mac),
        text(link.mac),
        vlan.id,
        vlan.qos,
        if vlan.proto == VlanProto::Dot1Ad { 0x88a8 } else { 0x8100 },
        vf.max_tx_rate.unwrap_or(0),
        link.mtu,
    )
}

impl Node {
    /// Attaches the VF with everything set and gives sriov-cni's file of it, as it is read back.
    async fn attached(&self) -> Cached {
        let files = SriovCni { root: self.dir.path().to_owned() };
        fs::write(self.dir.path().join("c-net1"), file(self)).unwrap();
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
        let pci = PciAddress::try_from("0000:01:10.0").unwrap();
        let original = find(&self.sysfs, &self.host, pci, &wanted).await.unwrap();
        attach(&self.host, &self.pod, &original, &wanted, &net1(), None).await.unwrap();
        assert_eq!(self.kernel.vf(0).unwrap().mac, Some(MAC));
        let cached = files.cached("c", "net1").unwrap().unwrap();
        assert_eq!(cached.device_id, "0000:01:10.0");
        cached
    }

    async fn give_back(&self, cached: &Cached, pod: bool) -> Result<(), Error> {
        let pod = pod.then_some(&self.pod);
        release_cached(&self.host, pod, (cached, &net1()), &self.sysfs, async || Ok(None)).await
    }
}

#[test]
fn a_vf_is_given_back_as_the_file_says_on_every_driver_and_from_anywhere() {
    for driver in DRIVERS {
        for (killed, parents, vlan) in [(false, true, 0), (false, true, 7), (false, false, 0), (true, true, 7)] {
            run(async {
                let at = format!("{driver:?} killed: {killed}, parents: {parents}, vlan: {vlan}");
                let node = node(driver);
                if !parents {
                    node.kernel.without_parent_devices();
                }
                node.kernel.tweak_vf(0, |vf| {
                    vf.vlan = Some(VfVlan { id: vlan, qos: 0, proto: VlanProto::Dot1Q });
                    vf.max_tx_rate = Some(50);
                });
                let before = node.kernel.snapshot();
                let cached = node.attached().await;
                if killed {
                    node.kernel.kill_netns(POD, 2);
                }
                node.give_back(&cached, !killed).await.unwrap_or_else(|e| panic!("{at}: {e}"));
                assert_eq!(node.kernel.snapshot(), before, "{at}");
                node.give_back(&cached, !killed).await.unwrap_or_else(|e| panic!("{at}: {e}"));
                assert_eq!(node.kernel.snapshot(), before, "{at}");
            });
        }
    }
}

/// sriov-cni forgets its file after the first failure; here the next try continues.
#[test]
fn after_a_failure_at_any_step_the_next_try_leads_to_the_start() {
    let mut failed = 0;
    for driver in DRIVERS {
        for errno in [Errno::EIO, Errno::EBUSY, Errno::ENODEV] {
            for step in 1.. {
                let done = run(async {
                    let node = node(driver);
                    let before = node.kernel.snapshot();
                    let cached = node.attached().await;
                    node.kernel.fail(Fault { step, errno, takes_effect: false });
                    let result = node.give_back(&cached, true).await;
                    let done = (node.kernel.messages().len() as u32) < step;
                    assert!(!done || result.is_ok(), "{driver:?}: nothing failed and yet {result:?}");
                    failed += u32::from(result.is_err());
                    node.kernel.heal();
                    node.give_back(&cached, true).await.unwrap_or_else(|e| panic!("{driver:?} {errno} {step}: {e}"));
                    assert_eq!(node.kernel.snapshot(), before, "{driver:?} {errno} at {step}");
                    done
                });
                if done {
                    break;
                }
            }
        }
    }
    assert!(failed > 50, "{failed} tries failed");
}

#[test]
fn what_the_file_does_not_know_is_left_as_it_is() {
    run(async {
        let node = node(Driver::Mlx5);
        let cached = node.attached().await;
        let text = fs::read_to_string(node.dir.path().join("c-net1")).unwrap();
        // A release that knew neither trust nor MTU nor the kind of tag, and a configuration without spoofchk.
        let old = text
            .replace(r#""Trust":false,"#, "")
            .replace(r#""VlanProto":33024,"#, "")
            .replace(r#""LinkState":0,"MTU":1500"#, r#""LinkState":0"#)
            .replace(r#""spoofchk":"off","#, "");
        for key in ["\"Trust\"", "VlanProto", "MTU", "spoofchk"] {
            assert!(!old.contains(key), "{key} is in {old}");
        }
        let old: Cached = serde_json::from_str(&old).unwrap();
        assert_ne!(old, cached);
        node.give_back(&old, true).await.unwrap();
        let (link, vf) = (node.kernel.link(HOST, "eth0v0").unwrap(), node.kernel.vf(0).unwrap());
        assert_eq!((link.mtu, vf.spoofchk, vf.trust), (9000, Some(false), Some(false)));
        assert_eq!(vf.vlan, Some(VfVlan::default()));
    });
}

#[test]
fn a_vf_that_is_unplugged_is_given_back_and_one_in_another_namespace_is_an_error() {
    run(async {
        let node = node(Driver::Igb);
        let cached = node.attached().await;
        let error = node.give_back(&cached, false).await.unwrap_err();
        assert!(matches!(error, Error::NotBack { .. }), "{error}");
        assert_eq!(node.kernel.vf(0).unwrap().mac, Some(MAC), "nothing was touched");
        fs::remove_dir_all(node.dir.path().join("bus/pci/devices/0000:01:10.0")).unwrap();
        node.give_back(&cached, false).await.unwrap();
    });
}
