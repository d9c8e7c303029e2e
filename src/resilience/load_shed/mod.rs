//! When a server has more to do than it can: which calls are turned away, the least important first.
//!
//! The sign of overload is CoDel's (Nichols and Jacobson, "Controlling Queue Delay", ACM Queue 2012;
//! RFC 8289): a queue whose least delay stays above a target for a whole interval stands, while one
//! that empties once in it only took a burst. What follows the sign is different, since calls are
//! not alike: instead of dropping from the head, a pressure rises in steps that come ever faster, by
//! CoDel's law (the n-th after interval / sqrt(n)). Ten steps shed one class wholly, from the least
//! important up; one step sheds a tenth of its calls, evenly spread. Once the queue has come down,
//! the pressure falls by a step an interval.
//!
//! | state | least delay of an interval | next |
//! |---|---|---|
//! | calm | above the target | rising, and a step up |
//! | rising | above the target | a step up after interval / sqrt(n) |
//! | rising | at most the target | holding |
//! | holding | above the target | rising, with about the pace that it had |
//! | holding | below half the target, or nothing came | a step down; calm at zero |
//! | holding | in between | holding |
//!
//! Of an interval only the least important class counts that came, since in a queue by class the others
//! go before it. The gap between target and half the target is the hysteresis. [`Shedder`] is a pure function of
//! what it is told: nothing here waits or reads a clock.

mod config;
mod shedder;

#[cfg(test)]
mod tests;

pub use config::{Config, STEPS, ValidConfig};
pub use shedder::{Change, Shedder, State, Stats};
