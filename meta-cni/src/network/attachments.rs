//! From what a pod asks for to what is attached. Pure: nothing is touched, everything that can be refused is.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use serde_json::{Map, Value, json};

use super::{
    Selection,
    unserved::{Unserved, judge_requests},
};
use crate::{
    cni::{CniArgs, Error, IPAM_CLAIM, Object, PluginList, check_interface_name},
    settings::Settings,
};

/// One network to attach: what the engine needs to know of it.
#[derive(Debug, Clone)]
pub struct Attachment {
    /// Its network as network-status names it.
    pub network: String,
    /// The interface in the sandbox.
    pub interface: String,
    /// Whether it is the pod's primary network.
    pub primary: bool,
    /// Its configuration as the administrator wrote it.
    pub list: PluginList,
    /// What is written into that configuration for this pod.
    pub additions: Additions,
    /// What plugins may be given if they declare the capability.
    pub runtime_config: Object,
    /// `CNI_ARGS`.
    pub args: CniArgs,
    /// Gateways for the pod's default route; nothing or an empty list leaves it alone.
    pub default_route: Vec<IpAddr>,
    /// The resource that its device came from.
    pub resource: Option<String>,
    /// What the pod asks for and no plugin of the list declares to serve (allowed by `capabilityCheck: compat`).
    pub unserved: Vec<Unserved>,
}

/// What is written into a configuration for one pod, so that the configuration itself can be kept once for all pods.
#[derive(Debug, Clone, Default, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Additions {
    /// `deviceID` and `pciBusID` of every plugin.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// Merged into `args.cni` of every plugin.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub cni_args: Map<String, Value>,
}

impl Additions {
    /// The configuration with the additions in it.
    ///
    /// # Errors
    /// [`Error::Config`] when `args` or `args.cni` of a plugin is no object.
    pub fn apply(&self, mut list: PluginList) -> Result<PluginList, Error> {
        for plugin in &mut list.plugins {
            if let Some(device) = &self.device {
                plugin.object.set("deviceID", device);
                plugin.object.set("pciBusID", device);
            }
            if !self.cni_args.is_empty() {
                let mut args = plugin.object.get::<Object>("args")?.unwrap_or_default();
                let mut cni = args.get::<Object>("cni")?.unwrap_or_default();
                for (key, value) in &self.cni_args {
                    cni.set(key, value);
                }
                args.set("cni", &cni);
                plugin.object.set("args", &args);
            }
        }
        Ok(list)
    }
}

impl Attachment {
    /// The network as a person knows it: `default/sriov-a as net1`.
    #[must_use]
    pub fn title(&self) -> String {
        format!("{} as {}", self.network, self.interface)
    }

    /// An error as that of this network; marked, if it is not the primary.
    #[must_use]
    pub fn failed(&self, error: Error) -> Error {
        let error = error.of_network(self.title());
        if self.primary { error.unmarked() } else { error.refusing(&self.network) }
    }

    /// Whether its first plugin is attached in-process.
    #[must_use]
    pub fn is_builtin(&self, settings: &Settings) -> bool {
        settings.builtins.contains("sriov") && self.list.plugins.first().is_some_and(|plugin| plugin.kind == "sriov")
    }
}

/// A network that is to be attached, with its configuration found.
#[derive(Debug)]
pub struct Network {
    /// As network-status names it: `NAMESPACE/NAME` of its definition, else the name in its configuration.
    pub name: String,
    /// What the pod asked for; nothing for a network that every pod gets.
    pub selection: Option<Selection>,
    /// Its configuration.
    pub list: PluginList,
    /// The resource that its device comes from.
    pub resource: Option<String>,
}

impl Network {
    /// One that is configured on the node.
    #[must_use]
    pub fn of_list(list: PluginList) -> Self {
        Self { name: list.name.clone(), selection: None, list, resource: None }
    }
}

/// The call by the runtime, as far as it shapes the attachments.
#[derive(Debug)]
pub struct CallScene<'a> {
    /// `CNI_IFNAME`.
    pub if_name: &'a str,
    /// `CNI_ARGS`.
    pub args: &'a CniArgs,
    /// `runtimeConfig`: for the primary only (multi-net-spec 7.5).
    pub runtime_config: Object,
    /// Interface names that other calls of this container have taken.
    pub taken: BTreeSet<String>,
    /// What the administrator configured.
    pub settings: &'a Settings,
}

/// What is attached, from the networks of a pod, the primary first, and the device of each.
///
/// # Errors
/// Everything that is wrong, in one message: interface names that collide, several default routes of a family, a primary
/// that is to have another interface than the runtime's.
pub fn plan(networks: Vec<(Network, Option<String>)>, call: &CallScene<'_>) -> Result<Vec<Attachment>, Error> {
    let mut errors = Vec::new();
    let own_name = networks.first().and_then(|(primary, _)| primary.selection.as_ref()?.interface.as_deref());
    if let Some(name) = own_name.filter(|name| *name != call.if_name) {
        errors.push(Error::Config(format!(
            "the pod's default network cannot be interface {name}: the runtime asks for {}",
            call.if_name
        )));
    }
    let mut attachments = Vec::with_capacity(networks.len());
    for (position, (network, device)) in networks.into_iter().enumerate() {
        let unserved = judge_requests(&network, call.settings).unwrap_or_else(|error| {
            errors.push(if position == 0 { error } else { error.refusing(&network.name) });
            Vec::new()
        });
        attachments.push(Attachment { unserved, ..attachment(network, device, position, call) });
    }
    errors.extend(collisions(&attachments, &call.taken));
    errors.extend(default_route_conflict(&attachments));
    Error::join(errors).map_or(Ok(attachments), Err)
}

fn attachment(network: Network, device: Option<String>, position: usize, call: &CallScene<'_>) -> Attachment {
    let Network { name, selection, list, resource } = network;
    let primary = position == 0;
    let selection = selection.unwrap_or_default();
    let mut runtime_config = if primary { call.runtime_config.clone() } else { Object::default() };
    let mut args = call.args.clone();
    if !selection.ips.is_empty() {
        runtime_config.set("ips", &selection.ips);
        // The older way, which plugins without the capability read; a list is Multus' form. host-local refuses a list, and
        // needs none where it is told by the capability.
        let told =
            list.plugins.first().is_some_and(|plugin| plugin.capabilities().is_ok_and(|all| all.contains("ips")));
        if selection.ips.len() == 1 || !told {
            args = args.with("IP", &selection.ips.join(","));
        }
    }
    if let Some(mac) = &selection.mac {
        runtime_config.set("mac", mac);
        args = args.with("MAC", mac);
    }
    let texts = [("infinibandGUID", &selection.infiniband_guid), ("deviceID", &selection.device_id)];
    for (key, text) in texts {
        text.iter().for_each(|text| runtime_config.set(key, text));
    }
    for (key, value) in [("portMappings", &selection.port_mappings), ("bandwidth", &selection.bandwidth)] {
        value.iter().for_each(|value| runtime_config.set(key, value));
    }
    if let Some(device) = &device {
        runtime_config.set("deviceID", device);
    }
    let mut cni_args = selection.cni_args.clone();
    if let Some(claim) = &selection.ipam_claim {
        cni_args.insert(IPAM_CLAIM.to_owned(), json!(claim));
    }
    let chosen = selection.interface.clone().unwrap_or_else(|| format!("net{position}"));
    Attachment {
        network: name,
        interface: if primary { call.if_name.to_owned() } else { chosen },
        primary,
        list,
        additions: Additions { device, cni_args },
        runtime_config,
        args,
        default_route: selection.default_route.unwrap_or_default(),
        resource,
        unserved: Vec::new(),
    }
}

fn collisions(attachments: &[Attachment], taken: &BTreeSet<String>) -> Vec<Error> {
    let mut owners: BTreeMap<&str, &str> = BTreeMap::new();
    let mut errors = Vec::new();
    for attachment in attachments {
        let name = attachment.interface.as_str();
        let problem = match check_interface_name(name) {
            Err(problem) => Some(problem),
            Ok(()) if name == "lo" => Some("lo is the loopback interface of every sandbox".to_owned()),
            Ok(()) if taken.contains(name) => {
                Some("another call of this container has an interface of that name".to_owned())
            }
            Ok(()) => {
                owners.get(name).map(|other| format!("{other} has an interface of that name: choose another one"))
            }
        };
        match problem {
            Some(problem) => errors.push(attachment.failed(Error::Config(problem))),
            None => drop(owners.insert(name, &attachment.network)),
        }
    }
    errors
}

fn default_route_conflict(attachments: &[Attachment]) -> Option<Error> {
    for v4 in [true, false] {
        let wanting: Vec<&Attachment> = attachments
            .iter()
            .filter(|attachment| attachment.default_route.iter().any(|gateway| gateway.is_ipv4() == v4))
            .collect();
        if let [first, _, ..] = wanting.as_slice() {
            let family = if v4 { "IPv4" } else { "IPv6" };
            let titles: Vec<String> = wanting.iter().map(|attachment| attachment.title()).collect();
            let text =
                format!("{} both ask for the {family} default route: only one can have it", titles.join(" and "));
            return Some(Error::Config(text).refusing(&first.network));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::selection::{self, NETWORKS_ANNOTATION};

    fn list(text: &str) -> PluginList {
        PluginList::from_object(Object::parse("t", text.as_bytes()).unwrap(), Some("net")).unwrap()
    }

    fn settings() -> Settings {
        Settings::read(&Object::parse("t", br#"{"clusterNetwork":"a"}"#).unwrap()).unwrap()
    }

    fn plan_of(annotation: &str, taken: &[&str]) -> Result<Vec<Attachment>, Error> {
        let args = CniArgs::parse("K8S_POD_NAME=p").unwrap();
        let call = CallScene {
            if_name: "eth0",
            args: &args,
            runtime_config: Object::parse("t", br#"{"portMappings":[1]}"#).unwrap(),
            taken: taken.iter().map(|&name| name.to_owned()).collect(),
            settings: &settings(),
        };
        let mut networks = vec![Network::of_list(list(r#"{"name":"cbr0","type":"flannel"}"#))];
        let selections = selection::parse(NETWORKS_ANNOTATION, annotation, "default")?;
        networks.extend(selections.into_iter().map(network));
        plan(networks.into_iter().map(|network| (network, None)).collect(), &call)
    }

    fn network(selection: Selection) -> Network {
        let list = list(r#"{"type":"x"}"#);
        Network { name: selection.network(), selection: Some(selection), list, resource: None }
    }

    #[test]
    fn a_default_network_of_the_pods_own_gets_what_runtime_and_pod_say_and_the_runtimes_interface() {
        let (args, settings) = (CniArgs::parse("K8S_POD_NAME=p").unwrap(), settings());
        let call = |if_name| CallScene {
            if_name,
            args: &args,
            runtime_config: Object::parse("t", br#"{"portMappings":[1],"mac":"02:00:00:00:00:09"}"#).unwrap(),
            taken: BTreeSet::new(),
            settings: &settings,
        };
        let chosen = || {
            let text = r#"[{"name":"own","interface":"eth0","mac":"02:00:00:00:00:01"}]"#;
            vec![(network(selection::parse(NETWORKS_ANNOTATION, text, "default").unwrap().remove(0)), None)]
        };
        let plan_of = |if_name| plan(chosen(), &call(if_name));
        let found = plan_of("eth0").unwrap().remove(0);
        assert_eq!((found.network.as_str(), found.interface.as_str(), found.primary), ("default/own", "eth0", true));
        assert_eq!(found.runtime_config.to_text(), r#"{"portMappings":[1],"mac":"02:00:00:00:00:01"}"#);
        match plan_of("eth1") {
            Err(Error::Config(text)) => assert!(text.contains("cannot be interface eth0"), "{text}"),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_same_network_twice_gets_two_interfaces() {
        let names: Vec<String> = plan_of("a,a@data0,b", &[]).unwrap().iter().map(Attachment::title).collect();
        assert_eq!(names, ["cbr0 as eth0", "default/a as net1", "default/a as data0", "default/b as net3"]);
    }

    #[test]
    fn colliding_names_are_refused_all_at_once() {
        match plan_of("a@net2,b,c@eth0,d@lo,e@other", &["other"]) {
            Err(Error::Several(errors)) => {
                let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
                assert!(texts[0].starts_with("default/b as net2: default/a has"), "{texts:?}");
                assert!(texts[1].starts_with("default/c as eth0: cbr0 has"), "{texts:?}");
                assert!(texts[2].contains("loopback") && texts[3].contains("another call"), "{texts:?}");
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_the_runtime_gives_is_for_the_primary_alone() {
        let plan = plan_of(r#"[{"name":"a","ips":["10.0.0.1"],"mac":"02:00:00:00:00:01"}]"#, &[]).unwrap();
        assert_eq!(plan[0].runtime_config.to_text(), r#"{"portMappings":[1]}"#);
        assert_eq!(plan[1].runtime_config.to_text(), r#"{"ips":["10.0.0.1"],"mac":"02:00:00:00:00:01"}"#);
        assert_eq!(plan[1].args.to_text(), "IgnoreUnknown=1;K8S_POD_NAME=p;IP=10.0.0.1;MAC=02:00:00:00:00:01");
        assert_eq!(plan[0].args.to_text(), "IgnoreUnknown=1;K8S_POD_NAME=p");
    }

    #[test]
    fn one_default_route_of_a_family() {
        let text =
            |b| format!(r#"[{{"name":"a","default-route":["10.0.0.1"]}},{{"name":"b","default-route":["{b}"]}}]"#);
        assert!(plan_of(&text("fd00::1"), &[]).is_ok());
        assert!(
            matches!(plan_of(&text("10.0.0.2"), &[]).map_err(Error::unmarked), Err(Error::Config(message)) if message.contains("IPv4 default route"))
        );
    }

    #[test]
    fn additions_go_into_every_plugin() {
        let before = list(r#"{"plugins":[{"type":"a","args":{"cni":{"k":0,"x":1.0}}},{"type":"b"}]}"#);
        let cni_args = json!({"k": 2}).as_object().cloned().unwrap_or_default();
        let after = Additions { device: Some("d".to_owned()), cni_args }.apply(before).unwrap();
        let texts: Vec<String> = after.plugins.iter().map(|plugin| plugin.object.to_text()).collect();
        assert_eq!(texts[0], r#"{"type":"a","args":{"cni":{"k":2,"x":1.0}},"deviceID":"d","pciBusID":"d"}"#);
        assert_eq!(texts[1], r#"{"type":"b","deviceID":"d","pciBusID":"d","args":{"cni":{"k":2}}}"#);
    }
}
