//! What the pool held when the machine booted: written down at the first verb, as the meta plugin does for all pools.

use std::{collections::HashSet, path::Path};

use ipam::{Lease, Store};

use super::conf::LOCK_PATIENCE;
use crate::{
    attach::{
        journals_of,
        living::{Evidence, State},
        pools,
    },
    cni::{Error, Object},
    node::{BootLists, boot_id},
    settings::{RUN_DIR, Settings},
};

/// Writes it down, unless somebody has done so in this boot. A verb goes on without: what is not listed is not reclaimed.
pub(super) fn note(store: &Store) {
    let _ = lists().and_then(|lists| lists.note_own_pool(store, store.directory()));
}

/// Whether the pool still has leases that it had at boot. Their owners may be dead, and then an ADD gets their addresses.
pub(super) fn has_leftovers(store: &Store) -> Result<bool, Error> {
    Ok(!leftovers(store)?.is_empty())
}

/// Gives back those whose owners are dead, by all that is known on the node. Whether there were any.
pub(super) fn reclaim(store: &Store) -> Result<bool, Error> {
    let left = leftovers(store)?;
    if left.is_empty() {
        return Ok(false);
    }
    // The only thing here that asks the kernel, and rare: whoever calls us needs no I/O runtime otherwise.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| Error::io("start", "the I/O runtime", source))?;
    let journals = journals_of(&Settings::of_plugin(&Object::default()));
    let mut evidence = runtime.block_on(Evidence::gather(&journals, &boot_id()?))?.whole()?;
    evidence.believe(store.directory(), &left);
    // A container whose address is of another pool lives, too.
    for pool in pools::of_node() {
        evidence.believe(&pool, &Store::new(&pool, LOCK_PATIENCE).leases()?);
    }
    let is_dead = |lease: &Lease| evidence.judge(store.directory(), lease).state != State::Live;
    let dead: Vec<Lease> = left.into_iter().filter(is_dead).collect();
    Ok(!store.reclaim(&dead)?.is_empty())
}

fn leftovers(store: &Store) -> Result<Vec<Lease>, Error> {
    let listed = lists()?.pools()?.into_iter().find(|pool| pool.directory == store.directory());
    let Some(listed) = listed.filter(|pool| !pool.leases.is_empty()) else { return Ok(Vec::new()) };
    let now: HashSet<Lease> = store.leases()?.into_iter().collect();
    Ok(listed.leases.into_iter().filter(|lease| now.contains(lease)).collect())
}

fn lists() -> Result<BootLists, Error> {
    Ok(BootLists::new(Path::new(RUN_DIR).join("boot"), &boot_id()?))
}
