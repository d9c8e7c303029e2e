//! The checkers: is a history of calls and answers one that a correct cluster could have given?
//!
//! Two oracles that do not know of each other: the log [`witness`] takes the order from the
//! revisions and positions that answers carry, and the [`black_box`] looks for any order at all.
//! `docs/history.md` describes the format, the rules and the verdicts. Nothing here runs a
//! cluster, reads a file or looks at a clock.

mod black_box;
#[cfg(test)]
mod brute;
mod budget;
mod links;
mod model;
mod ops;
mod picture;
mod refute;
mod report;
mod rules;
mod search;
mod seen;
mod witness;
mod words;
#[cfg(test)]
mod world;

pub use black_box::black_box;
pub use budget::Budget;
pub use ops::{Malformed, check_form};
pub use picture::picture;
pub use report::{Counts, Finding, Part, Report, Verdict};
pub use rules::RULES;
pub use witness::witness;
pub(crate) use words::{answer as answer_in_words, call as call_in_words};
