//! A JSON object kept as it was written: order, numbers and unknown keys stay as they stand until a key is replaced.

use std::fmt;

use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{MapAccess, Visitor},
    ser::SerializeMap,
};
use serde_json::{Value, value::RawValue};

use super::Error;

/// How deep lists and objects may be nested, as `serde_json` has it for what it does not keep as text. Who walks through an
/// object calls itself for each level, and copies what is below.
const DEEPEST: usize = 128;

/// A JSON object as text, key by key. Keys are compared without regard to case, as Go's JSON does: definitions written
/// for Go plugins may rely on it. Of two equal keys the last one counts.
#[derive(Debug, Clone, Default)]
pub struct Object(Vec<(String, Box<RawValue>)>);

impl Object {
    /// Parses a text that must be one JSON object.
    ///
    /// # Errors
    /// [`Error::Decode`] naming `what`.
    pub fn parse(what: &str, text: &[u8]) -> Result<Self, Error> {
        if depth(text) > DEEPEST {
            return Err(Error::decode(what, format!("lists and objects are nested more than {DEEPEST} deep")));
        }
        serde_json::from_slice(text).map_err(|problem| Error::decode(what, problem))
    }

    /// The value of a key, as text.
    #[must_use]
    pub fn raw(&self, key: &str) -> Option<&RawValue> {
        self.0.iter().rev().find(|(name, _)| name.eq_ignore_ascii_case(key)).map(|(_, value)| &**value)
    }

    /// The value of a key; `null` is no value.
    ///
    /// # Errors
    /// [`Error::Config`] when the value is of another type, naming the key.
    pub fn get<T: for<'de> Deserialize<'de>>(&self, key: &str) -> Result<Option<T>, Error> {
        match self.raw(key) {
            None => Ok(None),
            Some(raw) if raw.get() == "null" => Ok(None),
            Some(raw) => serde_json::from_str(raw.get())
                .map(Some)
                .map_err(|problem| Error::Config(format!("\"{key}\" is not what it should be: {problem}"))),
        }
    }

    /// Whether a key is written more than once, in whatever spelling. Programs differ in what they make of that: Go joins
    /// the objects, and passes over a `null`.
    #[must_use]
    pub fn is_doubled(&self, key: &str) -> bool {
        self.keys().filter(|name| name.eq_ignore_ascii_case(key)).nth(1).is_some()
    }

    /// A text value, empty when missing.
    ///
    /// # Errors
    /// As [`Object::get`].
    pub fn text(&self, key: &str) -> Result<String, Error> {
        Ok(self.get::<String>(key)?.unwrap_or_default())
    }

    /// A switch that older versions of the specification wrote as text ("true").
    ///
    /// # Errors
    /// [`Error::Config`] for anything but a boolean or its text.
    pub fn switch(&self, key: &str) -> Result<bool, Error> {
        match self.get::<Value>(key)? {
            None => Ok(false),
            Some(Value::Bool(value)) => Ok(value),
            Some(Value::String(text)) if text.eq_ignore_ascii_case("true") => Ok(true),
            Some(Value::String(text)) if text.eq_ignore_ascii_case("false") || text.is_empty() => Ok(false),
            Some(other) => Err(Error::Config(format!("\"{key}\" must be true or false, found {other}"))),
        }
    }

    /// Replaces a key in its place (every spelling of it), or adds it at the end.
    pub fn set<T: Serialize + ?Sized>(&mut self, key: &str, value: &T) {
        // A value of ours always serialises: texts, numbers, objects with text keys.
        let Ok(raw) = serde_json::value::to_raw_value(value) else { return };
        let place = self.0.iter().position(|(name, _)| name.eq_ignore_ascii_case(key));
        self.remove(key);
        match place {
            Some(place) if place <= self.0.len() => self.0.insert(place, (key.to_owned(), raw)),
            _ => self.0.push((key.to_owned(), raw)),
        }
    }

    /// Removes a key in every spelling.
    pub fn remove(&mut self, key: &str) {
        self.0.retain(|(name, _)| !name.eq_ignore_ascii_case(key));
    }

    /// The keys as written.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(name, _)| name.as_str())
    }

    /// Whether there is no key.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The object as text.
    #[must_use]
    pub fn to_text(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }
}

/// How deep the brackets of a JSON text are nested.
fn depth(text: &[u8]) -> usize {
    let (mut deepest, mut now) = (0_usize, 0_usize);
    let (mut in_string, mut escaped) = (false, false);
    for byte in text {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'[' | b'{' if !in_string => now += 1,
            b']' | b'}' if !in_string => now = now.saturating_sub(1),
            _ => {}
        }
        deepest = deepest.max(now);
    }
    deepest
}

impl PartialEq for Object {
    fn eq(&self, other: &Self) -> bool {
        self.to_text() == other.to_text()
    }
}

impl Serialize for Object {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (key, value) in &self.0 {
            map.serialize_entry(key, value)?;
        }
        map.end()
    }
}

impl<'de> Deserialize<'de> for Object {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Object;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Object, A::Error> {
                let mut entries = Vec::with_capacity(map.size_hint().unwrap_or(8));
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Object(entries))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_order_and_unknown_keys_stay_as_written() {
        let text = r#"{"z":1.50,"a":12345678901234567890123,"n":{"y":1,"b":2},"e":1e3}"#;
        let mut object = Object::parse("conf", text.as_bytes()).unwrap();
        assert_eq!(object.to_text(), text);
        object.set("a", "new");
        assert_eq!(object.to_text(), r#"{"z":1.50,"a":"new","n":{"y":1,"b":2},"e":1e3}"#);
    }

    #[test]
    fn what_is_nested_too_deep_does_not_parse() {
        let nested = |levels: usize| format!(r#"{{"[[{{\"[":{}{}}}"#, "[".repeat(levels - 1), "]".repeat(levels - 1));
        assert!(Object::parse("conf", nested(DEEPEST).as_bytes()).is_ok());
        match Object::parse("conf", nested(DEEPEST + 1).as_bytes()) {
            Err(Error::Decode { what, problem }) => {
                assert!(what == "conf" && problem.contains("128 deep"), "{problem}")
            }
            other => panic!("{other:?}"),
        }
        // A hundred thousand levels: what walks through them has no stack for that.
        assert!(matches!(Object::parse("conf", nested(100_000).as_bytes()), Err(Error::Decode { .. })));
    }

    #[test]
    fn keys_match_in_any_case_and_the_last_counts() {
        let mut object = Object::parse("conf", br#"{"CNIVersion":"0.3.1","cniversion":"1.0.0"}"#).unwrap();
        assert_eq!(object.text("cniVersion").unwrap(), "1.0.0");
        object.set("cniVersion", "0.4.0");
        assert_eq!(object.to_text(), r#"{"cniVersion":"0.4.0"}"#);
    }

    #[test]
    fn switches_may_be_texts() {
        let object = Object::parse("conf", br#"{"a":"true","b":true,"c":"False","d":7}"#).unwrap();
        assert!(object.switch("a").unwrap() && object.switch("b").unwrap());
        assert!(!object.switch("c").unwrap() && !object.switch("missing").unwrap());
        assert!(matches!(object.switch("d"), Err(Error::Config(text)) if text.contains("\"d\"")));
    }
}
