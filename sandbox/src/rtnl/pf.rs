//! A PF's report about its VFs. The packet crate reads the attributes into booleans and so loses "not reported"
//! (0xffffffff); here they are read from the bytes (linux/if_link.h, IFLA_VF_*).

use netlink_packet_core::{DecodeError, NlasIterator, Parseable};
use netlink_packet_route::RouteNetlinkMessage as Message;
use netlink_packet_route::link::{LinkAttribute, LinkExtentMask, LinkMessage};

use super::{conn, decode, link_message};
use crate::{Error, LinkState, MacAddr, PfReport, VfReport, VfVlan, VlanProto};

const RTM_NEWLINK: u16 = 16;
/// struct ifinfomsg.
const HEADER_LEN: usize = 16;
const IFLA_VFINFO_LIST: u16 = 22;
const IFLA_VF_INFO: u16 = 1;
const IFLA_VF_MAC: u16 = 1;
const IFLA_VF_VLAN: u16 = 2;
const IFLA_VF_TX_RATE: u16 = 3;
const IFLA_VF_SPOOFCHK: u16 = 4;
const IFLA_VF_LINK_STATE: u16 = 5;
const IFLA_VF_RATE: u16 = 6;
const IFLA_VF_TRUST: u16 = 9;
const IFLA_VF_VLAN_LIST: u16 = 12;
const IFLA_VF_VLAN_INFO: u16 = 1;
const ETH_P_8021AD: u16 = 0x88a8;
/// What the kernel presets where a driver may stay silent.
const NOT_REPORTED: u32 = u32::MAX;

pub(super) async fn report(handle: &conn::Handle, pf: u32) -> Result<PfReport, Error> {
    const STEP: &str = "read a PF and its VFs";
    let object = format!("link {pf}");
    let answer = |what: String| Error::Answer { step: STEP.to_owned(), object: object.clone(), what };
    // Statistics would triple the size of the answer and are of no use here.
    let mask = vec![LinkExtentMask::Vf, LinkExtentMask::SkipStats];
    let query = Message::GetLink(link_message(pf, vec![LinkAttribute::ExtMask(mask)]));
    let replies = conn::request_raw(handle, &query, 0, STEP, &object).await?;
    let link = replies.iter().find(|reply| reply.header.message_type == RTM_NEWLINK);
    let link = link.ok_or_else(|| answer("no link in the answer".to_owned()))?;
    parse(&link.body).map_err(|error| answer(error.to_string()))
}

fn parse(body: &[u8]) -> Result<PfReport, DecodeError> {
    let link = decode::link(&LinkMessage::parse(body)?);
    let mut vfs = Vec::new();
    for attribute in NlasIterator::new(&body[HEADER_LEN..]) {
        let attribute = attribute?;
        if attribute.kind() == IFLA_VFINFO_LIST {
            for info in NlasIterator::new(attribute.value()) {
                let info = info?;
                if info.kind() == IFLA_VF_INFO {
                    vfs.extend(vf(info.value())?);
                }
            }
        }
    }
    Ok(PfReport { link, vfs })
}

/// The n-th 32-bit word of a payload, which is in host byte order.
fn word(payload: &[u8], n: usize) -> Option<u32> {
    let bytes = payload.get(4 * n..4 * n + 4)?;
    Some(u32::from_ne_bytes(bytes.try_into().ok()?))
}

fn switch(payload: &[u8]) -> Option<bool> {
    word(payload, 1).filter(|value| *value != NOT_REPORTED).map(|value| value != 0)
}

/// One VF; none if no attribute carries its number.
fn vf(info: &[u8]) -> Result<Option<VfReport>, DecodeError> {
    let mut number = None;
    let mut vf = VfReport::default();
    for attribute in NlasIterator::new(info) {
        let attribute = attribute?;
        let payload = attribute.value();
        let numbered = match attribute.kind() {
            IFLA_VF_MAC => {
                vf.mac = payload.get(4..10).and_then(MacAddr::from_ethernet);
                payload
            }
            // The older attribute without protocol; the list, which comes later, replaces it.
            IFLA_VF_VLAN => {
                vf.vlan = vlan(payload, VlanProto::Dot1Q);
                payload
            }
            IFLA_VF_VLAN_LIST => {
                let Some(Ok(first)) = NlasIterator::new(payload).find(is_vlan_info) else { continue };
                let proto = first.value().get(12..14).map(|b| u16::from_be_bytes([b[0], b[1]]));
                let proto = if proto == Some(ETH_P_8021AD) { VlanProto::Dot1Ad } else { VlanProto::Dot1Q };
                vf.vlan = vlan(first.value(), proto);
                continue;
            }
            IFLA_VF_TX_RATE => {
                vf.max_tx_rate = vf.max_tx_rate.or(word(payload, 1));
                payload
            }
            IFLA_VF_RATE => {
                vf.min_tx_rate = word(payload, 1);
                vf.max_tx_rate = word(payload, 2);
                payload
            }
            IFLA_VF_SPOOFCHK => {
                vf.spoofchk = switch(payload);
                payload
            }
            IFLA_VF_TRUST => {
                vf.trust = switch(payload);
                payload
            }
            IFLA_VF_LINK_STATE => {
                vf.link_state = match word(payload, 1) {
                    Some(0) => Some(LinkState::Auto),
                    Some(1) => Some(LinkState::Enable),
                    Some(2) => Some(LinkState::Disable),
                    _ => None,
                };
                payload
            }
            _ => continue,
        };
        number = number.or(word(numbered, 0));
    }
    Ok(number.map(|number| VfReport { number, ..vf }))
}

fn is_vlan_info(attribute: &Result<netlink_packet_core::NlaBuffer<&[u8]>, DecodeError>) -> bool {
    attribute.as_ref().is_ok_and(|attribute| attribute.kind() == IFLA_VF_VLAN_INFO)
}

fn vlan(payload: &[u8], proto: VlanProto) -> Option<VfVlan> {
    let id = word(payload, 1).filter(|id| *id != NOT_REPORTED)?;
    let qos = word(payload, 2)?;
    Some(VfVlan { id: u16::try_from(id).ok()?, qos: u8::try_from(qos).ok()?, proto })
}
