//! What operators and metrics see of a layer's breakers, and how they are forced.
//!
//! Nothing here stands in the way of a call.

use std::{
    fmt,
    sync::{Arc, PoisonError},
};

use crate::{
    layers::circuit_breaker::layer::{Circuit, Shared},
    resilience::circuit_breaker::{State, Stats, Transition},
};

/// The breakers of one [`CircuitBreakerLayer`](super::CircuitBreakerLayer), or one of them. Cheap to
/// clone.
///
/// ```
/// use quorate::{
///     layers::circuit_breaker::CircuitBreakerLayer,
///     resilience::circuit_breaker::{State, ValidConfig},
/// };
///
/// let handle = CircuitBreakerLayer::new(ValidConfig::default()).handle();
/// handle.observe(|key, change| println!("{key:?}: {:?} because {}", change.to, change.reason));
/// handle.force_open();
/// assert_eq!(handle.state(), State::ForcedOpen);
/// handle.reset();
/// assert_eq!(handle.state(), State::Closed);
/// ```
#[derive(Clone)]
pub struct CircuitBreakerHandle {
    shared: Arc<Shared>,
    /// `None` for all.
    only: Option<Arc<Circuit>>,
}

impl CircuitBreakerHandle {
    pub(super) const fn new(shared: Arc<Shared>) -> Self {
        Self { shared, only: None }
    }

    /// That of one key; `None` where no call had it of late.
    #[must_use]
    pub fn key(&self, key: &str) -> Option<Self> {
        let only = Some(self.shared.circuits.get(key)?);
        Some(Self { shared: Arc::clone(&self.shared), only })
    }

    /// Refuses all calls until [`reset`](Self::reset) or [`force_close`](Self::force_close); those of
    /// keys that come later too, unless this is the handle of one key.
    pub fn force_open(&self) {
        self.force(State::ForcedOpen);
    }

    /// Lets all calls through, whatever becomes of them, until [`reset`](Self::reset) or
    /// [`force_open`](Self::force_open).
    pub fn force_close(&self) {
        self.force(State::ForcedClosed);
    }

    /// Begins anew: closed, with nothing counted.
    pub fn reset(&self) {
        self.force(State::Closed);
    }

    /// The state of the breaker: of this key; else of that of all calls, or, where keys have their
    /// own, of the one that the rest share. [`states`](Self::states) has them all.
    #[must_use]
    pub fn state(&self) -> State {
        self.only.as_ref().unwrap_or_else(|| self.shared.circuits.shared()).breaker.state()
    }

    /// The keys and states of all breakers, by key; the one without is that of all calls, or of the
    /// rest.
    #[must_use]
    pub fn states(&self) -> Vec<(Option<Arc<str>>, State)> {
        let circuits = self.circuits();
        let mut states: Vec<_> =
            circuits.iter().map(|circuit| (circuit.key.clone(), circuit.breaker.state())).collect();
        states.sort_by(|left, right| left.0.cmp(&right.0));
        states
    }

    /// What the breaker, or all together, have seen. With keys the figures of one that made room for
    /// others are gone.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let mut sum = Stats::default();
        for stats in self.circuits().iter().map(|circuit| circuit.breaker.stats()) {
            sum.permitted += stats.permitted;
            sum.refused += stats.refused;
            sum.successes += stats.successes;
            sum.failures += stats.failures;
            sum.neutral += stats.neutral;
            sum.slow += stats.slow;
            sum.stale += stats.stale;
            sum.opened += stats.opened;
        }
        sum
    }

    /// Has `observer` told of each change of state of all breakers, with its key, from the call that
    /// brings it about: it should be quick. It may ask this handle.
    pub fn observe(&self, observer: impl Fn(Option<&str>, &Transition) + Send + Sync + 'static) {
        self.shared.observers.add(Arc::new(observer));
    }

    fn force(&self, to: State) {
        if self.only.is_none() {
            let forced = (to != State::Closed).then_some(to);
            *self.shared.forced.lock().unwrap_or_else(PoisonError::into_inner) = forced;
        }
        let now = self.shared.clock.now();
        for circuit in self.circuits() {
            match to {
                State::ForcedOpen => circuit.breaker.force_open(now),
                State::ForcedClosed => circuit.breaker.force_close(now),
                _ => circuit.breaker.reset(now),
            }
        }
    }

    fn circuits(&self) -> Vec<Arc<Circuit>> {
        self.only
            .as_ref()
            .map_or_else(|| self.shared.circuits.all(), |circuit| vec![Arc::clone(circuit)])
    }
}

impl fmt::Debug for CircuitBreakerHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CircuitBreakerHandle")
            .field("states", &self.states())
            .field("stats", &self.stats())
            .finish()
    }
}
