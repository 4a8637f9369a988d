//! All pairs: few rows of values, one of each axis, such that every two values of different axes that may meet do meet in
//! some row. Greedy and without chance: the same axes give the same rows.

use std::collections::{BTreeMap, BTreeSet};

/// A value: its axis and its place there.
pub(crate) type Choice = (usize, usize);

/// Two values of different axes, the one of the earlier axis first.
pub(crate) type Pair = (Choice, Choice);

/// All pairs of axes of these sizes that are allowed.
pub(crate) fn pairs(sizes: &[usize], allowed: impl Fn(&[Choice]) -> bool) -> BTreeSet<Pair> {
    let choices = |axis: usize| (0..sizes[axis]).map(move |value| (axis, value));
    (0..sizes.len())
        .flat_map(|a| (a + 1..sizes.len()).map(move |b| (a, b)))
        .flat_map(|(a, b)| choices(a).flat_map(move |one| choices(b).map(move |other| (one, other))))
        .filter(|(one, other)| allowed(&[*one, *other]))
        .collect()
}

/// The rows. Rules must let the first value of each axis go with all others, so that every pair can be made a row.
pub(crate) fn rows(sizes: &[usize], allowed: impl Fn(&[Choice]) -> bool) -> Vec<Vec<usize>> {
    let mut open = pairs(sizes, &allowed);
    let mut used: BTreeMap<Choice, usize> = BTreeMap::new();
    let mut rows = Vec::new();
    while let Some((one, other)) = open.first().copied() {
        let mut row = vec![one, other];
        for axis in (0..sizes.len()).filter(|axis| *axis != one.0 && *axis != other.0) {
            let new = (0..sizes[axis]).map(|value| (axis, value));
            let fits = new.filter(|new| allowed(&[row.as_slice(), &[*new]].concat()));
            // What makes most new pairs; among those what was used least.
            let best = fits.max_by_key(|new| {
                let gained = row.iter().filter(|old| open.contains(&((**old).min(*new), (**old).max(*new)))).count();
                (gained, std::cmp::Reverse(used.get(new).copied().unwrap_or(0)))
            });
            row.push(best.expect("the first value of an axis is allowed with all"));
        }
        row.sort_unstable();
        for choice in &row {
            *used.entry(*choice).or_default() += 1;
        }
        open.retain(|(one, other)| !(row.contains(one) && row.contains(other)));
        rows.push(row.into_iter().map(|(_, value)| value).collect());
    }
    rows
}
