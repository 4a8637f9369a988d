//! Whether the primary network is ready.

use std::{fs, path::PathBuf, time::Duration};

use ipnet::IpNet;
use tokio::time::{Instant, sleep};

use super::configured::networks;
use crate::{
    cluster::Cluster,
    cni::{Error, Object, PluginList},
    network::Network,
    node::SUBNET_FILE,
    settings::Settings,
};

/// The bridge that the plugin `bridge` uses if its configuration names none; Flannel's says the same.
const DEFAULT_BRIDGE: &str = "cni0";
/// After which time a file that is not there yet is looked for again: the first time, and at most.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

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
    let lacking = lacking(&text);
    (!lacking.is_empty()).then(|| {
        format!(
            "Flannel's {} is not whole: {} missing or torn; flanneld writes it when it starts",
            file.display(),
            lacking.join(", ")
        )
    })
}

/// What Flannel's plugin needs of a subnet file and does not find there: the network and the node's subnet of one family at
/// least, and what comes after them.
fn lacking(text: &str) -> Vec<&'static str> {
    let is_network = |value: &str| value.split(',').all(|one| one.trim().parse::<IpNet>().is_ok());
    let has = |key: &str, is_good: &dyn Fn(&str) -> bool| value_of(text, key).is_some_and(is_good);
    let (v4, v6) = (value_of(text, "FLANNEL_SUBNET"), value_of(text, "FLANNEL_IPV6_SUBNET"));
    let of_family = match (v4, v6) {
        (None, Some(_)) => ["FLANNEL_IPV6_NETWORK", "FLANNEL_IPV6_SUBNET"],
        _ => ["FLANNEL_NETWORK", "FLANNEL_SUBNET"],
    };
    let wanted = [
        (of_family[0], has(of_family[0], &is_network)),
        (of_family[1], has(of_family[1], &|value| value.parse::<IpNet>().is_ok())),
        ("FLANNEL_MTU", has("FLANNEL_MTU", &|value| value.parse::<u32>().is_ok())),
        ("FLANNEL_IPMASQ", has("FLANNEL_IPMASQ", &|value| matches!(value, "true" | "false"))),
    ];
    wanted.into_iter().filter(|(_, is_there)| !is_there).map(|(key, _)| key).collect()
}

fn value_of<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.trim().strip_prefix(key)?.strip_prefix('='))
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

/// The node's subnets of a subnet file, one of a family at most: the bridge's addresses with their prefixes.
pub fn subnets_of(text: &str) -> impl Iterator<Item = IpNet> {
    ["FLANNEL_SUBNET", "FLANNEL_IPV6_SUBNET"].into_iter().filter_map(|key| value_of(text, key)?.parse().ok())
}

/// The networks of every pod, once the primary is ready; waits for it within `readinessTimeoutSeconds`.
///
/// # Errors
/// As [`networks`]; [`Error::TryLater`] that says what is still missing.
pub(super) async fn ready_networks(
    settings: &Settings,
    cluster: &Cluster,
    deadline: Instant,
) -> Result<Vec<Network>, Error> {
    let give_up = deadline.min(Instant::now() + settings.readiness_timeout);
    let mut pause = FIRST_PAUSE;
    loop {
        let waiting_for = match networks(settings, cluster).await {
            Ok(networks) => match networks.first().and_then(|primary| missing(&primary.list, settings)) {
                None => return Ok(networks),
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
