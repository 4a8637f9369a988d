//! The guest bed: our binary as a runtime calls it, on a real SR-IOV NIC (driver igb) of two ports, with real plugins
//! beside it. `tests/guest/suite` builds this and runs it in the virtual machine; it is nothing for `cargo test`.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test panics where it is wrong, and the long ones say how far they came"
)]

#[path = "../harness/mod.rs"]
mod harness;

mod addresses;
mod attributes;
mod budget;
mod chains;
mod comparison;
mod concurrency;
mod cool_down;
mod crash;
mod deletion;
mod drop_in;
mod dsr;
mod eviction;
mod examples;
mod executed_ipam;
mod face;
mod howto;
mod kinds;
mod many;
mod matrix;
mod multus;
mod node;
mod ownership;
mod pods;
mod probe;
mod random;
mod ranges;
mod refusals;
mod releases;
mod reservations;
mod routes;
mod takeover;
