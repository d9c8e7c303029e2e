//! Floor 0, in tests only: bytes that nobody meant, for every decoder of bytes from outside.
//!
//! A target is a unit test beside its decoder, called `fuzz_...`. By default it runs a number of
//! iterations, the same in every run; `QUORATE_FUZZ_SECONDS=10` makes each target go on for so
//! long, from a new seed. Whatever fails prints its input and the seed that makes it again:
//! `QUORATE_FUZZ_SEED=...` runs that one iteration. `docs/testing.md` lists the targets.

mod mutate;
mod run;
mod values;

pub(crate) use mutate::mutate;
pub(crate) use run::Target;
pub(crate) use values::{every_message, message, pool, text};
