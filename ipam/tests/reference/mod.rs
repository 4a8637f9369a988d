//! The two sides of a comparison: the reference plugin and this crate, each on a data directory of its own.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use ipam::{Error, Node, Owner, Pool, Prior, RawIpam, Request, requested_addresses};
use serde_json::{Value, json};

const WAIT: Duration = Duration::from_secs(60);

pub(crate) fn plugin(name: &str) -> PathBuf {
    let directory = std::env::var_os("META_CNI_REFERENCE_PLUGINS").expect(
        "META_CNI_REFERENCE_PLUGINS is not set: it must name a directory with the reference plugins (make test sets it)",
    );
    let path = Path::new(&directory).join(name);
    assert!(path.is_file(), "{} is missing: build the reference plugins first (make test does)", path.display());
    path
}

/// An answer in the terms of both: addresses with gateways, or the text of the refusal.
pub(crate) type Answer = Result<Vec<String>, String>;

#[derive(Debug, Clone)]
pub(crate) struct Call {
    pub(crate) container: String,
    pub(crate) interface: &'static str,
    /// `runtimeConfig.ips`.
    pub(crate) ips: Vec<String>,
}

/// One pool's configuration, on its own data directory.
pub(crate) struct Side {
    _data: tempfile::TempDir,
    pub(crate) ipam: Value,
}

impl Side {
    pub(crate) fn new(ipam: &Value) -> Side {
        let data = tempfile::tempdir().unwrap();
        let mut ipam = ipam.clone();
        ipam["dataDir"] = json!(data.path());
        ipam["type"] = json!("host-local");
        Side { _data: data, ipam }
    }
}

/// Runs a reference plugin; `Err` is the text of its error.
pub(crate) fn run(plugin: &Path, verb: &str, call: &Call, ipam: &Value) -> Result<Value, String> {
    let conf = json!({"cniVersion": "1.0.0", "name": "net-a", "type": "any", "ipam": ipam,
        "runtimeConfig": {"ips": call.ips}});
    let mut child = Command::new(plugin)
        .env_clear()
        .env("CNI_COMMAND", verb)
        .env("CNI_CONTAINERID", &call.container)
        .env("CNI_IFNAME", call.interface)
        .env("CNI_NETNS", "/nonexistent")
        .env("CNI_PATH", "/nonexistent")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    serde_json::to_writer(child.stdin.take().unwrap(), &conf).unwrap();
    let output = child.wait_with_output().unwrap();
    let value = if output.stdout.is_empty() { Value::Null } else { serde_json::from_slice(&output.stdout).unwrap() };
    match output.status.success() {
        true => Ok(value),
        false => Err(value["msg"].as_str().unwrap().to_owned()),
    }
}

pub(crate) fn addresses(result: &Value) -> Vec<String> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let ips = result["ips"].as_array().into_iter().flatten();
    ips.map(|entry| format!("{} via {}", text(&entry["address"]), text(&entry["gateway"]))).collect()
}

pub(crate) fn theirs(plugin: &Path, verb: &str, call: &Call, side: &Side) -> Answer {
    run(plugin, verb, call, &side.ipam).map(|result| addresses(&result))
}

pub(crate) fn our_pool(side: &Side) -> Result<Pool, Error> {
    let raw: RawIpam = serde_json::from_value(side.ipam.clone()).unwrap();
    Pool::new("net-a", &raw, &[], &Node::default())
}

/// The answer to an ADD.
pub(crate) fn ours(call: &Call, side: &Side) -> Answer {
    let perform = || -> Result<Vec<String>, Error> {
        let pool = our_pool(side)?;
        let owner = Owner::new(&call.container, call.interface)?;
        let requested = requested_addresses(None, &[], &call.ips)?;
        let request = Request { owner: &owner, requested: &requested, prior: Prior::Unknown, lock_wait: WAIT };
        let reserved = pool.reserve(&request)?;
        Ok(reserved.iter().map(|found| format!("{} via {}", found.address, found.gateway.unwrap())).collect())
    };
    perform().map_err(|error| error.to_string())
}
