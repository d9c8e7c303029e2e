//! The consensus core from outside: the paper's sentences, the rules, random schedules and golden
//! scenarios.

mod network;
mod random;
