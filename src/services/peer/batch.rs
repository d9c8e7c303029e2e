//! Batching on a stream: what waits in a queue goes out as one message.
//!
//! The first item is never held back to wait for more, so batches form only while the stream is
//! busy. Order is kept.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::sync::mpsc;
use tokio_stream::Stream;

use crate::pb::raft::v1::{ForwardRequest, ForwardResponse};

/// A batch that weighs this many bytes takes nothing more.
const BATCH_BYTES_MAX: usize = 1024 * 1024;

/// What one item of a batch weighs beside its content, in bytes.
const ITEM_BYTES: usize = 32;

/// What can be joined to a batch.
pub(super) trait Merge: Unpin {
    /// Roughly how many bytes it takes.
    fn weight(&self) -> usize;
    /// Takes the other in, or gives it back where one message cannot say both.
    fn merge(&mut self, other: Self) -> Option<Self>
    where
        Self: Sized;
}

impl Merge for ForwardRequest {
    fn weight(&self) -> usize {
        let commands: usize = self.proposals.iter().map(|propose| propose.command.len()).sum();
        let items = self.proposals.len() + self.reads.len() + self.renewals.len();
        commands + items * ITEM_BYTES
    }

    fn merge(&mut self, mut other: Self) -> Option<Self> {
        let wants_transfer = |request: &Self| request.transfer_sequence > 0;
        if wants_transfer(self) && wants_transfer(&other) {
            return Some(other);
        }
        if wants_transfer(&other) {
            self.transfer_target = other.transfer_target;
            self.transfer_sequence = other.transfer_sequence;
        }
        self.proposals.append(&mut other.proposals);
        self.reads.append(&mut other.reads);
        self.renewals.append(&mut other.renewals);
        None
    }
}

impl Merge for ForwardResponse {
    fn weight(&self) -> usize {
        // Accepted answers are small; a refusal is a sentence.
        self.answers.len() * ITEM_BYTES * 4
    }

    fn merge(&mut self, mut other: Self) -> Option<Self> {
        self.answers.append(&mut other.answers);
        None
    }
}

/// A queue as a stream of batches.
#[derive(Debug)]
pub(super) struct Batches<T> {
    queue: mpsc::Receiver<T>,
    held: Option<T>,
}

impl<T> Batches<T> {
    pub(super) const fn new(queue: mpsc::Receiver<T>) -> Self {
        Self { queue, held: None }
    }
}

impl<T: Merge> Stream for Batches<T> {
    type Item = T;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<T>> {
        let mut batch = match self.held.take() {
            Some(held) => held,
            None => match ready!(self.queue.poll_recv(cx)) {
                Some(item) => item,
                None => return Poll::Ready(None),
            },
        };
        while batch.weight() < BATCH_BYTES_MAX
            && let Ok(item) = self.queue.try_recv()
        {
            self.held = batch.merge(item);
            if self.held.is_some() {
                break;
            }
        }
        Poll::Ready(Some(batch))
    }
}

#[cfg(test)]
mod tests {
    use tokio_stream::StreamExt as _;

    use super::*;
    use crate::pb::raft::v1::forward_request::{Propose, ReadIndex};

    fn propose(sequence: u64, bytes: usize) -> ForwardRequest {
        let command = vec![0; bytes].into();
        let proposals = vec![Propose { sequence, command, expected_term: 1 }];
        ForwardRequest { proposals, ..Default::default() }
    }

    fn read(sequence: u64) -> ForwardRequest {
        ForwardRequest { reads: vec![ReadIndex { sequence }], ..Default::default() }
    }

    fn transfer(sequence: u64) -> ForwardRequest {
        ForwardRequest { transfer_target: 2, transfer_sequence: sequence, ..Default::default() }
    }

    async fn batches(requests: Vec<ForwardRequest>) -> Vec<ForwardRequest> {
        let (sender, queue) = mpsc::channel(requests.len());
        for request in requests {
            sender.try_send(request).unwrap();
        }
        drop(sender);
        Batches::new(queue).collect().await
    }

    #[tokio::test]
    async fn what_waits_goes_out_as_one_message_in_order() {
        let out = batches(vec![propose(1, 9), read(2), propose(3, 9), transfer(4)]).await;
        assert_eq!(out.len(), 1);
        let sequences: Vec<_> = out[0].proposals.iter().map(|propose| propose.sequence).collect();
        assert_eq!(sequences, [1, 3]);
        assert_eq!(out[0].reads, [ReadIndex { sequence: 2 }]);
        assert_eq!((out[0].transfer_target, out[0].transfer_sequence), (2, 4));
    }

    #[tokio::test]
    async fn a_batch_is_bounded_in_bytes() {
        let out = batches((0..5).map(|n| propose(n, BATCH_BYTES_MAX / 2)).collect()).await;
        assert_eq!(out.iter().map(|batch| batch.proposals.len()).collect::<Vec<_>>(), [2, 2, 1]);
    }

    #[tokio::test]
    async fn two_transfers_are_never_made_one() {
        let out = batches(vec![transfer(1), read(2), transfer(3), read(4)]).await;
        let sequences: Vec<_> = out.iter().map(|batch| batch.transfer_sequence).collect();
        assert_eq!(sequences, [1, 3]);
        assert_eq!((out[0].reads.len(), out[1].reads.len()), (1, 1));
    }
}
