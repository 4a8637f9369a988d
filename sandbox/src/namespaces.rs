//! The network namespaces of the node. The kernel has no list of them; they are where somebody holds one: a mount, a
//! process, a thread, an open descriptor. One that only a socket holds cannot be found from outside.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::{Links, Netns, Rtnl};

/// Where `ip netns` and most runtimes mount namespaces.
const NAMED: &str = "/run/netns";
/// How /proc and nsfs write a network namespace, before its inode.
const NSFS_PREFIX: &str = "net:[";
/// The inodes of namespaces (PROC_DYNAMIC_FIRST in fs/proc/generic.c and above).
const NSFS_INODES: std::ops::RangeInclusive<u64> = 0xf000_0000..=0xffff_ffff;

/// All network namespaces that can be reached from here, each once, the cheap to find first: mounts of nsfs, /run/netns,
/// those that processes live in, and last those of single threads and open descriptors, for which every descriptor of
/// the node has to be looked at. Lazy: who finds what he looks for goes no further. What ends meanwhile is left out.
pub fn namespaces() -> impl Iterator<Item = Netns> {
    let mut seen = HashSet::new();
    let cheap = mounted().into_iter().chain(entries(NAMED));
    let homes = std::iter::once_with(processes).flatten().map(|process| process.join("ns/net"));
    let rest = std::iter::once_with(processes).flatten().flat_map(|process| held_by(&process));
    cheap.chain(homes).chain(rest).filter_map(move |path| {
        // Looked at before it is opened: most paths lead to the same few.
        let meta = fs::metadata(&path).ok()?;
        if seen.contains(&(meta.dev(), meta.ino())) {
            return None;
        }
        // Entering it tells a network namespace from the other kinds.
        match Netns::open(&path).and_then(Netns::identified) {
            Ok(netns) => seen.insert((netns.id().dev, netns.id().inode)).then_some(netns),
            Err(error) => {
                seen.insert((meta.dev(), meta.ino()));
                tracing::debug!(path = %path.display(), %error, "not a network namespace that can be entered");
                None
            }
        }
    })
}

/// The namespace that holds the interface of a parent device, for a VF its PCI address. None also on kernels before
/// 5.14, which do not report the parent, and for what only a socket keeps alive.
pub async fn namespace_of_device(parent_dev: &str) -> Option<Netns> {
    for netns in namespaces() {
        match holds(&netns, parent_dev).await {
            Ok(true) => return Some(netns),
            Ok(false) => {}
            Err(error) => tracing::debug!(netns = %netns.path().display(), %error, "cannot be searched"),
        }
    }
    None
}

async fn holds(netns: &Netns, parent_dev: &str) -> Result<bool, crate::Error> {
    Ok(!Rtnl::open(netns)?.by_parent(parent_dev).await?.is_empty())
}

fn mounted() -> Vec<PathBuf> {
    let text = fs::read("/proc/thread-self/mountinfo").unwrap_or_default();
    text.split(|byte| *byte == b'\n').filter_map(mount_point).collect()
}

/// The mount point of a line of mountinfo (proc_pid_mountinfo(5)) that mounts a network namespace.
fn mount_point(line: &[u8]) -> Option<PathBuf> {
    let mut words = line.split(|byte| *byte == b' ');
    let root = words.nth(3)?;
    root.starts_with(NSFS_PREFIX.as_bytes()).then_some(())?;
    Some(PathBuf::from(std::ffi::OsString::from_vec(unescape(words.next()?))))
}

/// Blanks, tabs, line ends and backslashes in a path are written as three octal digits.
fn unescape(word: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(word.len());
    let mut rest = word;
    while let Some((byte, tail)) = rest.split_first() {
        let digits = tail.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(code) if *byte == b'\\' => {
                plain.push(code);
                rest = &tail[3..];
            }
            _ => {
                plain.push(*byte);
                rest = tail;
            }
        }
    }
    plain
}

fn entries(directory: impl AsRef<Path>) -> Vec<PathBuf> {
    fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

fn processes() -> Vec<PathBuf> {
    let is_pid = |name: Option<&OsStr>| name.is_some_and(|name| name.as_bytes().iter().all(u8::is_ascii_digit));
    let mut found = entries("/proc");
    found.retain(|path| is_pid(path.file_name()));
    found
}

/// What threads of a process live in and what it has open.
fn held_by(process: &Path) -> Vec<PathBuf> {
    let threads = entries(process.join("task")).into_iter().map(|thread| thread.join("ns/net"));
    threads.chain(entries(process.join("fd")).into_iter().filter(|fd| may_be_netns(process, fd))).collect()
}

/// A descriptor shows as `net:[...]`, or as a path if the namespace was opened by way of a mount. Then its inode tells,
/// as the kernel wrote it down: to look at the file itself might hang, if it is on a server that does not answer.
fn may_be_netns(process: &Path, fd: &Path) -> bool {
    let Ok(target) = fs::read_link(fd) else { return false };
    if target.as_os_str().as_bytes().starts_with(NSFS_PREFIX.as_bytes()) {
        return true;
    }
    let (true, Some(number)) = (target.is_absolute(), fd.file_name()) else { return false };
    let info = fs::read_to_string(process.join("fdinfo").join(number)).unwrap_or_default();
    let inode = info.lines().find_map(|line| line.strip_prefix("ino:")?.trim().parse().ok());
    inode.is_some_and(|inode: u64| NSFS_INODES.contains(&inode))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_of_namespaces_are_told_from_others_in_mountinfo() {
        let lines = [
            ("41 23 0:4 net:[4026532008] /run/netns/a rw shared:7 - nsfs nsfs rw", Some("/run/netns/a")),
            (r"42 23 0:4 net:[4026532009] /tmp/with\040blank\134x rw - nsfs nsfs rw", Some(r"/tmp/with blank\x")),
            ("43 23 0:4 mnt:[4026532010] /run/snapd/ns/x rw - nsfs nsfs rw", None),
            ("44 23 8:1 / / rw - ext4 /dev/sda1 rw", None),
            ("", None),
        ];
        for (line, wanted) in lines {
            assert_eq!(mount_point(line.as_bytes()), wanted.map(PathBuf::from), "{line}");
        }
    }
}
