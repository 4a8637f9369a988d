//! The log: one line a step, to stderr, a file, or both; never to stdout, which is the result's.
//!
//! A line says what its event says, then what the spans around it say, then whose call it is. Configurations are never
//! logged: they may hold secrets.

mod file;
mod line;
mod settings;

use std::{
    fmt::Display,
    io::{self, Write as _},
    sync::{Mutex, PoisonError},
    time::SystemTime,
};

use tokio::time::Instant;
use tracing::{Event, Level, Metadata, Span, Subscriber, level_filters::LevelFilter, span};
use tracing_subscriber::{
    Layer, Registry,
    layer::{Context, SubscriberExt as _},
    registry::LookupSpan,
    util::SubscriberInitExt as _,
};

use file::LogFile;
use line::Fields;
pub(crate) use settings::DAY;
pub use settings::{Format, LogSettings, Rotation};

/// Our crates; of others only warnings are worth a line.
const OURS: [&str; 4] = ["meta_cni", "sandbox", "sriov", "ipam"];

/// Starts logging, for one call: what every line says of it, with its key. A log that cannot be written is a warning, never a
/// reason not to attach.
pub(crate) fn start(settings: &LogSettings, call: &[(&'static str, &str)]) {
    let call = call.iter().fold(Fields::default(), |fields, (key, text)| fields.with(key, text));
    let mut lines = Lines {
        call,
        format: settings.format,
        to_file: None,
        to_stderr: settings.to_stderr.then(|| settings.level.unwrap_or(Level::WARN)),
        sink: Mutex::new(Sink { file: None, warned: false }),
    };
    if let Some(path) = &settings.file {
        match LogFile::open(path, settings.rotation) {
            Ok(file) => {
                lines.to_file = Some(settings.level.unwrap_or(Level::INFO));
                lines.sink = Mutex::new(Sink { file: Some(file), warned: false });
            }
            Err(error) => lines.warn(&format!("the log file {} cannot be opened", path.display()), &error),
        }
    }
    // Another subscriber is there only when a test of this process set one.
    let _ = Registry::default().with(lines).try_init();
}

/// What a step on one network has around it: every line says which one it is about.
pub(crate) fn of_network(network: &str, interface: &str) -> Span {
    // Whatever the level is: a warning is about a network, too.
    tracing::error_span!("network", network, interface)
}

/// As [`of_network`], of an attachment that was recorded: GC's are of many pods, each with its name and UID.
pub(crate) fn of_attachment(
    network: &str,
    interface: &str,
    container: &str,
    (pod, uid): (Option<String>, Option<&str>),
) -> Span {
    tracing::error_span!("network", network, interface, pod, uid, container)
}

/// How long ago something began, in milliseconds with three decimals.
pub(crate) fn ms(began: Instant) -> f64 {
    (began.elapsed().as_secs_f64() * 1e6).round() / 1e3
}

/// Starts logging for a command.
pub(crate) fn start_of_command(settings: &LogSettings, command: &str) {
    start(settings, &[("verb", command)]);
}

/// Makes lines of events, and brings them where they belong.
struct Lines {
    call: Fields,
    format: Format,
    to_file: Option<Level>,
    to_stderr: Option<Level>,
    sink: Mutex<Sink>,
}

struct Sink {
    file: Option<LogFile>,
    /// Somebody was told that the file cannot be written.
    warned: bool,
}

impl Lines {
    fn is_wanted(&self, metadata: &Metadata<'_>) -> bool {
        let of = metadata.target().split("::").next().unwrap_or_default();
        *metadata.level() <= if OURS.contains(&of) { Level::TRACE } else { Level::WARN }
            && (is_within(metadata, self.to_file) || is_within(metadata, self.to_stderr))
    }

    fn warn(&self, what: &str, problem: &dyn Display) {
        let mut fields = Fields::default().with("message", &format!("{what}: {problem}"));
        fields.extend(&self.call);
        print(&line::render(self.format, SystemTime::now(), Level::WARN, &fields));
    }
}

fn is_within(metadata: &Metadata<'_>, limit: Option<Level>) -> bool {
    limit.is_some_and(|limit| *metadata.level() <= limit)
}

/// Writes a line to stderr. A runtime that closed its end does not read it, and there is nobody else to tell.
fn print(line: &str) {
    let _ = io::stderr().write_all(line.as_bytes());
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Lines {
    fn enabled(&self, metadata: &Metadata<'_>, _: Context<'_, S>) -> bool {
        self.is_wanted(metadata)
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        // An error counts less than a debug line.
        self.to_file.max(self.to_stderr).map(LevelFilter::from_level)
    }

    fn on_new_span(&self, attributes: &span::Attributes<'_>, id: &span::Id, context: Context<'_, S>) {
        let mut fields = Fields::default();
        attributes.record(&mut fields);
        if let Some(span) = context.span(id) {
            span.extensions_mut().insert(fields);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        for span in context.event_scope(event).into_iter().flatten() {
            if let Some(of_span) = span.extensions().get::<Fields>() {
                fields.extend(of_span);
            }
        }
        fields.extend(&self.call);
        let (now, metadata) = (SystemTime::now(), event.metadata());
        let line = line::render(self.format, now, *metadata.level(), &fields);
        let mut sink = self.sink.lock().unwrap_or_else(PoisonError::into_inner);
        if is_within(metadata, self.to_stderr) {
            print(&line);
        }
        let Sink { file: Some(file), warned } = &mut *sink else { return };
        if is_within(metadata, self.to_file)
            && let Err(error) = file.append(&line, now)
            && !std::mem::replace(warned, true)
        {
            self.warn(
                &format!("the log file {} cannot be written, or not be put aside", file.path().display()),
                &error,
            );
        }
    }
}
