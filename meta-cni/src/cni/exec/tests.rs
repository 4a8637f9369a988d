use std::{fs, os::unix::fs::PermissionsExt, sync::Arc};

use nix::{sys::signal::killpg, unistd::Pid};
use tempfile::TempDir;

use super::*;

/// A plugin made of a shell script.
struct Script {
    dir: TempDir,
}

impl Script {
    fn new(text: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("plugin");
        fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        Self { dir }
    }

    /// Runs it, and gives the group that was noted.
    async fn run_for(&self, limit: Duration) -> (Result<Value, Error>, Option<ProcessGroup>) {
        let notes = self.dir.path().join("notes");
        let ledger = Ledger::new(Arc::new(fs::File::create(&notes).unwrap()));
        let program = self.dir.path().join("plugin");
        let deadline = Instant::now() + limit;
        let execution = Execution {
            program: &program,
            env: &[],
            without: &[],
            stdin: "{\"a\":1}",
            deadline,
            ledger: Some(&ledger),
        };
        let result = execution.run().await;
        let note = Ledger::read(&fs::read_to_string(notes).unwrap());
        assert!(note.is_none_or(|note| note.worker.is_alive()));
        (result, note.map(|note| note.plugin))
    }

    async fn run(&self) -> Result<Value, Error> {
        self.run_for(Duration::from_secs(20)).await.0
    }
}

fn broken(result: Result<Value, Error>) -> String {
    match result {
        Err(Error::DelegateBroken(text)) => text,
        other => panic!("expected a broken plugin, got {other:?}"),
    }
}

#[tokio::test]
async fn the_plugin_reads_its_configuration_and_answers() {
    assert_eq!(Script::new("cat").run().await.unwrap(), serde_json::json!({"a": 1}));
    assert_eq!(Script::new("exit 0").run().await.unwrap(), Value::Null);
}

#[tokio::test]
async fn its_own_error_is_passed_on() {
    let script = Script::new(r#"echo '{"code":7,"msg":"no","details":"why"}'; exit 1"#);
    match script.run().await {
        Err(Error::Delegate { code: 7, msg, details }) => assert_eq!((msg.as_str(), details.as_str()), ("no", "why")),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn failures_without_an_error_object_are_quoted() {
    assert!(broken(Script::new("echo oops >&2; exit 3").run().await).contains("exit code 3: oops"));
    assert!(broken(Script::new("kill -9 $$").run().await).contains("killed by signal 9"));
    assert!(broken(Script::new("echo garbage").run().await).contains("no result"));
}

#[tokio::test]
async fn too_much_output_is_cut_off() {
    let script = Script::new("exec head -c 100000000 /dev/zero");
    assert!(broken(script.run().await).contains("more than 1024 KiB"));
}

#[tokio::test]
async fn a_hanging_plugin_is_ended_with_its_children() {
    let script = Script::new("sleep 300 & sleep 300");
    let (result, group) = script.run_for(Duration::from_millis(300)).await;
    assert!(broken(result).contains("deadline"));
    let group = group.unwrap();
    // The group is empty once the kernel has reaped the killed child of the shell.
    for _ in 0..100 {
        if killpg(Pid::from_raw(group.id), None).is_err() {
            return;
        }
        sleep(Duration::from_millis(20)).await;
    }
    panic!("a process of the group is left");
}

#[tokio::test]
async fn a_child_that_keeps_the_output_open_does_not_hold_us_up() {
    let script = Script::new("sleep 5 & echo '{}'");
    let before = Instant::now();
    script.run().await.unwrap();
    assert!(before.elapsed() < Duration::from_secs(4));
}

#[tokio::test]
async fn a_busy_program_is_tried_again() {
    let script = Script::new("cat");
    let path = script.dir.path().join("plugin");
    let writer = fs::OpenOptions::new().append(true).open(&path).unwrap();
    let release = tokio::spawn(async move {
        sleep(Duration::from_millis(300)).await;
        drop(writer);
    });
    assert_eq!(script.run().await.unwrap(), serde_json::json!({"a": 1}));
    release.await.unwrap();
}

#[tokio::test]
async fn a_plugin_that_cannot_be_noted_does_nothing() {
    let script = Script::new("read line && touch \"$0.ran\"");
    let program = script.dir.path().join("plugin");
    let deadline = Instant::now() + Duration::from_secs(5);
    // Open for reading only: the write fails.
    let ledger = Ledger::new(Arc::new(fs::File::open(&program).unwrap()));
    let execution =
        Execution { program: &program, env: &[], without: &[], stdin: "{}\n", deadline, ledger: Some(&ledger) };
    assert!(matches!(execution.run().await, Err(Error::Io { .. })));
    sleep(Duration::from_millis(100)).await;
    assert!(!script.dir.path().join("plugin.ran").exists());
}
