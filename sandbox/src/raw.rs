//! The only unsafe code of the house: two things of libc that no crate in use has in a safe form.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{LinkAddr, SockaddrLike};

use crate::MacAddr;

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

/// A station behind an interface, as the receiver of a packet of `protocol` (ETH_P_*); packet(7).
pub(crate) fn station(index: u32, protocol: u16, mac: MacAddr) -> Option<LinkAddr> {
    let [a, b, c, d, e, f] = mac.0;
    let address = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as libc::sa_family_t,
        sll_protocol: protocol.to_be(),
        sll_ifindex: index.try_into().ok()?,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 6,
        sll_addr: [a, b, c, d, e, f, 0, 0],
    };
    let length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: the pointer is to a whole sockaddr_ll that lives until the call returns, and `length` is its size; the
    // callee copies it.
    unsafe { LinkAddr::from_raw((&raw const address).cast(), Some(length)) }
}
