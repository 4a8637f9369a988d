//! One line: a moment, a level, a message and fields, as text or JSON. Whatever is in a field, a line stays one line.

use std::{
    fmt::{Debug, Write as _},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tracing::{
    Level,
    field::{Field, Visit},
};

use super::settings::Format;

/// The most of one value: a pod's annotation may have 256 KiB, and errors quote it.
const VALUE_LIMIT: usize = 4096;

/// A value of a field.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    /// Any text.
    Text(String),
    /// A number, or a boolean.
    Plain(String),
}

/// Fields in their order.
#[derive(Debug, Clone, Default)]
pub(super) struct Fields(Vec<(&'static str, Value)>);

impl Fields {
    /// One field more.
    pub(super) fn with(mut self, key: &'static str, text: &str) -> Self {
        self.0.push((key, Value::Text(text.to_owned())));
        self
    }

    /// Those of `others` that are not here yet.
    pub(super) fn extend(&mut self, others: &Self) {
        for (key, value) in &others.0 {
            if !self.0.iter().any(|(has, _)| has == key) {
                self.0.push((key, value.clone()));
            }
        }
    }
}

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.push((field.name(), Value::Text(value.to_owned())));
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.0.push((field.name(), Value::Plain(value.to_string())));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.0.push((field.name(), Value::Plain(value.to_string())));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.0.push((field.name(), Value::Plain(value.to_string())));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.0.push((field.name(), Value::Plain(value.to_string())));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.0.push((field.name(), Value::Text(format!("{value:?}"))));
    }
}

/// A line with its line feed. An empty text says nothing, and is left out.
pub(super) fn render(format: Format, now: SystemTime, level: Level, fields: &Fields) -> String {
    let mut line = String::with_capacity(512);
    let (message, others): (Vec<_>, Vec<_>) = fields.0.iter().partition(|(key, _)| *key == "message");
    let head = [("time", Value::Text(Moment::of(now).to_rfc3339())), ("level", Value::Text(level.to_string()))];
    let message = message.into_iter().map(|(_, value)| ("msg", value));
    let all =
        head.iter().map(|(key, value)| (*key, value)).chain(message).chain(others.into_iter().map(|(k, v)| (*k, v)));
    let said = all.filter(|(_, value)| !matches!(value, Value::Text(text) if text.is_empty()));
    for (position, (key, value)) in said.enumerate() {
        match (format, position) {
            (Format::Text, 0) => {}
            (Format::Text, _) => line.push(' '),
            (Format::Json, 0) => line.push('{'),
            (Format::Json, _) => line.push(','),
        }
        put(&mut line, format, key, value);
    }
    line.push_str(if format == Format::Json { "}\n" } else { "\n" });
    line
}

fn put(line: &mut String, format: Format, key: &str, value: &Value) {
    if format == Format::Json {
        let _ = write!(line, "\"{key}\":");
    } else {
        let _ = write!(line, "{key}=");
    }
    match value {
        Value::Plain(text) => line.push_str(text),
        Value::Text(text) if format == Format::Text && is_plain(text) => line.push_str(text),
        Value::Text(text) => put_quoted(line, text),
    }
}

/// Whether a text can stand as it is behind an equals sign.
fn is_plain(text: &str) -> bool {
    let fits = |c: char| !(c.is_whitespace() || matches!(c, '"' | '=' | '\\') || is_special(c));
    !text.is_empty() && text.len() <= VALUE_LIMIT && text.chars().all(fits)
}

/// Characters that end a line, or change how the rest of it looks.
fn is_special(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
}

/// A text as JSON has it; the readers of `key=value` know this form, too.
fn put_quoted(line: &mut String, text: &str) {
    line.push('"');
    let kept = if text.len() <= VALUE_LIMIT { text } else { &text[..text.floor_char_boundary(VALUE_LIMIT)] };
    for c in kept.chars() {
        match c {
            '"' => line.push_str("\\\""),
            '\\' => line.push_str("\\\\"),
            '\n' => line.push_str("\\n"),
            '\r' => line.push_str("\\r"),
            '\t' => line.push_str("\\t"),
            // All of these are below U+10000.
            c if is_special(c) => drop(write!(line, "\\u{:04x}", u32::from(c))),
            c => line.push(c),
        }
    }
    line.push_str(if kept.len() < text.len() { "…\"" } else { "\"" });
}

/// A moment as people write it, in UTC.
pub(super) struct Moment {
    year: i64,
    month: i64,
    day: i64,
    second: i64,
    nanos: u32,
}

impl Moment {
    /// Of a point in time; one before 1970 is taken for 1970, which a node without a clock says.
    pub(super) fn of(time: SystemTime) -> Self {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        let seconds = i64::try_from(since.as_secs()).unwrap_or_default();
        let (year, month, day) = date(seconds / 86_400);
        Self { year, month, day, second: seconds % 86_400, nanos: since.subsec_nanos() }
    }

    fn clock(&self) -> (i64, i64, i64) {
        (self.second / 3600, self.second / 60 % 60, self.second % 60)
    }

    /// RFC 3339 with milliseconds.
    fn to_rfc3339(&self) -> String {
        let (hour, minute, second) = self.clock();
        let (Self { year, month, day, .. }, millis) = (self, self.nanos / 1_000_000);
        format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{millis:03}Z")
    }

    /// For the name of a file: sorts as the moments do, and no two processes that follow each other have the same.
    pub(super) fn to_name(&self) -> String {
        let (hour, minute, second) = self.clock();
        let Self { year, month, day, nanos, .. } = self;
        format!("{year:04}-{month:02}-{day:02}T{hour:02}-{minute:02}-{second:02}.{nanos:09}")
    }
}

/// The date of a day after 1970-01-01. Years begin in March here, so that the day that is not always there is the last.
fn date(days: i64) -> (i64, i64, i64) {
    /// Days from 0000-03-01 to 1970-01-01.
    const TO_1970: i64 = 719_468;
    /// Days in 400 years.
    const IN_400_YEARS: i64 = 146_097;
    let days = days + TO_1970;
    let (era, day_of_era) = (days / IN_400_YEARS, days % IN_400_YEARS);
    // Without the leap days of 4, and with those that every hundredth year leaves out.
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    // From March on, 5 months have 153 days.
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (era * 400 + year_of_era + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64, nanos: u32) -> SystemTime {
        UNIX_EPOCH + Duration::new(seconds, nanos)
    }

    fn line(format: Format, fields: &[(&'static str, Value)]) -> String {
        render(format, at(1_700_000_000, 7_999_999), Level::INFO, &Fields(fields.to_vec()))
    }

    #[test]
    fn moments_are_those_of_the_calendar() {
        for (seconds, wanted) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_399, "2000-02-28T23:59:59.000Z"),
            (951_782_400, "2000-02-29T00:00:00.000Z"),
            (1_709_251_199, "2024-02-29T23:59:59.000Z"),
            (1_735_689_599, "2024-12-31T23:59:59.000Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000Z"),
        ] {
            assert_eq!(Moment::of(at(seconds, 999_999)).to_rfc3339(), wanted);
        }
        assert_eq!(Moment::of(at(1_700_000_000, 7)).to_name(), "2023-11-14T22-13-20.000000007");
    }

    #[test]
    fn both_forms_have_the_same_fields_in_the_same_order() {
        let fields = [
            ("step", Value::Text("attach".to_owned())),
            ("message", Value::Text("it is done".to_owned())),
            ("ms", Value::Plain("0.4".to_owned())),
            ("none", Value::Text(String::new())),
        ];
        assert_eq!(
            line(Format::Text, &fields),
            "time=2023-11-14T22:13:20.007Z level=INFO msg=\"it is done\" step=attach ms=0.4\n"
        );
        assert_eq!(
            line(Format::Json, &fields),
            "{\"time\":\"2023-11-14T22:13:20.007Z\",\"level\":\"INFO\",\"msg\":\"it is done\",\"step\":\"attach\",\"ms\":0.4}\n"
        );
    }

    #[test]
    fn whatever_is_in_a_value_the_line_is_one_and_tells_it() {
        let odd = "a\nb\r\"c\" d=e\\ \t\u{1b}[31m\u{85}\u{2028}\u{202e}ü";
        for format in [Format::Text, Format::Json] {
            let line = line(format, &[("odd", Value::Text(odd.to_owned()))]);
            assert_eq!(line.matches(|c: char| c.is_control() || c == '\u{2028}').count(), 1, "{line}");
            let quoted = &line[line.find("\"a").unwrap()..line.rfind('"').unwrap() + 1];
            assert_eq!(serde_json::from_str::<String>(quoted).unwrap(), odd, "{line}");
        }
        for odd in ["a=b", "a b", "a\"", "a\\", "a\nb"] {
            assert!(line(Format::Text, &[("k", Value::Text(odd.to_owned()))]).contains("k=\""), "{odd}");
        }
        let long = line(Format::Text, &[("k", Value::Text("ü".repeat(5000)))]);
        assert!(long.ends_with("ü…\"\n") && long.len() < 4200, "{}", long.len());
    }
}
