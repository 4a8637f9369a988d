//! A node's files as somebody finds them who compares: before we came, and after we left.

use std::{
    collections::hash_map::DefaultHasher,
    fs,
    hash::{Hash as _, Hasher as _},
    os::unix::fs::MetadataExt as _,
    path::Path,
};

use crate::{bed::Node, harness::names};

/// Everything below a directory, a line each: of a file who owns it, its mode, its time and its content; of a directory not
/// its time, which says no more than that something was there.
pub(crate) fn tree(root: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    walk(
        root,
        root,
        &mut |path, found| {
            let what = if found.is_dir() {
                "directory".to_owned()
            } else if found.is_symlink() {
                fs::read_link(path).unwrap().display().to_string()
            } else {
                let mut hash = DefaultHasher::new();
                fs::read(path).unwrap().hash(&mut hash);
                format!("{} bytes {:x} {}.{:09}", found.len(), hash.finish(), found.mtime(), found.mtime_nsec())
            };
            format!("{:o} {}:{} {} links {what}", found.mode(), found.uid(), found.gid(), found.nlink())
        },
        &mut lines,
    );
    lines
}

/// What is below a directory, by name and mode: where programs write while pods come and go.
pub(crate) fn skeleton(root: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    walk(root, root, &mut |_, found| format!("{:o} {}:{}", found.mode(), found.uid(), found.gid()), &mut lines);
    lines
}

fn walk(
    root: &Path,
    directory: &Path,
    describe: &mut dyn FnMut(&Path, &fs::Metadata) -> String,
    lines: &mut Vec<String>,
) {
    for name in names(directory) {
        let path = directory.join(name);
        let found = fs::symlink_metadata(&path).unwrap();
        lines.push(format!("{} {}", path.strip_prefix(root).unwrap().display(), describe(&path, &found)));
        if found.is_dir() {
            walk(root, &path, describe, lines);
        }
    }
}

/// What others keep below /var/lib/cni when a pod is gone, with us or without us: host-local a pool's lock and the address that
/// it gave last; libcni, in the runtime, its word of a pod that was attached under one network's name and detached under
/// another one's, as a pod is that lives when the configuration changes.
fn is_kept_by_others(line: &str) -> bool {
    line.starts_with("networks/net-a") || line.starts_with("results/")
}

/// All places of a node where an installation, or a pod's plugins, write.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Places {
    confs: Vec<String>,
    programs: Vec<String>,
    state: Vec<String>,
    run: Vec<String>,
    kubernetes: Vec<String>,
}

impl Places {
    pub(crate) fn of(node: &Node) -> Self {
        let first = fs::read_to_string(node.path("pid")).unwrap();
        let run = Path::new("/proc").join(first.trim()).join("root/run");
        Self {
            confs: tree(&node.path("cni/net.d")),
            programs: tree(&node.path("cni/bin")),
            state: skeleton(&node.path("var/lib/cni")).into_iter().filter(|line| !is_kept_by_others(line)).collect(),
            run: names(run),
            kubernetes: tree(&node.path("kubernetes")),
        }
    }
}
