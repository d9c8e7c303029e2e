//! Floor 1: what keeps calls going while others fail, as pure functions of `now`.
//!
//! Back-off between attempts to connect, detection of hosts that fail more than the others, and
//! estimates of latency and success. Time and chance are arguments. Nothing here waits, sends or
//! reads a clock; what is shared with the path of a call is a few atomics behind `&self`.

pub mod backoff;
pub mod circuit_breaker;
pub mod concurrency_limit;
pub mod deadline;
mod error;
pub mod ewma;
pub mod hedge;
pub mod load_shed;
pub mod outlier;
pub mod rate_limit;
pub mod retry;
pub mod retry_budget;

pub use error::ConfigError;
