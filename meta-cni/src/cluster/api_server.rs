//! The API requests that we make, but for those of resource claims (`claims`): GET a pod's metadata, GET a definition, PATCH
//! a pod's status, POST an event.

use std::{
    io::ErrorKind,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use http::{Method, Request, StatusCode, header};
use kube::client::Body;
use serde_json::{Value, json};
use tokio::{
    sync::Mutex,
    time::{Instant, timeout_at},
};

use super::{
    Pod, Written,
    connection::{Connection, Unusable, connect, is_io},
};
use crate::{
    cni::{Error, TRACEPARENT, Trace},
    network::{Definition, network_status::STATUS_ANNOTATION},
    pause::jittered,
    pod::PodName,
};

/// Only metadata is sent back: a pod with many containers is tens of KiB.
const METADATA_ONLY: &str = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1";
/// How long a pod is looked for that the server does not know: kubelet may have heard of it from another one, which is
/// ahead. After that it was deleted.
const NEW_POD_PATIENCE: Duration = Duration::from_millis(2500);
/// After which time a request is sent again, the first time, and at most.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// More than any deadline: what a server asks for beyond it makes no difference, and must not be added to a time.
const LONGEST_REQUESTED_PAUSE: Duration = Duration::from_secs(24 * 3600);
/// How long credentials are read anew that are not accepted, or do not belong together: who replaces a certificate and
/// its key does it one after the other, and a token's next one may come with the next pod of an installer. What is wrong by
/// itself, or between us and the server, costs the server nothing to look at again.
const ROTATION_PATIENCE: Duration = Duration::from_secs(2);
const LONGEST_ROTATION_PAUSE: Duration = Duration::from_millis(100);
/// The same for what the server itself refuses. With pauses that go on doubling the last look would be a second early, and
/// what comes then missed: kubelet's next try is 10 to 15 s away.
const LONGEST_REFUSED_PAUSE: Duration = Duration::from_millis(400);

/// How a connection ends that was taken: a load balancer takes it for servers that are just being replaced.
const BROKEN_OFF: [ErrorKind; 4] =
    [ErrorKind::ConnectionReset, ErrorKind::ConnectionAborted, ErrorKind::BrokenPipe, ErrorKind::UnexpectedEof];

/// An API server, reached with the credentials of a kubeconfig. The file, and the files that it names, are read in each
/// process anew, and again when they are not accepted: nothing outlives a rotation.
pub struct ApiServer {
    kubeconfig: PathBuf,
    deadline: Instant,
    /// What the requests are part of.
    pub(super) trace: Trace,
    connection: Mutex<Option<Arc<Connection>>>,
}

impl std::fmt::Debug for ApiServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ApiServer").field("kubeconfig", &self.kubeconfig).finish_non_exhaustive()
    }
}

impl ApiServer {
    pub(super) fn new(kubeconfig: &Path, deadline: Instant) -> Self {
        Self { kubeconfig: kubeconfig.to_owned(), deadline, trace: Trace::None, connection: Mutex::new(None) }
    }

    pub(super) async fn pod(&self, pod: &PodName) -> Result<Pod, Error> {
        let path = format!("/api/v1/namespaces/{}/pods/{}", pod.namespace, pod.name);
        let what = format!("pod {}/{}", pod.namespace, pod.name);
        let patience = Instant::now() + NEW_POD_PATIENCE;
        let mut pause = FIRST_PAUSE;
        loop {
            match self.send(Method::GET, &path, METADATA_ONLY, None).await {
                Ok(object) => return Ok(Pod::from_object(&object)),
                Err(Failure::Status(404, _)) if Instant::now() + pause < patience.min(self.deadline) => {
                    back_off(Duration::ZERO, pause).await;
                    pause *= 2;
                }
                Err(Failure::Status(404, _)) => {
                    return Err(Error::TryLater(format!(
                        "{what} is not known to the API server: it was deleted meanwhile, and nothing is attached for it"
                    )));
                }
                Err(failure) => return Err(failure.into_error("get", &what)),
            }
        }
    }

    pub(super) async fn definition(&self, namespace: &str, name: &str) -> Result<Definition, Error> {
        let path = format!("/apis/k8s.cni.cncf.io/v1/namespaces/{namespace}/network-attachment-definitions/{name}");
        let what = format!("definition {namespace}/{name}");
        match self.send(Method::GET, &path, "application/json", None).await {
            Ok(object) => Ok(Definition::from_object(&object)),
            Err(Failure::Status(404, _)) => Err(Error::Config(format!(
                "there is no {what}: create the NetworkAttachmentDefinition, or correct the pod's annotation"
            ))
            .missing(format!("{namespace}/{name}"))),
            Err(failure) => Err(failure.into_error("get", &what)),
        }
    }

    /// One merge patch. The UID in it is a precondition: for another pod of that name the server answers 422 (the field
    /// is immutable).
    pub(super) async fn write_status(&self, pod: &PodName, uid: Option<&str>, status: &str) -> Result<Written, Error> {
        let mut metadata = json!({"annotations": {STATUS_ANNOTATION: status}});
        if let Some(uid) = uid {
            metadata["uid"] = json!(uid);
        }
        let path = format!("/api/v1/namespaces/{}/pods/{}/status", pod.namespace, pod.name);
        match self.send(Method::PATCH, &path, METADATA_ONLY, Some(json!({"metadata": metadata}))).await {
            Ok(_) => Ok(Written::Done),
            Err(Failure::Status(404, _)) => Ok(Written::PodGone),
            // It names the field that cannot be changed: the pod has another UID by now. There are other reasons for a 422.
            Err(Failure::Status(422, message)) if message.contains("metadata.uid") => Ok(Written::PodGone),
            Err(failure) => {
                Err(failure.into_error("write network-status of", &format!("pod {}/{}", pod.namespace, pod.name)))
            }
        }
    }

    /// Creates an event: one try. Its name says which one it is, so one that is there already came by an earlier try.
    pub(super) async fn create_event(&self, namespace: &str, name: &str, event: &Value) -> Posted {
        let path = format!("/api/v1/namespaces/{namespace}/events");
        let body = event.to_string().into_bytes();
        let (failure, asks) = match self.send_once(&Method::POST, &path, METADATA_ONLY, &body).await {
            Ok(_) => return Posted::Done,
            Err(failed) => failed,
        };
        self.forget_connection_after(&failure).await;
        let what = format!("event {namespace}/{name}");
        match (&failure, failure.passes_with()) {
            (Failure::Status(409, _), _) => Posted::Done,
            (Failure::Status(403, _), _) => Posted::NoneAllowed(failure.into_error("create", &what)),
            (Failure::Away(_) | Failure::Ours(_), _) | (_, Passes::Time | Passes::OtherCredentials) => {
                Posted::Later(failure.into_error("create", &what), asks)
            }
            (_, Passes::Never) => Posted::Refused(failure.into_error("create", &what)),
        }
    }

    /// Sends a request until it is answered: again and again within the deadline while the server is busy or breaks off,
    /// and with credentials that are read anew for a while if these are not accepted.
    pub(super) async fn send(
        &self,
        method: Method,
        path: &str,
        accept: &str,
        patch: Option<Value>,
    ) -> Result<Value, Failure> {
        let body = patch.map(|patch| patch.to_string().into_bytes()).unwrap_or_default();
        let mut pause = FIRST_PAUSE;
        let mut rotation_ends = None;
        loop {
            let (failure, server_asks) = match self.send_once(&method, path, accept, &body).await {
                Ok(value) => return Ok(value),
                Err(failure) => failure,
            };
            let give_up = match failure.passes_with() {
                Passes::Never => return Err(failure),
                Passes::Time => self.deadline,
                Passes::OtherCredentials => {
                    let refused = matches!(failure, Failure::Status(..));
                    pause = pause.min(if refused { LONGEST_REFUSED_PAUSE } else { LONGEST_ROTATION_PAUSE });
                    (*rotation_ends.get_or_insert(Instant::now() + ROTATION_PATIENCE)).min(self.deadline)
                }
            };
            if Instant::now() + server_asks + pause >= give_up {
                return Err(failure);
            }
            self.forget_connection_after(&failure).await;
            back_off(server_asks, pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Sends a request once. A failure comes with the time that the server wants to be left alone.
    async fn send_once(
        &self,
        method: &Method,
        path: &str,
        accept: &str,
        body: &[u8],
    ) -> Result<Value, (Failure, Duration)> {
        let at_once = |failure| (failure, Duration::ZERO);
        let connection = match timeout_at(self.deadline, self.connected()).await {
            Ok(connection) => connection.map_err(at_once)?,
            Err(_) => {
                return Err(at_once(Failure::Away("the deadline passed while the client was made".to_owned())));
            }
        };
        let content = if method == Method::POST { "application/json" } else { "application/merge-patch+json" };
        let span = self.trace.span();
        let request = span
            .iter()
            .fold(Request::builder(), |request, span| request.header(TRACEPARENT, &span.parent))
            .method(method.clone())
            .uri(path)
            .header(header::ACCEPT, accept)
            .header(header::CONTENT_TYPE, content)
            .body(Body::from(body.to_vec()))
            .map_err(|problem| at_once(Failure::Ours(Error::Config(format!("{path}: {problem}")))))?;
        let server = &connection.server;
        let exchange = async {
            let (head, body) = connection.client.send(request).await?.into_parts();
            Ok((head, body.collect_bytes().await?))
        };
        let (head, answer) = match timeout_at(self.deadline, exchange).await {
            Ok(answered) => answered.map_err(|error: kube::Error| at_once(Failure::of(&error, server)))?,
            Err(_) => return Err(at_once(Failure::Away(format!("{server}: the deadline passed without an answer")))),
        };
        let object = serde_json::from_slice::<Value>(&answer);
        if head.status.is_success() {
            return object.map_err(|problem| at_once(Failure::Away(format!("{server}: its answer: {problem}"))));
        }
        // What stands before the server, and the server itself when it has too much to do, answer with plain text.
        let message = object.ok().and_then(|status| Some(status["message"].as_str()?.to_owned()));
        let message = message.unwrap_or_else(|| String::from_utf8_lossy(&answer).trim().chars().take(300).collect());
        let why = (head.status == StatusCode::UNAUTHORIZED).then(|| connection.why_refused()).flatten();
        let message = [message].into_iter().chain(why).collect::<Vec<_>>().join("; ");
        let asks = head.headers.get(header::RETRY_AFTER).and_then(|seconds| seconds.to_str().ok()?.parse().ok());
        let asks = Duration::from_secs(asks.unwrap_or_default()).min(LONGEST_REQUESTED_PAUSE);
        Err((Failure::Status(head.status.as_u16(), message), asks))
    }

    /// The next request has the credentials that are there by then.
    async fn forget_connection_after(&self, failure: &Failure) {
        if !matches!(failure, Failure::Status(code, _) if *code != 401) {
            *self.connection.lock().await = None;
        }
    }

    async fn connected(&self) -> Result<Arc<Connection>, Failure> {
        let mut connection = self.connection.lock().await;
        if let Some(connection) = connection.as_ref() {
            return Ok(connection.clone());
        }
        let made = connect(&self.kubeconfig).await.map_err(|problem| match problem {
            Unusable::Yet(error) => Failure::Credentials(error),
            Unusable::Ever(error) => Failure::Ours(error),
        })?;
        let made = Arc::new(made);
        *connection = Some(made.clone());
        Ok(made)
    }
}

/// What became of an event that was to be created.
#[derive(Debug)]
pub(super) enum Posted {
    /// It is there.
    Done,
    /// The server refuses this one.
    Refused(Error),
    /// The server refuses us: no other one is worth a request.
    NoneAllowed(Error),
    /// It may be taken later, and not before that time has passed.
    Later(Error, Duration),
}

/// Waits before something is sent again: some time, and a pause that differs from one pod to the next.
pub(super) async fn back_off(at_least: Duration, longest: Duration) {
    tokio::time::sleep(at_least + jittered(longest)).await;
}

/// Why a request was not answered with what was asked for.
pub(super) enum Failure {
    /// The server's answer.
    Status(u16, String),
    /// No answer: from where and why.
    Away(String),
    /// There was a connection, which ended before the answer did.
    Broken(String),
    /// One side does not accept the other's certificate.
    Distrusted(String),
    /// The credentials cannot be used as they are.
    Credentials(Error),
    /// The request could not even be made.
    Ours(Error),
}

/// What a failure may pass with.
enum Passes {
    Never,
    Time,
    OtherCredentials,
}

impl Failure {
    fn of(error: &kube::Error, server: &str) -> Self {
        // The cause at the bottom says what happened ("Connection refused"), the top only that it did.
        let mut cause: &dyn std::error::Error = error;
        let mut connected = true;
        while let Some(next) = cause.source() {
            cause = next;
            let client = cause.downcast_ref::<hyper_util::client::legacy::Error>();
            connected &= !client.is_some_and(hyper_util::client::legacy::Error::is_connect);
        }
        let text = format!("{server}: {cause}");
        if is_io(error, &[ErrorKind::InvalidData]) {
            Self::Distrusted(text)
        } else if connected || is_io(error, &BROKEN_OFF) {
            Self::Broken(text)
        } else {
            Self::Away(text)
        }
    }

    fn passes_with(&self) -> Passes {
        match self {
            Self::Status(409 | 429 | 500 | 502..=504, _) | Self::Broken(_) => Passes::Time,
            Self::Status(401, _) | Self::Distrusted(_) | Self::Credentials(_) => Passes::OtherCredentials,
            Self::Status(..) | Self::Away(_) | Self::Ours(_) => Passes::Never,
        }
    }

    pub(super) fn into_error(self, verb: &str, what: &str) -> Error {
        match self {
            Self::Status(401, message) => Error::TryLater(format!(
                "cannot {verb} {what}: the API server does not accept our credentials ({message}): renew those of the kubeconfig; where the DaemonSet does, see that its pod runs on this node"
            )),
            Self::Status(403, message) => Error::TryLater(format!(
                "cannot {verb} {what}: {message}: grant it to the user of the kubeconfig (deploy/base/rbac.yaml)"
            )),
            Self::Status(code, message) => {
                Error::TryLater(format!("cannot {verb} {what}: the API server answered {code}: {message}"))
            }
            Self::Away(problem) | Self::Distrusted(problem) => {
                Error::TryLater(format!("cannot {verb} {what}: the API server cannot be reached: {problem}"))
            }
            Self::Broken(problem) => {
                Error::TryLater(format!("cannot {verb} {what}: the API server broke off its answer: {problem}"))
            }
            Self::Credentials(error) | Self::Ours(error) => error,
        }
    }
}
