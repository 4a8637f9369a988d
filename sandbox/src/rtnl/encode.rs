//! Values to messages.

use std::net::IpAddr;
use std::os::fd::RawFd;

use ipnet::IpNet;
use netlink_packet_core::DefaultNla;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope};
use netlink_packet_route::link::{
    InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage, LinkVfInfo, Prop, VfInfo, VfInfoLinkState, VfInfoMac,
    VfInfoRate, VfInfoSpoofCheck, VfInfoTrust, VfLinkState, VfVlan as WireVlan, VfVlanInfo, VlanProtocol,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteMetric, RouteNextHop, RouteNextHopFlags,
    RouteProtocol, RouteScope, RouteType,
};

use super::link_message;
use crate::{Dad, LinkChange, LinkState, NewAddress, NextHop, Route, VfSetting, VlanProto};

/// Longest name that IFLA_IFNAME takes.
const NAME_MAX: usize = 15;
/// IFLA_ALT_IFNAME, which the packet crate knows inside a property list only.
const IFLA_ALT_IFNAME: u16 = 53;

/// A query by name. The kernel looks IFLA_IFNAME up among names and alternative names alike (__dev_get_by_name), but
/// refuses one that is too long for a name.
pub(super) fn by_name(name: &str) -> LinkMessage {
    if name.len() <= NAME_MAX {
        return link_message(0, vec![LinkAttribute::IfName(name.to_owned())]);
    }
    let mut value = name.as_bytes().to_vec();
    value.push(0);
    link_message(0, vec![LinkAttribute::Other(DefaultNla::new(IFLA_ALT_IFNAME, value))])
}

pub(super) fn vf_settings(pf: u32, vf: u32, settings: &[VfSetting]) -> LinkMessage {
    let mut settings = settings.to_vec();
    settings.sort_by_key(VfSetting::kernel_order);
    let attributes = settings.iter().map(|setting| vf_setting(vf, setting)).collect();
    link_message(pf, vec![LinkAttribute::VfInfoList(vec![LinkVfInfo(attributes)])])
}

fn vf_setting(vf: u32, setting: &VfSetting) -> VfInfo {
    match setting {
        VfSetting::Mac(mac) => VfInfo::Mac(VfInfoMac::new(vf, &mac.0)),
        VfSetting::Vlan(vlan) => {
            let proto = match vlan.proto {
                VlanProto::Dot1Q => VlanProtocol::Ieee8021Q,
                VlanProto::Dot1Ad => VlanProtocol::Ieee8021Ad,
            };
            let info = VfVlanInfo::new(vf, u32::from(vlan.id), u32::from(vlan.qos), proto);
            VfInfo::VlanList(vec![WireVlan::Info(info)])
        }
        VfSetting::Rate { min, max } => VfInfo::Rate(VfInfoRate::new(vf, *min, *max)),
        VfSetting::SpoofChk(on) => VfInfo::SpoofCheck(VfInfoSpoofCheck::new(vf, *on)),
        VfSetting::LinkState(state) => {
            let state = match state {
                LinkState::Auto => VfLinkState::Auto,
                LinkState::Enable => VfLinkState::Enable,
                LinkState::Disable => VfLinkState::Disable,
            };
            VfInfo::LinkState(VfInfoLinkState::new(vf, state))
        }
        VfSetting::Trust(on) => VfInfo::Trust(VfInfoTrust::new(vf, *on)),
    }
}

pub(super) fn link_changes(index: u32, changes: &[LinkChange]) -> LinkMessage {
    let mut message = link_message(index, Vec::new());
    for change in changes {
        let flag = match change {
            LinkChange::Mac(mac) => {
                message.attributes.push(LinkAttribute::Address(mac.0.to_vec()));
                continue;
            }
            LinkChange::Mtu(mtu) => {
                message.attributes.push(LinkAttribute::Mtu(*mtu));
                continue;
            }
            LinkChange::TxQueueLen(length) => {
                message.attributes.push(LinkAttribute::TxQueueLen(*length));
                continue;
            }
            LinkChange::Alias(text) => {
                message.attributes.push(LinkAttribute::IfAlias(text.clone()));
                continue;
            }
            LinkChange::Name(name) => {
                message.attributes.push(LinkAttribute::IfName(name.clone()));
                continue;
            }
            LinkChange::Up(on) => (LinkFlags::Up, *on),
            LinkChange::Promisc(on) => (LinkFlags::Promisc, *on),
            LinkChange::AllMulti(on) => (LinkFlags::Allmulti, *on),
        };
        message.header.change_mask |= flag.0;
        message.header.flags.set(flag.0, flag.1);
    }
    message
}

pub(super) fn dummy(name: &str) -> LinkMessage {
    let kind = LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Dummy)]);
    link_message(0, vec![LinkAttribute::IfName(name.to_owned()), kind])
}

/// A change with an interface that is named: without an index, the kernel looks IFLA_IFNAME up.
pub(super) fn changes_by_name(name: &str, changes: &[LinkChange]) -> LinkMessage {
    let mut message = link_changes(0, changes);
    message.attributes.push(LinkAttribute::IfName(name.to_owned()));
    message
}

/// A move to the namespace of a descriptor, with a new name and other changes.
pub(super) fn moving(index: u32, netns: RawFd, name: &str, changes: &[LinkChange]) -> LinkMessage {
    let mut message = link_changes(index, changes);
    message.attributes.push(LinkAttribute::NetNsFd(netns));
    message.attributes.push(LinkAttribute::IfName(name.to_owned()));
    message
}

pub(super) fn altname(index: u32, name: &str) -> LinkMessage {
    link_message(index, vec![LinkAttribute::PropList(vec![Prop::AltIfName(name.to_owned())])])
}

fn family(net: &IpNet) -> AddressFamily {
    match net {
        IpNet::V4(_) => AddressFamily::Inet,
        IpNet::V6(_) => AddressFamily::Inet6,
    }
}

pub(super) fn address(index: u32, net: &IpNet) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = family(net);
    message.header.prefix_len = net.prefix_len();
    message.header.index = index;
    message.attributes.push(AddressAttribute::Local(net.addr()));
    message.attributes.push(AddressAttribute::Address(net.addr()));
    message
}

pub(super) fn new_address(index: u32, new: &NewAddress) -> AddressMessage {
    let mut message = address(index, &new.net);
    match new.net {
        IpNet::V4(v4) => {
            // As the CNI plugins' netlink library: a broadcast address where the prefix has room for one.
            if v4.prefix_len() < 31 {
                message.attributes.push(AddressAttribute::Broadcast(v4.broadcast()));
            }
            if v4.addr().is_loopback() {
                message.header.scope = AddressScope::Host;
            }
        }
        IpNet::V6(_) => {
            let flags = match new.dad {
                Dad::AsConfigured => return message,
                Dad::Skip => AddressFlags::Nodad,
                Dad::Optimistic => AddressFlags::Optimistic,
            };
            message.attributes.push(AddressAttribute::Flags(flags));
        }
    }
    message
}

fn route_address(ip: &IpAddr) -> RouteAddress {
    match ip {
        IpAddr::V4(v4) => RouteAddress::Inet(*v4),
        IpAddr::V6(v6) => RouteAddress::Inet6(*v6),
    }
}

pub(super) fn route(route: &Route) -> RouteMessage {
    let mut message = RouteMessage::default();
    let header = &mut message.header;
    header.address_family = family(&route.dst);
    header.destination_prefix_length = route.dst.prefix_len();
    // Tables above 255 go in the attribute alone.
    header.table = u8::try_from(route.table).unwrap_or(0);
    header.protocol = RouteProtocol::from(route.protocol);
    header.scope = RouteScope::from(route.scope);
    header.kind = RouteType::Unicast;
    if route.onlink {
        header.flags |= RouteFlags::Onlink;
    }
    let mut push = |attribute| message.attributes.push(attribute);
    if route.dst.prefix_len() > 0 {
        push(RouteAttribute::Destination(route_address(&route.dst.network())));
    }
    push(RouteAttribute::Table(route.table));
    if let Some(gateway) = &route.gateway {
        push(RouteAttribute::Gateway(route_address(gateway)));
    }
    if let Some(oif) = route.oif {
        push(RouteAttribute::Oif(oif));
    }
    if let Some(priority) = route.priority {
        push(RouteAttribute::Priority(priority));
    }
    if let Some(source) = &route.source {
        push(RouteAttribute::PrefSource(route_address(source)));
    }
    let mut metrics = Vec::new();
    metrics.extend(route.mtu.map(RouteMetric::Mtu));
    metrics.extend(route.advmss.map(RouteMetric::Advmss));
    if !metrics.is_empty() {
        push(RouteAttribute::Metrics(metrics));
    }
    if !route.nexthops.is_empty() {
        push(RouteAttribute::MultiPath(route.nexthops.iter().map(nexthop).collect()));
    }
    message
}

fn nexthop(hop: &NextHop) -> RouteNextHop {
    let mut wire = RouteNextHop::default();
    wire.interface_index = hop.oif;
    wire.hops = hop.hops;
    if hop.onlink {
        wire.flags |= RouteNextHopFlags::Onlink;
    }
    wire.attributes = hop.gateway.iter().map(|ip| RouteAttribute::Gateway(route_address(ip))).collect();
    wire
}
