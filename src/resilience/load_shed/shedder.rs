//! The pressure, what raises and lowers it, and whom it turns away.
//!
//! Delays come from whoever sees the queue; each call asks once before it begins.

use crate::{
    resilience::{
        concurrency_limit::CLASSES,
        load_shed::{STEPS, ValidConfig},
    },
    types::{Duration, Instant},
};

/// For so many intervals after it rose last, the pressure goes on at the pace that it had.
const REMEMBERED: u32 = 16;

/// Decides which calls are shed.
///
/// ```
/// use quorate::{
///     resilience::load_shed::{Shedder, State, ValidConfig},
///     types::{Duration, Instant},
/// };
///
/// let at = |millis| Instant::ZERO.after(Duration::from_millis(millis));
/// let mut shedder = Shedder::new(ValidConfig::default(), at(0));
/// for millis in (0..1_000).step_by(10) {
///     shedder.observe(0, Duration::from_millis(30), at(millis));
/// }
/// assert_eq!(shedder.state(), State::Rising);
/// assert!(!shedder.admit(3, at(1_000)), "the least important class goes first");
/// assert!(shedder.admit(0, at(1_000)));
///
/// for millis in (1_000..5_000).step_by(10) {
///     shedder.observe(0, Duration::from_millis(1), at(millis));
/// }
/// assert!(shedder.admit(3, at(5_000)), "the queue has gone");
/// ```
#[derive(Clone, Debug)]
pub struct Shedder {
    config: ValidConfig,
    state: State,
    /// From 0 to [`STEPS`] for each class that may be shed.
    pressure: u32,
    /// The interval that is being watched.
    since: Instant,
    /// The least important class seen in it, and the least delay of that class.
    least: Option<(u8, Duration)>,
    /// How many steps up there were of late: CoDel's count.
    count: u32,
    /// When the pressure last rose.
    rose: Instant,
    /// How much of a call of the class that is shed in part is due to be shed, in steps.
    due: u32,
    stats: Stats,
}

/// How a shedder stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum State {
    /// Nothing is shed.
    #[default]
    Calm,
    /// The queue stands: more and more is shed.
    Rising,
    /// The queue has come down: less and less is shed, until it stands again.
    Holding,
}

/// A change that people may want to know of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// From now on calls of a class are shed in part, and wholly those of the classes after it.
    Sheds {
        /// The class.
        class: u8,
    },
    /// Nothing is shed any more.
    Calm,
}

/// What a shedder did so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// How many calls of each class were admitted.
    pub admitted: [u64; CLASSES],
    /// How many calls of each class were shed.
    pub shed: [u64; CLASSES],
}

impl Shedder {
    /// Sheds nothing yet.
    #[must_use]
    pub const fn new(config: ValidConfig, now: Instant) -> Self {
        Self {
            config,
            state: State::Calm,
            pressure: 0,
            since: now,
            least: None,
            count: 0,
            rose: now,
            due: 0,
            stats: Stats { admitted: [0; CLASSES], shed: [0; CLASSES] },
        }
    }

    /// Takes in how long a call of a class waited in the queue that has left it at `now`, whether it
    /// was shed then or not. Of an interval only the least important class counts that came: where
    /// the queue is by class, the others go before it and tell nothing of it.
    pub fn observe(&mut self, class: u8, delay: Duration, now: Instant) -> Option<Change> {
        let before = self.top();
        // What is seen now belongs to the interval that begins now, where one is over.
        self.step(now);
        self.least = match self.least {
            Some((seen, least)) if seen > class => Some((seen, least)),
            Some((seen, least)) if seen == class => Some((seen, least.min(delay))),
            _ => Some((class, delay)),
        };
        self.change(before)
    }

    /// Whether a call of a class may begin; classes beyond the last one count as it.
    pub fn admit(&mut self, class: u8, now: Instant) -> bool {
        self.step(now);
        let class = class.min(self.config.0.classes - 1);
        let shed = self.sheds(class);
        let counts = if shed { &mut self.stats.shed } else { &mut self.stats.admitted };
        counts[usize::from(class)] += 1;
        !shed
    }

    /// How it stands.
    #[must_use]
    pub const fn state(&self) -> State {
        self.state
    }

    /// How much is shed: [`STEPS`] for each class that is shed wholly, and the part of the next one.
    #[must_use]
    pub const fn pressure(&self) -> u32 {
        self.pressure
    }

    /// What it did so far.
    #[must_use]
    pub const fn stats(&self) -> Stats {
        self.stats
    }

    /// Judges the intervals that are over.
    fn step(&mut self, now: Instant) {
        let interval = self.config.0.interval;
        let pause = match self.state {
            // CoDel's law: it presses ever faster as long as it does not help.
            State::Rising => interval.div_f64(f64::from(self.count.max(1)).sqrt()),
            State::Calm | State::Holding => interval,
        };
        let passed = now.since(self.since);
        if passed < pause {
            return;
        }
        self.since = now;
        match self.least.take().map(|(_, least)| least) {
            Some(least) if least > self.config.0.target => self.rise(now),
            Some(least) if least * 2 >= self.config.0.target => self.hold(),
            Some(_) | None => self.fall(1),
        }
        // In further intervals nobody came.
        let intervals = passed.as_nanos() / interval.as_nanos().max(1);
        let idle = u32::try_from(intervals).unwrap_or(u32::MAX).saturating_sub(1);
        if idle > 0 {
            self.fall(idle);
        }
    }

    fn rise(&mut self, now: Instant) {
        if self.state != State::Rising {
            let recently = now.since(self.rose) < self.config.0.interval * REMEMBERED;
            // As CoDel: one that begins anew soon was about right before.
            self.count = if recently { self.count.saturating_sub(2) } else { 0 };
        }
        self.rose = now;
        self.count = self.count.saturating_add(1);
        self.pressure = (self.pressure + 1).min(self.config.pressure_max());
        // Where nothing may be shed, there is no pressure.
        self.state = if self.pressure == 0 { State::Calm } else { State::Rising };
    }

    fn hold(&mut self) {
        self.state = if self.pressure == 0 { State::Calm } else { State::Holding };
    }

    fn fall(&mut self, steps: u32) {
        self.pressure = self.pressure.saturating_sub(steps);
        self.hold();
    }

    /// Whether the next call of a class is shed.
    fn sheds(&mut self, class: u8) -> bool {
        let below = u32::from(self.config.0.classes - 1 - class) * STEPS;
        if class < self.config.0.never_shed || self.pressure <= below {
            return false;
        }
        let share = self.pressure - below;
        if share >= STEPS {
            return true;
        }
        self.due += share;
        let shed = self.due >= STEPS;
        if shed {
            self.due -= STEPS;
        }
        shed
    }

    /// The most important class of which calls are shed.
    fn top(&self) -> Option<u8> {
        let classes = u8::try_from(self.pressure.div_ceil(STEPS)).unwrap_or(u8::MAX);
        (classes > 0).then(|| self.config.0.classes.saturating_sub(classes))
    }

    fn change(&self, before: Option<u8>) -> Option<Change> {
        match (before, self.top()) {
            (before, now) if before == now => None,
            (_, Some(class)) => Some(Change::Sheds { class }),
            (_, None) => Some(Change::Calm),
        }
    }
}
