//! From a call to its attachments: the pod's annotations, the definitions they name, the devices kubelet gave.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use serde_json::Value;
use sriov::PciAddress;
use tokio::time::Instant;

use super::{Engine, configured, primary, record::Entry};
use crate::{
    cluster::Pod,
    cni::{Error, Object},
    log,
    network::{
        self, Attachment, CallScene, Definition, Devices, Network, Selection,
        selection::{self, DEFAULT_NETWORK_ANNOTATION, NETWORKS_ANNOTATION},
    },
    node::{
        device_info::{self, DeviceInfo},
        kubelet,
    },
    pod::PodName,
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

/// What a pod's annotations ask for.
#[derive(Default)]
struct Asked {
    /// Another primary than the node's.
    primary: Option<Selection>,
    /// Further networks, in order.
    networks: Vec<Selection>,
}

impl Engine {
    /// Finds out what this call is to attach. Touches nothing.
    pub(super) async fn request(&self, entries: &[Entry]) -> Result<Request, Error> {
        let pod = PodName::of_args(&self.invocation.args);
        let runtime_config: Object = self.invocation.conf.get("runtimeConfig")?.unwrap_or_default();
        let known = self.pod(pod.as_ref(), &runtime_config).await?;
        self.events.about(pod.as_ref(), &known, [&self.invocation.container, &self.invocation.netns]);
        let began = Instant::now();
        let asked = self.asked(pod.as_ref(), &known)?;
        let definitions = self.definitions(pod.as_ref(), &asked).await?;
        let own = self.own_networks(asked, &definitions)?;
        let networks = self.all_networks(pod.as_ref(), own).await?;
        let networks = self.with_devices(pod.as_ref(), networks).await?;
        let taken = entries
            .iter()
            .filter_map(|entry| match entry {
                Entry::Good(record) => Some(record.interface.clone()),
                Entry::Torn { .. } => None,
            })
            .collect();
        let call = CallScene {
            if_name: &self.invocation.if_name,
            args: &self.invocation.args,
            runtime_config,
            taken,
            settings: &self.settings,
        };
        let mut attachments = network::plan(networks, &call)?;
        self.name_device_info_files(&mut attachments);
        self.judge_attachments(&attachments)?;
        let titles: Vec<String> = attachments.iter().map(Attachment::title).collect();
        let ms = log::ms(began);
        tracing::info!(step = "decide", ms, networks = titles.join(", "), "attachments are decided");
        Ok(Request { pod, known, attachments })
    }

    /// What is known of the pod: what the runtime hands over, else a request. A conf without a cluster knows nothing.
    async fn pod(&self, pod: Option<&PodName>, runtime_config: &Object) -> Result<Pod, Error> {
        let Some(pod) = pod else { return Ok(Pod::default()) };
        let began = Instant::now();
        let resolved = |source, known: &Pod| {
            let (ms, uid) = (log::ms(began), known.uid.as_deref());
            tracing::info!(step = "pod", ms, source, uid, "the pod is known");
        };
        if let Some(annotations) = runtime_config.get::<BTreeMap<String, Value>>(ANNOTATIONS_CAPABILITY)? {
            let texts = annotations.into_iter().filter_map(|(key, value)| Some((key, value.as_str()?.to_owned())));
            let mut known = Pod { uid: None, annotations: texts.collect() };
            if !known.is_static() && !pod.uid.is_empty() {
                known.uid = Some(pod.uid.clone());
            }
            resolved("runtime", &known);
            return Ok(known);
        }
        let known = self.cluster.pod(pod).await?;
        resolved(self.cluster.title(), &known);
        let other = known.uid.as_ref().filter(|uid| !pod.uid.is_empty() && **uid != pod.uid && !known.is_static());
        if let Some(uid) = other {
            return Err(Error::TryLater(format!(
                "pod {}/{} is gone: the runtime asks for the one with UID {}, the API server has {uid}",
                pod.namespace, pod.name, pod.uid
            )));
        }
        Ok(known)
    }

    /// What the annotations say; all that is wrong in them at once.
    fn asked(&self, pod: Option<&PodName>, known: &Pod) -> Result<Asked, Error> {
        let Some(pod) = pod else { return Ok(Asked::default()) };
        let read = |key: &str, namespace: &str| match known.annotations.get(key) {
            Some(text) => selection::parse(key, text, namespace),
            None => Ok(Vec::new()),
        };
        let networks = read(NETWORKS_ANNOTATION, &pod.namespace);
        let primary = read(DEFAULT_NETWORK_ANNOTATION, &self.settings.multus_namespace).and_then(|mut chosen| {
            if chosen.len() > 1 {
                let text =
                    format!("annotation {DEFAULT_NETWORK_ANNOTATION}: a pod has one default network, not several");
                return Err(Error::Config(text));
            }
            Ok(chosen.pop())
        });
        // Which network it is about is in the text: an element that does not parse names none.
        match (primary, networks.map_err(|error| error.refusing(""))) {
            (Ok(primary), Ok(networks)) => Ok(Asked { primary, networks }),
            (Err(first), Err(second)) => Err(Error::Several(vec![first, second])),
            (Err(error), _) | (_, Err(error)) => Err(error),
        }
    }

    /// Every definition that the pod names, each asked for once.
    async fn definitions(&self, pod: Option<&PodName>, asked: &Asked) -> Result<BTreeMap<String, Definition>, Error> {
        let mut definitions = BTreeMap::new();
        let mut errors = Vec::new();
        for selection in asked.primary.iter().chain(&asked.networks) {
            let network = selection.network();
            if definitions.contains_key(&network) {
                continue;
            }
            let is_primary = asked.primary.as_ref() == Some(selection);
            if let Some(refusal) = self.isolation(pod, selection, is_primary) {
                errors.push(if is_primary { refusal } else { refusal.refusing(network) });
                continue;
            }
            match self.cluster.definition(&selection.namespace, &selection.name).await {
                Ok(definition) => drop(definitions.insert(network, definition)),
                Err(error) => errors.push(error),
            }
        }
        Error::join(errors).map_or(Ok(definitions), Err)
    }

    /// Why a pod may not use a definition, if it may not. A primary may also come from `multusNamespace`, where the
    /// administrator's are.
    fn isolation(&self, pod: Option<&PodName>, selection: &Selection, is_primary: bool) -> Option<Error> {
        let namespace = &selection.namespace;
        let allowed = !self.settings.namespace_isolation
            || pod.is_some_and(|pod| pod.namespace == *namespace)
            || self.settings.global_namespaces.contains(namespace)
            || (is_primary && *namespace == self.settings.multus_namespace);
        let globals: Vec<&str> = self.settings.global_namespaces.iter().map(String::as_str).collect();
        (!allowed).then(|| {
            Error::Config(format!(
                "{}: a pod may use definitions of its own namespace and of {} only (namespaceIsolation)",
                selection.network(),
                globals.join(", ")
            ))
        })
    }

    /// The networks that the pod names, with their configurations: the primary of its own, and the others.
    fn own_networks(
        &self,
        asked: Asked,
        definitions: &BTreeMap<String, Definition>,
    ) -> Result<(Option<Network>, Vec<Network>), Error> {
        let found = |selection: Selection| {
            let name = selection.network();
            let missing = || Error::Config(format!("there is no definition {name}")).missing(&name);
            let definition = definitions.get(&name).ok_or_else(missing)?;
            let list = definition.plugins(&self.settings.conf_dir)?;
            let resource = selection.resource.clone().or_else(|| definition.resource.clone());
            Ok(Network { name, selection: Some(selection), list, resource })
        };
        let (mut networks, mut errors): (Vec<Network>, Vec<Error>) = Default::default();
        let primary = asked.primary.map(found).transpose().unwrap_or_else(|error| {
            errors.push(error);
            None
        });
        for selection in asked.networks {
            let name = selection.network();
            match found(selection) {
                Ok(network) => networks.push(network),
                Err(error) => errors.push(error.refusing(name)),
            }
        }
        Error::join(errors).map_or(Ok((primary, networks)), Err)
    }

    /// The networks of the node's configuration and the pod's own, in the order of Multus: primary, `delegates`,
    /// `defaultNetworks`, the pod's, the auxiliary chain.
    async fn all_networks(
        &self,
        pod: Option<&PodName>,
        (primary, own): (Option<Network>, Vec<Network>),
    ) -> Result<Vec<Network>, Error> {
        let mut networks = primary::ready_networks(&self.settings, &self.cluster, self.deadline).await?;
        if let (Some(chosen), Some(place)) = (primary, networks.first_mut()) {
            *place = chosen;
        }
        if pod.is_some_and(|pod| !self.settings.system_namespaces.contains(&pod.namespace)) {
            networks.extend(configured::defaults(&self.settings, &self.cluster).await?);
        }
        networks.extend(own);
        let chain = configured::auxiliary(&self.settings);
        networks.extend(chain.map_err(|error| error.refusing(&self.settings.auxiliary_chain))?);
        Ok(networks)
    }

    /// Gives every network of a resource its device, in order, none twice.
    async fn with_devices(
        &self,
        pod: Option<&PodName>,
        networks: Vec<Network>,
    ) -> Result<Vec<(Network, Option<String>)>, Error> {
        let resources: Vec<(String, Option<String>)> =
            networks.iter().map(|network| (network.name.clone(), network.resource.clone())).collect();
        let devices = match pod.filter(|_| resources.iter().any(|(_, resource)| resource.is_some())) {
            Some(pod) => self.devices(pod, &resources).await?,
            None => Devices::default(),
        };
        let assigned = devices.assign(&resources)?;
        Ok(networks.into_iter().zip(assigned).collect())
    }

    /// The pod's devices: as kubelet says, and if these are too few for its networks, those of its resource claims too.
    async fn devices(&self, pod: &PodName, wanted: &[(String, Option<String>)]) -> Result<Devices, Error> {
        let (socket, checkpoint) = (Path::new(kubelet::SOCKET), Path::new(kubelet::CHECKPOINT));
        let given = kubelet::devices(pod, socket, checkpoint, self.deadline).await;
        let mut devices = given.map_err(|error| error.refusing(with_resource(wanted)))?;
        if devices.suffice(wanted) {
            return Ok(devices);
        }
        match self.cluster.claimed_devices(pod).await {
            Ok(claimed) => devices.merge(claimed),
            Err(error) => {
                let wanting = devices.assign(wanted).err();
                return Err(Error::Several([error].into_iter().chain(wanting).collect()));
            }
        }
        Ok(devices)
    }

    /// Tells the plugins of an attachment with a device where its device-info file is, or may be written.
    fn name_device_info_files(&self, attachments: &mut [Attachment]) {
        for attachment in attachments.iter_mut().filter(|attachment| attachment.resource.is_some()) {
            let path =
                DeviceInfo::of_node().path(&attachment.network, &self.invocation.container, &attachment.interface);
            attachment.runtime_config.set(device_info::CAPABILITY, &path);
        }
    }

    /// Refuses what can be known to fail: an attachment whose configuration is wrong, a plugin that is not installed,
    /// one device for two networks.
    fn judge_attachments(&self, attachments: &[Attachment]) -> Result<(), Error> {
        let mut errors: Vec<Error> = second_flannel(attachments).into_iter().collect();
        let mut devices = BTreeMap::new();
        let own: BTreeSet<PciAddress> = attachments.iter().flat_map(devices_of).collect();
        for attachment in attachments {
            let judged = self.judge(attachment, &own).map_err(|error| attachment.failed(error));
            match judged {
                Ok(None) => {}
                Ok(Some(device)) => {
                    if let Some(other) = devices.insert(device.clone(), attachment.title()) {
                        errors.push(attachment.failed(Error::Config(format!(
                            "device {device} is already used by {other}: each network needs its own"
                        ))));
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

/// Flannel's plugin keeps what it did in a file named by the container alone: a second one in a pod would write over it, and
/// the DEL of the first would undo the second.
fn second_flannel(attachments: &[Attachment]) -> Option<Error> {
    let has_flannel = |attachment: &&Attachment| attachment.list.plugins.iter().any(|plugin| plugin.kind == "flannel");
    let mut with_flannel = attachments.iter().filter(has_flannel);
    let (first, second) = (with_flannel.next()?, with_flannel.next()?);
    Some(second.failed(Error::Config(format!(
        "{} already runs the plugin flannel, which keeps one state for a container: a pod can have it once",
        first.title()
    ))))
}

/// The networks whose devices kubelet is asked for.
fn with_resource(networks: &[(String, Option<String>)]) -> String {
    let wanting = networks.iter().filter(|(_, resource)| resource.is_some());
    wanting.map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(", ")
}

/// The PCI devices that an attachment uses: given by kubelet, or written into its configuration.
pub(super) fn devices_of(attachment: &Attachment) -> BTreeSet<PciAddress> {
    let written = attachment.list.plugins.iter().filter_map(|plugin| plugin.object.text("deviceID").ok());
    let all = written.chain(attachment.additions.device.clone());
    all.filter_map(|device| PciAddress::try_from(device.as_str()).ok()).collect()
}
