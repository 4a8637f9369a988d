//! Where things are on a node.

use std::path::{Path, PathBuf};

use super::BootLists;
use crate::{cni::Error, face::Face, files, settings::Settings};

/// The directories of our state and locks.
#[derive(Debug, Clone)]
pub struct Layout {
    state: PathBuf,
    run: PathBuf,
    face: Face,
}

impl Layout {
    /// The layout of a conf. Each face has a journal of its own, so that none takes another one's attachments for its
    /// own; the leases of VFs are common to all.
    #[must_use]
    pub fn of(settings: &Settings, face: Face) -> Self {
        Self { state: settings.state_dir.clone(), run: settings.run_dir.clone(), face }
    }

    /// Makes the directories; they may hold secrets, so they are root's alone.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn create(&self) -> Result<(), Error> {
        for directory in [self.sandboxes(), self.confs(), self.leases(), self.locks()] {
            files::create_directory(&directory, 0o700)?;
        }
        Ok(())
    }

    /// Records, a directory for each container.
    #[must_use]
    pub fn sandboxes(&self) -> PathBuf {
        self.journal().join("sandboxes")
    }

    /// Configurations by their hash.
    #[must_use]
    pub fn confs(&self) -> PathBuf {
        self.journal().join("confs")
    }

    /// Who holds a VF.
    #[must_use]
    pub fn leases(&self) -> PathBuf {
        self.state.join("vfs")
    }

    /// Lock files.
    #[must_use]
    pub fn locks(&self) -> PathBuf {
        self.run.join("lock")
    }

    /// What the pools held at boot.
    #[must_use]
    pub fn boot_lists(&self, boot_id: &str) -> BootLists {
        BootLists::new(self.run.join("boot"), boot_id)
    }

    /// The lock of a sandbox. A plugin alone has one of its own: its caller may be the meta plugin, which holds the other.
    #[must_use]
    pub fn sandbox_lock(&self, container: &str) -> PathBuf {
        self.locks().join(format!("{}{container}", self.sandbox_lock_prefix()))
    }

    /// What the name of a sandbox's lock begins with.
    #[must_use]
    pub fn sandbox_lock_prefix(&self) -> &'static str {
        match self.face {
            Face::Meta => "sandbox-",
            Face::Sriov => "sriov-",
        }
    }

    fn journal(&self) -> PathBuf {
        match self.face {
            Face::Meta => self.state.clone(),
            Face::Sriov => self.state.join("faces/sriov"),
        }
    }

    /// The root of our state.
    #[must_use]
    pub fn state(&self) -> &Path {
        &self.state
    }
}

/// The ID of this boot of the kernel.
///
/// # Errors
/// [`Error::Io`].
pub fn boot_id() -> Result<String, Error> {
    const PATH: &str = "/proc/sys/kernel/random/boot_id";
    let text = std::fs::read_to_string(PATH).map_err(|source| Error::io("read", PATH, source))?;
    Ok(text.trim().to_owned())
}
