//! The primary network's own configuration: found by content in the runtime's directory.

use std::path::Path;

use super::host::{Host, names_in};
use crate::cni::{Error, PluginList, names_meta_plugin};

/// Our own configuration. It comes before the usual names, Multus' `00-multus.conf` among them.
pub(super) const OUR_FILE: &str = "00-meta-cni.conflist";
/// What the name of a configuration is followed by when it is kept: runtimes read nothing with this ending.
const KEPT: &str = ".meta-cni";
/// What the names of configurations end in that runtimes read.
const EXTENSIONS: [&str; 3] = ["conf", "conflist", "json"];
/// A plugin that is no network: some packages have a configuration of it alone.
const LOOPBACK: &str = "loopback";

/// What a file in the runtime's directory is.
#[derive(Debug)]
pub(super) enum Content {
    /// A network's configuration.
    Network(Box<PluginList>),
    /// One that leads to a meta plugin: of which type.
    Meta(String),
    /// The loopback interface alone.
    Loopback,
    /// It cannot be used, or not yet: why.
    Broken(String),
}

/// A name in the runtime's directory: the file that has it, and the one that we keep under it.
#[derive(Debug)]
pub(super) struct Found {
    /// The name.
    pub(super) name: String,
    /// What the runtime reads.
    pub(super) live: Option<Content>,
    /// What we keep.
    pub(super) kept: Option<Box<PluginList>>,
}

/// Which configuration is the primary's.
#[derive(Debug)]
pub(super) struct Choice {
    /// Its name in the runtime's directory.
    pub(super) name: String,
    /// What it says.
    pub(super) list: PluginList,
    /// Whether it is in the runtime's way, to be taken over.
    pub(super) live: bool,
    /// What is the matter with the file that its owner is writing, if that is not used for now.
    pub(super) waiting: Option<String>,
}

impl Choice {
    /// The name that it is kept under.
    pub(super) fn kept_name(&self) -> String {
        kept_name(&self.name)
    }
}

/// The name that a configuration is kept under.
pub(super) fn kept_name(name: &str) -> String {
    format!("{name}{KEPT}")
}

/// The name that a kept configuration had.
pub(super) fn name_of_kept(kept: &str) -> Option<&str> {
    kept.strip_suffix(KEPT).filter(|name| is_conf_name(name))
}

fn is_conf_name(name: &str) -> bool {
    Path::new(name).extension().is_some_and(|extension| EXTENSIONS.iter().any(|wanted| extension == *wanted))
}

/// Looks at all configurations in the runtime's directory but our own, by name.
pub(super) fn look(host: &Host) -> Vec<Found> {
    let mut found: Vec<Found> = Vec::new();
    for file in names_in(&host.seen(&host.net_d)) {
        let path = host.conf(&file);
        let (name, live, kept) = if let Some(name) = name_of_kept(&file) {
            (name, None, PluginList::from_file(&path).ok().map(Box::new))
        } else if is_conf_name(&file) && file != OUR_FILE && !path.is_dir() {
            (file.as_str(), Some(Content::of(&path)), None)
        } else {
            continue;
        };
        match found.iter_mut().find(|other| other.name == name) {
            Some(other) => {
                other.live = other.live.take().or(live);
                other.kept = other.kept.take().or(kept);
            }
            None => found.push(Found { name: name.to_owned(), live, kept }),
        }
    }
    found.sort_by(|one, other| one.name.cmp(&other.name));
    found
}

/// Whether anything is kept: then we were installed once.
pub(super) fn is_kept(host: &Host) -> bool {
    names_in(&host.seen(&host.net_d)).iter().any(|name| name_of_kept(name).is_some())
}

impl Content {
    fn of(path: &Path) -> Self {
        // Of a pipe one would read for ever.
        if path.metadata().is_ok_and(|there| !there.is_file()) {
            return Self::Broken("it is no plain file".to_owned());
        }
        let list = match PluginList::from_file(path) {
            Ok(list) => list,
            Err(error) => {
                let details = error.details();
                let problem = if details.is_empty() { error.to_string() } else { format!("{error}: {details}") };
                return Self::Broken(problem);
            }
        };
        if let Some(kind) = list.plugins.iter().find_map(|plugin| names_meta_plugin(&plugin.object)) {
            return Self::Meta(kind);
        }
        if list.plugins.iter().all(|plugin| plugin.kind == LOOPBACK) {
            return Self::Loopback;
        }
        Self::Network(Box::new(list))
    }

    /// What it is, in a few words.
    pub(super) fn in_words(&self) -> String {
        match self {
            Self::Network(list) => format!("the network {}", list.name),
            Self::Meta(kind) => format!("leads to {kind}"),
            Self::Loopback => "loopback alone".to_owned(),
            Self::Broken(problem) => problem.clone(),
        }
    }
}

/// Chooses the primary's configuration: the one that is asked for, or the first that the runtime would read if we were
/// not there. What we keep counts under the name that it had; `current` is the one that our configuration names, if there
/// is one, and then no other one that we keep counts.
///
/// # Errors
/// [`Error::TryLater`] if there is none (yet), or one is just being written.
pub(super) fn choose(found: &[Found], asked: Option<&str>, current: Option<&str>) -> Result<Choice, Error> {
    let mut passed_over = Vec::new();
    let mut doubtful = None;
    for Found { name, live, kept } in found {
        if asked.is_some_and(|asked| asked != name) {
            continue;
        }
        // Torn by a power cut, say; what comes behind it is not the primary's for that.
        let torn = live.is_none() && kept.is_none() && current.is_none_or(|current| current == name);
        let kept = kept.as_ref().filter(|_| asked.is_some() || current.is_none_or(|current| current == name));
        let choice =
            |list: &PluginList, live, waiting| Choice { name: name.clone(), list: list.clone(), live, waiting };
        match (live, kept) {
            // Behind one that may yet become the primary's there is nothing to be chosen that was not chosen before.
            (Some(Content::Network(list)), kept) if doubtful.is_none() || kept.is_some() => {
                return Ok(choice(list, true, doubtful));
            }
            (Some(Content::Broken(problem)), Some(list)) => {
                return Ok(choice(list, false, Some(format!("{name}: {problem}"))));
            }
            (None, Some(list)) => return Ok(choice(list, false, doubtful)),
            // Multus leaves files of no bytes behind; whatever is in one of its own, it is not the primary's.
            (Some(Content::Broken(problem)), None) if !name.contains("multus") => {
                doubtful.get_or_insert_with(|| format!("{name}: {problem}"));
            }
            (Some(content), _) => passed_over.push(format!("{name} ({})", content.in_words())),
            (None, None) if torn => {
                doubtful.get_or_insert_with(|| format!("{}: it does not parse", kept_name(name)));
            }
            (None, None) => {}
        }
    }
    if let Some(problem) = doubtful {
        return Err(Error::TryLater(format!(
            "what may be the primary network's configuration cannot be used: {problem}; its owner may be writing it just now, else mend it, remove it, or name another one (--primary)"
        )));
    }
    let found = if passed_over.is_empty() { "nothing".to_owned() } else { passed_over.join(", ") };
    let wanted = asked.unwrap_or("the primary network's configuration");
    Err(Error::TryLater(format!(
        "{wanted} is not there, found: {found}; its owner (Flannel's DaemonSet, say) writes it, or name the file (--primary)"
    )))
}

/// The files in the runtime's directory that come before ours, but for the one that is about to be taken away.
pub(super) fn before_ours(found: &[Found], taken: Option<&str>) -> Vec<String> {
    let first = |found: &&Found| found.name.as_str() < OUR_FILE && Some(found.name.as_str()) != taken;
    found
        .iter()
        .filter(first)
        .filter_map(|found| Some(format!("{} ({})", found.name, found.live.as_ref()?.in_words())))
        .collect()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const FLANNEL: &str = r#"{"name":"cbr0","cniVersion":"0.3.1","plugins":[{"type":"flannel"},{"type":"portmap"}]}"#;
    const MULTUS: &str = r#"{"name":"m","type":"multus-shim","delegates":[{"type":"bridge"}]}"#;

    fn chosen(files: &[(&str, &str)], asked: Option<&str>, current: Option<&str>) -> Result<(String, bool), String> {
        let root = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(root.path().join(name), text).unwrap();
        }
        let host = Host { root: "/".into(), bin: "/b".into(), net_d: root.path().into(), state: "/s".into() };
        match choose(&look(&host), asked, current) {
            Ok(choice) => Ok((choice.name, choice.live)),
            Err(Error::TryLater(text)) => Err(text),
            Err(other) => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_primary_is_found_by_content() {
        let one = |name: &str, live| Ok((name.to_owned(), live));
        let podman = r#"{"cniVersion":"0.4.0","name":"podman","plugins":[{"type":"bridge"}]}"#;
        let deep = r#"{"name":"m","plugins":[{"type":"x","delegates":[{"plugins":[{"type":"multus"}]}]}]}"#;
        let loopback = r#"{"cniVersion":"0.4.0","name":"lo","type":"loopback"}"#;
        let common = [
            ("00-meta-cni.conflist", "ours, whatever it is"),
            ("00-multus.conf", MULTUS),
            ("05-renamed.conflist", deep),
            ("06-loopback.conf", loopback),
            ("10-flannel.conflist", FLANNEL),
            ("10-flannel.conflist.cilium_bak", "no configuration"),
            ("87-podman-bridge.conflist", podman),
        ];
        assert_eq!(chosen(&common, None, None), one("10-flannel.conflist", true));
        assert_eq!(chosen(&common, Some("87-podman-bridge.conflist"), None), one("87-podman-bridge.conflist", true));
        // What is kept counts by its old name, and the file that has that now for more.
        let kept = [("10-flannel.conflist.meta-cni", FLANNEL), ("87-podman-bridge.conflist", podman)];
        assert_eq!(chosen(&kept, None, Some("10-flannel.conflist")), one("10-flannel.conflist", false));
        assert_eq!(chosen(&kept, None, None), one("10-flannel.conflist", false));
        let anew = [kept[0], kept[1], ("10-flannel.conflist", FLANNEL)];
        assert_eq!(chosen(&anew, None, Some("10-flannel.conflist")), one("10-flannel.conflist", true));
        // Another one was named once, and is the primary's since.
        let two = [kept[0], ("99-other.conflist.meta-cni", podman)];
        assert_eq!(chosen(&two, None, Some("99-other.conflist")), one("99-other.conflist", false));
        assert_eq!(
            chosen(&two, Some("10-flannel.conflist"), Some("99-other.conflist")),
            one("10-flannel.conflist", false)
        );
    }

    #[test]
    fn what_cannot_be_used_is_waited_for_and_nothing_behind_it_is_taken_for_the_primary() {
        let podman = ("87-podman-bridge.conflist", r#"{"name":"podman","plugins":[{"type":"bridge"}]}"#);
        for half in ["", "{", r#"{"name":"cbr0"}"#, r#"{"name":"cbr0","plugins":[]}"#] {
            let text = chosen(&[("10-flannel.conflist", half), podman], None, None).unwrap_err();
            assert!(text.contains("primary network's configuration cannot be used: 10-flannel.conflist"), "{text}");
            // The one that we have stays in force.
            let kept = [("10-flannel.conflist", half), ("10-flannel.conflist.meta-cni", FLANNEL), podman];
            assert_eq!(chosen(&kept, None, None), Ok(("10-flannel.conflist".to_owned(), false)));
        }
        // One that may become the primary's does not put the one that we have out of force.
        let doubtful = [("05-new.conflist", "{"), ("10-flannel.conflist.meta-cni", FLANNEL), podman];
        assert_eq!(chosen(&doubtful, None, None), Ok(("10-flannel.conflist".to_owned(), false)));
        let rewritten = [doubtful[0], doubtful[1], ("10-flannel.conflist", FLANNEL)];
        assert_eq!(chosen(&rewritten, None, None), Ok(("10-flannel.conflist".to_owned(), true)));
        // Multus' file of no bytes is not waited for.
        let found = chosen(&[("00-multus.conf", ""), ("10-flannel.conflist", FLANNEL)], None, None);
        assert_eq!(found, Ok(("10-flannel.conflist".to_owned(), true)));
        let none = chosen(&[("00-multus.conf", MULTUS)], None, None).unwrap_err();
        assert!(none.contains("found: 00-multus.conf (leads to multus-shim)"), "{none}");
        assert!(chosen(&[], None, None).unwrap_err().contains("found: nothing"));
        assert!(chosen(&[podman], Some("10-x.conf"), None).unwrap_err().contains("10-x.conf is not there"));
    }

    #[test]
    fn a_kept_one_that_is_torn_gives_its_place_to_nobody() {
        let (torn, behind) = (("10-flannel.conflist.meta-cni", ""), ("87-podman.conflist", FLANNEL));
        for current in [Some("10-flannel.conflist"), None] {
            let said = chosen(&[torn, behind], None, current).unwrap_err();
            assert!(said.contains("10-flannel.conflist.meta-cni: it does not parse"), "{said}");
        }
        // Its owner writes it anew.
        let anew = ("10-flannel.conflist", FLANNEL);
        assert_eq!(
            chosen(&[torn, anew, behind], None, Some("10-flannel.conflist")),
            Ok(("10-flannel.conflist".to_owned(), true))
        );
        // One that was the primary's before says nothing.
        assert_eq!(
            chosen(&[torn, behind], None, Some("87-podman.conflist")),
            Ok(("87-podman.conflist".to_owned(), true))
        );
    }

    #[test]
    fn what_the_runtime_would_read_before_ours_is_named() {
        let found = |name: &str| Found { name: name.to_owned(), live: Some(Content::Loopback), kept: None };
        let all = [found("00-aws.conf"), found("00-calico.conflist"), found("00-multus.conf"), found("10-x.conf")];
        assert_eq!(before_ours(&all, Some("00-calico.conflist")), ["00-aws.conf (loopback alone)"]);
    }
}
