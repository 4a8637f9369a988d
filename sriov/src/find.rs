//! Looking at a VF before anything is touched. Two messages, both reads.

use sandbox::{Links, MacAddr, PfReport};

use crate::{Error, Original, PciAddress, Sysfs, VfDevice, Wanted};

/// Finds the VF at `pci` in the host and returns its whole state; refuses what `wanted` cannot have. Reads only, so the
/// caller can write its record before the first change. Errors name what was looked for, what was found and what to do.
pub async fn find<L: Links>(sysfs: &Sysfs, host: &L, pci: PciAddress, wanted: &Wanted) -> Result<Original, Error> {
    let device = sysfs.vf(pci)?;
    if let Some(driver) = device.userspace_driver() {
        return Err(Error::Userspace { pci, driver: driver.to_owned() });
    }
    let no_netdev = || Error::NoNetdev { pci, driver: device.driver.clone() };
    let netdev = device.netdev.as_ref().ok_or_else(no_netdev)?;
    let pf = device.pf_netdev()?;
    let kernel = |source| Error::Kernel { pci, source };
    // sysfs shows the namespace of its mount; the socket's namespace is the one that counts.
    let link = host.by_index(netdev.index).await.map_err(kernel)?.ok_or_else(no_netdev)?;
    let mac = link.mac.ok_or_else(no_netdev)?;
    let report = host.pf_report(pf.index).await.map_err(kernel)?;
    let original = Original {
        pci,
        pf_pci: device.pf,
        number: device.number,
        driver: device.driver.clone(),
        pf_driver: device.pf_driver.clone(),
        pf_index: pf.index,
        pf_name: report.link.name.clone(),
        index: link.index,
        name: link.name,
        altnames: link.altnames,
        alias: link.alias,
        mac,
        perm_mac: link.perm_mac,
        mtu: link.mtu,
        txqlen: link.txqlen,
        up: link.up,
        promisc: link.promisc,
        allmulti: link.allmulti,
        report: report.vf(device.number).cloned(),
        sets_mac: wanted.mac,
    };
    if original.report.is_none() && !wanted.pf_settings().is_empty() {
        let (pf, driver) = (original.pf_name.clone(), original.pf_driver_name());
        return Err(Error::NotReported { pci, number: original.number, pf, driver });
    }
    if let Some(mac) = wanted.mac {
        refuse_a_mac_in_use(&device, &report, mac)?;
    }
    Ok(original)
}

/// Two functions of one PF with one address would steal each other's frames.
fn refuse_a_mac_in_use(device: &VfDevice, report: &PfReport, mac: MacAddr) -> Result<(), Error> {
    let other = report.vfs.iter().find(|vf| vf.mac == Some(mac) && vf.number != device.number);
    let holder = match other {
        Some(vf) => format!("VF {} of PF {}", vf.number, report.link.name),
        None if report.link.mac == Some(mac) => format!("PF {}", report.link.name),
        None => return Ok(()),
    };
    Err(Error::MacInUse { mac: mac.to_string(), pci: device.pci, holder })
}
