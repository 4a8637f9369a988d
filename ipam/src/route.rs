//! A route of an IPAM configuration. It is handed through: this crate sets none.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::address::{self, Cidr};
use crate::{Error, RawRoute};

/// One route, serialized with the names of CNI 1.1. Zero means "not set", as in the Go types.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Route {
    /// The destination, with the host bits it was written with.
    pub dst: IpNet,
    /// The next hop; without one the attachment's first gateway of the family is used.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gw: Option<IpAddr>,
    /// The route's MTU in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// The maximal segment size to advertise, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advmss: Option<u32>,
    /// The metric; lower is preferred.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub priority: Option<u32>,
    /// The routing table; zero is a value here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub table: Option<u32>,
    /// The scope (0 universe, 253 link, 254 host); zero is a value here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scope: Option<u8>,
}

impl Route {
    /// Reads route number `index` of a configuration.
    ///
    /// # Errors
    /// [`Error::BadCidr`] or [`Error::BadAddress`] with the place in the configuration.
    pub fn new(index: usize, raw: &RawRoute) -> Result<Route, Error> {
        let dst = raw.dst.as_deref().unwrap_or_default();
        let dst = Cidr::parse(dst)
            .and_then(Cidr::canonical)
            .ok_or_else(|| Error::BadCidr { place: format!("routes[{index}].dst"), text: dst.to_owned() })?;
        let gw = match raw.gw.as_deref() {
            None | Some("") => None,
            Some(text) => Some(
                address::parse(text)
                    .ok_or_else(|| Error::BadAddress { place: format!("routes[{index}].gw"), text: text.to_owned() })?,
            ),
        };
        let set = |value: Option<u32>| value.filter(|value| *value != 0);
        Ok(Route {
            dst,
            gw,
            mtu: set(raw.mtu),
            advmss: set(raw.advmss),
            priority: set(raw.priority),
            table: raw.table,
            scope: raw.scope,
        })
    }

    /// Reads all routes of a configuration, in order.
    pub(crate) fn all(raw: Option<&Vec<RawRoute>>) -> Result<Vec<Route>, Error> {
        raw.into_iter().flatten().enumerate().map(|(index, route)| Route::new(index, route)).collect()
    }
}

impl<'de> Deserialize<'de> for Route {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let raw = RawRoute::deserialize(deserializer)?;
        Route::new(0, &raw).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_of_cni_1_1_survives_and_zero_is_absence_where_go_says_so() {
        let text =
            r#"{"dst":"10.1.2.3/8","gw":"192.0.2.1","mtu":1400,"advmss":1360,"priority":7,"table":0,"scope":253}"#;
        let route: Route = serde_json::from_str(text).unwrap();
        assert_eq!(serde_json::to_string(&route).unwrap(), text);
        let route: Route = serde_json::from_str(r#"{"dst":"::/0","gw":"","mtu":0,"advmss":0,"priority":0}"#).unwrap();
        assert_eq!(serde_json::to_string(&route).unwrap(), r#"{"dst":"::/0"}"#);
    }

    #[test]
    fn a_bad_route_is_named_by_its_place() {
        let raw: RawRoute = serde_json::from_str(r#"{"gw":"192.0.2.1"}"#).unwrap();
        let error = Route::new(3, &raw).unwrap_err();
        assert!(
            matches!(&error, Error::BadCidr { place, text } if place == "routes[3].dst" && text.is_empty()),
            "{error}"
        );
        let raw: RawRoute = serde_json::from_str(r#"{"dst":"0.0.0.0/0","gw":"192.0.2.01"}"#).unwrap();
        let error = Route::new(1, &raw).unwrap_err();
        assert_eq!(error.to_string(), "routes[1].gw: invalid IP address: 192.0.2.01");
    }
}
