//! resolv.conf, read as host-local reads it.

use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::fcntl::OFlag;
use serde::{Deserialize, Serialize};

use crate::Error;

/// More than this is no resolv.conf. A definition may name any file, `/dev/zero` too.
const LONGEST: u64 = 1 << 20;

/// What a resolver needs, with the names of a CNI result.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Dns {
    /// Name servers, in order of preference, as written.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_is_empty")]
    pub nameservers: Vec<String>,
    /// The local domain.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
    /// Domains to search for short names.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_is_empty")]
    pub search: Vec<String>,
    /// Options of the resolver.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_is_empty")]
    pub options: Vec<String>,
}

impl Dns {
    /// Reads a resolv.conf file.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be read, or is no plain file of text.
    pub fn read(path: &Path) -> Result<Dns, Error> {
        let read = || -> io::Result<String> {
            // A FIFO that somebody planted is not waited for.
            let file = OpenOptions::new().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path)?;
            if !file.metadata()?.is_file() {
                return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no plain file"));
            }
            let mut text = String::new();
            file.take(LONGEST + 1).read_to_string(&mut text)?;
            match u64::try_from(text.len()).is_ok_and(|length| length <= LONGEST) {
                true => Ok(text),
                false => Err(io::Error::new(io::ErrorKind::FileTooLarge, "it is too large for a resolv.conf")),
            }
        };
        Ok(Dns::parse(&read().map_err(|source| Error::io("read", path, source))?))
    }

    /// Reads the text of a resolv.conf: the last `domain` wins, all other keywords add up (glibc keeps the last
    /// `search` only; host-local keeps all). Comments, unknown keywords and keywords without a value are passed over.
    pub fn parse(text: &str) -> Dns {
        let mut dns = Dns::default();
        for line in text.lines().map(str::trim).filter(|line| !line.starts_with(['#', ';'])) {
            let mut words = line.split_whitespace();
            let (Some(keyword), Some(first)) = (words.next(), words.next()) else { continue };
            let all = std::iter::once(first).chain(words).map(str::to_owned);
            match keyword {
                "nameserver" => dns.nameservers.push(first.to_owned()),
                "domain" => dns.domain = Some(first.to_owned()),
                "search" => dns.search.extend(all),
                "options" => dns.options.extend(all),
                _ => {}
            }
        }
        dns
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        *self == Dns::default()
    }
}

/// Go reads null as an empty list.
fn null_is_empty<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_keyword_is_read_and_noise_is_passed_over() {
        let dns = Dns::parse(
            "# a comment\n; another\n\n  nameserver 192.0.2.1  # trailing\nnameserver\t192.0.2.2\ndomain a.example\n\
             domain b.example\nsearch b.example c.example\nsearch d.example\noptions ndots:5 edns0\nsortlist 10.0.0.0\nnameserver\n",
        );
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        assert_eq!(dns.nameservers, words(&["192.0.2.1", "192.0.2.2"]));
        assert_eq!(dns.domain.as_deref(), Some("b.example"));
        assert_eq!(dns.search, words(&["b.example", "c.example", "d.example"]));
        assert_eq!(dns.options, words(&["ndots:5", "edns0"]));
        assert!(Dns::parse("# nothing\n").is_empty());
    }

    #[test]
    fn a_written_one_may_leave_out_anything() {
        let dns: Dns = serde_json::from_str(r#"{"nameservers":null,"search":["example"]}"#).unwrap();
        assert_eq!(serde_json::to_string(&dns).unwrap(), r#"{"search":["example"]}"#);
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = Dns::read(Path::new("/nonexistent/resolv.conf")).unwrap_err();
        assert!(
            matches!(&error, Error::Io { path, step: "read", source }
                if path == Path::new("/nonexistent/resolv.conf") && source.raw_os_error() == Some(2)),
            "{error}"
        );
    }

    #[test]
    fn what_is_no_file_of_text_is_neither_waited_for_nor_read_to_its_end() {
        let dir = tempfile::tempdir().unwrap();
        let (fifo, large) = (dir.path().join("fifo"), dir.path().join("large"));
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRUSR).unwrap();
        std::fs::write(&large, "#".repeat(1 << 21)).unwrap();
        for (path, says) in [
            (fifo.as_path(), "it is no plain file"),
            (Path::new("/dev/zero"), "it is no plain file"),
            (dir.path(), "it is no plain file"),
            (large.as_path(), "it is too large"),
        ] {
            let error = Dns::read(path).unwrap_err();
            assert!(error.to_string().contains(says), "{error}");
        }
    }
}
