//! Which containers have processes: a runtime writes a container's ID into the cgroup of its processes and onto the command
//! line of whoever watches it, and every CNI plugin has it in its environment.

use std::{collections::HashSet, fs};

/// The containers that processes of this node speak of.
#[derive(Debug, Default)]
pub struct ProcessWords(HashSet<String>);

impl ProcessWords {
    /// Looks at all processes but this one. What ends meanwhile is left out.
    #[must_use]
    pub fn look() -> Self {
        let mut words = HashSet::new();
        let own = std::process::id();
        for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
            if pid == own {
                continue;
            }
            let text = |name: &str| {
                let bytes = fs::read(entry.path().join(name)).unwrap_or_default();
                String::from_utf8_lossy(&bytes).into_owned()
            };
            add_words(&text("cgroup"), &mut words);
            add_words(&text("cmdline"), &mut words);
            let environ = text("environ");
            let container = environ.split('\0').find_map(|pair| pair.strip_prefix("CNI_CONTAINERID="));
            words.extend(container.map(str::to_owned));
        }
        Self(words)
    }

    /// Whether a process speaks of the container.
    #[must_use]
    pub fn have(&self, container: &str) -> bool {
        self.0.contains(container)
    }
}

/// The words of a text, as long as they can be and as short as they can be: `cri-containerd-ID.scope` has the ID in it,
/// and an ID may have the same marks in it.
fn add_words(text: &str, words: &mut HashSet<String>) {
    let is_mark = |c: char| matches!(c, '-' | '_' | '.');
    for long in text.split(|c: char| !c.is_alphanumeric() && !is_mark(c)).filter(|word| !word.is_empty()) {
        words.extend(long.split(is_mark).filter(|word| !word.is_empty()).map(str::to_owned));
        words.insert(long.to_owned());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_found_as_runtimes_write_them() {
        let mut words = HashSet::new();
        add_words("0::/kubepods.slice/kubepods-pod1_2.slice/cri-containerd-c0ffee.scope\n", &mut words);
        add_words(
            "/usr/bin/containerd-shim-runc-v2\0-namespace\0k8s.io\0-id\0a-pod.1\0-address\0/run/x.sock\0",
            &mut words,
        );
        let words = ProcessWords(words);
        for (container, there) in [("c0ffee", true), ("a-pod.1", true), ("c0ff", false), ("", false), ("other", false)]
        {
            assert_eq!(words.have(container), there, "{container}");
        }
    }
}
