//! Addresses whose owners did not outlive a boot, and what is left of them in the primary network. Only what was there at
//! boot is asked about ([`BootLists`]), and is given back only if nothing on the node speaks for its owner ([`Evidence`]).
//!
//! The files of a pool are given back straight, but for the primary network's: there, its own chain does it.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    path::{Path, PathBuf},
    time::Duration,
};

use ipam::{Lease, Store};
use tokio::time::Instant;

use super::{
    Engine,
    builtin::LOCK_PATIENCE,
    configured,
    gc::Living,
    living::{Evidence, State},
    pools,
};
use crate::{
    cluster::Cluster,
    cni::{Error, Object, PluginList},
    face::Face,
    node::BootLists,
};

/// How long an ADD that found its pool exhausted goes on to have dead containers detached, once it has an address.
const LONG_ENOUGH: Duration = Duration::from_secs(5);
/// The IPAM plugin whose files the pools are.
pub(super) const HOST_LOCAL: &str = "host-local";

/// Which pools are looked at.
enum Scope<'a> {
    /// Those of our networks, for GC; what the runtime lists as valid stays.
    Ours(&'a Living, &'a BTreeSet<PathBuf>),
    /// Those of a network that has no address left.
    Of(&'a BTreeSet<PathBuf>),
}

/// The primary network, as far as its leftovers go.
pub(super) struct Primary {
    pub(super) list: PluginList,
    pub(super) pools: BTreeSet<PathBuf>,
    pub(super) scratch: Option<PathBuf>,
}

impl Engine {
    pub(super) fn boot_lists(&self) -> BootLists {
        self.layout.boot_lists(&self.boot_id)
    }

    /// Lists what the pools hold, at the first verb of a boot; before any plugin is executed.
    ///
    /// # Errors
    /// [`Error::Io`] if the lists cannot be written. A pool that cannot be read is left out: nothing is reclaimed there.
    pub(super) async fn list_boot(&self) -> Result<(), Error> {
        let lists = self.boot_lists();
        if lists.is_complete() {
            return Ok(());
        }
        // Not by a request to the API server: what is there is the node's own.
        let primary = self.primary(&Cluster::None).await;
        let _held = lists.begin()?;
        if lists.is_complete() {
            return Ok(());
        }
        let kept = self.records.confs()?;
        let mut ours: BTreeSet<PathBuf> = kept.iter().flat_map(pools::of_network).collect();
        ours.extend(primary.iter().flat_map(|primary| primary.pools.clone()));
        let all: BTreeSet<PathBuf> = ours.iter().cloned().chain(pools::of_node()).collect();
        for pool in all {
            match Store::new(&pool, LOCK_PATIENCE).leases() {
                Ok(leases) => lists.note_pool(&pool, ours.contains(&pool), &leases)?,
                Err(error) => tracing::warn!(pool = %pool.display(), %error, "the pool is not listed at boot"),
            }
        }
        // A primary whose configuration is at the API server is known by what its pods of the last boot left.
        let mut scratches: BTreeSet<PathBuf> = kept.iter().filter_map(pools::scratch_of).collect();
        scratches.extend(primary.and_then(|primary| primary.scratch));
        for scratch in scratches {
            lists.note_scratch(&scratch, &pools::containers_in(&scratch))?;
        }
        self.list_sandboxes()?;
        lists.complete()
    }

    /// The same where the verb must go on: what is not listed is not reclaimed.
    pub(super) async fn list_boot_or_warn(&self) {
        if let Err(error) = self.list_boot().await {
            tracing::warn!(%error, details = error.details(), "what the pools held at boot is not written down");
        }
    }

    /// The pools of the configurations that are kept.
    pub(super) fn own_pools(&self) -> Result<BTreeSet<PathBuf>, Error> {
        Ok(self.records.confs()?.iter().flat_map(pools::of_network).collect())
    }

    /// The primary network's pools; none for a plugin alone.
    pub(super) async fn primary(&self, cluster: &Cluster) -> Option<Primary> {
        if self.face != Face::Meta {
            return None;
        }
        let list = match configured::networks(&self.settings, cluster).await {
            Ok(networks) => networks.into_iter().next()?.list,
            Err(error) => {
                tracing::warn!(%error, "it is not known what the primary's pool is");
                return None;
            }
        };
        Some(Primary { pools: pools::of_network(&list), scratch: pools::scratch_of(&list), list })
    }

    /// Gives back what an earlier boot left in our networks' pools and in Flannel's directory, and the leases there that
    /// name nobody: a writer was killed, or the power failed, and no DEL will ever come for them.
    pub(super) async fn reclaim_at_gc(&self, living: &Living) -> Vec<Error> {
        let mut own = match self.own_pools() {
            Ok(own) => own,
            Err(error) => return vec![error],
        };
        let primary = self.primary(&self.cluster).await;
        let (mut errors, _) = self.reclaim(&Scope::Ours(living, &own), primary.as_ref()).await;
        own.extend(primary.into_iter().flat_map(|primary| primary.pools));
        match self.boot_lists().pools() {
            Ok(lists) => own.extend(lists.into_iter().filter(|pool| pool.ours).map(|pool| pool.directory)),
            Err(error) => errors.push(error),
        }
        errors.extend(own.iter().flat_map(|pool| release_orphans(pool).err()));
        errors
    }

    /// Gives back what an earlier boot left in the pools of a network that has no address left. Whether that helps.
    pub(super) async fn reclaim_for(&self, pools: &BTreeSet<PathBuf>) -> bool {
        let primary = self.primary(&self.cluster).await;
        let (errors, freed) = self.reclaim(&Scope::Of(pools), primary.as_ref()).await;
        for error in errors {
            tracing::warn!(%error, "not all that an earlier boot left in an exhausted pool could be given back");
        }
        let orphans: usize = pools.iter().filter_map(|pool| release_orphans(pool).ok()).sum();
        freed + orphans > 0
    }

    /// Gives what could not be given back, and the number of addresses that were.
    async fn reclaim(&self, scope: &Scope<'_>, primary: Option<&Primary>) -> (Vec<Error>, usize) {
        let found = match self.candidates(scope, primary).await {
            Ok(found) => found,
            Err(error) => return (vec![error], 0),
        };
        let (mut errors, mut freed) = (Vec::new(), 0);
        for (pool, dead) in &found.pools {
            match Store::new(pool, LOCK_PATIENCE).reclaim(dead) {
                Ok(released) => freed += said(pool, &released),
                Err(error) => errors.push(error.into()),
            }
        }
        let Some(primary) = primary else { return (errors, freed) };
        let began = Instant::now();
        for (container, leases) in &found.of_primary {
            let enough = matches!(scope, Scope::Of(_)) && freed > 0 && began.elapsed() > LONG_ENOUGH;
            if enough || Instant::now() >= self.deadline {
                break;
            }
            match self.detach_dead(primary, container, leases).await {
                Ok(count) => freed += count,
                Err(error) => errors.push(error.of_network(format!("container {container}"))),
            }
        }
        (errors, freed)
    }

    /// What was there at boot, still is, and has a dead owner.
    async fn candidates(&self, scope: &Scope<'_>, primary: Option<&Primary>) -> Result<Dead, Error> {
        let lists = self.boot_lists();
        let of_primary = |pool: &Path| primary.is_some_and(|primary| primary.pools.contains(pool));
        let is_asked_for = |pool: &Path, ours: bool| match scope {
            Scope::Ours(_, own) => ours || of_primary(pool) || own.contains(pool),
            Scope::Of(pools) => pools.contains(pool),
        };
        let mut left = Vec::new();
        for listed in lists.pools()?.into_iter().filter(|listed| !listed.leases.is_empty()) {
            let now: HashSet<Lease> = Store::new(&listed.directory, LOCK_PATIENCE).leases()?.into_iter().collect();
            let leases: Vec<Lease> = listed.leases.into_iter().filter(|lease| now.contains(lease)).collect();
            left.push((is_asked_for(&listed.directory, listed.ours), listed.directory, leases));
        }
        let scratch = self.scratch_left(scope, primary)?;
        let nothing = |(asked, _, leases): &(bool, PathBuf, Vec<Lease>)| !asked || leases.is_empty();
        let mut dead = Dead::default();
        if left.iter().all(nothing) && scratch.is_empty() {
            return Ok(dead);
        }
        let mut evidence = Evidence::gather(&self.journals(), &self.boot_id).await?.whole()?;
        left.iter().for_each(|(_, pool, leases)| evidence.believe(pool, leases));
        // What was attached since speaks for its container, too.
        for pool in pools::of_node() {
            evidence.believe(&pool, &Store::new(&pool, LOCK_PATIENCE).leases()?);
        }
        let lives = |container: &str| {
            evidence.has_container(container)
                || container == self.invocation.container
                || matches!(scope, Scope::Ours(living, _) if living.lists(container))
        };
        for (_, pool, leases) in left.into_iter().filter(|(asked, ..)| *asked) {
            let named = leases.into_iter().filter_map(|lease| Some((lease.container.clone()?, lease)));
            for (container, lease) in named
                .filter(|(container, lease)| evidence.judge(&pool, lease).state != State::Live && !lives(container))
            {
                if of_primary(&pool) {
                    dead.of_primary.entry(container).or_default().push((pool.clone(), lease));
                } else {
                    dead.pools.entry(pool.clone()).or_default().push(lease);
                }
            }
        }
        for container in scratch.into_iter().filter(|container| !lives(container)) {
            dead.of_primary.entry(container).or_default();
        }
        Ok(dead)
    }

    /// The files that Flannel's plugin had at boot and still has. One of a container whose addresses are not of
    /// host-local's pools says nothing of its death: nobody can tell whether its address is in use.
    fn scratch_left(&self, scope: &Scope<'_>, primary: Option<&Primary>) -> Result<BTreeSet<String>, Error> {
        let Some(Primary { scratch: Some(scratch), pools, .. }) = primary else { return Ok(BTreeSet::new()) };
        if matches!(scope, Scope::Of(asked) if asked.is_disjoint(pools)) {
            return Ok(BTreeSet::new());
        }
        let is_host_locals = |container: &String| {
            let text = std::fs::read(scratch.join(container)).ok()?;
            // A power cut leaves empty ones.
            let conf = Object::parse("Flannel's file", &text).unwrap_or_default();
            let ipam = conf.get::<Object>("ipam").ok().flatten().unwrap_or_default();
            Some(conf.is_empty() || ipam.text("type").is_ok_and(|kind| kind == HOST_LOCAL))
        };
        let listed = self.boot_lists().scratch(scratch)?;
        Ok(listed.into_iter().filter(|container| is_host_locals(container) == Some(true)).collect())
    }
}

/// Leases of dead owners.
#[derive(Default)]
struct Dead {
    /// By pool.
    pools: BTreeMap<PathBuf, Vec<Lease>>,
    /// Of the primary network, by container; also containers of which only Flannel's file is left.
    of_primary: BTreeMap<String, Vec<(PathBuf, Lease)>>,
}

fn release_orphans(pool: &Path) -> Result<usize, Error> {
    let removed = Store::new(pool, LOCK_PATIENCE).release_orphans()?;
    for lease in &removed {
        tracing::warn!(address = %lease.address, "a lease that names nobody is removed");
    }
    Ok(removed.len())
}

fn said(pool: &Path, released: &[ipam::Released]) -> usize {
    for lease in released {
        tracing::warn!(pool = %pool.display(), address = %lease.address, container = lease.container, "the owner of an address did not outlive the boot");
    }
    released.len()
}
