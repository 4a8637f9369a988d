//! The checkpoint file of kubelet's device manager, for nodes whose kubelet has no pod-resources socket.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::network::Devices;

#[derive(Deserialize)]
struct Checkpoint {
    #[serde(rename = "Data")]
    data: Data,
}

#[derive(Deserialize)]
struct Data {
    #[serde(rename = "PodDeviceEntries", default)]
    entries: Option<Vec<Entry>>,
}

#[derive(Deserialize)]
struct Entry {
    #[serde(rename = "PodUID")]
    pod_uid: String,
    #[serde(rename = "ResourceName")]
    resource: String,
    #[serde(rename = "DeviceIDs")]
    ids: Ids,
}

/// Lists by NUMA node since Kubernetes 1.20, one list before.
#[derive(Deserialize)]
#[serde(untagged)]
enum Ids {
    ByNode(BTreeMap<String, Vec<String>>),
    Flat(Vec<String>),
}

/// The devices of the pod with a UID.
pub(super) fn devices(text: &[u8], uid: &str) -> Result<Devices, serde_json::Error> {
    let checkpoint: Checkpoint = serde_json::from_slice(text)?;
    let mut devices = Devices::default();
    for entry in checkpoint.data.entries.unwrap_or_default().into_iter().filter(|entry| entry.pod_uid == uid) {
        match entry.ids {
            Ids::ByNode(nodes) => nodes.into_values().for_each(|ids| devices.add(&entry.resource, ids)),
            Ids::Flat(ids) => devices.add(&entry.resource, ids),
        }
    }
    Ok(devices)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_the_checkpoint() {
        let text = br#"{"Data":{"PodDeviceEntries":[
            {"PodUID":"u1","ContainerName":"c","ResourceName":"r/a","DeviceIDs":{"0":["d2"],"-1":["d1"]},"AllocResp":""},
            {"PodUID":"u1","ContainerName":"c","ResourceName":"r/b","DeviceIDs":["d3"]},
            {"PodUID":"u2","ContainerName":"c","ResourceName":"r/a","DeviceIDs":{"0":["d4"]}}],
            "RegisteredDevices":{}},"Checksum":1}"#;
        let mut expected = Devices::default();
        expected.add("r/a", ["d1".to_owned(), "d2".to_owned()]);
        expected.add("r/b", ["d3".to_owned()]);
        assert_eq!(devices(text, "u1").unwrap(), expected);
        assert_eq!(devices(text, "u3").unwrap(), Devices::default());
        assert!(devices(b"{}", "u1").unwrap_err().is_data());
    }
}
