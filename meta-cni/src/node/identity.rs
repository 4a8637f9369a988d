//! Who this node is, for pools that depend on it: its name and labels from a file that an administrator or the
//! installer keeps, and its own pod range from that file or from Flannel's.

use std::{collections::BTreeMap, fs, io, path::Path};

use ipam::{Node, RawIpam, Slice};

use crate::cni::{Error, Object};

/// The file with the node's name and labels, if the configuration names no other (`nodeFile`).
pub const NODE_FILE: &str = "/etc/cni/meta-cni/node.json";
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
