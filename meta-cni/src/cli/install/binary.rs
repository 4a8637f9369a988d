//! Our program in the runtime's directory of plugins, and the further names that it has there. Each name is a copy of its own:
//! other installers copy onto such a name (`cp -f`), and what is written to a link, of either kind, is written to what it
//! leads to.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    os::unix::fs::MetadataExt as _,
    path::Path,
    time::{Duration, Instant},
};

use super::{
    host::{self, Host},
    installed::{Digests, Installed},
};
use crate::cni::Error;

/// Our program.
pub(super) const PROGRAM: &str = "meta-cni";
/// Further names that it may have.
pub(super) const NAMES: [&str; 5] = ["multus", "multus-shim", "passthru", "sriov", "host-local"];
/// What the name of a program is followed by that had one of ours before.
const SAVED: &str = ".meta-cni-saved";
/// The program that runs.
const OWN: &str = "/proc/self/exe";
/// How often a name is taken back within which time, before it is left to who puts his program there each time.
const TAKES: usize = 4;
const TAKES_WITHIN: Duration = Duration::from_secs(600);

/// What has one of our names.
#[derive(Debug, PartialEq, Eq)]
enum Holder {
    Nobody,
    /// A program of ours, or a link to it.
    Ours,
    Other,
}

/// The programs as an installer knows them.
#[derive(Debug, Default)]
pub(super) struct Programs {
    digests: Digests,
    /// What is remembered on the node, as it was seen last.
    installed: Installed,
    /// It has put the program there.
    put: bool,
    /// When which name was taken back.
    takes: BTreeMap<&'static str, Vec<Instant>>,
    /// The names that are left to others.
    left: BTreeSet<&'static str>,
}

impl Programs {
    /// Reads what is remembered on the node.
    pub(super) fn look(&mut self, host: &Host) {
        if let Some(installed) = Installed::read(host) {
            self.installed = installed;
        }
    }

    /// Refuses names that other programs have, unless they may be put aside.
    ///
    /// # Errors
    /// [`Error::Config`] with all of them.
    pub(super) fn judge(&mut self, host: &Host, names: &[&str], replace: bool) -> Result<(), Error> {
        let was = self.unremembered(host);
        let is_taken = |name: &&str| !replace && self.holder(host, name, was.as_ref()) == Holder::Other;
        let taken: Vec<&str> = names.iter().copied().filter(is_taken).collect();
        if taken.is_empty() {
            return Ok(());
        }
        Err(Error::Config(format!(
            "{} in {} is another program: with --replace it is put aside as NAME{SAVED} until uninstall, or leave the name out; if it was meta-cni before, an installer of that program runs on this node: remove that first",
            taken.join(", "),
            host.bin.display()
        )))
    }

    /// Puts our program in its place, and its names but for those that others have and may keep. Says what it changed.
    ///
    /// One that has put it there before puts it back only if it is lost, or is no program that an installer of ours put there.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(super) fn install(
        &mut self,
        host: &Host,
        names: &[&'static str],
        replace: bool,
        done: &mut Vec<String>,
    ) -> Result<(), Error> {
        let was = self.unremembered(host);
        self.put_program(host, done)?;
        for name in NAMES {
            let is_asked = names.contains(&name);
            let (path, shown) = (host.program(name), host.bin.join(name));
            match self.holder(host, name, was.as_ref()) {
                Holder::Nobody if is_asked => {}
                Holder::Ours if !self.is_current(host, name) => {}
                Holder::Other if is_asked && replace && self.may_take(name) => {
                    host::place_second_name(&path, &host.program(&saved(name)))?;
                    done.push(format!("{} is kept as {}", shown.display(), saved(name)));
                }
                _ => continue,
            }
            host::place_from(&path, &mut self.source(host)?, 0o755)?;
            done.push(format!("{} is a copy of {PROGRAM}", shown.display()));
        }
        Ok(())
    }

    fn put_program(&mut self, host: &Host, done: &mut Vec<String>) -> Result<(), Error> {
        let path = host.program(PROGRAM);
        let (own, there) = (self.own()?, self.digests.of(&path));
        let is_in_force = there.as_ref() == Some(&self.installed.program) && is_executable(&path);
        let is_foreign = there.is_some_and(|there| !self.installed.knows(&there));
        let is_first = !std::mem::replace(&mut self.put, true);
        if is_first || !is_in_force {
            self.installed.put(&own);
        }
        // What is going to be there is known before it is: nobody takes it for another program's.
        self.installed.write(host)?;
        if is_in_force && !is_first {
            return Ok(());
        }
        let mut source = File::open(OWN).map_err(|source| Error::io("read", OWN, source))?;
        if host::place_from(&path, &mut source, 0o755)? {
            let again = if is_foreign && !is_first {
                " again: another program was written over it, by no installer of ours"
            } else {
                ""
            };
            done.push(format!("{} is version {}{again}", host.bin.join(PROGRAM).display(), env!("CARGO_PKG_VERSION")));
        }
        Ok(())
    }

    /// Whether a name may be taken once more from who had it. One who puts his program there each time is let have it.
    fn may_take(&mut self, name: &'static str) -> bool {
        let takes = self.takes.entry(name).or_default();
        takes.retain(|at| at.elapsed() < TAKES_WITHIN);
        if takes.len() >= TAKES {
            self.left.insert(name);
        }
        takes.push(Instant::now());
        !self.left.contains(name)
    }

    /// What somebody should know of the names.
    pub(super) fn remarks(&self, host: &Host) -> Vec<String> {
        let left = |name: &&str| {
            format!(
                "{} is put back by another program each time that it is taken over: it is left to that until this installer is started anew; remove that program's installer, or leave the name out of --names",
                host.bin.join(name).display()
            )
        };
        self.left.iter().map(left).collect()
    }

    /// Removes our program, unless it is to stay, and its names, and gives names back to those who had them. Says what it
    /// changed.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(super) fn uninstall(&mut self, host: &Host, stays: bool) -> Result<Vec<String>, Error> {
        let mut changed = Vec::new();
        let was = self.unremembered(host);
        for name in NAMES {
            let (path, before) = (host.program(name), host.program(&saved(name)));
            let shown = host.bin.join(name);
            let holder = self.holder(host, name, was.as_ref());
            if holder == Holder::Other {
                // Somebody put his own there meanwhile: that is the newer one.
                host::remove(&before)?;
            } else if fs::symlink_metadata(&before).is_ok() {
                host::rename(&before, &path)?;
                changed.push(format!("{} is what it was", shown.display()));
            } else if holder != Holder::Nobody {
                host::remove(&path)?;
                changed.push(format!("{} is removed", shown.display()));
            }
        }
        if !stays && host::remove(&host.program(PROGRAM))? {
            changed.push(format!("{} is removed", host.bin.join(PROGRAM).display()));
        }
        Ok(changed)
    }

    /// The digest of the program that runs.
    fn own(&mut self) -> Result<String, Error> {
        self.digests.of_opened(Path::new(OWN)).map_err(|source| Error::io("read", OWN, source))
    }

    /// The program in force, to be copied.
    fn source(&mut self, host: &Host) -> Result<File, Error> {
        let there = host.program(PROGRAM);
        let path = if self.own()? == self.installed.program { Path::new(OWN) } else { &there };
        File::open(path).map_err(|source| Error::io("read", path.display(), source))
    }

    /// The digest of our program where nothing is remembered: whatever is a copy of that is ours.
    fn unremembered(&mut self, host: &Host) -> Option<String> {
        if self.installed.program.is_empty() { self.digests.of(&host.program(PROGRAM)) } else { None }
    }

    /// What has a name; `program` is ours, too.
    fn holder(&mut self, host: &Host, name: &str, program: Option<&String>) -> Holder {
        let path = host.program(name);
        if let Ok(target) = fs::read_link(&path) {
            let is_ours = target.file_name().is_some_and(|target| target == PROGRAM);
            return if is_ours { Holder::Ours } else { Holder::Other };
        }
        if fs::symlink_metadata(&path).is_err() {
            return Holder::Nobody;
        }
        let Some(digest) = self.digests.of(&path) else { return Holder::Other };
        let is_ours =
            self.installed.knows(&digest) || program == Some(&digest) || self.own().is_ok_and(|own| own == digest);
        if is_ours { Holder::Ours } else { Holder::Other }
    }

    /// Whether a name of ours is a copy of the program in force.
    fn is_current(&mut self, host: &Host, name: &str) -> bool {
        let path = host.program(name);
        !host::are_one(&path, &host.program(PROGRAM))
            && self.digests.of(&path).as_ref() == Some(&self.installed.program)
            && is_executable(&path)
    }
}

fn is_executable(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|there| there.is_file() && there.mode() & 0o111 == 0o111)
}

fn saved(name: &str) -> String {
    format!("{name}{SAVED}")
}
