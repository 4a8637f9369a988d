//! The addresses of what is attached in-process: host-local's pools, `static`, or an IPAM plugin that is executed.

use ipam::{Pool, RawIpam, RawRange, Reservation, StaticAddresses, StaticRequest, Store, requested_addresses};

use super::LOCK_PATIENCE;
use crate::{
    attach::Engine,
    cni::{
        CniArgs, CniResult, Dns, Error, Ip, Object, PluginList, Route, ips_of_args, refuse_claim,
        refuse_several_of_a_family,
    },
    node::Sources,
    settings::judge,
};

/// Where the addresses of an attachment come from.
pub(super) enum BuiltinIpam {
    /// None are wanted: a layer-2 network.
    None,
    /// A pool in host-local's store.
    Pool { pool: Box<Pool>, requested: Vec<std::net::IpAddr> },
    /// They are in the configuration.
    Static(StaticAddresses),
    /// A plugin gives them.
    Executed(String),
}

impl BuiltinIpam {
    /// Whether other hosts are asked for the addresses before they are used.
    pub(super) fn probes(&self) -> bool {
        match self {
            Self::None | Self::Executed(_) => false,
            Self::Pool { pool, .. } => pool.conflict_probe,
            Self::Static(given) => given.conflict_probe,
        }
    }
}

/// To whom the addresses of an attachment are given back.
pub(super) enum Giver {
    /// There are none, or nobody keeps them.
    Nobody,
    /// A pool in host-local's store.
    Pool(Store),
    /// A plugin.
    Executed(String),
}

/// Addresses, routes and name servers of an attachment.
#[derive(Debug, Default)]
pub(in crate::attach) struct Addresses {
    pub(super) ips: Vec<Ip>,
    pub(super) routes: Vec<Route>,
    pub(super) dns: Dns,
}

impl Addresses {
    /// A result without interfaces.
    pub(super) fn into_result(self) -> CniResult {
        CniResult { interfaces: Vec::new(), ips: self.ips, routes: self.routes, dns: self.dns }
    }
}

impl Engine {
    /// Reads the `ipam` object of a list's first plugin. Touches nothing.
    pub(super) fn ipam(
        &self,
        list: &PluginList,
        runtime_config: &Object,
        args: &CniArgs,
        network: &str,
    ) -> Result<BuiltinIpam, Error> {
        let Some((kind, raw)) = self.raw_ipam(list, network)? else { return Ok(BuiltinIpam::None) };
        let Some(raw) = raw else { return Ok(BuiltinIpam::Executed(kind)) };
        list.plugins.first().map(|plugin| refuse_claim(&plugin.object, &kind)).transpose()?;
        let unknown = raw.unknown_keys();
        let unknown: Vec<&str> = unknown.iter().map(String::as_str).chain(raw.ineffective_keys()).collect();
        let place = format!("\"ipam\" of the definition {network}");
        judge(&unknown, RawIpam::known_keys(), &place, self.invocation.conf.switch("strict")?)?;
        let runtime: Vec<String> = runtime_config.get("ips")?.unwrap_or_default();
        let of_args = list.plugins.first().map(|plugin| ips_of_args(&plugin.object)).transpose()?.unwrap_or_default();
        // The runtime's and the argument's addresses are the same ones, said in two ways (see `network::attachments`).
        let environment = Some(args.get("IP")).filter(|text| !text.is_empty() && runtime.is_empty());
        if kind == "static" {
            let gateway = Some(args.get("GATEWAY")).filter(|text| !text.is_empty());
            let request =
                StaticRequest { environment, environment_gateway: gateway, args: &of_args, runtime: &runtime };
            return Ok(BuiltinIpam::Static(StaticAddresses::new(&raw, &request)?));
        }
        let extra: Vec<Vec<RawRange>> = runtime_config.get("ipRanges")?.unwrap_or_default();
        let node = Sources::with(&self.settings.node_name, &self.settings.node_file).node(&raw, network)?;
        let pool = Box::new(Pool::new(&list.name, &raw, &extra, &node)?);
        refuse_several_of_a_family(&pool, list.version)?;
        let requested = requested_addresses(environment, &of_args, &runtime)?;
        Ok(BuiltinIpam::Pool { pool, requested })
    }

    /// Who has to be told that addresses of a list's first plugin are given back. Neither the ranges nor the node count:
    /// they may have been changed, or be wrong, since the addresses were given.
    pub(super) fn giver(&self, list: &PluginList, network: &str) -> Result<Giver, Error> {
        Ok(match self.raw_ipam(list, network)? {
            None => Giver::Nobody,
            Some((kind, None)) => Giver::Executed(kind),
            Some((kind, Some(_))) if kind == "static" => Giver::Nobody,
            Some((_, Some(raw))) => Giver::Pool(Pool::store_of(&list.name, &raw, LOCK_PATIENCE)?),
        })
    }

    /// The type of the `ipam` object of a list's first plugin, and the object itself if that type is built in.
    fn raw_ipam(&self, list: &PluginList, network: &str) -> Result<Option<(String, Option<RawIpam>)>, Error> {
        let Some(object) = list.plugins.first().and_then(|plugin| plugin.object.raw("ipam")) else { return Ok(None) };
        let wrong = |problem: serde_json::Error| {
            Error::Config(format!("\"ipam\" of {network} is not what it should be: {problem}"))
        };
        let named: Object = serde_json::from_str(object.get()).map_err(wrong)?;
        let kind = named.text("type")?;
        if kind.is_empty() {
            return Ok(None);
        }
        if !self.settings.builtins.contains(&kind) || kind == "sriov" {
            return Ok(Some((kind, None)));
        }
        let raw = serde_json::from_str(object.get()).map_err(wrong)?;
        Ok(Some((kind, Some(raw))))
    }
}

impl Addresses {
    /// Those that the configuration itself names.
    pub(super) fn fixed(given: &StaticAddresses) -> Self {
        Self {
            ips: given
                .addresses
                .iter()
                .map(|ip| Ip { interface: None, address: ip.address, gateway: ip.gateway })
                .collect(),
            routes: given.routes.iter().map(Route::from).collect(),
            dns: given.dns.clone().into(),
        }
    }

    /// Those that a pool gave.
    pub(super) fn of_pool(pool: &Pool, reserved: &[Reservation]) -> Result<Self, Error> {
        let dns = pool.resolv_conf.as_deref().map(ipam::Dns::read).transpose()?.unwrap_or_default();
        Ok(Self {
            ips: reserved.iter().map(Ip::from).collect(),
            routes: pool.routes.iter().map(Route::from).collect(),
            dns: dns.into(),
        })
    }
}
