//! A kernel in memory: namespaces with links, PFs with VFs that behave as their driver's, and faults on demand. Its
//! rules are those measured on real kernels and drivers.

mod links;
mod model;
mod rebind;

use std::cell::RefCell;
use std::rc::Rc;

use nix::errno::Errno;

pub use links::FakeLinks;
pub use model::{Device, Driver, Snapshot};
use model::{Model, Role};

use crate::{Address, Link, MacAddr, Route, VfReport};

/// The number of the host's namespace.
pub const HOST: u32 = 0;

/// Which message fails, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    /// Counted from the call of [`FakeKernel::fail`], the first message is 1. Reads count.
    pub step: u32,
    /// What the kernel answers.
    pub errno: Errno,
    /// The message takes effect all the same (a move), or in part (a VF message: its first setting).
    pub takes_effect: bool,
}

/// The whole model. Clones are the same kernel.
#[derive(Debug, Clone)]
pub struct FakeKernel(Rc<RefCell<Model>>);

impl FakeKernel {
    /// A PF named `eth0` of the driver, up, at 0000:01:00.0, with `vfs` VFs named `eth0v0`... at 0000:01:10.0...
    pub fn with_pf(driver: Driver, vfs: u32) -> Self {
        let kernel = Self(Rc::new(RefCell::new(Model::new())));
        {
            let mut model = kernel.0.borrow_mut();
            let pf_link = Link {
                name: "eth0".to_owned(),
                up: true,
                parent_dev: Some("0000:01:00.0".to_owned()),
                ..hardware(MacAddr([0x52, 0x54, 0, 0xaa, 0, 1]))
            };
            let pf = model.add(HOST, pf_link, Role::Pf { driver, vfs: (0..vfs).map(|n| driver.fresh_vf(n)).collect() });
            for number in 0..vfs {
                let link = Link {
                    name: format!("eth0v{number}"),
                    parent_dev: Some(format!("0000:01:10.{number}")),
                    ..hardware(Driver::born_with(number))
                };
                model.add(HOST, link, Role::vf(pf, number));
            }
        }
        kernel
    }

    /// The links of namespace `ns`, which is made if it is new.
    pub fn links(&self, ns: u32) -> FakeLinks {
        FakeLinks::new(Rc::clone(&self.0), ns)
    }

    /// Adds a link without a device behind it and returns its index.
    pub fn add_plain(&self, ns: u32, name: &str) -> u32 {
        let link = Link { name: name.to_owned(), ..hardware(MacAddr([2, 0, 0, 0, 0, 0x77])) };
        self.0.borrow_mut().add(ns, link, Role::Plain)
    }

    /// Changes a link behind everybody's back.
    pub fn tweak(&self, name: &str, change: impl FnOnce(&mut Link)) {
        let mut model = self.0.borrow_mut();
        if let Some(device) = model.devices.iter_mut().find(|device| device.link.name == name) {
            change(&mut device.link);
        }
    }

    /// Changes what the PF holds about a VF behind everybody's back.
    pub fn tweak_vf(&self, number: u32, change: impl FnOnce(&mut VfReport)) {
        let mut model = self.0.borrow_mut();
        for device in &mut model.devices {
            if let Role::Pf { vfs, .. } = &mut device.role
                && let Some(vf) = vfs.iter_mut().find(|vf| vf.number == number)
            {
                change(vf);
                return;
            }
        }
    }

    /// Makes it a kernel before 5.14: no parent device in the reports.
    pub fn without_parent_devices(&self) {
        self.0.borrow_mut().reports_parent = false;
    }

    /// Arms a fault, and counts messages anew.
    pub fn fail(&self, fault: Fault) {
        let mut model = self.0.borrow_mut();
        model.fault = Some(fault);
        model.messages.clear();
    }

    /// Disarms the fault and counts messages anew.
    pub fn heal(&self) {
        let mut model = self.0.borrow_mut();
        model.fault = None;
        model.messages.clear();
    }

    /// The messages since [`Self::fail`] or [`Self::heal`]; sysctls and events are not among them.
    pub fn messages(&self) -> Vec<String> {
        self.0.borrow().messages.clone()
    }

    /// The namespace dies. Its VFs come back to the host under the pod's name after so many link events.
    pub fn kill_netns(&self, ns: u32, events: u32) {
        self.0.borrow_mut().kill(ns, events);
    }

    /// The device is unplugged.
    pub fn unplug(&self, name: &str) {
        self.0.borrow_mut().devices.retain(|device| device.link.name != name);
    }

    /// All that matters of the state, for comparison: indexes are left out, what no report shows (a locked address,
    /// whether frames reach the VF) is in.
    pub fn snapshot(&self) -> Snapshot {
        self.0.borrow().snapshot()
    }

    /// The link of that name in that namespace.
    pub fn link(&self, ns: u32, name: &str) -> Option<Link> {
        let model = self.0.borrow();
        model.devices.iter().find(|device| device.ns == ns && device.link.name == name).map(|d| d.link.clone())
    }

    /// What the PF holds about a VF.
    pub fn vf(&self, number: u32) -> Option<VfReport> {
        let model = self.0.borrow();
        model.devices.iter().find_map(|device| match &device.role {
            Role::Pf { vfs, .. } => vfs.iter().find(|vf| vf.number == number).cloned(),
            _ => None,
        })
    }

    /// The addresses and routes of a namespace.
    pub fn addresses_and_routes(&self, ns: u32) -> (Vec<(u32, Address)>, Vec<Route>) {
        let model = self.0.borrow();
        let addresses = model.addresses.iter().filter(|(owner, ..)| *owner == ns);
        let routes = model.routes.iter().filter(|(owner, _)| *owner == ns);
        (addresses.map(|(_, index, a)| (*index, a.clone())).collect(), routes.map(|(_, r)| r.clone()).collect())
    }

    /// The value of a sysctl that was written in a namespace.
    pub fn sysctl(&self, ns: u32, key: &str) -> Option<String> {
        self.0.borrow().sysctls.get(&(ns, key.to_owned())).cloned()
    }
}

fn hardware(mac: MacAddr) -> Link {
    Link { mac: Some(mac), perm_mac: Some(mac), mtu: 1500, txqlen: 1000, ..Link::default() }
}
