//! `quorate bench soak`: a mixed load on a cluster of its own whose leader is killed again and
//! again, and the proof at the end that nothing acknowledged was lost and that memory stayed flat.
//!
//! The nodes are processes of this same program; they and their data go with the run, unless what
//! it found is bad: then the data stays, to be looked at.

mod load;
mod members;
mod proof;
mod report;
mod run;
mod tally;

pub(super) use run::{SoakArgs, run};
