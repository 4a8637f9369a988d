//! What was put among the plugins, and by whom, remembered in our state: so what others put there since is told from it, and
//! of two installers that stay (the old and the new pod of a DaemonSet) the later one decides.

use std::{
    collections::BTreeMap,
    fs::{self, File, Metadata},
    io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::SystemTime,
};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};

use super::{
    credentials::Source,
    host::{self, Host},
};
use crate::cni::Error;

/// Its file, in our state.
const FILE: &str = "installed.json";
/// How many earlier programs, and earlier installers, are remembered.
const MEMORY: usize = 16;

/// What was installed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Installed {
    /// The digest of the program that was put there last.
    pub(super) program: String,
    /// Those of earlier ones: further names may be copies of these still.
    before: Vec<String>,
    /// Who stayed, the latest last.
    keepers: Vec<String>,
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
            note(&mut self.before, earlier);
        }
    }

    /// Whether a program of this digest was put there once.
    pub(super) fn knows(&self, program: &str) -> bool {
        self.program == program || self.before.iter().any(|earlier| earlier == program)
    }

    /// Notes who stays from now on, unless a later one does already. Gives whether one does.
    pub(super) fn is_kept_by_a_later_one(&mut self, keeper: &str) -> bool {
        let at = self.keepers.iter().position(|other| other == keeper);
        if at.is_none() {
            note(&mut self.keepers, keeper.to_owned());
        }
        at.is_some_and(|at| at + 1 < self.keepers.len())
    }
}

/// Adds to what is remembered, and forgets the oldest.
fn note(memory: &mut Vec<String>, text: String) {
    memory.retain(|other| *other != text);
    memory.push(text);
    memory.drain(..memory.len().saturating_sub(MEMORY));
}

/// Who stays: the pod whose token it has, be its container restarted ever so often; else this process.
pub(super) fn keeper(source: Option<&Source>) -> String {
    let token = match source {
        Some(Source::Token { token, .. }) => fs::read_to_string(token).ok(),
        _ => None,
    };
    if let Some(pod) = token.and_then(|token| pod_of(&token)) {
        return format!("pod {pod}");
    }
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    format!("process {} of {}", std::process::id(), now.as_nanos())
}

/// The UID of the pod that a token is bound to.
fn pod_of(token: &str) -> Option<String> {
    let claims: Value = serde_json::from_slice(&decode(token.trim().split('.').nth(1)?)?).ok()?;
    claims["kubernetes.io"]["pod"]["uid"].as_str().map(str::to_owned)
}

/// Reads base64url without padding, as the parts of a token are written.
fn decode(text: &str) -> Option<Vec<u8>> {
    let (mut bytes, mut bits, mut number) = (Vec::new(), 0, 0_u32);
    for letter in text.bytes() {
        let value = match letter {
            b'A'..=b'Z' => letter - b'A',
            b'a'..=b'z' => letter - b'a' + 26,
            b'0'..=b'9' => letter - b'0' + 52,
            b'-' => 62,
            b'_' => 63,
            _ => return None,
        };
        number = number << 6 | u32::from(value);
        bits += 6;
        if bits >= 8 {
            bits -= 8;
            bytes.push(u8::try_from(number >> bits & 0xff).ok()?);
            number &= (1 << bits) - 1;
        }
    }
    Some(bytes)
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
    fn the_later_of_two_who_stay_is_known_whoever_comes_back() {
        let mut installed = Installed::default();
        assert!(!installed.is_kept_by_a_later_one("old"));
        assert!(!installed.is_kept_by_a_later_one("old"));
        assert!(!installed.is_kept_by_a_later_one("new"));
        assert!(installed.is_kept_by_a_later_one("old"));
        assert!(!installed.is_kept_by_a_later_one("new"));
        for number in 0..2 * MEMORY {
            assert!(!installed.is_kept_by_a_later_one(&number.to_string()));
        }
        assert_eq!(installed.keepers.len(), MEMORY);
    }

    #[test]
    fn earlier_programs_are_known() {
        let mut installed = Installed::default();
        for program in ["a", "b", "a", "c", "c"] {
            installed.put(program);
        }
        assert_eq!((installed.program.as_str(), installed.before.as_slice()), ("c", &["b".to_owned(), "a".into()][..]));
        assert!(["a", "b", "c"].iter().all(|program| installed.knows(program)) && !installed.knows("d"));
    }

    #[test]
    fn what_another_release_remembers_stays() {
        let text = r#"{"program":"a","before":[],"keepers":["pod p"],"signed":{"by":"x"}}"#;
        let mut installed: Installed = serde_json::from_str(text).unwrap();
        installed.put("b");
        let written = r#"{"program":"b","before":["a"],"keepers":["pod p"],"signed":{"by":"x"}}"#;
        assert_eq!(serde_json::to_string(&installed).unwrap(), written);
        // What it lacks is nothing.
        assert_eq!(serde_json::from_str::<Installed>("{}").unwrap(), Installed::default());
    }

    #[test]
    fn a_pod_is_known_by_its_token() {
        // {"kubernetes.io":{"pod":{"name":"p","uid":"6e1ad2ac-0c5f-4a8e-9f3c-0f2f3f8c3b11"}},"x":"??>>"}
        let claims = "eyJrdWJlcm5ldGVzLmlvIjp7InBvZCI6eyJuYW1lIjoicCIsInVpZCI6IjZlMWFkMmFjLTBjNWYtNGE4ZS05ZjNjLTBmMmYzZjhjM2IxMSJ9fSwieCI6Ij8_Pj4ifQ";
        let found = pod_of(&format!("eyJ.{claims}.signature\n"));
        assert_eq!(found.as_deref(), Some("6e1ad2ac-0c5f-4a8e-9f3c-0f2f3f8c3b11"));
        for token in ["", "a", "eyJ.e30.x", "eyJ.!.x", "eyJ..x"] {
            assert_eq!(pod_of(token), None, "{token}");
        }
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
