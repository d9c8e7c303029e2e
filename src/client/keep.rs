//! What keeps a lease in the background: one task a handle, which renews, and ends the thing when
//! its handle goes.
//!
//! Whether something is held is told by the lease and the clock alone, never by whether the task
//! got its turn. The task lives on the runtime that the handle was made on; with that it dies, and
//! the TTL ends what was held.

use std::{future::Future, marker::PhantomData};

use tokio::{
    sync::{oneshot, watch},
    time::{self, sleep_until, timeout_at},
};

use crate::{
    client::{
        Error,
        lease::{Lease, Loss, Next},
    },
    host,
    types::{Duration, Instant, Rng},
};

/// As far ahead as a timer is set: a year.
const FAR_AHEAD: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// Something that is renewed and ended.
pub(super) trait Renewable: Send + Sync + 'static {
    /// What the end of it is answered with.
    type Ended: Send + 'static;

    /// Renews it once, within a time. Returns the TTL that is confirmed; none is for ever.
    fn renew(
        &self,
        within: Duration,
    ) -> impl Future<Output = Result<Option<Duration>, Error>> + Send;

    /// Whether a failed renewal says that it is gone for good.
    fn is_gone(error: &Error) -> bool;

    /// Ends it.
    fn end(&self) -> impl Future<Output = Result<Self::Ended, Error>> + Send;
}

/// The claim to something, as the clock of this process tells it.
#[derive(Clone, Debug)]
pub(super) struct Claim {
    lease: watch::Sender<Lease>,
    clock: Clock,
}

/// The clock of one claim: tokio's, counted from its beginning.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock {
    origin: time::Instant,
}

/// The chance of one lease.
pub(super) fn chance() -> Rng {
    Rng::new(host::seed())
}

impl Clock {
    pub(super) fn start() -> Self {
        Self { origin: time::Instant::now() }
    }

    pub(super) fn now(self) -> Instant {
        Instant::ZERO.after(self.origin.elapsed())
    }

    fn at(self, instant: Instant) -> time::Instant {
        self.origin + instant.since(Instant::ZERO).min(self.origin.elapsed() + FAR_AHEAD)
    }
}

impl Claim {
    pub(super) fn is_valid(&self) -> bool {
        // The time is read under the lock of the lease: what was seen as lost is lost for whoever
        // takes the lock next, a late confirmation included.
        self.lease.borrow().is_valid(self.clock.now())
    }

    pub(super) fn valid_until(&self) -> time::Instant {
        self.clock.at(self.lease.borrow().valid_until(self.clock.now()))
    }

    pub(super) fn loss(&self) -> Option<Loss> {
        self.lease.borrow().loss(self.clock.now())
    }

    /// Resolves when it is lost. Looks at the clock itself.
    pub(super) fn lost(&self) -> impl Future<Output = Loss> + Send + use<> {
        let (changes, clock) = (self.lease.subscribe(), self.clock);
        lost(changes, clock)
    }

    /// Waits for the first confirmation.
    pub(super) async fn confirmed(&self) -> Result<(), Loss> {
        let mut changes = self.lease.subscribe();
        let known = async {
            // Nobody else drops the sender while `self` is there.
            let _ = changes.wait_for(|lease| !lease.is_unconfirmed()).await;
        };
        tokio::select! {
            biased;
            () = known => {}
            _ = self.lost() => {}
        }
        self.loss().map_or(Ok(()), Err)
    }

    fn change(&self, change: impl FnOnce(&mut Lease, Instant)) {
        self.lease.send_modify(|lease| change(lease, self.clock.now()));
    }
}

async fn lost(mut changes: watch::Receiver<Lease>, clock: Clock) -> Loss {
    loop {
        let ends_at = {
            let lease = changes.borrow_and_update();
            if let Some(loss) = lease.loss(clock.now()) {
                return loss;
            }
            clock.at(lease.ends_at())
        };
        // Where the handle and its task are gone, nothing is left to change: its time decides.
        let _ = timeout_at(ends_at, async {
            if changes.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        })
        .await;
    }
}

/// Asks the task to end the thing and to tell how that went.
type Order<T> = oneshot::Sender<Result<T, Error>>;

/// Something that is kept. Dropping it ends it in the background.
#[derive(Debug)]
pub(super) struct Kept<R: Renewable> {
    claim: Claim,
    order: Option<oneshot::Sender<Order<R::Ended>>>,
    kind: PhantomData<fn() -> R>,
}

impl<R: Renewable> Kept<R> {
    /// Keeps `thing`, of which `lease` tells on `clock`. Must be called inside a tokio runtime.
    pub(super) fn start(thing: R, lease: Lease, clock: Clock) -> Self {
        let claim = Claim { lease: watch::Sender::new(lease), clock };
        let (order, ordered) = oneshot::channel();
        tokio::spawn(run(thing, claim.clone(), ordered));
        Self { claim, order: Some(order), kind: PhantomData }
    }

    pub(super) const fn claim(&self) -> &Claim {
        &self.claim
    }

    /// Ends the thing, and waits for that. It is ended also where this future is dropped.
    ///
    /// # Errors
    /// What it was refused with; what a renewal was refused with before.
    pub(super) async fn end(mut self) -> Result<R::Ended, Error> {
        let (reply, answer) = oneshot::channel();
        let order = self.order.take().expect("it is ended once");
        // Where the task is gone, so is its end of `reply`.
        let _ = order.send(reply);
        self.claim.change(|lease, _| lease.end(Loss::Released));
        answer.await.unwrap_or_else(|_| Err(Error::broken("the runtime of the handle has ended")))
    }
}

impl<R: Renewable> Drop for Kept<R> {
    fn drop(&mut self) {
        // The task hears that nobody gives orders any more, and ends the thing.
        self.claim.change(|lease, _| lease.end(Loss::Released));
    }
}

async fn run<R: Renewable>(
    thing: R,
    claim: Claim,
    mut ordered: oneshot::Receiver<Order<R::Ended>>,
) {
    let order = tokio::select! {
        biased;
        order = &mut ordered => order,
        () = renewals(&thing, &claim) => ordered.await,
    };
    let ended = match claim.loss() {
        Some(Loss::Refused(error)) => Err(error),
        _ => thing.end().await,
    };
    match order {
        // Who asked may have gone meanwhile.
        Ok(reply) => drop(reply.send(ended)),
        Err(_) => {
            if let Err(error) = ended {
                tracing::debug!(%error, "left to its ttl");
            }
        }
    }
}

/// Renews until it is lost.
async fn renewals<R: Renewable>(thing: &R, claim: &Claim) {
    let clock = claim.clock;
    loop {
        let next = claim.lease.borrow().next(clock.now());
        match next {
            Next::Over => break,
            Next::Wait(until) => sleep_until(clock.at(until)).await,
            Next::Renew { within } => {
                let ends_at = clock.at(claim.lease.borrow().ends_at());
                let sent = clock.now();
                let Ok(answer) = timeout_at(ends_at, thing.renew(within)).await else { continue };
                claim.change(|lease, now| match answer {
                    Ok(ttl) => lease.confirmed(now, sent, ttl),
                    Err(error) if R::is_gone(&error) => lease.refused(error),
                    Err(error) => lease.failed(now, sent, error),
                });
            }
        }
    }
    claim.change(Lease::settle);
}

#[cfg(test)]
mod tests;
