//! The log on a disk that fails or rots: it stops, and says what is wrong where.

use quorate::{
    storage::{
        Error, Wal,
        files::{Fault, Files as _, MemoryFiles},
    },
    types::Rng,
};

use crate::wal::{Groups, Model, OPTIONS};

/// A log of some segments; closed, so that all of it is known durable.
fn closed(seed: u64) -> (MemoryFiles, Groups) {
    let mut model = Model::new(seed);
    for _ in 0..30 {
        model.append();
        model.sync();
    }
    let Model { files, wal, now, .. } = model;
    wal.close().expect("the disk is well");
    (files, now)
}

fn segments(files: &MemoryFiles) -> Vec<String> {
    let names = files.list().expect("lists").into_iter();
    let mut names: Vec<_> = names.filter(|name| name.ends_with(".wal")).collect();
    names.sort();
    names
}

fn copy(files: &MemoryFiles) -> MemoryFiles {
    let copy = MemoryFiles::new();
    for name in files.list().expect("lists") {
        copy.put(&name, &files.read(&name).expect("is there"));
    }
    copy
}

#[test]
fn rule_23_a_flipped_bit_is_refused_with_file_and_offset_or_was_no_data() {
    let mut refused = 0;
    for seed in 0..6 {
        let (files, expected) = closed(seed);
        let mut rng = Rng::new(seed);
        for name in segments(&files) {
            let len = files.read(&name).expect("is there").len() as u64;
            for _ in 0..60 {
                let (at, bit) = (rng.below(len), 1 << rng.below(8));
                let damaged = copy(&files);
                damaged.damage(&name, at, bit);
                match Wal::open(damaged, OPTIONS) {
                    Ok((_, found)) => assert!(found == expected, "{name}@{at} went unseen"),
                    Err(Error::Corrupt { file, offset, .. }) => {
                        assert_eq!(file, name);
                        assert!(offset <= at, "refused at {offset} for damage at {at}");
                        refused += 1;
                    }
                    Err(other) => panic!("{name}@{at}: {other}"),
                }
            }
        }
    }
    assert!(refused > 500, "most bytes are data: {refused}");
}

#[test]
fn rule_27_damage_in_the_last_batch_is_a_torn_tail_and_the_cut_is_synced() {
    for seed in 0..40 {
        let mut model = Model::new(seed);
        for _ in 0..5 {
            model.append();
        }
        model.sync();
        let name = segments(&model.files).pop().expect("there is a segment");
        let durable = model.files.read(&name).expect("is there");
        let before = model.now.clone();
        model.append();
        model.wal.sync().expect("the disk is well");
        // Damage the first sector that the last batch wrote, behind its header.
        let written = model.files.read(&name).expect("is there");
        let Some(start) = (0..written.len())
            .step_by(512)
            .find(|&at| written[at..at + 512] != durable[at..at + 512])
        else {
            continue;
        };
        model.files.damage(&name, start as u64 + 60, 0x10);
        model.now.clone_from(&before);
        model.reopen("torn tail");
        // A crash right after cannot bring the batch back.
        model.files.crash(&mut Rng::new(seed));
        model.reopen("after the cut");
        let cut = model.files.read(&name).expect("is there");
        assert!(cut[start..start + 512].iter().all(|&byte| byte == 0), "the cut is on disk");
        model.append();
        model.sync();
        model.reopen("after the log went on");
    }
}

#[test]
fn rule_26_a_failed_write_or_sync_is_never_retried() {
    for fault in [Fault::Write, Fault::Sync, Fault::Full] {
        let mut model = Model::new(1);
        model.append();
        model.sync();
        model.append();
        model.files.fail(fault, 0);
        let first = model.wal.sync().expect_err("the fault strikes");
        assert!(matches!(first, Error::Io { .. }), "{first}");
        // The disk is well again; the log takes nothing all the same.
        let syncs = model.files.syncs();
        let refused = [
            model.wal.sync().expect_err("poisoned"),
            model
                .wal
                .purge(1.into_group(), 1.into_index(), Default::default(), Default::default())
                .expect_err("poisoned"),
        ];
        assert!(refused.iter().all(|error| matches!(error, Error::Poisoned { .. })));
        assert_eq!(model.files.syncs(), syncs, "the disk was not asked again");
    }
}

trait Number {
    fn into_group(self) -> quorate::types::GroupId;
    fn into_index(self) -> quorate::types::LogIndex;
}

impl Number for u64 {
    fn into_group(self) -> quorate::types::GroupId {
        quorate::types::GroupId::new(self)
    }

    fn into_index(self) -> quorate::types::LogIndex {
        quorate::types::LogIndex::new(self)
    }
}

#[test]
fn a_segment_that_is_gone_is_missing_not_corrupt() {
    let (files, _) = closed(2);
    let names = segments(&files);
    assert!(names.len() >= 4);
    for gone in &names[1..names.len() - 1] {
        let files = copy(&files);
        files.remove(gone).expect("is there");
        let error = Wal::open(files, OPTIONS).map(|_| ()).expect_err("a gap is refused");
        assert!(matches!(error, Error::Missing { .. }), "{error}");
        assert!(error.to_string().contains(gone.as_str()), "{error}");
    }
    // Without the oldest one, the entries that lay in it are missing.
    let without_first = copy(&files);
    without_first.remove(&names[0]).expect("is there");
    let error = Wal::open(without_first, OPTIONS).map(|_| ()).expect_err("entries are missing");
    assert!(matches!(&error, Error::Missing { what } if what.contains("entries 1 to")), "{error}");
}

#[test]
fn a_start_that_is_interrupted_can_be_repeated() {
    for seed in 0..60 {
        let mut model = Model::new(seed);
        for _ in 0..20 {
            model.append();
            if model.rng.below(2) == 0 {
                model.sync();
            }
        }
        model.files.fail(Fault::Sync, 0);
        drop(model.wal.sync());
        let mut rng = model.rng.stream("crash");
        model.files.crash(&mut rng);
        // The start itself is hit by a failing sync, then by another power loss.
        let fault = [Fault::Sync, Fault::SyncDirectory][model.rng.below(2) as usize];
        model.files.fail(fault, 0);
        drop(Wal::open(model.files.clone(), OPTIONS));
        model.files.crash(&mut rng);
        model.reopen(&format!("seed {seed}"));
    }
}

#[test]
fn an_unknown_version_is_refused() {
    let golden = include_bytes!("../golden/wal-v1.bin");
    let mut bytes = golden.to_vec();
    bytes[8] = 2;
    let crc = crc32c::crc32c_append(crc32c::crc32c(&bytes[..12]), &bytes[16..64]);
    bytes[12..16].copy_from_slice(&crc.to_le_bytes());
    let files = MemoryFiles::new();
    files.put("0000000000000001.wal", &bytes);
    let error = Wal::open(files, OPTIONS).map(|_| ()).expect_err("version 2 is unknown");
    assert!(matches!(error, Error::UnknownVersion { version: 2, .. }), "{error}");
}
