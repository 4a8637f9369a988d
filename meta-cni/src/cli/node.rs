//! Where our things are on this node, for a command that no runtime tells its configuration: the runtime's directory of
//! configurations says it.

use std::path::{Path, PathBuf};

use ipam::RawIpam;

use super::{Arguments, BIN_DIR, NET_DIR};
use crate::{
    attach::{Engine, pools, record::Records},
    cni::{CniArgs, Command, Error, Invocation, Object, PluginList, Trace, files_in},
    face::Face,
    log,
    node::{Layout, SUBNET_FILE, Sources},
    settings::Settings,
};

/// Where runtimes have their configurations.
const NET_D: &str = "/etc/cni/net.d";
/// What the names of configurations end in.
const EXTENSIONS: [&str; 3] = ["conf", "conflist", "json"];

/// What a node's configurations say about us.
#[derive(Debug)]
pub(super) struct Node {
    /// The directory that was looked into.
    pub(super) net_dir: PathBuf,
    /// Where plugins are, besides the usual place.
    bin_dir: Option<PathBuf>,
    /// Configurations of the meta plugin, each with the name of its list. The runtime's is the first.
    pub(super) confs: Vec<Object>,
}

impl Node {
    /// Looks for the configurations of the meta plugin. What does not parse is passed over, as the runtime does.
    pub(super) fn find(arguments: &Arguments) -> Self {
        let net_dir = arguments.path(NET_DIR.name).unwrap_or_else(|| NET_D.into());
        let files = files_in(&net_dir, &EXTENSIONS);
        let confs = files.iter().flat_map(|file| confs_of(file)).collect();
        Self { net_dir, bin_dir: arguments.path(BIN_DIR.name), confs }
    }

    /// What our configurations say, the runtime's first; if there is none, the defaults.
    pub(super) fn settings(&self) -> Vec<Settings> {
        let told = self.confs.iter().filter_map(|conf| Settings::read(conf).ok());
        told.chain([Settings::of_plugin(&Object::default())]).collect()
    }

    /// The journals of the node: of the meta plugin, wherever it is told to keep it, and of the drop-ins.
    pub(super) fn journals(&self) -> Vec<Records> {
        let mut layouts: Vec<Layout> = Vec::new();
        for settings in self.settings() {
            let new = |layout: &Layout| !layouts.iter().any(|known| known.sandboxes() == layout.sandboxes());
            let found: Vec<Layout> =
                Face::ALL.map(|face| Layout::of(&settings, face)).into_iter().filter(new).collect();
            layouts.extend(found);
        }
        layouts.iter().map(Records::of).collect()
    }

    /// The networks that are configured by files: those that the runtime attaches by itself, and what our configurations
    /// lead to without an API server. What does not parse is passed over.
    pub(super) fn networks(&self) -> Vec<PluginList> {
        let mut files = files_in(&self.net_dir, &EXTENSIONS);
        let mut lists = Vec::new();
        for settings in self.settings() {
            files.extend(files_in(&settings.conf_dir, &EXTENSIONS));
            if let Some(primary) = settings.cluster_network.map(PathBuf::from).filter(|path| path.is_absolute()) {
                files.extend(files_in(&primary, &EXTENSIONS));
                files.push(primary);
            }
            lists.extend(settings.delegates.into_iter().filter_map(|conf| PluginList::from_object(conf, None).ok()));
        }
        lists.extend(files.iter().filter_map(|file| PluginList::from_file(file).ok()));
        lists
    }

    /// The engine as the runtime's configuration sets it up. Where we are not the runtime's plugin, but a drop-in at most,
    /// it is one for the network whose pool this is, if the runtime attaches that by itself. Else there is none.
    ///
    /// # Errors
    /// As [`Settings::read`] and [`Engine::new`].
    pub(super) fn engine(&self, pool: &Path) -> Result<Option<Engine>, Error> {
        let Some(conf) = self.confs.first().cloned().or_else(|| self.conf_for(pool)) else { return Ok(None) };
        let settings = Settings::read(&conf)?;
        let invocation = Invocation {
            command: Command::Gc,
            container: String::new(),
            netns: String::new(),
            if_name: String::new(),
            args: CniArgs::default(),
            path: self.bin_dir.iter().cloned().collect(),
            conf,
            trace: Trace::None,
        };
        log::start(
            &settings.log,
            &[("verb", invocation.command.as_str()), ("conf", &invocation.conf.text("name").unwrap_or_default())],
        );
        Engine::new(Face::Meta, invocation, settings).map(Some)
    }

    /// A configuration of ours that leads to the network of a pool.
    fn conf_for(&self, pool: &Path) -> Option<Object> {
        let is_its = |file: &PathBuf| {
            PluginList::from_file(file)
                .is_ok_and(|list| pools::is_used_by(&list) && pools::of_network(&list).contains(pool))
        };
        let file = files_in(&self.net_dir, &EXTENSIONS).into_iter().find(is_its)?;
        let mut conf = Object::default();
        conf.set("name", "meta-cni");
        conf.set("clusterNetwork", &file);
        Some(conf)
    }

    /// What the pool of a network has to know of the node.
    ///
    /// # Errors
    /// As [`Sources::node`].
    pub(super) fn identity(&self, raw: &RawIpam, network: &str) -> Result<ipam::Node, Error> {
        let settings = self.settings().swap_remove(0);
        let sources = Sources { name: &settings.node_name, file: &settings.node_file, subnet: Path::new(SUBNET_FILE) };
        sources.node(raw, network)
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
