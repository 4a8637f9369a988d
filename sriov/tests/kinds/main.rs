//! VFs that are not a kernel VF with its PF beside it: bound to a driver for user space, given to a VM without their PF,
//! or to be given back clean. On the kernel in memory, with every step made to fail.
#![allow(clippy::unwrap_used)] // functions beside the tests unwrap too

mod clean;
mod userspace;
mod vm;

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

pub(crate) const POD: u32 = 1;
pub(crate) const DRIVERS: [Driver; 4] = [Driver::Igb, Driver::Iavf, Driver::Mlx5, Driver::Bnxt];
pub(crate) const MAC: MacAddr = MacAddr([0x02, 0, 0, 0, 0, 0x42]);
pub(crate) const ADMIN: MacAddr = MacAddr([0x02, 0, 0, 0, 0, 0x99]);

/// A kernel in memory with a PF of three VFs, and its sysfs.
pub(crate) struct Node {
    pub(crate) kernel: FakeKernel,
    pub(crate) host: FakeLinks,
    pub(crate) pod: FakeLinks,
    pub(crate) sysfs: Sysfs,
    dir: Rc<tempfile::TempDir>,
}

impl Node {
    pub(crate) fn new(driver: Driver) -> Self {
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
    pub(crate) fn with_vfio(driver: Driver) -> Self {
        let node = Self::new(driver);
        node.kernel.unbind(1);
        node.rebind_to("vfio-pci");
        fs::remove_dir_all(node.device("0000:01:10.1").join("net")).unwrap();
        node
    }

    /// Another kernel of the same driver on the same tree: making one takes longer than attaching and restoring.
    pub(crate) fn another_with_vfio(&self, driver: Driver) -> Self {
        let kernel = FakeKernel::with_pf(driver, 3);
        kernel.unbind(1);
        let (host, pod) = (kernel.links(HOST), kernel.links(POD));
        Self { host, pod, kernel, sysfs: self.sysfs.clone(), dir: Rc::clone(&self.dir) }
    }

    /// The same as a VM sees it: no PF.
    pub(crate) fn in_a_vm(driver: Driver) -> Self {
        let node = Self::new(driver);
        fs::remove_file(node.device("0000:01:10.1").join("physfn")).unwrap();
        fs::remove_dir_all(node.device("0000:01:00.0")).unwrap();
        node
    }

    pub(crate) fn device(&self, pci: &str) -> std::path::PathBuf {
        let path = self.dir.path().join("bus/pci/devices").join(pci);
        fs::create_dir_all(&path).unwrap();
        path
    }

    pub(crate) fn netdev(&self, device: &Path, name: &str) {
        let net = device.join("net").join(name);
        fs::create_dir_all(&net).unwrap();
        fs::write(net.join("ifindex"), self.kernel.link(HOST, name).unwrap().index.to_string()).unwrap();
    }

    pub(crate) fn rebind_to(&self, driver: &str) {
        let link = self.device("0000:01:10.1").join("driver");
        let _ = fs::remove_file(&link);
        symlink(format!("../../drivers/{driver}"), link).unwrap();
    }

    pub(crate) async fn find(&self, wanted: &Wanted) -> Result<Original, Error> {
        find(&self.sysfs, &self.host, vf1(), wanted).await
    }

    pub(crate) async fn attach(&self, original: &Original, wanted: &Wanted) -> Result<AttachedUserspace, Error> {
        attach_userspace(&self.host, &self.pod, original, wanted, &net1()).await
    }

    pub(crate) async fn restore(&self, original: &Original) -> Result<(), Error> {
        restore(&self.host, Some(&self.pod), original, &self.sysfs).await
    }

    pub(crate) async fn set_admin_mac(&self, mac: MacAddr) {
        let pf = self.kernel.link(HOST, "eth0").unwrap().index;
        self.host.set_vf(pf, 1, &[VfSetting::Mac(mac)]).await.unwrap();
        while self.host.link_event(std::time::Duration::ZERO).await.unwrap() {}
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

/// All that can be set on a VF without an interface, on every driver.
pub(crate) fn much() -> Wanted {
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
