//! The drop-in `host-local`: our binary under that name, as a plugin calls it, beside the reference plugin and in its place.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test panics where it is wrong, and the long ones say how far they came"
)]

#[path = "../harness/mod.rs"]
mod harness;

mod bed;
mod commands;
mod cost;
mod delegating;
mod differential;
mod disks;
mod mixed;
mod node;
mod processes;
mod protocol;
mod reboot;
mod subjects;
