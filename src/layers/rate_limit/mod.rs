//! Lets calls through at a rate: for all together, or for each key.
//!
//! [`RateLimitLayer`] asks a [`RateLimiter`](crate::resilience::rate_limit::RateLimiter) for each
//! call. What may not pass is refused with RESOURCE_EXHAUSTED, reason `RATE_LIMITED`, and the time
//! after which it would pass; or it waits for that, in order, up to a bound. The end of a call does
//! not matter here: how many are under way at once is the concurrency limit's business.

mod layer;

#[cfg(test)]
mod tests;

pub use layer::{RATE_LIMITED, RateLimit, RateLimitHandle, RateLimitLayer, Stats};
