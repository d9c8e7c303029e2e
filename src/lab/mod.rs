//! Floor 7: the laboratory: a whole cluster on one machine, for people.

pub mod up;
