//! kubelet's pod-resources service (v1) on its socket, with answers that a test chooses. The messages have all their
//! fields, more than we read.

use std::{
    collections::VecDeque,
    fs,
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    thread::{self, JoinHandle},
};

use http::{HeaderMap, Response};
use prost::{Message as _, bytes::Bytes};
use tokio::io::AsyncReadExt as _;

pub const SOCKET: &str = "/var/lib/kubelet/pod-resources/kubelet.sock";

#[derive(Clone, PartialEq, prost::Message)]
pub struct ListResponse {
    #[prost(message, repeated, tag = "1")]
    pub pods: Vec<PodResources>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct GetRequest {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(string, tag = "2")]
    pub namespace: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct GetResponse {
    #[prost(message, optional, tag = "1")]
    pub pod: Option<PodResources>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct PodResources {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(string, tag = "2")]
    pub namespace: String,
    #[prost(message, repeated, tag = "3")]
    pub containers: Vec<ContainerResources>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct ContainerResources {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(message, repeated, tag = "2")]
    pub devices: Vec<ContainerDevices>,
    #[prost(int64, repeated, tag = "3")]
    pub cpu_ids: Vec<i64>,
    #[prost(message, repeated, tag = "4")]
    pub memory: Vec<ContainerMemory>,
    #[prost(message, repeated, tag = "5")]
    pub dynamic_resources: Vec<DynamicResource>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct ContainerDevices {
    #[prost(string, tag = "1")]
    pub resource: String,
    #[prost(string, repeated, tag = "2")]
    pub ids: Vec<String>,
    #[prost(message, optional, tag = "3")]
    pub topology: Option<Topology>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct ContainerMemory {
    #[prost(string, tag = "1")]
    pub kind: String,
    #[prost(uint64, tag = "2")]
    pub size: u64,
    #[prost(message, optional, tag = "3")]
    pub topology: Option<Topology>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Topology {
    #[prost(message, repeated, tag = "1")]
    pub nodes: Vec<NumaNode>,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct NumaNode {
    #[prost(int64, tag = "1")]
    pub id: i64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct DynamicResource {
    #[prost(string, tag = "2")]
    pub claim_name: String,
    #[prost(string, tag = "3")]
    pub claim_namespace: String,
    #[prost(message, repeated, tag = "4")]
    pub resources: Vec<ClaimResource>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct ClaimResource {
    #[prost(message, repeated, tag = "1")]
    pub cdi_devices: Vec<CdiDevice>,
    #[prost(string, tag = "2")]
    pub driver: String,
    #[prost(string, tag = "3")]
    pub pool: String,
    #[prost(string, tag = "4")]
    pub device: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct CdiDevice {
    #[prost(string, tag = "1")]
    pub name: String,
}

impl PodResources {
    /// A pod in "default" whose containers have devices: pairs of resource and IDs.
    pub fn new(name: &str, containers: &[&[(&str, &[&str])]]) -> Self {
        let given = |(resource, ids): &(&str, &[&str])| ContainerDevices {
            resource: (*resource).to_owned(),
            ids: ids.iter().map(|id| (*id).to_owned()).collect(),
            topology: Some(Topology { nodes: vec![NumaNode { id: 1 }] }),
        };
        let container = |(at, devices): (usize, &&[(&str, &[&str])])| ContainerResources {
            name: format!("c{at}"),
            devices: devices.iter().map(given).collect(),
            ..ContainerResources::default()
        };
        Self {
            name: name.to_owned(),
            namespace: "default".to_owned(),
            containers: containers.iter().enumerate().map(container).collect(),
        }
    }
}

/// What a call is answered with.
#[derive(Clone)]
pub enum Answer {
    /// A message.
    Message(Vec<u8>),
    /// A gRPC status: its code and text.
    Status(u16, &'static str),
    /// Nothing, ever.
    Nothing,
    /// The connection ends.
    HangsUp,
}

impl Answer {
    /// To Get.
    pub fn pod(pod: PodResources) -> Self {
        Self::Message(GetResponse { pod: Some(pod) }.encode_to_vec())
    }

    /// To List.
    pub fn pods(pods: Vec<PodResources>) -> Self {
        Self::Message(ListResponse { pods }.encode_to_vec())
    }
}

/// What was asked so far, and what is answered next.
#[derive(Default)]
struct Script {
    asked: Vec<String>,
    answers: VecDeque<Answer>,
}

/// A kubelet that serves until it is dropped. Its socket stays, as after a crash.
pub struct Kubelet {
    script: Arc<Mutex<Script>>,
    life: Option<UnixStream>,
    thread: Option<JoinHandle<()>>,
}

impl Kubelet {
    /// Serves these answers, one after the other, and the last one for ever.
    pub fn serve(answers: impl IntoIterator<Item = Answer>) -> Self {
        fs::create_dir_all(Path::new(SOCKET).parent().expect("a directory")).expect("kubelet's directory");
        let _ = fs::remove_file(SOCKET);
        let listener = UnixListener::bind(PathBuf::from(SOCKET)).expect("kubelet's socket");
        let script = Arc::new(Mutex::new(Script { asked: Vec::new(), answers: answers.into_iter().collect() }));
        let (life, end) = UnixStream::pair().expect("a pair of sockets");
        let shared = Arc::clone(&script);
        let thread = thread::spawn(move || serve(listener, end, &shared));
        Self { script, life: Some(life), thread: Some(thread) }
    }

    /// What was asked since the last time: `List`, or `Get NAMESPACE/NAME`.
    pub fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.script.lock().expect("not poisoned").asked)
    }
}

impl Drop for Kubelet {
    fn drop(&mut self) {
        drop(self.life.take());
        drop(self.thread.take().map(JoinHandle::join));
    }
}

fn serve(listener: UnixListener, end: UnixStream, script: &Arc<Mutex<Script>>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        for socket in [listener.set_nonblocking(true), end.set_nonblocking(true)] {
            socket.expect("a socket that does not block");
        }
        let listener = tokio::net::UnixListener::from_std(listener).expect("the listener");
        let mut end = tokio::net::UnixStream::from_std(end).expect("the end");
        loop {
            tokio::select! {
                accepted = listener.accept() => {
                    let (stream, _) = accepted.expect("a connection");
                    tokio::spawn(connection(stream, Arc::clone(script)));
                }
                _ = end.read_u8() => return,
            }
        }
    });
}

async fn connection(stream: tokio::net::UnixStream, script: Arc<Mutex<Script>>) {
    let Ok(mut connection) = h2::server::handshake(stream).await else { return };
    let mut silent = Vec::new();
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        let method = request.uri().path().trim_start_matches("/v1.PodResourcesLister/").to_owned();
        let mut body = request.into_body();
        let script = Arc::clone(&script);
        // The connection has to be driven while the request is read: the request is small and comes with its headers.
        let read = async {
            let mut bytes = Vec::new();
            while let Some(Ok(part)) = body.data().await {
                let _ = body.flow_control().release_capacity(part.len());
                bytes.extend_from_slice(&part);
            }
            bytes
        };
        let bytes = tokio::select! {
            bytes = read => bytes,
            _ = std::future::poll_fn(|context| connection.poll_closed(context)) => return,
        };
        let answer = next_answer(&script, &method, &bytes);
        match answer {
            Answer::HangsUp => return,
            Answer::Nothing => silent.push(respond),
            Answer::Message(message) => {
                let mut stream = respond.send_response(headers(), false).expect("headers");
                let mut framed = vec![0];
                framed.extend_from_slice(&u32::try_from(message.len()).expect("a short message").to_be_bytes());
                framed.extend_from_slice(&message);
                stream.send_data(Bytes::from(framed), false).expect("a message");
                stream.send_trailers(status(0, "")).expect("trailers");
            }
            Answer::Status(code, text) => {
                let mut stream = respond.send_response(headers(), false).expect("headers");
                stream.send_trailers(status(code, text)).expect("trailers");
            }
        }
    }
}

fn next_answer(script: &Mutex<Script>, method: &str, body: &[u8]) -> Answer {
    let mut script = script.lock().expect("not poisoned");
    let asked = match method {
        "Get" => {
            let request = GetRequest::decode(body.get(5..).unwrap_or_default()).expect("a request");
            format!("Get {}/{}", request.namespace, request.name)
        }
        other => other.to_owned(),
    };
    script.asked.push(asked);
    match script.answers.len() {
        0 | 1 => script.answers.front().cloned().expect("an answer"),
        _ => script.answers.pop_front().expect("an answer"),
    }
}

fn headers() -> Response<()> {
    Response::builder().header("content-type", "application/grpc").body(()).expect("headers")
}

fn status(code: u16, text: &'static str) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", code.into());
    trailers.insert("grpc-message", text.parse().expect("text"));
    trailers
}
