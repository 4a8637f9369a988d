//! Telling the neighbours that an address is here now, so that their caches do not lead to whoever had it before.

use std::ffi::OsString;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddrV6};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use nix::sys::socket::sockopt::{BindToDevice, Ipv6MulticastHops};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn6, bind, sendto, setsockopt, socket,
};

use crate::{Error, IfName, Link, Links, MacAddr, Rtnl, Sysctl, raw};

/// How long a carrier is waited for.
pub const ANNOUNCE_LIMIT: Duration = Duration::from_millis(200);
/// An ARP packet (linux/if_ether.h).
pub(crate) const ETH_P_ARP: u16 = 0x0806;
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// What to set on an interface after it arrived in the pod and before it goes up: settings made before a move are lost
/// with it. The first two make the kernel tell the neighbours of later changes (Documentation/networking/ip-sysctl.rst);
/// `optimistic_dad` makes IPv6 addresses usable at once.
pub fn announcing_sysctls(name: &IfName) -> Vec<Sysctl> {
    let set = |family: &str, key: &str| Sysctl {
        key: format!("{family}/conf/{name}/{key}"),
        value: "1".to_owned(),
        optional: true,
    };
    vec![set("ipv4", "arp_notify"), set("ipv6", "ndisc_notify"), set("ipv6", "optimistic_dad")]
}

/// Announces addresses of an interface: a gratuitous ARP request for each of IPv4, an unsolicited neighbour
/// advertisement for each of IPv6, through this interface alone. What the kernel sends by itself comes too early, when the
/// interface goes up without its addresses. A frame needs a carrier: it is waited for by events, at most
/// [`ANNOUNCE_LIMIT`]. `link` is as it was read after [`Links::subscribe`] on `links`, so that no event is missed. Takes the
/// namespace's socket and closes it, for an open one keeps the namespace alive. Every address is tried; the first error
/// is returned.
pub async fn announce(links: Rtnl, link: &Link, addresses: &[IpAddr]) -> Result<(), Error> {
    let Some(mac) = link.mac else { return Ok(()) };
    links.subscribe().await?;
    if !link.carrier {
        let carrier = tokio::time::timeout(ANNOUNCE_LIMIT, links.carrier_event(link.index)).await;
        carrier.map_err(|_| Error::Unverified {
            object: link.name.clone(),
            wanted: "a carrier".to_owned(),
            found: format!("none within {} ms", ANNOUNCE_LIMIT.as_millis()),
        })??;
    }
    links.netns().run("announce addresses", || {
        let mut first = Ok(());
        for address in addresses {
            let sent = match address {
                IpAddr::V4(v4) => send_arp(link.index, mac, *v4),
                IpAddr::V6(v6) => send_advertisement(link, mac, *v6),
            };
            let failed = |source| Error::Announce { address: *address, name: link.name.clone(), source };
            first = first.and(sent.map_err(failed));
        }
        first
    })
}

/// A socket that does not block.
pub(crate) fn open(family: AddressFamily, kind: SockType, protocol: Option<SockProtocol>) -> io::Result<OwnedFd> {
    Ok(socket(family, kind, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, protocol)?)
}

fn send_arp(index: u32, mac: MacAddr, address: Ipv4Addr) -> io::Result<()> {
    // Without a protocol the socket receives nothing.
    let socket = open(AddressFamily::Packet, SockType::Datagram, None)?;
    let everybody = raw::station(index, ETH_P_ARP, MacAddr::BROADCAST).ok_or(io::ErrorKind::InvalidInput)?;
    sendto(socket.as_raw_fd(), &gratuitous_arp(mac, address), &everybody, MsgFlags::empty())?;
    Ok(())
}

fn send_advertisement(link: &Link, mac: MacAddr, address: Ipv6Addr) -> io::Result<()> {
    let socket = open(AddressFamily::Inet6, SockType::Raw, Some(SockProtocol::IcmpV6))?;
    setsockopt(&socket, BindToDevice, &OsString::from(&link.name))?;
    // Receivers drop what a router may have passed on (RFC 4861, 7.1.2).
    setsockopt(&socket, Ipv6MulticastHops, &255)?;
    let at = |ip| SockaddrIn6::from(SocketAddrV6::new(ip, 0, 0, link.index));
    bind(socket.as_raw_fd(), &at(address))?;
    sendto(socket.as_raw_fd(), &advertisement(mac, address), &at(ALL_NODES), MsgFlags::empty())?;
    Ok(())
}

/// An ARP request (RFC 826) whose sender asks for its own address, as sriov-cni and the kernel send it.
fn gratuitous_arp(mac: MacAddr, address: Ipv4Addr) -> Vec<u8> {
    arp_request(mac, address, address)
}

/// An ARP request: `sender` asks who has `target`.
pub(crate) fn arp_request(mac: MacAddr, sender: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    // Ethernet, IPv4, the lengths of their addresses, request.
    let head = [0, 1, 8, 0, 6, 4, 0, 1];
    [&head[..], &mac.0, &sender.octets(), &MacAddr::ZERO.0, &target.octets()].concat()
}

/// An unsolicited neighbour advertisement (RFC 4861, 4.4): "override" is set, an option tells the link-layer address. The
/// kernel fills in the checksum.
fn advertisement(mac: MacAddr, address: Ipv6Addr) -> Vec<u8> {
    let head = [136, 0, 0, 0, 0x20, 0, 0, 0];
    [&head[..], &address.octets(), &[2, 1], &mac.0].concat()
}
