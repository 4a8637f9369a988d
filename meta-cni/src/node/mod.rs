//! The node's own files: kubelet's device assignments, device-info files, the boot ID, what Multus left, and where our state lies.

pub mod device_info;
pub mod kubelet;
pub mod multus;

mod checkpoint;
mod layout;

pub use layout::{Layout, boot_id};
