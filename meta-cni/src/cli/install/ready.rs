//! How an installer that stays is getting on: it tells so in a file after each look, and a readiness probe beside it asks
//! there. Nothing else could be executed in our container.

use std::{
    fs,
    path::{Path, PathBuf},
};

use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use super::{
    host::{self, Host, names_in},
    primary::OUR_FILE,
};
use crate::{cli::Answer, cni::Error};

/// How long ago the last look may be: it looks every five seconds, but a node may be busy.
const STALE_SECONDS: i64 = 60;
/// What the names end in of files that a runtime reads.
const READ_BY_RUNTIMES: [&str; 3] = [".conf", ".conflist", ".json"];

/// Where an installer tells how it is; nowhere if nobody asked for it.
#[derive(Debug)]
pub(super) struct Teller(Option<PathBuf>);

/// What it tells.
#[derive(Debug, Serialize, Deserialize)]
struct Status {
    /// When it had looked, in seconds since boot.
    looked: i64,
    found: Finding,
}

/// How it found the node.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum Finding {
    /// All is in place: the runtime's directory, and the token with its copy on the node, all as they are seen here.
    Good { directory: PathBuf, copies: Option<(PathBuf, PathBuf)> },
    /// Something is wrong.
    Bad { problem: String },
    /// One that came later does the work.
    Another,
}

impl Teller {
    /// Begins anew: what an earlier one told is no more.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(super) fn new(path: Option<PathBuf>) -> Result<Self, Error> {
        if let Some(path) = &path {
            host::remove(path)?;
        }
        Ok(Self(path))
    }

    /// Tells.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(super) fn tell(&self, found: Finding) -> Result<(), Error> {
        let Some(path) = &self.0 else { return Ok(()) };
        let status = Status { looked: seconds_since_boot()?, found };
        let text = serde_json::to_vec(&status).map_err(|problem| Error::decode("the status", problem))?;
        host::place(path, &text, 0o600).map(drop)
    }
}

impl Finding {
    /// Of a node on which all is in place.
    pub(super) fn good(host: &Host, copies: Option<(PathBuf, PathBuf)>) -> Self {
        Self::Good { directory: host.seen(&host.net_d), copies }
    }
}

/// Says that the installer which tells in a file how it is has all in place.
///
/// # Errors
/// Why not.
pub(super) fn answer(path: &Path) -> Result<Answer, Error> {
    let text = match fs::read(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(Error::TryLater(format!(
                "no installer has told in {} how it is: it has not looked at the node yet",
                path.display()
            )));
        }
        read => read.map_err(|source| Error::io("read", path.display(), source))?,
    };
    let status = serde_json::from_slice(&text).map_err(|problem| Error::decode(path.display().to_string(), problem))?;
    let text = judge(&status, seconds_since_boot()?)?;
    Ok(Answer { text: format!("{text}\n"), good: true })
}

fn judge(status: &Status, now: i64) -> Result<&'static str, Error> {
    let ago = now - status.looked;
    if ago > STALE_SECONDS {
        return Err(Error::TryLater(format!(
            "the installer looked at the node {ago} s ago, and should every few seconds: it hangs"
        )));
    }
    match &status.found {
        Finding::Another => Ok("an installer that came later does the work"),
        Finding::Bad { problem } => Err(Error::TryLater(problem.clone())),
        Finding::Good { directory, copies } => {
            let read = |name: &String| READ_BY_RUNTIMES.iter().any(|ending| name.ends_with(ending));
            let first = names_in(directory).into_iter().find(read).unwrap_or_else(|| "nothing".to_owned());
            if first != OUR_FILE {
                return Err(Error::TryLater(format!("the runtime reads {first}, not {OUR_FILE}")));
            }
            match copies {
                Some((own, copy)) if bytes(own)? != bytes(copy)? => {
                    Err(Error::TryLater(format!("{} is not the token in {}", copy.display(), own.display())))
                }
                _ => Ok("everything is in place"),
            }
        }
    }
}

fn bytes(path: &Path) -> Result<Vec<u8>, Error> {
    fs::read(path).map_err(|source| Error::io("read", path.display(), source))
}

fn seconds_since_boot() -> Result<i64, Error> {
    let now = clock_gettime(ClockId::CLOCK_BOOTTIME);
    now.map(|now| now.tv_sec()).map_err(|errno| Error::io("read", "the clock", errno.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_ready_when_all_is_in_place_and_it_goes_on_looking() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        fs::create_dir(at("net.d")).unwrap();
        fs::write(at("net.d").join("10-flannel.conflist.meta-cni"), "").unwrap();
        fs::write(at("net.d").join(OUR_FILE), "").unwrap();
        fs::write(at("own"), "one").unwrap();
        fs::write(at("copy"), "one").unwrap();
        let good = || Finding::Good { directory: at("net.d"), copies: Some((at("own"), at("copy"))) };
        let judged = |found: Finding, now: i64| judge(&Status { looked: 1000, found }, now);
        let refused = |found: Finding, now: i64| match judged(found, now) {
            Err(Error::TryLater(text)) => text,
            other => panic!("{other:?}"),
        };
        assert_eq!(judged(good(), 1060).unwrap(), "everything is in place");
        assert_eq!(judged(Finding::Another, 1000).unwrap(), "an installer that came later does the work");
        assert!(refused(good(), 1061).contains("61 s ago"));
        assert!(refused(Finding::Another, 1061).contains("it hangs"));
        assert_eq!(refused(Finding::Bad { problem: "no primary".to_owned() }, 1000), "no primary");
        fs::write(at("copy"), "another's").unwrap();
        assert!(refused(good(), 1000).contains("copy is not the token in"));
        fs::write(at("copy"), "one").unwrap();
        fs::write(at("net.d").join("00-first.conf"), "").unwrap();
        assert_eq!(refused(good(), 1000), "the runtime reads 00-first.conf, not 00-meta-cni.conflist");
    }
}
