//! The consensus core from outside: the paper's sentences, the rules, random schedules and golden
//! scenarios.

mod checks;
mod disk;
mod network;
mod random;
mod scenarios;
mod speech;
