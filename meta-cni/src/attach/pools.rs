//! Where the address pools of networks are, whoever gives out of them: host-local's directories are the same for all.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use serde_json::Value;

use crate::cni::{Object, PluginList};

/// Where Flannel's plugin keeps what it made of its configuration, a file for each container.
pub const FLANNEL_DIRECTORY: &str = "/var/lib/cni/flannel";

/// The directories that a network's addresses may come from: the default one, and what an `ipam` of it names, also one
/// that a plugin hands on (Flannel's `delegate`).
#[must_use]
pub fn of_network(list: &PluginList) -> BTreeSet<PathBuf> {
    let mut data_dirs = BTreeSet::from([PathBuf::from(ipam::DEFAULT_DATA_DIR)]);
    for plugin in &list.plugins {
        if let Ok(value) = serde_json::from_str(&plugin.object.to_text()) {
            add_data_dirs(&value, &mut data_dirs);
        }
    }
    data_dirs.into_iter().map(|directory| directory.join(&list.name)).collect()
}

fn add_data_dirs(value: &Value, found: &mut BTreeSet<PathBuf>) {
    let Value::Object(object) = value else { return };
    for (key, value) in object {
        if key == "ipam" {
            let data_dir = value["dataDir"].as_str().map(PathBuf::from);
            found.extend(data_dir.filter(|path| path.is_absolute()));
        } else {
            add_data_dirs(value, found);
        }
    }
}

/// Whether a network's addresses come from such a pool at all. Flannel's plugin has host-local give them unless told
/// otherwise.
#[must_use]
pub fn is_used_by(list: &PluginList) -> bool {
    list.plugins.iter().any(|plugin| {
        let ipam = plugin.object.get::<Object>("ipam").ok().flatten().unwrap_or_default();
        let kind = ipam.text("type").unwrap_or_default();
        kind == "host-local" || (kind.is_empty() && plugin.kind == "flannel")
    })
}

/// All pools in host-local's own place.
#[must_use]
pub fn of_node() -> Vec<PathBuf> {
    in_directory(Path::new(ipam::DEFAULT_DATA_DIR))
}

/// All pools in a data directory.
#[must_use]
pub fn in_directory(data_dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(data_dir).into_iter().flatten().flatten();
    let directories = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    // Our notes beside the pools begin with a dot, which no network's name does.
    let pools = directories.filter(|entry| !entry.file_name().to_string_lossy().starts_with('.'));
    pools.map(|entry| entry.path()).collect()
}

/// Where the plugin `flannel` of a list keeps its files, if it has one.
#[must_use]
pub fn scratch_of(list: &PluginList) -> Option<PathBuf> {
    let flannel = list.plugins.iter().find(|plugin| plugin.kind == "flannel")?;
    let configured = flannel.object.text("dataDir").unwrap_or_default();
    Some(PathBuf::from(if configured.is_empty() { FLANNEL_DIRECTORY } else { &configured }))
}

/// The containers that have a file in Flannel's directory.
#[must_use]
pub fn containers_in(scratch: &Path) -> Vec<String> {
    let entries = fs::read_dir(scratch).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

/// What Flannel's plugin told its delegates for the containers in its directory: there the ranges are.
#[must_use]
pub fn told_by_flannel(scratch: &Path) -> Vec<PluginList> {
    let told = |container: String| {
        let object = Object::parse("Flannel's file", &fs::read(scratch.join(container)).ok()?).ok()?;
        PluginList::from_object(object, None).ok()
    };
    containers_in(scratch).into_iter().filter_map(told).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(text: &str) -> PluginList {
        PluginList::from_object(Object::parse("list", text.as_bytes()).unwrap(), None).unwrap()
    }

    #[test]
    fn pools_are_found_however_deep_the_configuration_names_them() {
        let flannel = list(
            r#"{"name":"cbr0","cniVersion":"1.0.0","plugins":[
                {"type":"flannel","dataDir":"/run/f","delegate":{"ipam":{"type":"host-local","dataDir":"/run/pools"}}},
                {"type":"portmap"}]}"#,
        );
        let all = ["/run/pools/cbr0", "/var/lib/cni/networks/cbr0"].map(PathBuf::from);
        assert_eq!(of_network(&flannel), all.into());
        assert_eq!(scratch_of(&flannel), Some(PathBuf::from("/run/f")));
        let plain =
            list(r#"{"name":"a","cniVersion":"1.0.0","type":"macvlan","ipam":{"type":"host-local","dataDir":"x"}}"#);
        assert_eq!(of_network(&plain), [PathBuf::from("/var/lib/cni/networks/a")].into());
        assert_eq!(scratch_of(&plain), None);
    }
}
