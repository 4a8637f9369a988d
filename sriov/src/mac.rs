//! The address of a VF has two sides, the VF's own and the one that the PF's driver keeps for it, and every driver has
//! its own idea of how they belong together (reference of the order: igb refuses the VF's own once the PF set one, iavf
//! resets the VF, mlx5 never tells the VF).

use std::time::Duration;

use nix::errno::Errno;
use sandbox::{Link, LinkChange, Links, MacAddr, VfSetting};

use crate::locate::Patience;
use crate::{Error, Original};

/// How long a VF may be in reset after its PF changed something.
pub(crate) const READY: Duration = Duration::from_secs(2);

/// What drivers answer while a VF is in reset, or has not heard yet what its PF allows.
pub(crate) const NOT_READY: [Errno; 3] = [Errno::EAGAIN, Errno::EBUSY, Errno::EADDRNOTAVAIL];

pub(crate) fn is_one_of(error: &sandbox::Error, errnos: &[Errno]) -> bool {
    error.errno().is_some_and(|errno| errnos.iter().any(|one| *one as i32 == errno))
}

/// Changes the link, again after each event for as long as the driver says that it is not ready.
pub(crate) async fn change_when_ready<L: Links>(
    links: &L,
    index: u32,
    changes: &[LinkChange],
    not_ready: &[Errno],
) -> Result<(), sandbox::Error> {
    when_ready(links, not_ready, async || links.change(index, changes).await).await
}

/// Does something, again after each link event for as long as the driver says that it is not ready.
pub(crate) async fn when_ready<L: Links>(
    links: &L,
    not_ready: &[Errno],
    act: impl AsyncFn() -> Result<(), sandbox::Error>,
) -> Result<(), sandbox::Error> {
    let mut patience: Option<Patience> = None;
    loop {
        let error = match act().await {
            Ok(()) => return Ok(()),
            Err(error) if is_one_of(&error, not_ready) => error,
            Err(error) => return Err(error),
        };
        let waiting = match &mut patience {
            Some(patience) => patience,
            none => {
                links.subscribe().await?;
                none.insert(Patience::new(READY))
            }
        };
        if !waiting.wait(links).await? {
            return Err(error);
        }
    }
}

/// Before the PF is told: gives the VF the address itself, which is the only order that works without a reset on igb.
/// A driver that will not have it now may have it after the PF was told: [`ensure_own`] then insists.
pub(crate) async fn set_own_first<L: Links>(host: &L, original: &Original, mac: MacAddr) -> Result<(), Error> {
    let busy = [Errno::EAGAIN, Errno::EBUSY];
    let locked = [Errno::EADDRNOTAVAIL, Errno::EPERM, Errno::EACCES];
    let own = [LinkChange::Mac(mac)];
    let refused = match change_when_ready(host, original.index, &own, &busy).await {
        Ok(()) => return Ok(()),
        Err(error) if error.errno().is_none() => return Err(original.kernel(error)),
        Err(error) => error,
    };
    let unlock = [VfSetting::Mac(MacAddr::ZERO)];
    if is_one_of(&refused, &locked) {
        // An earlier administrative address locks the VF's own: take it away and try once more.
        let unlocked = host.set_vf(original.pf_index, original.number, &unlock).await;
        let again = match unlocked {
            Ok(()) => change_when_ready(host, original.index, &own, &busy).await,
            Err(error) => Err(error),
        };
        if let Err(error) = again {
            tracing::debug!(vf = %original.pci, %error, "the VF's own address is still locked");
        }
    }
    Ok(())
}

/// After the PF was told and the VF has moved: makes sure the VF has the address.
pub(crate) async fn ensure_own<L: Links>(
    links: &L,
    original: &Original,
    link: &Link,
    mac: MacAddr,
) -> Result<(), Error> {
    if link.mac == Some(mac) {
        return Ok(());
    }
    let failed = |source| original.attribute(format!("mac {mac}"), source, None);
    change_when_ready(links, link.index, &[LinkChange::Mac(mac)], &NOT_READY).await.map_err(failed)
}

/// Puts both sides back. By state: does nothing if nothing differs and nothing was set by us.
pub(crate) async fn restore<L: Links>(host: &L, original: &Original, pf: u32, index: u32) -> Result<(), Error> {
    let failed = |what: &'static str| {
        move |source| original.attribute(format!("{what} (restoring mac {})", original.mac), source, None)
    };
    let own = host.by_index(index).await.map_err(failed("mac"))?.and_then(|link| link.mac);
    let Some(before) = original.report.as_ref().and_then(|report| report.mac) else {
        // No report, no setting through the PF: only the VF's own address can have changed.
        return match own == Some(original.mac) {
            true => Ok(()),
            false => set_own(host, index, original.mac).await.map_err(failed("mac")),
        };
    };
    let reported = reported(host, original, pf).await?;
    if own == Some(original.mac) && reported == Some(before) && original.sets_mac.is_none() {
        return Ok(());
    }
    // The administrative address goes away, never "back to the VF's own": that would lock the VF.
    let clear = [VfSetting::Mac(MacAddr::ZERO)];
    if original.sets_mac.is_some() || original.admin_mac().is_some() {
        host.set_vf(pf, original.number, &clear).await.map_err(failed("mac 00:00:00:00:00:00"))?;
    }
    if own != Some(original.mac) {
        set_own(host, index, original.mac).await.map_err(failed("mac"))?;
    }
    if before == original.mac && self::reported(host, original, pf).await? == Some(MacAddr::ZERO) {
        // Setting the address that is already there is a no-op in the kernel, and the PF would go on dropping the VF's
        // frames: take the way through another one.
        set_own(host, index, detour(original.mac)).await.map_err(failed("mac"))?;
        set_own(host, index, original.mac).await.map_err(failed("mac"))?;
        if self::reported(host, original, pf).await? == Some(MacAddr::ZERO) {
            // A report that does not follow the VF's own address was of an administrative one, the same by intention.
            let back = [VfSetting::Mac(before)];
            host.set_vf(pf, original.number, &back).await.map_err(failed("administrative mac"))?;
        }
    }
    if let Some(admin) = original.admin_mac() {
        let back = [VfSetting::Mac(admin)];
        host.set_vf(pf, original.number, &back).await.map_err(failed("administrative mac"))?;
    }
    Ok(())
}

/// The PF's side alone, for a VF that has no interface to restore (its driver was unbound, or is one for user space).
pub(crate) async fn restore_at_pf<L: Links>(host: &L, original: &Original, pf: u32) -> Result<(), Error> {
    if original.sets_mac.is_none() {
        return Ok(());
    }
    let back = VfSetting::Mac(original.admin_mac().unwrap_or(MacAddr::ZERO));
    let done = host.set_vf(pf, original.number, &[back]).await;
    done.map_err(|source| original.attribute(back.to_string(), source, None))
}

/// What the PF keeps now.
async fn reported<L: Links>(host: &L, original: &Original, pf: u32) -> Result<Option<MacAddr>, Error> {
    let report = host.pf_report(pf).await.map_err(|source| original.kernel(source))?;
    Ok(report.vf(original.number).and_then(|vf| vf.mac))
}

async fn set_own<L: Links>(host: &L, index: u32, mac: MacAddr) -> Result<(), sandbox::Error> {
    change_when_ready(host, index, &[LinkChange::Mac(mac)], &NOT_READY).await
}

/// Another unicast address, locally administered, that is nobody's.
fn detour(mac: MacAddr) -> MacAddr {
    let mut bytes = mac.0;
    bytes[0] = (bytes[0] | 2) & !1;
    bytes[5] ^= 0x80;
    MacAddr(bytes)
}
