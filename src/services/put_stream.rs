//! `KvService/PutStream`: many puts over one stream, acknowledged in order.
//!
//! What waits in the stream is gathered into one entry of the log, and several entries are under
//! way at once. The state machine keeps the order (`machine/put_stream.rs`): an entry that
//! overtook another is refused there and proposed again here. The stream is read no further while
//! the window is full or acknowledgements are not taken, so a stream holds a bounded amount.

use core::{future::poll_fn, pin::Pin, task::Poll};
use std::collections::VecDeque;

use bytes::Bytes;
use prost::Message as _;
use tokio::{
    sync::mpsc,
    task::yield_now,
    time::{Instant, sleep_until},
};
use tokio_stream::{Stream, StreamExt as _};
use tonic::{Code, Status};
use uuid::Uuid;

use crate::{
    host,
    machine::{COMMAND_BYTES_MAX, refusal, validate_streamed_put},
    node::Proposal,
    pb::{
        command::v1::{Outcome, PutBatch, PutBatchDone, Reason, Refusal, command::Op, outcome},
        kv::v1::{PutStreamRequest, PutStreamResponse, StreamedPut},
    },
    services::call::{Context, invalid},
    types::Duration,
    wire::status::{from_refusal, is_outcome_unknown},
};

/// The most puts of one message.
const MESSAGE_PUTS_MAX: usize = 10_000;

/// The most messages that are taken before others have their turn.
const TURN_MESSAGES_MAX: usize = 64;

/// The most puts of one entry.
const ENTRY_PUTS_MAX: usize = 512;

/// The most bytes of one entry; a larger put has an entry of its own.
const ENTRY_BYTES_MAX: usize = 256 << 10;

/// What a put takes beside its key and value, about, in bytes.
const PUT_OVERHEAD_BYTES: usize = 16;

/// The most entries of one stream under way.
const WINDOW_ENTRIES_MAX: usize = 32;

/// The most bytes of one stream under way, unless one entry alone is larger.
const WINDOW_BYTES_MAX: usize = 4 << 20;

/// An entry that is not full waits for more puts while so many entries are under way.
const PARTIAL_ENTRIES_MAX: usize = 2;

/// How long an entry is proposed again whose outcome is unknown or that a queue had no room for.
const PATIENCE: Duration = Duration::from_secs(5);

/// The pause before an entry is proposed again.
const RETRY_PAUSE: Duration = Duration::from_millis(20);

/// An entry under way.
struct InFlight {
    batch: PutBatch,
    bytes: usize,
    proposal: Result<Proposal, Refusal>,
    /// Since when it is in trouble.
    troubled: Option<Instant>,
    /// Whether an earlier attempt may take effect yet.
    unknown: bool,
    /// Whether the state knew the stream before the entry was first proposed.
    known: bool,
    /// Whether it was proposed again, and so behind everything that goes before it.
    again: bool,
}

impl InFlight {
    fn last_sequence(&self) -> u64 {
        self.batch.first_sequence + self.batch.puts.len() as u64 - 1
    }

    /// Whether the oldest entry of a connection that began with put `first` was refused only
    /// because it came too early. What goes before it is applied by now, so that it finds its place
    /// the next time; where it does not, or where the state no longer knows the stream, the stream
    /// is forgotten.
    fn overtook(&self, refusal: &Refusal, first: u64) -> bool {
        let forgotten =
            || refusal.metadata.get("expected_sequence").is_some_and(|next| next == "1");
        refusal.reason() == Reason::PutStreamGap
            && self.batch.first_sequence > first
            && !self.again
            && !(self.known && forgotten())
    }
}

/// One stream of puts.
pub(crate) struct PutStream<S> {
    context: Context,
    /// `None` once nothing more is read.
    requests: Option<S>,
    responses: mpsc::Sender<PutStreamResponse>,
    /// The stream; set by its first message.
    id: Option<Uuid>,
    /// Whether the client was told the stream's id.
    told: bool,
    /// The first put that came over this connection.
    first: u64,
    /// The number of the next put to come.
    next: u64,
    waiting: VecDeque<StreamedPut>,
    waiting_bytes: usize,
    window: VecDeque<InFlight>,
    window_bytes: usize,
    /// Whether a put was acknowledged over this connection.
    acknowledged: bool,
    /// What the stream ends with once everything under way is acknowledged.
    end: Result<(), Status>,
}

impl<S> PutStream<S>
where
    S: Stream<Item = Result<PutStreamRequest, Status>> + Unpin,
{
    pub(crate) fn new(
        context: Context,
        requests: S,
        responses: mpsc::Sender<PutStreamResponse>,
    ) -> Self {
        Self {
            context,
            requests: Some(requests),
            responses,
            id: None,
            told: false,
            first: 1,
            next: 1,
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            window: VecDeque::new(),
            window_bytes: 0,
            acknowledged: false,
            end: Ok(()),
        }
    }

    /// Runs until the client has said all and it is acknowledged, or a put is refused.
    pub(crate) async fn run(mut self) -> Result<(), Status> {
        let drain = self.context.drain.clone();
        loop {
            self.propose();
            if self.window.is_empty() && self.requests.is_none() {
                return self.end;
            }
            let room = self.waiting.len() < ENTRY_PUTS_MAX && self.waiting_bytes < ENTRY_BYTES_MAX;
            tokio::select! {
                biased;
                outcome = outcome(&mut self.window) => self.settle(outcome).await?,
                () = drain.cancelled(), if self.requests.is_some() => self.finish(Err(draining())),
                request = next(&mut self.requests), if room => self.take(request),
            }
            self.take_ready().await;
        }
    }

    /// Takes what is there without waiting for more. Messages may be empty, so they are counted.
    async fn take_ready(&mut self) {
        for _ in 0..TURN_MESSAGES_MAX {
            if self.waiting.len() >= ENTRY_PUTS_MAX || self.waiting_bytes >= ENTRY_BYTES_MAX {
                return;
            }
            let Some(requests) = &mut self.requests else { return };
            let ready = poll_fn(|context| {
                Poll::Ready(match Pin::new(&mut *requests).poll_next(context) {
                    Poll::Ready(request) => Some(request),
                    Poll::Pending => None,
                })
            });
            let Some(request) = ready.await else { return };
            self.take(request);
        }
        yield_now().await;
    }

    /// Reads no further: what came is carried out, then the stream ends.
    fn finish(&mut self, end: Result<(), Status>) {
        self.requests = None;
        self.end = end;
    }

    fn take(&mut self, request: Option<Result<PutStreamRequest, Status>>) {
        match request {
            None => self.finish(Ok(())),
            Some(Err(status)) if status.code() == Code::OutOfRange => {
                self.finish(Err(from_refusal(too_large())));
            }
            Some(Err(status)) => self.finish(Err(status)),
            Some(Ok(request)) => {
                if let Err(status) = self.admit(request) {
                    self.finish(Err(status));
                }
            }
        }
    }

    /// Checks a message and takes its puts.
    fn admit(&mut self, request: PutStreamRequest) -> Result<(), Status> {
        self.place(&request)?;
        let count = request.puts.len();
        if count > MESSAGE_PUTS_MAX {
            let sentence = format!("a message of the stream has at most {MESSAGE_PUTS_MAX} puts");
            let refusal = refusal(Reason::InvalidArgument, sentence);
            return Err(from_refusal(refusal.with("limit", MESSAGE_PUTS_MAX).with("puts", count)));
        }
        let bytes = request.encoded_len();
        if bytes > COMMAND_BYTES_MAX {
            return Err(from_refusal(too_large().with("bytes", bytes)));
        }
        for (index, put) in request.puts.iter().enumerate() {
            validate_streamed_put(put).map_err(|mut refusal| {
                refusal.message = format!("puts[{index}]: {}", refusal.message);
                let sequence = self.next + index as u64;
                from_refusal(refusal.with("index", index).with("sequence", sequence))
            })?;
        }
        self.next += request.puts.len() as u64;
        self.waiting_bytes += request.puts.iter().map(size).sum::<usize>();
        self.waiting.extend(request.puts);
        Ok(())
    }

    /// Checks that a message belongs to the stream and goes on where it stands.
    fn place(&mut self, request: &PutStreamRequest) -> Result<(), Status> {
        let named = if request.stream_id.is_empty() {
            None
        } else {
            let id = Uuid::try_parse(&request.stream_id);
            Some(id.map_err(|_| invalid("stream_id is not a UUID"))?)
        };
        let first = request.first_sequence;
        if self.id.is_none() {
            if named.is_some() && first == 0 {
                return Err(invalid(
                    "first_sequence is required with a stream_id: 1 for a new stream, else the \
                     first put that was not acknowledged",
                ));
            }
            if named.is_none() && first > 1 {
                return Err(invalid("a stream goes on under its stream_id only: give it"));
            }
            // Far from the end, so that counting never overflows.
            if first > u64::MAX / 2 {
                return Err(invalid("first_sequence is too large"));
            }
            self.first = first.max(1);
            self.next = self.first;
            self.told = named.is_some();
            self.id = Some(named.unwrap_or_else(host::random));
            return Ok(());
        }
        if named.is_some() && named != self.id {
            return Err(invalid("stream_id differs from that of the first message"));
        }
        if first != 0 && first != self.next {
            let sentence = format!(
                "the puts of a stream are numbered without a gap: {} comes next",
                self.next
            );
            let refusal = refusal(Reason::InvalidArgument, sentence);
            return Err(from_refusal(refusal.with("expected_sequence", self.next)));
        }
        Ok(())
    }

    /// Proposes what waits, as far as the window allows; nothing behind an entry in trouble, which
    /// it would only overtake.
    fn propose(&mut self) {
        while !self.waiting.is_empty() && !self.is_held() {
            let full =
                self.waiting.len() >= ENTRY_PUTS_MAX || self.waiting_bytes >= ENTRY_BYTES_MAX;
            let entries_max = if full { WINDOW_ENTRIES_MAX } else { PARTIAL_ENTRIES_MAX };
            if self.window.len() >= entries_max || self.window_bytes >= WINDOW_BYTES_MAX {
                return;
            }
            let (batch, bytes) = self.cut();
            let proposal = self.context.node.begin(Op::PutBatch(batch.clone()));
            self.window_bytes += bytes;
            self.window.push_back(InFlight {
                batch,
                bytes,
                proposal,
                troubled: None,
                unknown: false,
                known: self.acknowledged,
                again: false,
            });
        }
    }

    /// Whether the oldest entry is to be proposed again, or a queue had no room for the newest.
    fn is_held(&self) -> bool {
        self.window.front().is_some_and(|entry| entry.troubled.is_some())
            || self.window.back().is_some_and(|entry| entry.proposal.is_err())
    }

    /// Takes one entry's puts off those that wait.
    fn cut(&mut self) -> (PutBatch, usize) {
        let (mut count, mut bytes) = (0, 0);
        for put in self.waiting.iter().take(ENTRY_PUTS_MAX) {
            if count > 0 && bytes + size(put) > ENTRY_BYTES_MAX {
                break;
            }
            bytes += size(put);
            count += 1;
        }
        let first_sequence = self.next - self.waiting.len() as u64;
        let puts = self.waiting.drain(..count).collect();
        self.waiting_bytes -= bytes;
        let id = self.id.expect("set by the first message");
        let stream_id = Bytes::copy_from_slice(id.as_bytes());
        (PutBatch { stream_id, first_sequence, puts }, bytes)
    }

    /// What came of the oldest entry under way.
    async fn settle(&mut self, outcome: Result<Outcome, Refusal>) -> Result<(), Status> {
        let entry = self.window.front_mut().expect("its outcome came");
        let refusal = match outcome.map(|outcome| outcome.result) {
            Ok(Some(outcome::Result::PutBatch(done))) => return self.acknowledge(done).await,
            Ok(Some(outcome::Result::Refusal(refusal))) | Err(refusal) => refusal,
            Ok(_) => return Err(Status::internal("the state machine gave another kind of result")),
        };
        let reason = refusal.reason();
        let overtook = entry.overtook(&refusal, self.first);
        let unknown = is_outcome_unknown(reason);
        entry.unknown |= unknown;
        let since = *entry.troubled.get_or_insert_with(Instant::now);
        let again = overtook || unknown || reason == Reason::Overloaded;
        if !again || since.elapsed() >= PATIENCE {
            return Err(self.context.refused(self.told_of(refusal)));
        }
        if !overtook {
            sleep_until(Instant::now() + RETRY_PAUSE).await;
        }
        let entry = self.window.front_mut().expect("it is still there");
        entry.again = true;
        entry.proposal = self.context.node.begin(Op::PutBatch(entry.batch.clone()));
        Ok(())
    }

    /// Adds to a refusal of the oldest entry where the stream stands.
    fn told_of(&self, mut refusal: Refusal) -> Refusal {
        let entry = self.window.front().expect("it is still there");
        let acknowledged = entry.batch.first_sequence - 1;
        let state_says = matches!(refusal.reason(), Reason::PutStreamGap | Reason::SessionNotFound);
        if entry.unknown && !state_says {
            refusal.reason = Reason::OutcomeUnknown.into();
            refusal.message = format!(
                "whether puts after {acknowledged} took effect is unknown: go on with the same \
                 stream_id from there; last: {}",
                refusal.message
            );
        }
        refusal.with("acknowledged_sequence", acknowledged)
    }

    async fn acknowledge(&mut self, done: PutBatchDone) -> Result<(), Status> {
        let entry = self.window.pop_front().expect("its outcome came");
        self.window_bytes -= entry.bytes;
        self.acknowledged = true;
        let id = self.id.filter(|_| !core::mem::replace(&mut self.told, true));
        let first_sequence = done.first_sequence.min(entry.last_sequence() + 1);
        let response = PutStreamResponse {
            stream_id: id.map(|id| id.to_string()).unwrap_or_default(),
            first_sequence,
            // A stream that was taken up again may be further than this.
            last_sequence: done.last_sequence.min(entry.last_sequence()),
            first_revision: done.first_revision,
            last_revision: done.last_revision,
        };
        if self.responses.send(response).await.is_err() {
            // The client is gone; nobody is left to tell.
            self.window.clear();
            self.waiting.clear();
            self.finish(Ok(()));
        }
        Ok(())
    }
}

/// The outcome of the oldest entry under way; never where there is none.
async fn outcome(window: &mut VecDeque<InFlight>) -> Result<Outcome, Refusal> {
    match window.front_mut().map(|entry| &mut entry.proposal) {
        Some(Ok(proposal)) => proposal.await,
        Some(Err(refusal)) => Err(refusal.clone()),
        None => core::future::pending().await,
    }
}

/// The next message; never where nothing more is read.
async fn next<S: Stream + Unpin>(requests: &mut Option<S>) -> Option<S::Item> {
    match requests {
        Some(requests) => requests.next().await,
        None => core::future::pending().await,
    }
}

fn size(put: &StreamedPut) -> usize {
    put.key.len() + put.value.len() + PUT_OVERHEAD_BYTES
}

/// What a message is refused with that tonic does not decode, or that decodes to too much.
fn too_large() -> Refusal {
    let sentence = format!("a message of the stream is larger than {COMMAND_BYTES_MAX} bytes");
    refusal(Reason::TooLarge, sentence).with("limit", COMMAND_BYTES_MAX)
}

fn draining() -> Status {
    from_refusal(refusal(
        Reason::Draining,
        "this node is stopping: what it took is acknowledged, go on at another one with the same \
         stream_id",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(first_sequence: u64) -> InFlight {
        InFlight {
            batch: PutBatch { first_sequence, ..Default::default() },
            bytes: 0,
            proposal: Err(refusal(Reason::Overloaded, "full")),
            troubled: None,
            unknown: false,
            known: false,
            again: false,
        }
    }

    #[test]
    fn an_entry_that_overtook_is_proposed_again_once_and_never_for_a_forgotten_stream() {
        let gap = |expected: u64| {
            refusal(Reason::PutStreamGap, "too early").with("expected_sequence", expected)
        };
        assert!(entry(9).overtook(&gap(5), 1));
        assert!(entry(9).overtook(&gap(1), 1), "the stream's first entry fell with its leader");
        assert!(!entry(9).overtook(&gap(5), 9), "nothing goes before it over this connection");
        assert!(!entry(9).overtook(&refusal(Reason::Overloaded, "full"), 1));
        let again = InFlight { again: true, ..entry(9) };
        assert!(!again.overtook(&gap(5), 1), "what goes before it was acknowledged");
        let known = InFlight { known: true, ..entry(9) };
        assert!(known.overtook(&gap(5), 1));
        assert!(!known.overtook(&gap(1), 1), "the state knew the stream and does no longer");
    }
}
