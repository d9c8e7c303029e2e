//! What locks promise, rule by rule. The random walk over all of them is in `model.rs`.

use super::line::TOLD_MAX;
use crate::{
    machine::{Applied, SessionEffect, testing::Harness},
    pb::{
        command::v1::{
            AdvanceTime, CancelAcquire, ExpireSessions, ExpiredSession, Origin, Outcome, Reason,
            Refusal, command::Op, outcome,
        },
        kv::v1::{HeldLock, PutRequest},
        lock::v1::{
            AcquireRequest, AcquireResponse, DescribeResponse, ListRequest, Lock, ReleaseRequest,
        },
        session::v1::{CloseSessionRequest, OpenSessionRequest},
    },
    types::{Duration, SessionId},
};

pub(super) const SECOND: u64 = 1_000;

pub(super) fn seconds(seconds: i64) -> Option<prost_types::Duration> {
    Some(prost_types::Duration { seconds, nanos: 0 })
}

pub(super) fn acquire(name: &str) -> AcquireRequest {
    AcquireRequest { name: name.to_owned(), ttl: seconds(20), ..AcquireRequest::default() }
}

fn with_id(name: &str, id: u128) -> AcquireRequest {
    AcquireRequest { request_id: uuid::Uuid::from_u128(id).to_string(), ..acquire(name) }
}

fn release(h: &mut Harness, name: &str, fencing_token: u64) -> Applied {
    let request =
        ReleaseRequest { name: name.to_owned(), fencing_token, ..ReleaseRequest::default() };
    h.apply(Op::Release(request))
}

fn cancel(h: &mut Harness, name: &str, call: Origin) -> Applied {
    let command = CancelAcquire { name: name.to_owned(), attachment: Some(call) };
    h.apply(Op::CancelAcquire(command))
}

fn expire(h: &mut Harness, sessions: &[u64]) -> Applied {
    let epoch = |id| h.view().session(SessionId::new(id)).unwrap().map_or(0, |info| info.epoch);
    let sessions = sessions
        .iter()
        .map(|&session_id| ExpiredSession { session_id, epoch: epoch(session_id) })
        .collect();
    h.apply(Op::ExpireSessions(ExpireSessions { term: h.term, sessions }))
}

fn open_session(h: &mut Harness) -> u64 {
    h.outcome(Op::OpenSession(OpenSessionRequest::default()));
    h.index().value()
}

/// Acquires a lock that is free.
fn granted(h: &mut Harness, request: AcquireRequest) -> AcquireResponse {
    grant_in(&h.outcome(Op::Acquire(request)))
}

/// Queues for a lock that is held; returns the call that waits.
fn parked(h: &mut Harness, request: AcquireRequest) -> Origin {
    let call = h.next_origin();
    let applied = h.apply(Op::Acquire(request));
    assert_eq!(outcome_of(&applied, call), None, "a call that waits has no outcome yet");
    assert!(applied.parked.iter().any(|(parked, _)| *parked == call));
    call
}

fn grant_in(outcome: &Outcome) -> AcquireResponse {
    match &outcome.result {
        Some(outcome::Result::Acquire(granted)) => granted.clone(),
        other => panic!("not a grant: {other:?}"),
    }
}

fn refusal_in(outcome: &Outcome) -> Refusal {
    match &outcome.result {
        Some(outcome::Result::Refusal(refusal)) => refusal.clone(),
        other => panic!("not a refusal: {other:?}"),
    }
}

fn outcome_of(applied: &Applied, call: Origin) -> Option<Outcome> {
    let mut outcomes = applied.outcomes.iter().filter(|(to, _)| *to == call);
    let first = outcomes.next().map(|(_, outcome)| outcome.clone());
    assert!(outcomes.next().is_none(), "a call is answered once");
    first
}

/// The grant that an entry gave to a call that waited.
fn woken(applied: &Applied, call: Origin) -> AcquireResponse {
    grant_in(&outcome_of(applied, call).expect("the call was woken"))
}

fn describe(h: &Harness, name: &str) -> Lock {
    let DescribeResponse { lock, .. } = h.view().lock(name).unwrap();
    lock.expect("a description has its lock")
}

fn holder_token(h: &Harness, name: &str) -> Option<u64> {
    describe(h, name).holder.map(|holder| holder.fencing_token)
}

#[test]
fn l1_a_held_lock_is_not_granted_again() {
    let mut h = Harness::new();
    let first = granted(&mut h, acquire("a"));
    let tried = AcquireRequest { wait: seconds(0), owner: "late".into(), ..acquire("a") };
    let refusal = h.refused(Op::Acquire(tried));
    assert_eq!(refusal.reason(), Reason::LockHeld);
    assert_eq!(refusal.metadata["fencing_token"], first.fencing_token.to_string());
    parked(&mut h, acquire("a"));
    assert_eq!(holder_token(&h, "a"), Some(first.fencing_token));
    assert_eq!(describe(&h, "a").waiter_count, 1);
    granted(&mut h, acquire("b"));
}

#[test]
fn l2_tokens_grow_over_release_and_new_acquire() {
    let mut h = Harness::new();
    let mut last = 0;
    for _ in 0..5 {
        let token = granted(&mut h, acquire("a")).fencing_token;
        assert!(token > last);
        last = token;
        let waiter = parked(&mut h, acquire("a"));
        let applied = release(&mut h, "a", token);
        let next = woken(&applied, waiter);
        assert!(next.fencing_token > last);
        assert_eq!(next.fencing_token, h.machine.head().revision.value());
        last = next.fencing_token;
        release(&mut h, "a", last);
        assert_eq!(holder_token(&h, "a"), None);
    }
}

#[test]
fn l3_a_grant_follows_a_logged_release_or_expiry_only() {
    let mut h = Harness::new();
    let first = granted(&mut h, acquire("a"));
    let waiter = parked(&mut h, acquire("a"));
    // Time alone, however much, ends no session: that is the leader's to propose.
    h.now_ms += 1_000 * SECOND;
    let applied = h.apply(Op::AdvanceTime(AdvanceTime {}));
    assert_eq!(outcome_of(&applied, waiter), None);
    assert_eq!(holder_token(&h, "a"), Some(first.fencing_token));
    let applied = expire(&mut h, &[first.session_id]);
    assert!(woken(&applied, waiter).fencing_token > first.fencing_token);
}

#[test]
fn l5_a_wrong_token_changes_nothing() {
    let mut h = Harness::new();
    let held = granted(&mut h, acquire("a"));
    parked(&mut h, acquire("a"));
    let before = h.store.rows();
    let wrong = ReleaseRequest { name: "a".into(), fencing_token: 99, ..Default::default() };
    let refusal = h.refused(Op::Release(wrong.clone()));
    assert_eq!(refusal.reason(), Reason::WrongFencingToken);
    assert_eq!(refusal.metadata["fencing_token"], held.fencing_token.to_string());
    let rows = h.store.rows();
    let changed = rows.iter().filter(|(key, value)| before.get(*key) != Some(*value)).count();
    assert_eq!((changed, rows.len()), (1, before.len()), "the head alone moved");
    let free = ReleaseRequest { name: "free".into(), ..wrong };
    assert_eq!(h.refused(Op::Release(free)).reason(), Reason::WrongFencingToken);
}

#[test]
fn l7_waiters_are_granted_in_order_and_exactly_one_is_woken() {
    let mut h = Harness::new();
    let mut token = granted(&mut h, acquire("a")).fencing_token;
    let line: Vec<_> = (0..4).map(|_| parked(&mut h, acquire("a"))).collect();
    let other = parked_behind_own_holder(&mut h);
    for (at, &call) in line.iter().enumerate() {
        let releaser = h.next_origin();
        let applied = release(&mut h, "a", token);
        let woken_calls: Vec<_> =
            applied.outcomes.iter().map(|(to, _)| *to).filter(|to| *to != releaser).collect();
        assert_eq!(woken_calls, [call]);
        token = woken(&applied, call).fencing_token;
        assert_eq!(describe(&h, "a").waiters.len(), line.len() - 1 - at);
    }
    assert_eq!(describe(&h, "other").waiter_count, 1);
    assert!(outcome_of(&release(&mut h, "a", token), other).is_none());
}

fn parked_behind_own_holder(h: &mut Harness) -> Origin {
    granted(h, acquire("other"));
    parked(h, acquire("other"))
}

#[test]
fn l7_the_waiters_behind_one_that_left_keep_their_order() {
    let mut h = Harness::new();
    let token = granted(&mut h, acquire("a")).fencing_token;
    let [first, second, third] = [(); 3].map(|()| parked(&mut h, acquire("a")));
    let applied = cancel(&mut h, "a", first);
    let refusal = refusal_in(&outcome_of(&applied, first).unwrap());
    assert_eq!(refusal.reason(), Reason::WaitCancelled);
    let applied = release(&mut h, "a", token);
    let token = woken(&applied, second).fencing_token;
    woken(&release(&mut h, "a", token), third);
}

#[test]
fn l8_a_retry_takes_up_its_place_in_line() {
    let mut h = Harness::new();
    let token = granted(&mut h, acquire("a")).fencing_token;
    let first = parked(&mut h, with_id("a", 7));
    let behind = parked(&mut h, acquire("a"));
    let retry = h.next_origin();
    let applied = h.apply(Op::Acquire(with_id("a", 7)));
    let replaced = refusal_in(&outcome_of(&applied, first).unwrap());
    assert_eq!(replaced.reason(), Reason::WaitCancelled);
    assert_eq!(applied.parked, [(retry, SessionId::new(first.sequence))]);
    assert_eq!(describe(&h, "a").waiter_count, 2);
    // The cancel of the call before is void.
    cancel(&mut h, "a", first);
    assert_eq!(describe(&h, "a").waiter_count, 2);
    let applied = release(&mut h, "a", token);
    let token = woken(&applied, retry).fencing_token;
    woken(&release(&mut h, "a", token), behind);
}

#[test]
fn l8_a_retry_in_a_sessions_sequence_may_raise_its_low_water_mark() {
    let mut h = Harness::new();
    let session = open_session(&mut h);
    let token = granted(&mut h, acquire("a")).fencing_token;
    let in_sequence = |low_water| AcquireRequest {
        request_id: format!("{session}:9:{low_water}"),
        ..acquire("a")
    };
    parked(&mut h, in_sequence(3));
    let retry = parked(&mut h, in_sequence(7));
    assert_eq!(describe(&h, "a").waiter_count, 1);
    let got = woken(&release(&mut h, "a", token), retry);
    assert_eq!(granted(&mut h, in_sequence(9)), got);
}

#[test]
fn a_retry_waits_for_as_long_as_itself_says() {
    let mut h = Harness::new();
    granted(&mut h, acquire("a"));
    parked(&mut h, AcquireRequest { wait: seconds(5), ..with_id("a", 7) });
    h.now_ms += 4 * SECOND;
    let retry = parked(&mut h, AcquireRequest { wait: seconds(3), ..with_id("a", 7) });
    h.now_ms += 2 * SECOND;
    assert_eq!(outcome_of(&h.apply(Op::AdvanceTime(AdvanceTime {})), retry), None);
    h.now_ms += SECOND;
    let applied = h.apply(Op::AdvanceTime(AdvanceTime {}));
    assert_eq!(refusal_in(&outcome_of(&applied, retry).unwrap()).reason(), Reason::LockHeld);
}

#[test]
fn l8_a_retry_with_another_body_is_refused_while_the_first_waits() {
    let mut h = Harness::new();
    granted(&mut h, acquire("a"));
    parked(&mut h, with_id("a", 7));
    let other = AcquireRequest { owner: "other".into(), ..with_id("a", 7) };
    assert_eq!(h.refused(Op::Acquire(other)).reason(), Reason::RequestIdReused);
    assert_eq!(describe(&h, "a").waiter_count, 1);
}

#[test]
fn l8_a_retry_after_the_grant_gets_the_same_token_whatever_is_cancelled_of_the_others() {
    let mut h = Harness::new();
    let token = granted(&mut h, acquire("a")).fencing_token;
    let waiter = parked(&mut h, with_id("a", 7));
    let got = woken(&release(&mut h, "a", token), waiter);
    let again = granted(&mut h, with_id("a", 7));
    assert_eq!(again, got);
    cancel(&mut h, "a", waiter);
    assert_eq!(holder_token(&h, "a"), Some(got.fencing_token), "the retry received the grant");
}

/// The first attempt was held up on its way; it arrives after its own retry was granted the lock,
/// and its node takes it back, because nobody waits for it any more.
#[test]
fn l8_an_attempt_that_comes_late_takes_nothing_from_the_retry_that_overtook_it() {
    let mut h = Harness::new();
    let got = granted(&mut h, with_id("a", 7));
    let late = h.next_origin();
    assert_eq!(granted(&mut h, with_id("a", 7)), got);
    cancel(&mut h, "a", late);
    assert_eq!(holder_token(&h, "a"), Some(got.fencing_token));
}

#[test]
fn a_grant_ends_when_each_call_that_was_told_of_it_is_cancelled() {
    let mut h = Harness::new();
    let calls = [(); 3].map(|()| {
        let call = h.next_origin();
        granted(&mut h, with_id("a", 7));
        call
    });
    for (at, call) in [2, 0, 1].into_iter().zip(1..) {
        assert!(holder_token(&h, "a").is_some(), "before cancel {call}");
        cancel(&mut h, "a", calls[at]);
    }
    assert_eq!(holder_token(&h, "a"), None);
}

#[test]
fn no_cancel_ends_a_grant_that_more_calls_were_told_of_than_are_kept_in_mind() {
    let mut h = Harness::new();
    let calls: Vec<_> = (0..=TOLD_MAX)
        .map(|_| {
            let call = h.next_origin();
            granted(&mut h, with_id("a", 7));
            call
        })
        .collect();
    for call in calls.into_iter().rev() {
        cancel(&mut h, "a", call);
    }
    assert!(holder_token(&h, "a").is_some(), "one of them may have taken it");
}

#[test]
fn a_cancel_that_meets_an_undelivered_grant_releases_it_and_forgets_the_answer() {
    let mut h = Harness::new();
    let token = granted(&mut h, acquire("a")).fencing_token;
    let waiter = parked(&mut h, with_id("a", 7));
    let next = parked(&mut h, acquire("a"));
    woken(&release(&mut h, "a", token), waiter);
    let applied = cancel(&mut h, "a", waiter);
    let token = woken(&applied, next).fencing_token;
    // A retry stands in line again: it must not get the token that was taken back.
    let retry = parked(&mut h, with_id("a", 7));
    assert!(woken(&release(&mut h, "a", token), retry).fencing_token > token);
}

#[test]
fn a_cancel_of_a_call_that_is_gone_changes_nothing() {
    let mut h = Harness::new();
    let held = granted(&mut h, acquire("a"));
    let stranger = Origin { node_id: 9, boot: 9, sequence: 9 };
    cancel(&mut h, "a", stranger);
    assert_eq!(holder_token(&h, "a"), Some(held.fencing_token));
}

#[test]
fn a_wait_ends_at_its_deadline_in_log_time() {
    let mut h = Harness::new();
    let held = granted(&mut h, acquire("a"));
    let waiter = parked(&mut h, AcquireRequest { wait: seconds(5), ..acquire("a") });
    let deadline = h.now_ms + 5 * SECOND;
    assert_eq!(h.machine.next_timer().map(|time| time.as_millis()), Some(deadline));
    h.now_ms = deadline - 1;
    let applied = h.apply(Op::AdvanceTime(AdvanceTime {}));
    assert_eq!(outcome_of(&applied, waiter), None);
    h.now_ms = deadline;
    let applied = h.apply(Op::AdvanceTime(AdvanceTime {}));
    let refusal = refusal_in(&outcome_of(&applied, waiter).unwrap());
    assert_eq!(refusal.reason(), Reason::LockHeld);
    let closed = SessionEffect::Closed { session: SessionId::new(waiter.sequence) };
    assert_eq!(applied.sessions, [closed]);
    assert_eq!(h.machine.next_timer(), None);
    assert_eq!(describe(&h, "a").waiter_count, 0);
    release(&mut h, "a", held.fencing_token);
    assert_eq!(holder_token(&h, "a"), None);
}

#[test]
fn a_grant_takes_the_deadline_back() {
    let mut h = Harness::new();
    let token = granted(&mut h, acquire("a")).fencing_token;
    let waiter = parked(&mut h, AcquireRequest { wait: seconds(5), ..acquire("a") });
    let got = woken(&release(&mut h, "a", token), waiter);
    assert_eq!(h.machine.next_timer(), None);
    h.now_ms += 60 * SECOND;
    h.apply(Op::AdvanceTime(AdvanceTime {}));
    assert_eq!(holder_token(&h, "a"), Some(got.fencing_token));
}

#[test]
fn many_deadlines_fall_due_over_several_entries() {
    let mut h = Harness::new();
    granted(&mut h, acquire("a"));
    for _ in 0..100 {
        parked(&mut h, AcquireRequest { wait: seconds(1), ..acquire("a") });
    }
    h.now_ms += SECOND;
    assert_eq!(h.apply(Op::AdvanceTime(AdvanceTime {})).outcomes.len(), 64 + 1);
    assert!(h.machine.next_timer().is_some());
    assert_eq!(h.apply(Op::AdvanceTime(AdvanceTime {})).outcomes.len(), 36 + 1);
    assert_eq!(h.machine.next_timer(), None);
    assert_eq!(describe(&h, "a").waiter_count, 0);
}

#[test]
fn a_waiters_ttl_starts_at_the_grant() {
    let mut h = Harness::new();
    let token = granted(&mut h, acquire("a")).fencing_token;
    let call = h.next_origin();
    let applied = h.apply(Op::Acquire(acquire("a")));
    let session = SessionId::new(call.sequence);
    let started = |ttl, epoch| {
        let ttl = Duration::from_secs(ttl);
        SessionEffect::Started { session, ttl, full_ttl: ttl, epoch }
    };
    assert_eq!(applied.sessions, [started(10, 1)], "while it waits, the node keeps it alive");
    let applied = release(&mut h, "a", token);
    let closed = SessionEffect::Closed { session: SessionId::new(1) };
    assert_eq!(applied.sessions, [started(20, 2), closed]);
    let got = woken(&applied, call);
    assert_eq!((got.session_id, got.ttl), (session.value(), seconds(20)));
    // An expiry that was decided while it waited is void.
    let stale = ExpiredSession { session_id: session.value(), epoch: 1 };
    h.apply(Op::ExpireSessions(ExpireSessions { term: h.term, sessions: vec![stale] }));
    assert_eq!(holder_token(&h, "a"), Some(got.fencing_token));
}

#[test]
fn a_waiter_whose_node_is_gone_leaves_the_line() {
    let mut h = Harness::new();
    granted(&mut h, acquire("a"));
    let waiter = parked(&mut h, acquire("a"));
    let applied = expire(&mut h, &[waiter.sequence]);
    let refusal = refusal_in(&outcome_of(&applied, waiter).unwrap());
    assert_eq!(refusal.reason(), Reason::SessionNotFound);
    assert_eq!(describe(&h, "a").waiter_count, 0);
}

#[test]
fn a_given_session_holds_locks_and_takes_them_along() {
    let mut h = Harness::new();
    let session_id = open_session(&mut h);
    let under = |name| AcquireRequest { session_id, ttl: seconds(0), ..acquire(name) };
    let a = granted(&mut h, under("a"));
    assert_eq!((a.session_id, a.ttl), (session_id, seconds(30)));
    granted(&mut h, under("b"));
    let heir = parked(&mut h, acquire("b"));
    let c = granted(&mut h, acquire("c"));
    let waiting = parked(&mut h, under("c"));
    let applied =
        h.apply(Op::CloseSession(CloseSessionRequest { session_id, ..Default::default() }));
    assert_eq!(holder_token(&h, "a"), None);
    woken(&applied, heir);
    let refusal = refusal_in(&outcome_of(&applied, waiting).unwrap());
    assert_eq!(refusal.reason(), Reason::SessionNotFound);
    assert_eq!(holder_token(&h, "c"), Some(c.fencing_token));
    assert_eq!(h.refused(Op::Acquire(under("d"))).reason(), Reason::SessionNotFound);
}

#[test]
fn a_released_lock_leaves_a_given_session_alive() {
    let mut h = Harness::new();
    let session_id = open_session(&mut h);
    let held = granted(&mut h, AcquireRequest { session_id, ..acquire("a") });
    release(&mut h, "a", held.fencing_token);
    assert!(h.view().session(SessionId::new(session_id)).unwrap().is_some());
    let held = granted(&mut h, acquire("a"));
    release(&mut h, "a", held.fencing_token);
    assert_eq!(h.view().session(SessionId::new(held.session_id)).unwrap(), None);
}

#[test]
fn a_session_does_not_wait_for_itself() {
    let mut h = Harness::new();
    let session_id = open_session(&mut h);
    let mine = AcquireRequest { session_id, ..acquire("a") };
    let held = granted(&mut h, mine.clone());
    let refusal = h.refused(Op::Acquire(mine));
    assert_eq!(refusal.reason(), Reason::LockHeld);
    assert_eq!(refusal.metadata["fencing_token"], held.fencing_token.to_string());
    granted(&mut h, acquire("b"));
    let other = AcquireRequest { session_id, ..acquire("b") };
    parked(&mut h, other.clone());
    assert_eq!(h.refused(Op::Acquire(other)).reason(), Reason::LockHeld);
}

#[test]
fn a_waiters_session_carries_nothing_else() {
    let mut h = Harness::new();
    granted(&mut h, acquire("a"));
    let waiter = parked(&mut h, acquire("a"));
    let refusal =
        h.refused(Op::Acquire(AcquireRequest { session_id: waiter.sequence, ..acquire("b") }));
    assert_eq!(refusal.reason(), Reason::SessionNotFound);
}

#[test]
fn sessions_that_end_together_pass_nothing_to_each_other() {
    let mut h = Harness::new();
    let holder = granted(&mut h, acquire("a"));
    let doomed = parked(&mut h, acquire("a"));
    let heir = parked(&mut h, acquire("a"));
    let applied = expire(&mut h, &[holder.session_id, doomed.sequence]);
    assert_eq!(
        refusal_in(&outcome_of(&applied, doomed).unwrap()).reason(),
        Reason::SessionNotFound
    );
    assert!(woken(&applied, heir).fencing_token > holder.fencing_token);
    assert_eq!(applied.changes.len(), 1, "the lock changed hands once");
}

#[test]
fn held_locks_are_listed_in_pages() {
    let mut h = Harness::new();
    for name in ["a/1", "a/2", "a/3", "b"] {
        granted(&mut h, acquire(name));
    }
    parked(&mut h, acquire("a/2"));
    let list = |page_token: &str, page_size| {
        let request = ListRequest {
            prefix: "a/".into(),
            page_size,
            page_token: page_token.into(),
            stale: false,
        };
        let page = h.view().locks(&request).unwrap().unwrap();
        let names: Vec<_> =
            page.locks.iter().map(|lock| (lock.name.clone(), lock.waiter_count)).collect();
        (names, page.next_page_token)
    };
    let (first, token) = list("", 2);
    assert_eq!(first, [("a/1".to_owned(), 0), ("a/2".to_owned(), 1)]);
    assert_eq!(list(&token, 2), (vec![("a/3".to_owned(), 0)], String::new()));
    assert_eq!(list("", 0).0.len(), 3);
}

#[test]
fn a_fenced_read_finds_the_holders_session() {
    let mut h = Harness::new();
    let held = granted(&mut h, acquire("a"));
    let session = |token| h.view().lock_session("a", token).unwrap();
    assert_eq!(session(held.fencing_token), Some(SessionId::new(held.session_id)));
    assert_eq!(session(held.fencing_token + 1), None);
}

#[test]
fn l4_a_fenced_write_takes_effect_only_while_its_token_holds() {
    let mut h = Harness::new();
    let put = |fencing_token| {
        let lock = HeldLock { name: "a".into(), fencing_token };
        let key = "k".into();
        Op::Put(PutRequest { key, require_lock: Some(lock), ..PutRequest::default() })
    };
    let old = granted(&mut h, acquire("a"));
    let heir = parked(&mut h, acquire("a"));
    h.outcome(put(old.fencing_token));
    let applied = expire(&mut h, &[old.session_id]);
    let new = woken(&applied, heir);
    assert_eq!(h.refused(put(old.fencing_token)).reason(), Reason::WrongFencingToken);
    h.outcome(put(new.fencing_token));
}

#[test]
fn keys_that_are_bound_to_a_grant_go_with_it() {
    let mut h = Harness::new();
    let held = granted(&mut h, acquire("a"));
    let put = PutRequest { key: "k".into(), session_id: held.session_id, ..Default::default() };
    h.outcome(Op::Put(put));
    let applied = release(&mut h, "a", held.fencing_token);
    let gone: Vec<_> = applied.changes.iter().map(|change| change.kv.key.clone()).collect();
    assert_eq!(gone, ["a", "k"]);
    let revisions: Vec<_> = applied.changes.iter().map(|c| c.kv.mod_revision).collect();
    assert_eq!(revisions[0], revisions[1], "one entry, one revision");
}

#[test]
fn malformed_requests_are_refused() {
    let mut h = Harness::new();
    let long = "x".repeat(513);
    let bad = [
        acquire(""),
        acquire(&long),
        AcquireRequest { ttl: seconds(0), ..acquire("a") },
        AcquireRequest { ttl: seconds(86_401), ..acquire("a") },
        AcquireRequest { wait: seconds(-1), ..acquire("a") },
    ];
    for request in bad {
        let refusal = h.refused(Op::Acquire(request));
        assert_eq!(refusal.reason(), Reason::InvalidArgument, "{}", refusal.message);
    }
    let owner = AcquireRequest { owner: long, ..acquire("a") };
    assert_eq!(h.refused(Op::Acquire(owner)).reason(), Reason::TooLarge);
}
