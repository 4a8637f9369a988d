//! An executed plugin that found no address, or not the one asked for, is asked once more, if an earlier boot left some
//! that nobody has.

use sandbox::{Links as _, MacAddr, Netns, Rtnl};
use serde_json::Value;

use super::{Engine, pools, primary};
use crate::cni::{CniResult, Command, Error, Plugin, PluginList, Scene, chain};

/// Whether it is what host-local says when a pool has no address left, or not the one that was asked for.
fn lacks_address(error: &Error) -> bool {
    let text = error.to_string();
    text.contains("no IP addresses available in range set")
        || (text.contains("requested IP address") && text.contains("is not available in range set"))
}

impl Engine {
    /// The chain once more after an error.
    ///
    /// # Errors
    /// The first one, if it is another one or nothing could be given back.
    pub(super) async fn add_again(
        &self,
        list: &PluginList,
        error: Error,
        scene: &Scene,
    ) -> Result<(Value, CniResult), Error> {
        if !lacks_address(&error) || !self.reclaim_for(&pools::of_network(list)).await {
            return Err(error);
        }
        tracing::warn!("addresses that an earlier boot left are free again: attaching once more");
        // What the plugins before the one that failed made; and a runtime does not ADD twice without it.
        let cleared = async {
            chain::del(list, 0, None, scene, false).await?;
            remove_useless_bridge(list).await
        };
        if let Err(left) = cleared.await {
            return Err(Error::Several(vec![error, left]));
        }
        chain::add(list, 0, None, scene).await
    }

    /// An IPAM plugin once more after an error.
    ///
    /// # Errors
    /// The first one, if it is another one or nothing could be given back.
    pub(super) async fn ipam_add_again(
        &self,
        list: &PluginList,
        plugin: &Plugin,
        kind: &str,
        error: Error,
        scene: &Scene,
    ) -> Result<CniResult, Error> {
        if !lacks_address(&error) || !self.reclaim_for(&pools::of_network(list)).await {
            return Err(error);
        }
        chain::ipam_verb(list, plugin, kind, Command::Del, None, scene).await?;
        chain::ipam_add(list, plugin, kind, scene).await
    }
}

/// The plugin `bridge` makes its bridge, then asks for an address, then gives the bridge one, and a MAC. If it got none,
/// and the pod's interface is taken away again, it left a bridge without a port, and so without a MAC: that one it refuses
/// for ever ("could not set bridge's mac: invalid argument"). Without it, it makes another.
async fn remove_useless_bridge(list: &PluginList) -> Result<(), Error> {
    let Some(name) = primary::bridge_of(list) else { return Ok(()) };
    let host = Rtnl::open(&Netns::current()?)?;
    let links = host.list().await?;
    let is_useless = |link: &&sandbox::Link| {
        link.name == name
            && link.kind.as_deref() == Some("bridge")
            && link.mac == Some(MacAddr([0; 6]))
            && !links.iter().any(|port| port.master == Some(link.index))
    };
    match links.iter().find(is_useless) {
        Some(bridge) => Ok(host.del_link(bridge.index).await?),
        None => Ok(()),
    }
}
