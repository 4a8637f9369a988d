//! Sysctls of a namespace. /proc/sys/net shows the namespace of the task that opens the file, so a thread that entered
//! the namespace sees the pod's tree through any mount of /proc.

use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

use crate::{Error, Netns};

/// One sysctl below net/, such as `ipv4/conf/net1/arp_notify`, and its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sysctl {
    /// The path below /proc/sys/net; components are separated by `/`, so an interface name may contain a dot.
    pub key: String,
    /// What to write.
    pub value: String,
    /// A key that is not there (IPv6 disabled, an old kernel) is no error.
    pub optional: bool,
}

fn path_of(key: &str) -> Result<PathBuf, Error> {
    let relative = Path::new(key);
    if key.is_empty() || !relative.components().all(|part| matches!(part, Component::Normal(_))) {
        let source = io::Error::new(io::ErrorKind::InvalidInput, "not a key below /proc/sys/net");
        return Err(Error::Sysctl { key: key.to_owned(), source });
    }
    Ok(Path::new("/proc/sys/net").join(relative))
}

/// Writes all of them inside the namespace, on one thread; stops at the first error.
pub fn write_sysctls(netns: &Netns, sysctls: &[Sysctl]) -> Result<(), Error> {
    netns.run("write sysctls", || {
        for Sysctl { key, value, optional } in sysctls {
            match fs::write(path_of(key)?, value) {
                Ok(()) => {}
                Err(error) if *optional && error.kind() == io::ErrorKind::NotFound => {
                    tracing::debug!(key, "sysctl is not there");
                }
                Err(source) => return Err(Error::Sysctl { key: key.clone(), source }),
            }
        }
        Ok(())
    })
}

/// The value inside the namespace, without the line end.
pub fn read_sysctl(netns: &Netns, key: &str) -> Result<String, Error> {
    let path = path_of(key)?;
    netns.run("read a sysctl", || {
        let text = fs::read_to_string(path).map_err(|source| Error::Sysctl { key: key.to_owned(), source })?;
        Ok(text.trim_end().to_owned())
    })
}
