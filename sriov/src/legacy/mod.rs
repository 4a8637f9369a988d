//! The files of sriov-cni, which we keep in step with so that both may run on one node, and one may take over from the
//! other with pods running: who holds a VF (`allocation`), and what it wrote down at ADD to undo it at DEL (`cache`).

mod allocation;
mod cache;

use std::path::PathBuf;

pub use cache::{Cached, release_cached};

/// sriov-cni's directory.
#[derive(Debug, Clone)]
pub struct SriovCni {
    /// Where it is; sriov-cni has `/var/lib/cni/sriov` compiled in.
    pub root: PathBuf,
}

impl SriovCni {
    /// The directory of this node.
    pub fn of_node() -> Self {
        Self { root: "/var/lib/cni/sriov".into() }
    }
}
