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
pub(crate) async fn set_own_first<L: Links>(
    host: &L,
    original: &Original,
    index: u32,
    mac: MacAddr,
) -> Result<(), Error> {
    let busy = [Errno::EAGAIN, Errno::EBUSY];
    let locked = [Errno::EADDRNOTAVAIL, Errno::EPERM, Errno::EACCES];
    let own = [LinkChange::Mac(mac)];
    let refused = match change_when_ready(host, index, &own, &busy).await {
        Ok(()) => return Ok(()),
        Err(error) if error.errno().is_none() => return Err(original.kernel(error)),
        Err(error) => error,
    };
    let unlock = [VfSetting::Mac(MacAddr::ZERO)];
    if is_one_of(&refused, &locked)
        && let Some(pf) = &original.pf
    {
        // An earlier administrative address locks the VF's own: take it away and try once more.
        let unlocked = host.set_vf(pf.index, pf.number, &unlock).await;
        let again = match unlocked {
            Ok(()) => change_when_ready(host, index, &own, &busy).await,
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
    let hint = "it may be locked where the PF is: set it, or allow it (trust), there";
    let hint = original.pf.is_none().then(|| hint.to_owned());
    let failed = |source| original.attribute(format!("mac {mac}"), source, hint);
    change_when_ready(links, link.index, &[LinkChange::Mac(mac)], &NOT_READY).await.map_err(failed)
}

/// Puts both sides back. By state: does nothing if nothing differs and nothing was set by us. `pf` is the PF's index now.
pub(crate) async fn restore<L: Links>(host: &L, original: &Original, pf: Option<u32>, index: u32) -> Result<(), Error> {
    let home = original.interface()?.mac;
    let failed =
        |what: &'static str| move |source| original.attribute(format!("{what} (restoring mac {home})"), source, None);
    let own = host.by_index(index).await.map_err(failed("mac"))?.and_then(|link| link.mac);
    let (Some(pf), Some(before)) = (AtPf::of(original, pf), original.report().and_then(|report| report.mac)) else {
        // No report, no setting through the PF: only the VF's own address can have changed.
        return match own == Some(home) {
            true => Ok(()),
            false => set_own(host, index, home).await.map_err(failed("mac")),
        };
    };
    let reported = pf.reported(host, original).await?;
    if own == Some(home) && reported == Some(before) && original.sets_mac.is_none() {
        return Ok(());
    }
    // Somebody may have set one meanwhile, and a VF that was reset since then has it for its own.
    let administrative = reported.is_some_and(|mac| mac != MacAddr::ZERO && (Some(mac) != own || own != Some(home)));
    // The administrative address goes away, never "back to the VF's own": that would lock the VF.
    if original.sets_mac.is_some() || original.admin_mac().is_some() || administrative {
        pf.set(host, MacAddr::ZERO).await.map_err(failed("mac 00:00:00:00:00:00"))?;
    }
    if own != Some(home) {
        set_own(host, index, home).await.map_err(failed("mac"))?;
    }
    let deaf = before == home || (before == MacAddr::ZERO && administrative && own == Some(home));
    if deaf && pf.reported(host, original).await? == Some(MacAddr::ZERO) {
        // Setting the address that is already there is a no-op in the kernel, and the PF would go on dropping the VF's
        // frames: take the way through another one.
        set_own(host, index, detour(home)).await.map_err(failed("mac"))?;
        set_own(host, index, home).await.map_err(failed("mac"))?;
        if before == home && pf.reported(host, original).await? == Some(MacAddr::ZERO) {
            // A report that does not follow the VF's own address was of an administrative one, the same by intention.
            pf.set(host, before).await.map_err(failed("administrative mac"))?;
        }
    }
    if let Some(admin) = original.admin_mac() {
        pf.set(host, admin).await.map_err(failed("administrative mac"))?;
    }
    Ok(())
}

/// Whether what the PF reports now comes to what it reported before. A driver that reports the VF's own address where
/// there is no administrative one (igb) may have reported none then.
pub(crate) fn is_back(original: &Original, own: Option<MacAddr>, now: Option<MacAddr>) -> bool {
    let before = original.report().and_then(|report| report.mac);
    now == before || (before == Some(MacAddr::ZERO) && now == own)
}

/// The VF's entry at its PF.
#[derive(Debug, Clone, Copy)]
pub(crate) struct AtPf {
    /// Index of the PF.
    pf: u32,
    number: u32,
}

impl AtPf {
    /// With the PF's index as it is now.
    pub(crate) fn of(original: &Original, pf: Option<u32>) -> Option<Self> {
        Some(Self { pf: pf?, number: original.pf.as_ref()?.number })
    }

    /// The address that the PF keeps now.
    pub(crate) async fn reported<L: Links>(self, host: &L, original: &Original) -> Result<Option<MacAddr>, Error> {
        let report = host.pf_report(self.pf).await.map_err(|source| original.kernel(source))?;
        Ok(report.vf(self.number).and_then(|vf| vf.mac))
    }

    /// Sets the administrative address; zero takes it away.
    pub(crate) async fn set<L: Links>(self, host: &L, mac: MacAddr) -> Result<(), sandbox::Error> {
        host.set_vf(self.pf, self.number, &[VfSetting::Mac(mac)]).await
    }
}

pub(crate) async fn set_own<L: Links>(host: &L, index: u32, mac: MacAddr) -> Result<(), sandbox::Error> {
    change_when_ready(host, index, &[LinkChange::Mac(mac)], &NOT_READY).await
}

/// Another unicast address, locally administered, that is nobody's.
fn detour(mac: MacAddr) -> MacAddr {
    let mut bytes = mac.0;
    bytes[0] = (bytes[0] | 2) & !1;
    bytes[5] ^= 0x80;
    MacAddr(bytes)
}
