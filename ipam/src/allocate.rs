//! Choosing, without touching anything: which requested address goes to which range set, and in which order the
//! addresses of a set are tried. No range is ever written out: a /64 costs as much as a /24.

use std::net::IpAddr;

use crate::{Error, IpRange, RangeSet};

/// Gives every set the first requested address it contains, at most one; the others are left over. host-local picks
/// at random between two requests for one set; both ways the request fails as a whole.
pub(crate) fn assign(sets: &[RangeSet], requested: &[IpAddr]) -> (Vec<Option<IpAddr>>, Vec<IpAddr>) {
    let mut left: Vec<IpAddr> = Vec::with_capacity(requested.len());
    for address in requested.iter().map(IpAddr::to_canonical) {
        if !left.contains(&address) {
            left.push(address);
        }
    }
    let mut take = |set: &RangeSet| {
        let found = left.iter().position(|address| set.range_of(*address).is_some())?;
        Some(left.remove(found))
    };
    let wanted = sets.iter().map(&mut take).collect();
    (wanted, left)
}

/// The addresses of a set, each once, without gateways and what is excluded: beginning after the last one that was
/// given out, so that a container that crashes and comes back does not get the same address at once; through all
/// ranges and around. A step costs a search in the range's excluded blocks, however large they are.
#[derive(Debug, Clone)]
pub(crate) struct Candidates<'a> {
    set: &'a RangeSet,
    first: Option<Position>,
    next: Option<Position>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Position {
    range: usize,
    address: IpAddr,
}

impl<'a> Candidates<'a> {
    /// `last` is the address given out before; one that is not in the set (the configuration changed) is as good as
    /// none, and the set begins at its beginning.
    pub(crate) fn after(set: &'a RangeSet, last: Option<IpAddr>) -> Candidates<'a> {
        let found = last.and_then(|address| {
            let range = set.ranges().iter().position(|range| range.contains(address))?;
            Some(Position { range, address })
        });
        let first = match found {
            Some(last) => step(set, last),
            None => enter(set, 0),
        };
        Candidates { set, first, next: first }
    }
}

impl<'a> Iterator for Candidates<'a> {
    type Item = (IpAddr, &'a IpRange);

    fn next(&mut self) -> Option<Self::Item> {
        let here = self.next?;
        self.next = step(self.set, here).filter(|next| Some(*next) != self.first);
        Some((here.address, self.set.ranges().get(here.range)?))
    }
}

/// The next position in the round; the same one again if there is no other, `None` if there is none at all.
fn step(set: &RangeSet, at: Position) -> Option<Position> {
    match set.ranges().get(at.range)?.first_after(at.address) {
        Some(address) => Some(Position { address, ..at }),
        None => enter(set, at.range + 1),
    }
}

/// The first position of the range `range`, or of the next one that has any.
fn enter(set: &RangeSet, range: usize) -> Option<Position> {
    let count = set.ranges().len();
    (range..range + count).find_map(|range| {
        let range = range % count;
        let found = set.ranges().get(range)?;
        Some(Position { range, address: found.first_from(found.start())? })
    })
}

/// The first candidate that `is_taken` does not refuse.
///
/// # Errors
/// What `is_taken` fails with.
pub(crate) fn first_free<'a>(
    candidates: Candidates<'a>,
    mut is_taken: impl FnMut(IpAddr) -> Result<bool, Error>,
) -> Result<Option<(IpAddr, &'a IpRange)>, Error> {
    for (address, range) in candidates {
        if !is_taken(address)? {
            return Ok(Some((address, range)));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::RawRange;

    fn set(ranges: &str) -> RangeSet {
        let raw: Vec<RawRange> = serde_json::from_str(ranges).unwrap();
        RangeSet::all(&[crate::range::placed("ranges[0]", &raw)], &[]).unwrap().remove(0)
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn order(set: &RangeSet, last: Option<&str>) -> Vec<String> {
        Candidates::after(set, last.map(ip)).map(|(address, _)| address.to_string()).collect()
    }

    #[test]
    fn the_first_round_begins_at_the_start_without_the_gateway() {
        let set = set(r#"[{"subnet":"10.0.0.0/29"}]"#);
        assert_eq!(order(&set, None), ["10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6"]);
    }

    #[test]
    fn the_next_one_is_after_the_last_one_and_the_last_one_comes_last() {
        let set = set(r#"[{"subnet":"10.0.0.0/29"}]"#);
        assert_eq!(order(&set, Some("10.0.0.4")), ["10.0.0.5", "10.0.0.6", "10.0.0.2", "10.0.0.3", "10.0.0.4"]);
        assert_eq!(order(&set, Some("10.0.0.6")), ["10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6"]);
        assert_eq!(order(&set, Some("10.0.9.9")), order(&set, None), "a last address of another configuration");
        assert_eq!(order(&set, Some("fd00::4")), order(&set, None), "a last address of another family");
    }

    #[test]
    fn ranges_follow_one_another_and_the_last_wraps_to_the_first() {
        let set =
            set(r#"[{"subnet":"10.0.0.0/30"},{"subnet":"10.1.0.0/24","rangeStart":"10.1.0.8","rangeEnd":"10.1.0.9"}]"#);
        assert_eq!(order(&set, None), ["10.0.0.2", "10.1.0.8", "10.1.0.9"]);
        assert_eq!(order(&set, Some("10.0.0.2")), ["10.1.0.8", "10.1.0.9", "10.0.0.2"]);
        assert_eq!(order(&set, Some("10.1.0.9")), ["10.0.0.2", "10.1.0.8", "10.1.0.9"]);
    }

    #[test]
    fn one_address_that_is_the_gateway_is_no_address() {
        let set = set(r#"[{"subnet":"10.0.0.0/24","rangeStart":"10.0.0.1","rangeEnd":"10.0.0.1"}]"#);
        assert_eq!(order(&set, None), Vec::<String>::new());
        assert_eq!(order(&set, Some("10.0.0.1")), Vec::<String>::new());
    }

    #[test]
    fn the_end_of_the_address_space_is_an_end() {
        let set = set(r#"[{"subnet":"255.255.255.252/30","rangeEnd":"255.255.255.255"}]"#);
        assert_eq!(order(&set, None), ["255.255.255.254", "255.255.255.255"]);
    }

    #[test]
    fn a_slash_64_is_not_written_out() {
        let set = set(r#"[{"subnet":"2001:db8::/64"}]"#);
        let (address, range) = first_free(Candidates::after(&set, None), |_| Ok(false)).unwrap().unwrap();
        assert_eq!(range.with_prefix(address).to_string(), "2001:db8::2/64");
        let last = Some(ip("2001:db8::ffff:ffff:ffff:ffff"));
        let (address, _) = first_free(Candidates::after(&set, last), |_| Ok(false)).unwrap().unwrap();
        assert_eq!(address, ip("2001:db8::2"), "after the last one comes the first, the gateway skipped");
    }

    /// Small sets of random shape: every address of the set but the gateways comes exactly once, whatever the start.
    #[test]
    fn whatever_the_shape_each_address_comes_once() {
        let mut state = 0x2545_f491_u32;
        let mut random = |below: u32| {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            state % below
        };
        for round in 0..500 {
            let mut ranges = Vec::new();
            let mut expected = BTreeSet::new();
            for index in 0..=random(3) {
                let (start, length, gateway) = (random(250), random(6), random(256));
                let end = (start + length).min(255);
                ranges.push(format!(
                    r#"{{"subnet":"10.{index}.0.0/24","rangeStart":"10.{index}.0.{start}","rangeEnd":"10.{index}.0.{end}","gateway":"10.{index}.0.{gateway}"}}"#
                ));
                expected.extend(
                    (start..=end).filter(|host| *host != gateway).map(|host| ip(&format!("10.{index}.0.{host}"))),
                );
            }
            let set = set(&format!("[{}]", ranges.join(",")));
            let last = ip(&format!("10.{}.0.{}", random(4), random(256)));
            let seen: Vec<IpAddr> = Candidates::after(&set, Some(last)).map(|(address, _)| address).collect();
            assert_eq!(seen.len(), expected.len(), "round {round}: {set} after {last}");
            assert_eq!(seen.iter().copied().collect::<BTreeSet<_>>(), expected, "round {round}: {set} after {last}");
            if expected.contains(&last) {
                assert_eq!(seen.last(), Some(&last), "round {round}: {set}: the last one given out comes last");
            }
        }
    }

    #[test]
    fn a_failing_look_is_the_callers_failure() {
        let set = set(r#"[{"subnet":"10.0.0.0/29"}]"#);
        let failed = first_free(Candidates::after(&set, None), |_| Err(Error::NoRanges));
        assert!(matches!(failed, Err(Error::NoRanges)));
        assert_eq!(first_free(Candidates::after(&set, None), |_| Ok(true)).unwrap(), None);
    }

    #[test]
    fn requests_go_to_the_set_that_contains_them_one_each() {
        let sets = [
            set(r#"[{"subnet":"10.0.0.0/24"}]"#),
            set(r#"[{"subnet":"fd00::/64"}]"#),
            set(r#"[{"subnet":"10.1.0.0/24"}]"#),
        ];
        let (wanted, left) =
            assign(&sets, &[ip("fd00::9"), ip("10.1.0.9"), ip("::ffff:10.1.0.9"), ip("10.1.0.8"), ip("192.0.2.1")]);
        assert_eq!(wanted, [None, Some(ip("fd00::9")), Some(ip("10.1.0.9"))]);
        assert_eq!(left, [ip("10.1.0.8"), ip("192.0.2.1")]);
    }
}
