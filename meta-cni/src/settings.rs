//! Our own configuration: Multus' keys with their names and meanings, and a few of ours.

mod keys;
mod log;

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    time::Duration,
};

use crate::{
    cni::{Error, Object, check_network_name},
    log::LogSettings,
};
use keys::DAEMON_KEYS;
pub use keys::{CNI_KEYS, judge};

/// Where Multus looks for definitions of the node's networks, and gives no default networks.
const MULTUS_NAMESPACE: &str = "kube-system";
const CONF_DIR: &str = "/etc/cni/multus/net.d";
const BIN_DIR: &str = "/opt/cni/bin";
const STATE_DIR: &str = "/var/lib/cni/meta-cni";
/// Where locks, and the lists of what was there at boot, are kept (`runDir`).
pub const RUN_DIR: &str = "/run/meta-cni";
/// The file with the node's name and labels, if the configuration names no other (`nodeFile`).
pub const NODE_FILE: &str = "/etc/cni/meta-cni/node.json";
const READINESS_TIMEOUT: Duration = Duration::from_secs(30);
const ADD_TIMEOUT: Duration = Duration::from_secs(100);
const DEL_TIMEOUT: Duration = Duration::from_secs(60);
/// A time that can be added to any other.
const LONGEST_TIMEOUT: Duration = Duration::from_secs(24 * 3600);

/// Which events a pod gets (`events`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum EventLevel {
    /// Of what was attached, too.
    All,
    /// Of what was refused or failed, or is attached with less than the pod asks for.
    #[default]
    Failures,
    /// None.
    Off,
}

impl EventLevel {
    fn read(text: &str) -> Result<Self, Error> {
        match text {
            "all" => Ok(Self::All),
            "" | "failures" => Ok(Self::Failures),
            "off" => Ok(Self::Off),
            other => Err(Error::Config(format!("\"events\" is all, failures or off, not \"{other}\""))),
        }
    }
}

/// What an administrator configured. See the README for the meaning of each key.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The primary network: a path, a name in `conf_dir`, or a definition (`clusterNetwork`).
    pub cluster_network: Option<String>,
    /// Or its configuration in place; further ones are attached to every pod (`delegates`).
    pub delegates: Vec<Object>,
    /// Networks of every pod outside of `system_namespaces`, looked up like `cluster_network` (`defaultNetworks`).
    pub default_networks: Vec<String>,
    /// Where definitions are that the node's configuration, or a pod's choice of its primary, names without a namespace
    /// (`multusNamespace`).
    pub multus_namespace: String,
    /// Namespaces whose pods get no default networks (`systemNamespaces`).
    pub system_namespaces: BTreeSet<String>,
    /// A directory beside the primary's configuration whose confs are run for every pod (`auxiliaryCNIChainName`).
    pub auxiliary_chain: String,
    /// Whether a request that no plugin of its network declares to serve is refused, as the specification demands
    /// (`capabilityCheck`: `strict`, or `compat` as Multus, which passes it over).
    pub strict_capabilities: bool,
    /// Whether a pod may choose a device by itself (`allowDeviceID`).
    pub allow_device_id: bool,
    /// Which events a pod gets (`events`).
    pub events: EventLevel,
    /// Where configurations are looked up by name (`confDir`).
    pub conf_dir: PathBuf,
    /// Where plugins are looked for before `CNI_PATH` (`binDir`).
    pub bin_dir: PathBuf,
    /// Where records are kept (`cniDir`).
    pub state_dir: PathBuf,
    /// Where locks are kept (`runDir`).
    pub run_dir: PathBuf,
    /// How to reach the API server (`kubeconfig`).
    pub kubeconfig: Option<PathBuf>,
    /// A directory of manifests in place of an API server (`manifestDir`).
    pub manifest_dir: Option<PathBuf>,
    /// The node's name (`nodeName`).
    pub node_name: String,
    /// Its name and labels, for pools that depend on the node (`nodeFile`).
    pub node_file: PathBuf,
    /// Whether pods may only use definitions of their own and the global namespaces (`namespaceIsolation`).
    pub namespace_isolation: bool,
    /// Namespaces whose definitions everyone may use (`globalNamespaces`).
    pub global_namespaces: BTreeSet<String>,
    /// A file that exists once the primary network is ready (`readinessindicatorfile`).
    pub readiness_file: Option<PathBuf>,
    /// How long ADD waits for the primary network to be ready.
    pub readiness_timeout: Duration,
    /// How long an ADD may take in all.
    pub add_timeout: Duration,
    /// How long a DEL may take in all.
    pub del_timeout: Duration,
    /// Types that are attached in-process (`builtins`); others are executed.
    pub builtins: BTreeSet<String>,
    /// The log.
    pub log: LogSettings,
}

impl Settings {
    /// Reads the configuration of the meta plugin.
    ///
    /// # Errors
    /// [`Error::Config`] that names the key; unknown keys only with `"strict": true`.
    pub fn read(conf: &Object) -> Result<Self, Error> {
        let path = |key, default: &str| -> Result<PathBuf, Error> {
            let text = conf.text(key)?;
            absolute(key, if text.is_empty() { default } else { &text })
        };
        let optional = |key| -> Result<Option<PathBuf>, Error> {
            let text = conf.text(key)?;
            if text.is_empty() { Ok(None) } else { absolute(key, &text).map(Some) }
        };
        let seconds = |key, default: Duration| -> Result<Duration, Error> {
            match conf.get::<u64>(key)? {
                Some(0) => Err(Error::Config(format!("\"{key}\" must be at least 1 second"))),
                value => Ok(value.map_or(default, |value| Duration::from_secs(value).min(LONGEST_TIMEOUT))),
            }
        };
        let settings = Self {
            cluster_network: Some(conf.text("clusterNetwork")?).filter(|text| !text.is_empty()),
            delegates: conf.get("delegates")?.unwrap_or_default(),
            default_networks: conf.get("defaultNetworks")?.unwrap_or_default(),
            multus_namespace: Some(conf.text("multusNamespace")?)
                .filter(|text| !text.is_empty())
                .unwrap_or_else(|| MULTUS_NAMESPACE.to_owned()),
            system_namespaces: conf
                .get("systemNamespaces")?
                .unwrap_or_else(|| BTreeSet::from([MULTUS_NAMESPACE.to_owned()])),
            auxiliary_chain: checked_chain(conf.text("auxiliaryCNIChainName")?)?,
            strict_capabilities: match conf.text("capabilityCheck")?.as_str() {
                "" | "compat" => false,
                "strict" => true,
                other => {
                    return Err(Error::Config(format!("\"capabilityCheck\" is strict or compat, not \"{other}\"")));
                }
            },
            allow_device_id: conf.switch("allowDeviceID")?,
            events: EventLevel::read(&conf.text("events")?)?,
            conf_dir: path("confDir", CONF_DIR)?,
            bin_dir: path("binDir", BIN_DIR)?,
            state_dir: path("cniDir", STATE_DIR)?,
            run_dir: path("runDir", RUN_DIR)?,
            kubeconfig: optional("kubeconfig")?,
            manifest_dir: optional("manifestDir")?,
            node_name: conf.text("nodeName")?,
            node_file: path("nodeFile", NODE_FILE)?,
            namespace_isolation: conf.switch("namespaceIsolation")?,
            global_namespaces: names(&conf.text("globalNamespaces")?, "default"),
            readiness_file: optional("readinessindicatorfile")?,
            readiness_timeout: seconds("readinessTimeoutSeconds", READINESS_TIMEOUT)?,
            add_timeout: seconds("addTimeoutSeconds", ADD_TIMEOUT)?,
            del_timeout: seconds("delTimeoutSeconds", DEL_TIMEOUT)?,
            builtins: match conf.get::<BTreeSet<String>>("builtins")? {
                Some(names) => checked_builtins(names)?,
                None => BUILTINS.map(str::to_owned).into(),
            },
            log: LogSettings::read(conf)?,
        };
        if settings.cluster_network.is_none() && settings.delegates.is_empty() {
            return Err(Error::Config(
                "neither \"clusterNetwork\" nor \"delegates\" is given: name the primary network's configuration"
                    .to_owned(),
            ));
        }
        if settings.kubeconfig.is_some() && settings.manifest_dir.is_some() {
            return Err(Error::Config("\"kubeconfig\" and \"manifestDir\" exclude each other: give one".to_owned()));
        }
        Ok(settings)
    }

    /// The defaults, for a plugin that is called by itself: nothing in its configuration is meant for us but where to log.
    #[must_use]
    pub fn of_plugin(conf: &Object) -> Self {
        Self {
            cluster_network: None,
            delegates: Vec::new(),
            default_networks: Vec::new(),
            multus_namespace: MULTUS_NAMESPACE.to_owned(),
            system_namespaces: BTreeSet::new(),
            auxiliary_chain: String::new(),
            strict_capabilities: false,
            allow_device_id: false,
            events: EventLevel::Off,
            conf_dir: CONF_DIR.into(),
            bin_dir: BIN_DIR.into(),
            state_dir: STATE_DIR.into(),
            run_dir: RUN_DIR.into(),
            kubeconfig: None,
            manifest_dir: None,
            node_name: String::new(),
            node_file: NODE_FILE.into(),
            namespace_isolation: false,
            global_namespaces: BTreeSet::new(),
            readiness_file: None,
            readiness_timeout: READINESS_TIMEOUT,
            add_timeout: ADD_TIMEOUT,
            del_timeout: DEL_TIMEOUT,
            builtins: BUILTINS.map(str::to_owned).into(),
            log: LogSettings::at_best(conf),
        }
    }

    /// Names in a warning what another key puts out of force (Multus ignores it in silence), and what is meant for Multus'
    /// daemon.
    pub fn warn_of_ineffective_keys(&self, conf: &Object) {
        let is_daemons = |key: &&str| DAEMON_KEYS.iter().any(|name| name.eq_ignore_ascii_case(key));
        let of_daemon: Vec<&str> = conf.keys().filter(is_daemons).collect();
        if !of_daemon.is_empty() {
            tracing::warn!("keys of Multus' daemon have no effect here: {}", of_daemon.join(", "));
        }
        let options: Option<Object> = conf.get("logOptions").ok().flatten();
        if options.is_some_and(|options| options.switch("compress").unwrap_or_default()) {
            tracing::warn!("\"compress\" in \"logOptions\" has no effect: it would keep the pod waiting");
        }
        if self.cluster_network.is_some() && !self.delegates.is_empty() {
            tracing::warn!("\"delegates\" has no effect beside \"clusterNetwork\": give one of them");
        }
    }
}

/// What is built in.
pub const BUILTINS: [&str; 3] = ["sriov", "host-local", "static"];

/// The name of a directory beside the primary's configuration: nothing that leads elsewhere.
fn checked_chain(name: String) -> Result<String, Error> {
    if name.is_empty() {
        return Ok(name);
    }
    check_network_name(&name).map_err(|error| Error::Config(format!("\"auxiliaryCNIChainName\": {error}")))?;
    Ok(name)
}

fn checked_builtins(names: BTreeSet<String>) -> Result<BTreeSet<String>, Error> {
    match names.iter().find(|name| !BUILTINS.contains(&name.as_str())) {
        Some(name) => {
            Err(Error::Config(format!("\"builtins\": \"{name}\" is not built in, only {}", BUILTINS.join(", "))))
        }
        None => Ok(names),
    }
}

fn absolute(key: &str, text: &str) -> Result<PathBuf, Error> {
    if Path::new(text).is_absolute() {
        Ok(PathBuf::from(text))
    } else {
        Err(Error::Config(format!("\"{key}\": \"{text}\" is no absolute path")))
    }
}

fn names(csv: &str, default: &str) -> BTreeSet<String> {
    let csv = if csv.is_empty() { default } else { csv };
    csv.split(',').map(|name| name.trim().to_owned()).filter(|name| !name.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(text: &str) -> Object {
        Object::parse("conf", text.as_bytes()).unwrap()
    }

    fn refusal(text: &str) -> String {
        match Settings::read(&object(text)) {
            Err(Error::Config(message)) => message,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn defaults_are_those_of_multus() {
        let settings = Settings::read(&object(r#"{"clusterNetwork":"cbr0"}"#)).unwrap();
        assert_eq!(settings.conf_dir, Path::new("/etc/cni/multus/net.d"));
        assert_eq!(settings.global_namespaces, BTreeSet::from(["default".to_owned()]));
        assert_eq!(settings.builtins.len(), 3);
        assert_eq!(settings.events, EventLevel::Failures);
        assert!(settings.log.to_stderr && !settings.namespace_isolation);
    }

    #[test]
    fn wrong_values_name_their_key() {
        assert!(refusal("{}").contains("clusterNetwork"));
        assert!(
            refusal(r#"{"clusterNetwork":"a","binDir":"bin"}"#).contains("\"binDir\": \"bin\" is no absolute path")
        );
        assert!(refusal(r#"{"clusterNetwork":7}"#).contains("clusterNetwork"));
        assert!(refusal(r#"{"clusterNetwork":"a","builtins":["vlan"]}"#).contains("\"vlan\" is not built in"));
        assert!(refusal(r#"{"clusterNetwork":"a","events":"some"}"#).contains("all, failures or off, not \"some\""));
        assert!(refusal(r#"{"clusterNetwork":"a","events":true}"#).contains("\"events\""));
        assert!(refusal(r#"{"clusterNetwork":"a","delTimeoutSeconds":0}"#).contains("at least 1"));
        assert!(
            refusal(r#"{"clusterNetwork":"a","kubeconfig":"/a","manifestDir":"/b"}"#).contains("exclude each other")
        );
    }

    #[test]
    fn unknown_keys_are_named_with_the_nearest_one() {
        let strict = object(r#"{"clusterNetwork":"a","strict":true,"cluster-network":"b","xyzzy":1,"bindir":"/x"}"#);
        match Settings::judge_unknown_keys(&strict) {
            Err(Error::Config(text)) => {
                assert!(text.contains("\"cluster-network\" (did you mean \"clusterNetwork\"?), \"xyzzy\""), "{text}");
                assert!(!text.contains("bindir"), "{text}");
            }
            other => panic!("{other:?}"),
        }
        Settings::judge_unknown_keys(&object(r#"{"clusterNetwork":"a","xyzzy":1}"#)).unwrap();
    }
}
