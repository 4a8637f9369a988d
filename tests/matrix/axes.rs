//! What the matrix is over, and which values cannot meet.

use std::fmt;

use crate::pairs::{self, Choice};

/// Each axis with its values. The first value of an axis goes with every value of all others.
pub(crate) const AXES: [(&str, &[&str]); 10] = [
    // `cniVersion` of our own conf: the runtime's.
    ("runtime", &["1.0.0", "0.3.0", "0.3.1", "0.4.0", "1.1.0"]),
    // `cniVersion` of the network's configuration.
    ("network", &["1.0.0", "0.3.0", "0.3.1", "0.4.0", "1.1.0"]),
    ("family", &["v4", "v6", "dual"]),
    // What this kernel has. VFs have a matrix of their own, in the guest.
    ("kind", &["bridge", "macvlan", "ptp", "host-device"]),
    // host-local as the plugin executes it: the reference program, or ours in its place.
    ("ipam", &["host-local", "drop-in", "static", "none"]),
    // Where the pod's annotations come from. With "manifests" the definitions do so, too, and nobody may ask the server.
    ("source", &["handed", "asked", "manifests"]),
    ("server", &["up", "slow", "down"]),
    // The definition's configuration: one plugin, a list, or a file on the node.
    ("form", &["conf", "conflist", "file"]),
    // The primary network: Flannel's chain in a file, a bridge by name in confDir, as a definition, in our conf itself.
    ("primary", &["flannel", "named", "definition", "delegates"]),
    // What the pod asks of the network.
    ("asks", &["nothing", "ips", "mac", "default-route", "interface"]),
];

/// Axes whose values meet in threes: what a network is made of, and what the API server has to do with.
const CLOSE: [&[&str]; 2] = [&["family", "kind", "ipam", "asks"], &["source", "server", "primary"]];

/// What cannot meet, and why.
pub(crate) const EXCLUDED: [(&[(&str, &str)], &str); 8] = [
    (&[("kind", "ptp"), ("ipam", "none")], "the plugin wants addresses"),
    (&[("family", "v6"), ("ipam", "none")], "without addresses there is no family"),
    (&[("family", "dual"), ("ipam", "none")], "without addresses there is no family"),
    (&[("asks", "ips"), ("ipam", "none")], "nobody could serve it"),
    (&[("asks", "default-route"), ("ipam", "none")], "no gateway could be reached"),
    (&[("asks", "mac"), ("kind", "ptp")], "the plugin takes none"),
    (&[("asks", "mac"), ("kind", "host-device")], "the plugin takes none"),
    (&[("kind", "ptp"), ("ipam", "static"), ("asks", "ips")], "static forgets the gateway then, which ptp wants"),
];

/// One cell: a value of each axis.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Cell {
    pub(crate) index: usize,
    row: Vec<usize>,
}

impl Cell {
    /// The value of an axis.
    pub(crate) fn get(&self, axis: &str) -> &'static str {
        let at = place(axis);
        AXES[at].1[self.row[at]]
    }

    pub(crate) fn is(&self, axis: &str, value: &str) -> bool {
        assert!(AXES[place(axis)].1.contains(&value), "{axis} has no {value}");
        self.get(axis) == value
    }
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cell {}:", self.index)?;
        AXES.iter().try_for_each(|(axis, _)| write!(f, " {axis}={}", self.get(axis)))
    }
}

fn place(axis: &str) -> usize {
    AXES.iter().position(|(name, _)| *name == axis).unwrap_or_else(|| panic!("there is no axis {axis}"))
}

/// Whether values may meet in a cell.
fn may_meet(choices: &[Choice]) -> bool {
    let has = |(axis, value): &(&str, &str)| {
        choices.iter().any(|&(at, chosen)| AXES[at].0 == *axis && AXES[at].1[chosen] == *value)
    };
    !EXCLUDED.iter().any(|(rule, _)| rule.iter().all(has))
}

fn sizes() -> Vec<usize> {
    AXES.iter().map(|(_, values)| values.len()).collect()
}

fn close() -> Vec<Vec<usize>> {
    CLOSE.iter().map(|axes| axes.iter().map(|axis| place(axis)).collect()).collect()
}

/// The matrix.
pub(crate) fn cells() -> Vec<Cell> {
    let rows = pairs::rows(&sizes(), &close(), may_meet);
    rows.into_iter().enumerate().map(|(index, row)| Cell { index, row }).collect()
}

/// How many pairs of values it has, and how many triples.
pub(crate) fn counts() -> (usize, usize) {
    let all = pairs::meetings(&sizes(), &close(), may_meet);
    let pairs = all.iter().filter(|meeting| meeting.len() == 2).count();
    (pairs, all.len() - pairs)
}

/// Each way to choose a value of each of some axes.
fn every(axes: &[&'static str]) -> Vec<Vec<(&'static str, &'static str)>> {
    let [first, rest @ ..] = axes else { return vec![Vec::new()] };
    let values = AXES[place(first)].1.iter();
    values.flat_map(|value| every(rest).into_iter().map(move |rest| [vec![(*first, *value)], rest].concat())).collect()
}

#[test]
fn all_values_that_are_not_excluded_meet_in_a_cell_and_no_others() {
    let cells = cells();
    let met =
        |meeting: &[(&str, &str)]| cells.iter().any(|cell| meeting.iter().all(|(axis, value)| cell.is(axis, value)));
    let excluded =
        |meeting: &[(&str, &str)]| EXCLUDED.iter().any(|(rule, _)| rule.iter().all(|choice| meeting.contains(choice)));
    // How many of these meet; each that is not excluded must.
    let count = |axes: &[&'static str]| {
        let all = every(axes);
        all.iter().for_each(|meeting| assert_ne!(met(meeting), excluded(meeting), "{meeting:?}"));
        all.iter().filter(|meeting| met(meeting)).count()
    };
    let names: Vec<&str> = AXES.iter().map(|(axis, _)| *axis).collect();
    let (mut pairs, mut triples) = (0, 0);
    for (at, one) in names.iter().enumerate() {
        for (then, other) in names.iter().enumerate().skip(at + 1) {
            pairs += count(&[one, other]);
            let close =
                |third: &&&str| CLOSE.iter().any(|axes| [one, other, *third].iter().all(|axis| axes.contains(axis)));
            for third in names[then + 1..].iter().filter(close) {
                triples += count(&[one, other, third]);
            }
        }
    }
    assert_eq!((pairs, triples), counts());
    for (rule, why) in EXCLUDED {
        assert!(!met(rule), "{rule:?}: {why}");
    }
    assert_eq!(self::cells(), cells, "another run gives another matrix");
}

#[test]
fn the_rules_name_what_there_is_and_leave_the_first_value_of_each_axis_alone() {
    for (axis, value) in EXCLUDED.iter().flat_map(|(rule, _)| *rule) {
        let at = AXES[place(axis)].1.iter().position(|known| known == value);
        assert!(at.is_some_and(|at| at > 0), "{axis}={value}");
    }
}
