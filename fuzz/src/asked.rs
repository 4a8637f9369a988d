//! What a runtime, an administrator or a pod asks for.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::Path,
    time::Duration,
};

use ipam::{Error, Owner, Pool, Prior, RawIpam, Request, StaticAddresses, StaticRequest, requested_addresses};
use ipnet::IpNet;
use meta_cni::{
    cluster::Cluster,
    cni::{Asked, CniArgs, Object, PluginList, check_network_name, ips_of_args, names_meta_plugin},
    network::{CallScene, Definition, Network, Selection, plan, selection},
    node::Sources,
    pod::PodName,
    settings::Settings,
};
use sandbox::IfName;
use serde_json::{Value, json};
use sriov::{RawVf, Wanted};

use super::{parts, scratch, text, write};

/// The name of an interface that can go to the kernel, into a path and into the environment of a plugin.
pub(crate) fn is_interface(name: &str) -> bool {
    IfName::try_from(name).is_ok() && !name.contains(char::is_control)
}

fn object(text: &str) -> Object {
    Object::parse("a constant", text.as_bytes()).expect("a constant parses")
}

fn list(text: &str, name: &str) -> PluginList {
    PluginList::from_object(object(text), Some(name)).expect("a constant parses")
}

/// A list is the same after it was written and read, which is how configurations are kept.
pub(crate) fn survives_its_text(list: &PluginList) {
    assert!(!list.plugins.is_empty(), "a list without plugins");
    check_network_name(&list.name).expect("the name of a list");
    for plugin in &list.plugins {
        let kind = &plugin.kind;
        assert!(!kind.is_empty() && !kind.contains('/') && !kind.contains(".."), "type {kind:?}");
    }
    let again =
        Object::parse("text", list.to_text().as_bytes()).and_then(|object| PluginList::from_object(object, None));
    assert_eq!(again.expect("the text of a list"), *list);
}

pub(crate) fn annotation(data: &[u8]) {
    let Some(text) = text(data) else { return };
    let Ok(selections) = selection::parse(selection::NETWORKS_ANNOTATION, text, "default") else { return };
    for selection in &selections {
        assert!(selection.interface.as_deref().is_none_or(is_interface), "{selection:?}");
        let names = [&selection.name, &selection.namespace];
        assert!(names.iter().all(|name| !name.is_empty() && name.len() <= 253 && !name.contains('/')), "{selection:?}");
        let is_address = |text: &String| text.parse::<IpAddr>().is_ok() || text.parse::<IpNet>().is_ok();
        assert!(selection.ips.iter().all(is_address), "{selection:?}");
    }
    let written = Value::Array(selections.iter().map(element).collect()).to_string();
    let again = selection::parse(selection::NETWORKS_ANNOTATION, &written, "elsewhere").expect("what was accepted");
    assert_eq!(again, selections, "{written}");
    planned(selections);
}

/// An element of the annotation with all that it says.
fn element(selection: &Selection) -> Value {
    json!({
        "name": selection.name, "namespace": selection.namespace, "interface": selection.interface, "ips": selection.ips,
        "mac": selection.mac, "infiniband-guid": selection.infiniband_guid, "portMappings": selection.port_mappings,
        "bandwidth": selection.bandwidth, "default-route": selection.default_route, "cni-args": selection.cni_args,
        "deviceID": selection.device_id, "resourceName": selection.resource, "ipam-claim-reference": selection.ipam_claim,
    })
}

/// What is attached by what a pod asks for.
fn planned(selections: Vec<Selection>) {
    let settings = object(r#"{"clusterNetwork":"/etc/cni/primary.conflist","allowDeviceID":true}"#);
    let settings = Settings::read(&settings).expect("a constant");
    let args = CniArgs::parse("K8S_POD_NAMESPACE=default;K8S_POD_NAME=p").expect("a constant");
    let mut networks = vec![(Network::of_list(list(r#"{"name":"cbr0","type":"flannel"}"#, "cbr0")), None)];
    networks.extend(selections.into_iter().map(|selection| {
        let device = selection.resource.clone();
        let list = list(r#"{"type":"sriov","capabilities":{"ips":true,"portMappings":true}}"#, "net-a");
        (Network { name: selection.network(), selection: Some(selection), list, resource: device.clone() }, device)
    }));
    let asked = networks.len();
    let call = CallScene {
        if_name: "eth0",
        args: &args,
        runtime_config: Object::default(),
        taken: BTreeSet::new(),
        settings: &settings,
    };
    let Ok(attachments) = plan(networks, &call) else { return };
    assert_eq!(attachments.len(), asked);
    let names: BTreeSet<&str> = attachments.iter().map(|attachment| attachment.interface.as_str()).collect();
    assert_eq!(names.len(), asked, "an interface twice");
    assert!(names.iter().all(|name| is_interface(name)), "{names:?}");
    for v4 in [true, false] {
        let routes = attachments.iter().flat_map(|attachment| &attachment.default_route);
        assert!(routes.filter(|gateway| gateway.is_ipv4() == v4).count() <= 1, "several default routes");
    }
    for attachment in attachments {
        let args = attachment.args.to_text();
        let again = CniArgs::parse(&args).expect("what plugins are given in CNI_ARGS");
        assert_eq!((again.get("IP"), again.get("MAC")), (attachment.args.get("IP"), attachment.args.get("MAC")));
        Object::parse("what plugins are given", attachment.runtime_config.to_text().as_bytes()).expect("JSON");
        survives_its_text(&attachment.additions.apply(attachment.list).expect("a configuration for one pod"));
    }
}

pub(crate) fn definition(data: &[u8]) {
    let Some(config) = text(data).filter(|text| !text.trim().is_empty()) else { return };
    let named =
        |config: String| Definition { namespace: "default".into(), name: "net-a".into(), resource: None, config };
    let Ok(list) = named(config.to_owned()).plugins(Path::new("/nowhere")) else { return };
    survives_its_text(&list);
    for plugin in &list.plugins {
        assert_eq!(names_meta_plugin(&plugin.object), None);
        assert!(plugin.object.raw("runtimeConfig").is_none(), "a definition has a runtimeConfig");
        confined(&plugin.object);
        let _ = ips_of_args(&plugin.object);
        if let Ok(raw) = serde_json::from_str::<RawVf>(&plugin.object.to_text()) {
            wanted(&raw);
        }
    }
    assert_eq!(named(list.to_text()).plugins(Path::new("/nowhere")).expect("what was accepted"), list);
}

/// What is judged in a definition is what a plugin finds in it.
fn confined(plugin: &Object) {
    let Ok(Some(ipam)) = plugin.get::<Object>("ipam") else { return };
    let values: Vec<String> =
        ipam.keys().filter(|key| key.eq_ignore_ascii_case("dataDir")).map(str::to_owned).collect();
    assert!(values.len() <= 1, "{values:?}");
    let directory = ipam.text("dataDir").expect("a text");
    let parts = Path::new(&directory).components().any(|part| part == std::path::Component::ParentDir);
    assert!(directory.is_empty() || (directory.starts_with('/') && !parts), "dataDir {directory}");
}

fn wanted(raw: &RawVf) {
    let Ok(wanted) = Wanted::try_from(raw) else { return };
    assert!(wanted.vlan.is_none_or(|vlan| vlan.id < 4095 && vlan.qos < 8), "{wanted:?}");
    assert!(wanted.mac.is_none_or(|mac| !mac.is_multicast()), "{wanted:?}");
    assert!(wanted.rate.is_none_or(|rate| rate.max == 0 || rate.min <= rate.max), "{wanted:?}");
}

pub(crate) fn manifest(data: &[u8]) {
    let directory = scratch();
    write(&directory.join("all.yaml"), data);
    let conf = json!({"clusterNetwork": "/etc/cni/primary.conflist", "manifestDir": directory}).to_string();
    let settings = Settings::read(&object(&conf)).expect("a constant");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    runtime.block_on(async {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
        let cluster = Cluster::of(&settings, deadline);
        if let Ok(definition) = cluster.definition("default", "net-a").await {
            assert_eq!((definition.namespace.as_str(), definition.name.as_str()), ("default", "net-a"));
            assert!(definition.resource.as_deref().is_none_or(|name| !name.is_empty()));
            let _ = definition.plugins(Path::new("/nowhere"));
        }
        let name = PodName { namespace: "default".into(), name: "p".into(), uid: String::new() };
        if let Ok(pod) = cluster.pod(&name).await {
            assert_eq!(pod.uid, None, "a manifest's pod has no UID to be written to");
        }
    });
}

pub(crate) fn stdin(data: &[u8]) {
    let end = data.windows(2).position(|two| two == b"\n\n");
    let (head, stdin) = end.map_or((data, &[][..]), |at| (&data[..at], &data[at + 2..]));
    let Some(head) = text(head).filter(|head| !head.contains('\0')) else { return };
    let env: BTreeMap<&str, &str> = head.lines().filter_map(|line| line.split_once('=')).collect();
    let Ok(Asked::Call(call)) = Asked::read(|key| env.get(key).map(|value| (*value).to_owned()), stdin) else { return };
    check_network_name(&call.conf.text("name").expect("a text")).expect("the name of a network");
    if !call.container.is_empty() || !call.if_name.is_empty() {
        assert!(is_interface(&call.if_name), "{:?}", call.if_name);
        assert!(!call.container.contains(['/', ':', '\n']) && !call.container.starts_with('.'), "{:?}", call.container);
    }
    let again = Object::parse("text", call.conf.to_text().as_bytes()).expect("the text of a configuration");
    assert_eq!(again, call.conf);
    let _ = PodName::of_args(&call.args);
    let _ = Settings::judge_unknown_keys(&call.conf);
    if let Ok(list) = PluginList::from_object(call.conf.clone(), None) {
        survives_its_text(&list);
    }
    let Ok(settings) = Settings::read(&call.conf) else { return };
    let directories =
        [&settings.conf_dir, &settings.bin_dir, &settings.state_dir, &settings.run_dir, &settings.node_file];
    assert!(directories.iter().all(|path| path.is_absolute()), "{directories:?}");
    assert!(!settings.add_timeout.is_zero() && !settings.del_timeout.is_zero());
    for delegate in &settings.delegates {
        let _ = names_meta_plugin(delegate);
        if let Ok(list) = PluginList::from_object(delegate.clone(), None) {
            survives_its_text(&list);
        }
    }
}

pub(crate) fn cni_args(data: &[u8]) {
    let Some(text) = text(data) else { return };
    let Ok(args) = CniArgs::parse(text) else { return };
    let written = args.to_text();
    let again = CniArgs::parse(&written).expect("what plugins are given");
    assert_eq!(again.to_text(), written);
    for key in ["IP", "MAC", "GATEWAY", "K8S_POD_NAME", "K8S_POD_NAMESPACE", "K8S_POD_UID"] {
        assert_eq!(again.get(key), args.get(key), "{written}");
    }
    assert_eq!(PodName::of_args(&again), PodName::of_args(&args));
    let _ = args.refuse_unknown(&["IP"]);
    let known = requested_addresses(Some(args.get("IP")), &[], &[]);
    assert!(known.is_ok_and(|found| found.len() <= 1) || !args.get("IP").is_empty());
    let request = StaticRequest {
        environment: Some(args.get("IP")).filter(|text| !text.is_empty()),
        environment_gateway: Some(args.get("GATEWAY")).filter(|text| !text.is_empty()),
        ..StaticRequest::default()
    };
    let _ = StaticAddresses::new(&RawIpam::default(), &request);
}

pub(crate) fn ipam_config(data: &[u8]) {
    let [ipam, node_file, subnet_file, request] = parts(data);
    let (Some(ipam), Some(request)) = (text(ipam), text(request)) else { return };
    let Ok(raw) = serde_json::from_str::<RawIpam>(ipam) else { return };
    let _ = (raw.unknown_keys(), raw.ineffective_keys());
    let _ = StaticAddresses::new(&raw, &StaticRequest { environment: Some(request), ..StaticRequest::default() });
    let directory = scratch();
    let paths = [directory.join("node.json"), directory.join("subnet.env")];
    for (path, content) in paths.iter().zip([node_file, subnet_file]) {
        write(path, content);
    }
    let Ok(node) = (Sources { name: "node-1", file: &paths[0], subnet: &paths[1] }).node(&raw, "net-a") else { return };
    let Ok(mut pool) = Pool::new("net-a", &raw, &[], &node) else { return };
    assert!(pool.directory.is_absolute() && pool.directory.ends_with("net-a"), "{:?}", pool.directory);
    for (index, set) in pool.sets.iter().enumerate() {
        assert!(!set.ranges().is_empty());
        for range in set.ranges() {
            let (start, end) = (range.start(), range.end());
            assert!(start <= end && range.subnet().contains(&start) && range.subnet().contains(&end), "{range}");
            assert!(range.gateway().is_none_or(|gateway| !range.gives(gateway)), "the gateway of {range}");
            let others = pool.sets.iter().enumerate().filter(|(other, _)| *other != index);
            assert!(others.into_iter().all(|(_, other)| other.range_of(start).is_none()), "{range} overlaps");
        }
    }
    // From here on a pool of its own.
    pool.directory = directory.join("net-a");
    let requested = requested_addresses(Some(request), &[], &[]).unwrap_or_default();
    reserve(&pool, &requested);
}

/// What is given out is what the configuration gives, once.
fn reserve(pool: &Pool, requested: &[IpAddr]) {
    let wait = Duration::from_secs(10);
    let owner = Owner::new("c0ffee", "net1").expect("a constant");
    let request = Request { owner: &owner, requested, prior: Prior::NoneKnown, lock_wait: wait };
    let reserved = match pool.reserve(&request) {
        Ok(reserved) => reserved,
        Err(Error::Io { .. }) => panic!("the pool cannot be written"),
        Err(_) => return,
    };
    assert_eq!(reserved.len(), pool.sets.len());
    for (set, found) in pool.sets.iter().zip(&reserved) {
        let range = set.range_of(found.address.addr()).expect("an address of its range");
        assert!(range.gives(found.address.addr()), "{} of {range}", found.address);
        assert_eq!(found.address.prefix_len(), range.subnet().prefix_len());
    }
    let addresses: Vec<IpAddr> = reserved.iter().map(|found| found.address.addr()).collect();
    assert!(pool.store(wait).holds(&owner, &addresses).expect("the pool can be read"));
}
