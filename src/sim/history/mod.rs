//! What clients asked and were answered, in order: JSON lines that the checkers read.
//!
//! The format is described in `docs/history.md`. Nothing here judges anything.

mod call;
mod jepsen;
mod line;

pub use call::{Answer, Call, Change, Compare, Event, Held, Outcome, Versioned};
pub use line::{Header, History, HistoryError, Line, Recorder, VERSION};
