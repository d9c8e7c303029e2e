//! Floor 7: the laboratory: a whole cluster on one machine, for people.

pub(crate) mod certificates;
pub(crate) mod probe;
pub(crate) mod process;
pub mod up;
