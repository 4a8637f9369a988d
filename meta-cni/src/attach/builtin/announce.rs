//! Telling the neighbours of addresses that were given in-process, while other things are waited for.

use std::net::IpAddr;

use sandbox::{Link, Rtnl, announce};
use tokio::task::JoinSet;

/// Announcements under way, each bounded from its own start: all that begin before the last wait for anything else ends
/// add at most one bound ([`sandbox::ANNOUNCE_LIMIT`]) to it. Each has an open socket in the pod's namespace, which keeps
/// the namespace and a VF in it alive: none is left when we answer, or undo.
#[derive(Debug, Default)]
pub(in crate::attach) struct Announcements(JoinSet<()>);

impl Announcements {
    /// Starts one. Nobody waits for its outcome but the log: the pod works without it, if later.
    pub(super) fn start(&mut self, pod: Rtnl, link: Link, addresses: Vec<IpAddr>) {
        if addresses.is_empty() {
            return;
        }
        self.0.spawn(async move {
            if let Err(error) = announce(pod, &link, &addresses).await {
                tracing::warn!(interface = link.name, %error, "the neighbours are not told of the addresses");
            }
        });
    }

    /// Waits for all.
    pub(in crate::attach) async fn finish(mut self) {
        while self.0.join_next().await.is_some() {}
    }

    /// Ends all, and waits until they are gone.
    pub(in crate::attach) async fn stop(mut self) {
        self.0.shutdown().await;
    }
}
