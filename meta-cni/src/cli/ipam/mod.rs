//! `meta-cni ipam`: the pools of the node, for people.

mod census;
mod list;
mod release;
mod verify;

pub(super) use list::{DETAILS as LIST_DETAILS, list};
pub(super) use release::{DETAILS as RELEASE_DETAILS, release};
pub(super) use verify::{DETAILS as VERIFY_DETAILS, verify};
