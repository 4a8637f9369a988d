//! What the black-box suites share: a world for each test (namespaces of its own), calls as a runtime makes them, and a
//! plugin that records how it was called.

#![allow(dead_code, unreachable_pub, unused_imports, reason = "each suite uses its part")]

mod call;
mod kernel;
mod kubelet;
mod multus;
mod recorder;
mod routes;
mod tracer;
mod wire;
mod world;

pub use call::{Call, Outcome};
pub use kernel::{Interface, defaults, in_netns, ip, ip_in, ping};
pub use kubelet::{
    Answer, CdiDevice, ClaimResource, ContainerMemory, DynamicResource, Kubelet, PodResources, SOCKET as KUBELET_SOCKET,
};
pub use multus::{MULTUS_DIRECTORY, go_bytes, multus_files};
pub use recorder::{Recorder, Recording};
pub use routes::{FLANNELS_DEFAULTS, assert_check_sees_changes, assert_defaults, assert_no_network};
pub use tracer::{Point, Traced, Which, census, trace};
pub use wire::Wire;
pub use world::{World, bare, bare_add, beds, names, pod_args, run};

use serde_json::Value;

/// The value at a JSON pointer; panics with the whole when there is none.
pub fn at<'a>(value: &'a Value, pointer: &str) -> &'a Value {
    value.pointer(pointer).unwrap_or_else(|| panic!("nothing at {pointer} of {value:#}"))
}
