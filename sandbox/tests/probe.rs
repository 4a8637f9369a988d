#![allow(clippy::unwrap_used)] // functions beside the tests unwrap too

//! Who answers a probe, and what it looks like at the other end of a cable. Needs root.

mod support;

use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, recvfrom, sendto, socket};
use sandbox::{Conflict, Link, LinkChange, Links, MacAddr, Netns, PROBE_LIMIT, Probed, Rtnl, probe};
use support::{addr, checksum, eventually, ip, ip_in, isolated, name, new_netns};

const NO_CARRIER: Probed = Probed::Unknown { why: "the interface has no carrier" };

/// A pod with an interface `net1`, and the neighbour, this thread's namespace, with the other end `v1`.
struct Cable {
    here: Rtnl,
    pod: Rtnl,
}

impl Cable {
    /// The neighbour's end is up and has these addresses.
    async fn new(addresses: &[&str]) -> Self {
        let here = Rtnl::open(&Netns::current().unwrap()).unwrap();
        let pod = Rtnl::open(&new_netns()).unwrap();
        ip("link add v1 type veth peer name inner");
        let inner = here.by_name("inner").await.unwrap().unwrap();
        here.move_to(inner.index, &pod, &name("net1")).await.unwrap();
        pod.change_named(&name("net1"), &[LinkChange::Up(true)]).await.unwrap();
        here.change_named(&name("v1"), &[LinkChange::Up(true)]).await.unwrap();
        for address in addresses {
            // At once, as long as nobody else has it.
            ip(&format!("address add {address} dev v1{}", if address.contains(':') { " nodad" } else { "" }));
        }
        if addresses.iter().any(|address| address.contains(':')) {
            // The kernel listens for those who ask (all of them here end in 3) in its own time.
            eventually(|| ip("maddress show dev v1").to_string().contains("\"ff02::1:ff00:3\"").then_some(()));
        }
        here.subscribe().await.unwrap();
        pod.subscribe().await.unwrap();
        Self { here, pod }
    }

    async fn neighbour(&self) -> Link {
        with_carrier(&self.here, "v1").await
    }

    fn conflict(address: &str, neighbour: &Link) -> Conflict {
        Conflict { address: addr(address), mac: neighbour.mac.unwrap() }
    }

    async fn probe(&self, addresses: &[&str]) -> Probed {
        let mut net1 = with_carrier(&self.pod, "net1").await;
        ask(&self.pod, &mut net1, addresses).await
    }
}

async fn ask(links: &Rtnl, link: &mut Link, addresses: &[&str]) -> Probed {
    let addresses: Vec<_> = addresses.iter().map(|text| addr(text)).collect();
    probe(links, link, &addresses).await.unwrap()
}

async fn with_carrier(links: &Rtnl, name: &str) -> Link {
    look(links, name, true).await
}

/// The link once it has a carrier, or none. Leaves the events to whoever waits for them.
async fn look(links: &Rtnl, name: &str, carrier: bool) -> Link {
    for _ in 0..400 {
        let link = links.by_name(name).await.unwrap().unwrap();
        if link.carrier == carrier {
            return link;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the carrier of {name} is not {carrier}");
}

/// What arrives at the interfaces of this thread's namespace.
struct Listener(OwnedFd);

impl Listener {
    fn new() -> Self {
        let flags = SockFlag::SOCK_NONBLOCK;
        Self(socket(AddressFamily::Packet, SockType::Raw, flags, SockProtocol::EthAll).unwrap())
    }

    /// The frames that have arrived, and where, without what our own end sends.
    fn heard(&self) -> Vec<(Vec<u8>, LinkAddr)> {
        let mut found = Vec::new();
        let mut frame = [0; 2048];
        loop {
            let (length, from) = match recvfrom::<LinkAddr>(self.0.as_raw_fd(), &mut frame) {
                Ok((length, from)) => (length, from.unwrap()),
                Err(Errno::EAGAIN) => return found,
                Err(error) => panic!("{error}"),
            };
            // PACKET_OUTGOING of packet(7).
            if from.pkttype() != 4 {
                found.push((frame[..length].to_vec(), from));
            }
        }
    }

    /// The next frames of a kind, so many of them; what was sent may still be under way.
    fn wait_for(&self, count: usize, kind: impl Fn(&[u8]) -> bool) -> Vec<Vec<u8>> {
        let mut found = Vec::new();
        eventually(|| {
            found.extend(self.heard().into_iter().map(|(frame, _)| frame).filter(|frame| kind(frame)));
            (found.len() >= count).then_some(())
        });
        found
    }
}

fn is_arp(frame: &[u8]) -> bool {
    frame[12..14] == [8, 6]
}

/// A neighbour solicitation, but none of the kernel's own for link-local addresses.
fn is_solicitation(frame: &[u8]) -> bool {
    frame[12..14] == [0x86, 0xdd] && frame[20] == 58 && frame[54] == 135 && frame[62] != 0xfe
}

#[test]
fn an_address_that_a_neighbour_has_is_in_conflict_and_ends_the_wait() {
    isolated(|| async {
        let cable = Cable::new(&["10.1.2.3/24", "fd01::3/64"]).await;
        let neighbour = cable.neighbour().await;
        for address in ["10.1.2.3", "fd01::3"] {
            let found = Probed::Asked(vec![Cable::conflict(address, &neighbour)]);
            // A busy machine may be slow, but not each time.
            let mut quick = false;
            for _ in 0..20 {
                let began = Instant::now();
                assert_eq!(cable.probe(&[address]).await, found);
                quick |= began.elapsed() < PROBE_LIMIT / 2;
            }
            assert!(quick, "{address}: an answer ends the wait");
        }
    });
}

#[test]
fn an_address_of_nobody_is_asked_for_twice_by_nobody() {
    isolated(|| async {
        let cable = Cable::new(&["10.1.2.3/24", "fd01::3/64"]).await;
        let net1 = with_carrier(&cable.pod, "net1").await;
        let mac = net1.mac.unwrap().0;
        let listener = Listener::new();
        let began = Instant::now();
        assert_eq!(cable.probe(&["10.1.2.4", "fd01::12:3456"]).await, Probed::Asked(Vec::new()));
        let waited = began.elapsed();
        assert!(waited >= PROBE_LIMIT && waited < PROBE_LIMIT + Duration::from_secs(2), "{waited:?}");

        let arp = [&[0xff; 6][..], &mac, &[8, 6], &[0, 1, 8, 0, 6, 4, 0, 1], &mac, &[0; 10], &[10, 1, 2, 4]].concat();
        assert_eq!(listener.wait_for(2, is_arp), [arp.clone(), arp]);
        // The first look has taken them all; the question is put again.
        let listener = Listener::new();
        let mut net1 = net1;
        let groups = async { ip_in(cable.pod.netns(), "maddress show dev net1").to_string() };
        let (found, groups) = tokio::join!(ask(&cable.pod, &mut net1, &["fd01::12:3456"]), groups);
        assert_eq!(found, Probed::Asked(Vec::new()));
        assert!(groups.contains("\"ff02::1:ff12:3456\""), "others that ask would not be heard: {groups}");
        let solicitations = listener.wait_for(2, is_solicitation);
        assert_eq!(solicitations.len(), 2, "{solicitations:?}");
        let group = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, 0x12, 0x34, 0x56];
        for frame in &solicitations {
            assert_eq!(frame[..14], [&[0x33, 0x33, 0xff, 0x12, 0x34, 0x56][..], &mac, &[0x86, 0xdd]].concat());
            let ipv6 = &frame[14..];
            assert_eq!((&ipv6[..8], &ipv6[8..24]), (&[0x60, 0, 0, 0, 0, 24, 58, 255][..], &[0; 16][..]));
            assert_eq!(ipv6[24..40], group);
            let target = [0xfd, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x12, 0x34, 0x56];
            assert_eq!((&ipv6[40..42], &ipv6[44..48], &ipv6[48..]), (&[135, 0][..], &[0; 4][..], &target[..]));
            assert_eq!(checksum(ipv6), 0);
        }
    });
}

#[test]
fn several_are_asked_for_at_once_and_each_answer_counts() {
    isolated(|| async {
        let cable = Cable::new(&["10.1.2.3/24", "10.1.2.5/24", "fd01::3/64", "fd01:0:0:1::3/64"]).await;
        let neighbour = cable.neighbour().await;
        let began = Instant::now();
        // The last two have the same group.
        let asked = ["10.1.2.3", "10.1.2.4", "10.1.2.5", "fd01::4", "fd01::3", "fd01:0:0:1::3"];
        let Probed::Asked(found) = cable.probe(&asked).await else { panic!("there is a carrier") };
        let waited = began.elapsed();
        assert!(waited < PROBE_LIMIT + Duration::from_secs(2), "not one after the other: {waited:?}");
        let mut found: Vec<(String, MacAddr)> = found.iter().map(|c| (c.address.to_string(), c.mac)).collect();
        found.sort();
        let mac = neighbour.mac.unwrap();
        let taken = ["10.1.2.3", "10.1.2.5", "fd01:0:0:1::3", "fd01::3"].map(|text| (text.to_owned(), mac));
        assert_eq!(found, taken, "once each");
    });
}

#[test]
fn who_probes_for_the_same_address_is_in_conflict() {
    isolated(|| async {
        let cable = Cable::new(&[]).await;
        let (mut net1, mut v1) = (with_carrier(&cable.pod, "net1").await, cable.neighbour().await);
        for address in ["10.1.2.3", "fd01::3"] {
            let asked = [address];
            // Who asks first and has an answer asks no second time, which the other would hear.
            let (one, other) = tokio::join!(ask(&cable.pod, &mut net1, &asked), ask(&cable.here, &mut v1, &asked));
            let of_pod = Probed::Asked(vec![Cable::conflict(address, &v1)]);
            let of_here = Probed::Asked(vec![Cable::conflict(address, &net1)]);
            assert!(one == of_pod || other == of_here, "{one:?} {other:?}");
        }
    });
}

#[test]
fn what_comes_back_from_our_own_address_is_no_conflict() {
    isolated(|| async {
        let cable = Cable::new(&["10.1.2.3/24", "fd01::3/64"]).await;
        let net1 = with_carrier(&cable.pod, "net1").await;
        // Its own addresses, and all frames sent back by the NIC.
        ip_in(cable.pod.netns(), "address add 10.1.2.9/24 dev net1");
        ip_in(cable.pod.netns(), "address add fd01::9/64 dev net1 nodad");
        let listener = Listener::new();
        let echo = async {
            let mut echoed = 0;
            for _ in 0..10 {
                for (frame, from) in listener.heard() {
                    sendto(listener.0.as_raw_fd(), &frame, &from, MsgFlags::empty()).unwrap();
                    echoed += usize::from(is_arp(&frame) || is_solicitation(&frame));
                }
                tokio::time::sleep(PROBE_LIMIT / 10).await;
            }
            echoed
        };
        let (found, echoed) = tokio::join!(cable.probe(&["10.1.2.9", "fd01::9"]), echo);
        assert_eq!(found, Probed::Asked(Vec::new()));
        assert!(echoed >= 2, "{echoed}");
        // Another interface with the same address on the wire, as another VF that was given it.
        cable.here.change_named(&name("v1"), &[LinkChange::Mac(net1.mac.unwrap())]).await.unwrap();
        assert_eq!(cable.probe(&["10.1.2.3", "fd01::3"]).await, Probed::Asked(Vec::new()));
    });
}

#[test]
fn what_is_said_in_a_vlan_of_others_is_no_conflict() {
    isolated(|| async {
        let cable = Cable::new(&[]).await;
        let (mut net1, neighbour) = (with_carrier(&cable.pod, "net1").await, cable.neighbour().await);
        let mac = neighbour.mac.unwrap().0;
        let announcement = [&[0, 1, 8, 0, 6, 4, 0, 1][..], &mac, &[10, 1, 2, 3], &[0; 6], &[10, 1, 2, 3]].concat();
        let tagged = [&[0xff; 6][..], &mac, &[0x81, 0, 0, 5, 8, 6], &announcement].concat();
        let untagged = [&[0xff; 6][..], &mac, &[8, 6], &announcement].concat();
        let listener = Listener::new();
        assert_eq!(cable.probe(&["10.1.2.3"]).await, Probed::Asked(Vec::new()));
        let (_, way) = eventually(|| listener.heard().pop());
        for (frame, found) in [(tagged, Vec::new()), (untagged, vec![Cable::conflict("10.1.2.3", &neighbour)])] {
            let saying = async { sendto(listener.0.as_raw_fd(), &frame, &way, MsgFlags::empty()).unwrap() };
            let (probed, sent) = tokio::join!(ask(&cable.pod, &mut net1, &["10.1.2.3"]), saying);
            assert_eq!(sent, frame.len());
            assert_eq!(probed, Probed::Asked(found));
        }
    });
}

#[test]
fn without_a_carrier_nothing_is_known_and_one_that_comes_in_time_is_enough() {
    isolated(|| async {
        let cable = Cable::new(&["10.1.2.3/24"]).await;
        let neighbour = cable.neighbour().await;
        let set = async |up| cable.here.change_named(&name("v1"), &[LinkChange::Up(up)]).await.unwrap();
        with_carrier(&cable.pod, "net1").await;
        let mut in_time = false;
        for _ in 0..20 {
            set(false).await;
            let mut net1 = look(&cable.pod, "net1", false).await;
            let began = Instant::now();
            assert_eq!(ask(&cable.pod, &mut net1, &["10.1.2.3"]).await, NO_CARRIER);
            let waited = began.elapsed();
            assert!(waited >= PROBE_LIMIT && waited < PROBE_LIMIT + Duration::from_secs(2), "{waited:?}");
            assert!(!net1.carrier);
            let (found, ()) = tokio::join!(ask(&cable.pod, &mut net1, &["10.1.2.3"]), set(true));
            if found == Probed::Asked(vec![Cable::conflict("10.1.2.3", &neighbour)]) {
                assert!(net1.carrier, "the announcement need not wait for it again");
                in_time = true;
                break;
            }
            // On a busy machine it comes too late.
            with_carrier(&cable.pod, "net1").await;
        }
        assert!(in_time);
    });
}

#[test]
fn a_carrier_that_is_gone_again_is_none() {
    isolated(|| async {
        let cable = Cable::new(&[]).await;
        let mut net1 = with_carrier(&cable.pod, "net1").await;
        // What the events tell in the end counts, not what they told in between.
        for up in [false, true, false] {
            cable.here.change_named(&name("v1"), &[LinkChange::Up(up)]).await.unwrap();
            net1 = look(&cable.pod, "net1", up).await;
        }
        assert_eq!(ask(&cable.pod, &mut net1, &["10.1.2.3"]).await, NO_CARRIER);
    });
}
