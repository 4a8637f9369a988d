//! What lives on the node, by all that can be known of it: records of this boot, interfaces in any namespace, processes.

use std::{collections::HashSet, net::IpAddr};

use ipam::Lease;
use sandbox::{Rtnl, namespaces};

use super::{
    open_netns,
    record::{Entry, Record, Records},
};
use crate::{cni::Error, node::ProcessWords};

/// What was found.
#[derive(Debug)]
pub(super) struct Evidence {
    containers: HashSet<String>,
    addresses: HashSet<IpAddr>,
    processes: ProcessWords,
}

impl Evidence {
    /// Looks at the journals, at every namespace that can be found (one dump of addresses in each), and at the processes.
    ///
    /// # Errors
    /// What could not be looked at must not be taken for dead: then nothing is known.
    pub(super) async fn gather(journals: &[Records], boot_id: &str) -> Result<Self, Error> {
        let mut found = Self { containers: HashSet::new(), addresses: HashSet::new(), processes: ProcessWords::look() };
        for records in journals {
            for container in records.containers()? {
                for entry in records.of_container(&container)? {
                    found.add_entry(&container, &entry, boot_id);
                }
            }
        }
        for netns in namespaces() {
            let addresses = Rtnl::open(&netns)?.all_addresses().await?;
            found.addresses.extend(addresses.iter().map(|address| address.net.addr()));
        }
        Ok(found)
    }

    fn add_entry(&mut self, container: &str, entry: &Entry, boot_id: &str) {
        match entry {
            Entry::Good(record) if record.boot_id == boot_id && may_live(record) => {
                self.containers.insert(container.to_owned());
                self.addresses.extend(record.addresses.iter().flat_map(|held| &held.addresses));
            }
            Entry::Good(_) => {}
            // There is no telling.
            Entry::Torn { .. } => drop(self.containers.insert(container.to_owned())),
        }
    }

    /// Takes the owners of these leases for living, if their address is in use: then what else they hold is so, too, be it
    /// for a program that has no interface.
    pub(super) fn believe(&mut self, leases: &[Lease]) {
        let in_use = leases.iter().filter(|lease| self.addresses.contains(&lease.address));
        let containers: Vec<String> = in_use.filter_map(|lease| lease.container.clone()).collect();
        self.containers.extend(containers);
    }

    /// Whether a container may live.
    pub(super) fn has_container(&self, container: &str) -> bool {
        self.containers.contains(container) || self.processes.have(container)
    }

    /// Whether the owner of a lease may live.
    pub(super) fn has(&self, lease: &Lease) -> bool {
        self.addresses.contains(&lease.address)
            || lease.container.as_deref().is_none_or(|container| self.has_container(container))
    }
}

/// Whether the namespace of a record of this boot is there. One that cannot be looked at counts as there.
fn may_live(record: &Record) -> bool {
    match &record.netns_id {
        Some(id) => id.is_alive().unwrap_or(true),
        None => open_netns(&record.netns).map_or(true, |netns| netns.is_some()),
    }
}
