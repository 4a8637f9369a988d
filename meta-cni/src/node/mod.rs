//! The node's own files: kubelet's device assignments, who the node is, the boot ID and what was there at boot, and where
//! our state lies.

pub mod kubelet;

mod boot;
mod checkpoint;
mod identity;
mod layout;
mod processes;

pub use boot::{BootLists, PoolAtBoot};
pub use identity::{NODE_FILE, SUBNET_FILE, Sources};
pub use layout::{Layout, boot_id};
pub use processes::ProcessWords;
