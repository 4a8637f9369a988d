//! What can be set of the log.

use std::{path::PathBuf, time::Duration};

use tracing::Level;

/// The unit of `maxAge`.
pub(crate) const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Where, how much and in which form is logged.
#[derive(Debug, Clone)]
pub struct LogSettings {
    /// A file, besides or in place of stderr (`logFile`).
    pub file: Option<PathBuf>,
    /// How much (`logLevel`: Multus' panic, error, verbose, debug, or ours). Without it, the steps of a call are for the file
    /// alone: the runtime's own journal has stderr.
    pub level: Option<Level>,
    /// Whether stderr is written to (`logToStderr`).
    pub to_stderr: bool,
    /// The form of a line (`logFormat`).
    pub format: Format,
    /// When the file is put aside, and how long what was put aside is kept (`logOptions`).
    pub rotation: Rotation,
}

/// The form of a line.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Format {
    /// `key=value`.
    #[default]
    Text,
    /// An object.
    Json,
}

/// How the log file is rotated. The defaults are those of Multus.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rotation {
    /// A file that a line would make larger, in bytes, is put aside.
    pub max_size: u64,
    /// How many of them are kept; 0 means all.
    pub max_backups: usize,
    /// How long they are kept; nothing means for ever.
    pub max_age: Option<Duration>,
}

impl Default for Rotation {
    fn default() -> Self {
        Self { max_size: 100 << 20, max_backups: 5, max_age: Some(5 * DAY) }
    }
}

impl Default for LogSettings {
    fn default() -> Self {
        Self { file: None, level: None, to_stderr: true, format: Format::Text, rotation: Rotation::default() }
    }
}
