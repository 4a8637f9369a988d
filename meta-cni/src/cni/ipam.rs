//! host-local's terms in CNI's: what a configuration says beside its `ipam` object, and what a result says of a pool.

use ipam::{Pool, Reservation};

use super::{Dns, Error, Ip, Object, Route, SpecVersion};

/// The addresses of `args.cni.ips`.
///
/// # Errors
/// [`Error::Config`] if that is no list of texts.
pub fn ips_of_args(conf: &Object) -> Result<Vec<String>, Error> {
    let args: Object = conf.get("args")?.unwrap_or_default();
    let placed = |place: &'static str| move |error: Error| Error::Config(format!("{place}: {error}"));
    let cni: Object = args.get("cni").map_err(placed("args"))?.unwrap_or_default();
    Ok(cni.get("ips").map_err(placed("args.cni"))?.unwrap_or_default())
}

/// The key of `args.cni` by which a claim's name reaches the plugins.
pub const IPAM_CLAIM: &str = "ipam-claim-reference";

/// Refuses a claim where the IPAM is built in: it gives an address to a container, and keeps none beyond it.
///
/// # Errors
/// [`Error::Unsupported`] naming claim and IPAM.
pub fn refuse_claim(conf: &Object, kind: &str) -> Result<(), Error> {
    let args: Object = conf.get("args")?.unwrap_or_default();
    let cni: Object = args.get("cni")?.unwrap_or_default();
    match cni.text(IPAM_CLAIM)?.as_str() {
        "" => Ok(()),
        claim => Err(Error::Unsupported(format!(
            "{IPAM_CLAIM} \"{claim}\": the built-in {kind} keeps no claims, the address would not outlast the pod: use an \
             IPAM plugin that does, or take the field out of the pod's annotation"
        ))),
    }
}

/// Results below 0.3.0 have one address of each family.
///
/// # Errors
/// [`Error::Config`] with host-local's text.
pub fn refuse_several_of_a_family(pool: &Pool, version: SpecVersion) -> Result<(), Error> {
    let v6 = pool.sets.iter().filter(|set| set.is_ipv6()).count();
    if version < SpecVersion::V0_3_0 && (v6 > 1 || pool.sets.len() - v6 > 1) {
        return Err(Error::Config(format!("CNI version {version} does not support more than 1 address per family")));
    }
    Ok(())
}

impl From<&Reservation> for Ip {
    fn from(from: &Reservation) -> Self {
        Self { interface: None, address: from.address, gateway: from.gateway }
    }
}

impl From<&ipam::Route> for Route {
    fn from(from: &ipam::Route) -> Self {
        Self {
            dst: from.dst,
            gw: from.gw,
            mtu: from.mtu,
            advmss: from.advmss,
            priority: from.priority,
            table: from.table,
            scope: from.scope,
        }
    }
}

impl From<ipam::Dns> for Dns {
    fn from(from: ipam::Dns) -> Self {
        Self {
            nameservers: from.nameservers,
            domain: from.domain.unwrap_or_default(),
            search: from.search,
            options: from.options,
        }
    }
}
