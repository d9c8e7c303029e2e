//! What a replica does unasked: sessions run out, log time moves on, the cluster is founded, disks
//! are registered, parked sessions are renewed and the log is cut behind the durable state.

use std::collections::VecDeque;

use prost::Message as _;

use crate::{
    node::{
        calls::{Call, CallKind},
        places::PlaceId,
        replica::{Jobs, Replica, routing::Route},
    },
    pb::command::v1::{
        AdvanceTime, CheckpointSessions, Command, ExpireSessions, ExpiredSession, FoundCluster,
        SessionCheckpoint, command,
    },
    raft::{Append, Input, Restored, RoleKind},
    types::{Duration, Instant, LogIndex, LogTime},
};

/// How often a parked waiter's session is renewed; well below the state machine's TTL for it.
pub(super) const PARKED_RENEWAL_INTERVAL: Duration = Duration::from_secs(3);
/// An entry that moves log time on is proposed again after this, should the first be lost.
pub(super) const ADVANCE_RETRY: Duration = Duration::from_millis(200);
/// A silence from here on is a pause of the process. The driver wakes at least twice as often.
pub(super) const PAUSE_MIN: Duration = Duration::from_secs(1);
/// Founding and registering are proposed again after this.
const INTRODUCTION_RETRY: Duration = Duration::from_secs(2);
/// The most sessions that one entry ends or checkpoints.
const SESSIONS_PER_ENTRY_MAX: usize = 256;

impl Replica {
    pub(super) fn perform_duties(&mut self, now: Instant, wall: LogTime, jobs: &mut Jobs) {
        for session in self.calls.renewals(now, PARKED_RENEWAL_INTERVAL) {
            let sequence = self.calls.internal_sequence();
            let deadline = now.after(PARKED_RENEWAL_INTERVAL);
            let (kind, place) = (CallKind::Renew { session }, PlaceId::NONE);
            self.calls.insert(now, Call { sequence, deadline, place, kind });
        }
        self.introduce(now, wall, jobs);
        self.shortages.forget_silent(now);
        if self.lessor.leading() {
            self.expire_sessions(now, wall, jobs);
            self.advance_time(now, wall, jobs);
        }
        if self.keeper.wants_persist(now) {
            jobs.persist_state = true;
        }
    }

    /// The first leader founds the cluster; every node makes its disk known (rule 20).
    fn introduce(&mut self, now: Instant, wall: LogTime, jobs: &mut Jobs) {
        let due = self.introduced_at.is_zero_or_before(now, INTRODUCTION_RETRY);
        if (self.founded && self.registered) || self.status.leader.is_none() || !due {
            return;
        }
        if !self.founded {
            if self.status.role == RoleKind::Leader && self.status.leader_ready {
                self.introduced_at = now;
                let cluster_id = self.config.new_cluster_id.clone();
                let members = vec![self.config.member.clone()];
                let op = command::Op::FoundCluster(FoundCluster { cluster_id, members });
                self.propose_own(now, wall, op, jobs);
            }
        } else {
            self.introduced_at = now;
            self.call_own(now, command::Op::RegisterMember(self.config.member.clone()));
        }
    }

    fn expire_sessions(&mut self, now: Instant, wall: LogTime, jobs: &mut Jobs) {
        let expired = self.lessor.expire(now, SESSIONS_PER_ENTRY_MAX);
        if !expired.is_empty() {
            let sessions = expired
                .into_iter()
                .map(|(session, epoch)| ExpiredSession { session_id: session.value(), epoch });
            let op = command::Op::ExpireSessions(ExpireSessions {
                term: self.status.term.value(),
                sessions: sessions.collect(),
            });
            self.propose_own(now, wall, op, jobs);
        }
        let left = self.lessor.checkpoint(now, SESSIONS_PER_ENTRY_MAX);
        if !left.is_empty() {
            let sessions = left.into_iter().map(|(session, left)| SessionCheckpoint {
                session_id: session.value(),
                remaining_ms: u64::try_from(left.as_millis()).unwrap_or(u64::MAX),
            });
            let sessions = sessions.collect();
            let op = command::Op::CheckpointSessions(CheckpointSessions { sessions });
            self.propose_own(now, wall, op, jobs);
        }
    }

    /// What falls due in log time needs an entry to be applied with.
    fn advance_time(&mut self, now: Instant, wall: LogTime, jobs: &mut Jobs) {
        let due = self.next_timer.is_some_and(|timer| timer <= wall);
        if due && self.advanced_at.after(ADVANCE_RETRY) <= now {
            self.advanced_at = now;
            self.propose_own(now, wall, command::Op::AdvanceTime(AdvanceTime {}), jobs);
        }
    }

    /// Proposes a command as the leader; if it is lost, the duty comes up again.
    fn propose_own(&mut self, now: Instant, wall: LogTime, op: command::Op, jobs: &mut Jobs) {
        let command = Command { version: 1, origin: None, op: Some(op) };
        let ticket = self.ticket(Route::Nobody);
        let commands = vec![(ticket, command.encode_to_vec().into())];
        let expected_term = Some(self.status.term);
        self.step(now, Input::Propose { time: wall, expected_term, commands }, jobs);
    }
}

impl Instant {
    /// Whether this is the start, or `span` has gone by since.
    fn is_zero_or_before(self, now: Self, span: Duration) -> bool {
        self == Self::ZERO || self.after(span) <= now
    }
}

/// How often the state is made durable though little was applied.
const PERSIST_INTERVAL: Duration = Duration::from_secs(30);

/// How many times what is kept for anybody the log may hold for a member that is catching up.
const HELD_FACTOR: u64 = 4;

/// Where a run of applied entries ended, and how many bytes lie between it and the one before.
#[derive(Clone, Copy, Debug)]
struct Chunk {
    index: LogIndex,
    bytes: u64,
}

/// Keeps count of the log and says when the state is to be made durable and the log to be cut.
#[derive(Debug)]
pub(super) struct LogKeeper {
    retained_bytes: u64,
    /// Applied runs that the log still holds, oldest first.
    chunks: VecDeque<Chunk>,
    chunk_bytes: u64,
    /// Bytes appended and not yet in a chunk.
    open_bytes: u64,
    unpersisted_bytes: u64,
    persisting: bool,
    persisted_at: Instant,
}

impl LogKeeper {
    pub(super) fn new(retained_bytes: u64, restored: &Restored) -> Self {
        let open_bytes = restored.entries.iter().map(|e| entry_bytes(e.payload.len())).sum();
        Self {
            retained_bytes,
            chunks: VecDeque::new(),
            chunk_bytes: 0,
            open_bytes,
            unpersisted_bytes: open_bytes,
            persisting: false,
            persisted_at: Instant::ZERO,
        }
    }

    pub(super) fn appended(&mut self, append: &Append) {
        let bytes: u64 = append.entries.iter().map(|e| entry_bytes(e.payload.len())).sum();
        self.open_bytes += bytes;
        self.unpersisted_bytes += bytes;
    }

    pub(super) fn applied(&mut self, index: LogIndex) {
        let bytes = core::mem::take(&mut self.open_bytes);
        self.chunk_bytes += bytes;
        self.chunks.push_back(Chunk { index, bytes });
    }

    /// A snapshot replaced state and log.
    pub(super) fn reset(&mut self, index: LogIndex) {
        self.chunks.clear();
        self.chunk_bytes = 0;
        self.open_bytes = 0;
        self.applied(index);
    }

    pub(super) fn wants_persist(&mut self, now: Instant) -> bool {
        let many = self.unpersisted_bytes >= self.retained_bytes / 4;
        let long = self.unpersisted_bytes > 0 && self.persisted_at.after(PERSIST_INTERVAL) <= now;
        if self.persisting || !(many || long) {
            return false;
        }
        self.persisting = true;
        self.persisted_at = now;
        self.unpersisted_bytes = 0;
        true
    }

    /// The state is durable up to `index`: where the log may be cut now. What comes after `wanted`
    /// is held for a member that is catching up, within [`HELD_FACTOR`]: else a snapshot under
    /// steady writes would be followed by the next one for ever.
    pub(super) fn state_persisted(
        &mut self,
        index: LogIndex,
        wanted: Option<LogIndex>,
    ) -> Option<LogIndex> {
        self.persisting = false;
        let mut cut = None;
        while self.chunk_bytes > self.retained_bytes
            && let Some(chunk) = self.chunks.front().copied()
            && chunk.index <= index
        {
            let is_wanted = wanted.is_some_and(|wanted| chunk.index > wanted);
            if is_wanted && self.chunk_bytes <= self.retained_bytes.saturating_mul(HELD_FACTOR) {
                break;
            }
            self.chunks.pop_front();
            self.chunk_bytes -= chunk.bytes;
            cut = Some(chunk.index);
        }
        cut
    }
}

/// What an entry takes in memory and on disk, about.
const fn entry_bytes(payload: usize) -> u64 {
    payload as u64 + 64
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::{
        raft::{Entry, HardMark, HardState, LogMark, Membership, Payload},
        types::Term,
    };

    const RETAINED: u64 = 1_000;

    fn keeper() -> LogKeeper {
        let restored = Restored {
            hard: HardState::default(),
            purged_index: LogIndex::ZERO,
            purged_term: Term::ZERO,
            last_time: LogTime::ZERO,
            entries: Vec::new(),
            applied: LogIndex::ZERO,
            membership: Membership::default(),
        };
        LogKeeper::new(RETAINED, &restored)
    }

    /// Appends and applies an entry of 100 bytes at each index.
    fn write(keeper: &mut LogKeeper, indexes: core::ops::RangeInclusive<u64>) {
        for index in indexes.map(LogIndex::new) {
            let payload = Payload::Command(Bytes::from(vec![0; 36]));
            let entry = Entry { index, term: Term::ZERO, time: LogTime::ZERO, payload };
            keeper.appended(&Append {
                hard: HardState::default(),
                reset_to: None,
                truncate_from: None,
                entries: vec![entry],
                hard_mark: HardMark::default(),
                log_mark: LogMark::default(),
            });
            keeper.applied(index);
        }
    }

    fn cut(keeper: &mut LogKeeper, durable: u64, wanted: Option<u64>) -> Option<u64> {
        let cut = keeper.state_persisted(LogIndex::new(durable), wanted.map(LogIndex::new));
        cut.map(LogIndex::value)
    }

    #[test]
    fn the_log_is_cut_to_its_size() {
        let mut keeper = keeper();
        write(&mut keeper, 1..=10);
        assert_eq!(cut(&mut keeper, 10, None), None, "it is no larger than it may be");
        write(&mut keeper, 11..=30);
        assert_eq!(cut(&mut keeper, 30, None), Some(20));
        assert_eq!(cut(&mut keeper, 30, None), None);
    }

    #[test]
    fn the_log_is_never_cut_beyond_the_durable_state() {
        let mut keeper = keeper();
        write(&mut keeper, 1..=100);
        assert_eq!(cut(&mut keeper, 0, None), None);
        assert_eq!(cut(&mut keeper, 7, None), Some(7));
        assert_eq!(cut(&mut keeper, 8, Some(1_000)), Some(8));
    }

    #[test]
    fn the_log_is_held_for_a_member_that_catches_up_but_not_without_bound() {
        let mut keeper = keeper();
        write(&mut keeper, 1..=30);
        assert_eq!(cut(&mut keeper, 30, Some(5)), Some(5));
        write(&mut keeper, 31..=45);
        assert_eq!(cut(&mut keeper, 45, Some(5)), None, "4,000 bytes are held");
        write(&mut keeper, 46..=60);
        assert_eq!(cut(&mut keeper, 60, Some(5)), Some(20), "and no more");
        assert_eq!(cut(&mut keeper, 60, None), Some(50));
    }

    #[test]
    fn the_state_is_made_durable_after_a_quarter_of_the_log_and_after_a_while() {
        let (mut keeper, start) = (keeper(), Instant::ZERO.after(Duration::from_secs(100)));
        assert!(!keeper.wants_persist(start), "nothing was written");
        write(&mut keeper, 1..=1);
        assert!(keeper.wants_persist(start), "the last time is long ago");
        write(&mut keeper, 2..=9);
        assert!(!keeper.wants_persist(start), "one at a time");
        cut(&mut keeper, 9, None);
        assert!(keeper.wants_persist(start));
        cut(&mut keeper, 9, None);
        write(&mut keeper, 10..=10);
        assert!(!keeper.wants_persist(start));
        assert!(keeper.wants_persist(start.after(PERSIST_INTERVAL)));
    }
}
