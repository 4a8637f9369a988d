//! Where the log goes: stderr, a file, or both; never stdout, which is the result's.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt as _,
    sync::Mutex,
};

use tracing_subscriber::{EnvFilter, util::SubscriberInitExt as _};

use crate::{cni::Error, settings::Settings};

/// Starts logging as configured.
///
/// # Errors
/// [`Error::Io`] when the log file cannot be opened; [`Error::Config`] for an unknown level.
pub(crate) fn start(settings: &Settings) -> Result<(), Error> {
    let level = match settings.log_level.as_str() {
        "" | "warning" | "warn" => "warn",
        "panic" | "error" => "error",
        "verbose" | "info" => "info",
        "debug" => "debug",
        other => {
            return Err(Error::Config(format!(
                "\"logLevel\": \"{other}\" is none of error, warning, info, debug (or Multus' panic, verbose)"
            )));
        }
    };
    let file = match &settings.log_file {
        None => None,
        Some(path) => {
            let opened = OpenOptions::new().create(true).append(true).mode(0o600).open(path);
            Some(opened.map_err(|source| Error::io("open the log", path.display(), source))?)
        }
    };
    let filter = format!("meta_cni={level},sandbox={level},sriov={level},ipam={level},warn");
    let sink = Mutex::new(Sink { file, stderr: settings.log_to_stderr });
    let subscriber =
        tracing_subscriber::fmt().with_env_filter(EnvFilter::new(filter)).with_ansi(false).with_writer(sink).finish();
    // Another subscriber is there only when a test of this process set one.
    let _ = subscriber.try_init();
    Ok(())
}

/// Starts logging as far as a configuration of sriov-cni's says how; a level or file that cannot be had is no reason not to
/// attach (sriov-cni goes on with its defaults, too).
pub(crate) fn start_at_best(settings: &Settings) {
    let Err(problem) = start(settings) else { return };
    let plain = Settings { log_level: String::new(), log_file: None, ..settings.clone() };
    if start(&plain).is_ok() {
        tracing::warn!("{problem}: {}; logging to stderr alone", problem.details());
    }
}

/// Both places at once.
struct Sink {
    file: Option<File>,
    stderr: bool,
}

impl Write for Sink {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        if let Some(file) = &mut self.file {
            file.write_all(text)?;
        }
        if self.stderr {
            io::stderr().write_all(text)?;
        }
        Ok(text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
