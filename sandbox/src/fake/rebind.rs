//! What comes and goes while the kernel runs: a VF's interface with its driver, and dummy links.

use nix::errno::Errno;

use super::model::{Driver, Model, Role};
use super::{FakeKernel, HOST, hardware};
use crate::{Link, MacAddr};

impl FakeKernel {
    /// The VF's driver is taken away, for one of user space or none: the interface goes, wherever it was. The PF keeps
    /// what it knows of the VF.
    pub fn unbind(&self, number: u32) {
        let mut model = self.0.borrow_mut();
        let Some((at, _)) = model.vf_device(number) else { return };
        let device = &mut model.devices[at];
        device.link.name.clear();
        if let Role::Vf { bound, .. } = &mut device.role {
            *bound = false;
        }
    }

    /// The VF's kernel driver takes it again: a new interface in the host. An administrative address becomes its own,
    /// else the driver makes one up; igb then reports that.
    pub fn bind(&self, number: u32, name: &str) {
        let reported = self.vf(number).and_then(|vf| vf.mac);
        let mut model = self.0.borrow_mut();
        let Some((at, driver)) = model.vf_device(number) else { return };
        let device = &mut model.devices[at];
        let mut administrative = false;
        if let Role::Vf { bound, locked, .. } = &mut device.role {
            (*bound, administrative) = (true, *locked);
        }
        let made_up = MacAddr([0x52, 0x54, 0, 0xf1, 0, number as u8]);
        let mac = reported.filter(|_| administrative).unwrap_or(made_up);
        device.ns = HOST;
        let Link { index, parent_dev, .. } = device.link.clone();
        device.link = Link { index, parent_dev, name: name.to_owned(), ..hardware(mac) };
        drop(model);
        if driver == Driver::Igb {
            self.tweak_vf(number, |vf| vf.mac = Some(mac));
        }
    }
}

impl Model {
    /// Position of a VF's device, and the driver of its PF.
    fn vf_device(&self, wanted: u32) -> Option<(usize, Driver)> {
        let of = |index| {
            self.devices.iter().find_map(|device| match device.role {
                Role::Pf { driver, .. } if device.link.index == index => Some(driver),
                _ => None,
            })
        };
        self.devices.iter().enumerate().find_map(|(at, device)| match device.role {
            Role::Vf { pf, number, .. } if number == wanted => Some((at, of(pf)?)),
            _ => None,
        })
    }

    pub(super) fn add_dummy(&mut self, ns: u32, name: &str) -> Result<(), Errno> {
        if self.name_taken(ns, name, usize::MAX) {
            return Err(Errno::EEXIST);
        }
        let link = Link { name: name.to_owned(), kind: Some("dummy".to_owned()), ..hardware(MacAddr([2; 6])) };
        self.add(ns, Link { perm_mac: None, ..link }, Role::Plain);
        Ok(())
    }

    pub(super) fn del_link(&mut self, ns: u32, index: u32) -> Result<(), Errno> {
        let at = self.at(ns, index)?;
        if self.devices[at].link.kind.is_none() {
            return Err(Errno::EOPNOTSUPP);
        }
        self.devices.remove(at);
        self.addresses.retain(|(_, of, _)| *of != index);
        self.routes.retain(|(_, route)| !route.uses(index));
        Ok(())
    }
}
