//! Runs our binary under ptrace(2) and kills it exactly before its k-th system call that changes something.
//!
//! Not strace, because `inject=CALL:signal=KILL:when=n` counts each call of each thread apart: with several threads a
//! recorded point may never be reached, or be another one. Here one count runs over all threads, in the order in which
//! the kernel gets to see their calls, and a call before which we kill is not carried out. Killed before the k-th is
//! killed after the one before it, so with the exit as the last point no state between two changes is left out.
//!
//! Only our process and its threads are traced. The plugins that it executes are processes of their own and run on.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::Read as _,
    os::unix::fs::FileExt as _,
};

use nix::{
    libc,
    sys::{
        ptrace::{self, Options},
        signal::{Signal, kill},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};

use super::Call;

/// Where a call may be killed: before a system call that changes something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Point {
    /// The system call.
    pub call: &'static str,
    /// What it is about: a path, a kind of netlink message.
    pub about: String,
    /// It changes the kernel's links or addresses, a record or a lease, or starts a plugin: not only a draft, a lock or a
    /// directory.
    pub is_state: bool,
}

impl Point {
    /// All is done, but the runtime has not been told, or does not know that it was all.
    pub fn is_answer(&self) -> bool {
        self.about == STDOUT || self.call == "exit_group"
    }
}

/// Which points count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    /// Those that change the kernel's, the records' and the leases' state.
    State,
    /// All.
    All,
}

/// What became of a traced call.
#[derive(Debug)]
pub struct Traced {
    /// The points that were passed, and last the one before which the process was killed.
    pub points: Vec<Point>,
    /// Whether it was killed, rather than ended by itself before that point.
    pub killed: bool,
    /// Its exit code, if it ended by itself.
    pub code: Option<i32>,
    /// What it printed.
    pub stdout: String,
}

/// Runs a call and kills it before the counted point `before` (from 0); with none, lets it run to its end.
pub fn trace(call: &Call, which: Which, before: Option<usize>) -> Traced {
    let mut child = call.start_unfed();
    let process = Pid::from_raw(i32::try_from(child.id()).unwrap());
    // It reads all of stdin before it does anything, so nothing is missed.
    ptrace::seize(process, Options::PTRACE_O_TRACECLONE | Options::PTRACE_O_TRACESYSGOOD | Options::PTRACE_O_EXITKILL)
        .unwrap();
    ptrace::interrupt(process).unwrap();
    call.feed(&mut child);

    let mut tracee = Tracee { process, stdins: BTreeSet::new() };
    let mut points = Vec::new();
    let mut killed = false;
    let code = loop {
        // Only our own thread's children: other tests have theirs.
        let status = waitpid(None, Some(WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD)).unwrap();
        let resumed = match status {
            WaitStatus::Exited(pid, code) if pid == process => break Some(code),
            WaitStatus::Signaled(pid, ..) if pid == process => break None,
            WaitStatus::PtraceSyscall(thread) => {
                let point = tracee.entered(thread).filter(|point| which == Which::All || point.is_state);
                if !killed && let Some(point) = point {
                    points.push(point);
                    if before == Some(points.len() - 1) {
                        kill(process, Signal::SIGKILL).unwrap();
                        killed = true;
                    }
                }
                if killed { Ok(()) } else { ptrace::syscall(thread, None) }
            }
            WaitStatus::PtraceEvent(thread, ..) => ptrace::syscall(thread, None),
            WaitStatus::Stopped(thread, signal) => ptrace::syscall(thread, signal),
            _ => Ok(()),
        };
        // ESRCH: it was killed while it stood.
        assert!(resumed.is_ok() || resumed == Err(nix::errno::Errno::ESRCH), "{resumed:?} after {status:?}");
    };
    let mut stdout = String::new();
    child.stdout.take().unwrap().read_to_string(&mut stdout).unwrap();
    Traced { points, killed: code.is_none(), code, stdout }
}

/// A process that stands, to be looked into.
struct Tracee {
    process: Pid,
    /// Pipes that it wrote to: the stdin of a plugin.
    stdins: BTreeSet<u64>,
}

impl Tracee {
    /// The point at which a thread stands, if it is about to make a system call, and one that changes something.
    fn entered(&mut self, thread: Pid) -> Option<Point> {
        let is_entry = ptrace::syscall_info(thread).is_ok_and(|info| info.op == libc::PTRACE_SYSCALL_INFO_ENTRY);
        let registers = if is_entry { ptrace::getregs(thread).ok()? } else { return None };
        let arguments = [registers.rdi, registers.rsi, registers.rdx, registers.r10];
        self.point(i64::try_from(registers.orig_rax).ok()?, arguments)
    }

    fn point(&mut self, number: i64, [a, b, c, d]: [u64; 4]) -> Option<Point> {
        let point = |call, about, is_state| Some(Point { call, about, is_state });
        let creating = |flags: u64| flags & (libc::O_CREAT | libc::O_TRUNC).unsigned_abs() as u64 != 0;
        let unnamed = |flags: u64| flags & TMPFILE == TMPFILE;
        match number {
            libc::SYS_openat if creating(c) || unnamed(c) => point("openat", self.text(b), false),
            libc::SYS_open if creating(b) || unnamed(b) => point("open", self.text(a), false),
            libc::SYS_write | libc::SYS_pwrite64 | libc::SYS_writev | libc::SYS_ftruncate => {
                let file = if a == 1 { STDOUT.to_owned() } else { self.file(a) };
                if number == libc::SYS_write && a > 2 && file.starts_with("pipe:") {
                    self.stdins.insert(a);
                }
                // A wake-up of a thread is none, and neither is a line in the log.
                (!file.starts_with("anon_inode:") && a != 2).then_some(Point {
                    call: "write",
                    about: file,
                    is_state: false,
                })
            }
            // A plugin starts to work when its stdin ends, and works on if we die there.
            libc::SYS_close if self.stdins.remove(&a) => point("close", self.file(a), true),
            libc::SYS_sendto => self.message(b, c).and_then(|about| point("sendto", about, true)),
            libc::SYS_sendmsg => {
                let message = self.word(b + 16).map(|vector| (self.word(vector), self.word(vector + 8)));
                let Some((Some(base), Some(length))) = message else { return None };
                self.message(base, length).and_then(|about| point("sendmsg", about, true))
            }
            libc::SYS_rename => point("rename", self.text(b), true),
            libc::SYS_renameat | libc::SYS_renameat2 => point("renameat", self.text(d), true),
            libc::SYS_link => point("link", self.text(b), true),
            libc::SYS_linkat => point("linkat", self.text(d), true),
            libc::SYS_unlink => point("unlink", self.text(a), true),
            libc::SYS_unlinkat => point("unlinkat", self.text(b), true),
            libc::SYS_mkdir => point("mkdir", self.text(a), false),
            libc::SYS_mkdirat => point("mkdirat", self.text(b), false),
            libc::SYS_rmdir => point("rmdir", self.text(a), false),
            libc::SYS_symlink => point("symlink", self.text(b), false),
            libc::SYS_symlinkat => point("symlinkat", self.text(c), false),
            libc::SYS_utimensat => point("utimensat", self.text(b), false),
            libc::SYS_chmod => point("chmod", self.text(a), false),
            libc::SYS_fchmod => point("fchmod", self.file(a), false),
            libc::SYS_fsync | libc::SYS_fdatasync => point("fsync", self.file(a), false),
            libc::SYS_flock => point("flock", self.file(a), false),
            libc::SYS_setns => point("setns", self.file(a), false),
            libc::SYS_unshare => point("unshare", String::new(), false),
            libc::SYS_mount => point("mount", self.text(b), false),
            libc::SYS_umount2 => point("umount", self.text(a), false),
            libc::SYS_fork | libc::SYS_vfork => point("fork", String::new(), true),
            libc::SYS_clone if a & THREAD == 0 => point("clone", String::new(), true),
            libc::SYS_clone3 if self.word(a).is_some_and(|flags| flags & THREAD == 0) => {
                point("clone3", String::new(), true)
            }
            libc::SYS_kill | libc::SYS_tgkill => point("kill", format!("{a} {b}"), false),
            libc::SYS_exit_group => point("exit_group", String::new(), false),
            _ => None,
        }
    }

    /// A changing message on a socket. What only asks a netlink socket (every third of four kinds, rtnetlink(7)) is none.
    fn message(&self, at: u64, length: u64) -> Option<String> {
        let header = self.bytes(at, 16)?;
        let kind = u16::from_ne_bytes([header[4], header[5]]);
        (length >= 16 && kind >= 16 && kind & 3 != 2).then(|| format!("message {kind} of {length} bytes"))
    }

    fn file(&self, descriptor: u64) -> String {
        let link = fs::read_link(format!("/proc/{}/fd/{descriptor}", self.process));
        link.map(|path| path.display().to_string()).unwrap_or_default()
    }

    fn text(&self, at: u64) -> String {
        let mut text = Vec::new();
        while let Some(part) = self.bytes(at + text.len() as u64, 32) {
            text.extend(part.iter().take_while(|byte| **byte != 0));
            if part.contains(&0) {
                break;
            }
        }
        String::from_utf8_lossy(&text).into_owned()
    }

    fn word(&self, at: u64) -> Option<u64> {
        self.bytes(at, 8).map(|bytes| u64::from_ne_bytes(bytes.try_into().unwrap()))
    }

    fn bytes(&self, at: u64, length: usize) -> Option<Vec<u8>> {
        let mut bytes = vec![0; length];
        let memory = File::open(format!("/proc/{}/mem", self.process)).ok()?;
        // Less than asked for at the end of what is mapped.
        let read = memory.read_at(&mut bytes, at).ok()?;
        bytes.truncate(read);
        (read > 0).then_some(bytes)
    }
}

/// What [`Point::about`] is for the answer.
const STDOUT: &str = "stdout";
/// `O_TMPFILE` without the directory bit that it includes.
const TMPFILE: u64 = 0o20_000_000;
/// `CLONE_THREAD`.
const THREAD: u64 = 0x1_0000;

/// How often each call is among the points.
pub fn census(points: &[Point]) -> String {
    let mut counts = BTreeMap::new();
    for point in points {
        *counts.entry(point.call).or_insert(0) += 1;
    }
    counts.iter().map(|(call, count)| format!("{call} {count}")).collect::<Vec<_>>().join(", ")
}
