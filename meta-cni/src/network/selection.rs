//! The annotations by which a pod asks for networks: `k8s.v1.cni.cncf.io/networks`, and `v1.multus-cni.io/default-network`
//! of the same form for another primary than the node's.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, de::IgnoredAny};
use serde_json::{Map, Value};

use crate::cni::{Error, check_interface_name};

/// The annotation's key (multi-net-spec 4.1).
pub const NETWORKS_ANNOTATION: &str = "k8s.v1.cni.cncf.io/networks";
/// The key of the annotation that chooses the pod's primary network.
pub const DEFAULT_NETWORK_ANNOTATION: &str = "v1.multus-cni.io/default-network";

/// The most elements that an annotation may have. An annotation of Kubernetes has room for a quarter of a million, and each
/// one that is wrong is an error of its own.
const MOST_ELEMENTS: usize = 1000;
/// How much of a name is told, in characters: no object has a longer one.
const LONGEST_SHOWN: usize = 253;

/// One network selection element: a network that the pod asks for, and how.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Selection {
    /// Namespace of the definition.
    pub namespace: String,
    /// Name of the definition.
    pub name: String,
    /// The name of the interface, when the pod chooses it.
    pub interface: Option<String>,
    /// Addresses asked for, with or without a length of prefix.
    pub ips: Vec<String>,
    /// Hardware address asked for.
    pub mac: Option<String>,
    /// GUID of an InfiniBand interface.
    pub infiniband_guid: Option<String>,
    /// Port mappings, as they go into `runtimeConfig`.
    pub port_mappings: Option<Value>,
    /// Bandwidth, as it goes into `runtimeConfig`.
    pub bandwidth: Option<Value>,
    /// Gateways of the pod's default route; an empty list keeps what the plugin made.
    pub default_route: Option<Vec<IpAddr>>,
    /// Merged into `args.cni` of every plugin.
    pub cni_args: Map<String, Value>,
    /// A device chosen by the pod; given to plugins that declare the capability `deviceID`.
    pub device_id: Option<String>,
    /// The resource that the device comes from, in place of the definition's: one definition serves several (multus#1520).
    pub resource: Option<String>,
    /// The claim that an IPAM plugin with persistent addresses reads.
    pub ipam_claim: Option<String>,
}

impl Selection {
    /// Namespace and name as network-status writes them.
    #[must_use]
    pub fn network(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}

/// The wire form of one element.
#[derive(Deserialize)]
struct RawSelection {
    #[serde(default)]
    name: String,
    #[serde(default)]
    namespace: String,
    #[serde(default, alias = "interfaceRequest")]
    interface: Option<String>,
    #[serde(default)]
    ips: Option<Vec<String>>,
    #[serde(default)]
    mac: Option<String>,
    #[serde(default, rename = "infiniband-guid")]
    infiniband_guid: Option<String>,
    #[serde(default, rename = "portMappings")]
    port_mappings: Option<Value>,
    #[serde(default)]
    bandwidth: Option<Value>,
    #[serde(default, rename = "default-route")]
    default_route: Option<Vec<String>>,
    #[serde(default, rename = "cni-args")]
    cni_args: Option<Map<String, Value>>,
    #[serde(default, rename = "deviceID")]
    device_id: Option<String>,
    #[serde(default, rename = "resourceName")]
    resource: Option<String>,
    #[serde(default, rename = "ipam-claim-reference")]
    ipam_claim: Option<String>,
    #[serde(flatten)]
    unknown: Map<String, Value>,
}

/// Reads the text of the annotation `key`; an empty one asks for nothing. `namespace` is where definitions are that are
/// named without one.
///
/// # Errors
/// [`Error::Decode`] when it looks like JSON and is none, [`Error::Config`] with everything that is wrong in it.
pub fn parse(key: &str, annotation: &str, namespace: &str) -> Result<Vec<Selection>, Error> {
    let text = annotation.trim();
    if text.is_empty() {
        return Ok(Vec::new());
    }
    let is_json = text.contains(['[', '{', '"']);
    let count = if is_json {
        // What is no list of anything is refused below.
        serde_json::from_str::<Vec<IgnoredAny>>(text).map_or(0, |elements| elements.len())
    } else {
        text.split(',').count()
    };
    if count > MOST_ELEMENTS {
        return Err(Error::Config(format!("annotation {key} has {count} elements: {MOST_ELEMENTS} are possible")));
    }
    let found: Vec<Result<Selection, Error>> = if is_json {
        let raw: Vec<RawSelection> =
            serde_json::from_str(text).map_err(|problem| Error::decode(format!("annotation {key}"), problem))?;
        raw.into_iter().enumerate().map(|(index, raw)| raw.check(key, index, namespace)).collect()
    } else {
        text.split(',').map(|part| parse_short(key, part.trim(), namespace)).collect()
    };
    let (good, bad): (Vec<_>, Vec<_>) = found.into_iter().partition(Result::is_ok);
    match Error::join(bad.into_iter().filter_map(Result::err).collect()) {
        None => Ok(good.into_iter().flatten().collect()),
        Some(error) => Err(error),
    }
}

/// `[NAMESPACE/]NAME[@INTERFACE]`
fn parse_short(key: &str, part: &str, namespace: &str) -> Result<Selection, Error> {
    let wrong = |problem: &str| Err(wrong_element(key, &format!("\"{part}\""), problem));
    let (network, interface) = match part.split_once('@') {
        Some((network, interface)) => (network.trim(), Some(interface.trim().to_owned())),
        None => (part, None),
    };
    let (namespace, name) = network.split_once('/').unwrap_or((namespace, network));
    if part.is_empty() {
        return wrong("an element is empty: is there a comma too many?");
    }
    let selection = Selection {
        namespace: namespace.trim().to_owned(),
        name: name.trim().to_owned(),
        interface,
        ..Selection::default()
    };
    match selection.problem() {
        Some(problem) => wrong(&problem),
        None => Ok(selection),
    }
}

fn wrong_element(key: &str, element: &str, problem: &str) -> Error {
    Error::Config(format!("annotation {key}: {element}: {problem}"))
}

impl RawSelection {
    fn check(self, annotation: &str, index: usize, namespace: &str) -> Result<Selection, Error> {
        let name: String = self.name.chars().take(LONGEST_SHOWN).collect();
        let element = format!("element {} ({})", index + 1, if name.is_empty() { "no name" } else { &name });
        if !self.unknown.is_empty() {
            // One line, however many there are: an annotation is anybody's.
            let keys: Vec<&str> = self.unknown.keys().map(String::as_str).collect();
            tracing::warn!(element, keys = keys.join(", "), "unknown keys in the annotation {annotation} are ignored");
        }
        let mut gateways = None;
        if let Some(texts) = &self.default_route {
            let parsed: Result<Vec<IpAddr>, _> = texts.iter().map(|text| text.parse()).collect();
            let Ok(parsed) = parsed else {
                return Err(wrong_element(
                    annotation,
                    &element,
                    &format!("\"default-route\" {texts:?}: not all are IP addresses"),
                ));
            };
            gateways = Some(parsed);
        }
        let non_empty = |text: Option<String>| text.filter(|text| !text.is_empty());
        let selection = Selection {
            namespace: if self.namespace.is_empty() { namespace.to_owned() } else { self.namespace },
            name: self.name,
            interface: non_empty(self.interface),
            ips: self.ips.unwrap_or_default(),
            mac: non_empty(self.mac),
            infiniband_guid: non_empty(self.infiniband_guid),
            port_mappings: self.port_mappings.filter(|value| !value.is_null()),
            bandwidth: self.bandwidth.filter(|value| !value.is_null()),
            default_route: gateways,
            cni_args: self.cni_args.unwrap_or_default(),
            device_id: non_empty(self.device_id),
            resource: non_empty(self.resource),
            ipam_claim: non_empty(self.ipam_claim),
        };
        match selection.problem() {
            Some(problem) => Err(wrong_element(annotation, &element, &problem)),
            None => Ok(selection),
        }
    }
}

impl Selection {
    /// What is wrong with it, if anything.
    fn problem(&self) -> Option<String> {
        if !is_object_name(&self.name) {
            return Some(format!("\"{}\" is no name of a definition", self.name));
        }
        if !is_object_name(&self.namespace) {
            return Some(format!("\"{}\" is no name of a namespace", self.namespace));
        }
        if let Some(problem) = self.interface.as_deref().and_then(|name| check_interface_name(name).err()) {
            return Some(problem);
        }
        if let Some(ip) = self.ips.iter().find(|text| text.parse::<IpAddr>().is_err() && text.parse::<IpNet>().is_err())
        {
            return Some(format!("\"ips\": \"{ip}\" is neither an address nor one with a prefix length"));
        }
        for (key, value) in [("mac", &self.mac), ("infiniband-guid", &self.infiniband_guid)] {
            if let Some(text) = value.as_deref().filter(|text| !is_hardware_address(text)) {
                return Some(format!("\"{key}\": \"{text}\" is no hardware address"));
            }
        }
        let gateways = self.default_route.as_deref().unwrap_or_default();
        if [true, false].into_iter().any(|v4| gateways.iter().filter(|gateway| gateway.is_ipv4() == v4).count() > 1) {
            return Some(
                "\"default-route\" has more than one gateway of a family: several are not supported".to_owned(),
            );
        }
        if self.ipam_claim.is_some() && !self.ips.is_empty() {
            return Some("\"ips\" and \"ipam-claim-reference\" exclude each other".to_owned());
        }
        None
    }
}

/// A DNS-1123 subdomain, as names of Kubernetes objects are.
fn is_object_name(text: &str) -> bool {
    let word = |part: &str| {
        !part.is_empty()
            && !part.starts_with('-')
            && !part.ends_with('-')
            && part.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
    };
    text.len() <= 253 && text.split('.').all(word)
}

/// 6, 8 or 20 bytes in pairs of hexadecimal digits (Go `net.ParseMAC` with its usual separators).
fn is_hardware_address(text: &str) -> bool {
    let separator = if text.contains('-') { '-' } else { ':' };
    let parts: Vec<&str> = text.split(separator).collect();
    matches!(parts.len(), 6 | 8 | 20)
        && parts.iter().all(|part| part.len() == 2 && part.chars().all(|c| c.is_ascii_hexdigit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(annotation: &str, namespace: &str) -> Result<Vec<Selection>, Error> {
        parse(NETWORKS_ANNOTATION, annotation, namespace)
    }

    #[test]
    fn the_short_form() {
        let found = read(" sriov-a , other/sriov-b@data0,a.b ", "default").unwrap();
        let shape: Vec<_> = found.iter().map(|s| (s.network(), s.interface.clone())).collect();
        let expected = [("default/sriov-a", None), ("other/sriov-b", Some("data0")), ("default/a.b", None)];
        assert_eq!(shape, expected.map(|(network, name)| (network.to_owned(), name.map(str::to_owned))));
        assert!(read("", "default").unwrap().is_empty());
        assert!(read("[]", "default").unwrap().is_empty());
    }

    #[test]
    fn the_json_form_with_every_field() {
        let text = r#"[{"name":"a","namespace":"ns","ips":["10.0.0.1/24","fd00::1"],"mac":"02:00:00:00:00:01",
            "infiniband-guid":"02:00:00:00:00:00:00:01","interfaceRequest":"data0","portMappings":[{"hostPort":1}],
            "bandwidth":{"ingressRate":1},"default-route":["10.0.0.254","fd00::fe"],"cni-args":{"k":1},"deviceID":"dev"}]"#;
        let found = read(text, "default").unwrap().remove(0);
        assert_eq!(found.network(), "ns/a");
        assert_eq!(found.interface.as_deref(), Some("data0"));
        assert_eq!(found.ips, ["10.0.0.1/24", "fd00::1"]);
        assert_eq!(found.default_route.as_ref().map(Vec::len), Some(2));
        assert_eq!(found.cni_args["k"], 1);
        assert_eq!(found.device_id.as_deref(), Some("dev"));
        assert_eq!(read(r#"[{"name":"a"}]"#, "pods").unwrap()[0].namespace, "pods");
    }

    #[test]
    fn everything_that_is_wrong_is_said_at_once() {
        match read("a,B!,c@this-name-is-too-long", "default") {
            Err(Error::Several(errors)) => {
                assert!(errors[0].to_string().contains("\"B!\" is no name"));
                assert!(errors[1].to_string().contains("too long"));
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_thousand_elements_are_the_most() {
        let json = |count: usize| format!("[{}]", vec![r#"{"name":"a"}"#; count].join(","));
        for (most, more) in [(vec!["a"; 1000].join(","), ",".repeat(1000)), (json(1000), json(1001))] {
            assert_eq!(read(&most, "default").unwrap().len(), 1000);
            match read(&more, "default") {
                Err(Error::Config(message)) => assert!(message.contains("1001 elements: 1000 are"), "{message}"),
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn wrong_elements() {
        for (text, part) in [
            ("a,", "comma too many"),
            (r#"[{"name":""}]"#, "(no name)"),
            (r#"[{"name":"a","namespace":"B"}]"#, "no name of a namespace"),
            (r#"[{"name":"a","interface":"a/b"}]"#, "contains /"),
            (r#"[{"name":"a","ips":["10.0.0"]}]"#, "\"10.0.0\" is neither"),
            (r#"[{"name":"a","mac":"zz"}]"#, "no hardware address"),
            (r#"[{"name":"a","default-route":["10.0.0.1","10.0.0.2"]}]"#, "more than one gateway"),
            (r#"[{"name":"a","default-route":["x"]}]"#, "not all are IP"),
            (r#"[{"name":"a","ips":["10.0.0.1"],"ipam-claim-reference":"c"}]"#, "exclude each other"),
        ] {
            match read(text, "default") {
                Err(Error::Config(message)) => assert!(message.contains(part), "{text}: {message}"),
                other => panic!("{text}: {other:?}"),
            }
        }
        assert!(matches!(read("[{", "default"), Err(Error::Decode { .. })));
        assert!(matches!(read("{\"name\":\"a\"}", "default"), Err(Error::Decode { .. })));
    }
}
