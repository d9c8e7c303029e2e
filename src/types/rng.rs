//! Chance from a seed: SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number
//! generators", OOPSLA 2014). Not for secrets.

use crate::types::Duration;

/// A small generator whose whole future follows from its seed.
#[derive(Clone, Debug)]
pub struct Rng {
    state: u64,
}

impl Rng {
    /// Starts from a seed.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    /// The next 64 bits.
    pub const fn next_u64(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`; zero for a bound of zero.
    pub const fn below(&mut self, bound: u64) -> u64 {
        // The multiply-shift reduction: its bias is below 2^-32 for the bounds used here.
        ((self.next_u64() as u128 * bound as u128) >> 64) as u64
    }

    /// A span from `from` (inclusive) to `to` (exclusive), evenly drawn.
    pub fn between(&mut self, from: Duration, to: Duration) -> Duration {
        let width = u64::try_from(to.saturating_sub(from).as_nanos()).unwrap_or(u64::MAX);
        from + Duration::from_nanos(self.below(width))
    }

    /// A generator of its own for a named part, so that a draw more in one part does not shift
    /// the others.
    #[must_use]
    pub fn stream(&self, name: &str) -> Self {
        let mut state = self.state ^ 0xcbf2_9ce4_8422_2325;
        for byte in name.bytes() {
            state = (state ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
        Self { state }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_one_sequence_and_streams_differ() {
        let draw = |mut rng: Rng| [rng.next_u64(), rng.next_u64(), rng.next_u64()];
        assert_eq!(draw(Rng::new(7)), draw(Rng::new(7)));
        assert_ne!(draw(Rng::new(7)), draw(Rng::new(8)));
        assert_ne!(draw(Rng::new(7).stream("disk")), draw(Rng::new(7).stream("network")));
    }

    #[test]
    fn draws_stay_in_their_bounds() {
        let mut rng = Rng::new(1);
        let (from, to) = (Duration::from_millis(10), Duration::from_millis(20));
        for _ in 0..1_000 {
            assert!(rng.below(3) < 3);
            let span = rng.between(from, to);
            assert!(span >= from && span < to);
        }
        assert_eq!(rng.below(0), 0);
    }
}
