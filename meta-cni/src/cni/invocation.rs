//! What a runtime asked for: environment and stdin, checked as skel checks them.

use std::{
    io::Read,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use super::{CniArgs, Error, Object, TRACEPARENT, Trace};

/// Set for every plugin that we execute; seeing it as the meta plugin means that a configuration leads back to us.
pub const RECURSION_MARK: &str = "META_CNI_CALLER";

/// What is on stdin, for messages.
const STDIN: &str = "the network configuration on stdin";

/// A CNI verb.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// Attach.
    Add,
    /// Detach.
    Del,
    /// Compare with the kernel.
    Check,
    /// Forget what belongs to no valid attachment.
    Gc,
    /// Ready for ADD?
    Status,
    /// Which versions?
    Version,
}

impl Command {
    /// The value of `CNI_COMMAND`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Check => "CHECK",
            Self::Gc => "GC",
            Self::Status => "STATUS",
            Self::Version => "VERSION",
        }
    }

    fn parse(text: &str) -> Result<Self, Error> {
        [Self::Add, Self::Del, Self::Check, Self::Gc, Self::Status, Self::Version]
            .into_iter()
            .find(|command| command.as_str() == text)
            .ok_or_else(|| Error::Environment(format!("unknown CNI_COMMAND: {text}")))
    }

    /// Which variables the verb needs (skel's table): container, namespace, interface, path.
    fn required(self) -> &'static [&'static str] {
        match self {
            Self::Add | Self::Check => &["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"],
            Self::Del => &["CNI_CONTAINERID", "CNI_IFNAME", "CNI_PATH"],
            Self::Gc | Self::Status => &["CNI_PATH"],
            Self::Version => &[],
        }
    }
}

/// One call by a runtime. Fields that the verb does not have are empty.
#[derive(Debug, Clone)]
pub struct Invocation {
    /// The verb.
    pub command: Command,
    /// `CNI_CONTAINERID`.
    pub container: String,
    /// `CNI_NETNS`; may be empty on DEL.
    pub netns: String,
    /// `CNI_IFNAME`.
    pub if_name: String,
    /// `CNI_ARGS`.
    pub args: CniArgs,
    /// `CNI_PATH`, in order.
    pub path: Vec<PathBuf>,
    /// The configuration on stdin.
    pub conf: Object,
    /// The trace that the call is part of.
    pub trace: Trace,
}

/// What the environment says before any verb is run.
#[derive(Debug)]
pub enum Asked {
    /// No `CNI_COMMAND`: somebody started the plugin by hand.
    About,
    /// VERSION: stdin is not read.
    Version,
    /// A verb with its configuration.
    Call(Box<Invocation>),
}

impl Asked {
    /// Reads and checks environment and stdin. Nothing is touched.
    ///
    /// # Errors
    /// [`Error::Environment`] (all missing variables in one message, or an invalid value), [`Error::Decode`] (stdin),
    /// [`Error::Config`] (name), [`Error::Netns`] (the namespace is our own).
    pub fn read(env: impl Fn(&str) -> Option<String>, mut stdin: impl Read) -> Result<Self, Error> {
        let var = |key: &str| env(key).unwrap_or_default();
        let command = match env("CNI_COMMAND") {
            // An empty value is no value, here as for the other variables (skel).
            None => return Ok(Self::About),
            Some(text) if text.is_empty() => return Ok(Self::About),
            Some(text) => Command::parse(&text)?,
        };
        if command == Command::Version {
            return Ok(Self::Version);
        }
        let absent: Vec<&str> = command.required().iter().copied().filter(|key| var(key).is_empty()).collect();
        if !absent.is_empty() {
            return Err(missing(&absent));
        }
        if command.required().contains(&"CNI_CONTAINERID") {
            check_container_id(&var("CNI_CONTAINERID"))?;
            check_interface_name(&var("CNI_IFNAME")).map_err(Error::Environment)?;
        }
        let mut text = Vec::new();
        stdin.read_to_end(&mut text).map_err(|source| Error::io("read", "stdin", source))?;
        let conf = Object::parse(STDIN, &text)?;
        // skel decodes these two by themselves: one that is no text does not parse.
        let protocol = |key| conf.text(key).map_err(|problem| Error::decode(STDIN, problem));
        check_network_name(&protocol("name")?)?;
        protocol("cniVersion")?;
        // A verb that is about no container has none, whatever the environment says.
        let about_container = command.required().contains(&"CNI_CONTAINERID");
        let of_container = |key: &str| if about_container { var(key) } else { String::new() };
        let netns = of_container("CNI_NETNS");
        let allowed = matches!(var("CNI_NETNS_OVERRIDE").to_ascii_lowercase().as_str(), "1" | "true");
        if about_container && !allowed && is_own_namespace(Path::new(&netns)) {
            return Err(Error::Netns("plugin's netns and netns from CNI_NETNS should not be the same".to_owned()));
        }
        Ok(Self::Call(Box::new(Invocation {
            command,
            container: of_container("CNI_CONTAINERID"),
            netns,
            if_name: of_container("CNI_IFNAME"),
            args: CniArgs::parse(&of_container("CNI_ARGS"))?,
            path: std::env::split_paths(&var("CNI_PATH")).filter(|dir| !dir.as_os_str().is_empty()).collect(),
            conf,
            trace: Trace::read(env(TRACEPARENT).as_deref()),
        })))
    }
}

fn missing(variables: &[&str]) -> Error {
    Error::Environment(format!("required env variables [{}] missing", variables.join(",")))
}

fn is_word(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'))
}

/// Checks the ID of a container (libcni `ValidateContainerID`).
///
/// # Errors
/// [`Error::Environment`] with libcni's text.
pub fn check_container_id(id: &str) -> Result<(), Error> {
    if is_word(id) { Ok(()) } else { Err(Error::Environment(format!("invalid characters in containerID: {id}"))) }
}

/// Checks the name of a network (libcni `ValidateNetworkName`).
///
/// # Errors
/// [`Error::Config`] with libcni's texts.
pub fn check_network_name(name: &str) -> Result<(), Error> {
    if name.is_empty() {
        return Err(Error::Config("missing network name".to_owned()));
    }
    if is_word(name) { Ok(()) } else { Err(Error::Config(format!("invalid characters found in network name: {name}"))) }
}

/// Checks the name of an interface (libcni `ValidateInterfaceName`, the kernel's `dev_valid_name`), and that it is no
/// pattern: by `dev%d` the kernel would choose a name, and we would not know it.
///
/// # Errors
/// A text that says what is wrong with it.
pub fn check_interface_name(name: &str) -> Result<(), String> {
    if name.is_empty() {
        return Err("interface name is empty".to_owned());
    }
    if name.len() > 15 {
        return Err(format!(
            "interface name is too long: \"{name}\" has {} bytes, at most 15 are possible",
            name.len()
        ));
    }
    if name == "." || name == ".." {
        return Err("interface name is . or ..".to_owned());
    }
    if name.contains(|c: char| c == '/' || c == ':' || c.is_whitespace()) {
        return Err(format!("interface name contains / or : or whitespace characters: \"{name}\""));
    }
    if name.contains(|c: char| c == '%' || c.is_control()) {
        return Err(format!("interface name contains % or control characters: {name:?}"));
    }
    Ok(())
}

/// Whether a path is the network namespace we run in. A path that cannot be opened is not (DEL works with it gone).
fn is_own_namespace(path: &Path) -> bool {
    let (Ok(own), Ok(other)) = (std::fs::metadata("/proc/self/ns/net"), std::fs::metadata(path)) else { return false };
    (own.dev(), own.ino()) == (other.dev(), other.ino())
}
