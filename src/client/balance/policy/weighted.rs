//! Each as often as its weight says, in turn.
//!
//! Turns are the points of a Weyl sequence by the golden ratio over the line of all weights: after
//! any number of picks each endpoint has had its share to within a few calls, with any weights, and
//! the turns of one are spread as evenly as can be (the three-distance theorem; Knuth, TAOCP 6.4).
//! One addition to a counter and one search: a heavy endpoint among many light ones costs no more,
//! where gRPC's static stride scheduler skips the light ones.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use super::{Asked, Backend, Candidates, Picker, Policy};

/// 2^64 over the golden ratio: what each pick moves on by.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// Gives each endpoint the share of the calls that its weight ([`Endpoint::weight`]) is of all
/// weights. Begins anywhere, so that many clients do not begin at the same endpoint; a new picker
/// goes on where the one before stood.
///
/// [`Endpoint::weight`]: crate::client::balance::Endpoint::weight
#[derive(Debug, Default)]
pub struct Weighted {
    line: Arc<Line>,
}

impl Weighted {
    /// Begins anywhere.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }
}

impl Policy for Weighted {
    fn name(&self) -> &'static str {
        "weighted"
    }

    fn picker(&self, candidates: &Candidates<'_>) -> Box<dyn Picker> {
        let mut total = 0;
        let end = |backend: &Arc<Backend>| {
            total += u64::from(backend.endpoint().weight());
            total
        };
        let ends = candidates.ready.iter().map(end).collect();
        Box::new(Shares { line: Arc::clone(&self.line), ends })
    }
}

/// Where turns have come to.
#[derive(Debug, Default)]
struct Line {
    /// Where the first turn stood; 0 while there was none.
    start: AtomicU64,
    moved: AtomicU64,
}

impl Line {
    /// The next point, evenly from all of `u64`.
    fn next(&self, chance: u64) -> u64 {
        let mut start = self.start.load(Relaxed);
        if start == 0 {
            let own = chance | 1;
            start = match self.start.compare_exchange(0, own, Relaxed, Relaxed) {
                Ok(_) => own,
                Err(others) => others,
            };
        }
        start.wrapping_add(self.moved.fetch_add(STEP, Relaxed))
    }
}

#[derive(Debug)]
struct Shares {
    line: Arc<Line>,
    /// Where on the line of weights each endpoint's part ends.
    ends: Box<[u64]>,
}

impl Picker for Shares {
    fn pick(&self, _: &[Arc<Backend>], call: &Asked) -> usize {
        let Some(total) = self.ends.last() else { return 0 };
        let point = (u128::from(self.line.next(call.chance)) * u128::from(*total)) >> 64;
        self.ends.partition_point(|end| u128::from(*end) <= point)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::client::balance::policy::testing::{asked, picked, weighing};

    proptest! {
        /// Not about as often, as by chance, but to within a few calls whatever the weights.
        #[test]
        fn each_has_its_share_to_within_a_few_calls(
            weights in prop::collection::vec(1_u32..1_000, 1..30),
            picks in 1_u32..20_000,
            seed: u64,
        ) {
            let total: u64 = weights.iter().copied().map(u64::from).sum();
            let counts = picked(&Weighted::new(), &weighing(&weights), picks, seed);
            for (weight, count) in weights.iter().zip(counts) {
                let share = f64::from(picks) * f64::from(*weight) / total as f64;
                prop_assert!((f64::from(count) - share).abs() < 12.0, "{count} for {share}");
            }
        }
    }

    #[test]
    fn the_turns_of_one_are_spread() {
        let ready = weighing(&[5, 1, 1, 1, 2]);
        let picker = Weighted::new().picker(&Candidates { ready: &ready, all: &[] });
        let mut last = [0_i32; 5];
        for (turn, call) in (0..10_000).zip(asked(3)) {
            let place = picker.pick(&ready, &call);
            for other in 0..5 {
                let share = f64::from(ready[other].endpoint().weight()) / 10.0;
                let waited = f64::from(turn - last[other]);
                assert!(waited <= 3.0 / share, "{other} waited for {waited} turns at {turn}");
            }
            last[place] = turn;
        }
    }

    #[test]
    fn the_largest_weights_do_not_overflow() {
        let counts = picked(&Weighted::new(), &weighing(&[u32::MAX; 50]), 5_000, 1);
        assert!(counts.iter().all(|count| count.abs_diff(100) < 12), "{counts:?}");
        let lone = picked(&Weighted::new(), &weighing(&[1, u32::MAX]), 5_000, 1);
        assert!(lone[0] <= 1, "{lone:?}");
    }

    #[test]
    fn clients_begin_in_different_places_and_a_new_picker_goes_on() {
        let ready = weighing(&[1; 10]);
        let first = |seed| {
            let counts = picked(&Weighted::new(), &ready, 1, seed);
            counts.iter().position(|count| *count == 1).expect("one was picked")
        };
        let firsts: std::collections::BTreeSet<_> = (0..50).map(first).collect();
        assert!(firsts.len() > 5, "{firsts:?}");

        let policy = Weighted::new();
        let mut counts = [0_u32; 10];
        for seed in 0..1_000 {
            let once = picked(&policy, &ready, 1, seed);
            counts.iter_mut().zip(once).for_each(|(sum, count)| *sum += count);
        }
        assert!(counts.iter().all(|count| count.abs_diff(100) < 6), "{counts:?}");
    }
}
