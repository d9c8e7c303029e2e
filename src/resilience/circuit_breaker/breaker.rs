//! The breaker itself: what a call asks and reports, and the only place where its state changes.
//!
//! While it is closed a call reads one atomic word. A result goes under a mutex for as long as it
//! takes to put it into the window and to compare: a window is several figures that must agree, and
//! a few ten nanoseconds once a call are little beside the call. Where no share is watched, a
//! success takes no lock at all.

use core::fmt;
use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{
        AtomicU32, AtomicU64,
        Ordering::{Acquire, Relaxed, Release},
    },
};

use crate::{
    resilience::{
        backoff::Backoff,
        circuit_breaker::{
            Reason, Refused, State, Stats, Tally, Transition, ValidConfig, Verdict, Why,
            window::Window,
        },
    },
    types::{Instant, Rng},
};

/// Decides for one kind of calls whether they may be sent.
///
/// ```
/// use quorate::{
///     resilience::circuit_breaker::{Breaker, Config, State, Verdict},
///     types::{Duration, Instant, Rng},
/// };
///
/// let config = Config { consecutive_failures: Some(2), ..Config::default() };
/// let breaker = Breaker::new(config.validate()?, Rng::new(7));
/// let mut now = Instant::ZERO;
/// for _ in 0..2 {
///     let permit = breaker.try_acquire(now).expect("it is closed");
///     breaker.record(permit, Verdict::Failure, now);
/// }
/// let refused = breaker.try_acquire(now).expect_err("it is open");
///
/// now = refused.until.expect("it will try again");
/// let probe = breaker.try_acquire(now).expect("the time is over");
/// assert_eq!(breaker.state(), State::HalfOpen);
/// assert!(breaker.try_acquire(now).is_err(), "one probe at a time");
/// breaker.record(probe, Verdict::Success, now);
/// assert_eq!(breaker.state(), State::Closed);
/// # Ok::<(), quorate::resilience::ConfigError>(())
/// ```
pub struct Breaker {
    config: ValidConfig,
    /// The epoch, and in the lowest bits the state: all that a call reads while nothing is wrong.
    word: AtomicU64,
    /// When the open state ends, in nanoseconds. Written before the word that says open.
    until: AtomicU64,
    /// The failures in a row. Written under the mutex.
    run: AtomicU32,
    counts: Counts,
    core: Mutex<Core>,
    observers: Mutex<Vec<Observer>>,
}

type Observer = Arc<dyn Fn(&Transition) + Send + Sync>;

/// That a call may be sent. Give it back with [`Breaker::record`], whatever becomes of the call:
/// while the breaker is half-open it holds a place.
#[derive(Debug)]
#[must_use = "record how the call ended"]
pub struct Permit {
    epoch: u64,
    started: Instant,
    /// The number of the probe; 0 for none.
    probe: u64,
}

#[derive(Debug, Default)]
struct Counts {
    permitted: AtomicU64,
    refused: AtomicU64,
    successes: AtomicU64,
    failures: AtomicU64,
    neutral: AtomicU64,
    slow: AtomicU64,
    stale: AtomicU64,
    opened: AtomicU64,
}

/// What is under the mutex.
#[derive(Debug)]
struct Core {
    state: State,
    epoch: u64,
    /// `None` where nothing looks at it.
    window: Option<Window>,
    /// Of the time that it is open.
    backoff: Backoff,
    rng: Rng,
    /// The probes under way that hold a place: number and start.
    probes: Vec<(u64, Instant)>,
    /// The number of the last probe.
    probe: u64,
    /// Probes that succeeded in this epoch.
    successes: u32,
    last: Option<Transition>,
}

impl Breaker {
    /// A closed breaker. Chance spreads the times that it is open.
    #[must_use]
    pub fn new(config: ValidConfig, rng: Rng) -> Self {
        let core = Core {
            state: State::Closed,
            epoch: 0,
            window: config.has_shares().then(|| Window::new(config.config.window)),
            backoff: Backoff::new(config.open),
            rng,
            probes: Vec::with_capacity(config.config.probes as usize),
            probe: 0,
            successes: 0,
            last: None,
        };
        Self {
            config,
            word: AtomicU64::new(code(State::Closed)),
            until: AtomicU64::new(0),
            run: AtomicU32::new(0),
            counts: Counts::default(),
            core: Mutex::new(core),
            observers: Mutex::default(),
        }
    }

    /// Asks whether a call may be sent at `now`.
    ///
    /// # Errors
    /// It may not; when to ask again.
    pub fn try_acquire(&self, now: Instant) -> Result<Permit, Refused> {
        let word = self.word.load(Acquire);
        let admitted = match word & STATE_MASK {
            CLOSED | FORCED_CLOSED => {
                Ok(Permit { epoch: word >> STATE_BITS, started: now, probe: 0 })
            }
            OPEN if now.as_nanos() < self.until.load(Relaxed) => {
                let until = Instant::from_nanos(self.until.load(Relaxed));
                Err(Refused { why: Why::Open, until: Some(until) })
            }
            _ => self.try_probe(now),
        };
        let count = if admitted.is_ok() { &self.counts.permitted } else { &self.counts.refused };
        count.fetch_add(1, Relaxed);
        admitted
    }

    /// Takes in how a call ended. What it brings about, the observers are told.
    #[expect(clippy::needless_pass_by_value, reason = "a permit is good for one result")]
    pub fn record(&self, permit: Permit, verdict: Verdict, now: Instant) {
        let count = match verdict {
            Verdict::Success => &self.counts.successes,
            Verdict::Failure => &self.counts.failures,
            Verdict::Neutral => &self.counts.neutral,
        };
        count.fetch_add(1, Relaxed);
        let slow = verdict != Verdict::Neutral && self.config.is_slow(now.since(permit.started));
        if slow {
            self.counts.slow.fetch_add(1, Relaxed);
        }
        // What changes nothing takes no lock.
        let unseen = !self.config.has_shares() && self.run.load(Relaxed) == 0;
        if permit.probe == 0
            && (verdict == Verdict::Neutral || verdict == Verdict::Success && unseen)
        {
            return;
        }
        let mut core = self.core();
        if core.epoch != permit.epoch {
            drop(core);
            self.counts.stale.fetch_add(1, Relaxed);
            return;
        }
        let transition = match core.state {
            State::Closed => self.count(&mut core, verdict, slow, now),
            State::HalfOpen => self.judge_probe(&mut core, permit.probe, verdict, slow, now),
            State::Open { .. } | State::ForcedOpen | State::ForcedClosed => None,
        };
        drop(core);
        self.tell(transition);
    }

    /// Refuses all calls until [`reset`](Self::reset) or [`force_close`](Self::force_close).
    pub fn force_open(&self, now: Instant) {
        self.force(State::ForcedOpen, Reason::Forced, now);
    }

    /// Lets all calls through, whatever becomes of them, until [`reset`](Self::reset) or
    /// [`force_open`](Self::force_open): the breaker is switched off.
    pub fn force_close(&self, now: Instant) {
        self.force(State::ForcedClosed, Reason::Forced, now);
    }

    /// Begins anew: closed, nothing counted, the time that it is open the first again.
    pub fn reset(&self, now: Instant) {
        self.force(State::Closed, Reason::Reset, now);
    }

    /// Has `observer` told of each change of state, by whoever's call brings it about and after it
    /// is in force. Two that follow each other at once may be told in either order: the higher
    /// epoch is the later one.
    pub fn observe(&self, observer: impl Fn(&Transition) + Send + Sync + 'static) {
        self.observers.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::new(observer));
    }

    /// What it does with calls. An open state whose time is over lasts until a call asks.
    #[must_use]
    pub fn state(&self) -> State {
        self.core().state
    }

    /// The last change of state; `None` before the first.
    #[must_use]
    pub fn last_transition(&self) -> Option<Transition> {
        self.core().last
    }

    /// What the window holds at `now`; nothing where no share is watched.
    #[must_use]
    pub fn window(&self, now: Instant) -> Tally {
        self.core().window.as_mut().map_or_else(Tally::default, |window| window.tally(now))
    }

    /// The failures in a row until now.
    #[must_use]
    pub fn run(&self) -> u32 {
        self.run.load(Relaxed)
    }

    /// Probes under way that hold a place.
    #[must_use]
    pub fn probes(&self) -> usize {
        self.core().probes.len()
    }

    /// Whether it remembers nothing against the other side, so that a new one would do as well.
    #[must_use]
    pub fn is_idle(&self, now: Instant) -> bool {
        let mut core = self.core();
        let tally = core.window.as_mut().map_or_else(Tally::default, |window| window.tally(now));
        let clean = tally.failures == 0 && tally.slow == 0 && self.run() == 0;
        core.state == State::Closed && clean
    }

    /// What it has seen. Read one by one: calls that end meanwhile may be in one figure and not in
    /// another.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let counts = &self.counts;
        Stats {
            permitted: counts.permitted.load(Relaxed),
            refused: counts.refused.load(Relaxed),
            successes: counts.successes.load(Relaxed),
            failures: counts.failures.load(Relaxed),
            neutral: counts.neutral.load(Relaxed),
            slow: counts.slow.load(Relaxed),
            stale: counts.stale.load(Relaxed),
            opened: counts.opened.load(Relaxed),
        }
    }

    /// The way of a call while the breaker is not simply closed or open.
    fn try_probe(&self, now: Instant) -> Result<Permit, Refused> {
        let mut core = self.core();
        let mut transition = None;
        let admitted = match core.state {
            // It was changed since the word was read.
            State::Closed | State::ForcedClosed => Ok(core.permit(now, 0)),
            State::ForcedOpen => Err(Refused { why: Why::ForcedOpen, until: None }),
            State::Open { until } if now < until => {
                Err(Refused { why: Why::Open, until: Some(until) })
            }
            State::Open { .. } => {
                transition = Some(self.become_half_open(&mut core, now));
                core.probe(&self.config, now)
            }
            State::HalfOpen => core.probe(&self.config, now),
        };
        drop(core);
        self.tell(transition);
        admitted
    }

    /// A result while it is closed.
    fn count(
        &self,
        core: &mut Core,
        verdict: Verdict,
        slow: bool,
        now: Instant,
    ) -> Option<Transition> {
        let failed = match verdict {
            Verdict::Neutral => return None,
            verdict => verdict == Verdict::Failure,
        };
        let config = &self.config.config;
        let run = if failed { self.run.load(Relaxed).saturating_add(1) } else { 0 };
        self.run.store(run, Relaxed);
        let tally = core.window.as_mut().map_or_else(Tally::default, |window| {
            window.push(failed, slow, now);
            window.tally(now)
        });
        let reaches = |part: u32, percent: u32| {
            tally.calls >= config.minimum_calls
                && u64::from(part) * 100 >= u64::from(percent) * u64::from(tally.calls)
        };
        let reason = if config.consecutive_failures.is_some_and(|most| run >= most) {
            Reason::FailuresInARow(run)
        } else if config.failure_rate.is_some_and(|percent| reaches(tally.failures, percent)) {
            Reason::FailureRate(tally)
        } else if config.slow_rate.is_some_and(|rule| reaches(tally.slow, rule.percent)) {
            Reason::SlowRate(tally)
        } else {
            return None;
        };
        Some(self.become_open(core, reason, now))
    }

    /// A result while it is half-open.
    fn judge_probe(
        &self,
        core: &mut Core,
        probe: u64,
        verdict: Verdict,
        slow: bool,
        now: Instant,
    ) -> Option<Transition> {
        core.probes.retain(|(number, _)| *number != probe);
        match verdict {
            Verdict::Neutral => None,
            Verdict::Success if !slow => {
                core.successes += 1;
                let enough = core.successes >= self.config.config.probe_successes;
                let reason = Reason::ProbesSucceeded(core.successes);
                enough.then(|| self.become_closed(core, reason, now))
            }
            Verdict::Success | Verdict::Failure => {
                Some(self.become_open(core, Reason::ProbeFailed, now))
            }
        }
    }

    fn force(&self, to: State, reason: Reason, now: Instant) {
        let mut core = self.core();
        let same = core.state == to;
        let transition = match to {
            State::Closed => self.become_closed(&mut core, reason, now),
            to => self.become_forced(&mut core, to, now),
        };
        drop(core);
        self.tell((!same).then_some(transition));
    }

    fn become_open(&self, core: &mut Core, reason: Reason, now: Instant) -> Transition {
        let until = core.backoff.failed(now, &mut core.rng);
        self.until.store(until.as_nanos(), Relaxed);
        self.counts.opened.fetch_add(1, Relaxed);
        self.enter(core, State::Open { until }, reason, now)
    }

    fn become_half_open(&self, core: &mut Core, now: Instant) -> Transition {
        self.enter(core, State::HalfOpen, Reason::TimeOver, now)
    }

    fn become_closed(&self, core: &mut Core, reason: Reason, now: Instant) -> Transition {
        core.backoff.reset();
        self.enter(core, State::Closed, reason, now)
    }

    fn become_forced(&self, core: &mut Core, to: State, now: Instant) -> Transition {
        self.enter(core, to, Reason::Forced, now)
    }

    /// Begins an epoch, with nothing counted.
    fn enter(&self, core: &mut Core, to: State, reason: Reason, at: Instant) -> Transition {
        let from = core.state;
        core.state = to;
        core.epoch += 1;
        core.successes = 0;
        core.probes.clear();
        if let Some(window) = &mut core.window {
            window.clear();
        }
        self.run.store(0, Relaxed);
        self.word.store(core.epoch << STATE_BITS | code(to), Release);
        let transition = Transition { from, to, reason, at, epoch: core.epoch };
        core.last = Some(transition);
        transition
    }

    /// Tells the observers, without a lock: they may ask the breaker.
    fn tell(&self, transition: Option<Transition>) {
        let Some(transition) = transition else { return };
        let observers = self.observers.lock().unwrap_or_else(PoisonError::into_inner).clone();
        observers.iter().for_each(|observer| observer(&transition));
    }

    /// Nothing that is done under the lock leaves it half done.
    fn core(&self) -> MutexGuard<'_, Core> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Core {
    const fn permit(&self, now: Instant, probe: u64) -> Permit {
        Permit { epoch: self.epoch, started: now, probe }
    }

    /// A place for a probe, if there is one.
    fn probe(&mut self, config: &ValidConfig, now: Instant) -> Result<Permit, Refused> {
        let ends = |started: Instant| started.after(config.config.probe_timeout);
        self.probes.retain(|(_, started)| now < ends(*started));
        if self.probes.len() >= config.config.probes as usize {
            let until = self.probes.iter().map(|(_, started)| ends(*started)).min();
            return Err(Refused { why: Why::ProbesOut, until });
        }
        self.probe += 1;
        self.probes.push((self.probe, now));
        Ok(self.permit(now, self.probe))
    }
}

const STATE_BITS: u32 = 3;
const STATE_MASK: u64 = (1 << STATE_BITS) - 1;
const CLOSED: u64 = 0;
const OPEN: u64 = 1;
const HALF_OPEN: u64 = 2;
const FORCED_OPEN: u64 = 3;
const FORCED_CLOSED: u64 = 4;

/// A state as the lowest bits of the word.
const fn code(state: State) -> u64 {
    match state {
        State::Closed => CLOSED,
        State::Open { .. } => OPEN,
        State::HalfOpen => HALF_OPEN,
        State::ForcedOpen => FORCED_OPEN,
        State::ForcedClosed => FORCED_CLOSED,
    }
}

impl fmt::Debug for Breaker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Breaker")
            .field("state", &self.state())
            .field("run", &self.run())
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}
