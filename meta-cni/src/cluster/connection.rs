//! A connection to an API server with the credentials of a kubeconfig.

use std::{io, path::Path, time::Duration};

use base64::prelude::{BASE64_URL_SAFE_NO_PAD, Engine as _};
use hyper_util::{
    client::legacy::{Client as HttpClient, connect::HttpConnector},
    rt::TokioExecutor,
};
use k8s_openapi::jiff::Timestamp;
use kube::{
    Client, Config,
    client::ConfigExt as _,
    config::{AuthInfo, KubeConfigOptions, Kubeconfig, KubeconfigError},
};
use tower::ServiceBuilder;

use super::dns::Resolver;
use crate::cni::Error;

/// How long a connection may take to open.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A client, and the URL that it leads to, for messages.
pub(super) struct Connection {
    pub(super) client: Client,
    pub(super) server: String,
    /// The token's file, and until when the token is good by its own word.
    token: Option<(String, Timestamp)>,
}

impl Connection {
    /// What our credentials themselves say of why they are not accepted. The server says it to nobody but its own log.
    pub(super) fn why_refused(&self) -> Option<String> {
        let (file, end) = self.token.as_ref().filter(|(_, end)| *end <= Timestamp::now())?;
        Some(format!("the token in {file} expired at {end}"))
    }
}

/// Why there is no connection.
pub(super) enum Unusable {
    /// Credentials that may be whole the next moment.
    Yet(Error),
    /// A user that we cannot be.
    Ever(Error),
}

impl From<Error> for Unusable {
    fn from(error: Error) -> Self {
        Self::Yet(error)
    }
}

/// What is wrong with a kubeconfig, without a word of what is in it: an error of YAML quotes the lines around it, and there
/// may be a token in one. Who may see a pod's events would read it.
pub(crate) fn without_content(problem: &KubeconfigError) -> String {
    match problem {
        KubeconfigError::Parse(problem) => {
            let place = problem.location().map(|at| format!(" at line {}, column {}", at.line(), at.column()));
            format!("it is no kubeconfig{}", place.unwrap_or_default())
        }
        other => other.to_string(),
    }
}

/// A client as kube makes it, but for the resolver (see `dns`) and TCP_NODELAY: with Nagle's algorithm the first request
/// waits 40 ms for a delayed acknowledgement.
pub(super) async fn connect(path: &Path) -> Result<Connection, Unusable> {
    let wrong = |problem: &dyn std::fmt::Display| Error::Config(format!("kubeconfig {}: {problem}", path.display()));
    let kubeconfig = match Kubeconfig::read_from(path) {
        Ok(kubeconfig) => kubeconfig,
        Err(KubeconfigError::ReadConfig(source, _)) => return Err(Error::io("read", path.display(), source).into()),
        Err(problem) => return Err(wrong(&without_content(&problem)).into()),
    };
    let mut config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
        .await
        .map_err(|problem| wrong(&problem))?;
    if let Some(reason) = refused(&config.auth_info) {
        return Err(Unusable::Ever(wrong(&reason)));
    }
    let mut lasts = None;
    if let Some(file) = config.auth_info.token_file.take() {
        let token = read_token(&file)?;
        lasts = end_of(&token).map(|end| (file, end));
        config.auth_info.token = Some(token.into());
    }
    let mut connector = HttpConnector::new_with_resolver(Resolver);
    connector.enforce_http(false);
    connector.set_nodelay(true);
    connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
    let connector = config.rustls_https_connector_with_connector(connector).map_err(|problem| {
        Error::TryLater(format!(
            "kubeconfig {}: {problem}: its client certificate and key must be whole and of one pair: if they are not just \
             being replaced, issue them anew",
            path.display()
        ))
    })?;
    let http: HttpClient<_, kube::client::Body> = HttpClient::builder(TokioExecutor::new()).build(connector);
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer().map_err(|problem| wrong(&problem))?)
        .map_err(tower::BoxError::from)
        .service(http);
    let server = config.cluster_url.to_string().trim_end_matches('/').to_owned();
    Ok(Connection { client: Client::new(service, config.default_namespace), server, token: lasts })
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

/// When a token ends, if it is one that says so (RFC 7519: three parts, of which the second is what it claims).
fn end_of(token: &str) -> Option<Timestamp> {
    let claims = BASE64_URL_SAFE_NO_PAD.decode(token.split('.').nth(1)?).ok()?;
    let claims: serde_json::Value = serde_json::from_slice(&claims).ok()?;
    Timestamp::from_second(claims["exp"].as_i64()?).ok()
}

/// Whether an error has one of these kinds of I/O errors at its bottom or on the way there. That TLS failed, on either side,
/// is `InvalidData`.
pub(super) fn is_io(error: &(dyn std::error::Error + 'static), kinds: &[io::ErrorKind]) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        let of_io = error.downcast_ref::<io::Error>();
        if of_io.is_some_and(|error| kinds.contains(&error.kind())) {
            return true;
        }
        // An error of I/O passes over the one that it wraps when it is asked for its source.
        next = match of_io.and_then(io::Error::get_ref) {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_with_a_kubeconfig_tells_nothing_of_its_content() {
        for text in [
            "apiVersion: v1\nusers:\n- name: x\n  user:\n    token: eyJsecret\n   wrong: [",
            "apiVersion: v1\nusers:\n- name: x\n  user: eyJsecret\n",
            r#"{"users": [{"name": "x", "user": {"token": "eyJsecret", "client-key-data": "eyJsecret"#,
        ] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("kubeconfig");
            std::fs::write(&path, text).unwrap();
            let problem = without_content(&Kubeconfig::read_from(&path).unwrap_err());
            assert!(problem.starts_with("it is no kubeconfig at line "), "{problem}");
            assert!(!problem.contains("eyJsecret"), "{problem}");
        }
    }
}
