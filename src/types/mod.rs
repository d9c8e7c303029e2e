//! Floor 0: the words that every other floor speaks in.
//!
//! Identifiers are private newtypes, so that a term is never added to an index; time is a number
//! that somebody passes in; chance comes from a seed.

mod ids;
mod planted;
mod range;
mod rng;
mod time;

pub use ids::{
    ClusterId, FencingToken, GroupId, Incarnation, LogIndex, NodeId, Position, Revision, SessionId,
    Term,
};
#[cfg(test)]
pub(crate) use planted::Planting;
pub(crate) use planted::{Planted, planted};
pub use range::KeyRange;
pub use rng::Rng;
pub use time::{Duration, Instant, LogTime};
