//! The matrix: pods' lives in all pairs of what a cluster may be like (see `axes`), each on the real plugins and a real API
//! server: ADD, then the kernel beside result and status, CHECK, DEL, and nothing left.
//!
//! `cargo test` runs the first tenth of the cells; `MATRIX=all` runs all of them, from one that `MATRIX_SEED` chooses and within
//! `MATRIX_SECONDS`; `MATRIX=17` runs that one.

#![allow(clippy::unwrap_used, reason = "a test panics where it is wrong")]

#[path = "../harness/mod.rs"]
mod harness;

mod axes;
#[allow(dead_code, reason = "the bed is the control plane suite's, too")]
#[path = "../control-plane/bed.rs"]
mod bed;
mod grid;
mod network;
mod pairs;
mod proxy;
mod site;

use std::{
    io::Write as _,
    panic::{AssertUnwindSafe, catch_unwind},
    time::{Duration, Instant},
};

use axes::MATRIX;
use grid::Cell;
use site::Site;

/// The part of the cells that is run in short. The first ones are the most varied.
const SHORT: usize = 10;

/// Says how far it came, also where what a test prints is kept back until it fails.
fn say(text: &str) {
    std::io::stdout().write_all(format!("{text}\n").as_bytes()).unwrap();
}

fn number(key: &str, default: u64) -> u64 {
    std::env::var(key).ok().map_or(default, |text| text.parse().expect(key))
}

/// The cells to be run, and what they are.
fn chosen() -> (Vec<Cell>, String) {
    let mut all = MATRIX.cells();
    match std::env::var("MATRIX").as_deref() {
        Err(_) => {
            all.truncate(all.len().div_ceil(SHORT));
            (all, format!("1 in {SHORT}"))
        }
        Ok("all") => {
            let seed = number("MATRIX_SEED", 0);
            let first = usize::try_from(seed).unwrap() % all.len();
            all.rotate_left(first);
            (all, format!("all, seed {seed}"))
        }
        Ok(number) => {
            let index: usize = number.parse().expect("MATRIX is \"all\" or the number of a cell");
            (vec![all.into_iter().nth(index).expect("there is no such cell")], "one".to_owned())
        }
    }
}

#[test]
fn kernel_result_and_status_agree_in_every_cell() {
    let (chosen, which) = chosen();
    let (pairs, triples) = MATRIX.counts();
    let numbers: Vec<usize> = chosen.iter().map(|cell| cell.index).collect();
    say(&format!(
        "matrix: {} cells, {pairs} pairs, {triples} triples; chosen: {which}: {numbers:?}",
        MATRIX.cells().len()
    ));
    let began = Instant::now();
    let limit = Duration::from_secs(number("MATRIX_SECONDS", 24 * 3600));
    let mut site = Site::start(&chosen);
    let (mut run, mut failed) = (0, Vec::new());
    for cell in chosen.iter().take_while(|_| began.elapsed() < limit) {
        let began = Instant::now();
        say(&format!("{cell}"));
        run += 1;
        if catch_unwind(AssertUnwindSafe(|| site.run(cell))).is_err() {
            say(&format!("FAILED, after {:.1?}: {cell}", began.elapsed()));
            failed.push(cell);
        }
    }
    let passed = run - failed.len();
    say(&format!("matrix: {} cells chosen, {run} run in {:.0?}, {passed} passed", chosen.len(), began.elapsed()));
    let again = |cell: &&Cell| {
        format!("{cell}\n    alone: MATRIX={} cargo test -p meta-cni --test matrix kernel -- --nocapture", cell.index)
    };
    assert!(failed.is_empty(), "\n{}", failed.iter().map(again).collect::<Vec<_>>().join("\n"));
}
