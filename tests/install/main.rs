//! The installer: nodes of temporary files, on which our binary is installed, killed, upgraded, kept and removed, and whose
//! runtime reads its directory as libcni does.

#![allow(clippy::unwrap_used, reason = "a test panics where it is wrong")]

#[path = "../harness/mod.rs"]
mod harness;

mod bed;
mod credentials;
mod installing;
mod killed;
mod leaving;
mod others;
mod refusing;
mod turns;
mod uninstalling;
mod watching;
