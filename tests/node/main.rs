//! The node bed: pods that a real kubelet and a real containerd make, with us as their only network. All tests share one
//! node (see `bed`), so they run one after the other.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test panics where it is wrong, and prints what it measured"
)]

#[path = "../harness/mod.rs"]
mod harness;

mod bed;
mod daemonset;
mod fire;
mod fire_coming;
mod fire_tree;
mod fire_watch;
mod pods;
mod reboot;
mod rollout;
mod witness;
