//! The journal: what was about to be done, and what was done, for every attachment on the node.

use std::{
    collections::BTreeSet,
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
};

use sandbox::{DefaultRoutes, NetnsId};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use crate::{
    cni::{CniArgs, Error, Object, PluginList},
    files,
    network::Additions,
    node::Layout,
    pod::PodName,
};

/// The format that this release writes; a record of a newer one is understood as far as possible and never deleted.
const FORMAT: u32 = 1;

/// Which call made an attachment: the runtime's key of it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Call {
    /// `name` of the conf that the runtime called us with.
    pub conf: String,
    /// `CNI_CONTAINERID`.
    pub container: String,
    /// `CNI_IFNAME`.
    pub if_name: String,
}

impl Call {
    /// One text for the three; a colon is in none of them.
    #[must_use]
    pub fn key(&self) -> String {
        format!("{}:{}:{}", self.conf, self.container, self.if_name)
    }

    /// Reads `KEY:INTERFACE`, as a lease names an attachment.
    #[must_use]
    pub fn of_attachment(text: &str) -> Option<(Self, String)> {
        let mut parts = text.splitn(4, ':').map(str::to_owned);
        let call = Self { conf: parts.next()?, container: parts.next()?, if_name: parts.next()? };
        Some((call, parts.next()?))
    }
}

/// How far an attachment is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// It is being made, or was when we died. The primary's stays so until its whole call is answered.
    Intent,
    /// It is made.
    Done,
    /// Its DEL failed after the namespace was gone: the runtime will not come again, GC retries.
    Owed,
}

/// One attachment.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// The form of the record: 1 in this release.
    pub format: u32,
    /// How far it is.
    pub stage: Stage,
    /// The call it belongs to.
    pub call: Call,
    /// Its place among the attachments of the call: undone in reverse.
    pub position: usize,
    /// The network as network-status names it.
    pub network: String,
    /// The interface in the sandbox.
    pub interface: String,
    /// Whether it is the primary network.
    pub primary: bool,
    /// The pod, if the runtime named one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<PodName>,
    /// The boot it was made in.
    pub boot_id: String,
    /// `CNI_NETNS` of its ADD.
    pub netns: String,
    /// Which namespace that was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub netns_id: Option<NetnsId>,
    /// The SHA-256 of its configuration, which is kept in `confs/`.
    pub conf_hash: String,
    /// What was written into the configuration for this pod.
    #[serde(default)]
    pub additions: Additions,
    /// `CNI_ARGS` of its plugins.
    #[serde(default)]
    pub args: CniArgs,
    /// What its plugins may be given by capability.
    #[serde(default)]
    pub runtime_config: Value,
    /// The VF, when it was attached in-process: its state before the first change.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vf: Option<sriov::Original>,
    /// Addresses from a pool of ours.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub addresses: Option<PoolAddresses>,
    /// An IPAM plugin was executed for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub executed_ipam: Option<String>,
    /// Default routes that were replaced for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default_routes: Option<DefaultRoutes>,
    /// Its result, in the version of its configuration.
    #[serde(default)]
    pub result: Value,
    /// Why it is owed.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub owed_because: String,
    /// Keys of another release.
    #[serde(flatten)]
    pub unknown: Map<String, Value>,
}

/// Addresses of one attachment in host-local's store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolAddresses {
    /// The pool's directory.
    pub directory: PathBuf,
    /// The addresses, one of each range set.
    pub addresses: Vec<IpAddr>,
    /// For how many seconds they are not given out again after they were given back.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub cool_down: u64,
}

/// For serde: it hands over a reference.
fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl Record {
    /// The network as a person knows it.
    #[must_use]
    pub fn title(&self) -> String {
        format!("{} as {}", self.network, self.interface)
    }

    /// What its plugins may be given by capability, as it was.
    #[must_use]
    pub fn runtime_object(&self) -> Object {
        serde_json::from_value(self.runtime_config.clone()).unwrap_or_default()
    }
}

/// A file of the journal.
#[derive(Debug)]
pub enum Entry {
    /// A record.
    Good(Box<Record>),
    /// What is left of one. Its name still tells the call and the interface.
    Torn {
        /// The file.
        path: PathBuf,
        /// The call, by the file's name.
        call: Call,
        /// The interface, by the file's name.
        interface: String,
    },
}

impl Entry {
    /// The call it belongs to.
    #[must_use]
    pub fn call(&self) -> &Call {
        match self {
            Self::Good(record) => &record.call,
            Self::Torn { call, .. } => call,
        }
    }

    /// Its interface in the sandbox.
    #[must_use]
    pub fn interface(&self) -> &str {
        match self {
            Self::Good(record) => &record.interface,
            Self::Torn { interface, .. } => interface,
        }
    }
}

/// The records of the node.
#[derive(Debug, Clone)]
pub struct Records {
    sandboxes: PathBuf,
    confs: PathBuf,
}

impl Records {
    /// The journal of a layout.
    #[must_use]
    pub fn of(layout: &Layout) -> Self {
        Self { sandboxes: layout.sandboxes(), confs: layout.confs() }
    }

    /// A record's file: `CONTAINER/CONF:IFNAME:INTERFACE.json`.
    #[must_use]
    pub fn path(&self, call: &Call, interface: &str) -> PathBuf {
        self.sandboxes.join(&call.container).join(format!("{}:{}:{interface}.json", call.conf, call.if_name))
    }

    /// The containers that have records.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn containers(&self) -> Result<Vec<String>, Error> {
        Ok(names_in(&self.sandboxes)?.into_iter().filter(|name| !name.starts_with('.')).collect())
    }

    /// All entries of a container, in the order of their positions; torn ones last.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn of_container(&self, container: &str) -> Result<Vec<Entry>, Error> {
        let directory = self.sandboxes.join(container);
        let mut entries = Vec::new();
        for name in names_in(&directory)? {
            let Some((call, interface)) = parse_name(container, &name) else { continue };
            let path = directory.join(&name);
            let text = fs::read(&path).map_err(|source| Error::io("read", path.display(), source))?;
            entries.push(match serde_json::from_slice::<Record>(&text) {
                Ok(record) if record.call == call && record.interface == interface => Entry::Good(Box::new(record)),
                Ok(_) => Entry::Torn { path, call, interface },
                Err(problem) => {
                    tracing::warn!(file = %path.display(), %problem, "torn record");
                    Entry::Torn { path, call, interface }
                }
            });
        }
        entries.sort_by_key(|entry| match entry {
            Entry::Good(record) => record.position,
            Entry::Torn { .. } => usize::MAX,
        });
        Ok(entries)
    }

    /// Writes a record. `durable` before an executed plugin keeps state elsewhere that survives a power cut.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn write(&self, record: &Record, durable: bool) -> Result<(), Error> {
        let path = self.path(&record.call, &record.interface);
        let text = serde_json::to_vec_pretty(record).map_err(|problem| Error::decode("record", problem))?;
        let directory = self.sandboxes.join(&record.call.container);
        if !directory.is_dir() {
            files::create_directory(&directory, 0o700)?;
            if durable {
                sync_directory(&self.sandboxes)?;
            }
        }
        files::replace(&path, &text, 0o600, durable)
    }

    /// Removes a record, and its container's directory with the last one. One of a newer format stays.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn remove(&self, record: &Record) -> Result<(), Error> {
        if record.format > FORMAT {
            tracing::warn!(
                network = record.network,
                interface = record.interface,
                format = record.format,
                "a record of a newer release is kept"
            );
            return Ok(());
        }
        self.remove_file(&self.path(&record.call, &record.interface))
    }

    /// Removes the file of an entry.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn remove_file(&self, path: &Path) -> Result<(), Error> {
        files::remove(path)?;
        if let Some(directory) = path.parent() {
            // ENOTEMPTY: other attachments are left.
            let _ = fs::remove_dir(directory);
        }
        Ok(())
    }

    /// Removes what is left of a container without records: the directory, and the temporary files of a writer that was
    /// killed. Only under the sandbox's lock: then nobody writes there.
    pub fn tidy(&self, container: &str) {
        let directory = self.sandboxes.join(container);
        for name in names_in(&directory).unwrap_or_default().iter().filter(|name| name.starts_with('.')) {
            // What stays is a file that nobody reads; the next call of the container tries again.
            let _ = fs::remove_file(directory.join(name));
        }
        // ENOTEMPTY: something that is not ours.
        let _ = fs::remove_dir(directory);
    }

    /// Keeps a configuration, once, and gives its hash.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn keep_conf(&self, list: &PluginList) -> Result<String, Error> {
        let text = list.to_text();
        let hash = hash(&text);
        let path = self.confs.join(&hash);
        // An existing file was synced before it got its name, so its content is whole.
        if !path.is_file() {
            files::replace(&path, text.as_bytes(), 0o600, true)?;
        }
        Ok(hash)
    }

    /// The configuration that an attachment was made with.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Decode`] when the file is not what was written.
    pub fn conf(&self, record: &Record) -> Result<PluginList, Error> {
        self.conf_of(&record.conf_hash)
    }

    fn conf_of(&self, name: &str) -> Result<PluginList, Error> {
        let path = self.confs.join(name);
        // A record may say anything, a path for example.
        if name.len() != 64 || !name.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(Error::decode(path.display().to_string(), "it is not named by a hash"));
        }
        let text = fs::read_to_string(&path).map_err(|source| Error::io("read", path.display(), source))?;
        if hash(&text) != name {
            return Err(Error::decode(path.display().to_string(), "its content does not have the hash it is named by"));
        }
        PluginList::from_object(Object::parse(&path.display().to_string(), text.as_bytes())?, None)
    }

    /// All configurations that are kept; one that is not what was written is passed over.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn confs(&self) -> Result<Vec<PluginList>, Error> {
        let lists = names_in(&self.confs)?.into_iter().filter_map(|name| self.conf_of(&name).ok());
        Ok(lists.collect())
    }

    /// Holds the configurations in place until the returned file is dropped: shared by those who are about to name one in
    /// a record, alone by who removes the ones that no record names.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn hold_confs(&self, alone: bool) -> Result<fs::File, Error> {
        let failed = |source| Error::io("lock", self.confs.display(), source);
        let directory = fs::File::open(&self.confs).map_err(failed)?;
        if alone { directory.lock() } else { directory.lock_shared() }.map_err(failed)?;
        Ok(directory)
    }

    /// Removes the configurations that no record names. With a torn record there is no telling which these are.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn forget_unused_confs(&self) -> Result<(), Error> {
        let _alone = self.hold_confs(true)?;
        let mut used = BTreeSet::new();
        for container in self.containers()? {
            for entry in self.of_container(&container)? {
                match entry {
                    Entry::Good(record) => drop(used.insert(record.conf_hash)),
                    Entry::Torn { .. } => return Ok(()),
                }
            }
        }
        for name in names_in(&self.confs)?.iter().filter(|name| !used.contains(*name)) {
            files::remove(&self.confs.join(name))?;
        }
        Ok(())
    }
}

/// The record of an attachment that is about to be made.
#[must_use]
pub fn new_record(call: &Call, position: usize, attachment: &crate::network::Attachment, conf_hash: String) -> Record {
    Record {
        format: FORMAT,
        stage: Stage::Intent,
        call: call.clone(),
        position,
        network: attachment.network.clone(),
        interface: attachment.interface.clone(),
        primary: attachment.primary,
        pod: None,
        boot_id: String::new(),
        netns: String::new(),
        netns_id: None,
        conf_hash,
        additions: attachment.additions.clone(),
        args: attachment.args.clone(),
        runtime_config: serde_json::to_value(&attachment.runtime_config).unwrap_or_default(),
        vf: None,
        addresses: None,
        executed_ipam: None,
        default_routes: None,
        result: Value::Null,
        owed_because: String::new(),
        unknown: Map::new(),
    }
}

fn hash(text: &str) -> String {
    Sha256::digest(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn parse_name(container: &str, name: &str) -> Option<(Call, String)> {
    let mut parts = name.strip_suffix(".json")?.splitn(3, ':');
    let (conf, if_name, interface) = (parts.next()?, parts.next()?, parts.next()?);
    let call = Call { conf: conf.to_owned(), container: container.to_owned(), if_name: if_name.to_owned() };
    (!name.starts_with('.')).then(|| (call, interface.to_owned()))
}

fn names_in(directory: &Path) -> Result<Vec<String>, Error> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(Error::io("read", directory.display(), source)),
    };
    let mut names: Vec<String> = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    Ok(names)
}

fn sync_directory(path: &Path) -> Result<(), Error> {
    fs::File::open(path).and_then(|file| file.sync_all()).map_err(|source| Error::io("sync", path.display(), source))
}
