//! How many calls may be sent again, so that retries do not keep an overload alive.
//!
//! Two ways behind one [`RetryBudget`]. gRPC's retry throttling (proposal A6): a bucket of tokens that
//! each failure takes one from and each success gives a part of one back to; while it is not more
//! than half full nothing is sent again. Finagle's budget (`RetryBudget.scala`): over a window each
//! call pays in a share of a retry, each retry takes a whole one out, and a least number a second is
//! always there. All is atomics: a call takes no lock. Nothing here repeats a call.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use crate::{
    resilience::ConfigError,
    types::{Duration, Instant},
};

/// Thousandths of a token are the smallest part that counts.
const SCALE: u32 = 1_000;

/// The parts of a window; it moves on by one at a time.
const SLOTS: u64 = 10;

/// The bits of a slot's word that hold its balance; those above hold which part of time it is of.
const BALANCE_BITS: u32 = 40;

/// The most that a slot holds, to either side of zero.
const BALANCE_MAX: i64 = (1 << (BALANCE_BITS - 1)) - 1;

/// Which budget it is. The default is Finagle's: 20 % and ten a second over ten seconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Config {
    /// gRPC's tokens.
    Tokens(Tokens),
    /// Finagle's share of the calls, and a least number a second.
    Share(Share),
}

/// gRPC's retry throttling. It reacts to how many calls fail, whatever their rate.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tokens {
    /// The most tokens, and how many there are at the start; 1 to 1,000. While half of them or
    /// fewer are left nothing is sent again. Default 10.
    pub max: u32,
    /// The part of a token that a success gives back; 0.001 to `max`. Default 0.1.
    pub ratio: f64,
}

impl Default for Tokens {
    fn default() -> Self {
        Self { max: 10, ratio: 0.1 }
    }
}

/// Finagle's budget. It bounds what retries add to the load.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Share {
    /// How many retries a call pays for; 0, or 0.001 to 10. Default 0.2: a fifth more load at most.
    pub ratio: f64,
    /// How many retries a second there are whatever the load is; 0 to 1,000,000. All of a window's
    /// may be made at once. Default 10.
    pub per_second_min: u32,
    /// After how long what was paid in is forgotten; 1 s to 60 s. Default 10 s.
    pub window: Duration,
}

impl Default for Share {
    fn default() -> Self {
        Self { ratio: 0.2, per_second_min: 10, window: Duration::from_secs(10) }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self::Share(Share::default())
    }
}

impl Config {
    /// Checks the figures.
    ///
    /// # Errors
    /// The first figure that cannot work.
    pub fn validate(self) -> Result<ValidConfig, ConfigError> {
        match self {
            Self::Tokens(Tokens { max, ratio }) => {
                ConfigError::range((1..=1_000).contains(&max), "max", "1 to 1,000")?;
                let ratios = 0.001..=f64::from(max);
                ConfigError::range(ratios.contains(&ratio), "ratio", "0.001 to the maximum")?;
            }
            Self::Share(Share { ratio, per_second_min, window }) => {
                let ratios = ratio == 0.0 || (0.001..=10.0).contains(&ratio);
                ConfigError::range(ratios, "ratio", "0, or 0.001 to 10")?;
                let least = per_second_min <= 1_000_000;
                ConfigError::range(least, "per_second_min", "0 to 1,000,000")?;
                let windows = Duration::from_secs(1)..=Duration::from_secs(60);
                ConfigError::range(windows.contains(&window), "window", "1 s to 60 s")?;
            }
        }
        Ok(ValidConfig(self))
    }
}

/// A [`Config`] that works.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ValidConfig(Config);

impl Default for ValidConfig {
    fn default() -> Self {
        Config::default().validate().expect("the defaults are Finagle's")
    }
}

/// What may be sent again. One for all calls to one service: retries and hedges share it.
///
/// ```
/// use quorate::{
///     resilience::retry_budget::{Config, RetryBudget, Share},
///     types::{Duration, Instant},
/// };
///
/// let config = Config::Share(Share { per_second_min: 0, ..Share::default() });
/// let budget = RetryBudget::new(config.validate()?);
/// let now = Instant::ZERO;
/// for _call in 0..10 {
///     budget.called(now);
/// }
/// assert!(budget.withdraw(now) && budget.withdraw(now), "ten calls pay for two retries");
/// assert!(!budget.withdraw(now));
/// # Ok::<(), quorate::resilience::ConfigError>(())
/// ```
#[derive(Debug)]
pub struct RetryBudget(Kind);

#[derive(Debug)]
enum Kind {
    Tokens(Bucket),
    Share(Window),
}

impl RetryBudget {
    /// A full one.
    #[must_use]
    pub fn new(config: ValidConfig) -> Self {
        Self(match config.0 {
            Config::Tokens(tokens) => Kind::Tokens(Bucket::new(tokens)),
            Config::Share(share) => Kind::Share(Window::new(share)),
        })
    }

    /// A call begins: not an attempt of one.
    pub fn called(&self, now: Instant) {
        if let Kind::Share(window) = &self.0 {
            window.add(window.part(now), window.deposit);
        }
    }

    /// Whether it is of interest to it how attempts end: [`RetryBudget::succeeded`] and
    /// [`RetryBudget::failed`] do something.
    #[must_use]
    pub const fn counts_ends(&self) -> bool {
        matches!(self.0, Kind::Tokens(_))
    }

    /// An attempt succeeded, or was refused for what it asked for.
    pub fn succeeded(&self) {
        if let Kind::Tokens(bucket) = &self.0 {
            bucket.change(|tokens| tokens.saturating_add(bucket.ratio).min(bucket.max));
        }
    }

    /// An attempt failed in a way that retries could add to.
    pub fn failed(&self) {
        if let Kind::Tokens(bucket) = &self.0 {
            bucket.change(|tokens| tokens.saturating_sub(SCALE));
        }
    }

    /// Takes out one retry. False where there is none: then nothing may be sent again.
    #[must_use]
    pub fn withdraw(&self, now: Instant) -> bool {
        match &self.0 {
            Kind::Tokens(bucket) => bucket.allows(),
            Kind::Share(window) => window.withdraw(now),
        }
    }

    /// How many retries could be made now; of gRPC's budget how many failures it still bears.
    #[must_use]
    pub fn left(&self, now: Instant) -> u64 {
        match &self.0 {
            Kind::Tokens(bucket) => bucket.left(),
            Kind::Share(window) => {
                let left = window.balance(window.part(now)) / window.withdrawal;
                u64::try_from(left).unwrap_or(0)
            }
        }
    }
}

impl Default for RetryBudget {
    fn default() -> Self {
        Self::new(ValidConfig::default())
    }
}

/// gRPC's tokens, in thousandths.
#[derive(Debug)]
struct Bucket {
    tokens: AtomicU32,
    max: u32,
    ratio: u32,
}

impl Bucket {
    fn new(config: Tokens) -> Self {
        let max = config.max * SCALE;
        let ratio = (config.ratio * f64::from(SCALE)) as u32;
        Self { tokens: AtomicU32::new(max), max, ratio }
    }

    fn change(&self, change: impl Fn(u32) -> u32) {
        // Each success of a service that works comes by here: nothing is written where all is full.
        let mut tokens = self.tokens.load(Relaxed);
        while change(tokens) != tokens {
            match self.tokens.compare_exchange_weak(tokens, change(tokens), Relaxed, Relaxed) {
                Ok(_) => return,
                Err(seen) => tokens = seen,
            }
        }
    }

    fn allows(&self) -> bool {
        self.tokens.load(Relaxed) > self.max / 2
    }

    fn left(&self) -> u64 {
        u64::from((self.tokens.load(Relaxed).saturating_sub(self.max / 2)).div_ceil(SCALE))
    }
}

/// Finagle's window. Each slot is one word, a part of time and the balance of that part, so that a
/// slot is emptied by whoever comes first in a new part, without a lock.
#[derive(Debug)]
struct Window {
    slots: [AtomicU64; SLOTS as usize],
    part_nanos: u64,
    /// What is always there.
    reserve: i64,
    deposit: i64,
    withdrawal: i64,
}

impl Window {
    fn new(config: Share) -> Self {
        // As Finagle does: a call pays in a fixed sum, and a retry costs as much more as it is rarer.
        let (deposit, withdrawal) = if config.ratio > 0.0 {
            (i64::from(SCALE), (f64::from(SCALE) / config.ratio).round().max(1.0) as i64)
        } else {
            (0, i64::from(SCALE))
        };
        let retries = f64::from(config.per_second_min) * config.window.as_secs_f64();
        Self {
            slots: Default::default(),
            part_nanos: config.window.as_nanos() as u64 / SLOTS,
            reserve: (retries as i64).saturating_mul(withdrawal),
            deposit,
            withdrawal,
        }
    }

    /// Which part of time it is. They begin at 1, so that an empty slot is of none.
    const fn part(&self, now: Instant) -> u64 {
        now.as_nanos() / self.part_nanos + 1
    }

    fn slot(&self, part: u64) -> &AtomicU64 {
        &self.slots[(part % SLOTS) as usize]
    }

    /// Adds to a part of time; in vain where that is over.
    fn add(&self, part: u64, amount: i64) {
        if amount == 0 {
            return;
        }
        let slot = self.slot(part);
        let mut word = slot.load(Relaxed);
        loop {
            let of = part_of(word, part);
            if of > part {
                return;
            }
            let before = if of == part { balance_of(word) } else { 0 };
            let new = pack(part, before + amount);
            match slot.compare_exchange_weak(word, new, Relaxed, Relaxed) {
                Ok(_) => return,
                Err(seen) => word = seen,
            }
        }
    }

    /// What is there in a part of time: the reserve and what the window holds.
    fn balance(&self, part: u64) -> i64 {
        let held = self.slots.iter().map(|slot| {
            let word = slot.load(Relaxed);
            let of = part_of(word, part);
            if of + SLOTS > part && of <= part { balance_of(word) } else { 0 }
        });
        held.sum::<i64>() + self.reserve
    }

    fn withdraw(&self, now: Instant) -> bool {
        let part = self.part(now);
        // Taken out before it is looked at: of two who come at once for the last one, none or one
        // gets it.
        self.add(part, -self.withdrawal);
        let allowed = self.balance(part) >= 0;
        if !allowed {
            self.add(part, self.withdrawal);
        }
        allowed
    }
}

/// The part of time that a slot's word is of, told near another: the word holds its low bits. It lies
/// in the past, or a little ahead where another thread's clock is.
const fn part_of(word: u64, near: u64) -> u64 {
    const RANGE: u64 = 1 << (64 - BALANCE_BITS);
    let ahead = (word >> BALANCE_BITS).wrapping_sub(near) % RANGE;
    if ahead <= SLOTS { near + ahead } else { near.saturating_sub(RANGE - ahead) }
}

/// The balance that a slot's word holds.
const fn balance_of(word: u64) -> i64 {
    let shift = 64 - BALANCE_BITS;
    ((word << shift) as i64) >> shift
}

fn pack(part: u64, balance: i64) -> u64 {
    let balance = balance.clamp(-BALANCE_MAX, BALANCE_MAX);
    (part << BALANCE_BITS) | (balance as u64 & ((1 << BALANCE_BITS) - 1))
}

#[cfg(test)]
mod tests;
