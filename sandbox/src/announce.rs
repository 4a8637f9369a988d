//! Telling the neighbours. The kernel sends a gratuitous ARP and an unsolicited neighbour advertisement itself when an
//! interface comes up or its address changes, if told so beforehand (Documentation/networking/ip-sysctl.rst).

use crate::{IfName, Sysctl};

/// What to set on an interface after it arrived in the pod and before it goes up: settings made before a move are lost
/// with it. `optimistic_dad` makes IPv6 addresses usable at once.
pub fn announcing_sysctls(name: &IfName) -> Vec<Sysctl> {
    let set = |family: &str, key: &str| Sysctl {
        key: format!("{family}/conf/{name}/{key}"),
        value: "1".to_owned(),
        optional: true,
    };
    vec![set("ipv4", "arp_notify"), set("ipv6", "ndisc_notify"), set("ipv6", "optimistic_dad")]
}
