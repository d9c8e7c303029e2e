//! The outlier detector beside a plain transcription of gRFC A50, and its failures in a row beside
//! tower-resilience-outlier.
//!
//! No crate offers A50 to others: that of tonic-xds is private. So the transcription below keeps to
//! the text of the proposal as of its first implementations, step by step, with a list instead of
//! tallies. It shares no code with ours, and one order: where the text says "for each address" and
//! the share of ejections is scarce, both take the worst first. Three rules of that text ours reads as
//! grpc-java and grpc-go came to carry them out; [`Reading`] has both.

use std::sync::Arc;

use quorate::{
    resilience::outlier::{
        Config, ConsecutiveFailures, Detector, Event, FailurePercentage, SuccessRate, Tally,
    },
    types::{Duration, Instant, Rng},
};
use tower_resilience_outlier::OutlierDetector;

use crate::{chance, pick, traces};

/// A50's state of an address.
#[derive(Clone, Debug, Default)]
struct Address {
    successes: u32,
    failures: u32,
    /// The time of its ejection.
    ejected: Option<Duration>,
    multiplier: u32,
}

/// Where ours departs from the text.
#[derive(Clone, Copy, Debug)]
struct Reading {
    /// The share of ejected addresses is reached at the maximum, and one may always be ejected. The
    /// text: when it is above the maximum, so that one more than the share is ejected.
    stops_at_the_share: bool,
    /// Addresses without the volume do not count towards the `minimum_hosts` of the failure
    /// percentage. The text: all do.
    counts_with_volume: bool,
    /// One that is ejected stays as it is. The text: calls that were in flight eject it again.
    ejects_once: bool,
}

const TEXT: Reading =
    Reading { stops_at_the_share: false, counts_with_volume: false, ejects_once: false };
const OURS: Reading =
    Reading { stops_at_the_share: true, counts_with_volume: true, ejects_once: true };

/// The policy of the proposal. Times are since the start.
#[derive(Debug)]
struct A50 {
    reading: Reading,
    config: Config,
    addresses: Vec<Address>,
}

impl A50 {
    /// "When the timer fires", steps 1 to 5.
    fn timer_fires(&mut self, now: Duration) {
        // 1, 2: record the timestamp, swap the buckets.
        let counts: Vec<(u32, u32)> = self
            .addresses
            .iter_mut()
            .map(|address| {
                (std::mem::take(&mut address.successes), std::mem::take(&mut address.failures))
            })
            .collect();
        // 3: success rate.
        if let Some(rule) = self.config.success_rate {
            self.success_rate(&rule, &counts, now);
        }
        // 4: failure percentage.
        if let Some(rule) = self.config.failure_percentage {
            self.failure_percentage(&rule, &counts, now);
        }
        // 5: for each address.
        for address in &mut self.addresses {
            match address.ejected {
                None if address.multiplier > 0 => address.multiplier -= 1,
                None => {}
                Some(at) => {
                    let base = self.config.base_ejection_time;
                    let time =
                        (base * address.multiplier).min(base.max(self.config.max_ejection_time));
                    if now > at + time {
                        address.ejected = None;
                    }
                }
            }
        }
    }

    fn success_rate(&mut self, rule: &SuccessRate, counts: &[(u32, u32)], now: Duration) {
        // 1: too few addresses with enough requests: stop.
        let judged: Vec<usize> = (0..counts.len())
            .filter(|at| counts[*at].0 + counts[*at].1 >= rule.request_volume)
            .collect();
        if (judged.len() as u32) < rule.minimum_hosts {
            return;
        }
        // 2: mean and standard deviation of their success rates.
        let rate = |at: usize| f64::from(counts[at].0) / f64::from(counts[at].0 + counts[at].1);
        let rates: Vec<f64> = judged.iter().map(|at| rate(*at)).collect();
        let mean = rates.iter().sum::<f64>() / rates.len() as f64;
        let variance =
            rates.iter().map(|rate| (rate - mean).powi(2)).sum::<f64>() / rates.len() as f64;
        // 3.3: below the mean by more than the factor's share of the deviation.
        let least = mean - variance.sqrt() * (f64::from(rule.stdev_factor) / 1_000.0);
        let found = judged.into_iter().filter(|at| rate(*at) < least).collect();
        self.eject_worst_first(found, counts, now);
    }

    fn failure_percentage(
        &mut self,
        rule: &FailurePercentage,
        counts: &[(u32, u32)],
        now: Duration,
    ) {
        let judged: Vec<usize> = (0..counts.len())
            .filter(|at| counts[*at].0 + counts[*at].1 >= rule.request_volume)
            .collect();
        let counted =
            if self.reading.counts_with_volume { judged.len() } else { self.addresses.len() };
        if (counted as u32) < rule.minimum_hosts {
            return;
        }
        let percentage =
            |at: usize| 100.0 * f64::from(counts[at].1) / f64::from(counts[at].0 + counts[at].1);
        let above = |at: &usize| percentage(*at) > f64::from(rule.threshold);
        let found = judged.into_iter().filter(above).collect();
        self.eject_worst_first(found, counts, now);
    }

    fn eject_worst_first(&mut self, mut found: Vec<usize>, counts: &[(u32, u32)], now: Duration) {
        let rate = |at: usize| f64::from(counts[at].0) / f64::from(counts[at].0 + counts[at].1);
        found.sort_by(|left, right| rate(*left).total_cmp(&rate(*right)));
        for at in found {
            // 3.1, 2.1: the percentage of ejected addresses is above the maximum: stop.
            let ejected = self.addresses.iter().filter(|address| address.ejected.is_some()).count();
            let percent = 100.0 * ejected as f64 / self.addresses.len() as f64;
            let most = f64::from(self.config.max_ejection_percent);
            let stop = if self.reading.stops_at_the_share {
                ejected > 0 && percent >= most
            } else {
                percent > most
            };
            if stop {
                return;
            }
            // "Ejecting an address".
            let address = &mut self.addresses[at];
            if address.ejected.is_none() || !self.reading.ejects_once {
                address.ejected = Some(now);
                address.multiplier += 1;
            }
        }
    }
}

fn config(rng: &mut Rng) -> Config {
    let success_rate = SuccessRate {
        stdev_factor: pick(rng, 500, 2_500) as u32,
        minimum_hosts: pick(rng, 1, 5) as u32,
        request_volume: pick(rng, 1, 30) as u32,
        ..SuccessRate::default()
    };
    let failure_percentage = FailurePercentage {
        threshold: pick(rng, 0, 99) as u32,
        minimum_hosts: pick(rng, 1, 5) as u32,
        request_volume: pick(rng, 1, 30) as u32,
        ..FailurePercentage::default()
    };
    let which = rng.below(3);
    Config {
        interval: Duration::from_secs(10),
        base_ejection_time: Duration::from_secs(pick(rng, 1, 40)),
        max_ejection_time: Duration::from_secs(pick(rng, 1, 120)),
        max_ejection_percent: pick(rng, 0, 100) as u32,
        success_rate: (which != 0).then_some(success_rate),
        failure_percentage: (which != 1).then_some(failure_percentage),
        consecutive_failures: None,
    }
}

/// Both, with what ours counts in.
struct Pair {
    a50: A50,
    ours: Detector<usize>,
    tallies: Vec<Arc<Tally>>,
    sweeps: u32,
    ejected: u64,
    returned: u64,
}

impl Pair {
    fn new(config: Config, reading: Reading, hosts: usize) -> Self {
        let valid = config.validate().expect("it works");
        let mut ours = Detector::new(valid, Instant::ZERO);
        let tallies = (0..hosts).map(|host| ours.insert(host)).collect();
        let a50 = A50 { reading, config, addresses: vec![Address::default(); hosts] };
        Self { a50, ours, tallies, sweeps: 0, ejected: 0, returned: 0 }
    }

    fn call(&mut self, host: usize, success: bool) {
        self.tallies[host].record(success);
        let address = &mut self.a50.addresses[host];
        *(if success { &mut address.successes } else { &mut address.failures }) += 1;
    }

    fn calls(&mut self, host: usize, successes: u32, failures: u32) {
        (0..successes).for_each(|_| self.call(host, true));
        (0..failures).for_each(|_| self.call(host, false));
    }

    fn sweep(&mut self) {
        self.sweeps += 1;
        let now = self.a50.config.interval * self.sweeps;
        self.a50.timer_fires(now);
        for event in self.ours.tick(Instant::ZERO.after(now), &mut Rng::new(1)) {
            match event {
                Event::Ejected { .. } => self.ejected += 1,
                Event::Returned { .. } => self.returned += 1,
            }
        }
    }

    /// Whether each is ejected: by ours, by the other.
    fn ejected(&self) -> Vec<(bool, bool)> {
        let of =
            |host: usize| (self.ours.is_ejected(&host), self.a50.addresses[host].ejected.is_some());
        (0..self.tallies.len()).map(of).collect()
    }
}

/// Forty sweeps with a host that is often worse than the others; how many were ejected and returned.
fn compare(config: Config, reading: Reading, spare_ejected: bool, rng: &mut Rng) -> (u64, u64) {
    let hosts = pick(rng, 1, 12) as usize;
    let mut pair = Pair::new(config, reading, hosts);
    for sweep in 1..=40 {
        let bad = rng.below(hosts as u64 * 2) as usize;
        for host in 0..hosts {
            let failing = if host == bad { pick(rng, 30, 100) } else { pick(rng, 0, 40) };
            if !(spare_ejected && pair.ours.is_ejected(&host)) {
                (0..rng.below(60)).for_each(|_| pair.call(host, !chance(rng, failing)));
            }
        }
        pair.sweep();
        for (host, (ours, a50)) in pair.ejected().into_iter().enumerate() {
            assert_eq!(ours, a50, "host {host} after sweep {sweep}");
        }
    }
    (pair.ejected, pair.returned)
}

#[test]
fn ejections_and_returns_are_those_of_the_proposal() {
    let (mut ejected, mut returned) = (0, 0);
    traces(2_000, |_, rng| {
        let config = config(rng);
        let events = compare(config, OURS, false, rng);
        (ejected, returned) = (ejected + events.0, returned + events.1);
    });
    assert!(ejected > 5_000 && returned > 3_000, "{ejected} ejected, {returned} returned");
}

#[test]
fn where_the_readings_cannot_differ_they_are_those_of_the_very_text() {
    let (mut ejected, mut returned) = (0, 0);
    traces(2_000, |_, rng| {
        let mut config = Config { max_ejection_percent: 100, ..config(rng) };
        if let Some(rule) = &mut config.failure_percentage {
            rule.minimum_hosts = 1;
            // Both at once would eject a host twice in one sweep.
            config.success_rate = None;
        }
        let events = compare(config, TEXT, true, rng);
        (ejected, returned) = (ejected + events.0, returned + events.1);
    });
    assert!(ejected > 5_000 && returned > 3_000, "{ejected} ejected, {returned} returned");
}

/// By failure percentage alone: above half of 10 calls, by 5 hosts at least.
fn by_percentage(max_ejection_percent: u32) -> Config {
    let rule =
        FailurePercentage { threshold: 50, request_volume: 10, ..FailurePercentage::default() };
    Config { max_ejection_percent, failure_percentage: Some(rule), ..Config::off() }
}

#[test]
fn the_text_ejects_one_more_than_the_share() {
    let mut pair = Pair::new(by_percentage(10), TEXT, 10);
    (0..10).for_each(|host| pair.calls(host, 0, 10));
    pair.sweep();
    let ejected = pair.ejected();
    assert_eq!(ejected.iter().filter(|host| host.0).count(), 1, "a tenth of ten");
    assert_eq!(ejected.iter().filter(|host| host.1).count(), 2, "the second at a tenth");
}

#[test]
fn the_text_counts_hosts_without_calls_as_hosts() {
    let mut pair = Pair::new(by_percentage(50), TEXT, 5);
    pair.calls(0, 0, 10);
    pair.sweep();
    assert_eq!(pair.ejected()[0], (false, true), "one of five had the volume");
    (0..5).for_each(|host| pair.calls(host, u32::from(host > 0) * 10, u32::from(host == 0) * 10));
    pair.sweep();
    assert_eq!(pair.ejected()[0], (true, true), "all five had");
}

#[test]
fn the_text_ejects_an_ejected_host_again() {
    let config = Config { base_ejection_time: Duration::from_secs(15), ..by_percentage(50) };
    let mut pair = Pair::new(config, TEXT, 5);
    for _ in 0..2 {
        (0..5)
            .for_each(|host| pair.calls(host, 10 * u32::from(host > 0), 10 * u32::from(host == 0)));
        pair.sweep();
    }
    assert_eq!(pair.ejected()[0], (true, true), "for 15 s; by the text for 30 s more");
    pair.sweep();
    assert_eq!(pair.ejected()[0], (false, true), "20 s after it was ejected");
}

/// Both eject at so many failures in a row, and nobody returns.
fn in_a_row(threshold: u32, percent: u32, hosts: usize) -> (Detector<usize>, OutlierDetector) {
    let hour = Duration::from_secs(3_600);
    let rule = ConsecutiveFailures { threshold, ..ConsecutiveFailures::default() };
    let config = Config {
        interval: hour,
        base_ejection_time: hour,
        max_ejection_percent: percent,
        consecutive_failures: Some(rule),
        ..Config::off()
    };
    let ours = Detector::new(config.validate().expect("it works"), Instant::ZERO);
    let theirs =
        OutlierDetector::new().max_ejection_percent(percent as usize).base_ejection_duration(hour);
    for host in 0..hosts {
        theirs.register(host.to_string(), threshold as usize);
    }
    (ours, theirs)
}

#[test]
fn failures_in_a_row_are_tower_resiliences() {
    traces(2_000, |_, rng| {
        let hosts = pick(rng, 1, 10) as usize;
        let (mut ours, theirs) = in_a_row(pick(rng, 1, 6) as u32, 100, hosts);
        let tallies: Vec<Arc<Tally>> = (0..hosts).map(|host| ours.insert(host)).collect();
        let failing = pick(rng, 10, 90);
        for step in 0..300 {
            let host = rng.below(hosts as u64) as usize;
            let success = !chance(rng, failing);
            if tallies[host].record(success) {
                ours.enforce(Instant::ZERO, &mut Rng::new(1));
            }
            if success {
                theirs.record_success(&host.to_string());
            } else {
                theirs.record_failure(&host.to_string());
            }
            let ejected = theirs.is_ejected(&host.to_string());
            assert_eq!(ours.is_ejected(&host), ejected, "host {host} after step {step}");
        }
    });
}

#[test]
fn tower_resilience_ejects_nobody_where_one_is_more_than_the_share() {
    let (mut ours, theirs) = in_a_row(1, 10, 5);
    let tallies: Vec<Arc<Tally>> = (0..5).map(|host| ours.insert(host)).collect();
    assert!(tallies[0].record(false));
    ours.enforce(Instant::ZERO, &mut Rng::new(1));
    assert!(ours.is_ejected(&0), "one always may be, as in A50 and Envoy");
    assert!(!theirs.record_failure("0") && !theirs.is_ejected("0"), "a fifth is above a tenth");
}
