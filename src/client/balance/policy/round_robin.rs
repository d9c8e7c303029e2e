//! Each in turn.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use super::{Asked, Backend, Candidates, Picker, Policy};

/// Gives each endpoint its turn, in the order in which they were told. A new picker begins where
/// the one before stood.
#[derive(Debug, Default)]
pub struct RoundRobin {
    turn: Arc<AtomicUsize>,
}

impl RoundRobin {
    /// Begins at the first endpoint.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }
}

impl Policy for RoundRobin {
    fn name(&self) -> &'static str {
        "round_robin"
    }

    fn picker(&self, _: &Candidates<'_>) -> Box<dyn Picker> {
        Box::new(Turns(Arc::clone(&self.turn)))
    }
}

#[derive(Debug)]
struct Turns(Arc<AtomicUsize>);

impl Picker for Turns {
    fn pick(&self, ready: &[Arc<Backend>], _: &Asked) -> usize {
        self.0.fetch_add(1, Ordering::Relaxed) % ready.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::balance::policy::testing::{backends, picked};

    #[test]
    fn each_has_its_turn() {
        assert_eq!(picked(&RoundRobin::new(), &backends(4), 4_000, 1), [1_000; 4]);
    }
}
