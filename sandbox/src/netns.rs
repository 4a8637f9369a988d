//! A network namespace, held by a descriptor. No code of ours runs "in" one: whoever needs something done inside gives
//! a closure, which runs on a thread of its own that enters, works and ends.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::errno::Errno;
use nix::sys::statfs::{FsType, fstatfs};
use serde::{Deserialize, Serialize};

use crate::{Error, raw};

/// `NSFS_MAGIC` of linux/magic.h: the file system on which namespaces live.
const NSFS: i64 = 0x6e73_6673;

/// What identifies a namespace in a record. The inode alone does not: it is reused at once after the namespace died.
/// The cookie does, within one boot, so a record also carries the boot id, and its owner checks that the path still
/// leads here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetnsId {
    /// The path it was opened by.
    pub path: PathBuf,
    /// Device number of nsfs.
    pub dev: u64,
    /// Inode on nsfs.
    pub inode: u64,
    /// SO_NETNS_COOKIE, given once in a boot. None before Linux 5.14, and where it was not asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cookie: Option<u64>,
}

impl NetnsId {
    /// True while the path leads to this namespace. Another errno than "gone" is an error: a namespace that cannot be
    /// looked at must not be taken for dead.
    pub fn is_alive(&self) -> Result<bool, Error> {
        match Netns::open(&self.path) {
            Ok(now) => self.is_of(&now),
            Err(Error::NamespaceGone { .. } | Error::NotANamespace { .. }) => Ok(false),
            Err(other) => Err(other),
        }
    }

    /// True if the open namespace is this one, whatever its path. The cookie decides where both are known, and is asked
    /// for only if it can.
    pub fn is_of(&self, open: &Netns) -> Result<bool, Error> {
        if (open.id.dev, open.id.inode) != (self.dev, self.inode) {
            return Ok(false);
        }
        let Some(then) = self.cookie else { return Ok(true) };
        Ok(open.identify()?.cookie.is_none_or(|now| now == then))
    }
}

/// An open network namespace. Clones share the descriptor; the namespace lives at least as long as they do.
#[derive(Debug, Clone)]
pub struct Netns {
    inner: Arc<netns_rs::NetNs>,
    id: NetnsId,
}

impl Netns {
    /// Opens the namespace at `path` (a bind mount such as /run/netns/NAME, or /proc/PID/ns/net). Fails with
    /// [`Error::NamespaceGone`] if there is nothing, [`Error::NotANamespace`] if it is something else.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref();
        let inner = netns_rs::get_from_path(path).map_err(|error| open_error(path, error))?;
        Self::checked(inner, path.to_owned())
    }

    /// The namespace of the calling thread.
    pub fn current() -> Result<Self, Error> {
        let path = PathBuf::from("/proc/thread-self/ns/net");
        let inner = netns_rs::get_from_current_thread().map_err(|error| open_error(&path, error))?;
        Self::checked(inner, path)
    }

    fn checked(inner: netns_rs::NetNs, path: PathBuf) -> Result<Self, Error> {
        let at = |step, source| Error::Namespace { step, path: path.clone(), source };
        let kind: FsType = fstatfs(inner.file()).map_err(|e| at("look at", e.into()))?.filesystem_type();
        // The width of f_type differs between architectures.
        #[allow(clippy::unnecessary_cast)]
        let fs_type = kind.0 as i64;
        if fs_type != NSFS {
            return Err(Error::NotANamespace { path, fs_type });
        }
        let meta = inner.file().metadata().map_err(|e| at("look at", e))?;
        let id = NetnsId { path, dev: meta.dev(), inode: meta.ino(), cookie: None };
        Ok(Self { inner: Arc::new(inner), id })
    }

    /// What tells it from others; with its cookie if that was asked for ([`Netns::identified`]).
    pub fn id(&self) -> &NetnsId {
        &self.id
    }

    /// What to write into a record: with its cookie, where the kernel has one. Enters the namespace for a moment, unless
    /// the cookie is known.
    pub fn identify(&self) -> Result<NetnsId, Error> {
        if self.id.cookie.is_some() {
            return Ok(self.id.clone());
        }
        let failed = |source| Error::Namespace { step: "identify", path: self.id.path.clone(), source };
        let cookie = self.run("identify a namespace", || {
            // Any kind of socket belongs to the namespace it was made in.
            let socket = UnixDatagram::unbound().map_err(failed)?;
            raw::netns_cookie(&socket).map_err(failed)
        })?;
        Ok(NetnsId { cookie, ..self.id.clone() })
    }

    /// The same, knowing its cookie.
    pub fn identified(self) -> Result<Self, Error> {
        Ok(Self { id: self.identify()?, ..self })
    }

    /// The same with the cookie that a socket inside has told.
    pub(crate) fn with_cookie(&self, cookie: Option<u64>) -> Self {
        Self { inner: Arc::clone(&self.inner), id: NetnsId { cookie, ..self.id.clone() } }
    }

    /// The path it was opened by.
    pub fn path(&self) -> &Path {
        &self.id.path
    }

    /// True if both are the same namespace, by whatever path. Both are open, so neither inode can have been reused.
    pub fn same_as(&self, other: &Netns) -> bool {
        self.id.dev == other.id.dev && self.id.inode == other.id.inode
    }

    /// Runs `work` inside the namespace, on a thread that ends with it. The caller's thread stays where it is.
    pub fn run<T, F>(&self, step: &'static str, work: F) -> Result<T, Error>
    where
        T: Send,
        F: FnOnce() -> Result<T, Error> + Send,
    {
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new()
                .name("in-netns".to_owned())
                .spawn_scoped(scope, || {
                    self.inner.enter().map_err(|error| Error::Namespace {
                        step: "enter",
                        path: self.id.path.clone(),
                        source: source_of(error),
                    })?;
                    work()
                })
                .map_err(|source| Error::Thread { step, source })?;
            thread.join().map_err(|_| Error::Thread { step, source: io::Error::other("it panicked") })?
        })
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inner.file().as_fd()
    }
}

impl AsRawFd for Netns {
    fn as_raw_fd(&self) -> RawFd {
        self.inner.file().as_raw_fd()
    }
}

/// The errno inside an error of netns-rs, which brings its own version of nix.
fn source_of(error: netns_rs::Error) -> io::Error {
    use netns_rs::Error as E;
    match error {
        E::CreateNsDirError(source) | E::CreateNsError(source) | E::OpenNsError(_, source) => source,
        E::CloseNsError(errno)
        | E::MountError(_, errno)
        | E::UnmountError(_, errno)
        | E::UnshareError(errno)
        | E::SetnsError(errno) => io::Error::from_raw_os_error(errno as i32),
        E::JoinThreadError(text) => io::Error::other(text),
    }
}

fn open_error(path: &Path, error: netns_rs::Error) -> Error {
    let source = source_of(error);
    let path = path.to_owned();
    // ESRCH and ENOTDIR: /proc/PID/ns/net of a process that ends just now, or a directory that became a file.
    match source.raw_os_error().map(Errno::from_raw) {
        Some(Errno::ENOENT | Errno::ENOTDIR | Errno::ESRCH) => Error::NamespaceGone { path, source },
        _ => Error::Namespace { step: "open", path, source },
    }
}
