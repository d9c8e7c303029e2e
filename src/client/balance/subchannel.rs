//! The states of one endpoint's connection, as gRPC names them, and when to connect again.
//!
//! A pure state machine: it is told what happened and at what time, and says what is to be done. It
//! opens nothing itself. (gRPC "Connectivity Semantics and API"; "Connection Backoff Protocol".)

use std::fmt;

use crate::{
    resilience::backoff::{Backoff, ValidConfig},
    types::{Duration, Instant, Rng},
};

/// gRPC's connectivity states. A state is replaced by another one only in [`Subchannel`].
///
/// | from | what happens | to |
/// |---|---|---|
/// | Idle | wanted | Connecting |
/// | Connecting | connected | Ready |
/// | Connecting | failed | TransientFailure until its backoff ends |
/// | TransientFailure | the backoff ended and it is wanted | Connecting |
/// | TransientFailure | the backoff ended and it is not wanted | Idle |
/// | Ready | the connection closed | Idle |
/// | any | removed | Shutdown |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Connectivity {
    /// Nothing is connected and nothing is tried.
    Idle,
    /// A connection is being made.
    Connecting,
    /// Calls can be sent.
    Ready,
    /// Connecting failed; it is tried again after a while.
    TransientFailure,
    /// It is over.
    Shutdown,
}

impl Connectivity {
    /// The states of what is not over.
    pub(super) const LIVING: [Self; 4] =
        [Self::Idle, Self::Connecting, Self::Ready, Self::TransientFailure];
}

impl fmt::Display for Connectivity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Idle => "IDLE",
            Self::Connecting => "CONNECTING",
            Self::Ready => "READY",
            Self::TransientFailure => "TRANSIENT_FAILURE",
            Self::Shutdown => "SHUTDOWN",
        })
    }
}

/// The connection of one endpoint.
#[derive(Debug)]
pub(super) struct Subchannel {
    state: Connectivity,
    /// Until when nothing is tried, after a failure.
    retry_at: Instant,
    backoff: Backoff,
    /// When the last connection was made.
    ready_since: Instant,
    /// The pause after a first failure: what a connection has to outlive to count.
    proof: Duration,
}

impl Subchannel {
    pub(super) fn new(config: ValidConfig) -> Self {
        let backoff = Backoff::new(config);
        Self {
            state: Connectivity::Idle,
            retry_at: Instant::ZERO,
            proof: backoff.pause(),
            backoff,
            ready_since: Instant::ZERO,
        }
    }

    pub(super) const fn state(&self) -> Connectivity {
        self.state
    }

    /// When to look at it again.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        (self.state == Connectivity::TransientFailure).then_some(self.retry_at)
    }

    /// It is wanted, or not. Returns whether a connection is to be made now.
    pub(super) fn want(&mut self, wanted: bool, now: Instant) -> bool {
        let rested = match self.state {
            Connectivity::Idle => true,
            Connectivity::TransientFailure => now >= self.retry_at,
            _ => return false,
        };
        if rested {
            self.state = if wanted { Connectivity::Connecting } else { Connectivity::Idle };
        }
        rested && wanted
    }

    /// The connection was made.
    pub(super) fn connected(&mut self, now: Instant) {
        assert_eq!(self.state, Connectivity::Connecting, "one connection is made at a time");
        self.state = Connectivity::Ready;
        self.ready_since = now;
    }

    /// The connection could not be made.
    pub(super) fn failed(&mut self, now: Instant, rng: &mut Rng) {
        assert_eq!(self.state, Connectivity::Connecting, "only what connects fails to");
        self.state = Connectivity::TransientFailure;
        self.retry_at = self.backoff.failed(now, rng);
    }

    /// The connection is gone. One that stood for as long as the first pause clears what failed
    /// before it; one that was closed at once, or was asked `in_vain`, counts as a failure, or it would
    /// be made again and again without a pause.
    pub(super) fn closed(&mut self, in_vain: bool, now: Instant, rng: &mut Rng) {
        assert_eq!(self.state, Connectivity::Ready, "only what was made is closed");
        if !in_vain && now.since(self.ready_since) >= self.proof {
            self.backoff.reset();
            self.state = Connectivity::Idle;
        } else {
            self.state = Connectivity::TransientFailure;
            self.retry_at = self.backoff.failed(now, rng);
        }
    }

    /// The endpoint is gone.
    pub(super) const fn shut_down(&mut self) {
        self.state = Connectivity::Shutdown;
    }
}
