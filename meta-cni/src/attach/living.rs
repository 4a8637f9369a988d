//! Who lives on the node, by all that can be known of it: records of this boot, interfaces in any namespace, processes.
//! The only place that decides whether the holder of an address is alive; whoever takes one back asks here first, about
//! as many as he likes: everything is looked at once.

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
    path::{Path, PathBuf},
};

use ipam::Lease;
use sandbox::{Links, Netns, NetnsId, Rtnl};

use super::{
    pools,
    record::{Entry, Record, Records, Stage},
};
use crate::{
    cni::{CniResult, Error, PluginList},
    node::ProcessWords,
    pod::PodName,
};

/// What is known of the namespace of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Life {
    /// It is there.
    Lives,
    /// It is gone, or was one of an earlier boot.
    Gone,
    /// It cannot be looked at: it must not be taken for gone.
    Unclear,
}

/// What a record says about addresses.
#[derive(Debug, Clone)]
pub struct Claim {
    /// The container.
    pub container: String,
    /// The interface in the sandbox.
    pub interface: String,
    /// The pod, if the runtime named one.
    pub pod: Option<PodName>,
    /// Whether it is the primary network.
    pub primary: bool,
    /// The pools that its addresses may be of.
    pub pools: BTreeSet<PathBuf>,
    /// Whether its addresses are leases in one of them, and not of another plugin's keeping.
    pub leased: bool,
    /// Its addresses; none before they were given.
    pub addresses: Vec<IpAddr>,
    /// How far the attachment is.
    pub stage: Stage,
    /// Where its namespace was when it was made.
    pub netns: String,
    /// Which namespace that was.
    pub netns_id: Option<NetnsId>,
    /// Whether that lives.
    pub life: Life,
}

/// An interface that has an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The namespace.
    pub netns: NetnsId,
    /// The interface's name there.
    pub interface: String,
}

/// Whether the holder of a lease is alive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    /// A record with a living namespace says so, the address is on an interface somewhere on the node, or a process speaks
    /// of the container.
    Live,
    /// There is a record, and nothing of that holds.
    Dead,
    /// There is no record either: somebody else's, perhaps in the making.
    Unknown,
}

/// What speaks for somebody's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Because {
    /// A record with a living namespace.
    Record,
    /// An interface that has the address.
    Interface,
    /// An interface that has another address of the container's.
    OtherAddress,
    /// A process that speaks of the container.
    Process,
    /// A record of the container that cannot be read: there is no telling.
    TornRecord,
}

/// What was found out about one lease.
#[derive(Debug)]
pub struct Verdict<'a> {
    /// Whether its holder is alive.
    pub state: State,
    /// Why he is taken for alive.
    pub because: Option<Because>,
    /// The record that tells most about it.
    pub claim: Option<&'a Claim>,
    /// An interface that has the address.
    pub place: Option<&'a Place>,
}

/// All that speaks for somebody's life on the node, at one moment.
///
/// What is to be judged is listed before it is gathered: a record is written before its address is taken, so whatever we
/// are attaching just now is among the records by then.
#[derive(Debug)]
pub struct Evidence {
    claims: Vec<Claim>,
    of_container: HashMap<String, Vec<usize>>,
    of_address: HashMap<IpAddr, Vec<usize>>,
    places: HashMap<IpAddr, Vec<Place>>,
    processes: ProcessWords,
    /// Containers that live by something else than a record.
    believed: HashMap<String, Because>,
    torn: Vec<PathBuf>,
    unreadable: Vec<String>,
}

impl Evidence {
    /// Looks at the journals, at every namespace that can be found (two dumps in each), and at the processes.
    ///
    /// # Errors
    /// [`Error::Io`] if a journal cannot be read. A namespace that cannot be looked at is no error here; but as long as
    /// there is one nobody is dead, see [`Evidence::whole`].
    pub async fn gather(journals: &[Records], boot_id: &str) -> Result<Self, Error> {
        let mut found = Self {
            claims: Vec::new(),
            of_container: HashMap::new(),
            of_address: HashMap::new(),
            places: HashMap::new(),
            processes: ProcessWords::look(),
            believed: HashMap::new(),
            torn: Vec::new(),
            unreadable: Vec::new(),
        };
        for records in journals {
            found.read_records(records, boot_id)?;
        }
        let mut seen = HashMap::new();
        for netns in sandbox::namespaces() {
            let id = netns.id().clone();
            if let Err(error) = found.read_addresses(&netns).await {
                found.unreadable.push(format!("{}: {error}", id.path.display()));
            }
            seen.insert((id.dev, id.inode), id.cookie);
        }
        if seen.is_empty() {
            // Not even our own: root without its capabilities, say in a container.
            found.unreadable.push("any: none can be entered (that takes CAP_SYS_ADMIN)".to_owned());
        }
        for claim in &mut found.claims {
            if claim.life == Life::Unclear {
                claim.life = life_of(claim, &seen);
            }
        }
        for (at, claim) in found.claims.iter().enumerate() {
            found.of_container.entry(claim.container.clone()).or_default().push(at);
            for address in &claim.addresses {
                found.of_address.entry(*address).or_default().push(at);
            }
        }
        Ok(found)
    }

    /// The same, if everything could be looked at.
    ///
    /// # Errors
    /// [`Error::TryLater`] otherwise: what could not be looked at must not be taken for dead.
    pub fn whole(self) -> Result<Self, Error> {
        match self.unreadable.first() {
            Some(problem) => Err(Error::TryLater(format!("nobody is taken for dead: cannot look into {problem}"))),
            None => Ok(self),
        }
    }

    /// Takes the holders of these leases of a pool for living if their address is in use: then what else they hold is so,
    /// too, be it for a program that has no interface.
    pub fn believe(&mut self, pool: &Path, leases: &[Lease]) {
        let in_use = leases.iter().filter(|lease| self.places_of(pool, lease.address).next().is_some());
        let containers: Vec<String> = in_use.filter_map(|lease| lease.container.clone()).collect();
        self.believed.extend(containers.into_iter().map(|container| (container, Because::OtherAddress)));
    }

    /// Whether a container may live.
    #[must_use]
    pub fn has_container(&self, container: &str) -> bool {
        self.claims_of(self.of_container.get(container)).any(lives) || self.believes(container).is_some()
    }

    /// What but a record speaks for a container.
    fn believes(&self, container: &str) -> Option<Because> {
        let by_process = || self.processes.have(container).then_some(Because::Process);
        self.believed.get(container).copied().or_else(by_process)
    }

    /// Judges the holder of a lease of a pool. One that names nobody has no holder: it is unknown.
    #[must_use]
    pub fn judge(&self, pool: &Path, lease: &Lease) -> Verdict<'_> {
        let container = lease.container.as_deref().unwrap_or_default();
        let interface = lease.interface.as_ref();
        let of_container = || self.claims_of(self.of_container.get(container));
        let own = of_container().find(|claim| interface.is_none_or(|name| claim.interface == *name));
        let claiming = self.claims_of(self.of_address.get(&lease.address));
        let claiming = claiming.filter(|claim| lives(claim)).find(|claim| claim.pools.contains(pool));
        // A container lives as a whole: an interface of it that no record names may have come by another way.
        let living =
            own.filter(|claim| lives(claim)).or_else(|| of_container().find(|claim| lives(claim))).or(claiming);
        let place = self.places_of(pool, lease.address).next();
        let because = match (living, place) {
            (Some(_), _) => Some(Because::Record),
            (None, Some(_)) => Some(Because::Interface),
            (None, None) => self.believes(container),
        };
        let state = match because {
            Some(_) => State::Live,
            None if of_container().next().is_some() && self.unreadable.is_empty() => State::Dead,
            None => State::Unknown,
        };
        Verdict { state, because, claim: living.or(own).or_else(|| of_container().next()), place }
    }

    /// The interfaces that have an address which may be of a pool: all, but for those that a record gives to other pools.
    /// Two networks may well use the same range.
    pub fn places_of(&self, pool: &Path, address: IpAddr) -> impl Iterator<Item = &Place> {
        let places = self.places.get(&address).into_iter().flatten();
        places.filter(move |place| {
            let holder = self.claims_of(self.of_address.get(&address)).find(|claim| claim.is_at(place));
            holder.is_none_or(|claim| claim.pools.is_empty() || claim.pools.contains(pool))
        })
    }

    /// Every address that an interface has.
    pub fn places(&self) -> impl Iterator<Item = (&IpAddr, &[Place])> {
        self.places.iter().map(|(address, places)| (address, places.as_slice()))
    }

    /// What the records say.
    #[must_use]
    pub fn claims(&self) -> &[Claim] {
        &self.claims
    }

    /// Records that cannot be read: whatever they claim is not known.
    #[must_use]
    pub fn torn(&self) -> &[PathBuf] {
        &self.torn
    }

    /// Namespaces that could not be looked at, and why. An address may be there.
    #[must_use]
    pub fn unreadable(&self) -> &[String] {
        &self.unreadable
    }

    fn claims_of(&self, at: Option<&Vec<usize>>) -> impl Iterator<Item = &Claim> + Clone {
        at.map(Vec::as_slice).unwrap_or_default().iter().filter_map(|at| self.claims.get(*at))
    }

    fn read_records(&mut self, records: &Records, boot_id: &str) -> Result<(), Error> {
        let mut confs = HashMap::new();
        for container in records.containers()? {
            for entry in records.of_container(&container)? {
                match entry {
                    Entry::Good(record) => {
                        // Where it lives may be what we do not understand.
                        if record.in_part {
                            self.believed.insert(container.clone(), Because::TornRecord);
                        }
                        let hash = record.conf_hash.clone();
                        // Without its configuration a record still claims its addresses, in whatever pool.
                        let list = confs.entry(hash).or_insert_with(|| records.conf(&record).ok());
                        self.claims.push(Claim::of(*record, list.as_ref(), boot_id));
                    }
                    // There is no telling.
                    Entry::Torn { path, .. } => {
                        self.believed.insert(container.clone(), Because::TornRecord);
                        self.torn.push(path);
                    }
                }
            }
        }
        Ok(())
    }

    async fn read_addresses(&mut self, netns: &Netns) -> Result<(), sandbox::Error> {
        let links = Rtnl::open(netns)?;
        let addresses = links.all_addresses().await?;
        // An empty namespace may at best have the loopback interface's.
        if addresses.iter().all(|(_, address)| address.net.addr().is_loopback()) {
            return Ok(());
        }
        let names: HashMap<u32, String> = links.list().await?.into_iter().map(|link| (link.index, link.name)).collect();
        for (index, address) in addresses {
            let interface = names.get(&index).cloned().unwrap_or_else(|| format!("link {index}"));
            let place = Place { netns: netns.id().clone(), interface };
            self.places.entry(address.net.addr().to_canonical()).or_default().push(place);
        }
        Ok(())
    }
}

impl Claim {
    fn of(record: Record, list: Option<&PluginList>, boot_id: &str) -> Self {
        let pool = record.addresses;
        let of_result = || {
            let result =
                list.and_then(|list| CniResult::parse("the recorded result", &record.result, list.version).ok());
            result.unwrap_or_default().ips.iter().map(|ip| ip.address.addr().to_canonical()).collect()
        };
        Self {
            addresses: pool.as_ref().map_or_else(of_result, |pool| pool.addresses.clone()),
            leased: pool.is_some() || list.is_some_and(pools::is_used_by),
            pools: match pool {
                Some(pool) => BTreeSet::from([pool.directory]),
                None => list.map(pools::of_network).unwrap_or_default(),
            },
            container: record.call.container,
            interface: record.interface,
            pod: record.pod,
            primary: record.primary,
            stage: record.stage,
            netns: record.netns,
            netns_id: record.netns_id,
            life: if record.boot_id == boot_id { Life::Unclear } else { Life::Gone },
        }
    }

    fn is_at(&self, place: &Place) -> bool {
        let same = |id: &NetnsId| (id.dev, id.inode) == (place.netns.dev, place.netns.inode);
        self.life == Life::Lives && self.interface == place.interface && self.netns_id.as_ref().is_some_and(same)
    }
}

fn lives(claim: &Claim) -> bool {
    claim.life != Life::Gone
}

/// Whether the namespace of a record of this boot is one of those `seen`; one that was not found may still be at its
/// path.
fn life_of(claim: &Claim, seen: &HashMap<(u64, u64), Option<u64>>) -> Life {
    let Some(id) = &claim.netns_id else {
        return match super::open_netns(&claim.netns) {
            Ok(found) => found.map_or(Life::Gone, |_| Life::Lives),
            Err(_) => Life::Unclear,
        };
    };
    let same = |now: &Option<u64>| id.cookie.zip(*now).is_none_or(|(then, now)| then == now);
    if seen.get(&(id.dev, id.inode)).is_some_and(same) {
        return Life::Lives;
    }
    match id.is_alive() {
        Ok(true) => Life::Lives,
        Ok(false) => Life::Gone,
        Err(_) => Life::Unclear,
    }
}
