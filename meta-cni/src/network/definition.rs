//! A network as the cluster defines it: a NetworkAttachmentDefinition.

use std::path::Path;

use serde_json::Value;

use crate::cni::{Error, Object, PluginList, names_meta_plugin};

/// The annotation of a definition that names the resource its devices come from.
pub const RESOURCE_ANNOTATION: &str = "k8s.v1.cni.cncf.io/resourceName";

/// A NetworkAttachmentDefinition.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Definition {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The extended resource that provides its devices.
    pub resource: Option<String>,
    /// `spec.config`: a CNI configuration, or nothing.
    pub config: String,
}

impl Definition {
    /// Reads the object as the API server (or a manifest) gives it.
    #[must_use]
    pub fn from_object(object: &Value) -> Self {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let meta = &object["metadata"];
        Self {
            namespace: text(&meta["namespace"]),
            name: text(&meta["name"]),
            resource: meta["annotations"][RESOURCE_ANNOTATION]
                .as_str()
                .map(str::to_owned)
                .filter(|name| !name.is_empty()),
            config: text(&object["spec"]["config"]),
        }
    }

    /// The configuration: what is in the definition, or for an empty one the file of that name in `conf_dir`. Its
    /// `runtimeConfig` is dropped: that is the runtime's to give. A `dataDir` must lie where host-local's data belongs.
    ///
    /// # Errors
    /// [`Error::Decode`] and [`Error::Config`] that name the definition.
    pub fn plugins(&self, conf_dir: &Path) -> Result<PluginList, Error> {
        let name = format!("definition {}/{}", self.namespace, self.name);
        let named = |error: Error| match error {
            Error::Config(text) => Error::Config(format!("{name}: {text}")),
            version @ Error::IncompatibleVersion { .. } => version.of_network(name.as_str()),
            other => other,
        };
        if self.config.trim().is_empty() {
            let list = PluginList::find(conf_dir, &self.name).map_err(|error| error.within_mark(named))?;
            return guard(list).map_err(named);
        }
        let mut object = Object::parse(&format!("spec.config of {name}"), self.config.as_bytes())?;
        object.remove("runtimeConfig");
        guard(PluginList::from_object(object, Some(&self.name)).map_err(named)?).map_err(named)
    }
}

/// Refuses what a definition must not do: lead back to a meta plugin, or make a plugin write anywhere on the node.
fn guard(mut list: PluginList) -> Result<PluginList, Error> {
    for plugin in &mut list.plugins {
        plugin.object.remove("runtimeConfig");
        refuse_doubled(&plugin.object, &["type", "ipam"])?;
        if let Some(kind) = names_meta_plugin(&plugin.object) {
            return Err(Error::Config(format!(
                "type \"{kind}\" would call the meta plugin again: name the network's own plugin"
            )));
        }
        let Some(ipam) = plugin.object.get::<Object>("ipam")? else { continue };
        refuse_doubled(&ipam, &["type", "dataDir"])?;
        let kind = ipam.text("type")?;
        if kind.contains('/') || kind.contains("..") {
            return Err(Error::Config(format!("IPAM type \"{kind}\" is a path: give the name of a program in binDir")));
        }
        let data_dir = ipam.text("dataDir")?;
        if !data_dir.is_empty() && !is_data_directory(Path::new(&data_dir)) {
            return Err(Error::Config(format!("\"dataDir\": {data_dir} is not below /var/lib/cni or /run")));
        }
    }
    Ok(list)
}

/// Refuses a key that is judged here and written twice: what is judged must be what the plugin sees.
fn refuse_doubled(object: &Object, keys: &[&str]) -> Result<(), Error> {
    match keys.iter().find(|key| object.is_doubled(key)) {
        Some(key) => Err(Error::Config(format!("\"{key}\" is written twice: leave one"))),
        None => Ok(()),
    }
}

/// Whether a directory, with its links resolved as far as it exists, lies below /var/lib/cni or /run.
fn is_data_directory(path: &Path) -> bool {
    if !path.is_absolute() || path.components().any(|part| part == std::path::Component::ParentDir) {
        return false;
    }
    let existing = path.ancestors().find_map(|ancestor| Some((ancestor, ancestor.canonicalize().ok()?)));
    let Some((ancestor, resolved)) = existing else { return false };
    let full = match path.strip_prefix(ancestor) {
        Ok(rest) => resolved.join(rest),
        Err(_) => return false,
    };
    ["/var/lib/cni", "/run"].iter().any(|root| {
        let root = Path::new(root);
        full.starts_with(root) || root.canonicalize().is_ok_and(|root| full.starts_with(root))
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn definition(config: &str) -> Definition {
        Definition::from_object(&json!({
            "metadata": {"namespace": "default", "name": "net-a", "annotations": {RESOURCE_ANNOTATION: "intel.com/vf"}},
            "spec": {"config": config}
        }))
    }

    fn refusal(config: &str) -> String {
        match definition(config).plugins(Path::new("/nowhere")) {
            Err(Error::Config(text)) => text,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_howto_definition_without_name_works() {
        let found = definition(r#"{"cniVersion":"0.4.0","type":"sriov","vlan":100}"#);
        assert_eq!(found.resource.as_deref(), Some("intel.com/vf"));
        assert_eq!(found.plugins(Path::new("/nowhere")).unwrap().name, "net-a");
    }

    #[test]
    fn an_empty_one_is_looked_up_by_name() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("10-x.conf"), "not json").unwrap();
        std::fs::write(dir.path().join("20-a.conf"), r#"{"cniVersion":"0.3.1","name":"net-a","type":"macvlan"}"#)
            .unwrap();
        assert_eq!(definition(" ").plugins(dir.path()).unwrap().kinds(), "macvlan");
        match definition("").plugins(Path::new("/nowhere")) {
            Err(Error::Refused { missing: true, source, .. }) => {
                assert!(
                    matches!(&*source, Error::Config(text) if text.starts_with("definition default/net-a: no")),
                    "{source:?}"
                );
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_a_definition_must_not_do() {
        assert!(refusal(r#"{"type":"multus"}"#).contains("call the meta plugin again"));
        assert!(refusal(r#"{"type":"x","delegates":[{"type":"meta-cni"}]}"#).contains("meta plugin"));
        assert!(refusal(r#"{"type":"../x"}"#).contains("is a path"));
        assert!(refusal(r#"{"type":"x","ipam":{"type":"/bin/sh"}}"#).contains("IPAM type"));
        assert!(refusal(r#"{"type":"x","ipam":{"type":"host-local","dataDir":"/etc"}}"#).contains("dataDir"));
        assert!(refusal(r#"{"type":"x","ipam":{"type":"host-local","dataDir":"/run/../etc"}}"#).contains("dataDir"));
        assert!(
            matches!(definition("{").plugins(Path::new("/")), Err(Error::Decode { what, .. }) if what.contains("net-a"))
        );
    }

    #[test]
    fn what_is_judged_is_what_a_plugin_sees() {
        for (config, key) in [
            (r#"{"type":"x","ipam":{"type":"host-local","dataDir":"/etc","DataDir":null}}"#, "dataDir"),
            (r#"{"type":"x","ipam":{"dataDir":"/etc"},"IPAM":{"type":"host-local"}}"#, "ipam"),
            (r#"{"type":"x","ipam":{"type":"/bin/sh","type":null}}"#, "type"),
            (r#"{"plugins":[{"type":"x"},{"type":"multus","Type":"x"}]}"#, "type"),
        ] {
            assert_eq!(refusal(config), format!("definition default/net-a: \"{key}\" is written twice: leave one"));
        }
    }

    #[test]
    fn its_runtime_config_is_dropped() {
        let list =
            definition(r#"{"type":"x","runtimeConfig":{"mac":"m"},"k":1}"#).plugins(Path::new("/nowhere")).unwrap();
        assert_eq!(list.plugins[0].object.to_text(), r#"{"type":"x","k":1}"#);
    }
}
