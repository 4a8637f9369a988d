//! A cluster whose one node is the virtual machine with the SR-IOV NIC: etcd, API server, controllers and scheduler on the
//! host, kubelet, containerd, Flannel's plugin and a device plugin in the guest, and we by our DaemonSet from our image.
//! `tests/guest/full-node` runs it.

#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "a test")]

#[path = "../../harness/mod.rs"]
mod harness;
#[allow(dead_code, reason = "the suite uses the rest")]
#[path = "../node.rs"]
mod node;

mod cluster;
mod guest;
mod pods;
mod reboot;
mod vfs;
