//! The keys of our configuration, and what is said of those that nobody knows.

use super::{Settings, log};
use crate::cni::{Error, Object};

/// The keys of every network configuration, which we pass over or the protocol reads.
pub const CNI_KEYS: [&str; 13] = [
    "cniVersion",
    "cniVersions",
    "name",
    "type",
    "capabilities",
    "runtimeConfig",
    "prevResult",
    "ipam",
    "dns",
    "args",
    "disableCheck",
    "disableGC",
    "loadOnlyInlinedPlugins",
];
/// The keys of GC's list of valid attachments.
const GC_KEYS: [&str; 2] = ["cni.dev/valid-attachments", "cni.dev/attachments"];
/// Keys of ours and of Multus that have an effect here.
const KNOWN_KEYS: [&str; 31] = [
    "clusterNetwork",
    "delegates",
    "defaultNetworks",
    "multusNamespace",
    "systemNamespaces",
    "auxiliaryCNIChainName",
    "retryDeleteOnError",
    "capabilityCheck",
    "allowDeviceID",
    "events",
    "confDir",
    "binDir",
    "cniDir",
    "runDir",
    "kubeconfig",
    "manifestDir",
    "nodeName",
    "nodeFile",
    "namespaceIsolation",
    "globalNamespaces",
    "readinessindicatorfile",
    "readinessTimeoutSeconds",
    "addTimeoutSeconds",
    "delTimeoutSeconds",
    "builtins",
    "strict",
    "logFile",
    "logLevel",
    "logToStderr",
    "logFormat",
    "logOptions",
];

/// Keys of Multus' daemon, which have no meaning for one process a call.
pub(super) const DAEMON_KEYS: [&str; 14] = [
    "chrootDir",
    "socketDir",
    "daemonSocketDir",
    "perNodeCertificate",
    "connectionLimit",
    "metricsPort",
    "enablePprof",
    "multusConfigFile",
    "cniConfigDir",
    "multusAutoconfigDir",
    "multusMasterCNI",
    "forceCNIVersion",
    "overrideNetworkName",
    "allowTryDeleteOnErr",
];

impl Settings {
    /// Names unknown keys in a warning, or refuses them under `"strict": true`.
    ///
    /// # Errors
    /// [`Error::Config`] with all of them.
    pub fn judge_unknown_keys(conf: &Object) -> Result<(), Error> {
        let known = || CNI_KEYS.iter().chain(&GC_KEYS).chain(&KNOWN_KEYS).chain(&DAEMON_KEYS).copied();
        let unknown: Vec<&str> =
            conf.keys().filter(|key| !known().any(|name| name.eq_ignore_ascii_case(key))).collect();
        let strict = conf.switch("strict")?;
        judge(&unknown, &KNOWN_KEYS, "the configuration of meta-cni", strict)?;
        let options = conf.get::<Object>("logOptions")?.unwrap_or_default();
        let is_option = |key: &&str| log::OPTIONS.iter().any(|name| name.eq_ignore_ascii_case(key));
        let unknown: Vec<&str> = options.keys().filter(|key| !is_option(key)).collect();
        judge(&unknown, &log::OPTIONS, "\"logOptions\"", strict)
    }
}

/// Names unknown keys, each with the nearest known one; an error if `strict`.
///
/// # Errors
/// [`Error::Config`].
pub fn judge(unknown: &[&str], known: &[&str], place: &str, strict: bool) -> Result<(), Error> {
    if unknown.is_empty() {
        return Ok(());
    }
    let named: Vec<String> = unknown
        .iter()
        .map(|key| match nearest(key, known) {
            Some(name) => format!("\"{key}\" (did you mean \"{name}\"?)"),
            None => format!("\"{key}\""),
        })
        .collect();
    let text = format!("unknown key in {place}: {}", named.join(", "));
    if strict {
        return Err(Error::Config(text));
    }
    tracing::warn!("{text}; ignored");
    Ok(())
}

/// The known key that differs least, if it differs by a third of its letters at most.
fn nearest<'a>(key: &str, known: &[&'a str]) -> Option<&'a str> {
    let plain = |text: &str| text.to_ascii_lowercase().replace(['-', '_'], "");
    let key = plain(key);
    known
        .iter()
        .map(|name| (distance(&key, &plain(name)), *name))
        .min()
        .filter(|(distance, name)| distance * 3 <= name.len())
        .map(|(_, name)| name)
}

/// Levenshtein's distance.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut corner = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let change = corner + usize::from(from != *to);
            corner = row[j + 1];
            row[j + 1] = change.min(corner + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}
