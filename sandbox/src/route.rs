//! Routes, and the change of a pod's default route.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use crate::{Error, Links};

/// RT_TABLE_MAIN.
pub const MAIN_TABLE: u32 = 254;
/// RT_SCOPE_LINK: the destination is on the wire itself.
const SCOPE_LINK: u8 = 253;
/// RTPROT_BOOT, what iproute2 and the CNI plugins use for routes made by hand.
const PROTO_BOOT: u8 = 3;

/// One of several ways of a multipath route.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NextHop {
    /// Interface index.
    pub oif: u32,
    /// Router, if any.
    pub gateway: Option<IpAddr>,
    /// Weight minus one, as on the wire (rtnh_hops).
    pub hops: u8,
    /// The router is on the link although no route says so.
    pub onlink: bool,
}

/// A unicast route as it is in the kernel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// Destination; a prefix of length 0 is the default route.
    pub dst: IpNet,
    /// Router; none for a destination on the link.
    pub gateway: Option<IpAddr>,
    /// Index of the interface; none if `nexthops` says where to.
    pub oif: Option<u32>,
    /// Routing table.
    pub table: u32,
    /// Metric. None: the kernel's default (0 for IPv4, 1024 for IPv6).
    pub priority: Option<u32>,
    /// rtm scope; 0 is universe, 253 link.
    pub scope: u8,
    /// rtm protocol: who made it; 2 is the kernel, 3 boot, 9 a router advertisement.
    pub protocol: u8,
    /// Preferred source address.
    pub source: Option<IpAddr>,
    /// Path MTU in bytes.
    pub mtu: Option<u32>,
    /// Advertised maximum segment size in bytes.
    pub advmss: Option<u32>,
    /// The router is on the link although no route says so (RTNH_F_ONLINK).
    pub onlink: bool,
    /// The ways of a multipath route; empty for an ordinary one.
    pub nexthops: Vec<NextHop>,
}

impl Route {
    /// A default route of the main table through `gateway` on interface `oif`.
    pub fn default_through(gateway: IpAddr, oif: u32) -> Self {
        Self::new(unspecified_of(&gateway), Some(gateway), oif)
    }

    fn new(dst: IpNet, gateway: Option<IpAddr>, oif: u32) -> Self {
        Self {
            dst,
            gateway,
            oif: Some(oif),
            table: MAIN_TABLE,
            priority: None,
            scope: 0,
            protocol: PROTO_BOOT,
            source: None,
            mtu: None,
            advmss: None,
            onlink: false,
            nexthops: Vec::new(),
        }
    }

    /// True for the IPv6 family.
    pub fn is_ipv6(&self) -> bool {
        matches!(self.dst, IpNet::V6(_))
    }

    /// True for a default route of the main table. The kernel sends no destination for it, which reads as 0.0.0.0/0 or
    /// ::/0 here and never as "none".
    pub fn is_main_default(&self) -> bool {
        self.dst.prefix_len() == 0 && self.table == MAIN_TABLE
    }

    /// True if the route leads through this interface.
    pub fn uses(&self, index: u32) -> bool {
        self.oif == Some(index) || self.nexthops.iter().any(|hop| hop.oif == index)
    }
}

/// A route as CNI's result and host-local's configuration write it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouteSpec {
    /// Destination.
    pub dst: IpNet,
    /// Router; none means the first gateway of the family.
    pub gateway: Option<IpAddr>,
    /// Path MTU in bytes.
    pub mtu: Option<u32>,
    /// Advertised maximum segment size in bytes.
    pub advmss: Option<u32>,
    /// Metric.
    pub priority: Option<u32>,
    /// Routing table; none means main.
    pub table: Option<u32>,
    /// rtm scope.
    pub scope: Option<u8>,
    /// The router is on the link although no address says so.
    pub onlink: bool,
}

impl RouteSpec {
    /// A route with a destination and perhaps a router, all else by default.
    pub fn new(dst: IpNet, gateway: Option<IpAddr>) -> Self {
        Self { dst, gateway, mtu: None, advmss: None, priority: None, table: None, scope: None, onlink: false }
    }
}

/// Decides what to install for `spec` on interface `oif`. A scope of link or narrower means no router, whatever
/// gateways there are: the kernel refuses the two together.
pub(crate) fn resolve(spec: &RouteSpec, oif: u32, gateways: &[IpAddr]) -> Route {
    let same_family = |ip: &&IpAddr| ip.is_ipv6() == matches!(spec.dst, IpNet::V6(_));
    let on_link = spec.scope.is_some_and(|scope| scope >= SCOPE_LINK);
    let gateway = match spec.gateway {
        None if on_link => None,
        None => gateways.iter().find(same_family).copied(),
        given => given,
    };
    let scope = match (spec.scope, gateway, spec.dst) {
        (Some(scope), ..) => scope,
        // IPv6 knows no scope of routes.
        (None, None, IpNet::V4(_)) => SCOPE_LINK,
        _ => 0,
    };
    Route {
        table: spec.table.unwrap_or(MAIN_TABLE),
        priority: spec.priority,
        scope,
        mtu: spec.mtu,
        advmss: spec.advmss,
        onlink: spec.onlink,
        ..Route::new(spec.dst.trunc(), gateway, oif)
    }
}

fn unspecified_of(ip: &IpAddr) -> IpNet {
    match ip {
        IpAddr::V4(_) => IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 0)),
        IpAddr::V6(_) => IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::UNSPECIFIED, 0)),
    }
}

/// A change of the default routes of the main table: of each family that has a gateway here, and of no other. It is known
/// before it is made, and can be taken back.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct DefaultRoutes {
    /// Where the default routes are to lead, one gateway of a family.
    #[serde(default)]
    pub gateways: Vec<IpAddr>,
    /// Routes to delete, in order.
    pub removed: Vec<Route>,
    /// Routes to add.
    pub added: Vec<Route>,
}

impl DefaultRoutes {
    /// What it takes to make `gateways` the only default routes of their families in the main table, through interface
    /// `index`. A family without a gateway here keeps its routes. The caller has looked the interface up: there is no way
    /// to call this for one that is not there.
    ///
    /// # Errors
    /// The kernel's, when it is asked for its routes.
    pub async fn plan<L: Links>(links: &L, index: u32, gateways: &[IpAddr]) -> Result<Self, Error> {
        let before = links.routes().await?;
        let mut plan = Self { gateways: gateways.to_vec(), ..Self::default() };
        for gateway in gateways {
            let wanted = Route::default_through(*gateway, index);
            let serves = |route: &Route| route.gateway == wanted.gateway && route.oif == wanted.oif;
            let defaults = before.iter().filter(|r| r.is_main_default() && r.is_ipv6() == wanted.is_ipv6());
            let (kept, others): (Vec<_>, Vec<_>) = defaults.cloned().partition(|route| serves(route));
            plan.removed.extend(others);
            if kept.is_empty() {
                plan.added.push(wanted);
            }
        }
        Ok(plan)
    }

    /// Makes the change, and reads back that it is made. After an error everything is as before, as far as the kernel lets
    /// it.
    ///
    /// # Errors
    /// The kernel's; [`Error::Unverified`] if it shows something else afterwards.
    pub async fn apply<L: Links>(&self, links: &L, index: u32) -> Result<(), Error> {
        let changed = async {
            for route in &self.removed {
                links.del_route(route).await?;
            }
            for route in &self.added {
                links.add_route(route).await?;
            }
            match self.differences(links, index).await?.into_iter().next() {
                Some(difference) => Err(difference),
                None => Ok(()),
            }
        };
        let changed = changed.await;
        if changed.is_err()
            && let Err(undo) = self.undo(links).await
        {
            tracing::warn!(%undo, "default routes could not be put back");
        }
        changed
    }

    /// What is not as wanted: an [`Error::Unverified`] for each family.
    ///
    /// # Errors
    /// The kernel's, when it is asked.
    pub async fn differences<L: Links>(&self, links: &L, index: u32) -> Result<Vec<Error>, Error> {
        let now = links.routes().await?;
        let mut differences = Vec::new();
        for gateway in &self.gateways {
            let of_family = |r: &&Route| r.is_main_default() && r.is_ipv6() == gateway.is_ipv6();
            let found: Vec<&Route> = now.iter().filter(of_family).collect();
            let as_wanted = |route: &&Route| route.gateway == Some(*gateway) && route.oif == Some(index);
            if found.is_empty() || !found.iter().all(as_wanted) {
                differences.push(unverified(links, *gateway, index, &found).await?);
            }
        }
        Ok(differences)
    }

    /// Takes the change back: deletes what was added, adds what was removed. Tries everything; the first error is
    /// returned. What is gone or back already is no error.
    ///
    /// # Errors
    /// The kernel's.
    pub async fn undo<L: Links>(&self, links: &L) -> Result<(), Error> {
        let mut first = Ok(());
        for route in &self.added {
            if let Err(error) = links.del_route(route).await
                && !is(&error, nix::errno::Errno::ESRCH)
                && !is(&error, nix::errno::Errno::ENODEV)
            {
                first = first.and(Err(error));
            }
        }
        for route in &self.removed {
            if let Err(error) = links.add_route(route).await
                && !is(&error, nix::errno::Errno::EEXIST)
            {
                first = first.and(Err(error));
            }
        }
        first
    }
}

fn is(error: &Error, errno: nix::errno::Errno) -> bool {
    error.errno() == Some(errno as i32)
}

/// Where default routes lead, and where they should, with the interfaces' names.
async fn unverified<L: Links>(links: &L, gateway: IpAddr, index: u32, found: &[&Route]) -> Result<Error, Error> {
    let all = links.list().await?;
    let name = |index: u32| {
        let link = all.iter().find(|link| link.index == index);
        link.map_or_else(|| format!("link {index}"), |link| link.name.clone())
    };
    let way = |gateway: Option<IpAddr>, oif: Option<u32>| {
        let parts = [gateway.map(|gateway| format!("via {gateway}")), oif.map(|oif| format!("on {}", name(oif)))];
        parts.into_iter().flatten().collect::<Vec<_>>().join(" ")
    };
    let ways = found.iter().flat_map(|route| {
        let hops = route.nexthops.iter().map(|hop| way(hop.gateway, Some(hop.oif)));
        let own = route.nexthops.is_empty().then(|| way(route.gateway, route.oif));
        own.into_iter().chain(hops)
    });
    let ways: Vec<String> = ways.collect();
    Ok(Error::Unverified {
        object: format!("{} default route", if gateway.is_ipv4() { "IPv4" } else { "IPv6" }),
        wanted: way(Some(gateway), Some(index)),
        found: if ways.is_empty() { "none".to_owned() } else { ways.join(", ") },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_route_without_a_router_takes_the_first_gateway_of_its_family() {
        let gateways = [ip("fd00::1"), ip("10.1.0.1"), ip("10.1.0.2")];
        let cases = [
            (RouteSpec::new(net("10.9.0.7/16"), None), Some(ip("10.1.0.1")), 0),
            (RouteSpec::new(net("10.9.0.0/16"), Some(ip("10.1.0.9"))), Some(ip("10.1.0.9")), 0),
            (RouteSpec::new(net("fd09::/64"), None), Some(ip("fd00::1")), 0),
            (RouteSpec { scope: Some(253), ..RouteSpec::new(net("10.9.0.0/16"), None) }, None, 253),
        ];
        for (spec, gateway, scope) in cases {
            let route = resolve(&spec, 7, &gateways);
            assert_eq!((route.gateway, route.scope, route.oif, route.table), (gateway, scope, Some(7), MAIN_TABLE));
        }
        // The destination is truncated: the kernel refuses host bits.
        assert_eq!(resolve(&RouteSpec::new(net("10.9.0.7/16"), None), 7, &gateways).dst, net("10.9.0.0/16"));
        let lone = resolve(&RouteSpec::new(net("10.9.0.0/16"), None), 7, &[ip("fd00::1")]);
        assert_eq!((lone.gateway, lone.scope), (None, SCOPE_LINK));
        let lone6 = resolve(&RouteSpec::new(net("fd09::/64"), None), 7, &[ip("10.1.0.1")]);
        assert_eq!((lone6.gateway, lone6.scope), (None, 0));
    }

    #[test]
    fn metrics_and_table_are_carried_over() {
        let spec = RouteSpec {
            mtu: Some(1400),
            advmss: Some(1360),
            priority: Some(50),
            table: Some(100),
            onlink: true,
            ..RouteSpec::new(net("0.0.0.0/0"), Some(ip("10.0.0.1")))
        };
        let route = resolve(&spec, 3, &[]);
        assert_eq!((route.mtu, route.advmss, route.priority), (Some(1400), Some(1360), Some(50)));
        assert_eq!((route.table, route.onlink), (100, true));
        assert!(!route.is_main_default(), "a default route of another table is none of ours");
    }
}
