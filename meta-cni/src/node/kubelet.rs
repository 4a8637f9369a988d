//! Which devices kubelet gave to a pod: its pod-resources API, or the checkpoint of its device manager.

use std::path::Path;

use tokio::time::Instant;

use super::{
    checkpoint::Checkpoint,
    pod_resources::{
        Failure, PodResourcesApi,
        v1::{self, PodResources},
    },
};
use crate::{cni::Error, network::Devices, pod::PodName};

/// kubelet's socket.
pub const SOCKET: &str = "/var/lib/kubelet/pod-resources/kubelet.sock";
/// The checkpoint of its device manager.
pub const CHECKPOINT: &str = "/var/lib/kubelet/device-plugins/kubelet_internal_checkpoint";

/// The devices of a pod: as kubelet says, or by the checkpoint when nobody listens at the socket.
///
/// # Errors
/// [`Error::TryLater`] when kubelet does not answer, or neither socket nor checkpoint is there; [`Error::Io`],
/// [`Error::Decode`] for the checkpoint.
pub async fn devices(pod: &PodName, socket: &Path, checkpoint: &Path, deadline: Instant) -> Result<Devices, Error> {
    let told = async || PodResourcesApi::connect(socket, deadline).await?.of_pod(pod).await;
    Ok(match Word::of(told().await, pod, socket, checkpoint)? {
        Word::Kubelet(entries) => devices_in(entries.iter()),
        Word::Checkpoint(checkpoint) => checkpoint.of_pod(&pod.uid),
    })
}

fn devices_in<'a>(entries: impl Iterator<Item = &'a PodResources>) -> Devices {
    let mut devices = Devices::default();
    for given in entries.flat_map(PodResources::devices) {
        devices.add(&given.resource_name, given.device_ids.iter().cloned());
    }
    devices
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
    let told = async || PodResourcesApi::connect(socket, deadline).await?.list().await;
    Ok(match Word::of(told().await, pod, socket, checkpoint)? {
        Word::Kubelet(entries) => listed_holders(device, pod, &entries),
        Word::Checkpoint(checkpoint) => {
            let (this, others): (Vec<_>, Vec<_>) =
                checkpoint.holders(device).into_iter().partition(|uid| *uid == pod.uid);
            Holders { this: !this.is_empty(), others }
        }
    })
}

fn listed_holders(device: &str, pod: &PodName, entries: &[PodResources]) -> Holders {
    let mut holders = Holders::default();
    for found in entries {
        if !found.devices().flat_map(|given| &given.device_ids).any(|id| id == device) {
            continue;
        }
        if found.is_of(pod) {
            holders.this = true;
        } else {
            holders.others.push(format!("{}/{}", found.namespace, found.name));
        }
    }
    holders
}

/// What tells of the devices.
enum Word {
    /// kubelet itself; one entry at most has the pod's name.
    Kubelet(Vec<PodResources>),
    /// Its checkpoint, in which pods are named by UID.
    Checkpoint(Checkpoint),
}

impl Word {
    /// kubelet's word where it is clear, else the checkpoint: nobody listens at the socket, or kubelet still lists a pod
    /// whose name the asking one has taken over, and does not tell UIDs.
    fn of(
        told: Result<Vec<PodResources>, Failure>,
        pod: &PodName,
        socket: &Path,
        checkpoint: &Path,
    ) -> Result<Self, Error> {
        let named = format!("the devices of pod {}/{} cannot be looked up", pod.namespace, pod.name);
        let reason = match told {
            Ok(entries) if entries.iter().filter(|entry| entry.is_of(pod)).count() < 2 => {
                return Ok(Self::Kubelet(entries));
            }
            Ok(_) => format!("{} lists several pods of that name", socket.display()),
            Err(Failure::NoAnswer(problem)) => {
                return Err(Error::TryLater(format!("{named}: kubelet at {}: {problem}", socket.display())));
            }
            Err(Failure::NoServer(problem)) => problem,
        };
        if !checkpoint.exists() {
            return Err(Error::TryLater(format!(
                "{named}: {reason}, and {} does not exist: is kubelet running?",
                checkpoint.display()
            )));
        }
        if pod.uid.is_empty() {
            return Err(Error::TryLater(format!(
                "{named}: {reason}, and {} names pods by UID, which the runtime does not tell (K8S_POD_UID)",
                checkpoint.display()
            )));
        }
        let text = std::fs::read(checkpoint).map_err(|source| Error::io("read", checkpoint.display(), source))?;
        tracing::debug!(reason, "devices are looked up in kubelet's checkpoint");
        Checkpoint::read(&text).map(Self::Checkpoint).map_err(|problem| {
            Error::decode(checkpoint.display().to_string(), format!("{problem} (it is read because of {reason})"))
        })
    }
}

/// An answer to List, as it is on the wire. The client reads its own; this is for who has the message alone.
#[derive(Debug, Clone)]
pub struct Listed(Vec<PodResources>);

impl Listed {
    /// Reads the message, without gRPC's five bytes before it.
    ///
    /// # Errors
    /// [`Error::Decode`].
    pub fn decode(message: &[u8]) -> Result<Self, Error> {
        let read: Result<v1::ListPodResourcesResponse, _> = prost::Message::decode(message);
        let answer = read.map_err(|problem| Error::decode("kubelet's list of the pods' devices", problem))?;
        Ok(Self(answer.pod_resources))
    }

    /// The devices of a pod.
    #[must_use]
    pub fn devices(&self, pod: &PodName) -> Devices {
        devices_in(self.0.iter().filter(|entry| entry.is_of(pod)))
    }

    /// To whom kubelet gives a device.
    #[must_use]
    pub fn holders(&self, device: &str, pod: &PodName) -> Holders {
        listed_holders(device, pod, &self.0)
    }
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
        let given = |namespace: &str, name: &str, devices: &[&str]| PodResources {
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
        let pod = PodName { namespace: "default".into(), name: "p".into(), uid: "u1".into() };
        let holders_of = |device| listed_holders(device, &pod, &pods);
        assert_eq!(holders_of("d1"), Holders { this: true, others: Vec::new() });
        assert_eq!(holders_of("d2"), Holders { this: true, others: vec!["other/p".to_owned()] });
        assert_eq!(holders_of("d3"), Holders::default());
    }
}
