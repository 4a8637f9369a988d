//! The host bed: our binary as a runtime calls it, in live namespaces, with the real bridge, macvlan, portmap and Flannel
//! plugins; and with recording plugins where order and failure are what is tested.

#![allow(clippy::unwrap_used, reason = "a test panics where it is wrong")]

#[path = "../harness/mod.rs"]
mod harness;

mod boot_lists;
mod calls;
mod configured;
mod conformance;
mod deletion;
mod devices;
mod documents;
mod dsr;
mod engine;
mod events;
mod face;
mod flannel;
mod forms;
mod logs;
mod multus;
mod primary;
mod reboot;
mod refusals;
mod requests;
mod results;
mod rooms;
mod routes;
mod settings;
mod sources;
mod status;
mod suites;
