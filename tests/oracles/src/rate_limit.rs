//! The rate limiter beside governor, the crate that made GCRA known in Rust: same decisions, same
//! times to come back, in virtual time.

use std::num::NonZeroU32;

use governor::{
    Quota, RateLimiter as Governor,
    clock::{Clock, FakeRelativeClock},
};
use quorate::{
    resilience::rate_limit::{Config, RateLimiter},
    types::{Duration, Instant},
};

use crate::{chance, pick, traces};

fn ours(period: Duration, burst: u32) -> RateLimiter {
    RateLimiter::new(Config { rate: 1, period, burst }.validate().expect("it works"))
}

fn quota(period: Duration, burst: u32) -> Quota {
    let burst = NonZeroU32::new(burst).expect("above zero");
    Quota::with_period(period).expect("above zero").allow_burst(burst)
}

#[test]
fn decisions_and_times_are_governors() {
    let (mut passed, mut refused, mut never) = (0, 0, 0);
    traces(3_000, |_, rng| {
        let period = Duration::from_nanos(pick(rng, 1_000, 50_000_000));
        let burst = pick(rng, 1, 20) as u32;
        let clock = FakeRelativeClock::default();
        let governor = Governor::direct_with_clock(quota(period, burst), clock.clone());
        let (limiter, mut now) = (ours(period, burst), Instant::ZERO);
        for step in 0..300 {
            if chance(rng, 70) {
                let nanos = rng.below(3 * period.as_nanos() as u64);
                now = now.after(Duration::from_nanos(nanos));
                clock.advance(Duration::from_nanos(nanos));
            }
            let n = if chance(rng, 80) { 1 } else { pick(rng, 1, u64::from(burst) + 1) as u32 };
            let answer = limiter.try_take(n, now);
            match governor.check_n(NonZeroU32::new(n).expect("above zero")) {
                Ok(Ok(())) => {
                    assert_eq!(answer, Ok(()), "step {step}");
                    passed += 1;
                }
                Ok(Err(not_until)) => {
                    let again = now.after(not_until.wait_time_from(clock.now()));
                    assert_eq!(answer, Err(again), "step {step}");
                    refused += 1;
                }
                Err(_more_than_the_burst) => {
                    assert_eq!(answer, Err(Instant::FAR), "step {step}");
                    never += 1;
                }
            }
        }
    });
    assert!(passed > 100_000 && refused > 100_000 && never > 1_000, "{passed} {refused} {never}");
}

#[test]
fn governor_rounds_the_interval_down_and_ours_up() {
    let per_second = NonZeroU32::new(300_000).expect("above zero");
    let governor = Quota::per_second(per_second).replenish_interval();
    assert_eq!(governor, Duration::from_nanos(3_333), "300,030 pass in a second");
    let config = Config { rate: 300_000, burst: 1, ..Config::default() };
    let limiter = RateLimiter::new(config.validate().expect("it works"));
    assert_eq!(limiter.try_take(1, Instant::ZERO), Ok(()));
    let again = limiter.try_take(1, Instant::ZERO).expect_err("it is spent");
    assert_eq!(again.since(Instant::ZERO), Duration::from_nanos(3_334), "299,940 pass");
}
