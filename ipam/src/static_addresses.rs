//! The `static` plugin: addresses written down in the configuration or handed over with the request. It keeps no
//! state: of a conflict only its caller can know.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::address::{self, Cidr};
use crate::{Dns, Error, RawIpam, Route};

/// Where else `static` finds addresses. The texts are as they came; an empty one in a list is an error, as in Go.
#[derive(Debug, Clone, Copy, Default)]
pub struct StaticRequest<'a> {
    /// `IP` of `CNI_ARGS`: a comma-separated list of `ADDRESS/PREFIX`, added to the configured ones.
    pub environment: Option<&'a str>,
    /// `GATEWAY` of `CNI_ARGS`: a comma-separated list; each goes to the addresses of `IP` whose network contains it.
    pub environment_gateway: Option<&'a str>,
    /// `args.cni.ips`: if not empty, takes the place of all before.
    pub args: &'a [String],
    /// `runtimeConfig.ips`: if not empty, takes the place of all before.
    pub runtime: &'a [String],
}

/// One address that `static` gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StaticAddress {
    /// The address with its prefix length.
    pub address: IpNet,
    /// The gateway reached over it.
    pub gateway: Option<IpAddr>,
}

/// What `static` answers with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StaticAddresses {
    /// The addresses, in order; may be empty.
    pub addresses: Vec<StaticAddress>,
    /// Routes, handed through.
    pub routes: Vec<Route>,
    /// DNS, handed through.
    pub dns: Dns,
    /// Whether the caller is to make sure that no other host has an address before it is used.
    pub conflict_probe: bool,
}

impl StaticAddresses {
    /// Puts configuration and request together. A request of a later place replaces what came before: the configured
    /// addresses are then not looked at, however wrong they are.
    ///
    /// # Errors
    /// [`Error::StaticAddress`], [`Error::StaticEnvironment`], [`Error::StaticRequested`], [`Error::StaticGateway`],
    /// [`Error::BadAddress`] for a configured gateway, and what [`Route::new`] says.
    pub fn new(raw: &RawIpam, request: &StaticRequest<'_>) -> Result<StaticAddresses, Error> {
        let environment = from_environment(request)?;
        let args = requested(request.args)?;
        let runtime = requested(request.runtime)?;
        let addresses = if !runtime.is_empty() {
            runtime
        } else if !args.is_empty() {
            args
        } else {
            let mut addresses = configured(raw)?;
            addresses.extend(environment);
            addresses
        };
        Ok(StaticAddresses {
            addresses,
            routes: Route::all(raw.routes.as_ref())?,
            dns: raw.dns.clone().unwrap_or_default(),
            conflict_probe: raw.conflict_probe.unwrap_or_default(),
        })
    }
}

fn configured(raw: &RawIpam) -> Result<Vec<StaticAddress>, Error> {
    let mut addresses = Vec::new();
    for (index, entry) in raw.addresses.iter().flatten().enumerate() {
        let text = entry.address.as_deref().unwrap_or_default();
        let address = net(text).ok_or_else(|| Error::StaticAddress { index, text: text.to_owned() })?;
        let gateway = match entry.gateway.as_deref() {
            None | Some("") => None,
            Some(text) => Some(address::parse(text).ok_or_else(|| Error::BadAddress {
                place: format!("addresses[{index}].gateway"),
                text: text.to_owned(),
            })?),
        };
        addresses.push(StaticAddress { address, gateway });
    }
    Ok(addresses)
}

fn from_environment(request: &StaticRequest<'_>) -> Result<Vec<StaticAddress>, Error> {
    let mut addresses = Vec::new();
    for text in items(request.environment) {
        let address = net(text).ok_or_else(|| Error::StaticEnvironment { text: text.to_owned() })?;
        addresses.push(StaticAddress { address, gateway: None });
    }
    for text in items(request.environment_gateway) {
        let gateway = address::parse(text).ok_or_else(|| Error::StaticGateway { text: text.to_owned() })?;
        for address in addresses.iter_mut().filter(|address| address.address.contains(&gateway)) {
            address.gateway = Some(gateway);
        }
    }
    Ok(addresses)
}

fn requested(texts: &[String]) -> Result<Vec<StaticAddress>, Error> {
    let parse = |text: &String| {
        let address = net(text).ok_or_else(|| Error::StaticRequested { text: text.clone() })?;
        Ok(StaticAddress { address, gateway: None })
    };
    texts.iter().map(parse).collect()
}

fn items(list: Option<&str>) -> impl Iterator<Item = &str> {
    list.filter(|list| !list.is_empty()).into_iter().flat_map(|list| list.split(',')).map(str::trim)
}

fn net(text: &str) -> Option<IpNet> {
    Cidr::parse(text).and_then(Cidr::canonical)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(json: &str) -> RawIpam {
        serde_json::from_str(json).unwrap()
    }

    fn shown(found: &StaticAddresses) -> Vec<String> {
        let gateway = |address: &StaticAddress| address.gateway.map_or_else(String::new, |gw| format!(" via {gw}"));
        found.addresses.iter().map(|address| format!("{}{}", address.address, gateway(address))).collect()
    }

    const CONF: &str = r#"{"type":"static","addresses":[{"address":"10.10.0.1/24","gateway":"10.10.0.254"},
        {"address":"3ffe:ffff:0:01ff::1/64"},{"address":"::ffff:10.9.0.1/120"}],
        "routes":[{"dst":"0.0.0.0/0"}],"dns":{"nameservers":["192.0.2.53"],"search":["example"]}}"#;

    #[test]
    fn the_configuration_alone() {
        let found = StaticAddresses::new(&raw(CONF), &StaticRequest::default()).unwrap();
        assert_eq!(shown(&found), ["10.10.0.1/24 via 10.10.0.254", "3ffe:ffff:0:1ff::1/64", "10.9.0.1/24"]);
        assert_eq!(found.routes[0].dst.to_string(), "0.0.0.0/0");
        assert_eq!(found.dns.nameservers, ["192.0.2.53"]);
    }

    #[test]
    fn cni_args_add_and_their_gateways_are_for_them_alone() {
        let request = StaticRequest {
            environment: Some("10.10.0.9/24, 11.11.0.1/24"),
            environment_gateway: Some("10.10.0.253,11.11.0.254"),
            ..StaticRequest::default()
        };
        let found = StaticAddresses::new(&raw(CONF), &request).unwrap();
        assert_eq!(shown(&found)[0], "10.10.0.1/24 via 10.10.0.254");
        assert_eq!(shown(&found)[3..], ["10.10.0.9/24 via 10.10.0.253", "11.11.0.1/24 via 11.11.0.254"]);
    }

    #[test]
    fn args_replace_and_the_runtime_replaces_even_them() {
        let (args, runtime) = (["10.1.0.1/24".to_owned()], ["10.2.0.1/24".to_owned(), "fd00::1/64".to_owned()]);
        let request = StaticRequest { environment: Some("10.3.0.1/24"), args: &args, ..StaticRequest::default() };
        assert_eq!(shown(&StaticAddresses::new(&raw(CONF), &request).unwrap()), ["10.1.0.1/24"]);
        let request = StaticRequest { runtime: &runtime, ..request };
        assert_eq!(shown(&StaticAddresses::new(&raw(CONF), &request).unwrap()), ["10.2.0.1/24", "fd00::1/64"]);
        let wrong = raw(r#"{"addresses":[{"address":"nonsense"}]}"#);
        assert_eq!(shown(&StaticAddresses::new(&wrong, &request).unwrap()), ["10.2.0.1/24", "fd00::1/64"]);
    }

    #[test]
    fn what_is_no_cidr_is_refused_by_its_place() {
        let none = StaticRequest::default();
        let wrong = raw(r#"{"addresses":[{"address":"10.0.0.1/24"},{"address":"10.0.0.1"}]}"#);
        let error = StaticAddresses::new(&wrong, &none).unwrap_err();
        assert!(matches!(&error, Error::StaticAddress { index: 1, text } if text == "10.0.0.1"), "{error}");

        let error =
            StaticAddresses::new(&raw("{}"), &StaticRequest { environment: Some("10.0.0.1"), ..none }).unwrap_err();
        assert_eq!(error.to_string(), "the 'ip' field is expected to be in CIDR notation, got: '10.0.0.1'");

        let error =
            StaticAddresses::new(&raw("{}"), &StaticRequest { environment_gateway: Some("x"), ..none }).unwrap_err();
        assert_eq!(error.to_string(), "invalid gateway address: x");

        let error =
            StaticAddresses::new(&raw("{}"), &StaticRequest { args: &["10.0.0.1".to_owned()], ..none }).unwrap_err();
        assert_eq!(error.to_string(), "an entry in the 'ips' field is NOT in CIDR notation, got: '10.0.0.1'");
    }
}
