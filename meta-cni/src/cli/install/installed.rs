//! What installers of ours put among the plugins, remembered in our state: so what others put there since is told from it.

use std::{
    collections::BTreeMap,
    fs::{self, File, Metadata},
    io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};

use super::host::{self, Host};
use crate::cni::Error;

/// Its file, in our state.
const FILE: &str = "installed.json";
/// How many earlier programs are remembered.
const MEMORY: usize = 16;

/// What was installed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Installed {
    /// The digest of the program that was put there last.
    pub(super) program: String,
    /// Those of earlier ones: further names may be copies of these still.
    before: Vec<String>,
    /// What another release remembers besides.
    #[serde(flatten)]
    unknown: Map<String, Value>,
}

impl Installed {
    fn path(host: &Host) -> PathBuf {
        host.seen(&host.state).join(FILE)
    }

    /// Reads it; none if it is not there, or no longer what we wrote.
    pub(super) fn read(host: &Host) -> Option<Self> {
        serde_json::from_slice(&fs::read(Self::path(host)).ok()?).ok()
    }

    /// Writes it, if it is another than before.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(super) fn write(&self, host: &Host) -> Result<(), Error> {
        let text = serde_json::to_vec_pretty(self).map_err(|problem| Error::decode(FILE, problem))?;
        host::place(&Self::path(host), &text, 0o600).map(drop)
    }

    /// Removes it.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(super) fn remove(host: &Host) -> Result<(), Error> {
        host::remove(&Self::path(host)).map(drop)
    }

    /// Notes which program is going to be put there.
    pub(super) fn put(&mut self, program: &str) {
        let earlier = std::mem::replace(&mut self.program, program.to_owned());
        if earlier != program && !earlier.is_empty() {
            self.before.retain(|other| *other != earlier);
            self.before.push(earlier);
            self.before.drain(..self.before.len().saturating_sub(MEMORY));
        }
    }

    /// Whether a program of this digest was put there once.
    pub(super) fn knows(&self, program: &str) -> bool {
        self.program == program || self.before.iter().any(|earlier| earlier == program)
    }
}

/// The digests of files, read again only when a file was touched: the programs are large, and looked at every few seconds.
#[derive(Debug, Default)]
pub(super) struct Digests(BTreeMap<PathBuf, (Stamp, String)>);

/// What a write to a file changes.
type Stamp = (u64, u64, u64, (i64, i64), (i64, i64));

fn stamp(there: &Metadata) -> Stamp {
    let (modified, changed) = ((there.mtime(), there.mtime_nsec()), (there.ctime(), there.ctime_nsec()));
    (there.dev(), there.ino(), there.size(), modified, changed)
}

impl Digests {
    /// The digest of a plain file; none if there is none, or it cannot be read.
    pub(super) fn of(&mut self, path: &Path) -> Option<String> {
        fs::symlink_metadata(path).ok().filter(Metadata::is_file)?;
        self.of_opened(path).ok()
    }

    /// The digest of what a path leads to.
    ///
    /// # Errors
    /// That it cannot be read.
    pub(super) fn of_opened(&mut self, path: &Path) -> io::Result<String> {
        let mut file = File::open(path)?;
        let now = stamp(&file.metadata()?);
        if let Some((then, digest)) = self.0.get(path)
            && *then == now
        {
            return Ok(digest.clone());
        }
        let mut hash = Sha256::new();
        io::copy(&mut file, &mut hash)?;
        let digest: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        self.0.insert(path.to_owned(), (now, digest.clone()));
        Ok(digest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn earlier_programs_are_known() {
        let mut installed = Installed::default();
        for program in ["a", "b", "a", "c", "c"] {
            installed.put(program);
        }
        assert_eq!((installed.program.as_str(), installed.before.as_slice()), ("c", &["b".to_owned(), "a".into()][..]));
        assert!(["a", "b", "c"].iter().all(|program| installed.knows(program)) && !installed.knows("d"));
        (0..2 * MEMORY).for_each(|number| installed.put(&number.to_string()));
        assert!(installed.before.len() == MEMORY && !installed.knows("c"));
    }

    #[test]
    fn what_another_release_remembers_stays() {
        let text = r#"{"program":"a","before":[],"signed":{"by":"x"}}"#;
        let mut installed: Installed = serde_json::from_str(text).unwrap();
        installed.put("b");
        let written = r#"{"program":"b","before":["a"],"signed":{"by":"x"}}"#;
        assert_eq!(serde_json::to_string(&installed).unwrap(), written);
        // What it lacks is nothing.
        assert_eq!(serde_json::from_str::<Installed>("{}").unwrap(), Installed::default());
    }

    #[test]
    fn a_file_that_was_touched_is_read_again() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("file");
        let mut digests = Digests::default();
        assert_eq!(digests.of(&path), None);
        fs::write(&path, "one").unwrap();
        let one = digests.of(&path).unwrap();
        assert_eq!(one, "7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed");
        assert_eq!(digests.of(&path), Some(one.clone()));
        fs::write(&path, "other").unwrap();
        assert_ne!(digests.of(&path), Some(one));
        std::os::unix::fs::symlink("file", root.path().join("link")).unwrap();
        assert_eq!(digests.of(&root.path().join("link")), None);
    }
}
