//! The networks of a cell: what is written for them, and what the kernel must show.

use std::{fs, path::Path};

use serde_json::{Value, json};

use crate::{
    grid::Cell,
    harness::{Interface, World, ip},
};

/// `confDir`: networks by name.
pub(crate) const CONF_DIR: &str = "/etc/cni/confs";
/// What the plugins set, or `tuning` behind them.
const MTU: u64 = 1400;
const TUNED_MTU: u64 = 1380;

/// The secondary network of a cell.
pub(crate) struct Network<'a> {
    cell: &'a Cell,
}

impl<'a> Network<'a> {
    pub(crate) fn of(cell: &'a Cell) -> Self {
        Self { cell }
    }

    /// The definition's name, which is the pool's, too.
    pub(crate) fn name(&self) -> String {
        format!("net-{}", self.cell.index)
    }

    /// The interface in the pod.
    pub(crate) fn interface(&self) -> &'static str {
        if self.cell.is("asks", "interface") { "data0" } else { "net1" }
    }

    /// The families that it has: whether each is IPv6.
    fn families(&self) -> Vec<bool> {
        match self.cell.get("family") {
            "v4" => vec![false],
            "v6" => vec![true],
            _ => vec![false, true],
        }
    }

    /// An address of its subnet, for each family.
    fn hosts(&self, host: u32, prefix: bool) -> Vec<String> {
        let net = self.cell.index + 1;
        let of = |v6: bool| if v6 { (format!("fd00:{net}::{host}"), 64) } else { (format!("10.{net}.0.{host}"), 24) };
        let all = self.families().into_iter().map(of);
        all.map(|(address, length)| if prefix { format!("{address}/{length}") } else { address }).collect()
    }

    /// The addresses that the interface must have.
    pub(crate) fn addresses(&self) -> Vec<String> {
        match (self.cell.get("ipam"), self.cell.get("asks")) {
            ("none", _) => Vec::new(),
            (_, "ips") => self.hosts(77, true),
            ("static", _) => self.hosts(5, true),
            _ => self.hosts(2, true),
        }
    }

    /// The MTU that it must have.
    pub(crate) fn mtu(&self) -> u64 {
        match (self.cell.get("form"), self.cell.get("kind")) {
            ("conflist", _) => TUNED_MTU,
            (_, "host-device") => 1500,
            _ => MTU,
        }
    }

    /// The MAC that the pod asks for.
    pub(crate) fn mac(&self) -> Option<String> {
        self.cell.is("asks", "mac").then(|| format!("02:00:00:00:07:{:02x}", self.cell.index))
    }

    /// The gateways that the pod's default routes go to, if it wants them here.
    pub(crate) fn gateways(&self) -> Vec<String> {
        if self.cell.is("asks", "default-route") { self.hosts(1, false) } else { Vec::new() }
    }

    /// The pod's annotation.
    pub(crate) fn selection(&self) -> String {
        let mut element = json!({"name": self.name()});
        match self.cell.get("asks") {
            "nothing" => return self.name(),
            "ips" => element["ips"] = json!(self.addresses()),
            "mac" => element["mac"] = json!(self.mac()),
            "default-route" => element["default-route"] = json!(self.gateways()),
            "interface" => return format!("default/{}@{}", self.name(), self.interface()),
            other => panic!("{other}"),
        }
        json!([element]).to_string()
    }

    fn ipam(&self) -> Value {
        match self.cell.get("ipam") {
            "none" => Value::Null,
            "static" => {
                let pairs = self.hosts(5, true).into_iter().zip(self.hosts(1, false));
                let of = |(address, gateway)| json!({"address": address, "gateway": gateway});
                json!({"type": "static", "addresses": pairs.map(of).collect::<Vec<_>>()})
            }
            _ => {
                let subnets = self.hosts(0, true).into_iter().map(|subnet| json!([{"subnet": subnet}]));
                json!({"type": "host-local", "ranges": subnets.collect::<Vec<_>>()})
            }
        }
    }

    fn plugin(&self) -> Value {
        let mut plugin = match self.cell.get("kind") {
            "bridge" => json!({"type": "bridge", "bridge": "brnet", "mtu": MTU}),
            "macvlan" => json!({"type": "macvlan", "master": "uplink", "mtu": MTU}),
            "ptp" => json!({"type": "ptp", "mtu": MTU}),
            "host-device" => json!({"type": "host-device", "device": "hostdev"}),
            other => panic!("{other}"),
        };
        plugin["capabilities"] = json!({"ips": true, "mac": true});
        if !self.cell.is("ipam", "none") {
            plugin["ipam"] = self.ipam();
        }
        plugin
    }

    /// The definition, and the file that an empty one stands for.
    pub(crate) fn definition(&self) -> (Value, Option<Value>) {
        let mut conf = self.plugin();
        if self.cell.is("form", "conflist") {
            conf = json!({"plugins": [conf, {"type": "tuning", "mtu": TUNED_MTU}]});
        }
        conf["cniVersion"] = json!(self.cell.get("network"));
        let mut object = json!({
            "apiVersion": "k8s.cni.cncf.io/v1", "kind": "NetworkAttachmentDefinition",
            "metadata": {"name": self.name(), "namespace": "default"}, "spec": {}
        });
        if self.cell.is("form", "file") {
            conf["name"] = json!(self.name());
            return (object, Some(conf));
        }
        object["spec"]["config"] = json!(conf.to_string());
        (object, None)
    }

    /// Panics unless the interface is as it was asked for.
    pub(crate) fn assert_as_asked(&self, netns: &str) -> Interface {
        let found = Interface::find(netns, self.interface()).expect("the network's interface");
        assert_eq!(found.addresses(), self.addresses(), "addresses of {}", self.interface());
        assert_eq!(found.mtu(), self.mtu(), "MTU of {}", self.interface());
        if let Some(mac) = self.mac() {
            assert_eq!(found.mac(), mac);
        }
        assert_eq!(default_gateways(&found), self.gateways(), "default routes of {}", self.interface());
        assert!(
            found.link["flags"].as_array().is_some_and(|flags| flags.iter().any(|flag| flag == "UP")),
            "{found:#?}"
        );
        found
    }
}

/// Gateways of the default routes through an interface, IPv4 first.
pub(crate) fn default_gateways(found: &Interface) -> Vec<String> {
    let routes = found.routes.iter().filter(|route| route["dst"] == "default");
    routes.map(|route| route["gateway"].as_str().unwrap_or("none").to_owned()).collect()
}

/// A dual-stack bridge as the primary network.
pub(crate) fn bridge_primary() -> Value {
    json!({
        "cniVersion": "1.0.0", "name": "podnet",
        "plugins": [{"type": "bridge", "bridge": "cni0", "isGateway": true, "isDefaultGateway": true,
                     "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.244.9.0/24"}], [{"subnet": "fd00:88::/64"}]]}}]
    })
}

/// The same as a definition.
pub(crate) fn primary_definition() -> Value {
    json!({
        "apiVersion": "k8s.cni.cncf.io/v1", "kind": "NetworkAttachmentDefinition",
        "metadata": {"name": "podnet", "namespace": "kube-system"}, "spec": {"config": bridge_primary().to_string()}
    })
}

/// Puts a cell's primary network where our conf says.
pub(crate) fn set_primary(cell: &Cell, world: &World, conf: &mut Value) {
    match cell.get("primary") {
        "flannel" => conf["clusterNetwork"] = json!(world.flannel_primary()),
        "named" => {
            fs::write(Path::new(CONF_DIR).join("10-podnet.conflist"), bridge_primary().to_string()).unwrap();
            conf["clusterNetwork"] = json!("podnet");
        }
        "definition" => conf["clusterNetwork"] = json!("kube-system/podnet"),
        "delegates" => {
            conf.as_object_mut().unwrap().remove("clusterNetwork");
            conf["delegates"] = json!([bridge_primary()]);
        }
        other => panic!("{other}"),
    }
}

/// Makes the node's own interfaces that the kinds stand on.
pub(crate) fn interfaces_of_the_node() {
    for name in ["cni0", "brnet", "hostdev", "uplink"] {
        if Path::new("/sys/class/net").join(name).exists() {
            ip(&format!("link delete {name}"));
        }
    }
    for (name, peer) in [("uplink", "wire"), ("hostdev", "cable")] {
        ip(&format!("link add {name} type veth peer name {peer}"));
        ip(&format!("link set {name} up"));
        ip(&format!("link set {peer} up"));
    }
}
