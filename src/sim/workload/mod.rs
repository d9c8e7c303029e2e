//! What clients do in simulations and against real processes: intents, and what each client knows.
//!
//! An [`Intent`] is data, so plans hold it. A [`Client`] turns it into a call with what it learnt
//! from its answers so far; whoever carries calls out records both in a history.

mod client;
mod generate;
mod intent;

pub use client::{Client, RENEWED_TTL_MS};
pub use generate::{Family, Planned, Shape, generate};
pub use intent::{Expect, Intent};
