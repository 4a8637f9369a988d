//! What is asked of a VF: sriov-cni's keys as they come, and the same as values that cannot be wrong.

use sandbox::{LinkState, MacAddr, VfSetting, VfVlan, VlanProto};
use serde::Deserialize;

use crate::Error;

/// The keys of sriov-cni's configuration, as written. Unknown keys are ignored here; see [`RawVf::known_keys`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct RawVf {
    /// PCI address of the VF; read by the caller.
    #[serde(rename = "deviceID")]
    pub device_id: Option<String>,
    /// 0 to 4094; 0 removes the tag, absent leaves it.
    pub vlan: Option<i64>,
    /// 0 to 7.
    #[serde(rename = "vlanQoS")]
    pub vlan_qos: Option<i64>,
    /// `802.1q` or `802.1ad`, in either case.
    #[serde(rename = "vlanProto")]
    pub vlan_proto: Option<String>,
    /// Address of the VF; the empty string is as if absent.
    pub mac: Option<String>,
    /// `on` or `off`.
    pub spoofchk: Option<String>,
    /// `on` or `off`.
    pub trust: Option<String>,
    /// In Mbps.
    pub min_tx_rate: Option<i64>,
    /// In Mbps.
    pub max_tx_rate: Option<i64>,
    /// `auto`, `enable` or `disable`.
    pub link_state: Option<String>,
    /// In bytes. sriov-cni ignores it.
    pub mtu: Option<i64>,
    /// `original` or `clean`. Not one of sriov-cni's.
    #[serde(rename = "restorePolicy")]
    pub restore_policy: Option<String>,
    /// An interface for a VF that has none. Not one of sriov-cni's.
    #[serde(rename = "dummyInterface")]
    pub dummy_interface: Option<bool>,
}

impl RawVf {
    /// The keys that are read, for the search of unknown ones.
    pub fn known_keys() -> &'static [&'static str] {
        &[
            "deviceID",
            "vlan",
            "vlanQoS",
            "vlanProto",
            "mac",
            "spoofchk",
            "trust",
            "min_tx_rate",
            "max_tx_rate",
            "link_state",
            "mtu",
            "restorePolicy",
            "dummyInterface",
        ]
    }
}

/// Transmit limits in Mbps, 0 = none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Guaranteed.
    pub min: u32,
    /// Limit.
    pub max: u32,
}

/// The state in which a VF is given back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RestorePolicy {
    /// As it was found.
    #[default]
    Original,
    /// As nobody has ever touched it: no VLAN, spoof check on, no trust, no limits, link as the PF's, no administrative
    /// address, neither promiscuous nor with an alias.
    Clean,
}

/// What is asked of a VF. What is `None` is left as it is found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wanted {
    /// A unicast address.
    pub mac: Option<MacAddr>,
    /// VLAN; id 0 removes the tag.
    pub vlan: Option<VfVlan>,
    /// Drop frames with a foreign source address.
    pub spoofchk: Option<bool>,
    /// Let the VF change its address and go promiscuous.
    pub trust: Option<bool>,
    /// Transmit limits.
    pub rate: Option<Rate>,
    /// Link as the VF sees it.
    pub link_state: Option<LinkState>,
    /// In bytes.
    pub mtu: Option<u32>,
    /// The state to give it back in.
    pub restore_policy: RestorePolicy,
    /// For a VF that is bound to a driver for user space: an interface in the pod that carries its address.
    pub dummy_interface: bool,
}

impl TryFrom<&RawVf> for Wanted {
    type Error = Error;

    fn try_from(raw: &RawVf) -> Result<Self, Error> {
        Ok(Self {
            mac: mac(raw.mac.as_deref())?,
            vlan: vlan(raw)?,
            spoofchk: switch("spoofchk", raw.spoofchk.as_deref())?,
            trust: switch("trust", raw.trust.as_deref())?,
            rate: rate(raw)?,
            link_state: link_state(raw.link_state.as_deref())?,
            mtu: mtu(raw.mtu)?,
            restore_policy: restore_policy(raw.restore_policy.as_deref())?,
            dummy_interface: raw.dummy_interface.unwrap_or(false),
        })
    }
}

impl Wanted {
    /// What goes through the PF, in the kernel's order.
    pub(crate) fn pf_settings(&self) -> Vec<VfSetting> {
        let mut settings = Vec::new();
        settings.extend(self.mac.map(VfSetting::Mac));
        settings.extend(self.vlan.map(VfSetting::Vlan));
        settings.extend(self.rate.map(|Rate { min, max }| VfSetting::Rate { min, max }));
        settings.extend(self.spoofchk.map(VfSetting::SpoofChk));
        settings.extend(self.link_state.map(VfSetting::LinkState));
        settings.extend(self.trust.map(VfSetting::Trust));
        settings
    }
}

fn mac(text: Option<&str>) -> Result<Option<MacAddr>, Error> {
    let Some(text) = text.filter(|text| !text.is_empty()) else { return Ok(None) };
    let mac: MacAddr = text.parse().map_err(|_| Error::BadMac(text.to_owned()))?;
    if mac.is_multicast() || mac == MacAddr::ZERO {
        return Err(Error::MacNotUnicast(mac.to_string()));
    }
    Ok(Some(mac))
}

fn vlan(raw: &RawVf) -> Result<Option<VfVlan>, Error> {
    let Some(id) = raw.vlan else {
        return match (raw.vlan_qos, &raw.vlan_proto) {
            (Some(_), _) => Err(Error::QosWithoutVlan),
            (None, Some(_)) => Err(Error::ProtoWithoutVlan),
            (None, None) => Ok(None),
        };
    };
    let id = u16::try_from(id).ok().filter(|id| *id <= 4094).ok_or(Error::VlanRange(id))?;
    let qos = raw.vlan_qos.unwrap_or(0);
    let qos = u8::try_from(qos).ok().filter(|qos| *qos <= 7).ok_or(Error::QosRange(qos))?;
    if qos != 0 && id == 0 {
        return Err(Error::QosNeedsVlan);
    }
    let proto = match raw.vlan_proto.as_deref().map(str::to_ascii_lowercase).as_deref() {
        None | Some("802.1q") => VlanProto::Dot1Q,
        Some("802.1ad") if id == 0 => return Err(Error::ProtoNeedsVlan),
        Some("802.1ad") => VlanProto::Dot1Ad,
        Some(_) => return Err(Error::ProtoUnknown(raw.vlan_proto.clone().unwrap_or_default())),
    };
    Ok(Some(VfVlan { id, qos, proto }))
}

/// sriov-cni takes everything but "on" for off; a typing error would silently switch a protection off.
fn switch(key: &'static str, text: Option<&str>) -> Result<Option<bool>, Error> {
    match text {
        None | Some("") => Ok(None),
        Some("on") => Ok(Some(true)),
        Some("off") => Ok(Some(false)),
        Some(value) => Err(Error::BadSwitch { key, value: value.to_owned() }),
    }
}

fn rate(raw: &RawVf) -> Result<Option<Rate>, Error> {
    let one = |key, value: Option<i64>| match value {
        None => Ok(None),
        // The kernel's field is an int in several drivers.
        Some(value) => match i32::try_from(value).ok().and_then(|value| u32::try_from(value).ok()) {
            Some(rate) => Ok(Some(rate)),
            None => Err(Error::BadRate { key, value }),
        },
    };
    let (min, max) = (one("min_tx_rate", raw.min_tx_rate)?, one("max_tx_rate", raw.max_tx_rate)?);
    if min.is_none() && max.is_none() {
        return Ok(None);
    }
    // The one that is not given is "none", as with sriov-cni.
    let rate = Rate { min: min.unwrap_or(0), max: max.unwrap_or(0) };
    if rate.max != 0 && rate.min > rate.max {
        return Err(Error::RateOrder { min: rate.min, max: rate.max });
    }
    Ok(Some(rate))
}

fn link_state(text: Option<&str>) -> Result<Option<LinkState>, Error> {
    match text {
        None | Some("") => Ok(None),
        Some("auto") => Ok(Some(LinkState::Auto)),
        Some("enable") => Ok(Some(LinkState::Enable)),
        Some("disable") => Ok(Some(LinkState::Disable)),
        Some(other) => Err(Error::BadLinkState(other.to_owned())),
    }
}

fn restore_policy(text: Option<&str>) -> Result<RestorePolicy, Error> {
    match text {
        None | Some("" | "original") => Ok(RestorePolicy::Original),
        Some("clean") => Ok(RestorePolicy::Clean),
        Some(other) => Err(Error::BadRestorePolicy(other.to_owned())),
    }
}

fn mtu(value: Option<i64>) -> Result<Option<u32>, Error> {
    // sriov-cni's own state had `MTU` 0 for "as it is".
    let Some(value) = value.filter(|value| *value != 0) else { return Ok(None) };
    let mtu = u32::try_from(value).ok().filter(|mtu| (68..=65535).contains(mtu));
    mtu.map(Some).ok_or(Error::BadMtu(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(json: &str) -> Result<Wanted, Error> {
        Wanted::try_from(&serde_json::from_str::<RawVf>(json).unwrap())
    }

    #[test]
    fn every_key_arrives() {
        let all = r#"{"deviceID":"0000:01:10.0","vlan":100,"vlanQoS":3,"vlanProto":"802.1AD","mac":"52:54:00:AA:00:09",
            "spoofchk":"off","trust":"on","min_tx_rate":10,"max_tx_rate":200,"link_state":"enable","mtu":9000,
            "restorePolicy":"clean","dummyInterface":true,"type":"x"}"#;
        let expected = Wanted {
            mac: Some(MacAddr([0x52, 0x54, 0, 0xaa, 0, 9])),
            vlan: Some(VfVlan { id: 100, qos: 3, proto: VlanProto::Dot1Ad }),
            spoofchk: Some(false),
            trust: Some(true),
            rate: Some(Rate { min: 10, max: 200 }),
            link_state: Some(LinkState::Enable),
            mtu: Some(9000),
            restore_policy: RestorePolicy::Clean,
            dummy_interface: true,
        };
        assert_eq!(wanted(all).unwrap(), expected);
        let object: serde_json::Map<String, serde_json::Value> = serde_json::from_str(all).unwrap();
        let unknown: Vec<_> = object.keys().filter(|key| !RawVf::known_keys().contains(&key.as_str())).collect();
        assert_eq!(unknown, ["type"]);
        assert_eq!(RawVf::known_keys().len(), object.len() - 1);
        assert_eq!(wanted("{}").unwrap(), Wanted::default());
        assert_eq!(
            wanted(r#"{"vlan":0,"mac":"","spoofchk":"","link_state":""}"#).unwrap().vlan,
            Some(VfVlan::default())
        );
        assert_eq!(wanted(r#"{"max_tx_rate":50}"#).unwrap().rate, Some(Rate { min: 0, max: 50 }));
    }

    #[test]
    fn wrong_values_are_refused_in_sriov_cnis_words() {
        for (json, text) in [
            (r#"{"vlan":4095}"#, "vlan id 4095 invalid: value must be in the range 0-4094"),
            (r#"{"vlan":-1}"#, "vlan id -1 invalid: value must be in the range 0-4094"),
            (r#"{"vlanQoS":0}"#, "vlan id must be configured to set vlan QoS to a non-nil value"),
            (r#"{"vlan":5,"vlanQoS":8}"#, "vlan QoS PCP 8 invalid: value must be in the range 0-7"),
            (r#"{"vlan":0,"vlanQoS":1}"#, "non-zero vlan id must be configured to set vlan QoS to a non-zero value"),
            (r#"{"vlanProto":"802.1q"}"#, "vlan id must be configured to set vlan proto to a non-nil value"),
            (r#"{"vlan":5,"vlanProto":"x"}"#, "vlan Proto x invalid: value must be '802.1Q' or '802.1ad'"),
            (r#"{"vlan":0,"vlanProto":"802.1ad"}"#, "non-zero vlan id must be configured to set vlan proto 802.1ad"),
            (r#"{"mac":"zz"}"#, "failed to parse MAC address zz"),
            (r#"{"link_state":"up"}"#, "invalid link_state value: up"),
            (
                r#"{"restorePolicy":"Clean"}"#,
                "restorePolicy \"Clean\" invalid: value must be \"original\" or \"clean\"",
            ),
        ] {
            assert_eq!(wanted(json).unwrap_err().to_string(), text, "{json}");
        }
        assert!(matches!(wanted(r#"{"mac":"01:00:5e:00:00:01"}"#), Err(Error::MacNotUnicast(_))));
        assert!(matches!(wanted(r#"{"mac":"00:00:00:00:00:00"}"#), Err(Error::MacNotUnicast(_))));
        assert!(matches!(wanted(r#"{"trust":"On"}"#), Err(Error::BadSwitch { key: "trust", .. })));
        assert!(matches!(wanted(r#"{"spoofchk":"yes"}"#), Err(Error::BadSwitch { key: "spoofchk", .. })));
        assert!(matches!(wanted(r#"{"min_tx_rate":-5}"#), Err(Error::BadRate { key: "min_tx_rate", value: -5 })));
        let order = wanted(r#"{"min_tx_rate":100,"max_tx_rate":50}"#);
        assert!(matches!(order, Err(Error::RateOrder { min: 100, max: 50 })));
        assert!(matches!(wanted(r#"{"mtu":60}"#), Err(Error::BadMtu(60))));
    }
}
