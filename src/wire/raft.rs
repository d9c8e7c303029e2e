//! What nodes say to each other: the core's messages to the messages of `raft.v1` and back.
//!
//! Parsing checks the shape only: that the parts are there and agree with each other. Whether the
//! sender may speak at all is the directory's to say, and what a message means is the core's.

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};

use crate::{
    pb::raft::v1 as pb,
    raft::{
        AppendRequest, AppendResponse, AppendResult, Entry, Heartbeat, HeartbeatResponse,
        Membership, Message, Payload, TimeoutNow, VoteRequest, VoteResponse,
    },
    types::{GroupId, LogIndex, LogTime, NodeId, Term},
};

/// Payloads below this many bytes are copied out of the receive buffer, which they would pin for as
/// long as the log keeps them.
const COPIED_PAYLOAD_BYTES_MAX: usize = 4 * 1024;

/// The version of the encoding of [`encode_membership`].
const MEMBERSHIP_VERSION: u8 = 1;

/// The `raft.v1` form of a vote request.
#[must_use]
pub fn vote_request_to_pb(
    identity: pb::Identity,
    group: GroupId,
    candidate: NodeId,
    request: &VoteRequest,
) -> pb::RequestVoteRequest {
    pb::RequestVoteRequest {
        identity: Some(identity),
        group_id: group.value(),
        term: request.term.value(),
        candidate_id: candidate.value(),
        last_log_index: request.last_index.value(),
        last_log_term: request.last_term.value(),
        pre_vote: request.pre_vote,
        leader_lost: request.leader_lost,
        transfer: request.transfer,
    }
}

/// Reads a vote request. `call` is the receiving transport's number for it.
///
/// # Errors
/// What is wrong with it, in a sentence.
pub fn vote_request_from_pb(
    request: &pb::RequestVoteRequest,
    call: u64,
) -> Result<(GroupId, VoteRequest), String> {
    let group = group(request.group_id)?;
    sender(request.identity.as_ref(), request.candidate_id)?;
    let request = VoteRequest {
        term: Term::new(request.term),
        last_index: LogIndex::new(request.last_log_index),
        last_term: Term::new(request.last_log_term),
        pre_vote: request.pre_vote,
        leader_lost: request.leader_lost,
        transfer: request.transfer,
        call,
    };
    Ok((group, request))
}

/// The `raft.v1` form of a vote.
#[must_use]
pub fn vote_response_to_pb(
    identity: pb::Identity,
    response: &VoteResponse,
) -> pb::RequestVoteResponse {
    pb::RequestVoteResponse {
        identity: Some(identity),
        term: response.term.value(),
        vote_granted: response.granted,
        pre_vote: response.pre_vote,
        reason: response.reason.to_owned(),
    }
}

/// Reads a vote. `call` is the number of the call that it answers. The voter's own words stay
/// behind; log them before.
#[must_use]
pub fn vote_response_from_pb(response: &pb::RequestVoteResponse, call: u64) -> VoteResponse {
    VoteResponse {
        term: Term::new(response.term),
        granted: response.vote_granted,
        pre_vote: response.pre_vote,
        reason: if response.vote_granted { "" } else { "refused by the peer" },
        call,
    }
}

/// The `raft.v1` form of an append.
#[must_use]
pub fn append_request_to_pb(
    identity: pb::Identity,
    group: GroupId,
    leader: NodeId,
    request: &AppendRequest,
) -> pb::AppendEntriesRequest {
    pb::AppendEntriesRequest {
        identity: Some(identity),
        group_id: group.value(),
        term: request.term.value(),
        leader_id: leader.value(),
        prev_log_index: request.prev_index.value(),
        prev_log_term: request.prev_term.value(),
        entries: request.entries.iter().map(entry_to_pb).collect(),
        leader_commit: request.commit.value(),
        round: request.round,
        heartbeat: false,
    }
}

/// The `raft.v1` form of a heartbeat.
#[must_use]
pub fn heartbeat_to_pb(
    identity: pb::Identity,
    group: GroupId,
    leader: NodeId,
    heartbeat: &Heartbeat,
) -> pb::AppendEntriesRequest {
    pb::AppendEntriesRequest {
        identity: Some(identity),
        group_id: group.value(),
        term: heartbeat.term.value(),
        leader_id: leader.value(),
        leader_commit: heartbeat.commit.value(),
        round: heartbeat.round,
        heartbeat: true,
        ..Default::default()
    }
}

/// Reads an append or a heartbeat.
///
/// # Errors
/// What is wrong with it, in a sentence.
pub fn append_request_from_pb(
    request: &pb::AppendEntriesRequest,
) -> Result<(GroupId, Message), String> {
    let group = group(request.group_id)?;
    sender(request.identity.as_ref(), request.leader_id)?;
    let (term, commit) = (Term::new(request.term), LogIndex::new(request.leader_commit));
    if request.heartbeat {
        if !request.entries.is_empty() {
            return Err("a heartbeat carries no entries".to_owned());
        }
        let heartbeat = Heartbeat { term, commit, round: request.round };
        return Ok((group, Message::Heartbeat(heartbeat)));
    }
    let append = AppendRequest {
        term,
        prev_index: LogIndex::new(request.prev_log_index),
        prev_term: Term::new(request.prev_log_term),
        entries: entries_from_pb(request.prev_log_index, &request.entries)?,
        commit,
        round: request.round,
    };
    Ok((group, Message::AppendRequest(append)))
}

/// The `raft.v1` form of an append's answer.
#[must_use]
pub fn append_response_to_pb(
    identity: pb::Identity,
    group: GroupId,
    response: &AppendResponse,
) -> pb::AppendEntriesResponse {
    let mut answer = pb::AppendEntriesResponse {
        identity: Some(identity),
        group_id: group.value(),
        term: response.term.value(),
        round: response.round,
        ..Default::default()
    };
    match response.result {
        AppendResult::Matched { match_index } => {
            answer.success = true;
            answer.match_index = match_index.value();
        }
        AppendResult::Conflict { rejected, index, term } => {
            answer.rejected_index = rejected.value();
            answer.conflict_index = index.value();
            answer.conflict_term = term.value();
        }
        AppendResult::Stale => {}
    }
    answer
}

/// The `raft.v1` form of a heartbeat's answer.
#[must_use]
pub fn heartbeat_response_to_pb(
    identity: pb::Identity,
    group: GroupId,
    response: &HeartbeatResponse,
) -> pb::AppendEntriesResponse {
    pb::AppendEntriesResponse {
        identity: Some(identity),
        group_id: group.value(),
        term: response.term.value(),
        round: response.round,
        heartbeat: true,
        ..Default::default()
    }
}

/// The answer to a request that is refused altogether, as by a node of another cluster.
#[must_use]
pub fn append_refusal_to_pb(identity: pb::Identity, reason: String) -> pb::AppendEntriesResponse {
    pb::AppendEntriesResponse { identity: Some(identity), reason, ..Default::default() }
}

/// Reads the answer to an append or a heartbeat.
///
/// # Errors
/// The peer's reason where it refused the request altogether, or what is wrong with the answer.
pub fn append_response_from_pb(
    response: &pb::AppendEntriesResponse,
) -> Result<(GroupId, Message), String> {
    if !response.reason.is_empty() {
        return Err(response.reason.clone());
    }
    let group = group(response.group_id)?;
    let (term, round) = (Term::new(response.term), response.round);
    if response.heartbeat {
        return Ok((group, Message::HeartbeatResponse(HeartbeatResponse { term, round })));
    }
    let result = if response.success {
        AppendResult::Matched { match_index: LogIndex::new(response.match_index) }
    } else if response.conflict_index > 0 {
        // A conflict is never at 0: the place before the first entry always matches.
        AppendResult::Conflict {
            rejected: LogIndex::new(response.rejected_index),
            index: LogIndex::new(response.conflict_index),
            term: Term::new(response.conflict_term),
        }
    } else {
        AppendResult::Stale
    };
    Ok((group, Message::AppendResponse(AppendResponse { term, round, result })))
}

/// The `raft.v1` form of the order to campaign at once.
#[must_use]
pub fn timeout_now_to_pb(
    identity: pb::Identity,
    group: GroupId,
    leader: NodeId,
    order: &TimeoutNow,
) -> pb::TimeoutNowRequest {
    pb::TimeoutNowRequest {
        identity: Some(identity),
        group_id: group.value(),
        term: order.term.value(),
        leader_id: leader.value(),
    }
}

/// Reads the order to campaign at once.
///
/// # Errors
/// What is wrong with it, in a sentence.
pub fn timeout_now_from_pb(
    request: &pb::TimeoutNowRequest,
) -> Result<(GroupId, TimeoutNow), String> {
    let group = group(request.group_id)?;
    sender(request.identity.as_ref(), request.leader_id)?;
    Ok((group, TimeoutNow { term: Term::new(request.term) }))
}

/// The `raft.v1` form of an entry. Its index follows from its place in the message.
#[must_use]
pub fn entry_to_pb(entry: &Entry) -> pb::Entry {
    let (kind, data) = match &entry.payload {
        Payload::Noop => (pb::entry::Kind::Noop, Bytes::new()),
        Payload::Command(data) => (pb::entry::Kind::Command, data.clone()),
        Payload::Membership(membership) => {
            (pb::entry::Kind::Membership, encode_membership(membership))
        }
    };
    pb::Entry { term: entry.term.value(), time_ms: entry.time.as_millis(), kind: kind.into(), data }
}

/// Reads an entry that stands at `index`. Its payload no longer pins the receive buffer.
///
/// # Errors
/// What is wrong with it, in a sentence.
pub fn entry_from_pb(index: LogIndex, entry: &pb::Entry) -> Result<Entry, String> {
    let payload = match entry.kind() {
        pb::entry::Kind::Noop => Payload::Noop,
        pb::entry::Kind::Command if entry.data.len() < COPIED_PAYLOAD_BYTES_MAX => {
            Payload::Command(Bytes::copy_from_slice(&entry.data))
        }
        pb::entry::Kind::Command => Payload::Command(entry.data.clone()),
        pb::entry::Kind::Membership => Payload::Membership(decode_membership(&entry.data)?),
        pb::entry::Kind::Unspecified => {
            return Err(format!("entry {index} is of unknown kind {}", entry.kind));
        }
    };
    let (term, time) = (Term::new(entry.term), LogTime::from_millis(entry.time_ms));
    Ok(Entry { index, term, time, payload })
}

/// Encodes a membership: a version byte, then voters, outgoing voters and learners, each as a
/// count (4 bytes) and ids (8 bytes each), big endian.
#[must_use]
pub fn encode_membership(membership: &Membership) -> Bytes {
    let sets = [&membership.voters, &membership.outgoing, &membership.learners];
    let ids: usize = sets.iter().map(|set| set.len()).sum();
    let mut out = BytesMut::with_capacity(1 + 4 * sets.len() + 8 * ids);
    out.put_u8(MEMBERSHIP_VERSION);
    for set in sets {
        out.put_u32(u32::try_from(set.len()).expect("a group has few members"));
        for id in set {
            out.put_u64(id.value());
        }
    }
    out.freeze()
}

/// Reads what [`encode_membership`] wrote.
///
/// # Errors
/// Where the version is unknown or the bytes are not one membership exactly.
pub fn decode_membership(mut data: &[u8]) -> Result<Membership, String> {
    const CUT: &str = "a membership ends too early";
    let version = data.try_get_u8().map_err(|_| CUT)?;
    if version != MEMBERSHIP_VERSION {
        return Err(format!("a membership has the unknown version {version}"));
    }
    let mut membership = Membership::default();
    for set in [&mut membership.voters, &mut membership.outgoing, &mut membership.learners] {
        for _ in 0..data.try_get_u32().map_err(|_| CUT)? {
            set.insert(NodeId::new(data.try_get_u64().map_err(|_| CUT)?));
        }
    }
    if data.has_remaining() {
        return Err("a membership has bytes left over".to_owned());
    }
    Ok(membership)
}

fn entries_from_pb(prev_index: u64, entries: &[pb::Entry]) -> Result<Vec<Entry>, String> {
    let count = u64::try_from(entries.len()).expect("a message is smaller than memory");
    if prev_index.checked_add(count).is_none() {
        return Err(format!("no {count} entries follow index {prev_index}"));
    }
    let mut index = LogIndex::new(prev_index);
    entries
        .iter()
        .map(|entry| {
            index = index.next();
            entry_from_pb(index, entry)
        })
        .collect()
}

fn group(id: u64) -> Result<GroupId, String> {
    if id == 0 { Err("a message names no group".to_owned()) } else { Ok(GroupId::new(id)) }
}

/// The node that speaks for itself in the body is the one that the identity names.
fn sender(identity: Option<&pb::Identity>, claimed: u64) -> Result<(), String> {
    match identity {
        Some(identity) if identity.from_node == claimed => Ok(()),
        Some(identity) => {
            Err(format!("node {} speaks in the name of node {claimed}", identity.from_node))
        }
        None => Err("a message carries no identity".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GROUP: GroupId = GroupId::SYSTEM;
    const NODE: NodeId = NodeId::new(2);

    fn identity() -> pb::Identity {
        pb::Identity { from_node: NODE.value(), to_node: 1, ..Default::default() }
    }

    fn append() -> AppendRequest {
        let membership = Membership {
            voters: [NodeId::new(1), NODE].into(),
            outgoing: [NodeId::new(1)].into(),
            learners: [NodeId::new(9)].into(),
        };
        let payloads = [
            Payload::Noop,
            Payload::Command("x".into()),
            Payload::Command(vec![7; COPIED_PAYLOAD_BYTES_MAX].into()),
            Payload::Membership(membership),
        ];
        let mut index = LogIndex::new(6);
        let mut entry = |payload| {
            index = index.next();
            Entry { index, term: Term::new(3), time: LogTime::from_millis(44), payload }
        };
        AppendRequest {
            term: Term::new(3),
            prev_index: LogIndex::new(6),
            prev_term: Term::new(2),
            entries: payloads.into_iter().map(&mut entry).collect(),
            commit: LogIndex::new(5),
            round: 12,
        }
    }

    #[test]
    fn requests_come_back_as_they_went() {
        let request = append();
        let read = append_request_from_pb(&append_request_to_pb(identity(), GROUP, NODE, &request));
        assert_eq!(read, Ok((GROUP, Message::AppendRequest(request))));

        let beat = Heartbeat { term: Term::new(3), commit: LogIndex::new(2), round: 8 };
        let read = append_request_from_pb(&heartbeat_to_pb(identity(), GROUP, NODE, &beat));
        assert_eq!(read, Ok((GROUP, Message::Heartbeat(beat))));

        let vote = VoteRequest {
            term: Term::new(4),
            last_index: LogIndex::new(10),
            last_term: Term::new(3),
            pre_vote: true,
            leader_lost: true,
            transfer: false,
            call: 77,
        };
        let read = vote_request_from_pb(&vote_request_to_pb(identity(), GROUP, NODE, &vote), 77);
        assert_eq!(read, Ok((GROUP, vote)));

        let order = TimeoutNow { term: Term::new(5) };
        let read = timeout_now_from_pb(&timeout_now_to_pb(identity(), GROUP, NODE, &order));
        assert_eq!(read, Ok((GROUP, order)));
    }

    #[test]
    fn answers_come_back_as_they_went() {
        let results = [
            AppendResult::Matched { match_index: LogIndex::ZERO },
            AppendResult::Matched { match_index: LogIndex::new(9) },
            AppendResult::Conflict {
                rejected: LogIndex::new(6),
                index: LogIndex::new(1),
                term: Term::ZERO,
            },
            AppendResult::Stale,
        ];
        for result in results {
            let response = AppendResponse { term: Term::new(3), round: 12, result };
            let read =
                append_response_from_pb(&append_response_to_pb(identity(), GROUP, &response));
            assert_eq!(read, Ok((GROUP, Message::AppendResponse(response))));
        }
        let beat = HeartbeatResponse { term: Term::new(3), round: 8 };
        let read = append_response_from_pb(&heartbeat_response_to_pb(identity(), GROUP, &beat));
        assert_eq!(read, Ok((GROUP, Message::HeartbeatResponse(beat))));
        let refused = append_refusal_to_pb(identity(), "another cluster".to_owned());
        assert_eq!(append_response_from_pb(&refused), Err("another cluster".to_owned()));

        let vote =
            VoteResponse { term: Term::new(4), granted: true, pre_vote: true, reason: "", call: 5 };
        assert_eq!(vote_response_from_pb(&vote_response_to_pb(identity(), &vote), 5), vote);
    }

    #[test]
    fn malformed_messages_are_refused() {
        let good = append_request_to_pb(identity(), GROUP, NODE, &append());
        let refuses = |change: fn(&mut pb::AppendEntriesRequest), part: &str| {
            let mut bad = good.clone();
            change(&mut bad);
            let error = append_request_from_pb(&bad).unwrap_err();
            assert!(error.contains(part), "{error} does not say {part}");
        };
        refuses(|bad| bad.group_id = 0, "no group");
        refuses(|bad| bad.identity = None, "no identity");
        refuses(|bad| bad.leader_id = 3, "in the name of node 3");
        refuses(|bad| bad.heartbeat = true, "no entries");
        refuses(|bad| bad.prev_log_index = u64::MAX, "follow index");
        refuses(|bad| bad.entries[0].kind = 99, "unknown kind 99");
        refuses(|bad| bad.entries[3].data = "\u{1}".into(), "too early");
    }

    #[test]
    fn a_membership_is_read_exactly() {
        let encoded = encode_membership(&Membership::of([NodeId::new(1), NodeId::new(2)]));
        assert_eq!(encoded.len(), 1 + 3 * 4 + 2 * 8);
        for cut in 0..encoded.len() {
            assert!(decode_membership(&encoded[..cut]).is_err(), "cut at {cut}");
        }
        let mut long = encoded.to_vec();
        long.push(0);
        assert!(decode_membership(&long).unwrap_err().contains("left over"));
        long[0] = 2;
        assert!(decode_membership(&long).unwrap_err().contains("unknown version 2"));
    }

    #[test]
    fn a_small_payload_does_not_pin_the_receive_buffer() {
        let buffer = Bytes::from(vec![1; 64 * 1024]);
        let read = |data: Bytes| {
            let entry =
                pb::Entry { kind: pb::entry::Kind::Command.into(), data, ..Default::default() };
            entry_from_pb(LogIndex::new(1), &entry).unwrap()
        };
        let small = read(buffer.slice(..10));
        assert!(buffer.is_unique(), "the payload was copied");
        let large = read(buffer.slice(..COPIED_PAYLOAD_BYTES_MAX));
        assert!(!buffer.is_unique(), "the payload is shared");
        drop((small, large));
    }
}
