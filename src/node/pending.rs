//! The calls that somebody waits for: a sender each, completed by the applier or the driver.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use tokio::sync::oneshot;

use crate::{node::calls::Reply, pb::command::v1::Outcome, types::Instant};

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

/// When a call got as far as it did.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Marks {
    /// When the entry that answers it was committed, as this node learned it.
    pub(crate) committed: Instant,
    /// When it was applied, or the reply was there.
    pub(crate) settled: Instant,
    /// Whether it waited in a line between the two.
    pub(crate) waited: bool,
}

#[derive(Debug)]
struct Waiter {
    sender: oneshot::Sender<(Settled, Marks)>,
    waited: bool,
}

type Table = HashMap<u64, Waiter>;
type Shard = Mutex<Table>;

/// The open calls of this process.
#[derive(Debug, Default)]
pub(crate) struct Pending {
    shards: [Shard; SHARDS],
}

impl Pending {
    /// Opens a call.
    pub(crate) fn open(&self, sequence: u64) -> oneshot::Receiver<(Settled, Marks)> {
        let (sender, receiver) = oneshot::channel();
        self.shard(sequence).insert(sequence, Waiter { sender, waited: false });
        receiver
    }

    /// Ends a call. `false` where nobody waits for it any more.
    pub(crate) fn settle(&self, sequence: u64, settled: Settled, marks: Marks) -> bool {
        let waiter = self.shard(sequence).remove(&sequence);
        waiter.is_some_and(|Waiter { sender, waited }| {
            sender.send((settled, Marks { waited, ..marks })).is_ok()
        })
    }

    /// A call was applied and waits in a line.
    pub(crate) fn park(&self, sequence: u64) {
        if let Some(waiter) = self.shard(sequence).get_mut(&sequence) {
            waiter.waited = true;
        }
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

    fn shard(&self, sequence: u64) -> MutexGuard<'_, Table> {
        let shard = usize::try_from(sequence % SHARDS as u64).expect("a small number");
        self.shards[shard].lock().unwrap_or_else(PoisonError::into_inner)
    }
}
