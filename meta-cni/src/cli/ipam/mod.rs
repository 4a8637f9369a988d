//! `meta-cni ipam`: the pools of the node, for people.

mod census;
mod list;
mod release;
mod verify;

use super::{Answer, Arguments, Failure};

pub(super) use list::DETAILS as LIST_DETAILS;
pub(super) use release::DETAILS as RELEASE_DETAILS;
pub(super) use verify::DETAILS as VERIFY_DETAILS;

/// What can be done with pools.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verb {
    /// Show them.
    List,
    /// Give back an address.
    Release,
    /// Compare them with all else that is known.
    Verify,
}

/// Does it.
///
/// # Errors
/// A refusal, or what could not be read.
pub(super) async fn run(verb: Verb, arguments: &Arguments) -> Result<Answer, Failure> {
    match verb {
        Verb::List => list::list(arguments).await,
        Verb::Release => release::release(arguments).await,
        Verb::Verify => verify::verify(arguments).await,
    }
}
