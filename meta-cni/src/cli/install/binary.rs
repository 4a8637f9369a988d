//! Our program in the runtime's directory of plugins, and the further names that it has there: links to it.

use std::{
    fs::{self, File},
    os::unix::fs::MetadataExt as _,
    path::Path,
};

use super::host::{self, Host};
use crate::cni::Error;

/// Our program.
const PROGRAM: &str = "meta-cni";
/// Further names that it may have.
pub(super) const NAMES: [&str; 5] = ["multus", "multus-shim", "passthru", "sriov", "host-local"];
/// What the name of a program is followed by that had one of ours before.
const SAVED: &str = ".meta-cni-saved";
/// The program that runs.
const OWN: &str = "/proc/self/exe";

/// Refuses names that other programs have, unless they may be put aside.
///
/// # Errors
/// [`Error::Config`] with all of them.
pub(super) fn judge(host: &Host, names: &[&str], replace: bool) -> Result<(), Error> {
    let taken: Vec<&str> = names.iter().copied().filter(|name| !replace && is_taken(host, name)).collect();
    if taken.is_empty() {
        return Ok(());
    }
    Err(Error::Config(format!(
        "{} in {} is another program: with --replace it is put aside as NAME{SAVED} until uninstall, or leave the name out",
        taken.join(", "),
        host.bin.display()
    )))
}

/// Puts our program in its place, and its names but for those that others have and may keep. Says what it changed. If it was
/// `put` there before, only one that is lost is put back: another one is there because somebody installed it since.
///
/// # Errors
/// [`Error::Io`].
pub(super) fn install(host: &Host, names: &[&str], replace: bool, put: &mut bool) -> Result<Vec<String>, Error> {
    let mut changed = Vec::new();
    let there = host.program(PROGRAM);
    if !(is_own(&there) || (*put && is_program(&there))) {
        let mut own = File::open(OWN).map_err(|source| Error::io("read", OWN, source))?;
        if host::place_from(&there, &mut own, 0o755)? {
            changed.push(format!("{} is version {}", host.bin.join(PROGRAM).display(), env!("CARGO_PKG_VERSION")));
        }
    }
    *put = true;
    for name in names {
        let path = host.program(name);
        if is_ours(host, name) || (!replace && is_taken(host, name)) {
            continue;
        }
        if is_taken(host, name) {
            host::place_second_name(&path, &host.program(&saved(name)))?;
            changed.push(format!("{} is kept as {}", host.bin.join(name).display(), saved(name)));
        }
        host::place_link(&path, PROGRAM)?;
        changed.push(format!("{} is a link to {PROGRAM}", host.bin.join(name).display()));
    }
    Ok(changed)
}

/// Removes our program and its names, and gives names back to those who had them. Says what it changed.
///
/// # Errors
/// [`Error::Io`].
pub(super) fn uninstall(host: &Host) -> Result<Vec<String>, Error> {
    let mut changed = Vec::new();
    for name in NAMES {
        let (path, before) = (host.program(name), host.program(&saved(name)));
        let shown = host.bin.join(name);
        if is_taken(host, name) {
            // Somebody put his own there meanwhile: that is the newer one.
            host::remove(&before)?;
        } else if fs::symlink_metadata(&before).is_ok() {
            host::rename(&before, &path)?;
            changed.push(format!("{} is what it was", shown.display()));
        } else if is_ours(host, name) {
            host::remove(&path)?;
            changed.push(format!("{} is removed", shown.display()));
        }
    }
    if host::remove(&host.program(PROGRAM))? {
        changed.push(format!("{} is removed", host.bin.join(PROGRAM).display()));
    }
    Ok(changed)
}

/// Whether a file is the very one that runs.
fn is_own(path: &Path) -> bool {
    let id = |there: fs::Metadata| (there.dev(), there.ino());
    fs::metadata(OWN).is_ok_and(|own| fs::symlink_metadata(path).is_ok_and(|there| id(own) == id(there)))
}

fn is_program(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|there| there.is_file() && there.size() > 0 && there.mode() & 0o111 == 0o111)
}

fn saved(name: &str) -> String {
    format!("{name}{SAVED}")
}

/// Whether a name leads to our program: a link to it, or a second name of the same file.
fn is_ours(host: &Host, name: &str) -> bool {
    let path = host.program(name);
    match fs::read_link(&path) {
        Ok(target) => target.file_name().is_some_and(|target| target == PROGRAM),
        Err(_) => {
            let id = |path: &Path| fs::symlink_metadata(path).map(|there| (there.dev(), there.ino())).ok();
            id(&path).is_some_and(|name| Some(name) == id(&host.program(PROGRAM)))
        }
    }
}

fn is_taken(host: &Host, name: &str) -> bool {
    fs::symlink_metadata(host.program(name)).is_ok() && !is_ours(host, name)
}
