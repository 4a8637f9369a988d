//! What there is to say about the node's pools: their leases and ranges, and who of the holders lives.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use ::ipam::{DEFAULT_DATA_DIR, Lease, Pool, RangeSet, RawIpam, Store, Withheld};

use crate::{
    attach::{
        living::{Evidence, State, Verdict},
        pools,
        record::Records,
    },
    cli::{Arguments, CONF, DATA_DIR, Failure, NETWORK, node::Node},
    cni::{Error, Object, PluginList},
    node::boot_id,
};

/// How long another program's work on a pool is waited for.
const LOCK_PATIENCE: Duration = Duration::from_secs(10);

/// The pools of the node, and what lives there.
#[derive(Debug)]
pub(super) struct Census {
    /// All pools that are known, by directory.
    pub(super) pools: Vec<PoolFound>,
    /// All that lives.
    pub(super) evidence: Evidence,
}

/// A pool with its leases.
#[derive(Debug)]
pub(super) struct PoolFound {
    /// Whether the command is about it.
    wanted: bool,
    /// The network's name.
    pub(super) network: String,
    /// Its directory.
    pub(super) directory: PathBuf,
    /// What it can give out.
    pub(super) ranges: Ranges,
    /// Its leases, in the order of the addresses.
    pub(super) leases: Vec<Lease>,
    /// What is held back of it.
    pub(super) withheld: Vec<Withheld>,
}

/// What is known of the ranges of a pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Ranges {
    /// One configuration, or several that agree.
    Known(Vec<RangeSet>),
    /// Several that do not agree: the definition was changed, or two have one name.
    Several,
    /// No configuration that is kept names it, or the runtime gives the ranges.
    Unknown,
}

/// How it stands with a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Standing {
    /// Its holder lives.
    Live,
    /// Its holder is dead.
    Dead,
    /// Nothing is known of its holder.
    Unknown,
    /// The file names nobody.
    Orphan,
    /// Words that no CNI program writes: an administrator's.
    Foreign,
}

impl Standing {
    /// All of them, in the order they are counted in.
    pub(super) const ALL: [Self; 5] = [Self::Live, Self::Dead, Self::Unknown, Self::Orphan, Self::Foreign];

    /// Its name, in tables and in JSON.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Dead => "dead",
            Self::Unknown => "unknown",
            Self::Orphan => "orphan",
            Self::Foreign => "foreign",
        }
    }
}

impl Census {
    /// Takes it: leases first, then records, namespaces and processes, so that nobody who is being attached meanwhile looks
    /// dead.
    ///
    /// # Errors
    /// What the command line names and is not there; pools and journals that cannot be read.
    pub(super) async fn take(arguments: &Arguments, node: &Node) -> Result<Self, Failure> {
        let journals = node.journals();
        let sources = configurations(&journals, node)?;
        let wanted = arguments.value(NETWORK.name);
        let given = arguments.path(CONF.name).map(|path| given_conf(&path, wanted, node)).transpose()?;
        let data_dir = arguments.path(DATA_DIR.name);
        if let Some(directory) = data_dir.as_ref().filter(|directory| !directory.is_dir()) {
            return Err(Failure::Failed(Error::Config(format!("there is no directory {}", directory.display()))));
        }
        let mut directories: BTreeSet<PathBuf> = pools::of_node().into_iter().collect();
        directories.extend(sources.iter().flatten().flat_map(pools::of_network).filter(|directory| directory.is_dir()));
        directories.extend(data_dir.iter().flat_map(|directory| pools::in_directory(directory)));
        let mut pools = Vec::new();
        for directory in directories {
            let network = directory.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let store = Store::new(&directory, LOCK_PATIENCE);
            let mut leases = store.leases()?;
            leases.sort();
            let withheld = store.withheld()?;
            // What the administrator says counts, whatever was once kept under that name.
            let ranges = match &given {
                Some(list) if list.name == network => Ranges::of([list], node),
                _ => Ranges::of_pool(&directory, &sources, node),
            };
            let in_place = data_dir.as_deref().is_none_or(|data_dir| directory.parent() == Some(data_dir));
            let wanted = wanted.is_none_or(|wanted| wanted == network) && in_place;
            pools.push(PoolFound { wanted, ranges, network, directory, leases, withheld });
        }
        if let (Some(wanted), false) = (wanted, pools.iter().any(|pool| pool.wanted)) {
            let place = data_dir.unwrap_or_else(|| DEFAULT_DATA_DIR.into());
            let text = format!("there is no pool of a network \"{wanted}\" in {}", place.display());
            return Err(Failure::Failed(Error::Config(text)));
        }
        let mut evidence = Evidence::gather(&journals, &boot_id()?).await?;
        for pool in &pools {
            evidence.believe(&pool.directory, &pool.leases);
        }
        Ok(Self { pools, evidence })
    }

    /// The pools that the command is about.
    pub(super) fn wanted(&self) -> impl Iterator<Item = &PoolFound> {
        self.pools.iter().filter(|pool| pool.wanted)
    }

    /// How it stands with a lease, and what was found out about its holder.
    pub(super) fn judge(&self, pool: &PoolFound, lease: &Lease) -> (Standing, Option<Verdict<'_>>) {
        if lease.is_foreign() {
            return (Standing::Foreign, None);
        }
        if lease.container.is_none() {
            return (Standing::Orphan, None);
        }
        let verdict = self.evidence.judge(&pool.directory, lease);
        let standing = match verdict.state {
            State::Live => Standing::Live,
            State::Dead => Standing::Dead,
            State::Unknown => Standing::Unknown,
        };
        (standing, Some(verdict))
    }
}

/// The configurations that are known to name pools: those in files, which are what counts today; those that the journals
/// keep; and what Flannel told its delegates.
fn configurations(journals: &[Records], node: &Node) -> Result<[Vec<PluginList>; 3], Error> {
    let files = node.networks();
    let mut kept = Vec::new();
    for records in journals {
        kept.extend(records.confs()?);
    }
    let mut scratch: BTreeSet<PathBuf> = files.iter().chain(&kept).filter_map(pools::scratch_of).collect();
    scratch.insert(PathBuf::from(pools::FLANNEL_DIRECTORY));
    let told = scratch.iter().flat_map(|directory| pools::told_by_flannel(directory)).collect();
    Ok([files, kept, told])
}

impl PoolFound {
    /// The pool's files.
    pub(super) fn store(&self) -> Store {
        Store::new(&self.directory, LOCK_PATIENCE)
    }

    /// The lease of an address.
    pub(super) fn lease(&self, address: IpAddr) -> Option<&Lease> {
        self.leases.binary_search_by_key(&address, |lease| lease.address).ok().and_then(|at| self.leases.get(at))
    }

    /// Whether nobody has an address.
    fn is_free(&self, address: IpAddr) -> bool {
        self.lease(address).is_none_or(|lease| lease.container.is_none())
    }

    /// Whether it may give out this address, as far as its ranges are known.
    pub(super) fn gives(&self, address: IpAddr) -> bool {
        let Ranges::Known(sets) = &self.ranges else { return false };
        sets.iter().flat_map(RangeSet::ranges).any(|range| range.gives(address))
    }

    /// How many addresses somebody has. An orphan is free: whoever comes to it takes it.
    pub(super) fn used(&self) -> usize {
        self.leases.iter().filter(|lease| lease.container.is_some()).count()
    }

    /// How many addresses can be given out now; none where the ranges are not known.
    pub(super) fn free(&self) -> Option<u128> {
        let Ranges::Known(sets) = &self.ranges else { return None };
        let capacity = sets.iter().flat_map(RangeSet::ranges).map(::ipam::IpRange::capacity);
        let capacity = capacity.fold(0_u128, u128::saturating_add);
        let used = self.leases.iter().filter(|lease| lease.container.is_some() && self.gives(lease.address)).count();
        let held_back =
            self.withheld.iter().filter(|held| self.gives(held.address) && self.is_free(held.address)).count();
        Some(capacity.saturating_sub((used + held_back).try_into().unwrap_or(u128::MAX)))
    }
}

impl Ranges {
    /// The ranges of a pool by the first of the sources that has any.
    fn of_pool(directory: &Path, sources: &[Vec<PluginList>], node: &Node) -> Self {
        let is_its = |list: &&PluginList| pools::of_network(list).contains(directory);
        let found = sources.iter().map(|lists| Self::of(lists.iter().filter(is_its), node));
        found.into_iter().find(|ranges| *ranges != Self::Unknown).unwrap_or(Self::Unknown)
    }

    fn of<'a>(lists: impl IntoIterator<Item = &'a PluginList>, node: &Node) -> Self {
        let mut known: Vec<Vec<RangeSet>> = Vec::new();
        for sets in lists.into_iter().filter_map(|list| ranges_of(list, node)) {
            if !known.contains(&sets) {
                known.push(sets);
            }
        }
        match (known.pop(), known.is_empty()) {
            (Some(sets), true) => Self::Known(sets),
            (None, _) => Self::Unknown,
            (Some(_), false) => Self::Several,
        }
    }
}

/// The ranges of a configuration, unless the runtime may add some of its own.
fn ranges_of(list: &PluginList, node: &Node) -> Option<Vec<RangeSet>> {
    list.plugins.iter().find_map(|plugin| {
        let raw: RawIpam = plugin.object.get("ipam").ok().flatten()?;
        let from_outside = plugin.capabilities().ok()?.contains("ipRanges");
        let pool = Pool::new(&list.name, &raw, &[], &node.identity(&raw, &list.name).ok()?).ok()?;
        (!from_outside).then_some(pool.sets)
    })
}

/// The configuration that the command line names; a definition's need not have a name.
fn given_conf(path: &Path, network: Option<&str>, node: &Node) -> Result<PluginList, Error> {
    let text = std::fs::read(path).map_err(|source| Error::io("read", path.display(), source))?;
    let object = Object::parse(&path.display().to_string(), &text)?;
    let list =
        PluginList::from_object(object, network).map_err(|error| error.of_network(path.display().to_string()))?;
    match ranges_of(&list, node) {
        Some(_) => Ok(list),
        None => Err(Error::Config(format!("{} says no ranges of host-local's", path.display()))),
    }
}

/// How many leases stand how.
pub(super) fn count(standings: impl Iterator<Item = Standing>) -> BTreeMap<Standing, usize> {
    let mut counts = BTreeMap::new();
    for standing in standings {
        *counts.entry(standing).or_default() += 1;
    }
    counts
}
