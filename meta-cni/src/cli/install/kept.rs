//! What is kept of the primary network's configuration: the file itself, as its owner wrote it, under a name that no runtime
//! reads, so that nothing falls back to it. Whenever its owner writes it anew, it is taken over again.

use std::{
    fs::{self, File},
    os::unix::fs::PermissionsExt as _,
    path::Path,
};

use super::{
    host::{self, Host, names_in},
    primary::{Choice, OUR_FILE, kept_name, name_of_kept},
};
use crate::cni::{Error, PluginList};

/// What it is followed by from when it is taken from its owner until it is known to be whole.
const TAKEN: &str = ".meta-cni-taken";

/// Keeps a first copy of the primary's configuration: our own leads to it before the original is taken away.
///
/// # Errors
/// [`Error::TryLater`] if it changed meanwhile and cannot be used; [`Error::Io`].
pub(super) fn keep(host: &Host, choice: &Choice) -> Result<bool, Error> {
    let kept = host.conf(&choice.kept_name());
    if !choice.live || PluginList::from_file(&kept).is_ok() {
        return Ok(false);
    }
    copy(&host.conf(&choice.name), &kept)
}

/// Takes the primary's configuration out of the runtime's way, as its owner wrote it. Gives what it says, if that is not
/// what was chosen: its owner wrote it once more.
///
/// # Errors
/// [`Error::TryLater`] if its owner is just writing it; [`Error::Io`].
pub(super) fn take(host: &Host, choice: &Choice) -> Result<PluginList, Error> {
    let (live, kept) = (host.conf(&choice.name), host.conf(&choice.kept_name()));
    if host::are_one(&live, &kept) {
        // An uninstall that was killed gave its name back; a rename of two names of one file would leave both.
        host::remove(&live)?;
        return PluginList::from_file(&kept);
    }
    let taken = host.conf(&format!("{}{TAKEN}", choice.name));
    if let Err(error) = host::rename(&live, &taken) {
        // It went by itself.
        return if live.exists() { Err(error) } else { PluginList::from_file(&kept) };
    }
    settle(&live, &taken, &kept)
}

/// Judges what was taken out of the runtime's way. If it is whole it is kept from now on; if it is half a file, the one
/// before stays in force, and its owner gets his back: he may be writing it still. What is kept is whole at any moment.
fn settle(live: &Path, taken: &Path, kept: &Path) -> Result<PluginList, Error> {
    match PluginList::from_file(taken) {
        Ok(list) => {
            // Its owner need not have synced it, and what is kept is all that there is.
            let synced = File::open(taken).and_then(|file| file.sync_all());
            synced.map_err(|source| Error::io("sync", taken.display(), source))?;
            host::rename(taken, kept).map(|()| list)
        }
        Err(problem) => {
            if !host::rename_if_free(taken, live)? {
                // He has written another one by now.
                host::remove(taken)?;
            }
            Err(Error::TryLater(format!("{} is being written: {problem}", live.display())))
        }
    }
}

/// Settles what an installer took, and was killed before it was judged. Only under the lock.
///
/// # Errors
/// [`Error::Io`].
pub(super) fn recover(host: &Host) -> Result<(), Error> {
    for file in names_in(&host.seen(&host.net_d)) {
        let Some(name) = file.strip_suffix(TAKEN) else { continue };
        let (live, taken, kept) = (host.conf(name), host.conf(&file), host.conf(&kept_name(name)));
        if fs::symlink_metadata(&live).is_ok() {
            // Its owner has written a newer one.
            host::remove(&taken)?;
            continue;
        }
        match settle(&live, &taken, &kept) {
            // Whoever looks at it next says so.
            Ok(_) | Err(Error::TryLater(_)) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Gives configurations back that were the primary's before, if they come behind the one that is: one that was there before
/// the primary's own, say, which podman brought. So they are where they would be if they had never been taken. One that
/// comes before it was passed over by name, stays where it is, and is not chosen again. Says what it changed.
///
/// # Errors
/// [`Error::Io`].
pub(super) fn give_back_behind(host: &Host, choice: &Choice) -> Result<Vec<String>, Error> {
    let mut done = Vec::new();
    for file in names_in(&host.seen(&host.net_d)) {
        let is_behind = |name: &&str| *name > choice.name.as_str() && *name > OUR_FILE;
        let Some(name) = name_of_kept(&file).filter(is_behind) else { continue };
        if host::rename_if_free(&host.conf(&file), &host.conf(name))? {
            let (shown, primary) = (host.net_d.join(name), &choice.name);
            done.push(format!("{} is given back, behind ours: the primary's is {primary} now", shown.display()));
        } else {
            // Its owner has written a newer one.
            host::remove(&host.conf(&file))?;
        }
    }
    Ok(done)
}

/// Follows the primary's configuration where its owner does not let us take it.
///
/// # Errors
/// [`Error::TryLater`] if its owner is just writing it; [`Error::Io`].
pub(super) fn follow(host: &Host, choice: &Choice) -> Result<bool, Error> {
    copy(&host.conf(&choice.name), &host.conf(&choice.kept_name()))
}

/// Copies a configuration that is whole.
fn copy(from: &Path, to: &Path) -> Result<bool, Error> {
    let failed = |source| Error::io("read", from.display(), source);
    let content = fs::read(from).map_err(failed)?;
    let mode = fs::metadata(from).map_err(failed)?.permissions().mode() & 0o7777;
    crate::cni::Object::parse(&from.display().to_string(), &content)
        .map_err(|error| Error::TryLater(format!("{error}: it is being written")))?;
    host::place(to, &content, mode)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLANNEL: &str = r#"{"name":"cbr0","cniVersion":"0.3.1","plugins":[{"type":"flannel"},{"type":"portmap"}]}"#;

    #[test]
    fn half_a_file_that_was_taken_goes_back_to_its_owner() {
        let root = tempfile::tempdir().unwrap();
        let path = |end: &str| root.path().join(format!("10-a.conflist{end}"));
        let (live, taken, kept) = (path(""), path(TAKEN), path(".meta-cni"));
        fs::write(&kept, FLANNEL).unwrap();
        fs::write(&taken, "{half").unwrap();
        match settle(&live, &taken, &kept) {
            Err(Error::TryLater(text)) => assert!(text.contains("is being written"), "{text}"),
            other => panic!("{other:?}"),
        }
        assert_eq!(fs::read_to_string(&kept).unwrap(), FLANNEL);
        assert_eq!(fs::read_to_string(&live).unwrap(), "{half");
        // If he wrote another one meanwhile, that is his last.
        fs::write(&taken, "{half").unwrap();
        fs::write(&live, "last").unwrap();
        assert!(matches!(settle(&live, &taken, &kept), Err(Error::TryLater(_))));
        assert_eq!(fs::read_to_string(&kept).unwrap(), FLANNEL);
        assert_eq!(fs::read_to_string(&live).unwrap(), "last");
        assert_eq!(names_in(root.path()), ["10-a.conflist", "10-a.conflist.meta-cni"]);
    }

    #[test]
    fn what_a_killed_installer_took_is_the_owners_newest_unless_he_wrote_another_one() {
        let newer = FLANNEL.replace("cbr0", "newer");
        for (live, taken, after) in [
            (None, newer.as_str(), [None, Some(newer.as_str())]),
            (None, "{half", [Some("{half"), Some(FLANNEL)]),
            (Some("last"), newer.as_str(), [Some("last"), Some(FLANNEL)]),
            (Some("last"), "{half", [Some("last"), Some(FLANNEL)]),
        ] {
            let root = tempfile::tempdir().unwrap();
            let path = |end: &str| root.path().join(format!("10-a.conflist{end}"));
            let host = Host { root: "/".into(), bin: "/b".into(), net_d: root.path().into(), state: "/s".into() };
            fs::write(path(".meta-cni"), FLANNEL).unwrap();
            fs::write(path(TAKEN), taken).unwrap();
            live.into_iter().for_each(|live| fs::write(path(""), live).unwrap());
            recover(&host).unwrap();
            assert_eq!(
                ["", ".meta-cni"].map(|end| fs::read_to_string(path(end)).ok()),
                after.map(|text| text.map(str::to_owned))
            );
            assert!(!path(TAKEN).exists());
        }
    }
}
