//! Whether a pool's directory is as it was when it was last looked through: then nothing new can be found in it. The
//! kernel's stamp of the directory's last change is compared, for being the same, not for being older or newer: whoever
//! sets the clock changes nothing by that.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::time::{ClockId, clock_gettime};

use crate::{Error, beside};

const NO_ORPHANS: &str = "no-orphans";

/// A pool's directory as it was found. The pool's lock must be held.
#[derive(Debug)]
pub(crate) struct Unchanged {
    beside: PathBuf,
    /// `BOOT_ID DEVICE:INODE SECONDS.NANOSECONDS`; `None` if a change to come could have the same stamp.
    text: Option<String>,
}

impl Unchanged {
    pub(crate) fn of(pool: &Path) -> Result<Unchanged, Error> {
        let found = fs::metadata(pool).map_err(|error| Error::io("stat", pool, error))?;
        // The clock that stamps changes ticks every few milliseconds; the next change has another stamp only if it
        // has ticked since the last one.
        let ticked = clock_gettime(ClockId::CLOCK_REALTIME_COARSE)
            .is_ok_and(|now| (now.tv_sec(), now.tv_nsec()) != (found.ctime(), found.ctime_nsec()));
        let stamp = format!("{} {}.{}", beside::identity(&found), found.ctime(), found.ctime_nsec());
        let text = beside::boot_id().ok().filter(|_| ticked).map(|boot_id| format!("{boot_id} {stamp}"));
        Ok(Unchanged { beside: beside::beside(pool), text })
    }

    /// Whether the last look found it like this, in this boot.
    pub(crate) fn is_noted(&self) -> bool {
        self.text.is_some() && beside::read(&self.link()) == self.text
    }

    /// Notes that it was looked through. If that fails it will be looked through again.
    pub(crate) fn note(&self) {
        if let Some(text) = &self.text {
            drop(beside::make(&self.beside).and_then(|()| beside::write(&self.beside, &self.link(), text)));
        }
    }

    fn link(&self) -> PathBuf {
        self.beside.join(NO_ORPHANS)
    }
}
