//! Asking the neighbours whether an address is somebody else's, before it is used: ARP probes (RFC 5227, 2.1.1) and the
//! solicitations of duplicate address detection (RFC 4862, 5.4). Much faster than both want it, so only who answers at
//! once is found.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixDatagram as Datagrams;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, LinkAddr, MsgFlags, SockType, bind, recvfrom, sendto};
use tokio::io::Interest;
use tokio::net::UnixDatagram;
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::announce::{ETH_P_ARP, arp_request, open};
use crate::{Error, Link, Links, MacAddr, Rtnl, raw};

/// How long a probe takes, a carrier that has to come first included.
pub const PROBE_LIMIT: Duration = Duration::from_millis(100);
const ETH_P_IPV6: u16 = 0x86dd;
const ICMPV6: u8 = 58;
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
/// `PACKET_OTHERHOST` of packet(7).
const OTHER_HOST: u8 = 3;

/// An address that is somebody else's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Conflict {
    /// The address.
    pub address: IpAddr,
    /// Who has it, or is about to take it as well.
    pub mac: MacAddr,
}

/// What a probe found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Probed {
    /// The addresses that are somebody else's; nobody claimed the others.
    Asked(Vec<Conflict>),
    /// Nobody could be asked.
    Unknown {
        /// Why not.
        why: &'static str,
    },
}

/// Asks on an interface that is up, and without the addresses, whether they are somebody else's: all of them at once, for
/// [`PROBE_LIMIT`] unless there is an answer for each before. Who probes for the same address meanwhile is in conflict,
/// too; our own frames that come back are not. Asks twice, for a switch may lose what comes right after the carrier. A
/// carrier is waited for by events: `link` is as it was read after [`Links::subscribe`] on `links`, and knows afterwards
/// of the carrier that came.
pub async fn probe(links: &Rtnl, link: &mut Link, addresses: &[IpAddr]) -> Result<Probed, Error> {
    let deadline = Instant::now() + PROBE_LIMIT;
    let Some(mac) = link.mac else { return Ok(Probed::Unknown { why: "the interface has no Ethernet address" }) };
    links.subscribe().await?;
    let failed = |source| Error::Probe { name: link.name.clone(), source };
    let sockets = links.netns().run("probe for addresses", || Sockets::open(link.index, addresses).map_err(failed))?;
    let wires = sockets.into_wires(link.index, mac).map_err(failed)?;
    if !link.carrier {
        match timeout_at(deadline, links.carrier_event(link.index)).await {
            Ok(came) => came?,
            Err(_) => return Ok(Probed::Unknown { why: "the interface has no carrier" }),
        }
        link.carrier = true;
    }
    let failed = |source| Error::Probe { name: link.name.clone(), source };
    let mut conflicts = Vec::new();
    let asking = wires.ask(addresses, deadline, &mut conflicts);
    match timeout_at(deadline, asking).await {
        Ok(Err(source)) => Err(failed(source)),
        // All have answered, or the time is over.
        Ok(Ok(())) | Err(_) => Ok(Probed::Asked(conflicts)),
    }
}

/// What is made inside the namespace: a socket for each family that is asked about.
struct Sockets {
    arp: Option<OwnedFd>,
    ndp: Option<(OwnedFd, UdpSocket)>,
}

impl Sockets {
    fn open(index: u32, addresses: &[IpAddr]) -> io::Result<Self> {
        let mut v6 = addresses.iter().filter_map(|address| match address {
            IpAddr::V4(_) => None,
            IpAddr::V6(v6) => Some(solicited_node_group(*v6)),
        });
        let arp = if addresses.iter().any(IpAddr::is_ipv4) { Some(packets(index, ETH_P_ARP)?) } else { None };
        let ndp = match v6.next() {
            None => None,
            Some(first) => {
                // Membership makes the NIC, and a switch that looks, pass on what others ask about the address.
                let member = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0))?;
                for group in std::iter::once(first).chain(v6) {
                    match member.join_multicast_v6(&group, index) {
                        // Two addresses may share a group.
                        Err(error) if error.raw_os_error() == Some(Errno::EADDRINUSE as i32) => {}
                        joined => joined?,
                    }
                }
                Some((packets(index, ETH_P_IPV6)?, member))
            }
        };
        Ok(Self { arp, ndp })
    }

    /// Hands the sockets to the runtime.
    fn into_wires(self, index: u32, mac: MacAddr) -> io::Result<Wires> {
        // Nothing of a UnixDatagram is used but that it waits: tokio's own type for any descriptor can only be made with
        // unsafe code.
        let waiting = |socket: OwnedFd| UnixDatagram::from_std(Datagrams::from(socket));
        let (ndp, member) = self.ndp.unzip();
        let (arp, ndp) = (self.arp.map(waiting).transpose()?, ndp.map(waiting).transpose()?);
        Ok(Wires { index, mac, arp, ndp, _member: member })
    }
}

/// The packets of a protocol on one interface. A socket for all protocols would also show those of the VLANs of others,
/// without saying so.
fn packets(index: u32, protocol: u16) -> io::Result<OwnedFd> {
    let socket = open(AddressFamily::Packet, SockType::Datagram, None)?;
    bind(socket.as_raw_fd(), &raw::station(index, protocol, MacAddr::ZERO).ok_or(io::ErrorKind::InvalidInput)?)?;
    Ok(socket)
}

/// The ways to the neighbours.
struct Wires {
    index: u32,
    mac: MacAddr,
    arp: Option<UnixDatagram>,
    ndp: Option<UnixDatagram>,
    _member: Option<UdpSocket>,
}

impl Wires {
    /// Asks, and once more half way to the deadline, and listens until there is a conflict for each address.
    async fn ask(&self, addresses: &[IpAddr], deadline: Instant, conflicts: &mut Vec<Conflict>) -> io::Result<()> {
        self.send(addresses)?;
        let once_more = sleep_until(deadline - deadline.saturating_duration_since(Instant::now()) / 2);
        tokio::pin!(once_more);
        while !addresses.iter().all(|address| conflicts.iter().any(|known| known.address == *address)) {
            let claim = tokio::select! {
                () = &mut once_more, if !once_more.is_elapsed() => {
                    self.send(addresses)?;
                    continue;
                }
                claim = hear(self.arp.as_ref(), |packet, _| arp_claim(packet)) => claim?,
                claim = hear(self.ndp.as_ref(), ndp_claim) => claim?,
            };
            let known = conflicts.iter().any(|known| known.address == claim.address);
            if claim.mac != self.mac && addresses.contains(&claim.address) && !known {
                conflicts.push(claim);
            }
        }
        Ok(())
    }

    fn send(&self, addresses: &[IpAddr]) -> io::Result<()> {
        for address in addresses {
            let (wire, protocol, to, packet) = match *address {
                IpAddr::V4(v4) => {
                    let packet = arp_request(self.mac, Ipv4Addr::UNSPECIFIED, v4);
                    (&self.arp, ETH_P_ARP, MacAddr::BROADCAST, packet)
                }
                IpAddr::V6(v6) => (&self.ndp, ETH_P_IPV6, group_mac(v6), solicitation(v6)),
            };
            let to = raw::station(self.index, protocol, to).ok_or(io::ErrorKind::InvalidInput)?;
            if let Some(wire) = wire {
                sendto(wire.as_raw_fd(), &packet, &to, MsgFlags::empty())?;
            }
        }
        Ok(())
    }
}

/// The next claim that arrives at a socket; never, if there is none.
async fn hear(wire: Option<&UnixDatagram>, claim_of: fn(&[u8], MacAddr) -> Option<Conflict>) -> io::Result<Conflict> {
    let Some(wire) = wire else { return std::future::pending().await };
    let mut packet = [0; 2048];
    loop {
        let read = || Ok(recvfrom::<LinkAddr>(wire.as_raw_fd(), &mut packet)?);
        let (length, from) = wire.async_io(Interest::READABLE, read).await?;
        // Not for this interface: of a VLAN that it is not in, or seen because it is promiscuous.
        let Some(from) = from.filter(|from| from.pkttype() != OTHER_HOST) else { continue };
        let sender = MacAddr(from.addr().unwrap_or_default());
        if let Some(claim) = packet.get(..length).and_then(|packet| claim_of(packet, sender)) {
            return Ok(claim);
        }
    }
}

/// The address that an ARP packet claims: its sender's, or the one that a sender without an address asks for.
fn arp_claim(packet: &[u8]) -> Option<Conflict> {
    let (head, body) = packet.split_at_checked(8)?;
    if head[..6] != [0, 1, 8, 0, 6, 4] {
        return None;
    }
    let mac = MacAddr::from_ethernet(body.get(..6)?)?;
    let address =
        |at: usize| body.get(at..at + 4).and_then(|bytes| <[u8; 4]>::try_from(bytes).ok()).map(Ipv4Addr::from);
    let (sender, target) = (address(6)?, address(16)?);
    let is_probe = sender.is_unspecified();
    // Nobody answers without an address.
    (!is_probe || head[6..] == [0, 1]).then(|| Conflict { address: if is_probe { target } else { sender }.into(), mac })
}

/// The address that an IPv6 packet claims: the target of an advertisement, or of a solicitation without a sender.
fn ndp_claim(packet: &[u8], sender: MacAddr) -> Option<Conflict> {
    let (header, icmp) = packet.split_at_checked(40)?;
    let length = usize::from(u16::from_be_bytes([header[4], header[5]]));
    let icmp = icmp.get(..length)?;
    // Hop limit 255: no router has passed it on.
    if header[6..8] != [ICMPV6, 255] || checksum(header, icmp) != 0 {
        return None;
    }
    let (target, options) = (Ipv6Addr::from(<[u8; 16]>::try_from(icmp.get(8..24)?).ok()?), &icmp[24..]);
    let mac = match icmp[..2] {
        // Where the target is to be found: an option, or else who says so.
        [ADVERTISEMENT, 0] => target_link_layer(options).unwrap_or(sender),
        [SOLICITATION, 0] if header[8..24] == [0; 16] => sender,
        _ => return None,
    };
    Some(Conflict { address: target.into(), mac })
}

/// The link-layer address of the target (option 2) among the options of an advertisement, whose lengths are in units of
/// eight bytes.
fn target_link_layer(mut options: &[u8]) -> Option<MacAddr> {
    while let [kind, units, ..] = *options {
        let (option, rest) =
            options.split_at_checked(usize::from(units) * 8).filter(|(option, _)| !option.is_empty())?;
        if kind == 2 {
            return MacAddr::from_ethernet(option.get(2..8)?);
        }
        options = rest;
    }
    None
}

/// Where the owner of an address listens (RFC 4291, 2.7.1).
fn solicited_node_group(address: Ipv6Addr) -> Ipv6Addr {
    let [.., a, b, c] = address.octets();
    Ipv6Addr::from([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, a, b, c])
}

/// The Ethernet address of that group (RFC 2464, 7).
fn group_mac(address: Ipv6Addr) -> MacAddr {
    let [.., a, b, c] = address.octets();
    MacAddr([0x33, 0x33, 0xff, a, b, c])
}

/// A neighbour solicitation (RFC 4861, 4.3) of somebody who has no address yet, as an IPv6 packet: a socket for ICMPv6
/// would send it from the link-local address.
fn solicitation(address: Ipv6Addr) -> Vec<u8> {
    let mut icmp = [&[SOLICITATION, 0, 0, 0, 0, 0, 0, 0][..], &address.octets()].concat();
    let group = solicited_node_group(address).octets();
    let header = [&[0x60, 0, 0, 0, 0, 24, ICMPV6, 255][..], &[0; 16], &group].concat();
    let sum = checksum(&header, &icmp).to_be_bytes();
    icmp[2..4].copy_from_slice(&sum);
    [header, icmp].concat()
}

/// Checksum of an ICMPv6 message with the pseudo header (RFC 8200, 8.1); 0 over a message that has the right one.
fn checksum(header: &[u8], icmp: &[u8]) -> u16 {
    let length = u32::try_from(icmp.len()).unwrap_or_default().to_be_bytes();
    let parts = [&header[8..40], &length, &[0, 0, 0, ICMPV6], icmp];
    let words = parts.iter().flat_map(|part| part.chunks(2));
    let sum: u32 =
        words.map(|word| u32::from(word[0]) << 8 | u32::from(word.get(1).copied().unwrap_or_default())).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !((folded & 0xffff) + (folded >> 16)) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    const THEIRS: MacAddr = MacAddr([2, 0, 0, 0, 0, 9]);
    const SENDER: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);

    fn conflict(address: &str, mac: MacAddr) -> Option<Conflict> {
        Some(Conflict { address: address.parse().unwrap(), mac })
    }

    fn arp(operation: u8, sender: [u8; 4], target: [u8; 4]) -> Vec<u8> {
        [&[0, 1, 8, 0, 6, 4, 0, operation][..], &THEIRS.0, &sender, &[0; 6], &target].concat()
    }

    #[test]
    fn an_arp_packet_claims_its_senders_address_or_the_one_it_probes_for() {
        let (a, b, nobody) = ([10, 0, 0, 1], [10, 0, 0, 2], [0; 4]);
        for operation in [1, 2] {
            assert_eq!(arp_claim(&arp(operation, a, b)), conflict("10.0.0.1", THEIRS), "{operation}");
        }
        assert_eq!(arp_claim(&arp(1, nobody, b)), conflict("10.0.0.2", THEIRS));
        assert_eq!(arp_claim(&arp(2, nobody, b)), None, "an answer of nobody");
        // Ethernet pads.
        assert_eq!(arp_claim(&[arp(1, a, b), vec![0; 18]].concat()), conflict("10.0.0.1", THEIRS));
        for length in 0..28 {
            assert_eq!(arp_claim(&arp(1, a, b)[..length]), None, "{length} bytes");
        }
        for at in 0..6 {
            let mut other = arp(1, a, b);
            other[at] ^= 1;
            assert_eq!(arp_claim(&other), None, "byte {at}: not of Ethernet and IPv4");
        }
    }

    /// An ICMPv6 message about `fd00::7`, with its header and the right checksum.
    fn icmp(kind: u8, from: &str, options: &[u8]) -> Vec<u8> {
        let target: Ipv6Addr = "fd00::7".parse().unwrap();
        let mut icmp = [&[kind, 0, 0, 0, 0x20, 0, 0, 0][..], &target.octets(), options].concat();
        let from: Ipv6Addr = from.parse().unwrap();
        let header = [&[0x60, 0, 0, 0, 0, icmp.len() as u8, 58, 255][..], &from.octets(), &[0xff; 16]].concat();
        let sum = checksum(&header, &icmp).to_be_bytes();
        icmp[2..4].copy_from_slice(&sum);
        [header, icmp].concat()
    }

    #[test]
    fn an_ipv6_packet_claims_the_target_that_it_advertises_or_probes_for() {
        let whole = icmp(136, "fd00::7", &[&[14, 1, 0, 0, 0, 0, 0, 0, 2, 1][..], &THEIRS.0].concat());
        assert_eq!(ndp_claim(&whole, SENDER), conflict("fd00::7", THEIRS), "as the option says, wherever it is");
        assert_eq!(ndp_claim(&icmp(136, "fd00::7", &[]), SENDER), conflict("fd00::7", SENDER));
        // A length of zero, and one that is longer than the packet.
        for broken in [[1, 0, 0, 0, 0, 0, 0, 0], [2, 9, 0, 0, 0, 0, 0, 0]] {
            assert_eq!(ndp_claim(&icmp(136, "fd00::7", &broken), SENDER), conflict("fd00::7", SENDER));
        }
        assert_eq!(ndp_claim(&icmp(135, "::", &[]), SENDER), conflict("fd00::7", SENDER));
        assert_eq!(ndp_claim(&icmp(135, "fe80::1", &[]), SENDER), None, "somebody looks for a neighbour");
        assert_eq!(ndp_claim(&icmp(134, "fe80::1", &[]), SENDER), None, "a router");
        for length in 0..whole.len() {
            assert_eq!(ndp_claim(&whole[..length], SENDER), None, "{length} bytes");
        }
        // Protocol, hop limit, the sender's address, code, checksum.
        for at in [6, 7, 20, 41, 42] {
            let mut other = whole.clone();
            other[at] ^= 1;
            assert_eq!(ndp_claim(&other, SENDER), None, "byte {at}");
        }
    }

    #[test]
    fn what_we_ask_is_a_claim_as_well() {
        let asked = solicitation("2001:db8::1:2:3".parse().unwrap());
        assert_eq!(ndp_claim(&asked, SENDER), conflict("2001:db8::1:2:3", SENDER));
        let asked = arp_request(THEIRS, Ipv4Addr::UNSPECIFIED, Ipv4Addr::new(10, 0, 0, 7));
        assert_eq!(arp_claim(&asked), conflict("10.0.0.7", THEIRS));
    }
}
