//! What a pod asks of a network, and no plugin of it declares to serve.

use std::collections::BTreeSet;

use super::Network;
use crate::{
    cni::{Error, PluginList},
    settings::Settings,
};

/// A request of the pod, and the capability that a plugin declares if it serves it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unserved {
    /// The key in the pod's annotation.
    pub request: &'static str,
    /// The key in the plugin's `capabilities`.
    pub capability: &'static str,
}

/// Refuses what the pod asks for and no plugin of its network will do: a device of the pod's own choice without leave, and
/// under `strict` what no plugin declares to serve. Else gives that, and names it in a warning.
pub(super) fn judge_requests(network: &Network, settings: &Settings) -> Result<Vec<Unserved>, Error> {
    let Some(selection) = &network.selection else { return Ok(Vec::new()) };
    let refusal = |text: String| Err(Error::Config(format!("{}: {text}", network.name)));
    if selection.device_id.is_some() && !settings.allow_device_id {
        return refusal(
            "\"deviceID\": a pod may not choose a device by itself; an administrator can allow it by \"allowDeviceID\": true"
                .to_owned(),
        );
    }
    let served = served(&network.list, settings);
    let asked = [
        ("ips", "ips", !selection.ips.is_empty()),
        ("mac", "mac", selection.mac.is_some()),
        ("infiniband-guid", "infinibandGUID", selection.infiniband_guid.is_some()),
        ("portMappings", "portMappings", selection.port_mappings.is_some()),
        ("bandwidth", "bandwidth", selection.bandwidth.is_some()),
        ("deviceID", "deviceID", selection.device_id.is_some()),
    ];
    let is_unserved = |(_, capability, asked): &(&str, &str, bool)| *asked && !served.contains(*capability);
    let unserved: Vec<Unserved> = asked
        .into_iter()
        .filter(is_unserved)
        .map(|(request, capability, _)| Unserved { request, capability })
        .collect();
    if unserved.is_empty() {
        return Ok(unserved);
    }
    let names: Vec<&str> = unserved.iter().map(|unserved| unserved.capability).collect();
    let text = format!(
        "the pod asks for {}, which no plugin of the network ({}) declares in its capabilities",
        names.join(", "),
        network.list.kinds()
    );
    if settings.strict_capabilities {
        return refusal(text);
    }
    // Plugins have addresses and MAC from CNI_ARGS, too.
    if names.iter().any(|name| !matches!(*name, "ips" | "mac")) {
        tracing::warn!(network = network.name, "{text}: it has no effect");
    }
    Ok(unserved)
}

/// What the plugins of a list serve: what they declare, and of those that are attached in-process what these do.
fn served(list: &PluginList, settings: &Settings) -> BTreeSet<String> {
    let mut served: BTreeSet<String> =
        list.plugins.iter().flat_map(|plugin| plugin.capabilities().unwrap_or_default()).collect();
    if list.plugins.first().is_some_and(|plugin| plugin.kind == "sriov") && settings.builtins.contains("sriov") {
        served.extend(["ips", "mac", "deviceID"].map(str::to_owned));
    }
    served
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        cni::Object,
        network::selection::{self, NETWORKS_ANNOTATION},
    };

    fn settings(more: &str) -> Settings {
        let text = format!(r#"{{"clusterNetwork":"a"{more}}}"#);
        Settings::read(&Object::parse("t", text.as_bytes()).unwrap()).unwrap()
    }

    #[test]
    fn what_no_plugin_serves_is_refused_if_strict_and_a_device_unless_allowed() {
        let asking = |text: &str, kind: &str| {
            let selection = selection::parse(NETWORKS_ANNOTATION, text, "default").unwrap().remove(0);
            let list = PluginList::from_object(Object::parse("t", kind.as_bytes()).unwrap(), Some("net")).unwrap();
            Network { name: selection.network(), selection: Some(selection), list, resource: None }
        };
        let strict = settings(r#","capabilityCheck":"strict","allowDeviceID":true"#);
        let text = r#"[{"name":"a","ips":["10.0.0.1"],"mac":"02:00:00:00:00:01","bandwidth":{"ingressRate":1}}]"#;
        let declaring = r#"{"plugins":[{"type":"x","capabilities":{"ips":true}},{"type":"y","capabilities":{"mac":true,"bandwidth":true}}]}"#;
        assert_eq!(judge_requests(&asking(text, declaring), &strict).unwrap(), []);
        let unserved = |kind| -> Vec<&str> {
            let judged = judge_requests(&asking(text, kind), &settings("")).unwrap();
            judged.iter().map(|unserved| unserved.request).collect()
        };
        assert_eq!(unserved(r#"{"type":"x"}"#), ["ips", "mac", "bandwidth"]);
        for (kind, missing) in [(r#"{"type":"x"}"#, "ips, mac, bandwidth"), (r#"{"type":"sriov"}"#, "bandwidth")] {
            match judge_requests(&asking(text, kind), &strict) {
                Err(Error::Config(said)) => assert!(said.contains(&format!("asks for {missing}, which no")), "{said}"),
                other => panic!("{other:?}"),
            }
        }
        let guid = asking(r#"[{"name":"a","infiniband-guid":"c2:11:22:33:44:55:66:77"}]"#, r#"{"type":"x"}"#);
        let wanted = Unserved { request: "infiniband-guid", capability: "infinibandGUID" };
        assert_eq!(judge_requests(&guid, &settings("")).unwrap(), [wanted]);
        let device = asking(r#"[{"name":"a","deviceID":"0000:01:10.2"}]"#, r#"{"type":"sriov"}"#);
        assert_eq!(judge_requests(&device, &strict).unwrap(), []);
        match judge_requests(&device, &settings("")) {
            Err(Error::Config(said)) => assert!(said.contains("\"allowDeviceID\": true"), "{said}"),
            other => panic!("{other:?}"),
        }
    }
}
