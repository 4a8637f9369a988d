//! What is never given out of a range: blocks of addresses, kept apart and in order, so that a search jumps over each
//! of them in one step however large it is.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::Error;
use crate::address::{self, Cidr, to_number};

/// One entry of `exclude`, with its place for error messages.
#[derive(Debug, Clone)]
pub(crate) struct Exclude {
    place: String,
    text: String,
    net: IpNet,
}

impl Exclude {
    /// Reads the entries of an `exclude` that is written at `place`: addresses and networks.
    pub(crate) fn all(place: &str, entries: Option<&Vec<String>>) -> Result<Vec<Exclude>, Error> {
        let entries = entries.into_iter().flatten().enumerate();
        entries.map(|(index, text)| Exclude::new(format!("{place}exclude[{index}]"), text)).collect()
    }

    fn new(place: String, text: &str) -> Result<Exclude, Error> {
        let net = match text.contains('/') {
            true => {
                let net = Cidr::parse(text).and_then(Cidr::canonical);
                net.ok_or_else(|| Error::BadCidr { place: place.clone(), text: text.to_owned() })?
            }
            false => {
                let address = address::parse(text);
                let bad = || Error::BadAddress { place: place.clone(), text: text.to_owned() };
                IpNet::from(address.ok_or_else(bad)?)
            }
        };
        if net.addr() != net.network() {
            return Err(Error::ExcludeHostBits { place, text: text.to_owned(), network: net.trunc() });
        }
        Ok(Exclude { place, text: text.to_owned(), net })
    }

    /// Whether it has an address of `start` to `end`, both of one family.
    pub(crate) fn touches(&self, start: IpAddr, end: IpAddr) -> bool {
        let (first, last) = self.block();
        self.net.addr().is_ipv4() == start.is_ipv4() && first <= to_number(end) && last >= to_number(start)
    }

    /// Its first and its last address as numbers.
    pub(crate) fn block(&self) -> (u128, u128) {
        (to_number(self.net.network()), to_number(self.net.broadcast()))
    }

    /// It excludes nothing.
    pub(crate) fn outside(&self) -> Error {
        Error::ExcludeOutside { place: self.place.clone(), text: self.text.clone() }
    }
}

/// Blocks of numbers, first and last inclusive: in order, and with a gap between any two.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Blocks(Vec<(u128, u128)>);

impl Blocks {
    /// Puts blocks in order and joins those that touch.
    pub(crate) fn new(mut blocks: Vec<(u128, u128)>) -> Blocks {
        blocks.sort_unstable();
        let mut joined: Vec<(u128, u128)> = Vec::with_capacity(blocks.len());
        for (first, last) in blocks {
            match joined.last_mut() {
                Some(before) if first <= before.1.saturating_add(1) => before.1 = before.1.max(last),
                _ => joined.push((first, last)),
            }
        }
        Blocks(joined)
    }

    /// The same with one number more.
    pub(crate) fn with(&self, number: Option<u128>) -> Blocks {
        Blocks::new(self.0.iter().copied().chain(number.map(|number| (number, number))).collect())
    }

    pub(crate) fn contains(&self, number: u128) -> bool {
        self.end_of(number).is_some()
    }

    /// The first number from `number` on that is in no block; `None` at the end of all numbers. One search, no walk.
    pub(crate) fn first_outside(&self, number: u128) -> Option<u128> {
        match self.end_of(number) {
            // Another block does not begin right there: those that touch have been joined.
            Some(last) => last.checked_add(1),
            None => Some(number),
        }
    }

    /// How many numbers of `first` to `last` are in no block; at most [`u128::MAX`].
    pub(crate) fn left_of(&self, first: u128, last: u128) -> u128 {
        let overlap = |(from, to): &(u128, u128)| {
            let (from, to) = ((*from).max(first), (*to).min(last));
            to.checked_sub(from).map_or(0, |less_one| less_one.saturating_add(1))
        };
        let taken = self.0.iter().map(overlap).fold(0_u128, u128::saturating_add);
        last.checked_sub(first).map_or(0, |less_one| less_one.saturating_add(1)).saturating_sub(taken)
    }

    /// The last number of the block that `number` is in.
    fn end_of(&self, number: u128) -> Option<u128> {
        let after = self.0.partition_point(|(first, _)| *first <= number);
        let (_, last) = self.0.get(after.checked_sub(1)?)?;
        (number <= *last).then_some(*last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_that_touch_are_one_and_are_jumped_over_at_once() {
        let blocks = Blocks::new(vec![(20, 29), (3, 3), (25, 40), (41, 41), (43, u128::MAX)]);
        assert_eq!(blocks, Blocks(vec![(3, 3), (20, 41), (43, u128::MAX)]));
        for (from, to) in [(0, Some(0)), (3, Some(4)), (19, Some(19)), (20, Some(42)), (41, Some(42)), (42, Some(42))] {
            assert_eq!(blocks.first_outside(from), to, "from {from}");
        }
        assert_eq!(blocks.first_outside(43), None);
        for ((first, last), left) in [((0, 50), 20), ((4, 19), 16), ((3, 3), 0), ((42, u128::MAX), 1), ((9, 8), 0)] {
            assert_eq!(blocks.left_of(first, last), left, "{first} to {last}");
        }
        assert_eq!(Blocks::default().left_of(0, u128::MAX), u128::MAX);
        assert!(blocks.contains(41) && !blocks.contains(42) && !Blocks::default().contains(0));
        assert_eq!(Blocks::default().with(Some(7)).first_outside(7), Some(8));
    }

    #[test]
    fn entries_are_addresses_and_networks_without_host_bits() {
        let entries = |list: &[&str]| {
            let list: Vec<String> = list.iter().map(|text| (*text).to_owned()).collect();
            Exclude::all("ipam.", Some(&list)).map(|all| all.iter().map(Exclude::block).collect::<Vec<_>>())
        };
        assert_eq!(entries(&["0.0.0.9", "0.0.1.0/24", "::ffff:0.0.0.4/126"]).unwrap(), [(9, 9), (256, 511), (4, 7)]);
        assert_eq!(Exclude::all("", None).unwrap().len(), 0);
        let error = entries(&["10.0.0.1", "10.0.0.5/24"]).unwrap_err();
        assert_eq!(error.to_string(), "ipam.exclude[1]: 10.0.0.5/24 has host bits set: the network is 10.0.0.0/24");
        assert!(matches!(error, Error::ExcludeHostBits { .. }));
        assert!(
            matches!(entries(&["10.0.0.300"]).unwrap_err(), Error::BadAddress { place, .. } if place == "ipam.exclude[0]")
        );
        assert!(matches!(entries(&["10.0.0.0/33"]).unwrap_err(), Error::BadCidr { text, .. } if text == "10.0.0.0/33"));
    }
}
