//! How one endpoint is chosen among those that can be called.
//!
//! A policy makes a picker each time the candidates change; the picker is immutable but for atomic
//! counters, and is asked by all callers at once. Nothing here connects, waits or takes a lock.

mod bounded;
mod least_requests;
mod maglev;
mod peak_ewma;
mod pick_first;
mod random;
mod ring_hash;
mod round_robin;
#[cfg(test)]
mod tests;
mod weighted;
mod zone_aware;

use std::{fmt, sync::Arc};

pub use least_requests::LeastRequests;
pub use maglev::Maglev;
pub use peak_ewma::PeakEwma;
pub use pick_first::PickFirst;
pub use random::Random;
pub use ring_hash::RingHash;
pub use round_robin::RoundRobin;
pub use weighted::Weighted;
pub use zone_aware::ZoneAware;

use crate::{
    client::balance::{Endpoint, Load},
    types::{Duration, Instant},
};

/// A strategy. Implement it for a policy of your own.
pub trait Policy: fmt::Debug + Send + Sync + 'static {
    /// What it is called, for people.
    fn name(&self) -> &'static str;

    /// Which endpoints it wants connections to.
    fn connects(&self) -> Connects {
        Connects::All
    }

    /// Whether endpoints that came up a moment ago may be passed over for others while they warm up
    /// ([`crate::client::balance::SlowStart`]). Policies that send a call to one certain endpoint say no.
    fn warms_up(&self) -> bool {
        true
    }

    /// Makes the picker for these candidates, of which there is at least one. Called each time
    /// they change, never by a caller.
    fn picker(&self, candidates: &Candidates<'_>) -> Box<dyn Picker>;
}

/// Which endpoints a policy wants connections to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Connects {
    /// All that serve.
    All,
    /// The first in order that can be connected to.
    One,
}

/// Chooses.
pub trait Picker: fmt::Debug + Send + Sync + 'static {
    /// The place of the endpoint that gets a call, in the list `ready` that the picker was made
    /// for. Takes well below a microsecond; no lock and no allocation.
    fn pick(&self, ready: &[Arc<Backend>], call: &Asked) -> usize;
}

/// What a picker may know of a call.
#[derive(Clone, Copy, Debug)]
pub struct Asked {
    /// The call's key, where it has one ([`crate::client::balance::HashKey`]).
    pub key: Option<u64>,
    /// Chance: 64 even bits, fresh for each pick.
    pub chance: u64,
    /// The time since the balancer began.
    pub now: Instant,
}

impl Asked {
    /// A number below `bound`, from the upper half of the chance.
    #[must_use]
    pub const fn below(&self, bound: usize) -> usize {
        (((self.chance >> 32) * bound as u64) >> 32) as usize
    }

    /// Of two places of `ready` at random, the one whose cost is less.
    #[must_use]
    pub fn lesser_of_two(
        &self,
        ready: &[Arc<Backend>],
        cost: impl Fn(&Backend, Instant) -> f64,
    ) -> usize {
        if ready.len() < 2 {
            return 0;
        }
        let (one, other) = self.two_below(ready.len());
        let less = cost(&ready[other], self.now) < cost(&ready[one], self.now);
        if less { other } else { one }
    }

    /// Two different places below `bound`, which is at least 2.
    #[must_use]
    pub const fn two_below(&self, bound: usize) -> (usize, usize) {
        let first = self.below(bound);
        let second = (((self.chance & 0xffff_ffff) * (bound as u64 - 1)) >> 32) as usize;
        (first, if second >= first { second + 1 } else { second })
    }
}

/// What a picker is made for.
#[derive(Clone, Copy, Debug)]
pub struct Candidates<'a> {
    /// The endpoints that calls may be sent to, in the order in which they were told.
    pub ready: &'a [Arc<Backend>],
    /// All endpoints that are to serve, connected or not, draining ones left out.
    pub all: &'a [Endpoint],
}

/// An endpoint that can be called.
#[derive(Debug)]
pub struct Backend {
    endpoint: Endpoint,
    load: Arc<Load>,
    ready_since: Instant,
}

impl Backend {
    /// An endpoint with its counters, connected since a moment of the balancer's time.
    #[must_use]
    pub(in crate::client::balance) const fn new(
        endpoint: Endpoint,
        load: Arc<Load>,
        ready_since: Instant,
    ) -> Self {
        Self { endpoint, load, ready_since }
    }

    /// An endpoint without a connection that has so many calls in flight: to try a policy of your
    /// own with.
    pub fn unconnected(endpoint: Endpoint, in_flight: u32) -> Self {
        Self::new(endpoint, Arc::new(Load::of_nobody(in_flight)), Instant::ZERO)
    }

    /// What was told of it.
    pub const fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// What is known of it from its calls.
    #[must_use]
    pub fn load(&self) -> &Load {
        &self.load
    }

    pub(in crate::client::balance) const fn shared_load(&self) -> &Arc<Load> {
        &self.load
    }

    /// How long it has been connected.
    #[must_use]
    pub const fn ready_for(&self, now: Instant) -> Duration {
        now.since(self.ready_since)
    }
}

#[cfg(test)]
pub(in crate::client::balance) mod testing {
    //! Backends without connections, for tests of policies.

    use super::*;
    use crate::types::Rng;

    /// Backends at `n0:1`, `n1:1` and so on.
    pub(in crate::client::balance) fn backends(count: usize) -> Vec<Arc<Backend>> {
        let endpoints =
            (0..count).map(|at| Endpoint::new(format!("n{at}:1")).expect("well formed"));
        backends_at(endpoints)
    }

    pub(in crate::client::balance) fn backends_at(
        endpoints: impl IntoIterator<Item = Endpoint>,
    ) -> Vec<Arc<Backend>> {
        endpoints.into_iter().map(|one| Arc::new(Backend::unconnected(one, 0))).collect()
    }

    /// Backends with these weights.
    pub(in crate::client::balance) fn weighing(weights: &[u32]) -> Vec<Arc<Backend>> {
        let endpoint = |(at, weight): (usize, &u32)| {
            Endpoint::new(format!("n{at}:1")).expect("well formed").with_weight(*weight)
        };
        backends_at(weights.iter().enumerate().map(endpoint))
    }

    pub(in crate::client::balance) fn endpoints_of(ready: &[Arc<Backend>]) -> Vec<Endpoint> {
        ready.iter().map(|backend| backend.endpoint().clone()).collect()
    }

    /// Calls with a key and chance each, from a seed.
    pub(in crate::client::balance) fn asked(seed: u64) -> impl Iterator<Item = Asked> {
        let mut rng = Rng::new(seed);
        std::iter::repeat_with(move || Asked {
            key: Some(rng.next_u64()),
            chance: rng.next_u64(),
            now: Instant::ZERO,
        })
    }

    /// A call with this key.
    pub(in crate::client::balance) const fn keyed(key: u64) -> Asked {
        Asked { key: Some(key), chance: 1, now: Instant::ZERO }
    }

    /// How often each backend is picked, each pick finished before the next.
    pub(in crate::client::balance) fn picked(
        policy: &dyn Policy,
        ready: &[Arc<Backend>],
        picks: u32,
        seed: u64,
    ) -> Vec<u32> {
        let picker = policy.picker(&Candidates { ready, all: &endpoints_of(ready) });
        let mut counts = vec![0; ready.len()];
        for call in asked(seed).take(picks as usize) {
            counts[picker.pick(ready, &call)] += 1;
        }
        counts
    }
}
