//! `ipam list`: the pools, and who has which address.

use std::{collections::BTreeMap, net::IpAddr, path::PathBuf};

use ::ipam::{IpRange, Lease, RangeSet, Withheld};
use serde::Serialize;

use super::census::{Census, PoolFound, Ranges, Standing, count};
use crate::{
    attach::living::Because,
    cli::{ALL, Answer, Arguments, Failure, Form, node::Node, table::table},
};

/// What `--help` says.
pub(in crate::cli) const DETAILS: &str = "\
Each lease is live (a record of ours with a living namespace names it, or its address is on an interface of a namespace
of this node), dead (its container's namespace is gone, or was one of an earlier boot, and the address is nowhere),
unknown (nothing is known of its holder: another program's, perhaps in the making), orphan (the file names nobody) or
foreign (words that no CNI program writes).
";

/// In a pool with more leases than this the table shows only those that are not a living pod's.
const MANY: usize = 256;
/// So much of a container's ID is in the table.
const ID_SHOWN: usize = 13;
/// The largest number that every reader of JSON understands exactly.
const JSON_MAX: u128 = (1 << 53) - 1;

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Listing {
    pools: Vec<PoolView>,
    used: usize,
    states: BTreeMap<&'static str, usize>,
    torn_records: Vec<PathBuf>,
    unreadable_namespaces: Vec<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct PoolView {
    network: String,
    directory: PathBuf,
    range_sets: Option<Vec<Vec<RangeView>>>,
    #[serde(skip)]
    ranges_differ: bool,
    used: usize,
    #[serde(serialize_with = "capped")]
    free: Option<u128>,
    states: BTreeMap<&'static str, usize>,
    leases: Vec<LeaseView>,
    withheld: Vec<WithheldView>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct RangeView {
    subnet: String,
    range_start: IpAddr,
    range_end: IpAddr,
    gateway: Option<IpAddr>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct LeaseView {
    address: IpAddr,
    state: &'static str,
    /// What speaks for a living holder.
    because: Option<&'static str>,
    pod: Option<PodView>,
    container: Option<String>,
    interface: Option<String>,
    namespace: Option<PathBuf>,
    /// Where the address is, if that is another interface than the lease's.
    found_on: Option<String>,
}

/// An address that is held back: nobody is given it for a while.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct WithheldView {
    address: IpAddr,
    reason: String,
    seconds_left: u64,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct PodView {
    namespace: String,
    name: String,
    uid: String,
}

/// Lists pools and leases.
///
/// # Errors
/// As [`Census::take`].
pub(super) async fn list(arguments: &Arguments) -> Result<Answer, Failure> {
    let form = Form::of(arguments)?;
    let census = Census::take(arguments, &Node::find(arguments)).await?;
    let text = form.write(&Listing::of(&census), |listing| listing.to_table(arguments.switch(ALL.name)))?;
    Ok(Answer { text, good: true })
}

impl Listing {
    fn of(census: &Census) -> Self {
        let pools: Vec<PoolView> = census.wanted().map(|pool| PoolView::of(census, pool)).collect();
        let mut states = zeroes();
        for (state, number) in pools.iter().flat_map(|pool| &pool.states) {
            *states.entry(state).or_default() += number;
        }
        Self {
            used: pools.iter().map(|pool| pool.used).sum(),
            pools,
            states,
            torn_records: census.evidence.torn().to_vec(),
            unreadable_namespaces: census.evidence.unreadable().to_vec(),
        }
    }

    fn to_table(&self, all: bool) -> String {
        let mut text = format!("{}, {}\n", number(self.pools.len(), "pool", "pools"), leases(&self.states));
        for path in &self.torn_records {
            text += &format!("note: the record {} cannot be read, whatever it claims\n", path.display());
        }
        for problem in &self.unreadable_namespaces {
            text += &format!("note: a namespace cannot be looked at, so nobody is taken for dead: {problem}\n");
        }
        self.pools.iter().fold(text, |text, pool| text + "\n" + &pool.to_table(all))
    }
}

impl PoolView {
    fn of(census: &Census, pool: &PoolFound) -> Self {
        let judged: Vec<(Standing, LeaseView)> =
            pool.leases.iter().map(|lease| LeaseView::of(census, pool, lease)).collect();
        let mut states = zeroes();
        states.extend(count(judged.iter().map(|(standing, _)| *standing)).into_iter().map(|(is, n)| (is.as_str(), n)));
        Self {
            network: pool.network.clone(),
            directory: pool.directory.clone(),
            range_sets: match &pool.ranges {
                Ranges::Known(sets) => Some(sets.iter().map(views_of).collect()),
                Ranges::Several | Ranges::Unknown => None,
            },
            ranges_differ: pool.ranges == Ranges::Several,
            used: pool.used(),
            free: pool.free(),
            states,
            leases: judged.into_iter().map(|(_, lease)| lease).collect(),
            withheld: pool.withheld.iter().map(WithheldView::of).collect(),
        }
    }

    fn to_table(&self, all: bool) -> String {
        let free = match (self.free, self.ranges_differ) {
            (Some(free), _) => format!("{free} free"),
            (None, true) => "its ranges differ between configurations (--conf FILE tells which count)".to_owned(),
            (None, false) => "its ranges are not known (--conf FILE tells them)".to_owned(),
        };
        let mut text = format!(
            "{} ({}): {}; {} used, {free}\n",
            self.network,
            self.directory.display(),
            leases(&self.states),
            self.used
        );
        for (index, set) in self.range_sets.iter().flatten().enumerate() {
            for range in set {
                let gateway = range.gateway.map_or_else(|| "no gateway".to_owned(), |ip| format!("gateway {ip}"));
                text += &format!(
                    "  range set {index}: {}-{} of {}, {gateway}\n",
                    range.range_start, range.range_end, range.subnet
                );
            }
        }
        let shown = |lease: &&LeaseView| all || self.leases.len() <= MANY || lease.state != Standing::Live.as_str();
        let rows: Vec<_> = self.leases.iter().filter(shown).map(LeaseView::row).collect();
        if !rows.is_empty() {
            let head = ["ADDRESS", "STATE", "POD", "INTERFACE", "CONTAINER", "NAMESPACE"];
            text += &table("  ", head, &rows);
        }
        if let hidden @ 1.. = self.leases.len() - rows.len() {
            text += &format!("  {hidden} live ones are not shown (--all shows them)\n");
        }
        let rows: Vec<_> = self.withheld.iter().map(WithheldView::row).collect();
        if !rows.is_empty() {
            text += &table("  ", ["WITHHELD", "FOR", "REASON"], &rows);
        }
        text
    }
}

impl LeaseView {
    fn of(census: &Census, pool: &PoolFound, lease: &Lease) -> (Standing, Self) {
        let (standing, verdict) = census.judge(pool, lease);
        let because = verdict.as_ref().and_then(|verdict| verdict.because);
        let (claim, place) = verdict.map(|verdict| (verdict.claim, verdict.place)).unwrap_or_default();
        let namespace = match place {
            Some(place) => Some(place.netns.path.clone()),
            None => claim.filter(|_| because == Some(Because::Record)).map(|claim| PathBuf::from(&claim.netns)),
        };
        let other = place.map(|place| &place.interface).filter(|name| Some(*name) != lease.interface.as_ref());
        let pod = claim.and_then(|claim| claim.pod.as_ref());
        let view = Self {
            address: lease.address,
            state: standing.as_str(),
            because: because.map(name_of),
            pod: pod.map(|pod| PodView {
                namespace: pod.namespace.clone(),
                name: pod.name.clone(),
                uid: pod.uid.clone(),
            }),
            container: lease.container.clone(),
            interface: lease.interface.clone(),
            namespace,
            found_on: other.cloned(),
        };
        (standing, view)
    }

    fn row(&self) -> [String; 6] {
        let pod = self.pod.as_ref().map(|pod| format!("{}/{}", pod.namespace, pod.name)).unwrap_or_default();
        let other_reason = || self.because.map(|because| format!("({because})")).unwrap_or_default();
        let place = self.namespace.as_ref().map_or_else(other_reason, |path| path.display().to_string());
        let found = self.found_on.as_ref().map(|name| format!(" (on {name})")).unwrap_or_default();
        let is_foreign = self.state == Standing::Foreign.as_str();
        let container = self.container.as_deref().unwrap_or_default();
        let shown = if is_foreign { 10 * ID_SHOWN } else { ID_SHOWN };
        [
            self.address.to_string(),
            self.state.to_owned(),
            pod,
            self.interface.clone().unwrap_or_default(),
            container.chars().map(|c| if c.is_control() { ' ' } else { c }).take(shown).collect(),
            place + &found,
        ]
    }
}

impl WithheldView {
    fn of(withheld: &Withheld) -> Self {
        Self { address: withheld.address, reason: withheld.reason.to_string(), seconds_left: withheld.left.as_secs() }
    }

    fn row(&self) -> [String; 3] {
        [self.address.to_string(), format!("{} s", self.seconds_left), self.reason.clone()]
    }
}

/// In JSON, and in the table where there is no namespace to show.
fn name_of(because: Because) -> &'static str {
    match because {
        Because::Record => "record",
        Because::Interface => "interface",
        Because::OtherAddress => "other-address",
        Because::Process => "process",
        Because::TornRecord => "torn-record",
    }
}

fn views_of(set: &RangeSet) -> Vec<RangeView> {
    let view = |range: &IpRange| RangeView {
        subnet: range.subnet().to_string(),
        range_start: range.start(),
        range_end: range.end(),
        gateway: range.gateway(),
    };
    set.ranges().iter().map(view).collect()
}

/// Every state with the number 0: a reader of JSON finds them all.
fn zeroes() -> BTreeMap<&'static str, usize> {
    Standing::ALL.map(|standing| (standing.as_str(), 0)).into()
}

fn leases(states: &BTreeMap<&'static str, usize>) -> String {
    let all = number(states.values().sum(), "lease", "leases");
    let some = Standing::ALL.map(Standing::as_str).into_iter().filter_map(|state| {
        let number = states.get(state).copied().unwrap_or_default();
        (number > 0).then(|| format!("{number} {state}"))
    });
    let some: Vec<String> = some.collect();
    if some.is_empty() { all } else { format!("{all} ({})", some.join(", ")) }
}

fn number(number: usize, one: &str, many: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { many })
}

fn capped<S: serde::Serializer>(free: &Option<u128>, serializer: S) -> Result<S::Ok, S::Error> {
    free.map(|free| u64::try_from(free.min(JSON_MAX)).unwrap_or(u64::MAX)).serialize(serializer)
}
