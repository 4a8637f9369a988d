//! The control plane bed: our binary against a real API server, with the real Flannel, bridge, macvlan and portmap
//! plugins. All tests share one server and one node (see `bed`), so they run one after the other.

#![allow(clippy::unwrap_used, reason = "a test panics where it is wrong")]

#[path = "../harness/mod.rs"]
mod harness;

mod authority;
mod bed;
mod budget;
mod certificates;
mod credentials;
mod crowd;
mod dra;
mod events;
mod examples;
mod expiry;
mod front;
mod identity;
mod manifests;
mod outage;
mod policy;
mod posting;
mod rbac;
mod status;
mod tokens;
