//! The kernel side of a pod's network, and nothing that knows CNI or SR-IOV: namespaces ([`Netns`]), links, addresses
//! and routes through the one trait [`Links`] (in production [`Rtnl`], one socket per namespace; in tests the model in
//! `fake`), and sysctls. A namespace is a socket, not a place: no thread that runs our code ever stays in the pod.

mod address;
mod announce;
mod error;
mod link;
mod links;
mod name;
mod namespaces;
mod netns;
mod probe;
mod raw;
mod route;
mod rtnl;
mod sysctl;
mod vf;

#[cfg(feature = "fake")]
pub mod fake;

pub use address::{Address, Dad, NewAddress, ReadBack, configure, read_back, read_back_of};
pub use announce::{ANNOUNCE_LIMIT, announce, announcing_sysctls};
pub use error::Error;
pub use link::{Link, LinkChange, MacAddr};
pub use links::Links;
pub use name::IfName;
pub use namespaces::{namespace_of_device, namespaces};
pub use netns::{Netns, NetnsId};
pub use probe::{Conflict, PROBE_LIMIT, Probed, probe};
pub use route::{DefaultRoutes, MAIN_TABLE, NextHop, Route, RouteSpec};
pub use rtnl::Rtnl;
pub use sysctl::{Sysctl, read_sysctl, write_sysctls};
pub use vf::{LinkState, PfReport, VfReport, VfSetting, VfVlan, VlanProto};
