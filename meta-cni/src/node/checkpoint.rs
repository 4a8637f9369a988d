//! The checkpoint file of kubelet's device manager, for nodes whose kubelet has no pod-resources socket.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::network::Devices;

/// The checkpoint, as far as we read it.
#[derive(Deserialize)]
pub(super) struct Checkpoint {
    #[serde(rename = "Data")]
    data: Data,
}

#[derive(Deserialize)]
struct Data {
    /// Null without any; the key is always there.
    #[serde(rename = "PodDeviceEntries", deserialize_with = "Option::deserialize")]
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
#[serde(untagged, expecting = "\"DeviceIDs\" is neither a list nor lists by NUMA node, the two forms known here")]
enum Ids {
    ByNode(BTreeMap<String, Option<Vec<String>>>),
    Flat(Option<Vec<String>>),
}

impl Checkpoint {
    /// Reads the file's text.
    pub(super) fn read(text: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(text)
    }

    fn entries(self) -> impl Iterator<Item = Entry> {
        self.data.entries.unwrap_or_default().into_iter()
    }

    /// The devices of the pod with a UID.
    pub(super) fn of_pod(self, uid: &str) -> Devices {
        let mut devices = Devices::default();
        for entry in self.entries().filter(|entry| entry.pod_uid == uid) {
            devices.add(&entry.resource, entry.ids.into_list());
        }
        devices
    }

    /// UIDs of the pods that have a device.
    pub(super) fn holders(self, device: &str) -> Vec<String> {
        let holds = |entry: Entry| entry.ids.into_list().iter().any(|id| id == device).then_some(entry.pod_uid);
        self.entries().filter_map(holds).collect()
    }
}

impl Ids {
    fn into_list(self) -> Vec<String> {
        match self {
            Ids::ByNode(nodes) => nodes.into_values().flatten().flatten().collect(),
            Ids::Flat(ids) => ids.unwrap_or_default(),
        }
    }
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
        let read = || Checkpoint::read(text).unwrap();
        assert_eq!(read().of_pod("u1"), expected);
        assert_eq!(read().of_pod("u3"), Devices::default());
        assert_eq!(read().holders("d4"), ["u2"]);
        assert_eq!(read().holders("d3"), ["u1"]);
        assert_eq!(read().holders("d9"), [""; 0]);
    }

    #[test]
    fn a_checkpoint_without_devices() {
        for text in [
            r#"{"Data":{"PodDeviceEntries":null,"RegisteredDevices":{"r/a":["d1"]}},"Checksum":1}"#,
            r#"{"Data":{"PodDeviceEntries":[{"PodUID":"u1","ResourceName":"r/a","DeviceIDs":null}]}}"#,
            r#"{"Data":{"PodDeviceEntries":[{"PodUID":"u1","ResourceName":"r/a","DeviceIDs":{"0":null}}]}}"#,
        ] {
            assert!(Checkpoint::read(text.as_bytes()).unwrap().holders("d1").is_empty(), "{text}");
        }
    }

    #[test]
    fn what_is_no_checkpoint_says_why() {
        for (text, says) in [
            ("", "EOF while parsing"),
            (r#"{"Data":{"PodDeviceEntries":[{"PodUID":"u1","Reso"#, "EOF while parsing"),
            ("{}", "missing field `Data`"),
            (r#"{"Data":{}}"#, "missing field `PodDeviceEntries`"),
            (
                r#"{"Data":{"PodDeviceEntries":[{"PodUID":"u1","ResourceName":"r/a","DeviceIDs":"d1"}]}}"#,
                "two forms known",
            ),
            (
                r#"{"Data":{"PodDeviceEntries":[{"PodUID":"u1","ResourceName":"r/a","DeviceIDs":{"0":"d1"}}]}}"#,
                "two forms known",
            ),
        ] {
            match Checkpoint::read(text.as_bytes()) {
                Err(problem) => assert!(problem.to_string().contains(says), "{text}: {problem}"),
                Ok(_) => panic!("{text}"),
            }
        }
    }
}
