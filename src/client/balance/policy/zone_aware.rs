//! The own zone first, the others as far as the own one lacks capacity.
//!
//! The proportions are Envoy's for priorities ("Priority levels", "Overprovisioning factor"): a
//! zone is trusted with all calls until the share of its endpoints that can be called, times the
//! factor, falls below all of them; what is lacking spills over. Which endpoint of a zone is
//! another policy's to say.

use std::sync::Arc;

use super::{Asked, Backend, Candidates, Connects, Picker, Policy};
use crate::client::balance::{Endpoint, snapshot::mix};

/// Envoy's default: up to 28 % of a zone may be away before anything spills.
const OVERPROVISIONING_DEFAULT: f64 = 1.4;

/// Prefers the endpoints of one zone ([`Endpoint::zone`]) and leaves the choice among them to
/// another policy.
///
/// With a share `h` of the weights of the zone's endpoints ready, the zone gets `min(1, 1.4 h)` of
/// the calls and the other zones the rest. Where the others lack capacity too, both get their parts
/// in proportion. A zone without endpoints gets nothing.
///
/// It is meant for zones that are provisioned for their own clients. Where they are not, say which
/// part of all clients is in this zone: [`ZoneAware::with_client_share`].
#[derive(Debug)]
pub struct ZoneAware<P> {
    zone: Arc<str>,
    inner: P,
    overprovisioning: f64,
    client_share: Option<f64>,
}

impl<P: Policy> ZoneAware<P> {
    /// Prefers `zone`, and chooses within zones by `inner`.
    #[must_use]
    pub fn new(zone: impl AsRef<str>, inner: P) -> Self {
        let zone = zone.as_ref().into();
        Self { zone, inner, overprovisioning: OVERPROVISIONING_DEFAULT, client_share: None }
    }

    /// With another factor than 1.4; below 1 counts as 1: then everything that is away spills.
    #[must_use]
    pub const fn with_overprovisioning(mut self, factor: f64) -> Self {
        self.overprovisioning = if factor >= 1.0 { factor } else { 1.0 };
        self
    }

    /// Says which part of all calls, above 0 and at most 1, comes from this zone. A zone with less
    /// than that part of the weights that are ready gets no more than its endpoints' share, so
    /// that all endpoints are loaded alike. (Envoy's zone-aware routing.)
    #[must_use]
    pub const fn with_client_share(mut self, share: f64) -> Self {
        self.client_share = if share > 0.0 { Some(share.min(1.0)) } else { None };
        self
    }

    /// The part of the calls that stay in the zone.
    fn local_share(&self, candidates: &Candidates<'_>) -> f64 {
        let local = |endpoint: &&Endpoint| *endpoint.zone() == *self.zone;
        let weigh = |endpoints: &mut dyn Iterator<Item = &Endpoint>, wanted: bool| -> f64 {
            let chosen = endpoints.filter(|endpoint| local(endpoint) == wanted);
            chosen.map(|endpoint| f64::from(endpoint.weight())).sum()
        };
        let ready =
            |wanted| weigh(&mut candidates.ready.iter().map(|backend| backend.endpoint()), wanted);
        let health = |wanted| {
            let all = weigh(&mut candidates.all.iter(), wanted);
            if all > 0.0 { (ready(wanted) / all * self.overprovisioning).min(1.0) } else { 0.0 }
        };
        let (own, others) = (health(true), health(false));
        let kept = if own + others < 1.0 { own / (own + others) } else { own };
        let Some(clients) = self.client_share else { return kept };
        let endpoints = ready(true) / (ready(true) + ready(false));
        kept * (endpoints / clients).min(1.0)
    }
}

impl<P: Policy> Policy for ZoneAware<P> {
    fn name(&self) -> &'static str {
        "zone_aware"
    }

    fn connects(&self) -> Connects {
        self.inner.connects()
    }

    fn warms_up(&self) -> bool {
        self.inner.warms_up()
    }

    fn picker(&self, candidates: &Candidates<'_>) -> Box<dyn Picker> {
        let is_local = |endpoint: &Endpoint| *endpoint.zone() == *self.zone;
        let part = |wanted: bool| Part::new(&self.inner, candidates, |e| is_local(e) == wanted);
        match (part(true), part(false)) {
            (Some(local), Some(others)) => {
                let share = self.local_share(candidates);
                Box::new(Zones {
                    local,
                    others,
                    below: (share * (1_u64 << 32) as f64) as u64,
                    by_key: !self.inner.warms_up(),
                })
            }
            _ => self.inner.picker(candidates),
        }
    }
}

#[derive(Debug)]
struct Zones {
    local: Part,
    others: Part,
    /// Of 2^32 calls, how many stay.
    below: u64,
    /// Whether calls with one key stay or leave together: the policy within sends them to one
    /// endpoint.
    by_key: bool,
}

impl Picker for Zones {
    fn pick(&self, _: &[Arc<Backend>], call: &Asked) -> usize {
        // Chance of its own: the policy within uses the call's.
        let drawn = match call.key {
            Some(key) if self.by_key => mix(mix(key)),
            _ => mix(call.chance),
        };
        let part = if drawn >> 32 < self.below { &self.local } else { &self.others };
        part.pick(call)
    }
}

/// The endpoints of one side.
#[derive(Debug)]
struct Part {
    ready: Box<[Arc<Backend>]>,
    /// Where they stand among all that are ready.
    places: Box<[usize]>,
    picker: Box<dyn Picker>,
}

impl Part {
    /// None where nothing of it is ready.
    fn new(
        policy: &impl Policy,
        candidates: &Candidates<'_>,
        belongs: impl Fn(&Endpoint) -> bool,
    ) -> Option<Self> {
        let own = candidates.ready.iter().enumerate().filter(|(_, b)| belongs(b.endpoint()));
        let (places, ready): (Vec<_>, Vec<_>) = own.map(|(at, b)| (at, Arc::clone(b))).unzip();
        if ready.is_empty() {
            return None;
        }
        let all: Vec<Endpoint> =
            candidates.all.iter().filter(|endpoint| belongs(endpoint)).cloned().collect();
        let picker = policy.picker(&Candidates { ready: &ready, all: &all });
        Some(Self { ready: ready.into(), places: places.into(), picker })
    }

    fn pick(&self, call: &Asked) -> usize {
        self.places[self.picker.pick(&self.ready, call)]
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::client::balance::policy::{
        Maglev, Random, RoundRobin,
        testing::{asked, backends_at, keyed},
    };

    /// Endpoints of zone `a` and of others, of which the first so many of each are ready; and how
    /// many of 10,000 calls stay in `a`.
    fn stay(policy: &impl Policy, local: (usize, usize), others: (usize, usize)) -> usize {
        let (ready, all) = fleet(local, others);
        let picker = policy.picker(&Candidates { ready: &ready, all: &all });
        let places = asked(1).take(10_000).map(|call| picker.pick(&ready, &call));
        places.filter(|place| ready[*place].endpoint().zone() == "a").count()
    }

    fn fleet(local: (usize, usize), others: (usize, usize)) -> (Vec<Arc<Backend>>, Vec<Endpoint>) {
        let mut told = Vec::new();
        for (name, (ready, all)) in [("a", local), ("b", others)] {
            for at in 0..all {
                // Of the others, some in a zone and some in none.
                let zone = if name == "b" && at % 2 == 1 { "" } else { name };
                let endpoint = Endpoint::new(format!("{name}{at}:1")).expect("well formed");
                told.push((endpoint.in_zone(zone), at < ready));
            }
        }
        let ready = told.iter().filter(|(_, ready)| *ready).map(|(endpoint, _)| endpoint.clone());
        (backends_at(ready), told.into_iter().map(|(endpoint, _)| endpoint).collect())
    }

    #[test]
    fn all_stays_in_the_zone_while_that_has_capacity() {
        let policy = ZoneAware::new("a", RoundRobin::new());
        assert_eq!(stay(&policy, (10, 10), (10, 10)), 10_000);
        assert_eq!(stay(&policy, (8, 10), (1, 10)), 10_000, "a fifth of it may be away");
    }

    #[test]
    fn what_the_zone_lacks_spills_over_in_proportion() {
        let policy = ZoneAware::new("a", Random);
        for (ready, expected) in [(7, 9_800), (5, 7_000), (1, 1_400)] {
            let stayed = stay(&policy, (ready, 10), (10, 10));
            assert!(stayed.abs_diff(expected) < 200, "{stayed} with {ready} of 10");
        }
        assert_eq!(stay(&policy, (0, 10), (10, 10)), 0);
        assert_eq!(stay(&policy, (0, 0), (10, 10)), 0, "a zone without endpoints");
        assert_eq!(stay(&policy, (1, 10), (0, 10)), 10_000, "nowhere to spill to");
    }

    #[test]
    fn on_each_side_the_policy_within_is_as_even_as_alone() {
        let (ready, all) = fleet((5, 10), (5, 5));
        let picker = ZoneAware::new("a", Random).picker(&Candidates { ready: &ready, all: &all });
        let mut counts = [0_u32; 10];
        asked(1).take(100_000).for_each(|call| counts[picker.pick(&ready, &call)] += 1);
        let (own, others) = counts.split_at(5);
        assert!(own.iter().all(|count| count.abs_diff(14_000) < 600), "{counts:?}");
        assert!(others.iter().all(|count| count.abs_diff(6_000) < 400), "{counts:?}");
    }

    #[test]
    fn where_all_zones_lack_capacity_each_gets_its_part() {
        let policy = ZoneAware::new("a", Random);
        let stayed = stay(&policy, (2, 10), (4, 10));
        assert!(stayed.abs_diff(3_333) < 200, "{stayed}");
    }

    #[test]
    fn the_factor_can_be_set() {
        let policy = ZoneAware::new("a", Random).with_overprovisioning(0.0);
        let stayed = stay(&policy, (8, 10), (10, 10));
        assert!(stayed.abs_diff(8_000) < 200, "{stayed}: a factor of at least one");
    }

    #[test]
    fn a_zone_with_few_endpoints_for_its_clients_is_spared() {
        let policy = ZoneAware::new("a", Random).with_client_share(0.5);
        assert_eq!(stay(&policy, (10, 10), (10, 10)), 10_000);
        // A tenth of the endpoints for half of the calls: a fifth of these calls.
        let stayed = stay(&policy, (2, 2), (18, 18));
        assert!(stayed.abs_diff(2_000) < 200, "{stayed}");
    }

    #[test]
    fn calls_with_one_key_spill_together() {
        let policy = ZoneAware::new("a", Maglev::new());
        let (ready, all) = fleet((5, 10), (10, 10));
        let picker = policy.picker(&Candidates { ready: &ready, all: &all });
        for key in 0..100 {
            let places = (0..20)
                .map(|chance| picker.pick(&ready, &Asked { chance: mix(chance), ..keyed(key) }));
            let places: std::collections::BTreeSet<_> = places.collect();
            assert_eq!(places.len(), 1, "key {key}: {places:?}");
        }
    }

    proptest! {
        /// Envoy's rule, for any state of both sides; and within a side everybody gets calls.
        #[test]
        fn proportions_are_those_of_the_rule(
            local in (0_usize..12, 0_usize..12),
            others in (0_usize..12, 0_usize..12),
            factor in 1.0_f64..3.0,
        ) {
            let [local, others] = [local, others].map(|(one, two)| (one.min(two), one.max(two)));
            prop_assume!(local.0 + others.0 > 0);
            let health = |(ready, all): (usize, usize)| {
                if all == 0 { 0.0 } else { (ready as f64 / all as f64 * factor).min(1.0) }
            };
            let (own, other) = (health(local), health(others));
            let expected = own / (own + other.min(1.0 - own));
            let policy = ZoneAware::new("a", Random).with_overprovisioning(factor);
            let stayed = stay(&policy, local, others) as f64 / 10_000.0;
            prop_assert!((stayed - expected).abs() < 0.025, "{stayed}, not {expected}");
        }
    }
}
