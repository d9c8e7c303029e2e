//! Floor 0: the words that every other floor speaks in.
//!
//! Identifiers are private newtypes, so that a term is never added to an index; time is a number
//! that somebody passes in; chance comes from a seed.

mod ids;
mod range;
mod rng;
mod time;

pub use ids::{
    ClusterId, FencingToken, GroupId, Incarnation, LogIndex, NodeId, Position, Revision, SessionId,
    Term,
};
pub use range::KeyRange;
pub use rng::Rng;
pub use time::{Duration, Instant, LogTime};
