//! A call of a CNI plugin as a runtime makes it.

use std::{
    collections::BTreeMap,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use serde_json::Value;

/// A call that is being put together.
pub struct Call {
    program: PathBuf,
    env: BTreeMap<String, String>,
    stdin: String,
    wrapper: Vec<String>,
}

/// What came back.
#[derive(Debug)]
pub struct Outcome {
    /// The exit code; -1 when the process was killed.
    pub code: i32,
    /// Text on stdout.
    pub stdout: String,
    /// Text on stderr.
    pub stderr: String,
}

impl Call {
    pub fn new(program: &Path, bin: &Path, verb: &str, container: &str, netns: &str, conf: &Value) -> Self {
        let pairs = [
            ("CNI_COMMAND", verb),
            ("CNI_CONTAINERID", container),
            ("CNI_NETNS", netns),
            ("CNI_IFNAME", "eth0"),
            ("CNI_PATH", bin.to_str().expect("a path of ours is text")),
        ];
        Self {
            program: program.to_owned(),
            env: pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
            stdin: conf.to_string(),
            wrapper: Vec::new(),
        }
    }

    /// A command of ours as a person gives it. It starts when it is given its stdin, so that nothing of it is missed.
    pub fn command(program: &Path, arguments: &[&str]) -> Self {
        let words = ["sh", "-c", "read go; exec \"$@\"", "sh", program.to_str().expect("text")];
        let mut wrapper: Vec<String> = words.iter().chain(arguments).map(|word| (*word).to_owned()).collect();
        let last = wrapper.pop().expect("the program at least");
        Self { program: last.into(), env: BTreeMap::new(), stdin: "go\n".to_owned(), wrapper }
    }

    /// Sets a variable.
    pub fn env(mut self, key: &str, value: &str) -> Self {
        self.env.insert(key.to_owned(), value.to_owned());
        self
    }

    /// Removes a variable.
    pub fn without(mut self, key: &str) -> Self {
        self.env.remove(key);
        self
    }

    /// `CNI_ARGS` of a pod.
    pub fn pod(self, name: &str) -> Self {
        let args = super::pod_args(name);
        self.env("CNI_ARGS", &args)
    }

    /// `CNI_IFNAME`.
    pub fn if_name(self, name: &str) -> Self {
        self.env("CNI_IFNAME", name)
    }

    /// Another text on stdin.
    pub fn stdin(mut self, text: &str) -> Self {
        text.clone_into(&mut self.stdin);
        self
    }

    /// Another program than ours.
    pub fn program(mut self, path: &Path) -> Self {
        path.clone_into(&mut self.program);
        self
    }

    /// A program that starts ours: strace, time.
    pub fn under(mut self, words: &[&str]) -> Self {
        self.wrapper = words.iter().map(|word| (*word).to_owned()).collect();
        self
    }

    /// Starts it and leaves it running.
    pub fn start(self) -> Child {
        let mut child = self.start_unfed();
        self.feed(&mut child);
        child
    }

    /// Starts it; it waits for its stdin, which [`Call::feed`] gives.
    pub fn start_unfed(&self) -> Child {
        let mut words = self.wrapper.iter().map(String::as_str).chain([self.program.to_str().expect("text")]);
        Command::new(words.next().expect("a program"))
            .args(words)
            .env_clear()
            .env("PATH", std::env::var("PATH").unwrap_or_default())
            .envs(&self.env)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{}: {error}", self.program.display()))
    }

    /// Gives a started one its stdin.
    pub fn feed(&self, child: &mut Child) {
        let mut stdin = child.stdin.take().expect("piped");
        // VERSION does not read it.
        let _ = stdin.write_all(self.stdin.as_bytes());
    }

    /// Runs it to its end.
    pub fn run(self) -> Outcome {
        let output = self.start().wait_with_output().expect("wait for the plugin");
        Outcome {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Runs it, panics unless it succeeds, gives its result.
    pub fn ok(self) -> Value {
        let outcome = self.run();
        assert_eq!(outcome.code, 0, "{outcome:#?}");
        outcome.json()
    }

    /// Runs it, panics unless it fails with this CNI code, gives its message with the details.
    pub fn fails(self, code: u64) -> String {
        let outcome = self.run();
        assert_eq!(outcome.code, 1, "{outcome:#?}");
        let error = outcome.json();
        assert_eq!(error["code"], code, "{error:#}");
        format!("{}; {}", error["msg"].as_str().unwrap_or_default(), error["details"].as_str().unwrap_or_default())
    }
}

impl Outcome {
    /// stdout as JSON; null when it is empty.
    pub fn json(&self) -> Value {
        if self.stdout.is_empty() {
            return Value::Null;
        }
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("stdout is no JSON ({error}): {self:#?}"))
    }
}
