//! DEL of sandboxes that Multus attached, before we came: by its files, by sriov-cni's, by the pools' and by the primary's
//! configuration on disk, whichever of them is left. Never success and a leak: what fails is reported, or tried again by GC.

use std::collections::BTreeSet;

use ipam::Store;

use super::{Engine, builtin::LOCK_PATIENCE, configured, gc::Living, open_netns, pools};
use crate::{
    cni::{Error, Object, Plugin, PluginList, chain},
    node::multus::{Delegate, Left, MultusFiles},
};
use sriov::SriovCni;

/// The primary interface of every sandbox of Kubernetes.
pub(super) const PRIMARY_INTERFACE: &str = "eth0";

impl Engine {
    /// DEL of a sandbox of which we have no record.
    pub(super) async fn del_unrecorded_sandbox(&self) -> Result<(), Error> {
        let files = MultusFiles::of_node(&self.settings.state_dir);
        let container = &self.invocation.container;
        let alive = open_netns(&self.invocation.netns)?.is_some();
        let left = files.left(container, &self.invocation.if_name)?;
        if let Some(left) = &left {
            tracing::info!(
                container,
                attachments = left.delegates.len(),
                "undoing a sandbox by what Multus left of it"
            );
        }
        let errors = self.undo_of_multus(&files, left.as_ref(), alive).await;
        let Some(error) = Error::join(errors) else { return files.forget(container) };
        if alive {
            return Err(error);
        }
        // The runtime would try for ever; GC does, by the files, which stay.
        tracing::warn!(container, %error, "DEL is owed: the namespace is gone, GC will try again");
        Ok(())
    }

    /// Undoes what was left, in reverse, and goes on after a failure.
    async fn undo_of_multus(&self, files: &MultusFiles, left: Option<&Left>, alive: bool) -> Vec<Error> {
        let (container, primary) = (&self.invocation.container, &self.invocation.if_name);
        let mut errors = Vec::new();
        let delegates = left.map(|left| left.delegates.as_slice()).unwrap_or_default();
        for delegate in delegates.iter().rev() {
            let on_disk = delegate.interface == *primary && self.is_better_on_disk(delegate).await;
            let undone = match &delegate.list {
                Some(list) if !on_disk => self.undo_delegate(delegate, list, alive).await,
                _ if delegate.interface == *primary => self.del_unrecorded_primary().await,
                _ => Ok(()),
            };
            let undone = undone.and_then(|()| files.forget_result(container, &delegate.interface));
            errors.extend(undone.err().map(|error| error.of_network(delegate.interface.clone())));
        }
        let known = delegates.iter().all(|delegate| delegate.list.is_some());
        if !known || left.is_none_or(|left| left.torn) {
            errors.extend(self.undo_what_nothing_tells_of(left.is_some()).await);
        }
        if !delegates.iter().any(|delegate| delegate.interface == *primary) {
            errors.extend(self.del_unrecorded_primary().await.err());
        }
        errors
    }

    /// Whether the primary's configuration on disk is the one that a copy which may be lossy was made of.
    async fn is_better_on_disk(&self, delegate: &Delegate) -> bool {
        let Some(copy) = delegate.list.as_ref().filter(|_| delegate.may_be_lossy) else { return false };
        let networks = configured::networks(&self.settings, &self.cluster).await.unwrap_or_default();
        networks.first().is_some_and(|primary| primary.list.name == copy.name)
    }

    /// DEL of one attachment: what is built in by sriov-cni's file, the rest by its plugins.
    async fn undo_delegate(&self, delegate: &Delegate, list: &PluginList, alive: bool) -> Result<(), Error> {
        let netns = if alive { self.invocation.netns.as_str() } else { "" };
        let mut scene = self.bare_scene(netns, delegate.args.clone().unwrap_or_else(|| self.invocation.args.clone()));
        scene.if_name.clone_from(&delegate.interface);
        scene.runtime_config = delegate.runtime_config.clone();
        let builtin = self.is_builtin_list(list);
        chain::del(list, usize::from(builtin), delegate.previous.as_ref(), &scene, !alive).await?;
        match list.plugins.first().filter(|_| builtin) {
            Some(plugin) => self.as_sriov(&delegate.interface, list, plugin, delegate)?.del_unrecorded_vf().await,
            None => Ok(()),
        }
    }

    /// The engine for one plugin `sriov` of the sandbox, as if it were called for that alone.
    fn as_sriov(
        &self,
        interface: &str,
        list: &PluginList,
        plugin: &Plugin,
        delegate: &Delegate,
    ) -> Result<Self, Error> {
        let mut engine = self.with_deadline(self.deadline);
        let mut conf = plugin.object.clone();
        conf.set("name", &list.name);
        conf.set("cniVersion", list.version.as_str());
        conf.set("runtimeConfig", &delegate.runtime_config);
        if let Some(previous) = &delegate.previous {
            conf.set("prevResult", previous);
        }
        engine.invocation.conf = conf;
        interface.clone_into(&mut engine.invocation.if_name);
        if let Some(args) = &delegate.args {
            engine.invocation.args = args.clone();
        }
        Ok(engine)
    }

    /// VFs and addresses of the container that no file of Multus' tells of: by sriov-cni's files, and by the pools'.
    ///
    /// Every lease file is read for that, so there must be a sign that the container had something: a file of Multus'
    /// (`known`) or of sriov-cni's, or the result that the runtime keeps until a DEL succeeded. A DEL that is merely repeated
    /// has none.
    async fn undo_what_nothing_tells_of(&self, known: bool) -> Vec<Error> {
        let mut errors = Vec::new();
        let mut had_something = known || self.invocation.conf.raw("prevResult").is_some();
        match self.interfaces_of_sriov_cni() {
            Ok(interfaces) => {
                had_something |= !interfaces.is_empty();
                for interface in interfaces {
                    let undone = self.undo_vf_alone(&interface).await;
                    errors.extend(undone.err().map(|error| error.of_network(interface)));
                }
            }
            Err(error) => errors.push(error),
        }
        if errors.is_empty() && had_something {
            errors.extend(self.release_leases_of_container());
        }
        errors
    }

    fn interfaces_of_sriov_cni(&self) -> Result<BTreeSet<String>, Error> {
        let prefix = format!("{}-", self.invocation.container);
        let files = SriovCni::of_node().all_cached()?;
        Ok(files.into_iter().filter_map(|(name, _)| name.strip_prefix(&prefix).map(str::to_owned)).collect())
    }

    /// sriov-cni's file has not the whole configuration: no more of `ipam` than its type.
    async fn undo_vf_alone(&self, interface: &str) -> Result<(), Error> {
        let mut object = Object::default();
        object.set("cniVersion", "1.0.0");
        object.set("name", "unknown");
        object.set("type", "sriov");
        let list = PluginList::from_object(object, None)?;
        let Some(plugin) = list.plugins.first() else { return Ok(()) };
        let delegate = Delegate {
            interface: interface.to_owned(),
            list: None,
            may_be_lossy: false,
            previous: None,
            args: None,
            runtime_config: Object::default(),
        };
        self.as_sriov(interface, &list, plugin, &delegate)?.del_unrecorded_vf().await
    }

    /// Frees the container's addresses in host-local's pools, but for those of interfaces that have a record, and the
    /// primary's, which its chain frees.
    fn release_leases_of_container(&self) -> Vec<Error> {
        let container = &self.invocation.container;
        let recorded: BTreeSet<String> = match self.records.of_container(container) {
            Ok(entries) => entries.iter().map(|entry| entry.interface().to_owned()).collect(),
            Err(error) => return vec![error],
        };
        let mut errors = Vec::new();
        for pool in pools::of_node() {
            let pool = Store::new(&pool, LOCK_PATIENCE);
            let released = pool.leases().and_then(|mut leases| {
                leases.retain(|lease| {
                    lease.container.as_ref() == Some(container)
                        && lease.interface.as_ref().is_some_and(|interface| {
                            *interface != self.invocation.if_name && !recorded.contains(interface)
                        })
                });
                if leases.is_empty() { Ok(Vec::new()) } else { pool.reclaim(&leases) }
            });
            match released {
                Ok(released) => released.iter().for_each(|lease| {
                    tracing::info!(container, address = %lease.address, "an address that no record tells of is freed");
                }),
                Err(error) => errors.push(error.into()),
            }
        }
        errors
    }

    /// GC of sandboxes that Multus attached and that the runtime does not know any more.
    pub(super) async fn collect_sandboxes_of_multus(&mut self, living: &Living) -> Vec<Error> {
        let files = MultusFiles::of_node(&self.settings.state_dir);
        let containers = match files.containers() {
            Ok(containers) => containers,
            Err(error) => return vec![error],
        };
        let mut errors = Vec::new();
        for container in containers.iter().filter(|container| living.knows_not(container)) {
            let mut engine = match self.lock(container).await {
                Ok(()) => self.with_deadline(self.deadline),
                Err(error) => {
                    errors.push(error.of_network(format!("container {container}")));
                    continue;
                }
            };
            engine.invocation.container.clone_from(container);
            engine.invocation.netns = String::new();
            engine.invocation.if_name = PRIMARY_INTERFACE.to_owned();
            match files.left(container, PRIMARY_INTERFACE) {
                Ok(Some(left)) if left.netns.iter().any(|path| !matches!(open_netns(path), Ok(None))) => {
                    tracing::warn!(
                        container,
                        "a sandbox of Multus' that the runtime does not list has a living namespace: it is left alone"
                    );
                }
                Ok(left) => {
                    let failed = engine.undo_of_multus(&files, left.as_ref(), false).await;
                    let forgotten = if failed.is_empty() { files.forget(container) } else { Ok(()) };
                    let all = failed.into_iter().chain(forgotten.err());
                    errors.extend(all.map(|error| error.of_network(format!("container {container}"))));
                }
                Err(error) => errors.push(error),
            }
            drop(engine);
            if self.records.of_container(container).is_ok_and(|left| left.is_empty()) {
                self.remove_lock(container);
            }
        }
        self.lock = None;
        errors
    }
}
