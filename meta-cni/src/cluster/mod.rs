//! Where pods and definitions come from and where status and events go: an API server, or a directory of manifests.

mod api_server;
mod claims;
mod connection;
mod dns;
mod dra;
mod event;
mod events;
mod manifests;
mod slices;

use std::{collections::BTreeMap, sync::Arc};

use serde_json::Value;
use tokio::time::Instant;

use crate::{
    cni::{Error, Trace},
    network::{Definition, Devices},
    pod::PodName,
    settings::Settings,
};
use api_server::ApiServer;
pub(crate) use connection::without_content;
pub use event::{Event, Reason, Subject};
pub use events::Events;
pub(crate) use events::{Handed, POST_COMMAND, post_command};
use manifests::Manifests;

/// What we need to know of a pod.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Pod {
    /// The UID of the object where its status is written; unknown when only the runtime told us of the pod.
    pub uid: Option<String>,
    /// Its annotations.
    pub annotations: BTreeMap<String, String>,
}

impl Pod {
    /// Reads the object's metadata.
    #[must_use]
    pub fn from_object(object: &Value) -> Self {
        let annotations = object["metadata"]["annotations"].as_object().into_iter().flatten();
        Self {
            uid: object["metadata"]["uid"].as_str().map(str::to_owned),
            annotations: annotations
                .filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned())))
                .collect(),
        }
    }

    /// Whether kubelet made the pod from a file of its own; the API server's object is then a mirror with another UID.
    #[must_use]
    pub fn is_static(&self) -> bool {
        self.annotations.get("kubernetes.io/config.source").is_some_and(|source| source != "api")
    }
}

/// What became of a status that was to be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Written {
    /// It is there.
    Done,
    /// The pod is gone, or another one has its name.
    PodGone,
}

/// The cluster, as far as this node's conf leads to one.
#[derive(Debug)]
pub enum Cluster {
    /// An API server.
    ApiServer(Arc<ApiServer>),
    /// A directory of manifests.
    Manifests(Manifests),
    /// Nothing is configured: pods get the networks of the conf alone.
    None,
}

impl Cluster {
    /// The cluster of a conf. Nothing is opened yet.
    #[must_use]
    pub fn of(settings: &Settings, deadline: Instant) -> Self {
        if let Some(directory) = &settings.manifest_dir {
            return Self::Manifests(Manifests::new(directory));
        }
        match &settings.kubeconfig {
            Some(path) => Self::ApiServer(Arc::new(ApiServer::new(path, deadline))),
            None => Self::None,
        }
    }

    /// The same cluster, which is told of the trace that its requests are part of.
    #[must_use]
    pub fn traced(mut self, trace: &Trace) -> Self {
        // It is ours alone as long as nobody was told of it.
        if let Self::ApiServer(server) = &mut self
            && let Some(server) = Arc::get_mut(server)
        {
            server.trace.clone_from(trace);
        }
        self
    }

    /// Whether pods can be asked for.
    #[must_use]
    pub fn is_there(&self) -> bool {
        !matches!(self, Self::None)
    }

    /// What it is, in a word.
    #[must_use]
    pub fn title(&self) -> &'static str {
        match self {
            Self::ApiServer(_) => "API server",
            Self::Manifests(_) => "manifests",
            Self::None => "nobody",
        }
    }

    /// A pod's UID and annotations.
    ///
    /// # Errors
    /// [`Error::TryLater`] when it cannot be had now, or there is no such pod (yet).
    pub async fn pod(&self, name: &PodName) -> Result<Pod, Error> {
        match self {
            Self::ApiServer(server) => server.pod(name).await,
            Self::Manifests(manifests) => manifests.pod(name),
            Self::None => Ok(Pod::default()),
        }
    }

    /// A definition.
    ///
    /// # Errors
    /// [`Error::Config`] when there is none of that name, [`Error::TryLater`] when it cannot be had now.
    pub async fn definition(&self, namespace: &str, name: &str) -> Result<Definition, Error> {
        match self {
            Self::ApiServer(server) => server.definition(namespace, name).await,
            Self::Manifests(manifests) => manifests.definition(namespace, name),
            Self::None => Err(Error::Config(format!(
                "definition {namespace}/{name} cannot be looked up: the conf has neither \"kubeconfig\" nor \"manifestDir\""
            ))),
        }
    }

    /// The devices of a pod's resource claims, with what was passed over and why. Manifests know of none.
    ///
    /// # Errors
    /// [`Error::TryLater`] when pod, claims or what drivers publish cannot be had now, or nothing is allocated yet.
    pub async fn claimed_devices(&self, pod: &PodName) -> Result<Devices, Error> {
        match self {
            Self::ApiServer(server) => server.claimed_devices(pod).await,
            Self::Manifests(_) | Self::None => Ok(Devices::default()),
        }
    }

    /// Writes network-status, provided that the pod is still the one of this UID.
    ///
    /// # Errors
    /// [`Error::TryLater`] when it cannot be written now, [`Error::Io`] in the manifests directory.
    pub async fn write_status(&self, pod: &PodName, uid: Option<&str>, status: &str) -> Result<Written, Error> {
        match self {
            Self::ApiServer(server) => server.write_status(pod, uid, status).await,
            Self::Manifests(manifests) => manifests.write_status(pod, status),
            Self::None => Ok(Written::Done),
        }
    }

    /// Forgets what [`Cluster::write_status`] left beside the manifests; an API server's pod takes it along.
    pub fn forget_status(&self, pod: &PodName) {
        if let Self::Manifests(manifests) = self {
            manifests.forget_status(pod);
        }
    }
}
