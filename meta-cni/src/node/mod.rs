//! The node's own files: kubelet's device assignments, device-info files, who the node is, the boot ID and what was there
//! at boot, what Multus left, and where our state lies.

pub mod device_info;
pub mod kubelet;
pub mod multus;

mod boot;
mod checkpoint;
mod identity;
mod layout;
mod pod_resources;
mod processes;

pub use boot::{BootLists, PoolAtBoot};
pub use identity::{SUBNET_FILE, Sources};
pub use layout::{Layout, boot_id};
pub use processes::ProcessWords;
