//! Where our things are on this node, for a command that no runtime tells its configuration: the runtime's directory of
//! configurations says it.

use std::path::{Path, PathBuf};

use super::{Arguments, NET_DIR};
use crate::{
    attach::record::Records,
    cni::{Object, files_in},
    face::Face,
    node::Layout,
    settings::Settings,
};

/// Where runtimes have their configurations.
const NET_D: &str = "/etc/cni/net.d";

/// What a node's configurations say about us.
#[derive(Debug)]
pub(super) struct Node {
    /// The directory that was looked into.
    pub(super) net_dir: PathBuf,
    /// Configurations of the meta plugin, each with the name of its list. The runtime's is the first.
    pub(super) confs: Vec<Object>,
}

impl Node {
    /// Looks for the configurations of the meta plugin. What does not parse is passed over, as the runtime does.
    pub(super) fn find(arguments: &Arguments) -> Self {
        let net_dir = arguments.path(NET_DIR.name).unwrap_or_else(|| NET_D.into());
        let files = files_in(&net_dir, &["conf", "conflist", "json"]);
        let confs = files.iter().flat_map(|file| confs_of(file)).collect();
        Self { net_dir, confs }
    }

    /// The journals of the node: of the meta plugin, wherever it is told to keep it, and of the drop-ins.
    pub(super) fn journals(&self) -> Vec<Records> {
        let defaults = Settings::of_plugin(&Object::default());
        let mut layouts = vec![Layout::of(&defaults, Face::Meta), Layout::of(&defaults, Face::Sriov)];
        let told = self.confs.iter().filter_map(|conf| Settings::read(conf).ok());
        let told = told.filter(|settings| settings.state_dir != defaults.state_dir);
        layouts.extend(told.map(|settings| Layout::of(&settings, Face::Meta)));
        layouts.iter().map(Records::of).collect()
    }
}

/// The configurations of the meta plugin in a file, as the runtime would hand them over.
fn confs_of(file: &Path) -> Vec<Object> {
    let text = std::fs::read(file).unwrap_or_default();
    let Ok(list) = Object::parse("conf", &text) else { return Vec::new() };
    let mut plugins = list.get::<Vec<Object>>("plugins").ok().flatten().unwrap_or_else(|| vec![list.clone()]);
    plugins.retain(|plugin| plugin.text("type").is_ok_and(|kind| kind == "meta-cni"));
    for plugin in &mut plugins {
        for key in ["name", "cniVersion"] {
            plugin.set(key, &list.text(key).unwrap_or_default());
        }
    }
    plugins
}
