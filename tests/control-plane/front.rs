//! A front before the API server, as a load balancer stands before one: it hands requests on and writes them down, and
//! answers the next ones by itself where a test wants to see a server in trouble.

use std::{
    collections::VecDeque,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    os::fd::AsFd as _,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use kube::{
    Client, Config,
    client::Body,
    config::{KubeConfigOptions, Kubeconfig},
};
use nix::sys::socket::{setsockopt, sockopt};
use serde_json::Value;

use crate::bed::Bed;

/// What becomes of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    /// It never reaches the server: a code, and after how many seconds to come back.
    Code(u16, Option<u64>),
    /// The server does it, and the connection is reset in the middle of the answer.
    Reset,
    /// The connection is closed before there is an answer.
    Close,
}

#[derive(Default)]
struct Script {
    method: &'static str,
    next: VecDeque<Answer>,
    always: Option<Answer>,
    received: Vec<Received>,
}

/// A request that came.
#[derive(Debug, Clone)]
pub(crate) struct Received {
    pub(crate) at: Instant,
    /// `METHOD PATH`.
    pub(crate) request: String,
    /// With which credentials.
    pub(crate) authorization: String,
}

/// The front. It ends with its value.
pub(crate) struct Front {
    server: String,
    address: std::net::SocketAddr,
    script: Arc<Mutex<Script>>,
    ended: Arc<AtomicBool>,
}

impl Front {
    /// Starts it in this thread's namespace. What it hands on is asked for by the user of deploy/base/rbac.yaml.
    pub(crate) fn start() -> Self {
        let upstream = Bed::service_account();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let front =
            Self { server: format!("http://{address}"), address, script: Arc::default(), ended: Arc::default() };
        let (script, ended) = (front.script.clone(), front.ended.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if ended.load(Ordering::Relaxed) {
                    return;
                }
                let (script, upstream) = (script.clone(), upstream.clone());
                std::thread::spawn(move || serve(stream.unwrap(), &script, &upstream));
            }
        });
        front
    }

    /// A kubeconfig that leads to it. It looks at nobody's credentials.
    pub(crate) fn kubeconfig(&self, user: &Value) -> PathBuf {
        Bed::kubeconfig("front", &self.server, user)
    }

    /// The next requests of a method are answered so; those after them are handed on.
    pub(crate) fn next(&self, method: &'static str, answers: &[Answer]) {
        *self.script.lock().unwrap() = Script { method, next: answers.iter().copied().collect(), ..Script::default() };
    }

    /// All requests of a method are answered so.
    pub(crate) fn always(&self, method: &'static str, answer: Answer) {
        *self.script.lock().unwrap() = Script { method, always: Some(answer), ..Script::default() };
    }

    /// The requests of the chosen method so far.
    pub(crate) fn received(&self) -> Vec<Received> {
        self.script.lock().unwrap().received.clone()
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(self.address);
    }
}

/// A load balancer that does not look into what it carries: it takes connections and, of the first ones, drops as many as
/// a test wants; gives its URL.
pub(crate) fn tunnel(dropped: usize) -> String {
    let server = Bed::server();
    let target = server.strip_prefix("https://").unwrap().to_owned();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("https://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for (number, stream) in listener.incoming().map(Result::unwrap).enumerate() {
            if number < dropped {
                // Once without a word, once by a reset.
                if number % 2 == 1 {
                    reset(&stream);
                }
                continue;
            }
            let onward = TcpStream::connect(&target).unwrap();
            for (mut from, mut to) in [(stream.try_clone().unwrap(), onward.try_clone().unwrap()), (onward, stream)] {
                std::thread::spawn(move || {
                    let _ = std::io::copy(&mut from, &mut to);
                    let _ = to.shutdown(std::net::Shutdown::Write);
                });
            }
        }
    });
    url
}

/// Has a connection end by a reset when it is closed.
fn reset(stream: &TcpStream) {
    let at_once = nix::libc::linger { l_onoff: 1, l_linger: 0 };
    setsockopt(&stream.as_fd(), sockopt::Linger, &at_once).unwrap();
}

/// A request as it was sent.
struct Sent {
    method: String,
    path: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

/// Reads the next request of a connection; nothing at its end.
fn read(reader: &mut BufReader<TcpStream>) -> Option<Sent> {
    let mut line = || {
        let mut line = String::new();
        reader.read_line(&mut line).ok().filter(|length| *length > 0)?;
        Some(line.trim_end().to_owned())
    };
    let first = line()?;
    let mut words = first.split(' ').map(str::to_owned);
    let (method, path) = (words.next()?, words.next()?);
    let mut headers = Vec::new();
    while let Some((key, value)) = line()?.split_once(": ") {
        headers.push((key.to_ascii_lowercase(), value.to_owned()));
    }
    let length = headers.iter().find(|(key, _)| key == "content-length");
    let mut body = vec![0; length.map_or(0, |(_, length)| length.parse().unwrap())];
    reader.read_exact(&mut body).ok()?;
    Some(Sent { method, path, headers, body })
}

fn serve(stream: TcpStream, script: &Mutex<Script>, upstream: &Path) {
    let mut writer = stream.try_clone().unwrap();
    let mut reader = BufReader::new(stream);
    while let Some(sent) = read(&mut reader) {
        let chosen = {
            let mut script = script.lock().unwrap();
            let concerned = sent.method == script.method;
            if concerned {
                let authorization = sent.headers.iter().find(|(key, _)| key == "authorization");
                script.received.push(Received {
                    at: Instant::now(),
                    request: format!("{} {}", sent.method, sent.path),
                    authorization: authorization.map(|(_, value)| value.clone()).unwrap_or_default(),
                });
            }
            script.always.or_else(|| script.next.front().copied()).filter(|_| concerned).inspect(|_| {
                script.next.pop_front();
            })
        };
        let text = |code: u16, more: &str, body: &[u8]| {
            let head = format!("HTTP/1.1 {code} Said\r\n{more}Content-Length: {}\r\n\r\n", body.len());
            [head.as_bytes(), body].concat()
        };
        match chosen {
            None => {
                let (code, body) = hand_on(sent, upstream);
                writer.write_all(&text(code, "Content-Type: application/json\r\n", &body)).unwrap();
            }
            Some(Answer::Code(code, after)) => {
                let more = after.map(|seconds| format!("Retry-After: {seconds}\r\n")).unwrap_or_default();
                // As the server writes it when it has too much to do, and what stands before one: no Status object.
                writer.write_all(&text(code, &more, b"said by the front")).unwrap();
            }
            Some(Answer::Reset) => {
                let (code, body) = hand_on(sent, upstream);
                let whole = text(code, "", &body);
                writer.write_all(&whole[..whole.len() / 2]).unwrap();
                reset(&writer);
                return;
            }
            Some(Answer::Close) => return,
        }
    }
}

/// What the API server answers.
fn hand_on(sent: Sent, upstream: &Path) -> (u16, Vec<u8>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let kubeconfig = Kubeconfig::read_from(upstream).unwrap();
        let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
        let mut request = http::Request::builder().method(sent.method.as_str()).uri(sent.path);
        for (key, value) in sent.headers.iter().filter(|(key, _)| ["accept", "content-type"].contains(&key.as_str())) {
            request = request.header(key, value);
        }
        let request = request.body(Body::from(sent.body)).unwrap();
        let answer = Client::try_from(config).unwrap().send(request).await.unwrap();
        let code = answer.status().as_u16();
        (code, answer.into_body().collect_bytes().await.unwrap().to_vec())
    })
}
