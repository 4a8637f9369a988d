//! A plugin that writes down how it was called, and behaves as a test wants.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use serde_json::Value;

/// Its text: what it read goes into `log`, then `NAME.VERB`, if there is one, is run, then it answers.
const SCRIPT: &str = r#"#!/bin/sh
conf=$(cat)
self=$(basename "$0")
dir=$(dirname "$0")
printf '{"plugin":"%s","verb":"%s","container":"%s","netns":"%s","ifname":"%s","args":"%s","conf":%s}\n' \
    "$self" "$CNI_COMMAND" "$CNI_CONTAINERID" "$CNI_NETNS" "$CNI_IFNAME" "$CNI_ARGS" "${conf:-null}" >> "$dir/log"
[ -f "$dir/$self.$CNI_COMMAND" ] && . "$dir/$self.$CNI_COMMAND"
version=$(printf %s "$conf" | sed -n 's/.*"cniVersion":"\([0-9.]*\)".*/\1/p' | head -n 1)
[ "$CNI_COMMAND" = ADD ] && printf '{"cniVersion":"%s"}' "$version"
exit 0
"#;

/// Recording plugins in a directory.
pub struct Recorder {
    bin: PathBuf,
}

/// One call of a recording plugin.
#[derive(Debug)]
pub struct Recording(pub Value);

impl Recording {
    /// `VERB PLUGIN IFNAME`.
    pub fn short(&self) -> String {
        let text = |key: &str| self.0[key].as_str().unwrap_or_default();
        format!("{} {} {}", text("verb"), text("plugin"), text("ifname"))
    }
}

impl Recorder {
    /// Installs recording plugins of these names.
    pub fn install(bin: &Path, names: &[&str]) -> Self {
        for name in names {
            let path = bin.join(name);
            // A link to a plugin of the bed would be written through.
            let _ = fs::remove_file(&path);
            fs::write(&path, SCRIPT).expect("write a recording plugin");
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("make it executable");
        }
        Self { bin: bin.to_owned() }
    }

    /// Makes a plugin behave: shell commands run in it before it answers.
    pub fn behave(&self, name: &str, verb: &str, commands: &str) {
        fs::write(self.bin.join(format!("{name}.{verb}")), commands).expect("write the behaviour");
    }

    /// Makes it behave as usual again.
    pub fn relax(&self, name: &str, verb: &str) {
        fs::remove_file(self.bin.join(format!("{name}.{verb}"))).expect("remove the behaviour");
    }

    /// The calls so far.
    pub fn calls(&self) -> Vec<Recording> {
        let text = fs::read_to_string(self.bin.join("log")).unwrap_or_default();
        serde_json::Deserializer::from_str(&text)
            .into_iter()
            .map(|call| Recording(call.expect("a recorded call")))
            .collect()
    }

    /// The calls so far, in short, and forgets them.
    pub fn take(&self) -> Vec<String> {
        let calls = self.calls().iter().map(Recording::short).collect();
        let _ = fs::remove_file(self.bin.join("log"));
        calls
    }
}
