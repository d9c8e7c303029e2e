//! The log under crashes at any point: what was synced is there, a batch is there whole or not at
//! all, and nothing that was overwritten or recycled comes back.

use std::collections::BTreeMap;

use bytes::Bytes;
use quorate::{
    raft::{Append, Entry, HardMark, HardState, LogMark, LogStart, Membership, Payload},
    storage::{
        RecoveredGroup, Wal, WalOptions,
        files::{Fault, MemoryFiles},
    },
    types::{GroupId, LogIndex, LogTime, NodeId, Rng, Term},
};

/// Small segments, so that every run fills, frees and recycles many.
pub(crate) const OPTIONS: WalOptions = WalOptions { segment_bytes: 4_096, spare_segments_max: 2 };

pub(crate) type Groups = BTreeMap<GroupId, RecoveredGroup>;

/// A log and what it must hold.
pub(crate) struct Model {
    pub(crate) files: MemoryFiles,
    pub(crate) wal: Wal,
    /// With all that was appended.
    pub(crate) now: Groups,
    /// As of the last sync.
    pub(crate) synced: Groups,
    pub(crate) rng: Rng,
}

impl Model {
    pub(crate) fn new(seed: u64) -> Self {
        let files = MemoryFiles::new();
        let (wal, groups) = Wal::open(files.clone(), OPTIONS).expect("an empty disk opens");
        assert!(groups.is_empty());
        Self { files, wal, now: Groups::new(), synced: Groups::new(), rng: Rng::new(seed) }
    }

    /// Appends something that the core could hand out.
    pub(crate) fn append(&mut self) {
        let rng = &mut self.rng;
        let id = GroupId::new(1 + rng.below(3));
        let group = self.now.entry(id).or_default();
        if rng.below(4) == 0 {
            group.hard.term = group.hard.term.next();
            group.hard.vote = None;
        }
        if rng.below(4) == 0 && group.hard.vote.is_none() {
            group.hard.vote = Some(NodeId::new(1 + rng.below(3)));
        }
        let keep = rng.below(group.entries.len() as u64 + 1) as usize;
        let truncate = rng.below(3) == 0 && group.leader_term < group.hard.term;
        let mut truncate_from = None;
        if truncate && keep < group.entries.len() {
            truncate_from = Some(group.entries[keep].index);
            group.entries.truncate(keep);
        }
        group.leader_term = group.hard.term;
        let mut index = group.last_index();
        let mut entries = Vec::new();
        for _ in 0..rng.below(5) {
            index = index.next();
            entries.push(entry(rng, index, group.hard.term));
        }
        group.entries.extend(entries.iter().cloned());
        group.hard.commit = index;
        let append = Append {
            hard: group.hard,
            reset_to: None,
            truncate_from,
            entries,
            hard_mark: group.hard_mark(),
            log_mark: LogMark { leader_term: group.leader_term, index },
        };
        self.wal.append(id, &append).expect("the disk is well");
    }

    pub(crate) fn purge(&mut self) {
        let rng = &mut self.rng;
        let id = GroupId::new(1 + rng.below(3));
        let Some(group) = self.now.get_mut(&id) else { return };
        let count = rng.below(group.entries.len() as u64 + 1) as usize;
        let Some(last) = group.entries.drain(..count).last() else { return };
        (group.purged_index, group.purged_term, group.purged_time) =
            (last.index, last.term, last.time);
        self.wal.purge(id, last.index, last.term, last.time).expect("the disk is well");
    }

    /// Appends what a snapshot makes of the log: it goes on behind the snapshot where it holds the
    /// entry that the snapshot ends with, and is void otherwise.
    pub(crate) fn reset(&mut self) {
        let rng = &mut self.rng;
        let id = GroupId::new(1 + rng.below(3));
        let group = self.now.entry(id).or_default();
        let index = group.purged_index.forward(1 + rng.below(6));
        let known = group.entries.iter().find(|entry| entry.index == index);
        let known = known.map(|entry| entry.term);
        let (term, kept) = match known {
            Some(term) if rng.below(2) == 0 => (term, true),
            _ => (group.hard.term.next(), false),
        };
        let start = LogStart { index, term, time: LogTime::from_millis(1_000 + index.value()) };
        group.hard.term = group.hard.term.max(term);
        group.hard.vote = None;
        group.hard.commit = group.hard.commit.max(index);
        group.leader_term = group.hard.term;
        (group.purged_index, group.purged_term, group.purged_time) = (index, term, start.time);
        group.entries.retain(|entry| kept && entry.index > index);
        let append = Append {
            hard: group.hard,
            reset_to: Some(start),
            truncate_from: None,
            entries: Vec::new(),
            hard_mark: group.hard_mark(),
            log_mark: group.log_mark(),
        };
        self.wal.append(id, &append).expect("the disk is well");
    }

    pub(crate) fn sync(&mut self) {
        self.wal.sync().expect("the disk is well");
        self.synced.clone_from(&self.now);
    }

    /// Opens the log again and checks what it holds.
    pub(crate) fn reopen(&mut self, context: &str) {
        let (wal, groups) =
            Wal::open(self.files.clone(), OPTIONS).unwrap_or_else(|e| panic!("{context}: {e}"));
        self.wal = wal;
        assert!(
            groups == self.synced || groups == self.now,
            "{context}: neither what was synced nor the whole batch after it:\n{groups:#?}"
        );
        self.synced.clone_from(&groups);
        self.now = groups;
    }
}

pub(crate) fn entry(rng: &mut Rng, index: LogIndex, term: Term) -> Entry {
    let payload = match rng.below(8) {
        0 => Payload::Noop,
        1 => {
            let voters = [1, 2, 3].map(NodeId::new);
            let learners = [NodeId::new(4)].into();
            Payload::Membership(Membership { learners, ..Membership::of(voters) })
        }
        2 => Payload::Command(Bytes::from(vec![rng.next_u64() as u8; rng.below(6_000) as usize])),
        _ => Payload::Command(Bytes::from(vec![rng.next_u64() as u8; rng.below(200) as usize])),
    };
    Entry { index, term, time: LogTime::from_millis(1_000 + index.value()), payload }
}

#[test]
fn what_was_synced_survives_crashes_at_any_point() {
    for seed in 0..150 {
        let mut model = Model::new(seed);
        for round in 0..6 {
            for _ in 0..model.rng.below(40) {
                match model.rng.below(20) {
                    0..10 => model.append(),
                    10..14 => model.purge(),
                    14 => model.reset(),
                    _ => model.sync(),
                }
            }
            crash_in_the_next_sync(&mut model);
            let mut rng = model.rng.stream("crash");
            model.rng.next_u64();
            model.files.crash(&mut rng);
            model.reopen(&format!("seed {seed}, round {round}"));
        }
    }
}

/// Half of the crashes come while a batch is on its way: it was written and never acknowledged.
fn crash_in_the_next_sync(model: &mut Model) {
    let fault = match model.rng.below(6) {
        0 => Fault::Write,
        1 => Fault::Sync,
        // Strikes where a segment is opened.
        2 => Fault::SyncDirectory,
        _ => return,
    };
    model.append();
    model.files.fail(fault, 0);
    if model.wal.sync().is_ok() {
        assert_eq!(fault, Fault::SyncDirectory, "the fault must strike");
        model.files.heal();
        model.synced.clone_from(&model.now);
    }
}

#[test]
fn a_killed_process_loses_nothing_that_it_wrote() {
    let mut model = Model::new(5);
    for _ in 0..20 {
        model.append();
        model.append();
        // The batch is written; the sync fails, and the process dies without a power loss.
        model.files.fail(Fault::Sync, 0);
        model.wal.sync().expect_err("the fault strikes");
        let expected = model.now.clone();
        model.reopen("killed");
        assert_eq!(model.now, expected, "what is read after a kill is the whole batch");
    }
}

#[test]
fn what_a_start_gives_back_is_durable() {
    for seed in 0..100 {
        let mut model = Model::new(seed);
        for _ in 0..1 + model.rng.below(10) {
            model.append();
        }
        crash_in_the_next_sync(&mut model);
        model.reopen("killed");
        let given = model.now.clone();
        let mut rng = model.rng.stream("crash");
        model.files.crash(&mut rng);
        model.reopen("power lost right after the start");
        assert_eq!(model.now, given, "seed {seed}");
    }
}

#[test]
fn rule_15_marks_only_grow() {
    for seed in 0..100 {
        let mut model = Model::new(seed);
        let mut marks = BTreeMap::<GroupId, (HardMark, LogMark)>::new();
        for _ in 0..10 {
            for _ in 0..model.rng.below(10) {
                model.append();
            }
            model.sync();
            let mut rng = model.rng.stream("crash");
            model.files.crash(&mut rng);
            model.reopen("after a sync");
            for (&id, group) in &model.now {
                let found = (group.hard_mark(), group.log_mark());
                let before = marks.insert(id, found).unwrap_or_default();
                assert!(before.0 <= found.0 && before.1 <= found.1, "{before:?} {found:?}");
            }
        }
    }
}

#[test]
fn rule_25_segments_are_recycled_and_their_old_records_stay_dead() {
    let mut model = Model::new(9);
    let mut peak = 0;
    for _ in 0..600 {
        model.append();
        model.sync();
        for _ in 0..6 {
            model.purge();
        }
        peak = peak.max(model.wal.disk_bytes());
    }
    let names = quorate::storage::files::Files::list(&model.files).expect("lists");
    let newest = names.iter().filter_map(|n| u64::from_str_radix(n.strip_suffix(".wal")?, 16).ok());
    assert!(newest.max().expect("there is a segment") > 30, "many segments were filled");
    assert!(names.len() < 40 && peak < 200_000, "{} files, {peak} bytes", names.len());
    model.sync();
    let expected = model.now.clone();
    model.reopen("after much recycling");
    assert_eq!(model.now, expected);
}

#[test]
fn a_group_that_lags_keeps_its_segments() {
    let mut model = Model::new(1);
    let lagging = GroupId::new(77);
    let entries = vec![entry(&mut model.rng, LogIndex::new(1), Term::new(1))];
    let group = RecoveredGroup {
        hard: HardState { term: Term::new(1), ..HardState::default() },
        leader_term: Term::new(1),
        entries: entries.clone(),
        ..RecoveredGroup::default()
    };
    let append = Append {
        hard: group.hard,
        reset_to: None,
        truncate_from: None,
        entries,
        hard_mark: group.hard_mark(),
        log_mark: group.log_mark(),
    };
    model.wal.append(lagging, &append).expect("the disk is well");
    model.now.insert(lagging, group);
    for _ in 0..200 {
        model.append();
        model.sync();
        for _ in 0..6 {
            let before = model.now.get(&lagging).cloned();
            model.purge();
            assert_eq!(model.now.get(&lagging).cloned(), before);
        }
    }
    model.sync();
    let expected = model.now.clone();
    model.reopen("with one group far behind");
    assert_eq!(model.now, expected);
}

#[test]
fn one_sync_serves_all_that_was_appended() {
    let mut model = Model::new(3);
    for _ in 0..4 {
        model.append();
    }
    let before = model.files.syncs();
    model.sync();
    model.sync();
    assert!(model.files.syncs() - before <= 3, "one, and two more where a segment was opened");
}
