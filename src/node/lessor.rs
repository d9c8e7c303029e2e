//! The leader's clock of sessions: when each was renewed last, and which have run out.
//!
//! Every replica mirrors the sessions; only the leader counts. Renewals never touch the log; an
//! expiry is a command with term and epoch, checked again when it is applied (rule 24).

use core::ops::Bound;
use std::collections::{BTreeMap, BTreeSet};

use crate::{
    machine::{SessionEffect, SessionInfo},
    types::{Duration, Instant, Planted, SessionId, planted},
};

/// An expiry that was proposed and not applied within this time is proposed again.
const EXPIRY_RETRY: Duration = Duration::from_secs(1);
/// TTLs from here on are checkpointed, so that an election does not give them anew.
const CHECKPOINT_TTL_MIN: Duration = Duration::from_secs(120);
/// How often what is left of a long TTL is recorded, at the soonest.
const CHECKPOINT_INTERVAL: Duration = Duration::from_secs(60);

#[derive(Clone, Debug)]
struct Lease {
    full_ttl: Duration,
    /// What the log knows to be left of it: what a new leader would count from.
    recorded: Duration,
    epoch: u64,
    /// When it runs out; meaningful while leading only.
    deadline: Instant,
    expiring: bool,
}

/// Sessions and their deadlines.
#[derive(Debug, Default)]
pub(crate) struct Lessor {
    leases: BTreeMap<SessionId, Lease>,
    deadlines: BTreeSet<(Instant, SessionId)>,
    leading: bool,
    checkpointed_at: Instant,
    /// The last session that the checkpoint under way has looked at.
    looked_at: SessionId,
    /// Sessions that were renewed to more than the log knows of: to be recorded at once.
    renewed: BTreeSet<SessionId>,
}

impl Lessor {
    /// Starts from the state's sessions; not leading.
    pub(crate) fn restore(&mut self, sessions: Vec<SessionInfo>) {
        let lease = |info: SessionInfo| {
            let lease = Lease {
                full_ttl: info.ttl,
                recorded: info.remaining,
                epoch: info.epoch,
                deadline: Instant::ZERO,
                expiring: false,
            };
            (info.session, lease)
        };
        *self = Self { leases: sessions.into_iter().map(lease).collect(), ..Self::default() };
    }

    /// Takes over what an applied entry did to a session.
    pub(crate) fn apply(&mut self, now: Instant, effect: &SessionEffect) {
        match *effect {
            SessionEffect::Started { session, ttl, full_ttl, epoch } => {
                self.forget_deadline(session);
                let mut deadline = now.after(ttl);
                if let Some(lease) = self.leases.get(&session)
                    && ttl < full_ttl
                {
                    // A checkpoint: it was read off before, and a renewal may have come since.
                    deadline = deadline.max(lease.deadline);
                }
                let lease = Lease { full_ttl, recorded: ttl, epoch, deadline, expiring: false };
                self.leases.insert(session, lease);
                if self.leading {
                    self.deadlines.insert((deadline, session));
                }
            }
            SessionEffect::Closed { session } => {
                self.forget_deadline(session);
                self.leases.remove(&session);
            }
        }
    }

    /// This node leads and has applied everything before its term: every session has what was
    /// recorded of it, counted from now.
    pub(crate) fn lead(&mut self, now: Instant) {
        self.leading = true;
        self.checkpointed_at = now;
        self.deadlines.clear();
        for (&session, lease) in &mut self.leases {
            lease.deadline = now.after(lease.recorded);
            lease.expiring = false;
            self.deadlines.insert((lease.deadline, session));
        }
    }

    /// This node leads no longer: it counts nothing.
    pub(crate) fn follow(&mut self) {
        self.leading = false;
        self.deadlines.clear();
        self.renewed.clear();
    }

    /// Whether this node counts.
    pub(crate) const fn leading(&self) -> bool {
        self.leading
    }

    /// Renews a session from now on. The caller has made sure of a quorum since the renewal
    /// arrived (rule 29). Returns what is sure to be left, also if another node leads the next
    /// moment: where a checkpoint has recorded less than the TTL, that, and the next one records
    /// the whole. `None` where the session is gone or about to be.
    pub(crate) fn renew(&mut self, now: Instant, session: SessionId) -> Option<Duration> {
        assert!(self.leading, "only the leader renews");
        let lease = self.leases.get_mut(&session)?;
        if lease.expiring && !planted(Planted::ExpiryWithoutEpoch) {
            return None;
        }
        self.deadlines.remove(&(lease.deadline, session));
        lease.deadline = now.after(lease.full_ttl);
        self.deadlines.insert((lease.deadline, session));
        if lease.recorded < lease.full_ttl {
            self.renewed.insert(session);
        }
        Some(lease.recorded)
    }

    /// The sessions that have run out, with their epochs, at most `max`; each is named again only
    /// if the expiry was not applied within a second.
    pub(crate) fn expire(&mut self, now: Instant, max: usize) -> Vec<(SessionId, u64)> {
        let mut expired = Vec::new();
        while expired.len() < max {
            let Some(&(deadline, session)) = self.deadlines.first() else { break };
            if deadline > now {
                break;
            }
            self.deadlines.remove(&(deadline, session));
            let lease = self.leases.get_mut(&session).expect("a deadline belongs to a lease");
            lease.expiring = true;
            lease.deadline = now.after(EXPIRY_RETRY);
            self.deadlines.insert((lease.deadline, session));
            expired.push((session, lease.epoch));
        }
        expired
    }

    /// What is left of the long TTLs, where it is time to record it.
    pub(crate) fn checkpoint(&mut self, now: Instant, max: usize) -> Vec<(SessionId, Duration)> {
        if !self.leading {
            return Vec::new();
        }
        let mut due = Vec::new();
        while due.len() < max
            && let Some(session) = self.renewed.pop_first()
        {
            let lease = self.leases.get(&session).filter(|lease| !lease.expiring);
            due.extend(lease.map(|lease| (session, lease.deadline.since(now))));
        }
        if now < self.checkpointed_at.after(CHECKPOINT_INTERVAL) {
            return due;
        }
        let rest = (Bound::Excluded(self.looked_at), Bound::Unbounded);
        for (&session, lease) in self.leases.range(rest) {
            if due.len() == max {
                return due;
            }
            self.looked_at = session;
            let left = lease.deadline.since(now);
            let long = lease.full_ttl >= CHECKPOINT_TTL_MIN && !lease.expiring;
            if long && left + CHECKPOINT_INTERVAL <= lease.recorded {
                due.push((session, left));
            }
        }
        self.looked_at = SessionId::ZERO;
        self.checkpointed_at = now;
        due
    }

    /// The process stood still for `span` (a pause, a suspended machine) and could not hear
    /// renewals: everything counts that much longer.
    pub(crate) fn forgive(&mut self, span: Duration) {
        let deadlines = core::mem::take(&mut self.deadlines);
        for (_, session) in deadlines {
            let lease = self.leases.get_mut(&session).expect("a deadline belongs to a lease");
            lease.deadline = lease.deadline.after(span);
            self.deadlines.insert((lease.deadline, session));
        }
    }

    /// When there is something to do next.
    pub(crate) fn next_deadline(&self) -> Instant {
        let expiry = self.deadlines.first().map_or(Instant::FAR, |&(deadline, _)| deadline);
        if !self.renewed.is_empty() {
            Instant::ZERO
        } else if self.leading {
            expiry.min(self.checkpointed_at.after(CHECKPOINT_INTERVAL))
        } else {
            Instant::FAR
        }
    }

    fn forget_deadline(&mut self, session: SessionId) {
        if let Some(lease) = self.leases.get(&session) {
            self.deadlines.remove(&(lease.deadline, session));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: SessionId = SessionId::new(5);

    fn at(millis: u64) -> Instant {
        Instant::ZERO.after(Duration::from_millis(millis))
    }

    fn started(ttl_ms: u64, epoch: u64) -> SessionEffect {
        let ttl = Duration::from_millis(ttl_ms);
        SessionEffect::Started { session: S, ttl, full_ttl: ttl, epoch }
    }

    fn leading() -> Lessor {
        let mut lessor = Lessor::default();
        lessor.lead(at(1));
        lessor.apply(at(1), &started(1_000, 0));
        lessor
    }

    #[test]
    fn a_session_expires_once_its_ttl_went_by_without_a_renewal() {
        let mut lessor = leading();
        assert_eq!(lessor.expire(at(1_000), 9), []);
        assert_eq!(lessor.renew(at(900), S), Some(Duration::from_secs(1)));
        assert_eq!(lessor.expire(at(1_899), 9), []);
        assert_eq!(lessor.expire(at(1_900), 9), [(S, 0)]);
        assert_eq!(lessor.renew(at(1_900), S), None, "an expiry under way is not overtaken");
        assert_eq!(lessor.expire(at(1_901), 9), [], "named once");
        assert_eq!(lessor.expire(at(2_900), 9), [(S, 0)], "and again if it was not applied");
        lessor.apply(at(2_901), &SessionEffect::Closed { session: S });
        assert_eq!(lessor.next_deadline(), at(1).after(CHECKPOINT_INTERVAL));
    }

    #[test]
    fn rule_24_an_expiry_names_the_epoch_that_it_saw() {
        let mut lessor = leading();
        lessor.apply(at(500), &started(1_000, 3));
        assert_eq!(lessor.expire(at(1_400), 9), []);
        assert_eq!(lessor.expire(at(1_500), 9), [(S, 3)]);
    }

    #[test]
    fn a_new_leader_counts_from_its_start_and_a_follower_not_at_all() {
        let mut lessor = leading();
        lessor.follow();
        assert_eq!(lessor.expire(at(9_000), 9), []);
        lessor.lead(at(9_000));
        assert_eq!(lessor.expire(at(9_999), 9), []);
        assert_eq!(lessor.expire(at(10_000), 9), [(S, 0)]);
    }

    #[test]
    fn a_pause_of_the_process_is_forgiven() {
        let mut lessor = leading();
        lessor.forgive(Duration::from_secs(5));
        assert_eq!(lessor.expire(at(6_000), 9), []);
        assert_eq!(lessor.expire(at(6_001), 9), [(S, 0)]);
    }

    #[test]
    fn long_ttls_are_checkpointed_and_outlive_an_election() {
        let mut lessor = Lessor::default();
        lessor.lead(at(1));
        lessor.apply(at(1), &started(600_000, 0));
        assert_eq!(lessor.checkpoint(at(30_000), 9), []);
        let left = lessor.checkpoint(at(60_001), 9);
        assert_eq!(left, [(S, Duration::from_secs(540))]);
        let effect = SessionEffect::Started {
            session: S,
            ttl: left[0].1,
            full_ttl: Duration::from_secs(600),
            epoch: 1,
        };
        lessor.apply(at(60_002), &effect);
        lessor.follow();
        lessor.lead(at(100_000));
        assert_eq!(lessor.expire(at(639_999), 9), []);
        assert_eq!(lessor.expire(at(640_000), 9), [(S, 1)]);
    }

    #[test]
    fn a_checkpoint_undoes_no_renewal() {
        let whole = Duration::from_secs(600);
        let checkpoint =
            |ttl, epoch| SessionEffect::Started { session: S, ttl, full_ttl: whole, epoch };
        let mut lessor = Lessor::default();
        lessor.lead(at(1));
        lessor.apply(at(1), &started(600_000, 0));
        let left = lessor.checkpoint(at(500_001), 9)[0].1;
        assert_eq!(left, Duration::from_secs(100));
        // A renewal overtakes the checkpoint before it is applied: the whole TTL counts.
        assert_eq!(lessor.renew(at(500_002), S), Some(whole));
        lessor.apply(at(500_003), &checkpoint(left, 1));
        assert_eq!(lessor.expire(at(700_000), 9), []);
        // Now the log knows of less: nothing more is promised until it knows the whole again.
        assert_eq!(lessor.renew(at(700_000), S), Some(left));
        assert_eq!(lessor.checkpoint(at(700_001), 9).len(), 1);
        lessor.apply(at(700_002), &checkpoint(whole, 2));
        assert_eq!(lessor.renew(at(700_003), S), Some(whole));
        assert_eq!(lessor.checkpoint(at(700_004), 9), []);
    }
}
