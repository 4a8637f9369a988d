//! Pauses that differ from one process to the next.

use std::{
    hash::{BuildHasher as _, Hasher as _, RandomState},
    time::Duration,
};

/// A pause between half and all of `longest`: many pods that met the same busy server do not come back at once.
pub(crate) fn jittered(longest: Duration) -> Duration {
    // Every RandomState has keys of its own, from the kernel's random numbers.
    let random = RandomState::new().build_hasher().finish();
    longest / 2 + longest * u32::from(u8::try_from(random % 256).unwrap_or_default()) / 512
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_differ_within_bounds() {
        let longest = Duration::from_millis(800);
        let pauses: Vec<Duration> = (0..50).map(|_| jittered(longest)).collect();
        assert!(pauses.iter().all(|pause| (longest / 2..=longest).contains(pause)), "{pauses:?}");
        assert!(pauses.iter().any(|pause| *pause != pauses[0]));
    }
}
