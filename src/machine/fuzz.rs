//! Bytes that nobody meant, for the state machine: commands, rows, snapshots, requests to read.
//!
//! What is refused is refused alike on every node; nothing panics and nothing asks for memory that
//! its input does not account for.

use std::sync::Arc;

use bytes::Bytes;
use prost::Message as _;
use xxhash_rust::xxh3::xxh3_128;

use crate::{
    fuzz::{self, Target},
    machine::{
        Applied, Machine, MachineConfig, RequestId, SnapshotLoader, SnapshotWriter, Space, View,
        restore,
        store::{Batch, Store as _, StoreError},
        testing::{Harness, MapStore},
        validate, validate_range, validate_streamed_put,
    },
    pb::{
        command::v1::{Command, command::Op},
        event::v1::{DescribeStreamRequest, ListStreamsRequest},
        kv::v1::{RangeRequest, StreamedPut},
        lock::v1::ListRequest,
    },
    raft::{Entry, Membership, Payload},
    types::{LogIndex, LogTime, NodeId, Revision, Rng, SessionId, Term},
};

const MIB: u64 = 1 << 20;

/// A command with any values; mostly of the version that is known.
fn command(rng: &mut Rng) -> Vec<u8> {
    let bytes = fuzz::message("quorate.command.v1.Command", rng);
    let mut command = Command::decode(bytes.as_slice()).expect("it was just written");
    if rng.below(16) > 0 {
        command.version = 1;
    }
    command.encode_to_vec()
}

/// Some commands, some of them damaged: each with its length before it.
fn commands(rng: &mut Rng) -> Vec<u8> {
    let mut input = Vec::new();
    for _ in 0..4 + rng.below(24) {
        let good = command(rng);
        let bytes = if rng.below(6) == 0 { fuzz::mutate(&[good], rng) } else { good };
        let length = u32::try_from(bytes.len()).expect("commands are small");
        input.extend_from_slice(&length.to_be_bytes());
        input.extend_from_slice(&bytes);
    }
    input
}

fn split(mut input: &[u8]) -> Vec<Bytes> {
    let mut parts = Vec::new();
    while let Some((length, rest)) = input.split_first_chunk() {
        let (part, rest) = rest.split_at(u32::from_be_bytes(*length) as usize);
        parts.push(Bytes::copy_from_slice(part));
        input = rest;
    }
    parts
}

fn entries(input: &[u8], rng: &mut Rng) -> Vec<Entry> {
    let (mut time, mut term) = (1_000, 1);
    let entry = |(data, index)| {
        time += rng.below(3) * rng.below(20_000);
        term += rng.below(8) / 7;
        let payload = match rng.below(24) {
            0 => Payload::Noop,
            1 => Payload::Membership(Membership::of((1..=rng.below(5)).map(NodeId::new))),
            _ => Payload::Command(data),
        };
        let index = LogIndex::new(index);
        Entry { index, term: Term::new(term), time: LogTime::from_millis(time), payload }
    };
    split(input).into_iter().zip(1..).map(entry).collect()
}

fn machine(config: &MachineConfig) -> (Arc<MapStore>, Machine) {
    let store = Arc::new(MapStore::default());
    let machine = Machine::open(Arc::clone(&store) as _, config.clone()).expect("an empty store");
    (store, machine)
}

#[test]
fn fuzz_commands() {
    Target::new("commands", 150).allocating(256, 64 * MIB).made(commands, |input, rng| {
        let entries = entries(input, rng);
        let config = MachineConfig { retained_revisions: rng.below(2) * 5 };
        let (one_store, mut one) = machine(&config);
        let (other_store, mut other) = machine(&config);
        let mut alone: Vec<Applied> = Vec::new();
        for entry in &entries {
            alone.push(one.apply(core::slice::from_ref(entry)).expect("the store works"));
        }
        let mut rest = entries.as_slice();
        let mut together: Vec<Applied> = Vec::new();
        while !rest.is_empty() {
            let (run, left) = rest.split_at(1 + rng.below(rest.len() as u64) as usize);
            together.push(other.apply(run).expect("the store works"));
            rest = left;
        }
        assert!(one_store.rows() == other_store.rows(), "two machines have two states");
        assert_eq!(one.head(), other.head());
        let outcomes = |applied: &[Applied]| {
            applied.iter().flat_map(|applied| applied.outcomes.clone()).collect::<Vec<_>>()
        };
        assert_eq!(outcomes(&alone), outcomes(&together));
        read_everything(&View::new(one_store.snapshot()), rng).expect("the state can be read");
        // A third that starts from the state goes on like the first.
        let mut reopened = Machine::open(other_store as _, config).expect("it opens");
        let last = entries.last().map_or(LogIndex::ZERO, |entry| entry.index);
        let next = Entry {
            index: last.next(),
            term: Term::new(99),
            time: LogTime::from_millis(u64::MAX - rng.below(2)),
            payload: Payload::Command(command(rng).into()),
        };
        let same = [one.apply(core::slice::from_ref(&next)), reopened.apply(&[next])];
        let [one, reopened] = same.map(|applied| applied.expect("the store works").outcomes);
        assert_eq!(one, reopened);
    });
}

#[test]
fn fuzz_validation() {
    let names = ["quorate.kv.v1.RangeRequest", "quorate.kv.v1.StreamedPut"];
    Target::new("validation", 2_000).allocating(512, MIB).made(command, |input, rng| {
        let op = Command::decode(input).expect("it was just written").op;
        let _ = op.as_ref().map(validate);
        let range = fuzz::message(names[0], rng);
        let _ = validate_range(&RangeRequest::decode(range.as_slice()).expect("well formed"));
        let put = fuzz::message(names[1], rng);
        let _ = validate_streamed_put(&StreamedPut::decode(put.as_slice()).expect("well formed"));
    });
}

#[test]
fn fuzz_request_ids() {
    let good = ["6f1c2b9e-8f2d-4e0a-9a56-0c4d5e6f7a8b", "7:12:3", "18446744073709551615:1:1"];
    Target::new("request ids", 20_000).damaged_texts(&good, |text| {
        let _ = RequestId::parse(text);
    });
}

/// A state with something in every table.
fn state() -> Harness {
    let mut rng = Rng::new(7);
    let mut harness = Harness::new();
    for _ in 0..400 {
        let command = Command::decode(command(&mut rng).as_slice()).expect("it was just written");
        let Some(op) = command.op else { continue };
        // These end or let go of what others built up.
        let shrinks = matches!(
            op,
            Op::ExpireSessions(_) | Op::CloseSession(_) | Op::Compact(_) | Op::DeleteStream(_)
        );
        if !shrinks || rng.below(4) == 0 {
            harness.apply(op);
        }
    }
    let put = |key: &'static str| crate::machine::testing::put(key, "value");
    ["a", "b", "k"].into_iter().for_each(|key| drop(harness.apply(put(key))));
    harness
}

/// Every way to read the state, with any values.
fn read_everything(view: &View, rng: &mut Rng) -> Result<(), StoreError> {
    let range = fuzz::message("quorate.kv.v1.RangeRequest", rng);
    let _ = view.range(&RangeRequest::decode(range.as_slice()).expect("well formed"))?;
    let _ =
        view.range(&RangeRequest { range_end: Bytes::from_static(b"\0"), ..Default::default() })?;
    let list = fuzz::message("quorate.lock.v1.ListRequest", rng);
    let _ = view.locks(&ListRequest::decode(list.as_slice()).expect("well formed"))?;
    let streams = fuzz::message("quorate.event.v1.ListStreamsRequest", rng);
    let _ = view.streams(&ListStreamsRequest::decode(streams.as_slice()).expect("well formed"))?;
    let stream = fuzz::text(rng);
    let _ = view.describe_stream(&DescribeStreamRequest { stream, ..Default::default() })?;
    let edge = |rng: &mut Rng| [0, 1, 3, u64::MAX - 1, u64::MAX][rng.below(5) as usize];
    for space in [Space::User, Space::Locks, Space::Instances, Space::Members] {
        let from = Revision::new(edge(rng));
        let changes = view.changes(space, from, rng.below(2_000) as usize)?;
        for change in changes.map_or_else(|_| Vec::new(), |(changes, _)| changes) {
            let _ = view.replaced(&change)?;
        }
    }
    for name in ["", "a", "l", "orders"] {
        let _ = view.lock(name)?;
        let _ = view.lock_session(name, edge(rng))?;
        let _ = view.events(name, edge(rng), 1 + rng.below(9) as usize, 1_000)?;
        let _ = view.stream_bounds(name)?.start(name, edge(rng));
        let _ = view.instance(name, "a")?;
    }
    let _ = view.session(SessionId::new(rng.below(9)))?;
    let _ = (view.sessions()?, view.members()?, view.cluster_id()?, view.restored_from()?);
    let _ = (view.services()?, view.instances()?, view.census()?);
    let _ = view.state_hash(Revision::new(edge(rng)))?;
    Ok(())
}

#[test]
fn fuzz_state_rows() {
    let rows = state().store.rows();
    let all: Vec<(Bytes, Bytes)> = rows.iter().map(|(k, v)| (k.clone(), v.clone())).collect();
    let values: Vec<Vec<u8>> = all.iter().map(|(_, value)| value.to_vec()).collect();
    Target::new("state rows", 150).allocating(128, 64 * MIB).made(
        |rng| fuzz::mutate(&values, rng),
        |input, rng| {
            let store = Arc::new(MapStore::default());
            let rows = all.iter().map(|(key, value)| (key.clone(), Some(value.clone())));
            store.commit(Batch { rows: rows.collect() }).expect("a map takes it");
            // One row has another value, one is gone, one has another key.
            let at = |rng: &mut Rng| all[rng.below(all.len() as u64) as usize].clone();
            let mut damage = vec![(at(rng).0, Some(Bytes::copy_from_slice(input)))];
            if rng.below(3) == 0 {
                damage.push((at(rng).0, None));
            }
            if rng.below(3) == 0 {
                let (key, value) = at(rng);
                damage.push((fuzz::mutate(&[key.to_vec()], rng).into(), Some(value)));
            }
            store.commit(Batch { rows: damage }).expect("a map takes it");
            let _ = read_everything(&View::new(store.snapshot()), rng);
            let _ = Machine::open(Arc::clone(&store) as _, MachineConfig::default());
        },
    );
}

fn snapshot(harness: &Harness) -> Vec<u8> {
    let chunks = SnapshotWriter::new(harness.store.snapshot());
    chunks.flat_map(|chunk| chunk.expect("the store works").to_vec()).collect()
}

/// Loads what may be a snapshot, in pieces of any size, and opens what was loaded.
fn load(input: &[u8], rng: &mut Rng) {
    let store = Arc::new(MapStore::default());
    let mut loader = SnapshotLoader::new(store.as_ref());
    let mut rest = input;
    while !rest.is_empty() {
        let (piece, left) = rest.split_at(1 + rng.below(rest.len() as u64) as usize);
        if loader.feed(piece).is_err() {
            return;
        }
        rest = left;
    }
    if loader.finish().is_ok() {
        let _ = read_everything(&View::new(store.snapshot()), rng);
        let _ = Machine::open(Arc::clone(&store) as _, MachineConfig::default());
        let _ = restore(store.as_ref(), "a backup");
    }
}

#[test]
fn fuzz_snapshots() {
    let good = [snapshot(&Harness::new()), snapshot(&state())];
    Target::new("snapshots", 300)
        .allocating(64, 16 * MIB)
        .made(|rng| fuzz::mutate(&good, rng), load);
}

#[test]
fn fuzz_snapshots_with_whole_trailers() {
    let good = [snapshot(&state())];
    let make = |rng: &mut Rng| {
        let mut bytes = fuzz::mutate(&good, rng);
        // The trailer is made to fit, so that what lies before it is believed.
        bytes.truncate(bytes.len().saturating_sub(25));
        let rows = rows_in(&bytes);
        bytes.push(2);
        bytes.extend_from_slice(&rows.to_be_bytes());
        let hash = xxh3_128(&bytes);
        bytes.extend_from_slice(&hash.to_be_bytes());
        bytes
    };
    Target::new("snapshots with whole trailers", 300).allocating(64, 16 * MIB).made(make, load);
}

/// How many rows a snapshot without its trailer has, as far as that can be seen.
fn rows_in(bytes: &[u8]) -> u64 {
    let mut rest = bytes.get(12..).unwrap_or_default();
    let mut rows = 0;
    while rest.len() >= 9 {
        let length = |at: usize| {
            u32::from_be_bytes(rest[at..at + 4].try_into().expect("four bytes")) as usize
        };
        let Some(left) = rest.get(9 + length(1) + length(5)..) else { break };
        rows += 1;
        rest = left;
    }
    rows
}
