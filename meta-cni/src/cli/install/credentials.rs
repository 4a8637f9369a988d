//! What our kubeconfig leads to: a token and the cluster's CA, copied to the node whenever they change, and the API server.
//! A token in a container's mount is not seen by the runtime's plugins, and is another one every hour.

use std::{
    fs,
    net::{IpAddr, SocketAddr, TcpStream},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use http::Uri;
use kube::config::Kubeconfig;
use serde_json::json;

use super::host::{self, Host};
use crate::{cluster::without_content, cni::Error};

/// The names of our files.
const TOKEN: &str = "token";
const CA: &str = "ca.crt";
const KUBECONFIG: &str = "kubeconfig";
/// Where kubelet is told how to reach the API server: kubeadm, others, k3s, RKE2.
const KUBELET: [&str; 4] = [
    "/etc/kubernetes/kubelet.conf",
    "/var/lib/kubelet/kubeconfig",
    "/var/lib/rancher/k3s/agent/kubelet.kubeconfig",
    "/var/lib/rancher/rke2/agent/kubelet.kubeconfig",
];
/// How long a server has to answer, if there are several.
const PATIENCE: Duration = Duration::from_millis(500);

/// Where credentials come from.
#[derive(Debug)]
pub(super) enum Source {
    /// An administrator keeps a kubeconfig on the node, and us out of it.
    Kubeconfig(PathBuf),
    /// A token and a CA, as they are seen here.
    Token {
        token: PathBuf,
        ca: PathBuf,
        /// The API servers that were named, in the order in which they are to be tried.
        servers: Vec<Server>,
        /// Kubelet's kubeconfig, on the node.
        kubelet: Option<PathBuf>,
        /// The one of the container's environment.
        environment: Option<Server>,
    },
}

/// An API server's URL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Server {
    url: String,
    /// The name in its certificate, if it is not the URL's.
    tls_name: Option<String>,
    /// Its address, if the URL has one.
    address: Option<SocketAddr>,
}

/// What is going to be written.
#[derive(Debug)]
pub(super) struct Ready {
    token: Vec<u8>,
    ca: Vec<u8>,
    server: Server,
}

impl Server {
    /// Reads a URL.
    ///
    /// # Errors
    /// [`Error::Config`].
    pub(super) fn parse(url: &str) -> Result<Self, Error> {
        let wrong = |what: &str| {
            Error::Config(format!(
                "the API server \"{url}\" {what}: give https://HOST:PORT, an IPv6 address in brackets"
            ))
        };
        let uri: Uri = url.parse().map_err(|_| wrong("is no URL"))?;
        if uri.scheme_str() != Some("https") {
            return Err(wrong("is not reached by https"));
        }
        let host = uri.host().filter(|host| !host.is_empty()).ok_or_else(|| wrong("has no host"))?;
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        if host.starts_with('[') && bare.parse::<IpAddr>().is_err() {
            return Err(wrong("has no address in the brackets"));
        }
        let port = uri.port_u16().unwrap_or(443);
        let address = bare.parse::<IpAddr>().ok().map(|address| SocketAddr::new(address, port));
        Ok(Self { url: url.trim_end_matches('/').to_owned(), tls_name: None, address })
    }

    /// The server that a container is told of by its environment.
    ///
    /// # Errors
    /// As [`Server::parse`].
    pub(super) fn of_service(host: &str, port: &str) -> Result<Self, Error> {
        let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
        Self::parse(&format!("https://{host}:{port}"))
    }

    /// Whether it can be connected to. One that has a name is taken for there: who resolves it is not known here.
    fn answers(&self) -> bool {
        self.address.is_none_or(|address| TcpStream::connect_timeout(&address, PATIENCE).is_ok())
    }
}

impl Source {
    /// The kubeconfig that our configuration names, on the node.
    pub(super) fn kubeconfig(&self, host: &Host) -> PathBuf {
        match self {
            Self::Kubeconfig(path) => path.clone(),
            Self::Token { .. } => host.credentials().join(KUBECONFIG),
        }
    }

    /// The directories in which something may change, as they are seen here.
    pub(super) fn directories(&self) -> Vec<&Path> {
        match self {
            Self::Kubeconfig(_) => Vec::new(),
            Self::Token { token, ca, .. } => [token, ca].into_iter().filter_map(|path| path.parent()).collect(),
        }
    }

    /// The token, as it is seen here, and its copy on the node.
    pub(super) fn copies(&self, host: &Host) -> Option<(PathBuf, PathBuf)> {
        match self {
            Self::Kubeconfig(_) => None,
            Self::Token { token, .. } => Some((token.clone(), host.seen(&host.credentials()).join(TOKEN))),
        }
    }

    /// Kubelet's kubeconfig, if we see one that has no name on the node any more: a file that is mounted alone stays the one
    /// that it was when somebody puts another one in its place by a rename.
    pub(super) fn replaced(&self, host: &Host) -> Option<PathBuf> {
        let Self::Token { servers, kubelet, .. } = self else { return None };
        if !servers.is_empty() {
            return None;
        }
        let path = kubelet.clone().or_else(|| usual(host))?;
        fs::metadata(host.seen(&path)).is_ok_and(|there| there.nlink() == 0).then_some(path)
    }

    /// Reads everything, and judges it.
    ///
    /// # Errors
    /// [`Error::Config`] that says what is wrong, [`Error::TryLater`] for what may be written just now, [`Error::Io`].
    pub(super) fn read(&self, host: &Host) -> Result<Option<Ready>, Error> {
        match self {
            Self::Kubeconfig(path) => {
                let seen = host.seen(path);
                Kubeconfig::read_from(&seen).map_err(|problem| {
                    Error::Config(format!("kubeconfig {}: {}", path.display(), without_content(&problem)))
                })?;
                Ok(None)
            }
            Self::Token { token, ca, servers, kubelet, environment } => {
                let token = checked(token, "holds no token", |text| {
                    !text.trim().is_empty() && !text.trim().contains(|letter: char| !letter.is_ascii_graphic())
                })?;
                let ca = checked(ca, "holds no certificate", |text| text.contains("-----BEGIN CERTIFICATE-----"))?;
                let server = choose(servers, kubelet.as_deref(), environment.as_ref(), host)?;
                Ok(Some(Ready { token, ca, server }))
            }
        }
    }
}

fn checked(path: &Path, problem: &str, good: impl Fn(&str) -> bool) -> Result<Vec<u8>, Error> {
    let content = fs::read(path).map_err(|source| Error::io("read", path.display(), source))?;
    if good(&String::from_utf8_lossy(&content)) {
        Ok(content)
    } else {
        Err(Error::TryLater(format!("{} {problem}: it may be written just now, else mend it", path.display())))
    }
}

/// The server that goes into the kubeconfig: one of those that were named, else kubelet's own, which needs no kube-proxy;
/// else the one of the container's environment.
fn choose(
    servers: &[Server],
    kubelet: Option<&Path>,
    environment: Option<&Server>,
    host: &Host,
) -> Result<Server, Error> {
    if let [only] = servers {
        return Ok(only.clone());
    }
    if let Some(first) = servers.first() {
        // The one in use goes on being used while it answers.
        let used = written(host);
        let in_use = servers.iter().filter(|server| Some(&server.url) == used.as_ref());
        let answering = in_use.clone().chain(servers).find(|server| server.answers());
        return Ok(answering.or(in_use.clone().next()).unwrap_or(first).clone());
    }
    if let Some(path) = kubelet.map(Path::to_owned).or_else(|| usual(host)) {
        return of_kubelet(&path, &host.seen(&path));
    }
    environment.cloned().ok_or_else(|| {
        Error::Config(format!(
            "no API server is known: there is no kubeconfig of kubelet's at {}; name the server (--server) or that file (--kubelet-kubeconfig)",
            KUBELET.join(", ")
        ))
    })
}

/// Kubelet's kubeconfig, if it is in one of the usual places.
fn usual(host: &Host) -> Option<PathBuf> {
    KUBELET.iter().map(PathBuf::from).find(|path| host.seen(path).is_file())
}

/// The server in the kubeconfig that we wrote.
fn written(host: &Host) -> Option<String> {
    let kubeconfig = Kubeconfig::read_from(host.seen(&host.credentials()).join(KUBECONFIG)).ok()?;
    kubeconfig.clusters.into_iter().find_map(|cluster| cluster.cluster?.server)
}

/// The server of the current context of kubelet's kubeconfig.
fn of_kubelet(path: &Path, seen: &Path) -> Result<Server, Error> {
    let wrong = |problem: &str| Error::Config(format!("{}: {problem}; name the server (--server)", path.display()));
    let kubeconfig = Kubeconfig::read_from(seen).map_err(|problem| wrong(&without_content(&problem)))?;
    let current = kubeconfig.current_context.unwrap_or_default();
    let context = kubeconfig.contexts.into_iter().find(|context| context.name == current);
    let name = context.and_then(|context| Some(context.context?.cluster));
    let cluster = kubeconfig.clusters.into_iter().find(|cluster| Some(&cluster.name) == name.as_ref());
    let cluster = cluster.and_then(|cluster| cluster.cluster).ok_or_else(|| wrong("its context has no cluster"))?;
    let url = cluster.server.ok_or_else(|| wrong("its cluster has no server"))?;
    Ok(Server { tls_name: cluster.tls_server_name, ..Server::parse(&url)? })
}

/// Writes what has changed: first what the kubeconfig leads to. Says what it changed.
///
/// # Errors
/// [`Error::Io`].
pub(super) fn write(host: &Host, ready: &Ready) -> Result<Vec<String>, Error> {
    let directory = host.credentials();
    host::make_private(&host.seen(&directory))?;
    let mut cluster = json!({"server": ready.server.url, "certificate-authority": directory.join(CA)});
    if let Some(name) = &ready.server.tls_name {
        cluster["tls-server-name"] = json!(name);
    }
    let kubeconfig = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "meta-cni",
        "clusters": [{"name": "cluster", "cluster": cluster}],
        "users": [{"name": "meta-cni", "user": {"tokenFile": directory.join(TOKEN)}}],
        "contexts": [{"name": "meta-cni", "context": {"cluster": "cluster", "user": "meta-cni"}}],
    });
    let text = serde_json::to_string_pretty(&kubeconfig).map_err(|problem| Error::decode(KUBECONFIG, problem))? + "\n";
    let mut changed = Vec::new();
    for (name, content) in [(CA, &ready.ca), (TOKEN, &ready.token), (KUBECONFIG, &text.into_bytes())] {
        if host::place(&host.seen(&directory).join(name), content, 0o600)? {
            let server = if name == KUBECONFIG { format!(" (server {})", ready.server.url) } else { String::new() };
            changed.push(format!("{} is written{server}", directory.join(name).display()));
        }
    }
    Ok(changed)
}

/// Removes what we wrote. Says what it changed.
///
/// # Errors
/// [`Error::Io`].
pub(super) fn remove(host: &Host) -> Result<Vec<String>, Error> {
    let directory = host.seen(&host.credentials());
    let mut removed = false;
    for name in [KUBECONFIG, TOKEN, CA] {
        removed |= host::remove(&directory.join(name))?;
    }
    // ENOTEMPTY: something that is not ours.
    let _ = fs::remove_dir(&directory);
    Ok(if removed { vec![format!("{} is removed", host.credentials().display())] } else { Vec::new() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node() -> (tempfile::TempDir, Host) {
        let root = tempfile::tempdir().unwrap();
        let host = Host { root: root.path().into(), bin: "/b".into(), net_d: "/c".into(), state: "/s".into() };
        (root, host)
    }

    #[test]
    fn urls_are_judged() {
        for (url, address) in [
            ("https://10.0.0.1:6443", Some("10.0.0.1:6443")),
            ("https://[fd00::1]:6443/", Some("[fd00::1]:6443")),
            ("https://10.0.0.1", Some("10.0.0.1:443")),
            ("https://api.example:6443", None),
        ] {
            assert_eq!(Server::parse(url).unwrap().address, address.map(|text| text.parse().unwrap()), "{url}");
        }
        for (url, problem) in [
            ("http://10.0.0.1:6443", "not reached by https"),
            ("10.0.0.1:6443", "https"),
            ("https://fd00::1:6443", "no URL"),
            ("https://[api]:6443", "no address in the brackets"),
            ("", "no URL"),
        ] {
            match Server::parse(url) {
                Err(Error::Config(text)) => assert!(text.contains(problem), "{url}: {text}"),
                other => panic!("{url}: {other:?}"),
            }
        }
        assert_eq!(Server::of_service("fd00::1", "443").unwrap().url, "https://[fd00::1]:443");
        assert_eq!(Server::of_service("10.96.0.1", "443").unwrap().url, "https://10.96.0.1:443");
    }

    #[test]
    fn kubelets_server_comes_before_the_environments() {
        let (root, host) = node();
        let service = Server::of_service("10.96.0.1", "443").unwrap();
        let url = |servers: &[Server], kubelet, environment| {
            choose(servers, kubelet, environment, &host).map(|server| (server.url, server.tls_name))
        };
        assert!(
            matches!(url(&[], None, None), Err(Error::Config(text)) if text.contains("/etc/kubernetes/kubelet.conf"))
        );
        assert_eq!(url(&[], None, Some(&service)).unwrap().0, "https://10.96.0.1:443");
        let kubelet = json!({
            "current-context": "b",
            "contexts": [{"name": "a", "context": {"cluster": "one"}}, {"name": "b", "context": {"cluster": "two"}}],
            "clusters": [{"name": "one", "cluster": {"server": "https://one:1"}},
                         {"name": "two", "cluster": {"server": "https://[fd00::2]:6443", "tls-server-name": "api"}}],
        });
        fs::create_dir_all(root.path().join("etc/kubernetes")).unwrap();
        fs::write(root.path().join("etc/kubernetes/kubelet.conf"), kubelet.to_string()).unwrap();
        let wanted = ("https://[fd00::2]:6443".to_owned(), Some("api".to_owned()));
        assert_eq!(url(&[], None, Some(&service)).unwrap(), wanted);
        let named = Server::parse("https://10.0.0.9:6443").unwrap();
        assert_eq!(url(&[named], None, Some(&service)).unwrap().0, "https://10.0.0.9:6443");
        let absent = url(&[], Some(Path::new("/etc/none")), Some(&service));
        assert!(matches!(absent, Err(Error::Config(text)) if text.contains("/etc/none")));
    }

    #[test]
    fn of_several_servers_one_that_answers_is_used_as_long_as_it_does() {
        let (_root, host) = node();
        let listen = || std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let (one, two) = (listen(), listen());
        let server = |listener: &std::net::TcpListener| {
            Server::parse(&format!("https://{}", listener.local_addr().unwrap())).unwrap()
        };
        let servers = [server(&one), server(&two)];
        let choice = || choose(&servers, None, None, &host).unwrap();
        assert_eq!(choice(), servers[0]);
        drop(one);
        assert_eq!(choice(), servers[1]);
        write(&host, &Ready { token: b"t".to_vec(), ca: b"c".to_vec(), server: servers[1].clone() }).unwrap();
        let _back = std::net::TcpListener::bind(servers[0].address.unwrap()).unwrap();
        assert_eq!(choice(), servers[1], "the one in use still answers");
        drop(two);
        assert_eq!(choice(), servers[0]);
    }
}
