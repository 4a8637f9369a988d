//! Giving a VF back, from whatever state it is in. One function for a failed ADD, DEL, GC and repair: it compares what
//! is with what was, changes what differs, tries everything, and reads back.

use nix::errno::Errno;
use sandbox::{IfName, Link, LinkChange, Links, MacAddr, VfReport, VfSetting};

use crate::attach::describe;
use crate::locate::{Place, in_namespace, locate};
use crate::mac::{self, change_when_ready, is_one_of};
use crate::original::OriginalNetdev;
use crate::plan::{altnames_back, link_changes_back, pf_settings_back};
use crate::{Error, Original, Sysfs, userspace};

/// Puts the VF back into the host and into its original state. `pod` is the namespace it may be in, none if that is
/// gone. Idempotent; a VF that was unplugged counts as restored. Whatever fails, the rest is tried: the error
/// [`Error::NotRestored`] lists all problems, and calling again later continues from there.
pub async fn restore<L: Links>(host: &L, pod: Option<&L>, original: &Original, sysfs: &Sysfs) -> Result<(), Error> {
    restore_from_anywhere(host, pod, original, sysfs, async || Ok(None)).await
}

/// The same for a VF that may have gone astray: `elsewhere` is asked for the namespace that has it if neither the pod
/// nor the host does. Its [`Error::Foreign`] says that the VF is in use there by somebody else: then nothing is touched.
pub async fn restore_from_anywhere<L: Links>(
    host: &L,
    pod: Option<&L>,
    original: &Original,
    sysfs: &Sysfs,
    elsewhere: impl AsyncFn() -> Result<Option<L>, Error>,
) -> Result<(), Error> {
    let Some(netdev) = &original.netdev else { return userspace::restore(host, pod, original, sysfs).await };
    let place = locate(host, pod, original, sysfs, elsewhere).await;
    match place {
        Ok(Place::Unplugged) => return Ok(()),
        Err(error @ Error::Foreign { .. }) => {
            return Err(Error::NotRestored { pci: original.pci, problems: vec![error] });
        }
        _ => {}
    }
    let mut problems = Vec::new();
    let pf = pf_index(sysfs, original);
    // The PF first: some drivers refuse the VF's own changes while trust is off or the address is locked.
    if let Err(error) = pf_side(host, original, pf, &mut problems).await {
        problems.push(error);
    }
    let home = match (place, pod) {
        (Ok(Place::Pod(link)), Some(pod)) => bring_home(host, pod, (original, netdev), link, &mut problems).await,
        (Ok(Place::Elsewhere(holder, link)), _) => {
            bring_home(host, &holder, (original, netdev), link, &mut problems).await
        }
        (Ok(Place::Host(link)), _) => Ok(Some(link)),
        (Ok(Place::NoNetdev), _) => userspace::mac_back(host, original, pf, None).await.map(|()| None),
        (Ok(Place::Pod(_) | Place::Unplugged), _) => Ok(None),
        (Err(error), _) => Err(error),
    };
    match home {
        Ok(Some(link)) => {
            if let Err(error) = host_side(host, (original, netdev), pf, link, &mut problems).await {
                problems.push(error);
            }
        }
        Ok(None) => {}
        Err(error) => problems.push(error),
    }
    if problems.is_empty() { Ok(()) } else { Err(Error::NotRestored { pci: original.pci, problems }) }
}

/// The PF by its PCI address: it may have been renamed, or re-created with another index. None if the VF has none here.
pub(crate) fn pf_index(sysfs: &Sysfs, original: &Original) -> Option<u32> {
    let before = original.pf.as_ref()?;
    let now = sysfs.vf(original.pci).ok().and_then(|device| device.pf);
    now.and_then(|pf| pf.netdev(original.pci).ok().map(|pf| pf.index)).or(Some(before.index))
}

/// What the PF says of the VF now, and what it said before.
pub(crate) async fn reports<L: Links>(
    host: &L,
    original: &Original,
    pf: Option<u32>,
) -> Result<Option<(VfReport, VfReport)>, Error> {
    let (Some(index), Some(pf), Some(before)) = (pf, &original.pf, original.report()) else { return Ok(None) };
    let report = host.pf_report(index).await.map_err(|source| original.kernel(source))?;
    let now = report.vf(pf.number).cloned().ok_or_else(|| original.not_reported(pf))?;
    Ok(Some((now, before.clone())))
}

/// Everything that the PF holds, but for the address. One message, then one by one: here every setting counts, not
/// only the first that fails.
pub(crate) async fn pf_side<L: Links>(
    host: &L,
    original: &Original,
    pf: Option<u32>,
    problems: &mut Vec<Error>,
) -> Result<(), Error> {
    let Some((now, before)) = reports(host, original, pf).await? else { return Ok(()) };
    let (Some(pf), number) = (pf, before.number) else { return Ok(()) };
    let settings = pf_settings_back(&before, &now);
    if settings.is_empty() || host.set_vf(pf, number, &settings).await.is_ok() {
        return Ok(());
    }
    for setting in settings {
        if let Err(error) = host.set_vf(pf, number, &[setting]).await {
            problems.push(original.attribute(setting.to_string(), error, None));
        }
    }
    Ok(())
}

/// The settings at the PF that are not as before, the address apart.
pub(crate) fn unrestored(before: &VfReport, now: &VfReport) -> Option<String> {
    let left: Vec<String> = pf_settings_back(before, now).iter().map(VfSetting::to_string).collect();
    (!left.is_empty()).then(|| left.join(", "))
}

/// Moves the VF from the pod to the host under its own name; returns it as it arrived.
async fn bring_home<L: Links>(
    host: &L,
    pod: &L,
    (original, netdev): (&Original, &OriginalNetdev),
    link: Link,
    problems: &mut Vec<Error>,
) -> Result<Option<Link>, Error> {
    let kernel = |source| original.kernel(source);
    let name = match host.by_name(&netdev.name).await.map_err(kernel)? {
        None => netdev.name.clone(),
        Some(other) => {
            problems.push(name_taken(original, netdev, &other));
            spare_name(netdev)
        }
    };
    // One of its alternative names may be the name it is to get, or be taken in the host; both would stop the move.
    for altname in &link.altnames {
        if *altname == name || host.by_name(altname).await.map_err(kernel)?.is_some() {
            pod.del_altname(link.index, altname).await.map_err(kernel)?;
        }
    }
    let name = IfName::try_from(name).map_err(kernel)?;
    let moved = pod.move_to(link.index, host, &name).await;
    let arrived = in_namespace(host, original).await.map_err(kernel)?;
    match (moved, arrived) {
        (_, Some(link)) => Ok(Some(link)),
        // Gone from the pod in the meantime: its namespace died while we were at it.
        (Err(error), None) => Err(kernel(error)),
        (Ok(()), None) => Err(Error::NotBack { pci: original.pci, waited_ms: 0 }),
    }
}

fn name_taken(original: &Original, netdev: &OriginalNetdev, other: &Link) -> Error {
    Error::NameTaken { pci: original.pci, name: netdev.name.clone(), place: "the host", other: describe(other) }
}

/// What the kernel itself would call it (`dev%d` with its index).
fn spare_name(netdev: &OriginalNetdev) -> String {
    format!("dev{}", netdev.index)
}

/// The interface, now in the host.
async fn host_side<L: Links>(
    host: &L,
    (original, netdev): (&Original, &OriginalNetdev),
    pf: Option<u32>,
    link: Link,
    problems: &mut Vec<Error>,
) -> Result<(), Error> {
    let index = link.index;
    let (surplus, missing) = altnames_back(netdev, &link);
    for altname in surplus {
        tolerate(host.del_altname(index, altname).await, original, problems);
    }
    if link.name != netdev.name {
        rename(host, (original, netdev), &link, problems).await?;
    }
    for altname in missing {
        tolerate(host.add_altname(index, altname).await, original, problems);
    }
    // Before the MTU: changing that resets igbvf, which then takes the address it has for its permanent one.
    if let Err(error) = mac::restore(host, original, pf, index).await {
        problems.push(error);
    }
    let changes = link_changes_back(netdev, &link);
    if !changes.is_empty() && host.change(index, &changes).await.is_err() {
        for change in changes {
            let what = change.what();
            if let Err(error) = host.change(index, &[change]).await {
                problems.push(original.attribute(what.to_owned(), error, None));
            }
        }
    }
    if netdev.perm_mac.is_some() {
        refresh_permanent_mac(host, original, index, netdev.perm_mac, problems).await?;
    }
    if link.up != netdev.up {
        tolerate(set_up(host, index, netdev.up).await, original, problems);
    }
    verify(host, (original, netdev), pf, index).await
}

/// igbvf took an address of ours for its permanent one, and takes the one it has now at its next reset. One by way of
/// another MTU, rather than by going up and down: nobody sees the interface up.
pub(crate) async fn refresh_permanent_mac<L: Links>(
    host: &L,
    original: &Original,
    index: u32,
    wanted: Option<MacAddr>,
    problems: &mut Vec<Error>,
) -> Result<(), Error> {
    let now = host.by_index(index).await.map_err(|source| original.kernel(source))?;
    if let Some(now) = now.filter(|now| now.perm_mac != wanted) {
        // Below 1280 there is no IPv6, and above what it was may be more than the device can.
        let other = if now.mtu > 1280 { now.mtu - 1 } else { now.mtu + 1 };
        for mtu in [other, now.mtu] {
            tolerate(host.change(index, &[LinkChange::Mtu(mtu)]).await, original, problems);
        }
    }
    Ok(())
}

async fn set_up<L: Links>(host: &L, index: u32, up: bool) -> Result<(), sandbox::Error> {
    let not_ready = [Errno::EAGAIN, Errno::EBUSY, Errno::EADDRNOTAVAIL];
    change_when_ready(host, index, &[LinkChange::Up(up)], &not_ready).await
}

fn tolerate(result: Result<(), sandbox::Error>, original: &Original, problems: &mut Vec<Error>) {
    if let Err(source) = result {
        problems.push(original.kernel(source));
    }
}

/// It came back by itself, under the pod's name or one of the kernel's. Kernels before 6.2 refuse to rename what is up.
async fn rename<L: Links>(
    host: &L,
    (original, netdev): (&Original, &OriginalNetdev),
    link: &Link,
    problems: &mut Vec<Error>,
) -> Result<(), Error> {
    let kernel = |source| original.kernel(source);
    if let Some(other) = host.by_name(&netdev.name).await.map_err(kernel)?
        && other.index != link.index
    {
        if !problems.iter().any(|problem| matches!(problem, Error::NameTaken { .. })) {
            problems.push(name_taken(original, netdev, &other));
        }
        return Ok(());
    }
    let name = [LinkChange::Name(netdev.name.clone())];
    let renamed = match host.change(link.index, &name).await {
        Err(error) if is_one_of(&error, &[Errno::EBUSY]) && link.up => {
            host.change(link.index, &[LinkChange::Up(false)]).await.map_err(kernel)?;
            let renamed = host.change(link.index, &name).await;
            host.change(link.index, &[LinkChange::Up(true)]).await.map_err(kernel)?;
            renamed
        }
        other => other,
    };
    renamed.map_err(kernel)
}

/// Nothing is believed that was not read back.
async fn verify<L: Links>(
    host: &L,
    (original, netdev): (&Original, &OriginalNetdev),
    pf: Option<u32>,
    index: u32,
) -> Result<(), Error> {
    let pci = original.pci;
    let differs = |what, wanted: String, found: String| Err(Error::Unverified { pci, what, wanted, found });
    let found = host.by_index(index).await.map_err(|source| original.kernel(source))?;
    let Some(link) = found else { return differs("interface", netdev.name.clone(), "not there".to_owned()) };
    if link.name != netdev.name {
        return differs("name", netdev.name.clone(), link.name);
    }
    if link.mac != Some(netdev.mac) {
        return differs("mac", netdev.mac.to_string(), format!("{:?}", link.mac));
    }
    if link.up != netdev.up {
        return differs("up", netdev.up.to_string(), link.up.to_string());
    }
    let left: Vec<&str> = link_changes_back(netdev, &link).iter().map(LinkChange::what).collect();
    if !left.is_empty() {
        return differs("interface", "as before".to_owned(), format!("different in {}", left.join(", ")));
    }
    let (surplus, missing) = altnames_back(netdev, &link);
    if !surplus.is_empty() || !missing.is_empty() {
        return differs("alternative names", netdev.altnames.join(", "), link.altnames.join(", "));
    }
    let Some((now, before)) = reports(host, original, pf).await? else { return Ok(()) };
    if let Some(left) = unrestored(&before, &now) {
        return differs("PF's settings", left, "different".to_owned());
    }
    if !mac::is_back(original, link.mac, now.mac) {
        return differs("mac at the PF", format!("{:?}", before.mac), format!("{:?}", now.mac));
    }
    Ok(())
}
