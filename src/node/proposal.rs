//! A command on its way, handed over at once: several of one caller are proposed in the order in
//! which they were begun, and waited for later.
//!
//! The order holds up to the log only. A leader's fall may lose one and carry out a later one;
//! whoever minds must let the state machine refuse what comes too early.

use core::{
    pin::Pin,
    sync::atomic::Ordering,
    task::{Context, Poll, ready},
};
use std::sync::Arc;

use tokio::sync::oneshot;

use crate::{
    node::{
        Handle,
        calls::{Call, CallKind},
        handle::{overloaded, refused, stopping},
        pending::{Marks, Settled},
        places::PlaceId,
        replica::Event,
        shared::Shared,
    },
    pb::command::v1::{Outcome, Refusal, command},
    types::Instant,
};

/// A command on its way. Dropping it stops waiting; what was proposed may take effect all the same.
#[derive(Debug)]
pub struct Proposal {
    shared: Arc<Shared>,
    sequence: u64,
    answer: oneshot::Receiver<(Settled, Marks)>,
    place: PlaceId,
    settled: bool,
}

impl Handle {
    /// Hands a command over and returns before anything came of it. The outcome comes as with
    /// [`Handle::propose`] without a deadline.
    ///
    /// # Errors
    /// Where too many calls wait at this node: not proposed.
    pub fn begin(&self, op: command::Op) -> Result<Proposal, Refusal> {
        let shared = &self.shared;
        let max = shared.tuning.calls_max;
        if shared.open_calls.fetch_add(1, Ordering::Relaxed) >= max {
            shared.open_calls.fetch_sub(1, Ordering::Relaxed);
            return Err(overloaded(max));
        }
        let sequence = shared.sequence.fetch_add(1, Ordering::Relaxed) + 1;
        let answer = shared.pending.open(sequence);
        let place = shared.places.claim(sequence, shared.clock.now());
        let mut proposal =
            Proposal { shared: Arc::clone(shared), sequence, answer, place, settled: false };
        let kind = CallKind::Propose { command: self.encode(sequence, op), lock: None };
        if !shared.offer(Event::Call(Call { sequence, deadline: Instant::FAR, place, kind })) {
            proposal.settled = true;
            shared.pending.forget(sequence);
            return Err(overloaded(max));
        }
        Ok(proposal)
    }
}

impl Future for Proposal {
    type Output = Result<Outcome, Refusal>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let answer = ready!(Pin::new(&mut self.answer).poll(context));
        Poll::Ready(match answer {
            Ok((settled, _)) => {
                self.settled = true;
                match settled {
                    Settled::Outcome(outcome) => Ok(outcome),
                    Settled::Reply(reply) => Err(refused(reply)),
                }
            }
            Err(_) => Err(stopping()),
        })
    }
}

impl Drop for Proposal {
    fn drop(&mut self) {
        self.shared.open_calls.fetch_sub(1, Ordering::Relaxed);
        self.shared.places.give_back(self.place);
        if !self.settled {
            self.shared.pending.forget(self.sequence);
            self.shared.insist(Event::Abandoned { sequence: self.sequence, lock: None });
        }
    }
}
