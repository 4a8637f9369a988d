//! The name of an interface, by the kernel's rules.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::Error;

/// A name that the kernel accepts for an interface (`dev_valid_name` in net/core/dev.c): 1 to 15 bytes, no `/`, no `:`,
/// no white space, not `.` or `..`. A `%` is refused too: the kernel would read it as a pattern (`dev%d`).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct IfName(String);

impl IfName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<&str> for IfName {
    type Error = Error;

    fn try_from(name: &str) -> Result<Self, Error> {
        let bad = |why| Err(Error::BadName { name: name.to_owned(), why });
        if name.is_empty() {
            return bad("is empty");
        }
        if name.len() > 15 {
            return bad("is longer than 15 bytes");
        }
        if name == "." || name == ".." {
            return bad("is a directory");
        }
        if name.bytes().any(|b| matches!(b, b'/' | b':' | b'%') || b.is_ascii_whitespace() || b == 0x0b || b == 0) {
            return bad("contains a slash, a colon, a percent sign or white space");
        }
        Ok(Self(name.to_owned()))
    }
}

impl TryFrom<String> for IfName {
    type Error = Error;

    fn try_from(name: String) -> Result<Self, Error> {
        Self::try_from(name.as_str())
    }
}

impl From<IfName> for String {
    fn from(name: IfName) -> Self {
        name.0
    }
}

impl fmt::Display for IfName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn follows_the_kernels_rules() {
        for good in ["net1", "a", "enp1s0f0v12", "fifteen-bytes-x", "eth0.100"] {
            assert_eq!(IfName::try_from(good).unwrap().as_str(), good);
        }
        for bad in ["", ".", "..", "a/b", "a:b", "a b", "a\tb", "dev%d", "sixteen-bytes-xx"] {
            let Err(Error::BadName { name, .. }) = IfName::try_from(bad) else { panic!("{bad:?} was accepted") };
            assert_eq!(name, bad);
        }
    }
}
