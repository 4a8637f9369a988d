//! What reads text or bytes of others, one function a target: the fuzz targets run them on what libFuzzer makes up, and
//! `tests/corpus` runs the same functions on the corpus. Each calls the product's own functions and fails by a panic: when
//! they do, when what they accept is not what it must be, or when they allocate more than the input can account for.

#![allow(unreachable_pub, reason = "a library here, a module of the test `corpus` there")]

mod answered;
mod asked;
mod kept;

use std::{
    alloc::System,
    fs,
    path::{Path, PathBuf},
};

use cap::Cap;
use tempfile::TempDir;

/// Counts what is allocated. More than this at once aborts, before the machine has no memory left.
#[global_allocator]
static MEMORY: Cap<System> = Cap::new(System, 1 << 30);

/// What may be allocated whatever the input: tables, messages, buffers of files.
const FOR_ANY_INPUT: usize = 1 << 20;

/// A target: its input is arbitrary.
pub type Target = fn(&[u8]);

macro_rules! targets {
    ($($(#[$doc:meta])* $name:ident in $file:ident, $bytes:literal bytes a byte;)+) => {
        $($(#[$doc])* pub fn $name(data: &[u8]) {
            within($bytes, data, $file::$name);
        })+

        /// All targets by their names, which are those of their directories in the corpus.
        pub const TARGETS: &[(&str, Target)] = &[$((stringify!($name), $name)),+];
    };
}

targets! {
    /// `k8s.v1.cni.cncf.io/networks`, and what is attached by it: a network of two bytes has its configuration made here.
    annotation in asked, 20000 bytes a byte;
    /// `spec.config` of a definition.
    definition in asked, 2000 bytes a byte;
    /// YAML of a manifest directory.
    manifest in asked, 2000 bytes a byte;
    /// Environment (lines, up to an empty one) and stdin of a call.
    stdin in asked, 2000 bytes a byte;
    /// `CNI_ARGS`.
    cni_args in asked, 500 bytes a byte;
    /// An `ipam` object; the node's file; Flannel's file; `IP` of `CNI_ARGS`.
    ipam_config in asked, 2000 bytes a byte;
    /// What a delegate printed, after a byte that chooses the version of its configuration.
    result in answered, 2000 bytes a byte;
    /// Results of several delegates, and the network-status that we write of them.
    network_status in answered, 2000 bytes a byte;
    /// Flannel's `subnet.env`.
    subnet_env in answered, 500 bytes a byte;
    /// The checkpoint of kubelet's device manager.
    checkpoint in answered, 2000 bytes a byte;
    /// An answer of kubelet's pod-resources API.
    pod_resources in answered, 1000 bytes a byte;
    /// A record of ours.
    record in kept, 2000 bytes a byte;
    /// A lease of a VF.
    vf_lease in kept, 1000 bytes a byte;
    /// A pool: a lease file; the last address given out; an entry of the index, its mark, an address that is withheld.
    pool in kept, 1000 bytes a byte;
    /// Multus' file of delegates, and libcni's of a result.
    multus_cache in kept, 2000 bytes a byte;
    /// sriov-cni's file of an attachment, and its allocation.
    sriov_cache in kept, 1000 bytes a byte;
}

/// Runs a target, and fails if it allocated, all in all, more than `bytes` for each byte of its input.
fn within(bytes: usize, data: &[u8], target: Target) {
    let before = MEMORY.total_allocated();
    target(data);
    let allocated = MEMORY.total_allocated() - before;
    let limit = FOR_ANY_INPUT + bytes * data.len();
    assert!(allocated <= limit, "an input of {} bytes made us allocate {allocated}, not {limit} at most", data.len());
}

/// What stands between the parts of an input that has several.
pub const BETWEEN_PARTS: &[u8] = b"\n%%\n";

/// The parts of an input; those that are not there are empty.
fn parts<const N: usize>(data: &[u8]) -> [&[u8]; N] {
    let mut rest = Some(data);
    std::array::from_fn(|index| {
        let Some(text) = rest else { return &[][..] };
        let at = text.windows(BETWEEN_PARTS.len()).position(|window| window == BETWEEN_PARTS);
        match at.filter(|_| index + 1 < N) {
            Some(at) => {
                rest = Some(&text[at + BETWEEN_PARTS.len()..]);
                &text[..at]
            }
            None => {
                rest = None;
                text
            }
        }
    })
}

/// An input that must be text, as what the product is handed as text is.
fn text(data: &[u8]) -> Option<&str> {
    std::str::from_utf8(data).ok()
}

/// A directory for one input, with nothing in it.
fn scratch() -> PathBuf {
    thread_local! {
        static ROOM: TempDir = tempfile::tempdir().expect("a directory for the inputs that are files");
    }
    let directory = ROOM.with(|room| room.path().join("input"));
    let _ = fs::remove_dir_all(&directory);
    fs::create_dir(&directory).expect("a directory for one input");
    directory
}

/// Writes a file with the directories above it.
fn write(path: &Path, content: &[u8]) {
    fs::create_dir_all(path.parent().expect("a file in a directory")).expect("its directory");
    fs::write(path, content).expect("a file of the input");
}
