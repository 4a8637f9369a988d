//! host-local's addresses: its configuration, its way of choosing, and its directory on disk.
//!
//! A [`Pool`] is what one network may give out, in [`RangeSet`]s of one address each. [`Pool::reserve`] takes one
//! address of every set under a single hold of host-local's own lock, [`reserve_all`] for several requests at once; a
//! [`Store`] gives them back. The directory is host-local's byte for byte, so both programs work side by side on one
//! pool, and a node can be moved from one to the other and back with its pods running. What host-local does not know,
//! an index by owner and the addresses that are [`Withheld`], lies beside it in `DATA_DIR/.meta-cni`.
//! [`StaticAddresses`] is the `static` plugin's configuration, which keeps nothing on disk. The crate knows addresses
//! and these directories: nothing of CNI versions, stdin or Kubernetes. Every call is synchronous and may wait for the
//! lock, up to a bound given by the caller.

mod address;
mod allocate;
mod beside;
mod config;
mod error;
mod exclude;
mod held;
mod index;
mod lease;
mod lock;
mod node;
mod owner;
mod pool;
mod range;
mod request;
mod reserve;
mod resolv_conf;
mod route;
mod stamp;
mod static_addresses;
mod store;
mod subnet;
mod unchanged;
mod vacancy;
mod withheld;

pub use config::{RawAddress, RawIpam, RawNodeRanges, RawRange, RawRoute};
pub use error::Error;
pub use lock::Holder;
pub use node::{Node, Slice};
pub use owner::Owner;
pub use pool::{DEFAULT_DATA_DIR, Pool, Reservation};
pub use range::{IpRange, RangeSet};
pub use request::{Prior, Request, requested_addresses};
pub use reserve::reserve_all;
pub use resolv_conf::Dns;
pub use route::Route;
pub use static_addresses::{StaticAddress, StaticAddresses, StaticRequest};
pub use store::{Known, Lease, Released, Store, Stray};
pub use withheld::{Reason, Withheld};
