//! Who this node is, for pools that depend on it: its name and labels from a file that an administrator or the
//! installer keeps, and its own pod range from that file or from Flannel's.

use std::{collections::BTreeMap, fs, io, path::Path};

use ipam::{Node, RawIpam, Slice};

use crate::{
    cni::{Error, Object},
    settings::NODE_FILE,
};

/// Flannel's file with the network of all pods and this node's part of it.
pub const SUBNET_FILE: &str = "/run/flannel/subnet.env";

/// Where it is written who this node is.
#[derive(Debug, Clone, Copy)]
pub struct Sources<'a> {
    /// The name that the configuration gives; it beats the file's. May be empty.
    pub name: &'a str,
    /// The node's file.
    pub file: &'a Path,
    /// Flannel's file.
    pub subnet: &'a Path,
}

/// The node's file as it is written.
#[derive(Debug, Default)]
struct NodeFile {
    name: String,
    labels: Option<BTreeMap<String, String>>,
    /// `podNetwork` and `podRange`.
    pods: Option<(String, String)>,
}

impl Default for Sources<'static> {
    /// For a plugin alone, whose configuration says nothing of the node.
    fn default() -> Self {
        Sources::with("", Path::new(NODE_FILE))
    }
}

impl<'a> Sources<'a> {
    /// A name and a file from the configuration, and Flannel's own file.
    #[must_use]
    pub fn with(name: &'a str, file: &'a Path) -> Self {
        Self { name, file, subnet: Path::new(SUBNET_FILE) }
    }

    /// The node's name, if it is written down anywhere.
    #[must_use]
    pub fn name(&self) -> Option<String> {
        let of_file = || self.read().ok().flatten().map(|file| file.name);
        let given = Some(self.name.to_owned()).filter(|name| !name.is_empty());
        given.or_else(of_file).filter(|name| !name.is_empty())
    }

    /// What the pool of `network` has to know of the node. No file is read for a pool that is the same on every node.
    ///
    /// # Errors
    /// [`Error::Config`] and [`Error::Decode`] that say what is missing where; [`Error::TryLater`] while Flannel has not
    /// written its file; [`Error::Io`].
    pub fn node(&self, raw: &RawIpam, network: &str) -> Result<Node, Error> {
        if !raw.depends_on_name() && !raw.depends_on_slice() {
            return Ok(Node::default());
        }
        let found = self.read()?;
        let file = found.as_ref();
        let missing = |what: &str, how: &str| {
            let there = if file.is_some() { "does not have it" } else { "does not exist" };
            Error::Config(format!(
                "\"rangesByNode\" of {network} asks for the node's {what}, and {} {there}: write {how} there",
                self.file.display()
            ))
        };
        let mut node = Node::default();
        if raw.depends_on_name() {
            let of_file = file.map(|file| file.name.as_str()).filter(|name| !name.is_empty());
            let name = Some(self.name).filter(|name| !name.is_empty()).or(of_file);
            if name.is_none() && raw.asks_for_name() {
                return Err(missing("name", "{\"name\": \"...\"} (or \"nodeName\" in the configuration of meta-cni)"));
            }
            node.name = name.unwrap_or_default().to_owned();
            let labels = file.and_then(|file| file.labels.clone());
            if labels.is_none() && raw.asks_for_labels() {
                return Err(missing("labels", "{\"labels\": {...}}"));
            }
            node.labels = labels.unwrap_or_default();
        }
        if raw.depends_on_slice() {
            node.slice = Some(match found.and_then(|file| file.pods) {
                Some((network, range)) => Slice::new(&network, &range)?,
                None => self.slice_of_flannel(network)?,
            });
        }
        Ok(node)
    }

    fn read(&self) -> Result<Option<NodeFile>, Error> {
        let text = match fs::read(self.file) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(Error::io("read", self.file.display(), source)),
        };
        let named = |error: Error| match error {
            Error::Config(text) => Error::Config(format!("{}: {text}", self.file.display())),
            other => other,
        };
        let object = Object::parse(&self.file.display().to_string(), &text)?;
        let (all, own) = (object.text("podNetwork").map_err(named)?, object.text("podRange").map_err(named)?);
        if all.is_empty() != own.is_empty() {
            let text = "\"podNetwork\" and \"podRange\" belong together: give both or neither".to_owned();
            return Err(named(Error::Config(text)));
        }
        Ok(Some(NodeFile {
            name: object.text("name").map_err(named)?,
            labels: object.get("labels").map_err(named)?,
            pods: (!all.is_empty()).then_some((all, own)),
        }))
    }

    fn slice_of_flannel(&self, network: &str) -> Result<Slice, Error> {
        let path = self.subnet.display();
        let text = match fs::read_to_string(self.subnet) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(Error::TryLater(format!(
                    "\"sliceByNode\" of {network} needs the node's pod range, and there is neither Flannel's {path} nor \
                     \"podNetwork\" and \"podRange\" in {}",
                    self.file.display()
                )));
            }
            Err(source) => return Err(Error::io("read", path, source)),
        };
        let value = |key| text.lines().find_map(|line| line.trim().strip_prefix(key)?.strip_prefix('='));
        let pair = |all, own| Some((value(all)?, value(own)?)).filter(|(all, own)| !all.is_empty() && !own.is_empty());
        let v4 = pair("FLANNEL_NETWORK", "FLANNEL_SUBNET");
        let Some((all, own)) = v4.or_else(|| pair("FLANNEL_IPV6_NETWORK", "FLANNEL_IPV6_SUBNET")) else {
            return Err(Error::Config(format!(
                "\"sliceByNode\" of {network} needs FLANNEL_NETWORK and FLANNEL_SUBNET, and {path} does not have both"
            )));
        };
        // Flannel may write several networks; the node's range is a part of one.
        let mut last = None;
        for one in all.split(',') {
            match Slice::new(one.trim(), own) {
                Ok(slice) => return Ok(slice),
                Err(error) => last = Some(error),
            }
        }
        Err(last.map_or_else(|| Error::Config(format!("{path} names no network")), Error::from))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is read for a pool, of a file and of Flannel's; `None` is no file.
    fn node(ipam: &str, name: &str, file: Option<&str>, subnet: Option<&str>) -> Result<Node, Error> {
        let dir = tempfile::tempdir().unwrap();
        let paths = [dir.path().join("node.json"), dir.path().join("subnet.env")];
        for (path, text) in paths.iter().zip([file, subnet]) {
            text.into_iter().for_each(|text| fs::write(path, text).unwrap());
        }
        let raw = serde_json::from_str(ipam).unwrap();
        Sources { name, file: &paths[0], subnet: &paths[1] }.node(&raw, "net-a")
    }

    const BY_NAME: &str = r#"{"rangesByNode":[{"node":"a"},{"node":"b"}]}"#;
    const BY_LABEL: &str = r#"{"rangesByNode":[{"labels":{"rack":"1"}},{"node":"*"}]}"#;
    const SLICE: &str = r#"{"sliceByNode":true}"#;

    fn config(outcome: Result<Node, Error>) -> String {
        match outcome {
            Err(Error::Config(text)) => text,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_pool_that_is_the_same_everywhere_needs_no_file() {
        assert_eq!(node(r#"{"subnet":"x","sliceByNode":false}"#, "w1", Some("{"), None).unwrap(), Node::default());
    }

    #[test]
    fn the_configurations_name_beats_the_files() {
        let file = Some(r#"{"Name":"of-file","labels":{"rack":"1"}}"#);
        assert_eq!(node(BY_NAME, "", file, None).unwrap().name, "of-file");
        let found = node(BY_NAME, "of-conf", file, None).unwrap();
        assert_eq!((found.name.as_str(), found.labels["rack"].as_str()), ("of-conf", "1"));
        assert_eq!(node(BY_NAME, "of-conf", None, None).unwrap().name, "of-conf", "no label is asked for");
    }

    #[test]
    fn what_is_asked_for_and_not_written_is_an_error() {
        let text = config(node(BY_NAME, "", None, None));
        assert!(text.contains("net-a asks for the node's name") && text.contains("node.json does not exist"), "{text}");
        let text = config(node(BY_NAME, "", Some(r#"{"labels":{}}"#), None));
        assert!(text.contains("name") && text.contains("does not have it"), "{text}");
        // Without labels the entry of some would not fit, and a later one for all nodes would, unnoticed.
        let text = config(node(BY_LABEL, "w1", None, None));
        assert!(text.contains("labels") && text.contains("does not exist"), "{text}");
        assert!(config(node(BY_LABEL, "w1", Some(r#"{"name":"w1"}"#), None)).contains("does not have it"));
        assert_eq!(node(BY_LABEL, "w1", Some(r#"{"labels":{}}"#), None).unwrap().labels.len(), 0);
        assert!(config(node(BY_NAME, "w1", Some(r#"{"labels":[]}"#), None)).contains("node.json: \"labels\""));
        assert!(
            matches!(node(BY_NAME, "w1", Some("{"), None), Err(Error::Decode { what, .. }) if what.contains("node.json"))
        );
    }

    #[test]
    fn the_pod_range_is_the_files_or_flannels() {
        let slice = |network, range| Some(Slice::new(network, range).unwrap());
        let flannel = Some("FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.7.1/24\nFLANNEL_MTU=1450\n");
        let found = |file, subnet| node(SLICE, "", file, subnet).unwrap().slice;
        assert_eq!(found(None, flannel), slice("10.244.0.0/16", "10.244.7.0/24"));
        let file = Some(r#"{"podNetwork":"10.0.0.0/8","podRange":"10.9.0.0/16"}"#);
        assert_eq!(found(file, flannel), slice("10.0.0.0/8", "10.9.0.0/16"));
        let several = Some("FLANNEL_NETWORK=10.1.0.0/16,10.244.0.0/16\nFLANNEL_SUBNET=10.244.7.1/24\n");
        assert_eq!(found(Some("{}"), several), slice("10.244.0.0/16", "10.244.7.0/24"));
        let v6 = Some("FLANNEL_NETWORK=\nFLANNEL_IPV6_NETWORK=fd00::/48\nFLANNEL_IPV6_SUBNET=fd00:0:0:7::1/64\n");
        assert_eq!(found(None, v6), slice("fd00::/48", "fd00:0:0:7::/64"));
    }

    #[test]
    fn without_a_pod_range_nothing_is_guessed() {
        let text = match node(SLICE, "w1", Some("{}"), None) {
            Err(Error::TryLater(text)) => text,
            other => panic!("{other:?}"),
        };
        assert!(text.contains("net-a") && text.contains("subnet.env") && text.contains("podRange"), "{text}");
        assert!(config(node(SLICE, "", Some(r#"{"podRange":"10.9.0.0/16"}"#), None)).contains("belong together"));
        assert!(config(node(SLICE, "", None, Some("FLANNEL_SUBNET=10.244.7.1/24\n"))).contains("does not have both"));
        let wrong = node(SLICE, "", None, Some("FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUBNET=10.244.7.1/24\n"));
        assert!(matches!(wrong, Err(Error::Address(error)) if error.to_string().contains("no part of the network")));
    }
}
