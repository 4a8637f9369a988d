//! The API requests that we make, all of them: GET a pod's metadata, GET a definition, PATCH a pod's status.

use std::{
    hash::{BuildHasher as _, Hasher as _, RandomState},
    path::{Path, PathBuf},
    time::Duration,
};

use http::{Method, Request, header};
use hyper_util::{
    client::legacy::{Client as HttpClient, connect::HttpConnector},
    rt::TokioExecutor,
};
use kube::{
    Client, Config,
    client::ConfigExt as _,
    config::{AuthInfo, KubeConfigOptions, Kubeconfig},
};
use serde_json::{Value, json};
use tokio::{
    sync::OnceCell,
    time::{Instant, timeout_at},
};
use tower::ServiceBuilder;

use super::{Pod, PodName, Written, dns::Resolver};
use crate::{
    cni::{Error, TRACEPARENT, Trace},
    network::{Definition, network_status::STATUS_ANNOTATION},
};

/// Only metadata is sent back: a pod with many containers is tens of KiB.
const METADATA_ONLY: &str = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1";
/// How long a connection may take to open.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a pod is looked for that the server does not know: kubelet may have heard of it from another one, which is
/// ahead. After that it was deleted.
const NEW_POD_PATIENCE: Duration = Duration::from_millis(2500);
/// After which time a request is sent again, the first time.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// How often a request that met a busy or restarting server is sent again.
const RETRIES: u32 = 5;

/// An API server, reached with the credentials of a kubeconfig. The file, and a token file it names, are read in each
/// process anew: nothing outlives a rotation.
pub struct ApiServer {
    kubeconfig: PathBuf,
    deadline: Instant,
    /// What the requests are part of.
    pub(super) trace: Trace,
    connection: OnceCell<Connection>,
}

/// A client, and the URL that it leads to, for messages.
struct Connection {
    client: Client,
    server: String,
}

impl std::fmt::Debug for ApiServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ApiServer").field("kubeconfig", &self.kubeconfig).finish_non_exhaustive()
    }
}

impl ApiServer {
    pub(super) fn new(kubeconfig: &Path, deadline: Instant) -> Self {
        Self { kubeconfig: kubeconfig.to_owned(), deadline, trace: Trace::None, connection: OnceCell::new() }
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
                    back_off(pause).await;
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
            ))),
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
            Err(Failure::Status(404 | 422, _)) => Ok(Written::PodGone),
            Err(failure) => {
                Err(failure.into_error("write network-status of", &format!("pod {}/{}", pod.namespace, pod.name)))
            }
        }
    }

    async fn send(&self, method: Method, path: &str, accept: &str, patch: Option<Value>) -> Result<Value, Failure> {
        let connecting = self.connection.get_or_try_init(|| connect(&self.kubeconfig));
        let Connection { client, server } = match timeout_at(self.deadline, connecting).await {
            Ok(connection) => connection.map_err(Failure::Ours)?,
            Err(_) => return Err(Failure::Away("the deadline passed while the client was made".to_owned())),
        };
        let body = patch.map(|patch| patch.to_string().into_bytes()).unwrap_or_default();
        let mut pause = FIRST_PAUSE;
        for attempt in 0.. {
            let span = self.trace.span();
            let request = span
                .iter()
                .fold(Request::builder(), |request, span| request.header(TRACEPARENT, &span.parent))
                .method(method.clone())
                .uri(path)
                .header(header::ACCEPT, accept)
                .header(header::CONTENT_TYPE, "application/merge-patch+json")
                .body(body.clone())
                .map_err(|problem| Failure::Ours(Error::Config(format!("{path}: {problem}"))))?;
            let failure = match timeout_at(self.deadline, client.request::<Value>(request)).await {
                Ok(Ok(value)) => return Ok(value),
                Ok(Err(error)) => Failure::of(error, server),
                Err(_) => return Err(Failure::Away(format!("{server}: the deadline passed without an answer"))),
            };
            if attempt >= RETRIES || !failure.may_pass() || Instant::now() + pause >= self.deadline {
                return Err(failure);
            }
            back_off(pause).await;
            pause *= 3;
        }
        Err(Failure::Away("not tried".to_owned()))
    }
}

/// Waits before something is sent again.
async fn back_off(longest: Duration) {
    tokio::time::sleep(jittered(longest)).await;
}

/// A pause between half and all of `longest`: many pods that met the same busy server do not come back at once.
fn jittered(longest: Duration) -> Duration {
    // Every RandomState has keys of its own, from the kernel's random numbers.
    let random = RandomState::new().build_hasher().finish();
    longest / 2 + longest * u32::from(u8::try_from(random % 256).unwrap_or_default()) / 512
}

/// Why a request was not answered with what was asked for.
enum Failure {
    /// The server's answer.
    Status(u16, String),
    /// No answer: from where and why.
    Away(String),
    /// The request could not even be made.
    Ours(Error),
}

impl Failure {
    fn of(error: kube::Error, server: &str) -> Self {
        match error {
            kube::Error::Api(status) => Self::Status(status.code, status.message.clone()),
            other => {
                // The cause at the bottom says what happened ("Connection refused"), the top only that it did.
                let mut cause: &dyn std::error::Error = &other;
                while let Some(next) = cause.source() {
                    cause = next;
                }
                Self::Away(format!("{server}: {cause}"))
            }
        }
    }

    fn may_pass(&self) -> bool {
        matches!(self, Self::Status(409 | 429 | 500 | 502..=504, _))
    }

    fn into_error(self, verb: &str, what: &str) -> Error {
        match self {
            Self::Status(401, message) => Error::TryLater(format!(
                "cannot {verb} {what}: the API server does not accept our credentials ({message}): renew those of the kubeconfig"
            )),
            Self::Status(403, message) => Error::TryLater(format!(
                "cannot {verb} {what}: {message}: grant it to the user of the kubeconfig (deploy/rbac.yaml)"
            )),
            Self::Status(code, message) => {
                Error::TryLater(format!("cannot {verb} {what}: the API server answered {code}: {message}"))
            }
            Self::Away(problem) => {
                Error::TryLater(format!("cannot {verb} {what}: the API server cannot be reached: {problem}"))
            }
            Self::Ours(error) => error,
        }
    }
}

/// A client as kube makes it, but for the resolver (see `dns`) and TCP_NODELAY: with Nagle's algorithm the first request
/// waits 40 ms for a delayed acknowledgement.
async fn connect(path: &Path) -> Result<Connection, Error> {
    let wrong = |problem: &dyn std::fmt::Display| Error::Config(format!("kubeconfig {}: {problem}", path.display()));
    let kubeconfig = match Kubeconfig::read_from(path) {
        Ok(kubeconfig) => kubeconfig,
        Err(kube::config::KubeconfigError::ReadConfig(source, _)) => {
            return Err(Error::io("read", path.display(), source));
        }
        Err(problem) => return Err(wrong(&problem)),
    };
    let mut config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
        .await
        .map_err(|problem| wrong(&problem))?;
    if let Some(reason) = refused(&config.auth_info) {
        return Err(wrong(&reason));
    }
    if let Some(file) = config.auth_info.token_file.take() {
        config.auth_info.token = Some(read_token(&file)?.into());
    }
    let mut connector = HttpConnector::new_with_resolver(Resolver);
    connector.enforce_http(false);
    connector.set_nodelay(true);
    connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
    let connector = config.rustls_https_connector_with_connector(connector).map_err(|problem| wrong(&problem))?;
    let http: HttpClient<_, kube::client::Body> = HttpClient::builder(TokioExecutor::new()).build(connector);
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer().map_err(|problem| wrong(&problem))?)
        .map_err(tower::BoxError::from)
        .service(http);
    let server = config.cluster_url.to_string().trim_end_matches('/').to_owned();
    Ok(Connection { client: Client::new(service, config.default_namespace), server })
}

/// What of the current context's user we do not do. It is refused: left out, we would be somebody else at the server.
fn refused(user: &AuthInfo) -> Option<&'static str> {
    if user.exec.is_some() || user.auth_provider.is_some() {
        return Some(
            "the user of its current context gets its credentials from a program (exec or auth-provider), which is not \
             run for every pod: use a token file or a client certificate",
        );
    }
    let another = user.impersonate.is_some() || user.impersonate_groups.is_some() || user.impersonate_uid.is_some();
    another.then_some("the user of its current context acts as another one (as, as-groups or as-uid): give that one's own credentials")
}

/// The token in a file, without the line feed that an editor or a shell leaves behind it: that is no part of a header.
/// As in client-go, the file counts for more than a token in the kubeconfig itself.
fn read_token(path: &str) -> Result<String, Error> {
    let text = std::fs::read_to_string(path).map_err(|source| Error::io("read the token in", path, source))?;
    match text.trim() {
        "" => Err(Error::Config(format!("the token file {path} is empty: put the token of a service account there"))),
        token => Ok(token.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_differ_within_bounds() {
        let longest = Duration::from_millis(800);
        let pauses: Vec<Duration> = (0..50).map(|_| jittered(longest)).collect();
        assert!(pauses.iter().all(|pause| (longest / 2..=longest).contains(pause)), "{pauses:?}");
        assert!(pauses.iter().any(|pause| *pause != pauses[0]));
    }
}
