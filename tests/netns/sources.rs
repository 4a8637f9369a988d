//! What the product's source may not have.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

/// Where something is waited for that tells nobody when it is done: other programs, asked again after a pause that
/// grows, each with a limit. Everything of the kernel's is waited for by its events.
const PAUSES: [(&str, usize, &str); 7] = [
    ("meta-cni/src/attach/lock.rs", 1, "another verb's lock, beside which the plugins it left running are looked at"),
    ("meta-cni/src/attach/primary.rs", 1, "files of the primary network's daemon"),
    (
        "meta-cni/src/cli/install/watch.rs",
        2,
        "an installer that stays: what inotify does not tell of, and somebody who undoes it each time",
    ),
    ("meta-cni/src/cluster/api_server.rs", 1, "a server that is away for a moment"),
    ("meta-cni/src/cni/exec.rs", 1, "a plugin that is being written (ETXTBSY)"),
    ("meta-cni/src/node/pod_resources.rs", 1, "kubelet's limit of requests per second"),
    ("sandbox/src/probe.rs", 1, "neighbours, who are asked a second time: silence is the answer that is hoped for"),
];

pub(crate) fn rust_files(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap().map(Result::unwrap) {
        let path = entry.path();
        if path.is_dir() {
            rust_files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") && !path.ends_with("tests.rs") {
            found.push(path);
        }
    }
}

#[test]
fn no_pause_waits_for_the_kernel_and_each_other_one_has_its_reason() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut files = Vec::new();
    for part in ["sandbox/src", "sriov/src", "ipam/src", "meta-cni/src"] {
        rust_files(&root.join(part), &mut files);
    }
    assert!(files.len() > 80, "the sources are somewhere else");
    let mut found = BTreeMap::new();
    for path in files {
        let text = fs::read_to_string(&path).unwrap();
        let product = text.split("#[cfg(test)]").next().unwrap_or_default();
        let sleeps = ["sleep(", "sleep_until(", "sleep_ms(", "interval(", "interval_at(", "park_timeout("];
        let count: usize = sleeps.iter().map(|call| product.matches(call).count()).sum();
        if count > 0 {
            found.insert(path.strip_prefix(root).unwrap().display().to_string(), count);
        }
    }
    let allowed: BTreeMap<String, usize> = PAUSES.iter().map(|(file, count, _)| ((*file).to_owned(), *count)).collect();
    assert_eq!(found, allowed, "wait for an event instead; where there is none, say so in PAUSES");
}
