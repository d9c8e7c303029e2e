//! A part of a large fleet for each client.
//!
//! By rendezvous hashing (Thaler and Ravishankar, 1998; gRFC A68): each client ranks the endpoints
//! by a hash of both, and takes the first so many. Clients need not know of each other; each
//! endpoint is in about the same number of parts, and one that comes or goes changes one endpoint
//! in the parts that it belongs to.

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use super::Resolver;
use crate::client::{Error, balance::Endpoint};

/// Tells only some of the endpoints of another resolver, so that a fleet of a thousand clients and
/// a thousand servers does not keep a million connections.
///
/// Draining endpoints do not count, and are passed on while they rank among the chosen. Take enough
/// that the loss of some is borne: 20 is a good start.
///
/// ```
/// use quorate::client::balance::{Static, Subset};
///
/// # fn example() -> Result<(), quorate::client::Error> {
/// let fleet = Static::parse((1..=200).map(|n| format!("10.0.0.{n}:80")))?;
/// let some = Subset::new(fleet, "client-17", 20);
/// # drop(some); Ok(()) }
/// # example().expect("the addresses are well formed");
/// ```
#[derive(Debug)]
pub struct Subset<R> {
    inner: R,
    client: u64,
    size: usize,
}

impl<R: Resolver> Subset<R> {
    /// Takes `size` endpoints, at least 1, of those that `inner` tells. `client` is what this
    /// client is known by: each needs another, and should keep it across restarts.
    pub fn new(inner: R, client: impl AsRef<[u8]>, size: usize) -> Self {
        Self { inner, client: xxh3_64(client.as_ref()), size: size.max(1) }
    }
}

impl<R: Resolver> Resolver for Subset<R> {
    async fn next(&mut self) -> Result<Vec<Endpoint>, Error> {
        let all = self.inner.next().await?;
        Ok(chosen(self.client, self.size, all))
    }
}

/// The client's part, in the order in which it was told.
fn chosen(client: u64, size: usize, all: Vec<Endpoint>) -> Vec<Endpoint> {
    if all.len() <= size {
        return all;
    }
    let rank = |endpoint: &Endpoint| {
        // The id settles what no two endpoints ever share but for an accident.
        (xxh3_64_with_seed(endpoint.id().as_bytes(), client), endpoint.id().to_owned())
    };
    let mut serving: Vec<_> = all.iter().filter(|one| !one.is_draining()).map(rank).collect();
    serving.sort_unstable();
    let Some(last) = serving.get(size - 1).or(serving.last()).cloned() else { return all };
    all.into_iter().filter(|endpoint| rank(endpoint) <= last).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::*;

    fn fleet(numbers: impl IntoIterator<Item = u32>) -> Vec<Endpoint> {
        let endpoint = |n| Endpoint::new(format!("n{n}:1")).expect("it is well formed");
        numbers.into_iter().map(endpoint).collect()
    }

    fn ids(endpoints: &[Endpoint]) -> BTreeSet<String> {
        endpoints.iter().map(|endpoint| endpoint.id().to_owned()).collect()
    }

    fn part(client: u32, size: usize, all: Vec<Endpoint>) -> Vec<Endpoint> {
        chosen(xxh3_64(format!("client-{client}").as_bytes()), size, all)
    }

    #[test]
    fn endpoints_are_in_about_as_many_parts_each() {
        let mut counts = BTreeMap::new();
        for client in 0..1_000 {
            for id in ids(&part(client, 20, fleet(0..100))) {
                *counts.entry(id).or_insert(0_u32) += 1;
            }
        }
        assert_eq!(counts.len(), 100);
        // 200 each with a deviation of 12.6.
        assert!(counts.values().all(|count| count.abs_diff(200) < 50), "{counts:?}");
    }

    #[test]
    fn a_small_fleet_is_told_whole() {
        assert_eq!(part(1, 20, fleet(0..20)).len(), 20);
        assert_eq!(part(1, 20, fleet(0..21)).len(), 20);
        assert_eq!(part(1, 20, Vec::new()), []);
    }

    #[test]
    fn draining_endpoints_do_not_count() {
        let drained = |all: Vec<Endpoint>| -> Vec<Endpoint> {
            let drain = |(n, one): (usize, Endpoint)| one.draining(n % 2 == 0);
            all.into_iter().enumerate().map(drain).collect()
        };
        let before = ids(&part(1, 10, fleet(0..100)));
        let after = part(1, 10, drained(fleet(0..100)));
        assert_eq!(after.iter().filter(|one| !one.is_draining()).count(), 10);
        assert!(ids(&after).is_superset(&before), "who drains is told of while it matters");
        let mostly = part(1, 60, drained(fleet(0..100)));
        assert_eq!(mostly.iter().filter(|one| !one.is_draining()).count(), 50, "all there are");
    }

    #[tokio::test]
    async fn only_the_part_is_told() {
        let mut some = Subset::new(super::super::Static::new(fleet(0..100)), "client-1", 7);
        let told = some.next().await.expect("a list never fails");
        assert_eq!(told, part(1, 7, fleet(0..100)));
    }

    proptest! {
        #[test]
        fn one_that_comes_or_goes_changes_one_endpoint_at_most(
            all in prop::collection::btree_set(0_u32..1_000, 2..120),
            gone in any::<prop::sample::Index>(),
            size in 1_usize..40,
            client: u32,
        ) {
            let gone = *all.iter().nth(gone.index(all.len())).expect("within");
            let before = ids(&part(client, size, fleet(all.iter().copied())));
            let left = all.iter().copied().filter(|n| *n != gone);
            let after = ids(&part(client, size, fleet(left)));
            prop_assert_eq!(before.len(), size.min(all.len()));
            prop_assert_eq!(after.len(), size.min(all.len() - 1));
            let name = format!("n{gone}:1");
            let lost: Vec<_> = before.difference(&after).collect();
            if before.contains(&name) {
                prop_assert_eq!(lost, [&name]);
            } else {
                prop_assert_eq!(before, after);
            }
        }

        #[test]
        fn the_order_told_does_not_matter(client: u32, size in 1_usize..40) {
            let there = ids(&part(client, size, fleet(0..60)));
            prop_assert_eq!(there, ids(&part(client, size, fleet((0..60).rev()))));
        }
    }
}
