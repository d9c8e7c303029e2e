//! Calls with one key to one endpoint: Maglev's table.
//!
//! Endpoints take turns to fill a table, each in an order of its own (Eisenbud et al., "Maglev: a
//! fast and reliable software network load balancer", NSDI 2016, §3.4); with weights the heavy ones
//! have more turns, as in Envoy. One look into the table finds the endpoint of a key. The table
//! comes from the endpoints' ids and weights alone, so that clients agree.

use std::sync::Arc;

use super::{
    Asked, Backend, Candidates, Picker, Policy,
    bounded::{self, Bound},
};
use crate::client::balance::{Endpoint, snapshot::mix};

/// Maglev's small table, which is also Envoy's.
const TABLE_DEFAULT: u32 = 65_537;

/// The largest table, as in Envoy.
const TABLE_MAX: u32 = 5_000_011;

/// How many places of the table a key's walk past full endpoints looks at, for each endpoint.
const WALK_MAX: usize = 8;

/// Sends calls with the same key ([`HashKey`]) to the same endpoint while that can be called and
/// its load is within bounds. A call without a key goes anywhere.
///
/// Shares of the keys follow the weights to within 1 % where the table has a hundred places for
/// each endpoint or more. An endpoint that cannot be called for a while gives its keys to all
/// others and takes them back; no other key moves. One that comes or goes for good moves a few
/// others too. Building the table takes some milliseconds; it is done off the path of calls.
///
/// [`HashKey`]: crate::client::balance::HashKey
#[derive(Clone, Copy, Debug)]
pub struct Maglev {
    table: u32,
    load_factor: Option<f64>,
}

impl Default for Maglev {
    fn default() -> Self {
        Self { table: TABLE_DEFAULT, load_factor: Some(bounded::FACTOR_DEFAULT) }
    }
}

impl Maglev {
    /// A table of 65,537, load bounded by 1.25.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// With a table of `size` places or the next prime above it; 3 to 5,000,011. All clients that
    /// are to agree need the same size.
    #[must_use]
    pub const fn with_table_size(self, size: u32) -> Self {
        let size = if size > TABLE_MAX { TABLE_MAX } else { size };
        Self { table: prime_from(if size < 3 { 3 } else { size }), ..self }
    }

    /// No endpoint gets a call while it has more in flight than `factor` times its share by weight,
    /// rounded up; another one of the key's gets it. A factor below 1.01 counts as that.
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

impl Policy for Maglev {
    fn name(&self) -> &'static str {
        "maglev"
    }

    fn warms_up(&self) -> bool {
        false
    }

    fn picker(&self, candidates: &Candidates<'_>) -> Box<dyn Picker> {
        let Candidates { ready, all } = candidates;
        let bound = Bound::new(self.load_factor, ready);
        let ready: Vec<&Endpoint> = ready.iter().map(|backend| backend.endpoint()).collect();
        Box::new(Table { places: table(self.table, &ready, all), bound })
    }
}

#[derive(Debug)]
struct Table {
    /// The endpoint of each part of the keys.
    places: Box<[u32]>,
    bound: Option<Bound>,
}

impl Picker for Table {
    fn pick(&self, ready: &[Arc<Backend>], call: &Asked) -> usize {
        let size = self.places.len() as u64;
        let key = bounded::position(call);
        let at = ((u128::from(key) * u128::from(size)) >> 64) as u64;
        let home = self.places[at as usize] as usize;
        let Some(bound) = &self.bound else { return home };
        // A step of the key's own, so that the keys of a full endpoint part. The size is prime:
        // each step comes by all places.
        let step = 1 + mix(key) % (size - 1);
        let walk = (0..(ready.len() * WALK_MAX) as u64)
            .map(|number| self.places[((at + number * step) % size) as usize] as usize);
        let in_turn = (1..ready.len()).map(|number| (home + number) % ready.len());
        // Nobody has room only while others pick at the same time.
        bound.first_with_room(ready, (home, call.now), walk.chain(in_turn)).unwrap_or(home)
    }
}

/// Whose each part of the keys is. The parts of those that are not ready go to the others; all the
/// other parts are as if everybody were ready.
fn table(size: u32, ready: &[&Endpoint], all: &[Endpoint]) -> Box<[u32]> {
    let own = fill(size, ready);
    if all.len() <= ready.len() {
        return own;
    }
    let place = |endpoint: &Endpoint| ready.iter().position(|known| known.id() == endpoint.id());
    let places: Vec<Option<u32>> = all.iter().map(|one| place(one).map(|at| at as u32)).collect();
    if places.iter().flatten().count() < ready.len() {
        // Not the ready ones among all: nothing to agree on with.
        return own;
    }
    let whole: Vec<&Endpoint> = all.iter().collect();
    let part = |(whose, heir): (&u32, &u32)| places[*whose as usize].unwrap_or(*heir);
    fill(size, &whole).iter().zip(&own).map(part).collect()
}

/// An endpoint while the table is filled.
struct Filler {
    place: u32,
    weight: u128,
    /// Where it looks for a free place next, and how far on after that.
    next: u64,
    skip: u64,
    /// The weight that its turns so far have used up.
    target: u128,
}

/// Pseudocode 1 of the paper, with Envoy's turns by weight.
fn fill(size: u32, endpoints: &[&Endpoint]) -> Box<[u32]> {
    const FREE: u32 = u32::MAX;
    let mut order: Vec<(u32, &&Endpoint)> = (0..).zip(endpoints).collect();
    order.sort_by_key(|(_, endpoint)| endpoint.id());
    let heaviest = endpoints.iter().map(|endpoint| endpoint.weight()).max().unwrap_or(1);
    let size = u64::from(size);
    let filler = |(place, endpoint): (u32, &&Endpoint)| Filler {
        place,
        weight: u128::from(endpoint.weight()),
        next: bounded::point(endpoint.id(), 0) % size,
        skip: 1 + bounded::point(endpoint.id(), 1) % (size - 1),
        target: u128::from(heaviest),
    };
    let mut fillers: Vec<Filler> = order.into_iter().map(filler).collect();
    let mut table = vec![FREE; size as usize];
    let mut free = if fillers.is_empty() { 0 } else { size };
    let mut round = 0_u128;
    while free > 0 {
        round += 1;
        for filler in &mut fillers {
            if round * filler.weight < filler.target {
                continue;
            }
            filler.target += u128::from(heaviest);
            while table[filler.next as usize] != FREE {
                filler.next = (filler.next + filler.skip) % size;
            }
            table[filler.next as usize] = filler.place;
            free -= 1;
            if free == 0 {
                break;
            }
        }
    }
    table.into()
}

const fn prime_from(mut number: u32) -> u32 {
    while !is_prime(number) {
        number += 1;
    }
    number
}

const fn is_prime(number: u32) -> bool {
    let mut divisor = 2;
    while divisor * divisor <= number {
        if number.is_multiple_of(divisor) {
            return false;
        }
        divisor += 1;
    }
    number > 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::balance::policy::testing::{
        backends, endpoints_of, keyed, picked, weighing,
    };

    fn maglev(ready: &[Arc<Backend>], all: &[Endpoint]) -> Box<dyn Picker> {
        Maglev::new().picker(&Candidates { ready, all })
    }

    fn without(all: &[Arc<Backend>], id: &str) -> Vec<Arc<Backend>> {
        all.iter().filter(|backend| backend.endpoint().id() != id).cloned().collect()
    }

    #[test]
    fn keys_are_spread_evenly_and_by_weight() {
        let ready = backends(100);
        let table = fill(TABLE_DEFAULT, &ready.iter().map(|b| b.endpoint()).collect::<Vec<_>>());
        let mut counts = vec![0_u32; 100];
        table.iter().for_each(|place| counts[*place as usize] += 1);
        let (least, most) = (counts.iter().min().unwrap(), counts.iter().max().unwrap());
        assert!(most - least <= 1, "turns are taken one by one: {least} to {most}");

        let ready = weighing(&[1, 2, 5, 1_000]);
        let table = fill(TABLE_DEFAULT, &ready.iter().map(|b| b.endpoint()).collect::<Vec<_>>());
        let mut counts = [0_u32; 4];
        table.iter().for_each(|place| counts[*place as usize] += 1);
        for (weight, count) in [1, 2, 5, 1_000].iter().zip(counts) {
            let share = f64::from(TABLE_DEFAULT) * f64::from(*weight) / 1_008.0;
            assert!((f64::from(count) - share).abs() <= 2.0, "{count} for {share}");
        }
        let counts = picked(&Maglev::new(), &backends(10), 100_000, 1);
        assert!(counts.iter().all(|count| count.abs_diff(10_000) < 500), "{counts:?}");
    }

    #[test]
    fn one_that_rests_gives_its_keys_to_all_others_and_no_other_moves() {
        let all = backends(20);
        let (everybody, left) = (endpoints_of(&all), without(&all, "n7:1"));
        let (before, after) = (maglev(&all, &everybody), maglev(&left, &everybody));
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
        assert_eq!(heirs.len(), 19);
    }

    #[test]
    fn one_that_leaves_for_good_moves_few_other_keys() {
        let all = backends(20);
        let left = without(&all, "n7:1");
        let (before, after) =
            (maglev(&all, &endpoints_of(&all)), maglev(&left, &endpoints_of(&left)));
        let moved = (0..10_000).filter(|key| {
            let old = all[before.pick(&all, &keyed(*key))].endpoint();
            old.id() != "n7:1" && old != left[after.pick(&left, &keyed(*key))].endpoint()
        });
        let moved = moved.count();
        assert!(moved < 500, "{moved} of 9500 keys moved");
    }

    #[test]
    fn clients_agree_in_whatever_order_they_were_told() {
        let one = backends(9);
        let other: Vec<_> = one.iter().rev().cloned().collect();
        // Of a small table many places are fought for.
        let small = Maglev::new().with_table_size(101);
        let picker = |ready| small.picker(&Candidates { ready, all: &[] });
        let (first, second) = (picker(&one), picker(&other));
        for key in 0..1_000 {
            let place = other[second.pick(&other, &keyed(key))].endpoint();
            assert_eq!(one[first.pick(&one, &keyed(key))].endpoint(), place);
        }
    }

    #[test]
    fn a_table_is_prime_and_within_bounds_and_may_be_too_small() {
        let sizes = [0, 3, 8, 65_537, 65_538, u32::MAX];
        let primes = sizes.map(|size| Maglev::new().with_table_size(size).table);
        assert_eq!(primes, [3, 3, 11, 65_537, 65_539, 5_000_011]);
        let tight = Maglev::new().with_table_size(3);
        assert_eq!(picked(&tight, &backends(8), 1_000, 1).iter().sum::<u32>(), 1_000);
        assert_eq!(picked(&tight, &backends(1), 10, 1), [10]);
    }
}
