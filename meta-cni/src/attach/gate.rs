//! The gate that every ADD goes through, and that who uninstalls shuts before he looks which pods have networks of ours: what
//! he sees is all, and stays so, while our configuration is in force. Two locks on directories of the journal: the first is
//! held for a moment only and keeps new ones out, the second for as long as an ADD takes. They end with their processes.

use std::{
    fs::{self, File, TryLockError},
    io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use crate::{cni::Error, face::Face, files, node::Layout};

/// Says that we were uninstalled, where the program had to stay.
const REMOVED: &str = "removed";

/// An ADD that is under way.
#[derive(Debug)]
pub(super) struct Passage {
    _inside: File,
}

/// No ADD is under way, and none begins.
#[derive(Debug)]
pub struct Shut {
    _held: Vec<File>,
}

/// The file that says that we were uninstalled.
#[must_use]
pub fn removed_mark(state: &Path) -> PathBuf {
    state.join(REMOVED)
}

/// Lets an ADD in.
///
/// # Errors
/// [`Error::TryLater`] if we are being uninstalled, or were; [`Error::Io`].
pub(super) fn enter(layout: &Layout, face: Face) -> Result<Passage, Error> {
    let away = || {
        Error::TryLater(
            "meta-cni is being uninstalled from this node: the runtime has to read its configuration directory anew, and to try again"
                .to_owned(),
        )
    };
    let open = |path: PathBuf| match File::open(&path) {
        Ok(directory) => Ok(directory),
        Err(source) if source.kind() == io::ErrorKind::NotFound => Err(away()),
        Err(source) => Err(Error::io("lock", path.display(), source)),
    };
    let gate = open(layout.leases())?;
    let inside = open(layout.sandboxes())?;
    for directory in [&gate, &inside] {
        directory.try_lock_shared().map_err(|problem| match problem {
            TryLockError::WouldBlock => away(),
            TryLockError::Error(source) => Error::io("lock", layout.state().display(), source),
        })?;
    }
    let id = |there: fs::Metadata| (there.dev(), there.ino());
    let is_there =
        fs::metadata(layout.sandboxes()).is_ok_and(|now| inside.metadata().is_ok_and(|held| id(held) == id(now)));
    if !is_there || face == Face::Meta && removed_mark(layout.state()).exists() {
        return Err(away());
    }
    Ok(Passage { _inside: inside })
}

/// Keeps new ADDs out, and waits for those under way.
///
/// # Errors
/// [`Error::Io`].
pub fn shut(layouts: &[Layout]) -> Result<Shut, Error> {
    let mut gates: Vec<PathBuf> = layouts.iter().map(Layout::leases).collect();
    gates.dedup();
    let mut held = Vec::new();
    for path in gates.into_iter().chain(layouts.iter().map(Layout::sandboxes)) {
        let failed = |source| Error::io("lock", path.display(), source);
        files::create_directory(&path, 0o700)?;
        let directory = File::open(&path).map_err(failed)?;
        directory.lock().map_err(failed)?;
        held.push(directory);
    }
    Ok(Shut { _held: held })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{cni::Object, settings::Settings};

    #[test]
    fn none_enters_while_it_is_shut_and_none_is_shut_out_otherwise() {
        let root = tempfile::tempdir().unwrap();
        let settings = Settings {
            state_dir: root.path().join("state"),
            run_dir: root.path().join("run"),
            ..Settings::of_plugin(&Object::default())
        };
        let layouts = Face::ALL.map(|face| Layout::of(&settings, face));
        let away = |layout| match enter(layout, Face::Meta) {
            Err(Error::TryLater(text)) => text.contains("being uninstalled"),
            Ok(_) => false,
            other => panic!("{other:?}"),
        };
        assert!(layouts.iter().all(away), "nothing is there");
        layouts.iter().for_each(|layout| layout.create().unwrap());
        let passages: Vec<Passage> =
            layouts.iter().chain(&layouts).map(|layout| enter(layout, Face::Sriov).unwrap()).collect();
        let shutting = std::thread::spawn({
            let layouts = layouts.clone();
            move || shut(&layouts).unwrap()
        });
        while !layouts.iter().all(away) {
            std::thread::yield_now();
        }
        assert!(!shutting.is_finished(), "it waits for those under way");
        drop(passages);
        let shut = shutting.join().unwrap();
        assert!(layouts.iter().all(away));
        drop(shut);
        assert!(!layouts.iter().any(away));
        fs::write(removed_mark(&settings.state_dir), "").unwrap();
        assert!(layouts.iter().all(away));
        // The drop-in is no part of an installation.
        assert!(enter(&layouts[1], Face::Sriov).is_ok());
    }
}
