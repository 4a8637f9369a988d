//! The primary network: where its configuration is, and whether it is ready.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::time::{Instant, sleep};

use crate::{
    cluster::Cluster,
    cni::{Error, Object, PluginList, files_in, names_meta_plugin},
    node::SUBNET_FILE,
    settings::Settings,
};

/// The bridge that the plugin `bridge` uses if its configuration names none; Flannel's says the same.
const DEFAULT_BRIDGE: &str = "cni0";
/// After which time a file that is not there yet is looked for again: the first time, and at most.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);
/// Where Multus looks for a definition of the primary network that names no namespace.
const DEFINITION_NAMESPACE: &str = "kube-system";

/// The networks of every pod: the primary, and further ones of `delegates`.
///
/// # Errors
/// [`Error::Config`] for a wrong configuration, [`Error::TryLater`] when it is not there (yet).
pub(super) async fn networks(settings: &Settings, cluster: &Cluster) -> Result<Vec<PluginList>, Error> {
    let lists = match &settings.cluster_network {
        Some(name) => vec![find(name, settings, cluster).await?],
        None => settings
            .delegates
            .iter()
            .enumerate()
            .map(|(at, delegate)| {
                let name = format!("delegate-{at}");
                PluginList::from_object(delegate.clone(), Some(&name))
                    .map_err(|error| error.of_network(format!("delegates[{at}]")))
            })
            .collect::<Result<_, _>>()?,
    };
    for list in &lists {
        let meta = list.plugins.iter().find_map(|plugin| names_meta_plugin(&plugin.object));
        if let Some(kind) = meta {
            return Err(Error::Config(format!(
                "the primary network {} would call the meta plugin again (type \"{kind}\"): name the network's own configuration",
                list.name
            )));
        }
    }
    Ok(lists)
}

/// `clusterNetwork`: a path of a file, or of a directory with one; a name in `confDir`; a definition.
async fn find(name: &str, settings: &Settings, cluster: &Cluster) -> Result<PluginList, Error> {
    let path = Path::new(name);
    if path.is_absolute() {
        return at_path(path);
    }
    if !name.contains('/') && has_conf(&settings.conf_dir, name) {
        return PluginList::find(&settings.conf_dir, name);
    }
    if !cluster.is_there() {
        return Err(Error::TryLater(format!(
            "the primary network's configuration is missing: no file in {} has the name \"{name}\"",
            settings.conf_dir.display()
        )));
    }
    let (namespace, name) = name.split_once('/').unwrap_or((DEFINITION_NAMESPACE, name));
    cluster.definition(namespace, name).await?.plugins(&settings.conf_dir)
}

fn has_conf(directory: &Path, name: &str) -> bool {
    let named = |path: &PathBuf| {
        let text = fs::read(path).unwrap_or_default();
        Object::parse("conf", &text).and_then(|object| object.text("name")).is_ok_and(|found| found == name)
    };
    files_in(directory, &["conflist", "conf", "json"]).iter().any(named)
}

fn at_path(path: &Path) -> Result<PluginList, Error> {
    let missing = || Error::TryLater(format!("the primary network's configuration is missing: {}", path.display()));
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

/// What the primary network needs before a pod can be attached, and is missing. Nothing means that it is ready.
#[must_use]
pub(super) fn missing(list: &PluginList, settings: &Settings) -> Option<String> {
    if let Some(file) = settings.readiness_file.as_deref().filter(|file| !file.exists()) {
        return Some(format!("the readiness file {} does not exist", file.display()));
    }
    let file = subnet_file(list)?;
    let text = match fs::read_to_string(&file) {
        Ok(text) => text,
        Err(error) => {
            return Some(format!(
                "Flannel's {} cannot be read ({error}): is flanneld running on this node?",
                file.display()
            ));
        }
    };
    let subnet = subnet_of(&text);
    subnet.is_none().then(|| format!("Flannel's {} names no FLANNEL_SUBNET", file.display()))
}

/// The file with Flannel's subnet, if the primary is Flannel.
#[must_use]
pub(super) fn subnet_file(list: &PluginList) -> Option<PathBuf> {
    let flannel = list.plugins.iter().find(|plugin| plugin.kind == "flannel")?;
    let configured = flannel.object.text("subnetFile").unwrap_or_default();
    Some(PathBuf::from(if configured.is_empty() { SUBNET_FILE } else { &configured }))
}

/// The bridge of a network whose plugin is `bridge`, or Flannel's with that as its delegate.
#[must_use]
pub(super) fn bridge_of(list: &PluginList) -> Option<String> {
    let conf = list.plugins.iter().find_map(|plugin| match plugin.kind.as_str() {
        "bridge" => Some(plugin.object.clone()),
        "flannel" => Some(plugin.object.get::<Object>("delegate").ok()?.unwrap_or_default()),
        _ => None,
    })?;
    let kind = conf.text("type").ok()?;
    let name = conf.text("bridge").ok().filter(|name| !name.is_empty());
    (kind.is_empty() || kind == "bridge").then(|| name.unwrap_or_else(|| DEFAULT_BRIDGE.to_owned()))
}

/// `FLANNEL_SUBNET` of a subnet file: the bridge's address with its prefix.
#[must_use]
pub(super) fn subnet_of(text: &str) -> Option<ipnet::IpNet> {
    text.lines().find_map(|line| line.trim().strip_prefix("FLANNEL_SUBNET=")?.parse().ok())
}

/// The networks of every pod, once the primary is ready; waits for it within `readinessTimeoutSeconds`.
///
/// # Errors
/// As [`networks`]; [`Error::TryLater`] that says what is still missing.
pub(super) async fn ready_networks(
    settings: &Settings,
    cluster: &Cluster,
    deadline: Instant,
) -> Result<Vec<PluginList>, Error> {
    let give_up = deadline.min(Instant::now() + settings.readiness_timeout);
    let mut pause = FIRST_PAUSE;
    loop {
        let waiting_for = match networks(settings, cluster).await {
            Ok(lists) => match lists.first().and_then(|primary| missing(primary, settings)) {
                None => return Ok(lists),
                Some(missing) => Error::TryLater(format!("the primary network is not ready: {missing}")),
            },
            Err(error @ Error::TryLater(_)) => error,
            Err(error) => return Err(error),
        };
        let left = give_up.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(waiting_for);
        }
        sleep(pause.min(left)).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}
