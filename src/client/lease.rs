//! The core of everything that lives by renewals: when the next one is due, until when the thing
//! counts as held, and when it is lost.
//!
//! Pure: `now` is an argument, and nothing is sent from here. A confirmation counts from the moment
//! its request was sent, so the cluster, which counts from its arrival, never gives the thing away
//! before this side has stopped to claim it. What was lost once stays lost.

use crate::{
    client::Error,
    types::{Duration, Instant, Rng},
};

/// This share of a TTL, a twentieth, is not counted on: the clocks of client and node may differ in
/// speed by so much.
const DRIFT_SHARE: u32 = 20;

/// A renewal is due after this share of the time that was confirmed, a third, or a little sooner, so
/// that many who began together do not ask together; one attempt may take as long.
const RENEWAL_SHARE: u32 = 3;
const RENEWAL_SHARE_EARLIEST: u32 = 4;

/// The least time that one renewal gets, where so much is left.
const ATTEMPT_MIN: Duration = Duration::from_millis(250);

/// The pause from a failed renewal to the next is a tenth of the TTL, within these bounds.
const PAUSE_SHARE: u32 = 10;
const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// Why something is not held any more.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Loss {
    /// A renewal was refused: it was released, it expired, or its session is gone.
    #[error("{0}")]
    Refused(Error),
    /// No renewal was confirmed in time. The cluster may hold it for a moment longer.
    #[error("no renewal was confirmed in time{}", because(last.as_ref()))]
    Lapsed {
        /// What the last renewal failed with; none where it was not answered.
        last: Option<Error>,
    },
    /// The handle was released or dropped.
    #[error("it was released here")]
    Released,
}

fn because(last: Option<&Error>) -> String {
    last.map(|last| format!(": {last}")).unwrap_or_default()
}

/// What is to be done.
#[derive(Clone, Debug)]
pub(super) enum Next {
    /// Nothing before this time.
    Wait(Instant),
    /// Send a renewal and wait so long for it.
    Renew { within: Duration },
    /// Nothing any more.
    Over,
}

/// One thing that lives by renewals.
#[derive(Clone, Debug)]
pub(super) struct Lease {
    state: State,
    /// Goes on with its renewals when no confirmation comes in time.
    persistent: bool,
    renew_at: Instant,
    /// The TTL that was confirmed last.
    ttl: Duration,
    last: Option<Error>,
    rng: Rng,
}

#[derive(Clone, Debug)]
enum State {
    /// Granted at a time that nobody knows: the first renewal will tell until when it holds.
    Unconfirmed {
        give_up_at: Instant,
    },
    Held {
        valid_until: Instant,
    },
    Over(Loss),
}

impl Lease {
    /// Something that is held for `ttl` from when `sent` on, by an answer that came; without a TTL
    /// for ever.
    pub(super) fn confirmed_since(rng: Rng, sent: Instant, ttl: Option<Duration>) -> Self {
        let mut lease = Self::unconfirmed(rng, sent, ttl.unwrap_or(PAUSE_MAX), Instant::FAR);
        lease.confirmed(sent, sent, ttl);
        lease
    }

    /// Something that is held, but nobody knows since when. It is not claimed before a renewal is
    /// confirmed, and lost where none is by `give_up_at`. `ttl` is a first guess.
    pub(super) const fn unconfirmed(
        rng: Rng,
        now: Instant,
        ttl: Duration,
        give_up_at: Instant,
    ) -> Self {
        let state = State::Unconfirmed { give_up_at };
        Self { state, persistent: false, renew_at: now, ttl, last: None, rng }
    }

    /// The same, which is renewed for as long as no renewal is refused.
    pub(super) const fn persistent(mut self) -> Self {
        self.persistent = true;
        self
    }

    /// The moment from which on it is not claimed. `now` where it is not claimed at all.
    pub(super) fn valid_until(&self, now: Instant) -> Instant {
        match self.state {
            State::Held { valid_until } => valid_until,
            State::Unconfirmed { .. } | State::Over(_) => now,
        }
    }

    /// Whether it may be claimed.
    pub(super) fn is_valid(&self, now: Instant) -> bool {
        matches!(self.state, State::Held { valid_until } if now < valid_until)
    }

    /// Whether the first renewal is still to come.
    pub(super) const fn is_unconfirmed(&self) -> bool {
        matches!(self.state, State::Unconfirmed { .. })
    }

    /// Why it is lost, where it is.
    pub(super) fn loss(&self, now: Instant) -> Option<Loss> {
        match &self.state {
            State::Over(loss) => Some(loss.clone()),
            _ if now >= self.ends_at() => Some(Loss::Lapsed { last: self.last.clone() }),
            _ => None,
        }
    }

    /// When it is lost where nothing is confirmed until then.
    pub(super) const fn ends_at(&self) -> Instant {
        match self.state {
            _ if self.persistent => Instant::FAR,
            State::Unconfirmed { give_up_at } => give_up_at,
            State::Held { valid_until } => valid_until,
            State::Over(_) => Instant::ZERO,
        }
    }

    /// What is to be done now.
    pub(super) fn next(&self, now: Instant) -> Next {
        if self.loss(now).is_some() {
            return Next::Over;
        }
        if now < self.renew_at {
            return Next::Wait(self.renew_at.min(self.ends_at()));
        }
        let attempt = (self.ttl / RENEWAL_SHARE).max(ATTEMPT_MIN);
        Next::Renew { within: attempt.min(self.ends_at().since(now)) }
    }

    /// A renewal that was sent at `sent` is confirmed for `ttl`; without one, for ever. One that
    /// comes too late changes nothing: somebody may have seen the loss.
    pub(super) fn confirmed(&mut self, now: Instant, sent: Instant, ttl: Option<Duration>) {
        if let Some(loss) = self.loss(now) {
            self.state = State::Over(loss);
            return;
        }
        // A long TTL may be confirmed in part only; what was confirmed before stays true.
        let mut valid_until = ttl.map_or(Instant::FAR, |ttl| sent.after(ttl - ttl / DRIFT_SHARE));
        if let State::Held { valid_until: before } = self.state {
            valid_until = valid_until.max(before);
        }
        self.ttl = ttl.unwrap_or(self.ttl);
        let (first, last) = (self.ttl / RENEWAL_SHARE_EARLIEST, self.ttl / RENEWAL_SHARE);
        self.renew_at = sent.after(self.rng.between(first, last).max(PAUSE_MIN));
        self.state = State::Held { valid_until };
        self.last = None;
    }

    /// A renewal that was sent at `sent` failed, and nobody knows whether the thing is held.
    pub(super) fn failed(&mut self, now: Instant, sent: Instant, error: Error) {
        let pause = (self.ttl / PAUSE_SHARE).clamp(PAUSE_MIN, PAUSE_MAX);
        self.renew_at = sent.after(self.rng.between(pause / 2, pause)).max(now);
        self.last = Some(error);
    }

    /// It is gone for certain.
    pub(super) fn refused(&mut self, error: Error) {
        self.end(Loss::Refused(error));
    }

    /// Takes note of a loss that time brought about.
    pub(super) fn settle(&mut self, now: Instant) {
        if let Some(loss) = self.loss(now) {
            self.end(loss);
        }
    }

    /// It is not claimed any more. The first reason stays.
    pub(super) fn end(&mut self, loss: Loss) {
        if !matches!(self.state, State::Over(_)) {
            self.state = State::Over(loss);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    // By name, since proptest has one too.
    use crate::types::Rng;

    const TTL: Duration = Duration::from_secs(10);

    fn at(millis: u64) -> Instant {
        Instant::ZERO.after(Duration::from_millis(millis))
    }

    fn held() -> Lease {
        Lease::confirmed_since(Rng::new(7), at(0), Some(TTL))
    }

    fn fault() -> Error {
        Error::broken("no answer")
    }

    #[test]
    fn it_is_renewed_after_a_third_and_claimed_for_the_ttl_less_the_drift() {
        let lease = held();
        let Next::Wait(until) = lease.next(at(0)) else { panic!("nothing is due") };
        assert!(until >= at(0).after(TTL / 4) && until <= at(0).after(TTL / 3), "{until:?}");
        assert!(matches!(lease.next(at(3_334)), Next::Renew { within } if within > TTL / 4));
        assert_eq!(lease.valid_until(at(0)), at(9_500));
        assert!(lease.is_valid(at(9_499)) && !lease.is_valid(at(9_500)));
        assert!(lease.loss(at(9_499)).is_none());
        assert!(matches!(lease.loss(at(9_500)), Some(Loss::Lapsed { last: None })));
        assert!(matches!(lease.next(at(9_500)), Next::Over));
    }

    #[test]
    fn a_confirmation_counts_from_when_its_request_was_sent() {
        let mut lease = held();
        lease.confirmed(at(9_000), at(4_000), Some(TTL));
        assert_eq!(lease.valid_until(at(9_000)), at(13_500));
        assert!(matches!(lease.next(at(9_000)), Next::Renew { .. }), "a third has passed");
    }

    #[test]
    fn a_confirmation_that_comes_too_late_does_not_bring_it_back() {
        let mut lease = held();
        lease.confirmed(at(9_500), at(4_000), Some(TTL));
        assert!(!lease.is_valid(at(9_500)));
        assert!(matches!(lease.loss(at(0)), Some(Loss::Lapsed { .. })), "it stays lost");
    }

    #[test]
    fn a_refusal_ends_it_at_once_and_the_first_reason_stays() {
        let mut lease = held();
        lease.refused(fault());
        assert!(!lease.is_valid(at(1)) && matches!(lease.next(at(1)), Next::Over));
        lease.end(Loss::Released);
        assert!(matches!(lease.loss(at(1)), Some(Loss::Refused(_))));
    }

    #[test]
    fn what_failed_is_tried_again_soon_and_not_at_once() {
        let mut lease = held();
        lease.failed(at(3_400), at(3_334), fault());
        assert!(
            matches!(lease.next(at(3_400)), Next::Wait(until) if until >= at(3_834) && until <= at(4_334))
        );
        lease.failed(at(6_000), at(4_334), fault());
        assert!(matches!(lease.next(at(6_000)), Next::Renew { .. }), "it took long enough");
        let lost = lease.loss(at(9_500)).expect("nothing was confirmed");
        assert_eq!(lost.to_string(), "no renewal was confirmed in time: no answer");
    }

    #[test]
    fn what_is_not_confirmed_is_not_claimed() {
        let mut lease = Lease::unconfirmed(Rng::new(7), at(100), TTL, at(5_100));
        assert!(!lease.is_valid(at(100)) && lease.is_unconfirmed());
        assert!(matches!(lease.next(at(100)), Next::Renew { .. }));
        assert!(lease.clone().loss(at(5_100)).is_some());
        lease.confirmed(at(110), at(100), Some(TTL));
        assert!(lease.is_valid(at(110)) && !lease.is_unconfirmed());
    }

    #[test]
    fn what_persists_is_not_claimed_when_its_time_is_up_but_renewed_all_the_same() {
        let mut lease = held().persistent();
        assert!(!lease.is_valid(at(60_000)) && lease.loss(at(60_000)).is_none());
        assert!(matches!(lease.next(at(60_000)), Next::Renew { within } if within == TTL / 3));
        lease.confirmed(at(60_010), at(60_000), Some(TTL));
        assert!(lease.is_valid(at(60_010)));
    }

    #[test]
    fn a_part_of_a_long_ttl_takes_nothing_away() {
        let mut lease = held();
        lease.confirmed(at(3_400), at(3_334), Some(Duration::from_secs(1)));
        assert_eq!(lease.valid_until(at(3_400)), at(9_500));
        assert!(matches!(lease.next(at(3_700)), Next::Renew { .. }), "the whole comes soon");
    }

    #[derive(Clone, Copy, Debug)]
    enum Answer {
        Confirmed { ttl_ms: u64 },
        Failed,
        Refused,
    }

    fn answer() -> impl Strategy<Value = Answer> {
        prop_oneof![
            4 => (100_u64..20_000).prop_map(|ttl_ms| Answer::Confirmed { ttl_ms }),
            3 => Just(Answer::Failed),
            1 => Just(Answer::Refused),
        ]
    }

    proptest! {
        /// Whatever comes: it is never claimed longer than the cluster holds it on a clock that is
        /// slower by the drift, it asks in time, and what is lost stays lost.
        #[test]
        fn it_is_never_claimed_for_longer_than_the_cluster_holds_it(
            seed in any::<u64>(),
            steps in proptest::collection::vec((0_u64..4_000, 0_u64..4_000, answer()), 1..60),
        ) {
            let mut lease = Lease::confirmed_since(Rng::new(seed), at(0), Some(TTL));
            // What the cluster holds it until, seen on a clock that goes slower by a twentieth.
            let least = |ttl: Duration| ttl * (DRIFT_SHARE - 1) / DRIFT_SHARE;
            let promise = |sent: Instant, ttl: Duration| sent.after(least(ttl));
            let mut promised = promise(at(0), TTL);
            let (mut now, mut lost) = (at(0), false);
            for (idle, flight, answer) in steps {
                now = now.after(Duration::from_millis(idle));
                prop_assert!(!lease.is_valid(now) || now < promised);
                prop_assert_eq!(lease.is_valid(now), lease.loss(now).is_none());
                prop_assert!(!lost || lease.loss(now).is_some());
                lost = lease.loss(now).is_some();
                match lease.next(now) {
                    Next::Over => prop_assert!(lost),
                    Next::Wait(until) => {
                        prop_assert!(until > now && until <= lease.ends_at());
                        now = until;
                        continue;
                    }
                    Next::Renew { within } => prop_assert!(now.after(within) <= lease.ends_at()),
                }
                let sent = now;
                now = now.after(Duration::from_millis(flight));
                match answer {
                    Answer::Confirmed { ttl_ms } => {
                        let ttl = Duration::from_millis(ttl_ms);
                        lease.confirmed(now, sent, Some(ttl));
                        promised = promised.max(promise(sent, ttl));
                    }
                    Answer::Failed => lease.failed(now, sent, fault()),
                    Answer::Refused => lease.refused(fault()),
                }
            }
        }
    }
}
