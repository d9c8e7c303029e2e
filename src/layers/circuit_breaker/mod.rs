//! Refuses calls to what does not answer well, until it does again.
//!
//! [`CircuitBreakerLayer`] gives each [`Breaker`](crate::resilience::circuit_breaker::Breaker) the
//! ends of calls, read from headers and trailers, and answers what it refuses with UNAVAILABLE,
//! reason `CIRCUIT_OPEN`, and the time until it tries again. A refused call was certainly not sent.
//! A call that its caller gave up counts for nothing and gives the place of a probe back.
//!
//! Put it within limits of one's own, next to the channel: what those refuse is no failure of the
//! other side. Where retries stand around it, each attempt is a call of its own.

mod handle;
mod layer;

#[cfg(test)]
mod tests;

pub use handle::CircuitBreakerHandle;
pub use layer::{CIRCUIT_OPEN, CircuitBreaker, CircuitBreakerLayer, verdict};
