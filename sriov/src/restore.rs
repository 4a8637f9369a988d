//! Giving a VF back, from whatever state it is in. One function for a failed ADD, DEL, GC and repair: it compares what
//! is with what was, changes what differs, tries everything, and reads back.

use nix::errno::Errno;
use sandbox::{IfName, Link, LinkChange, Links, VfReport, VfSetting};

use crate::attach::describe;
use crate::locate::{Place, in_namespace, locate};
use crate::mac::{self, change_when_ready, is_one_of};
use crate::plan::{altnames_back, link_changes_back, pf_settings_back};
use crate::{Error, Original, Sysfs};

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
        (Ok(Place::Pod(link)), Some(pod)) => bring_home(host, pod, original, link, &mut problems).await,
        (Ok(Place::Elsewhere(holder, link)), _) => bring_home(host, &holder, original, link, &mut problems).await,
        (Ok(Place::Host(link)), _) => Ok(Some(link)),
        (Ok(Place::NoNetdev), _) => mac::restore_at_pf(host, original, pf).await.map(|()| None),
        (Ok(Place::Pod(_) | Place::Unplugged), _) => Ok(None),
        (Err(error), _) => Err(error),
    };
    match home {
        Ok(Some(link)) => {
            if let Err(error) = host_side(host, original, pf, link, &mut problems).await {
                problems.push(error);
            }
        }
        Ok(None) => {}
        Err(error) => problems.push(error),
    }
    if problems.is_empty() { Ok(()) } else { Err(Error::NotRestored { pci: original.pci, problems }) }
}

/// The PF by its PCI address: it may have been renamed, or re-created with another index.
fn pf_index(sysfs: &Sysfs, original: &Original) -> u32 {
    let now = sysfs.vf(original.pci).ok();
    now.and_then(|device| device.pf_netdev().ok().map(|pf| pf.index)).unwrap_or(original.pf_index)
}

async fn report<L: Links>(host: &L, original: &Original, pf: u32) -> Result<Option<VfReport>, Error> {
    let report = host.pf_report(pf).await.map_err(|source| original.kernel(source))?;
    Ok(report.vf(original.number).cloned())
}

/// Everything that the PF holds, but for the address. One message, then one by one: here every setting counts, not
/// only the first that fails.
async fn pf_side<L: Links>(host: &L, original: &Original, pf: u32, problems: &mut Vec<Error>) -> Result<(), Error> {
    let Some(before) = &original.report else { return Ok(()) };
    let Some(now) = report(host, original, pf).await? else { return Err(not_reported(original)) };
    let settings = pf_settings_back(before, &now);
    if settings.is_empty() || host.set_vf(pf, original.number, &settings).await.is_ok() {
        return Ok(());
    }
    for setting in settings {
        if let Err(error) = host.set_vf(pf, original.number, &[setting]).await {
            problems.push(original.attribute(setting.to_string(), error, None));
        }
    }
    Ok(())
}

fn not_reported(original: &Original) -> Error {
    Error::NotReported {
        pci: original.pci,
        number: original.number,
        pf: original.pf_name.clone(),
        driver: original.pf_driver_name(),
    }
}

/// Moves the VF from the pod to the host under its own name; returns it as it arrived.
async fn bring_home<L: Links>(
    host: &L,
    pod: &L,
    original: &Original,
    link: Link,
    problems: &mut Vec<Error>,
) -> Result<Option<Link>, Error> {
    let kernel = |source| original.kernel(source);
    let name = match host.by_name(&original.name).await.map_err(kernel)? {
        None => original.name.clone(),
        Some(other) => {
            problems.push(name_taken(original, &other));
            spare_name(original)
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

fn name_taken(original: &Original, other: &Link) -> Error {
    Error::NameTaken { pci: original.pci, name: original.name.clone(), place: "the host", other: describe(other) }
}

/// What the kernel itself would call it (`dev%d` with its index).
fn spare_name(original: &Original) -> String {
    format!("dev{}", original.index)
}

/// The interface, now in the host.
async fn host_side<L: Links>(
    host: &L,
    original: &Original,
    pf: u32,
    link: Link,
    problems: &mut Vec<Error>,
) -> Result<(), Error> {
    let index = link.index;
    let (surplus, missing) = altnames_back(original, &link);
    for altname in surplus {
        tolerate(host.del_altname(index, altname).await, original, problems);
    }
    if link.name != original.name {
        rename(host, original, &link, problems).await?;
    }
    for altname in missing {
        tolerate(host.add_altname(index, altname).await, original, problems);
    }
    // Before the MTU: changing that resets igbvf, which then takes the address it has for its permanent one.
    if let Err(error) = mac::restore(host, original, pf, index).await {
        problems.push(error);
    }
    let changes = link_changes_back(original, &link);
    if !changes.is_empty() && host.change(index, &changes).await.is_err() {
        for change in changes {
            let what = change.what();
            if let Err(error) = host.change(index, &[change]).await {
                problems.push(original.attribute(what.to_owned(), error, None));
            }
        }
    }
    let now = host.by_index(index).await.map_err(|source| original.kernel(source))?;
    if let Some(now) = now.filter(|now| original.perm_mac.is_some() && now.perm_mac != original.perm_mac) {
        // A reset by way of another MTU, rather than by going up and down: nobody sees the interface up.
        // Below 1280 there is no IPv6, and above what it was may be more than the device can.
        let other = if now.mtu > 1280 { now.mtu - 1 } else { now.mtu + 1 };
        for mtu in [other, now.mtu] {
            tolerate(host.change(index, &[LinkChange::Mtu(mtu)]).await, original, problems);
        }
    }
    if link.up != original.up {
        tolerate(set_up(host, index, original.up).await, original, problems);
    }
    verify(host, original, pf, index).await
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
async fn rename<L: Links>(host: &L, original: &Original, link: &Link, problems: &mut Vec<Error>) -> Result<(), Error> {
    let kernel = |source| original.kernel(source);
    if let Some(other) = host.by_name(&original.name).await.map_err(kernel)?
        && other.index != link.index
    {
        if !problems.iter().any(|problem| matches!(problem, Error::NameTaken { .. })) {
            problems.push(name_taken(original, &other));
        }
        return Ok(());
    }
    let name = [LinkChange::Name(original.name.clone())];
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
async fn verify<L: Links>(host: &L, original: &Original, pf: u32, index: u32) -> Result<(), Error> {
    let pci = original.pci;
    let differs = |what, wanted: String, found: String| Err(Error::Unverified { pci, what, wanted, found });
    let found = host.by_index(index).await.map_err(|source| original.kernel(source))?;
    let Some(link) = found else { return differs("interface", original.name.clone(), "not there".to_owned()) };
    if link.name != original.name {
        return differs("name", original.name.clone(), link.name);
    }
    if link.mac != Some(original.mac) {
        return differs("mac", original.mac.to_string(), format!("{:?}", link.mac));
    }
    if link.up != original.up {
        return differs("up", original.up.to_string(), link.up.to_string());
    }
    let left: Vec<&str> = link_changes_back(original, &link).iter().map(LinkChange::what).collect();
    if !left.is_empty() {
        return differs("interface", "as before".to_owned(), format!("different in {}", left.join(", ")));
    }
    let (surplus, missing) = altnames_back(original, &link);
    if !surplus.is_empty() || !missing.is_empty() {
        return differs("alternative names", original.altnames.join(", "), link.altnames.join(", "));
    }
    let Some(before) = &original.report else { return Ok(()) };
    let Some(now) = report(host, original, pf).await? else { return Err(not_reported(original)) };
    let left: Vec<String> = pf_settings_back(before, &now).iter().map(VfSetting::to_string).collect();
    if !left.is_empty() {
        return differs("PF's settings", left.join(", "), "different".to_owned());
    }
    if now.mac != before.mac {
        return differs("mac at the PF", format!("{:?}", before.mac), format!("{:?}", now.mac));
    }
    Ok(())
}
