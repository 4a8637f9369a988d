//! From a call to its attachments: the pod's annotations, the definitions they name, the devices kubelet gave.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use serde_json::Value;
use sriov::PciAddress;

use super::{Engine, primary, record::Entry};
use crate::{
    cluster::{Pod, PodName},
    cni::{Error, Object},
    network::{
        self, Attachment, CallScene, Definition, Devices, Found, Selection,
        selection::{self, NETWORKS_ANNOTATION},
    },
    node::kubelet,
};

/// The capability by which containerd hands over a pod's annotations.
const ANNOTATIONS_CAPABILITY: &str = "io.kubernetes.cri.pod-annotations";

/// What a call comes to.
pub(super) struct Request {
    /// The pod, if the runtime named one.
    pub(super) pod: Option<PodName>,
    /// What is known of it.
    pub(super) known: Pod,
    /// What is to be attached, the primary first.
    pub(super) attachments: Vec<Attachment>,
}

impl Engine {
    /// Finds out what this call is to attach. Touches nothing.
    pub(super) async fn request(&self, entries: &[Entry]) -> Result<Request, Error> {
        let pod = PodName::of_args(&self.invocation.args);
        let runtime_config: Object = self.invocation.conf.get("runtimeConfig")?.unwrap_or_default();
        let known = self.pod(pod.as_ref(), &runtime_config).await?;
        let selections = match (&pod, known.annotations.get(NETWORKS_ANNOTATION)) {
            (Some(pod), Some(annotation)) => selection::parse(annotation, &pod.namespace)?,
            _ => Vec::new(),
        };
        let definitions = self.definitions(pod.as_ref(), &selections).await?;
        let found = self.found(pod.as_ref(), selections, &definitions).await?;
        let always = primary::ready_networks(&self.settings, &self.cluster, self.deadline).await?;
        let taken = entries
            .iter()
            .filter_map(|entry| match entry {
                Entry::Good(record) => Some(record.interface.clone()),
                Entry::Torn { .. } => None,
            })
            .collect();
        let call = CallScene { if_name: &self.invocation.if_name, args: &self.invocation.args, runtime_config, taken };
        let attachments = network::plan(always, found, &call)?;
        self.judge_attachments(&attachments)?;
        Ok(Request { pod, known, attachments })
    }

    /// What is known of the pod: what the runtime hands over, else a request. A conf without a cluster knows nothing.
    async fn pod(&self, pod: Option<&PodName>, runtime_config: &Object) -> Result<Pod, Error> {
        let Some(pod) = pod else { return Ok(Pod::default()) };
        if let Some(annotations) = runtime_config.get::<BTreeMap<String, Value>>(ANNOTATIONS_CAPABILITY)? {
            let texts = annotations.into_iter().filter_map(|(key, value)| Some((key, value.as_str()?.to_owned())));
            let mut known = Pod { uid: None, annotations: texts.collect() };
            if !known.is_static() && !pod.uid.is_empty() {
                known.uid = Some(pod.uid.clone());
            }
            return Ok(known);
        }
        let known = self.cluster.pod(pod).await?;
        let other = known.uid.as_ref().filter(|uid| !pod.uid.is_empty() && **uid != pod.uid && !known.is_static());
        if let Some(uid) = other {
            return Err(Error::TryLater(format!(
                "pod {}/{} is gone: the runtime asks for the one with UID {}, the API server has {uid}",
                pod.namespace, pod.name, pod.uid
            )));
        }
        Ok(known)
    }

    /// Every definition that the pod names, each asked for once.
    async fn definitions(
        &self,
        pod: Option<&PodName>,
        selections: &[Selection],
    ) -> Result<BTreeMap<String, Definition>, Error> {
        let mut definitions = BTreeMap::new();
        let mut errors = Vec::new();
        for selection in selections {
            let network = selection.network();
            if definitions.contains_key(&network) {
                continue;
            }
            let allowed = !self.settings.namespace_isolation
                || pod.is_some_and(|pod| pod.namespace == selection.namespace)
                || self.settings.global_namespaces.contains(&selection.namespace);
            if !allowed {
                let globals: Vec<&str> = self.settings.global_namespaces.iter().map(String::as_str).collect();
                errors.push(Error::Config(format!(
                    "{network}: a pod may use definitions of its own namespace and of {} only (namespaceIsolation)",
                    globals.join(", ")
                )));
                continue;
            }
            match self.cluster.definition(&selection.namespace, &selection.name).await {
                Ok(definition) => drop(definitions.insert(network, definition)),
                Err(error) => errors.push(error),
            }
        }
        Error::join(errors).map_or(Ok(definitions), Err)
    }

    /// The selections with their configurations and devices.
    async fn found(
        &self,
        pod: Option<&PodName>,
        selections: Vec<Selection>,
        definitions: &BTreeMap<String, Definition>,
    ) -> Result<Vec<Found>, Error> {
        let of = |selection: &Selection| definitions.get(&selection.network());
        let mut lists = Vec::new();
        let mut errors = Vec::new();
        for selection in &selections {
            match of(selection).map(|definition| definition.plugins(&self.settings.conf_dir)) {
                Some(Ok(list)) => lists.push(list),
                Some(Err(error)) => errors.push(error),
                None => errors.push(Error::Config(format!("there is no definition {}", selection.network()))),
            }
        }
        if let Some(error) = Error::join(errors) {
            return Err(error);
        }
        let resources: Vec<(String, Option<String>)> = selections
            .iter()
            .map(|selection| (selection.network(), of(selection).and_then(|definition| definition.resource.clone())))
            .collect();
        let devices = match pod.filter(|_| resources.iter().any(|(_, resource)| resource.is_some())) {
            Some(pod) => {
                kubelet::devices(pod, Path::new(kubelet::SOCKET), Path::new(kubelet::CHECKPOINT), self.deadline).await?
            }
            None => Devices::default(),
        };
        let assigned = devices.assign(&resources)?;
        let devices = resources.into_iter().zip(assigned).map(|((_, resource), device)| resource.zip(device));
        Ok(selections
            .into_iter()
            .zip(lists)
            .zip(devices)
            .map(|((selection, list), device)| Found { selection, list, device })
            .collect())
    }

    /// Refuses what can be known to fail: an attachment whose configuration is wrong, a plugin that is not installed,
    /// one device for two networks.
    fn judge_attachments(&self, attachments: &[Attachment]) -> Result<(), Error> {
        let mut errors = Vec::new();
        let mut devices = BTreeMap::new();
        let own: BTreeSet<PciAddress> = attachments.iter().flat_map(devices_of).collect();
        for attachment in attachments {
            let judged = self.judge(attachment, &own).map_err(|error| error.of_network(attachment.title()));
            match judged {
                Ok(None) => {}
                Ok(Some(device)) => {
                    if let Some(other) = devices.insert(device.clone(), attachment.title()) {
                        errors.push(
                            Error::Config(format!(
                                "device {device} is already used by {other}: each network needs its own"
                            ))
                            .of_network(attachment.title()),
                        );
                    }
                }
                Err(error) => errors.push(error),
            }
        }
        Error::join(errors).map_or(Ok(()), Err)
    }

    /// Judges one attachment and names the device that it will use, if it is attached in-process.
    pub(super) fn judge(&self, attachment: &Attachment, own: &BTreeSet<PciAddress>) -> Result<Option<String>, Error> {
        let executed = usize::from(attachment.is_builtin(&self.settings));
        let kinds: BTreeSet<&str> =
            attachment.list.plugins.iter().skip(executed).map(|plugin| plugin.kind.as_str()).collect();
        for kind in kinds {
            crate::cni::find_plugin(kind, &self.path)?;
        }
        let list = attachment.additions.apply(attachment.list.clone())?;
        if attachment.is_builtin(&self.settings) {
            self.judge_builtin(attachment, &list, own).map(Some)
        } else {
            Ok(None)
        }
    }
}

/// The PCI devices that an attachment uses: given by kubelet, or written into its configuration.
pub(super) fn devices_of(attachment: &Attachment) -> BTreeSet<PciAddress> {
    let written = attachment.list.plugins.iter().filter_map(|plugin| plugin.object.text("deviceID").ok());
    let all = written.chain(attachment.additions.device.clone());
    all.filter_map(|device| PciAddress::try_from(device.as_str()).ok()).collect()
}
