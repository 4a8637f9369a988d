//! Which plugin we are asked to be: the name that the program is called by decides, so a link is all that a drop-in needs.

use std::{ffi::OsStr, path::Path};

use crate::cni::SpecVersion;

/// A plugin that this program is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Face {
    /// The meta plugin: all networks of a pod.
    Meta,
    /// In place of sriov-cni: one VF, with sriov-cni's configuration, for whoever calls it.
    Sriov,
}

impl Face {
    /// Those that have a journal.
    pub const WITH_JOURNAL: [Self; 2] = [Self::Meta, Self::Sriov];

    /// The face for the name that the program was called by (`argv[0]`); the meta plugin for any name but `sriov`.
    #[must_use]
    pub fn of(program: &OsStr) -> Self {
        match Path::new(program).file_name() {
            Some(name) if name == "sriov" => Self::Sriov,
            _ => Self::Meta,
        }
    }

    /// The name of a configuration in the key of a call. Two faces may have one of the same name, and neither may take
    /// the other one's leases for its own; `@` is in no name of a network.
    #[must_use]
    pub fn mark(self, conf: String) -> String {
        match self {
            Self::Meta => conf,
            Self::Sriov => format!("sriov@{conf}"),
        }
    }

    /// What somebody sees who starts the plugin by hand.
    #[must_use]
    pub fn about(self) -> String {
        let versions: Vec<&str> = SpecVersion::ALL.iter().map(|version| version.as_str()).collect();
        let what = match self {
            Self::Meta => "a CNI plugin in place of Multus, sriov-cni and host-local; a container runtime calls it",
            Self::Sriov => "called as sriov: a CNI plugin in place of sriov-cni",
        };
        let number = env!("CARGO_PKG_VERSION");
        format!("meta-cni {number}: {what}\nCNI protocol versions supported: {}\n", versions.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_exact_name_makes_a_drop_in() {
        for name in ["sriov", "/opt/cni/bin/sriov", "./sriov"] {
            assert_eq!(Face::of(OsStr::new(name)), Face::Sriov, "{name}");
        }
        for name in ["", "meta-cni", "/opt/sriov/meta-cni", "sriov-cni", "/opt/cni/bin/sriov.old", "SRIOV"] {
            assert_eq!(Face::of(OsStr::new(name)), Face::Meta, "{name}");
        }
    }
}
