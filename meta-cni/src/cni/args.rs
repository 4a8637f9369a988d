//! `CNI_ARGS`: pairs of key and value between runtime and plugin.

use super::Error;

/// The key that lets a plugin pass over keys that it does not know.
const IGNORE_UNKNOWN: &str = "IgnoreUnknown";

/// The pairs of `CNI_ARGS` in their order.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct CniArgs(Vec<(String, String)>);

impl CniArgs {
    /// Parses `KEY=VALUE;KEY=VALUE`. A trailing semicolon is accepted.
    ///
    /// # Errors
    /// [`Error::Environment`] for a part that is not exactly one pair, as libcni's `LoadArgs`.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let mut pairs = Vec::new();
        for part in text.split(';').filter(|part| !part.is_empty()) {
            match part.split_once('=') {
                Some((key, value)) if !value.contains('=') => pairs.push((key.to_owned(), value.to_owned())),
                _ => return Err(Error::Environment(format!("ARGS: invalid pair \"{part}\""))),
            }
        }
        Ok(Self(pairs))
    }

    /// The value of a key, empty when it is missing.
    #[must_use]
    pub fn get(&self, key: &str) -> &str {
        self.0.iter().rev().find(|(name, _)| name == key).map_or("", |(_, value)| value)
    }

    /// Refuses keys that a plugin does not know, unless `IgnoreUnknown` is set.
    ///
    /// # Errors
    /// [`Error::Environment`] with the words of libcni's `LoadArgs`; a value of `IgnoreUnknown` that is neither true nor
    /// false is one, too.
    pub fn refuse_unknown(&self, known: &[&str]) -> Result<(), Error> {
        let is_known = |key: &str| key == IGNORE_UNKNOWN || known.contains(&key);
        let unknown: Vec<String> =
            self.0.iter().filter(|(key, _)| !is_known(key)).map(|(key, value)| format!("\"{key}={value}\"")).collect();
        let ignore = self.get(IGNORE_UNKNOWN);
        match ignore.to_ascii_lowercase().as_str() {
            "1" | "true" => Ok(()),
            "0" | "false" | "" if unknown.is_empty() => Ok(()),
            "0" | "false" | "" => Err(Error::Environment(format!("ARGS: unknown args [{}]", unknown.join(" ")))),
            _ => Err(Error::Environment(format!(
                "ARGS: error parsing value of pair \"{IGNORE_UNKNOWN}={ignore}\": boolean unmarshal error: invalid input {ignore}"
            ))),
        }
    }

    /// The same arguments with one more pair; an existing one of that key is replaced.
    #[must_use]
    pub fn with(mut self, key: &str, value: &str) -> Self {
        self.0.retain(|(name, _)| name != key);
        self.0.push((key.to_owned(), value.to_owned()));
        self
    }

    /// The text that a plugin gets: every key once, and `IgnoreUnknown`, because a plugin knows few of them.
    #[must_use]
    pub fn to_text(&self) -> String {
        let mut pairs: Vec<(&str, &str)> = Vec::new();
        for (key, value) in &self.0 {
            pairs.retain(|(name, _)| *name != key.as_str());
            pairs.push((key.as_str(), value.as_str()));
        }
        if !pairs.is_empty() && !pairs.iter().any(|(key, _)| *key == IGNORE_UNKNOWN) {
            pairs.insert(0, (IGNORE_UNKNOWN, "1"));
        }
        pairs.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(";")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_is_passed_on_once() {
        let args = CniArgs::parse("IgnoreUnknown=1;K8S_POD_NAME=a;K8S_POD_NAME=b;").unwrap().with("IP", "10.0.0.1");
        assert_eq!(args.to_text(), "IgnoreUnknown=1;K8S_POD_NAME=b;IP=10.0.0.1");
        assert_eq!(args.get("K8S_POD_NAME"), "b");
        assert_eq!(CniArgs::default().to_text(), "");
        assert_eq!(CniArgs::default().with("MAC", "m").to_text(), "IgnoreUnknown=1;MAC=m");
    }

    #[test]
    fn unknown_keys_are_refused_unless_they_are_to_be_ignored() {
        let refused = |text: &str| CniArgs::parse(text).unwrap().refuse_unknown(&["IP"]).err().map(|e| e.to_string());
        for text in ["", "IP=10.0.0.1", "IP=10.0.0.1;A=b;IgnoreUnknown=1", "IgnoreUnknown=True;A=b", "IgnoreUnknown=0"]
        {
            assert_eq!(refused(text), None, "{text}");
        }
        let words = Some(r#"ARGS: unknown args ["A=b" "ip=c"]"#);
        assert_eq!(refused("A=b;IgnoreUnknown=0;ip=c").as_deref(), words);
        assert_eq!(refused("A=b;ip=c").as_deref(), words);
        assert!(refused("IgnoreUnknown=maybe").unwrap().ends_with("boolean unmarshal error: invalid input maybe"));
    }

    #[test]
    fn a_part_that_is_no_pair_is_refused_with_its_text() {
        for text in ["a", "a=b=c", "a=b;c"] {
            assert!(
                matches!(CniArgs::parse(text), Err(Error::Environment(message)) if message.contains("invalid pair"))
            );
        }
    }
}
