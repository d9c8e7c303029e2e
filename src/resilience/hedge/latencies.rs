//! A percentile of the latest latencies, without a lock and without a clock.
//!
//! A histogram of eight buckets to each power of two, so that it errs by an eighth upwards at most.
//! It is halved whenever it holds 2,048 latencies: what was seen last weighs most. The percentile is
//! worked out at every 32nd latency and read from one word.

use core::{
    array, fmt,
    sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
};

use crate::types::Duration;

/// Buckets to a power of two, as bits.
const SUB_BITS: u32 = 3;
const SUB: u64 = 1 << SUB_BITS;

/// Latencies from 2^27 µs, more than two minutes, look alike.
const POWER_MAX: u32 = 27;
const BUCKETS: usize = (POWER_MAX - SUB_BITS + 2) as usize * SUB as usize;

/// How many latencies the histogram holds before it is halved.
const HELD_MAX: u32 = 2_048;

/// How many latencies lie between two looks at the percentile, and before the first.
const STEP: u32 = 32;

/// The latest latencies of something.
pub struct Latencies {
    buckets: [AtomicU32; BUCKETS],
    held: AtomicU32,
    /// In nanoseconds; zero before the first.
    percentile: AtomicU64,
    share: f64,
}

impl Latencies {
    /// Nothing was seen. `share` of them are to be below the percentile; 0 to 1.
    pub(super) fn new(share: f64) -> Self {
        Self {
            buckets: array::from_fn(|_| AtomicU32::new(0)),
            held: AtomicU32::new(0),
            percentile: AtomicU64::new(0),
            share,
        }
    }

    /// Takes one in.
    pub(super) fn record(&self, latency: Duration) {
        self.buckets[bucket(latency)].fetch_add(1, Relaxed);
        let held = self.held.fetch_add(1, Relaxed) + 1;
        if held.is_multiple_of(STEP) {
            self.look();
        }
        // Whoever makes it so many halves it; others may record meanwhile, which is lost on nobody.
        if held == HELD_MAX {
            let halved = self.buckets.iter().map(|bucket| {
                let half = bucket.load(Relaxed) / 2;
                bucket.fetch_sub(half, Relaxed);
                half
            });
            self.held.fetch_sub(halved.sum(), Relaxed);
        }
    }

    /// How long the share of them took at most. `None` until enough were seen.
    pub(super) fn percentile(&self) -> Option<Duration> {
        match self.percentile.load(Relaxed) {
            0 => None,
            nanos => Some(Duration::from_nanos(nanos)),
        }
    }

    fn look(&self) {
        let total: u64 = self.buckets.iter().map(|bucket| u64::from(bucket.load(Relaxed))).sum();
        let wanted = (total as f64 * self.share).ceil() as u64;
        let mut below = 0;
        let at = self.buckets.iter().position(|bucket| {
            below += u64::from(bucket.load(Relaxed));
            below >= wanted
        });
        let upper = upper_micros(at.unwrap_or(BUCKETS - 1));
        self.percentile.store(upper * 1_000, Relaxed);
    }
}

impl fmt::Debug for Latencies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Latencies")
            .field("share", &self.share)
            .field("held", &self.held.load(Relaxed))
            .field("percentile", &self.percentile())
            .finish_non_exhaustive()
    }
}

/// Which bucket a latency falls into.
fn bucket(latency: Duration) -> usize {
    let micros = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
    let micros = micros.min((1 << (POWER_MAX + 1)) - 1);
    if micros < SUB {
        return micros as usize;
    }
    let power = micros.ilog2();
    let sub = (micros >> (power - SUB_BITS)) & (SUB - 1);
    (u64::from(power - SUB_BITS + 1) * SUB + sub) as usize
}

/// What all latencies of a bucket are below.
const fn upper_micros(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    if bucket < SUB {
        return bucket + 1;
    }
    (SUB + bucket % SUB + 1) << (bucket / SUB - 1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const fn micros(count: u64) -> Duration {
        Duration::from_micros(count)
    }

    #[test]
    fn nothing_is_known_until_enough_were_seen() {
        let latencies = Latencies::new(0.95);
        for _ in 1..STEP {
            latencies.record(micros(500));
        }
        assert_eq!(latencies.percentile(), None);
        latencies.record(micros(500));
        let seen = latencies.percentile().expect("it is known");
        assert!(seen > micros(500) && seen <= micros(563), "{seen:?}");
    }

    #[test]
    fn what_was_seen_last_weighs_most() {
        let latencies = Latencies::new(0.5);
        (0..20_000).for_each(|_| latencies.record(micros(100)));
        assert!(latencies.percentile().expect("it is known") < micros(120));
        (0..3_000).for_each(|_| latencies.record(micros(10_000)));
        assert!(latencies.percentile().expect("it is known") > micros(9_000));
        assert!(latencies.held.load(Relaxed) < HELD_MAX);
    }

    #[test]
    fn the_longest_have_a_bucket_too() {
        assert_eq!(bucket(Duration::MAX), BUCKETS - 1);
        assert_eq!(bucket(Duration::ZERO), 0);
    }

    proptest! {
        #[test]
        fn a_bucket_holds_what_is_below_its_end_and_errs_by_an_eighth(latency in 0_u64..(1 << 28)) {
            let bucket = bucket(micros(latency));
            let upper = upper_micros(bucket);
            prop_assert!(latency < upper);
            prop_assert!(upper - latency <= latency / SUB + 1);
            prop_assert!(bucket == 0 || upper_micros(bucket - 1) <= latency);
        }

        #[test]
        fn the_percentile_is_that_of_a_sorted_list(
            seen in proptest::collection::vec(1_u64..1_000_000, 32..33),
            share in 0.5_f64..0.999,
        ) {
            let latencies = Latencies::new(share);
            seen.iter().for_each(|latency| latencies.record(micros(*latency)));
            let mut sorted = seen;
            sorted.sort_unstable();
            let place = (sorted.len() as f64 * share).ceil() as usize;
            let exact = sorted[place - 1];
            let told = latencies.percentile().expect("it is known").as_micros() as u64;
            prop_assert!(told > exact && told <= exact + exact / SUB + 1, "{told}, not {exact}");
        }
    }
}
