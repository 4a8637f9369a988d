//! The configuration, read as host-local reads it.

use std::{net::IpAddr, time::Duration};

use ipam::{Owner, Pool, RawIpam, RawRange, Store, requested_addresses};
use serde::Deserialize;

use crate::{
    cni::{Error, Invocation, Object, SpecVersion, ips_of_args, refuse_several_of_a_family},
    node::Sources,
};

/// How long the pool's lock is waited for. host-local itself, on a pool of 50,000 leases, keeps it for half a second at each
/// call, and many may be in the queue.
pub(super) const LOCK_PATIENCE: Duration = Duration::from_secs(60);

/// The `ipam` object as it was written.
fn raw_ipam(conf: &Object) -> Result<RawIpam, Error> {
    conf.get("ipam")?.ok_or_else(|| Error::Config("IPAM config missing 'ipam' key".to_owned()))
}

/// The pool's files, whatever its ranges.
pub(super) fn store(conf: &Object) -> Result<Store, Error> {
    Ok(Pool::store_of(&conf.text("name")?, &raw_ipam(conf)?, LOCK_PATIENCE)?)
}

/// The pool of a configuration, judged.
pub(super) fn pool(conf: &Object, version: SpecVersion) -> Result<Pool, Error> {
    let runtime = runtime_config(conf)?;
    let extra: Vec<Vec<RawRange>> = runtime.get("ipRanges")?.unwrap_or_default();
    let (network, raw) = (conf.text("name")?, raw_ipam(conf)?);
    let node = Sources::default().node(&raw, &network)?;
    let pool = Pool::new(&network, &raw, &extra, &node)?;
    refuse_several_of_a_family(&pool, version)?;
    Ok(pool)
}

/// The addresses asked for by name: in `CNI_ARGS`, `args.cni.ips` and `runtimeConfig.ips`.
pub(super) fn requested(invocation: &Invocation) -> Result<Vec<IpAddr>, Error> {
    invocation.args.refuse_unknown(&["IP"])?;
    let of_args = ips_of_args(&invocation.conf)?;
    let of_runtime: Vec<String> = runtime_config(&invocation.conf)?.get("ips")?.unwrap_or_default();
    Ok(requested_addresses(Some(invocation.args.get("IP")), &of_args, &of_runtime)?)
}

/// Who the call is about.
pub(super) fn owner(invocation: &Invocation) -> Result<Owner, Error> {
    Ok(Owner::new(&invocation.container, &invocation.if_name)?)
}

/// Whom GC's list has, under either of its names; `None` if the runtime says nothing.
pub(super) fn valid(conf: &Object) -> Result<Option<Vec<Owner>>, Error> {
    #[derive(Deserialize)]
    struct Attachment {
        #[serde(rename = "containerID")]
        container: String,
        #[serde(rename = "ifname")]
        if_name: String,
    }
    let mut listed = None;
    for key in ["cni.dev/valid-attachments", "cni.dev/attachments"] {
        listed = listed.or(conf.get::<Vec<Attachment>>(key)?);
    }
    let owners = listed
        .map(|listed| listed.iter().map(|one| Owner::new(&one.container, &one.if_name)).collect::<Result<_, _>>());
    Ok(owners.transpose()?)
}

fn runtime_config(conf: &Object) -> Result<Object, Error> {
    Ok(conf.get("runtimeConfig")?.unwrap_or_default())
}
