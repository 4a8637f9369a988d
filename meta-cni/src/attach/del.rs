//! DEL: from the records alone. No API server, no definition and no namespace is needed.

use std::collections::BTreeSet;

use ipam::{Owner, Store};
use sandbox::{Links as _, Netns, Rtnl};

use super::{
    Engine,
    builtin::LOCK_PATIENCE,
    configured, open_netns, pools,
    record::{Call, Entry, Stage},
};
use crate::{
    cni::{Error, Invocation, chain},
    face::Face,
    log,
    network::Network,
    pod::PodName,
};
use serde_json::Value;
use tracing::Instrument as _;

impl Engine {
    /// Detaches this call's networks. Does all that can be done; what is gone already is done.
    ///
    /// # Errors
    /// What could not be undone while the sandbox's namespace lives: the runtime tries again.
    pub async fn del(&mut self) -> Result<(), Error> {
        self.layout.create()?;
        self.list_boot_or_warn().await;
        let call = self.call()?;
        self.lock(&call.container).await?;
        let entries = self.records.of_container(&call.container)?;
        let (own, others): (Vec<Entry>, Vec<Entry>) = entries.into_iter().partition(|entry| *entry.call() == call);
        // An attachment that is owed was answered before: it is GC's now, but a DEL is as good a moment.
        let primary_is_known = own.iter().any(|entry| matches!(entry, Entry::Good(record) if record.primary));
        let torn = own.iter().any(|entry| matches!(entry, Entry::Torn { .. }));
        let recorded: BTreeSet<String> = own.iter().map(|entry| entry.interface().to_owned()).collect();
        if own.is_empty() {
            tracing::info!(step = "records", "nothing is recorded of this call");
        }
        let mut errors = self.undo_entries(own, &self.invocation.netns).await;
        if !primary_is_known || torn {
            errors.extend(self.undo_unrecorded(&call, &recorded).await);
            let unrecorded = match self.face {
                Face::Meta => self.del_unrecorded_sandbox().await,
                Face::Sriov => self.del_unrecorded_vf().await,
            };
            errors.extend(unrecorded.err());
        }
        if let Some(error) = Error::join(errors) {
            if self.records.of_container(&call.container).is_ok_and(|left| left.is_empty()) {
                self.remove_lock(&call.container);
            }
            return Err(error);
        }
        if let Some(pod) = PodName::of_args(&self.invocation.args) {
            self.cluster.forget_status(&pod);
        }
        if others.is_empty() && self.records.of_container(&call.container)?.is_empty() {
            self.remove_lock(&call.container);
        }
        self.detach_forgotten().await;
        Ok(())
    }

    /// Gives back the VFs, with their addresses, that this call's leases name while their records are lost.
    async fn undo_unrecorded(&self, call: &Call, recorded: &BTreeSet<String>) -> Vec<Error> {
        let interfaces = match self.unrecorded(call, recorded) {
            Ok(interfaces) => interfaces,
            Err(error) => return vec![error],
        };
        let mut errors = Vec::new();
        for interface in interfaces {
            tracing::warn!(
                container = call.container,
                interface,
                "no record is left of a VF: it is given back by its lease"
            );
            let path = self.records.path(call, &interface);
            errors.extend(self.undo_torn(&path, call, &interface).await.err().map(|error| error.of_network(interface)));
        }
        errors
    }

    /// Whether anything says that a container of which we know nothing has the primary network: what the runtime keeps of an
    /// ADD until its DEL, the interface, or an address of a pool. A plugin that we executed ourselves has a record before.
    async fn had_a_primary(&self, netns: &Netns) -> Result<bool, Error> {
        let Invocation { conf, container, if_name, .. } = &self.invocation;
        if conf.raw("prevResult").is_some() || Rtnl::open(netns)?.by_name(if_name).await?.is_some() {
            return Ok(true);
        }
        let owner = Owner::new(container, if_name)?;
        for pool in pools::of_node() {
            if !Store::new(pool, LOCK_PATIENCE).held_by(&owner)?.is_empty() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// DEL of the primary's chain for a sandbox that we know nothing of: born under the bare chain before we came, or its
    /// record is lost. With the conf on disk and the runtime's own memory of the result; the chain's DEL is idempotent.
    pub(super) async fn del_unrecorded_primary(&self) -> Result<(), Error> {
        let netns = open_netns(&self.invocation.netns)?;
        let alive = netns.is_some();
        let networks = match configured::networks(&self.settings, &self.cluster).await {
            Ok(networks) => networks,
            Err(error) => {
                let Some(netns) = &netns else {
                    tracing::warn!(container = self.invocation.container, %error, "nothing is known of this container, and the primary's chain cannot be asked");
                    return Ok(());
                };
                if self.had_a_primary(netns).await? {
                    return Err(error);
                }
                tracing::info!(step = "records", %error, "the primary cannot be asked, and nothing says that it was attached");
                return Ok(());
            }
        };
        let Some(Network { list, .. }) = networks.into_iter().next() else { return Ok(()) };
        let previous = self.invocation.conf.get::<Value>("prevResult")?;
        let netns = if alive { self.invocation.netns.as_str() } else { "" };
        let scene = self.bare_scene(netns, self.invocation.args.clone());
        let span = log::of_network(&list.name, &scene.if_name);
        let deleted = chain::del(&list, 0, previous.as_ref(), &scene, !alive).instrument(span).await;
        match deleted {
            Err(error) if alive => Err(error.of_network(format!("{} as {}", list.name, self.invocation.if_name))),
            Err(error) => {
                tracing::warn!(container = self.invocation.container, %error, "the primary's chain did not undo an unknown container");
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }
}

/// Whether an entry is one whose DEL failed after its namespace was gone.
pub(super) fn is_owed(entry: &Entry) -> bool {
    matches!(entry, Entry::Good(record) if record.stage == Stage::Owed)
}
