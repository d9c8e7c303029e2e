//! Bytes that nobody meant, where a backup should be.

use super::format::{BackupReader, BackupWriter, TRAILER_BYTES, read_trailer};
use crate::{
    fuzz::{self, Target},
    machine::SnapshotLoader,
    pb::cluster::v1::SnapshotHeader,
    storage::store::MemoryStore,
};

fn read(input: &[u8]) {
    if let Some(end) = input.last_chunk::<TRAILER_BYTES>() {
        let _ = read_trailer(end);
    }
    let Ok((mut reader, _)) = BackupReader::open(input) else { return };
    let store = MemoryStore::new();
    let mut loader = SnapshotLoader::new(&store);
    while let Ok(Some(chunk)) = reader.chunk() {
        if loader.feed(&chunk).is_err() {
            return;
        }
    }
    let _ = loader.finish();
}

#[test]
fn fuzz_backups() {
    let good = include_bytes!("../../../tests/golden/backup-v1.bin").to_vec();
    Target::new("backups", 2_000).allocating(64, 1 << 20).damaged(&[good], read);
}

#[test]
fn fuzz_backups_with_whole_checksums() {
    let make = |rng: &mut crate::types::Rng| {
        let header = SnapshotHeader::default();
        let mut writer = BackupWriter::begin(Vec::new(), &header).expect("a vector takes it");
        for _ in 0..rng.below(4) {
            let golden = include_bytes!("../../../tests/golden/backup-v1.bin");
            let chunk =
                fuzz::mutate(&[golden[64..].to_vec(), b"QRSNAP\r\n\0\0\0\x01".to_vec()], rng);
            writer.chunk(&chunk).expect("a vector takes it");
        }
        writer.finish().expect("a vector takes it")
    };
    let target = Target::new("backups with whole checksums", 2_000).allocating(64, 1 << 20);
    target.made(make, |input, _| read(input));
}
