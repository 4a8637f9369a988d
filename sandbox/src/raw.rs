//! The only unsafe code of the house: a socket option that no crate in use knows.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use nix::errno::Errno;
use nix::libc;

/// The cookie of the network namespace that a socket belongs to (SO_NETNS_COOKIE, Linux 5.14): a number that no other
/// namespace has or will have in this boot. None where the kernel does not know it.
pub(crate) fn netns_cookie(socket: &impl AsFd) -> io::Result<Option<u64>> {
    let mut cookie: u64 = 0;
    let mut length = size_of::<u64>() as libc::socklen_t;
    let fd = socket.as_fd().as_raw_fd();
    let value = (&raw mut cookie).cast();
    // SAFETY: `fd` is open as long as `socket` is borrowed. The kernel writes at most `length` bytes to `value`, which
    // is that long, and the length; both live until the call returns.
    let done = unsafe { libc::getsockopt(fd, libc::SOL_SOCKET, libc::SO_NETNS_COOKIE, value, &raw mut length) };
    match Errno::result(done) {
        Ok(_) => Ok(Some(cookie)),
        Err(Errno::ENOPROTOOPT) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}
