//! One pass of the installer: look, decide everything, then do what is missing, in an order in which nothing leads to what
//! is not there yet.

use std::path::{Path, PathBuf};

use super::{
    binary::Programs,
    conf::{self, Present},
    credentials::{self, Ready, Source},
    host::{self, Host},
    kept, keys_in,
    primary::{self, Choice, Content, Found, OUR_FILE},
};
use crate::{
    attach::gate,
    cni::{Error, PluginList, names_meta_plugin},
};

/// How often the primary's owner may write it anew during one pass.
const ATTEMPTS: usize = 3;

/// What was asked for.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) host: Host,
    /// Further names of the program.
    pub(super) names: Vec<&'static str>,
    /// Whether programs of these names may be put aside.
    pub(super) replace: bool,
    /// Which one is the primary's configuration.
    pub(super) primary: Option<Primary>,
    /// A file with the administrator's keys.
    pub(super) own: Option<PathBuf>,
    pub(super) node_name: Option<String>,
    /// Where credentials come from.
    pub(super) source: Option<Source>,
}

/// The primary's configuration as it was named.
#[derive(Debug)]
pub(super) enum Primary {
    /// A name in the runtime's directory.
    Name(String),
    /// A path elsewhere on the node: it is used where it is.
    Elsewhere(PathBuf),
}

/// What a pass did.
#[derive(Debug, Default)]
pub(super) struct Report {
    /// What was changed.
    pub(super) done: Vec<String>,
    /// What somebody should know.
    pub(super) remarks: Vec<String>,
    /// Whether the primary's file was taken out of the runtime's way.
    pub(super) taken: bool,
}

impl Report {
    /// The report for people.
    pub(super) fn to_text(&self) -> String {
        let done = if self.done.is_empty() { "everything is in place\n".to_owned() } else { String::new() };
        let lines = self.done.iter().map(|line| format!("{line}\n"));
        lines.chain([done]).chain(self.remarks.iter().map(|line| format!("note: {line}\n"))).collect()
    }
}

/// What is going to be written.
struct Decision {
    /// None if the primary's configuration is used where it is.
    choice: Option<Choice>,
    text: String,
}

/// How a pass goes about it.
#[derive(Debug, Clone, Copy)]
struct How {
    /// The primary's file is followed where it is, not taken away.
    leave: bool,
    /// What can be done is done, even if something else cannot.
    lenient: bool,
}

/// Who installs.
#[derive(Debug)]
pub(super) struct Installer {
    pub(super) plan: Plan,
    /// It stays after the first pass.
    stays: bool,
    programs: Programs,
    /// Our configuration as it was seen last: what an administrator wrote into it is not lost with it.
    known: Option<Present>,
}

impl Installer {
    /// An installer that has not looked at anything yet.
    pub(super) fn new(plan: Plan, stays: bool) -> Self {
        Self { plan, stays, programs: Programs::default(), known: None }
    }

    /// Puts everything in its place, and tells what it did, and what is wrong. With `leave` the primary's file is followed
    /// where it is, not taken away.
    ///
    /// If something is wrong nothing was touched; but for one that stays where we were installed before: then whatever else
    /// could be done was done.
    pub(super) fn pass(&mut self, leave: bool) -> (Report, Option<Error>) {
        let mut report = Report::default();
        let mut errors = Vec::new();
        if let Err(error) = self.pass_under_lock(leave, &mut report, &mut errors) {
            errors.push(error);
        }
        (report, Error::join(errors))
    }

    fn pass_under_lock(&mut self, leave: bool, report: &mut Report, errors: &mut Vec<Error>) -> Result<(), Error> {
        self.plan.host.create()?;
        let _alone = self.plan.host.lock()?;
        self.plan.host.sweep();
        kept::recover(&self.plan.host)?;
        self.programs.look(&self.plan.host);
        errors.extend(self.programs.judge(&self.plan.host, &self.plan.names, self.plan.replace).err());
        let source = self.plan.source.as_ref();
        let ready = source.map(|source| source.read(&self.plan.host)).transpose().map(Option::flatten);
        let present = Present::read(&self.plan.host);
        let is_there = present.is_some();
        self.known = present.or(self.known.take()).or_else(|| Present::renamed(&self.plan.host));
        let decided = self.decide(is_there, report);
        // Without our configuration, what we keep of the primary's says that it was there.
        let lenient = self.stays && (is_there || primary::is_kept(&self.plan.host));
        if !lenient && (decided.is_err() || ready.is_err() || !errors.is_empty()) {
            errors.extend(decided.err());
            errors.extend(ready.err());
            return Ok(());
        }
        let how = How { leave, lenient };
        let mut again = self.carry_out(decided, ready, how, report, errors);
        for _ in 1..ATTEMPTS {
            if !again {
                break;
            }
            let decided = self.decide(is_there, report);
            again = self.carry_out(decided, Ok(None), how, report, errors);
        }
        report.remarks.extend(self.programs.remarks(&self.plan.host));
        Ok(())
    }

    /// Does what was decided, each step before what leads to it. Gives whether the primary's owner wrote it once more.
    fn carry_out(
        &mut self,
        decided: Result<Decision, Error>,
        ready: Result<Option<Ready>, Error>,
        how: How,
        report: &mut Report,
        errors: &mut Vec<Error>,
    ) -> bool {
        let host = &self.plan.host;
        // Credentials first: programs are large, and those on the node may be of an installer that is gone.
        match ready.and_then(|ready| ready.map_or_else(|| Ok(Vec::new()), |ready| credentials::write(host, &ready))) {
            Ok(done) => report.done.extend(done),
            Err(error) => errors.push(error),
        }
        let (names, replace) = (&self.plan.names, self.plan.replace);
        errors.extend(self.programs.install(host, names, replace, &mut report.done).err());
        let decision = match decided {
            Ok(decision) if how.lenient || errors.is_empty() => decision,
            Ok(_) => return false,
            Err(error) => {
                errors.push(error);
                return false;
            }
        };
        match lead_to(host, &decision, how.leave) {
            Ok((done, again, taken)) => {
                report.done.extend(done);
                report.taken |= taken;
                again
            }
            Err(error) => {
                errors.push(error);
                false
            }
        }
    }

    /// Decides what our configuration has to say, and judges it.
    fn decide(&self, is_there: bool, report: &mut Report) -> Result<Decision, Error> {
        let host = &self.plan.host;
        let found = primary::look(host);
        report.remarks = remarks_of(host, is_there, &found);
        let known = self.known.as_ref();
        let (choice, list, path) = match &self.plan.primary {
            Some(Primary::Elsewhere(path)) => (None, read_elsewhere(&host.seen(path))?, path.clone()),
            asked => {
                let asked = match asked {
                    Some(Primary::Name(name)) => Some(name.as_str()),
                    _ => None,
                };
                let current = known.and_then(|known| known.kept(host));
                let choice = primary::choose(&found, asked, current.as_deref().and_then(primary::name_of_kept))?;
                let (list, path) = (choice.list.clone(), host.net_d.join(choice.kept_name()));
                (Some(choice), list, path)
            }
        };
        refuse_what_comes_first(host, &found, choice.as_ref())?;
        report.remarks.extend(choice.as_ref().and_then(|choice| {
            let problem = choice.waiting.as_ref()?;
            Some(format!("not used yet, {} stays in force as it was: {problem}", choice.name))
        }));
        report.remarks.extend(others(&found, choice.as_ref()));
        let text = self.text(&list, &path)?;
        Ok(Decision { choice, text })
    }

    fn text(&self, list: &PluginList, path: &Path) -> Result<String, Error> {
        let kubeconfig = self.plan.source.as_ref().map(|source| source.kubeconfig(&self.plan.host));
        let given = [("nodeName", self.plan.node_name.is_some()), ("kubeconfig", kubeconfig.is_some())];
        let own = match &self.plan.own {
            Some(file) => {
                let own = keys_in(file)?;
                conf::judge_own(&own, &given)?;
                own
            }
            None => self.known.as_ref().map(Present::keys_of_administrator).unwrap_or_default(),
        };
        let mut capabilities = std::collections::BTreeSet::new();
        for plugin in &list.plugins {
            capabilities.extend(plugin.capabilities()?);
        }
        let wanted = conf::Wanted {
            cluster_network: path,
            capabilities,
            own,
            node_name: self.plan.node_name.as_deref(),
            kubeconfig: kubeconfig.as_deref(),
            behind: self.known.as_ref().map(|known| known.behind.clone()).unwrap_or_default(),
        };
        conf::build(&self.plan.host, wanted)
    }
}

/// Keeps the primary's configuration, writes ours, which leads to it, and takes the primary's out of the runtime's way. Says
/// what it changed, whether the primary's was written once more meanwhile, and whether it was taken.
fn lead_to(host: &Host, decision: &Decision, leave: bool) -> Result<(Vec<String>, bool, bool), Error> {
    let mut done = Vec::new();
    let shown = |name: &str| host.net_d.join(name).display().to_string();
    if let Some(choice) = &decision.choice
        && kept::keep(host, choice)?
    {
        done.push(format!("{} is kept as {}", shown(&choice.name), choice.kept_name()));
    }
    host::remove(&gate::removed_mark(&host.seen(&host.state)))?;
    if host::place(&host.conf(OUR_FILE), decision.text.as_bytes(), 0o600)? {
        done.push(format!("{} is written", shown(OUR_FILE)));
    }
    let Some(choice) = &decision.choice else { return Ok((done, false, false)) };
    done.extend(kept::give_back_behind(host, choice)?);
    if !choice.live {
        return Ok((done, false, false));
    }
    if leave && choice.name.as_str() > OUR_FILE {
        if kept::follow(host, choice)? {
            done.push(format!("{} has changed, and is followed", shown(&choice.name)));
        }
        return Ok((done, false, false));
    }
    let taken = kept::take(host, choice)?;
    done.push(format!("{} is taken over (network {})", shown(&choice.name), taken.name));
    Ok((done, taken != choice.list, true))
}

fn read_elsewhere(seen: &Path) -> Result<PluginList, Error> {
    let list = match PluginList::from_file(seen) {
        Err(Error::Io { path, source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
            return Err(Error::TryLater(format!("the primary network's configuration {path} is not there")));
        }
        read => read?,
    };
    match list.plugins.iter().find_map(|plugin| names_meta_plugin(&plugin.object)) {
        Some(kind) => Err(Error::Config(format!(
            "{} leads to a meta plugin (type \"{kind}\"): name the primary network's own configuration",
            seen.display()
        ))),
        None => Ok(list),
    }
}

/// Ours must be the first that the runtime reads.
fn refuse_what_comes_first(host: &Host, found: &[Found], choice: Option<&Choice>) -> Result<(), Error> {
    let taken = choice.filter(|choice| choice.live).map(|choice| choice.name.as_str());
    let first = primary::before_ours(found, taken);
    if first.is_empty() {
        return Ok(());
    }
    Err(Error::Config(format!(
        "the runtime would read {} in {} before our {OUR_FILE}: remove or rename it (first its owner, if it is a DaemonSet)",
        first.join(", "),
        host.net_d.display()
    )))
}

/// What somebody should know of our own configuration: that it was gone, and perhaps why.
fn remarks_of(host: &Host, is_there: bool, found: &[Found]) -> Vec<String> {
    if is_there || found.iter().all(|found| found.kept.is_none()) {
        return Vec::new();
    }
    let what = if host.conf(OUR_FILE).exists() { "is not as we wrote it" } else { "was gone" };
    let renamed = conf::renamed(host);
    let why = match renamed.as_slice() {
        [] => String::new(),
        names => format!(
            ": another program renamed it to {}; tell that to leave other configurations alone (for Cilium: cni.exclusive=false)",
            names.join(", ")
        ),
    };
    vec![format!("{OUR_FILE} {what}, and is put back{why}")]
}

/// What is left in the runtime's directory behind ours, and would be next if ours were lost.
fn others(found: &[Found], choice: Option<&Choice>) -> Vec<String> {
    let is_other = |found: &&Found| {
        let counts = matches!(found.live, Some(Content::Network(_) | Content::Meta(_)));
        counts && choice.is_none_or(|choice| choice.name != found.name)
    };
    let names: Vec<String> = found
        .iter()
        .filter(is_other)
        .filter_map(|found| Some(format!("{} ({})", found.name, found.live.as_ref()?.in_words())))
        .collect();
    if names.is_empty() {
        return Vec::new();
    }
    vec![format!("behind ours there is {}: without ours the runtime would use that", names.join(", "))]
}
