//! What the pool held when the machine booted: written down at the first verb, as the meta plugin does for all pools.

use std::{collections::HashSet, path::Path};

use ipam::{Lease, Store};

use crate::{
    cni::Error,
    node::{BootLists, boot_id},
    settings::RUN_DIR,
};

/// Writes it down, unless somebody has done so in this boot. A verb goes on without: what is not listed is not reclaimed.
pub(super) fn note(store: &Store) {
    let _ = lists().and_then(|lists| lists.note_own_pool(store, store.directory()));
}

/// Whether the pool still has leases that it had at boot. Their owners may be dead, and then an ADD gets their addresses.
pub(super) fn has_leftovers(store: &Store) -> Result<bool, Error> {
    let listed = lists()?.pools()?.into_iter().find(|pool| pool.directory == store.directory());
    let Some(listed) = listed.filter(|pool| !pool.leases.is_empty()) else { return Ok(false) };
    let now: HashSet<Lease> = store.leases()?.into_iter().collect();
    Ok(listed.leases.iter().any(|lease| now.contains(lease)))
}

fn lists() -> Result<BootLists, Error> {
    Ok(BootLists::new(Path::new(RUN_DIR).join("boot"), &boot_id()?))
}
