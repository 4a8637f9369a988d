//! The networks that the node's own configuration gives to pods: the primary with what comes along (`delegates`), those of
//! every pod (`defaultNetworks`), the auxiliary chain.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::{
    cluster::Cluster,
    cni::{Error, Object, PluginList, files_in, names_meta_plugin},
    network::Network,
    settings::Settings,
};

/// The plugin that an auxiliary chain begins with: it answers with an empty result.
pub(super) const PASSTHRU: &str = "passthru";

/// The primary network, and further ones of `delegates`.
///
/// # Errors
/// [`Error::Config`] for a wrong configuration, [`Error::TryLater`] when it is not there (yet).
pub(super) async fn networks(settings: &Settings, cluster: &Cluster) -> Result<Vec<Network>, Error> {
    let networks = match &settings.cluster_network {
        // The mark is for the networks beside the primary.
        Some(name) => vec![find("clusterNetwork", name, settings, cluster).await.map_err(Error::unmarked)?],
        None => settings
            .delegates
            .iter()
            .enumerate()
            .map(|(at, delegate)| {
                let name = format!("delegate-{at}");
                PluginList::from_object(delegate.clone(), Some(&name))
                    .map(Network::of_list)
                    .map_err(|error| error.of_network(format!("delegates[{at}]")))
            })
            .collect::<Result<_, _>>()?,
    };
    networks.iter().try_for_each(refuse_meta_plugin)?;
    Ok(networks)
}

/// The networks of `defaultNetworks`, in their order.
///
/// # Errors
/// What is wrong with all of them, as [`networks`].
pub(super) async fn defaults(settings: &Settings, cluster: &Cluster) -> Result<Vec<Network>, Error> {
    let (mut networks, mut errors) = (Vec::new(), Vec::new());
    for name in &settings.default_networks {
        let found = find("defaultNetworks", name, settings, cluster).await;
        let judged = found.and_then(|network| {
            refuse_meta_plugin(&network).map_err(|error| error.refusing(name.as_str()))?;
            Ok(network)
        });
        match judged {
            Ok(network) => networks.push(network),
            Err(error) => errors.push(error.of_network(format!("defaultNetworks \"{name}\""))),
        }
    }
    Error::join(errors).map_or(Ok(networks), Err)
}

/// The auxiliary chain: the confs in the directory of its name beside the primary's configuration, behind a plugin that
/// does nothing. Without a file there is none.
///
/// # Errors
/// [`Error::Config`] and [`Error::Decode`] for a wrong file.
pub(super) fn auxiliary(settings: &Settings) -> Result<Option<Network>, Error> {
    let name = &settings.auxiliary_chain;
    if name.is_empty() {
        return Ok(None);
    }
    let primary = settings.cluster_network.as_deref().map(Path::new).filter(|path| path.is_absolute());
    let Some(primary) = primary else {
        return Err(Error::Config(
            "\"auxiliaryCNIChainName\" needs a path in \"clusterNetwork\": its files are in a directory beside that one"
                .to_owned(),
        ));
    };
    let files = files_in(&primary.with_file_name(name), &["conf"]);
    if files.is_empty() {
        return Ok(None);
    }
    let version = PluginList::from_file(primary).map_or_else(|_| "1.0.0".to_owned(), |list| list.version.to_string());
    let mut first = Object::default();
    first.set("type", PASSTHRU);
    let mut plugins = vec![first];
    for file in &files {
        let text = fs::read(file).map_err(|source| Error::io("read", file.display(), source))?;
        plugins.push(Object::parse(&file.display().to_string(), &text)?);
    }
    let mut chain = Object::default();
    chain.set("cniVersion", &version);
    chain.set("name", name);
    chain.set("plugins", &plugins);
    let network = Network::of_list(PluginList::from_object(chain, None)?);
    refuse_meta_plugin(&network)?;
    Ok(Some(network))
}

fn refuse_meta_plugin(network: &Network) -> Result<(), Error> {
    match network.list.plugins.iter().find_map(|plugin| names_meta_plugin(&plugin.object)) {
        Some(kind) => Err(Error::Config(format!(
            "the network {} would call the meta plugin again (type \"{kind}\"): name the network's own configuration",
            network.list.name
        ))),
        None => Ok(()),
    }
}

/// A path of a file, or of a directory with one; a name in `confDir`; a definition. What is wrong is marked as this
/// network's own, unless it is the API server.
async fn find(key: &str, name: &str, settings: &Settings, cluster: &Cluster) -> Result<Network, Error> {
    let path = Path::new(name);
    if path.is_absolute() {
        return at_path(path).map(Network::of_list).map_err(|error| error.refusing(name));
    }
    if !name.contains('/') && has_conf(&settings.conf_dir, name) {
        let list = PluginList::find(&settings.conf_dir, name);
        return list.map(Network::of_list).map_err(|error| error.refusing(name));
    }
    if !cluster.is_there() {
        let text = format!(
            "the configuration of \"{key}\" is missing: no file in {} has the name \"{name}\"",
            settings.conf_dir.display()
        );
        return Err(Error::TryLater(text).missing(name));
    }
    let (namespace, name) = name.split_once('/').unwrap_or((&settings.multus_namespace, name));
    let definition = cluster.definition(namespace, name).await?;
    let full_name = format!("{namespace}/{name}");
    let list = definition.plugins(&settings.conf_dir).map_err(|error| error.refusing(&full_name))?;
    Ok(Network { name: full_name, selection: None, list, resource: definition.resource })
}

fn has_conf(directory: &Path, name: &str) -> bool {
    let named = |path: &PathBuf| {
        let text = fs::read(path).unwrap_or_default();
        Object::parse("conf", &text).and_then(|object| object.text("name")).is_ok_and(|found| found == name)
    };
    files_in(directory, &["conflist", "conf", "json"]).iter().any(named)
}

fn at_path(path: &Path) -> Result<PluginList, Error> {
    let missing = || {
        let path = path.display().to_string();
        Error::TryLater(format!("a network's configuration is missing: {path}")).missing(path)
    };
    let file = if path.is_dir() {
        let mut files = files_in(path, &["conf", "conflist"]);
        files.retain(|file| !is_ours(file));
        files.into_iter().next().ok_or_else(missing)?
    } else {
        path.to_owned()
    };
    match fs::metadata(&file) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err(missing()),
        _ => PluginList::from_file(&file),
    }
}

/// Whether a file in the runtime's directory is the conf that leads to us.
fn is_ours(path: &Path) -> bool {
    let text = fs::read(path).unwrap_or_default();
    Object::parse("conf", &text).is_ok_and(|object| names_meta_plugin(&object).is_some())
}
