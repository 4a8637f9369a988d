//! Sockets, and one exchange on them.

use std::time::Duration;

use futures_util::StreamExt;
use netlink_packet_core::{
    DecodeError, ErrorMessage, NLM_F_DUMP, NLM_F_REQUEST, NetlinkDeserializable, NetlinkHeader, NetlinkMessage,
    NetlinkPayload, NetlinkSerializable, NlasIterator,
};
use netlink_packet_route::RouteNetlinkMessage as Message;
use rtnetlink::MulticastGroup;
use rtnetlink::proto::ConnectionHandle;
use rtnetlink::sys::protocols::NETLINK_ROUTE;
use rtnetlink::sys::{AsyncSocket, SocketAddr};

use super::{Events, decode};
use crate::{Error, Netns, raw};

/// A kernel that does not answer within this time has lost the request or the answer; RTNL is never held that long.
const PATIENCE: Duration = Duration::from_secs(30);
/// `NLMSGERR_ATTR_MSG`: the text of an extended acknowledgement.
const EXT_ACK_TEXT: u16 = 1;

/// A message as bytes: the packet crate's own form of a link has no place for what a driver does not report about a VF
/// (see `pf`), and one socket serves both.
#[derive(Debug, Clone)]
pub(super) struct Wire {
    kind: u16,
    body: Vec<u8>,
}

impl Wire {
    fn of(message: &Message) -> Self {
        let mut body = vec![0; message.buffer_len()];
        message.serialize(&mut body);
        Self { kind: message.message_type(), body }
    }
}

impl NetlinkSerializable for Wire {
    fn message_type(&self) -> u16 {
        self.kind
    }

    fn buffer_len(&self) -> usize {
        self.body.len()
    }

    fn serialize(&self, buffer: &mut [u8]) {
        buffer.copy_from_slice(&self.body);
    }
}

impl NetlinkDeserializable for Wire {
    type Error = DecodeError;

    fn deserialize(header: &NetlinkHeader, payload: &[u8]) -> Result<Self, DecodeError> {
        Ok(Self { kind: header.message_type, body: payload.to_vec() })
    }
}

impl From<Wire> for NetlinkPayload<Wire> {
    fn from(message: Wire) -> Self {
        NetlinkPayload::InnerMessage(message)
    }
}

/// An answer as it came.
pub(super) struct Reply {
    pub(super) header: NetlinkHeader,
    pub(super) body: Vec<u8>,
}

/// The way to a socket that a [`Task`] drives.
pub(super) type Handle = ConnectionHandle<Wire>;

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
pub(super) fn open(netns: &Netns) -> Result<(Handle, Task, Netns), Error> {
    let (mut connection, handle, _) = inside(netns, || rtnetlink::proto::new_connection::<Wire>(NETLINK_ROUTE))?;
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
fn inside<T: Send>(netns: &Netns, make: impl FnOnce() -> std::io::Result<T> + Send) -> Result<T, Error> {
    let step = "open a netlink socket";
    let runtime = tokio::runtime::Handle::try_current()
        .map_err(|error| Error::Socket { step, source: std::io::Error::other(error) })?;
    netns.run(step, || {
        let _guard = runtime.enter();
        make().map_err(|source| Error::Socket { step: "open", source })
    })
}

/// Sends one message and collects the answers.
pub(super) async fn request(
    handle: &Handle,
    message: Message,
    flags: u16,
    step: &str,
    object: &str,
) -> Result<Vec<Message>, Error> {
    let answer = |what: String| Error::Answer { step: step.to_owned(), object: object.to_owned(), what };
    let replies = request_raw(handle, &message, flags, step, object).await?;
    let read = |Reply { header, body }: Reply| Message::deserialize(&header, &body);
    replies.into_iter().map(read).collect::<Result<_, _>>().map_err(|error| answer(error.to_string()))
}

/// Sends one message and collects the answers as they are. A dump that the kernel marks as inconsistent is asked for
/// again.
pub(super) async fn request_raw(
    handle: &Handle,
    message: &Message,
    flags: u16,
    step: &str,
    object: &str,
) -> Result<Vec<Reply>, Error> {
    const ATTEMPTS: u32 = 5;
    let answer = |what: String| Error::Answer { step: step.to_owned(), object: object.to_owned(), what };
    for _ in 0..ATTEMPTS {
        let mut request = NetlinkMessage::from(Wire::of(message));
        request.header.flags = NLM_F_REQUEST | flags;
        let stream = handle.request(request, SocketAddr::new(0, 0)).map_err(|error| answer(error.to_string()))?;
        let replies: Vec<NetlinkMessage<Wire>> = tokio::time::timeout(PATIENCE, stream.collect())
            .await
            .map_err(|_| answer(format!("nothing came within {} s", PATIENCE.as_secs())))?;
        let interrupted = flags & NLM_F_DUMP == NLM_F_DUMP
            && replies.iter().any(|reply| reply.header.flags & netlink_packet_core::NLM_F_DUMP_INTR != 0);
        if interrupted {
            continue;
        }
        let mut found = Vec::with_capacity(replies.len());
        for reply in replies {
            match reply.payload {
                NetlinkPayload::InnerMessage(Wire { body, .. }) => found.push(Reply { header: reply.header, body }),
                NetlinkPayload::Error(error) if error.code.is_some() => return Err(refusal(&error, step, object)),
                NetlinkPayload::Overrun(_) => return Err(answer("the receive buffer overran".to_owned())),
                _ => {}
            }
        }
        return Ok(found);
    }
    Err(answer(format!("the state changed during each of {ATTEMPTS} dumps")))
}

/// The kernel's error with its text.
fn refusal(error: &ErrorMessage, step: &str, object: &str) -> Error {
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
