//! Calls with one key to one endpoint: a ring.
//!
//! Each endpoint has points on a ring, and a key goes to the first point from its own place on
//! (Karger et al., 1997; ketama; gRFC A42). An endpoint that leaves gives its keys to many others
//! and moves no other key. The points come from the endpoints' ids alone, so that clients agree
//! however they were told of them.

use std::sync::Arc;

use super::{
    Asked, Backend, Candidates, Picker, Policy,
    bounded::{self, Bound},
};

/// How many points an endpoint of mean weight has, as in ketama.
const POINTS_DEFAULT: u32 = 160;

/// How many points a ring has at most; with more endpoints each has fewer.
const RING_POINTS_MAX: usize = 1 << 20;

/// Sends calls with the same key ([`HashKey`]) to the same endpoint while that can be called and
/// its load is within bounds. A call without a key goes anywhere.
///
/// The number of an endpoint's points follows its weight, and so does its share of the keys, to
/// within some 10 % with the default number; [`Maglev`] is more even, and moves a few keys more
/// when endpoints come and go. Where weights differ, the mean weight moves with them and some more
/// keys with it.
///
/// [`HashKey`]: crate::client::balance::HashKey
/// [`Maglev`]: super::Maglev
#[derive(Clone, Copy, Debug)]
pub struct RingHash {
    points: u32,
    load_factor: Option<f64>,
}

impl Default for RingHash {
    fn default() -> Self {
        Self { points: POINTS_DEFAULT, load_factor: Some(bounded::FACTOR_DEFAULT) }
    }
}

impl RingHash {
    /// 160 points an endpoint, load bounded by 1.25.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// With so many points for an endpoint of mean weight, at least 1; all together at most about a
    /// million.
    #[must_use]
    pub const fn with_points(self, points: u32) -> Self {
        Self { points: if points == 0 { 1 } else { points }, ..self }
    }

    /// No endpoint gets a call while it has more in flight than `factor` times its share by weight,
    /// rounded up; the key's next endpoint gets it. A factor below 1.01 counts as that.
    #[must_use]
    pub const fn with_load_factor(self, factor: f64) -> Self {
        Self { load_factor: Some(bounded::factor_of(factor)), ..self }
    }

    /// A key's calls go to its endpoint whatever that has in flight.
    #[must_use]
    pub const fn without_load_factor(self) -> Self {
        Self { load_factor: None, ..self }
    }
}

impl Policy for RingHash {
    fn name(&self) -> &'static str {
        "ring_hash"
    }

    fn warms_up(&self) -> bool {
        false
    }

    fn picker(&self, candidates: &Candidates<'_>) -> Box<dyn Picker> {
        Box::new(Ring::new(self.points, self.load_factor, candidates.ready))
    }
}

#[derive(Debug)]
struct Ring {
    /// In order.
    points: Box<[u64]>,
    /// Whose point it is.
    places: Box<[u32]>,
    bound: Option<Bound>,
}

impl Ring {
    fn new(points: u32, load_factor: Option<f64>, ready: &[Arc<Backend>]) -> Self {
        let most = (RING_POINTS_MAX / ready.len().max(1)).max(1) as f64;
        let mean = f64::from(points).min(most);
        let weight = |backend: &Arc<Backend>| f64::from(backend.endpoint().weight());
        let weight_mean = ready.iter().map(weight).sum::<f64>() / ready.len() as f64;
        let mut ring = Vec::new();
        for (place, backend) in (0_u32..).zip(ready) {
            let own = (mean * weight(backend) / weight_mean).round().max(1.0) as u64;
            let id = backend.endpoint().id();
            ring.extend((0..own).map(|number| (bounded::point(id, number), place)));
        }
        ring.sort_unstable();
        let (points, places): (Vec<_>, Vec<_>) = ring.into_iter().unzip();
        let bound = Bound::new(load_factor, ready);
        Self { points: points.into(), places: places.into(), bound }
    }
}

impl Picker for Ring {
    fn pick(&self, ready: &[Arc<Backend>], call: &Asked) -> usize {
        let key = bounded::position(call);
        let at = self.points.partition_point(|point| *point < key);
        let at = if at == self.points.len() { 0 } else { at };
        let home = self.places[at] as usize;
        let Some(bound) = &self.bound else { return home };
        let (before, from) = self.places.split_at(at);
        let order = from.iter().chain(before).map(|place| *place as usize);
        // Nobody has room only while others pick at the same time.
        bound.first_with_room(ready, (home, call.now), order).unwrap_or(home)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::balance::policy::testing::{backends, keyed, picked, weighing};
    use crate::types::Instant;

    fn ring(ready: &[Arc<Backend>]) -> Box<dyn Picker> {
        RingHash::new().picker(&Candidates { ready, all: &[] })
    }

    #[test]
    fn keys_are_spread_by_weight() {
        let counts = picked(&RingHash::new(), &backends(20), 100_000, 1);
        for (place, count) in counts.iter().enumerate() {
            assert!(count.abs_diff(5_000) < 1_500, "{place}: {count}");
        }
        let counts = picked(&RingHash::new(), &weighing(&[1, 2, 1]), 100_000, 1);
        assert!(counts[1].abs_diff(50_000) < 7_500, "{counts:?}");
        let many = RingHash::new().with_points(4_000);
        let counts = picked(&many, &weighing(&[1, 2, 1]), 100_000, 1);
        assert!(counts[1].abs_diff(50_000) < 2_000, "{counts:?}");
    }

    #[test]
    fn small_numbers_are_keys_as_good_as_any() {
        let ready = backends(10);
        let picker = ring(&ready);
        let mut counts = [0_u32; 10];
        (0..10_000).for_each(|key| counts[picker.pick(&ready, &keyed(key))] += 1);
        assert!(counts.iter().all(|count| count.abs_diff(1_000) < 350), "{counts:?}");
    }

    #[test]
    fn one_that_leaves_moves_only_its_own_keys_and_to_many() {
        let all = backends(20);
        let left: Vec<_> = all.iter().filter(|b| b.endpoint().id() != "n7:1").cloned().collect();
        let (before, after) = (ring(&all), ring(&left));
        let mut heirs = std::collections::BTreeSet::new();
        for key in 0..10_000 {
            let old = all[before.pick(&all, &keyed(key))].endpoint();
            let new = left[after.pick(&left, &keyed(key))].endpoint();
            if old.id() == "n7:1" {
                heirs.insert(new.id().to_owned());
            } else {
                assert_eq!(old, new, "key {key}");
            }
        }
        assert!(heirs.len() > 15, "{heirs:?}");
    }

    #[test]
    fn clients_agree_in_whatever_order_they_were_told() {
        let one = backends(9);
        let other: Vec<_> = one.iter().rev().cloned().collect();
        let (first, second) = (ring(&one), ring(&other));
        for key in 0..1_000 {
            let place = other[second.pick(&other, &keyed(key))].endpoint();
            assert_eq!(one[first.pick(&one, &keyed(key))].endpoint(), place);
        }
    }

    #[test]
    fn behind_the_last_point_comes_the_first() {
        let ready = backends(9);
        let ring = Ring::new(160, None, &ready);
        let (first, last) = (ring.places[0], ring.places[ring.places.len() - 1]);
        assert_ne!(first, last, "or nothing would be shown");
        let end = Asked { key: None, chance: u64::MAX, now: Instant::ZERO };
        assert_eq!(ring.pick(&ready, &end), first as usize);
    }

    #[test]
    fn a_lone_endpoint_gets_all_and_points_are_never_none() {
        let lone = RingHash::new().with_points(0);
        assert_eq!(picked(&lone, &backends(1), 100, 1), [100]);
        let counts = picked(&RingHash::new(), &weighing(&[1, u32::MAX]), 1_000, 1);
        assert!(counts[1] > 950, "{counts:?}");
    }
}
