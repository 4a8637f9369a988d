//! Which plugin we are asked to be: the name that the program is called by decides, so a link is all that a drop-in needs.

use std::{ffi::OsStr, path::Path};

use crate::cni::SpecVersion;

/// What the program is called as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Called {
    /// A plugin that attaches: the engine does it.
    Engine(Face),
    /// In place of host-local: addresses for whoever calls us with host-local's configuration. No engine, no journal.
    HostLocal,
    /// In place of Multus' `passthru`, which an auxiliary chain begins with: it does nothing.
    Passthru,
}

/// A plugin that the engine is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Face {
    /// The meta plugin: all networks of a pod.
    Meta,
    /// In place of sriov-cni: one VF, with sriov-cni's configuration, for whoever calls it.
    Sriov,
}

impl Called {
    /// By the name that the program was called by (`argv[0]`); the meta plugin for any name but those of the drop-ins.
    #[must_use]
    pub fn by(program: &OsStr) -> Self {
        match Path::new(program).file_name() {
            Some(name) if name == "sriov" => Self::Engine(Face::Sriov),
            Some(name) if name == "host-local" => Self::HostLocal,
            Some(name) if name == "passthru" => Self::Passthru,
            _ => Self::Engine(Face::Meta),
        }
    }

    /// What somebody sees who starts the plugin by hand.
    #[must_use]
    pub fn about(self) -> String {
        let versions: Vec<&str> = SpecVersion::ALL.iter().map(|version| version.as_str()).collect();
        let what = match self {
            Self::Engine(Face::Meta) => {
                "a CNI plugin in place of Multus, sriov-cni and host-local; a container runtime calls it, and people \
                 its commands (--help)"
            }
            Self::Engine(Face::Sriov) => "called as sriov: a CNI plugin in place of sriov-cni",
            Self::HostLocal => "called as host-local: an IPAM plugin in place of host-local",
            Self::Passthru => "called as passthru: a CNI plugin that does nothing, for a chain to begin with",
        };
        let number = env!("CARGO_PKG_VERSION");
        format!("meta-cni {number}: {what}\nCNI protocol versions supported: {}\n", versions.join(", "))
    }
}

impl Face {
    /// Those that there are.
    pub const ALL: [Self; 2] = [Self::Meta, Self::Sriov];

    /// The name of a configuration in the key of a call. Two faces may have one of the same name, and neither may take
    /// the other one's leases for its own; `@` is in no name of a network.
    #[must_use]
    pub fn mark(self, conf: String) -> String {
        match self {
            Self::Meta => conf,
            Self::Sriov => format!("sriov@{conf}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_exact_name_makes_a_drop_in() {
        for name in ["sriov", "/opt/cni/bin/sriov", "./sriov"] {
            assert_eq!(Called::by(OsStr::new(name)), Called::Engine(Face::Sriov), "{name}");
        }
        for name in ["host-local", "/opt/cni/bin/host-local", "../host-local"] {
            assert_eq!(Called::by(OsStr::new(name)), Called::HostLocal, "{name}");
        }
        for name in
            ["", "meta-cni", "/opt/sriov/meta-cni", "sriov-cni", "/opt/cni/bin/sriov.old", "SRIOV", "host-local.old"]
        {
            assert_eq!(Called::by(OsStr::new(name)), Called::Engine(Face::Meta), "{name}");
        }
    }
}
