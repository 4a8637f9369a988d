//! The index by container: who holds which addresses, for a caller that has no records of its own. `owners/CID:IFNAME`
//! says the addresses of one owner. It says too much rather than too little: an entry is written before its leases and
//! removed after them, and whatever it says is verified by the lease files before anything is done by it. The link
//! `complete` says that every lease of ours, and every one that was there when the index was made, has its entry.
//!
//! Other programs make and remove leases, too. What they removed is found out by verifying; what they made is no
//! one's here. Whether they were there at all is seen by the stamp of the pool's directory: after each change of ours it
//! gets the index's own time, which the kernel never gives it. While it has that, the index knows every lease; else a
//! release that finds no entry looks into every file, and the index is made again of what it sees.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use crate::beside;
use crate::owner::Claim;
use crate::stamp::Stamp;
use crate::{Error, Owner, address};

/// The directory of the entries.
const OWNERS: &str = "owners";
/// The link that says that none is missing.
const COMPLETE: &str = "complete";
/// What `complete` says besides if the pool has leases of the old format, which name no interface.
const OLD: &str = " old";

/// What an entry says that would be longer than a link can be.
const MANY: &str = "many";
/// Longer ones the kernel refuses (symlink(2)).
const LONGEST: usize = 4095;

/// What the index says of an owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Entry {
    /// Nothing: another program may know more.
    Missing,
    /// These addresses, or some of them.
    Addresses(Vec<IpAddr>),
    /// More than can be said.
    Many,
}

/// The index of one pool. The pool's lock is held as long as it is used.
#[derive(Debug)]
pub(crate) struct Index<'a> {
    /// The pool's directory.
    pool: &'a Path,
    /// Where the index lies.
    beside: PathBuf,
}

/// Proof that an index was found complete, or has just been made so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Complete {
    has_old: bool,
    /// The time that the directory gets after each change of ours; `None` where it cannot have one.
    stamp: Option<Stamp>,
    /// Whether it has it: nobody else has changed anything.
    is_alone: bool,
}

impl Complete {
    /// Whether every lease there is has its entry, those that other programs made included.
    pub(crate) fn knows_all(self) -> bool {
        self.is_alone && !self.has_old
    }
}

impl<'a> Index<'a> {
    /// The index of the pool in `pool`; there may be none.
    pub(crate) fn of(pool: &'a Path) -> Index<'a> {
        Index { pool, beside: beside::beside(pool) }
    }

    /// Whether every lease is known; a directory that took the place of the pool is another pool.
    pub(crate) fn complete(&self) -> Option<Complete> {
        let marker = beside::read(&self.beside.join(COMPLETE))?;
        let found = fs::metadata(self.pool).ok()?;
        let (stamp, has_old) = match marker.strip_suffix(OLD) {
            Some(rest) => (rest, true),
            None => (marker.as_str(), false),
        };
        let stamp = stamp.strip_prefix(&beside::identity(&found))?.strip_prefix(' ')?;
        let stamp = Stamp::parse(stamp);
        Some(Complete { has_old, stamp, is_alone: stamp == Some(Stamp::of(&found)) })
    }

    /// After a change of ours: says that nobody else has made one, if nobody had before it.
    pub(crate) fn stamp(&self, before: Complete) {
        if let Some(stamp) = before.stamp.filter(|_| before.is_alone) {
            // Without it every file is looked into where it matters.
            drop(stamp.set(self.pool));
        }
    }

    /// Whether anybody has used an index here.
    pub(crate) fn exists(&self) -> bool {
        self.beside.join(OWNERS).is_dir()
    }

    /// What the owner may hold by its entry.
    pub(crate) fn entry(&self, owner: &Owner) -> Entry {
        self.read(owner.container(), owner.interface())
    }

    /// What may be held for any interface of the owner's container, in files of the old format.
    pub(crate) fn old_entry(&self, complete: Complete, owner: &Owner) -> Entry {
        if complete.has_old { self.read(owner.container(), "") } else { Entry::Missing }
    }

    /// Writes what an owner holds, or is about to hold. If that is not possible the index is not complete any more.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot even be made to say so.
    pub(crate) fn put(&self, owner: &Owner, addresses: &[IpAddr]) -> Result<(), Error> {
        match self.write(key(owner.container(), owner.interface()), addresses) {
            Ok(()) => Ok(()),
            Err(_) => self.disown(),
        }
    }

    /// Removes an owner's entry. That it is gone is not important: what it says is verified.
    pub(crate) fn drop_entry(&self, owner: &Owner) {
        if let Some(key) = key(owner.container(), owner.interface()) {
            drop(beside::remove(&self.owners().join(key)));
        }
    }

    /// Takes addresses that were given back out of their owner's entry.
    pub(crate) fn forget(&self, owner: &Owner, given_back: &[IpAddr]) -> Result<(), Error> {
        let Entry::Addresses(mut addresses) = self.entry(owner) else { return Ok(()) };
        addresses.retain(|address| !given_back.contains(address));
        if addresses.is_empty() {
            self.drop_entry(owner);
            return Ok(());
        }
        self.put(owner, &addresses)
    }

    /// Makes the index say what the pool says. A process that dies meanwhile leaves one that is not complete.
    ///
    /// # Errors
    /// What the kernel said if it cannot be written; it is not complete then.
    pub(crate) fn rebuild(&self, leases: &[(IpAddr, Claim)]) -> io::Result<Complete> {
        let owners = self.owners();
        beside::make(&owners)?;
        let marker = self.beside.join(COMPLETE);
        beside::remove(&marker)?;
        let mut wanted: BTreeMap<String, Vec<IpAddr>> = BTreeMap::new();
        let mut has_old = false;
        for (address, claim) in leases {
            let key = match claim {
                Claim::Of(owner) => key(owner.container(), owner.interface()),
                Claim::OfContainer(container) => {
                    has_old = true;
                    key(container, "")
                }
                Claim::Foreign(_) | Claim::Orphan => continue,
            };
            wanted.entry(key.ok_or(io::ErrorKind::InvalidFilename)?).or_default().push(*address);
        }
        let mut texts: HashMap<String, String> =
            wanted.into_iter().map(|(key, addresses)| (key, text(&addresses))).collect();
        for name in beside::names(&owners)? {
            let link = owners.join(&name);
            match texts.get(&name) {
                Some(text) if beside::read(&link).as_ref() == Some(text) => drop(texts.remove(&name)),
                Some(_) => {}
                None => beside::remove(&link)?,
            }
        }
        for (name, text) in &texts {
            beside::write(&self.beside, &owners.join(name), text)?;
        }
        let stamp = Stamp::new().and_then(|stamp| stamp.set(self.pool));
        let identity = beside::identity(&fs::metadata(self.pool)?);
        let text = stamp.as_ref().map_or_else(|_| "-".to_owned(), Stamp::to_string);
        beside::write(&self.beside, &marker, &format!("{identity} {text}{}", if has_old { OLD } else { "" }))?;
        Ok(Complete { has_old, stamp: stamp.as_ref().ok().copied(), is_alone: stamp.is_ok() })
    }

    /// What all entries say: container, interface (empty in the old format) and addresses. One that says more than it can
    /// says none.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(crate) fn entries(&self) -> Result<Vec<(String, String, Vec<IpAddr>)>, Error> {
        let owners = self.owners();
        let mut names = beside::names(&owners).map_err(|error| Error::io("list", &owners, error))?;
        names.sort_unstable();
        let entry = |name: &String| {
            let (container, interface) = name.split_once(':')?;
            let addresses = match self.read(container, interface) {
                Entry::Addresses(addresses) => addresses,
                Entry::Missing | Entry::Many => Vec::new(),
            };
            Some((container.to_owned(), interface.to_owned(), addresses))
        };
        Ok(names.iter().filter_map(entry).collect())
    }

    /// Nothing is known for sure any more: the next one to ask makes the index again.
    fn disown(&self) -> Result<(), Error> {
        let marker = self.beside.join(COMPLETE);
        beside::remove(&marker).map_err(|error| Error::io("remove", &marker, error))
    }

    fn owners(&self) -> PathBuf {
        self.beside.join(OWNERS)
    }

    fn read(&self, container: &str, interface: &str) -> Entry {
        let text = key(container, interface).and_then(|key| beside::read(&self.owners().join(key)));
        match text {
            None => Entry::Missing,
            Some(text) if text == MANY => Entry::Many,
            Some(text) => Entry::Addresses(text.split(',').filter_map(address::parse).collect()),
        }
    }

    fn write(&self, key: Option<String>, addresses: &[IpAddr]) -> io::Result<()> {
        let key = key.ok_or(io::ErrorKind::InvalidFilename)?;
        beside::write(&self.beside, &self.owners().join(key), &text(addresses))
    }
}

/// An owner's name in the index; `None` if it cannot be the name of a file. A container ID has no colon.
fn key(container: &str, interface: &str) -> Option<String> {
    (!interface.contains('/')).then(|| format!("{container}:{interface}"))
}

fn text(addresses: &[IpAddr]) -> String {
    let text = addresses.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(",");
    if text.len() > LONGEST { MANY.to_owned() } else { text }
}
