//! [`Rtnl`]: rtnetlink on one namespace. This folder is the only place that knows the netlink crates.

mod conn;
mod decode;
mod encode;
mod pf;

use std::fmt;
use std::os::fd::AsRawFd;
use std::pin::Pin;
use std::time::Duration;

use futures_util::{FutureExt, Stream, StreamExt};
use netlink_packet_core::{NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage as Message;
use netlink_packet_route::address::AddressMessage;
use netlink_packet_route::link::{LinkAttribute, LinkMessage};
use netlink_packet_route::route::RouteMessage;
use nix::errno::Errno;
use rtnetlink::LinkUnspec;
use tokio::sync::Mutex;

use crate::{
    Address, Error, IfName, Link, LinkChange, Links, Netns, NewAddress, PfReport, Route, Sysctl, VfSetting,
    write_sysctls,
};

/// Link events: which link, and whether it has a carrier. What else they say is read back anyway.
type Events = Pin<Box<dyn Stream<Item = Option<(u32, bool)>> + Send>>;

/// The links of one namespace, through a socket that was opened inside it. The socket belongs to that namespace for
/// ever, so nothing has to be "entered" afterwards. Needs a tokio runtime with I/O and time, of any flavour.
pub struct Rtnl {
    netns: Netns,
    handle: conn::Handle,
    events: Mutex<Option<(Events, conn::Task)>>,
    _task: conn::Task,
}

impl fmt::Debug for Rtnl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rtnl").field("netns", &self.netns).finish_non_exhaustive()
    }
}

impl Rtnl {
    /// Opens a socket inside `netns`. Must be called within a tokio runtime.
    pub fn open(netns: &Netns) -> Result<Self, Error> {
        let (handle, task, netns) = conn::open(netns)?;
        Ok(Self { netns, handle, events: Mutex::new(None), _task: task })
    }

    /// The namespace; it knows its cookie.
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// Waits until the events since the last call of [`Links::link_event`] tell that the link has a carrier. Of several
    /// that are there already the last one counts: a carrier that came may be gone again.
    pub(crate) async fn carrier_event(&self, index: u32) -> Result<(), Error> {
        let mut events = self.events.lock().await;
        while let Some((stream, _)) = events.as_mut() {
            let Some(first) = stream.next().await else { break };
            let mut carrier = first == Some((index, true));
            while let Some(Some(next)) = stream.next().now_or_never() {
                carrier = next.filter(|(of, _)| *of == index).map_or(carrier, |(_, carrier)| carrier);
            }
            if carrier {
                return Ok(());
            }
        }
        Err(self.events_ended())
    }

    fn events_ended(&self) -> Error {
        Error::Answer {
            step: "wait for a link event".to_owned(),
            object: self.netns.path().display().to_string(),
            what: "the socket closed".to_owned(),
        }
    }

    async fn link(&self, query: LinkMessage, object: &str) -> Result<Option<Link>, Error> {
        let found = conn::request(&self.handle, Message::GetLink(query), 0, "read a link", object).await;
        match found {
            Ok(replies) => Ok(replies.into_iter().find_map(|reply| match reply {
                Message::NewLink(message) => Some(decode::link(&message)),
                _ => None,
            })),
            Err(error) if error.errno() == Some(Errno::ENODEV as i32) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn set(&self, message: LinkMessage, step: &str, object: &str) -> Result<(), Error> {
        conn::request(&self.handle, Message::SetLink(message), NLM_F_ACK, step, object).await.map(drop)
    }
}

impl Links for Rtnl {
    async fn list(&self) -> Result<Vec<Link>, Error> {
        let query = Message::GetLink(LinkMessage::default());
        let replies = conn::request(&self.handle, query, NLM_F_DUMP, "list links", "all").await?;
        let links = replies.iter().filter_map(|reply| match reply {
            Message::NewLink(message) => Some(decode::link(message)),
            _ => None,
        });
        Ok(links.collect())
    }

    async fn by_index(&self, index: u32) -> Result<Option<Link>, Error> {
        self.link(LinkUnspec::new_with_index(index).build(), &format!("link {index}")).await
    }

    async fn by_name(&self, name: &str) -> Result<Option<Link>, Error> {
        self.link(encode::by_name(name), name).await
    }

    async fn by_parent(&self, device: &str) -> Result<Vec<Link>, Error> {
        let mut links = self.list().await?;
        links.retain(|link| link.parent_dev.as_deref() == Some(device));
        Ok(links)
    }

    async fn pf_report(&self, pf: u32) -> Result<PfReport, Error> {
        pf::report(&self.handle, pf).await
    }

    async fn set_vf(&self, pf: u32, vf: u32, settings: &[VfSetting]) -> Result<(), Error> {
        let text: Vec<String> = settings.iter().map(ToString::to_string).collect();
        let step = format!("set {}", text.join(", "));
        self.set(encode::vf_settings(pf, vf, settings), &step, &format!("VF {vf} of link {pf}")).await
    }

    async fn move_with(&self, index: u32, target: &Self, name: &IfName, changes: &[LinkChange]) -> Result<(), Error> {
        let message = encode::moving(index, target.netns.as_raw_fd(), name.as_str(), changes);
        let what: String = changes.iter().flat_map(|change| [", ", change.what()]).collect();
        let step = format!("move to {} as {name}{what}", target.netns.path().display());
        self.set(message, &step, &format!("link {index}")).await
    }

    async fn change(&self, index: u32, changes: &[LinkChange]) -> Result<(), Error> {
        self.set(encode::link_changes(index, changes), &what_is_set(changes), &format!("link {index}")).await
    }

    async fn change_named(&self, name: &IfName, changes: &[LinkChange]) -> Result<(), Error> {
        self.set(encode::changes_by_name(name.as_str(), changes), &what_is_set(changes), name.as_str()).await
    }

    async fn add_altname(&self, index: u32, name: &str) -> Result<(), Error> {
        let message = Message::NewLinkProp(encode::altname(index, name));
        let flags = NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL | NLM_F_APPEND;
        let step = format!("add the alternative name {name}");
        conn::request(&self.handle, message, flags, &step, &format!("link {index}")).await.map(drop)
    }

    async fn del_altname(&self, index: u32, name: &str) -> Result<(), Error> {
        let message = Message::DelLinkProp(encode::altname(index, name));
        let step = format!("delete the alternative name {name}");
        conn::request(&self.handle, message, NLM_F_ACK, &step, &format!("link {index}")).await.map(drop)
    }

    async fn add_dummy(&self, name: &str) -> Result<(), Error> {
        let message = Message::NewLink(encode::dummy(name));
        let flags = NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL;
        conn::request(&self.handle, message, flags, "make a dummy link", name).await.map(drop)
    }

    async fn del_link(&self, index: u32) -> Result<(), Error> {
        let message = Message::DelLink(LinkUnspec::new_with_index(index).build());
        conn::request(&self.handle, message, NLM_F_ACK, "delete the link", &format!("link {index}")).await.map(drop)
    }

    async fn addresses(&self, index: u32) -> Result<Vec<Address>, Error> {
        let mut query = AddressMessage::default();
        // Honoured with strict checking only; older kernels send all.
        query.header.index = index;
        let query = Message::GetAddress(query);
        let replies =
            conn::request(&self.handle, query, NLM_F_DUMP, "read addresses", &format!("link {index}")).await?;
        let addresses = replies.iter().filter_map(|reply| match reply {
            Message::NewAddress(message) if message.header.index == index => decode::address(message),
            _ => None,
        });
        Ok(addresses.collect())
    }

    async fn all_addresses(&self) -> Result<Vec<(u32, Address)>, Error> {
        let query = Message::GetAddress(AddressMessage::default());
        let replies = conn::request(&self.handle, query, NLM_F_DUMP, "read addresses", "all links").await?;
        let addresses = replies.iter().filter_map(|reply| match reply {
            Message::NewAddress(message) => Some((message.header.index, decode::address(message)?)),
            _ => None,
        });
        Ok(addresses.collect())
    }

    async fn add_address(&self, index: u32, address: &NewAddress) -> Result<(), Error> {
        let message = Message::NewAddress(encode::new_address(index, address));
        let step = format!("add address {}", address.net);
        let flags = NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL;
        conn::request(&self.handle, message, flags, &step, &format!("link {index}")).await.map(drop)
    }

    async fn del_address(&self, index: u32, address: &Address) -> Result<(), Error> {
        let message = Message::DelAddress(encode::address(index, &address.net));
        let step = format!("delete address {}", address.net);
        conn::request(&self.handle, message, NLM_F_ACK, &step, &format!("link {index}")).await.map(drop)
    }

    async fn routes(&self) -> Result<Vec<Route>, Error> {
        let query = Message::GetRoute(RouteMessage::default());
        let replies = conn::request(&self.handle, query, NLM_F_DUMP, "list routes", "all").await?;
        let routes = replies.iter().filter_map(|reply| match reply {
            Message::NewRoute(message) => decode::route(message),
            _ => None,
        });
        Ok(routes.collect())
    }

    async fn add_route(&self, route: &Route) -> Result<(), Error> {
        let message = Message::NewRoute(encode::route(route));
        let flags = NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL;
        conn::request(&self.handle, message, flags, "add a route", &describe(route)).await.map(drop)
    }

    async fn add_route_beside(&self, route: &Route) -> Result<(), Error> {
        let message = Message::NewRoute(encode::route(route));
        let flags = NLM_F_ACK | NLM_F_CREATE;
        conn::request(&self.handle, message, flags, "add a route", &describe(route)).await.map(drop)
    }

    async fn del_route(&self, route: &Route) -> Result<(), Error> {
        let message = Message::DelRoute(encode::route(route));
        conn::request(&self.handle, message, NLM_F_ACK, "delete a route", &describe(route)).await.map(drop)
    }

    async fn write_sysctls(&self, sysctls: &[Sysctl]) -> Result<(), Error> {
        write_sysctls(&self.netns, sysctls)
    }

    async fn subscribe(&self) -> Result<(), Error> {
        let mut events = self.events.lock().await;
        if events.is_none() {
            *events = Some(conn::open_events(&self.netns)?);
        }
        Ok(())
    }

    async fn link_event(&self, within: Duration) -> Result<bool, Error> {
        self.subscribe().await?;
        let mut events = self.events.lock().await;
        let Some((stream, _)) = events.as_mut() else { return Ok(false) };
        match tokio::time::timeout(within, stream.next()).await {
            Ok(Some(_)) => {
                // Several events of one change need only one look at the state.
                while let Some(Some(_)) = stream.next().now_or_never() {}
                Ok(true)
            }
            Ok(None) => Err(self.events_ended()),
            Err(_) => Ok(false),
        }
    }
}

fn what_is_set(changes: &[LinkChange]) -> String {
    let what: Vec<&str> = changes.iter().map(LinkChange::what).collect();
    format!("set {}", what.join(", "))
}

fn describe(route: &Route) -> String {
    use std::fmt::Write as _;
    let mut text = route.dst.to_string();
    if let Some(gateway) = route.gateway {
        let _ = write!(text, " via {gateway}");
    }
    if let Some(oif) = route.oif {
        let _ = write!(text, " on link {oif}");
    }
    if let Some(priority) = route.priority {
        let _ = write!(text, " metric {priority}");
    }
    if route.table != crate::MAIN_TABLE {
        let _ = write!(text, " table {}", route.table);
    }
    text
}

/// An attribute list that holds only what the caller gave; kept here for the encoders.
fn link_message(index: u32, attributes: Vec<LinkAttribute>) -> LinkMessage {
    let mut message = LinkUnspec::new_with_index(index).build();
    message.attributes = attributes;
    message
}
