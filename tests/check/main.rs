//! Histories with labels, the readers of histories under bytes from anywhere, and `quorate check`
//! as a person runs it.

mod command;
mod labels;
mod readers;
