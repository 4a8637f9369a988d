//! A node for a test: a kernel in memory and the sysfs tree that goes with it.

use std::fs;
use std::future::Future;
use std::os::unix::fs::symlink;
use std::rc::Rc;

use sandbox::fake::{Driver, FakeKernel, FakeLinks, HOST};
use sandbox::{IfName, MacAddr, VfVlan, VlanProto};
use sriov::{Attached, Error, Original, PciAddress, Rate, Sysfs, Wanted, attach, find, restore};

pub(crate) const POD: u32 = 1;
pub(crate) const DRIVERS: [Driver; 4] = [Driver::Igb, Driver::Iavf, Driver::Mlx5, Driver::Bnxt];
pub(crate) const OWNER: &str = "default/p net1";
pub(crate) const MAC: MacAddr = MacAddr([0x02, 0, 0, 0, 0, 0x42]);

/// A node: a kernel in memory and the sysfs tree that goes with it.
pub(crate) struct Node {
    pub(crate) kernel: FakeKernel,
    pub(crate) host: FakeLinks,
    pub(crate) pod: FakeLinks,
    pub(crate) sysfs: Sysfs,
    _dir: Rc<tempfile::TempDir>,
}

pub(crate) fn node(driver: Driver) -> Node {
    node_on(driver, &tree(driver))
}

/// A node on a tree that is there already: making one takes longer than an ADD and a DEL.
pub(crate) fn node_on(driver: Driver, tree: &Rc<tempfile::TempDir>) -> Node {
    let kernel = FakeKernel::with_pf(driver, 3);
    let (host, pod) = (kernel.links(HOST), kernel.links(POD));
    Node { host, pod, sysfs: Sysfs { root: tree.path().to_owned() }, kernel, _dir: Rc::clone(tree) }
}

/// The sysfs of a fresh kernel with that driver.
pub(crate) fn tree(driver: Driver) -> Rc<tempfile::TempDir> {
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
    /// The tree, with the VF's interface in the host under this name.
    pub(crate) fn sysfs_now(&self, name: &str) -> Sysfs {
        let net = self.sysfs.root.join("bus/pci/devices/0000:01:10.1/net");
        fs::remove_dir_all(&net).unwrap();
        fs::create_dir_all(net.join(name)).unwrap();
        let index = self.kernel.link(HOST, name).unwrap().index;
        fs::write(net.join(name).join("ifindex"), index.to_string()).unwrap();
        self.sysfs.clone()
    }

    pub(crate) async fn find(&self, wanted: &Wanted) -> Result<Original, Error> {
        find(&self.sysfs, &self.host, vf1(), wanted).await
    }

    pub(crate) async fn attach(&self, original: &Original, wanted: &Wanted) -> Result<Attached, Error> {
        attach(&self.host, &self.pod, original, wanted, &net1(), Some(OWNER)).await
    }

    pub(crate) async fn restore(&self, original: &Original) -> Result<(), Error> {
        restore(&self.host, Some(&self.pod), original, &self.sysfs).await
    }
}

pub(crate) fn vf1() -> PciAddress {
    PciAddress::try_from("0000:01:10.1").unwrap()
}

pub(crate) fn net1() -> IfName {
    IfName::try_from("net1").unwrap()
}

pub(crate) fn run<T>(test: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test)
}

/// All that igb can do.
pub(crate) fn much() -> Wanted {
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
pub(crate) fn decorate(kernel: &FakeKernel) {
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

/// Alternative names are a set: those that were taken away and given back stand at the end.
pub(crate) fn with_altnames_sorted(before: &sandbox::fake::Snapshot, now: &FakeKernel) -> sandbox::fake::Snapshot {
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
