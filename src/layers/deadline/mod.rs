//! Deadlines of calls, on both sides of the wire, over [`crate::resilience::deadline`].
//!
//! The client's side tells the server in `grpc-timeout` what is left and ends the call and its stream
//! at that time; the server's side reads it once, hands it to the handler as a [`Due`], and ends what
//! is late. What a handler calls inherits its deadline, a margin sooner. Both sides answer
//! DEADLINE_EXCEEDED, where tonic's own timeout says CANCELLED and knows no streams. Nothing here
//! repeats a call.

mod body;
mod client;
mod due;
mod server;
mod stats;
#[cfg(test)]
mod tests;

pub use client::{Deadline, DeadlineLayer};
pub(super) use due::set_timeout;
pub use due::{Due, timeout_in};
pub use server::{ServerDeadline, ServerDeadlineLayer};
pub use stats::Stats;
