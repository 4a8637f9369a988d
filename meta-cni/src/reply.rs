//! What a call says to who called.

use serde_json::Value;

use crate::cni::{Error, SpecVersion};

/// What `main` prints, and its exit code.
#[derive(Debug, PartialEq, Eq)]
pub struct Reply {
    /// For stdout.
    pub stdout: String,
    /// For stderr.
    pub stderr: String,
    /// The exit code of the process.
    pub code: u8,
}

impl Reply {
    /// Of a verb that is done, with its result if it has one.
    pub(crate) fn success(result: Option<&Value>) -> Self {
        Self { stdout: result.map(pretty).unwrap_or_default(), stderr: String::new(), code: 0 }
    }

    /// Of one that failed.
    pub(crate) fn failure(error: &Error, version: SpecVersion) -> Self {
        Self { stdout: pretty(&error.to_json(version)), stderr: String::new(), code: 1 }
    }
}

/// Go's form: four blanks, no line feed at the end.
fn pretty(value: &Value) -> String {
    let mut text = Vec::new();
    let formatter = serde_json::ser::PrettyFormatter::with_indent(b"    ");
    let mut serializer = serde_json::Serializer::with_formatter(&mut text, formatter);
    // A Value has text keys only, and a Vec takes every byte: this cannot fail.
    let _ = serde::Serialize::serialize(value, &mut serializer);
    String::from_utf8(text).unwrap_or_default()
}
