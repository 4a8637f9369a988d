//! The CNI protocol, both sides: what a runtime asks of us (invocation, configuration, result, error) and how we ask
//! other plugins (one execution, a chain of them). Knows nothing of Kubernetes.

pub mod chain;

mod args;
mod conf;
mod error;
mod exec;
mod invocation;
mod ipam;
mod ledger;
mod object;
mod result;
mod trace;
mod version;

pub use args::CniArgs;
pub use chain::Scene;
pub use conf::{Plugin, PluginList, files_in, names_meta_plugin};
pub use error::Error;
pub use exec::find_plugin;
pub use invocation::{
    Asked, Command, Invocation, RECURSION_MARK, check_container_id, check_interface_name, check_network_name,
};
pub use ipam::{IPAM_CLAIM, ips_of_args, refuse_claim, refuse_several_of_a_family};
use ledger::boot_ticks;
pub use ledger::{Ledger, Note, ProcessGroup};
pub use object::Object;
pub use result::{CniResult, Dns, Interface, Ip, Route};
pub use trace::{TRACEPARENT, TRACESTATE, Trace, TraceSpan};
pub use version::SpecVersion;
