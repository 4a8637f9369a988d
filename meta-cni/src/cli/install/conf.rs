//! Our own configuration: what it says, and that it is right, before it is written.

use std::{collections::BTreeSet, fs, path::Path};

use serde::Serialize;

use super::{
    host::{Host, names_in},
    primary::OUR_FILE,
};
use crate::{
    cni::{Error, Object, PluginList},
    settings::Settings,
};

/// Our type, and the name of our network.
const NAME: &str = "meta-cni";
/// The version that every runtime takes a result in: containerd 1.6 refuses 1.1.0.
const VERSION: &str = "1.0.0";
/// The versions that a runtime may choose from, if it knows how to.
const VERSIONS: [&str; 4] = ["0.3.1", "0.4.0", "1.0.0", "1.1.0"];
/// With it the runtime hands over the pod's annotations, and the API server need not be asked for them.
const ANNOTATIONS: &str = "io.kubernetes.cri.pod-annotations";
/// Keys that the installer gives: whoever wants another value has an option for it.
const OURS: [&str; 9] =
    ["cniVersion", "cniVersions", "name", "type", "plugins", "clusterNetwork", "delegates", "binDir", "cniDir"];
/// Where settings look by default, so that it need not be said.
const BIN_DIR: &str = "/opt/cni/bin";
const STATE_DIR: &str = "/var/lib/cni/meta-cni";

/// What goes into our configuration.
#[derive(Debug)]
pub(super) struct Wanted<'a> {
    /// The primary network's configuration, on the node.
    pub(super) cluster_network: &'a Path,
    /// What the runtime may tell the primary network's plugins.
    pub(super) capabilities: BTreeSet<String>,
    /// The administrator's keys.
    pub(super) own: Object,
    /// The node's name.
    pub(super) node_name: Option<&'a str>,
    /// How to reach the API server, on the node.
    pub(super) kubeconfig: Option<&'a Path>,
    /// Plugins that somebody else put behind ours.
    pub(super) behind: Vec<Object>,
}

/// What is in force.
#[derive(Debug, Default)]
pub(super) struct Present {
    /// Our plugin's object.
    pub(super) own: Object,
    /// Plugins that somebody else put behind it.
    pub(super) behind: Vec<Object>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct List<'a> {
    cni_version: &'a str,
    cni_versions: &'a [&'a str],
    name: &'a str,
    plugins: Vec<&'a Object>,
}

impl Present {
    /// Reads our configuration; nothing if it is not there, or is not ours.
    pub(super) fn read(host: &Host) -> Option<Self> {
        Self::of(&host.conf(OUR_FILE))
    }

    /// Reads it under a name that another program gave it.
    pub(super) fn renamed(host: &Host) -> Option<Self> {
        renamed(host).iter().find_map(|name| Self::of(&host.conf(name)))
    }

    fn of(path: &Path) -> Option<Self> {
        let text = fs::read(path).ok()?;
        let list = Object::parse(OUR_FILE, &text).ok()?;
        PluginList::from_object(list.clone(), None).ok()?;
        let mut plugins = list.get::<Vec<Object>>("plugins").ok()??;
        let at = plugins.iter().position(|plugin| plugin.text("type").is_ok_and(|kind| kind == NAME))?;
        let behind = plugins.split_off(at + 1);
        Some(Self { own: plugins.pop()?, behind })
    }

    /// The configuration as settings, for who has to find what we keep.
    pub(super) fn settings(&self) -> Option<Settings> {
        Settings::read(&self.own).ok()
    }

    /// The name of the kept configuration that it leads to.
    pub(super) fn kept(&self, host: &Host) -> Option<String> {
        let path = self.own.text("clusterNetwork").ok()?;
        let path = Path::new(&path);
        (path.parent() == Some(&host.net_d)).then(|| path.file_name()?.to_str().map(str::to_owned)).flatten()
    }

    /// The keys that an administrator may have written.
    pub(super) fn keys_of_administrator(&self) -> Object {
        let mut own = self.own.clone();
        OURS.iter().chain(&["capabilities"]).for_each(|key| own.remove(key));
        own
    }
}

/// The names that other programs gave our configuration, so that the runtime does not read it.
pub(super) fn renamed(host: &Host) -> Vec<String> {
    let mut names = names_in(&host.seen(&host.net_d));
    names.retain(|name| name.strip_prefix(OUR_FILE).is_some_and(|rest| rest.starts_with('.')));
    names
}

/// Refuses keys of an administrator that an option is for.
///
/// # Errors
/// [`Error::Config`].
pub(super) fn judge_own(own: &Object, given: &[(&str, bool)]) -> Result<(), Error> {
    let taken = |key: &&str| OURS.contains(key) || given.iter().any(|(name, is_given)| name == key && *is_given);
    let all = || OURS.iter().copied().chain(given.iter().map(|(name, _)| *name));
    match all().filter(|key| own.raw(key).is_some()).find(|key| taken(key)) {
        Some(key) => Err(Error::Config(format!(
            "\"{key}\" in --config is what the installer writes: leave it out and use the options (--primary for the primary network)"
        ))),
        None => Ok(()),
    }
}

/// The text of our configuration.
///
/// # Errors
/// [`Error::Config`] if `capabilities` of the administrator are no switches.
pub(super) fn build(host: &Host, wanted: Wanted<'_>) -> Result<String, Error> {
    let mut plugin = Object::default();
    plugin.set("type", NAME);
    plugin.set("clusterNetwork", wanted.cluster_network);
    if let Some(name) = wanted.node_name {
        plugin.set("nodeName", name);
    }
    if let Some(path) = wanted.kubeconfig {
        plugin.set("kubeconfig", path);
    }
    if host.bin != Path::new(BIN_DIR) {
        plugin.set("binDir", &host.bin);
    }
    if host.state != Path::new(STATE_DIR) {
        plugin.set("cniDir", &host.state);
    }
    let mut capabilities = Object::default();
    for name in wanted.capabilities.iter().map(String::as_str).chain([ANNOTATIONS]) {
        capabilities.set(name, &true);
    }
    let told = wanted.own.get::<Object>("capabilities")?.unwrap_or_default();
    for name in told.keys() {
        capabilities.set(name, &told.switch(name)?);
    }
    plugin.set("capabilities", &capabilities);
    for key in wanted.own.keys().filter(|key| !key.eq_ignore_ascii_case("capabilities")) {
        if let Some(value) = wanted.own.raw(key).filter(|_| plugin.raw(key).is_none()) {
            plugin.set(key, value);
        }
    }
    let plugins = [&plugin].into_iter().chain(&wanted.behind).collect();
    let list = List { cni_version: VERSION, cni_versions: &VERSIONS, name: NAME, plugins };
    let text = serde_json::to_string_pretty(&list).map_err(|problem| Error::decode(OUR_FILE, problem))?;
    judge(&text)?;
    Ok(text + "\n")
}

/// Reads a configuration as a runtime does, and as we do when it hands it over.
fn judge(text: &str) -> Result<(), Error> {
    let wrong = |error: Error| match error {
        Error::Config(problem) => Error::Config(format!("{OUR_FILE} is not written, it would be wrong: {problem}")),
        other => other,
    };
    let list = PluginList::from_object(Object::parse(OUR_FILE, text.as_bytes())?, None).map_err(wrong)?;
    let Some(plugin) = list.plugins.first() else { return Ok(()) };
    let mut conf = plugin.object.clone();
    conf.set("name", &list.name);
    conf.set("cniVersion", list.version.as_str());
    Settings::read(&conf).map_err(wrong)?;
    Settings::judge_unknown_keys(&conf).map_err(wrong)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn host() -> Host {
        Host { root: "/".into(), bin: BIN_DIR.into(), net_d: "/etc/cni/net.d".into(), state: STATE_DIR.into() }
    }

    fn wanted(own: &str) -> Wanted<'static> {
        Wanted {
            cluster_network: Path::new("/etc/cni/net.d/10-flannel.conflist.meta-cni"),
            capabilities: ["bandwidth", "portMappings"].map(str::to_owned).into(),
            own: Object::parse("own", own.as_bytes()).unwrap(),
            node_name: Some("node-1"),
            kubeconfig: Some(Path::new("/var/lib/cni/meta-cni/credentials/kubeconfig")),
            behind: Vec::new(),
        }
    }

    #[test]
    fn a_conf_has_the_primarys_capabilities_and_the_administrators_keys() {
        let text = build(&host(), wanted(r#"{"logLevel":"debug","capabilities":{"bandwidth":false,"dns":true}}"#));
        let found: Value = serde_json::from_str(&text.unwrap()).unwrap();
        assert_eq!(
            found,
            json!({
                "cniVersion": "1.0.0", "cniVersions": ["0.3.1", "0.4.0", "1.0.0", "1.1.0"], "name": "meta-cni",
                "plugins": [{
                    "type": "meta-cni", "clusterNetwork": "/etc/cni/net.d/10-flannel.conflist.meta-cni",
                    "nodeName": "node-1", "kubeconfig": "/var/lib/cni/meta-cni/credentials/kubeconfig",
                    "capabilities": {"bandwidth": false, "portMappings": true, "io.kubernetes.cri.pod-annotations": true,
                                     "dns": true},
                    "logLevel": "debug",
                }]
            })
        );
    }

    #[test]
    fn what_would_be_wrong_is_not_written() {
        for (own, part) in [
            (r#"{"addTimeoutSeconds":0}"#, "\"addTimeoutSeconds\" must be at least 1"),
            (r#"{"strict":true,"logLevle":"debug"}"#, "did you mean \"logLevel\""),
            (r#"{"capabilities":{"dns":"perhaps"}}"#, "must be true or false"),
        ] {
            match build(&host(), wanted(own)) {
                Err(Error::Config(text)) => assert!(text.contains(part), "{text}"),
                other => panic!("{own}: {other:?}"),
            }
        }
        let own = |text: &str| Object::parse("own", text.as_bytes()).unwrap();
        for (keys, wrong) in
            [(r#"{"clusterNetwork":"x"}"#, true), (r#"{"nodeName":"x"}"#, true), (r#"{"kubeconfig":"/x"}"#, false)]
        {
            let judged = judge_own(&own(keys), &[("nodeName", true), ("kubeconfig", false)]);
            assert_eq!(matches!(judged, Err(Error::Config(_))), wrong, "{keys}");
        }
    }

    #[test]
    fn keys_of_ours_are_told_from_an_administrators() {
        let root = tempfile::tempdir().unwrap();
        let host = Host { net_d: root.path().into(), bin: "/bin".into(), state: "/state".into(), ..host() };
        let kept = root.path().join("10-a.conf.meta-cni");
        let mut wanted = wanted(r#"{"logLevel":"debug"}"#);
        wanted.cluster_network = &kept;
        wanted.behind = vec![Object::parse("t", br#"{"type":"other"}"#).unwrap()];
        fs::write(host.conf(OUR_FILE), build(&host, wanted).unwrap()).unwrap();
        let present = Present::read(&host).unwrap();
        assert_eq!(present.kept(&host).as_deref(), Some("10-a.conf.meta-cni"));
        assert_eq!(present.behind.len(), 1);
        let keys: Vec<String> = present.keys_of_administrator().keys().map(str::to_owned).collect();
        assert_eq!(keys, ["nodeName", "kubeconfig", "logLevel"]);
        assert_eq!(present.settings().unwrap().state_dir, Path::new("/state"));
        for text in ["", "{", r#"{"name":"x","plugins":[{"type":"flannel"}]}"#] {
            fs::write(host.conf(OUR_FILE), text).unwrap();
            assert!(Present::read(&host).is_none(), "{text}");
        }
    }
}
