//! The node's pools: which directories there are, and the configurations that name them.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use super::record::Records;
use crate::cni::{Error, Object, PluginList};

/// Where Flannel's plugin keeps what it told its delegate, a file for each container.
pub const FLANNEL_DIR: &str = "/var/lib/cni/flannel";

/// The directory of the pool that a network's addresses come from: host-local's, of its first plugin that has `ipam`.
#[must_use]
pub fn directory_of(list: &PluginList) -> Option<PathBuf> {
    list.plugins.iter().find_map(|plugin| {
        let ipam = plugin.object.get::<Object>("ipam").ok().flatten();
        let kind = ipam.as_ref().and_then(|ipam| ipam.text("type").ok()).unwrap_or_default();
        let data_dir = ipam.and_then(|ipam| ipam.text("dataDir").ok()).filter(|path| !path.is_empty());
        // Flannel's plugin writes host-local into its delegate by itself.
        let is_ours = kind == "host-local" || (kind.is_empty() && plugin.kind == "flannel");
        is_ours.then(|| Path::new(data_dir.as_deref().unwrap_or(ipam::DEFAULT_DATA_DIR)).join(&list.name))
    })
}

/// The configurations that are known to name pools: those that the journals keep, and what Flannel told its delegates.
///
/// # Errors
/// [`Error::Io`] if a journal cannot be listed. A configuration that does not parse is passed over: it names no pool.
pub fn configurations(journals: &[Records]) -> Result<Vec<PluginList>, Error> {
    let mut lists = Vec::new();
    for records in journals {
        lists.extend(records.confs()?);
    }
    for path in entries(Path::new(FLANNEL_DIR)) {
        let text = fs::read(&path).unwrap_or_default();
        let told = Object::parse("Flannel's file", &text).and_then(|object| PluginList::from_object(object, None));
        lists.extend(told);
    }
    Ok(lists)
}

/// The directories of all pools that lie in `data_dirs` or are named by a configuration, as far as they exist.
#[must_use]
pub fn directories(data_dirs: &[PathBuf], lists: &[PluginList]) -> BTreeSet<PathBuf> {
    let named = lists.iter().filter_map(directory_of);
    let listed = data_dirs.iter().flat_map(|directory| entries(directory));
    // Names with a dot in front are no networks'.
    let is_network = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str());
        name.is_some_and(|name| !name.starts_with('.')) && path.is_dir()
    };
    listed.chain(named).filter(is_network).collect()
}

fn entries(directory: &Path) -> Vec<PathBuf> {
    fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}
