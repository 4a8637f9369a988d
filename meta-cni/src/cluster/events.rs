//! Events of one ADD on their way to the API server: posted while the rest of the call goes on, and what is not acknowledged
//! when the reply is ready handed to a process of its own. The reply waits for that no longer than `REPLY_DELAY`.

use std::{
    collections::VecDeque,
    fs::File,
    io::{self, Seek as _},
    mem,
    os::unix::process::CommandExt as _,
    path::PathBuf,
    process::Stdio,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use nix::sys::memfd::{MFdFlags, memfd_create};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::{
    process::Command,
    task::JoinHandle,
    time::{Instant, timeout, timeout_at},
};

use super::{
    Cluster, Pod,
    api_server::{ApiServer, Posted, back_off},
    event::{Event, Reason, Subject},
};
use crate::{
    cni::{Error, Object},
    log::LogSettings,
    node::Sources,
    pod::PodName,
    settings::{EventLevel, Settings},
};

/// The command by which we hand events to a process of our own.
pub(crate) const POST_COMMAND: &str = "post-events";
/// How much later the reply may be because of events...
const REPLY_DELAY: Duration = Duration::from_millis(50);
/// ...and what of that is kept for starting the other process.
const HANDING_OVER: Duration = Duration::from_millis(10);
/// How long that process tries, and how long one try may take: a connection may lead nowhere.
const LIFE: Duration = Duration::from_secs(10);
const TRY: Duration = Duration::from_secs(4);
/// After which time it tries again: the first time, and at most.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// The most events of one call: an annotation may name thousands of networks, and the server is everybody's.
const MOST: usize = 64;

/// The events of one call.
#[derive(Debug, Clone)]
pub struct Events(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    level: EventLevel,
    /// Where they are posted; without one they are logged.
    server: Option<Arc<ApiServer>>,
    /// `nodeName` and `nodeFile`...
    node_sources: (String, PathBuf),
    /// ...and what they say, if it was asked for.
    node: OnceLock<String>,
    settings: HandedSettings,
    subject: OnceLock<Subject>,
    queue: Arc<Queue>,
    posting: Mutex<Option<JoinHandle<()>>>,
}

/// What is not acknowledged yet, in order.
#[derive(Debug, Default)]
struct Queue(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<Value>,
    /// How many there were in all.
    count: usize,
    /// The server takes none from us.
    closed: bool,
    /// It asked not to be sent any before.
    not_before: Option<Instant>,
}

/// What the process that events are handed to reads on its stdin.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Handed {
    #[serde(flatten)]
    settings: HandedSettings,
    /// For how long the server wants to be left alone.
    #[serde(default)]
    wait_ms: u64,
    events: Vec<Value>,
}

/// What it has to know of our configuration.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct HandedSettings {
    kubeconfig: PathBuf,
    /// The keys that say where to log.
    log: Value,
}

impl Events {
    /// For one call: nothing is opened yet.
    #[must_use]
    pub fn of(settings: &Settings, cluster: &Cluster) -> Self {
        let server = match cluster {
            Cluster::ApiServer(server) => Some(Arc::clone(server)),
            Cluster::Manifests(_) | Cluster::None => None,
        };
        Self(Arc::new(Inner {
            level: settings.events,
            server,
            node_sources: (settings.node_name.clone(), settings.node_file.clone()),
            node: OnceLock::new(),
            settings: HandedSettings {
                kubeconfig: settings.kubeconfig.clone().unwrap_or_default(),
                log: settings.log.to_keys(),
            },
            subject: OnceLock::new(),
            queue: Arc::default(),
            posting: Mutex::default(),
        }))
    }

    /// Says which pod they are about, and what names this try of it (container, namespace). Before that, and for a call
    /// without a pod, nothing is posted.
    pub fn about(&self, pod: Option<&PodName>, known: &Pod, of_this_try: [&str; 2]) {
        if let Some(pod) = pod.filter(|_| self.0.level != EventLevel::Off) {
            // A second word on the same call would be about the same pod.
            let _ = self.0.subject.set(Subject::new(pod, known, of_this_try));
        }
    }

    /// Begins to post events, as far as they are wanted. Does not wait.
    pub fn raise(&self, events: impl IntoIterator<Item = Event>) {
        let level = self.0.level;
        let wanted = |event: &Event| match event.reason {
            Reason::AddedInterface => level == EventLevel::All,
            Reason::NoNetworkFound | Reason::AttachmentRefused | Reason::CapabilityNotServed => {
                level != EventLevel::Off
            }
        };
        let Some(subject) = self.0.subject.get() else { return };
        for event in events.into_iter().filter(wanted) {
            let Some(server) = &self.0.server else {
                log(&event);
                continue;
            };
            let (name, file) = &self.0.node_sources;
            let node = self.0.node.get_or_init(|| Sources::with(name, file).name().unwrap_or_default());
            self.0.queue.push(subject.object(&event, node));
            let mut posting = self.0.posting.lock().unwrap_or_else(PoisonError::into_inner);
            if posting.as_ref().is_none_or(JoinHandle::is_finished) {
                *posting = Some(tokio::spawn(post(Arc::clone(server), Arc::clone(&self.0.queue))));
            }
        }
    }

    /// Waits for the server's word, and hands what is left then to a process of its own, which nobody waits for: within
    /// `REPLY_DELAY`. This is the last thing before the reply is printed, and not done after it, because a runtime reads a
    /// plugin's reply when the plugin has ended: what would come after the print would delay it as well. The sandbox's lock
    /// must be given up before, since its descriptor would be inherited.
    pub async fn finish(&self) {
        let posting = self.0.posting.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(mut posting) = posting else { return };
        if timeout(REPLY_DELAY - HANDING_OVER, &mut posting).await.is_err() {
            posting.abort();
        }
        let wait = self.0.queue.wait();
        let events: Vec<Value> = mem::take(&mut self.0.queue.lock().waiting).into();
        if events.is_empty() {
            return;
        }
        let count = events.len();
        let wait_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
        let handed = Handed { settings: self.0.settings.clone(), wait_ms, events };
        match hand_over(&handed) {
            Ok(()) => tracing::info!(count, "events are posted by a process of their own"),
            Err(error) => tracing::warn!(count, %error, "events are lost: no process could be started for them"),
        }
    }
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, event: Value) {
        let mut state = self.lock();
        state.count += 1;
        if state.count == MOST + 1 {
            tracing::warn!("a pod gets no more than {MOST} events of a call");
        }
        if state.count <= MOST && !state.closed {
            state.waiting.push_back(event);
        }
    }

    fn first(&self) -> Option<Value> {
        self.lock().waiting.front().cloned()
    }

    /// For how long the server wants to be left alone.
    fn wait(&self) -> Duration {
        self.lock().not_before.map(|moment| moment.saturating_duration_since(Instant::now())).unwrap_or_default()
    }

    fn pop(&self) {
        self.lock().waiting.pop_front();
    }

    /// Gives up what is there and what comes.
    fn close(&self) {
        let mut state = self.lock();
        state.waiting.clear();
        state.closed = true;
    }
}

/// Posts what is in the queue, one after another over one connection, until something has to be tried again.
async fn post(server: Arc<ApiServer>, queue: Arc<Queue>) {
    while queue.wait().is_zero()
        && let Some(event) = queue.first()
    {
        if let Err((error, asks)) = post_first(&server, &queue, &event).await {
            tracing::info!(%error, "an event is tried again");
            queue.lock().not_before = Some(Instant::now() + asks);
            return;
        }
    }
}

/// Posts the first of the queue, which leaves it if there is no use in trying again.
///
/// # Errors
/// What may pass, with the time for which the server wants to be left alone.
async fn post_first(server: &ApiServer, queue: &Queue, event: &Value) -> Result<(), (Error, Duration)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let metadata = &event["metadata"];
    let posted = server.create_event(&text(&metadata["namespace"]), &text(&metadata["name"]), event).await;
    match posted {
        Posted::Done => queue.pop(),
        Posted::Refused(error) => {
            tracing::warn!(%error, "an event is not posted");
            queue.pop();
        }
        Posted::NoneAllowed(error) => {
            tracing::warn!(%error, "no event is posted");
            queue.close();
        }
        Posted::Later(error, asks) => return Err((error, asks)),
    }
    Ok(())
}

/// Starts the process, with the events on its stdin: a file in memory, so that no size makes the start wait. It is in a process
/// group of its own from the first, so that what ends ours does not end it; the session comes later (see `cli::post_events`).
fn hand_over(handed: &Handed) -> io::Result<()> {
    let mut input = File::from(memfd_create(c"events", MFdFlags::MFD_CLOEXEC)?);
    serde_json::to_writer(&input, handed)?;
    input.rewind()?;
    let mut command = post_command();
    command.stdin(input).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
    // Nobody waits for it: it is init's when we have ended, which is now.
    Command::from(command).spawn().map(drop)
}

/// Our own program, also if its file was replaced meanwhile, as the process that posts events.
pub(crate) fn post_command() -> std::process::Command {
    let mut command = std::process::Command::new("/proc/self/exe");
    command.arg0("meta-cni").arg(POST_COMMAND).env_clear().current_dir("/");
    command
}

impl Handed {
    /// Reads what `hand_over` wrote.
    ///
    /// # Errors
    /// What the parser says.
    pub(crate) fn read(text: &str) -> serde_json::Result<Self> {
        serde_json::from_str(text)
    }

    /// The settings that say where to log: to a file alone, since nobody reads our stderr.
    #[must_use]
    pub(crate) fn log_settings(&self) -> LogSettings {
        let keys = Object::parse("the keys of the log", self.settings.log.to_string().as_bytes());
        LogSettings::at_best(&keys.unwrap_or_default())
    }

    /// Posts the events, and tries again what may pass, for `LIFE` in all. What fails for good is in the log.
    pub(crate) async fn post(self) {
        let end = Instant::now() + LIFE;
        let server = ApiServer::new(&self.settings.kubeconfig, end);
        let wait = Some(Duration::from_millis(self.wait_ms)).filter(|wait| !wait.is_zero());
        let queue = Queue(Mutex::new(State { waiting: self.events.into(), ..State::default() }));
        let mut pause = FIRST_PAUSE;
        let mut failed = wait.map(|wait| ("the API server is busy".to_owned(), wait));
        while let Some(event) = queue.first() {
            if let Some((problem, asks)) = failed.take() {
                if asks + pause >= end.saturating_duration_since(Instant::now()) {
                    let lost = queue.lock().waiting.len();
                    tracing::warn!(lost, problem, "events are lost");
                    return;
                }
                back_off(asks, pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
            failed = match timeout_at(end.min(Instant::now() + TRY), post_first(&server, &queue, &event)).await {
                Ok(Ok(())) => None,
                Ok(Err((error, asks))) => Some((error.to_string(), asks)),
                Err(_) => Some(("the API server did not answer in time".to_owned(), Duration::ZERO)),
            };
        }
    }
}

/// An event where there is no API server.
fn log(event: &Event) {
    let (reason, message) = (event.reason.as_str(), &event.message);
    if event.reason.is_normal() {
        tracing::info!(reason, "{message}");
    } else {
        tracing::warn!(reason, "{message}");
    }
}
