//! Who holds an address, and how a lease file says so.

use std::fmt;

use crate::Error;

/// host-local's separator between container ID and interface name.
const SEPARATOR: &str = "\r\n";

/// The holder of an address: one interface of one container.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Owner {
    container: String,
    interface: String,
}

impl Owner {
    /// An owner whose words can stand in a lease file and be found again.
    ///
    /// # Errors
    /// [`Error::Owner`] if the container ID is none by the CNI specification (a letter or digit, then letters,
    /// digits, `_`, `.` and `-`), or the interface name is empty or has white space or control characters in it.
    pub fn new(container: &str, interface: &str) -> Result<Owner, Error> {
        if !is_name(container) || !is_interface(interface) {
            return Err(Error::Owner { container: container.to_owned(), interface: interface.to_owned() });
        }
        Ok(Owner { container: container.to_owned(), interface: interface.to_owned() })
    }

    /// The container ID.
    pub fn container(&self) -> &str {
        &self.container
    }

    /// The interface name in the container.
    pub fn interface(&self) -> &str {
        &self.interface
    }

    /// What host-local writes into the lease file: `CID\r\nIFNAME`, no newline at the end.
    pub(crate) fn content(&self) -> String {
        format!("{}{SEPARATOR}{}", self.container, self.interface)
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}/{}", self.container, self.interface)
    }
}

/// What a lease file says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Claim {
    /// Container and interface.
    Of(Owner),
    /// The container alone, as host-local wrote before it knew interfaces: any interface of it may be meant.
    OfContainer(String),
    /// Words no CNI program writes, say an administrator's note: held, and nobody's to give back.
    Foreign(String),
    /// Nothing, or bytes that are no text: what a writer leaves that died between creating and writing the file, or
    /// a power cut. While the pool's lock is held nobody is about to write it, so it stands for no one.
    Orphan,
}

impl Claim {
    /// Reads a lease file's content; white space around it does not count, as in host-local.
    pub(crate) fn read(content: &[u8]) -> Claim {
        let Ok(text) = std::str::from_utf8(content) else { return Claim::Orphan };
        let text = text.trim();
        if text.is_empty() || text.contains('\0') {
            return Claim::Orphan;
        }
        match text.split_once(SEPARATOR) {
            Some((container, interface)) => {
                Owner::new(container, interface).map_or_else(|_| Claim::Foreign(text.to_owned()), Claim::Of)
            }
            None if is_name(text) => Claim::OfContainer(text.to_owned()),
            None => Claim::Foreign(text.to_owned()),
        }
    }

    /// The claim of an interface of a container; without a name of it that of the old format.
    pub(crate) fn of(container: &str, interface: &str) -> Option<Claim> {
        match interface {
            "" => Some(Claim::OfContainer(container.to_owned())),
            _ => Owner::new(container, interface).ok().map(Claim::Of),
        }
    }

    /// Whether `owner` may call this its own.
    pub(crate) fn is_of(&self, owner: &Owner) -> bool {
        match self {
            Claim::Of(found) => found == owner,
            Claim::OfContainer(container) => *container == owner.container,
            Claim::Foreign(_) | Claim::Orphan => false,
        }
    }

    /// The container that holds the address, if the file names one.
    pub(crate) fn container(&self) -> Option<&str> {
        match self {
            Claim::Of(owner) => Some(&owner.container),
            Claim::OfContainer(container) => Some(container),
            Claim::Foreign(_) | Claim::Orphan => None,
        }
    }
}

/// Container IDs and network names, as the CNI specification has them.
pub(crate) fn is_name(text: &str) -> bool {
    let mut bytes = text.bytes();
    bytes.next().is_some_and(|first| first.is_ascii_alphanumeric())
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-'))
}

fn is_interface(text: &str) -> bool {
    !text.is_empty() && !text.chars().any(|c| c.is_whitespace() || c.is_control())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lease_files_are_read_as_host_local_reads_them() {
        let owner = Owner::new("c0ffee", "eth0").unwrap();
        assert_eq!(owner.content().as_bytes(), b"c0ffee\r\neth0");
        let table: [(&[u8], Claim); 11] = [
            (b"c0ffee\r\neth0", Claim::Of(owner.clone())),
            (b" \tc0ffee\r\neth0\n\n", Claim::Of(owner.clone())),
            (b"c0ffee", Claim::OfContainer("c0ffee".to_owned())),
            (b"c0ffee\r\n", Claim::OfContainer("c0ffee".to_owned())),
            (b"", Claim::Orphan),
            (b" \r\n ", Claim::Orphan),
            (b"\0\0\0\0", Claim::Orphan),
            (b"c0ffee\r\n\0\0\0\0", Claim::Orphan),
            (b"\xff\xfe\xfd", Claim::Orphan),
            (b"reserved for the printer", Claim::Foreign("reserved for the printer".to_owned())),
            (b"c0ffee\neth0", Claim::Foreign("c0ffee\neth0".to_owned())),
        ];
        for (content, claim) in table {
            assert_eq!(Claim::read(content), claim, "{content:?}");
        }
    }

    #[test]
    fn the_old_format_is_of_every_interface_of_its_container() {
        let net1 = Owner::new("c0ffee", "net1").unwrap();
        assert!(Claim::read(b"c0ffee").is_of(&net1));
        assert!(!Claim::read(b"c0ffee\r\neth0").is_of(&net1));
        assert!(!Claim::read(b"c0ffe").is_of(&net1));
    }

    #[test]
    fn words_that_would_not_be_found_again_are_refused() {
        for (container, interface) in
            [("", "eth0"), ("-a", "eth0"), ("a b", "eth0"), ("a\r\nb", "eth0"), ("a", ""), ("a", "e\n")]
        {
            let error = Owner::new(container, interface).unwrap_err();
            assert!(matches!(&error, Error::Owner { container: c, .. } if c == container), "{error}");
        }
    }
}
