//! The host bed: our binary as a runtime calls it, in live namespaces, with the real bridge, macvlan, portmap and Flannel
//! plugins; and with recording plugins where order and failure are what is tested.

#![allow(clippy::unwrap_used, reason = "a test panics where it is wrong")]

#[path = "../harness/mod.rs"]
mod harness;

mod calls;
mod configured;
mod conformance;
mod deletion;
mod engine;
mod face;
mod forms;
mod logs;
mod multus;
mod primary;
mod reboot;
mod refusals;
mod requests;
mod results;
mod sources;
