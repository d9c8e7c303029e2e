//! How many calls may be under way at once, who waits, and who goes next.
//!
//! [`Limit`] finds the number: fixed, or by what the latest calls tell ([`Algorithm`]). [`Limiter`]
//! keeps to it: it counts what is in flight, keeps a bounded queue by class and first come first
//! served within a class, and says who goes next. Nothing here waits, reads a clock or knows what a
//! call is.
//!
//! Source of the algorithms: Netflix `concurrency-limits` (`AIMDLimit`, `VegasLimit`,
//! `Gradient2Limit`, `WindowedLimit`). All leave a limit alone that the caller does not use: a sample
//! raises it only if at least half of it was in flight when the call began (app-limited).
//!
//! | algorithm | raises the limit | lowers it |
//! |---|---|---|
//! | fixed | never | never |
//! | AIMD | by 1 a sample | by `backoff` on a drop or a latency above `latency_max` |
//! | Vegas | by log10 of it while fewer than `alpha` calls seem to queue, by `beta` while hardly any | by log10 of it when more than `beta` do, or on a drop |
//! | Gradient2 | by `queue` a sample, smoothed | in proportion to the latency over its long average, at most to a half, smoothed; a drop counts as a half |
//!
//! Differences from Netflix: a drop counts in Gradient2 too, which ignores it there; a window that
//! holds only drops is judged, which waits there for an answer; the limit keeps within `min` and
//! `max` with all of them.

mod algorithm;
mod config;
mod limit;
mod limiter;

#[cfg(test)]
mod tests;

pub use config::{Aimd, Algorithm, CLASSES, Config, Gradient2, ValidConfig, Vegas};
pub use limit::{Ended, Limit, Sample};
pub use limiter::{Admission, Limiter, Next, Permit, Stats, Ticket};
