//! What the address pools held when the machine booted: listed once in a boot, before anything of ours gives out an
//! address. Only what is on these lists can be left of an earlier boot; no time of a file is asked for that.
//!
//! `RUN/boot/BOOT_ID` has one file for each pool, whole or not there, and never written twice; `listed` says that all
//! pools have theirs. Whoever dies before it is written leaves the rest to the next verb. One more has the sandboxes that
//! the journal knew; it is there until the last of them is detached.

use std::{
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use ipam::Lease;
use sha2::{Digest as _, Sha256};

use crate::{cni::Error, files};

/// The file that says that all pools are listed.
const LISTED: &str = "listed";
/// What the list of a journal's sandboxes begins with.
const SANDBOXES: &str = "sandboxes";
/// So much of a pool's name is in the name of its list, for people.
const NAME_SHOWN: usize = 100;

/// The lists of this boot.
#[derive(Debug, Clone)]
pub struct BootLists {
    root: PathBuf,
    directory: PathBuf,
}

/// One pool as it was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolAtBoot {
    /// The pool's directory.
    pub directory: PathBuf,
    /// Whether it was known for a pool of networks that we attach. Others are another runtime's.
    pub ours: bool,
    /// Its leases, but for those that name nobody, or that no plugin wrote.
    pub leases: Vec<Lease>,
}

/// What a list is about.
enum Listed {
    Pool(PoolAtBoot),
    Scratch(PathBuf, Vec<String>),
}

impl BootLists {
    /// The lists of a boot below `root`.
    #[must_use]
    pub fn new(root: PathBuf, boot_id: &str) -> Self {
        Self { directory: root.join(boot_id), root }
    }

    /// Whether all pools are listed.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.directory.join(LISTED).exists()
    }

    /// Makes the directory, and waits until nobody else of ours writes lists. Removes those of other boots, and drafts.
    /// The lock is held until the file returned is dropped.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn begin(&self) -> Result<fs::File, Error> {
        files::create_directory(&self.directory, 0o700)?;
        let failed = |step, source| Error::io(step, self.root.display(), source);
        let lock = fs::File::open(&self.root).map_err(|source| failed("open", source))?;
        lock.lock().map_err(|source| failed("lock", source))?;
        for entry in fs::read_dir(&self.root).map_err(|source| failed("read", source))?.flatten() {
            if entry.path() != self.directory {
                // What stays is a few small files that nobody reads.
                let _ = fs::remove_dir_all(entry.path());
            }
        }
        for entry in fs::read_dir(&self.directory).map_err(|source| failed("read", source))?.flatten() {
            if entry.file_name().to_string_lossy().starts_with('.') {
                let _ = fs::remove_file(entry.path());
            }
        }
        Ok(lock)
    }

    /// Writes down what a pool holds, unless that was done before in this boot.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn note_pool(&self, pool: &Path, ours: bool, leases: &[Lease]) -> Result<(), Error> {
        let mut text = format!("pool {} {}\n", if ours { "ours" } else { "other" }, pool.display());
        for lease in leases.iter().filter(|lease| !lease.is_foreign()) {
            // One that names nobody is free, whenever it was left.
            let Some(container) = &lease.container else { continue };
            let interface = lease.interface.as_deref().unwrap_or_default();
            text.push_str(format!("{} {container} {interface}", lease.address).trim_end());
            text.push('\n');
        }
        self.note(pool, &text)
    }

    /// Writes down the containers that Flannel's plugin has files of, unless that was done before in this boot.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn note_scratch(&self, directory: &Path, containers: &[String]) -> Result<(), Error> {
        self.note(directory, &format!("scratch ours {}\n{}\n", directory.display(), containers.join("\n")))
    }

    /// Writes down the containers that a journal knew, and the second of the machine's life in which that was; nothing if
    /// it knew none.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn note_sandboxes(&self, journal: &Path, containers: &[String], second: i64) -> Result<(), Error> {
        if containers.is_empty() {
            return Ok(());
        }
        self.note(journal, &format!("{SANDBOXES} {second} {}\n{}\n", journal.display(), containers.join("\n")))
    }

    /// The containers that a journal knew at boot, and when that was written down. Nothing if none of them is left.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn sandboxes(&self, journal: &Path) -> Result<Option<(i64, Vec<String>)>, Error> {
        let path = self.path(journal);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(Error::io("read", path.display(), source)),
        };
        let mut lines = text.lines();
        let second = lines.next().and_then(|head| head.split(' ').nth(1)?.parse().ok()).unwrap_or_default();
        Ok(Some((second, lines.map(str::to_owned).collect())))
    }

    /// Says that none of them is left.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn forget_sandboxes(&self, journal: &Path) -> Result<(), Error> {
        let path = self.path(journal);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::io("remove", path.display(), error)),
            _ => Ok(()),
        }
    }

    /// Says that all is listed.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn complete(&self) -> Result<(), Error> {
        self.publish(&self.directory.join(LISTED), "")
    }

    /// For a plugin that has this one pool alone: lists it at its first verb, unless all pools are listed.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Address`].
    pub fn note_own_pool(&self, store: &ipam::Store, pool: &Path) -> Result<(), Error> {
        if self.is_complete() || self.path(pool).exists() {
            return Ok(());
        }
        files::create_directory(&self.directory, 0o700)?;
        self.note_pool(pool, true, &store.leases()?)
    }

    /// The pools that were listed.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn pools(&self) -> Result<Vec<PoolAtBoot>, Error> {
        Ok(self
            .read()?
            .into_iter()
            .filter_map(|listed| if let Listed::Pool(pool) = listed { Some(pool) } else { None })
            .collect())
    }

    /// The containers that Flannel's plugin had files of in a directory.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn scratch(&self, directory: &Path) -> Result<Vec<String>, Error> {
        let of_directory = |listed| match listed {
            Listed::Scratch(of, containers) if of == directory => Some(containers),
            _ => None,
        };
        Ok(self.read()?.into_iter().find_map(of_directory).unwrap_or_default())
    }

    fn read(&self) -> Result<Vec<Listed>, Error> {
        let entries = match fs::read_dir(&self.directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(source) => return Err(Error::io("read", self.directory.display(), source)),
        };
        let mut lists = Vec::new();
        for entry in entries.flatten().filter(|entry| !entry.file_name().to_string_lossy().starts_with('.')) {
            let path = entry.path();
            let text = fs::read_to_string(&path).map_err(|source| Error::io("read", path.display(), source))?;
            lists.extend(parse(&text));
        }
        Ok(lists)
    }

    fn path(&self, pool: &Path) -> PathBuf {
        let name: String = pool.file_name().unwrap_or_default().to_string_lossy().chars().take(NAME_SHOWN).collect();
        let digest = Sha256::digest(pool.as_os_str().as_encoded_bytes());
        let digest: String = digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        self.directory.join(format!("{name}-{digest}"))
    }

    fn note(&self, pool: &Path, text: &str) -> Result<(), Error> {
        self.publish(&self.path(pool), text)
    }

    /// Makes a file, whole from the start. One that is there was right when it was made.
    fn publish(&self, path: &Path, text: &str) -> Result<(), Error> {
        let write = || -> io::Result<()> {
            let mut draft = tempfile::Builder::new().prefix(".tmp-").tempfile_in(&self.directory)?;
            draft.write_all(text.as_bytes())?;
            match draft.persist_noclobber(path) {
                Err(error) if error.error.kind() != io::ErrorKind::AlreadyExists => Err(error.error),
                _ => Ok(()),
            }
        };
        write().map_err(|source| Error::io("write", path.display(), source))
    }
}

fn parse(text: &str) -> Option<Listed> {
    let mut lines = text.lines();
    let mut head = lines.next()?.splitn(3, ' ');
    let (kind, ours, directory) = (head.next()?, head.next()? == "ours", PathBuf::from(head.next()?));
    match kind {
        "pool" => {}
        "scratch" => {
            return Some(Listed::Scratch(
                directory,
                lines.filter(|name| !name.is_empty()).map(str::to_owned).collect(),
            ));
        }
        // Something that a newer release lists.
        _ => return None,
    }
    let lease = |line: &str| {
        let mut words = line.split(' ').map(str::to_owned);
        let address = words.next()?.parse().ok()?;
        Some(Lease { address, container: Some(words.next()?), interface: words.next() })
    };
    Some(Listed::Pool(PoolAtBoot { directory, ours, leases: lines.filter_map(lease).collect() }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(address: &str, container: Option<&str>, interface: Option<&str>) -> Lease {
        let owned = |text: Option<&str>| text.map(str::to_owned);
        Lease { address: address.parse().unwrap(), container: owned(container), interface: owned(interface) }
    }

    #[test]
    fn a_list_is_read_as_it_was_written_and_written_once() {
        let root = tempfile::tempdir().unwrap();
        let lists = BootLists::new(root.path().join("boot"), "b1");
        assert!(lists.pools().unwrap().is_empty());
        let _held = lists.begin().unwrap();
        let pool = Path::new("/var/lib/cni/networks/with blank");
        let held = [lease("10.0.0.2", Some("c1"), Some("eth0")), lease("fd00::2", Some("old"), None)];
        let words = lease("10.0.0.9", Some("for the printer"), None);
        let all = [held[0].clone(), lease("10.0.0.3", None, None), words, held[1].clone()];
        lists.note_pool(pool, true, &all).unwrap();
        lists.note_pool(pool, true, &[lease("10.0.0.4", Some("late"), Some("eth0"))]).unwrap();
        lists.note_scratch(Path::new("/var/lib/cni/flannel"), &["c1".to_owned(), "c2".to_owned()]).unwrap();
        let expected = PoolAtBoot { directory: pool.to_owned(), ours: true, leases: held.to_vec() };
        assert_eq!(lists.pools().unwrap(), [expected]);
        assert_eq!(lists.scratch(Path::new("/var/lib/cni/flannel")).unwrap(), ["c1", "c2"]);
        assert!(!lists.is_complete());
        lists.complete().unwrap();
        assert!(lists.is_complete());
    }

    #[test]
    fn the_sandboxes_of_a_journal_are_on_a_list_of_their_own_until_none_is_left() {
        let root = tempfile::tempdir().unwrap();
        let lists = BootLists::new(root.path().join("boot"), "b1");
        let journal = Path::new("/var/lib/cni/meta-cni/sandboxes");
        let _held = lists.begin().unwrap();
        lists.note_sandboxes(journal, &[], 7).unwrap();
        assert_eq!(lists.sandboxes(journal).unwrap(), None);
        lists.note_sandboxes(journal, &["c1".to_owned(), "c2".to_owned()], 7).unwrap();
        assert_eq!(lists.sandboxes(journal).unwrap(), Some((7, vec!["c1".to_owned(), "c2".to_owned()])));
        assert!(lists.pools().unwrap().is_empty());
        lists.forget_sandboxes(journal).unwrap();
        lists.forget_sandboxes(journal).unwrap();
        assert_eq!(lists.sandboxes(journal).unwrap(), None);
    }

    #[test]
    fn what_a_newer_release_lists_besides_is_passed_over() {
        assert!(parse("leases ours /x\n10.0.0.2 c1 eth0\n").is_none());
        let Some(Listed::Pool(pool)) = parse("pool ours /x\n10.0.0.2 c1 eth0 since=9\nnot-an-address c2 eth0\n") else {
            panic!("a pool")
        };
        assert_eq!((pool.ours, pool.leases), (true, vec![lease("10.0.0.2", Some("c1"), Some("eth0"))]));
    }

    #[test]
    fn lists_of_another_boot_and_drafts_are_removed() {
        let root = tempfile::tempdir().unwrap();
        let old = BootLists::new(root.path().to_owned(), "b1");
        drop(old.begin().unwrap());
        old.complete().unwrap();
        let lists = BootLists::new(root.path().to_owned(), "b2");
        fs::create_dir(root.path().join("b2")).unwrap();
        fs::write(root.path().join("b2/.tmp-x"), "half").unwrap();
        drop(lists.begin().unwrap());
        let names: Vec<_> = fs::read_dir(root.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["b2"]);
        assert_eq!(fs::read_dir(root.path().join("b2")).unwrap().count(), 0);
    }
}
