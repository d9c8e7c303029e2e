//! The log witness: the order is in the answers.
//!
//! Answers carry the revision (of events: the position) at which they are true, so one order of
//! everything follows from them by sorting. The witness builds the history of every key, lock and
//! instance from the writes, holds each answer against it, and demands that what returned before
//! a call is not ordered after it. It takes O(n log n). What a history cannot decide is not held
//! against anybody.

mod discovery;
mod events;
mod guard;
mod judge;
mod keys;
mod locks;
mod sessions;
mod timeline;
mod watches;

pub use judge::witness;
