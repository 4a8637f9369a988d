//! The pod's default routes: those of the network that the pod chose for them.

use std::net::IpAddr;

use nix::errno::Errno;
use sandbox::{DefaultRoutes, IfName, Netns, ReadBack, Rtnl, read_back};

use super::{Engine, add::Made, record::Record, request::Request};
use crate::{
    cni::{Error, Route},
    network::Attachment,
};

impl Engine {
    /// Gives the pod's default route to the networks that the pod chose for it, and takes it out of the other results.
    pub(super) async fn settle_default_routes(
        &self,
        request: &Request,
        netns: &Netns,
        made: &mut [Made],
    ) -> Result<(), Error> {
        let wanting = request.attachments.iter().enumerate();
        let wanting: Vec<(usize, &Attachment)> =
            wanting.filter(|(_, attachment)| !attachment.default_route.is_empty()).collect();
        if wanting.is_empty() {
            return Ok(());
        }
        let links = Rtnl::open(netns)?;
        for (at, attachment) in wanting {
            let chosen = self.give_default_route(attachment, &links, &mut made[at]).await;
            chosen.map_err(|error| attachment.failed(error))?;
            for gateway in &attachment.default_route {
                move_default_route(made, at, *gateway);
            }
        }
        for made in made.iter_mut().filter(|made| made.is_rerouted) {
            made.record.result = made.result.to_json(self.records.conf(&made.record)?.version)?;
            self.records.write(&made.record, false)?;
        }
        Ok(())
    }

    /// Makes the change in the kernel; what it takes to undo it is on disk before.
    async fn give_default_route(&self, attachment: &Attachment, links: &Rtnl, made: &mut Made) -> Result<(), Error> {
        let found = read_back(links, &IfName::try_from(attachment.interface.as_str())?).await?;
        let own =
            attachment.default_route.iter().find(|gateway| found.addresses.iter().any(|a| a.net.addr() == **gateway));
        if own.is_some() {
            // In IPv4 the kernel would take it for "no gateway": everybody is asked for on the link itself.
            return Err(wrong_gateway(attachment, &found, "it is the interface's own"));
        }
        let change = DefaultRoutes::plan(links, found.link.index, &attachment.default_route).await?;
        made.record.default_routes = Some(change.clone());
        self.records.write(&made.record, false)?;
        let applied = change.apply(links, found.link.index).await;
        // The kernel takes a router only if the interface reaches it without another one.
        let refusals = [Errno::ENETUNREACH, Errno::EHOSTUNREACH, Errno::EINVAL];
        applied.map_err(|error| match refusals.iter().any(|errno| error.errno() == Some(*errno as i32)) {
            true => wrong_gateway(attachment, &found, &error.to_string()),
            false => error.into(),
        })
    }
}

fn wrong_gateway(attachment: &Attachment, found: &ReadBack, why: &str) -> Error {
    let listed = |all: Vec<String>, none: &str| if all.is_empty() { none.to_owned() } else { all.join(", ") };
    let wanted = attachment.default_route.iter().map(ToString::to_string).collect();
    let has = found.addresses.iter().map(|address| address.net.to_string()).collect();
    Error::Config(format!(
        "default-route {}: {} has {}, a gateway must be another address of one of these subnets: {why}",
        listed(wanted, "none"),
        attachment.interface,
        listed(has, "no address"),
    ))
}

/// Writes the move of a family's default route into the results.
fn move_default_route(made: &mut [Made], to: usize, gateway: IpAddr) {
    let v4 = gateway.is_ipv4();
    for made in made.iter_mut() {
        let before = made.result.routes.len();
        made.result.routes.retain(|route| !route.is_main_default() || route.dst.addr().is_ipv4() != v4);
        made.is_rerouted |= made.result.routes.len() != before;
    }
    let everywhere = if v4 { "0.0.0.0/0" } else { "::/0" };
    if let (Ok(dst), Some(made)) = (everywhere.parse(), made.get_mut(to)) {
        made.result.routes.push(Route::through(dst, gateway));
        made.is_rerouted = true;
    }
}

/// How the default routes that were made for an attachment are different now.
pub(super) async fn differences(record: &Record, netns: &Netns) -> Result<Vec<Error>, Error> {
    let Some(change) = record.default_routes.as_ref().filter(|change| !change.gateways.is_empty()) else {
        return Ok(Vec::new());
    };
    let links = Rtnl::open(netns)?;
    let found = read_back(&links, &IfName::try_from(record.interface.as_str())?).await?;
    let differences = change.differences(&links, found.link.index).await?;
    Ok(differences.into_iter().map(|difference| Error::Mismatch(difference.to_string())).collect())
}
