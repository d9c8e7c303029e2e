//! What a breaker tells: its states, why they change, what it refuses and what it has seen.
//!
//! Plain values. Nothing here decides about a call.

use core::fmt;

use crate::{
    resilience::circuit_breaker::Tally,
    types::{Duration, Instant},
};

/// How a call ended, as the breaker sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It counts for the other side.
    Success,
    /// It counts against it.
    Failure,
    /// It says nothing, as where the caller gave up: only the place is given back.
    Neutral,
}

/// What a breaker does with calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Lets all through, and counts.
    Closed,
    /// Refuses all. The first call after `until` is a probe.
    Open {
        /// When the time is over.
        until: Instant,
    },
    /// Lets a few through, to see.
    HalfOpen,
    /// Refuses all until it is told otherwise.
    ForcedOpen,
    /// Lets all through and does not count, until it is told otherwise.
    ForcedClosed,
}

/// Why a state changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// So many calls in a row failed.
    FailuresInARow(u32),
    /// Too many of these calls failed.
    FailureRate(Tally),
    /// Too many of these calls were slow.
    SlowRate(Tally),
    /// The time was over, and a call came.
    TimeOver,
    /// So many probes succeeded.
    ProbesSucceeded(u32),
    /// A probe failed, or was slow.
    ProbeFailed,
    /// Somebody said so.
    Forced,
    /// Somebody had it begin anew.
    Reset,
}

/// A change of state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transition {
    /// The state before.
    pub from: State,
    /// The state since.
    pub to: State,
    /// What brought it.
    pub reason: Reason,
    /// When.
    pub at: Instant,
    /// The number of the epoch that it began: later ones are higher.
    pub epoch: u64,
}

/// A call may not be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    /// What stands in its way.
    pub why: Why,
    /// When the breaker lets a call through again, at the latest: the end of the open state, or of
    /// the longest wait for the place of a probe. `None` where it is forced open.
    pub until: Option<Instant>,
}

/// What stands in a call's way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// The breaker is open.
    Open,
    /// It is half-open, and as many probes as may be are under way.
    ProbesOut,
    /// It was forced open.
    ForcedOpen,
}

/// What a breaker has seen since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Calls that were let through.
    pub permitted: u64,
    /// Calls that were refused.
    pub refused: u64,
    /// Those that ended well.
    pub successes: u64,
    /// Those that failed.
    pub failures: u64,
    /// Those whose end said nothing.
    pub neutral: u64,
    /// Those of the ended that were slow; none where slow calls are not watched.
    pub slow: u64,
    /// Those whose result came after the state had changed.
    pub stale: u64,
    /// How often it opened, by itself.
    pub opened: u64,
}

impl State {
    /// Its name: `closed`, `open`, `half-open`, `forced open` or `forced closed`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open { .. } => "open",
            Self::HalfOpen => "half-open",
            Self::ForcedOpen => "forced open",
            Self::ForcedClosed => "forced closed",
        }
    }
}

impl Transition {
    /// How long the new state lasts, where it is open.
    #[must_use]
    pub const fn open_for(&self) -> Option<Duration> {
        match self.to {
            State::Open { until } => Some(until.since(self.at)),
            _ => None,
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::FailuresInARow(run) => write!(f, "{run} calls in a row failed"),
            Self::FailureRate(of) => write!(f, "{} of {} calls failed", of.failures, of.calls),
            Self::SlowRate(of) => write!(f, "{} of {} calls were slow", of.slow, of.calls),
            Self::TimeOver => f.write_str("the time was over"),
            Self::ProbesSucceeded(probes) => write!(f, "{probes} probes succeeded"),
            Self::ProbeFailed => f.write_str("a probe failed"),
            Self::Forced => f.write_str("somebody said so"),
            Self::Reset => f.write_str("somebody had it begin anew"),
        }
    }
}
