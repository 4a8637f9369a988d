//! A matrix: axes with their values, cells with a value of each, and which cells there are.

use std::fmt;

use super::pairs::{self, Choice};

/// An axis and its values.
pub(crate) type Axis = (&'static str, &'static [&'static str]);

/// Values, each with its axis, that cannot meet, and why.
pub(crate) type Rule = (&'static [(&'static str, &'static str)], &'static str);

/// Axes, and what is to meet.
#[derive(Debug)]
pub(crate) struct Grid {
    /// The first value of each goes with every value of all others.
    pub(crate) axes: &'static [Axis],
    /// Axes whose values meet in threes.
    pub(crate) close: &'static [&'static [&'static str]],
    /// What cannot meet.
    pub(crate) excluded: &'static [Rule],
}

/// One cell: a value of each axis.
#[derive(Debug, Clone)]
pub(crate) struct Cell {
    pub(crate) index: usize,
    row: Vec<usize>,
    grid: &'static Grid,
}

impl Cell {
    /// The value of an axis.
    pub(crate) fn get(&self, axis: &str) -> &'static str {
        let at = self.grid.place(axis);
        self.grid.axes[at].1[self.row[at]]
    }

    /// Whether it has this value; panics if the axis has none such.
    pub(crate) fn is(&self, axis: &str, value: &str) -> bool {
        assert!(self.grid.axes[self.grid.place(axis)].1.contains(&value), "{axis} has no {value}");
        self.get(axis) == value
    }
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cell {}:", self.index)?;
        self.grid.axes.iter().try_for_each(|(axis, _)| write!(f, " {axis}={}", self.get(axis)))
    }
}

impl Grid {
    /// The cells, the most varied first.
    pub(crate) fn cells(&'static self) -> Vec<Cell> {
        let rows = pairs::rows(&self.sizes(), &self.close(), |choices| self.may_meet(choices));
        rows.into_iter().enumerate().map(|(index, row)| Cell { index, row, grid: self }).collect()
    }

    /// How many pairs of values meet in them, and how many triples.
    pub(crate) fn counts(&self) -> (usize, usize) {
        let all = pairs::meetings(&self.sizes(), &self.close(), |choices| self.may_meet(choices));
        let pairs = all.iter().filter(|meeting| meeting.len() == 2).count();
        (pairs, all.len() - pairs)
    }

    /// Panics unless all values that are not excluded meet in a cell, in twos and where they are close in threes, and no
    /// others do; unless the rules name what there is; and unless another run gives the same cells.
    pub(crate) fn assert_complete(&'static self) {
        let cells = self.cells();
        let met = |meeting: &[(&str, &str)]| {
            cells.iter().any(|cell| meeting.iter().all(|(axis, value)| cell.is(axis, value)))
        };
        let excluded = |meeting: &[(&str, &str)]| {
            self.excluded.iter().any(|(rule, _)| rule.iter().all(|choice| meeting.contains(choice)))
        };
        // How many of these meet; each that is not excluded must.
        let count = |axes: &[&'static str]| {
            let all = self.every(axes);
            all.iter().for_each(|meeting| assert_ne!(met(meeting), excluded(meeting), "{meeting:?}"));
            all.iter().filter(|meeting| met(meeting)).count()
        };
        let names: Vec<&str> = self.axes.iter().map(|(axis, _)| *axis).collect();
        let (mut pairs, mut triples) = (0, 0);
        for (at, one) in names.iter().enumerate() {
            for (then, other) in names.iter().enumerate().skip(at + 1) {
                pairs += count(&[one, other]);
                let close = |third: &&&str| {
                    self.close.iter().any(|axes| [one, other, *third].iter().all(|axis| axes.contains(axis)))
                };
                for third in names[then + 1..].iter().filter(close) {
                    triples += count(&[one, other, third]);
                }
            }
        }
        assert_eq!((pairs, triples), self.counts());
        for (rule, why) in self.excluded {
            assert!(!met(rule), "{rule:?}: {why}");
            for (axis, value) in *rule {
                let at = self.axes[self.place(axis)].1.iter().position(|known| known == value);
                assert!(at.is_some_and(|at| at > 0), "{axis}={value} is not there, or the first of its axis");
            }
        }
        let again: Vec<String> = self.cells().iter().map(Cell::to_string).collect();
        assert_eq!(again, cells.iter().map(Cell::to_string).collect::<Vec<_>>(), "another run gives other cells");
    }

    fn place(&self, axis: &str) -> usize {
        self.axes.iter().position(|(name, _)| *name == axis).unwrap_or_else(|| panic!("there is no axis {axis}"))
    }

    fn sizes(&self) -> Vec<usize> {
        self.axes.iter().map(|(_, values)| values.len()).collect()
    }

    fn close(&self) -> Vec<Vec<usize>> {
        self.close.iter().map(|axes| axes.iter().map(|axis| self.place(axis)).collect()).collect()
    }

    /// Whether values may meet in a cell.
    fn may_meet(&self, choices: &[Choice]) -> bool {
        let has = |(axis, value): &(&str, &str)| {
            choices.iter().any(|&(at, chosen)| self.axes[at].0 == *axis && self.axes[at].1[chosen] == *value)
        };
        !self.excluded.iter().any(|(rule, _)| rule.iter().all(has))
    }

    /// Each way to choose a value of each of some axes.
    fn every(&self, axes: &[&'static str]) -> Vec<Vec<(&'static str, &'static str)>> {
        let [first, rest @ ..] = axes else { return vec![Vec::new()] };
        let values = self.axes[self.place(first)].1.iter();
        let with = |value: &&'static str| {
            let others = self.every(rest).into_iter();
            others.map(|others| [vec![(*first, *value)], others].concat()).collect::<Vec<_>>()
        };
        values.flat_map(with).collect()
    }
}
