//! The form of a record, across releases. What another release wrote is read as far as it is understood, and written back
//! without loss: a key whose value did not change stays as it stands, whether we know it or not, and whatever is in it.

use serde::Deserialize;
use serde_json::{Map, Value};

use super::{Call, Record, Stage};
use crate::{
    cni::{Error, Object},
    node::boot_id,
};

/// The format that this release writes. Whoever adds a key that an older release may pass over leaves the number alone.
pub(super) const FORMAT: u32 = 1;

/// The text that a record was read from.
#[derive(Debug, Clone, Default)]
pub(super) struct Origin(Vec<u8>);

/// What is asked of a text of which nothing else may be known.
#[derive(Deserialize)]
struct Numbered {
    format: u32,
}

/// The format of a record's text, if it is a newer one than ours.
pub(super) fn newer(text: &[u8]) -> Option<u32> {
    let Numbered { format } = serde_json::from_slice(text).ok()?;
    (format > FORMAT).then_some(format)
}

/// Reads the record of an attachment.
///
/// # Errors
/// [`Error::Decode`] for what is no record, or that of another attachment; for one of a newer release if not even its
/// configuration is understood, by which everything else would be undone.
pub(super) fn read(text: &[u8], call: &Call, interface: &str) -> Result<Record, Error> {
    let whole = serde_json::from_slice::<Record>(text).map_err(|problem| problem.to_string()).and_then(|record| {
        let own = record.call == *call && record.interface == interface;
        own.then_some(record).ok_or_else(|| "it is the record of another attachment".to_owned())
    });
    let mut record = match (whole, newer(text)) {
        (Ok(record), _) => record,
        (Err(_), Some(format)) => in_part(text, call, interface).ok_or_else(|| {
            Error::decode("record", format!("it has format {format}, which this release does not know"))
        })?,
        (Err(problem), None) => return Err(Error::decode("record", problem)),
    };
    record.origin = Some(Origin(text.to_vec()));
    Ok(record)
}

/// A record of a newer release, key by key: a value that we cannot read is passed over, and then nothing is known of it.
/// Whose it is, its file is named after.
fn in_part(text: &[u8], call: &Call, interface: &str) -> Option<Record> {
    let found: Map<String, Value> = serde_json::from_slice(text).ok()?;
    found.get("confHash")?.as_str()?;
    let nothing = Record {
        // Nobody is to be taken for dead because we cannot read where he lives.
        boot_id: boot_id().unwrap_or_default(),
        ..Record::begun(call, interface)
    };
    let Ok(Value::Object(mut known)) = serde_json::to_value(&nothing) else { return None };
    let mut record = nothing;
    for (key, value) in found.into_iter().filter(|(key, _)| key != "call" && key != "interface") {
        let mut more = known.clone();
        more.insert(key, value);
        match serde_json::from_value(Value::Object(more.clone())) {
            Ok(read) => (record, known) = (read, more),
            Err(problem) => tracing::debug!(%problem, "a key of a newer release"),
        }
    }
    record.in_part = true;
    Some(record)
}

/// The text of a record. One that was read is written as it was found, but for the keys whose value is another one now.
///
/// # Errors
/// [`Error::Decode`]; what is in memory is always JSON.
pub(super) fn write(record: &Record) -> Result<Vec<u8>, Error> {
    let failed = |problem| Error::decode("record", problem);
    let Some(Origin(text)) = &record.origin else { return serde_json::to_vec_pretty(record).map_err(failed) };
    let before = serde_json::to_value(read(text, &record.call, &record.interface)?).map_err(failed)?;
    let now = serde_json::to_value(record).map_err(failed)?;
    // Nested too deep to be taken apart: then what we do not know in it is lost, not the record.
    let Ok(mut object) = Object::parse("record", text) else {
        return serde_json::to_vec_pretty(record).map_err(failed);
    };
    for (key, value) in now.as_object().into_iter().flatten().filter(|(key, value)| before.get(key) != Some(value)) {
        object.set(key, value);
    }
    for key in before.as_object().into_iter().flat_map(Map::keys).filter(|key| now.get(key).is_none()) {
        object.remove(key);
    }
    serde_json::to_vec_pretty(&object).map_err(failed)
}

impl Record {
    /// Whether a newer release wrote it, in a format that this one does not know.
    #[must_use]
    pub fn is_newer(&self) -> bool {
        self.format > FORMAT
    }

    /// Marks one of a newer release, of which all is undone that is understood. False if it was before.
    pub(super) fn leave_to_newer(&mut self) -> bool {
        let because = format!(
            "it has format {}, and a release that knows formats up to {FORMAT} has undone what it understood",
            self.format
        );
        let is_new = self.stage != Stage::Owed || self.owed_because != because;
        (self.stage, self.owed_because) = (Stage::Owed, because);
        is_new
    }
}
