//! The node bed: pods that a real kubelet and a real containerd make, with us as their only network. All tests share one
//! node (see `bed`), so they run one after the other.

#![allow(clippy::unwrap_used, reason = "a test panics where it is wrong")]
#![allow(clippy::print_stdout, reason = "how long things took is told")]

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
