//! Sandboxes of an earlier boot that the runtime has forgotten: its own state was lost, or the power failed before it had
//! written them down. No DEL comes for them, and not every runtime calls GC; so a DEL of another one takes them along, once
//! the runtime had the time for all that it remembers.

use std::{sync::Arc, time::Duration};

use nix::time::{ClockId, clock_gettime};
use tokio::time::Instant;

use super::{
    Engine,
    lock::SandboxLock,
    record::{Entry, Records},
};
use crate::{cni::Error, face::Face, node::Layout};

/// How many seconds the runtime is waited for. kubelet looks for dead sandboxes once a minute.
const GRACE: i64 = 600;
/// How long a DEL goes on; the rest is left to the next one.
const LONG_ENOUGH: Duration = Duration::from_secs(5);

impl Engine {
    /// Writes down which sandboxes the journals know, at the first verb of a boot.
    pub(super) fn list_sandboxes(&self) -> Result<(), Error> {
        for face in Face::ALL {
            let layout = Layout::of(&self.settings, face);
            let containers = Records::of(&layout).containers()?;
            self.boot_lists().note_sandboxes(&layout.sandboxes(), &containers, second())?;
        }
        Ok(())
    }

    /// Detaches what is left of an earlier boot's sandboxes, if it is time for that.
    pub(super) async fn detach_forgotten(&self) {
        if let Err(error) = self.try_detach_forgotten().await {
            tracing::warn!(%error, "sandboxes of an earlier boot are not all detached");
        }
    }

    async fn try_detach_forgotten(&self) -> Result<(), Error> {
        let (lists, journal) = (self.boot_lists(), self.layout.sandboxes());
        let Some((noted, containers)) = lists.sandboxes(&journal)? else { return Ok(()) };
        if second() < noted.saturating_add(GRACE) {
            return Ok(());
        }
        let began = Instant::now();
        let mut left = false;
        for container in containers {
            // What is cut short would be marked as owed, and nobody comes back to that.
            if began.elapsed() > LONG_ENOUGH || Instant::now() + 2 * LONG_ENOUGH > self.deadline {
                return Ok(());
            }
            left |= !self.detach_if_of_an_earlier_boot(&container).await?;
        }
        if left { Ok(()) } else { lists.forget_sandboxes(&journal) }
    }

    /// Whether that is done, or there is nothing to do: somebody else may be at it.
    async fn detach_if_of_an_earlier_boot(&self, container: &str) -> Result<bool, Error> {
        if self.records.of_container(container)?.is_empty() {
            return Ok(true);
        }
        let Some(lock) = SandboxLock::try_take(&self.layout.sandbox_lock(container))? else { return Ok(false) };
        let mut engine = self.with_deadline(self.deadline);
        engine.lock = Some(Arc::new(lock));
        let mut entries = self.records.of_container(container)?;
        let now = entries.iter().any(|entry| matches!(entry, Entry::Good(record) if record.boot_id == self.boot_id));
        entries.retain(|entry| match entry {
            Entry::Good(record) => record.boot_id != self.boot_id,
            // Only a power cut tears a record. One that cannot be read may be a newer release's, though.
            Entry::Torn { .. } => !now && self.records.refuse_newer(std::slice::from_ref(entry)).is_ok(),
        });
        if !entries.is_empty() {
            tracing::warn!(container, "no DEL has come for a sandbox of an earlier boot: detaching it");
        }
        for error in engine.undo_entries(entries, "").await {
            tracing::warn!(container, %error, "what is left of an earlier boot is not all detached");
        }
        if self.records.of_container(container)?.is_empty() {
            engine.remove_lock(container);
        }
        Ok(true)
    }
}

/// The second of the machine's life.
fn second() -> i64 {
    clock_gettime(ClockId::CLOCK_BOOTTIME).map(|now| now.tv_sec()).unwrap_or_default()
}
