//! What the kernel and the drivers do.

use std::collections::BTreeMap;

use nix::errno::Errno;

use super::{Fault, HOST};
use crate::{Address, Link, LinkChange, LinkState, MacAddr, Route, VfReport, VfSetting, VfVlan, VlanProto};

/// How a PF's driver treats its VFs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Driver {
    /// igb and igbvf: the report shows the VF's own address; an address set through the PF locks the VF's (unless
    /// trusted) and does not reach it; clearing leaves the PF deaf until the VF sets another one. No link_state, no
    /// 802.1ad, no minimum rate, no rate at all while the PF is down. A reset makes the VF's
    /// address its permanent one.
    Igb,
    /// i40e and iavf: an address set through the PF resets the VF, which answers EAGAIN for a while and then has it.
    Iavf,
    /// mlx5: an address set through the PF never reaches the VF; a VF always may set its own.
    Mlx5,
    /// bnxt: every setting is EINVAL while the PF is down; trust is not reported.
    Bnxt,
}

impl Driver {
    /// The address a VF has from the beginning.
    pub(super) fn born_with(number: u32) -> MacAddr {
        MacAddr([0x52, 0x54, 0, 0xf0, 0, number as u8])
    }

    pub(super) fn fresh_vf(self, number: u32) -> VfReport {
        let mac = match self {
            Driver::Igb | Driver::Iavf => Self::born_with(number),
            Driver::Mlx5 | Driver::Bnxt => MacAddr::ZERO,
        };
        VfReport {
            number,
            mac: Some(mac),
            vlan: Some(VfVlan::default()),
            spoofchk: Some(true),
            trust: (self != Driver::Bnxt).then_some(false),
            link_state: Some(LinkState::Auto),
            min_tx_rate: Some(0),
            max_tx_rate: Some(0),
        }
    }

    fn refuses(self, setting: &VfSetting, pf_up: bool) -> Option<Errno> {
        match (self, setting) {
            (_, VfSetting::Mac(mac)) if mac.is_multicast() => Some(Errno::EINVAL),
            (Driver::Bnxt, _) if !pf_up => Some(Errno::EINVAL),
            (Driver::Igb, VfSetting::LinkState(_)) => Some(Errno::EOPNOTSUPP),
            (Driver::Igb, VfSetting::Vlan(VfVlan { proto: VlanProto::Dot1Ad, .. })) => Some(Errno::EPROTONOSUPPORT),
            (Driver::Igb, VfSetting::Rate { .. }) if !pf_up => Some(Errno::EINVAL),
            (Driver::Igb | Driver::Iavf, VfSetting::Rate { min: 1.., .. }) => Some(Errno::EINVAL),
            _ => None,
        }
    }

    /// Whether the VF loses the right to its own address when the PF sets one.
    fn locks(self) -> bool {
        matches!(self, Driver::Igb | Driver::Iavf)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Role {
    Plain,
    Pf {
        driver: Driver,
        vfs: Vec<VfReport>,
    },
    Vf {
        /// Index of the PF.
        pf: u32,
        number: u32,
        /// The PF set an address.
        locked: bool,
        /// Events until the reset is over.
        resetting: u32,
        /// The address after the reset.
        reset_to: Option<MacAddr>,
        /// Events until it arrives in the host, after its namespace died.
        absent: u32,
        /// Its kernel driver has it, so that it has an interface.
        bound: bool,
    },
}

impl Role {
    pub(super) fn vf(pf: u32, number: u32) -> Self {
        Role::Vf { pf, number, locked: false, resetting: 0, reset_to: None, absent: 0, bound: true }
    }
}

/// One device of the model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// Namespace.
    pub ns: u32,
    /// The link.
    pub link: Link,
    pub(super) role: Role,
}

/// The devices in order of creation, without indexes.
pub type Snapshot = Vec<Device>;

#[derive(Debug)]
pub(super) struct Model {
    pub(super) devices: Vec<Device>,
    pub(super) addresses: Vec<(u32, u32, Address)>,
    pub(super) routes: Vec<(u32, Route)>,
    pub(super) sysctls: BTreeMap<(u32, String), String>,
    pub(super) reports_parent: bool,
    pub(super) fault: Option<Fault>,
    pub(super) messages: Vec<String>,
    next_index: u32,
}

impl Model {
    pub(super) fn new() -> Self {
        Self {
            devices: Vec::new(),
            addresses: Vec::new(),
            routes: Vec::new(),
            sysctls: BTreeMap::new(),
            reports_parent: true,
            fault: None,
            messages: Vec::new(),
            next_index: 2,
        }
    }

    pub(super) fn add(&mut self, ns: u32, link: Link, role: Role) -> u32 {
        let index = self.next_index;
        self.next_index += 1;
        self.devices.push(Device { ns, link: Link { index, ..link }, role });
        index
    }

    /// Counts a message; the fault's errno if it is the one to fail, and whether it takes effect.
    pub(super) fn message(&mut self, what: String) -> Option<(Errno, bool)> {
        self.messages.push(what);
        let step = self.messages.len() as u32;
        self.fault.filter(|fault| fault.step == step).map(|fault| (fault.errno, fault.takes_effect))
    }

    /// Position of a present device.
    pub(super) fn at(&self, ns: u32, index: u32) -> Result<usize, Errno> {
        let found = self.devices.iter().position(|d| d.ns == ns && d.link.index == index && d.is_present());
        found.ok_or(Errno::ENODEV)
    }

    pub(super) fn name_taken(&self, ns: u32, name: &str, but: usize) -> bool {
        self.devices
            .iter()
            .enumerate()
            .any(|(n, d)| n != but && d.ns == ns && (d.link.name == name || d.link.altnames.iter().any(|a| a == name)))
    }

    pub(super) fn set_vf(&mut self, ns: u32, pf: u32, number: u32, setting: &VfSetting) -> Result<(), Errno> {
        let at = self.at(ns, pf)?;
        let up = self.devices[at].link.up;
        let Role::Pf { driver, vfs } = &mut self.devices[at].role else { return Err(Errno::EOPNOTSUPP) };
        let driver = *driver;
        let vf = vfs.iter_mut().find(|vf| vf.number == number).ok_or(Errno::EINVAL)?;
        if let Some(errno) = driver.refuses(setting, up) {
            return Err(errno);
        }
        match *setting {
            VfSetting::Mac(mac) => vf.mac = Some(mac),
            VfSetting::Vlan(vlan) => vf.vlan = Some(vlan),
            VfSetting::Rate { min, max } => (vf.min_tx_rate, vf.max_tx_rate) = (Some(min), Some(max)),
            VfSetting::SpoofChk(on) => vf.spoofchk = Some(on),
            VfSetting::LinkState(state) => vf.link_state = Some(state),
            VfSetting::Trust(on) => vf.trust = vf.trust.map(|_| on),
        }
        if let VfSetting::Mac(mac) = *setting {
            self.pf_set_mac(driver, pf, number, mac);
        }
        Ok(())
    }

    fn pf_set_mac(&mut self, driver: Driver, pf: u32, number: u32, mac: MacAddr) {
        for device in &mut self.devices {
            if let Role::Vf { pf: of, number: n, locked, resetting, reset_to, .. } = &mut device.role
                && (*of, *n) == (pf, number)
            {
                *locked = mac != MacAddr::ZERO;
                if driver == Driver::Iavf {
                    *resetting = 3;
                    *reset_to = (mac != MacAddr::ZERO).then_some(mac);
                }
            }
        }
    }

    /// The VF sets its own address.
    fn own_mac(&mut self, at: usize, mac: MacAddr) -> Result<(), Errno> {
        let Role::Vf { pf, number, locked, resetting, .. } = self.devices[at].role else {
            self.devices[at].link.mac = Some(mac);
            return Ok(());
        };
        if resetting > 0 {
            return Err(Errno::EAGAIN);
        }
        if self.devices[at].link.mac == Some(mac) {
            return Ok(());
        }
        for device in &mut self.devices {
            if let Role::Pf { driver, vfs } = &mut device.role
                && device.link.index == pf
                && let Some(vf) = vfs.iter_mut().find(|vf| vf.number == number)
                && driver.locks()
            {
                if locked && vf.trust != Some(true) {
                    return Err(Errno::EADDRNOTAVAIL);
                }
                vf.mac = Some(mac);
            }
        }
        self.devices[at].link.mac = Some(mac);
        Ok(())
    }

    pub(super) fn change(&mut self, ns: u32, index: u32, change: &LinkChange) -> Result<(), Errno> {
        let at = self.at(ns, index)?;
        if let LinkChange::Name(name) = change
            && (self.name_taken(ns, name, at) || self.devices[at].link.altnames.contains(name))
        {
            return Err(Errno::EEXIST);
        }
        let resetting = matches!(self.devices[at].role, Role::Vf { resetting: 1.., .. });
        let link = &mut self.devices[at].link;
        match change {
            LinkChange::Mac(mac) => return self.own_mac(at, *mac),
            LinkChange::Up(true) if resetting => return Err(Errno::EAGAIN),
            LinkChange::Up(true) => (link.up, link.carrier) = (true, true),
            LinkChange::Up(false) => self.close(at),
            LinkChange::Mtu(mtu) if *mtu == link.mtu => {}
            LinkChange::Mtu(mtu @ 68..=9216) => {
                link.mtu = *mtu;
                self.reset_igbvf(at);
            }
            LinkChange::Mtu(_) => return Err(Errno::EINVAL),
            LinkChange::TxQueueLen(length) => link.txqlen = *length,
            LinkChange::Promisc(on) => link.promisc = *on,
            LinkChange::AllMulti(on) => link.allmulti = *on,
            LinkChange::Alias(text) => link.alias = (!text.is_empty()).then(|| text.clone()),
            LinkChange::Name(name) => link.name.clone_from(name),
        }
        Ok(())
    }

    /// In the order of do_setlink: the move, address and MTU, the name, all else.
    pub(super) fn move_with(
        &mut self,
        ns: u32,
        index: u32,
        target: u32,
        name: &str,
        changes: &[LinkChange],
    ) -> Result<(), Errno> {
        let at = self.at(ns, index)?;
        if self.devices[at].link.altnames.iter().any(|altname| self.name_taken(target, altname, at)) {
            return Err(Errno::EEXIST);
        }
        let taken = self.name_taken(target, name, at);
        let own_taken = self.name_taken(target, &self.devices[at].link.name, at);
        if own_taken && taken {
            return Err(Errno::EEXIST);
        }
        self.put(at, target);
        let (early, late): (Vec<_>, Vec<_>) =
            changes.iter().partition(|change| matches!(change, LinkChange::Mac(_) | LinkChange::Mtu(_)));
        early.into_iter().try_for_each(|change| self.change(target, index, change))?;
        if taken || self.devices[at].link.altnames.iter().any(|altname| altname == name) {
            return Err(Errno::EEXIST);
        }
        self.devices[at].link.name = name.to_owned();
        late.into_iter().try_for_each(|change| self.change(target, index, change))
    }

    /// The device changes its namespace: closed, its addresses and routes flushed.
    fn put(&mut self, at: usize, target: u32) {
        let index = self.devices[at].link.index;
        self.addresses.retain(|(_, of, _)| *of != index);
        self.routes.retain(|(_, route)| !route.uses(index));
        self.devices[at].ns = target;
        self.close(at);
    }

    /// The device goes down.
    fn close(&mut self, at: usize) {
        if self.devices[at].link.up {
            self.reset_igbvf(at);
        }
        let link = &mut self.devices[at].link;
        (link.up, link.carrier) = (false, false);
    }

    /// igbvf resets itself on going down and on a change of MTU, and takes the address it has for its permanent one.
    fn reset_igbvf(&mut self, at: usize) {
        let pf = match self.devices[at].role {
            Role::Vf { pf, .. } => self.devices.iter().find(|device| device.link.index == pf),
            _ => None,
        };
        if pf.is_some_and(|pf| matches!(pf.role, Role::Pf { driver: Driver::Igb, .. })) {
            let link = &mut self.devices[at].link;
            link.perm_mac = link.mac;
        }
    }

    pub(super) fn kill(&mut self, ns: u32, events: u32) {
        self.devices.retain(|device| device.ns != ns || !matches!(device.role, Role::Plain));
        for at in 0..self.devices.len() {
            if self.devices[at].ns != ns {
                continue;
            }
            self.put(at, HOST);
            if self.name_taken(HOST, &self.devices[at].link.name, at) {
                self.devices[at].link.name = format!("dev{}", self.devices[at].link.index);
            }
            if let Role::Vf { absent, .. } = &mut self.devices[at].role {
                *absent = events;
            }
        }
    }

    /// Time passes until the next event; false if nothing is under way.
    pub(super) fn tick(&mut self) -> bool {
        let mut happened = false;
        for device in &mut self.devices {
            if let Role::Vf { resetting, reset_to, absent, .. } = &mut device.role {
                happened |= *absent > 0 || *resetting > 0;
                *absent = absent.saturating_sub(1);
                *resetting = resetting.saturating_sub(1);
                if *resetting == 0
                    && let Some(mac) = reset_to.take()
                {
                    device.link.mac = Some(mac);
                }
            }
        }
        happened
    }

    pub(super) fn view(&self, device: &Device) -> Link {
        let mut link = device.link.clone();
        if !self.reports_parent {
            link.parent_dev = None;
        }
        link
    }

    pub(super) fn snapshot(&self) -> Snapshot {
        let mut devices = self.devices.clone();
        for device in &mut devices {
            device.link.index = 0;
        }
        devices
    }
}

impl Device {
    pub(super) fn is_present(&self) -> bool {
        !matches!(self.role, Role::Vf { absent: 1.., .. } | Role::Vf { bound: false, .. })
    }
}
