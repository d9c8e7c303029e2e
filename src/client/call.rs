//! One unary call: attempts at one node after another until an answer or the limit.
//!
//! Where a node is silent for long another one is asked as well, if sending again does no harm: a
//! node that is paused must not cost the whole call.
//! What was certainly not proposed is always tried again. What all calls together send again comes
//! out of a budget; while that is empty a call waits. What may have been is tried again
//! unless repeating it could do harm. When the limit comes, the error tells the two apart: a call
//! of which every attempt was turned away is a definite refusal, any other is unknown.

use std::{future::Future, sync::Arc};

use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use tonic::{Code, Status};

use crate::{
    client::{Client, Error, balance::Picked},
    host,
    net::Fault,
    observe::TRACEPARENT,
    resilience::retry,
    types::{Duration, Rng},
};

/// The largest answer that is taken.
pub(crate) const ANSWER_BYTES_MAX: usize = 64 << 20;

/// The longest pause after the first failure; it doubles from there.
const BACKOFF_MIN: Duration = Duration::from_millis(10);

/// The longest pause between two attempts that the client makes of its own accord.
const BACKOFF_MAX: Duration = Duration::from_millis(250);

/// The part of what is left of a call after which a node's silence is long.
const SILENT_SHARE: u32 = 4;

/// The part of a change's time in which no attempt is begun that may not end in it.
const MARGIN_SHARE: u32 = 8;

/// A waiting call that lived this long was established, and its next outage is a new one.
const ESTABLISHED_AFTER: Duration = Duration::from_secs(1);

/// What a call does, and so whether it may be repeated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    /// It changes nothing.
    Read,
    /// It changes something, at most once however often it is sent.
    Write,
    /// Sending it twice may do it twice.
    Once,
}

/// How long a call may take.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Limit {
    /// This long in all.
    Within(Duration),
    /// This long in all, most of it waiting for a turn: nothing is gained by asking elsewhere.
    Waiting(Duration),
    /// As long as it takes, but not this long without a node that takes it: first, and once it
    /// was established.
    Outage { first: Duration, established: Duration },
}

impl Client {
    pub(crate) async fn read<Q, R, F>(
        &self,
        request: Q,
        send: impl Fn(Picked, tonic::Request<Q>) -> F,
    ) -> Result<R, Error>
    where
        Q: Clone,
        F: Future<Output = Result<tonic::Response<R>, Status>>,
    {
        self.call(Effect::Read, Limit::Within(self.timeout), request, send).await
    }

    pub(crate) async fn write<Q, R, F>(
        &self,
        request: Q,
        send: impl Fn(Picked, tonic::Request<Q>) -> F,
    ) -> Result<R, Error>
    where
        Q: Clone,
        F: Future<Output = Result<tonic::Response<R>, Status>>,
    {
        self.call(Effect::Write, Limit::Within(self.timeout), request, send).await
    }

    pub(crate) async fn call<Q, R, F>(
        &self,
        effect: Effect,
        limit: Limit,
        request: Q,
        send: impl Fn(Picked, tonic::Request<Q>) -> F,
    ) -> Result<R, Error>
    where
        Q: Clone,
        F: Future<Output = Result<tonic::Response<R>, Status>>,
    {
        self.retries.called();
        let mut attempts = Attempts::new(self, effect, limit);
        loop {
            let node = match self.pick(&attempts).await {
                Ok(node) => node,
                Err(error) => {
                    attempts.failed(None, Instant::now(), error).await?;
                    continue;
                }
            };
            let started = Instant::now();
            let message = || self.message(request.clone(), attempts.left());
            let first = send(node.clone(), message());
            let (at, answer) = match attempts.silence_max() {
                None => (node, first.await),
                Some(silence) => {
                    tokio::pin!(first);
                    match timeout(silence, &mut first).await {
                        Ok(answer) => (node, answer),
                        Err(_) => match self.another(&node, &attempts) {
                            None => (node, first.await),
                            Some(other) => {
                                node.is_silent();
                                let second = send(other.clone(), message());
                                attempts.sooner((node, first), (other, second)).await
                            }
                        },
                    }
                }
            };
            match answer {
                Ok(answer) => {
                    self.router.heard(answer.metadata());
                    return Ok(answer.into_inner());
                }
                Err(status) => {
                    self.router.heard(status.metadata());
                    attempts.failed(Some(at.address()), started, status.into()).await?;
                }
            }
        }
    }

    fn message<Q>(&self, request: Q, left: Option<Duration>) -> tonic::Request<Q> {
        let mut message = tonic::Request::new(request);
        if let Some(left) = left {
            message.set_timeout(left);
        }
        if let Some(parent) = self.trace_parent() {
            let text = parent.to_string().parse().expect("hexadecimal digits and dashes");
            message.metadata_mut().insert(TRACEPARENT, text);
        }
        message
    }

    /// Another node that can be called now, beside one that is silent, where the budget allows it.
    fn another(&self, node: &Picked, attempts: &Attempts<'_>) -> Option<Picked> {
        let mut avoid = attempts.failed_at.clone();
        avoid.push(node.address().into());
        let other = self.router.try_pick(&avoid)?;
        let is_another = other.address() != node.address() && self.retries.allows();
        is_another.then(|| other.for_attempt(attempts.failures + 2))
    }

    /// Chooses the node for the next attempt.
    ///
    /// # Errors
    /// Where no node can be called. Nothing was sent then.
    pub(crate) async fn pick(&self, attempts: &Attempts<'_>) -> Result<Picked, Error> {
        self.follow_registry();
        let picking = self.router.pick(attempts.effect, &attempts.failed_at);
        let picked = match attempts.deadline {
            None => picking.await,
            Some(deadline) => match timeout_at(deadline, picking).await {
                Ok(picked) => picked,
                Err(_) => return Err(Error::unresolved("no connection yet".to_owned())),
            },
        };
        Ok(picked?.for_attempt(attempts.failures.saturating_add(1)))
    }
}

/// The attempts of one call, or of one opening of a stream.
#[derive(Debug)]
pub(crate) struct Attempts<'a> {
    client: &'a Client,
    effect: Effect,
    limit: Limit,
    pub(crate) deadline: Option<Instant>,
    outage_since: Option<Instant>,
    established: bool,
    unknown: bool,
    last: Option<Error>,
    failures: u32,
    /// The nodes at which attempts failed, until each was asked.
    failed_at: Vec<Arc<str>>,
    /// How many attempts in a row failed for reasons that waiting does not mend.
    closed_doors: usize,
    backoff: Backoff,
}

impl<'a> Attempts<'a> {
    pub(crate) fn new(client: &'a Client, effect: Effect, limit: Limit) -> Self {
        let deadline = match limit {
            Limit::Within(span) | Limit::Waiting(span) => Some(Instant::now() + span),
            Limit::Outage { .. } => None,
        };
        Self {
            client,
            effect,
            limit,
            deadline,
            outage_since: None,
            established: false,
            unknown: false,
            last: None,
            failures: 0,
            failed_at: Vec::new(),
            closed_doors: 0,
            backoff: Backoff::new(),
        }
    }

    /// What is left until the deadline.
    fn left(&self) -> Option<Duration> {
        self.deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()))
    }

    /// After how long a silence another node is asked as well. `None` where that may do harm, and
    /// where waiting is what the call is for.
    fn silence_max(&self) -> Option<Duration> {
        let may_repeat = matches!(self.limit, Limit::Within(_)) && self.effect != Effect::Once;
        self.left().filter(|_| may_repeat).map(|left| left / SILENT_SHARE)
    }

    /// The sooner of two answers that is no failure, or the later failure.
    async fn sooner<R>(
        &mut self,
        (first_at, first): (Picked, impl Future<Output = Result<R, Status>>),
        (second_at, second): (Picked, impl Future<Output = Result<R, Status>>),
    ) -> (Picked, Result<R, Status>) {
        tokio::pin!(first, second);
        let (failed, answer) = tokio::select! {
            biased;
            answer = &mut first => match answer {
                Ok(answer) => return (first_at, Ok(answer)),
                Err(status) => (status, (second_at, second.await)),
            },
            answer = &mut second => match answer {
                Ok(answer) => return (second_at, Ok(answer)),
                Err(status) => (status, (first_at, first.await)),
            },
        };
        self.unknown |= Error::from(failed).outcome_unknown();
        answer
    }

    /// Takes note of a failed attempt and waits for the next one.
    ///
    /// # Errors
    /// Where there is to be none.
    pub(crate) async fn failed(
        &mut self,
        at: Option<&str>,
        started: Instant,
        mut error: Error,
    ) -> Result<(), Error> {
        self.unknown |= error.outcome_unknown();
        if error.code() == Code::DeadlineExceeded {
            return Err(self.expired());
        }
        if !error.is_passing() {
            // Of a change, the node looks for an earlier attempt only where it takes this one in.
            let not_taken = error.code() == Code::ResourceExhausted;
            let earlier_is_open = self.unknown && self.effect != Effect::Read;
            return Err(if earlier_is_open && not_taken { error.into_unknown() } else { error });
        }
        if self.effect == Effect::Once && error.outcome_unknown() {
            return Err(error.into_unknown());
        }
        if at.is_none()
            && let Some(last) = &self.last
            && last.tls_fault().is_some_and(Fault::stays)
        {
            // Why nothing can be picked is known better from where something was.
            error = last.clone();
        }
        let closed = error.tls_fault().is_some_and(Fault::stays);
        let router = &self.client.router;
        // Where nothing could be picked, that is so of all of them.
        let doors = if at.is_some() { 1 } else { router.len() };
        self.closed_doors = if closed { self.closed_doors + doors } else { 0 };
        let now = Instant::now();
        // Who waited only to be refused was never established.
        let was_cut = error.outcome_unknown() || error.reason() == "DRAINING";
        if was_cut && now - started >= ESTABLISHED_AFTER {
            self.established = true;
            self.outage_since = None;
            self.backoff = Backoff::new();
        }
        let leader = error.fact("leader_address").map(str::to_owned);
        let leader = leader.filter(|leader| router.follow(at, leader));
        let led = leader.is_some();
        self.failures = self.failures.saturating_add(1);
        self.failed_at.extend(at.map(Arc::from));
        // What one node asks for does not bind another: it counts once each was asked.
        let all_asked = at.is_none() || self.failed_at.len() >= router.len();
        if all_asked {
            self.failed_at.clear();
        }
        let pause = self.backoff.pause(error.retry_after().filter(|_| all_asked && !led));
        // What a node says tells more than that others are not reached.
        if !error.reason().is_empty() || self.last.as_ref().is_none_or(|l| l.reason().is_empty()) {
            self.last = Some(error);
        }
        let outage_since = *self.outage_since.get_or_insert(now);
        let give_up_at = match self.limit {
            Limit::Within(_) | Limit::Waiting(_) => {
                self.deadline.expect("a call within a span has a deadline")
            }
            Limit::Outage { first, established } => {
                outage_since + if self.established { established } else { first }
            }
        };
        let locked_out = !self.established && self.closed_doors >= router.len();
        // An attempt that the deadline meets makes a refusal that is certain an unknown outcome.
        let margin = match self.limit {
            Limit::Within(span) if self.effect != Effect::Read && !self.unknown => {
                ((now - started) * 2).min(span / MARGIN_SHARE)
            }
            _ => Duration::ZERO,
        };
        if locked_out {
            return Err(self.exhausted());
        }
        // What was not sent costs nobody anything, and what waits in line comes back one by one.
        let counts = at.is_some() && matches!(self.limit, Limit::Within(_));
        self.wait(pause, counts, margin, give_up_at).await?;
        if let Some(leader) = leader {
            // Else the next attempt goes where the leader is not.
            router.reach(&leader).await;
        }
        Ok(())
    }

    /// Waits for the next attempt, and until the budget allows it where it `counts`.
    async fn wait(
        &mut self,
        mut pause: Duration,
        counts: bool,
        margin: Duration,
        give_up_at: Instant,
    ) -> Result<(), Error> {
        loop {
            let now = Instant::now();
            if now + pause + margin >= give_up_at {
                return Err(self.exhausted());
            }
            sleep_until(now + pause).await;
            if !counts || self.client.retries.allows() {
                return Ok(());
            }
            pause = self.backoff.longest();
        }
    }

    /// The deadline came while an attempt was under way.
    pub(crate) fn expired(&self) -> Error {
        let within = match self.limit {
            Limit::Within(span) | Limit::Waiting(span) | Limit::Outage { first: span, .. } => span,
        };
        Error::deadline(within, self.effect != Effect::Read, self.last.as_ref())
    }

    /// The limit came between two attempts. Where each was turned away nothing has happened.
    fn exhausted(&mut self) -> Error {
        if self.unknown && self.effect != Effect::Read {
            return self.expired();
        }
        let last = self.last.take().expect("set before the limit is looked at");
        last.of_all(&self.client.router.addresses())
    }
}

/// Pauses whose bound doubles, each drawn evenly below its bound so that callers do not march in step.
#[derive(Debug)]
struct Backoff {
    config: retry::ValidConfig,
    failures: u32,
    rng: Rng,
}

impl Backoff {
    fn new() -> Self {
        let config = retry::Config { base: BACKOFF_MIN, max: BACKOFF_MAX, ..Default::default() };
        let config = config.validate().expect("its figures are in range");
        Self { config, failures: 0, rng: Rng::new(host::seed()) }
    }

    /// The next pause; at least what the answer asked for, within the client's own bound.
    fn pause(&mut self, asked: Option<Duration>) -> Duration {
        self.failures = self.failures.saturating_add(1);
        let pause = self.config.pause(self.failures, &mut self.rng);
        asked.map_or(pause, |asked| asked.min(BACKOFF_MAX).max(pause))
    }

    /// A pause for one that there is no budget for.
    fn longest(&mut self) -> Duration {
        self.rng.between(BACKOFF_MAX / 2, BACKOFF_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_up_to_their_bound_and_obey_the_answer() {
        let mut backoff = Backoff::new();
        let pauses: Vec<_> = (0..200).map(|_| backoff.pause(None)).collect();
        for (bound, pause) in [10, 20, 40, 80, 160].into_iter().zip(&pauses) {
            assert!(*pause < Duration::from_millis(bound), "{pauses:?}");
        }
        assert!(pauses.iter().all(|pause| *pause < BACKOFF_MAX), "{pauses:?}");
        assert!(pauses.iter().any(|pause| *pause > BACKOFF_MAX / 2), "{pauses:?}");
        let asked = Duration::from_millis(100);
        assert!(Backoff::new().pause(Some(asked)) == asked);
        assert_eq!(backoff.pause(Some(Duration::from_secs(9))), BACKOFF_MAX);
    }
}
