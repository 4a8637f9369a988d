//! The directory beside a pool, where what host-local does not know is kept: `DATA_DIR/.meta-cni/NETWORK`. Nothing of
//! ours lies in the pool itself, and no network's name begins with a dot. All of it is symbolic links that lead nowhere:
//! a link's target is its content, there as a whole or not at all, written and read by one system call.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};

use crate::Error;

/// What all these directories lie in.
const ROOM: &str = ".meta-cni";
/// Where a link is written before it takes the place of another.
const DRAFT: &str = "draft";

/// The place for what belongs to the pool in `directory`.
pub(crate) fn beside(directory: &Path) -> PathBuf {
    let name = directory.file_name().unwrap_or_default();
    directory.parent().unwrap_or(directory).join(ROOM).join(name)
}

/// Makes a directory of ours with those above it.
pub(crate) fn make(directory: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o755).create(directory)
}

/// What a link says; `None` if there is none, or what is there is no link of ours.
pub(crate) fn read(link: &Path) -> Option<String> {
    fs::read_link(link).ok()?.into_os_string().into_string().ok()
}

/// Writes a link, in the place of one that is there. The pool's lock must be held: the draft has one name.
pub(crate) fn write(beside: &Path, link: &Path, text: &str) -> io::Result<()> {
    match symlink(text, link) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let draft = beside.join(DRAFT);
            remove(&draft)?;
            symlink(text, &draft)?;
            fs::rename(&draft, link)
        }
        outcome => outcome,
    }
}

/// Removes a link; one that is gone already is as good.
pub(crate) fn remove(link: &Path) -> io::Result<()> {
    match fs::remove_file(link) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// The names in a directory of ours; none if there is no such directory.
pub(crate) fn names(directory: &Path) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
}

/// Which boot of the machine this is.
///
/// # Errors
/// [`Error::Io`].
pub(crate) fn boot_id() -> Result<String, Error> {
    let path = Path::new("/proc/sys/kernel/random/boot_id");
    let text = fs::read_to_string(path).map_err(|error| Error::io("read", path, error))?;
    Ok(text.trim().to_owned())
}

/// `DEVICE:INODE` of a directory: another one that took its place is another pool.
pub(crate) fn identity(found: &fs::Metadata) -> String {
    format!("{}:{}", found.dev(), found.ino())
}
