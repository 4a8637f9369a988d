//! Putting a VF into a pod.

use nix::errno::Errno;
use sandbox::{IfName, Link, LinkChange, Links, MacAddr, VfSetting, announcing_sysctls};

use crate::locate::{Patience, in_namespace};
use crate::mac::{NOT_READY, READY, change_when_ready, ensure_own, is_one_of, set_own_first, when_ready};
use crate::original::OriginalNetdev;
use crate::{Error, Original, Wanted};

/// A VF in its pod: up, with its name, without addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attached {
    /// The interface as it was read back.
    pub link: Link,
    /// Its address.
    pub mac: MacAddr,
    /// In bytes.
    pub mtu: u32,
}

/// Gives the VF what is wanted and moves it into the pod as `name`. The caller has recorded `original` before and calls
/// [`crate::restore`] with it after any error: this function stops where it failed and leaves undoing to the one
/// function that can. The order: the VF's own address (before the PF's, which may lock it), one message for all settings
/// through the PF, alternative names that are in the way, one message for move, name, MTU and `alias`, sysctls, up. Four
/// messages for a VF without alternative names and with the address that it has.
pub async fn attach<L: Links>(
    host: &L,
    pod: &L,
    original: &Original,
    wanted: &Wanted,
    name: &IfName,
    alias: Option<&str>,
) -> Result<Attached, Error> {
    let kernel = |source| original.kernel(source);
    let netdev = original.interface()?;
    if let Some(mac) = wanted.mac {
        set_own_first(host, original, netdev.index, mac).await?;
    }
    set_through_pf(host, original, &wanted.pf_settings()).await?;
    clear_the_way(host, pod, original, netdev, name).await?;
    let mut changes = Vec::new();
    changes.extend(wanted.mtu.filter(|mtu| *mtu != netdev.mtu).map(LinkChange::Mtu));
    changes.extend(alias.map(|text| LinkChange::Alias(text.to_owned())));
    move_into(host, pod, (original, netdev.index), name, &changes).await?;
    pod.write_sysctls(&announcing_sysctls(name)).await.map_err(kernel)?;
    if let Some(mac) = wanted.mac {
        let link = arrived(pod, original, name).await?;
        ensure_own(pod, original, &link, mac).await?;
    }
    // By name: after a move the index may be another interface's.
    let up = async || pod.change_named(name, &[LinkChange::Up(true)]).await;
    when_ready(pod, &NOT_READY, up).await.map_err(kernel)?;
    verify(host, pod, original, wanted, name, alias).await
}

pub(crate) fn taken(original: &Original, name: &str, place: &'static str, other: &Link) -> Error {
    Error::NameTaken { pci: original.pci, name: name.to_owned(), place, other: describe(other) }
}

/// An interface in a message.
pub(crate) fn describe(link: &Link) -> String {
    match &link.parent_dev {
        Some(device) => format!("{}, index {}, device {device}", link.name, link.index),
        None => format!("{}, index {}", link.name, link.index),
    }
}

/// All settings in one message; if the kernel refuses it, one by one, because only so does it tell which it was.
/// Without a PF there are none: [`crate::find`] refused them, but for an address, which the VF may set itself.
pub(crate) async fn set_through_pf<L: Links>(
    host: &L,
    original: &Original,
    settings: &[VfSetting],
) -> Result<(), Error> {
    let Some((pf, number)) = original.pf.as_ref().map(|pf| (pf.index, pf.number)) else { return Ok(()) };
    let Some(first) = settings.first() else { return Ok(()) };
    let Err(error) = host.set_vf(pf, number, settings).await else { return Ok(()) };
    if error.errno().is_none() {
        return Err(original.kernel(error));
    }
    if settings.len() == 1 {
        return Err(refused(host, original, pf, first, error).await);
    }
    for setting in settings {
        if let Err(error) = host.set_vf(pf, number, &[*setting]).await {
            return Err(refused(host, original, pf, setting, error).await);
        }
    }
    Ok(())
}

/// Names the culprit, and the cause where it can be known.
async fn refused<L: Links>(
    host: &L,
    original: &Original,
    pf: u32,
    setting: &VfSetting,
    error: sandbox::Error,
) -> Error {
    let pf = host.by_index(pf).await;
    let hint = match pf {
        Ok(Some(pf)) if !pf.up => Some(format!("the PF is down: bring it up (ip link set {} up)", pf.name)),
        _ => None,
    };
    original.attribute(setting.to_string(), error, hint)
}

/// Deletes those alternative names of the VF that would stop the move: the wanted name itself, and what the pod already
/// has. [`crate::restore`] gives them back.
async fn clear_the_way<L: Links>(
    host: &L,
    pod: &L,
    original: &Original,
    netdev: &OriginalNetdev,
    name: &IfName,
) -> Result<(), Error> {
    let kernel = |source| original.kernel(source);
    for altname in &netdev.altnames {
        if altname == name.as_str() || pod.by_name(altname).await.map_err(kernel)?.is_some() {
            host.del_altname(netdev.index, altname).await.map_err(kernel)?;
        }
    }
    Ok(())
}

/// Moves, renames and changes in one message.
async fn move_into<L: Links>(
    host: &L,
    pod: &L,
    (original, index): (&Original, u32),
    name: &IfName,
    changes: &[LinkChange],
) -> Result<(), Error> {
    let kernel = |source| original.kernel(source);
    let Err(error) = host.move_with(index, pod, name, changes).await else { return Ok(()) };
    if let Some(link) = in_namespace(pod, original).await.map_err(kernel)? {
        finish_move(pod, original, &link, name, changes).await?;
    }
    match pod.by_name(name.as_str()).await.map_err(kernel)? {
        Some(link) if original.is(&link) => Ok(()),
        Some(other) => Err(taken(original, name.as_str(), "the pod", &other)),
        None => Err(kernel(error)),
    }
}

/// The move has happened although the message failed, and stopped at any of the changes or at the name: what is left to
/// do, one by one, which tells what it was.
async fn finish_move<L: Links>(
    pod: &L,
    original: &Original,
    link: &Link,
    name: &IfName,
    changes: &[LinkChange],
) -> Result<(), Error> {
    let rename = (link.name != name.as_str()).then(|| LinkChange::Name(name.to_string()));
    for change in changes.iter().chain(&rename) {
        let done = change_when_ready(pod, link.index, std::slice::from_ref(change), &NOT_READY).await;
        match (change, done) {
            (_, Ok(())) => {}
            // Whose it is will be said.
            (LinkChange::Name(_), Err(error)) if is_one_of(&error, &[Errno::EEXIST]) => {}
            (LinkChange::Mtu(mtu), Err(error)) => return Err(original.attribute(format!("mtu {mtu}"), error, None)),
            (other, Err(error)) => return Err(original.attribute(other.what().to_owned(), error, None)),
        }
    }
    Ok(())
}

/// The VF in the pod under its name.
async fn arrived<L: Links>(pod: &L, original: &Original, name: &IfName) -> Result<Link, Error> {
    match pod.by_name(name.as_str()).await.map_err(|source| original.kernel(source))? {
        Some(link) if original.is(&link) => Ok(link),
        Some(other) => Err(taken(original, name.as_str(), "the pod", &other)),
        None => Err(Error::Unverified {
            pci: original.pci,
            what: "interface",
            wanted: format!("{name} in the pod"),
            found: "not there".to_owned(),
        }),
    }
}

/// An address that the PF, if there is one, does not have as wanted (yet).
pub(crate) async fn mac_differs_at_pf<L: Links>(
    host: &L,
    original: &Original,
    wanted: MacAddr,
) -> Result<Option<Error>, Error> {
    let Some(pf) = &original.pf else { return Ok(None) };
    let report = host.pf_report(pf.index).await.map_err(|source| original.kernel(source))?;
    let found = report.vf(pf.number).and_then(|vf| vf.mac);
    if found == Some(wanted) {
        return Ok(None);
    }
    let (wanted, found) = (wanted.to_string(), format!("{found:?}"));
    Ok(Some(Error::Unverified { pci: original.pci, what: "mac at the PF", wanted, found }))
}

/// Reads the VF back, and its PF too if an address was asked for: some drivers apply it after the answer.
async fn verify<L: Links>(
    host: &L,
    pod: &L,
    original: &Original,
    wanted: &Wanted,
    name: &IfName,
    alias: Option<&str>,
) -> Result<Attached, Error> {
    let kernel = |source| original.kernel(source);
    let unverified = |what, wanted: String, found: String| Error::Unverified { pci: original.pci, what, wanted, found };
    let mut patience = Patience::new(READY);
    pod.subscribe().await.map_err(kernel)?;
    loop {
        let link = arrived(pod, original, name).await?;
        let mac = link.mac.unwrap_or(MacAddr::ZERO);
        let problem = if !link.up {
            Some(unverified("state", "up".to_owned(), "down".to_owned()))
        } else if let Some(mtu) = wanted.mtu.filter(|mtu| *mtu != link.mtu) {
            Some(unverified("mtu", mtu.to_string(), link.mtu.to_string()))
        } else if let Some(alias) = alias.filter(|alias| link.alias.as_deref() != Some(*alias)) {
            Some(unverified("alias", alias.to_owned(), link.alias.clone().unwrap_or_default()))
        } else if let Some(wanted) = wanted.mac {
            if mac != wanted {
                Some(unverified("mac", wanted.to_string(), mac.to_string()))
            } else {
                mac_differs_at_pf(host, original, wanted).await?
            }
        } else {
            None
        };
        match problem {
            None => return Ok(Attached { mac, mtu: link.mtu, link }),
            Some(problem) => {
                if !patience.wait(pod).await.map_err(kernel)? {
                    return Err(problem);
                }
            }
        }
    }
}
