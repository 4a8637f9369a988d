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

/// The matrix.
pub(crate) fn cells() -> Vec<Cell> {
    let rows = pairs::rows(&sizes(), may_meet);
    rows.into_iter().enumerate().map(|(index, row)| Cell { index, row }).collect()
}

/// How many pairs it has.
pub(crate) fn pair_count() -> usize {
    pairs::pairs(&sizes(), may_meet).len()
}

#[test]
fn every_pair_of_values_that_is_not_excluded_meets_in_a_cell_and_no_other() {
    let cells = cells();
    let mut met = 0;
    for (at, (axis, values)) in AXES.iter().enumerate() {
        for (other_axis, others) in &AXES[at + 1..] {
            for (value, other) in values.iter().flat_map(|value| others.iter().map(move |other| (value, other))) {
                let pair = [(*axis, *value), (*other_axis, *other)];
                let excluded = EXCLUDED.iter().any(|(rule, _)| rule.iter().all(|choice| pair.contains(choice)));
                let count = cells.iter().filter(|cell| pair.iter().all(|(axis, value)| cell.is(axis, value))).count();
                assert_eq!(count == 0, excluded, "{pair:?} is in {count} cells");
                met += usize::from(!excluded);
            }
        }
    }
    assert_eq!(met, pair_count());
    for (rule, why) in EXCLUDED {
        assert!(!cells.iter().any(|cell| rule.iter().all(|(axis, value)| cell.is(axis, value))), "{rule:?}: {why}");
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
