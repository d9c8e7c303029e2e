//! When a call must have ended, and what the calls that it makes are told of that.
//!
//! A deadline travels as `grpc-timeout`, a span (gRPC over HTTP/2, "Requests"), because clocks of two
//! machines do not agree; here it is a point in time. What a call makes on its way must end a margin
//! sooner than the call itself, so that an answer that says what is known can still be given. Nothing
//! here waits or ends anything.

use core::{fmt, str::FromStr};

use crate::{
    resilience::ConfigError,
    types::{Duration, Instant},
};

/// The part of what is left that a margin takes at most: a short deadline is not all margin.
const MARGIN_SHARE: u32 = 4;

/// The most digits of a timeout.
const DIGITS_MAX: usize = 8;

/// The units of a timeout, finest first, with their length in nanoseconds.
const UNITS: [(u8, u64); 6] = [
    (b'n', 1),
    (b'u', 1_000),
    (b'm', 1_000_000),
    (b'S', 1_000_000_000),
    (b'M', 60_000_000_000),
    (b'H', 3_600_000_000_000),
];

/// The value of the header `grpc-timeout`: at most eight digits and a unit.
///
/// ```
/// use quorate::{resilience::deadline::Timeout, types::Duration};
///
/// let read: Timeout = "250m".parse()?;
/// assert_eq!(read.span(), Duration::from_millis(250));
/// assert_eq!(Timeout::of(Duration::from_micros(1_500)).to_string(), "1500000n");
/// assert!("1.5S".parse::<Timeout>().is_err());
/// # Ok::<(), quorate::resilience::deadline::Malformed>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeout {
    count: u32,
    /// The place in [`UNITS`].
    unit: u8,
}

impl Timeout {
    /// A span in the finest unit that it fits into; never longer than the span. More than 11,000
    /// years are the longest that can be written.
    #[must_use]
    pub fn of(span: Duration) -> Self {
        let nanos = span.as_nanos();
        let most = 10_u128.pow(DIGITS_MAX as u32);
        for (unit, (_, length)) in (0..).zip(UNITS) {
            let count = nanos / u128::from(length);
            if count < most {
                return Self { count: count as u32, unit };
            }
        }
        Self { count: most as u32 - 1, unit: UNITS.len() as u8 - 1 }
    }

    /// How long it is.
    #[must_use]
    pub const fn span(self) -> Duration {
        let nanos = self.count as u128 * UNITS[self.unit as usize].1 as u128;
        Duration::new((nanos / 1_000_000_000) as u64, (nanos % 1_000_000_000) as u32)
    }
}

impl FromStr for Timeout {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        let (digits, unit) = text
            .len()
            .checked_sub(1)
            .and_then(|unit_at| text.split_at_checked(unit_at))
            .ok_or(Malformed)?;
        let is_count = (1..=DIGITS_MAX).contains(&digits.len())
            && digits.bytes().all(|byte| byte.is_ascii_digit());
        let letter = unit.as_bytes()[0];
        let unit = UNITS.iter().position(|(known, _)| *known == letter);
        match (is_count, unit) {
            (true, Some(unit)) => {
                let count = digits.parse().map_err(|_| Malformed)?;
                Ok(Self { count, unit: unit as u8 })
            }
            _ => Err(Malformed),
        }
    }
}

impl fmt::Display for Timeout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.count, char::from(UNITS[usize::from(self.unit)].0))
    }
}

/// The text is not what `grpc-timeout` may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a timeout is at most eight digits and one of H, M, S, m, u, n")]
pub struct Malformed;

/// A point in time at which a call must have ended.
///
/// ```
/// use quorate::{resilience::deadline::Deadline, types::{Duration, Instant}};
///
/// let millis = Duration::from_millis;
/// let now = Instant::ZERO;
/// let deadline = Deadline::after(now, millis(100));
/// assert_eq!(deadline.left(now.after(millis(30))), millis(70));
/// assert!(deadline.has_passed(now.after(millis(100))));
/// assert_eq!(deadline.propagated(now, millis(5)), Deadline::after(now, millis(95)));
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Deadline(Instant);

impl Deadline {
    /// None: later than anything that happens.
    pub const NEVER: Self = Self(Instant::FAR);

    /// This point in time.
    #[must_use]
    pub const fn at(instant: Instant) -> Self {
        Self(instant)
    }

    /// This long from now. What lies too far ahead to be told is [`Deadline::NEVER`].
    #[must_use]
    pub fn after(now: Instant, span: Duration) -> Self {
        Self(now.after(span))
    }

    /// The point in time.
    #[must_use]
    pub const fn instant(self) -> Instant {
        self.0
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_never(self) -> bool {
        self == Self::NEVER
    }

    /// What is left of the time; zero once it has passed.
    #[must_use]
    pub const fn left(self, now: Instant) -> Duration {
        self.0.since(now)
    }

    /// Whether the time is over.
    #[must_use]
    pub fn has_passed(self, now: Instant) -> bool {
        self.0 <= now
    }

    /// The deadline of what is done for a call with this one: sooner by `margin`, but by a quarter of
    /// what is left at most.
    #[must_use]
    pub fn propagated(self, now: Instant, margin: Duration) -> Self {
        if self.is_never() {
            return self;
        }
        let left = self.left(now);
        Self(now.after(left - margin.min(left / MARGIN_SHARE)))
    }
}

impl fmt::Debug for Deadline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_never() { f.write_str("never") } else { self.0.fmt(f) }
    }
}

/// What calls get that ask for no deadline, and for too late a one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// For a call that asks for none; `None` leaves it without. Above zero. Default none.
    pub default: Option<Duration>,
    /// The longest that a call gets, whatever it asks for; `None` is no bound. Above zero. Default
    /// none.
    pub max: Option<Duration>,
    /// How much sooner than a call everything ends that is done for it, so that its answer is not
    /// late; a quarter of what is left at most. At most 10 s. Default 4 ms.
    pub margin: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self { default: None, max: None, margin: Duration::from_millis(4) }
    }
}

impl Config {
    /// Checks the figures.
    ///
    /// # Errors
    /// The first figure that cannot work.
    pub fn validate(self) -> Result<ValidConfig, ConfigError> {
        ConfigError::zero(self.default.is_some_and(|span| span.is_zero()), "default")?;
        ConfigError::zero(self.max.is_some_and(|span| span.is_zero()), "max")?;
        ConfigError::range(self.margin <= Duration::from_secs(10), "margin", "0 to 10 s")?;
        Ok(ValidConfig(self))
    }
}

/// A [`Config`] that works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ValidConfig(Config);

impl Default for ValidConfig {
    fn default() -> Self {
        Config::default().validate().expect("the defaults work")
    }
}

impl ValidConfig {
    /// The deadline of a call that begins `now` and asks for `asked`, made for another one that must
    /// end by `outer`.
    ///
    /// ```
    /// use quorate::{resilience::deadline::{Config, Deadline}, types::{Duration, Instant}};
    ///
    /// let seconds = Duration::from_secs;
    /// let config = Config { max: Some(seconds(10)), ..Config::default() }.validate()?;
    /// let outer = Deadline::after(Instant::ZERO, seconds(2));
    /// let deadline = config.deadline(Instant::ZERO, Some(seconds(60)), outer);
    /// assert!(deadline < outer, "of three the soonest, and a margin sooner than the outer one");
    /// # Ok::<(), quorate::resilience::ConfigError>(())
    /// ```
    #[must_use]
    pub fn deadline(&self, now: Instant, asked: Option<Duration>, outer: Deadline) -> Deadline {
        let own = match (asked.or(self.0.default), self.0.max) {
            (Some(span), Some(max)) => Some(span.min(max)),
            (span, max) => span.or(max),
        };
        let own = own.map_or(Deadline::NEVER, |span| Deadline::after(now, span));
        own.min(outer.propagated(now, self.0.margin))
    }

    /// How much sooner than a call everything ends that is done for it, at most.
    #[must_use]
    pub const fn margin(&self) -> Duration {
        self.0.margin
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::fuzz::Target;

    const fn millis(count: u64) -> Duration {
        Duration::from_millis(count)
    }

    fn at(count: u64) -> Instant {
        Instant::ZERO.after(millis(count))
    }

    fn parse(text: &str) -> Option<Duration> {
        text.parse().ok().map(Timeout::span)
    }

    #[test]
    fn fuzz_timeouts() {
        Target::new("timeouts", 10_000).damaged_texts(&["250m", "99999999H", "7n"], |text| {
            if let Ok(timeout) = text.parse::<Timeout>() {
                let digits = text[..text.len() - 1].trim_start_matches('0').len().max(1);
                assert_eq!(timeout.to_string().len(), digits + 1, "{text}");
            }
        });
    }

    #[test]
    fn timeouts_are_read_as_the_protocol_writes_them() {
        assert_eq!(parse("250m"), Some(millis(250)));
        assert_eq!(parse("0S"), Some(Duration::ZERO));
        assert_eq!(parse("99999999H"), Some(Duration::from_secs(99_999_999 * 3_600)));
        assert_eq!(parse("1M"), Some(Duration::from_secs(60)));
        assert_eq!(parse("7u"), Some(Duration::from_micros(7)));
        assert_eq!(parse("7n"), Some(Duration::from_nanos(7)));
        for malformed in ["", "S", "1", "1s", "-1S", "+1S", "123456789S", "1.5S", "1 S", "1ä"] {
            assert_eq!(parse(malformed), None, "{malformed}");
        }
    }

    #[test]
    fn timeouts_are_written_in_the_finest_unit_that_holds_them() {
        let written = |span| Timeout::of(span).to_string();
        assert_eq!(written(Duration::ZERO), "0n");
        assert_eq!(written(Duration::from_nanos(99_999_999)), "99999999n");
        assert_eq!(written(Duration::from_nanos(100_000_001)), "100000u");
        assert_eq!(written(Duration::from_secs(5)), "5000000u");
        assert_eq!(written(Duration::from_hours(30)), "108000S");
        assert_eq!(written(Duration::MAX), "99999999H");
    }

    #[test]
    fn a_deadline_passes_at_its_time() {
        let deadline = Deadline::after(at(10), millis(5));
        assert_eq!(deadline, Deadline::at(at(15)));
        assert!(!deadline.has_passed(at(14)) && deadline.has_passed(at(15)));
        assert_eq!((deadline.left(at(12)), deadline.left(at(99))), (millis(3), Duration::ZERO));
        assert!(!Deadline::NEVER.has_passed(at(1 << 40)));
        assert_eq!(Deadline::after(at(1), Duration::MAX), Deadline::NEVER);
        assert_eq!(format!("{deadline:?} {:?}", Deadline::NEVER), "15ms never");
    }

    #[test]
    fn the_next_hop_gets_what_is_left_minus_the_margin() {
        let deadline = Deadline::at(at(100));
        assert_eq!(deadline.propagated(at(0), millis(4)), Deadline::at(at(96)));
        assert_eq!(deadline.propagated(at(92), millis(4)), Deadline::at(at(98)), "a quarter");
        assert!(deadline.propagated(at(100), millis(4)).has_passed(at(100)));
        assert_eq!(Deadline::NEVER.propagated(at(5), millis(4)), Deadline::NEVER);
    }

    #[test]
    fn of_what_was_asked_the_default_the_maximum_and_the_outer_call_the_soonest_counts() {
        let config = Config { default: Some(millis(50)), max: Some(millis(80)), margin: millis(1) };
        let config = config.validate().expect("it works");
        let deadline = |asked, outer| config.deadline(at(0), asked, outer);
        assert_eq!(deadline(None, Deadline::NEVER), Deadline::at(at(50)));
        assert_eq!(deadline(Some(millis(70)), Deadline::NEVER), Deadline::at(at(70)));
        assert_eq!(deadline(Some(millis(90)), Deadline::NEVER), Deadline::at(at(80)));
        assert_eq!(deadline(Some(millis(70)), Deadline::at(at(21))), Deadline::at(at(20)));
        let none = ValidConfig::default();
        assert_eq!(none.deadline(at(0), None, Deadline::NEVER), Deadline::NEVER);
        assert_eq!(none.deadline(at(0), None, Deadline::at(at(104))), Deadline::at(at(100)));
        let only_max = Config { max: Some(millis(9)), ..Config::default() }.validate();
        let only_max = only_max.expect("it works");
        assert_eq!(only_max.deadline(at(0), None, Deadline::NEVER), Deadline::at(at(9)));
    }

    #[test]
    fn figures_that_cannot_work_are_refused() {
        let default = Config::default();
        for (config, wrong) in [
            (Config { default: Some(Duration::ZERO), ..default }, "default"),
            (Config { max: Some(Duration::ZERO), ..default }, "max"),
            (Config { margin: Duration::from_secs(11), ..default }, "margin"),
        ] {
            let refused = config.validate().expect_err(wrong).to_string();
            assert!(refused.starts_with(wrong), "{refused}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again_and_never_longer(nanos: u64, shift in 0_u32..64) {
            let span = Duration::from_nanos(nanos >> shift);
            let written = Timeout::of(span).to_string();
            prop_assert!(written.len() <= DIGITS_MAX + 1);
            let read = parse(&written).expect("it was written");
            prop_assert!(read <= span);
            prop_assert!(span - read <= span / 1_000, "{span:?} was written as {written}");
        }

        #[test]
        fn no_hop_gets_more_than_the_one_before(
            now in 0_u64..1_000,
            left in 0_u64..100_000,
            asked in proptest::option::of(0_u64..100_000),
            max in proptest::option::of(1_u64..100_000),
            margin in 0_u64..10_000,
        ) {
            let config = Config { default: None, max: max.map(millis), margin: millis(margin) };
            let config = config.validate().expect("it works");
            let outer = Deadline::after(at(now), millis(left));
            let inner = config.deadline(at(now), asked.map(millis), outer);
            prop_assert!(inner <= outer);
            prop_assert!(left == 0 || margin == 0 || inner < outer, "a margin sooner");
            prop_assert!(asked.is_none_or(|asked| inner.left(at(now)) <= millis(asked)));
            prop_assert!(max.is_none_or(|max| inner.left(at(now)) <= millis(max)));
            let three_quarters = millis(left) * 3 / 4;
            let own = asked.map(millis).into_iter().chain(max.map(millis)).min();
            prop_assert!(inner.left(at(now)) >= own.unwrap_or(Duration::MAX).min(three_quarters));
        }
    }
}
