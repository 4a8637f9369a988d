//! The node's own files: kubelet's device assignments, who the node is, the boot ID, and where our state lies.

pub mod kubelet;

mod checkpoint;
mod identity;
mod layout;

pub use identity::{NODE_FILE, SUBNET_FILE, Sources};
pub use layout::{Layout, boot_id};
