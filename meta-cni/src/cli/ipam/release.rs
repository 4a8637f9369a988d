//! `ipam release`: giving back an address whose holder is gone.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
};

use ::ipam::Lease;
use serde::Serialize;

use super::census::{Census, PoolFound, Standing};
use crate::{
    attach::{
        living::{Because, Claim, Verdict},
        pools::FLANNEL_DIRECTORY,
    },
    cli::{Answer, Arguments, Failure, Form, node::Node},
    cni::{Error, Object},
};

/// What `--help` says.
pub(in crate::cli) const DETAILS: &str = "\
Refuses if the holder lives. An address of the primary network, or of one that the runtime attaches by itself, is given
back by the network's own plugins (their DEL for that container), which may keep more for it than the address.
";

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    network: String,
    directory: PathBuf,
    address: IpAddr,
    state: &'static str,
    container: Option<String>,
    interface: Option<String>,
}

/// Gives back one address.
///
/// # Errors
/// A refusal that names who has the address; what [`Census::take`] and the pool's files say.
pub(super) async fn release(arguments: &Arguments) -> Result<Answer, Failure> {
    let form = Form::of(arguments)?;
    let text = arguments.operand(0);
    let address: IpAddr = text.parse().map_err(|_| Failure::Usage(format!("\"{text}\" is no IP address")))?;
    let address = address.to_canonical();
    let node = Node::find(arguments);
    let census = Census::take(arguments, &node).await?;
    let (pool, lease) = only(&census, address)?;
    let (standing, verdict) = census.judge(pool, lease);
    refuse(&census, pool, lease, standing, verdict.as_ref())?;
    let primary = verdict.as_ref().and_then(|verdict| verdict.claim).is_some_and(|claim| claim.primary);
    give_back(&node, pool, lease, primary).await?;
    let report = Report {
        network: pool.network.clone(),
        directory: pool.directory.clone(),
        address,
        state: standing.as_str(),
        container: lease.container.clone(),
        interface: lease.interface.clone(),
    };
    Ok(Answer { text: form.write(&report, Report::to_text)?, good: true })
}

impl Report {
    fn to_text(&self) -> String {
        let holder = self.container.as_ref().map_or_else(
            || "nobody".to_owned(),
            |container| format!("container {container} {}", self.interface.as_deref().unwrap_or_default()),
        );
        format!(
            "{} of {} is free; it was held for {} ({})\n",
            self.address,
            self.network,
            holder.trim_end(),
            self.state
        )
    }
}

/// Gives a lease back by the way of its network: the primary's own plugins, or the pool's file.
async fn give_back(node: &Node, pool: &PoolFound, lease: &Lease, of_primary: bool) -> Result<(), Failure> {
    let address = lease.address;
    let by_flannel = lease.container.as_ref().is_some_and(|container| is_of_flannel(pool, container));
    if lease.container.is_some() {
        let given_back = match node.engine(&pool.directory)? {
            Some(mut engine) => engine.give_back_of_primary(&pool.directory, lease).await?,
            None => None,
        };
        match given_back {
            Some(true) => return Ok(()),
            Some(false) => {
                return Err(refusal(format!(
                    "the plugins of the primary network {} were told that its container is gone, and keep {address}",
                    pool.network
                )));
            }
            None if of_primary || by_flannel => {
                return Err(refusal(format!(
                    "{address} of {} is the primary network's, whose own plugins have to give it back, and there is no \
                     configuration of it or of meta-cni in {}: say where it is (--net-dir DIR)",
                    pool.network,
                    node.net_dir.display()
                )));
            }
            None => {}
        }
    }
    // Once more under the pool's lock: somebody else may have been given it meanwhile.
    if pool.store().reclaim(std::slice::from_ref(lease))?.is_empty() {
        return Err(refusal(format!("{address} has changed hands meanwhile and is left alone")));
    }
    Ok(())
}

/// Whether Flannel's plugin has a file of the container that names this network.
fn is_of_flannel(pool: &PoolFound, container: &str) -> bool {
    let text = std::fs::read(Path::new(FLANNEL_DIRECTORY).join(container)).unwrap_or_default();
    let told = Object::parse("Flannel's file", &text).and_then(|object| object.text("name"));
    told.is_ok_and(|name| name == pool.network)
}

/// The one lease of an address.
fn only(census: &Census, address: IpAddr) -> Result<(&PoolFound, &Lease), Failure> {
    let mut having = census.wanted().filter_map(|pool| Some((pool, pool.lease(address)?)));
    let first = having.next().ok_or_else(|| refusal(format!("no pool has a lease of {address}")))?;
    let mut others = having.map(|(pool, _)| pool.directory.display().to_string()).peekable();
    if others.peek().is_some() {
        let all: Vec<String> = std::iter::once(first.0.directory.display().to_string()).chain(others).collect();
        return Err(refusal(format!(
            "more than one pool has a lease of {address}: {}; say which is meant (--network NAME, --data-dir DIR)",
            all.join(", ")
        )));
    }
    Ok(first)
}

/// Refuses what may be somebody's.
fn refuse(
    census: &Census,
    pool: &PoolFound,
    lease: &Lease,
    standing: Standing,
    verdict: Option<&Verdict<'_>>,
) -> Result<(), Failure> {
    let address = lease.address;
    let container = lease.container.as_deref().unwrap_or_default();
    match standing {
        Standing::Live => Err(refusal(format!(
            "{address} of {} is in use: {}; delete the pod, and its DEL gives the address back",
            pool.network,
            who(container, lease, verdict)
        ))),
        Standing::Foreign => Err(refusal(format!(
            "{address} of {} was taken by somebody who is no CNI program (\"{}\"): if it is to be given out, remove {}",
            pool.network,
            container.escape_debug(),
            pool.directory.join(address.to_string()).display()
        ))),
        Standing::Dead | Standing::Unknown if !census.evidence.unreadable().is_empty() => Err(refusal(format!(
            "{address} of {} may be in use: {}",
            pool.network,
            census.evidence.unreadable().join("; ")
        ))),
        Standing::Dead | Standing::Unknown | Standing::Orphan => Ok(()),
    }
}

/// Who has an address: pod, container, interface, namespace.
fn who(container: &str, lease: &Lease, verdict: Option<&Verdict<'_>>) -> String {
    let claim = verdict.and_then(|verdict| verdict.claim);
    let pod_of = |claim: &Claim| claim.pod.as_ref().map(|pod| format!("pod {}/{}, ", pod.namespace, pod.name));
    let (pod, other) = match claim {
        Some(claim) if claim.container != container => {
            let other = format!("{}container {}", pod_of(claim).unwrap_or_default(), claim.container);
            (String::new(), format!(", and by our records {other} as {}", claim.interface))
        }
        claim => (claim.and_then(pod_of).unwrap_or_default(), String::new()),
    };
    let interface = lease.interface.as_ref().map_or_else(String::new, |name| format!(", interface {name}"));
    let place = match verdict.and_then(|verdict| verdict.place) {
        Some(place) => format!(", on {} in {}", place.interface, place.netns.path.display()),
        None => because(verdict),
    };
    format!("{pod}container {container}{interface}{other}{place}")
}

/// Why somebody is taken for alive whose address is on no interface.
fn because(verdict: Option<&Verdict<'_>>) -> String {
    let netns = verdict.and_then(|verdict| verdict.claim).map(|claim| claim.netns.as_str()).unwrap_or_default();
    match verdict.and_then(|verdict| verdict.because) {
        Some(Because::Record) => format!(", namespace {netns}"),
        Some(Because::OtherAddress) => ", which has another address that is on an interface".to_owned(),
        Some(Because::Process) => ", of which a process on this node speaks".to_owned(),
        Some(Because::TornRecord) => ", of which a record cannot be read".to_owned(),
        Some(Because::Interface) | None => String::new(),
    }
}

fn refusal(text: String) -> Failure {
    Failure::Failed(Error::Config(text))
}
