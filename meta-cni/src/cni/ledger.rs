//! Which plugin runs, written down where the next verb finds it should we be killed.

use std::{fs::File, io, os::unix::fs::FileExt as _, sync::Arc};

use nix::{
    sys::signal::{Signal, killpg},
    time::{ClockId, clock_gettime},
    unistd::Pid,
};
use serde::{Deserialize, Serialize};

/// Clock ticks of user space a second (`USER_HZ`): 100 on every architecture that Linux has today.
const TICKS: i64 = 100;
/// A note has always this length, so that one write replaces the one before.
const NOTE_LENGTH: usize = 192;

/// A process, or the group that it leads. The pid alone does not tell: it is used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessGroup {
    /// The group, which is also the pid of its leader.
    pub id: i32,
    /// It started at this time or later, in clock ticks since boot (field 22 of /proc/PID/stat)...
    pub earliest: u64,
    /// ...and at this time or before.
    pub latest: u64,
}

impl ProcessGroup {
    /// The group of a process that was started just now, at `before` or later. To look up the exact time in /proc would
    /// cost as much as a third of the start itself.
    pub(super) fn started_since(before: u64, pid: u32) -> Option<Self> {
        Some(Self { id: i32::try_from(pid).ok()?, earliest: before, latest: boot_ticks() })
    }

    /// This process.
    fn own() -> Option<Self> {
        let pid = std::process::id();
        let started = start_time(pid)?;
        Some(Self { id: i32::try_from(pid).ok()?, earliest: started, latest: started })
    }

    /// Whether its leader lives.
    #[must_use]
    pub fn is_alive(self) -> bool {
        let started = u32::try_from(self.id).ok().and_then(start_time);
        started.is_some_and(|started| (self.earliest..=self.latest).contains(&started))
    }

    /// Ends the group if its leader is still the process that was noted.
    pub fn end(self) {
        if self.is_alive() {
            // ESRCH: it ended just now, which is what was wanted.
            let _ = killpg(Pid::from_raw(self.id), Signal::SIGKILL);
        }
    }
}

/// Now, in clock ticks since boot.
pub(super) fn boot_ticks() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_BOOTTIME)
        .map_or(0, |now| now.tv_sec() * TICKS + now.tv_nsec() / (1_000_000_000 / TICKS));
    u64::try_from(now).unwrap_or(0)
}

/// The start time of a process, in clock ticks since boot; nothing if there is no such process.
fn start_time(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command's name is in brackets and may hold blanks and brackets: count from the last one.
    stat.rsplit_once(") ")?.1.split(' ').nth(19)?.parse().ok()
}

/// Who runs what.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    /// The process that executes the plugin: one of ours.
    pub worker: ProcessGroup,
    /// The plugin.
    pub plugin: ProcessGroup,
}

/// A file for notes, which need not survive a boot: that of the sandbox's lock. A note stays when the plugin has ended;
/// it is looked at only while somebody holds the lock for too long.
#[derive(Debug, Clone)]
pub struct Ledger {
    file: Arc<File>,
    worker: Option<ProcessGroup>,
}

impl Ledger {
    /// Notes of this process in a file that is open for writing.
    #[must_use]
    pub fn new(file: Arc<File>) -> Self {
        Self { file, worker: ProcessGroup::own() }
    }

    /// Notes the plugin that was just started.
    ///
    /// # Errors
    /// Of the write.
    pub(super) fn note(&self, plugin: ProcessGroup) -> io::Result<()> {
        let Some(worker) = self.worker else { return Ok(()) };
        let mut text = serde_json::to_vec(&Note { worker, plugin })?;
        text.resize(NOTE_LENGTH, b' ');
        self.file.write_all_at(&text, 0)
    }

    /// The last note in a file; nothing if there is none.
    #[must_use]
    pub fn read(text: &str) -> Option<Note> {
        // What comes after it may be the end of a longer note, of another release.
        serde_json::Deserializer::from_str(text).into_iter().next()?.ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_by_pid_and_start_and_no_other_is_ended_for_it() {
        let before = boot_ticks();
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let group = ProcessGroup::started_since(before, child.id()).unwrap();
        assert!(group.is_alive());
        let later = ProcessGroup { earliest: group.latest + 1, latest: group.latest + 9, ..group };
        let earlier = ProcessGroup { earliest: 0, latest: group.earliest - 1, ..group };
        for other in [later, earlier] {
            assert!(!other.is_alive());
            other.end();
        }
        assert!(child.try_wait().unwrap().is_none());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!group.is_alive());
        assert!(ProcessGroup::own().unwrap().is_alive());
    }

    #[test]
    fn a_note_replaces_the_one_before_and_fits() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let ledger = Ledger::new(Arc::new(file.reopen().unwrap()));
        let largest = ProcessGroup { id: i32::MAX, earliest: u64::MAX, latest: u64::MAX };
        let note = Note { worker: largest, plugin: largest };
        assert!(serde_json::to_vec(&note).unwrap().len() <= NOTE_LENGTH);
        for plugin in [largest, ProcessGroup { id: 1, earliest: 2, latest: 3 }] {
            ledger.note(plugin).unwrap();
            let text = std::fs::read_to_string(file.path()).unwrap();
            assert_eq!((Ledger::read(&text).unwrap().plugin, text.len()), (plugin, NOTE_LENGTH));
        }
        let longer = format!(r#"{{"shift":[1],"plugin":{{"id":9,"earliest":1,"latest":2,"x":0}},{:300}"worker":"#, "");
        let longer = longer + r#"{"id":8,"earliest":1,"latest":2}}"#;
        assert_eq!(Ledger::read(&longer).unwrap().plugin.id, 9, "that of a newer release");
        std::fs::write(file.path(), &longer).unwrap();
        ledger.note(largest).unwrap();
        let text = std::fs::read_to_string(file.path()).unwrap();
        assert_eq!((Ledger::read(&text).unwrap().plugin, text.len() > NOTE_LENGTH), (largest, true));
        assert_eq!(Ledger::read(""), None);
    }
}
