//! Who is ejected, until when, and who returns.
//!
//! The state of gRFC A50's policy: for each host its tally, its ejection and the multiplier of its
//! ejection time. The caller brings time and chance, and carries out the events. A host that is
//! ejected stays connected; it only gets no calls.

use std::{collections::BTreeMap, sync::Arc};

use crate::{
    resilience::outlier::{Tally, ValidConfig, sweep, tally::Counts},
    types::{Duration, Instant, Rng},
};

/// Watches a set of hosts, each under a key of the caller's.
///
/// ```
/// use quorate::{
///     resilience::outlier::{Detector, Event, ValidConfig},
///     types::{Duration, Instant, Rng},
/// };
///
/// let (mut detector, mut rng) = (Detector::new(ValidConfig::default(), Instant::ZERO), Rng::new(7));
/// let tally = detector.insert("10.0.0.1:80");
/// let woken = (0..5).map(|_| tally.record(false)).last();
/// assert_eq!(woken, Some(true));
/// let events = detector.enforce(Instant::ZERO, &mut rng);
/// assert!(matches!(events[..], [Event::Ejected { host: "10.0.0.1:80", times: 1, .. }]));
///
/// let later = Instant::ZERO.after(Duration::from_secs(31));
/// assert_eq!(detector.tick(later, &mut rng), [Event::Returned { host: "10.0.0.1:80" }]);
/// ```
#[derive(Debug)]
pub struct Detector<K> {
    config: ValidConfig,
    hosts: BTreeMap<K, Host>,
    /// The last sweep, or the start.
    swept: Instant,
}

#[derive(Debug)]
struct Host {
    tally: Arc<Tally>,
    /// When it was ejected, if it is.
    ejected: Option<Instant>,
    /// How often it was ejected of late; each interval without brings it down by one.
    multiplier: u32,
}

/// What the detector decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event<K> {
    /// The host gets no more calls.
    Ejected {
        /// Which.
        host: K,
        /// By which detection.
        why: Why,
        /// It returns at the first sweep after this time.
        until: Instant,
        /// The multiplier of its ejection time: 1 at the first, one more for each ejection that
        /// follows soon.
        times: u32,
    },
    /// The host gets calls again.
    Returned {
        /// Which.
        host: K,
    },
}

/// Which detection found a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// Its success rate was far below that of the others.
    SuccessRate,
    /// More of its calls failed than may.
    FailurePercentage,
    /// So many calls in a row failed.
    ConsecutiveFailures,
}

impl<K: Ord + Clone> Detector<K> {
    /// Watches nobody yet. The first sweep is one interval after `now`.
    #[must_use]
    pub const fn new(config: ValidConfig, now: Instant) -> Self {
        Self { config, hosts: BTreeMap::new(), swept: now }
    }

    /// Watches `host` too and returns where its calls are recorded. One that is watched already
    /// keeps its state and its tally.
    pub fn insert(&mut self, host: K) -> Arc<Tally> {
        let threshold = self.config.0.consecutive_failures.map_or(0, |rule| rule.threshold);
        let new = || Host { tally: Arc::new(Tally::new(threshold)), ejected: None, multiplier: 0 };
        Arc::clone(&self.hosts.entry(host).or_insert_with(new).tally)
    }

    /// Stops watching `host` and forgets it. `false` where it was not watched.
    pub fn remove(&mut self, host: &K) -> bool {
        self.hosts.remove(host).is_some()
    }

    /// Ejects those whose failures in a row reached the threshold, as far as the share allows.
    /// One that it does not allow is considered again after as many failures more.
    ///
    /// Call it when [`Tally::record`] said `true`. A call too many does nothing; one that is
    /// missed is made up for by the next [`tick`](Self::tick).
    pub fn enforce(&mut self, now: Instant, rng: &mut Rng) -> Vec<Event<K>> {
        let Some(rule) = self.config.0.consecutive_failures else { return Vec::new() };
        let tripped: Vec<K> = self
            .hosts
            .iter()
            .filter(|(_, host)| host.tally.take_tripped())
            .map(|(key, _)| key.clone())
            .collect();
        let why = Why::ConsecutiveFailures;
        self.eject(&tripped, rule.enforcement_percentage, why, now, rng)
    }

    /// Sweeps if the time has come (see [`next_deadline`](Self::next_deadline)): judges the counts
    /// of the interval and returns those whose time is over. One sweep, however late it is.
    pub fn tick(&mut self, now: Instant, rng: &mut Rng) -> Vec<Event<K>> {
        if self.next_deadline().is_none_or(|due| now < due) {
            return Vec::new();
        }
        self.swept = now;
        let mut events = self.enforce(now, rng);
        let keys: Vec<K> = self.hosts.keys().cloned().collect();
        let counts: Vec<Counts> = self.hosts.values().map(|host| host.tally.take()).collect();
        let named = |places: Vec<usize>| -> Vec<K> {
            places.into_iter().map(|place| keys[place].clone()).collect()
        };
        if let Some(rule) = self.config.0.success_rate {
            let outliers = named(sweep::by_success_rate(&rule, &counts));
            let enforcement = rule.enforcement_percentage;
            events.extend(self.eject(&outliers, enforcement, Why::SuccessRate, now, rng));
        }
        if let Some(rule) = self.config.0.failure_percentage {
            let outliers = named(sweep::by_failure_percentage(&rule, &counts));
            let enforcement = rule.enforcement_percentage;
            events.extend(self.eject(&outliers, enforcement, Why::FailurePercentage, now, rng));
        }
        self.release(now, &mut events);
        events
    }

    /// When [`tick`](Self::tick) next has something to do; `None` where no detection is on.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        self.config.detects().then(|| self.swept.after(self.config.0.interval))
    }

    /// Whether `host` is ejected. `false` for one that is not watched.
    #[must_use]
    pub fn is_ejected(&self, host: &K) -> bool {
        self.hosts.get(host).is_some_and(|host| host.ejected.is_some())
    }

    /// How many hosts are ejected.
    #[must_use]
    pub fn ejected(&self) -> usize {
        self.hosts.values().filter(|host| host.ejected.is_some()).count()
    }

    /// Ejects of `suspects` those that chance and share allow. One that is ejected already is left
    /// as it is: an interval in which two detections find it is one ejection.
    fn eject(
        &mut self,
        suspects: &[K],
        enforcement_percentage: u32,
        why: Why,
        now: Instant,
        rng: &mut Rng,
    ) -> Vec<Event<K>> {
        let mut events = Vec::new();
        for key in suspects {
            if !self.has_room() {
                break;
            }
            let config = &self.config;
            let Some(host) = self.hosts.get_mut(key).filter(|host| host.ejected.is_none()) else {
                continue;
            };
            if rng.below(100) >= u64::from(enforcement_percentage) {
                continue;
            }
            host.ejected = Some(now);
            host.multiplier = host.multiplier.saturating_add(1);
            let until = now.after(ejection_time(config, host.multiplier));
            events.push(Event::Ejected { host: key.clone(), why, until, times: host.multiplier });
        }
        events
    }

    /// Whether one more may be ejected: A50's share, and always one.
    fn has_room(&self) -> bool {
        let (ejected, all) = (self.ejected() as u64, self.hosts.len() as u64);
        ejected == 0 || ejected * 100 < u64::from(self.config.0.max_ejection_percent) * all
    }

    /// A50, step 5 of the timer: multipliers of those in service go down, those whose time is over
    /// return.
    fn release(&mut self, now: Instant, events: &mut Vec<Event<K>>) {
        for (key, host) in &mut self.hosts {
            match host.ejected {
                None => host.multiplier = host.multiplier.saturating_sub(1),
                Some(at) if now > at.after(ejection_time(&self.config, host.multiplier)) => {
                    host.ejected = None;
                    host.tally.reset_run();
                    events.push(Event::Returned { host: key.clone() });
                }
                Some(_) => {}
            }
        }
    }
}

/// `min(base * multiplier, max)`, with the maximum at least the base.
fn ejection_time(config: &ValidConfig, multiplier: u32) -> Duration {
    let base = config.0.base_ejection_time;
    base.saturating_mul(multiplier).min(config.0.max_ejection_time)
}
