//! Which hosts fail more than the others, and for how long they get no calls.
//!
//! gRFC A50's detection by success rate and by failure percentage, at intervals, and Envoy's by
//! consecutive failures, at once; one limit holds for all: the share of hosts that may be ejected.
//! Calls are counted in a [`Tally`] behind `&self`; the [`Detector`] reads the tallies when it is
//! told the time. What a failure is, the caller says. Nothing here waits or reads a clock.
//!
//! Sources: gRPC proposal A50, "gRPC xDS outlier detection support"; Envoy, "Outlier detection".

mod config;
mod detector;
mod sweep;
mod tally;

#[cfg(test)]
mod tests;

pub use config::{Config, ConsecutiveFailures, FailurePercentage, SuccessRate, ValidConfig};
pub use detector::{Detector, Event, Why};
pub use tally::Tally;
