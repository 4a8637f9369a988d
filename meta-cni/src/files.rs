//! Files of ours that are never seen half written.

use std::{
    fs::{self, DirBuilder, File},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    path::Path,
};

use crate::cni::Error;

/// Makes a directory and those above it.
///
/// # Errors
/// [`Error::Io`].
pub fn create_directory(path: &Path, mode: u32) -> Result<(), Error> {
    DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(path)
        .map_err(|source| Error::io("make directory", path.display(), source))
}

/// Writes a file anew: a temporary one beside it, then a rename. `durable` also waits until file and name are on disk.
///
/// # Errors
/// [`Error::Io`].
pub fn replace(path: &Path, content: &[u8], mode: u32, durable: bool) -> Result<(), Error> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    let write = || -> io::Result<()> {
        let mut file = tempfile::Builder::new()
            .prefix(".tmp-")
            .permissions(fs::Permissions::from_mode(mode))
            .tempfile_in(directory)?;
        file.write_all(content)?;
        if durable {
            file.as_file().sync_all()?;
        }
        file.persist(path).map_err(|error| error.error)?;
        if durable {
            File::open(directory)?.sync_all()?;
        }
        Ok(())
    };
    write().map_err(|source| Error::io("write", path.display(), source))
}

/// Removes a file; one that is not there is removed.
///
/// # Errors
/// [`Error::Io`].
pub fn remove(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(Error::io("remove", path.display(), source)),
        _ => Ok(()),
    }
}
