//! Few rows of values, one of each axis, such that every two values of different axes that may meet do meet in some row,
//! and of some axes every three. Greedy and without chance: the same axes give the same rows.

use std::collections::{BTreeMap, BTreeSet};

/// A value: its axis and its place there.
pub(crate) type Choice = (usize, usize);

/// Values that are to meet, in the order of their axes.
pub(crate) type Meeting = Vec<Choice>;

/// All pairs of values, and all triples of those of axes that are `close`, that are allowed.
pub(crate) fn meetings(
    sizes: &[usize],
    close: &[Vec<usize>],
    allowed: impl Fn(&[Choice]) -> bool,
) -> BTreeSet<Meeting> {
    let extend = |start: &Meeting, axes: &[usize]| -> Vec<Meeting> {
        let later = axes.iter().filter(|axis| start.last().is_none_or(|last| **axis > last.0));
        let new = later.flat_map(|axis| (0..sizes[*axis]).map(move |value| (*axis, value)));
        new.map(|choice| [start.as_slice(), &[choice]].concat()).filter(|meeting| allowed(meeting)).collect()
    };
    let all: Vec<usize> = (0..sizes.len()).collect();
    let pairs = extend(&Vec::new(), &all).into_iter().flat_map(|one| extend(&one, &all));
    let triples = close.iter().flat_map(|close| {
        let singles = extend(&Vec::new(), close).into_iter();
        singles.flat_map(|one| extend(&one, close)).flat_map(|pair| extend(&pair, close))
    });
    pairs.chain(triples).collect()
}

/// The rows. Rules must let the first value of each axis go with all others, so that every meeting can be made a row.
pub(crate) fn rows(sizes: &[usize], close: &[Vec<usize>], allowed: impl Fn(&[Choice]) -> bool) -> Vec<Vec<usize>> {
    let mut open = meetings(sizes, close, &allowed);
    let mut used: BTreeMap<Choice, usize> = BTreeMap::new();
    let mut rows = Vec::new();
    // The largest meetings first: pairs come along.
    while let Some(first) = open.iter().max_by_key(|meeting| meeting.len()).cloned() {
        let mut row = first;
        for (axis, size) in sizes.iter().enumerate() {
            if row.iter().any(|choice| choice.0 == axis) {
                continue;
            }
            let with = (0..*size).map(|value| [row.as_slice(), &[(axis, value)]].concat());
            // What makes most new meetings; among those what was used least.
            let best = with.filter(|row| allowed(row)).max_by_key(|row| {
                let new = row[row.len() - 1];
                let met = open
                    .iter()
                    .filter(|meeting| meeting.contains(&new) && meeting.iter().all(|choice| row.contains(choice)));
                (met.count(), std::cmp::Reverse(used.get(&new).copied().unwrap_or(0)))
            });
            row = best.expect("the first value of an axis is allowed with all");
        }
        row.sort_unstable();
        for choice in &row {
            *used.entry(*choice).or_default() += 1;
        }
        open.retain(|meeting| !meeting.iter().all(|choice| row.contains(choice)));
        rows.push(row);
    }
    by_variety(rows).into_iter().map(|row| row.into_iter().map(|(_, value)| value).collect()).collect()
}

/// In the order in which each row brings most pairs that none before it has: so that the first ones have many of them.
fn by_variety(mut rows: Vec<Meeting>) -> Vec<Meeting> {
    let pairs = |row: &Meeting| -> BTreeSet<(Choice, Choice)> {
        row.iter()
            .flat_map(|one| row.iter().filter(move |other| one < *other).map(move |other| (*one, *other)))
            .collect()
    };
    let (mut ordered, mut met) = (Vec::new(), BTreeSet::new());
    while let Some(best) = (0..rows.len()).rev().max_by_key(|at| pairs(&rows[*at]).difference(&met).count()) {
        let row = rows.remove(best);
        met.extend(pairs(&row));
        ordered.push(row);
    }
    ordered
}
