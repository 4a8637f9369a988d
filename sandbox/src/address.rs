//! IP addresses of an interface, and giving an interface all it should have.

use std::net::IpAddr;

use ipnet::IpNet;
use nix::errno::Errno;
use serde::{Deserialize, Serialize};

use crate::route::resolve;
use crate::{Error, IfName, Link, LinkChange, Links, Route, RouteSpec};

/// An address as the kernel reports it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Address {
    /// Address and prefix length; the host part is kept.
    pub net: IpNet,
    /// rtm scope: 0 global, 253 link, 254 host.
    pub scope: u8,
    /// Duplicate address detection has not finished (IFA_F_TENTATIVE).
    pub tentative: bool,
    /// Usable although tentative (IFA_F_OPTIMISTIC).
    pub optimistic: bool,
    /// Duplicate address detection found another owner (IFA_F_DADFAILED): the address does not work.
    pub dad_failed: bool,
}

/// What the kernel is to do about a duplicate of an IPv6 address. IPv4 has no such thing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Dad {
    /// As the interface's sysctls say.
    #[default]
    AsConfigured,
    /// None: usable at once (IFA_F_NODAD). For addresses that an allocator gave out once.
    Skip,
    /// Detection runs, the address is usable meanwhile (IFA_F_OPTIMISTIC).
    Optimistic,
}

/// An address to add. IPv4 gets the broadcast address of its prefix, as `ip addr add ... brd +`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewAddress {
    /// Address and prefix length.
    pub net: IpNet,
    /// Duplicate address detection.
    pub dad: Dad,
}

/// An interface as it is, for comparison with what was promised.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadBack {
    /// The interface.
    pub link: Link,
    /// All its addresses, link-local ones included.
    pub addresses: Vec<Address>,
    /// The routes through it, of all tables but `local`.
    pub routes: Vec<Route>,
}

/// Gives `link` the addresses and then the routes, bringing it up first if it is not. `gateways` are those of the
/// addresses, in order: a route without a gateway goes through the first of its family, as CNI's own `ConfigureIface`
/// does, or is link-scoped if there is none. A route to where another interface leads already stands beside that one, as
/// with the CNI plugins, and one that is there already is as good as added. Stops at the first error; what was added goes
/// with the interface.
pub async fn configure<L: Links>(
    links: &L,
    link: &Link,
    addresses: &[NewAddress],
    gateways: &[IpAddr],
    routes: &[RouteSpec],
) -> Result<(), Error> {
    if !link.up {
        links.change(link.index, &[LinkChange::Up(true)]).await?;
    }
    for address in addresses {
        links.add_address(link.index, address).await?;
    }
    for spec in routes {
        match links.add_route_beside(&resolve(spec, link.index, gateways)).await {
            Err(error) if error.errno() == Some(Errno::EEXIST as i32) => {}
            added => added?,
        }
    }
    Ok(())
}

/// Reads one interface back: link, addresses, routes (three messages).
pub async fn read_back<L: Links>(links: &L, name: &IfName) -> Result<ReadBack, Error> {
    let found = links.by_name(name.as_str()).await?;
    let link = found.ok_or_else(|| Error::NoSuchLink { name: name.to_string() })?;
    read_back_of(links, link).await
}

/// The same for an interface that was read already (two messages).
pub async fn read_back_of<L: Links>(links: &L, link: Link) -> Result<ReadBack, Error> {
    let addresses = links.addresses(link.index).await?;
    let mut routes = links.routes().await?;
    routes.retain(|route| route.uses(link.index));
    Ok(ReadBack { link, addresses, routes })
}
