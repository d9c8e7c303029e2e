//! How many calls may be sent in a time, whatever becomes of them.
//!
//! The generic cell rate algorithm (GCRA; ITU-T I.371), a leaky bucket as a meter in one number: the
//! time at which the calls let through so far would have come, had they come at their rate. A call
//! is let through if that time lies no further ahead than the burst allows. So in any time `t` at
//! most `rate * t + burst` pass, idle limiters cost nothing, and one atomic word is all there is.
//! Nothing here waits or reads a clock.
//!
//! The interval between two calls is rounded up to whole nanoseconds: a limiter never lets more
//! through than was asked for, and at a million a second at most a thousandth less.

mod limiter;

#[cfg(test)]
mod tests;

pub use limiter::{Config, RateLimiter, Reservation, ValidConfig};
