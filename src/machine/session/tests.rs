//! What sessions promise.

use super::*;
use crate::{
    machine::testing::Harness,
    pb::command::v1::{ExpiredSession, SessionCheckpoint, command::Op},
};

fn open(h: &mut Harness, seconds: i64) -> SessionId {
    let ttl = Some(prost_types::Duration { seconds, nanos: 0 });
    h.outcome(Op::OpenSession(OpenSessionRequest { ttl, ..OpenSessionRequest::default() }));
    SessionId::new(h.index().value())
}

fn expire(h: &mut Harness, term: u64, session: SessionId, epoch: u64) {
    let sessions = vec![ExpiredSession { session_id: session.value(), epoch }];
    h.apply(Op::ExpireSessions(ExpireSessions { term, sessions }));
}

fn lives(h: &Harness, session: SessionId) -> bool {
    h.view().session(session).unwrap().is_some()
}

#[test]
fn a_session_opens_with_the_entrys_index_and_closes_once() {
    let mut h = Harness::new();
    let first = open(&mut h, 60);
    let second = open(&mut h, 60);
    assert!(second > first);
    let ids: Vec<_> = h.view().sessions().unwrap().iter().map(|info| info.session).collect();
    assert_eq!(ids, [first, second]);
    let close = CloseSessionRequest { session_id: first.value(), ..Default::default() };
    let applied = h.apply(Op::CloseSession(close.clone()));
    assert_eq!(applied.sessions, [SessionEffect::Closed { session: first }]);
    assert_eq!(h.refused(Op::CloseSession(close)).reason(), Reason::SessionNotFound);
    assert!(!lives(&h, first) && lives(&h, second));
}

#[test]
fn the_leader_hears_of_a_new_session() {
    let mut h = Harness::new();
    let request = OpenSessionRequest { owner: "me".into(), ..OpenSessionRequest::default() };
    let applied = h.apply(Op::OpenSession(request));
    let ttl = span::TTL_DEFAULT;
    let session = SessionId::new(1);
    let started = SessionEffect::Started { session, ttl, full_ttl: ttl, epoch: 1 };
    assert_eq!(applied.sessions, [started]);
    let info = SessionInfo { session, ttl, remaining: ttl, epoch: 1 };
    assert_eq!(h.view().session(session).unwrap(), Some(info));
}

#[test]
fn rule_24_an_expiry_of_another_term_is_void() {
    let mut h = Harness::new();
    let session = open(&mut h, 60);
    h.term = 2;
    expire(&mut h, 1, session, 1);
    assert!(lives(&h, session));
    expire(&mut h, 2, session, 1);
    assert!(!lives(&h, session));
}

#[test]
fn rule_24_an_expiry_with_an_older_epoch_is_void() {
    let mut h = Harness::new();
    let session = open(&mut h, 60);
    let checkpoint = SessionCheckpoint { session_id: session.value(), remaining_ms: 9_000 };
    let sessions = vec![checkpoint];
    let applied = h.apply(Op::CheckpointSessions(CheckpointSessions { sessions }));
    let (ttl, full_ttl) = (Duration::from_secs(9), Duration::from_secs(60));
    assert_eq!(applied.sessions, [SessionEffect::Started { session, ttl, full_ttl, epoch: 2 }]);
    assert_eq!(h.view().session(session).unwrap().unwrap().remaining, ttl);
    expire(&mut h, 1, session, 1);
    assert!(lives(&h, session));
    expire(&mut h, 1, session, 2);
    assert!(!lives(&h, session));
}

#[test]
fn a_checkpoint_never_lengthens_a_ttl_nor_revives_a_session() {
    let mut h = Harness::new();
    let session = open(&mut h, 60);
    let point = |session_id| SessionCheckpoint { session_id, remaining_ms: 90_000 };
    let sessions = vec![point(session.value()), point(77)];
    h.apply(Op::CheckpointSessions(CheckpointSessions { sessions }));
    let info = h.view().session(session).unwrap().unwrap();
    assert_eq!(info.remaining, Duration::from_secs(60));
    assert_eq!(h.view().sessions().unwrap().len(), 1);
}

#[test]
fn malformed_requests_are_refused() {
    let mut h = Harness::new();
    for seconds in [0, -1, 86_401] {
        let ttl = Some(prost_types::Duration { seconds, nanos: 0 });
        let request = OpenSessionRequest { ttl, ..OpenSessionRequest::default() };
        assert_eq!(h.refused(Op::OpenSession(request)).reason(), Reason::InvalidArgument);
    }
    let owner = "x".repeat(257);
    let request = OpenSessionRequest { owner, ..OpenSessionRequest::default() };
    assert_eq!(h.refused(Op::OpenSession(request)).reason(), Reason::TooLarge);
    let nobody = CloseSessionRequest::default();
    assert_eq!(h.refused(Op::CloseSession(nobody)).reason(), Reason::InvalidArgument);
}
