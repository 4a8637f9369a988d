//! Which devices kubelet gave to a pod: its pod-resources API (v1, List), or the checkpoint of its device manager.

use std::{path::Path, time::Duration};

use tokio::time::{Instant, sleep, timeout_at};
use tonic::{
    Code, Request,
    codegen::http::uri::PathAndQuery,
    transport::{Channel, Endpoint},
};
use tonic_prost::ProstCodec;

use super::checkpoint;
use crate::{cluster::PodName, cni::Error, network::Devices};

/// kubelet's socket.
pub const SOCKET: &str = "/var/lib/kubelet/pod-resources/kubelet.sock";
/// The checkpoint of its device manager.
pub const CHECKPOINT: &str = "/var/lib/kubelet/device-plugins/kubelet_internal_checkpoint";
/// The largest answer: a node with hundreds of pods and devices.
const MESSAGE_LIMIT: usize = 16 << 20;

/// The part of kubelet's `podresources/v1` messages that we read (k8s.io/kubelet, api.proto).
mod v1 {
    /// No fields.
    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct ListPodResourcesRequest {}

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct ListPodResourcesResponse {
        #[prost(message, repeated, tag = "1")]
        pub(super) pod_resources: Vec<PodResources>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct PodResources {
        #[prost(string, tag = "1")]
        pub(super) name: String,
        #[prost(string, tag = "2")]
        pub(super) namespace: String,
        #[prost(message, repeated, tag = "3")]
        pub(super) containers: Vec<ContainerResources>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct ContainerResources {
        #[prost(message, repeated, tag = "2")]
        pub(super) devices: Vec<ContainerDevices>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct ContainerDevices {
        #[prost(string, tag = "1")]
        pub(super) resource_name: String,
        #[prost(string, repeated, tag = "2")]
        pub(super) device_ids: Vec<String>,
    }
}

/// The devices of a pod: from the socket, or from the checkpoint when there is no socket.
///
/// # Errors
/// [`Error::TryLater`] when kubelet does not answer; [`Error::Io`], [`Error::Decode`] for the checkpoint.
pub async fn devices(pod: &PodName, socket: &Path, checkpoint: &Path, deadline: Instant) -> Result<Devices, Error> {
    Ok(match assigned(pod, socket, checkpoint, deadline).await? {
        Assigned::ByPod(answer) => of_pod(pod, answer),
        Assigned::Checkpoint(checkpoint) => checkpoint.of_pod(&pod.uid),
    })
}

/// To whom kubelet gives a device.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Holders {
    /// To the pod in question.
    pub this: bool,
    /// To other pods, as kubelet names them: none in the ordinary case.
    pub others: Vec<String>,
}

/// To whom kubelet gives a device: to `pod`, and to which others.
///
/// # Errors
/// As [`devices`].
pub async fn holders(
    device: &str,
    pod: &PodName,
    socket: &Path,
    checkpoint: &Path,
    deadline: Instant,
) -> Result<Holders, Error> {
    Ok(match assigned(pod, socket, checkpoint, deadline).await? {
        Assigned::ByPod(answer) => listed_holders(device, pod, answer),
        Assigned::Checkpoint(checkpoint) => {
            let (this, others): (Vec<_>, Vec<_>) =
                checkpoint.holders(device).into_iter().partition(|uid| *uid == pod.uid);
            Holders { this: !this.is_empty(), others }
        }
    })
}

fn listed_holders(device: &str, pod: &PodName, answer: v1::ListPodResourcesResponse) -> Holders {
    let mut holders = Holders::default();
    for found in answer.pod_resources {
        let given = found.containers.iter().flat_map(|container| &container.devices);
        if !given.flat_map(|given| &given.device_ids).any(|id| id == device) {
            continue;
        }
        if (&found.name, &found.namespace) == (&pod.name, &pod.namespace) {
            holders.this = true;
        } else {
            holders.others.push(format!("{}/{}", found.namespace, found.name));
        }
    }
    holders
}

/// What kubelet gave to the pods of the node.
enum Assigned {
    ByPod(v1::ListPodResourcesResponse),
    Checkpoint(checkpoint::Checkpoint),
}

async fn assigned(pod: &PodName, socket: &Path, checkpoint: &Path, deadline: Instant) -> Result<Assigned, Error> {
    if socket.exists() {
        return list(socket, deadline).await.map(Assigned::ByPod);
    }
    if !checkpoint.exists() {
        return Err(Error::TryLater(format!(
            "the devices of pod {}/{} cannot be looked up: neither {} nor {} exists: is kubelet running?",
            pod.namespace,
            pod.name,
            socket.display(),
            checkpoint.display()
        )));
    }
    let text = std::fs::read(checkpoint).map_err(|source| Error::io("read", checkpoint.display(), source))?;
    let read = checkpoint::Checkpoint::read(&text);
    read.map(Assigned::Checkpoint).map_err(|problem| Error::decode(checkpoint.display().to_string(), problem))
}

async fn list(socket: &Path, deadline: Instant) -> Result<v1::ListPodResourcesResponse, Error> {
    let away = |problem: String| {
        Error::TryLater(format!("kubelet does not list the pods' devices at {}: {problem}", socket.display()))
    };
    let endpoint =
        Endpoint::try_from(format!("unix://{}", socket.display())).map_err(|problem| away(problem.to_string()))?;
    let channel = timeout_at(deadline, endpoint.connect()).await.map_err(|_| away("the deadline passed".to_owned()))?;
    let mut grpc = tonic::client::Grpc::new(channel.map_err(|problem| away(problem.to_string()))?)
        .max_decoding_message_size(MESSAGE_LIMIT);
    let mut pause = Duration::from_millis(50);
    loop {
        let answer = timeout_at(deadline, call(&mut grpc)).await.map_err(|_| away("the deadline passed".to_owned()))?;
        match answer {
            Ok(answer) => return Ok(answer),
            // kubelet limits the rate of this API (100 a second): multus-cni PR #1545.
            Err(status) if status.code() == Code::ResourceExhausted && Instant::now() + pause < deadline => {
                sleep(pause).await;
                pause *= 2;
            }
            Err(status) => return Err(away(status.message().to_owned())),
        }
    }
}

async fn call(grpc: &mut tonic::client::Grpc<Channel>) -> Result<v1::ListPodResourcesResponse, tonic::Status> {
    grpc.ready().await.map_err(|problem| tonic::Status::unavailable(problem.to_string()))?;
    let codec: ProstCodec<v1::ListPodResourcesRequest, v1::ListPodResourcesResponse> = ProstCodec::default();
    let path = PathAndQuery::from_static("/v1.PodResourcesLister/List");
    Ok(grpc.unary(Request::new(v1::ListPodResourcesRequest {}), path, codec).await?.into_inner())
}

/// An answer to List, as it is on the wire. The client reads its own; this is for who has the message alone.
#[derive(Debug, Clone)]
pub struct Listed(v1::ListPodResourcesResponse);

impl Listed {
    /// Reads the message, without gRPC's five bytes before it.
    ///
    /// # Errors
    /// [`Error::Decode`].
    pub fn decode(message: &[u8]) -> Result<Self, Error> {
        let read = prost::Message::decode(message);
        read.map(Self).map_err(|problem| Error::decode("kubelet's list of the pods' devices", problem))
    }

    /// The devices of a pod.
    #[must_use]
    pub fn devices(&self, pod: &PodName) -> Devices {
        of_pod(pod, self.0.clone())
    }

    /// To whom kubelet gives a device.
    #[must_use]
    pub fn holders(&self, device: &str, pod: &PodName) -> Holders {
        listed_holders(device, pod, self.0.clone())
    }
}

fn of_pod(pod: &PodName, answer: v1::ListPodResourcesResponse) -> Devices {
    let mut devices = Devices::default();
    for found in
        answer.pod_resources.into_iter().filter(|found| found.name == pod.name && found.namespace == pod.namespace)
    {
        for given in found.containers.into_iter().flat_map(|container| container.devices) {
            devices.add(&given.resource_name, given.device_ids);
        }
    }
    devices
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_device_is_this_pods_or_others_by_the_checkpoint() {
        let dir = tempfile::tempdir().unwrap();
        let (socket, checkpoint) = (dir.path().join("no-socket"), dir.path().join("checkpoint"));
        let entry = |uid: &str, device: &str| {
            format!(r#"{{"PodUID":"{uid}","ResourceName":"r/a","DeviceIDs":{{"0":["{device}"]}}}}"#)
        };
        let entries = [entry("u1", "d1"), entry("u1", "d2"), entry("u2", "d2")].join(",");
        std::fs::write(&checkpoint, format!(r#"{{"Data":{{"PodDeviceEntries":[{entries}]}}}}"#)).unwrap();
        let pod = PodName { namespace: "default".into(), name: "p".into(), uid: "u1".into() };
        let holders_of = async |device| holders(device, &pod, &socket, &checkpoint, Instant::now()).await.unwrap();
        assert_eq!(holders_of("d1").await, Holders { this: true, others: Vec::new() });
        assert_eq!(holders_of("d2").await, Holders { this: true, others: vec!["u2".to_owned()] });
        assert_eq!(holders_of("d3").await, Holders::default());
    }

    #[test]
    fn a_device_is_this_pods_or_others_by_the_list() {
        let given = |namespace: &str, name: &str, devices: &[&str]| v1::PodResources {
            name: name.to_owned(),
            namespace: namespace.to_owned(),
            containers: vec![v1::ContainerResources {
                devices: vec![v1::ContainerDevices {
                    resource_name: "r/a".to_owned(),
                    device_ids: devices.iter().map(|device| (*device).to_owned()).collect(),
                }],
            }],
        };
        let pods = vec![given("default", "p", &["d1", "d2"]), given("other", "p", &["d2"]), given("default", "q", &[])];
        let answer = v1::ListPodResourcesResponse { pod_resources: pods };
        let pod = PodName { namespace: "default".into(), name: "p".into(), uid: "u1".into() };
        let holders_of = |device| listed_holders(device, &pod, answer.clone());
        assert_eq!(holders_of("d1"), Holders { this: true, others: Vec::new() });
        assert_eq!(holders_of("d2"), Holders { this: true, others: vec!["other/p".to_owned()] });
        assert_eq!(holders_of("d3"), Holders::default());
    }
}
