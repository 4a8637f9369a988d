//! What stands between the node and the API server: it passes on, passes answers on late, or is not there.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

/// How late a slow server's answers are.
pub(crate) const DELAY: Duration = Duration::from_millis(300);

/// A server's place: its port stays when it is down.
pub(crate) struct Proxy {
    port: u16,
    server: SocketAddr,
    shared: Arc<Shared>,
    listening: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    slow: AtomicBool,
    down: AtomicBool,
    connections: AtomicUsize,
}

impl Proxy {
    /// One before a server, which is up.
    pub(crate) fn before(server: SocketAddr) -> Self {
        let mut proxy = Self { port: 0, server, shared: Arc::default(), listening: None };
        proxy.is("up");
        proxy
    }

    /// Its URL.
    pub(crate) fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.port)
    }

    /// The server is `up`, `slow`, or `down`: then connections are refused.
    pub(crate) fn is(&mut self, state: &str) {
        self.shared.slow.store(state == "slow", Ordering::Relaxed);
        self.shared.down.store(state == "down", Ordering::Relaxed);
        match (state, self.listening.take()) {
            ("down", Some(listening)) => {
                // It looks up when somebody comes.
                drop(TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)));
                listening.join().unwrap();
            }
            ("up" | "slow", None) => {
                let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, self.port)).unwrap();
                self.port = listener.local_addr().unwrap().port();
                let (shared, server) = (Arc::clone(&self.shared), self.server);
                self.listening = Some(thread::spawn(move || listen(&listener, server, &shared)));
            }
            ("up" | "slow" | "down", listening) => self.listening = listening,
            _ => panic!("a server cannot be {state}"),
        }
    }

    /// How many connections came since this was last asked.
    pub(crate) fn take_connections(&self) -> usize {
        self.shared.connections.swap(0, Ordering::Relaxed)
    }
}

fn listen(listener: &TcpListener, server: SocketAddr, shared: &Arc<Shared>) {
    for client in listener.incoming() {
        if shared.down.load(Ordering::Relaxed) {
            return;
        }
        let client = client.unwrap();
        shared.connections.fetch_add(1, Ordering::Relaxed);
        let upstream = TcpStream::connect(server).unwrap();
        for end in [&client, &upstream] {
            end.set_nodelay(true).unwrap();
        }
        let (questions, answers) = (client.try_clone().unwrap(), upstream.try_clone().unwrap());
        thread::spawn(move || pass(questions, upstream, None));
        let shared = Arc::clone(shared);
        thread::spawn(move || pass(answers, client, Some(&shared)));
    }
}

/// Passes on what comes, answers late if the server is slow, until an end closes.
fn pass(mut from: TcpStream, mut to: TcpStream, late: Option<&Shared>) {
    let mut buffer = vec![0; 65536];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        if late.is_some_and(|shared| shared.slow.load(Ordering::Relaxed)) {
            thread::sleep(DELAY);
        }
        if to.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
}
