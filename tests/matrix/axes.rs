//! What the matrix is over, and which values cannot meet.

use crate::grid::{Axis, Grid, Rule};

/// Each axis with its values. The first value of an axis goes with every value of all others.
const AXES: &[Axis] = &[
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
const CLOSE: &[&[&str]] = &[&["family", "kind", "ipam", "asks"], &["source", "server", "primary"]];

/// What cannot meet, and why.
const EXCLUDED: &[Rule] = &[
    (&[("kind", "ptp"), ("ipam", "none")], "the plugin wants addresses"),
    (&[("family", "v6"), ("ipam", "none")], "without addresses there is no family"),
    (&[("family", "dual"), ("ipam", "none")], "without addresses there is no family"),
    (&[("asks", "ips"), ("ipam", "none")], "nobody could serve it"),
    (&[("asks", "default-route"), ("ipam", "none")], "no gateway could be reached"),
    (&[("asks", "mac"), ("kind", "ptp")], "the plugin takes none"),
    (&[("asks", "mac"), ("kind", "host-device")], "the plugin takes none"),
    (&[("kind", "ptp"), ("ipam", "static"), ("asks", "ips")], "static forgets the gateway then, which ptp wants"),
];

/// The matrix.
pub(crate) static MATRIX: Grid = Grid { axes: AXES, close: CLOSE, excluded: EXCLUDED };

#[test]
fn all_values_that_are_not_excluded_meet_in_a_cell_and_no_others() {
    MATRIX.assert_complete();
}
