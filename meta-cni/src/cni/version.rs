//! The versions of the CNI specification and what each of them allows.

use std::fmt;

use super::{Command, Error};

/// A version of the CNI specification that this program speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SpecVersion {
    /// 0.1.0: one address a family, no interfaces.
    V0_1_0,
    /// 0.2.0: adds VERSION.
    V0_2_0,
    /// 0.3.0: lists of plugins, interfaces in results.
    V0_3_0,
    /// 0.3.1: the key `ips` in place of a misprint.
    V0_3_1,
    /// 0.4.0: adds CHECK, and `prevResult` on DEL.
    V0_4_0,
    /// 1.0.0: no `version` in `ips`.
    V1_0_0,
    /// 1.1.0: adds GC and STATUS; `mtu`, `socketPath` and `pciID` of interfaces.
    V1_1_0,
}

impl SpecVersion {
    /// All versions, oldest first.
    pub const ALL: [Self; 7] =
        [Self::V0_1_0, Self::V0_2_0, Self::V0_3_0, Self::V0_3_1, Self::V0_4_0, Self::V1_0_0, Self::V1_1_0];

    /// The newest version.
    pub const LATEST: Self = Self::V1_1_0;

    /// The version as it is written in a configuration.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::V0_1_0 => "0.1.0",
            Self::V0_2_0 => "0.2.0",
            Self::V0_3_0 => "0.3.0",
            Self::V0_3_1 => "0.3.1",
            Self::V0_4_0 => "0.4.0",
            Self::V1_0_0 => "1.0.0",
            Self::V1_1_0 => "1.1.0",
        }
    }

    /// Reads the `cniVersion` of a configuration; a missing one means 0.1.0.
    ///
    /// # Errors
    /// [`Error::IncompatibleVersion`] for anything but the exact text of a supported version, as libcni's reconciler.
    pub fn of_conf(text: Option<&str>) -> Result<Self, Error> {
        match text {
            None | Some("") => Ok(Self::V0_1_0),
            Some(text) => Self::ALL
                .into_iter()
                .find(|version| version.as_str() == text)
                .ok_or_else(|| Error::IncompatibleVersion { config: text.to_owned() }),
        }
    }

    /// Refuses a verb that the version does not know (skel's rule and text).
    ///
    /// # Errors
    /// [`Error::VerbNotInVersion`].
    pub fn allow(self, command: Command) -> Result<(), Error> {
        let since = match command {
            Command::Check => Self::V0_4_0,
            Command::Gc | Command::Status => Self::V1_1_0,
            Command::Add | Command::Del | Command::Version => Self::V0_1_0,
        };
        if self < since { Err(Error::VerbNotInVersion { verb: command.as_str() }) } else { Ok(()) }
    }

    /// The text that VERSION prints.
    #[must_use]
    pub fn report() -> String {
        let all: Vec<String> = Self::ALL.iter().map(|version| format!("\"{version}\"")).collect();
        format!("{{\"cniVersion\":\"{}\",\"supportedVersions\":[{}]}}\n", Self::LATEST, all.join(","))
    }
}

impl fmt::Display for SpecVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
