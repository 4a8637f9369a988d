//! The trait on the model.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use nix::errno::Errno;

use super::model::{Model, Role};
use crate::{Address, Error, IfName, Link, LinkChange, Links, NewAddress, PfReport, Route, Sysctl, VfSetting};

/// The links of one namespace of a [`super::FakeKernel`].
#[derive(Debug, Clone)]
pub struct FakeLinks {
    model: Rc<RefCell<Model>>,
    ns: u32,
}

fn kernel(step: &str, object: &str, errno: Errno) -> Error {
    Error::Kernel { step: step.to_owned(), object: object.to_owned(), source: io::Error::from(errno), detail: None }
}

impl FakeLinks {
    pub(super) fn new(model: Rc<RefCell<Model>>, ns: u32) -> Self {
        Self { model, ns }
    }

    /// One message: counted, perhaps made to fail, otherwise carried out.
    fn send<T>(&self, step: &str, object: &str, act: impl FnOnce(&mut Model) -> Result<T, Errno>) -> Result<T, Error> {
        let mut model = self.model.borrow_mut();
        let done = match model.message(format!("{step} {object}")) {
            None => act(&mut model),
            Some((errno, takes_effect)) => {
                if takes_effect {
                    // What else goes wrong does not matter: the answer is the fault's.
                    let _ = act(&mut model);
                }
                Err(errno)
            }
        };
        done.map_err(|errno| kernel(step, object, errno))
    }

    fn find(&self, step: &str, object: &str, which: impl Fn(&Link) -> bool) -> Result<Option<Link>, Error> {
        self.send(step, object, |model| {
            let here = model.devices.iter().filter(|device| device.ns == self.ns && device.is_present());
            Ok(here.map(|device| model.view(device)).find(which))
        })
    }
}

impl Links for FakeLinks {
    async fn list(&self) -> Result<Vec<Link>, Error> {
        self.send("list links", "all", |model| {
            let here = model.devices.iter().filter(|device| device.ns == self.ns && device.is_present());
            Ok(here.map(|device| model.view(device)).collect())
        })
    }

    async fn by_index(&self, index: u32) -> Result<Option<Link>, Error> {
        self.find("read a link", &format!("link {index}"), |link| link.index == index)
    }

    async fn by_name(&self, name: &str) -> Result<Option<Link>, Error> {
        self.find("read a link", name, |link| link.name == name || link.altnames.iter().any(|a| a == name))
    }

    async fn by_parent(&self, device: &str) -> Result<Vec<Link>, Error> {
        let mut links = self.list().await?;
        links.retain(|link| link.parent_dev.as_deref() == Some(device));
        Ok(links)
    }

    async fn pf_report(&self, pf: u32) -> Result<PfReport, Error> {
        self.send("read a PF and its VFs", &format!("link {pf}"), |model| {
            let device = &model.devices[model.at(self.ns, pf)?];
            let vfs = match &device.role {
                Role::Pf { vfs, .. } => vfs.clone(),
                _ => Vec::new(),
            };
            Ok(PfReport { link: model.view(device), vfs })
        })
    }

    async fn set_vf(&self, pf: u32, vf: u32, settings: &[VfSetting]) -> Result<(), Error> {
        let mut settings = settings.to_vec();
        settings.sort_by_key(VfSetting::kernel_order);
        let text: Vec<String> = settings.iter().map(ToString::to_string).collect();
        let object = format!("VF {vf} of link {pf}");
        let half_way = self.model.borrow().fault.is_some_and(|fault| fault.takes_effect);
        self.send(&format!("set {}", text.join(", ")), &object, |model| {
            let step = model.messages.len() as u32;
            let faulty = half_way && model.fault.is_some_and(|fault| fault.step == step);
            let take = if faulty { 1 } else { settings.len() };
            settings.iter().take(take).try_for_each(|setting| model.set_vf(self.ns, pf, vf, setting))
        })
    }

    async fn move_with(&self, index: u32, target: &Self, name: &IfName, changes: &[LinkChange]) -> Result<(), Error> {
        let step = format!("move to {} as {name}{}", target.ns, listed(changes, ", "));
        self.send(&step, &format!("link {index}"), |model| {
            model.move_with(self.ns, index, target.ns, name.as_str(), changes)
        })
    }

    async fn change(&self, index: u32, changes: &[LinkChange]) -> Result<(), Error> {
        self.send(&format!("set{}", listed(changes, " ")), &format!("link {index}"), |model| {
            changes.iter().try_for_each(|change| model.change(self.ns, index, change))
        })
    }

    async fn change_named(&self, name: &IfName, changes: &[LinkChange]) -> Result<(), Error> {
        self.send(&format!("set{}", listed(changes, " ")), name.as_str(), |model| {
            let named = |device: &&super::Device| {
                device.ns == self.ns && device.is_present() && device.link.name == name.as_str()
            };
            let index = model.devices.iter().find(named).ok_or(Errno::ENODEV)?.link.index;
            changes.iter().try_for_each(|change| model.change(self.ns, index, change))
        })
    }

    async fn add_altname(&self, index: u32, name: &str) -> Result<(), Error> {
        self.send(&format!("add the alternative name {name}"), &format!("link {index}"), |model| {
            let at = model.at(self.ns, index)?;
            let taken = |d: &super::Device| d.link.name == name || d.link.altnames.iter().any(|a| a == name);
            if model.devices.iter().any(|device| device.ns == self.ns && taken(device)) {
                return Err(Errno::EEXIST);
            }
            model.devices[at].link.altnames.push(name.to_owned());
            Ok(())
        })
    }

    async fn del_altname(&self, index: u32, name: &str) -> Result<(), Error> {
        self.send(&format!("delete the alternative name {name}"), &format!("link {index}"), |model| {
            let at = model.at(self.ns, index)?;
            let altnames = &mut model.devices[at].link.altnames;
            let position = altnames.iter().position(|altname| altname == name).ok_or(Errno::ENOENT)?;
            altnames.remove(position);
            Ok(())
        })
    }

    async fn add_dummy(&self, name: &str) -> Result<(), Error> {
        self.send("make a dummy link", name, |model| model.add_dummy(self.ns, name))
    }

    async fn del_link(&self, index: u32) -> Result<(), Error> {
        self.send("delete the link", &format!("link {index}"), |model| model.del_link(self.ns, index))
    }

    async fn addresses(&self, index: u32) -> Result<Vec<Address>, Error> {
        self.send("read addresses", &format!("link {index}"), |model| {
            let of_link = model.addresses.iter().filter(|(ns, of, _)| (*ns, *of) == (self.ns, index));
            Ok(of_link.map(|(.., address)| address.clone()).collect())
        })
    }

    async fn all_addresses(&self) -> Result<Vec<(u32, Address)>, Error> {
        self.send("read addresses", "all links", |model| {
            let here = model.addresses.iter().filter(|(ns, ..)| *ns == self.ns);
            Ok(here.map(|(_, of, address)| (*of, address.clone())).collect())
        })
    }

    async fn add_address(&self, index: u32, address: &NewAddress) -> Result<(), Error> {
        self.send(&format!("add address {}", address.net), &format!("link {index}"), |model| {
            model.at(self.ns, index)?;
            if model.addresses.iter().any(|(ns, of, a)| (*ns, *of, a.net) == (self.ns, index, address.net)) {
                return Err(Errno::EEXIST);
            }
            let new = Address { net: address.net, scope: 0, tentative: false, optimistic: false, dad_failed: false };
            model.addresses.push((self.ns, index, new));
            Ok(())
        })
    }

    async fn del_address(&self, index: u32, address: &Address) -> Result<(), Error> {
        self.send(&format!("delete address {}", address.net), &format!("link {index}"), |model| {
            let before = model.addresses.len();
            model.addresses.retain(|(ns, of, a)| (*ns, *of, a.net) != (self.ns, index, address.net));
            if model.addresses.len() == before { Err(Errno::EADDRNOTAVAIL) } else { Ok(()) }
        })
    }

    async fn routes(&self) -> Result<Vec<Route>, Error> {
        self.send("list routes", "all", |model| {
            Ok(model.routes.iter().filter(|(ns, _)| *ns == self.ns).map(|(_, route)| route.clone()).collect())
        })
    }

    async fn add_route(&self, route: &Route) -> Result<(), Error> {
        self.send("add a route", &route.dst.to_string(), |model| {
            if model.routes.iter().any(|(ns, have)| *ns == self.ns && same_slot(have, route)) {
                return Err(Errno::EEXIST);
            }
            model.routes.push((self.ns, route.clone()));
            Ok(())
        })
    }

    async fn add_route_beside(&self, route: &Route) -> Result<(), Error> {
        self.send("add a route", &route.dst.to_string(), |model| {
            if model.routes.iter().any(|(ns, have)| *ns == self.ns && have == route) {
                return Err(Errno::EEXIST);
            }
            model.routes.insert(0, (self.ns, route.clone()));
            Ok(())
        })
    }

    async fn del_route(&self, route: &Route) -> Result<(), Error> {
        self.send("delete a route", &route.dst.to_string(), |model| {
            let before = model.routes.len();
            model.routes.retain(|(ns, have)| *ns != self.ns || have != route);
            if model.routes.len() == before { Err(Errno::ESRCH) } else { Ok(()) }
        })
    }

    async fn write_sysctls(&self, sysctls: &[Sysctl]) -> Result<(), Error> {
        let mut model = self.model.borrow_mut();
        for Sysctl { key, value, .. } in sysctls {
            model.sysctls.insert((self.ns, key.clone()), value.clone());
        }
        Ok(())
    }

    async fn subscribe(&self) -> Result<(), Error> {
        Ok(())
    }

    async fn link_event(&self, _within: Duration) -> Result<bool, Error> {
        Ok(self.model.borrow_mut().tick())
    }
}

fn listed(changes: &[LinkChange], before: &str) -> String {
    changes.iter().flat_map(|change| [before, change.what()]).collect()
}

/// Two routes that cannot stand side by side.
fn same_slot(a: &Route, b: &Route) -> bool {
    (a.dst, a.table, a.priority) == (b.dst, b.table, b.priority)
}
