//! What the kernel shows, by way of iproute2: a witness of its own.

use std::process::{Command, Stdio};

use serde_json::Value;

use super::world::run;

/// Runs `ip` in this thread's namespace; panics on failure.
pub fn ip(arguments: &str) -> String {
    run("ip", &arguments.split(' ').collect::<Vec<_>>())
}

/// Runs a program in a namespace; panics on failure.
pub fn in_netns(netns: &str, words: &[&str]) -> String {
    let net = format!("--net={netns}");
    run("nsenter", &[&[net.as_str()], words].concat())
}

/// Runs `ip` in a namespace.
pub fn ip_in(netns: &str, arguments: &str) -> String {
    in_netns(netns, &[&["ip"], arguments.split(' ').collect::<Vec<_>>().as_slice()].concat())
}

/// An interface as `ip -j -d` shows it.
#[derive(Debug)]
pub struct Interface {
    /// Link and addresses.
    pub link: Value,
    /// Routes through it, of the main table, both families.
    pub routes: Vec<Value>,
}

impl Interface {
    /// The interface of a name in a namespace, if it is there.
    pub fn find(netns: &str, name: &str) -> Option<Self> {
        let all: Vec<Value> = parse(&ip_in(netns, "-j -d addr show"));
        let link = all.into_iter().find(|link| link["ifname"] == name)?;
        let mut routes: Vec<Value> = parse(&ip_in(netns, "-j route show"));
        routes.extend(parse(&ip_in(netns, "-j -6 route show")));
        routes.retain(|route| route["dev"] == name);
        Some(Self { link, routes })
    }

    /// Its global addresses as `ADDRESS/PREFIX`.
    pub fn addresses(&self) -> Vec<String> {
        let infos = self.link["addr_info"].as_array().into_iter().flatten();
        infos
            .filter(|info| info["scope"] == "global")
            .map(|info| format!("{}/{}", info["local"].as_str().unwrap_or_default(), info["prefixlen"]))
            .collect()
    }

    /// Its hardware address.
    pub fn mac(&self) -> &str {
        self.link["address"].as_str().unwrap_or_default()
    }

    /// Its MTU.
    pub fn mtu(&self) -> u64 {
        self.link["mtu"].as_u64().unwrap_or_default()
    }

    /// The gateway of its default route in the main table, if it has one.
    pub fn default_gateway(&self) -> Option<&str> {
        self.routes.iter().find(|route| route["dst"] == "default").and_then(|route| route["gateway"].as_str())
    }
}

/// Where the default routes of the main table lead, one family after the other: `INTERFACE GATEWAY`, each.
pub fn defaults(netns: &str) -> [Vec<String>; 2] {
    ["-4", "-6"].map(|family| {
        let mut routes = parse(&ip_in(netns, &format!("-j {family} route show default")));
        // `unreachable` and the like.
        routes.retain(|route| route.get("type").is_none());
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let hops = routes.iter().flat_map(|route| match route["nexthops"].as_array() {
            Some(hops) => hops.clone(),
            None => vec![route.clone()],
        });
        hops.map(|hop| format!("{} {}", text(&hop["dev"]), text(&hop["gateway"]))).collect()
    })
}

fn parse(text: &str) -> Vec<Value> {
    if text.trim().is_empty() { Vec::new() } else { serde_json::from_str(text).expect("ip -j prints JSON") }
}

/// Whether an address answers a ping from a namespace within three tries.
pub fn ping(netns: &str, address: &str) -> bool {
    let once = || {
        Command::new("nsenter")
            .args([&format!("--net={netns}"), "ping", "-q", "-c", "1", "-W", "1", address])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .expect("ping")
            .success()
    };
    (0..3).any(|_| once())
}
