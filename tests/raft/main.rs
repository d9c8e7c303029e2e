//! The consensus core from outside: the paper's sentences, the rules, random schedules and golden
//! scenarios.

mod checks;
mod disk;
mod network;
mod paper;
mod random;
mod rules;
mod rules_serving;
mod scenarios;
mod speech;
mod trace;
