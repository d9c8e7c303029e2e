//! Floor 2: what a node tells of itself: metrics as typed functions.
//!
//! Every node has a [`Metrics`] of its own; there is no global registry, so that several nodes live
//! in one process. Whoever measures calls a function with units in its type, never a metric by name.

mod metrics;

pub use metrics::{CONTENT_TYPE, Metrics};
