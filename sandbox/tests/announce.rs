#![allow(clippy::unwrap_used)] // functions beside the tests unwrap too

//! The frames that neighbours get, as they come out at the other end of a cable. Needs root.

mod support;

use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, LinkAddr, SockFlag, SockProtocol, SockType, recvfrom, socket};
use sandbox::{ANNOUNCE_LIMIT, Dad, Error, Link, Links, Netns, NewAddress, Rtnl, announce, configure};
use support::{addr, checksum, eventually, ip, isolated, name, net, new_netns};

/// Everything that arrives at the interfaces of this thread's namespace.
struct Listener(OwnedFd);

impl Listener {
    fn new() -> Self {
        let flags = SockFlag::SOCK_NONBLOCK;
        Self(socket(AddressFamily::Packet, SockType::Raw, flags, SockProtocol::EthAll).unwrap())
    }

    /// The announcements among what has arrived: interface and frame, without what the kernel sends of its own accord
    /// for link-local addresses.
    fn announcements(&self) -> Vec<(usize, Vec<u8>)> {
        let mut found = Vec::new();
        let mut frame = [0; 2048];
        loop {
            let (length, from) = match recvfrom::<LinkAddr>(self.0.as_raw_fd(), &mut frame) {
                Ok((length, from)) => (length, from.unwrap()),
                Err(Errno::EAGAIN) => return found,
                Err(error) => panic!("{error}"),
            };
            let frame = &frame[..length];
            let arp = frame[12..14] == [8, 6];
            let advertisement = frame[12..14] == [0x86, 0xdd] && frame[54] == 136 && frame[62] != 0xfe;
            // PACKET_OUTGOING: what our own end sends.
            if from.pkttype() != 4 && (arp || advertisement) {
                found.push((from.ifindex(), frame.to_vec()));
            }
        }
    }
}

/// A pod with two interfaces, whose cables end here as v1 and v2; the first has addresses.
async fn pod() -> (Rtnl, Link) {
    let netns = new_netns();
    let here = Rtnl::open(&Netns::current().unwrap()).unwrap();
    let pod = Rtnl::open(&netns).unwrap();
    for (outer, inner) in [("v1", "net1"), ("v2", "net2")] {
        ip(&format!("link add {outer} type veth peer name p-{outer}"));
        let end = here.by_name(&format!("p-{outer}")).await.unwrap().unwrap();
        here.move_to(end.index, &pod, &name(inner)).await.unwrap();
        pod.change_named(&name(inner), &[sandbox::LinkChange::Up(true)]).await.unwrap();
    }
    ip("link set v2 up");
    pod.subscribe().await.unwrap();
    let net1 = pod.by_name("net1").await.unwrap().unwrap();
    let address = |text| NewAddress { net: net(text), dad: Dad::Skip };
    // The other interface has a network in common, and would do as well for one who does not look.
    configure(&pod, &net1, &[address("10.1.2.3/24"), address("fd01::3/64")], &[], &[]).await.unwrap();
    let net2 = pod.by_name("net2").await.unwrap().unwrap();
    configure(&pod, &net2, &[address("10.1.2.4/24"), address("fd01::4/64")], &[], &[]).await.unwrap();
    (pod, net1)
}

#[test]
fn arp_and_advertisement_have_the_right_bytes_and_one_way_out() {
    isolated(|| async {
        let listener = Listener::new();
        let (pod, net1) = pod().await;
        let mac = net1.mac.unwrap().0;
        let v1 = ip("link show v1")[0]["ifindex"].as_u64().unwrap() as usize;
        // The cable is plugged in while the announcement waits for it.
        assert!(!net1.carrier);
        let telling = tokio::spawn(async move {
            let addresses = [addr("10.1.2.3"), addr("fd01::3")];
            announce(pod, &net1, &addresses).await
        });
        tokio::task::yield_now().await;
        assert!(listener.announcements().is_empty());
        ip("link set v1 up");
        telling.await.unwrap().unwrap();

        let mut heard = Vec::new();
        eventually(|| {
            heard.extend(listener.announcements());
            (heard.len() >= 2).then_some(())
        });
        let [(at_arp, arp), (at_na, na)] = heard.try_into().unwrap_or_else(|heard| panic!("two frames: {heard:?}"));
        assert_eq!((at_arp, at_na), (v1, v1), "by the other end of net1 alone");
        let head = [&[0xff; 6][..], &mac, &[8, 6]].concat();
        let body = [&[0, 1, 8, 0, 6, 4, 0, 1][..], &mac, &[10, 1, 2, 3], &[0; 6], &[10, 1, 2, 3]].concat();
        assert_eq!(arp, [head, body].concat());

        assert_eq!(na[..14], [&[0x33, 0x33, 0, 0, 0, 1][..], &mac, &[0x86, 0xdd]].concat());
        let ipv6 = &na[14..];
        let (from, to) = ([0xfd, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3], [0xff, 2, 0, 0, 0, 0, 0, 0]);
        assert_eq!((ipv6[6], ipv6[7]), (58, 255), "ICMPv6, and no router has touched it");
        assert_eq!((&ipv6[8..24], &ipv6[24..32], &ipv6[39..40]), (&from[..], &to[..], &[1][..]));
        let icmp = &ipv6[40..];
        assert_eq!((icmp[0], icmp[1], &icmp[4..8]), (136, 0, &[0x20, 0, 0, 0][..]), "override, nothing solicited");
        assert_eq!(icmp[8..], [&from[..], &[2, 1], &mac].concat(), "the target and its link-layer address");
        assert_eq!(checksum(ipv6), 0);
    });
}

#[test]
fn an_announcement_without_a_carrier_ends_and_says_so() {
    isolated(|| async {
        let (pod, net1) = pod().await;
        let began = Instant::now();
        let error = announce(pod, &net1, &[addr("10.1.2.3")]).await.unwrap_err();
        let Error::Unverified { object, wanted, found } = &error else { panic!("{error:?}") };
        assert_eq!((object.as_str(), wanted.as_str(), found.as_str()), ("net1", "a carrier", "none within 200 ms"));
        assert!(began.elapsed() >= ANNOUNCE_LIMIT && began.elapsed() < ANNOUNCE_LIMIT + Duration::from_secs(2));
    });
}

#[test]
fn an_address_that_is_not_there_is_named_and_the_others_are_announced() {
    isolated(|| async {
        let listener = Listener::new();
        ip("link set lo up");
        let (pod, _) = pod().await;
        ip("link set v1 up");
        let net1 = eventually_up(&pod).await;
        let error = announce(pod, &net1, &[addr("fd01::99"), addr("10.1.2.3")]).await.unwrap_err();
        let Error::Announce { address, name, .. } = &error else { panic!("{error:?}") };
        assert_eq!((address, name.as_str()), (&addr("fd01::99"), "net1"));
        assert_eq!(error.errno(), Some(Errno::EADDRNOTAVAIL as i32));
        let heard = eventually(|| Some(listener.announcements()).filter(|heard| !heard.is_empty()));
        assert_eq!((heard.len(), &heard[0].1[38..42]), (1, &[10, 1, 2, 3][..]));
    });
}

async fn eventually_up(pod: &Rtnl) -> Link {
    for _ in 0..40 {
        let net1 = pod.by_name("net1").await.unwrap().unwrap();
        if net1.carrier {
            return net1;
        }
        pod.link_event(Duration::from_millis(100)).await.unwrap();
    }
    panic!("net1 has no carrier");
}
