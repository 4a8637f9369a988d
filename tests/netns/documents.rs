//! What the documents promise of the sources: each example is used by a test, each error that is explained is one of ours,
//! each key and each command is explained.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{harness::names, sources::rust_files};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// The files of a directory and of those below it, as paths from it.
fn files(directory: &Path) -> Vec<PathBuf> {
    let below = |name: String| {
        let path = directory.join(&name);
        match path.is_dir() {
            true => files(&path).into_iter().map(|inner| Path::new(&name).join(inner)).collect(),
            false => vec![PathBuf::from(name)],
        }
    };
    names(directory).into_iter().flat_map(below).collect()
}

#[test]
fn each_example_is_used_by_a_test_and_is_in_the_list() {
    let mut tests = Vec::new();
    rust_files(&root().join("tests"), &mut tests);
    let tests: String = tests.iter().map(|path| fs::read_to_string(path).unwrap()).collect();
    // It runs in the guest, and `make demo` starts it.
    let demo = fs::read_to_string(root().join("tests/guest/demo")).unwrap();
    let examples = root().join("deploy/examples");
    let list = fs::read_to_string(examples.join("README.md")).unwrap();
    let all = files(&examples);
    assert!(all.len() > 15, "the examples are somewhere else: {all:?}");
    for example in all.iter().filter(|path| !path.ends_with("README.md")) {
        let example = example.display();
        let included = tests.contains(&format!("include_str!(\"../../deploy/examples/{example}\")"));
        assert!(included || demo.contains(&format!("\"$examples/{example}\"")), "no test uses {example}");
        assert!(
            example.to_string().contains('/') || list.contains(&format!("]({example})")),
            "deploy/examples/README.md does not list {example}"
        );
    }
}

/// The product's sources with each text in one piece: no line breaks within, no escapes.
fn texts() -> String {
    let mut paths = Vec::new();
    for part in ["sandbox/src", "sriov/src", "ipam/src", "meta-cni/src"] {
        rust_files(&root().join(part), &mut paths);
    }
    let product = |path: &PathBuf| {
        let text = fs::read_to_string(path).unwrap();
        text.split("#[cfg(test)]").next().unwrap_or_default().to_owned()
    };
    let text: String = paths.iter().map(product).collect();
    let mut pieces = text.split("\\\n");
    let first = pieces.next().unwrap_or_default().to_owned();
    pieces.fold(first, |text, piece| text + piece.trim_start()).replace("\\\"", "\"")
}

/// What an item of a list begins with, in backticks.
fn first_text<'a>(item: &&'a str) -> &'a str {
    &item[..=item[1..].find('`').unwrap() + 1]
}

#[test]
fn each_error_that_is_explained_is_one_that_the_program_says() {
    let texts = texts();
    let table = fs::read_to_string(root().join("docs/troubleshooting.md")).unwrap();
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    let section = readme.split("\n## Troubleshooting\n").nth(1).unwrap().split("\n## ").next().unwrap();
    let rows: Vec<&str> = table.lines().filter_map(|line| line.strip_prefix("| ")).skip(1).collect();
    let items: Vec<&str> = section.lines().filter_map(|line| line.strip_prefix("* ")).collect();
    assert!(rows.len() >= 10 && items.len() >= 5, "they are somewhere else");
    for said in rows.iter().map(|row| row.split(" | ").next().unwrap()).chain(items.iter().map(first_text)) {
        // What stands in backticks are the texts, with `…` for what differs.
        for quoted in said.split('`').skip(1).step_by(2) {
            let fixed: Vec<&str> = quoted.split('…').filter(|part| part.trim().len() > 2).collect();
            assert!(fixed.iter().any(|part| part.len() > 15), "{quoted}: too little to look for");
            for part in fixed {
                assert!(texts.contains(part), "no source says \"{part}\" (of \"{quoted}\")");
            }
        }
    }
}

#[test]
fn each_key_of_our_configuration_and_each_command_is_in_the_readme() {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    let table = readme.split("\n## A node's conf\n").nth(1).unwrap().split("\n## ").next().unwrap();
    // The first column has the keys.
    let rows = table.lines().filter_map(|line| line.strip_prefix("| ")?.split(" | ").next());
    let explained: Vec<&str> = rows.flat_map(|keys| keys.split('`').skip(1).step_by(2)).collect();
    let sources = fs::read_to_string(root().join("meta-cni/src/settings/keys.rs")).unwrap();
    let known = sources.split("const KNOWN_KEYS: ").nth(1).unwrap().split("];").next().unwrap();
    let known: Vec<&str> = known.split('"').skip(1).step_by(2).collect();
    assert!(known.len() > 25, "they are somewhere else: {known:?}");
    let missing: Vec<&&str> = known.iter().filter(|key| !explained.contains(*key)).collect();
    assert!(missing.is_empty(), "README.md explains no {missing:?}");

    let help = |words: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_meta-cni")).args(words).arg("--help").output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let all = help(&[]);
    let commands: Vec<Vec<&str>> = all
        .lines()
        .filter_map(|line| line.strip_prefix("  "))
        .map(|line| line.split_whitespace().take_while(|word| word.chars().all(char::is_lowercase)))
        .map(|words| words.take(2).collect())
        .collect();
    assert!(commands.len() >= 5, "{all}");
    for words in commands {
        let words = if words[0] == "ipam" { &words[..2] } else { &words[..1] };
        let command = format!("meta-cni {}", words.join(" "));
        assert!(readme.contains(&command), "README.md does not name {command}");
        for option in help(words).lines().filter_map(|line| line.trim_start().strip_prefix("--")) {
            let option = format!("--{}", option.split(' ').next().unwrap());
            let page = if words[0] == "ipam" { "docs/ipam.md" } else { "README.md" };
            let text = fs::read_to_string(root().join(page)).unwrap();
            assert!(text.contains(&option), "{page} does not name {option} of {command}");
        }
    }
}
