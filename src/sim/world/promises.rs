//! What clients were promised of sessions: one that was opened or renewed lives for its TTL, and is
//! not ended by the cluster before (rules 24 and 29).
//!
//! It compares true times: when a call was made or sent whose answer promised the TTL, and when an
//! expiry was first seen applied. Only clocks that go too fast may shorten a TTL.

use std::collections::{BTreeMap, BTreeSet};

use prost::Message as _;

use super::World;
use crate::{
    machine::{Applied, SessionEffect},
    pb::{
        command::v1::{Command, command::Op},
        raft::v1::{ForwardRequest, ForwardResponse, forward_response::answer},
    },
    raft::{Entry, Payload},
    sim::{
        history::{Answer, Call},
        invariants::Broken,
        plan::Settings,
    },
    types::{Duration, Instant, LogIndex, Term},
};

/// The sessions that clients know of, and those that ended.
#[derive(Debug)]
pub(super) struct Promises {
    /// How much faster than true time the fastest clock goes, in parts per million.
    fastest_ppm: u64,
    /// Entries up to here were looked at.
    through: LogIndex,
    sessions: BTreeMap<u64, Promise>,
    /// When an expiry ended a session.
    expired: BTreeMap<u64, Instant>,
    /// Renewals on their way, by who was asked, who asked and the call: in which term something
    /// was committed by the time they arrived.
    asked: BTreeMap<(usize, usize, u64), Term>,
}

#[derive(Clone, Copy, Debug)]
struct Promise {
    ttl: Duration,
    /// The TTL counts from here, or later.
    from: Instant,
}

impl Promises {
    pub(super) fn new(settings: &Settings) -> Self {
        let fastest = settings.drift_ppm.iter().copied().max().unwrap_or(0);
        Self {
            fastest_ppm: u64::try_from(fastest).unwrap_or(0),
            through: LogIndex::ZERO,
            sessions: BTreeMap::new(),
            expired: BTreeMap::new(),
            asked: BTreeMap::new(),
        }
    }

    /// A client got an answer to a call that it made and last sent at these times.
    pub(super) fn answered(
        &mut self,
        (began, asked): (Instant, Instant),
        call: &Call,
        answer: &Answer,
    ) -> Result<(), Broken> {
        let (session, from, ttl) = match (call, answer) {
            (Call::OpenSession { ttl_ms }, Answer::Opened { session, .. })
            | (Call::Acquire { ttl_ms, session: None, .. }, Answer::Acquired { session, .. }) => {
                // A retry may be told what an earlier attempt came to.
                (*session, began, Some(Duration::from_millis(*ttl_ms)))
            }
            (Call::RenewSession { session } | Call::RenewLock { session, .. }, Answer::Renewed) => {
                (*session, asked, None)
            }
            _ => return Ok(()),
        };
        let known = self.sessions.get(&session).copied();
        let Some(ttl) = ttl.or(known.map(|known| known.ttl)) else { return Ok(()) };
        let from = known.map_or(from, |known| known.from.max(from));
        self.sessions.insert(session, Promise { ttl, from });
        match self.expired.get(&session) {
            Some(&at) => self.check(session, at),
            None => Ok(()),
        }
    }

    /// Somebody applied entries: looks for expiries where nobody was as far before.
    pub(super) fn applied(
        &mut self,
        now: Instant,
        entries: &[Entry],
        applied: &Applied,
    ) -> Result<(), Broken> {
        if applied.head.index <= self.through {
            return Ok(());
        }
        let closed = applied.sessions.iter().filter_map(|effect| match effect {
            SessionEffect::Closed { session } => Some(session.value()),
            SessionEffect::Started { .. } => None,
        });
        let closed: BTreeSet<u64> = closed.collect();
        let before = core::mem::replace(&mut self.through, applied.head.index);
        if closed.is_empty() {
            return Ok(());
        }
        for entry in entries.iter().filter(|entry| entry.index > before) {
            let Payload::Command(bytes) = &entry.payload else { continue };
            match Command::decode(bytes.clone()).ok().and_then(|command| command.op) {
                Some(Op::ExpireSessions(expire)) => {
                    let expired = expire.sessions.iter().map(|session| session.session_id);
                    for session in expired.filter(|session| closed.contains(session)) {
                        self.expired.entry(session).or_insert(now);
                        self.check(session, now)?;
                    }
                }
                // These may have ended it before.
                Some(Op::Release(_) | Op::CloseSession(_) | Op::CancelAcquire(_)) => return Ok(()),
                _ => {}
            }
        }
        Ok(())
    }

    fn check(&self, session: u64, expired: Instant) -> Result<(), Broken> {
        let Some(&Promise { ttl, from }) = self.sessions.get(&session) else { return Ok(()) };
        let nanos = ttl.as_nanos() * 1_000_000;
        let least = nanos / u128::from(1_000_000 + self.fastest_ppm);
        let least = Duration::from_nanos(u64::try_from(least).unwrap_or(u64::MAX));
        if expired.after(Duration::from_millis(1)) >= from.after(least) {
            return Ok(());
        }
        let words = format!(
            "session {session} of {ttl:?} was promised to live from {from:?} on, and expired at \
             {expired:?}"
        );
        Err(Broken::new("session-lives", words))
    }
}

impl World {
    /// Renewals reach a node that shall lead.
    pub(super) fn renewals_arrived(&mut self, node: usize, from: usize, request: &ForwardRequest) {
        let (_, term) = self.checks.last_committed();
        for renew in &request.renewals {
            // A process that started anew counts its calls anew: the older one demands less.
            self.promises.asked.entry((node, from, renew.sequence)).or_insert(term);
        }
    }

    /// A node answers what was passed on to it.
    pub(super) fn check_renewals(&mut self, node: usize, to: usize, response: &ForwardResponse) {
        for answer in &response.answers {
            let since = self.promises.asked.remove(&(node, to, answer.sequence));
            if let (Some(answer::Result::RenewedTtlMs(_)), Some(since)) = (&answer.result, since) {
                self.check_renewal(node, since);
            }
        }
    }

    /// Rule 29: who acknowledges a renewal led after it arrived, so nothing was committed in a later
    /// term before that.
    pub(super) fn check_renewal(&mut self, node: usize, since: Term) {
        let process = self.nodes[node].process.as_deref();
        let term = process.map_or(since, |process| process.replica.status().term);
        if term < since {
            let words = format!(
                "n{} renews a session as the leader of {term:?}; {since:?} had begun before",
                node + 1
            );
            self.found = Some(Broken::new("renewal-by-leader", words));
        }
    }
}
