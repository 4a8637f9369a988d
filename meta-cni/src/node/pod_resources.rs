//! kubelet's pod-resources API (v1), as a client.

use std::{path::Path, time::Duration};

use prost::Message;
use tokio::time::{Instant, sleep, timeout_at};
use tonic::{
    Code, Request, Status,
    client::Grpc,
    codegen::http::uri::PathAndQuery,
    transport::{Channel, Endpoint},
};
use tonic_prost::ProstCodec;

use crate::{pause::jittered, pod::PodName};

/// The largest answer: a node with hundreds of pods and devices.
const MESSAGE_LIMIT: usize = 16 << 20;
/// How long kubelet is waited for: it answers from its memory.
const PATIENCE: Duration = Duration::from_secs(10);
/// After which time kubelet is asked again that refused because it was asked too often (100 times a second): the first
/// time, and at most.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// The part of the messages of `podresources/v1` that we read (k8s.io/kubelet, api.proto). CPUs, memory, topology and
/// dynamic resources are passed over.
pub(super) mod v1 {
    /// No fields.
    #[derive(Clone, PartialEq, prost::Message)]
    pub(crate) struct ListPodResourcesRequest {}

    #[derive(Clone, PartialEq, prost::Message)]
    pub(crate) struct ListPodResourcesResponse {
        #[prost(message, repeated, tag = "1")]
        pub(crate) pod_resources: Vec<PodResources>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(crate) struct GetPodResourcesRequest {
        #[prost(string, tag = "1")]
        pub(crate) pod_name: String,
        #[prost(string, tag = "2")]
        pub(crate) pod_namespace: String,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(crate) struct GetPodResourcesResponse {
        #[prost(message, optional, tag = "1")]
        pub(crate) pod_resources: Option<PodResources>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(crate) struct PodResources {
        #[prost(string, tag = "1")]
        pub(crate) name: String,
        #[prost(string, tag = "2")]
        pub(crate) namespace: String,
        /// Containers and sidecars; ordinary init containers are not told.
        #[prost(message, repeated, tag = "3")]
        pub(crate) containers: Vec<ContainerResources>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(crate) struct ContainerResources {
        #[prost(message, repeated, tag = "2")]
        pub(crate) devices: Vec<ContainerDevices>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(crate) struct ContainerDevices {
        #[prost(string, tag = "1")]
        pub(crate) resource_name: String,
        #[prost(string, repeated, tag = "2")]
        pub(crate) device_ids: Vec<String>,
    }
}

use v1::PodResources;

impl PodResources {
    /// Whether it is of a pod, as far as the name says: two pods may have it, one after the other.
    pub(super) fn is_of(&self, pod: &PodName) -> bool {
        (&self.name, &self.namespace) == (&pod.name, &pod.namespace)
    }

    /// What the pod's containers were given.
    pub(super) fn devices(&self) -> impl Iterator<Item = &v1::ContainerDevices> {
        self.containers.iter().flat_map(|container| &container.devices)
    }
}

/// Why kubelet's word is not to be had.
#[derive(Debug)]
pub(super) enum Failure {
    /// Nobody listens there.
    NoServer(String),
    /// Somebody does, but does not answer, or not what was asked.
    NoAnswer(String),
}

/// A connection to kubelet.
pub(super) struct PodResourcesApi {
    grpc: Grpc<Channel>,
    deadline: Instant,
}

impl PodResourcesApi {
    /// Connects, for a deadline or 10 s.
    pub(super) async fn connect(socket: &Path, deadline: Instant) -> Result<Self, Failure> {
        let nobody = |problem: String| Failure::NoServer(format!("{}: {problem}", socket.display()));
        if !socket.exists() {
            return Err(nobody("no such socket".to_owned()));
        }
        let deadline = deadline.min(Instant::now() + PATIENCE);
        let endpoint = Endpoint::try_from(format!("unix://{}", socket.display()))
            .map_err(|problem| nobody(problem.to_string()))?;
        let channel = match timeout_at(deadline, endpoint.connect()).await {
            Ok(channel) => channel.map_err(|problem| nobody(root(&problem)))?,
            Err(_) => return Err(Failure::NoAnswer("no connection in time".to_owned())),
        };
        Ok(Self { grpc: Grpc::new(channel).max_decoding_message_size(MESSAGE_LIMIT), deadline })
    }

    /// The entries of a pod's name: by Get, else by List. kubelet's older than 1.27 do not know Get (Unimplemented); where
    /// its feature gate is off (the default until 1.34), and for a pod that is not known, the answer is an error without
    /// a code (Unknown), of which List knows more.
    pub(super) async fn of_pod(&mut self, pod: &PodName) -> Result<Vec<PodResources>, Failure> {
        let request = v1::GetPodResourcesRequest { pod_name: pod.name.clone(), pod_namespace: pod.namespace.clone() };
        let answer = self.ask::<_, v1::GetPodResourcesResponse>("/v1.PodResourcesLister/Get", request).await;
        let mut entries = match answer {
            Ok(answer) => Vec::from_iter(answer.pod_resources),
            Err(Refusal::Status(status)) if matches!(status.code(), Code::Unimplemented | Code::Unknown) => {
                tracing::debug!(answer = status.message(), "kubelet does not tell one pod's devices: asking for all");
                self.list().await?
            }
            Err(refusal) => return Err(refusal.into_failure()),
        };
        entries.retain(|entry| entry.is_of(pod));
        Ok(entries)
    }

    /// The entries of all pods.
    pub(super) async fn list(&mut self) -> Result<Vec<PodResources>, Failure> {
        let request = v1::ListPodResourcesRequest {};
        let answer = self.ask::<_, v1::ListPodResourcesResponse>("/v1.PodResourcesLister/List", request).await;
        Ok(answer.map_err(Refusal::into_failure)?.pod_resources)
    }

    /// One call, made again as long as kubelet says that it is asked too often.
    async fn ask<Q, A>(&mut self, method: &'static str, request: Q) -> Result<A, Refusal>
    where
        Q: Message + Clone + 'static,
        A: Message + Default + 'static,
    {
        let mut pause = FIRST_PAUSE;
        loop {
            let answer = timeout_at(self.deadline, self.call(method, request.clone())).await;
            match answer.map_err(|_| Refusal::Silence)? {
                Ok(answer) => return Ok(answer),
                Err(status) if status.code() == Code::ResourceExhausted && Instant::now() + pause < self.deadline => {
                    sleep(jittered(pause)).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
                Err(status) => return Err(Refusal::Status(status)),
            }
        }
    }

    async fn call<Q, A>(&mut self, method: &'static str, request: Q) -> Result<A, Status>
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        self.grpc.ready().await.map_err(|problem| Status::unavailable(root(&problem)))?;
        let codec: ProstCodec<Q, A> = ProstCodec::default();
        let answer = self.grpc.unary(Request::new(request), PathAndQuery::from_static(method), codec).await?;
        Ok(answer.into_inner())
    }
}

/// Why one call failed.
enum Refusal {
    Status(Status),
    Silence,
}

impl Refusal {
    fn into_failure(self) -> Failure {
        Failure::NoAnswer(match self {
            Self::Status(status) => format!("{} ({:?})", root(&status), status.code()),
            Self::Silence => "no answer in time".to_owned(),
        })
    }
}

/// The cause at the bottom, which says what happened; above it are words like "transport error".
fn root(problem: &dyn std::error::Error) -> String {
    let mut cause = problem;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}
