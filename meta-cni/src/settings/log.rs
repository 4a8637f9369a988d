//! What the configuration says of the log: Multus' keys, and `logFormat`.

use std::path::PathBuf;

use serde_json::{Value, json};
use tracing::Level;

use crate::{
    cni::{Error, Object},
    log::{DAY, Format, LogSettings, Rotation},
};

/// The keys of `logOptions`.
pub(super) const OPTIONS: [&str; 4] = ["maxSize", "maxBackups", "maxAge", "compress"];

const MIB: f64 = 1_048_576.0;

impl LogSettings {
    /// Reads the keys.
    ///
    /// # Errors
    /// [`Error::Config`] that names the key.
    pub fn read(conf: &Object) -> Result<Self, Error> {
        let file = Some(conf.text("logFile")?).filter(|text| !text.is_empty()).map(PathBuf::from);
        if let Some(path) = file.as_ref().filter(|path| !path.is_absolute()) {
            return Err(Error::Config(format!("\"logFile\": \"{}\" is no absolute path", path.display())));
        }
        Ok(Self {
            file,
            level: level(&conf.text("logLevel")?)?,
            to_stderr: conf.raw("logToStderr").is_none() || conf.switch("logToStderr")?,
            format: match conf.text("logFormat")?.as_str() {
                "" | "text" => Format::Text,
                "json" => Format::Json,
                other => return Err(Error::Config(format!("\"logFormat\" is text or json, not \"{other}\""))),
            },
            rotation: rotation(&conf.get("logOptions")?.unwrap_or_default())?,
        })
    }

    /// The keys that [`Self::read`] reads the same from, but for stderr: for a process that has none.
    pub(crate) fn to_keys(&self) -> Value {
        let Rotation { max_size, max_backups, max_age } = self.rotation;
        let mut keys = json!({
            "logToStderr": false,
            "logFormat": match self.format { Format::Text => "text", Format::Json => "json" },
            "logOptions": {"maxSize": mebibytes(max_size), "maxBackups": max_backups,
                           "maxAge": max_age.map_or(0, |age| age.as_secs() / DAY.as_secs())},
        });
        if let Some(file) = &self.file {
            keys["logFile"] = json!(file);
        }
        if let Some(level) = self.level {
            keys["logLevel"] =
                json!(if level == Level::TRACE { "debug".to_owned() } else { level.as_str().to_lowercase() });
        }
        keys
    }

    /// For a plugin that is called by itself: what cannot be understood is no reason not to attach.
    #[must_use]
    pub fn at_best(conf: &Object) -> Self {
        Self::read(conf).unwrap_or_default()
    }
}

fn rotation(options: &Object) -> Result<Rotation, Error> {
    let default = Rotation::default();
    let number = |key| -> Result<Option<u32>, Error> {
        options.get::<u32>(key).map_err(|error| Error::Config(format!("\"logOptions\": {error}")))
    };
    let mebibytes = options.get::<f64>("maxSize").map_err(|error| Error::Config(format!("\"logOptions\": {error}")))?;
    let max_size = match mebibytes {
        None | Some(0.0) => default.max_size,
        Some(size) if size > 0.0 && size <= 1e6 => bytes(size),
        Some(size) => {
            return Err(Error::Config(format!("\"logOptions\": \"maxSize\" is a number of MiB, not {size}")));
        }
    };
    let days = number("maxAge")?.map(|days| (days > 0).then(|| DAY * days));
    Ok(Rotation {
        max_size,
        max_backups: number("maxBackups")?.map_or(default.max_backups, |count| count as usize),
        max_age: days.unwrap_or(default.max_age),
    })
}

#[expect(clippy::cast_precision_loss, reason = "below 2^53")]
fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / MIB
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 0 and 10^12")]
fn bytes(mebibytes: f64) -> u64 {
    (mebibytes * MIB) as u64
}

fn level(name: &str) -> Result<Option<Level>, Error> {
    Ok(Some(match name {
        "" => return Ok(None),
        "panic" | "error" => Level::ERROR,
        "warning" | "warn" => Level::WARN,
        "verbose" | "info" => Level::INFO,
        "debug" => Level::DEBUG,
        other => {
            return Err(Error::Config(format!(
                "\"logLevel\": \"{other}\" is none of error, warning, info, debug (or Multus' panic, verbose)"
            )));
        }
    }))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn read(text: &str) -> Result<LogSettings, Error> {
        LogSettings::read(&Object::parse("conf", text.as_bytes()).unwrap())
    }

    fn refusal(text: &str) -> String {
        match read(text) {
            Err(Error::Config(message)) => message,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn defaults_and_zeros_are_those_of_multus() {
        for text in ["{}", r#"{"logFile":"","logOptions":{}}"#, r#"{"logOptions":{"maxSize":0}}"#] {
            let settings = read(text).unwrap();
            assert_eq!((settings.file, settings.level, settings.to_stderr), (None, None, true), "{text}");
            assert_eq!(settings.format, Format::Text);
            let rotation = settings.rotation;
            assert_eq!((rotation.max_size, rotation.max_backups), (100 << 20, 5), "{text}");
            assert_eq!(rotation.max_age, Some(Duration::from_secs(5 * 86400)));
        }
        let settings =
            read(r#"{"logFormat":"json","logOptions":{"maxsize":0.5,"maxBackups":0,"maxAge":0,"compress":true}}"#);
        let LogSettings { format, rotation, .. } = settings.unwrap();
        assert_eq!((format, rotation), (Format::Json, Rotation { max_size: 524_288, max_backups: 0, max_age: None }));
    }

    #[test]
    fn the_levels_of_multus_mean_the_nearest_of_ours() {
        let pairs =
            [("panic", Level::ERROR), ("error", Level::ERROR), ("verbose", Level::INFO), ("debug", Level::DEBUG)];
        for (name, wanted) in pairs {
            assert_eq!(read(&format!(r#"{{"logLevel":"{name}"}}"#)).unwrap().level, Some(wanted));
        }
    }

    #[test]
    fn what_is_handed_on_reads_the_same() {
        for text in [
            "{}",
            r#"{"logFile":"/var/log/x","logLevel":"panic","logFormat":"json","logOptions":{"maxSize":0.5,"maxAge":0}}"#,
            r#"{"logLevel":"warning","logOptions":{"maxBackups":3,"maxAge":9}}"#,
        ] {
            let settings = read(text).unwrap();
            let again = read(&settings.to_keys().to_string()).unwrap();
            assert_eq!(format!("{again:?}"), format!("{:?}", LogSettings { to_stderr: false, ..settings }));
        }
    }

    #[test]
    fn wrong_values_name_their_key() {
        assert!(refusal(r#"{"logLevel":"loud"}"#).contains("\"logLevel\": \"loud\""));
        assert!(refusal(r#"{"logFormat":"xml"}"#).contains("\"logFormat\" is text or json, not \"xml\""));
        assert!(refusal(r#"{"logFile":"x.log"}"#).contains("\"logFile\": \"x.log\" is no absolute path"));
        assert!(refusal(r#"{"logOptions":{"maxSize":-1}}"#).contains("\"maxSize\" is a number of MiB, not -1"));
        assert!(refusal(r#"{"logOptions":{"maxBackups":-1}}"#).contains("maxBackups"));
        assert!(refusal(r#"{"logOptions":{"maxAge":"long"}}"#).contains("maxAge"));
    }
}
