//! Turns calls away while a server has more to do than it can, the least important ones first.
//!
//! The layer carries out what the machine of [`crate::resilience::load_shed`] decides. The delay that
//! it goes by is that of the runtime's own queue, measured by the calls themselves, and whatever the
//! handle is told of other queues. It belongs outermost at a server: what it sheds costs least there.

mod layer;

#[cfg(test)]
mod tests;

pub use layer::{LOAD_SHED, LoadShed, LoadShedHandle, LoadShedLayer, LoadShedStats};
