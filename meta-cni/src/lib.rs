//! meta-cni: one CNI plugin in place of Multus, sriov-cni and host-local.
//!
//! The way through the house: `main` → [`Called`], [`run`] → [`attach`] (a verb) → [`network`] (what to attach) → [`cni`] (other
//! plugins), `sriov` and `ipam` (built in) → the record → the result. See ARCHITECTURE.md.

pub mod attach;
pub mod cluster;
pub mod cni;
pub mod face;
pub mod files;
pub mod log;
pub mod network;
pub mod node;
pub mod pod;
pub mod settings;

mod cli;
mod host_local;
mod pause;
mod reply;
mod run;

pub use face::{Called, Face};
pub use reply::Reply;
pub use run::run;
