//! Staying on the node: whatever others do to our files, to the primary's configuration or to the credentials is answered at
//! once, until somebody ends us. Nothing is removed then.

use std::{
    collections::VecDeque,
    fs::File,
    io,
    path::{Path, PathBuf},
    sync::Arc,
    thread::JoinHandle,
    time::Duration,
};

use nix::{
    errno::Errno,
    sys::inotify::{AddWatchFlags, InitFlags, Inotify},
};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::{Notify, oneshot},
    time::{Instant, sleep},
};
use tracing::Level;

use super::{
    Source,
    host::Host,
    pass::{Installer, Report},
    ready::{Finding, Teller},
    turn::{self, Turn, Whose},
};
use crate::{
    cli::{Answer, Failure, in_words},
    cni::Error,
    log::{self, LogSettings},
};

/// How often everything is looked at where nothing was heard: what inotify does not tell of (another mount in a directory's
/// place, a server that does not answer), and everything where there is no inotify.
const TICK: Duration = Duration::from_secs(5);
const DEAF_TICK: Duration = Duration::from_millis(500);
/// How long to wait with the next pass after one that had something to do: with somebody who undoes it each time, longer and
/// longer, but ours is back within a second.
const FIRST_PAUSE: Duration = Duration::from_millis(25);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);
/// After how often within which time the primary's owner is let have his file where he wants it.
const TAKES: usize = 4;
const TAKES_WITHIN: Duration = Duration::from_secs(60);

/// Installs, and keeps it so until SIGTERM or SIGINT, or another one comes; after each look it tells how it is.
///
/// # Errors
/// What somebody has to mend before it can be installed at all; what may come by itself is waited for.
pub(super) async fn watch(installer: Installer, status_file: Option<PathBuf>) -> Result<Answer, Failure> {
    start_log();
    let mut stop = Stop::new()?;
    let teller = Teller::new(status_file)?;
    let host = installer.plan.host.clone();
    host.create()?;
    let mut stays = host.stay()?;
    let mut ears = Ears::open();
    let mut said = Said::default();
    let mut takes = VecDeque::new();
    let mut pause = FIRST_PAUSE;
    let mut installed = false;
    let mut keeper = Keeper { installer, turn: Turn::default() };
    loop {
        if !host.is_held_by(&stays) {
            host.create()?;
            stays = host.stay()?;
        }
        if let Some(path) = keeper.source().and_then(|source| source.replaced(&host)) {
            return Ok(ended(&format!("{} was replaced on the node, which is not seen here", path.display())));
        }
        let deaf = !ears.listen(&keeper.places(&host));
        let leave = is_contested(&mut takes);
        let (back, outcome) = tokio::select! {
            () = stop.asked() => return Ok(ended("asked to end")),
            done = in_a_thread(keeper, leave) => done?,
        };
        keeper = back;
        let mut worked = false;
        let found = match outcome {
            Outcome::Another(file) => {
                said.another();
                ears.hear_of_its_end(file);
                Finding::Another
            }
            Outcome::Passed(report, problem) => {
                takes.extend(report.taken.then(Instant::now));
                said.report(&report, leave);
                worked = !report.done.is_empty() || problem.is_some();
                match problem {
                    // Somebody has to mend it: whoever started us is to see that, and starts us again.
                    Some(error) if !installed && !may_come(&error) => return Err(Failure::Failed(error)),
                    Some(error) => Finding::Bad { problem: said.problem(&error) },
                    None => {
                        installed = true;
                        said.all_is_well();
                        Finding::good(&host, keeper.source().and_then(|source| source.copies(&host)))
                    }
                }
            }
        };
        teller.tell(found).unwrap_or_else(|error| tracing::warn!("{}", in_words(&error)));
        tokio::select! {
            () = stop.asked() => return Ok(ended("asked to end")),
            () = rest(&ears, worked.then_some(pause), if deaf { DEAF_TICK } else { TICK }) => {}
        }
        pause = if worked { (pause * 2).min(LONGEST_PAUSE) } else { FIRST_PAUSE };
    }
}

/// Waits until something is heard, or for a tick; before that for a pause, if there is to be one.
async fn rest(ears: &Ears, pause: Option<Duration>, tick: Duration) {
    if let Some(pause) = pause {
        sleep(pause).await;
    }
    tokio::select! {
        () = sleep(tick) => {}
        () = ears.heard.notified() => {}
    }
}

fn start_log() {
    log::start_of_command(&LogSettings { level: Some(Level::INFO), ..LogSettings::default() }, "install");
}

fn ended(why: &str) -> Answer {
    tracing::info!("{why}: this installer ends, and everything stays installed");
    Answer { text: String::new(), good: true }
}

/// Whether what is missing may come by itself.
fn may_come(error: &Error) -> bool {
    match error {
        Error::TryLater(_) => true,
        Error::Several(errors) => errors.iter().all(may_come),
        _ => false,
    }
}

/// Whether somebody puts the primary's file back each time that it is taken away.
fn is_contested(takes: &mut VecDeque<Instant>) -> bool {
    takes.retain(|at| at.elapsed() < TAKES_WITHIN);
    takes.len() >= TAKES
}

/// Who keeps the installation.
struct Keeper {
    installer: Installer,
    turn: Turn,
}

/// What came of a look.
enum Outcome {
    /// All that is said of a pass.
    Passed(Report, Option<Error>),
    /// An installer that came later does the work; its lock is free when it has ended.
    Another(File),
}

impl Keeper {
    fn source(&self) -> Option<&Source> {
        self.installer.plan.source.as_ref()
    }

    /// The directories that matter, as they are seen here.
    fn places(&self, host: &Host) -> Vec<PathBuf> {
        let listened = self.source().map(Source::directories).unwrap_or_default();
        let own = [&host.net_d, &host.bin, &host.state, &host.credentials()].map(|path| host.seen(path));
        own.into_iter().chain(listened.into_iter().map(Path::to_owned)).collect()
    }

    /// Makes a pass if it is our turn.
    fn look(mut self, leave: bool) -> (Self, Outcome) {
        match self.turn.take(&self.installer.plan.host) {
            Ok(Whose::Another(file)) => return (self, Outcome::Another(file)),
            Ok(Whose::Ours) => {}
            // What one before us put there is not what belongs there now.
            Ok(Whose::OursNow) => self.installer = Installer::new(self.installer.plan, true),
            Err(error) => return (self, Outcome::Passed(Report::default(), Some(error))),
        }
        let (report, problem) = self.installer.pass(leave);
        (self, Outcome::Passed(report, problem))
    }
}

/// Looks in a thread: whoever ends us does not wait for it, and it may end anywhere.
async fn in_a_thread(keeper: Keeper, leave: bool) -> Result<(Keeper, Outcome), Error> {
    let (tell, told) = oneshot::channel();
    std::thread::Builder::new()
        .name("install".to_owned())
        .spawn(move || {
            // Nobody listens any more: we are being ended.
            let _ = tell.send(keeper.look(leave));
        })
        .map_err(|source| Error::io("start", "a thread", source))?;
    told.await.map_err(|_| Error::io("run", "the installer's thread", io::Error::other("it ended without an answer")))
}

/// The signals that end us.
struct Stop {
    term: Signal,
    int: Signal,
}

impl Stop {
    fn new() -> Result<Self, Error> {
        let on = |kind| signal(kind).map_err(|source| Error::io("listen for", "signals", source));
        Ok(Self { term: on(SignalKind::terminate())?, int: on(SignalKind::interrupt())? })
    }

    async fn asked(&mut self) {
        tokio::select! {
            _ = self.term.recv() => {}
            _ = self.int.recv() => {}
        }
    }
}

/// What was said last, so that it is not said again at each pass.
#[derive(Default)]
struct Said {
    remarks: Vec<String>,
    problem: String,
    contested: bool,
    another: bool,
}

impl Said {
    fn another(&mut self) {
        if !std::mem::replace(&mut self.another, true) {
            tracing::info!("an installer that came later does the work on this node from now on");
        }
    }

    fn report(&mut self, report: &Report, contested: bool) {
        if std::mem::take(&mut self.another) {
            tracing::info!("the installer that came later has ended: this one does the work again");
        }
        for line in &report.done {
            tracing::info!("{line}");
        }
        for remark in report.remarks.iter().filter(|remark| !self.remarks.contains(remark)) {
            tracing::warn!("{remark}");
        }
        self.remarks.clone_from(&report.remarks);
        if contested && !self.contested {
            tracing::warn!(
                "the primary network's configuration is put back each time that it is taken over: for a while it is left where it is, behind ours, and followed; if ours were lost the runtime would use it"
            );
        }
        self.contested = contested;
    }

    fn all_is_well(&mut self) {
        if !std::mem::take(&mut self.problem).is_empty() {
            tracing::info!("all is in place again");
        }
    }

    fn problem(&mut self, error: &Error) -> String {
        let problem = in_words(error);
        if problem != self.problem {
            tracing::error!("{problem}");
            self.problem.clone_from(&problem);
        }
        problem
    }
}

/// Hears of changes in directories, and of the end of another installer. Threads listen, and end with the process.
struct Ears {
    /// None where a user may have no more instances: then there is the tick.
    inotify: Option<Arc<Inotify>>,
    heard: Arc<Notify>,
    /// Whose end is waited for.
    awaited: Option<((u64, u64), JoinHandle<()>)>,
}

impl Ears {
    fn open() -> Self {
        let heard = Arc::new(Notify::new());
        let inotify = Self::try_open(&heard)
            .inspect_err(|problem| tracing::warn!("no inotify ({problem}): everything is looked at twice a second"));
        Self { inotify: inotify.ok(), heard, awaited: None }
    }

    fn try_open(heard: &Arc<Notify>) -> io::Result<Arc<Inotify>> {
        let inotify = Arc::new(Inotify::init(InitFlags::IN_CLOEXEC)?);
        let (listening, tell) = (Arc::clone(&inotify), Arc::clone(heard));
        std::thread::Builder::new().name("inotify".to_owned()).spawn(move || {
            loop {
                match listening.read_events() {
                    Ok(_) => tell.notify_one(),
                    Err(Errno::EINTR) => {}
                    Err(problem) => {
                        tracing::warn!("inotify: {problem}");
                        return;
                    }
                }
            }
        })?;
        Ok(inotify)
    }

    /// Listens in all of the directories that are there; gives whether that could be done. One that is listened in already
    /// costs nothing.
    fn listen(&self, places: &[PathBuf]) -> bool {
        let Some(inotify) = &self.inotify else { return false };
        let changes = AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_MODIFY
            | AddWatchFlags::IN_ATTRIB
            | AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_MOVE
            | AddWatchFlags::IN_DELETE_SELF
            | AddWatchFlags::IN_MOVE_SELF
            | AddWatchFlags::IN_ONLYDIR;
        let mut good = true;
        for place in places.iter().filter(|place| place.is_dir()) {
            good &= inotify.add_watch(place, changes).is_ok();
        }
        good
    }

    /// Hears when another installer has ended, by its lock: whatever its token was, ours is wanted at once. Where no thread
    /// can be had there is the tick.
    fn hear_of_its_end(&mut self, file: File) {
        let Ok(id) = turn::id(&file) else { return };
        if self.awaited.as_ref().is_some_and(|(awaited, thread)| *awaited == id && !thread.is_finished()) {
            return;
        }
        let tell = Arc::clone(&self.heard);
        let waiting = std::thread::Builder::new().name("turn".to_owned()).spawn(move || {
            if file.lock_shared().is_ok() {
                drop(file);
                tell.notify_one();
            }
        });
        self.awaited = waiting.ok().map(|thread| (id, thread));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_may_come_by_itself_is_waited_for() {
        let later = || Error::TryLater("not yet".to_owned());
        let wrong = || Error::Config("wrong".to_owned());
        for (error, wanted) in [
            (later(), true),
            (wrong(), false),
            (Error::Several(vec![later(), later()]), true),
            (Error::Several(vec![later(), wrong()]), false),
        ] {
            assert_eq!(may_come(&error), wanted, "{error:?}");
        }
    }
}
