//! Where a VF's interface is now.

use std::time::{Duration, Instant};

use sandbox::{Link, Links};

use crate::{Error, Original, Sysfs};

/// Longest wait between two looks when no event tells that something changed.
const SLICE: Duration = Duration::from_millis(100);
/// A namespace that has died is torn down within this time, or somebody still holds it.
const ARRIVAL: Duration = Duration::from_secs(2);

/// Time left for something that link events announce.
pub(crate) struct Patience {
    left: Duration,
}

impl Patience {
    pub(crate) fn new(total: Duration) -> Self {
        Self { left: total }
    }

    /// Waits for the next event, or a slice of the time; false once it is used up.
    pub(crate) async fn wait<L: Links>(&mut self, links: &L) -> Result<bool, sandbox::Error> {
        if self.left.is_zero() {
            return Ok(false);
        }
        let slice = self.left.min(SLICE);
        let start = Instant::now();
        let used = if links.link_event(slice).await? { start.elapsed() } else { slice };
        self.left = self.left.saturating_sub(used);
        Ok(true)
    }
}

/// Where the interface is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place<L> {
    /// In the pod.
    Pod(Link),
    /// In another namespace than the pod's and the host's.
    Elsewhere(L, Link),
    /// In the host.
    Host(Link),
    /// Nowhere, and none is to be expected: the device has no kernel driver.
    NoNetdev,
    /// The device is unplugged.
    Unplugged,
}

/// The interface in one namespace, wherever the names and indexes went. The index is tried first: one message instead
/// of a dump, and it mostly is still the same.
pub(crate) async fn in_namespace<L: Links>(links: &L, original: &Original) -> Result<Option<Link>, sandbox::Error> {
    if let Some(netdev) = &original.netdev
        && let Some(link) = links.by_index(netdev.index).await?
        && original.is(&link)
    {
        return Ok(Some(link));
    }
    Ok(links.list().await?.into_iter().find(|link| original.is(link)))
}

/// Looks in the pod, then in the host. A dying namespace gives it back to the host within a moment; one that somebody
/// still holds does not, so it is then looked for by `elsewhere`, and awaited in the host if that finds nothing.
pub(crate) async fn locate<L: Links>(
    host: &L,
    pod: Option<&L>,
    original: &Original,
    sysfs: &Sysfs,
    elsewhere: impl AsyncFn() -> Result<Option<L>, Error>,
) -> Result<Place<L>, Error> {
    let kernel = |source| original.kernel(source);
    if let Some(pod) = pod
        && let Some(link) = in_namespace(pod, original).await.map_err(kernel)?
    {
        return Ok(Place::Pod(link));
    }
    if let Some(link) = in_namespace(host, original).await.map_err(kernel)? {
        return Ok(Place::Host(link));
    }
    let device = match sysfs.vf(original.pci) {
        Ok(device) => device,
        Err(Error::NotPresent { .. }) => return Ok(Place::Unplugged),
        Err(error) => return Err(error),
    };
    if device.driver.is_none() || device.userspace_driver().is_some() {
        return Ok(Place::NoNetdev);
    }
    // Subscribe before looking again, so that no arrival falls between the look and the wait.
    host.subscribe().await.map_err(kernel)?;
    let mut patience = Patience::new(ARRIVAL);
    let mut searched = false;
    loop {
        if let Some(link) = in_namespace(host, original).await.map_err(kernel)? {
            return Ok(Place::Host(link));
        }
        if !sysfs.is_present(original.pci) {
            return Ok(Place::Unplugged);
        }
        if !patience.wait(host).await.map_err(kernel)? {
            return Err(Error::NotBack { pci: original.pci, waited_ms: ARRIVAL.as_millis() });
        }
        if !std::mem::replace(&mut searched, true)
            && let Some(holder) = elsewhere().await?
            && let Some(link) = in_namespace(&holder, original).await.map_err(kernel)?
        {
            return Ok(Place::Elsewhere(holder, link));
        }
    }
}
