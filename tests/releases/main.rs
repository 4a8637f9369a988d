//! Two releases on one node: the one before this, which `tests/releases/install` builds, and this one. What either has made
//! and written down the other one checks, undoes and collects; both at once; killed in the middle; and what earlier and
//! later forms of the files are to this release.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test panics where it is wrong, and those that depend on chance say what they did"
)]

#[path = "../harness/mod.rs"]
mod harness;

mod golden;
mod handed_over;
mod interrupted;
mod newer;
mod site;
mod together;
