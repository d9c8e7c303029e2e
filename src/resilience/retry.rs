//! Whether a call that failed is sent again, and when.
//!
//! A pure function of what is known of the failed attempt. The pauses are exponential with full
//! jitter (Brooker, "Exponential Backoff And Jitter": evenly drawn from zero to the step), so that
//! callers of one lost server come back spread. What the other side asks for, by push-back (gRPC A6)
//! or `RetryInfo`, replaces the step. The rules, first match counts:
//!
//! | the failed attempt | decision |
//! |---|---|
//! | may have been carried out, and the call does harm twice | give up: `NotRepeatable` |
//! | the other side asks for none, or for a pause above `asked_max` | give up: `PushedBack` |
//! | was the last of `attempts_max` | give up: `Attempts` |
//! | the next could not end before the deadline | give up: `Deadline` |
//! | the budget has none left | give up: `Budget` |
//! | any other | again, after the pause |
//!
//! Nothing here waits or sends.

use crate::{
    resilience::{ConfigError, deadline::Deadline},
    types::{Duration, Instant, Rng},
};

/// How often and how soon a call is sent again.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Config {
    /// The most attempts of a call, the first included; 1 to 100. Default 4.
    pub attempts_max: u32,
    /// The longest pause after the first attempt; 1 µs to 1 h. Default 50 ms.
    pub base: Duration,
    /// What each further attempt multiplies the longest pause by; 1 to 10. Default 2.
    pub factor: f64,
    /// The longest pause that is made of one's own accord; at least `base`. Default 2 s.
    pub max: Duration,
    /// The longest pause that the other side may ask for; a call that would have to wait for longer
    /// is given up. Default 10 s.
    pub asked_max: Duration,
    /// How long an attempt takes at least: none is begun with less left until the deadline. Default
    /// 1 ms.
    pub attempt_min: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            attempts_max: 4,
            base: Duration::from_millis(50),
            factor: 2.0,
            max: Duration::from_secs(2),
            asked_max: Duration::from_secs(10),
            attempt_min: Duration::from_millis(1),
        }
    }
}

impl Config {
    /// Checks the figures.
    ///
    /// # Errors
    /// The first figure that cannot work.
    pub fn validate(self) -> Result<ValidConfig, ConfigError> {
        let attempts = (1..=100).contains(&self.attempts_max);
        ConfigError::range(attempts, "attempts_max", "1 to 100")?;
        let pauses = Duration::from_micros(1)..=Duration::from_hours(1);
        ConfigError::range(pauses.contains(&self.base), "base", "1 µs to 1 h")?;
        ConfigError::range((1.0..=10.0).contains(&self.factor), "factor", "1 to 10")?;
        ConfigError::range(self.max >= self.base, "max", "the base or more")?;
        Ok(ValidConfig(self))
    }
}

/// A [`Config`] that works.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ValidConfig(Config);

impl Default for ValidConfig {
    fn default() -> Self {
        Config::default().validate().expect("the defaults work")
    }
}

/// What the other side says about another attempt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Asked {
    /// Nothing.
    #[default]
    Nothing,
    /// To come back after this long, and no sooner.
    After(Duration),
    /// Not to come back.
    Never,
}

/// An attempt that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failed {
    /// How many attempts were made, this one included.
    pub attempts: u32,
    /// Whether sending it again does no harm: the attempt was certainly not carried out, or being
    /// carried out twice is as good as once.
    pub may_repeat: bool,
    /// What the other side says.
    pub asked: Asked,
    /// When the call must have ended.
    pub deadline: Deadline,
}

/// What becomes of a call whose attempt failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// It is sent again then.
    After(Instant),
    /// It is not.
    GiveUp(Why),
}

/// Why a call is not sent again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Why {
    /// It may have been carried out, and twice would do harm.
    NotRepeatable,
    /// The other side asked for it, or for too long a pause.
    PushedBack,
    /// It was sent as often as allowed.
    Attempts,
    /// The next attempt could not end in time.
    Deadline,
    /// The budget has no retry left.
    Budget,
}

impl ValidConfig {
    /// Decides by the table of this module. `withdraw` takes a retry out of a budget, and is asked
    /// only where nothing else stands against one.
    ///
    /// ```
    /// use quorate::{
    ///     resilience::{deadline::Deadline, retry::{Asked, Decision, Failed, ValidConfig, Why}},
    ///     types::{Duration, Instant, Rng},
    /// };
    ///
    /// let (config, mut rng, now) = (ValidConfig::default(), Rng::new(7), Instant::ZERO);
    /// let failed = Failed {
    ///     attempts: 1,
    ///     may_repeat: true,
    ///     asked: Asked::After(Duration::from_millis(300)),
    ///     deadline: Deadline::after(now, Duration::from_secs(1)),
    /// };
    /// let Decision::After(at) = config.decide(&failed, now, &mut rng, || true) else { panic!() };
    /// assert!(at >= now.after(Duration::from_millis(300)));
    /// let late = now.after(Duration::from_millis(900));
    /// let decision = config.decide(&failed, late, &mut rng, || true);
    /// assert_eq!(decision, Decision::GiveUp(Why::Deadline));
    /// ```
    pub fn decide(
        &self,
        failed: &Failed,
        now: Instant,
        rng: &mut Rng,
        withdraw: impl FnOnce() -> bool,
    ) -> Decision {
        let config = &self.0;
        if !failed.may_repeat {
            return Decision::GiveUp(Why::NotRepeatable);
        }
        let pause = match failed.asked {
            Asked::Never => return Decision::GiveUp(Why::PushedBack),
            Asked::After(span) if span > config.asked_max => {
                return Decision::GiveUp(Why::PushedBack);
            }
            // Those who were all told the same come back spread as well.
            Asked::After(span) => span + rng.between(Duration::ZERO, config.base),
            Asked::Nothing => self.pause(failed.attempts, rng),
        };
        if failed.attempts >= config.attempts_max {
            return Decision::GiveUp(Why::Attempts);
        }
        let at = now.after(pause);
        if failed.deadline.has_passed(at.after(config.attempt_min)) {
            return Decision::GiveUp(Why::Deadline);
        }
        if !withdraw() {
            return Decision::GiveUp(Why::Budget);
        }
        Decision::After(at)
    }

    /// A pause after so many failed attempts that nobody asked for: evenly drawn from zero to
    /// [`ValidConfig::step`].
    pub fn pause(&self, attempts: u32, rng: &mut Rng) -> Duration {
        rng.between(Duration::ZERO, self.step(attempts))
    }

    /// The longest pause after so many failed attempts.
    #[must_use]
    pub fn step(&self, attempts: u32) -> Duration {
        let Config { base, factor, max, .. } = self.0;
        let power = i32::try_from(attempts.saturating_sub(1)).unwrap_or(i32::MAX);
        // An overflow is infinite, and so the maximum.
        let step = (base.as_secs_f64() * factor.powi(power)).min(max.as_secs_f64());
        Duration::try_from_secs_f64(step).unwrap_or(max).min(max)
    }

    /// The most attempts of a call.
    #[must_use]
    pub const fn attempts_max(&self) -> u32 {
        self.0.attempts_max
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::types::Rng;

    const fn millis(count: u64) -> Duration {
        Duration::from_millis(count)
    }

    fn at(count: u64) -> Instant {
        Instant::ZERO.after(millis(count))
    }

    const FAILED: Failed =
        Failed { attempts: 1, may_repeat: true, asked: Asked::Nothing, deadline: Deadline::NEVER };

    fn decide(failed: Failed) -> Decision {
        ValidConfig::default().decide(&failed, at(1_000), &mut Rng::new(3), || true)
    }

    #[test]
    fn a_call_that_may_be_repeated_is_sent_again_within_the_step() {
        for (attempts, step) in [(1, 50), (2, 100), (3, 200)] {
            let Decision::After(then) = decide(Failed { attempts, ..FAILED }) else {
                panic!("attempt {attempts} was given up");
            };
            assert!(then >= at(1_000) && then < at(1_000 + step), "{then:?}");
        }
    }

    #[test]
    fn a_call_that_does_harm_twice_is_given_up() {
        let decision = decide(Failed { may_repeat: false, ..FAILED });
        assert_eq!(decision, Decision::GiveUp(Why::NotRepeatable));
    }

    #[test]
    fn attempts_are_bounded() {
        assert_eq!(decide(Failed { attempts: 4, ..FAILED }), Decision::GiveUp(Why::Attempts));
    }

    #[test]
    fn the_other_side_says_when_and_whether() {
        let asked = |asked| decide(Failed { asked, attempts: 3, ..FAILED });
        let Decision::After(then) = asked(Asked::After(millis(700))) else { panic!("given up") };
        assert!(then >= at(1_700) && then < at(1_750), "the base is the spread: {then:?}");
        assert_eq!(asked(Asked::Never), Decision::GiveUp(Why::PushedBack));
        assert_eq!(asked(Asked::After(millis(10_001))), Decision::GiveUp(Why::PushedBack));
    }

    #[test]
    fn no_attempt_is_begun_that_cannot_end_in_time() {
        let before = |deadline| decide(Failed { deadline: Deadline::at(at(deadline)), ..FAILED });
        assert_eq!(before(1_001), Decision::GiveUp(Why::Deadline));
        assert_eq!(before(900), Decision::GiveUp(Why::Deadline));
        assert!(matches!(before(1_051), Decision::After(_)));
    }

    #[test]
    fn the_budget_is_asked_last_and_has_the_last_word() {
        let (config, mut rng) = (ValidConfig::default(), Rng::new(3));
        let decision = config.decide(&FAILED, at(0), &mut rng, || false);
        assert_eq!(decision, Decision::GiveUp(Why::Budget));
        let over = Failed { deadline: Deadline::at(at(0)), ..FAILED };
        let decision = config.decide(&over, at(0), &mut rng, || panic!("it is not asked"));
        assert_eq!(decision, Decision::GiveUp(Why::Deadline));
    }

    #[test]
    fn jitter_is_full() {
        let (config, mut rng) = (ValidConfig::default(), Rng::new(9));
        let pauses: Vec<_> = (0..1_000).map(|_| config.pause(1, &mut rng).as_micros()).collect();
        assert!(pauses.iter().any(|pause| *pause < 2_500), "nothing near zero");
        assert!(pauses.iter().any(|pause| *pause > 47_500), "nothing near the step");
        let mean = pauses.iter().sum::<u128>() / 1_000;
        assert!((23_000..27_000).contains(&mean), "{mean} µs");
    }

    #[test]
    fn figures_that_cannot_work_are_refused() {
        let default = Config::default();
        for (config, wrong) in [
            (Config { attempts_max: 0, ..default }, "attempts_max"),
            (Config { base: Duration::ZERO, ..default }, "base"),
            (Config { factor: 0.5, ..default }, "factor"),
            (Config { factor: f64::NAN, ..default }, "factor"),
            (Config { max: millis(49), ..default }, "max"),
        ] {
            let refused = config.validate().expect_err(wrong).to_string();
            assert!(refused.starts_with(wrong), "{refused}");
        }
    }

    fn asked() -> impl Strategy<Value = Asked> {
        prop_oneof![
            Just(Asked::Nothing),
            Just(Asked::Never),
            (0_u64..20_000).prop_map(|span| Asked::After(millis(span))),
        ]
    }

    proptest! {
        #[test]
        fn a_retry_keeps_every_rule_at_once(
            attempts in 1_u32..10,
            may_repeat: bool,
            asked in asked(),
            left in proptest::option::of(0_u64..30_000),
            budget: bool,
            seed: u64,
        ) {
            let config = Config::default();
            let now = at(5_000);
            let deadline = left.map_or(Deadline::NEVER, |left| Deadline::after(now, millis(left)));
            let failed = Failed { attempts, may_repeat, asked, deadline };
            let valid = config.validate().expect("it works");
            let mut withdrawn = false;
            let decision = valid.decide(&failed, now, &mut Rng::new(seed), || {
                withdrawn = true;
                budget
            });
            match decision {
                Decision::After(then) => {
                    prop_assert!(may_repeat && budget && attempts < config.attempts_max);
                    prop_assert!(withdrawn && asked != Asked::Never);
                    prop_assert!(!deadline.has_passed(then.after(config.attempt_min)));
                    let pause = then.since(now);
                    match asked {
                        Asked::After(span) => {
                            prop_assert!(span <= config.asked_max);
                            prop_assert!(pause >= span && pause <= span + config.base);
                        }
                        _ => prop_assert!(pause <= valid.step(attempts)),
                    }
                }
                Decision::GiveUp(why) => {
                    prop_assert_eq!(withdrawn, why == Why::Budget, "nothing is taken in vain");
                }
            }
        }

        #[test]
        fn steps_grow_up_to_the_maximum(
            base in 1_u64..1_000,
            factor in 1.0_f64..=10.0,
            more in 0_u64..100_000,
            attempts in 1_u32..200,
        ) {
            let max = millis(base + more);
            let config = Config { base: millis(base), factor, max, ..Config::default() };
            let config = config.validate().expect("it works");
            let (step, next) = (config.step(attempts), config.step(attempts + 1));
            prop_assert!(millis(base) <= step && step <= next && next <= max);
        }
    }
}
