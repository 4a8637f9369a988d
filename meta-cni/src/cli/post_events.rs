//! `post-events`: the process that an ADD hands its events to when the API server is slow. Nobody waits for it. It is no
//! command for people, and so not in their table.

use std::{
    fs::{self, OpenOptions},
    io::{self, IsTerminal as _, Read},
    os::fd::RawFd,
};

use nix::unistd::{close, dup2_stderr, dup2_stdin, dup2_stdout, setsid};

use super::{Answer, Failure};
use crate::{
    cluster::{Handed, POST_COMMAND},
    cni::Error,
    log,
};

/// More than any call has to say.
const LONGEST_INPUT: u64 = 16 << 20;

/// Posts what is on stdin, in a session of its own, for a bounded time.
pub(super) fn run(stdin: impl Read) -> Result<Answer, Failure> {
    let usage = |problem: &str| {
        Failure::Usage(format!(
            "{POST_COMMAND} is what meta-cni itself starts, with the events of a pod as JSON on stdin ({problem})"
        ))
    };
    if io::stdin().is_terminal() {
        return Err(usage("it is a terminal"));
    }
    let mut text = String::new();
    stdin.take(LONGEST_INPUT).read_to_string(&mut text).map_err(|problem| usage(&problem.to_string()))?;
    let handed = Handed::read(&text).map_err(|problem| usage(&problem.to_string()))?;
    detach().map_err(|source| Error::io("leave the caller's session:", "/dev/null", source))?;
    log::start_at_best(&handed.settings());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| Error::io("start", "the I/O runtime", source))?;
    runtime.block_on(handed.post());
    Ok(Answer { text: String::new(), good: true })
}

/// Leaves everything of the caller behind: its session and process group, and what it has open. Its own end of stdout goes
/// last, by which the caller knows.
fn detach() -> io::Result<()> {
    // It fails only for the leader of a group, which a shell makes of us: then there is nobody to be detached from.
    let _ = setsid();
    let open: Vec<RawFd> = fs::read_dir("/proc/self/fd")?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|descriptor| *descriptor > 2)
        .collect();
    for descriptor in open {
        // The one that the directory was read by is closed already.
        let _ = close(descriptor);
    }
    let null = OpenOptions::new().read(true).write(true).open("/dev/null")?;
    dup2_stdin(&null)?;
    dup2_stderr(&null)?;
    dup2_stdout(&null)?;
    Ok(())
}
