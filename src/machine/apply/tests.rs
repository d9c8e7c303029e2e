//! Determinism: the same entries give the same bytes however they are cut.

use bytes::Bytes;
use proptest::prelude::*;
use prost::Message as _;
use uuid::Uuid;

use crate::{
    machine::{
        COMMAND_VERSION, Machine, MachineConfig,
        store::Store,
        testing::{Harness, MapStore, delete, hex_lines, put},
    },
    pb::{
        command::v1::{Command, ExpireSessions, ExpiredSession, Origin, command::Op},
        discovery::v1::{RegisterRequest, SetInstanceStateRequest},
        event::v1::{
            AppendRequest, DeleteStreamRequest, Event, SetStreamLimitsRequest, StreamLimits,
            TrimStreamRequest, trim_stream_request::Before,
        },
        kv::v1::{CompactRequest, PutRequest},
        lock::v1::{AcquireRequest, ReleaseRequest},
        session::v1::{CloseSessionRequest, OpenSessionRequest},
    },
    raft::{Entry, Membership, Payload},
    types::{LogIndex, LogTime, NodeId, Term},
};

fn command() -> impl Strategy<Value = Op> {
    let key = prop::sample::select(vec!["a", "a\0", "b", "c"]);
    prop_oneof![
        (key.clone(), any::<u8>()).prop_map(|(key, value)| put(key, &value.to_string())),
        (key.clone(), key).prop_map(|(key, end)| delete(key, end)),
        (0..40_u64).prop_map(|revision| Op::Compact(CompactRequest {
            revision,
            ..CompactRequest::default()
        })),
        (0..6_u128).prop_map(|id| Op::Put(PutRequest {
            key: "id".into(),
            request_id: Uuid::from_u128(id).to_string(),
            ..PutRequest::default()
        })),
        typed(),
        retention(),
    ]
}

/// What makes streams let go.
fn retention() -> impl Strategy<Value = Op> {
    let stream = prop::sample::select(vec!["x", "y"]).prop_map(str::to_owned);
    prop_oneof![
        (stream.clone(), 1..90_usize).prop_map(|(stream, count)| Op::Append(AppendRequest {
            stream,
            events: vec![Event { r#type: "t".into(), ..Event::default() }; count],
            ..AppendRequest::default()
        })),
        (stream.clone(), 0..5_i64, 0..50_u64, 0..2_000_u64).prop_map(
            |(stream, age, count, bytes)| {
                let max_age = Some(prost_types::Duration { seconds: age, nanos: 0 });
                let (max_count, max_bytes) = (Some(count), Some(bytes));
                let limits = Some(StreamLimits { max_age, max_count, max_bytes });
                let request_id = String::new();
                Op::SetStreamLimits(SetStreamLimitsRequest { stream, limits, request_id })
            }
        ),
        (stream.clone(), 1..200_u64).prop_map(|(stream, version)| Op::TrimStream(
            TrimStreamRequest {
                stream,
                before: Some(Before::BeforeVersion(version)),
                ..TrimStreamRequest::default()
            }
        )),
        stream.prop_map(|stream| Op::DeleteStream(DeleteStreamRequest {
            stream,
            ..DeleteStreamRequest::default()
        })),
    ]
}

/// Commands of the typed parts. Sessions and tokens are small numbers, so that some are right.
fn typed() -> impl Strategy<Value = Op> {
    let name = prop::sample::select(vec!["x", "y"]).prop_map(str::to_owned);
    prop_oneof![
        Just(Op::OpenSession(OpenSessionRequest::default())),
        (1..30_u64).prop_map(|session_id| Op::CloseSession(CloseSessionRequest {
            session_id,
            ..CloseSessionRequest::default()
        })),
        (1..30_u64).prop_map(|session_id| Op::ExpireSessions(ExpireSessions {
            term: 1,
            sessions: (0..3).map(|epoch| ExpiredSession { session_id, epoch }).collect(),
        })),
        (name.clone(), prop::option::of(0..100_i64), 0..4_u128).prop_map(|(name, wait, id)| {
            let wait = wait.map(|seconds| prost_types::Duration { seconds, nanos: 0 });
            let request_id = Uuid::from_u128(1_000 + id).to_string();
            Op::Acquire(AcquireRequest { name, wait, request_id, ..AcquireRequest::default() })
        }),
        (name.clone(), 1..40_u64).prop_map(|(name, fencing_token)| Op::Release(ReleaseRequest {
            name,
            fencing_token,
            ..ReleaseRequest::default()
        })),
        (name.clone(), 0..30_u64).prop_map(|(service, session_id)| Op::Register(RegisterRequest {
            service,
            address: "127.0.0.1:1".into(),
            session_id,
            ..RegisterRequest::default()
        })),
        (name.clone(), 1..30_u64, 1..3_i32).prop_map(|(service, index, state)| {
            let instance_id = format!("i-{index}");
            let request =
                SetInstanceStateRequest { service, instance_id, state, ..Default::default() };
            Op::SetInstanceState(request)
        }),
        name.prop_map(|stream| Op::Append(AppendRequest {
            stream,
            events: vec![Event { r#type: "t".into(), ..Event::default() }],
            ..AppendRequest::default()
        })),
    ]
}

fn payload() -> impl Strategy<Value = Payload> {
    prop_oneof![
        8 => command().prop_map(|op| {
            let origin = Some(Origin { node_id: 1, boot: 1, sequence: 1 });
            let command = Command { version: COMMAND_VERSION, origin, op: Some(op) };
            Payload::Command(command.encode_to_vec().into())
        }),
        1 => Just(Payload::Noop),
        1 => any::<[u8; 4]>().prop_map(|bytes| Payload::Command(Bytes::copy_from_slice(&bytes))),
        1 => (1..4_u64).prop_map(|id| Payload::Membership(Membership::of([NodeId::new(id)]))),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn the_same_entries_give_the_same_bytes_however_they_are_cut(
        payloads in prop::collection::vec((payload(), 0..200_000_u64), 1..80),
        cuts in prop::collection::vec(1..9_usize, 1..9),
    ) {
        let entries: Vec<Entry> = payloads.into_iter().enumerate().map(|(at, (payload, time))| Entry {
            index: LogIndex::new(at as u64 + 1),
            term: Term::new(1),
            // The core never lets time go back; a machine that is told so holds on to its own.
            time: LogTime::from_millis(time),
            payload,
        }).collect();
        let run = |cuts: &[usize]| {
            let store = std::sync::Arc::new(MapStore::default());
            let config = MachineConfig { retained_revisions: 10 };
            let open = || Machine::open(std::sync::Arc::clone(&store) as std::sync::Arc<dyn Store>, config.clone());
            let mut machine = open().unwrap();
            let (mut rest, mut cuts) = (&entries[..], cuts.iter().cycle());
            let (mut changes, mut outcomes, mut sessions) = (Vec::new(), Vec::new(), Vec::new());
            while !rest.is_empty() {
                let (now, later) = rest.split_at((*cuts.next().unwrap()).min(rest.len()));
                let applied = machine.apply(now).unwrap();
                changes.extend(applied.changes);
                outcomes.extend(applied.outcomes);
                sessions.extend(applied.sessions);
                assert_eq!(machine.next_timer(), open().unwrap().next_timer());
                // A second delivery and a restart change nothing.
                assert!(machine.apply(now).unwrap().changes.is_empty());
                machine = open().unwrap();
                rest = later;
            }
            (store.rows(), changes, outcomes, sessions)
        };
        prop_assert_eq!(run(&cuts), run(&[entries.len()]));
    }
}

#[test]
fn rule_30_apply_knows_one_clock_that_never_goes_back() {
    let mut harness = Harness::new();
    harness.now_ms = 5_000;
    harness.put("a", "1");
    harness.now_ms = 4_000;
    harness.put("a", "2");
    assert_eq!(harness.machine.head().time, LogTime::from_millis(5_000));
}

#[test]
fn a_membership_takes_effect_with_its_entry() {
    let mut harness = Harness::new();
    let membership = Membership::of([NodeId::new(1), NodeId::new(2)]);
    harness.apply_payload(Payload::Membership(membership.clone()));
    assert_eq!(harness.view().head().unwrap().membership, membership);
}

#[test]
#[should_panic(expected = "without a gap")]
fn a_missing_entry_is_never_passed_over() {
    let mut harness = Harness::new();
    let entry = Entry {
        index: LogIndex::new(2),
        term: Term::new(1),
        time: LogTime::ZERO,
        payload: Payload::Noop,
    };
    let _ = harness.machine.apply(&[entry]);
}

#[test]
fn a_call_with_sequence_zero_waits_for_nothing() {
    let mut harness = Harness::new();
    let origin = Some(Origin { node_id: 1, boot: 1, sequence: 0 });
    let command = Command { version: COMMAND_VERSION, origin, op: Some(put("a", "1")) };
    let applied = harness.apply_payload(Payload::Command(command.encode_to_vec().into()));
    assert!(applied.outcomes.is_empty() && applied.changes.len() == 1);
}

/// What is in logs must be read for ever: the encoding may not move.
#[test]
fn the_command_format_is_the_golden_one() {
    let command = Command {
        version: COMMAND_VERSION,
        origin: Some(Origin { node_id: 1, boot: 2, sequence: 3 }),
        op: Some(Op::Put(PutRequest {
            key: "key".into(),
            value: "value".into(),
            session_id: 4,
            prev_kv: true,
            require_lock: Some(crate::pb::kv::v1::HeldLock {
                name: "lock".into(),
                fencing_token: 5,
            }),
            request_id: "6:7:6".into(),
        })),
    };
    let text = hex_lines(&command.encode_to_vec());
    let golden = include_str!("../../../tests/golden/command-v1.hex");
    assert_eq!(text, golden, "the command is now\n{text}");
}
