//! What other programs answer, and what we say of it.

use std::{net::IpAddr, path::Path, time::Duration};

use ipam::RawIpam;
use meta_cni::{
    attach::subnets_of,
    cni::{CniResult, SpecVersion},
    network::{
        Devices,
        network_status::{self, Attached},
    },
    node::{Sources, kubelet},
    pod::PodName,
};
use serde_json::{Value, json};

use super::{scratch, text, write};

/// The resource that devices are asked of.
const RESOURCE: &str = "r/a";

pub(crate) fn result(data: &[u8]) {
    let Some((first, printed)) = data.split_first() else { return };
    let conf = SpecVersion::ALL[usize::from(*first) % SpecVersion::ALL.len()];
    let Ok(value) = serde_json::from_slice::<Value>(printed) else { return };
    let Ok(result) = CniResult::parse("a result", &value, conf) else { return };
    for version in SpecVersion::ALL {
        let Ok(written) = result.to_json(version) else {
            assert!(version <= SpecVersion::V0_2_0 && result.ips.is_empty(), "no form for {version}: {result:?}");
            continue;
        };
        assert_eq!(written["cniVersion"], version.as_str());
        let again = CniResult::parse("our own form", &written, SpecVersion::LATEST).expect("our own form");
        if version >= SpecVersion::V1_0_0 {
            assert_eq!(again, result, "{written}");
        } else {
            // An older form says less, and the same each time.
            assert_eq!(again.to_json(version).expect("our own form"), written);
        }
        if version >= SpecVersion::V0_3_0 {
            assert_eq!(again.ips, result.ips, "{written}");
        }
    }
}

pub(crate) fn network_status(data: &[u8]) {
    let texts = data.split(|byte| *byte == 0x1e);
    let values = texts.filter_map(|text| serde_json::from_slice::<Value>(text).ok());
    let results: Vec<CniResult> =
        values.filter_map(|value| CniResult::parse("a result", &value, SpecVersion::LATEST).ok()).collect();
    let attached: Vec<Attached<'_>> = results
        .iter()
        .enumerate()
        .map(|(position, result)| Attached {
            network: "default/net-a",
            interface: "net1",
            primary: position == 0,
            result,
            default_gateways: result.ips.iter().filter_map(|ip| ip.gateway).collect(),
            device_info: Some(json!({"type": "pci"})),
        })
        .collect();
    let written: Value = serde_json::from_str(&network_status::render(&attached)).expect("JSON");
    let entries = written.as_array().expect("a list");
    let inside = |result: &CniResult| result.interfaces.iter().filter(|one| !one.sandbox.is_empty()).count();
    assert_eq!(entries.len(), results.iter().map(|result| inside(result).max(1)).sum::<usize>());
    assert_eq!(entries.iter().filter(|entry| entry["default"] == true).count(), results.len().min(1));
    let mut rest = entries.as_slice();
    for result in &results {
        let (own, others) = rest.split_at(inside(result).max(1));
        rest = others;
        assert!(own.iter().all(|entry| entry["name"] == "default/net-a"));
        let mut wanted: Vec<String> = result
            .ips
            .iter()
            .filter(|ip| is_the_pods(result, ip.interface))
            .map(|ip| ip.address.addr().to_string())
            .collect();
        let mut told: Vec<&str> = own.iter().flat_map(addresses).collect();
        wanted.sort_unstable();
        told.sort_unstable();
        assert_eq!(told, wanted, "{own:?}");
    }
}

fn addresses(entry: &Value) -> impl Iterator<Item = &str> {
    let all = entry["ips"].as_array().into_iter().flatten();
    all.map(|ip| ip.as_str().filter(|ip| ip.parse::<IpAddr>().is_ok()).expect("an address"))
}

/// Whether an address is the pod's: it is of an interface there, or of none that the result has; or there is none.
fn is_the_pods(result: &CniResult, interface: Option<usize>) -> bool {
    let none = result.interfaces.iter().all(|one| one.sandbox.is_empty());
    none || interface.and_then(|at| result.interfaces.get(at)).is_none_or(|found| !found.sandbox.is_empty())
}

pub(crate) fn subnet_env(data: &[u8]) {
    let directory = scratch();
    let (node_file, subnet_file) = (directory.join("node.json"), directory.join("subnet.env"));
    write(&subnet_file, data);
    let raw: RawIpam = serde_json::from_str(r#"{"sliceByNode":true}"#).expect("a constant");
    let sources = Sources { name: "", file: &node_file, subnet: &subnet_file };
    let node = sources.node(&raw, "net-a");
    assert!(node.is_err() || node.is_ok_and(|node| node.slice.is_some()), "no place, and no error");
    let Some(text) = text(data) else { return };
    for subnet in subnets_of(text) {
        assert!(subnets_of(&format!("FLANNEL_SUBNET={subnet}\n")).eq([subnet]));
    }
}

fn pod() -> PodName {
    PodName { namespace: "default".into(), name: "p".into(), uid: "u1".into() }
}

/// A device that the pod can be given.
fn first(devices: &Devices) -> Option<String> {
    let given = devices.assign(&[("net-a".to_owned(), Some(RESOURCE.to_owned()))]).ok()?;
    Some(given.into_iter().flatten().next().expect("one for each network"))
}

pub(crate) fn checkpoint(data: &[u8]) {
    let file = scratch().join("checkpoint");
    write(&file, data);
    let (pod, socket) = (pod(), Path::new("/nowhere/kubelet.sock"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    runtime.block_on(async {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
        let Ok(devices) = kubelet::devices(&pod, socket, &file, deadline).await else { return };
        let Some(device) = first(&devices) else { return };
        let holders = kubelet::holders(&device, &pod, socket, &file, deadline).await.expect("the same file");
        assert!(holders.this, "{device:?} is given to the pod, and is not the pod's");
        assert!(!holders.others.contains(&pod.uid), "the pod is another one");
    });
}

pub(crate) fn pod_resources(data: &[u8]) {
    let pod = pod();
    let Ok(answer) = kubelet::Listed::decode(data) else { return };
    let holders = |device: &str| answer.holders(device, &pod);
    if let Some(device) = first(&answer.devices(&pod)) {
        assert!(holders(&device).this, "{device:?} is given to the pod, and is not the pod's");
        assert!(!holders(&device).others.contains(&"default/p".to_owned()), "the pod is another one");
    }
}
