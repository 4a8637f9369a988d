//! In which order addresses are given out, and what is said when there are none.

use super::*;

#[test]
fn addresses_are_given_in_turn() {
    let (one, two) = (&["10.0.0.0/29"][..], &["10.0.0.0/30", "10.0.1.0/30"][..]);
    // Subnets, addresses that are held, the last one given out, the one to be given.
    let table: [(&[&str], &[&str], &str, &str); 13] = [
        (one, &[], "", "10.0.0.2/29 via 10.0.0.1"),
        (&["2001:db8:1::/64"], &[], "", "2001:db8:1::2/64 via 2001:db8:1::1"),
        (&["10.0.0.0/30"], &[], "", "10.0.0.2/30 via 10.0.0.1"),
        (one, &["10.0.0.2"], "", "10.0.0.3/29 via 10.0.0.1"),
        (one, &[], "10.0.0.5", "10.0.0.6/29 via 10.0.0.1"),
        (one, &["10.0.0.4", "10.0.0.5"], "10.0.0.3", "10.0.0.6/29 via 10.0.0.1"),
        (one, &["10.0.0.6"], "10.0.0.5", "10.0.0.2/29 via 10.0.0.1"),
        // A last one of another configuration does not count.
        (one, &["10.0.0.2"], "10.0.0.128", "10.0.0.3/29 via 10.0.0.1"),
        (one, &["10.0.0.2", "10.0.0.4", "10.0.0.5", "10.0.0.6"], "10.0.0.3", "10.0.0.3/29 via 10.0.0.1"),
        (two, &[], "", "10.0.0.2/30 via 10.0.0.1"),
        (two, &[], "10.0.0.2", "10.0.1.2/30 via 10.0.1.1"),
        (two, &["10.0.0.2"], "", "10.0.1.2/30 via 10.0.1.1"),
        (&["10.0.0.0/30", "10.0.1.0/30", "10.0.2.0/30"], &[], "10.0.2.2", "10.0.0.2/30 via 10.0.0.1"),
    ];
    for (subnets, held, last, expected) in table {
        let mut planted: Vec<(&str, &str)> = held.iter().map(|address| (*address, TAKEN)).collect();
        planted.extend((!last.is_empty()).then_some((LAST, last)));
        same(&one_set(subnets), &planted, &[gives("c1", &[expected])]);
    }
}

#[test]
fn an_exhausted_set_says_so() {
    let table: [(&[&str], &[&str], &'static str); 3] = [
        (
            &["10.0.0.0/30"],
            &["10.0.0.2"],
            "failed to allocate for range 0: no IP addresses available in range set: 10.0.0.1-10.0.0.2",
        ),
        (
            &["10.0.0.0/29"],
            &["10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6"],
            "failed to allocate for range 0: no IP addresses available in range set: 10.0.0.1-10.0.0.6",
        ),
        (
            &["10.0.0.0/30", "10.0.1.0/30"],
            &["10.0.0.2", "10.0.1.2"],
            "failed to allocate for range 0: no IP addresses available in range set: 10.0.0.1-10.0.0.2,10.0.1.1-10.0.1.2",
        ),
    ];
    for (subnets, held, text) in table {
        let planted: Vec<(&str, &str)> = held.iter().map(|address| (*address, TAKEN)).collect();
        same(&one_set(subnets), &planted, &[refused("c1", text)]);
    }
}

/// From the beginning, from the middle and from the end: every address but network, gateway and broadcast, once.
#[test]
fn a_round_has_every_address_once_and_never_the_broadcast() {
    let names = ["c1", "c2", "c3", "c4", "c5"];
    for (last, order) in [("", [2, 3, 4, 5, 6]), ("192.168.1.3", [4, 5, 6, 2, 3]), ("192.168.1.6", [2, 3, 4, 5, 6])] {
        let mut steps = Vec::new();
        for (name, host) in names.iter().zip(order) {
            steps.push(gives(name, &[&format!("192.168.1.{host}/29 via 192.168.1.1")]));
        }
        steps.push(refused("c6", "no IP addresses available in range set: 192.168.1.1-192.168.1.6"));
        let planted = if last.is_empty() { vec![] } else { vec![(LAST, last)] };
        same(&one_set(&["192.168.1.0/29"]), &planted, &steps);
    }
}

#[test]
fn what_was_given_back_comes_again_last() {
    let steps = [
        gives("c1", &["192.168.1.2/29 via 192.168.1.1"]),
        del("c1"),
        gives("c1", &["192.168.1.3/29 via 192.168.1.1"]),
        Step::File(LAST, Some("192.168.1.3")),
        Step::File("192.168.1.2", None),
    ];
    same(&one_set(&["192.168.1.0/29"]), &[], &steps);
}

#[test]
fn after_the_last_of_a_range_comes_the_first_of_the_next() {
    let bounds = |net: u8| {
        json!({"subnet": format!("192.168.{net}.0/30"), "rangeStart": format!("192.168.{net}.0"),
            "rangeEnd": format!("192.168.{net}.3")})
    };
    let ipam = json!({"ranges": [[bounds(1), bounds(2)]]});
    same(&ipam, &[(LAST, "192.168.1.3")], &[gives("c1", &["192.168.2.0/30 via 192.168.2.1"])]);
    same(&ipam, &[(LAST, "192.168.2.3")], &[gives("c1", &["192.168.1.0/30 via 192.168.1.1"])]);
    same(&ipam, &[], &[gives("c1", &["192.168.1.0/30 via 192.168.1.1"])]);
}

/// The end of a network with 2^64 addresses is as near as its beginning.
#[test]
fn a_large_network_is_not_walked() {
    let ipam = one_set(&["2001:db8::/64"]);
    let end = "2001:db8::ffff:ffff:ffff:ffff";
    let written = "2001:db8:0:0:ffff:ffff:ffff:ffff";
    for last in [end, written] {
        let steps = [gives("c1", &["2001:db8::2/64 via 2001:db8::1"]), Step::File(LAST, Some("2001:db8::2"))];
        same(&ipam, &[(LAST, last)], &steps);
    }
    let before = "2001:db8::ffff:ffff:ffff:fffe";
    same(&ipam, &[(LAST, before)], &[gives("c1", &["2001:db8::ffff:ffff:ffff:ffff/64 via 2001:db8::1"])]);
}
