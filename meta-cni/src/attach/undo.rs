//! Undoing one attachment: by state, from its record, as often as it takes.

use sandbox::Rtnl;
use tokio::time::Instant;
use tracing::Instrument as _;

use super::{
    Engine, open_netns,
    record::{Entry, Record, Stage},
};
use crate::{
    cni::{Error, chain},
    face::Face,
    log,
    node::device_info::DeviceInfo,
    pod::PodName,
};

impl Engine {
    /// The same engine with another deadline.
    pub(super) fn with_deadline(&self, deadline: Instant) -> Self {
        Self {
            face: self.face,
            settings: self.settings.clone(),
            layout: self.layout.clone(),
            records: self.records.clone(),
            cluster: crate::cluster::Cluster::of(&self.settings, deadline).traced(&self.invocation.trace),
            events: self.events.clone(),
            boot_id: self.boot_id.clone(),
            path: self.path.clone(),
            invocation: self.invocation.clone(),
            deadline,
            lock: self.lock.clone(),
        }
    }

    /// Undoes entries of one sandbox, the last attachment first, and goes on after a failure. `netns` is where the runtime
    /// says that the sandbox is; a namespace that is gone is one thing less to undo.
    pub(super) async fn undo_entries(&self, entries: Vec<Entry>, netns: &str) -> Vec<Error> {
        let mut errors = Vec::new();
        for entry in entries.into_iter().rev() {
            let (title, network, pod) = match &entry {
                Entry::Good(record) => (record.title(), record.network.as_str(), record.pod.as_ref()),
                Entry::Torn { interface, .. } => (interface.clone(), "", None),
            };
            let uid = pod.map(|pod| pod.uid.as_str()).filter(|uid| !uid.is_empty());
            let container = &entry.call().container;
            let span = log::of_attachment(network, entry.interface(), container, (pod.map(PodName::title), uid));
            let undoing = async {
                match entry {
                    Entry::Good(record) => self.undo(*record, netns).await,
                    Entry::Torn { path, call, interface } => self.undo_torn(&path, &call, &interface).await,
                }
            };
            let undone = undoing.instrument(span).await;
            errors.extend(undone.err().map(|error| error.of_network(title)));
        }
        errors
    }

    /// Undoes one attachment and removes its record. When that fails while the namespace lives, the error is reported and
    /// the record stays for the retry; once the namespace is gone the runtime will not retry for ever, so the record is
    /// marked as owed and the failure is a warning.
    pub(super) async fn undo(&self, mut record: Record, netns: &str) -> Result<(), Error> {
        let began = Instant::now();
        let netns = self.live_netns(&record, netns)?;
        let undone = self.undo_steps(&mut record, netns.as_deref()).await;
        let (step, ms) = ("detach", log::ms(began));
        match undone {
            Ok(()) => {
                self.records.remove(&record)?;
                tracing::info!(step, ms, "detached");
                Ok(())
            }
            Err(error) => {
                if netns.is_some() {
                    tracing::info!(step, ms, %error, "not detached");
                    self.records.write(&record, false)?;
                    return Err(error);
                }
                tracing::warn!(step, ms, %error, "DEL is owed: the namespace is gone, GC will try again");
                record.stage = Stage::Owed;
                record.owed_because = error.to_string();
                self.records.write(&record, true)
            }
        }
    }

    /// The path of the sandbox's namespace, if it is still the one of the record.
    pub(super) fn live_netns(&self, record: &Record, netns: &str) -> Result<Option<String>, Error> {
        let path = if netns.is_empty() { &record.netns } else { netns };
        if record.boot_id != self.boot_id {
            return Ok(None);
        }
        let Some(found) = open_netns(path)? else { return Ok(None) };
        let same = record.netns_id.as_ref().map_or(Ok(true), |id| id.is_of(&found))?;
        Ok(same.then(|| path.to_owned()))
    }

    async fn undo_steps(&self, record: &mut Record, netns: Option<&str>) -> Result<(), Error> {
        let list = record.additions.apply(self.records.conf(record)?)?;
        if let (Some(path), Some(change)) = (netns, &record.default_routes) {
            let links = Rtnl::open(&sandbox::Netns::open(path)?)?;
            // The interface may be half gone; what matters is that the other network gets its route back. A record that
            // stays keeps the plan until it did.
            match change.undo(&links).await {
                Ok(()) => record.default_routes = None,
                Err(error) => tracing::warn!(%error, "the default route before is not restored"),
            }
        }
        let builtin = record.vf.is_some() || record.addresses.is_some() || self.is_builtin_list(&list);
        // Only its addresses were reserved: no plugin that is chained after it has been called.
        let is_begun = builtin && record.vf.is_none() && record.addresses.is_some();
        let mut errors = Vec::new();
        if !is_begun {
            let scene = self.scene(record, netns.unwrap_or_default());
            let result = record.result.clone();
            let deleted = chain::del(&list, usize::from(builtin), Some(&result), &scene, netns.is_none()).await;
            // While the sandbox is there the plugin is asked again, with the interface still in its place. Without one it
            // may never succeed, and neither VF nor address is to wait for that.
            match deleted {
                Err(error) if netns.is_some() => return Err(error),
                deleted => errors.extend(deleted.err()),
            }
        }
        if builtin {
            errors.extend(self.undo_builtin(record, &list, netns).await.err());
        }
        if let Some(error) = Error::join(errors) {
            return Err(error);
        }
        self.forget_device_info(&record.call.container, &record.interface)
    }

    /// Removes the device-info file of an attachment. That of a plugin alone is its caller's.
    pub(super) fn forget_device_info(&self, container: &str, interface: &str) -> Result<(), Error> {
        match self.face {
            Face::Meta => DeviceInfo::of_node().forget(container, interface),
            Face::Sriov => Ok(()),
        }
    }
}
