//! The journal: what was about to be done, and what was done, for every attachment on the node. A record is here, what it
//! is to other releases in `form`, and where it lies in `journal`.

mod form;
mod journal;
#[cfg(test)]
mod tests;

use std::{net::IpAddr, path::PathBuf};

use sandbox::{DefaultRoutes, NetnsId};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    cni::{CniArgs, Object},
    network::Additions,
    pod::PodName,
};

pub use journal::Records;

/// Which call made an attachment: the runtime's key of it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Call {
    /// `name` of the conf that the runtime called us with.
    pub conf: String,
    /// `CNI_CONTAINERID`.
    pub container: String,
    /// `CNI_IFNAME`.
    pub if_name: String,
}

impl Call {
    /// One text for the three; a colon is in none of them.
    #[must_use]
    pub fn key(&self) -> String {
        format!("{}:{}:{}", self.conf, self.container, self.if_name)
    }

    /// Reads `KEY:INTERFACE`, as a lease names an attachment.
    #[must_use]
    pub fn of_attachment(text: &str) -> Option<(Self, String)> {
        let mut parts = text.splitn(4, ':').map(str::to_owned);
        let call = Self { conf: parts.next()?, container: parts.next()?, if_name: parts.next()? };
        Some((call, parts.next()?))
    }
}

/// How far an attachment is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// It is being made, or was when we died. The primary's stays so until its whole call is answered.
    Intent,
    /// It is made.
    Done,
    /// Its DEL failed after the namespace was gone: the runtime will not come again, GC retries.
    Owed,
}

/// One attachment.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// The form of the record: 1 in this release.
    pub format: u32,
    /// How far it is.
    pub stage: Stage,
    /// The call it belongs to.
    pub call: Call,
    /// Its place among the attachments of the call: undone in reverse.
    pub position: usize,
    /// The network as network-status names it.
    pub network: String,
    /// The interface in the sandbox.
    pub interface: String,
    /// Whether it is the primary network.
    pub primary: bool,
    /// The pod, if the runtime named one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<PodName>,
    /// The boot it was made in.
    pub boot_id: String,
    /// `CNI_NETNS` of its ADD.
    pub netns: String,
    /// Which namespace that was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub netns_id: Option<NetnsId>,
    /// The SHA-256 of its configuration, which is kept in `confs/`.
    pub conf_hash: String,
    /// What was written into the configuration for this pod.
    #[serde(default)]
    pub additions: Additions,
    /// `CNI_ARGS` of its plugins.
    #[serde(default)]
    pub args: CniArgs,
    /// What its plugins may be given by capability.
    #[serde(default)]
    pub runtime_config: Value,
    /// The VF, when it was attached in-process: its state before the first change.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vf: Option<sriov::Original>,
    /// Addresses from a pool of ours.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub addresses: Option<PoolAddresses>,
    /// An IPAM plugin was executed for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub executed_ipam: Option<String>,
    /// Default routes that were replaced for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default_routes: Option<DefaultRoutes>,
    /// Its result, in the version of its configuration.
    #[serde(default)]
    pub result: Value,
    /// Why it is owed.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub owed_because: String,
    /// Only a part of it is understood: a newer release wrote it.
    #[serde(skip)]
    pub in_part: bool,
    /// What it was read from, if it was.
    #[serde(skip)]
    origin: Option<form::Origin>,
}

/// Addresses of one attachment in host-local's store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolAddresses {
    /// The pool's directory.
    pub directory: PathBuf,
    /// The addresses, one of each range set.
    pub addresses: Vec<IpAddr>,
    /// For how many seconds they are not given out again after they were given back.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub cool_down: u64,
}

/// For serde: it hands over a reference.
fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl Record {
    /// One of which nothing is known but whose it is.
    fn begun(call: &Call, interface: &str) -> Self {
        Self {
            format: form::FORMAT,
            stage: Stage::Intent,
            call: call.clone(),
            position: 0,
            network: String::new(),
            interface: interface.to_owned(),
            primary: false,
            pod: None,
            boot_id: String::new(),
            netns: String::new(),
            netns_id: None,
            conf_hash: String::new(),
            additions: Additions::default(),
            args: CniArgs::default(),
            runtime_config: Value::Null,
            vf: None,
            addresses: None,
            executed_ipam: None,
            default_routes: None,
            result: Value::Null,
            owed_because: String::new(),
            in_part: false,
            origin: None,
        }
    }

    /// The network as a person knows it.
    #[must_use]
    pub fn title(&self) -> String {
        format!("{} as {}", self.network, self.interface)
    }

    /// What its plugins may be given by capability, as it was.
    #[must_use]
    pub fn runtime_object(&self) -> Object {
        serde_json::from_value(self.runtime_config.clone()).unwrap_or_default()
    }
}

/// A file of the journal.
#[derive(Debug)]
pub enum Entry {
    /// A record.
    Good(Box<Record>),
    /// What is left of one, or one of a newer release that cannot be read. Its name still tells the call and the interface.
    Torn {
        /// The file.
        path: PathBuf,
        /// The call, by the file's name.
        call: Call,
        /// The interface, by the file's name.
        interface: String,
    },
}

impl Entry {
    /// The call it belongs to.
    #[must_use]
    pub fn call(&self) -> &Call {
        match self {
            Self::Good(record) => &record.call,
            Self::Torn { call, .. } => call,
        }
    }

    /// Its interface in the sandbox.
    #[must_use]
    pub fn interface(&self) -> &str {
        match self {
            Self::Good(record) => &record.interface,
            Self::Torn { interface, .. } => interface,
        }
    }
}

/// The record of an attachment that is about to be made.
#[must_use]
pub fn new_record(call: &Call, position: usize, attachment: &crate::network::Attachment, conf_hash: String) -> Record {
    Record {
        position,
        network: attachment.network.clone(),
        primary: attachment.primary,
        conf_hash,
        additions: attachment.additions.clone(),
        args: attachment.args.clone(),
        runtime_config: serde_json::to_value(&attachment.runtime_config).unwrap_or_default(),
        ..Record::begun(call, &attachment.interface)
    }
}
