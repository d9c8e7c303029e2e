//! Bytes that nobody meant, from peers and servers.
//!
//! Each message is decoded from damaged bytes and from a right shape with any values, then turned
//! into a type of ours and back.

use prost::Message as _;
use tonic::{Code, Status};

use crate::{
    fuzz::{self, Target},
    pb::{command::v1::Refusal, raft::v1 as pb},
    raft::{Membership, Message},
    types::{LogIndex, NodeId, Rng},
    wire::{raft as wire, status},
};

/// A message with any values, in half of the cases damaged as well.
fn make(name: &'static str) -> impl FnMut(&mut Rng) -> Vec<u8> {
    move |rng| {
        let bytes = fuzz::message(name, rng);
        if rng.below(2) == 0 { bytes } else { fuzz::mutate(&[bytes], rng) }
    }
}

#[test]
fn fuzz_append_requests() {
    let target = Target::new("append requests", 4_000).allocating(256, 256 << 10);
    target.made(make("quorate.raft.v1.AppendEntriesRequest"), |input, _| {
        let Ok(request) = pb::AppendEntriesRequest::decode(input) else { return };
        let Ok((group, message)) = wire::append_request_from_pb(&request) else { return };
        let identity = request.identity.clone().unwrap_or_default();
        let leader = NodeId::new(request.leader_id);
        let again = match &message {
            Message::AppendRequest(append) => {
                wire::append_request_to_pb(identity, group, leader, append)
            }
            Message::Heartbeat(beat) => wire::heartbeat_to_pb(identity, group, leader, beat),
            other => panic!("an append became {other:?}"),
        };
        let again = wire::append_request_from_pb(&again).expect("it was just written");
        assert_eq!(again, (group, message));
    });
}

#[test]
fn fuzz_append_responses() {
    let target = Target::new("append responses", 4_000).allocating(256, 256 << 10);
    target.made(make("quorate.raft.v1.AppendEntriesResponse"), |input, _| {
        let Ok(response) = pb::AppendEntriesResponse::decode(input) else { return };
        let _ = wire::append_response_from_pb(&response);
    });
}

#[test]
fn fuzz_votes_and_orders() {
    let target = Target::new("votes and orders", 2_000).allocating(256, 256 << 10);
    target.made(make("quorate.raft.v1.RequestVoteRequest"), |input, rng| {
        if let Ok(request) = pb::RequestVoteRequest::decode(input) {
            let _ = wire::vote_request_from_pb(&request, 1);
        }
        if let Ok(response) = pb::RequestVoteResponse::decode(input) {
            let _ = wire::vote_response_from_pb(&response, 1);
        }
        let order = fuzz::message("quorate.raft.v1.TimeoutNowRequest", rng);
        let order = pb::TimeoutNowRequest::decode(order.as_slice()).expect("well formed");
        let _ = wire::timeout_now_from_pb(&order);
    });
}

#[test]
fn fuzz_entries_and_memberships() {
    let membership = Membership {
        learners: [NodeId::new(9)].into(),
        ..Membership::of((1..=3).map(NodeId::new))
    };
    let good = [wire::encode_membership(&membership).to_vec()];
    let target = Target::new("entries and memberships", 4_000).allocating(256, 256 << 10);
    target.damaged(&good, |input| {
        if let Ok(read) = wire::decode_membership(input) {
            let again = wire::decode_membership(&wire::encode_membership(&read));
            assert_eq!(again, Ok(read));
        }
        for kind in -1..=4 {
            let data = input.to_vec().into();
            let entry = pb::Entry { term: u64::MAX, time_ms: u64::MAX, kind, data };
            let _ = wire::entry_from_pb(LogIndex::new(u64::MAX), &entry);
        }
    });
}

#[test]
fn fuzz_refusals() {
    let target = Target::new("refusals", 2_000).allocating(512, 256 << 10);
    target.made(make("quorate.command.v1.Refusal"), |input, rng| {
        if let Ok(refusal) = Refusal::decode(input) {
            let status = status::from_refusal(refusal.clone());
            let back = status::to_refusal(&status).expect("it is one of ours");
            assert_eq!(back.reason(), refusal.reason());
            // As it comes from a server that is not ours, or from a broken proxy.
            let details = fuzz::mutate(&[status.details().to_vec()], rng);
            let other = Status::with_details(Code::Aborted, "no", details.into());
            let _ = (status::to_refusal(&other), status::reason(&other));
        }
        let noise = Status::with_details(Code::Unknown, "", input.to_vec().into());
        let _ = status::to_refusal(&noise);
    });
}
