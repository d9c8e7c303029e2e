//! Quorate's resilience machines beside independent implementations, on generated traces.
//!
//! Each module drives one of ours and one of others through the same seeded trace and compares them
//! after each step. Where they differ on purpose, a test of its own shows the difference, so that it
//! is known when either side changes. `README.md` tells them all. There is nothing here but tests.

#![cfg(test)]

mod breaker;
mod concurrency;
mod outlier;
mod rate_limit;
mod retry;

use quorate::types::{Duration, Rng};

/// Runs `trace` for so many seeds; one that fails tells its seed.
fn traces(count: u64, mut trace: impl FnMut(u64, &mut Rng)) {
    for seed in 0..count {
        let told = Told(seed);
        trace(seed, &mut Rng::new(seed));
        std::mem::forget(told);
    }
}

/// Tells the seed of a trace that panics.
struct Told(u64);

impl Drop for Told {
    fn drop(&mut self) {
        eprintln!("the trace of seed {} failed", self.0);
    }
}

/// True in `percent` of 100.
fn chance(rng: &mut Rng, percent: u64) -> bool {
    rng.below(100) < percent
}

/// From `least` to `most`, both included.
fn pick(rng: &mut Rng, least: u64, most: u64) -> u64 {
    least + rng.below(most - least + 1)
}

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}
