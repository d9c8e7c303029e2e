//! The rows of the typed commands as they are kept, against a golden file: what is on disk and in
//! snapshots must be read for ever. A change here needs a new format version in `head.rs`.

use core::fmt::Write as _;

use crate::{
    machine::testing::Harness,
    pb::{
        command::v1::{FoundCluster, PutBatch, RegisterMember, command::Op},
        discovery::v1::{InstanceState, RegisterRequest, SetInstanceStateRequest},
        event::v1::{AppendRequest, Event, SetStreamLimitsRequest, StreamLimits},
        kv::v1::StreamedPut,
        lock::v1::AcquireRequest,
        session::v1::OpenSessionRequest,
    },
};

const UUID: &str = "6f1d7b1e-0000-4000-8000-000000000001";

/// One of everything.
fn filled() -> Harness {
    let seconds = |seconds| Some(prost_types::Duration { seconds, nanos: 0 });
    let mut h = Harness::new();
    let member = RegisterMember {
        node_id: 1,
        incarnation: UUID.into(),
        peer_address: "10.0.0.1:7201".into(),
        client_address: "10.0.0.1:7200".into(),
    };
    h.apply(Op::FoundCluster(FoundCluster { cluster_id: UUID.into(), members: vec![member] }));
    h.apply(Op::OpenSession(OpenSessionRequest { owner: "me".into(), ..Default::default() }));
    let acquire = AcquireRequest { name: "l".into(), owner: "o".into(), ..Default::default() };
    h.apply(Op::Acquire(AcquireRequest { ttl: seconds(20), ..acquire.clone() }));
    let request_id = UUID.into();
    h.apply(Op::Acquire(AcquireRequest { wait: seconds(9), request_id, ..acquire.clone() }));
    h.apply(Op::Acquire(AcquireRequest { request_id: "2:5:4".into(), ..acquire }));
    h.apply(Op::Register(RegisterRequest {
        service: "web".into(),
        address: "10.0.0.1:80".into(),
        ttl: seconds(30),
        ..RegisterRequest::default()
    }));
    let event = Event { id: UUID.into(), r#type: "T".into(), ..Event::default() };
    let events = vec![event, Event { r#type: "T".into(), ..Event::default() }];
    h.apply(Op::Append(AppendRequest { stream: "s".into(), events, ..Default::default() }));
    let puts = vec![StreamedPut { key: "k".into(), value: "v".into(), session_id: 0 }];
    let stream_id = b"0123456789abcdef".as_slice().into();
    h.apply(Op::PutBatch(PutBatch { stream_id, first_sequence: 1, puts }));
    let many = vec![Event { r#type: "T".into(), ..Event::default() }; 36];
    h.apply(Op::Append(AppendRequest { stream: "t".into(), events: many, ..Default::default() }));
    let limits = StreamLimits { max_age: seconds(60), max_count: Some(2), max_bytes: Some(900) };
    let (stream, limits) = ("t".into(), Some(limits));
    h.apply(Op::SetStreamLimits(SetStreamLimitsRequest { stream, limits, ..Default::default() }));
    h.apply(Op::SetInstanceState(SetInstanceStateRequest {
        service: "web".into(),
        instance_id: "i-6".into(),
        state: InstanceState::Draining.into(),
        ..SetInstanceStateRequest::default()
    }));
    h
}

#[test]
fn the_state_format_is_the_golden_one() {
    let mut text = String::new();
    for (key, value) in filled().state() {
        let (key, value) = (key.escape_ascii(), value.escape_ascii());
        writeln!(text, "{key} = {value}").unwrap();
    }
    let golden = include_str!("../../tests/golden/state-v2.txt");
    assert!(text == golden, "the state is now\n{text}");
}
