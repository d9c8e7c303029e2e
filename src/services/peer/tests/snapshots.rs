//! Snapshots: whole, broken off and damaged.

use std::{fs, path::Path};

use bytes::Bytes;

use super::*;
use crate::{
    machine::store::StoreError, node::SnapshotSource, pb::raft::v1::InstallSnapshotRequest,
};

fn snapshot(index: u64, chunks: Vec<Result<Bytes, StoreError>>) -> SnapshotSource {
    let (index, last_term) = (LogIndex::new(index), Term::new(6));
    SnapshotSource { term: TERM, index, last_term, chunks: Box::new(chunks.into_iter()) }
}

async fn snapshot_end(node: &mut Node) -> Option<LogIndex> {
    node.wait("end of the snapshot", |event| match event {
        Event::SnapshotSent(installed) => Some(installed),
        _ => None,
    })
    .await
}

fn is_empty(dir: &Path) -> bool {
    fs::read_dir(dir).unwrap().next().is_none()
}

#[tokio::test]
async fn a_snapshot_arrives_whole_and_leaves_no_file_behind() {
    let (mut one, two) = pair().await;
    let chunks = [vec![1; 700_000], vec![2; 3], vec![3; 100_000]];
    let file: Vec<u8> = chunks
        .iter()
        .flat_map(|chunk| [&u32::try_from(chunk.len()).unwrap().to_le_bytes()[..], chunk].concat())
        .collect();
    let source = snapshot(50, chunks.into_iter().map(|chunk| Ok(Bytes::from(chunk))).collect());
    one.transport.send_snapshot(TWO, SYSTEM, source);
    assert_eq!(snapshot_end(&mut one).await, Some(LogIndex::new(50)));
    let (offer, content) = two.recorder.snapshots.lock().unwrap().pop().expect("one snapshot");
    assert_eq!((offer.from, offer.term, offer.last_term), (ONE, TERM, Term::new(6)));
    assert!(content == file, "the chunks are in the file, each behind its length");
    assert!(is_empty(two.incoming_dir.path()));
}

#[tokio::test]
async fn a_snapshot_that_fails_at_either_end_is_reported() {
    let (mut one, two) = pair().await;
    let broken = StoreError("a block is damaged".to_owned());
    let chunks = vec![Ok("a".into()), Err(broken), Ok("b".into())];
    one.transport.send_snapshot(TWO, SYSTEM, snapshot(50, chunks));
    assert_eq!(snapshot_end(&mut one).await, None);
    one.transport.send_snapshot(TWO, SYSTEM, snapshot(0, vec![Ok("refused".into())]));
    assert_eq!(snapshot_end(&mut one).await, None);
    assert!(two.recorder.snapshots.lock().unwrap().is_empty());
    until("removal", || is_empty(two.incoming_dir.path())).await;
}

#[tokio::test]
async fn damaged_and_missing_chunks_are_refused() {
    let (one, _two) = pair().await;
    let mut client = client(connect(&one.address.to_string()).await.unwrap());
    let chunk = |sequence: u64| InstallSnapshotRequest {
        identity: (sequence == 0).then(identity_of_two),
        group_id: 1,
        leader_id: 2,
        last_included_index: 5,
        sequence,
        data: "chunk".into(),
        crc32c: crc32c::crc32c(b"chunk"),
        done: sequence == 2,
        ..Default::default()
    };
    let damaged = InstallSnapshotRequest { data: "chunc".into(), ..chunk(1) };
    let cases = [
        (vec![chunk(0), damaged, chunk(2)], "damaged"),
        (vec![chunk(0), chunk(2)], "chunk 2 came where 1 was due"),
        (vec![chunk(0), chunk(1)], "ends early"),
        (vec![InstallSnapshotRequest { identity: None, ..chunk(0) }], "identity"),
    ];
    for (chunks, words) in cases {
        let answer = client.install_snapshot(tokio_stream::iter(chunks)).await.unwrap();
        let answer = answer.into_inner();
        assert!(!answer.installed && answer.reason.contains(words), "{answer:?}");
        assert_eq!(answer.term, TERM.value());
    }
    assert!(one.recorder.snapshots.lock().unwrap().is_empty());
    let whole = [chunk(0), chunk(1), chunk(2)];
    let answer = client.install_snapshot(tokio_stream::iter(whole)).await.unwrap();
    assert!(answer.into_inner().installed);
}
