//! A data directory of a test's own with one network's pool in it, and the two programs that may be called on it.

#![allow(dead_code, unreachable_pub, reason = "each subject uses its part")]

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    sync::OnceLock,
};

use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::harness::{Call, Outcome, beds};

/// All versions of the CNI specification, oldest first.
pub const VERSIONS: [&str; 7] = ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// The network of a [`Bed`].
pub const NETWORK: &str = "net-a";

thread_local! {
    /// We note there what a pool held at boot. libtest gives every test a thread of its own, and the threads that it starts
    /// are in its namespace.
    static OWN_RUN: () = {
        let none: Option<&str> = None;
        unshare(CloneFlags::CLONE_NEWNS).expect("the suites need root and namespaces");
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).expect("make mounts private");
        mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::empty(), none).expect("a /run of its own");
    };
}

/// The reference plugin.
pub fn theirs() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| {
        let path = beds().join("plugins/reference/host-local");
        assert!(path.is_file(), "{} is missing: run make beds", path.display());
        path
    })
}

/// Our binary under its name.
pub fn ours() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| {
        let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("host-local-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let link = directory.join("host-local");
        // An earlier process of the same number may have left one.
        let _ = fs::remove_file(&link);
        symlink(env!("CARGO_BIN_EXE_meta-cni"), &link).unwrap();
        link
    })
}

/// A data directory and the `ipam` object of one network on it.
pub struct Bed {
    data: TempDir,
    /// The `ipam` object, with this directory as `dataDir`.
    pub ipam: Value,
}

impl Bed {
    /// An empty data directory for this `ipam` object. What is called from this thread on has a /run of its own, in which
    /// it is noted that the pools of this boot are listed, and this one not: no lease in it is an earlier boot's.
    pub fn new(ipam: &Value) -> Self {
        OWN_RUN.with(|()| ());
        let _ = fs::remove_dir_all("/run/meta-cni");
        let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
        let listed = Path::new("/run/meta-cni/boot").join(boot_id.trim());
        fs::create_dir_all(&listed).unwrap();
        fs::write(listed.join("listed"), "").unwrap();
        let data = tempfile::tempdir().unwrap();
        let mut ipam = ipam.clone();
        ipam["type"] = json!("host-local");
        ipam["dataDir"] = json!(data.path());
        Self { data, ipam }
    }

    /// `dataDir`.
    pub fn data(&self) -> &Path {
        self.data.path()
    }

    /// The pool's directory.
    pub fn directory(&self) -> PathBuf {
        self.data.path().join(NETWORK)
    }

    /// The configuration that the calling plugin hands on, in a version.
    pub fn conf(&self, version: &str) -> Value {
        json!({"cniVersion": version, "name": NETWORK, "type": "any", "ipam": self.ipam})
    }

    /// A call for interface eth0 of a container, with the configuration of 1.1.0.
    pub fn call(&self, program: &Path, verb: &str, container: &str) -> Call {
        self.call_with(program, verb, container, &self.conf("1.1.0"))
    }

    /// The same with another configuration.
    pub fn call_with(&self, program: &Path, verb: &str, container: &str, conf: &Value) -> Call {
        Call::new(program, Path::new("/nonexistent/bin"), verb, container, "/nonexistent/netns", conf)
    }

    /// The files of the pool with their contents, but for the lock.
    pub fn files(&self) -> BTreeMap<String, String> {
        let entries = fs::read_dir(self.directory()).into_iter().flatten().map(Result::unwrap);
        entries
            .map(|entry| (entry.file_name().into_string().unwrap(), fs::read_to_string(entry.path()).unwrap()))
            .filter(|(name, _)| name != "lock")
            .collect()
    }

    /// The leases of the pool: address and content.
    pub fn leases(&self) -> BTreeMap<String, String> {
        self.files().into_iter().filter(|(name, _)| !name.starts_with("last_reserved_ip")).collect()
    }

    /// Writes a file of the pool.
    pub fn plant(&self, name: &str, content: &str) {
        fs::create_dir_all(self.directory()).unwrap();
        fs::write(self.directory().join(name), content).unwrap();
    }

    /// Makes the pool's files these ones.
    pub fn restore(&self, files: &BTreeMap<String, String>) {
        for name in self.files().keys() {
            fs::remove_file(self.directory().join(name)).unwrap();
        }
        files.iter().for_each(|(name, content)| self.plant(name, content));
    }
}

/// The addresses of a result of 0.3.0 or newer, as `ADDRESS/PREFIX via GATEWAY`.
pub fn addresses(result: &Value) -> Vec<String> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let ips = result["ips"].as_array().into_iter().flatten();
    ips.map(|entry| format!("{} via {}", text(&entry["address"]), text(&entry["gateway"]))).collect()
}

/// An answer in the terms of both programs: the result, or the text of the refusal.
pub fn answer(outcome: &Outcome) -> Result<Value, String> {
    match outcome.code {
        0 => Ok(outcome.json()),
        _ => Err(outcome.json()["msg"].as_str().unwrap_or_else(|| panic!("no message: {outcome:#?}")).to_owned()),
    }
}
