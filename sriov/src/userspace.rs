//! VFs that are bound to a driver for user space: a program in the pod drives them, the kernel has no interface. What
//! the PF holds is set and put back as for any VF; for the application to read, a dummy link may carry the addresses.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher as _, Hasher as _};

use nix::errno::Errno;
use sandbox::{IfName, Link, LinkChange, Links, MacAddr};

use crate::attach::{mac_differs_at_pf, set_through_pf, taken};
use crate::locate::Patience;
use crate::mac::{self, AtPf, READY, is_one_of};
use crate::restore::{pf_index, pf_side, refresh_permanent_mac, reports, unrestored};
use crate::{Error, Original, PciAddress, Sysfs, Wanted};

/// Kind of the link that stands for the VF.
const DUMMY: &str = "dummy";

/// A VF that was made ready for a program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttachedUserspace {
    /// The address that the PF has for it, if there is one.
    pub mac: Option<MacAddr>,
    /// The PF's MTU, in bytes: more than that does not pass.
    pub mtu: Option<u32>,
    /// The link that stands for it in the pod, up, without addresses, if one is wanted.
    pub dummy: Option<Link>,
}

/// Sets what is wanted through the PF, and makes the dummy link. As with [`crate::attach()`], the caller has recorded
/// `original` before, and calls [`crate::restore()`] after any error.
pub async fn attach_userspace<L: Links>(
    host: &L,
    pod: &L,
    original: &Original,
    wanted: &Wanted,
    name: &IfName,
) -> Result<AttachedUserspace, Error> {
    set_through_pf(host, original, &wanted.pf_settings()).await?;
    if let Some(mac) = wanted.mac {
        wait_for_mac(host, original, mac).await?;
    }
    let (mut mac, mut mtu) = (None, None);
    if let Some(pf) = &original.pf {
        let report = host.pf_report(pf.index).await.map_err(|source| original.kernel(source))?;
        mac = report.vf(pf.number).and_then(|vf| vf.mac).filter(|mac| *mac != MacAddr::ZERO);
        mtu = Some(report.link.mtu);
    }
    let dummy = match original.dummy {
        true => Some(make_dummy(pod, original, (mac, mtu), name).await?),
        false => None,
    };
    Ok(AttachedUserspace { mac, mtu, dummy })
}

/// Some drivers apply it after the answer.
async fn wait_for_mac<L: Links>(host: &L, original: &Original, mac: MacAddr) -> Result<(), Error> {
    let mut patience = Patience::new(READY);
    while let Some(problem) = mac_differs_at_pf(host, original, mac).await? {
        if !patience.wait(host).await.map_err(|source| original.kernel(source))? {
            return Err(problem);
        }
    }
    Ok(())
}

/// The name of a dummy link that is not finished: the PCI address, so that it is known for ours whenever we are killed.
fn unfinished_name(pci: PciAddress) -> String {
    let digits: String = pci.to_string().chars().filter(char::is_ascii_hexdigit).collect();
    format!("vf{digits}")
}

/// Made under a name of our own and given the pod's name and the alias in one message: whatever happens, it can be told
/// from a link that the pod has made.
async fn make_dummy<L: Links>(
    pod: &L,
    original: &Original,
    (mac, mtu): (Option<MacAddr>, Option<u32>),
    name: &IfName,
) -> Result<Link, Error> {
    let kernel = |source| original.kernel(source);
    let absent = || Error::Unverified {
        pci: original.pci,
        what: "dummy interface",
        wanted: format!("{name} in the pod"),
        found: "not there".to_owned(),
    };
    let unfinished = unfinished_name(original.pci);
    pod.add_dummy(&unfinished).await.map_err(kernel)?;
    let index = pod.by_name(&unfinished).await.map_err(kernel)?.ok_or_else(absent)?.index;
    let mut changes = vec![LinkChange::Name(name.to_string()), LinkChange::Alias(original.pci.to_string())];
    changes.extend(mac.map(LinkChange::Mac));
    changes.extend(mtu.map(LinkChange::Mtu));
    changes.push(LinkChange::Up(true));
    if let Err(error) = pod.change(index, &changes).await {
        return Err(match pod.by_name(name.as_str()).await.map_err(kernel)? {
            Some(other) if other.index != index && is_one_of(&error, &[Errno::EEXIST]) => {
                taken(original, name.as_str(), "the pod", &other)
            }
            _ => kernel(error),
        });
    }
    pod.by_name(name.as_str()).await.map_err(kernel)?.filter(|link| link.up).ok_or_else(absent)
}

/// Removes the dummy link, whatever its name is by now, and no other link.
async fn remove_dummy<L: Links>(pod: &L, original: &Original) -> Result<(), Error> {
    let kernel = |source| original.kernel(source);
    let (pci, unfinished) = (original.pci.to_string(), unfinished_name(original.pci));
    let is_ours = |link: &Link| {
        link.kind.as_deref() == Some(DUMMY) && (link.alias.as_deref() == Some(&pci) || link.name == unfinished)
    };
    for link in pod.list().await.map_err(kernel)?.iter().filter(|link| is_ours(link)) {
        pod.del_link(link.index).await.map_err(kernel)?;
    }
    if pod.list().await.map_err(kernel)?.iter().any(is_ours) {
        let (wanted, found) = ("removed".to_owned(), "still there".to_owned());
        return Err(Error::Unverified { pci: original.pci, what: "dummy interface", wanted, found });
    }
    Ok(())
}

/// Gives back a VF that had no interface. What it is bound to may have changed meanwhile: then its interface has the
/// pod's address, which it read from the PF, and gets another one.
pub(crate) async fn restore<L: Links>(
    host: &L,
    pod: Option<&L>,
    original: &Original,
    sysfs: &Sysfs,
) -> Result<(), Error> {
    let mut problems = Vec::new();
    if let Some(pod) = pod.filter(|_| original.dummy) {
        problems.extend(remove_dummy(pod, original).await.err());
    }
    if sysfs.is_present(original.pci) {
        let pf = pf_index(sysfs, original);
        if let Err(error) = pf_side(host, original, pf, &mut problems).await {
            problems.push(error);
        }
        match sysfs.vf(original.pci) {
            Ok(device) => {
                let rebound = device.netdev.map(|netdev| netdev.index);
                problems.extend(mac_back(host, original, pf, rebound).await.err());
            }
            Err(error) => problems.push(error),
        }
        if problems.is_empty() {
            problems.extend(verify(host, original, pf).await.err());
        }
    }
    if problems.is_empty() { Ok(()) } else { Err(Error::NotRestored { pci: original.pci, problems }) }
}

async fn verify<L: Links>(host: &L, original: &Original, pf: Option<u32>) -> Result<(), Error> {
    let Some((now, before)) = reports(host, original, pf).await? else { return Ok(()) };
    let Some(wanted) = unrestored(&before, &now) else { return Ok(()) };
    Err(Error::Unverified { pci: original.pci, what: "PF's settings", wanted, found: "different".to_owned() })
}

/// Puts the administrative address back, for a VF without an interface, or with that of a driver which took it
/// meanwhile (`rebound`). What was reported of a VF without an interface counts as administrative: igb also reports what
/// a driver had set before, but only the one may not get lost. What the VF has set itself by now is none of ours.
pub(crate) async fn mac_back<L: Links>(
    host: &L,
    original: &Original,
    pf: Option<u32>,
    rebound: Option<u32>,
) -> Result<(), Error> {
    let Some(at_pf) = AtPf::of(original, pf) else { return Ok(()) };
    if original.netdev.is_some() && original.sets_mac.is_none() {
        return Ok(());
    }
    let target = original.admin_mac().unwrap_or(MacAddr::ZERO);
    let failed = |source| original.attribute(format!("mac {target}"), source, None);
    let own = match rebound {
        Some(index) => own_back(host, original, at_pf, index, target).await?,
        None => None,
    };
    let is_back = |now: Option<MacAddr>| {
        let forgotten = original.sets_mac.is_none() && now == Some(MacAddr::ZERO);
        now == Some(target) || forgotten || (own.is_some() && now == own)
    };
    let now = at_pf.reported(host, original).await?;
    // No report, nothing to compare with: what was set is taken back.
    if is_back(now) || (now.is_none() && original.sets_mac.is_none()) {
        return Ok(());
    }
    at_pf.set(host, target).await.map_err(failed)?;
    let now = at_pf.reported(host, original).await?;
    if now.is_some() && !is_back(now) {
        let (wanted, found) = (target.to_string(), format!("{now:?}"));
        return Err(Error::Unverified { pci: original.pci, what: "mac at the PF", wanted, found });
    }
    Ok(())
}

/// The interface's own address, which is another one than the pod's from now on.
async fn own_back<L: Links>(
    host: &L,
    original: &Original,
    at_pf: AtPf,
    index: u32,
    target: MacAddr,
) -> Result<Option<MacAddr>, Error> {
    let failed = |source| original.attribute("mac of the interface".to_owned(), source, None);
    let own = host.by_index(index).await.map_err(failed)?.and_then(|link| link.mac);
    if own.is_none() || own != original.sets_mac || own == Some(target) {
        return Ok(own);
    }
    // It is locked until then.
    at_pf.set(host, MacAddr::ZERO).await.map_err(failed)?;
    let home = if target == MacAddr::ZERO { made_up() } else { target };
    mac::set_own(host, index, home).await.map_err(failed)?;
    let mut problems = Vec::new();
    refresh_permanent_mac(host, original, index, Some(home), &mut problems).await?;
    problems.into_iter().next().map_or(Ok(Some(home)), Err)
}

/// An address as a driver makes one up for a VF that has none: unicast, locally administered, random.
fn made_up() -> MacAddr {
    let [mut first, b, c, d, e, f, ..] = RandomState::new().build_hasher().finish().to_ne_bytes();
    first = (first | 2) & !1;
    MacAddr([first, b, c, d, e, f])
}
