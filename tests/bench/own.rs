//! What our own process cost, without the plugins that it executed: looked at in the moment of its exit, where a tracer
//! may stop it. Nothing else of it is traced, so it runs as always.

use std::fs;

use nix::{
    sys::{
        ptrace::{self, Event, Options},
        wait::{WaitStatus, waitpid},
    },
    unistd::Pid,
};

use crate::harness::Call;

/// CPU and memory of one process.
#[derive(Clone, Copy, Default)]
pub(crate) struct Own {
    /// On a CPU, in user space and the kernel, all threads that were left at the end.
    pub(crate) cpu_ms: f64,
    /// The most memory that was resident, the program's own pages included.
    pub(crate) peak_mib: f64,
}

impl Own {
    /// Runs the call, which must succeed.
    #[expect(clippy::zombie_processes, reason = "its tracer waits for it, and sees its end")]
    pub(crate) fn of(call: Call) -> Self {
        let child = call.start();
        let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
        ptrace::seize(pid, Options::PTRACE_O_TRACEEXIT).unwrap();
        let mut own = Self::default();
        let code = loop {
            match waitpid(pid, None).unwrap() {
                WaitStatus::PtraceEvent(_, _, event) => {
                    assert_eq!(event, Event::PTRACE_EVENT_EXIT as i32);
                    own = Self::at_exit(pid);
                    ptrace::cont(pid, None).unwrap();
                }
                WaitStatus::Stopped(_, signal) => ptrace::cont(pid, signal).unwrap(),
                WaitStatus::Exited(_, code) => break code,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(code, 0, "the call failed");
        own
    }

    fn at_exit(pid: Pid) -> Self {
        let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
        let nanoseconds = tasks.map(|task| {
            let text = fs::read_to_string(task.unwrap().path().join("schedstat")).unwrap();
            text.split(' ').next().unwrap().parse::<f64>().unwrap()
        });
        let cpu_ms = nanoseconds.sum::<f64>() / 1e6;
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        let kib: f64 = peak.split_whitespace().next().unwrap().parse().unwrap();
        Self { cpu_ms, peak_mib: kib / 1024.0 }
    }
}
