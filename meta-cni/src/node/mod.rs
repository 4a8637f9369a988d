//! The node's own files: kubelet's device assignments, the boot ID, device-info files, and where our state lies.

pub mod kubelet;

mod checkpoint;
mod layout;

pub use layout::{Layout, boot_id};
