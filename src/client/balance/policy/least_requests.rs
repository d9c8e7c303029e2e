//! The one of two at random that has less to do.

use std::sync::Arc;

use super::{Asked, Backend, Candidates, Picker, Policy};
use crate::types::Instant;

/// Looks at two endpoints at random and takes the one with fewer calls in flight. (Mitzenmacher:
/// "The Power of Two Choices in Randomized Load Balancing", 2001; gRFC A48.)
///
/// Who fails fast never has much in flight, and would attract what it fails. So what is in flight is
/// divided by the square of the share of its latest calls that an endpoint answered: one that fails
/// half of them looks four times as busy, one that fails all of them a thousand times.
#[derive(Clone, Copy, Debug, Default)]
pub struct LeastRequests;

impl Policy for LeastRequests {
    fn name(&self) -> &'static str {
        "least_requests"
    }

    fn picker(&self, _: &Candidates<'_>) -> Box<dyn Picker> {
        Box::new(Two)
    }
}

/// From this share of answered calls on an endpoint counts as one that answers all.
const RATE_FINE: f64 = 0.9;

fn busyness(backend: &Backend, now: Instant) -> f64 {
    let load = backend.load();
    let rate = load.success_rate(now);
    // A failure now and then must not decide between two that have nothing to do.
    let rate = if rate >= RATE_FINE { 1.0 } else { rate };
    // Once more for failing faster than others answer.
    f64::from(load.in_flight() + 1) / rate.powi(2)
}

#[derive(Debug)]
struct Two;

impl Picker for Two {
    fn pick(&self, ready: &[Arc<Backend>], call: &Asked) -> usize {
        call.lesser_of_two(ready, busyness)
    }
}
