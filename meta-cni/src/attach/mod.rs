//! Doing it: one file a verb, over the journal ([`record`]), the lock of the sandbox, and what is attached in-process
//! (`builtin`). Rollback, DEL, GC and the retry after a crash all undo an attachment by the same function (`undo`).

pub mod gate;
pub mod living;
pub mod pools;
pub mod record;

mod add;
mod again;
mod alone;
mod builtin;
mod check;
mod configured;
mod dead;
mod default_routes;
mod del;
mod forgotten;
mod gc;
mod lock;
mod multus;
mod primary;
mod readiness;
mod reclaim;
mod request;
mod undo;

use std::{path::PathBuf, sync::Arc};

use sandbox::Netns;
use tokio::time::Instant;

use crate::{
    cluster::{Cluster, Events},
    cni::{CniArgs, Command, Error, Invocation, Object, Scene},
    face::Face,
    node::{Layout, boot_id},
    settings::Settings,
};
use lock::SandboxLock;
pub use primary::subnets_of;
use record::{Call, Record, Records};

/// Everything that the verbs of one call share.
#[derive(Debug)]
pub struct Engine {
    face: Face,
    settings: Settings,
    layout: Layout,
    records: Records,
    cluster: Cluster,
    /// What the pod's events say of this call.
    events: Events,
    boot_id: String,
    /// Of the meta plugin `binDir`, then `CNI_PATH`; of a plugin alone `CNI_PATH`.
    path: Vec<PathBuf>,
    invocation: Invocation,
    deadline: Instant,
    /// The lock of the sandbox that is worked on.
    lock: Option<Arc<SandboxLock>>,
}

impl Engine {
    /// The engine for one call.
    ///
    /// # Errors
    /// [`Error::Config`] for a wrong conf; [`Error::Io`] when our directories cannot be made.
    pub fn new(face: Face, invocation: Invocation, settings: Settings) -> Result<Self, Error> {
        let timeout = if invocation.command == Command::Add { settings.add_timeout } else { settings.del_timeout };
        let deadline = Instant::now() + timeout;
        let layout = Layout::of(&settings, face);
        let path = match face {
            Face::Meta => {
                let other = |directory: &&PathBuf| **directory != settings.bin_dir;
                [&settings.bin_dir].into_iter().chain(invocation.path.iter().filter(other)).cloned().collect()
            }
            Face::Sriov => invocation.path.clone(),
        };
        let cluster = Cluster::of(&settings, deadline).traced(&invocation.trace);
        Ok(Self {
            face,
            records: Records::of(&layout),
            events: Events::of(&settings, &cluster),
            cluster,
            boot_id: boot_id()?,
            layout,
            settings,
            path,
            invocation,
            deadline,
            lock: None,
        })
    }

    /// The events of this call, which outlive the engine.
    #[must_use]
    pub fn events(&self) -> Events {
        self.events.clone()
    }

    /// Takes the lock of a sandbox; plugins that are executed from now on are noted in it.
    async fn lock(&mut self, container: &str) -> Result<(), Error> {
        // That of another sandbox is given up first.
        self.lock = None;
        let lock = SandboxLock::take(self.layout.sandbox_lock(container), container, self.deadline).await?;
        self.lock = Some(Arc::new(lock));
        Ok(())
    }

    /// Removes the lock's file, and what is left of the container in the journal: it has no record any more.
    fn remove_lock(&mut self, container: &str) {
        if let Some(lock) = self.lock.take() {
            self.records.tidy(container);
            lock.remove_file();
        }
    }

    /// The journals on this node: ours, and those in the default place.
    fn journals(&self) -> Vec<Records> {
        let default = journals_of(&Settings::of_plugin(&Object::default()));
        default.into_iter().chain(journals_of(&self.settings)).collect()
    }

    /// The key of this call.
    fn call(&self) -> Result<Call, Error> {
        Ok(Call {
            conf: self.face.mark(self.invocation.conf.text("name")?),
            container: self.invocation.container.clone(),
            if_name: self.invocation.if_name.clone(),
        })
    }

    /// What the plugins of a recorded attachment are told, in the namespace `netns` (empty when it is gone).
    fn scene(&self, record: &Record, netns: &str) -> Scene {
        Scene {
            container: record.call.container.clone(),
            netns: netns.to_owned(),
            if_name: record.interface.clone(),
            args: record.args.clone(),
            path: self.path.clone(),
            runtime_config: record.runtime_object(),
            deadline: self.deadline,
            ledger: self.lock.as_ref().map(|lock| lock.ledger()),
            trace: self.invocation.trace.clone(),
        }
    }

    /// What the plugins of a network are told that has no record.
    fn bare_scene(&self, netns: &str, args: CniArgs) -> Scene {
        Scene {
            container: self.invocation.container.clone(),
            netns: netns.to_owned(),
            if_name: self.invocation.if_name.clone(),
            args,
            path: self.path.clone(),
            runtime_config: self.invocation.conf.get("runtimeConfig").ok().flatten().unwrap_or_default(),
            deadline: self.deadline,
            ledger: self.lock.as_ref().map(|lock| lock.ledger()),
            trace: self.invocation.trace.clone(),
        }
    }
}

/// The journals that lie where these settings say: each face has its own.
pub(crate) fn journals_of(settings: &Settings) -> Vec<Records> {
    Face::ALL.map(|face| Records::of(&Layout::of(settings, face))).into()
}

/// The namespace at a path, if there is one. One that cannot be looked at counts as there: it must not be taken for dead.
///
/// # Errors
/// The error of a path that is neither gone nor a namespace we can open.
fn open_netns(path: &str) -> Result<Option<Netns>, Error> {
    if path.is_empty() {
        return Ok(None);
    }
    match Netns::open(path) {
        Ok(netns) => Ok(Some(netns)),
        Err(sandbox::Error::NamespaceGone { .. } | sandbox::Error::NotANamespace { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}
