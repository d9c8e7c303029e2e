//! Floor 4: the simulator and the checkers.
//!
//! A discrete-event world runs the replicas that ship over a network, disks and clocks that fail by
//! plan; what clients saw is a [`history`], which the checkers judge. The same workloads and
//! checkers serve against real processes.

pub mod checker;
mod clock;
#[cfg(test)]
mod fuzz;
pub mod history;
mod invariants;
pub mod plan;
mod run;
pub mod shrink;
mod store;
#[cfg(test)]
mod tests;
mod words;
pub mod workload;
mod world;

pub use invariants::Broken;
pub use run::{Counts, Report, run};
