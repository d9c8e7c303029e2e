//! The one of two at random that is expected to answer sooner.

use std::sync::Arc;

use super::{Asked, Backend, Candidates, Picker, Policy};
use crate::types::Instant;

/// Looks at two endpoints at random and takes the one whose latency, a moving average that takes
/// peaks at once, times what it has in flight is less. (Finagle's "Peak EWMA"; linkerd2-proxy.)
///
/// A failure counts as an answer that took 5 s, so that failing fast does not attract calls. An
/// endpoint from which nothing was seen yet gets one call, and more once that is answered.
#[derive(Clone, Copy, Debug, Default)]
pub struct PeakEwma;

impl Policy for PeakEwma {
    fn name(&self) -> &'static str {
        "peak_ewma"
    }

    fn picker(&self, _: &Candidates<'_>) -> Box<dyn Picker> {
        Box::new(Two)
    }
}

fn cost(backend: &Backend, now: Instant) -> f64 {
    let load = backend.load();
    if load.in_flight() == 0 && load.is_unknown() {
        return 0.0;
    }
    load.latency(now).as_secs_f64() * f64::from(load.in_flight() + 1)
}

#[derive(Debug)]
struct Two;

impl Picker for Two {
    fn pick(&self, ready: &[Arc<Backend>], call: &Asked) -> usize {
        call.lesser_of_two(ready, cost)
    }
}
