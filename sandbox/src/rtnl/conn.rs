//! Sockets, and one exchange on them.

use std::time::Duration;

use futures_util::StreamExt;
use netlink_packet_core::{ErrorMessage, NLM_F_DUMP, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload, NlasIterator};
use netlink_packet_route::RouteNetlinkMessage as Message;
use rtnetlink::MulticastGroup;
use rtnetlink::sys::AsyncSocket;

use super::{Events, decode};
use crate::{Error, Netns, raw};

/// A kernel that does not answer within this time has lost the request or the answer; RTNL is never held that long.
const PATIENCE: Duration = Duration::from_secs(30);
/// `NLMSGERR_ATTR_MSG`: the text of an extended acknowledgement.
const EXT_ACK_TEXT: u16 = 1;

/// A task that drives a socket, ended when dropped. An open socket keeps its namespace alive, and a VF inside does not
/// come back to the host before the last one is closed.
pub(super) struct Task(tokio::task::AbortHandle);

impl Task {
    pub(super) fn spawn(connection: impl Future<Output = ()> + Send + 'static) -> Self {
        Self(tokio::spawn(connection).abort_handle())
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Opens a request socket inside the namespace; gives the namespace with its cookie, which the socket tells.
pub(super) fn open(netns: &Netns) -> Result<(rtnetlink::Handle, Task, Netns), Error> {
    let (mut connection, handle, _) = inside(netns, rtnetlink::new_connection)?;
    let socket = connection.socket_mut().socket_mut();
    // Both are a bonus: strict checking came with 4.20, extended acknowledgements with 4.12.
    if let Err(error) = socket.set_netlink_get_strict_chk(true) {
        tracing::debug!(%error, "no strict checking of dumps");
    }
    if let Err(error) = socket.set_ext_ack(true) {
        tracing::debug!(%error, "no extended acknowledgements");
    }
    let cookie = raw::netns_cookie(socket).map_err(|source| Error::Socket { step: "identify", source })?;
    Ok((handle, Task::spawn(connection), netns.with_cookie(cookie)))
}

/// Opens a socket that receives the link events of the namespace.
pub(super) fn open_events(netns: &Netns) -> Result<(Events, Task), Error> {
    let (connection, _, events) = inside(netns, || rtnetlink::new_multicast_connection(&[MulticastGroup::Link]))?;
    let events = events.map(|(message, _)| match message.payload {
        NetlinkPayload::InnerMessage(Message::NewLink(message)) => {
            let link = decode::link(&message);
            Some((link.index, link.carrier))
        }
        _ => None,
    });
    Ok((Box::pin(events), Task::spawn(connection)))
}

/// Makes a socket on a thread inside the namespace; the runtime that will drive it is the caller's.
pub(super) fn inside<T: Send>(netns: &Netns, make: impl FnOnce() -> std::io::Result<T> + Send) -> Result<T, Error> {
    let step = "open a netlink socket";
    let runtime = tokio::runtime::Handle::try_current()
        .map_err(|error| Error::Socket { step, source: std::io::Error::other(error) })?;
    netns.run(step, || {
        let _guard = runtime.enter();
        make().map_err(|source| Error::Socket { step: "open", source })
    })
}

/// Sends one message and collects the answers. A dump that the kernel marks as inconsistent is asked for again.
pub(super) async fn request(
    handle: &rtnetlink::Handle,
    message: Message,
    flags: u16,
    step: &str,
    object: &str,
) -> Result<Vec<Message>, Error> {
    const ATTEMPTS: u32 = 5;
    let answer = |what: String| Error::Answer { step: step.to_owned(), object: object.to_owned(), what };
    for _ in 0..ATTEMPTS {
        let mut request = NetlinkMessage::from(message.clone());
        request.header.flags = NLM_F_REQUEST | flags;
        let exchange = exchange(handle, request);
        let replies = tokio::time::timeout(PATIENCE, exchange)
            .await
            .map_err(|_| answer(format!("nothing came within {} s", PATIENCE.as_secs())))?
            .map_err(|error| answer(error.to_string()))?;
        let interrupted = flags & NLM_F_DUMP == NLM_F_DUMP
            && replies.iter().any(|reply| reply.header.flags & netlink_packet_core::NLM_F_DUMP_INTR != 0);
        if interrupted {
            continue;
        }
        let mut messages = Vec::with_capacity(replies.len());
        for reply in replies {
            match reply.payload {
                NetlinkPayload::InnerMessage(message) => messages.push(message),
                NetlinkPayload::Error(error) if error.code.is_some() => return Err(refusal(&error, step, object)),
                NetlinkPayload::Overrun(_) => return Err(answer("the receive buffer overran".to_owned())),
                _ => {}
            }
        }
        return Ok(messages);
    }
    Err(answer(format!("the state changed during each of {ATTEMPTS} dumps")))
}

async fn exchange(
    handle: &rtnetlink::Handle,
    request: NetlinkMessage<Message>,
) -> Result<Vec<NetlinkMessage<Message>>, rtnetlink::Error> {
    Ok(handle.clone().request(request)?.collect().await)
}

/// The kernel's error with its text.
pub(super) fn refusal(error: &ErrorMessage, step: &str, object: &str) -> Error {
    Error::Kernel {
        step: step.to_owned(),
        object: object.to_owned(),
        source: error.to_io(),
        detail: ext_ack_text(&error.header),
    }
}

/// The text behind the echo of the request (linux/netlink.h: struct nlmsgerr, then the request, then attributes).
fn ext_ack_text(echo: &[u8]) -> Option<String> {
    let length = u32::from_ne_bytes(echo.get(..4)?.try_into().ok()?);
    let start = usize::try_from(length).ok()?.next_multiple_of(4);
    NlasIterator::new(echo.get(start..)?)
        .flatten()
        .find(|attribute| attribute.kind() == EXT_ACK_TEXT)
        .map(|attribute| String::from_utf8_lossy(attribute.value()).trim_end_matches('\0').to_owned())
}
