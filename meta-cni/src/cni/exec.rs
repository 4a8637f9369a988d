//! One plugin, executed: environment and configuration in, a result or an error out, within bounds of time and memory.

use std::{
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use serde::Deserialize;
use serde_json::Value;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    process::{Child, Command},
    time::{Instant, sleep, timeout_at},
};

use super::{Error, Ledger, ProcessGroup, boot_ticks, invocation::RECURSION_MARK};

/// The most that a plugin may print on stdout; a result is a few KiB.
const STDOUT_LIMIT: usize = 1 << 20;
/// The most of a plugin's stderr that is kept to be quoted.
const STDERR_LIMIT: usize = 8 << 10;
/// How long "text file busy" is retried: a DaemonSet is just replacing the plugin.
const BUSY_LIMIT: Duration = Duration::from_secs(5);
/// How long output may stay open after the plugin itself has ended (it left a child behind that holds the pipe).
const DRAIN_LIMIT: Duration = Duration::from_millis(500);

/// Finds a plugin in the directories, in their order (libcni `FindInPath`).
///
/// # Errors
/// [`Error::Config`] naming plugin and directories.
pub fn find_plugin(kind: &str, directories: &[PathBuf]) -> Result<PathBuf, Error> {
    directories.iter().map(|directory| directory.join(kind)).find(|path| path.is_file()).ok_or_else(|| {
        let places: Vec<String> = directories.iter().map(|directory| directory.display().to_string()).collect();
        Error::Config(format!("failed to find plugin \"{kind}\" in path [{}]: install it there", places.join(" ")))
    })
}

/// One execution of a plugin.
#[derive(Debug)]
pub(super) struct Execution<'a> {
    /// Its program.
    pub(super) program: &'a Path,
    /// The CNI variables; the rest of the environment is ours.
    pub(super) env: &'a [(&'static str, String)],
    /// What of ours it is not given.
    pub(super) without: &'a [&'static str],
    /// What it reads on stdin.
    pub(super) stdin: &'a str,
    /// When it is ended.
    pub(super) deadline: Instant,
    /// Where it is noted while it runs.
    pub(super) ledger: Option<&'a Ledger>,
}

impl Execution<'_> {
    /// Runs the plugin. Its process group is noted before it gets its configuration: until then it can do nothing, and
    /// if we die it reads an empty text and ends.
    ///
    /// # Errors
    /// [`Error::Delegate`] when the plugin said why, [`Error::DelegateBroken`] when it did not, [`Error::Io`].
    pub(super) async fn run(&self) -> Result<Value, Error> {
        let name = self.program.file_name().unwrap_or_default().to_string_lossy();
        let (mut child, group) = self.spawn().await?;
        if let (Some(ledger), Some(group)) = (self.ledger, group)
            && let Err(source) = ledger.note(group)
        {
            end(&mut child, Some(group)).await;
            return Err(Error::io("note in the lock's file the process of", self.program.display(), source));
        }
        match timeout_at(self.deadline, exchange(&mut child, self.stdin)).await {
            Ok(Ok(output)) => {
                if output.status.is_none() {
                    end(&mut child, group).await;
                }
                output.judge(&name)
            }
            Ok(Err(source)) => {
                end(&mut child, group).await;
                Err(Error::DelegateBroken(format!("plugin {name} could not be talked to: {source}")))
            }
            Err(_) => {
                end(&mut child, group).await;
                Err(Error::DelegateBroken(format!("plugin {name} did not end within the deadline and was killed")))
            }
        }
    }

    async fn spawn(&self) -> Result<(Child, Option<ProcessGroup>), Error> {
        let give_up = (Instant::now() + BUSY_LIMIT).min(self.deadline);
        let mut pause = Duration::from_millis(5);
        loop {
            let before = boot_ticks();
            let mut command = Command::new(self.program);
            for key in self.without {
                command.env_remove(key);
            }
            let spawned = command
                .envs(self.env.iter().map(|(key, value)| (key, value)))
                .env(RECURSION_MARK, "1")
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .process_group(0)
                .spawn();
            match spawned {
                Ok(child) => {
                    let group = child.id().and_then(|pid| ProcessGroup::started_since(before, pid));
                    return Ok((child, group));
                }
                Err(error) if error.kind() == std::io::ErrorKind::ExecutableFileBusy && Instant::now() < give_up => {
                    sleep(pause).await;
                    pause = (pause * 2).min(Duration::from_millis(200));
                }
                Err(source) => return Err(Error::io("execute", self.program.display(), source)),
            }
        }
    }
}

/// Ends the whole group: a plugin's own children hold the sandbox's lock, too.
async fn end(child: &mut Child, group: Option<ProcessGroup>) {
    if let Some(group) = group {
        group.end();
    }
    // It may have ended by itself; either way it is waited for, so that no zombie stays.
    let _ = child.kill().await;
}

struct Output {
    /// Nothing when it printed too much and was not waited for.
    status: Option<ExitStatus>,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

async fn exchange(child: &mut Child, text: &str) -> std::io::Result<Output> {
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let mut output = Output { status: None, stdout: Vec::new(), stderr: Vec::new() };
    let feed = async move {
        if let Some(mut stdin) = stdin {
            // A plugin that does not read its configuration is judged by what it answers.
            let _ = stdin.write_all(text.as_bytes()).await;
        }
    };
    let (out, err) = (&mut output.stdout, &mut output.stderr);
    let reading = async move {
        tokio::join!(feed, keep(stdout, out, STDOUT_LIMIT + 1, true), keep(stderr, err, STDERR_LIMIT, false));
    };
    let ended = {
        tokio::pin!(reading);
        tokio::select! {
            () = &mut reading => None,
            status = child.wait() => {
                let _ = tokio::time::timeout(DRAIN_LIMIT, &mut reading).await;
                Some(status?)
            }
        }
    };
    if output.stdout.len() > STDOUT_LIMIT {
        return Ok(output);
    }
    output.status = Some(match ended {
        Some(status) => status,
        None => child.wait().await?,
    });
    Ok(output)
}

/// Reads to the end, keeping the first `limit` bytes; with `stop`, reads no further than that.
async fn keep(source: Option<impl AsyncRead + Unpin>, into: &mut Vec<u8>, limit: usize, stop: bool) {
    let Some(mut source) = source else { return };
    let mut chunk = [0; 8192];
    while let Ok(read) = source.read(&mut chunk).await {
        let room = limit.saturating_sub(into.len());
        into.extend_from_slice(&chunk[..read.min(room)]);
        if read == 0 || (stop && into.len() >= limit) {
            return;
        }
    }
}

impl Output {
    fn judge(self, name: &str) -> Result<Value, Error> {
        let broken = |what: String| Error::DelegateBroken(format!("plugin {name} {what}"));
        let Some(status) = self.status else {
            return Err(broken(format!("printed more than {} KiB and was killed", STDOUT_LIMIT >> 10)));
        };
        let stderr = quote(&self.stderr);
        if status.success() {
            if !stderr.is_empty() {
                tracing::debug!(plugin = name, stderr, "the plugin printed on stderr");
            }
            if self.stdout.iter().all(u8::is_ascii_whitespace) {
                return Ok(Value::Null);
            }
            return serde_json::from_slice(&self.stdout)
                .map_err(|problem| broken(format!("printed what is no result ({problem}): {}", quote(&self.stdout))));
        }
        if let Ok(error) = serde_json::from_slice::<PluginError>(&self.stdout) {
            return Err(Error::Delegate { code: error.code, msg: error.msg, details: error.details });
        }
        let how = match std::os::unix::process::ExitStatusExt::signal(&status) {
            Some(signal) => format!("was killed by signal {signal}"),
            None => format!("failed with exit code {}", status.code().unwrap_or_default()),
        };
        let said = if stderr.is_empty() { quote(&self.stdout) } else { stderr };
        Err(broken(if said.is_empty() { format!("{how} and said nothing") } else { format!("{how}: {said}") }))
    }
}

#[derive(Deserialize)]
struct PluginError {
    code: u32,
    #[serde(default)]
    msg: String,
    #[serde(default)]
    details: String,
}

/// At most 500 characters of foreign text, on one line.
fn quote(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    let mut line: String = text.trim().chars().take(500).map(|c| if c.is_control() { ' ' } else { c }).collect();
    if text.trim().chars().count() > 500 {
        line.push('…');
    }
    line
}

#[cfg(test)]
mod tests;
