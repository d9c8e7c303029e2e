//! Floor 4: the simulator and the checkers.
//!
//! A discrete-event world runs the replicas that ship over a network, disks and clocks that fail by
//! plan; what clients saw is a [`history`], which the checkers judge. The same workloads and
//! checkers serve against real processes.

pub mod checker;
pub mod history;
pub mod workload;
