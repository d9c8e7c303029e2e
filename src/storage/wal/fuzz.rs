//! Bytes that nobody meant, in the segments of a log.
//!
//! Once as they are, which a checksum finds nearly always, and once with all checksums made to
//! fit, so that what they guard is read too.

use std::collections::BTreeSet;

use bytes::Bytes;
use crc32c::{crc32c, crc32c_append};

use super::{Wal, WalOptions, format::SECTOR};
use crate::{
    fuzz::{self, Target},
    raft::{Append, Entry, HardMark, HardState, LogMark, LogStart, Membership, Payload},
    storage::files::{Files as _, MemoryFiles},
    types::{GroupId, LogIndex, LogTime, NodeId, Rng, Term},
};

const OPTIONS: WalOptions = WalOptions { segment_bytes: 4_096, spare_segments_max: 1 };

/// A log of some segments, with every kind of record and payload.
fn log(rng: &mut Rng) -> MemoryFiles {
    let files = MemoryFiles::new();
    let (mut wal, _) = Wal::open(files.clone(), OPTIONS).expect("an empty disk opens");
    let mut last = 0;
    for term in 1..=3 {
        for _ in 0..4 {
            let from = if rng.below(4) == 0 && last > 2 { last } else { last + 1 };
            let to = from + rng.below(4);
            append(&mut wal, term, from, to, (from <= last).then_some(from), rng);
            last = to;
            wal.sync().expect("the disk is well");
        }
        let purged = LogIndex::new(last.saturating_sub(6));
        let time = LogTime::from_millis(5);
        wal.purge(GroupId::SYSTEM, purged, Term::new(1), time).expect("the disk is well");
    }
    wal.close().expect("the disk is well");
    files
}

fn append(wal: &mut Wal, term: u64, from: u64, to: u64, cut: Option<u64>, rng: &mut Rng) {
    let entries = (from..=to).map(|index| Entry {
        index: LogIndex::new(index),
        term: Term::new(term),
        time: LogTime::from_millis(1_000 + index),
        payload: match rng.below(4) {
            0 => Payload::Noop,
            1 => Payload::Membership(Membership {
                learners: BTreeSet::from([NodeId::new(9)]),
                ..Membership::of((1..=3).map(NodeId::new))
            }),
            _ => Payload::Command(Bytes::from(vec![b'c'; rng.below(300) as usize])),
        },
    });
    let hard = HardState {
        term: Term::new(term),
        vote: Some(NodeId::new(1)),
        commit: LogIndex::new(from.saturating_sub(1)),
    };
    let write = Append {
        hard,
        reset_to: None,
        truncate_from: cut.map(LogIndex::new),
        entries: entries.collect(),
        hard_mark: HardMark { term: hard.term, vote: hard.vote },
        log_mark: LogMark { leader_term: hard.term, index: LogIndex::new(to) },
    };
    wal.append(GroupId::SYSTEM, &write).expect("the disk is well");
    if from == 1 {
        let start = LogStart { index: LogIndex::new(7), ..LogStart::default() };
        let other = Append { reset_to: Some(start), entries: Vec::new(), ..write };
        wal.append(GroupId::new(2), &other).expect("the disk is well");
    }
}

/// The segments of a log, by name.
fn segments(files: &MemoryFiles) -> Vec<(String, Vec<u8>)> {
    let names = files.list().expect("it can be listed");
    let read = |name: String| {
        let bytes = files.read(&name).expect("it is listed");
        (name, bytes)
    };
    names.into_iter().map(read).collect()
}

/// Opens a log one of whose segments is `input`. What opens once opens again, to the same; but
/// where checksums were `forged`, what is left once the older segments are freed may contradict
/// itself, and is refused then.
fn open(good: &[(String, Vec<u8>)], input: &[u8], forged: bool, rng: &mut Rng) {
    let files = MemoryFiles::new();
    let damaged = rng.below(good.len() as u64) as usize;
    for (at, (name, bytes)) in good.iter().enumerate() {
        let left_out = at != damaged && rng.below(40) == 0;
        if !left_out {
            files.put(name, if at == damaged { input } else { bytes });
        }
    }
    let Ok((wal, first)) = Wal::open(files.clone(), OPTIONS) else { return };
    drop(wal);
    for (group, log) in &first {
        let mut next = log.purged_index.next();
        for entry in &log.entries {
            assert_eq!(entry.index, next, "{group:?} has a hole");
            next = next.next();
        }
    }
    let (mut wal, second) = match Wal::open(files, OPTIONS) {
        Ok(opened) => opened,
        Err(_) if forged => return,
        Err(error) => panic!("what opened opens again: {error}"),
    };
    assert!(forged || first == second, "{first:?} became {second:?}");
    if let Some(log) = second.get(&GroupId::SYSTEM) {
        let from = log.last_index().value().saturating_add(1);
        if from < u64::MAX {
            append(&mut wal, u64::MAX, from, from, None, rng);
            wal.sync().expect("the disk is well");
        }
    }
}

#[test]
fn fuzz_log_segments() {
    let good = segments(&log(&mut Rng::new(3)));
    assert!(good.len() > 2, "{}", good.len());
    let bytes: Vec<Vec<u8>> = good.iter().map(|(_, bytes)| bytes.clone()).collect();
    Target::new("log segments", 400)
        .allocating(64, 1 << 20)
        .made(|rng| fuzz::mutate(&bytes, rng), |input, rng| open(&good, input, false, rng));
}

#[test]
fn fuzz_log_segments_with_whole_checksums() {
    let good = segments(&log(&mut Rng::new(3)));
    let bytes: Vec<Vec<u8>> = good.iter().map(|(_, bytes)| bytes.clone()).collect();
    let make = |rng: &mut Rng| {
        let mut input = fuzz::mutate(&bytes, rng);
        mend(&mut input, rng);
        input
    };
    Target::new("log segments with whole checksums", 400)
        .allocating(64, 1 << 20)
        .made(make, |input, rng| open(&good, input, true, rng));
}

/// Makes all checksums fit, and mostly the chain of batches too (the layout is in `format.rs`).
fn mend(segment: &mut [u8], rng: &mut Rng) {
    let Some(header) = segment.get_mut(..64) else { return };
    let crc = crc32c_append(crc32c(&header[..12]), &header[16..]);
    header[12..16].copy_from_slice(&crc.to_le_bytes());
    let sequence: [u8; 8] = header[16..24].try_into().expect("eight bytes");
    let mut chain = header[32..36].to_vec();
    let mut at = SECTOR as usize;
    while let Some(batch) = segment.get_mut(at..).filter(|batch| batch.len() >= 48) {
        if batch[..4] != 40_u32.to_le_bytes() {
            return;
        }
        if rng.below(16) > 0 {
            batch[12..16].copy_from_slice(&chain);
            batch[16..24].copy_from_slice(&(at as u64).to_le_bytes());
        }
        let crc = crc32c_append(crc32c(&sequence), &batch[..4]);
        let mut crc = crc32c_append(crc, &batch[8..48]);
        batch[4..8].copy_from_slice(&crc.to_le_bytes());
        let records: [u8; 4] = batch[40..44].try_into().expect("four bytes");
        let end = 48 + u32::from_le_bytes(records) as usize;
        let mut start = 48;
        while start < end && batch.len() >= start + 9 {
            let length: [u8; 4] = batch[start..start + 4].try_into().expect("four bytes");
            let Some(record) =
                batch.get_mut(start..start + 9 + u32::from_le_bytes(length) as usize)
            else {
                break;
            };
            crc = crc32c_append(crc32c_append(crc, &record[..4]), &record[8..]);
            record[4..8].copy_from_slice(&crc.to_le_bytes());
            start += record.len();
        }
        chain = crc.to_le_bytes().to_vec();
        at = (at + end).next_multiple_of(SECTOR as usize);
    }
}

/// A file system gave back a segment without the blanks behind its last batch: the start of the
/// node ended in a panic.
#[test]
fn a_segment_that_ends_within_its_last_sector_is_whole() {
    let files = log(&mut Rng::new(3));
    let (_, whole) = Wal::open(files.clone(), OPTIONS).expect("it is well");
    let (name, mut bytes) = segments(&files).pop().expect("there is one");
    let used = bytes.iter().rposition(|&byte| byte != 0).expect("it is not blank") + 1;
    assert!(used % SECTOR as usize > 0, "the last batch fills its sector: take another log");
    bytes.truncate(used);
    files.put(&name, &bytes);
    let (mut wal, found) = Wal::open(files.clone(), OPTIONS).expect("nothing is missing");
    assert_eq!(found, whole);
    let next = whole[&GroupId::SYSTEM].last_index().value() + 1;
    append(&mut wal, 9, next, next, None, &mut Rng::new(1));
    wal.close().expect("the disk is well");
    let (_, found) = Wal::open(files, OPTIONS).expect("it goes on");
    assert_eq!(found[&GroupId::SYSTEM].last_index(), LogIndex::new(next));
}

/// A batch cannot know that what comes behind it is durable.
#[test]
fn a_batch_that_proves_what_lies_behind_it_is_refused() {
    let files = log(&mut Rng::new(3));
    let (name, mut bytes) = segments(&files).pop().expect("there is one");
    // The first batch's word on what is durable: this segment, far behind.
    bytes.copy_within(16..24, SECTOR as usize + 24);
    bytes[SECTOR as usize + 32..][..8].copy_from_slice(&3_584_u64.to_le_bytes());
    // All but the chain of records into the next batch is mended: no chance is left.
    mend(&mut bytes, &mut Rng::new(0));
    files.put(&name, &bytes);
    let error = Wal::open(files, OPTIONS).expect_err("it is not ours");
    assert!(error.to_string().contains("behind it is durable"), "{error}");
}
