//! Looking at a VF before anything is touched. Nothing but reads.

use std::net::IpAddr;

use sandbox::{Link, Links, MacAddr, PfReport, VfSetting};

use crate::original::{OriginalNetdev, OriginalPf};
use crate::sysfs::PfDevice;
use crate::wanted::RestorePolicy;
use crate::{Error, Original, PciAddress, Sysfs, VfDevice, Wanted};

/// Addresses of this rtm scope and above (link, host) are of no use outside a link.
const SCOPE_LINK: u8 = 253;

/// Finds the device at `pci` and refuses what `wanted` cannot have, as far as sysfs alone tells.
pub fn look(sysfs: &Sysfs, pci: PciAddress, wanted: &Wanted) -> Result<VfDevice, Error> {
    let device = sysfs.vf(pci)?;
    let refused = |driver: &str, what, why| Err(Error::Userspace { pci, driver: driver.to_owned(), what, why });
    match (device.userspace_driver(), &device.driver) {
        (Some(driver), _) if wanted.mtu.is_some() => {
            return refused(driver, "mtu", "there is no interface to set it on, the program in the pod sets its own");
        }
        (Some(driver), _) if wanted.mac.is_some() && device.pf.is_none() => {
            return refused(driver, "mac", "only its PF could set it, which is not visible in this machine");
        }
        (None, driver) if wanted.dummy_interface => {
            let driver = driver.clone().unwrap_or_else(|| "none".to_owned());
            return Err(Error::DummyForKernel { pci, driver });
        }
        _ => {}
    }
    // The address is the exception: a VF may have the right to set its own.
    let mut settings = wanted.pf_settings();
    settings.retain(|setting| !matches!(setting, VfSetting::Mac(_)));
    if device.pf.is_none() && !settings.is_empty() {
        let options: Vec<String> = settings.iter().map(ToString::to_string).collect();
        return Err(Error::NoPfHere { pci, option: options.join(", ") });
    }
    Ok(device)
}

/// Finds the VF at `pci` in the host and returns its whole state; refuses what `wanted` cannot have. Reads only, so the
/// caller can write its record before the first change. Errors name what was looked for, what was found and what to do.
pub async fn find<L: Links>(sysfs: &Sysfs, host: &L, pci: PciAddress, wanted: &Wanted) -> Result<Original, Error> {
    let device = look(sysfs, pci, wanted)?;
    let netdev = match device.userspace_driver() {
        Some(_) => None,
        None => {
            let link = interface(host, &device).await?;
            if device.pf.is_none() {
                refuse_the_hosts_own(host, pci, &link).await?;
            }
            let netdev = OriginalNetdev::of(link);
            Some(netdev.ok_or_else(|| Error::NoNetdev { pci, driver: device.driver.clone() })?)
        }
    };
    let pf = match &device.pf {
        None => None,
        Some(pf) => Some(at_pf(host, pci, pf, wanted).await?),
    };
    let mut original =
        Original { pci, driver: device.driver, pf, netdev, sets_mac: wanted.mac, dummy: wanted.dummy_interface };
    if wanted.restore_policy == RestorePolicy::Clean {
        original.make_clean();
    }
    Ok(original)
}

/// The VF's interface. sysfs shows the namespace of its mount; the socket's namespace is the one that counts.
async fn interface<L: Links>(host: &L, device: &VfDevice) -> Result<Link, Error> {
    let pci = device.pci;
    let no_netdev = || Error::NoNetdev { pci, driver: device.driver.clone() };
    let netdev = device.netdev.as_ref().ok_or_else(no_netdev)?;
    let found = host.by_index(netdev.index).await.map_err(|source| Error::Kernel { pci, source })?;
    found.ok_or_else(no_netdev)
}

/// The PF, and what it holds about the VF.
async fn at_pf<L: Links>(host: &L, pci: PciAddress, pf: &PfDevice, wanted: &Wanted) -> Result<OriginalPf, Error> {
    let index = pf.netdev(pci)?.index;
    let report = host.pf_report(index).await.map_err(|source| Error::Kernel { pci, source })?;
    let found = OriginalPf {
        pci: pf.pci,
        number: pf.number,
        driver: pf.driver.clone(),
        index,
        name: report.link.name.clone(),
        report: report.vf(pf.number).cloned(),
    };
    if found.report.is_none() && !wanted.pf_settings().is_empty() {
        let driver = found.driver_name();
        return Err(Error::NotReported { pci, number: found.number, pf: found.name, driver });
    }
    if let Some(mac) = wanted.mac {
        refuse_a_mac_in_use(pci, pf.number, &report, mac)?;
    }
    Ok(found)
}

/// Two functions of one PF with one address would steal each other's frames.
fn refuse_a_mac_in_use(pci: PciAddress, number: u32, report: &PfReport, mac: MacAddr) -> Result<(), Error> {
    let other = report.vfs.iter().find(|vf| vf.mac == Some(mac) && vf.number != number);
    let holder = match other {
        Some(vf) => format!("VF {} of PF {}", vf.number, report.link.name),
        None if report.link.mac == Some(mac) => format!("PF {}", report.link.name),
        None => return Ok(()),
    };
    Err(Error::MacInUse { mac: mac.to_string(), pci, holder })
}

/// A VF without a PF looks like any NIC: the one that the machine itself lives on must not go.
async fn refuse_the_hosts_own<L: Links>(host: &L, pci: PciAddress, link: &Link) -> Result<(), Error> {
    let kernel = |source| Error::Kernel { pci, source };
    let used = |found: String| Err(Error::UsedByHost { pci, name: link.name.clone(), found });
    if let Some(master) = link.master {
        let name = host.by_index(master).await.map_err(kernel)?.map_or(format!("link {master}"), |master| master.name);
        return used(format!("belongs to {name}"));
    }
    if !link.up {
        return Ok(());
    }
    let addresses = host.addresses(link.index).await.map_err(kernel)?;
    if let Some(address) = addresses.iter().find(|address| address.scope < SCOPE_LINK) {
        return used(format!("is up and has the address {}", address.net));
    }
    let routes = host.routes().await.map_err(kernel)?;
    // Every interface that is up has its link-local route.
    let other = |route: &&sandbox::Route| route.uses(link.index) && !is_link_local(route);
    if let Some(route) = routes.iter().find(other) {
        return used(format!("is up and has the route to {}", route.dst));
    }
    Ok(())
}

fn is_link_local(route: &sandbox::Route) -> bool {
    matches!(route.dst.addr(), IpAddr::V6(v6) if v6.is_unicast_link_local())
}
