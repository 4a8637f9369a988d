//! The log file, which many processes write to at once, and which one of them puts aside when it has become large.
//!
//! A line is one write(2) to a descriptor with O_APPEND: the kernel gives each its own place, however long it is. The file
//! is put aside by a rename, so whoever has it open writes on, and nothing is lost. The lock is the one of the file itself:
//! who gets it and finds the name led to another file is too late, and writes there.

use std::{
    fs::{self, File, Metadata, OpenOptions, TryLockError},
    io::{self, Write as _},
    os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _, fchown},
    path::{Path, PathBuf},
    time::SystemTime,
};

use nix::libc;

use super::{line::Moment, settings::Rotation};

/// An open log file.
#[derive(Debug)]
pub(super) struct LogFile {
    path: PathBuf,
    file: File,
    rotation: Rotation,
    /// The last line has no end: the disk was full, or its writer was killed.
    torn: bool,
}

impl LogFile {
    /// Opens it, and makes it if it is not there.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) fn open(path: &Path, rotation: Rotation) -> io::Result<Self> {
        let file = open(path)?;
        let torn = is_torn(&file, path);
        Ok(Self { path: path.to_owned(), file, rotation, torn })
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Appends a line, in a new file if the present one is large enough. One that cannot be put aside is written to all the
    /// same.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) fn append(&mut self, line: &str, now: SystemTime) -> io::Result<()> {
        let moved = self.make_room(line.len(), now);
        let written = if self.torn { self.write(&format!("\n{line}")) } else { self.write(line) };
        moved.and(written)
    }

    fn write(&mut self, text: &str) -> io::Result<()> {
        let written = loop {
            match self.file.write(text.as_bytes()) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                written => break written?,
            }
        };
        // What is left is not written after it: another process's line may be there by now.
        self.torn = written < text.len();
        if self.torn { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }

    fn make_room(&mut self, more: usize, now: SystemTime) -> io::Result<()> {
        let found = self.file.metadata()?;
        if !found.is_file() {
            return Ok(());
        }
        if found.nlink() == 0 {
            // It was removed: nobody would ever read the line.
            self.open_again()?;
        } else if found.len() > 0 && found.len().saturating_add(more as u64) > self.rotation.max_size {
            self.rotate(&found, now)?;
        }
        Ok(())
    }

    /// Goes on in the file that the name leads to by now. Others may have written there before.
    fn open_again(&mut self) -> io::Result<()> {
        self.file = open(&self.path)?;
        self.torn = is_torn(&self.file, &self.path);
        Ok(())
    }

    fn rotate(&mut self, own: &Metadata, now: SystemTime) -> io::Result<()> {
        match self.file.try_lock() {
            Ok(()) => {}
            // Another process is at it. This line goes into the old file.
            Err(TryLockError::WouldBlock) => return Ok(()),
            Err(TryLockError::Error(error)) => return Err(error),
        }
        // The name may be a link: what is renamed is the file, in its own directory.
        let place = match fs::canonicalize(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => self.path.clone(),
            place => place?,
        };
        if !fs::metadata(&place).is_ok_and(|there| is_same(&there, own)) {
            return self.open_again();
        }
        let backups = Backups::of(&place);
        let renamed = fs::rename(&place, backups.at(now));
        if renamed.is_err() {
            self.file.unlock()?;
            return renamed;
        }
        // With it goes the lock.
        self.open_again()?;
        backups.prune(self.rotation, now)
    }
}

/// Opens a log file. O_NONBLOCK, for who names a pipe that nobody reads: a log keeps no pod waiting.
fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).mode(0o600).custom_flags(libc::O_NONBLOCK).open(path)
}

/// Whether the last line has no end, and nobody is writing it. What cannot be looked at has one.
fn is_torn(file: &File, path: &Path) -> bool {
    let look = || {
        let found = file.metadata()?;
        if !found.is_file() || found.len() == 0 {
            return Ok(false);
        }
        // Ours is open for writing alone. The name may lead to another file by now: then this one was put aside whole.
        let reader = File::open(path)?;
        let mut last = [b'\n'];
        if !is_same(&reader.metadata()?, &found) || reader.read_at(&mut last, found.len() - 1)? == 0 || last == [b'\n']
        {
            return Ok(false);
        }
        // Or somebody is in the middle of it: a long line's pages are seen one by one. The kernel changes no owner, not even
        // to the same one, before a write that is under way has ended (both hold the inode's lock).
        fchown(file, None, None)?;
        io::Result::Ok(file.metadata()?.len() == found.len())
    };
    look().unwrap_or(false)
}

fn is_same(one: &Metadata, other: &Metadata) -> bool {
    (one.dev(), one.ino()) == (other.dev(), other.ino())
}

/// The files that a log was put aside in: `NAME-MOMENT.EXTENSION` beside it.
struct Backups {
    directory: PathBuf,
    before: String,
    after: String,
}

impl Backups {
    fn of(log: &Path) -> Self {
        let text = |part: Option<&std::ffi::OsStr>| part.map(|part| part.to_string_lossy().into_owned());
        Self {
            directory: log.parent().unwrap_or(Path::new("/")).to_owned(),
            before: format!("{}-", text(log.file_stem()).unwrap_or_default()),
            after: text(log.extension()).map(|extension| format!(".{extension}")).unwrap_or_default(),
        }
    }

    fn at(&self, moment: SystemTime) -> PathBuf {
        self.directory.join(format!("{}{}{}", self.before, Moment::of(moment).to_name(), self.after))
    }

    /// Removes those that are too many or too old, by the moments in their names. Two processes may do so at once.
    fn prune(&self, rotation: Rotation, now: SystemTime) -> io::Result<()> {
        let mut moments = Vec::new();
        for entry in fs::read_dir(&self.directory)? {
            let name = entry?.file_name();
            let moment = name.to_str().and_then(|name| name.strip_prefix(&self.before)?.strip_suffix(&self.after));
            moments.extend(moment.filter(|text| is_moment(text)).map(str::to_owned));
        }
        moments.sort_unstable_by(|a, b| b.cmp(a));
        let oldest = rotation.max_age.and_then(|age| now.checked_sub(age)).map(|time| Moment::of(time).to_name());
        for (position, moment) in moments.iter().enumerate() {
            let too_many = rotation.max_backups > 0 && position >= rotation.max_backups;
            let too_old = oldest.as_ref().is_some_and(|oldest| moment < oldest);
            if too_many || too_old {
                match fs::remove_file(self.directory.join(format!("{}{moment}{}", self.before, self.after))) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    _ => {}
                }
            }
        }
        Ok(())
    }
}

/// Whether a text has the form of [`Moment::to_name`]: nothing else in the log's directory is touched.
fn is_moment(text: &str) -> bool {
    const FORM: &str = "dddd-dd-ddTdd-dd-dd.ddddddddd";
    let fits = |(c, form): (char, char)| if form == 'd' { c.is_ascii_digit() } else { c == form };
    text.len() == FORM.len() && text.chars().zip(FORM.chars()).all(fits)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_line_in_the_file_that_another_process_made_goes_by_the_end_of_that_one() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("meta.log");
        let rotation = Rotation { max_size: 100, max_backups: 0, max_age: Some(Duration::from_secs(1)) };
        let now = SystemTime::now();
        for (old, new, found) in [
            (format!("{}\nhalf", "x".repeat(100)), "whole\n", "whole\nline\n"),
            (format!("{}\n", "x".repeat(100)), "half", "half\nline\n"),
        ] {
            fs::write(&path, &old).unwrap();
            let mut log = LogFile::open(&path, rotation).unwrap();
            let aside = scratch.path().join("aside");
            fs::rename(&path, &aside).unwrap();
            fs::write(&path, new).unwrap();
            log.append("line\n", now).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), found, "put aside");
            // Removed, which its link count says.
            let mut log = LogFile::open(&aside, rotation).unwrap();
            fs::remove_file(&aside).unwrap();
            fs::write(&aside, new).unwrap();
            log.append("line\n", now).unwrap();
            assert_eq!(fs::read_to_string(&aside).unwrap(), found, "removed");
        }
    }
}
