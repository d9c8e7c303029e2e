//! What the policies by key share: the place of a call's key, and the bound on an endpoint's load.
//!
//! The bound is that of Mirrokni, Thorup and Zadimoghaddam, "Consistent hashing with bounded loads"
//! (2016): no endpoint has more in flight than a factor times its share of all; a key whose
//! endpoint is full goes on to the next in its own order, but never to one that fails: that has
//! room because it fails. Nothing here knows a table.

use std::sync::Arc;

use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::{Asked, Backend};
use crate::{client::balance::snapshot::mix, types::Instant};

/// Google's default: a quarter above the share.
pub(super) const FACTOR_DEFAULT: f64 = 1.25;

/// A bound closer to the share than this makes keys wander.
const FACTOR_MIN: f64 = 1.01;

/// An endpoint that answered less of its latest calls gets its own keys and no others'.
const SUCCESS_RATE_MIN: f64 = 0.9;

/// Where a call's key lies, evenly spread also where keys are small numbers. A call without a key
/// lies anywhere.
pub(super) fn position(call: &Asked) -> u64 {
    call.key.map_or(call.chance, mix)
}

/// The place of an endpoint's point of a number.
pub(super) fn point(id: &str, number: u64) -> u64 {
    xxh3_64_with_seed(id.as_bytes(), number)
}

/// How much of what is in flight each endpoint may have.
#[derive(Clone, Debug)]
pub(super) struct Bound {
    /// For each place: the factor times its weight over all weights.
    shares: Box<[f64]>,
}

impl Bound {
    /// None for no factor.
    pub(super) fn new(factor: Option<f64>, ready: &[Arc<Backend>]) -> Option<Self> {
        let factor = factor?;
        let weight = |backend: &Arc<Backend>| f64::from(backend.endpoint().weight());
        let total: f64 = ready.iter().map(weight).sum();
        let shares = ready.iter().map(|backend| factor * weight(backend) / total).collect();
        Some(Self { shares })
    }

    /// The first of `order` that has room for one more, the key's own endpoint `home` or one that
    /// does not fail. `None` where none of them has.
    ///
    /// All loads are read one after the other: calls that are picked meanwhile may go beyond the
    /// bound by as many as they are.
    pub(super) fn first_with_room(
        &self,
        ready: &[Arc<Backend>],
        (home, now): (usize, Instant),
        order: impl Iterator<Item = usize>,
    ) -> Option<usize> {
        let takes_others = |place: usize| ready[place].load().success_rate(now) >= SUCCESS_RATE_MIN;
        let in_flight = |place: usize| ready[place].load().in_flight();
        let mut all = None;
        for place in order {
            let own = in_flight(place);
            // Whoever is idle has room, whatever the others do.
            let has_room = own == 0 || {
                let all = *all.get_or_insert_with(|| {
                    (0..ready.len()).map(|place| u64::from(in_flight(place))).sum::<u64>()
                });
                f64::from(own) + 1.0 <= self.capacity(place, all)
            };
            if has_room && (place == home || takes_others(place)) {
                return Some(place);
            }
        }
        None
    }

    /// How many calls an endpoint may have, with one more than `all` in flight.
    pub(super) fn capacity(&self, place: usize, all: u64) -> f64 {
        (self.shares[place] * (all + 1) as f64).ceil()
    }
}

/// A factor that bounds, of what was asked for.
pub(super) const fn factor_of(asked: f64) -> f64 {
    // Not a number is no bound that anybody meant.
    if asked >= FACTOR_MIN { asked } else { FACTOR_MIN }
}
