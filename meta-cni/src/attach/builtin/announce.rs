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
    pub(in crate::attach) async fn finish(&mut self) {
        while self.0.join_next().await.is_some() {}
    }

    /// Ends all, and waits until they and their sockets are gone.
    pub(in crate::attach) async fn stop(mut self) {
        self.0.shutdown().await;
    }
}

#[cfg(test)]
mod tests {
    use std::{process::Command, time::Instant};

    use nix::sched::{CloneFlags, unshare};
    use sandbox::{ANNOUNCE_LIMIT, IfName, LinkChange, Links, Netns};

    use super::*;

    /// A namespace of its own, on a thread of its own.
    fn netns() -> Netns {
        let made = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("root is needed");
            Netns::current().unwrap()
        });
        made.join().unwrap()
    }

    /// A pod with an interface `net1` without a carrier; the other end, in this namespace, is down.
    async fn pod(number: usize) -> (Rtnl, Link) {
        let end = format!("v{number}");
        let args = ["link", "add", &end, "type", "veth", "peer", "name", "inner"];
        assert!(Command::new("ip").args(args).status().unwrap().success());
        let (here, pod) = (Rtnl::open(&Netns::current().unwrap()).unwrap(), Rtnl::open(&netns()).unwrap());
        let inner = here.by_name("inner").await.unwrap().unwrap();
        let net1 = IfName::try_from("net1").unwrap();
        here.move_to(inner.index, &pod, &net1).await.unwrap();
        pod.change_named(&net1, &[LinkChange::Up(true)]).await.unwrap();
        pod.subscribe().await.unwrap();
        let link = pod.by_name("net1").await.unwrap().unwrap();
        assert!(!link.carrier);
        (pod, link)
    }

    fn isolated<F: Future<Output = ()>>(test: impl FnOnce() -> F) {
        unshare(CloneFlags::CLONE_NEWNET).expect("root is needed");
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test());
    }

    #[test]
    fn those_that_wait_in_vain_wait_side_by_side() {
        isolated(|| async {
            let mut announcements = Announcements::default();
            let mut pods = Vec::new();
            for number in 0..8 {
                pods.push(pod(number).await);
            }
            let began = Instant::now();
            for (pod, link) in pods {
                announcements.start(pod, link, vec!["10.0.0.1".parse().unwrap()]);
            }
            announcements.finish().await;
            let waited = began.elapsed();
            // One after the other they would take 1.6 s.
            assert!(waited >= ANNOUNCE_LIMIT && waited < ANNOUNCE_LIMIT * 5, "{waited:?}");
        });
    }

    #[test]
    fn a_stopped_one_leaves_no_socket_in_the_namespace() {
        isolated(|| async {
            let mut announcements = Announcements::default();
            let (pod, link) = pod(0).await;
            announcements.start(pod, link, vec!["10.0.0.1".parse().unwrap()]);
            tokio::task::yield_now().await;
            let tasks = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
            assert!(tasks() >= 3, "the announcement, and one for each of its two sockets: {}", tasks());
            announcements.stop().await;
            assert_eq!(tasks(), 0);
        });
    }
}
