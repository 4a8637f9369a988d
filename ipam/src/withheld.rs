//! Addresses that are held back for a while though nobody has them: `withheld/ADDRESS` beside the pool says until when
//! and why. The time is the kernel's since it booted, which no one can set; after another boot nothing is withheld.

use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

use crate::{Error, RangeSet, address, beside};

const WITHHELD: &str = "withheld";
const COOL_DOWN: &str = "cool-down";
const CONFLICT: &str = "conflict";

/// Why an address is held back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    /// It was given back a moment ago.
    CoolDown,
    /// Somebody else in the network uses it.
    Conflict {
        /// The hardware address that answered for it.
        mac: String,
    },
    /// A newer release had a reason that this one does not know.
    Other {
        /// Its words.
        words: String,
    },
}

impl fmt::Display for Reason {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::CoolDown => out.write_str(COOL_DOWN),
            Reason::Conflict { mac } => write!(out, "{CONFLICT} {mac}"),
            Reason::Other { words } => out.write_str(words),
        }
    }
}

/// An address that is held back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Withheld {
    /// The address.
    pub address: IpAddr,
    /// How long it is held back from now on.
    pub left: Duration,
    /// Why.
    pub reason: Reason,
}

/// Which boot this is, and how long ago it was, in seconds.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Now {
    boot_id: String,
    seconds: u64,
}

impl Now {
    fn read() -> Result<Now, Error> {
        let time = clock_gettime(ClockId::CLOCK_BOOTTIME)
            .map_err(|error| Error::io("read the time since boot for", Path::new(WITHHELD), error))?;
        Ok(Now { boot_id: beside::boot_id()?, seconds: u64::try_from(time.tv_sec()).unwrap_or_default() })
    }

    /// `UNTIL BOOT_ID REASON`.
    fn write(&self, time: Duration, reason: &Reason) -> String {
        // The running second counts as none: the address is held back for the whole time.
        let until = self.seconds.saturating_add(time.as_secs()).saturating_add(1);
        format!("{until} {} {reason}", self.boot_id)
    }

    /// How long from now on, and why; `None` if the time is over, or was another boot's.
    fn judge(&self, text: &str) -> Option<(Duration, Reason)> {
        let mut words = text.splitn(3, ' ');
        let (until, boot_id, reason) = (words.next()?.parse::<u64>().ok()?, words.next()?, words.next()?);
        let left = until.checked_sub(self.seconds).filter(|left| *left > 0)?;
        let reason = match reason.split_once(' ') {
            None if reason == COOL_DOWN => Reason::CoolDown,
            Some((CONFLICT, mac)) => Reason::Conflict { mac: mac.to_owned() },
            _ => Reason::Other { words: reason.to_owned() },
        };
        (boot_id == self.boot_id).then_some((Duration::from_secs(left), reason))
    }
}

/// What is held back in one pool. The clock is asked when it is first needed.
#[derive(Debug)]
pub(crate) struct Quarantine {
    beside: PathBuf,
    now: Option<Now>,
}

impl Quarantine {
    pub(crate) fn of(pool: &Path) -> Quarantine {
        Quarantine { beside: beside::beside(pool), now: None }
    }

    /// Holds an address back for `time`; if it is held back longer already, that stays. The pool's lock must be held.
    pub(crate) fn add(&mut self, address: IpAddr, time: Duration, reason: &Reason) -> Result<(), Error> {
        if self.find(address)?.is_some_and(|(left, _)| left > time) {
            return Ok(());
        }
        let (link, text) = (self.link(address), self.now()?.write(time, reason));
        let write = || beside::write(&self.beside, &link, &text);
        let outcome = match write() {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                beside::make(&self.directory()).and_then(|()| write())
            }
            outcome => outcome,
        };
        outcome.map_err(|error| Error::io("hold back", &link, error))
    }

    /// How long an address is held back, and why. What is over is removed. The pool's lock must be held.
    pub(crate) fn find(&mut self, address: IpAddr) -> Result<Option<(Duration, Reason)>, Error> {
        let link = self.link(address);
        let Some(text) = beside::read(&link) else { return Ok(None) };
        let found = self.now()?.judge(&text);
        if found.is_none() {
            // As good as not there; if it stays, it is that next time, too.
            drop(beside::remove(&link));
        }
        Ok(found)
    }

    /// The addresses that have a link, whatever it says.
    pub(crate) fn names(&self) -> Result<Vec<IpAddr>, Error> {
        let directory = self.directory();
        let names = beside::names(&directory).map_err(|error| Error::io("list", &directory, error))?;
        Ok(names.iter().filter_map(|name| address::parse(name)).collect())
    }

    /// All that is held back, in order; what is over is removed. The pool's lock must be held.
    pub(crate) fn all(&mut self) -> Result<Vec<Withheld>, Error> {
        let mut names = self.names()?;
        names.sort_unstable();
        let mut all = Vec::new();
        for address in names {
            all.extend(self.find(address)?.map(|(left, reason)| Withheld { address, left, reason }));
        }
        Ok(all)
    }

    /// How many addresses of a set are held back, and how long the first of them still is.
    pub(crate) fn count(&mut self, set: &RangeSet) -> Result<Option<(usize, Duration)>, Error> {
        let all = self.all()?;
        let left = || all.iter().filter(|one| set.range_of(one.address).is_some()).map(|one| one.left);
        Ok(left().min().map(|next| (left().count(), next)))
    }

    fn now(&mut self) -> Result<&Now, Error> {
        let now = match self.now.take() {
            Some(now) => now,
            None => Now::read()?,
        };
        Ok(self.now.insert(now))
    }

    fn directory(&self) -> PathBuf {
        self.beside.join(WITHHELD)
    }

    fn link(&self, address: IpAddr) -> PathBuf {
        self.directory().join(address.to_canonical().to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(boot_id: &str, seconds: u64) -> Now {
        Now { boot_id: boot_id.to_owned(), seconds }
    }

    #[test]
    fn the_whole_time_counts_and_only_in_its_boot() {
        let text = at("one", 100).write(Duration::from_secs(60), &Reason::CoolDown);
        assert_eq!(text, "161 one cool-down");
        let left = |now: Now| now.judge(&text).map(|(left, _)| left.as_secs());
        assert_eq!(left(at("one", 100)), Some(61));
        assert_eq!(left(at("one", 160)), Some(1));
        assert_eq!(left(at("one", 161)), None);
        assert_eq!(left(at("two", 100)), None);
    }

    #[test]
    fn a_reason_is_read_as_it_was_written_also_one_of_a_newer_release() {
        let conflict = Reason::Conflict { mac: "02:00:00:00:00:01".to_owned() };
        let other = Reason::Other { words: "lent to 10.0.0.1".to_owned() };
        for (reason, words) in [(conflict, "conflict 02:00:00:00:00:01"), (other, "lent to 10.0.0.1")] {
            let text = at("one", 1).write(Duration::from_secs(9), &reason);
            assert_eq!(text, format!("11 one {words}"));
            assert_eq!(at("one", 1).judge(&text), Some((Duration::from_secs(10), reason)));
        }
        for text in ["", "11", "11 one", "x one cool-down", "-1 one cool-down"] {
            assert_eq!(at("one", 1).judge(text), None, "{text:?}");
        }
    }
}
