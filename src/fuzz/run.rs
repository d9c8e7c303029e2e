//! Runs a target for as long as it should, and tells how to make a failure again.
//!
//! No input may make a target panic, nor allocate more than a bounded multiple of its own size: a
//! length field that asks for gigabytes is found here, and not by the kernel.

use std::{
    fmt::Write as _,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    time::{Duration, Instant},
};

use allocation_counter::measure;

use super::mutate;
use crate::types::Rng;

/// How many bytes of a failing input are printed; the seed makes all of it again.
const PRINTED_BYTES_MAX: usize = 4 << 10;

/// A decoder under test.
pub(crate) struct Target {
    name: &'static str,
    iterations: u64,
    per_byte: u64,
    besides: u64,
}

impl Target {
    /// A target that runs so often by default: a second or less in all, in a debug build.
    pub(crate) const fn new(name: &'static str, iterations: u64) -> Self {
        Self { name, iterations, per_byte: 128, besides: 64 << 10 }
    }

    /// What it may have allocated at once, for each byte of input and besides.
    pub(crate) const fn allocating(self, per_byte: u64, besides: u64) -> Self {
        Self { per_byte, besides, ..self }
    }

    /// Feeds what was made out of good inputs by damage, and now and then noise.
    pub(crate) fn damaged(self, good: &[Vec<u8>], mut decode: impl FnMut(&[u8])) {
        self.made(|rng| mutate(good, rng), |input, _| decode(input));
    }

    /// The same for texts.
    pub(crate) fn damaged_texts(self, good: &[&str], mut decode: impl FnMut(&str)) {
        let good: Vec<Vec<u8>> = good.iter().map(|text| text.as_bytes().to_vec()).collect();
        self.damaged(&good, |input| decode(&String::from_utf8_lossy(input)));
    }

    /// Feeds what `make` makes. The chance that `decode` is given goes on where `make` stopped.
    pub(crate) fn made(
        self,
        mut make: impl FnMut(&mut Rng) -> Vec<u8>,
        mut decode: impl FnMut(&[u8], &mut Rng),
    ) {
        if let Some(seed) = number_from("QUORATE_FUZZ_SEED") {
            self.once(seed, &mut make, &mut decode);
            return;
        }
        let Some(seconds) = number_from("QUORATE_FUZZ_SECONDS") else {
            let name = Rng::new(0).stream(self.name).next_u64();
            (0..self.iterations)
                .for_each(|nth| self.once(name.wrapping_add(nth), &mut make, &mut decode));
            return;
        };
        let end = now() + Duration::from_secs(seconds);
        let mut seeds = Rng::new(uuid::Uuid::new_v4().as_u64_pair().0);
        let mut rounds = 0_u64;
        while now() < end {
            self.once(seeds.next_u64(), &mut make, &mut decode);
            rounds += 1;
        }
        println!("{}: {rounds} inputs in {seconds} s", self.name);
    }

    fn once(
        &self,
        seed: u64,
        make: &mut impl FnMut(&mut Rng) -> Vec<u8>,
        decode: &mut impl FnMut(&[u8], &mut Rng),
    ) {
        let mut rng = Rng::new(seed);
        let input = make(&mut rng);
        let mut outcome = Ok(());
        let used = measure(|| {
            outcome = catch_unwind(AssertUnwindSafe(|| decode(&input, &mut rng)));
        });
        let bytes = used.bytes_max;
        let bound = self.besides + self.per_byte * input.len() as u64;
        if outcome.is_ok() && bytes <= bound {
            return;
        }
        eprintln!(
            "{}: this input of {} bytes fails; QUORATE_FUZZ_SEED={seed} makes it again:\n{}",
            self.name,
            input.len(),
            hex(&input)
        );
        if let Err(panic) = outcome {
            resume_unwind(panic);
        }
        panic!("{}: {bytes} bytes were allocated at once; {bound} are allowed", self.name);
    }
}

/// The monotonic clock: a target that is given seconds reads it, and nothing else does here.
#[expect(clippy::disallowed_methods, reason = "how long to go on is measured, not decided by")]
fn now() -> Instant {
    Instant::now()
}

fn number_from(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable}={text}: not a number")))
}

fn hex(bytes: &[u8]) -> String {
    let shown = &bytes[..bytes.len().min(PRINTED_BYTES_MAX)];
    let mut text = String::with_capacity(2 * shown.len() + 3);
    for byte in shown {
        write!(text, "{byte:02x}").expect("a string takes it");
    }
    if shown.len() < bytes.len() {
        text.push_str("...");
    }
    text
}

#[test]
fn a_panic_and_a_bomb_are_found() {
    let target = || Target::new("a target of the tests", 2_000);
    let good = [b"length 7".to_vec()];
    let panics = catch_unwind(|| target().damaged(&good, |input| assert!(!input.contains(&b'9'))));
    assert!(panics.is_err());
    let bomb = catch_unwind(|| {
        target().damaged(&good, |input| {
            let length = if input.starts_with(b"length") { 1 } else { 1 << 24 };
            assert!(Vec::<u8>::with_capacity(length).capacity() >= length);
        });
    });
    let said = bomb.expect_err("too much was allocated");
    assert!(said.downcast_ref::<String>().expect("words").contains("were allocated at once"));
    target().damaged(&good, |_| {});
}
