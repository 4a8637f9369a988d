//! What a dead container left in the primary network: undone by the network's own chain, whose plugins keep more than we know
//! of, and never by unlinking their files.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::Arc,
};

use ipam::{Lease, Store};
use serde_json::json;

use super::{
    Engine,
    builtin::LOCK_PATIENCE,
    lock::SandboxLock,
    reclaim::{HOST_LOCAL, Primary},
    record::Entry,
};
use crate::cni::{CniArgs, Command, Error, Object, Plugin, Scene, chain};

impl Engine {
    /// Has the primary network give back a lease, if the pool is one of its own, for somebody who knows that the container
    /// is dead: all that is left of the container is undone. None if the pool is not the primary's; else whether the
    /// address is free now.
    ///
    /// # Errors
    /// [`Error::TryLater`] if a namespace of the container lives after all; what its plugins said.
    pub async fn give_back_of_primary(&mut self, pool: &Path, lease: &Lease) -> Result<Option<bool>, Error> {
        let Some(primary) = self.primary(&self.cluster).await.filter(|primary| primary.pools.contains(pool)) else {
            return Ok(None);
        };
        let container = lease.container.clone().unwrap_or_default();
        self.layout.create()?;
        self.lock(&container).await?;
        let entries = self.records.of_container(&container)?;
        for entry in &entries {
            if let Entry::Good(record) = entry
                && let Some(path) = self.live_netns(record, "")?
            {
                return Err(Error::TryLater(format!("{} lives by now, in {path}", record.title())));
            }
        }
        let leases = [(pool.to_owned(), lease.clone())];
        let outcome = self.detach_entries(&primary, &container, entries, &leases).await;
        if self.records.of_container(&container)?.is_empty() {
            self.remove_lock(&container);
        }
        outcome.map(|count| Some(count > 0))
    }

    /// Has the primary's chain undo a container that did not outlive the boot, under the lock of that sandbox: a DEL of the
    /// runtime's may be at work there. Gives the number of addresses that are free now.
    pub(super) async fn detach_dead(
        &self,
        primary: &Primary,
        container: &str,
        leases: &[(PathBuf, Lease)],
    ) -> Result<usize, Error> {
        let Some(lock) = SandboxLock::try_take(&self.layout.sandbox_lock(container))? else { return Ok(0) };
        let mut engine = self.with_deadline(self.deadline);
        engine.lock = Some(Arc::new(lock));
        let outcome = engine.detach_dead_locked(primary, container, leases).await;
        if self.records.of_container(container)?.is_empty() {
            engine.remove_lock(container);
        }
        outcome
    }

    async fn detach_dead_locked(
        &self,
        primary: &Primary,
        container: &str,
        leases: &[(PathBuf, Lease)],
    ) -> Result<usize, Error> {
        let entries = self.records.of_container(container)?;
        let of_earlier_boot = |entry: &Entry| matches!(entry, Entry::Good(record) if record.boot_id != self.boot_id);
        if !entries.iter().all(of_earlier_boot) {
            return Ok(0);
        }
        tracing::warn!(container, addresses = leases.len(), "a container did not outlive the boot: detaching it");
        self.detach_entries(primary, container, entries, leases).await
    }

    /// Undoes what is recorded of a dead container, and has the primary's plugins undo the rest. Gives the number of
    /// addresses that are free now.
    async fn detach_entries(
        &self,
        primary: &Primary,
        container: &str,
        entries: Vec<Entry>,
        leases: &[(PathBuf, Lease)],
    ) -> Result<usize, Error> {
        let mut errors = self.undo_entries(entries, "").await;
        let has_file = || primary.scratch.as_ref().is_some_and(|scratch| scratch.join(container).exists());
        let interfaces: BTreeSet<&str> = leases.iter().filter_map(|(_, lease)| lease.interface.as_deref()).collect();
        let interfaces = if interfaces.is_empty() { BTreeSet::from(["eth0"]) } else { interfaces };
        for interface in interfaces {
            let scene = self.scene_of_dead(container, interface);
            if has_file() || !still_held(leases)?.is_empty() {
                errors.extend(chain::del(&primary.list, 0, None, &scene, true).await.err());
            }
        }
        for (pool, lease) in still_held(leases)? {
            errors.extend(self.release_by_ipam(primary, container, pool, lease).await.err());
        }
        let left = still_held(leases)?.len();
        match Error::join(errors) {
            Some(error) if left > 0 => return Err(error),
            // A file of Flannel's that is torn stays, and with it this: its plugin alone may remove it, and cannot.
            Some(error) => {
                tracing::warn!(container, %error, "the addresses of a dead container are free, the rest is not undone")
            }
            None => {}
        }
        Ok(leases.len() - left)
    }

    /// Flannel's plugin does nothing for a container whose file is lost or torn, and so its IPAM plugin is not asked: it is
    /// now.
    async fn release_by_ipam(
        &self,
        primary: &Primary,
        container: &str,
        pool: &Path,
        lease: &Lease,
    ) -> Result<(), Error> {
        let mut object = Object::default();
        // host-local wants a range, though its DEL looks for the container alone.
        let range = json!([[{"subnet": subnet_around(lease.address)}]]);
        object.set("ipam", &json!({"type": HOST_LOCAL, "dataDir": pool.parent(), "ranges": range}));
        let plugin = Plugin { kind: HOST_LOCAL.to_owned(), object };
        let scene = self.scene_of_dead(container, lease.interface.as_deref().unwrap_or("eth0"));
        chain::ipam_verb(&primary.list, &plugin, HOST_LOCAL, Command::Del, None, &scene).await
    }

    fn scene_of_dead(&self, container: &str, interface: &str) -> Scene {
        Scene {
            container: container.to_owned(),
            if_name: interface.to_owned(),
            runtime_config: Object::default(),
            ..self.bare_scene("", CniArgs::default())
        }
    }
}

/// Those that are still in their pools' files. For what names no interface the container decides.
fn still_held(leases: &[(PathBuf, Lease)]) -> Result<Vec<(&PathBuf, &Lease)>, Error> {
    let mut held = Vec::new();
    for (pool, lease) in leases {
        let Some(container) = &lease.container else { continue };
        let owner = ipam::Owner::new(container, lease.interface.as_deref().unwrap_or("eth0"))?;
        if Store::new(pool, LOCK_PATIENCE).holds(&owner, &[lease.address])? {
            held.push((pool, lease));
        }
    }
    Ok(held)
}

/// A network that has the address in it.
fn subnet_around(address: std::net::IpAddr) -> String {
    let length = if address.is_ipv4() { 24 } else { 64 };
    ipnet::IpNet::new(address, length).map(|net| net.trunc().to_string()).unwrap_or_default()
}
