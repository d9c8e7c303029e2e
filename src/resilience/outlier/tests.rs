//! Each rule of gRFC A50 and of Envoy's consecutive failures, and the whole against a naive model
//! written from the text of A50.

use proptest::prelude::*;

use super::*;
use crate::{
    resilience::ConfigError,
    types::{Duration, Instant, Rng},
};

fn at(seconds: u64) -> Instant {
    Instant::ZERO.after(Duration::from_secs(seconds))
}

/// A detector over hosts 0 to `hosts`, with their tallies.
struct Bench {
    detector: Detector<u64>,
    tallies: Vec<std::sync::Arc<Tally>>,
    rng: Rng,
}

impl Bench {
    fn new(config: Config, hosts: u64) -> Self {
        let mut detector = Detector::new(config.validate().unwrap(), Instant::ZERO);
        let tallies = (0..hosts).map(|host| detector.insert(host)).collect();
        Self { detector, tallies, rng: Rng::new(3) }
    }

    /// Successes and failures for a host, mixed so that few failures follow each other.
    fn calls(&self, host: usize, successes: u64, failures: u64) {
        for call in 0..successes.max(failures) {
            for (count, success) in [(failures, false), (successes, true)] {
                if call < count {
                    self.tallies[host].record(success);
                }
            }
        }
    }

    fn all_good(&self) {
        (0..self.tallies.len()).for_each(|host| self.calls(host, 100, 0));
    }

    fn tick(&mut self, seconds: u64) -> Vec<Event<u64>> {
        self.detector.tick(at(seconds), &mut self.rng)
    }

    fn enforce(&mut self, seconds: u64) -> Vec<Event<u64>> {
        self.detector.enforce(at(seconds), &mut self.rng)
    }
}

fn only_percentage() -> Config {
    Config { failure_percentage: Some(FailurePercentage::default()), ..Config::off() }
}

fn only_consecutive() -> Config {
    Config { consecutive_failures: Some(ConsecutiveFailures::default()), ..Config::off() }
}

const fn ejected(host: u64, why: Why, until: Instant, times: u32) -> Event<u64> {
    Event::Ejected { host, why, until, times }
}

#[test]
fn the_defaults_are_those_of_a50_and_envoy() {
    let Config { interval, base_ejection_time, max_ejection_time, max_ejection_percent, .. } =
        Config::default();
    let seconds = [interval, base_ejection_time, max_ejection_time].map(|span| span.as_secs());
    assert_eq!((seconds, max_ejection_percent), ([10, 30, 300], 10));
    let rate = SuccessRate::default();
    assert_eq!((rate.stdev_factor, rate.enforcement_percentage), (1_900, 100));
    assert_eq!((rate.minimum_hosts, rate.request_volume), (5, 100));
    let percentage = FailurePercentage::default();
    assert_eq!((percentage.threshold, percentage.enforcement_percentage), (85, 100));
    assert_eq!((percentage.minimum_hosts, percentage.request_volume), (5, 50));
    assert_eq!(ConsecutiveFailures::default().threshold, 5);
}

#[test]
fn figures_that_cannot_work_are_refused() {
    let default = Config::default();
    let rate = SuccessRate { enforcement_percentage: 101, ..SuccessRate::default() };
    let percentage = FailurePercentage { threshold: 101, ..FailurePercentage::default() };
    let volume = FailurePercentage { request_volume: 0, ..FailurePercentage::default() };
    let run = ConsecutiveFailures { threshold: 0, ..ConsecutiveFailures::default() };
    for (config, wrong) in [
        (Config { interval: Duration::ZERO, ..default }, "interval"),
        (Config { interval: Duration::from_secs(3_601), ..default }, "interval"),
        (Config { base_ejection_time: Duration::ZERO, ..default }, "base_ejection_time"),
        (Config { max_ejection_percent: 101, ..default }, "max_ejection_percent"),
        (Config { success_rate: Some(rate), ..default }, "success_rate.enforcement"),
        (Config { failure_percentage: Some(percentage), ..default }, "failure_percentage.thr"),
        (Config { failure_percentage: Some(volume), ..default }, "failure_percentage.request"),
        (Config { consecutive_failures: Some(run), ..default }, "consecutive_failures.thr"),
    ] {
        let refused: ConfigError = config.validate().expect_err(wrong);
        assert!(refused.to_string().starts_with(wrong), "{refused}");
    }
}

#[test]
fn a_host_with_a_poor_success_rate_is_ejected_at_the_sweep() {
    let config = Config { success_rate: Some(SuccessRate::default()), ..Config::off() };
    let mut bench = Bench::new(config, 5);
    bench.all_good();
    bench.calls(2, 0, 100);
    assert_eq!(bench.tick(9), [], "not before the interval is over");
    assert_eq!(bench.tick(10), [ejected(2, Why::SuccessRate, at(40), 1)]);
    assert!(bench.detector.is_ejected(&2) && !bench.detector.is_ejected(&1));
    assert_eq!(bench.detector.next_deadline(), Some(at(20)));
}

#[test]
fn a_host_that_fails_too_much_is_ejected_whatever_the_others_do() {
    let mut bench = Bench::new(only_percentage(), 5);
    bench.calls(4, 5, 45);
    (0..4).for_each(|host| bench.calls(host, 10, 40));
    assert_eq!(bench.tick(10), [ejected(4, Why::FailurePercentage, at(40), 1)]);
}

#[test]
fn counts_of_an_interval_do_not_reach_into_the_next() {
    let mut bench = Bench::new(only_percentage(), 5);
    (0..5).for_each(|host| bench.calls(host, 25, 0));
    bench.calls(4, 0, 25);
    assert_eq!(bench.tick(10), []);
    (0..5).for_each(|host| bench.calls(host, 25, 0));
    assert_eq!(bench.tick(20), []);
}

#[test]
fn a_host_found_by_two_detections_is_ejected_once() {
    let config = Config { consecutive_failures: None, ..Config::default() };
    let mut bench = Bench::new(config, 5);
    (0..4).for_each(|host| bench.calls(host, 100, 0));
    bench.calls(4, 0, 100);
    assert_eq!(bench.tick(10), [ejected(4, Why::SuccessRate, at(40), 1)]);
}

#[test]
fn failures_in_a_row_eject_at_once() {
    let mut bench = Bench::new(only_consecutive(), 10);
    let woken: Vec<_> = (0..4).map(|_| bench.tallies[3].record(false)).collect();
    assert_eq!(woken, [false; 4]);
    assert_eq!(bench.enforce(1), []);
    assert!(!bench.tallies[3].record(true), "a success ends the run");
    assert_eq!(bench.tallies[3].run(), 0);
    let woken: Vec<_> = (0..7).map(|_| bench.tallies[3].record(false)).collect();
    assert_eq!(woken, [false, false, false, false, true, false, false], "said once");
    assert_eq!(bench.enforce(2), [ejected(3, Why::ConsecutiveFailures, at(32), 1)]);
    assert_eq!(bench.enforce(2), [], "a second call does nothing");
}

#[test]
fn a_success_after_the_run_does_not_take_it_back() {
    let mut bench = Bench::new(only_consecutive(), 1);
    (0..5).for_each(|_| _ = bench.tallies[0].record(false));
    bench.tallies[0].record(true);
    assert_eq!(bench.enforce(2).len(), 1);
}

#[test]
fn a_missed_wake_up_is_made_up_for_by_the_sweep() {
    let mut bench = Bench::new(only_consecutive(), 1);
    (0..5).for_each(|_| _ = bench.tallies[0].record(false));
    assert_eq!(bench.tick(10), [ejected(0, Why::ConsecutiveFailures, at(40), 1)]);
}

#[test]
fn a_run_without_room_must_be_failed_anew() {
    let mut bench = Bench::new(only_consecutive(), 10);
    let fail = |bench: &Bench, host: usize, times| {
        (0..times).for_each(|_| _ = bench.tallies[host].record(false));
    };
    fail(&bench, 0, 5);
    assert_eq!(bench.enforce(1).len(), 1);
    fail(&bench, 1, 5);
    assert_eq!(bench.enforce(2), [], "one of ten is ejected");
    bench.detector.remove(&0);
    assert_eq!(bench.enforce(3), [], "the run began anew");
    fail(&bench, 1, 5);
    assert_eq!(bench.enforce(4).len(), 1);
}

#[test]
fn a_host_returns_at_the_first_sweep_after_its_time() {
    let mut bench = Bench::new(only_consecutive(), 3);
    (0..5).for_each(|_| _ = bench.tallies[1].record(false));
    assert_eq!(bench.enforce(10), [ejected(1, Why::ConsecutiveFailures, at(40), 1)]);
    (0..4).for_each(|_| _ = bench.tallies[1].record(false));
    for sweep in [20, 30, 40] {
        assert_eq!(bench.tick(sweep), [], "at {sweep} s; at 40 s the time is not yet over");
    }
    assert_eq!(bench.tick(50), [Event::Returned { host: 1 }]);
    assert!(!bench.detector.is_ejected(&1));
    assert_eq!(bench.tallies[1].run(), 0, "it begins anew");
}

#[test]
fn ejections_that_follow_each_other_last_longer_up_to_the_maximum() {
    let mut bench = Bench::new(only_consecutive(), 1);
    let mut now = 0;
    let mut lengths = Vec::new();
    for round in 1..=12 {
        (0..5).for_each(|_| _ = bench.tallies[0].record(false));
        let events = bench.enforce(now);
        let [Event::Ejected { until, times, .. }] = events[..] else {
            panic!("round {round}: {events:?}")
        };
        assert_eq!(times, round);
        lengths.push(until.since(at(now)).as_secs());
        while bench.detector.is_ejected(&0) {
            now += 10;
            bench.tick(now);
        }
    }
    assert_eq!(lengths, [30, 60, 90, 120, 150, 180, 210, 240, 270, 300, 300, 300]);
}

#[test]
fn each_interval_in_service_takes_one_from_the_multiplier() {
    let mut bench = Bench::new(only_consecutive(), 1);
    let eject = |bench: &mut Bench, now| {
        (0..5).for_each(|_| _ = bench.tallies[0].record(false));
        match bench.enforce(now)[..] {
            [Event::Ejected { times, .. }] => times,
            ref events => panic!("{events:?}"),
        }
    };
    assert_eq!(eject(&mut bench, 0), 1);
    bench.tick(31);
    assert_eq!(eject(&mut bench, 31), 2);
    bench.tick(92);
    assert!(!bench.detector.is_ejected(&0));
    bench.tick(102);
    assert_eq!(eject(&mut bench, 102), 2, "one interval in service took one off");
    bench.tick(163);
    (0..4).for_each(|interval| _ = bench.tick(173 + interval * 10));
    assert_eq!(eject(&mut bench, 210), 1, "never below nothing");
}

#[test]
fn at_most_the_share_is_ejected_and_the_worst_first() {
    let config = Config { max_ejection_percent: 20, ..only_percentage() };
    let mut bench = Bench::new(config, 10);
    (0..10).for_each(|host| bench.calls(host, 10, 90));
    bench.calls(7, 0, 1_000);
    bench.calls(5, 0, 500);
    let until = at(40);
    let why = Why::FailurePercentage;
    assert_eq!(bench.tick(10), [ejected(7, why, until, 1), ejected(5, why, until, 1)]);
    assert_eq!(bench.detector.ejected(), 2);
}

#[test]
fn one_host_may_always_be_ejected() {
    let config = Config { max_ejection_percent: 0, ..only_consecutive() };
    let mut bench = Bench::new(config, 3);
    for host in 0..3 {
        (0..5).for_each(|_| _ = bench.tallies[host].record(false));
    }
    assert_eq!(bench.enforce(1).len(), 1);
}

#[test]
fn enforcement_is_a_chance() {
    let some = FailurePercentage { enforcement_percentage: 30, ..FailurePercentage::default() };
    let config =
        Config { max_ejection_percent: 100, failure_percentage: Some(some), ..only_percentage() };
    let mut bench = Bench::new(config, 1_000);
    (0..1_000).for_each(|host| bench.calls(host, 0, 50));
    let ejected = bench.tick(10).len();
    assert!((250..350).contains(&ejected), "{ejected} of 1000 at 30 percent");

    let none = FailurePercentage { enforcement_percentage: 0, ..some };
    let config = Config { failure_percentage: Some(none), ..config };
    let mut bench = Bench::new(config, 10);
    (0..10).for_each(|host| bench.calls(host, 0, 50));
    assert_eq!(bench.tick(10), []);
}

#[test]
fn what_is_off_never_ejects() {
    let mut bench = Bench::new(Config::off(), 5);
    (0..5).for_each(|host| bench.calls(host, 0, 500));
    assert_eq!(bench.detector.next_deadline(), None);
    assert_eq!(bench.enforce(5), []);
    assert_eq!(bench.tick(1_000), []);
}

#[test]
fn a_host_inserted_again_keeps_its_state_and_one_removed_is_forgotten() {
    let mut bench = Bench::new(only_consecutive(), 2);
    (0..5).for_each(|_| _ = bench.tallies[0].record(false));
    bench.enforce(1);
    bench.detector.insert(0).record(false);
    assert!(bench.detector.is_ejected(&0));
    assert_eq!(bench.tallies[0].run(), 1, "it is the same tally");
    assert!(bench.detector.remove(&0));
    assert!(!bench.detector.remove(&0) && !bench.detector.is_ejected(&0));
    bench.detector.insert(0);
    assert!(!bench.detector.is_ejected(&0));
    assert_eq!(bench.tallies[0].run(), 1, "and now another");
}

/// What A50 says, over plain numbers, without a thought for cost.
#[derive(Clone, Debug, Default)]
struct Naive {
    hosts: Vec<NaiveHost>,
}

#[derive(Clone, Debug, Default)]
struct NaiveHost {
    successes: u64,
    failures: u64,
    ejected_at: Option<u64>,
    multiplier: u64,
}

impl Naive {
    fn ejection_seconds(host: &NaiveHost) -> u64 {
        (30 * host.multiplier).min(300)
    }

    /// Returns who was ejected and who returned.
    fn timer(&mut self, now: u64, max_percent: u64) -> (Vec<usize>, Vec<usize>) {
        let volume = |host: &NaiveHost| host.successes + host.failures;
        let rate = |host: &NaiveHost| host.successes as f64 / volume(host) as f64;
        let mut ejected = Vec::new();
        let mut outliers = Vec::new();
        let big: Vec<_> = self.hosts.iter().filter(|host| volume(host) >= 100).collect();
        if big.len() >= 5 {
            let mean = big.iter().map(|host| rate(host)).sum::<f64>() / big.len() as f64;
            let squares = big.iter().map(|host| (rate(host) - mean).powi(2)).sum::<f64>();
            let least = mean - (squares / big.len() as f64).sqrt() * 1.9;
            let low = |host: &NaiveHost| volume(host) >= 100 && rate(host) < least;
            outliers.push((0..self.hosts.len()).filter(|id| low(&self.hosts[*id])).collect());
        }
        if self.hosts.iter().filter(|host| volume(host) >= 50).count() >= 5 {
            let failing = |host: &NaiveHost| {
                volume(host) >= 50 && host.failures as f64 / volume(host) as f64 * 100.0 > 85.0
            };
            outliers.push((0..self.hosts.len()).filter(|id| failing(&self.hosts[*id])).collect());
        }
        for found in outliers {
            let mut found: Vec<usize> = found;
            let by_rate = |left: &usize, right: &usize| {
                rate(&self.hosts[*left]).total_cmp(&rate(&self.hosts[*right]))
            };
            found.sort_by(by_rate);
            for id in found {
                let out = self.hosts.iter().filter(|host| host.ejected_at.is_some()).count() as u64;
                if out > 0 && out * 100 / self.hosts.len() as u64 >= max_percent {
                    break;
                }
                let host = &mut self.hosts[id];
                if host.ejected_at.is_none() {
                    host.ejected_at = Some(now);
                    host.multiplier += 1;
                    ejected.push(id);
                }
            }
        }
        let mut returned = Vec::new();
        for (id, host) in self.hosts.iter_mut().enumerate() {
            (host.successes, host.failures) = (0, 0);
            match host.ejected_at {
                None => host.multiplier = host.multiplier.saturating_sub(1),
                Some(at) if now > at + Self::ejection_seconds(host) => {
                    host.ejected_at = None;
                    returned.push(id);
                }
                Some(_) => {}
            }
        }
        (ejected, returned)
    }
}

/// One interval: for each host how many calls it had and how many of a hundred of them failed.
fn intervals() -> impl Strategy<Value = Vec<Vec<(u64, u64)>>> {
    let failing = prop_oneof![4 => 0_u64..5, 2 => 84_u64..88, 2 => Just(100), 1 => 0_u64..=100];
    let volume = prop_oneof![1 => 0_u64..60, 1 => 95_u64..105, 4 => Just(200)];
    prop::collection::vec(prop::collection::vec((volume, failing), 9), 1..40)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn the_detector_does_what_the_text_of_a50_says(
        intervals in intervals(),
        max_percent in prop_oneof![Just(10_u32), Just(50), Just(100), 0_u32..=100],
        hosts in 4_usize..=9,
    ) {
        let config = Config {
            max_ejection_percent: max_percent,
            consecutive_failures: None,
            ..Config::default()
        };
        let mut bench = Bench::new(config, hosts as u64);
        let mut naive = Naive { hosts: vec![NaiveHost::default(); hosts] };
        for (round, interval) in intervals.into_iter().enumerate() {
            for (id, (volume, percent)) in interval.into_iter().take(hosts).enumerate() {
                let failures = volume * percent / 100;
                bench.calls(id, volume - failures, failures);
                naive.hosts[id].failures = failures;
                naive.hosts[id].successes = volume - failures;
            }
            let now = (round as u64 + 1) * 10;
            let (expected_out, expected_back) = naive.timer(now, u64::from(max_percent));
            let (mut out, mut back) = (Vec::new(), Vec::new());
            for event in bench.tick(now) {
                match event {
                    Event::Ejected { host, until, times, .. } => {
                        let model = &naive.hosts[host as usize];
                        prop_assert_eq!(u64::from(times), model.multiplier);
                        prop_assert_eq!(until, at(now + Naive::ejection_seconds(model)));
                        out.push(host as usize);
                    }
                    Event::Returned { host } => back.push(host as usize),
                }
            }
            prop_assert_eq!(out, expected_out);
            prop_assert_eq!(back, expected_back);
        }
    }

    /// Whatever is recorded, enforced, swept, added and removed: no ejection goes beyond the share,
    /// events alternate, and everybody returns in the end.
    #[test]
    fn the_share_holds_and_everybody_returns(
        steps in prop::collection::vec((0_u64..8, 0_u8..6, 0_u64..15), 1..200),
        max_percent in 0_u32..=100,
    ) {
        let config = Config { max_ejection_percent: max_percent, ..Config::default() };
        let mut detector = Detector::new(config.validate().unwrap(), Instant::ZERO);
        let mut rng = Rng::new(9);
        let mut tallies = std::collections::BTreeMap::new();
        let mut out = std::collections::BTreeSet::new();
        let mut now = Instant::ZERO;
        for (host, what, seconds) in steps {
            now = now.after(Duration::from_secs(seconds));
            let events = match what {
                0 => {
                    tallies.insert(host, detector.insert(host));
                    Vec::new()
                }
                1 => {
                    tallies.remove(&host);
                    out.remove(&host);
                    detector.remove(&host);
                    Vec::new()
                }
                2 => detector.tick(now, &mut rng),
                _ => {
                    if let Some(tally) = tallies.get(&host) {
                        (0..5).for_each(|_| _ = tally.record(what == 3));
                    }
                    detector.enforce(now, &mut rng)
                }
            };
            for event in events {
                match event {
                    Event::Ejected { host, .. } => {
                        let most = (tallies.len() as u64 * u64::from(max_percent)).div_ceil(100);
                        prop_assert!(out.insert(host), "ejected twice");
                        prop_assert!(out.len() as u64 <= most.max(1), "{out:?} of {}", tallies.len());
                    }
                    Event::Returned { host } => prop_assert!(out.remove(&host), "was not ejected"),
                }
            }
            prop_assert_eq!(detector.ejected(), out.len());
        }
        for _ in 0..31 {
            now = now.after(Duration::from_secs(10));
            detector.tick(now, &mut rng);
        }
        prop_assert_eq!(detector.ejected(), 0);
    }
}
