//! The face `host-local`: addresses for whoever calls us with host-local's configuration, on host-local's own files. A
//! plugin calls it once for each pod, so it is short of everything: no engine, no I/O runtime, no journal, no log. It takes
//! no lock but the pool's, because its caller may be a plugin that the meta plugin executes. What it knows without reading
//! the whole pool it knows from the index that the `ipam` crate keeps beside it.

mod boot;
mod conf;
mod verbs;

use serde_json::Value;

use crate::cni::{Command, Error, Invocation, SpecVersion};

/// Runs one call; the result is ADD's. `alone`: the meta plugin is not the caller of our caller. It has dead containers
/// detached by the chain that we are called by, so we must not take their leases away ourselves.
///
/// # Errors
/// What is wrong with the configuration, with host-local's texts; what the pool cannot do.
pub(crate) fn run(invocation: &Invocation, version: SpecVersion, alone: bool) -> Result<Option<Value>, Error> {
    // Before anything is changed. A configuration that does not even say where the pool lies fails below.
    if let Ok(store) = conf::store(&invocation.conf) {
        boot::note(&store);
    }
    match invocation.command {
        Command::Add => verbs::add(invocation, version, alone).map(Some),
        Command::Del => verbs::del(invocation).map(|()| None),
        Command::Check => verbs::check(invocation, version).map(|()| None),
        Command::Gc => verbs::gc(invocation).map(|()| None),
        Command::Status => verbs::status(invocation, version).map(|()| None),
        Command::Version => Ok(None),
    }
}
