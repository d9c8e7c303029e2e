//! Who is in flight, who waits and who goes next.
//!
//! It keeps to a [`Limit`] and never waits: the caller keeps whoever is queued, asks
//! [`next`](Limiter::next) whenever a place may be free, and takes out who waited too long.

use std::collections::BTreeMap;

use crate::{
    resilience::concurrency_limit::{Ended, Limit, Sample, ValidConfig},
    types::{Instant, Rng},
};

/// Keeps calls to a limit. `W` is what the caller keeps of one that waits.
///
/// ```
/// use quorate::{
///     resilience::concurrency_limit::{Admission, Config, Ended, Limiter, Next},
///     types::{Duration, Instant, Rng},
/// };
///
/// let now = Instant::ZERO;
/// let mut limiter = Limiter::new(Config::fixed(1).validate()?, Rng::new(7));
/// let Admission::Admitted(first) = limiter.arrive(1, now, || "first") else { panic!() };
/// assert!(matches!(limiter.arrive(1, now, || "second"), Admission::Queued { .. }));
/// assert!(matches!(limiter.arrive(0, now, || "important"), Admission::Queued { .. }));
/// assert!(limiter.next(now).is_none(), "there is no place");
///
/// limiter.finish(first, Ended::Answered(Duration::from_millis(2)), now);
/// let Some(Next::Admitted { waiter, .. }) = limiter.next(now) else { panic!() };
/// assert_eq!(waiter, "important");
/// # Ok::<(), quorate::resilience::ConfigError>(())
/// ```
#[derive(Debug)]
pub struct Limiter<W> {
    limit: Limit,
    in_flight: usize,
    /// The first one goes next: the most important class, and in it whoever came first.
    queue: BTreeMap<Ticket, Waiting<W>>,
    sequence: u64,
    stats: Stats,
}

/// The place of one that waits in the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket {
    class: u8,
    sequence: u64,
}

#[derive(Debug)]
struct Waiting<W> {
    since: Instant,
    until: Instant,
    waiter: W,
}

/// One call in flight. It goes back by [`Limiter::finish`]; one that is lost is a place lost.
#[derive(Debug)]
#[must_use = "a permit that is not given back is a place lost"]
pub struct Permit {
    /// How many were in flight when it was given out, this one included.
    in_flight: usize,
}

/// What becomes of a call that arrives.
#[derive(Debug)]
pub enum Admission<W> {
    /// It may begin.
    Admitted(Permit),
    /// It waits; [`Limiter::next`] will hand its waiter out.
    Queued {
        /// By which it can be taken out.
        ticket: Ticket,
        /// After this time it is to be taken out, and refused.
        until: Instant,
        /// Who had to give up a place in the full queue for it: the youngest of the least important
        /// class. To be refused.
        displaced: Option<W>,
    },
    /// The queue is full of calls that are as important.
    Refused,
}

/// Who leaves the queue.
#[derive(Debug)]
pub enum Next<W> {
    /// It may begin.
    Admitted {
        /// As given to [`Limiter::arrive`].
        waiter: W,
        /// Its place.
        permit: Permit,
        /// Its class.
        class: u8,
        /// When it began to wait.
        since: Instant,
    },
    /// It waited too long, and nobody took it out before. To be refused.
    Expired(W),
}

/// What a limiter did so far, and how it stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// How many calls may be in flight.
    pub limit: usize,
    /// How many are.
    pub in_flight: usize,
    /// How many wait.
    pub queued: usize,
    /// Calls that got a place.
    pub admitted: u64,
    /// Calls that were refused because the queue was full.
    pub refused: u64,
    /// Calls that gave up their place in the queue to more important ones.
    pub displaced: u64,
    /// Calls that waited too long.
    pub expired: u64,
    /// How often the limit became another.
    pub limit_changes: u64,
}

impl<W> Limiter<W> {
    /// Nothing in flight. Vegas takes chance from `rng`.
    #[must_use]
    pub fn new(config: ValidConfig, rng: Rng) -> Self {
        Self {
            limit: Limit::new(config, rng),
            in_flight: 0,
            queue: BTreeMap::new(),
            sequence: 0,
            stats: Stats::default(),
        }
    }

    /// A call of a class arrives; 0 is the most important one. `waiter` is called where it has to
    /// wait.
    pub fn arrive(&mut self, class: u8, now: Instant, waiter: impl FnOnce() -> W) -> Admission<W> {
        // Whoever is as important and waits already goes first.
        let ahead = self.queue.first_key_value().is_some_and(|(first, _)| first.class <= class);
        if !ahead && self.in_flight < self.limit.allowance(class) {
            return Admission::Admitted(self.admit());
        }
        let config = &self.limit.config().0;
        let mut displaced = None;
        if self.queue.len() >= config.queue_max || config.queue_wait_max.is_zero() {
            let last = self.queue.last_entry().filter(|last| last.key().class > class);
            let Some(last) = last else {
                self.stats.refused += 1;
                return Admission::Refused;
            };
            displaced = Some(last.remove().waiter);
            self.stats.displaced += 1;
        }
        let until = now.after(config.queue_wait_max);
        let ticket = Ticket { class, sequence: self.sequence };
        self.sequence += 1;
        self.queue.insert(ticket, Waiting { since: now, until, waiter: waiter() });
        Admission::Queued { ticket, until, displaced }
    }

    /// Who leaves the queue now; to be asked until it is nobody whenever a call ended or left the
    /// queue.
    pub fn next(&mut self, now: Instant) -> Option<Next<W>> {
        let first = self.queue.first_entry()?;
        if first.get().until <= now {
            self.stats.expired += 1;
            return Some(Next::Expired(first.remove().waiter));
        }
        // No class after it may fill more of the limit.
        let class = first.key().class;
        if self.in_flight >= self.limit.allowance(class) {
            return None;
        }
        let Waiting { since, waiter, .. } = first.remove();
        Some(Next::Admitted { waiter, permit: self.admit(), class, since })
    }

    /// Takes out one that waits: `expired` or given up by its caller. `None` where it had left the
    /// queue before.
    pub fn leave(&mut self, ticket: Ticket, expired: bool) -> Option<W> {
        let waiting = self.queue.remove(&ticket)?;
        if expired {
            self.stats.expired += 1;
        }
        Some(waiting.waiter)
    }

    /// A call ended. `Some` is the limit where it became another.
    pub fn finish(&mut self, permit: Permit, ended: Ended, now: Instant) -> Option<usize> {
        self.in_flight = self.in_flight.checked_sub(1).expect("a permit is one in flight");
        let changed = self.limit.record(Sample { in_flight: permit.in_flight, ended }, now);
        if changed.is_some() {
            self.stats.limit_changes += 1;
        }
        changed
    }

    /// Whether nothing is in flight and nobody waits.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.in_flight == 0 && self.queue.is_empty()
    }

    /// How it stands.
    #[must_use]
    pub fn stats(&self) -> Stats {
        Stats {
            limit: self.limit.limit(),
            in_flight: self.in_flight,
            queued: self.queue.len(),
            ..self.stats
        }
    }

    fn admit(&mut self) -> Permit {
        self.in_flight += 1;
        self.stats.admitted += 1;
        Permit { in_flight: self.in_flight }
    }
}
