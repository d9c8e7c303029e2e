//! A received snapshot becomes a store of its own, beside the one in use, before anything changes.

use std::{
    fs::File,
    io::{BufReader, Read},
    sync::Arc,
};

use tokio::sync::oneshot;

use crate::{
    host,
    machine::{Head, SnapshotLoader, store::Store},
    node::{SnapshotOffer, applier::ApplierJob, shared::Shared},
    storage::{PendingState, Step, reached},
    types::{NodeId, Term},
};

/// The largest chunk that is accepted.
const CHUNK_BYTES_MAX: usize = 16 << 20;

/// A snapshot that is on disk, verified and durable, in a store of its own.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub(crate) from: NodeId,
    pub(crate) term: Term,
    pub(crate) head: Head,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) pending: PendingState,
}

/// Loads the snapshot and hands it to the applier; waits until it is installed.
pub(crate) async fn receive(shared: &Arc<Shared>, offer: SnapshotOffer) -> Result<(), String> {
    // One at a time: an old and a new leader may both send one.
    let _turn = shared.installing.lock().await;
    if offer.index <= shared.feed.head().index {
        return Ok(()); // Not needed.
    }
    let prepared = {
        let shared = Arc::clone(shared);
        host::blocking(move || prepare(&shared, &offer))
            .await
            .map_err(|_| "the node is stopping".to_owned())??
    };
    let (reply, answer) = oneshot::channel();
    shared
        .applier
        .send(ApplierJob::Install(Box::new(prepared), reply))
        .map_err(|_| "the node is stopping".to_owned())?;
    answer.await.map_err(|_| "the node is stopping".to_owned())?
}

fn prepare(shared: &Shared, offer: &SnapshotOffer) -> Result<Prepared, String> {
    let (store, pending) = shared.data.begin_state().map_err(|error| error.to_string())?;
    reached(Step::Begun);
    let head = load(store.as_ref(), offer)?;
    reached(Step::Loaded);
    store.persist().map_err(|error| error.to_string())?;
    reached(Step::Durable);
    if head.index != offer.index || head.term != offer.last_term {
        return Err(format!(
            "the snapshot says that it covers {:?} of {:?}, but holds {:?} of {:?}",
            offer.index, offer.last_term, head.index, head.term
        ));
    }
    Ok(Prepared { from: offer.from, term: offer.term, head, store, pending })
}

fn load(store: &dyn Store, offer: &SnapshotOffer) -> Result<Head, String> {
    let file =
        File::open(&offer.file).map_err(|error| format!("{}: {error}", offer.file.display()))?;
    let mut file = BufReader::with_capacity(1 << 20, file);
    let mut loader = SnapshotLoader::new(store);
    let mut chunk = Vec::new();
    loop {
        let mut length = [0; 4];
        match file.read_exact(&mut length) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => break,
            Err(error) => return Err(error.to_string()),
        }
        let length = u32::from_le_bytes(length) as usize;
        if length > CHUNK_BYTES_MAX {
            return Err(format!("a chunk of {length} bytes is too large"));
        }
        chunk.resize(length, 0);
        file.read_exact(&mut chunk).map_err(|error| error.to_string())?;
        loader.feed(&chunk).map_err(|error| error.to_string())?;
        reached(Step::Loading);
    }
    loader.finish().map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests;
