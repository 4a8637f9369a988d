//! What went wrong, and the CNI error code that says so: the only place that knows the codes.

use std::{fmt, io};

use serde_json::{Value, json};

use super::SpecVersion;

/// Why a verb failed. One enum for the program; `sandbox`, `sriov` and `ipam` have their own, which are wrapped here.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration asks for a version that we do not speak.
    #[error("incompatible CNI versions")]
    IncompatibleVersion {
        /// The version found.
        config: String,
    },
    /// The configuration's version does not know the verb.
    #[error("config version does not allow {verb}")]
    VerbNotInVersion {
        /// The verb asked for.
        verb: &'static str,
    },
    /// A field or feature that this program refuses.
    #[error("{0}")]
    Unsupported(String),
    /// A required environment variable is missing or its value is wrong.
    #[error("{0}")]
    Environment(String),
    /// A file or directory of ours could not be used.
    #[error("{step} {path}")]
    Io {
        /// What was being done, as a verb: "write", "read".
        step: &'static str,
        /// The file.
        path: String,
        /// The cause.
        source: io::Error,
    },
    /// Text that is not the JSON (or YAML) it should be.
    #[error("{what} does not parse: {problem}")]
    Decode {
        /// Which text.
        what: String,
        /// What the parser said.
        problem: String,
    },
    /// It parses, but it is wrong.
    #[error("{0}")]
    Config(String),
    /// The sandbox's network namespace is missing, no namespace, or our own.
    #[error("{0}")]
    Netns(String),
    /// Something that will pass: an API server away, a primary network not up yet, a lock held.
    #[error("{0}")]
    TryLater(String),
    /// STATUS: this network cannot take pods.
    #[error("{0}")]
    NotReady(String),
    /// STATUS: this network cannot take pods, and those that it has may be cut off.
    #[error("{0}")]
    Limited(String),
    /// A virtual function could not be used.
    #[error(transparent)]
    Vf(Box<sriov::Error>),
    /// The kernel refused a link, address or route.
    #[error(transparent)]
    Kernel(Box<sandbox::Error>),
    /// An address could not be had.
    #[error(transparent)]
    Address(Box<ipam::Error>),
    /// What the kernel shows is not what was attached.
    #[error("{0}")]
    Mismatch(String),
    /// A plugin failed without saying why in CNI's form: it hung, was killed, printed something else or too much.
    #[error("{0}")]
    DelegateBroken(String),
    /// A plugin's own error, passed on with its code.
    #[error("{msg}")]
    Delegate {
        /// The code as the plugin gave it.
        code: u32,
        /// Its message.
        msg: String,
        /// Its details.
        details: String,
    },
    /// An error of one network of the pod.
    #[error("{network}: {source}")]
    Network {
        /// The network as a person knows it: `net-a (default/sriov-a) as net1`.
        network: String,
        /// What went wrong there.
        source: Box<Error>,
    },
    /// Why one of the networks beside the primary is refused or failed: the same error, marked as that network's own.
    #[error("{source}")]
    Refused {
        /// The network, as it is known so far.
        network: String,
        /// Whether it, or its definition, is not there.
        missing: bool,
        /// What went wrong there.
        source: Box<Error>,
    },
    /// Several errors; the first decides the code.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Several(Vec<Error>),
}

impl From<sriov::Error> for Error {
    fn from(error: sriov::Error) -> Self {
        Self::Vf(Box::new(error))
    }
}

impl From<sandbox::Error> for Error {
    fn from(error: sandbox::Error) -> Self {
        Self::Kernel(Box::new(error))
    }
}

impl From<ipam::Error> for Error {
    fn from(error: ipam::Error) -> Self {
        Self::Address(Box::new(error))
    }
}

impl Error {
    /// An I/O error on one of our files.
    pub fn io(step: &'static str, path: impl fmt::Display, source: io::Error) -> Self {
        Self::Io { step, path: path.to_string(), source }
    }

    /// Text that does not parse.
    pub fn decode(what: impl Into<String>, problem: impl fmt::Display) -> Self {
        Self::Decode { what: what.into(), problem: problem.to_string() }
    }

    /// The same error with the network it belongs to.
    #[must_use]
    pub fn of_network(self, network: impl Into<String>) -> Self {
        self.within_mark(|source| Self::Network { network: network.into(), source: Box::new(source) })
    }

    /// Changes the error and leaves the mark of a network beside the primary, if there is one, outside: it is looked for there.
    #[must_use]
    pub fn within_mark(self, change: impl FnOnce(Self) -> Self) -> Self {
        match self {
            Self::Refused { network, missing, source } => {
                Self::Refused { network, missing, source: Box::new(source.within_mark(change)) }
            }
            other => change(other),
        }
    }

    /// The same error, marked as that of one of the networks beside the primary. A mark that says that the network is
    /// missing stays.
    #[must_use]
    pub fn refusing(self, network: impl Into<String>) -> Self {
        match self {
            marked @ Self::Refused { missing: true, .. } => marked,
            Self::Refused { source, .. } => source.refusing(network),
            other => Self::Refused { network: network.into(), missing: false, source: Box::new(other) },
        }
    }

    /// The same error, marked: the network is not there.
    #[must_use]
    pub fn missing(self, network: impl Into<String>) -> Self {
        Self::Refused { network: network.into(), missing: true, source: Box::new(self.unmarked()) }
    }

    /// The same error without such a mark.
    #[must_use]
    pub fn unmarked(self) -> Self {
        match self {
            Self::Refused { source, .. } => source.unmarked(),
            other => other,
        }
    }

    /// The same error without the network.
    #[must_use]
    pub fn without_network(self) -> Self {
        match self.unmarked() {
            Self::Network { source, .. } => *source,
            other => other,
        }
    }

    /// One error for a list that is not empty; nothing for an empty one.
    #[must_use]
    pub fn join(mut errors: Vec<Error>) -> Option<Self> {
        match errors.len() {
            0 | 1 => errors.pop(),
            _ => Some(Self::Several(errors)),
        }
    }

    /// The CNI error code (SPEC, "Error"; libcni's 8; 50 and 51 of STATUS; ours from 100 on). Never 999, and never 3:
    /// that would tell the runtime that no clean-up is needed.
    #[must_use]
    pub fn code(&self) -> u32 {
        match self {
            Self::IncompatibleVersion { .. } | Self::VerbNotInVersion { .. } => 1,
            Self::Unsupported(_) => 2,
            Self::Environment(_) => 4,
            Self::Io { .. } => 5,
            Self::Decode { .. } => 6,
            Self::Config(_) => 7,
            Self::Netns(_) => 8,
            Self::TryLater(_) => 11,
            Self::NotReady(_) => 50,
            Self::Limited(_) => 51,
            Self::Vf(error) => vf_code(error),
            Self::Kernel(error) => kernel_code(error),
            Self::Mismatch(_) => 101,
            Self::Address(error) => address_code(error),
            Self::DelegateBroken(_) => 103,
            Self::Delegate { code, .. } => delegate_code(*code),
            Self::Network { source, .. } | Self::Refused { source, .. } => source.code(),
            Self::Several(errors) => errors.first().map_or(103, Error::code),
        }
    }

    /// The causes below the message, for the field `details`.
    #[must_use]
    pub fn details(&self) -> String {
        match self {
            Self::IncompatibleVersion { config } => {
                let all: Vec<String> = SpecVersion::ALL.iter().map(|version| format!("\"{version}\"")).collect();
                format!("config is \"{config}\", plugin supports [{}]", all.join(" "))
            }
            Self::Delegate { details, .. } => details.clone(),
            Self::Network { source, .. } | Self::Refused { source, .. } => source.details(),
            Self::Several(errors) => {
                errors.iter().map(Error::details).filter(|details| !details.is_empty()).collect::<Vec<_>>().join("; ")
            }
            other => {
                let mut causes = Vec::new();
                let mut next = std::error::Error::source(other);
                while let Some(cause) = next {
                    causes.push(cause.to_string());
                    next = cause.source();
                }
                causes.join(": ")
            }
        }
    }

    /// The error object that a runtime reads on stdout.
    #[must_use]
    pub fn to_json(&self, version: SpecVersion) -> Value {
        let details = self.details();
        let mut object = json!({"cniVersion": version.as_str(), "code": self.code(), "msg": self.to_string()});
        if !details.is_empty() {
            object["details"] = Value::String(details);
        }
        object
    }
}

/// A plugin's code is kept, but for two: 999 is libcni's "no code", and 3 on ADD would stop the runtime's clean-up.
fn delegate_code(code: u32) -> u32 {
    match code {
        0 | 3 | 999 => 103,
        code => code,
    }
}

fn vf_code(error: &sriov::Error) -> u32 {
    use sriov::Error as E;
    match error {
        E::BadPci { .. }
        | E::VlanRange(_)
        | E::QosWithoutVlan
        | E::QosRange(_)
        | E::QosNeedsVlan
        | E::ProtoWithoutVlan
        | E::ProtoUnknown(_)
        | E::ProtoNeedsVlan
        | E::BadMac(_)
        | E::MacNotUnicast(_)
        | E::BadSwitch { .. }
        | E::BadLinkState(_)
        | E::BadRate { .. }
        | E::RateOrder { .. }
        | E::BadMtu(_)
        | E::BadRestorePolicy(_)
        | E::Userspace { .. }
        | E::DummyForKernel { .. }
        | E::NoPfHere { .. } => 7,
        E::NotPresent { .. }
        | E::NotAVf { .. }
        | E::NoPf { .. }
        | E::NoVfNumber { .. }
        | E::UsedByHost { .. }
        | E::SharedGroup { .. }
        | E::NoIommu { .. }
        | E::NoNetdev { .. }
        | E::NotBack { .. }
        | E::Foreign { .. }
        | E::Busy { .. }
        | E::Newer { .. }
        | E::Allocated { .. } => 100,
        E::NotReported { .. }
        | E::MacInUse { .. }
        | E::NameTaken { .. }
        | E::Attribute { .. }
        | E::Kernel { .. }
        | E::Unverified { .. }
        | E::NotRestored { .. } => 101,
        E::LockTimeout { .. } => 11,
        E::Sysfs { .. } | E::Lease { .. } => 5,
    }
}

fn kernel_code(error: &sandbox::Error) -> u32 {
    use sandbox::Error as E;
    match error {
        E::NamespaceGone { .. } | E::NotANamespace { .. } => 8,
        E::BadName { .. } | E::BadMac { .. } => 7,
        E::Namespace { .. }
        | E::Thread { .. }
        | E::Socket { .. }
        | E::Kernel { .. }
        | E::Answer { .. }
        | E::Sysctl { .. }
        | E::Announce { .. }
        | E::Probe { .. }
        | E::NoSuchLink { .. }
        | E::Unverified { .. } => 101,
    }
}

fn address_code(error: &ipam::Error) -> u32 {
    use ipam::Error as E;
    match error {
        E::RequestedGateway { .. }
        | E::RequestedExcluded { .. }
        | E::Taken { .. }
        | E::Duplicate { .. }
        | E::Exhausted { .. }
        | E::Withheld { .. }
        | E::SeveralPools { .. }
        | E::Unserved { .. }
        | E::NotGivenBack { .. } => 102,
        E::LockTimeout { .. } => 11,
        E::Io { .. } => 5,
        E::NoRanges
        | E::EmptySet { .. }
        | E::MixedFamilies { .. }
        | E::RangesOverlap { .. }
        | E::SetsOverlap { .. }
        | E::NoSubnet { .. }
        | E::TooSmall { .. }
        | E::FamilyMismatch { .. }
        | E::HostBits { .. }
        | E::StartOutside { .. }
        | E::EndOutside { .. }
        | E::BadAddress { .. }
        | E::BadRequest { .. }
        | E::BadCidr { .. }
        | E::StaticAddress { .. }
        | E::StaticEnvironment { .. }
        | E::StaticRequested { .. }
        | E::StaticGateway { .. }
        | E::NothingToGive { .. }
        | E::ExcludeHostBits { .. }
        | E::ExcludeOutside { .. }
        | E::RangesTwice
        | E::NodeEntry { .. }
        | E::NodeRanges { .. }
        | E::NoEntry { .. }
        | E::NoSlice
        | E::PodRange { .. }
        | E::SliceTooSmall { .. }
        | E::NetworkName { .. }
        | E::DataDir { .. }
        | E::Owner { .. } => 7,
    }
}
