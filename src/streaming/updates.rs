//! From a cursor to a gRPC stream: a task that produces only when there is room, a small queue, and
//! an end that needs no room in it.
//!
//! The task ends with the call, with the call's deadline, and when the node drains. What stands in
//! the queue is delivered before the end is told.

use core::{
    pin::Pin,
    task::{Context, Poll, ready},
};
use std::sync::Arc;

use futures_core::Stream;
use tokio::{
    sync::{OwnedSemaphorePermit, mpsc, oneshot},
    time::{Instant, MissedTickBehavior, interval_at},
};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::{
    machine::refusal,
    observe::Metrics,
    pb::command::v1::Reason,
    streaming::{
        cursor::Cursor,
        steps::{Source, Update},
    },
    types::Duration,
    wire::status::from_refusal,
};

/// How many responses wait for a slow reader; beyond them its cursor stands still.
const QUEUED_RESPONSES_MAX: usize = 2;

/// How often a reader that nothing concerns is told how far it is, where it moved at all: it then
/// resumes from there and not from long ago.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(10);

/// When a stream ends on the server's account, and what it holds until then.
#[derive(Debug)]
pub struct Terms {
    /// Cancelled when the node drains.
    pub drain: CancellationToken,
    /// The call's deadline.
    pub deadline: Option<Instant>,
    /// The stream's place among those that may be open.
    pub permit: Option<Arc<OwnedSemaphorePermit>>,
    /// Counts readers that fall behind.
    pub metrics: Metrics,
}

/// Responses as a gRPC stream.
#[derive(Debug)]
pub struct Updates<R> {
    queue: mpsc::Receiver<R>,
    end: Option<oneshot::Receiver<Result<(), Status>>>,
}

/// Streams what a producer puts into the queue it is given. The producer is dropped when the caller
/// is gone or the terms say so; its error ends the stream.
pub fn updates<R, F>(
    terms: Terms,
    produce: impl FnOnce(mpsc::Sender<R>) -> F + Send + 'static,
) -> Updates<R>
where
    R: Send + 'static,
    F: Future<Output = Result<(), Status>> + Send,
{
    let (sender, queue) = mpsc::channel(QUEUED_RESPONSES_MAX);
    let (end_sender, end) = oneshot::channel();
    tokio::spawn(async move {
        let Terms { drain, deadline, permit, metrics: _ } = terms;
        let end = tokio::select! {
            biased;
            () = sender.closed() => return,
            () = drain.cancelled() => Err(draining()),
            () = expired(deadline) => Err(deadline_exceeded()),
            end = produce(sender.clone()) => end,
        };
        // The caller may be gone; then nobody wants to know.
        let _ = end_sender.send(end);
        drop((sender, permit));
    });
    Updates { queue, end: Some(end) }
}

/// Streams `opening`, then what the cursor delivers, each update turned into a response.
pub fn follow<S: Source + Send + Sync + 'static, R: Send + 'static>(
    terms: Terms,
    opening: Vec<R>,
    cursor: Cursor<S>,
    respond: impl Fn(Update<S>) -> R + Send + 'static,
) -> Updates<R> {
    follow_paced(terms, opening, cursor, respond, PROGRESS_INTERVAL)
}

fn follow_paced<S: Source + Send + Sync + 'static, R: Send + 'static>(
    terms: Terms,
    opening: Vec<R>,
    mut cursor: Cursor<S>,
    respond: impl Fn(Update<S>) -> R + Send + 'static,
    pace: Duration,
) -> Updates<R> {
    let metrics = terms.metrics.clone();
    updates(terms, async move |queue: mpsc::Sender<R>| {
        for response in opening {
            if queue.send(response).await.is_err() {
                return Ok(());
            }
        }
        let mut progress = interval_at(Instant::now() + pace, pace);
        progress.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut told = cursor.place();
        loop {
            let Ok(room) = queue.reserve().await else { return Ok(()) };
            let update = loop {
                let live = cursor.is_live();
                tokio::select! {
                    update = cursor.next() => break update?,
                    _ = progress.tick(), if live => {
                        let place = cursor.place();
                        if cursor.is_live() && place != told {
                            let items = Vec::new();
                            break Update { items, place, caught_up: false, fell_behind: false };
                        }
                    }
                }
            };
            told = update.place;
            if update.fell_behind {
                metrics.record_fell_behind();
            }
            room.send(respond(update));
        }
    })
}

impl<R> Stream for Updates<R> {
    type Item = Result<R, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if let Some(response) = ready!(self.queue.poll_recv(cx)) {
            return Poll::Ready(Some(Ok(response)));
        }
        let Some(end) = &mut self.end else { return Poll::Ready(None) };
        let end = ready!(Pin::new(end).poll(cx));
        self.end = None;
        Poll::Ready(match end {
            Ok(Ok(())) => None,
            Ok(Err(status)) => Some(Err(status)),
            Err(_) => Some(Err(Status::internal("the stream's task ended before its time"))),
        })
    }
}

async fn expired(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => core::future::pending().await,
    }
}

fn draining() -> Status {
    from_refusal(refusal(
        Reason::Draining,
        "this node is stopping: resume at another one after the last place delivered",
    ))
}

fn deadline_exceeded() -> Status {
    from_refusal(refusal(
        Reason::DeadlineExceeded,
        "the stream's deadline ran out: resume after the last place delivered",
    ))
}

#[cfg(test)]
mod tests;
