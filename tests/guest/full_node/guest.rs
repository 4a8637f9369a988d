//! The virtual machine, from outside.

use std::{
    fs::{self, File, OpenOptions},
    io::Write as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicUsize, Ordering::SeqCst},
    thread::sleep,
    time::{Duration, Instant},
};

use super::cluster::beds_script;
use crate::harness::{beds, run};

/// How long a command in the guest may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(300);

/// The virtual machine, and the disk that outlives it.
pub(crate) struct Guest {
    directory: PathBuf,
    machine: Child,
    input: File,
    commands: AtomicUsize,
}

impl Guest {
    /// Boots a machine with a new disk; `tests/guest/full-node-inside` says what it does then.
    pub(crate) fn boot(directory: &Path) -> Self {
        let disk = directory.join("disk");
        File::create(&disk).unwrap().set_len(4 << 30).unwrap();
        run("mkfs.ext4", &["-q", disk.to_str().unwrap()]);
        let fifo = directory.join("input");
        run("mkfifo", &[fifo.to_str().unwrap()]);
        // For reading as well: then it opens at once, and stays open while no machine runs.
        let input = OpenOptions::new().read(true).write(true).open(fifo).unwrap();
        Self { directory: directory.into(), machine: start(directory), input, commands: AtomicUsize::new(0) }
    }

    /// Ends the machine as a power cut does, and starts it again with its disk.
    pub(crate) fn reset(&mut self) {
        let pid = fs::read_to_string(self.directory.join("bed/pid")).unwrap();
        run("kill", &["-9", pid.trim()]);
        self.machine.wait().unwrap();
        self.machine = start(&self.directory);
    }

    /// Runs a script in the guest: whether it succeeded, and what it printed.
    pub(crate) fn try_run(&self, script: &str) -> (bool, String) {
        let number = self.commands.fetch_add(1, SeqCst);
        let path = |kind: &str| self.directory.join(format!("commands/{number}{kind}"));
        fs::write(path(""), script).unwrap();
        (&self.input).write_all(format!("{number}\n").as_bytes()).unwrap();
        let end = Instant::now() + PATIENCE;
        while !path(".status").exists() {
            assert!(Instant::now() < end, "the guest has not done it in {PATIENCE:?}: {script}; {}", self.said());
            sleep(Duration::from_millis(50));
        }
        let status = fs::read_to_string(path(".status")).unwrap();
        (status.trim() == "0", fs::read_to_string(path(".output")).unwrap().trim().to_owned())
    }

    /// Runs a script in the guest, and panics unless it succeeds.
    #[track_caller]
    pub(crate) fn run(&self, script: &str) -> String {
        let (done, text) = self.try_run(script);
        assert!(done, "{script}: {text}");
        text
    }

    /// What the guest's script printed.
    pub(crate) fn said(&self) -> String {
        fs::read_to_string(self.directory.join("boot.log")).unwrap_or_default()
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // On SIGTERM `boot` ends QEMU as well.
        let _ = Command::new("kill").arg(self.machine.id().to_string()).status();
        let _ = self.machine.wait();
    }
}

fn start(directory: &Path) -> Child {
    let log = File::options().create(true).append(true).open(directory.join("boot.log")).unwrap();
    let path = |name: &str| directory.join(name);
    Command::new(beds_script("guest/boot"))
        .args(["-t", "3600", "-o"])
        .arg(directory)
        .arg("-d")
        .arg(path("disk"))
        .arg("-n")
        .arg(path("input"))
        .arg(beds_script("guest/full-node-inside"))
        .arg(directory)
        .env("META_CNI_BED_CACHE", beds())
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .unwrap()
}
