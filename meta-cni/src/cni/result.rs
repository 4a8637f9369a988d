//! The result of an ADD, and its form in each version of the specification.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value, json};

use super::{Error, SpecVersion};

/// An interface that an attachment made.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its hardware address, when it has one.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub mac: String,
    /// Its MTU in bytes (1.1.0).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// The namespace it is in; empty for one on the host.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub sandbox: String,
    /// The socket of a vhost-user interface (1.1.0).
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub socket_path: String,
    /// The PCI address of its device (1.1.0).
    #[serde(default, rename = "pciID", skip_serializing_if = "String::is_empty")]
    pub pci_id: String,
}

/// An address of an attachment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Ip {
    /// Which of the interfaces has it.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "index")]
    pub interface: Option<usize>,
    /// The address with the length of its prefix.
    pub address: IpNet,
    /// The gateway of its subnet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
}

/// Some plugins say -1 for none.
fn index<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<usize>, D::Error> {
    let number = Option::<i64>::deserialize(deserializer)?;
    Ok(number.and_then(|number| usize::try_from(number).ok()))
}

/// A route of an attachment, with the fields of 1.1.0.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Route {
    /// Where to.
    pub dst: IpNet,
    /// By which gateway.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gw: Option<IpAddr>,
    /// Path MTU in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// Maximal segment size announced.
    #[serde(default, rename = "advmss", skip_serializing_if = "Option::is_none")]
    pub advmss: Option<u32>,
    /// Metric.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<u32>,
    /// Routing table.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table: Option<u32>,
    /// Scope (0 global, 253 link, 254 host).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<u8>,
}

impl Route {
    /// A route through a gateway, all else by default.
    #[must_use]
    pub fn through(dst: IpNet, gateway: IpAddr) -> Self {
        Self { dst, gw: Some(gateway), mtu: None, advmss: None, priority: None, table: None, scope: None }
    }

    /// Whether it is a default route of the main table: one of another table is not what a pod goes by.
    #[must_use]
    pub fn is_main_default(&self) -> bool {
        self.dst.prefix_len() == 0 && self.table.is_none_or(|table| table == 0 || table == sandbox::MAIN_TABLE)
    }
}

/// Name servers as a network gives them.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Dns {
    /// Addresses of name servers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nameservers: Vec<String>,
    /// The local domain.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub domain: String,
    /// Search domains.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub search: Vec<String>,
    /// Options of the resolver.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
}

/// What an attachment is, in the terms of 1.1.0.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct CniResult {
    /// Interfaces, the host's ends included.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub interfaces: Vec<Interface>,
    /// Addresses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ips: Vec<Ip>,
    /// Routes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<Route>,
    /// Name servers.
    #[serde(default)]
    pub dns: Dns,
}

/// The result of versions 0.1.0 and 0.2.0: one address of each family.
#[derive(Deserialize)]
struct OldIp {
    ip: IpNet,
    #[serde(default)]
    gateway: Option<IpAddr>,
    #[serde(default)]
    routes: Vec<Route>,
}

impl CniResult {
    /// Reads the result object that a plugin printed: by its own `cniVersion`, or the configuration's when it has none
    /// (libcni's fix-up). `null` and nothing at all are empty results.
    ///
    /// # Errors
    /// [`Error::Decode`] naming `what`.
    pub fn parse(what: &str, value: &Value, conf: SpecVersion) -> Result<Self, Error> {
        let Some(object) = value.as_object() else {
            return if value.is_null() { Ok(Self::default()) } else { Err(Error::decode(what, "no JSON object")) };
        };
        let version = match object.get("cniVersion").and_then(Value::as_str) {
            None | Some("") => conf,
            // It is the plugin that speaks an unknown version, not the configuration that asks for one.
            Some(text) => SpecVersion::of_conf(Some(text))
                .map_err(|_| Error::decode(what, format!("its cniVersion \"{text}\" is none that is known")))?,
        };
        if version <= SpecVersion::V0_2_0 {
            return Self::parse_old(what, object);
        }
        let mut object = without_nulls(object);
        // 0.3.0's misprint "ip" is found in the wild.
        if let Some(ips) = object.remove("ip").filter(|_| !object.contains_key("ips")) {
            object.insert("ips".to_owned(), ips);
        }
        serde_json::from_value(Value::Object(object)).map_err(|problem| Error::decode(what, problem))
    }

    fn parse_old(what: &str, object: &Map<String, Value>) -> Result<Self, Error> {
        let mut result = Self::default();
        for key in ["ip4", "ip6"] {
            let Some(value) = object.get(key).filter(|value| !value.is_null()) else { continue };
            let old: OldIp = serde_json::from_value(value.clone())
                .map_err(|problem| Error::decode(what, format!("{key}: {problem}")))?;
            result.ips.push(Ip { interface: None, address: old.ip, gateway: old.gateway });
            result.routes.extend(old.routes);
        }
        if let Some(dns) = object.get("dns").filter(|value| !value.is_null()) {
            result.dns = serde_json::from_value(dns.clone()).map_err(|problem| Error::decode(what, problem))?;
        }
        Ok(result)
    }

    /// The result in the form of a version.
    ///
    /// # Errors
    /// [`Error::Config`] for 0.1.0 and 0.2.0 without an address: they cannot say it.
    pub fn to_json(&self, version: SpecVersion) -> Result<Value, Error> {
        if version <= SpecVersion::V0_2_0 {
            return self.to_old(version);
        }
        let mut value = serde_json::to_value(self).map_err(|problem| Error::decode("result", problem))?;
        if version < SpecVersion::V1_0_0 {
            for interface in value["interfaces"].as_array_mut().into_iter().flatten().filter_map(Value::as_object_mut) {
                for key in ["mtu", "socketPath", "pciID"] {
                    interface.remove(key);
                }
            }
            for (json, ip) in value["ips"].as_array_mut().into_iter().flatten().zip(&self.ips) {
                let mut with_version = json!({"version": if ip.address.addr().is_ipv4() { "4" } else { "6" }});
                merge(&mut with_version, json);
                *json = with_version;
            }
        } else if self.dns == Dns::default() {
            value.as_object_mut().map(|object| object.remove("dns"));
        }
        let mut named = json!({"cniVersion": version.as_str()});
        merge(&mut named, &value);
        // Indexing a missing key for mutation leaves null behind.
        named.as_object_mut().into_iter().for_each(|object| object.retain(|_, value| !value.is_null()));
        Ok(named)
    }

    fn to_old(&self, version: SpecVersion) -> Result<Value, Error> {
        let mut object = json!({"cniVersion": version.as_str()});
        for (key, v4) in [("ip4", true), ("ip6", false)] {
            let Some(ip) = self.ips.iter().find(|ip| ip.address.addr().is_ipv4() == v4) else { continue };
            let mut old = json!({"ip": ip.address});
            if let Some(gateway) = ip.gateway {
                old["gateway"] = json!(gateway);
            }
            let routes: Vec<Value> = self
                .routes
                .iter()
                .filter(|route| route.dst.addr().is_ipv4() == v4)
                .map(|route| match route.gw {
                    Some(gw) => json!({"dst": route.dst, "gw": gw}),
                    None => json!({"dst": route.dst}),
                })
                .collect();
            if !routes.is_empty() {
                old["routes"] = Value::Array(routes);
            }
            object[key] = old;
        }
        if object.get("ip4").is_none() && object.get("ip6").is_none() {
            return Err(Error::Config(format!(
                "cannot convert: no valid IP addresses: a result without an address cannot be given to cniVersion {version}, \
                 use 0.3.1 or newer"
            )));
        }
        object["dns"] = serde_json::to_value(&self.dns).map_err(|problem| Error::decode("result", problem))?;
        Ok(object)
    }
}

fn without_nulls(object: &Map<String, Value>) -> Map<String, Value> {
    object.iter().filter(|(_, value)| !value.is_null()).map(|(key, value)| (key.clone(), value.clone())).collect()
}

fn merge(into: &mut Value, from: &Value) {
    if let (Some(into), Some(from)) = (into.as_object_mut(), from.as_object()) {
        into.extend(from.iter().map(|(key, value)| (key.clone(), value.clone())));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> CniResult {
        serde_json::from_value(json!({
            "interfaces": [{"name": "eth0", "mac": "02:00:00:00:00:01", "mtu": 1450, "sandbox": "/ns", "pciID": "0000:01:10.0"}],
            "ips": [{"interface": 0, "address": "10.1.0.5/24", "gateway": "10.1.0.1"},
                    {"interface": 0, "address": "fd00::5/64"}],
            "routes": [{"dst": "0.0.0.0/0", "gw": "10.1.0.1", "mtu": 1400}, {"dst": "::/0"}],
        }))
        .unwrap()
    }

    #[test]
    fn each_version_has_its_own_form() {
        for version in SpecVersion::ALL {
            let value = sample().to_json(version).unwrap();
            assert_eq!(value["cniVersion"], version.as_str());
            let new = version >= SpecVersion::V1_0_0;
            if version <= SpecVersion::V0_2_0 {
                assert_eq!(value["ip4"]["ip"], "10.1.0.5/24");
                assert_eq!(value["ip4"]["routes"], json!([{"dst": "0.0.0.0/0", "gw": "10.1.0.1"}]));
                assert_eq!(value["ip6"]["ip"], "fd00::5/64");
                assert_eq!(value["dns"], json!({}));
                assert!(value.get("interfaces").is_none());
            } else {
                assert_eq!(value["interfaces"][0].get("mtu").is_some(), new, "{version}");
                assert_eq!(value["interfaces"][0].get("pciID").is_some(), new, "{version}");
                assert_eq!(value["ips"][0].get("version").is_some(), !new, "{version}");
                assert_eq!(value["routes"][0]["mtu"], 1400);
                assert_eq!(value.get("dns").is_some(), !new, "{version}");
            }
            let back = CniResult::parse("result", &value, SpecVersion::LATEST).unwrap();
            assert_eq!(back.ips.len(), 2);
            assert_eq!(back.ips[0].address, sample().ips[0].address);
        }
    }

    #[test]
    fn without_addresses_the_oldest_versions_cannot_say_it() {
        let empty = CniResult::default();
        assert!(
            matches!(empty.to_json(SpecVersion::V0_2_0), Err(Error::Config(text)) if text.contains("cannot convert"))
        );
        assert_eq!(empty.to_json(SpecVersion::V1_0_0).unwrap(), json!({"cniVersion": "1.0.0"}));
        assert_eq!(empty.to_json(SpecVersion::V0_3_1).unwrap(), json!({"cniVersion": "0.3.1", "dns": {}}));
    }

    #[test]
    fn sloppy_results_are_understood() {
        let conf = SpecVersion::V0_4_0;
        assert_eq!(CniResult::parse("r", &Value::Null, conf).unwrap(), CniResult::default());
        let no_version =
            json!({"ips": [{"version": "4", "address": "10.0.0.2/24"}], "routes": null, "interfaces": null});
        assert_eq!(CniResult::parse("r", &no_version, conf).unwrap().ips.len(), 1);
        let future = json!({"cniVersion": "7.0.0"});
        match CniResult::parse("r", &future, conf) {
            Err(Error::Decode { what, problem }) => assert!(what == "r" && problem.contains("\"7.0.0\"")),
            other => panic!("{other:?}"),
        }
        assert!(matches!(CniResult::parse("r", &json!([1]), conf), Err(Error::Decode { .. })));
        let no_interface = json!({"ips": [{"version": "4", "interface": -1, "address": "10.0.0.2/24"}]});
        assert_eq!(CniResult::parse("r", &no_interface, conf).unwrap().ips[0].interface, None);
    }
}
