//! `ipam verify`: the pools against our records and the living namespaces.

use std::{collections::HashSet, net::IpAddr, path::Path};

use ::ipam::{Lease, Stray};
use serde::Serialize;

use super::census::{Census, PoolFound, Standing};
use crate::{
    attach::{
        living::{Claim, Life, Place, Verdict},
        record::Stage,
    },
    cli::{Answer, Arguments, Failure, Form, node::Node},
};

/// What `--help` says.
pub(in crate::cli) const DETAILS: &str = "\
Changes nothing. The exit code is 1 if anything is found; each finding says what to do.
";

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    pools: usize,
    leases: usize,
    records: usize,
    findings: Vec<Finding>,
}

/// Something that is not as it should be.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
struct Finding {
    network: String,
    address: Option<IpAddr>,
    kind: &'static str,
    container: Option<String>,
    interface: Option<String>,
    what: String,
    todo: String,
}

/// Compares everything with everything.
///
/// # Errors
/// As [`Census::take`].
pub(super) async fn verify(arguments: &Arguments) -> Result<Answer, Failure> {
    let form = Form::of(arguments)?;
    let census = Census::take(arguments, &Node::find(arguments)).await?;
    let mut findings = of_the_node(&census);
    for pool in census.wanted() {
        findings.extend(pool.leases.iter().filter_map(|lease| of_lease(&census, pool, lease)));
        findings.extend(of_records(&census, pool));
        findings.extend(of_interfaces(&census, pool));
        findings.extend(pool.store().strays()?.iter().flat_map(|stray| of_index(pool, stray)));
    }
    findings.sort();
    let report = Report {
        pools: census.wanted().count(),
        leases: census.wanted().map(|pool| pool.leases.len()).sum(),
        records: census.evidence.claims().len(),
        findings,
    };
    let good = report.findings.is_empty();
    Ok(Answer { text: form.write(&report, Report::to_table)?, good })
}

impl Report {
    fn to_table(&self) -> String {
        let found = match self.findings.len() {
            0 => "nothing is wrong".to_owned(),
            1 => "1 finding".to_owned(),
            many => format!("{many} findings"),
        };
        let head = format!("pools {}, leases {}, records {}: {found}\n", self.pools, self.leases, self.records);
        self.findings.iter().fold(head, |text, finding| text + "\n" + &finding.to_text())
    }
}

impl Finding {
    fn of_pool(pool: &PoolFound, address: IpAddr, kind: &'static str, what: String, todo: String) -> Self {
        Self {
            network: pool.network.clone(),
            address: Some(address),
            kind,
            container: None,
            interface: None,
            what,
            todo,
        }
    }

    fn of_lease(pool: &PoolFound, lease: &Lease, kind: &'static str, what: String, todo: String) -> Self {
        let (container, interface) = (lease.container.clone(), lease.interface.clone());
        Self { container, interface, ..Self::of_pool(pool, lease.address, kind, what, todo) }
    }

    fn of_node(kind: &'static str, what: String, todo: &str) -> Self {
        let todo = todo.to_owned();
        Self { network: String::new(), address: None, kind, container: None, interface: None, what, todo }
    }

    fn to_text(&self) -> String {
        let address = self.address.map(|address| format!(" {address}")).unwrap_or_default();
        let place = if self.network.is_empty() { "node".to_owned() } else { self.network.clone() + &address };
        format!("{place}: {}: {}\n  {}\n", self.kind, self.what, self.todo)
    }
}

/// What keeps the rest from being certain.
fn of_the_node(census: &Census) -> Vec<Finding> {
    let torn = census.evidence.torn().iter().map(|path| {
        let what = format!("the record {} cannot be read, and what it claims is not known", path.display());
        Finding::of_node("torn-record", what, "the DEL of its pod, or the runtime's GC, clears it up")
    });
    let unreadable = census.evidence.unreadable().iter().map(|problem| {
        let what = format!("a namespace cannot be looked at: {problem}");
        Finding::of_node("unreadable-namespace", what, "nobody is taken for dead until it can")
    });
    torn.chain(unreadable).collect()
}

/// A lease whose holder does not live.
fn of_lease(census: &Census, pool: &PoolFound, lease: &Lease) -> Option<Finding> {
    let (standing, verdict) = census.judge(pool, lease);
    let release = format!("meta-cni ipam release {} --network {}", lease.address, pool.network);
    let holder = holder(lease.container.as_deref(), lease.interface.as_deref());
    match standing {
        Standing::Live | Standing::Foreign => None,
        Standing::Orphan => {
            let what = "the lease names nobody: its writer died before it was written".to_owned();
            let todo = format!("the next GC, or whoever is given the address, removes it; so does: {release}");
            Some(Finding::of_lease(pool, lease, "orphan", what, todo))
        }
        Standing::Dead => {
            let pod = verdict.and_then(|verdict| pod_of(&verdict)).unwrap_or_default();
            let what = format!("held for {holder}{pod}, which is gone");
            let todo = format!("the runtime's DEL or GC gives it back; if it never comes: {release}");
            Some(Finding::of_lease(pool, lease, "dead-owner", what, todo))
        }
        Standing::Unknown => {
            let what = format!("held for {holder}, of which there is no record, and on no interface of this node");
            let todo = format!(
                "a pod that another program is attaching just now, or a leftover: look again; if the runtime does not know \
                 the container: {release}"
            );
            Some(Finding::of_lease(pool, lease, "no-record", what, todo))
        }
    }
}

/// Living attachments whose address is not theirs in the pool.
fn of_records(census: &Census, pool: &PoolFound) -> Vec<Finding> {
    let mut findings = Vec::new();
    for claim in census.evidence.claims() {
        let made = claim.stage == Stage::Done && claim.life != Life::Gone;
        if !made || !claim.leased || !claim.pools.contains(&pool.directory) {
            continue;
        }
        for address in &claim.addresses {
            // It may be of one of several pools.
            let own = census.pools.iter().filter(|pool| claim.pools.contains(&pool.directory));
            if !own.filter_map(|pool| pool.lease(*address)).any(|lease| is_of(lease, claim)) {
                findings.push(of_claim(pool, claim, *address));
            }
        }
    }
    findings
}

/// Whether a lease is held for the attachment of a record.
fn is_of(lease: &Lease, claim: &Claim) -> bool {
    lease.container.as_ref() == Some(&claim.container)
        && lease.interface.as_ref().is_none_or(|name| *name == claim.interface)
}

fn of_claim(pool: &PoolFound, claim: &Claim, address: IpAddr) -> Finding {
    let lease = pool.lease(address);
    let holder = format!("{}{}", holder(Some(&claim.container), Some(&claim.interface)), pod_in(claim));
    let todo = format!(
        "delete the pod, so that it is given an address of its own; before that nothing keeps {address} from others"
    );
    let (kind, what, todo) = match lease.filter(|lease| lease.container.is_some()) {
        None => ("lease-missing", format!("{holder} lives and has it, and there is no lease"), todo),
        Some(lease) => {
            let other = self::holder(lease.container.as_deref(), lease.interface.as_deref());
            let todo = format!("two may have it: delete the pod of {}, or the other one", claim.container);
            ("lease-of-another", format!("{holder} lives and has it, and the lease is held for {other}"), todo)
        }
    };
    let (container, interface) = (Some(claim.container.clone()), Some(claim.interface.clone()));
    Finding { container, interface, ..Finding::of_pool(pool, address, kind, what, todo) }
}

/// Addresses of the pool that interfaces have without a lease, or more than one interface has.
fn of_interfaces<'a>(census: &'a Census, pool: &'a PoolFound) -> impl Iterator<Item = Finding> + 'a {
    let claimed: HashSet<IpAddr> = claimed_in(census, &pool.directory);
    census.evidence.places().flat_map(move |(address, _)| {
        let places: Vec<&Place> = census.evidence.places_of(&pool.directory, *address).collect();
        let shown = places.iter().map(|place| format!("{} in {}", place.interface, place.netns.path.display()));
        let shown = shown.collect::<Vec<_>>().join(", ");
        let leased = pool.lease(*address).is_some();
        let leased_elsewhere = census.pools.iter().filter(|other| other.lease(*address).is_some()).count();
        // A pod of a record is reported by its record.
        let stranger = !leased && leased_elsewhere == 0 && !claimed.contains(address) && pool.gives(*address);
        let mut findings = Vec::new();
        if stranger && !places.is_empty() {
            let what = format!("it is on {shown}, and there is no lease");
            let todo = "whoever has it was given it by another way: exclude it from the pool (\"exclude\"), or take it off \
                        that interface, before a pod is given it";
            findings.push(Finding::of_pool(pool, *address, "no-lease", what, todo.to_owned()));
        }
        if leased && places.len() > leased_elsewhere {
            let what = format!("more than one interface has it: {shown}");
            let todo = "one of them was given it by another way, or by mistake: delete that pod".to_owned();
            findings.push(Finding::of_pool(pool, *address, "twice", what, todo));
        }
        findings
    })
}

/// What the index says and no lease does.
fn of_index<'a>(pool: &'a PoolFound, stray: &'a Stray) -> impl Iterator<Item = Finding> + 'a {
    let interface = Some(stray.interface.clone()).filter(|name| !name.is_empty());
    let what = format!(
        "the index beside the pool says that {} holds it, and the lease does not",
        holder(Some(&stray.container), interface.as_deref())
    );
    let index = pool.directory.with_file_name(".meta-cni").join(&pool.network);
    let todo = format!(
        "no harm: another program gave the address back, and nothing is done by the index alone; to be rid of it remove {}, \
         which is made anew when it is needed",
        index.display()
    );
    stray.addresses.iter().map(move |address| Finding {
        container: Some(stray.container.clone()),
        interface: interface.clone(),
        ..Finding::of_pool(pool, *address, "index", what.clone(), todo.clone())
    })
}

/// The addresses that records of living attachments have from a pool.
fn claimed_in(census: &Census, directory: &Path) -> HashSet<IpAddr> {
    let here = |claim: &&Claim| claim.pools.contains(directory) && claim.life != Life::Gone;
    census.evidence.claims().iter().filter(here).flat_map(|claim| claim.addresses.iter().copied()).collect()
}

fn holder(container: Option<&str>, interface: Option<&str>) -> String {
    let interface = interface.map(|name| format!(" as {name}")).unwrap_or_default();
    format!("container {}{interface}", container.unwrap_or("(none)"))
}

fn pod_of(verdict: &Verdict<'_>) -> Option<String> {
    verdict.claim.map(pod_in)
}

/// ` (pod NAMESPACE/NAME)`, if it is known.
fn pod_in(claim: &Claim) -> String {
    claim.pod.as_ref().map(|pod| format!(" (pod {}/{})", pod.namespace, pod.name)).unwrap_or_default()
}
