//! The calls that somebody waits for: a sender each, completed by the applier or the driver.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use tokio::sync::oneshot;

use crate::{node::calls::Reply, pb::command::v1::Outcome};

/// Tables that calls are spread over, so that services and applier seldom meet at one lock.
const SHARDS: usize = 16;

/// What a call ends with.
#[derive(Debug)]
pub(crate) enum Settled {
    /// A proposal's outcome, from this node's own apply.
    Outcome(Outcome),
    /// Any other answer.
    Reply(Reply),
}

type Shard = Mutex<HashMap<u64, oneshot::Sender<Settled>>>;

/// The open calls of this process.
#[derive(Debug, Default)]
pub(crate) struct Pending {
    shards: [Shard; SHARDS],
}

impl Pending {
    /// Opens a call.
    pub(crate) fn open(&self, sequence: u64) -> oneshot::Receiver<Settled> {
        let (sender, receiver) = oneshot::channel();
        self.shard(sequence).insert(sequence, sender);
        receiver
    }

    /// Ends a call. `false` where nobody waits for it any more.
    pub(crate) fn settle(&self, sequence: u64, settled: Settled) -> bool {
        let sender = self.shard(sequence).remove(&sequence);
        sender.is_some_and(|sender| sender.send(settled).is_ok())
    }

    /// Forgets a call. `false` where it was ended before.
    pub(crate) fn forget(&self, sequence: u64) -> bool {
        self.shard(sequence).remove(&sequence).is_some()
    }

    /// Ends every call without an answer: the node stops.
    pub(crate) fn clear(&self) {
        for shard in &self.shards {
            shard.lock().unwrap_or_else(PoisonError::into_inner).clear();
        }
    }

    fn shard(&self, sequence: u64) -> MutexGuard<'_, HashMap<u64, oneshot::Sender<Settled>>> {
        let shard = usize::try_from(sequence % SHARDS as u64).expect("a small number");
        self.shards[shard].lock().unwrap_or_else(PoisonError::into_inner)
    }
}
