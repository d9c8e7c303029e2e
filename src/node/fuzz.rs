//! Bytes that nobody meant, from peers, all the way into a replica.
//!
//! What the wire accepts as well formed may still say anything. A replica may believe it, refuse it
//! or fall behind; it may not end the process, whatever a broken peer sends.

use crate::{
    fuzz::{self, Target},
    node::replica::{AppliedReport, Event, Jobs, Recovered, Replica, ReplicaConfig, WalJob},
    pb::{command::v1::RegisterMember, raft::v1 as pb},
    raft::{Config, Membership, Message, Restored},
    types::{Duration, Instant, LogTime, NodeId, Rng},
    wire::raft as wire,
};

/// The kinds of message that a peer sends.
const KINDS: &[&str] = &[
    "quorate.raft.v1.AppendEntriesRequest",
    "quorate.raft.v1.AppendEntriesResponse",
    "quorate.raft.v1.RequestVoteRequest",
    "quorate.raft.v1.RequestVoteResponse",
    "quorate.raft.v1.TimeoutNowRequest",
    "quorate.raft.v1.ForwardRequest",
    "quorate.raft.v1.ForwardResponse",
];

fn replica() -> Replica {
    let config = ReplicaConfig {
        raft: Config::new(NodeId::new(1)),
        boot: 1,
        patience: Duration::from_secs(2),
        retained_log_bytes: 1 << 20,
        new_cluster_id: String::new(),
        member: RegisterMember { node_id: 1, ..RegisterMember::default() },
    };
    let membership = Membership::of((1..=3).map(NodeId::new));
    let recovered = Recovered {
        raft: Restored { membership, ..Restored::default() },
        sessions: Vec::new(),
        founded: true,
        registered: true,
        next_timer: None,
    };
    Replica::new(config, recovered, Instant::from_nanos(1))
}

/// Some messages, each with its kind and length before it.
fn messages(rng: &mut Rng) -> Vec<u8> {
    let mut input = Vec::new();
    for _ in 0..1 + rng.below(30) {
        let kind = rng.below(KINDS.len() as u64) as usize;
        let bytes = fuzz::message(KINDS[kind], rng);
        let length = u32::try_from(bytes.len()).expect("messages are small");
        input.push(kind as u8);
        input.extend_from_slice(&length.to_be_bytes());
        input.extend_from_slice(&bytes);
    }
    input
}

fn event(kind: usize, bytes: &[u8], from: NodeId) -> Option<Event> {
    fn read<M: prost::Message + Default>(bytes: &[u8]) -> M {
        M::decode(bytes).expect("it was just written")
    }
    let message = match kind {
        0 => {
            let mut request: pb::AppendEntriesRequest = read(bytes);
            let identity = pb::Identity { from_node: request.leader_id, ..Default::default() };
            request.identity = Some(identity);
            wire::append_request_from_pb(&request).ok()?.1
        }
        1 => wire::append_response_from_pb(&read(bytes)).ok()?.1,
        2 => {
            let mut request: pb::RequestVoteRequest = read(bytes);
            let identity = pb::Identity { from_node: request.candidate_id, ..Default::default() };
            request.identity = Some(identity);
            Message::VoteRequest(wire::vote_request_from_pb(&request, 1).ok()?.1)
        }
        3 => Message::VoteResponse(wire::vote_response_from_pb(&read(bytes), 1)),
        4 => {
            let mut order: pb::TimeoutNowRequest = read(bytes);
            let identity = pb::Identity { from_node: order.leader_id, ..Default::default() };
            order.identity = Some(identity);
            Message::TimeoutNow(wire::timeout_now_from_pb(&order).ok()?.1)
        }
        5 => return Some(Event::Forwarded { from, request: read(bytes) }),
        _ => return Some(Event::Answered { from, response: read(bytes) }),
    };
    Some(Event::Message { from, message })
}

#[test]
fn fuzz_messages_to_a_replica() {
    let target = Target::new("messages to a replica", 300).allocating(512, 8 << 20);
    target.made(messages, |mut input, rng| {
        let mut replica = replica();
        let mut now = Instant::from_nanos(1);
        let mut inbox = Vec::new();
        while let Some((&kind, rest)) = input.split_first() {
            let (length, rest) = rest.split_first_chunk().expect("a length follows");
            let (bytes, rest) = rest.split_at(u32::from_be_bytes(*length) as usize);
            input = rest;
            now = now.after(Duration::from_millis(rng.below(200)));
            inbox.extend(event(usize::from(kind), bytes, NodeId::new(2 + rng.below(2))));
            let mut jobs = Jobs::default();
            let wall = LogTime::from_millis(rng.next_u64());
            replica.handle(now, wall, core::mem::take(&mut inbox), &mut jobs);
            for job in jobs.wal {
                if let WalJob::Append(append) = job {
                    let (hard, log) = (append.hard_mark, append.log_mark);
                    inbox.push(Event::Persisted { hard, log });
                }
            }
            if let Some(last) = jobs.apply.last() {
                let (index, term) = (last.index, last.term);
                let report = AppliedReport { index, term, ..AppliedReport::default() };
                inbox.push(Event::Applied(report));
            }
        }
    });
}
