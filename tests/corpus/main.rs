//! The fuzz targets without a fuzzer: every file of `fuzz/corpus` goes through its target, then so many inputs that are
//! made of them by chance, the same in each run. Fails when a target does, with the input that it failed on. Prints how
//! many inputs each target had.

#![allow(clippy::print_stdout, reason = "the numbers, and what failed, are what this is for")]

#[path = "../../fuzz/src/lib.rs"]
mod targets;

use std::{
    fs,
    panic::catch_unwind,
    path::{Path, PathBuf},
    process::ExitCode,
};

use targets::{TARGETS, Target};

/// How many inputs are made up, in all.
const MADE_UP: usize = 20_000;
/// No input is longer; the corpus may have longer ones.
const LONGEST: usize = 8 << 10;

/// xorshift: every run does the same.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % u64::try_from(limit.max(1)).unwrap_or(1)).unwrap_or_default()
    }

    /// A byte: any, or one that means something in what is read here.
    fn byte(&mut self) -> u8 {
        const WORDS: &[u8] = b"{}[]\",:0-1e.%/;=\\\n\x00\xff ";
        match self.below(2) {
            0 => WORDS[self.below(WORDS.len())],
            _ => u8::try_from(self.below(256)).unwrap_or_default(),
        }
    }

    /// An input made of others.
    fn input(&mut self, seeds: &[Vec<u8>]) -> Vec<u8> {
        let mut input = seeds[self.below(seeds.len())].clone();
        input.truncate(LONGEST);
        for _ in 0..1 + self.below(4) {
            let at = self.below(input.len() + 1);
            match self.below(6) {
                0 => input.truncate(at),
                1 => input.insert(at, self.byte()),
                2 => drop((at < input.len()).then(|| input.remove(at))),
                3 => input.get_mut(at).into_iter().for_each(|place| *place = self.byte()),
                4 => {
                    let piece = input[at..input.len().min(at + self.below(64))].to_vec();
                    let to = self.below(input.len() + 1);
                    input.splice(to..to, piece);
                }
                _ => {
                    let other = &seeds[self.below(seeds.len())];
                    let from = self.below(other.len());
                    let end = other.len().min(from + self.below(LONGEST));
                    input.splice(at.., other[from..end].iter().copied());
                }
            }
            input.truncate(LONGEST);
        }
        input
    }
}

/// The corpus of a target, by the names of the files.
fn corpus(name: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(name);
    let files = fs::read_dir(&directory).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut inputs: Vec<_> = files.filter_map(|path| fs::read(&path).ok().map(|text| (path, text))).collect();
    inputs.sort();
    inputs
}

/// Whether the target bears the input; else says what to do about it. What the panic said is on stderr by then.
fn passes(name: &str, target: Target, input: &[u8], from: &str) -> bool {
    let passed = catch_unwind(|| target(input)).is_ok();
    if !passed {
        let path = std::env::temp_dir().join(format!("{name}-failed"));
        let kept = fs::write(&path, input).map_or_else(|problem| problem.to_string(), |()| path.display().to_string());
        println!("{name}: FAILED on {from}: {:?}; the input: {kept}", String::from_utf8_lossy(input));
    }
    passed
}

/// Runs a target; false if it failed or had nothing to begin with.
fn run(name: &str, target: Target) -> bool {
    let corpus = corpus(name);
    if corpus.is_empty() {
        println!("{name}: FAILED: there is no fuzz/corpus/{name}");
        return false;
    }
    let mut passed = corpus.iter().all(|(path, input)| passes(name, target, input, &path.display().to_string()));
    let seeds: Vec<Vec<u8>> = corpus.into_iter().map(|(_, input)| input).collect();
    let (mut random, count) = (Random(0x9e37_79b9_7f4a_7c15), MADE_UP / TARGETS.len());
    for number in 0..count {
        passed = passed && passes(name, target, &random.input(&seeds), &format!("made-up input {number}"));
    }
    println!("{name}: {} inputs of the corpus, {count} made up of them", seeds.len());
    passed
}

fn main() -> ExitCode {
    let failed = TARGETS.iter().filter(|(name, target)| !run(name, *target)).count();
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
