//! Whether a call may be sent at all, told from how the ones before it ended.
//!
//! A circuit breaker after Nygard ("Release It!", 2007) with the figures of resilience4j: it opens
//! after so many failures in a row, or when too many of the calls in a window failed or were slow;
//! it then refuses for a time that grows with each opening, and lets a few probes through before it
//! trusts again. What a failure is, the caller says. Nothing here waits, sends or reads a clock.
//!
//! | from | to | when | [`Reason`] |
//! |---|---|---|---|
//! | closed | open | so many failures in a row | `FailuresInARow` |
//! | closed | open | the share of failures in the window reaches the threshold | `FailureRate` |
//! | closed | open | the share of slow calls in the window reaches the threshold | `SlowRate` |
//! | open | half-open | a call asks after the time is over: it is the first probe | `TimeOver` |
//! | half-open | closed | enough probes succeeded | `ProbesSucceeded` |
//! | half-open | open, longer | a probe failed, or was slow where slow calls are watched | `ProbeFailed` |
//! | any | forced open | [`Breaker::force_open`] | `Forced` |
//! | any | forced closed | [`Breaker::force_close`] | `Forced` |
//! | any other | closed | [`Breaker::reset`] | `Reset` |
//!
//! Each transition begins an epoch, with nothing counted. A result that belongs to an earlier one is
//! ignored: what was sent before the breaker opened says nothing about the probes.

mod breaker;
mod config;
mod report;
mod window;

#[cfg(test)]
mod tests;

pub use breaker::{Breaker, Permit};
pub use config::{Config, SlowRate, ValidConfig, Window};
pub use report::{Reason, Refused, State, Stats, Transition, Verdict, Why};
pub use window::Tally;
