//! STATUS: can this node take pods? Speaks for the primary network alone, without an API request: kubelet asks every few
//! seconds, and an error makes the node NotReady for every pod. VFs all in use is a normal day.

use std::time::Duration;

use ipnet::IpNet;
use sandbox::{IfName, Netns, Rtnl, read_back};

use tokio::time::Instant;
use tracing::Instrument as _;

use super::{Engine, configured, primary};
use crate::{
    cluster::Cluster,
    cni::{CniArgs, Error, PluginList, chain, find_plugin},
    face::Face,
    files, log,
};

/// How long the primary's own plugins may take, together.
const PLUGINS_LIMIT: Duration = Duration::from_millis(800);

impl Engine {
    /// Looks at the primary's configuration, its programs, Flannel's subnet and bridge, and our state directory.
    ///
    /// # Errors
    /// [`Error::NotReady`] with the first thing that is missing.
    pub async fn status(&self) -> Result<(), Error> {
        let not_ready = |problem: String| Error::NotReady(format!("the network is not ready: {problem}"));
        self.layout.create().map_err(|error| not_ready(format!("{error}: {}", error.details())))?;
        let probe = self.layout.state().join(".writable");
        files::replace(&probe, b"", 0o600, false)
            .and_then(|()| files::remove(&probe))
            .map_err(|error| not_ready(format!("{error}: {}", error.details())))?;
        if self.face == Face::Sriov {
            return self.status_alone().await;
        }
        // A primary given as a definition is in the API server, which STATUS does not ask.
        let networks = match configured::networks(&self.settings, &Cluster::None).await {
            Ok(networks) => networks,
            Err(Error::TryLater(_)) if self.is_definition() => return Ok(()),
            Err(error) => return Err(not_ready(error.to_string())),
        };
        let Some(list) = networks.first().map(|primary| &primary.list) else { return Ok(()) };
        if let Some(missing) = primary::missing(list, &self.settings) {
            return Err(not_ready(missing));
        }
        for plugin in &list.plugins {
            find_plugin(&plugin.kind, &self.path).map_err(|error| not_ready(error.to_string()))?;
        }
        let mut scene = self.bare_scene("", CniArgs::default());
        scene.deadline = scene.deadline.min(Instant::now() + PLUGINS_LIMIT);
        let asking = chain::status(list, &scene).instrument(log::of_network(&list.name, ""));
        asking.await.map_err(|error| match error.code() {
            // Not ready, and not ready with pods that are cut off: which of the two is theirs to say.
            50 | 51 => error,
            _ => not_ready(format!("{error}: {}", error.details())),
        })?;
        match bridge_disagreement(list).await {
            Some(problem) => Err(not_ready(problem)),
            None => Ok(()),
        }
    }

    fn is_definition(&self) -> bool {
        self.cluster.is_there() && self.settings.cluster_network.as_deref().is_some_and(|name| !name.starts_with('/'))
    }
}

/// After flanneld got another subnet, a bridge that kept the old one gives every new pod an address that nobody routes;
/// the bridge plugin then fails each ADD ("already has an IP address different from").
async fn bridge_disagreement(list: &PluginList) -> Option<String> {
    let file = primary::subnet_file(list)?;
    let text = std::fs::read_to_string(&file).ok()?;
    let name = primary::bridge_of(list)?;
    let links = Rtnl::open(&Netns::current().ok()?).ok()?;
    // No bridge yet: the first pod makes it.
    let found = read_back(&links, &IfName::try_from(name.as_str()).ok()?).await.ok()?;
    let disagreement = |subnet: IpNet| {
        let of_family = found
            .addresses
            .iter()
            .filter(|address| address.net.addr().is_ipv4() == subnet.addr().is_ipv4() && address.scope == 0);
        let addresses: Vec<String> = of_family.map(|address| address.net.to_string()).collect();
        let agrees = addresses.is_empty() || addresses.contains(&subnet.to_string());
        (!agrees).then(|| {
            format!(
                "bridge {name} has {}, {} says {subnet}: delete the bridge (ip link delete {name}), the next pod makes it anew",
                addresses.join(", "),
                file.display()
            )
        })
    };
    primary::subnets_of(&text).find_map(disagreement)
}
