//! `quorate.cluster.v1.ClusterService/SaveSnapshot`: the state as it stands at one index, chunk by
//! chunk, no faster than it is taken.
//!
//! The state goes on meanwhile: all chunks are read from one view. A view keeps what it shows on the
//! disk for as long as it is held, so few are held at once, and none for a reader that stands still
//! or is so slow that the view would be held without end.

use std::sync::Arc;

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::{Instant, timeout_at},
};
use tonic::Status;

use crate::{
    host,
    machine::{SnapshotWriter, View, refusal},
    pb::{
        cluster::v1::{
            SaveSnapshotRequest, SaveSnapshotResponse, SnapshotChunk, SnapshotEnd, SnapshotHeader,
            save_snapshot_response::Part,
        },
        command::v1::Reason,
    },
    services::{call::Context, gate::Call},
    streaming::{Updates, updates},
    types::Duration,
    wire::status::{from_refusal, from_store_error},
};

/// How many snapshots a node streams at once.
const SAVES_MAX: usize = 2;

/// How long a reader may leave a chunk untaken.
const STALL_MAX: Duration = Duration::from_secs(60);

/// How long a snapshot may take, whatever its size.
const GRACE: Duration = Duration::from_secs(60);

/// How fast a larger one is taken at least, on average after the grace.
const BYTES_PER_SECOND_MIN: u64 = 256 << 10;

/// The snapshots that a node streams.
#[derive(Clone, Debug)]
pub(crate) struct Saves(Arc<Semaphore>);

impl Default for Saves {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(SAVES_MAX)))
    }
}

impl Saves {
    pub(crate) async fn save(
        &self,
        context: &Context,
        request: &SaveSnapshotRequest,
        call: Call,
    ) -> Result<Updates<SaveSnapshotResponse>, Status> {
        let place = Arc::clone(&self.0).try_acquire_owned().map_err(|_| {
            let words = "this node streams two snapshots already: try again later, or elsewhere";
            from_refusal(refusal(Reason::Overloaded, words).with("limit", SAVES_MAX))
        })?;
        let view = context.view(request.stale, &call).await?;
        let header = header(&view)?;
        let produce = move |queue| stream(view, header, queue, place);
        Ok(updates(context.terms(call), produce))
    }
}

fn header(view: &View) -> Result<SnapshotHeader, Status> {
    let read = || Ok((view.head()?, view.cluster_id()?));
    let (head, cluster) = read().map_err(|error| from_store_error(&error))?;
    if head.index.is_zero() {
        let words = "this node has no state yet: ask again once the cluster has a leader";
        return Err(from_refusal(refusal(Reason::NoQuorum, words)));
    }
    Ok(SnapshotHeader {
        cluster_id: cluster.map(|id| id.to_string()).unwrap_or_default(),
        applied_index: head.index.value(),
        term: head.term.value(),
        time: Some(head.time.to_timestamp()),
        revision: head.revision.value(),
        position: head.position.value(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    })
}

async fn stream(
    view: View,
    header: SnapshotHeader,
    queue: mpsc::Sender<SaveSnapshotResponse>,
    _place: OwnedSemaphorePermit,
) -> Result<(), Status> {
    let mut writer = SnapshotWriter::new(Arc::clone(view.reader()));
    drop(view);
    let started = Instant::now();
    let mut end = SnapshotEnd::default();
    send(&queue, Part::Header(header), started + allowed(0)).await?;
    loop {
        let read = host::blocking(move || (writer.next(), writer)).await;
        let (next, rest) =
            read.map_err(|error| Status::internal(format!("reading the state failed: {error}")))?;
        writer = rest;
        let Some(data) = next else { break };
        let data = data.map_err(|error| from_store_error(&error))?;
        end.chunks += 1;
        end.bytes += data.len() as u64;
        let crc32c = crc32c::crc32c(&data);
        let part = Part::Chunk(SnapshotChunk { data, crc32c });
        send(&queue, part, started + allowed(end.bytes)).await?;
    }
    send(&queue, Part::End(end), started + allowed(end.bytes)).await
}

/// How long it may take until so many bytes are taken.
fn allowed(bytes: u64) -> Duration {
    GRACE + Duration::from_millis(bytes.saturating_mul(1_000) / BYTES_PER_SECOND_MIN)
}

/// Waits until there is room, until `due` at the latest. A reader that is gone ends the stream
/// elsewhere.
async fn send(
    queue: &mpsc::Sender<SaveSnapshotResponse>,
    part: Part,
    due: Instant,
) -> Result<(), Status> {
    let response = SaveSnapshotResponse { part: Some(part) };
    let stalled = Instant::now() + STALL_MAX;
    if timeout_at(stalled.min(due), queue.send(response)).await.is_ok() {
        return Ok(());
    }
    let words = if stalled < due {
        format!("no part of the snapshot was taken for {STALL_MAX:?}: begin anew")
    } else {
        format!(
            "the snapshot was taken too slowly, at less than {} KiB/s: begin anew, closer to the \
             node",
            BYTES_PER_SECOND_MIN >> 10
        )
    };
    Err(from_refusal(refusal(Reason::DeadlineExceeded, words)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_may_take_a_minute_and_its_size_at_the_least_rate() {
        assert_eq!(allowed(0), Duration::from_secs(60));
        assert_eq!(allowed(256 << 10), Duration::from_secs(61));
        assert_eq!(allowed(10 << 30), Duration::from_secs(60 + 40_960));
    }

    #[tokio::test]
    async fn a_reader_that_is_too_slow_in_all_is_told_so() {
        let (queue, _reader) = mpsc::channel(1);
        let part = || Part::End(SnapshotEnd::default());
        let due = Instant::now();
        send(&queue, part(), due).await.expect("there is room");
        let status = send(&queue, part(), due).await.expect_err("too late");
        assert_eq!(status.code(), tonic::Code::DeadlineExceeded);
        assert!(status.message().contains("less than 256 KiB/s"), "{status}");
    }
}
