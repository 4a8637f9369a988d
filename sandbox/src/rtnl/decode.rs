//! Messages to values.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkInfo, LinkMessage, Prop};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteMetric, RouteNextHop, RouteNextHopFlags, RouteType,
};

use crate::{Address, Link, MacAddr, NextHop, Route};

/// RT_TABLE_LOCAL: what the kernel keeps for its own addresses.
const LOCAL_TABLE: u32 = 255;

pub(super) fn link(message: &LinkMessage) -> Link {
    let flags = message.header.flags;
    let mut link = Link {
        index: message.header.index,
        up: flags.contains(LinkFlags::Up),
        carrier: flags.contains(LinkFlags::LowerUp | LinkFlags::Running),
        promisc: flags.contains(LinkFlags::Promisc),
        allmulti: flags.contains(LinkFlags::Allmulti),
        ..Link::default()
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::PropList(props) => link.altnames.extend(props.iter().filter_map(|prop| match prop {
                Prop::AltIfName(name) => Some(name.clone()),
                _ => None,
            })),
            LinkAttribute::IfAlias(text) if !text.is_empty() => link.alias = Some(text.clone()),
            LinkAttribute::Address(bytes) => link.mac = MacAddr::from_ethernet(bytes),
            LinkAttribute::PermAddress(bytes) => link.perm_mac = MacAddr::from_ethernet(bytes),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::TxQueueLen(length) => link.txqlen = *length,
            LinkAttribute::ParentDevName(name) => link.parent_dev = Some(name.clone()),
            LinkAttribute::Controller(index) => link.master = Some(*index),
            LinkAttribute::LinkInfo(infos) => {
                link.kind = infos.iter().find_map(|info| match info {
                    LinkInfo::Kind(kind) => Some(kind.to_string()),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    link
}

pub(super) fn address(message: &AddressMessage) -> Option<Address> {
    let mut local = None;
    let mut peer = None;
    let mut flags = AddressFlags::empty();
    let mut header = message.header.flags;
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(ip) => local = Some(*ip),
            AddressAttribute::Address(ip) => peer = Some(*ip),
            AddressAttribute::Flags(full) => {
                flags = *full;
                header = AddressHeaderFlags::empty();
            }
            _ => {}
        }
    }
    // The low eight flags are in the header too; the attribute has all.
    let flags = flags | AddressFlags::from_bits_retain(u32::from(header.bits()));
    // IPv6 sends only IFA_ADDRESS; for IPv4 IFA_LOCAL is ours and IFA_ADDRESS the peer's.
    let net = IpNet::new(local.or(peer)?, message.header.prefix_len).ok()?;
    Some(Address {
        net,
        scope: message.header.scope.into(),
        tentative: flags.contains(AddressFlags::Tentative),
        optimistic: flags.contains(AddressFlags::Optimistic),
        dad_failed: flags.contains(AddressFlags::Dadfailed),
    })
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(v4) => Some(IpAddr::V4(*v4)),
        RouteAddress::Inet6(v6) => Some(IpAddr::V6(*v6)),
        _ => None,
    }
}

/// None for what is no unicast route of IPv4 or IPv6, is cached, or stands in table `local`.
pub(super) fn route(message: &RouteMessage) -> Option<Route> {
    let header = &message.header;
    let any = match header.address_family {
        AddressFamily::Inet => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        AddressFamily::Inet6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        _ => return None,
    };
    if header.kind != RouteType::Unicast || header.flags.contains(RouteFlags::Cloned) {
        return None;
    }
    let mut dst = any;
    let mut route = Route {
        dst: IpNet::new(any, 0).ok()?,
        gateway: None,
        oif: None,
        table: u32::from(header.table),
        priority: None,
        scope: header.scope.into(),
        protocol: header.protocol.into(),
        source: None,
        mtu: None,
        advmss: None,
        onlink: header.flags.contains(RouteFlags::Onlink),
        nexthops: Vec::new(),
    };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => dst = ip(address)?,
            RouteAttribute::Gateway(address) => route.gateway = ip(address),
            RouteAttribute::PrefSource(address) => route.source = ip(address),
            RouteAttribute::Oif(index) => route.oif = Some(*index),
            RouteAttribute::Table(table) => route.table = *table,
            RouteAttribute::Priority(priority) => route.priority = Some(*priority),
            RouteAttribute::MultiPath(hops) => route.nexthops = hops.iter().map(nexthop).collect(),
            RouteAttribute::Metrics(metrics) => {
                for metric in metrics {
                    match metric {
                        RouteMetric::Mtu(mtu) => route.mtu = Some(*mtu),
                        RouteMetric::Advmss(size) => route.advmss = Some(*size),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    route.dst = IpNet::new(dst, header.destination_prefix_length).ok()?;
    (route.table != LOCAL_TABLE).then_some(route)
}

fn nexthop(hop: &RouteNextHop) -> NextHop {
    let gateway = hop.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Gateway(address) => ip(address),
        _ => None,
    });
    let onlink = hop.flags.contains(RouteNextHopFlags::Onlink);
    NextHop { oif: hop.interface_index, gateway, hops: hop.hops, onlink }
}
