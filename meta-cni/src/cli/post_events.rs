//! `post-events`: the process that an ADD hands its events to when the API server is slow. Nobody waits for it. It is no
//! command for people, and so not in their table.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, IsTerminal as _, Read, Seek as _},
    os::fd::{AsFd as _, RawFd},
    process::Stdio,
};

use nix::unistd::{close, dup2_stderr, dup2_stdin, dup2_stdout, setsid};

use super::{Answer, Failure};
use crate::{
    cluster::{Handed, POST_COMMAND, post_command},
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
    if setsid().is_err() && start_again().is_ok() {
        return Ok(Answer { text: String::new(), good: true });
    }
    let_go().map_err(|source| Error::io("let go of what the caller had open:", "/proc/self/fd, /dev/null", source))?;
    log::start_of_command(&handed.log_settings(), POST_COMMAND);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| Error::io("start", "the I/O runtime", source))?;
    runtime.block_on(handed.post());
    Ok(Answer { text: String::new(), good: true })
}

/// Starts the same once more, on the same events. A process that leads a process group cannot begin a session, and we lead
/// one from our start; a child of ours does not. It fails if stdin cannot be read twice: then a person started us, and the
/// session does not matter.
fn start_again() -> io::Result<()> {
    let mut input = File::from(io::stdin().as_fd().try_clone_to_owned()?);
    input.rewind()?;
    // It is not waited for, because we end.
    post_command().stdin(input).stdout(Stdio::null()).stderr(Stdio::null()).spawn().map(drop)
}

/// Closes whatever the caller had open, and was inherited.
fn let_go() -> io::Result<()> {
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
    dup2_stdout(&null)?;
    dup2_stderr(&null)?;
    Ok(())
}
