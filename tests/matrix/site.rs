//! Where cells are run: a node with a real API server behind a proxy. Each cell is a pod's life.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Instant,
};

use serde_json::{Value, json};

use crate::{
    bed::{ApiPod, Bed, NETWORKS, handed},
    grid::Cell,
    harness::{Call, Interface, ip, names},
    network::{self, CONF_DIR, Network, default_gateways},
    proxy::{DELAY, Proxy},
};

/// The node with its API server.
pub(crate) struct Site {
    bed: Bed,
    proxy: Proxy,
    kubeconfig: PathBuf,
    pods: Vec<(usize, ApiPod)>,
}

/// A pod's life, so far.
struct Life<'a> {
    cell: &'a Cell,
    network: Network<'a>,
    pod: ApiPod,
    netns: String,
    conf: Value,
    /// The node's interfaces before it.
    before: Vec<Link>,
}

/// An interface of the node.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Link {
    name: String,
    mac: String,
    mtu: Option<u64>,
    alias: String,
}

impl Site {
    /// Starts the control plane, and makes the definitions and pods of cells.
    pub(crate) fn start(cells: &[Cell]) -> Self {
        let bed = Bed::enter();
        let proxy = Proxy::before(Bed::server().trim_start_matches("https://").parse().unwrap());
        let kubeconfig = Bed::kubeconfig("proxy", &proxy.url(), &json!({"token": Bed::token()}));
        let networks: Vec<Network<'_>> = cells.iter().map(Network::of).collect();
        let mut objects = vec![network::primary_definition()];
        objects.extend(networks.iter().map(|network| network.definition().0));
        objects.extend(cells.iter().zip(&networks).map(|(cell, network)| {
            json!({
                "apiVersion": "v1", "kind": "Pod",
                "metadata": {"name": pod_name(cell), "namespace": "default",
                             "annotations": {NETWORKS: network.selection()}},
                "spec": {"nodeName": "node-1", "automountServiceAccountToken": false,
                         "containers": [{"name": "c", "image": "localhost/test/pause:1"}]}
            })
        }));
        let made = Bed::create(&objects);
        let pods = made.iter().filter(|object| object["kind"] == "Pod").zip(cells).map(|(object, cell)| {
            let text = |key: &str| object["metadata"][key].as_str().unwrap().to_owned();
            (cell.index, ApiPod { name: text("name"), uid: text("uid") })
        });
        let pods = pods.collect();
        let plugins = ["bridge", "macvlan", "ipvlan", "ptp", "host-device", "static", "tuning"];
        bed.world.plugins("reference", &plugins);
        Self { bed, proxy, kubeconfig, pods }
    }

    /// Runs a cell; panics where something is not as it must be.
    pub(crate) fn run(&mut self, cell: &Cell) {
        let life = self.prepare(cell);
        if !cell.is("source", "manifests") && cell.is("server", "down") {
            self.proxy.is("down");
            self.assert_refused(&life);
            self.proxy.is("up");
        } else {
            self.proxy.is(cell.get("server"));
        }
        self.proxy.take_connections();
        let result = self.add(&life);
        self.assert_true(&life, &result);

        // For the rest of its life nobody asks the server, which may be away.
        self.proxy.is(cell.get("server"));
        self.proxy.take_connections();
        let mut later = life.conf.clone();
        if cell.get("runtime") >= "0.4.0" {
            later["prevResult"] = result;
            self.check(&life, &later);
        }
        self.call("DEL", &life, &later).ok();
        self.bed.assert_undone(&life.netns);
        let left = links().into_iter().filter(|link| !["cni0", "brnet"].contains(&link.name.as_str()));
        assert_eq!(left.collect::<Vec<_>>(), life.before, "interfaces of the node");
        assert_eq!(self.proxy.take_connections(), 0, "CHECK and DEL need no server");
        // Runtimes repeat a DEL, also when the namespace is gone.
        self.bed.world.delete_netns(&life.netns);
        self.bed.call("DEL", "", &later, &life.pod).ok();
        self.bed.world.assert_clean();
    }

    /// The node as new, with the files of a cell.
    fn prepare<'a>(&mut self, cell: &'a Cell) -> Life<'a> {
        self.proxy.is("up");
        for netns in names("/run/netns") {
            ip(&format!("netns delete {netns}"));
        }
        let world = &self.bed.world;
        for directory in ["/var/lib/cni", "/run/meta-cni", "/run/cni", CONF_DIR, "/etc/cni/manifests"] {
            for path in names(directory).iter().map(|name| Path::new(directory).join(name)) {
                if path.is_dir() { fs::remove_dir_all(path).unwrap() } else { fs::remove_file(path).unwrap() }
            }
            fs::create_dir_all(directory).unwrap();
        }
        network::interfaces_of_the_node();
        let network = Network::of(cell);
        let mut conf = self.bed.conf(&self.kubeconfig);
        conf["cniVersion"] = json!(cell.get("runtime"));
        conf["confDir"] = json!(CONF_DIR);
        network::set_primary(cell, world, &mut conf);
        if cell.is("ipam", "drop-in") {
            world.drop_in("host-local");
        }
        let (definition, file) = network.definition();
        if let Some(file) = file {
            fs::write(Path::new(CONF_DIR).join("30-network.conf"), file.to_string()).unwrap();
        }
        let annotations = json!({NETWORKS: network.selection()});
        let mut pod = self.pods.iter().find(|(index, _)| *index == cell.index).expect("its pod").1.clone();
        match cell.get("source") {
            "handed" => conf = handed(&conf, &annotations),
            "asked" => {}
            _ => {
                conf.as_object_mut().unwrap().remove("kubeconfig");
                conf["manifestDir"] = json!(world.manifests);
                world.manifest("podnet", &network::primary_definition().to_string());
                world.manifest("network", &definition.to_string());
                world.annotated_pod("default", &pod.name, &annotations);
                pod.uid = format!("uid-{}", pod.name);
            }
        }
        Life { cell, network, pod, netns: world.netns(), conf, before: links() }
    }

    /// CHECK passes, but where a plugin cannot: bridge asks for the IPAM plugin that it was told to do without.
    fn check(&self, life: &Life<'_>, conf: &Value) {
        let call = self.call("CHECK", life, conf);
        let cell = life.cell;
        if cell.is("kind", "bridge") && cell.is("ipam", "none") && cell.get("network") >= "0.4.0" {
            let text = call.fails(103);
            assert_eq!(
                text,
                format!(
                    "default/{} as {}: plugin bridge (CHECK): no plugin name provided; ",
                    life.network.name(),
                    life.network.interface()
                )
            );
        } else {
            call.ok();
        }
    }

    fn call(&self, verb: &str, life: &Life<'_>, conf: &Value) -> Call {
        self.bed.call(verb, &life.netns, conf, &life.pod)
    }

    /// Without the server nothing can be known, so nothing is touched.
    fn assert_refused(&self, life: &Life<'_>) {
        let text = self.call("ADD", life, &life.conf).fails(11);
        assert!(text.contains("the API server cannot be reached") && text.contains("Connection refused"), "{text}");
        assert!(text.contains(&self.proxy.url()), "{text}");
        // A runtime DELs what it could not ADD. Nothing speaks for an attachment, so nobody has to be asked.
        self.call("DEL", life, &life.conf).ok();
        self.bed.assert_undone(&life.netns);
        assert_eq!(links(), life.before, "interfaces of the node");
        assert_eq!(self.status(life), None, "status of a pod that was refused");
    }

    /// ADD, with no request too many.
    fn add(&self, life: &Life<'_>) -> Value {
        let began = Instant::now();
        let mut result = Value::Null;
        let mut asked = Bed::requests(|| result = self.call("ADD", life, &life.conf).ok());
        // Events are counted apart, and may come after the answer.
        asked.retain(|request| !request.contains(" events"));
        asked.sort();
        let mut expected = Vec::new();
        if !life.cell.is("source", "manifests") {
            if life.cell.is("primary", "definition") {
                expected.push("get network-attachment-definitions/podnet".to_owned());
            }
            expected.push(format!("get network-attachment-definitions/{}", life.network.name()));
            if life.cell.is("source", "asked") {
                expected.push(format!("get pods/{}", life.pod.name));
            }
            expected.push(format!("patch pods/{}/status", life.pod.name));
            expected.sort();
            // Two answers at least came late.
            assert!(!life.cell.is("server", "slow") || began.elapsed() > 2 * DELAY, "the server was not slow");
            assert_eq!(self.proxy.take_connections(), 1, "connections");
        }
        assert_eq!(asked, expected, "requests of ADD");
        assert_eq!(self.proxy.take_connections(), 0, "connections more");
        result
    }

    /// The kernel has what the pod asked for; result and status say what the kernel has.
    fn assert_true(&self, life: &Life<'_>, result: &Value) {
        let second = life.network.assert_as_asked(&life.netns);
        let first = Interface::find(&life.netns, "eth0").expect("the primary's interface");
        let moved = life.network.gateways();
        let of_primary =
            if life.cell.is("primary", "flannel") { vec!["10.244.7.1"] } else { vec!["10.244.9.1", "fd00:88::1"] };
        let stays = |gateway: &&str| !moved.iter().any(|other| other.contains('.') == gateway.contains('.'));
        let of_primary: Vec<&str> = of_primary.into_iter().filter(stays).collect();
        assert_eq!(default_gateways(&first), of_primary, "default routes of eth0");

        assert_result(life, result, &first);
        let status = self.status(life).expect("network-status");
        let entries = status.as_array().unwrap();
        assert_eq!(entries.len(), 2, "{status:#}");
        assert_eq!(entries[1]["name"], format!("default/{}", life.network.name()));
        for (entry, found, is_default) in [(&entries[0], &first, true), (&entries[1], &second, false)] {
            assert_eq!(entry["interface"], found.link["ifname"], "{status:#}");
            assert_eq!(entry["mac"], found.mac(), "{status:#}");
            let plain = |address: &String| address.split('/').next().unwrap().to_owned();
            assert_eq!(list(&entry["ips"]), found.addresses().iter().map(plain).collect::<Vec<_>>(), "{status:#}");
            assert_eq!(list(&entry["gateway"]), default_gateways(found), "{status:#}");
            assert_eq!(entry["default"] == true, is_default, "{status:#}");
            if let Some(mtu) = entry.get("mtu") {
                assert_eq!(mtu, found.mtu(), "{status:#}");
            }
        }
    }

    fn status(&self, life: &Life<'_>) -> Option<Value> {
        if life.cell.is("source", "manifests") {
            self.bed.world.status(&life.pod.name)
        } else {
            Bed::status(&life.pod.name)
        }
    }
}

/// The result is in the runtime's version, and of the primary's interface as it is.
fn assert_result(life: &Life<'_>, result: &Value, first: &Interface) {
    assert_eq!(result["cniVersion"], life.cell.get("runtime"), "{result:#}");
    let interfaces = result["interfaces"].as_array().expect("interfaces");
    let inside: Vec<usize> = (0..interfaces.len()).filter(|at| interfaces[*at].get("sandbox").is_some()).collect();
    let [at] = inside[..] else { panic!("one interface in the pod: {result:#}") };
    let interface = &interfaces[at];
    assert_eq!((&interface["name"], &interface["sandbox"]), (&json!("eth0"), &json!(life.netns)), "{result:#}");
    assert_eq!(interface["mac"], first.mac(), "{result:#}");
    let ips = result["ips"].as_array().expect("addresses");
    let addresses: Vec<&Value> = ips.iter().map(|ip| &ip["address"]).collect();
    assert_eq!(json!(addresses), json!(first.addresses()), "{result:#}");
    assert!(ips.iter().all(|ip| ip["interface"] == at), "{result:#}");
    let routes = result["routes"].as_array().into_iter().flatten();
    let defaults = routes.filter(|route| route["dst"] == "0.0.0.0/0" || route["dst"] == "::/0");
    let gateways: Vec<&Value> = defaults.map(|route| &route["gw"]).collect();
    assert_eq!(json!(gateways), json!(default_gateways(first)), "{result:#}");
}

/// A list of texts, which may be left out when it is empty.
fn list(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().map(|text| text.as_str().unwrap().to_owned()).collect()
}

fn pod_name(cell: &Cell) -> String {
    format!("cell-{}", cell.index)
}

/// The interfaces of the node.
fn links() -> Vec<Link> {
    let all: Vec<Value> = serde_json::from_str(&ip("-j -d link show")).unwrap();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let link = |link: &Value| Link {
        name: text(&link["ifname"]),
        mac: text(&link["address"]),
        mtu: link["mtu"].as_u64(),
        alias: text(&link["ifalias"]),
    };
    let mut links: Vec<Link> = all.iter().map(link).collect();
    links.sort();
    links
}
