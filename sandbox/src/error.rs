//! What can go wrong on the kernel side. Every variant keeps the errno and names the step and the object.

use std::io;
use std::net::IpAddr;
use std::path::PathBuf;

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The path of a namespace leads nowhere: it was deleted, or its process has ended.
    #[error("network namespace {} is gone: {source}", path.display())]
    NamespaceGone {
        /// The path that was opened.
        path: PathBuf,
        /// What open(2) said.
        source: io::Error,
    },
    /// The path exists, but is no namespace: what is left of a bind mount after a reboot is a plain file.
    #[error("{} is not a network namespace (file system type {fs_type:#x}, wanted nsfs)", path.display())]
    NotANamespace {
        /// The path that was opened.
        path: PathBuf,
        /// `f_type` of fstatfs(2).
        fs_type: i64,
    },
    /// A namespace could not be opened, looked at or entered.
    #[error("cannot {step} network namespace {}: {source}", path.display())]
    Namespace {
        /// What was tried.
        step: &'static str,
        /// The path the namespace was opened by.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A thread could not be started, or panicked.
    #[error("a thread to {step} failed: {source}")]
    Thread {
        /// What the thread was for.
        step: &'static str,
        /// The cause.
        source: io::Error,
    },
    /// A netlink socket could not be made or used.
    #[error("netlink socket: cannot {step}: {source}")]
    Socket {
        /// What was tried.
        step: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// The kernel refused a request.
    #[error("cannot {step} ({object}): {source}{}", detail.as_ref().map(|d| format!(": {d}")).unwrap_or_default())]
    Kernel {
        /// What was asked for.
        step: String,
        /// The link, address or route it was asked for.
        object: String,
        /// The errno of the answer.
        source: io::Error,
        /// The text of the extended acknowledgement, if the kernel sent one.
        detail: Option<String>,
    },
    /// The answer could not be understood, did not come in time, or the socket closed.
    #[error("no usable answer when asked to {step} ({object}): {what}")]
    Answer {
        /// What was asked for.
        step: String,
        /// The object it was asked for.
        object: String,
        /// What is wrong with the answer.
        what: String,
    },
    /// A sysctl could not be read or written.
    #[error("sysctl net/{key}: {source}")]
    Sysctl {
        /// The key below /proc/sys/net.
        key: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The neighbours could not be told of an address.
    #[error("cannot announce {address} on {name}: {source}")]
    Announce {
        /// The address.
        address: IpAddr,
        /// Its interface.
        name: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The neighbours could not be asked whether an address is theirs.
    #[error("cannot ask on {name} whether its addresses are somebody else's: {source}")]
    Probe {
        /// The interface.
        name: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// An interface that has to be there is not.
    #[error("no interface {name} in the network namespace")]
    NoSuchLink {
        /// Its name.
        name: String,
    },
    /// A string that cannot be the name of an interface.
    #[error("interface name {name:?} {why}")]
    BadName {
        /// What was given.
        name: String,
        /// The rule it breaks.
        why: &'static str,
    },
    /// A string that is no Ethernet address.
    #[error("{text:?} is not a MAC address (want six bytes in hexadecimal, aa:bb:cc:dd:ee:ff)")]
    BadMac {
        /// What was given.
        text: String,
    },
    /// The kernel accepted the change and yet the state is another.
    #[error("{object}: wanted {wanted}, found {found}")]
    Unverified {
        /// What was looked at.
        object: String,
        /// What it should be.
        wanted: String,
        /// What it is.
        found: String,
    },
}

impl Error {
    /// The errno behind the error, if the kernel gave one.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Error::NamespaceGone { source, .. }
            | Error::Namespace { source, .. }
            | Error::Thread { source, .. }
            | Error::Socket { source, .. }
            | Error::Kernel { source, .. }
            | Error::Announce { source, .. }
            | Error::Probe { source, .. }
            | Error::Sysctl { source, .. } => source.raw_os_error(),
            Error::NotANamespace { .. }
            | Error::Answer { .. }
            | Error::NoSuchLink { .. }
            | Error::BadName { .. }
            | Error::BadMac { .. }
            | Error::Unverified { .. } => None,
        }
    }
}
