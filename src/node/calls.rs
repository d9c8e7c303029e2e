//! The calls that this node took and that are not answered yet.
//!
//! A call waits for a leader, is on its way, or stands in the log. Each gets exactly one answer:
//! proposals from this node's own apply, everything else from here.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use crate::{
    node::places::{PlaceId, SentKind},
    pb::command::v1::Refusal,
    types::{Duration, Instant, LogIndex, NodeId, SessionId, Term},
};

/// Calls that the node makes on its own account carry this bit; nobody waits for them.
const INTERNAL: u64 = 1 << 63;

/// From where a process's calls are numbered: each process elsewhere, because the leader may answer
/// after a restart what was asked before it. Such an answer must meet no call of the same number:
/// its read index knows nothing of what was written since.
pub(crate) const fn first_sequence(boot: u64) -> u64 {
    boot >> 2
}

/// A request of this node's own services.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    /// The call's number; outcomes carry it.
    pub(crate) sequence: u64,
    /// Not tried again after this.
    pub(crate) deadline: Instant,
    /// Where it is stamped.
    pub(crate) place: PlaceId,
    /// What is asked.
    pub(crate) kind: CallKind,
}

impl Call {
    /// What it takes in a message to the leader, about.
    pub(crate) fn bytes(&self) -> usize {
        match &self.kind {
            CallKind::Propose { command, .. } => command.len() + 32,
            _ => 32,
        }
    }
}

/// What a call asks for.
#[derive(Clone, Debug)]
pub(crate) enum CallKind {
    /// Appends an encoded command. `lock` is the name that an acquire asks for.
    Propose { command: Bytes, lock: Option<String> },
    /// Asks for a read index.
    Read,
    /// Renews a session.
    Renew { session: SessionId },
    /// Hands leadership over.
    Transfer { target: Option<NodeId> },
}

impl CallKind {
    /// What its stages are those of.
    pub(crate) const fn sent(&self) -> SentKind {
        match self {
            Self::Propose { .. } => SentKind::Write,
            Self::Read => SentKind::Read,
            Self::Renew { .. } | Self::Transfer { .. } => SentKind::Other,
        }
    }
}

/// The answer to a call, but for a proposal's outcome.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Reply {
    Refused(Refusal),
    ReadIndex(LogIndex),
    Renewed(Duration),
    Transferred(NodeId),
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    /// Waits for a leader.
    Queued,
    /// On its way to a leader of this term, or in that leader's log. In doubt since the way broke
    /// before the leader said that it has it.
    Sent { leader: NodeId, term: Term, accepted: bool, doubt: Option<Instant> },
    /// Parked in the state machine with a session that this node renews.
    Parked { session: SessionId, renew_at: Instant },
}

#[derive(Clone, Debug)]
struct Tracked {
    call: Call,
    state: State,
    /// Since when it waits for a leader, or waited when it was sent.
    since: Instant,
}

/// All open calls.
#[derive(Debug, Default)]
pub(crate) struct Calls {
    calls: BTreeMap<u64, Tracked>,
    queue: BTreeSet<u64>,
    parked: BTreeSet<(Instant, u64)>,
    internal: u64,
}

impl Calls {
    /// The calls of a process that starts now.
    pub(crate) fn of(boot: u64) -> Self {
        Self { internal: first_sequence(boot), ..Self::default() }
    }

    /// A number for a call of the node's own.
    pub(crate) const fn internal_sequence(&mut self) -> u64 {
        self.internal += 1;
        INTERNAL | self.internal
    }

    /// Takes a call in.
    pub(crate) fn insert(&mut self, now: Instant, call: Call) {
        let sequence = call.sequence;
        self.calls.insert(sequence, Tracked { call, state: State::Queued, since: now });
        self.queue.insert(sequence);
    }

    /// The calls that wait for a leader, in the order of their numbers.
    pub(crate) fn queued(&self) -> Vec<u64> {
        self.queue.iter().copied().collect()
    }

    /// The calls of clients that have no answer yet.
    pub(crate) fn open(&self) -> impl Iterator<Item = &Call> {
        let calls = self.calls.values().map(|tracked| &tracked.call);
        calls.filter(|call| !is_internal(call.sequence))
    }

    /// How many calls wait for a leader, or for what it says.
    pub(crate) fn len(&self) -> usize {
        self.calls.len()
    }

    /// Whether any call waits for a leader.
    pub(crate) fn any_queued(&self) -> bool {
        !self.queue.is_empty()
    }

    /// Whether a call waits for a leader.
    pub(crate) fn is_queued(&self, sequence: u64) -> bool {
        self.queue.contains(&sequence)
    }

    /// The call with this number.
    pub(crate) fn call(&self, sequence: u64) -> Option<&Call> {
        self.calls.get(&sequence).map(|tracked| &tracked.call)
    }

    /// A queued call is on its way now.
    pub(crate) fn sent(&mut self, sequence: u64, leader: NodeId, term: Term) {
        self.queue.remove(&sequence);
        if let Some(tracked) = self.calls.get_mut(&sequence) {
            tracked.state = State::Sent { leader, term, accepted: false, doubt: None };
        }
    }

    /// Whether an answer of `from` is one to the latest attempt. A proposal's carries the term that
    /// was expected: an answer to an earlier attempt says nothing of the later one.
    pub(crate) fn awaits(&self, sequence: u64, from: NodeId, expected_term: Term) -> bool {
        self.calls.get(&sequence).is_some_and(|tracked| match tracked.state {
            State::Sent { leader, term, .. } => {
                let proposal = matches!(tracked.call.kind, CallKind::Propose { .. });
                leader == from && (!proposal || term == expected_term)
            }
            _ => false,
        })
    }

    /// The leader has a proposal in its log.
    pub(crate) fn accepted(&mut self, sequence: u64) {
        let tracked = self.calls.get_mut(&sequence);
        if let Some(State::Sent { accepted, doubt, .. }) = tracked.map(|tracked| &mut tracked.state)
        {
            (*accepted, *doubt) = (true, None);
        }
    }

    /// A call was certainly not carried out: it waits for a leader again.
    pub(crate) fn requeue(&mut self, now: Instant, sequence: u64) {
        self.queue_again(sequence);
        if let Some(tracked) = self.calls.get_mut(&sequence) {
            tracked.since = now;
        }
    }

    /// A call did not leave this node: it goes on waiting, as if it had not been sent. What is
    /// parked was carried out, and stays.
    pub(crate) fn queue_again(&mut self, sequence: u64) {
        if let Some(tracked) = self.calls.get_mut(&sequence)
            && matches!(tracked.state, State::Sent { .. })
        {
            tracked.state = State::Queued;
            self.queue.insert(sequence);
        }
    }

    /// The way to a leader broke: what it has not accepted may be lost. If the term moves on, that
    /// decides it; if not, it is unknown.
    pub(crate) fn doubt(&mut self, now: Instant, broken: NodeId) {
        for tracked in self.calls.values_mut() {
            if let State::Sent { leader, accepted: false, doubt, .. } = &mut tracked.state
                && *leader == broken
            {
                doubt.get_or_insert(now);
            }
        }
    }

    /// The proposals that have been in doubt for `patience`; they are forgotten here.
    pub(crate) fn doubtful(&mut self, now: Instant, patience: Duration) -> Vec<Call> {
        let late = self.calls.iter().filter(|(_, tracked)| {
            matches!(tracked.call.kind, CallKind::Propose { .. })
                && matches!(tracked.state, State::Sent { doubt: Some(since), .. }
                    if since.after(patience) <= now)
        });
        let late: Vec<u64> = late.map(|(&sequence, _)| sequence).collect();
        late.into_iter().filter_map(|sequence| self.finish(sequence)).collect()
    }

    /// A call has its answer.
    pub(crate) fn finish(&mut self, sequence: u64) -> Option<Call> {
        self.queue.remove(&sequence);
        let tracked = self.calls.remove(&sequence)?;
        if let State::Parked { renew_at, .. } = tracked.state {
            self.parked.remove(&(renew_at, sequence));
        }
        Some(tracked.call)
    }

    /// An acquire waits in line; its session is this node's to renew.
    pub(crate) fn park(&mut self, sequence: u64, session: SessionId, renew_at: Instant) -> bool {
        let Some(tracked) = self.calls.get_mut(&sequence) else { return false };
        if let State::Parked { renew_at, .. } = tracked.state {
            self.parked.remove(&(renew_at, sequence));
        }
        tracked.state = State::Parked { session, renew_at };
        self.queue.remove(&sequence);
        self.parked.insert((renew_at, sequence));
        true
    }

    /// The parked sessions that are to be renewed now; the next time is `interval` later.
    pub(crate) fn renewals(&mut self, now: Instant, interval: Duration) -> Vec<SessionId> {
        let mut due = Vec::new();
        while let Some(&(renew_at, sequence)) = self.parked.first()
            && renew_at <= now
        {
            self.parked.remove(&(renew_at, sequence));
            let next = now.after(interval);
            let tracked = self.calls.get_mut(&sequence).expect("a parked call is tracked");
            if let State::Parked { session, renew_at } = &mut tracked.state {
                *renew_at = next;
                due.push(*session);
            }
            self.parked.insert((next, sequence));
        }
        due
    }

    /// An entry of this term was applied: a proposal of an earlier term that has no outcome by now
    /// never gets one, and may be proposed anew. Only the leader of the expected term takes a
    /// proposal, and the log holds all of its entries before those of later terms.
    pub(crate) fn resolve_older(&mut self, now: Instant, applied_term: Term) {
        let lost = self.calls.iter().filter(|(_, tracked)| {
            matches!(tracked.call.kind, CallKind::Propose { .. })
                && matches!(tracked.state, State::Sent { term, .. } if term < applied_term)
        });
        for sequence in lost.map(|(&sequence, _)| sequence).collect::<Vec<_>>() {
            self.requeue(now, sequence);
        }
    }

    /// A snapshot overtook the log: proposals on their way may lie below it. Returns them; their
    /// outcome is unknown.
    pub(crate) fn overtaken(&mut self) -> Vec<Call> {
        let lost = self.calls.iter().filter(|(_, tracked)| {
            matches!(tracked.call.kind, CallKind::Propose { .. }) && tracked.state != State::Queued
        });
        let lost: Vec<u64> = lost.map(|(&sequence, _)| sequence).collect();
        lost.into_iter().filter_map(|sequence| self.finish(sequence)).collect()
    }

    /// Another leads now: a transfer that was asked of its predecessor has come to an end. Returns
    /// those transfers, and whom they named.
    pub(crate) fn transferred(&mut self, term_now: Term) -> Vec<(u64, Option<NodeId>)> {
        let ended = self.calls.iter().filter_map(|(&sequence, tracked)| {
            let CallKind::Transfer { target } = tracked.call.kind else { return None };
            let sent = matches!(tracked.state, State::Sent { term, .. } if term < term_now);
            sent.then_some((sequence, target))
        });
        ended.collect()
    }

    /// The way to a leader is gone, or it leads no longer: what changes nothing is asked again.
    pub(crate) fn leader_lost(&mut self, now: Instant, gone: impl Fn(NodeId, Term) -> bool) {
        let again = self.calls.iter().filter(|(_, tracked)| {
            matches!(tracked.call.kind, CallKind::Read | CallKind::Renew { .. })
                && matches!(tracked.state, State::Sent { leader, term, .. } if gone(leader, term))
        });
        for sequence in again.map(|(&sequence, _)| sequence).collect::<Vec<_>>() {
            self.requeue(now, sequence);
        }
    }

    /// The queued calls whose deadline has passed: nobody waits for them any more.
    pub(crate) fn late(&mut self, now: Instant) -> Vec<Call> {
        let is_late = |sequence: &u64| {
            self.calls.get(sequence).is_some_and(|tracked| tracked.call.deadline <= now)
        };
        let late: Vec<u64> = self.queue.iter().copied().filter(is_late).collect();
        late.into_iter().filter_map(|sequence| self.finish(sequence)).collect()
    }

    /// The queued calls that have waited too long: `patience` without a leader, or until `spare`
    /// before their deadline. So the answer is that they were certainly not carried out; at the
    /// deadline itself the caller could only be told that the outcome is unknown.
    pub(crate) fn impatient(
        &mut self,
        now: Instant,
        patience: Duration,
        spare: Duration,
    ) -> Vec<Call> {
        let late = self.queue.iter().copied().filter(|sequence| {
            self.calls.get(sequence).is_some_and(|Tracked { call, since, .. }| {
                // A command of the node's own waits for as long as it takes.
                if is_internal(call.sequence) && matches!(call.kind, CallKind::Propose { .. }) {
                    return false;
                }
                since.after(patience) <= now || call.deadline <= now.after(spare)
            })
        });
        let late: Vec<u64> = late.collect();
        late.into_iter().filter_map(|sequence| self.finish(sequence)).collect()
    }

    /// When a parked session is to be renewed next.
    pub(crate) fn next_renewal(&self) -> Instant {
        self.parked.first().map_or(Instant::FAR, |&(renew_at, _)| renew_at)
    }
}

/// Whether a call is the node's own.
pub(crate) const fn is_internal(sequence: u64) -> bool {
    sequence & INTERNAL != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn propose(sequence: u64) -> Call {
        let kind = CallKind::Propose { command: Bytes::new(), lock: None };
        Call { sequence, deadline: Instant::FAR, place: PlaceId::NONE, kind }
    }

    fn at(millis: u64) -> Instant {
        Instant::ZERO.after(Duration::from_millis(millis))
    }

    #[test]
    fn a_proposal_of_an_older_term_is_proposed_anew_once_a_later_term_is_applied() {
        let mut calls = Calls::default();
        calls.insert(at(1), propose(1));
        calls.sent(1, NodeId::new(2), Term::new(3));
        calls.resolve_older(at(2), Term::new(3));
        assert!(!calls.any_queued());
        calls.resolve_older(at(2), Term::new(4));
        assert_eq!(calls.queued(), [1]);
    }

    #[test]
    fn a_broken_way_repeats_reads_and_leaves_proposals_alone() {
        let mut calls = Calls::default();
        calls.insert(at(1), propose(1));
        calls.insert(at(1), Call { kind: CallKind::Read, ..propose(2) });
        calls.sent(1, NodeId::new(2), Term::new(3));
        calls.sent(2, NodeId::new(2), Term::new(3));
        calls.leader_lost(at(2), |leader, _| leader == NodeId::new(2));
        assert_eq!(calls.queued(), [2]);
    }

    #[test]
    fn a_late_answer_to_an_earlier_attempt_says_nothing_of_the_later_one() {
        let mut calls = Calls::default();
        calls.insert(at(1), propose(1));
        calls.sent(1, NodeId::new(2), Term::new(3));
        assert!(calls.awaits(1, NodeId::new(2), Term::new(3)));
        calls.resolve_older(at(2), Term::new(4));
        assert!(!calls.awaits(1, NodeId::new(2), Term::new(3)), "it waits");
        calls.sent(1, NodeId::new(2), Term::new(5));
        assert!(!calls.awaits(1, NodeId::new(2), Term::new(3)), "an answer to the first attempt");
        calls.park(1, SessionId::new(7), at(9));
        assert!(!calls.awaits(1, NodeId::new(2), Term::new(5)), "it is carried out");
        calls.requeue(at(3), 1);
        assert!(!calls.any_queued(), "and stays so");
    }

    #[test]
    fn what_was_not_accepted_when_the_way_broke_is_unknown_after_a_while() {
        let mut calls = Calls::default();
        let doubtful = |calls: &mut Calls, now| {
            let calls = calls.doubtful(now, Duration::from_millis(10));
            calls.iter().map(|call| call.sequence).collect::<Vec<_>>()
        };
        for sequence in [1, 2, 3] {
            calls.insert(at(1), propose(sequence));
            calls.sent(sequence, NodeId::new(2), Term::new(3));
        }
        calls.accepted(1);
        calls.doubt(at(2), NodeId::new(2));
        calls.accepted(2);
        assert_eq!(doubtful(&mut calls, at(11)), [0; 0]);
        assert_eq!(doubtful(&mut calls, at(12)), [3]);
    }

    #[test]
    fn a_queued_call_is_late_at_its_deadline() {
        let mut calls = Calls::default();
        calls.insert(at(0), Call { deadline: at(5), ..propose(1) });
        calls.insert(at(0), propose(2));
        assert!(calls.late(at(4)).is_empty());
        let late: Vec<u64> = calls.late(at(5)).iter().map(|call| call.sequence).collect();
        assert_eq!(late, [1]);
        assert_eq!(calls.queued(), [2]);
    }

    #[test]
    fn a_call_without_a_leader_is_refused_after_the_patience_or_shortly_before_its_deadline() {
        let mut calls = Calls::default();
        calls.insert(at(0), propose(1));
        calls.insert(at(0), Call { deadline: at(7), ..propose(2) });
        let late = |calls: &mut Calls, now| {
            let late = calls.impatient(now, Duration::from_millis(10), Duration::from_millis(2));
            late.iter().map(|call| call.sequence).collect::<Vec<_>>()
        };
        assert_eq!(late(&mut calls, at(4)), [0; 0]);
        assert_eq!(late(&mut calls, at(5)), [2]);
        assert_eq!(late(&mut calls, at(10)), [1]);
        assert!(calls.calls.is_empty());
    }

    #[test]
    fn parked_sessions_are_renewed_in_their_interval() {
        let mut calls = Calls::default();
        calls.insert(at(0), propose(1));
        assert!(calls.park(1, SessionId::new(7), at(3)));
        assert!(!calls.park(9, SessionId::new(8), at(3)), "nobody waits");
        assert_eq!(calls.next_renewal(), at(3));
        assert_eq!(calls.renewals(at(2), Duration::from_millis(3)), []);
        assert_eq!(calls.renewals(at(3), Duration::from_millis(3)), [SessionId::new(7)]);
        assert_eq!(calls.next_renewal(), at(6));
        calls.resolve_older(at(7), Term::new(99));
        assert!(!calls.any_queued(), "a parked call stands in the state");
    }
}
