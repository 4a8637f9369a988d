//! The journal's files: records of attachments, a directory for each container, and configurations by their hash.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};

use super::{Call, Entry, Record, form};
use crate::{
    cni::{Error, Object, PluginList},
    files,
    node::Layout,
};

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
            let text = match fs::read(&path) {
                Ok(text) => text,
                // A DEL removed it: whoever only looks has no lock.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                Err(source) => return Err(Error::io("read", path.display(), source)),
            };
            entries.push(match form::read(&text, &call, &interface) {
                Ok(record) => Entry::Good(Box::new(record)),
                Err(problem) => {
                    tracing::warn!(file = %path.display(), %problem, "the record cannot be read");
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
        let text = form::write(record)?;
        let directory = self.sandboxes.join(&record.call.container);
        if !directory.is_dir() {
            files::create_directory(&directory, 0o700)?;
            if durable {
                sync_directory(&self.sandboxes)?;
            }
        }
        files::replace(&path, &text, 0o600, durable)
    }

    /// Removes the record of an attachment that was undone. One of a newer release stays: there may be more to undo, which
    /// only that release knows of. It is marked as owed.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn remove(&self, record: &Record) -> Result<(), Error> {
        let path = self.path(&record.call, &record.interface);
        if !record.is_newer() {
            return remove_file(&path);
        }
        say_that_it_stays(&path, record.format);
        let mut left = record.clone();
        if left.leave_to_newer() { self.write(&left, true) } else { Ok(()) }
    }

    /// Removes the file of a record that cannot be read, after all was undone that is known of it elsewhere. One of a newer
    /// release stays as it is.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn remove_torn(&self, path: &Path) -> Result<(), Error> {
        match newer_at(path) {
            Some(format) => {
                say_that_it_stays(path, format);
                Ok(())
            }
            None => remove_file(path),
        }
    }

    /// What is wrong with a record that cannot be read, and what to do.
    #[must_use]
    pub fn unreadable(&self, path: &Path) -> Error {
        let problem = match newer_at(path) {
            Some(format) => format!("a newer release of meta-cni wrote it (format {format}): install that one again"),
            None => "the record is torn: DEL repairs it".to_owned(),
        };
        Error::decode(path.display().to_string(), problem)
    }

    /// Refuses to attach anew what a newer release has a record of: the new record would take its place.
    ///
    /// # Errors
    /// [`Error::Config`] that says what to do.
    pub fn refuse_newer(&self, entries: &[Entry]) -> Result<(), Error> {
        for entry in entries {
            let path = self.path(entry.call(), entry.interface());
            let format = match entry {
                Entry::Good(record) => record.is_newer().then_some(record.format),
                Entry::Torn { path, .. } => newer_at(path),
            };
            if let Some(format) = format {
                return Err(Error::Config(format!(
                    "container {} has a record of {} that a newer release of meta-cni wrote (format {format}), and that this one must not replace: install the newer release again, whose GC removes it; or, if that is not to come back, remove {}",
                    entry.call().container,
                    entry.interface(),
                    path.display()
                )));
            }
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

    /// Removes the configurations that no record names. With a torn record, or one of a newer release, there is no telling
    /// which these are.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn forget_unused_confs(&self) -> Result<(), Error> {
        let _alone = self.hold_confs(true)?;
        let mut used = BTreeSet::new();
        for container in self.containers()? {
            for entry in self.of_container(&container)? {
                match entry {
                    Entry::Good(record) if !record.is_newer() => drop(used.insert(record.conf_hash)),
                    Entry::Good(_) | Entry::Torn { .. } => return Ok(()),
                }
            }
        }
        for name in names_in(&self.confs)?.iter().filter(|name| !used.contains(*name)) {
            files::remove(&self.confs.join(name))?;
        }
        Ok(())
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

/// Removes a record's file, and its container's directory with the last one.
fn remove_file(path: &Path) -> Result<(), Error> {
    files::remove(path)?;
    if let Some(directory) = path.parent() {
        // ENOTEMPTY: other attachments are left.
        let _ = fs::remove_dir(directory);
    }
    Ok(())
}

/// The format of the record in a file, if it is a newer one than ours.
fn newer_at(path: &Path) -> Option<u32> {
    form::newer(&fs::read(path).ok()?)
}

fn say_that_it_stays(path: &Path, format: u32) {
    tracing::warn!(
        file = %path.display(),
        format,
        "a newer release wrote this record: what is known of it here is undone, and it is kept; install that release again, whose GC undoes the rest, or remove the file"
    );
}
