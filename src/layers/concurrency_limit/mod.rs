//! A bound on the calls under way at once, fixed or found by what they tell, with a bounded queue.
//!
//! [`ConcurrencyLimitLayer`] has one limit for all calls, [`BulkheadLayer`] one for each key, so that
//! one busy backend or method cannot take all places. Both carry out what the machine of
//! [`crate::resilience::concurrency_limit`] decides and decide nothing themselves.

mod bulkhead;
mod entry;
mod layer;

#[cfg(test)]
mod tests;

pub use bulkhead::{Bulkhead, BulkheadHandle, BulkheadLayer};
pub use entry::{ConcurrencyLimitHandle, LIMIT_REACHED, sample_of};
pub(crate) use entry::{Entry, Place};
pub use layer::{ConcurrencyLimit, ConcurrencyLimitLayer};
