//! Putting this program on a node as its runtime's plugin, keeping it there, and taking it away again.
//!
//! At any moment either the primary network's own configuration is the first that the runtime reads, and complete, or ours
//! is, and all that it leads to is there: what is written comes before what leads to it. Nothing but `uninstall` removes it.

mod binary;
mod conf;
mod credentials;
mod host;
mod installed;
mod kept;
mod pass;
mod primary;
mod ready;
mod turn;
mod uninstall;
mod watch;

use std::path::{Path, PathBuf};

use super::{Answer, Arguments, Failure, Flag};
use crate::cni::{Error, Object};
use credentials::{Server, Source};
use host::Host;
use pass::{Installer, Plan, Primary};

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verb {
    Install,
    Uninstall,
}

/// What `--help` says.
pub(super) const INSTALL_DETAILS: &str = "\
Puts this program into the directory of plugins, finds the primary network's configuration in the runtime's directory (the
first that leads neither to us nor to Multus), and writes 00-meta-cni.conflist, which leads to it. The primary's file is then
kept beside it as NAME.meta-cni, which no runtime reads: nothing falls back to it. May be repeated at any time, with this
version or another one; what is right stays as it is. With --watch it stays: puts back what others change, takes over the
primary's configuration whenever its owner writes it anew, and keeps token and CA fresh. SIGTERM ends it, and nothing is
removed.

Of several that stay, the one that came last does the work until it ends.

Paths are those of the node, but for --config, --token-file, --ca-file and --status-file. The API server is one of --server, else that of
kubelet's kubeconfig, else that of the container's environment (which needs kube-proxy).
";

/// What `--help` says.
pub(super) const UNINSTALL_DETAILS: &str = "\
Gives the runtime its primary network's configuration back, as its owner wrote it last, and removes ours, the program, its
names and the credentials. Refuses while pods have networks besides the primary, and lists them; --force goes on, and says
what is lost. Remove the DaemonSet first: one that runs would put everything back.
";

pub(super) const CNI_BIN_DIR: Flag = Flag {
    name: "cni-bin-dir",
    letter: None,
    value: Some("DIR"),
    about: "where the runtime looks for plugins; /opt/cni/bin by default",
};
pub(super) const CNI_CONF_DIR: Flag = Flag {
    name: "cni-conf-dir",
    letter: None,
    value: Some("DIR"),
    about: "where the runtime looks for configurations; /etc/cni/net.d by default",
};
pub(super) const STATE_DIR: Flag = Flag {
    name: "state-dir",
    letter: None,
    value: Some("DIR"),
    about: "where records and credentials are kept; /var/lib/cni/meta-cni by default",
};
pub(super) const HOST_ROOT: Flag = Flag {
    name: "host-root",
    letter: None,
    value: Some("DIR"),
    about: "where the node's root, or these directories of it, are mounted in a container",
};
pub(super) const NAMES: Flag = Flag {
    name: "names",
    letter: None,
    value: Some("NAME,..."),
    about: "further names of the program: multus, multus-shim, passthru, sriov, host-local",
};
pub(super) const REPLACE: Flag = Flag {
    name: "replace",
    letter: None,
    value: None,
    about: "put programs that have such a name aside as NAME.meta-cni-saved, until uninstall",
};
pub(super) const PRIMARY: Flag = Flag {
    name: "primary",
    letter: None,
    value: Some("FILE"),
    about: "the primary network's configuration: a name in the runtime's directory, or a path elsewhere",
};
pub(super) const CONFIG: Flag = Flag {
    name: "config",
    letter: None,
    value: Some("FILE"),
    about: "a JSON object with further keys of our configuration; without it those that are there stay",
};
pub(super) const NODE_NAME: Flag =
    Flag { name: "node-name", letter: None, value: Some("NAME"), about: "the name of the node" };
pub(super) const KUBECONFIG: Flag = Flag {
    name: "kubeconfig",
    letter: None,
    value: Some("FILE"),
    about: "a kubeconfig that somebody else keeps on the node",
};
pub(super) const TOKEN_FILE: Flag = Flag {
    name: "token-file",
    letter: None,
    value: Some("FILE"),
    about: "a token, to be kept on the node for a kubeconfig of ours; with --ca-file",
};
pub(super) const CA_FILE: Flag =
    Flag { name: "ca-file", letter: None, value: Some("FILE"), about: "the cluster's CA; with --token-file" };
pub(super) const SERVER: Flag = Flag {
    name: "server",
    letter: None,
    value: Some("URL"),
    about: "the API server; given several times, the first that answers",
};
pub(super) const KUBELET_KUBECONFIG: Flag = Flag {
    name: "kubelet-kubeconfig",
    letter: None,
    value: Some("FILE"),
    about: "kubelet's kubeconfig, for its server; /etc/kubernetes/kubelet.conf and other usual places by default",
};
pub(super) const WATCH: Flag =
    Flag { name: "watch", letter: None, value: None, about: "stay, and keep everything as it should be" };
pub(super) const STATUS_FILE: Flag = Flag {
    name: "status-file",
    letter: None,
    value: Some("FILE"),
    about: "where one that stays tells how it is, for --ready",
};
pub(super) const READY: Flag = Flag {
    name: "ready",
    letter: None,
    value: None,
    about: "install nothing: say whether the one that stays, with this --status-file, has all in place, or why not",
};
pub(super) const FORCE: Flag = Flag {
    name: "force",
    letter: None,
    value: None,
    about: "uninstall even if pods have networks that nobody will detach then",
};

/// Runs one of the two.
///
/// # Errors
/// What is wrong with the command line, or on the node; a refusal.
pub(super) async fn run(verb: Verb, arguments: &Arguments) -> Result<Answer, Failure> {
    let host = host_of(arguments)?;
    match verb {
        Verb::Uninstall => Ok(uninstall::uninstall(&host, arguments.switch(FORCE.name))?),
        Verb::Install if arguments.switch(READY.name) => {
            let status = arguments.path(STATUS_FILE.name);
            let status = status.ok_or_else(|| Failure::Usage("--ready asks in a --status-file".to_owned()))?;
            Ok(ready::answer(&status)?)
        }
        Verb::Install => {
            let stays = arguments.switch(WATCH.name);
            let mut installer = Installer::new(plan_of(arguments, host)?, stays);
            if stays {
                return watch::watch(installer, arguments.path(STATUS_FILE.name)).await;
            }
            match installer.pass(false) {
                (report, None) => Ok(Answer { text: report.to_text(), good: true }),
                (_, Some(error)) => Err(error.into()),
            }
        }
    }
}

fn host_of(arguments: &Arguments) -> Result<Host, Failure> {
    Ok(Host {
        root: absolute(arguments, &HOST_ROOT)?.unwrap_or_else(|| "/".into()),
        bin: absolute(arguments, &CNI_BIN_DIR)?.unwrap_or_else(|| "/opt/cni/bin".into()),
        net_d: absolute(arguments, &CNI_CONF_DIR)?.unwrap_or_else(|| "/etc/cni/net.d".into()),
        state: absolute(arguments, &STATE_DIR)?.unwrap_or_else(|| "/var/lib/cni/meta-cni".into()),
    })
}

fn plan_of(arguments: &Arguments, host: Host) -> Result<Plan, Failure> {
    let primary = match arguments.path(PRIMARY.name) {
        None => None,
        Some(path) => Some(primary_of(path, &host)?),
    };
    Ok(Plan {
        names: names_of(arguments)?,
        replace: arguments.switch(REPLACE.name),
        primary,
        own: arguments.path(CONFIG.name),
        node_name: arguments.value(NODE_NAME.name).map(str::to_owned),
        source: source_of(arguments)?,
        host,
    })
}

fn primary_of(path: PathBuf, host: &Host) -> Result<Primary, Failure> {
    let name = path.file_name().and_then(|name| name.to_str()).map(str::to_owned);
    let name = name.ok_or_else(|| Failure::Usage(format!("--primary {} is no file", path.display())))?;
    if path.parent() == Some(Path::new("")) || path.parent() == Some(&host.net_d) {
        return Ok(Primary::Name(name));
    }
    if path.is_absolute() {
        return Ok(Primary::Elsewhere(path));
    }
    Err(Failure::Usage(format!("--primary is a name in {} or an absolute path", host.net_d.display())))
}

fn names_of(arguments: &Arguments) -> Result<Vec<&'static str>, Failure> {
    let mut names = Vec::new();
    let given = arguments.values(NAMES.name).iter().flat_map(|value| value.split(','));
    for given in given.map(str::trim).filter(|name| !name.is_empty() && *name != "meta-cni") {
        let known = binary::NAMES
            .into_iter()
            .find(|name| *name == given)
            .ok_or_else(|| Failure::Usage(format!("--names: \"{given}\" is none of {}", binary::NAMES.join(", "))))?;
        if !names.contains(&known) {
            names.push(known);
        }
    }
    Ok(names)
}

fn source_of(arguments: &Arguments) -> Result<Option<Source>, Failure> {
    let (token, ca) = (arguments.path(TOKEN_FILE.name), arguments.path(CA_FILE.name));
    let kubelet = absolute(arguments, &KUBELET_KUBECONFIG)?;
    let servers: Vec<Server> =
        arguments.values(SERVER.name).iter().map(|url| Server::parse(url)).collect::<Result<_, Error>>()?;
    match (absolute(arguments, &KUBECONFIG)?, token, ca) {
        (Some(path), None, None) if servers.is_empty() && kubelet.is_none() => Ok(Some(Source::Kubeconfig(path))),
        (Some(_), ..) => Err(Failure::Usage(
            "--kubeconfig says all: leave --token-file, --ca-file, --server and --kubelet-kubeconfig out".to_owned(),
        )),
        (None, Some(token), Some(ca)) => {
            let told = |key| std::env::var(key).ok().filter(|value| !value.is_empty());
            let service = told("KUBERNETES_SERVICE_HOST").zip(told("KUBERNETES_SERVICE_PORT"));
            let environment = service.map(|(host, port)| Server::of_service(&host, &port)).transpose()?;
            Ok(Some(Source::Token { token, ca, servers, kubelet, environment }))
        }
        (None, None, None) if servers.is_empty() && kubelet.is_none() => Ok(None),
        (None, ..) => {
            Err(Failure::Usage("credentials are --token-file and --ca-file, both, or --kubeconfig".to_owned()))
        }
    }
}

fn absolute(arguments: &Arguments, flag: &Flag) -> Result<Option<PathBuf>, Failure> {
    match arguments.path(flag.name) {
        Some(path) if !path.is_absolute() => {
            Err(Failure::Usage(format!("--{} {} is no absolute path", flag.name, path.display())))
        }
        path => Ok(path),
    }
}

/// The administrator's keys in a file.
///
/// # Errors
/// [`Error::Io`], [`Error::Decode`].
fn keys_in(file: &Path) -> Result<Object, Error> {
    let text = std::fs::read(file).map_err(|source| Error::io("read", file.display(), source))?;
    Object::parse(&file.display().to_string(), &text)
}
