//! GC: what belongs to no valid attachment is undone, and what is owed is tried again.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use ipam::Store;
use serde::Deserialize;
use serde_json::{Value, json};
use tracing::Instrument as _;

use super::{
    Engine,
    builtin::LOCK_PATIENCE,
    configured,
    del::is_owed,
    lock::SandboxLock,
    multus::PRIMARY_INTERFACE,
    pools,
    record::{Call, Entry, Record},
};
use crate::{
    cni::{Error, PluginList, chain},
    face::Face,
    log,
    node::multus::MultusFiles,
};

/// An attachment as the runtime lists it.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
struct Valid {
    #[serde(rename = "containerID")]
    container: String,
    #[serde(rename = "ifname")]
    if_name: String,
}

impl Valid {
    fn to_json(&self) -> Value {
        json!({"containerID": self.container, "ifname": self.if_name})
    }
}

/// Attachments to a network that no record of ours tells of: made before we came, or their records are lost. By the leases
/// of the containers that the runtime lists, and by Multus' files.
fn unrecorded(list: &PluginList, living: &Living, cni_dir: &Path) -> Result<Vec<Valid>, Error> {
    let mut found = Vec::new();
    for pool in pools::of_network(list) {
        let leases = Store::new(pool, LOCK_PATIENCE).leases()?;
        let named = leases.into_iter().filter_map(|lease| lease.container.zip(lease.interface));
        found.extend(named.filter(|(container, _)| living.lists(container)));
    }
    // What is left of them by now was not collected.
    let files = MultusFiles::of_node(cni_dir);
    for container in files.containers()? {
        let left = files.left(&container, PRIMARY_INTERFACE)?;
        let delegates = left.into_iter().flat_map(|left| left.delegates);
        found.extend(delegates.map(|delegate| (container.clone(), delegate.interface)));
    }
    Ok(found.into_iter().map(|(container, if_name)| Valid { container, if_name }).collect())
}

/// What the runtime says that lives.
pub(super) struct Living {
    /// The name of the conf that it speaks of.
    conf: String,
    /// Its list; none says nothing.
    valid: Option<BTreeSet<Valid>>,
}

impl Living {
    /// Whether the list is about this call, and does not have it.
    pub(super) fn excludes(&self, call: &Call) -> bool {
        let key = Valid { container: call.container.clone(), if_name: call.if_name.clone() };
        call.conf == self.conf && self.valid.as_ref().is_some_and(|valid| !valid.contains(&key))
    }

    /// Whether there is a list, and a container is not in it with any interface: that of a runtime has all its sandboxes,
    /// whatever their configuration was called when they were made.
    pub(super) fn knows_not(&self, container: &str) -> bool {
        self.valid.as_ref().is_some_and(|valid| !valid.iter().any(|one| one.container == container))
    }

    /// Whether the list has an attachment of this container.
    pub(super) fn lists(&self, container: &str) -> bool {
        self.valid.iter().flatten().any(|valid| valid.container == container)
    }
}

impl Engine {
    /// Undoes the attachments made under this conf's name whose call is not in the runtime's list, the leftovers of an
    /// earlier boot, and what is owed; then lets the plugins do the same. A list that is absent or null says nothing.
    ///
    /// # Errors
    /// All failures; the rest was done all the same.
    pub async fn gc(&mut self) -> Result<(), Error> {
        self.layout.create()?;
        self.list_boot_or_warn().await;
        let listed = self.listed()?;
        let valid: Option<BTreeSet<Valid>> = match &listed {
            Value::Null => None,
            list => Some(
                serde_json::from_value(list.clone())
                    .map_err(|problem| Error::decode("cni.dev/valid-attachments", problem))?,
            ),
        };
        let living = Living { conf: self.call()?.conf, valid };
        let mut errors = Vec::new();
        let mut survivors = Vec::new();
        for container in self.records.containers()? {
            match self.collect(&container, &living, &mut survivors).await {
                Ok(failed) => errors.extend(failed),
                Err(error) => errors.push(error.of_network(format!("container {container}"))),
            }
        }
        self.lock = None;
        errors.extend(self.collect_vfs(&living).await);
        match self.face {
            Face::Meta => {
                errors.extend(self.collect_sandboxes_of_multus(&living).await);
                errors.extend(self.gc_of_plugins(&listed, &living, &survivors).await);
            }
            Face::Sriov => {
                if let Some(valid) = &living.valid {
                    let listed_ones = valid.iter().map(|one| (one.container.as_str(), one.if_name.as_str()));
                    // What could not be undone may still have its address on the interface.
                    let left =
                        survivors.iter().map(|record| (record.call.container.as_str(), record.interface.as_str()));
                    let keep: Vec<(&str, &str)> = listed_ones.chain(left).collect();
                    errors.extend(self.gc_addresses(&listed, &keep).await.err());
                }
            }
        }
        errors.extend(self.reclaim_at_gc(&living).await);
        errors.extend(self.records.forget_unused_confs().err());
        errors.extend(SandboxLock::sweep(&self.layout, &self.records).err());
        Error::join(errors).map_or(Ok(()), Err)
    }

    /// The runtime's list, under either of its names.
    fn listed(&self) -> Result<Value, Error> {
        let conf = &self.invocation.conf;
        let list = conf.get::<Value>("cni.dev/valid-attachments")?;
        Ok(list.or(conf.get::<Value>("cni.dev/attachments")?).unwrap_or_default())
    }

    /// Judges the records of one container under its lock.
    async fn collect(
        &mut self,
        container: &str,
        living: &Living,
        survivors: &mut Vec<Record>,
    ) -> Result<Vec<Error>, Error> {
        self.lock(container).await?;
        let (stale, kept): (Vec<Entry>, Vec<Entry>) =
            self.records.of_container(container)?.into_iter().partition(|entry| self.is_stale(entry, living));
        survivors.extend(kept.into_iter().filter_map(|entry| match entry {
            Entry::Good(record) => Some(*record),
            Entry::Torn { .. } => None,
        }));
        for entry in &stale {
            tracing::info!(
                step = "collect",
                container,
                call = entry.call().key(),
                "undoing an attachment that is not valid any more"
            );
        }
        let errors = self.undo_entries(stale, "").await;
        let left = self.records.of_container(container)?;
        if left.is_empty() {
            self.remove_lock(container);
        } else {
            survivors.extend(left.into_iter().filter_map(|entry| match entry {
                Entry::Good(record) if is_owed(&Entry::Good(record.clone())) => Some(*record),
                _ => None,
            }));
        }
        Ok(errors)
    }

    fn is_stale(&self, entry: &Entry, living: &Living) -> bool {
        let call = entry.call();
        let of_another_boot = matches!(entry, Entry::Good(record) if record.boot_id != self.boot_id);
        let listed = living.valid.is_some();
        is_owed(entry) || living.excludes(call) || (!listed && call.conf == living.conf && of_another_boot)
    }

    /// Hands the list on: to the primary's chain as it is, to other executed networks the list of their own survivors.
    /// A network that shares its name with the primary shares its state, too, and must not be told a list without it.
    async fn gc_of_plugins(&self, listed: &Value, living: &Living, survivors: &[Record]) -> Vec<Error> {
        let mut errors = Vec::new();
        let primary_name = match configured::networks(&self.settings, &self.cluster).await {
            Ok(networks) => {
                let scene = self.bare_scene("", self.invocation.args.clone());
                for network in networks.iter().take(1).filter(|_| !listed.is_null()) {
                    let span = log::of_network(&network.list.name, "");
                    errors.extend(chain::gc(&network.list, listed, &scene).instrument(span).await.err());
                }
                networks.first().map(|network| network.list.name.clone()).unwrap_or_default()
            }
            Err(error) => {
                tracing::warn!(%error, "the primary's plugins are not asked to collect");
                return errors;
            }
        };
        if listed.is_null() {
            return errors;
        }
        let mut networks: BTreeMap<String, (PluginList, BTreeSet<Valid>)> = BTreeMap::new();
        // A primary that a pod chose is one more network of this conf; that of another conf is not ours to collect.
        for record in survivors.iter().filter(|record| !record.primary || record.call.conf == living.conf) {
            let Ok(list) = self.records.conf(record) else { continue };
            let attachment = Valid { container: record.call.container.clone(), if_name: record.interface.clone() };
            networks.entry(list.name.clone()).or_insert_with(|| (list, BTreeSet::new())).1.insert(attachment);
        }
        for (name, (list, mut attachments)) in networks {
            if name == primary_name || self.is_builtin_list(&list) {
                continue;
            }
            match unrecorded(&list, living, &self.settings.state_dir) {
                Ok(more) => attachments.extend(more),
                Err(error) => {
                    errors.push(error.of_network(name));
                    continue;
                }
            }
            let attachments = Value::Array(attachments.iter().map(Valid::to_json).collect());
            let scene = self.bare_scene("", self.invocation.args.clone());
            let collecting = chain::gc(&list, &attachments, &scene);
            let collected = collecting.instrument(log::of_network(&name, "")).await;
            errors.extend(collected.err().map(|error| error.of_network(name)));
        }
        errors
    }
}
