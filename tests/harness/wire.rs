//! What is on the wire.

use std::{
    io::{BufRead as _, BufReader},
    process::{Child, Command, Stdio},
    sync::mpsc,
    time::Duration,
};

/// tcpdump on an interface, from the moment it listens.
pub struct Wire {
    tcpdump: Child,
    lines: mpsc::Receiver<String>,
}

impl Wire {
    /// Listens in the host for what a filter lets pass.
    pub fn tap(interface: &str, filter: &str) -> Self {
        Self::listen(&[], interface, filter)
    }

    /// Listens in a namespace.
    pub fn tap_in(netns: &str, interface: &str, filter: &str) -> Self {
        Self::listen(&["nsenter", &format!("--net={netns}")], interface, filter)
    }

    fn listen(before: &[&str], interface: &str, filter: &str) -> Self {
        let words = [before, &["tcpdump", "-p", "-l", "-nn", "-e", "-v", "-i", interface, filter]].concat();
        let mut tcpdump = Command::new(words[0])
            .args(&words[1..])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("tcpdump");
        let mut ready = BufReader::new(tcpdump.stderr.take().unwrap()).lines();
        assert!(ready.any(|line| line.unwrap().contains("listening on")));
        // It goes on reading, or tcpdump would be stopped by a full pipe.
        std::thread::spawn(move || ready.for_each(drop));
        let out = BufReader::new(tcpdump.stdout.take().unwrap());
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || out.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        Self { tcpdump, lines }
    }

    /// What is seen until a text has come; panics when it does not come.
    pub fn until(&self, text: &str) -> String {
        let mut seen = String::new();
        while !seen.contains(text) {
            let line = self.lines.recv_timeout(Duration::from_secs(10));
            let line = line.unwrap_or_else(|_| panic!("{text:?} has not come: {seen}"));
            seen.extend([line.as_str(), "\n"]);
        }
        seen
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        let _ = self.tcpdump.kill();
        let _ = self.tcpdump.wait();
    }
}
