//! CHECK: the records against the plugins and the kernel.

use sandbox::{IfName, Netns, ReadBack, Rtnl, read_back};
use tokio::time::Instant;
use tracing::Instrument as _;

use super::{
    Engine,
    builtin::has_interface,
    configured::PASSTHRU,
    default_routes, open_netns,
    record::{Entry, Record},
};
use crate::{
    cni::{CniResult, Error, chain},
    face::Face,
    log,
};

impl Engine {
    /// Compares every attachment of this call with the sandbox.
    ///
    /// # Errors
    /// All differences, each with its network.
    pub async fn check(&mut self) -> Result<(), Error> {
        let netns = open_netns(&self.invocation.netns)?
            .ok_or_else(|| Error::Netns(format!("CNI_NETNS {} is no network namespace", self.invocation.netns)))?;
        self.layout.create()?;
        self.list_boot_or_warn().await;
        let call = self.call()?;
        self.lock(&call.container).await?;
        let mut errors = Vec::new();
        let mut found = false;
        for entry in self.records.of_container(&call.container)?.into_iter().filter(|entry| *entry.call() == call) {
            found = true;
            let (title, checked) = match entry {
                Entry::Good(record) => {
                    let span = log::of_network(&record.network, &record.interface);
                    (record.title(), self.check_one(*record, &netns).instrument(span).await)
                }
                Entry::Torn { interface, path, .. } => (interface, Err(self.records.unreadable(&path))),
            };
            errors.extend(checked.err().map(|error| error.of_network(title)));
        }
        if !found {
            // Nobody will DEL what was never added: the lock's file must not stay.
            if self.records.of_container(&call.container)?.is_empty() {
                self.remove_lock(&call.container);
            }
            if self.face == Face::Sriov && self.is_of_sriov_cni()? {
                return Ok(());
            }
            return Err(Error::Mismatch(format!(
                "container {} has no attachment of network {} recorded for {}",
                call.container, call.conf, call.if_name
            )));
        }
        Error::join(errors).map_or(Ok(()), Err)
    }

    async fn check_one(&self, record: Record, netns: &Netns) -> Result<(), Error> {
        let began = Instant::now();
        let outcome = self.compare_one(record, netns).await;
        let (step, ms) = ("check", log::ms(began));
        match &outcome {
            Ok(()) => tracing::info!(step, ms, "as it was attached"),
            Err(error) => tracing::info!(step, ms, %error, "not as it was attached"),
        }
        outcome
    }

    async fn compare_one(&self, mut record: Record, netns: &Netns) -> Result<(), Error> {
        if self.face == Face::Sriov {
            self.expect_what_followed(&mut record)?;
        }
        let record = &record;
        let list = record.additions.apply(self.records.conf(record)?)?;
        let result = CniResult::parse("the recorded result", &record.result, list.version)?;
        // A network below 0.4.0 has no CHECK of its own, and a plugin's CHECK need not look at everything.
        let mut errors = Vec::new();
        if has_interface(record) {
            errors.extend(compare(record, &result, netns).await.err());
        }
        match default_routes::differences(record, netns).await {
            Ok(differences) => errors.extend(differences),
            // That the interface is missing is said already.
            Err(error) if errors.is_empty() => errors.push(error),
            Err(_) => {}
        }
        let scene = self.scene(record, &self.invocation.netns);
        let builtin = self.is_builtin_list(&list);
        if builtin {
            errors.extend(self.check_builtin(record, &list, netns).await.err());
        }
        match chain::check(&list, usize::from(builtin), &record.result, &scene).await {
            // Such a chain changes what others made: its plugins look for an interface of the chain's own, which none has.
            Err(error) if list.plugins.first().is_some_and(|plugin| plugin.kind == PASSTHRU) => {
                tracing::warn!(network = record.network, %error, "a plugin of a chain without an interface cannot be checked");
            }
            chained => errors.extend(chained.err()),
        }
        Error::join(errors).map_or(Ok(()), Err)
    }
}

/// The interfaces of a result that are in the sandbox, and their addresses, must be there. A MAC or MTU that another
/// plugin of the chain changed later is not compared: the last result of the chain has it.
async fn compare(record: &Record, result: &CniResult, netns: &Netns) -> Result<(), Error> {
    let links = Rtnl::open(netns)?;
    for (at, interface) in result.interfaces.iter().enumerate().filter(|(_, interface)| !interface.sandbox.is_empty()) {
        let found = read_back(&links, &IfName::try_from(interface.name.as_str())?).await;
        let found = found
            .map_err(|error| Error::Mismatch(format!("interface {} is not in the sandbox: {error}", interface.name)))?;
        for ip in result.ips.iter().filter(|ip| ip.interface == Some(at)) {
            if !has_address(&found, ip.address) {
                return Err(Error::Mismatch(format!("{} does not have {} any more", interface.name, ip.address)));
            }
        }
    }
    let named = result.interfaces.iter().any(|interface| !interface.sandbox.is_empty());
    // A network whose result is empty made no interface: an auxiliary chain changes what is there.
    let says_something = record.primary || !result.ips.is_empty();
    if !named && record.vf.is_none() && says_something {
        read_back(&links, &IfName::try_from(record.interface.as_str())?).await.map_err(|error| {
            Error::Mismatch(format!("interface {} is not in the sandbox: {error}", record.interface))
        })?;
    }
    Ok(())
}

/// Whether an interface has an address with this length of prefix.
pub(super) fn has_address(found: &ReadBack, address: ipnet::IpNet) -> bool {
    found.addresses.iter().any(|has| has.net.addr() == address.addr() && has.net.prefix_len() == address.prefix_len())
}
