//! The node's own files: kubelet's device assignments, the boot ID and what was there at boot, device-info files, and where our state lies.

pub mod kubelet;

mod boot;
mod checkpoint;
mod layout;
mod processes;

pub use boot::{BootLists, PoolAtBoot};
pub use layout::{Layout, boot_id};
pub use processes::ProcessWords;
