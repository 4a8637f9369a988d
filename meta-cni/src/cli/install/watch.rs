//! Staying on the node: whatever others do to our files, to the primary's configuration or to the credentials is answered at
//! once, until somebody ends us. Nothing is removed then.

use std::{
    collections::VecDeque,
    io,
    path::{Path, PathBuf},
    sync::Arc,
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

use super::pass::{Installer, Report};
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

/// Installs, and keeps it so until SIGTERM or SIGINT.
///
/// # Errors
/// What somebody has to mend before it can be installed at all; what may come by itself is waited for.
pub(super) async fn watch(mut installer: Installer) -> Result<Answer, Failure> {
    start_log();
    let mut stop = Stop::new()?;
    let host = installer.plan.host.clone();
    host.create()?;
    let mut stays = host.stay()?;
    let ears = Ears::open();
    let mut said = Said::default();
    let mut takes = VecDeque::new();
    let mut pause = FIRST_PAUSE;
    let mut installed = false;
    loop {
        if !host.is_held_by(&stays) {
            host.create()?;
            stays = host.stay()?;
        }
        let listened = installer.plan.source.as_ref().map(super::Source::directories).unwrap_or_default();
        let own = [host.seen(&host.net_d), host.seen(&host.bin), host.seen(&host.credentials())];
        let places: Vec<PathBuf> = own.into_iter().chain(listened.into_iter().map(Path::to_owned)).collect();
        let deaf = ears.as_ref().is_none_or(|ears| !ears.listen(&places));
        let leave = is_contested(&mut takes);
        let (back, report, problem) = tokio::select! {
            () = stop.asked() => return Ok(ended()),
            done = in_a_thread(installer, leave) => done?,
        };
        installer = back;
        takes.extend(report.taken.then(Instant::now));
        said.report(&report, leave);
        let worked = !report.done.is_empty() || problem.is_some();
        match problem {
            // Somebody has to mend it: whoever started us is to see that, and starts us again.
            Some(error) if !installed && !may_come(&error) => return Err(Failure::Failed(error)),
            Some(error) => said.problem(&error),
            None => {
                installed = true;
                said.all_is_well();
            }
        }
        let wait = async {
            if worked {
                sleep(pause).await;
            }
            let tick = if deaf { DEAF_TICK } else { TICK };
            tokio::select! {
                () = sleep(tick) => {}
                () = hear(ears.as_ref()) => {}
            }
        };
        tokio::select! {
            () = stop.asked() => return Ok(ended()),
            () = wait => {}
        }
        pause = if worked { (pause * 2).min(LONGEST_PAUSE) } else { FIRST_PAUSE };
    }
}

fn start_log() {
    log::start_of_command(&LogSettings { level: Some(Level::INFO), ..LogSettings::default() }, "install");
}

fn ended() -> Answer {
    tracing::info!("asked to end: everything stays installed");
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

/// Makes a pass in a thread: whoever ends us does not wait for it, and it may end anywhere.
async fn in_a_thread(mut installer: Installer, leave: bool) -> Result<(Installer, Report, Option<Error>), Error> {
    let (tell, told) = oneshot::channel();
    std::thread::Builder::new()
        .name("install".to_owned())
        .spawn(move || {
            let (report, problem) = installer.pass(leave);
            // Nobody listens any more: we are being ended.
            let _ = tell.send((installer, report, problem));
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
}

impl Said {
    fn report(&mut self, report: &Report, contested: bool) {
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

    fn problem(&mut self, error: &Error) {
        let problem = in_words(error);
        if problem != self.problem {
            tracing::error!("{problem}");
            self.problem = problem;
        }
    }
}

/// Hears of changes in directories. A thread listens, and ends with the process.
struct Ears {
    inotify: Arc<Inotify>,
    heard: Arc<Notify>,
}

impl Ears {
    /// None where a user may have no more instances: then there is the tick.
    fn open() -> Option<Self> {
        match Self::try_open() {
            Ok(ears) => Some(ears),
            Err(problem) => {
                tracing::warn!("no inotify ({problem}): everything is looked at twice a second");
                None
            }
        }
    }

    fn try_open() -> io::Result<Self> {
        let inotify = Arc::new(Inotify::init(InitFlags::IN_CLOEXEC)?);
        let heard = Arc::new(Notify::new());
        let (listening, tell) = (Arc::clone(&inotify), Arc::clone(&heard));
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
        Ok(Self { inotify, heard })
    }

    /// Listens in all of the directories that are there; gives whether that could be done. One that is listened in already
    /// costs nothing.
    fn listen(&self, places: &[PathBuf]) -> bool {
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
            good &= self.inotify.add_watch(place, changes).is_ok();
        }
        good
    }
}

/// Waits for a change; for ever where there is nothing to hear by.
async fn hear(ears: Option<&Ears>) {
    match ears {
        Some(ears) => ears.heard.notified().await,
        None => std::future::pending().await,
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
