//! ADD: record, act, record; all or nothing.

use std::{collections::BTreeMap, time::Duration};

use sandbox::Netns;
use serde_json::{Value, json};
use tokio::time::{Instant, timeout};
use tracing::Instrument as _;

use super::{
    Engine,
    builtin::{Addresses, Announcements, as_the_chain_left_it},
    gate, open_netns,
    record::{Call, Entry, Record, Stage, new_record},
    request::Request,
};
use crate::{
    cluster::{Event, Written},
    cni::{CniResult, Error, chain},
    face::Face,
    log,
    network::{
        Attachment,
        network_status::{self, Attached},
    },
    node::device_info::DeviceInfo,
    pod::PodName,
};

/// How long a pod with the primary network alone waits for its status to be written.
const PLAIN_STATUS_LIMIT: Duration = Duration::from_secs(1);

/// An attachment that was made, or is about to be.
pub(super) struct Made {
    pub(super) record: Record,
    pub(super) result: CniResult,
    /// What is said of its device.
    pub(super) device_info: Option<Value>,
    /// What a pool gave for it before it was made.
    pub(super) reserved: Addresses,
    /// Its result has other default routes than its plugins gave.
    pub(super) is_rerouted: bool,
}

impl Made {
    /// One of which only the record is there.
    pub(super) fn new(record: Record) -> Self {
        let (result, reserved) = (CniResult::default(), Addresses::default());
        Self { record, result, device_info: None, reserved, is_rerouted: false }
    }
}

/// Attachments with a record, and addresses, that are not made yet: by their place.
pub(super) type Begun = BTreeMap<usize, Made>;

/// What was made so far, in order; and what is only begun.
#[derive(Default)]
struct Progress {
    made: Vec<Made>,
    begun: Begun,
    announcements: Announcements,
}

impl Engine {
    /// Attaches a pod to its networks and answers with the primary's result.
    ///
    /// # Errors
    /// The first one with its network, step and cause; everything made was undone, and what could not be is named after.
    pub async fn add(&mut self) -> Result<Value, Error> {
        let netns = open_netns(&self.invocation.netns)?
            .ok_or_else(|| Error::Netns(format!("CNI_NETNS {} is no network namespace", self.invocation.netns)))?
            .identified()?;
        self.layout.create()?;
        let _passage = gate::enter(&self.layout, self.face)?;
        self.list_boot().await?;
        let container = self.invocation.container.clone();
        self.lock(&container).await?;
        let outcome = match self.face {
            Face::Meta => self.add_locked(&netns).await,
            Face::Sriov => self.add_alone(&netns).await,
        };
        if outcome.is_err() && self.records.of_container(&container)?.is_empty() {
            self.remove_lock(&container);
        }
        outcome
    }

    async fn add_locked(&self, netns: &Netns) -> Result<Value, Error> {
        let others = self.settle_earlier_attempts().await?;
        let refused = |error: &Error| self.events.raise(Event::of_refusals(error));
        let request = self.request(&others).await.inspect_err(refused)?;
        self.events.raise(request.attachments.iter().filter_map(Event::unserved));
        let mut progress = Progress::default();
        let outcome = self.attach_all(&request, netns, &mut progress).await;
        match outcome {
            Ok(value) => Ok(value),
            Err(error) => {
                refused(&error);
                let Progress { mut made, begun, announcements } = progress;
                announcements.stop().await;
                made.extend(begun.into_values());
                let left = self.roll_back(made).await;
                Err(if left.is_empty() { error } else { Error::Several(std::iter::once(error).chain(left).collect()) })
            }
        }
    }

    /// Undoes what an earlier ADD of this call left half made, refuses a finished one, and gives the other calls' records.
    pub(super) async fn settle_earlier_attempts(&self) -> Result<Vec<Entry>, Error> {
        let call = self.call()?;
        let entries = self.records.of_container(&call.container)?;
        let (own, others): (Vec<Entry>, Vec<Entry>) = entries.into_iter().partition(|entry| *entry.call() == call);
        let finished = own.iter().find_map(|entry| match entry {
            Entry::Good(record) if record.primary && record.stage == Stage::Done => Some(record),
            _ => None,
        });
        if let Some(record) = finished {
            if let (Face::Sriov, Some(vf)) = (self.face, &record.vf) {
                return Err(sriov::Error::Allocated { pci: vf.pci, netns: record.netns.clone().into() }.into());
            }
            return Err(Error::Config(format!(
                "container {} already has {} of network {}: the runtime must DEL it before another ADD",
                call.container, call.if_name, call.conf
            )));
        }
        if !own.is_empty() {
            tracing::warn!(container = call.container, "undoing what an ADD that did not finish left behind");
            let errors = self.undo_entries(own, &self.invocation.netns).await;
            if let Some(error) = Error::join(errors) {
                return Err(error);
            }
            let mut left = self.records.of_container(&call.container)?;
            left.retain(|entry| *entry.call() == call);
            self.records.refuse_newer(&left)?;
        }
        Ok(others)
    }

    async fn attach_all(&self, request: &Request, netns: &Netns, progress: &mut Progress) -> Result<Value, Error> {
        let call = self.call()?;
        let Progress { made, begun, announcements } = progress;
        self.reserve_addresses(&call, &request.attachments, (request.pod.as_ref(), netns), begun).await?;
        for (position, attachment) in request.attachments.iter().enumerate() {
            made.push(match begun.remove(&position) {
                Some(begun) => begun,
                None => Made::new(self.begin(&call, position, attachment, request.pod.as_ref(), netns)?),
            });
            if let Some(last) = made.last_mut() {
                let attaching = self.attach(attachment, netns, last, announcements);
                attaching.await.map_err(|error| attachment.failed(error))?;
            }
        }
        self.settle_default_routes(request, netns, made).await?;
        self.report(request, made).await?;
        self.events.raise(
            made.iter().map(|Made { record, result, .. }| Event::added(&record.interface, &record.network, result)),
        );
        let Some(primary) = made.first_mut() else {
            return Err(Error::Config("there is no primary network".to_owned()));
        };
        let value = self.answer(request, primary)?;
        // From here on the call is finished: nothing may come after it but the answer.
        announcements.finish().await;
        primary.record.stage = Stage::Done;
        self.records.write(&primary.record, false)?;
        Ok(value)
    }

    /// Writes down that an attachment is about to be made.
    pub(super) fn begin(
        &self,
        call: &Call,
        position: usize,
        attachment: &Attachment,
        pod: Option<&PodName>,
        netns: &Netns,
    ) -> Result<Record, Error> {
        let _held = self.records.hold_confs(false)?;
        let conf_hash = self.records.keep_conf(&attachment.list)?;
        let mut record = new_record(call, position, attachment, conf_hash);
        record.pod = pod.cloned();
        record.boot_id.clone_from(&self.boot_id);
        record.netns.clone_from(&self.invocation.netns);
        record.netns_id = Some(netns.id().clone());
        // A plugin that is executed keeps state elsewhere, which survives a power cut: so must our knowledge of it.
        let executes = !attachment.is_builtin(&self.settings) || attachment.list.plugins.len() > 1;
        self.records.write(&record, executes)?;
        Ok(record)
    }

    /// Makes one attachment.
    pub(super) async fn attach(
        &self,
        attachment: &Attachment,
        netns: &Netns,
        made: &mut Made,
        announcements: &mut Announcements,
    ) -> Result<(), Error> {
        let (began, span) = (Instant::now(), log::of_network(&attachment.network, &attachment.interface));
        let outcome = self.make(attachment, netns, made, announcements).instrument(span.clone()).await;
        let (ms, device) = (log::ms(began), attachment.additions.device.as_deref());
        span.in_scope(|| match &outcome {
            Ok(()) => tracing::info!(step = "attach", ms, device, ips = addresses(&made.result), "attached"),
            Err(error) => tracing::info!(step = "attach", ms, device, %error, "not attached"),
        });
        outcome
    }

    async fn make(
        &self,
        attachment: &Attachment,
        netns: &Netns,
        made: &mut Made,
        announcements: &mut Announcements,
    ) -> Result<(), Error> {
        let list = attachment.additions.apply(attachment.list.clone())?;
        let builtin = attachment.is_builtin(&self.settings);
        let record = &mut made.record;
        let infos = DeviceInfo::of_node();
        let info = infos.path(&record.network, &record.call.container, &record.interface);
        if let (Some(resource), Some(device)) = (&attachment.resource, &attachment.additions.device) {
            infos.offer(resource, device, &info)?;
        }
        let (from, previous) = if builtin {
            let reserved = std::mem::take(&mut made.reserved);
            let result = self.add_builtin((record, reserved), &list, netns, announcements).await?;
            let value = result.to_json(list.version)?;
            record.result = value.clone();
            self.records.write(record, false)?;
            (1, Some(value))
        } else {
            (0, None)
        };
        let scene = self.scene(record, &self.invocation.netns);
        let (value, result) = match chain::add(&list, from, previous, &scene).await {
            Err(error) if !builtin => self.add_again(&list, error, &scene).await?,
            made => made?,
        };
        record.result = value;
        if !record.primary {
            record.stage = Stage::Done;
        }
        self.records.write(record, !builtin)?;
        let of_vf = record
            .vf
            .as_ref()
            .filter(|_| builtin)
            .map(|vf| json!({"type": "pci", "version": "1.1.0", "pci": {"pci-address": vf.pci.to_string()}}));
        made.device_info = infos.read(&info).or(of_vf);
        made.result = result;
        // It is only told: all that DEL needs is on disk before.
        if list.plugins.len() > 1
            && let Err(error) = as_the_chain_left_it(&made.record, netns, &mut made.result).await
        {
            tracing::warn!(%error, "the MTU that the chain left is not known");
        }
        Ok(())
    }

    /// Writes network-status before the pod's containers can read it.
    async fn report(&self, request: &Request, made: &[Made]) -> Result<(), Error> {
        let Some(pod) = request.pod.as_ref().filter(|_| self.cluster.is_there()) else { return Ok(()) };
        let attached: Vec<Attached<'_>> = made.iter().map(|made| described(made)).collect();
        let status = network_status::render(&attached);
        let plain = made.len() == 1;
        let uid = request.known.uid.as_deref();
        let began = Instant::now();
        let write = self.cluster.write_status(pod, uid, &status);
        let written = if plain { timeout(PLAIN_STATUS_LIMIT, write).await.ok() } else { Some(write.await) };
        let ms = log::ms(began);
        match written {
            Some(Ok(Written::Done)) => {
                tracing::info!(step = "status", ms, "network-status is written");
                Ok(())
            }
            Some(Ok(Written::PodGone)) if request.known.is_static() => {
                tracing::warn!(
                    step = "status",
                    ms,
                    "network-status is not written: the static pod has no mirror (yet)"
                );
                Ok(())
            }
            Some(Ok(Written::PodGone)) => Err(Error::TryLater(format!(
                "pod {}/{} is gone, or another one has its name: nothing is attached for it",
                pod.namespace, pod.name
            ))),
            Some(Err(error)) if !plain => Err(error),
            Some(Err(error)) => {
                tracing::warn!(step = "status", ms, %error, "network-status is not written");
                Ok(())
            }
            None => {
                tracing::warn!(step = "status", ms, "network-status is not written: no answer within 1 s");
                Ok(())
            }
        }
    }

    /// The primary's result in the version of our conf: as its plugin printed it where versions and routes allow.
    fn answer(&self, request: &Request, primary: &Made) -> Result<Value, Error> {
        let version = crate::cni::SpecVersion::of_conf(Some(&self.invocation.conf.text("cniVersion")?))?;
        let own = request.attachments.first().is_some_and(|attachment| attachment.list.version == version);
        if own && primary.record.result.is_object() {
            Ok(primary.record.result.clone())
        } else {
            primary.result.to_json(version)
        }
    }

    /// Undoes what was made, last first. Gives what could not be undone; it stays in the journal.
    pub(super) async fn roll_back(&self, made: Vec<Made>) -> Vec<Error> {
        let entries = made.into_iter().map(|made| Entry::Good(Box::new(made.record))).collect();
        // The deadline of ADD may be what failed it: undoing has a time of its own.
        let undoing = self.with_deadline(Instant::now() + self.settings.del_timeout.min(Duration::from_secs(15)));
        undoing.undo_entries(entries, &self.invocation.netns).await
    }
}

fn addresses(result: &CniResult) -> String {
    result.ips.iter().map(|ip| ip.address.to_string()).collect::<Vec<_>>().join(",")
}

fn described(made: &Made) -> Attached<'_> {
    let gateways = made.result.routes.iter().filter(|route| route.is_main_default());
    let of_ips =
        |v4: bool| made.result.ips.iter().find(|ip| ip.address.addr().is_ipv4() == v4).and_then(|ip| ip.gateway);
    Attached {
        network: &made.record.network,
        interface: &made.record.interface,
        primary: made.record.primary,
        result: &made.result,
        default_gateways: gateways
            .filter_map(|route| route.gw.or_else(|| of_ips(route.dst.addr().is_ipv4())))
            .collect(),
        device_info: made.device_info.clone(),
    }
}
