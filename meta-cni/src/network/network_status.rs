//! The annotation `k8s.v1.cni.cncf.io/network-status`: what a pod was given.

use std::net::IpAddr;

use serde::Serialize;
use serde_json::Value;

use crate::cni::{CniResult, Dns, Ip};

/// The annotation's key (multi-net-spec 5).
pub const STATUS_ANNOTATION: &str = "k8s.v1.cni.cncf.io/network-status";

/// One attachment, as the status tells it.
#[derive(Debug)]
pub struct Attached<'a> {
    /// `NAMESPACE/NAME` of the definition, or the name of the primary's configuration.
    pub network: &'a str,
    /// The interface asked for.
    pub interface: &'a str,
    /// Whether it is the pod's primary network.
    pub primary: bool,
    /// The result, after the routes were settled.
    pub result: &'a CniResult,
    /// Gateways of the pod's default route, if they lead through this attachment.
    pub default_gateways: Vec<IpAddr>,
    /// What the device plugin says of its device.
    pub device_info: Option<Value>,
}

/// The wire form of one entry (field names and order of network-attachment-definition-client).
#[derive(Serialize)]
struct Entry<'a> {
    name: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    interface: &'a str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    ips: Vec<IpAddr>,
    #[serde(skip_serializing_if = "str::is_empty")]
    mac: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    mtu: Option<u32>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    default: bool,
    dns: &'a Dns,
    #[serde(rename = "device-info", skip_serializing_if = "Option::is_none")]
    device_info: Option<&'a Value>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    gateway: Vec<IpAddr>,
}

/// The annotation's value: an entry for each interface in the sandbox, in the order of the attachments, and one for an
/// attachment that has none.
#[must_use]
pub fn render(attached: &[Attached<'_>]) -> String {
    let entries: Vec<Entry<'_>> = attached.iter().flat_map(entries_of).collect();
    // An Entry is made of texts, numbers and addresses: it always serialises.
    serde_json::to_string_pretty(&entries).unwrap_or_default()
}

fn entries_of<'a>(attached: &'a Attached<'a>) -> Vec<Entry<'a>> {
    let result = attached.result;
    let inside: Vec<usize> =
        (0..result.interfaces.len()).filter(|&at| !result.interfaces[at].sandbox.is_empty()).collect();
    let of = |ips: Vec<&Ip>, interface, mac, mtu, main: bool| Entry {
        name: attached.network,
        interface,
        ips: ips.into_iter().map(|ip| ip.address.addr()).collect(),
        mac,
        mtu,
        default: attached.primary && main,
        dns: &result.dns,
        device_info: attached.device_info.as_ref().filter(|_| main),
        gateway: if main { attached.default_gateways.clone() } else { Vec::new() },
    };
    let Some(&last) = inside.last() else {
        // Old results have no interfaces: the name that was asked for is the name.
        return vec![of(result.ips.iter().collect(), attached.interface, "", None, true)];
    };
    // An address that is said to be of no interface, or of one that is not there, is the last one's; one of the host's end
    // is nobody's here.
    let place = |ip: &Ip| ip.interface.filter(|index| *index < result.interfaces.len());
    let of_interface = |at: usize| -> Vec<&Ip> {
        let own = |ip: &&Ip| place(ip) == Some(at) || (at == last && place(ip).is_none());
        result.ips.iter().filter(own).collect()
    };
    // Whoever looks for the pod's own network among several interfaces wants the one that leads out.
    let leads_out = |at: &usize| of_interface(*at).iter().any(|ip| ip.gateway.is_some());
    let main = inside.iter().copied().find(leads_out).unwrap_or(inside[0]);
    let entry = |&at: &usize| {
        let interface = &result.interfaces[at];
        of(of_interface(at), &interface.name, &interface.mac, interface.mtu, at == main)
    };
    inside.iter().map(entry).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn result(value: Value) -> CniResult {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn an_address_of_the_hosts_end_is_not_the_pods_and_one_of_no_interface_is() {
        let told = |interfaces: Value| {
            let ips = json!([{"interface": 0, "address": "10.1.0.1/24"}, {"interface": 1, "address": "10.1.0.5/24"},
                             {"interface": 9, "address": "10.1.0.6/24"}]);
            let result = result(json!({"interfaces": interfaces, "ips": ips}));
            let attached = Attached {
                network: "cbr0",
                interface: "eth0",
                primary: true,
                result: &result,
                default_gateways: Vec::new(),
                device_info: None,
            };
            let entries: Value = serde_json::from_str(&render(&[attached])).unwrap();
            entries.as_array().unwrap().iter().map(|entry| entry["ips"].clone()).collect::<Vec<_>>()
        };
        let inside = |name| json!({"name": name, "sandbox": "/ns"});
        assert_eq!(told(json!([{"name": "cni0"}, inside("eth0")])), [json!(["10.1.0.5", "10.1.0.6"])]);
        assert_eq!(told(json!([inside("a"), inside("b")])), [json!(["10.1.0.1"]), json!(["10.1.0.5", "10.1.0.6"])]);
        assert_eq!(told(json!([])), [json!(["10.1.0.1", "10.1.0.5", "10.1.0.6"])]);
    }

    #[test]
    fn one_entry_for_each_interface_in_the_sandbox() {
        let primary = result(json!({
            "interfaces": [{"name": "cni0", "mac": "02:00:00:00:00:09"}, {"name": "veth1"},
                           {"name": "eth0", "mac": "02:00:00:00:00:01", "mtu": 1450, "sandbox": "/ns"}],
            "ips": [{"interface": 2, "address": "10.1.0.5/24", "gateway": "10.1.0.1"}]}));
        let two = result(json!({
            "interfaces": [{"name": "net1", "sandbox": "/ns"}, {"name": "net1.5", "sandbox": "/ns"}],
            "ips": [{"interface": 0, "address": "10.2.0.5/24"}, {"address": "fd00::5/64"}]}));
        let none = CniResult::default();
        let of = |network, interface, primary, result, default_gateways| Attached {
            network,
            interface,
            primary,
            result,
            default_gateways,
            device_info: None,
        };
        let text = render(&[
            of("cbr0", "eth0", true, &primary, vec!["10.1.0.1".parse().unwrap()]),
            of("default/two", "net1", false, &two, vec![]),
            of("default/vfio", "net2", false, &none, vec![]),
        ]);
        let expected = json!([
            {"name": "cbr0", "interface": "eth0", "ips": ["10.1.0.5"], "mac": "02:00:00:00:00:01", "mtu": 1450,
             "default": true, "dns": {}, "gateway": ["10.1.0.1"]},
            {"name": "default/two", "interface": "net1", "ips": ["10.2.0.5"], "dns": {}},
            {"name": "default/two", "interface": "net1.5", "ips": ["fd00::5"], "dns": {}},
            {"name": "default/vfio", "interface": "net2", "dns": {}},
        ]);
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), expected);
    }
}
