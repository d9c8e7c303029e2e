//! Many puts over one stream: buffered, sent in messages, acknowledged in order.
//!
//! A task of its own carries the stream and keeps each put until it is acknowledged. When the
//! connection breaks it goes on at another endpoint under the same stream id, so that each put
//! takes effect once and in order. What is not acknowledged is bounded; who writes faster waits.

use std::{
    collections::VecDeque,
    mem, pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use tokio::{
    sync::{Notify, mpsc, watch},
    task::JoinHandle,
    time::{Instant, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use uuid::Uuid;

use crate::{
    client::{
        Client, Error,
        balance::Picked,
        call::{Attempts, Effect, Limit},
    },
    host,
    pb::kv::v1::{
        PutStreamRequest, PutStreamResponse, StreamedPut, kv_service_client::KvServiceClient,
    },
};

/// How many puts a message carries at most, unless said otherwise.
const MESSAGE_PUTS: usize = 512;

/// The most puts that a node takes in one message.
const MESSAGE_PUTS_MAX: usize = 10_000;

/// How many bytes of puts a message carries at most, unless one put alone is larger.
const MESSAGE_BYTES_MAX: usize = 256 << 10;

/// How many full messages wait for the stream's task at most.
const BUFFERED_MESSAGES_MAX: usize = 4;

/// How many bytes are sent and not acknowledged at most, unless one message alone is larger.
const WINDOW_BYTES_MAX: usize = 4 << 20;

/// How many puts are sent and not acknowledged at most, unless one message alone has more.
const WINDOW_PUTS_MAX: u64 = 8_192;

/// A message that is not full waits for more while so many are not acknowledged.
const PARTIAL_MESSAGES_MAX: usize = 2;

/// How many messages wait for the connection.
const QUEUED_MESSAGES_MAX: usize = 4;

/// What a put takes beside its key and value, about, in bytes.
const PUT_OVERHEAD_BYTES: usize = 16;

/// Every put up to `sequence` is durable and applied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PutAck {
    /// The number of the last put that is acknowledged; they count from 1. 0 is none.
    pub sequence: u64,
    /// Its revision.
    pub revision: u64,
}

/// A stream of puts.
///
/// ```
/// # #[tokio::main]
/// # async fn main() -> Result<(), quorate::client::Error> {
/// # let cluster = quorate::testing::Cluster::start(1).await;
/// # let client = cluster.client();
/// let puts = client.kv().put_stream();
/// for number in 0..1_000 {
///     puts.send(format!("import/{number:04}"), "a value").await?;
/// }
/// let last = puts.finish().await?;
/// assert_eq!(last.sequence, 1_000);
/// # Ok(())
/// # }
/// ```
///
/// Where a call fails the stream has ended for good. What [`PutStream::acknowledged`] tells by then
/// is done; of what follows nothing took effect, or that is unknown where
/// [`Error::outcome_unknown`] says so. Dropping the stream drops what is not sent.
#[derive(Debug)]
#[must_use = "what is not sent is dropped with the stream"]
pub struct PutStream {
    shared: Arc<Shared>,
    progress: watch::Receiver<Progress>,
    task: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    message_puts: usize,
    buffer: Mutex<Buffer>,
    /// There is something in the buffer, or nothing more comes.
    filled: Notify,
    /// There is room in the buffer, or the stream ended.
    room: Notify,
}

#[derive(Debug, Default)]
struct Buffer {
    puts: Vec<StreamedPut>,
    bytes: usize,
    /// The number of the last put that was taken in.
    last: u64,
    closed: bool,
    failed: Option<Error>,
}

#[derive(Clone, Debug, Default)]
struct Progress {
    ack: PutAck,
    ended: Option<Result<(), Error>>,
}

impl PutStream {
    pub(super) fn new(client: Client, message_puts: Option<usize>) -> Self {
        let shared = Arc::new(Shared {
            message_puts: message_puts.unwrap_or(MESSAGE_PUTS).clamp(1, MESSAGE_PUTS_MAX),
            buffer: Mutex::default(),
            filled: Notify::new(),
            room: Notify::new(),
        });
        let (sender, progress) = watch::channel(Progress::default());
        let carrier = Carrier {
            client,
            shared: Arc::clone(&shared),
            progress: sender,
            id: host::random(),
            messages: VecDeque::new(),
            bytes: 0,
            unsent: 0,
            next: 1,
        };
        Self { shared, progress, task: tokio::spawn(carrier.run()) }
    }

    /// Hands a put to the stream and returns its number in it; waits while too much is not
    /// acknowledged. The put is sent soon, together with others.
    ///
    /// Cancel-safe: dropped, the put is not taken in.
    ///
    /// # Errors
    /// Where the stream has ended: the first error of it.
    pub async fn send(&self, key: impl Into<Bytes>, value: impl Into<Bytes>) -> Result<u64, Error> {
        self.put(StreamedPut { key: key.into(), value: value.into(), session_id: 0 }).await
    }

    /// As [`PutStream::send`], for a put that may be bound to a session.
    ///
    /// # Errors
    /// As [`PutStream::send`].
    pub async fn put(&self, mut put: StreamedPut) -> Result<u64, Error> {
        loop {
            put = match self.shared.offer(put)? {
                Ok(sequence) => return Ok(sequence),
                Err(put) => put,
            };
            let mut room = pin::pin!(self.shared.room.notified());
            room.as_mut().enable();
            put = match self.shared.offer(put)? {
                Ok(sequence) => return Ok(sequence),
                Err(put) => put,
            };
            room.await;
        }
    }

    /// Waits until everything that was handed over is acknowledged. Cancel-safe.
    ///
    /// # Errors
    /// Where the stream ended before that.
    pub async fn flush(&self) -> Result<PutAck, Error> {
        let last = self.shared.lock().last;
        let mut progress = self.progress.clone();
        let there = |progress: &Progress| progress.ack.sequence >= last || progress.ended.is_some();
        let Ok(progress) = progress.wait_for(there).await.map(|progress| progress.clone()) else {
            return Err(stopped());
        };
        match progress.ended {
            Some(Err(error)) if progress.ack.sequence < last => Err(error),
            _ => Ok(progress.ack),
        }
    }

    /// Waits until everything is acknowledged and ends the stream. Further puts are refused.
    ///
    /// Cancel-safe: the stream goes on to its end, and this may be called again.
    ///
    /// # Errors
    /// Where the stream ended before that.
    pub async fn finish(&self) -> Result<PutAck, Error> {
        self.shared.lock().closed = true;
        self.shared.filled.notify_one();
        let mut progress = self.progress.clone();
        let ended = progress.wait_for(|progress| progress.ended.is_some()).await;
        let Ok(ended) = ended.map(|progress| progress.clone()) else { return Err(stopped()) };
        ended.ended.unwrap_or(Ok(())).map(|()| ended.ack)
    }

    /// How far the acknowledgements are.
    #[must_use]
    pub fn acknowledged(&self) -> PutAck {
        self.progress.borrow().ack
    }

    /// The number of the last put that was handed over; 0 is none.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.shared.lock().last
    }

    /// The acknowledgements as they come.
    pub fn acks(&self) -> PutAcks {
        PutAcks { progress: self.progress.clone(), seen: 0 }
    }
}

impl Drop for PutStream {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The acknowledgements of a [`PutStream`].
#[derive(Clone, Debug)]
#[must_use = "nothing is told before `next` is called"]
pub struct PutAcks {
    progress: watch::Receiver<Progress>,
    seen: u64,
}

impl PutAcks {
    /// Waits until more is acknowledged than was told last; `None` once all is and the stream is
    /// finished. Acknowledgements that follow closely are told as one. Cancel-safe.
    ///
    /// # Errors
    /// Where the stream failed.
    pub async fn next(&mut self) -> Result<Option<PutAck>, Error> {
        loop {
            let now = self.progress.borrow_and_update().clone();
            if now.ack.sequence > self.seen {
                self.seen = now.ack.sequence;
                return Ok(Some(now.ack));
            }
            if let Some(ended) = now.ended {
                return ended.map(|()| None);
            }
            if self.progress.changed().await.is_err() {
                return Err(stopped());
            }
        }
    }
}

impl Shared {
    /// Takes a put in and gives its number; gives the put back where there is no room.
    fn offer(&self, put: StreamedPut) -> Result<Result<u64, StreamedPut>, Error> {
        let mut buffer = self.lock();
        if let Some(error) = &buffer.failed {
            return Err(error.clone());
        }
        if buffer.closed {
            return Err(Error::invalid("the put stream is finished: open another"));
        }
        if buffer.puts.len() >= self.message_puts * BUFFERED_MESSAGES_MAX
            || buffer.bytes >= MESSAGE_BYTES_MAX * BUFFERED_MESSAGES_MAX
        {
            return Ok(Err(put));
        }
        let was_full = self.is_full(&buffer);
        let first = buffer.puts.is_empty();
        buffer.bytes += size(&put);
        buffer.puts.push(put);
        buffer.last += 1;
        let sequence = buffer.last;
        let fills = self.is_full(&buffer) != was_full;
        drop(buffer);
        if first || fills {
            self.filled.notify_one();
        }
        Ok(Ok(sequence))
    }

    /// Takes the puts of one message: those that wait, where they fill one or `partly` says that
    /// fewer will do.
    fn take(&self, partly: bool) -> Option<Vec<StreamedPut>> {
        let mut buffer = self.lock();
        let closed = buffer.closed;
        if buffer.puts.is_empty() || !(partly || closed || self.is_full(&buffer)) {
            return None;
        }
        let (mut count, mut bytes) = (0, 0);
        for put in buffer.puts.iter().take(self.message_puts) {
            if count > 0 && bytes + size(put) > MESSAGE_BYTES_MAX {
                break;
            }
            bytes += size(put);
            count += 1;
        }
        let rest = buffer.puts.split_off(count);
        buffer.bytes -= bytes;
        let puts = mem::replace(&mut buffer.puts, rest);
        drop(buffer);
        self.room.notify_waiters();
        Some(puts)
    }

    fn is_full(&self, buffer: &Buffer) -> bool {
        buffer.puts.len() >= self.message_puts || buffer.bytes >= MESSAGE_BYTES_MAX
    }

    fn lock(&self) -> MutexGuard<'_, Buffer> {
        self.buffer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Puts that are not acknowledged.
#[derive(Debug)]
struct Message {
    first: u64,
    puts: Vec<StreamedPut>,
    bytes: usize,
}

/// Carries a stream over one connection after another.
struct Carrier {
    client: Client,
    shared: Arc<Shared>,
    progress: watch::Sender<Progress>,
    id: Uuid,
    messages: VecDeque<Message>,
    bytes: usize,
    /// The first of `messages` that was not sent over this connection.
    unsent: usize,
    /// The number of the put that comes next out of the buffer.
    next: u64,
}

impl Carrier {
    async fn run(mut self) {
        let ended = self.carry().await;
        {
            let mut buffer = self.shared.lock();
            buffer.closed = true;
            buffer.failed = ended.as_ref().err().cloned();
        }
        self.progress.send_modify(|progress| progress.ended = Some(ended));
        self.shared.room.notify_waiters();
    }

    async fn carry(&mut self) -> Result<(), Error> {
        let client = self.client.clone();
        let mut outage = None;
        let mut limit = Limit::Outage { first: client.timeout, established: client.patience };
        loop {
            let (started, before) = (Instant::now(), self.acknowledged());
            let attempts =
                outage.get_or_insert_with(|| Attempts::new(&client, Effect::Write, limit));
            let node = match client.pick(attempts).await {
                Ok(node) => node,
                Err(error) => {
                    attempts.failed(None, started, error).await?;
                    continue;
                }
            };
            let Err(error) = self.connection(node.clone()).await else { return Ok(()) };
            if self.acknowledged() > before {
                limit = Limit::Outage { first: client.patience, established: client.patience };
                outage = None;
            }
            let attempts =
                outage.get_or_insert_with(|| Attempts::new(&client, Effect::Write, limit));
            let since = if self.acknowledged() > before { started } else { Instant::now() };
            attempts.failed(Some(node.address()), since, error).await?;
        }
    }

    fn acknowledged(&self) -> u64 {
        self.progress.borrow().ack.sequence
    }

    /// Carries the stream over one connection until everything is acknowledged and nothing more
    /// comes.
    async fn connection(&mut self, node: Picked) -> Result<(), Error> {
        self.unsent = 0;
        let (sender, requests) = mpsc::channel(QUEUED_MESSAGES_MAX);
        let mut stub = KvServiceClient::new(node);
        let opened = timeout(self.client.timeout, stub.put_stream(ReceiverStream::new(requests)));
        let mut acks = match opened.await {
            Ok(answer) => answer?.into_inner(),
            Err(_) => return Err(Error::broken("no answer")),
        };
        let shared = Arc::clone(&self.shared);
        let (mut opening, mut open) = (true, true);
        loop {
            if self.gather() {
                drop(sender);
                // The server ends the stream in its turn; everything is acknowledged anyway.
                let _ = timeout(self.client.timeout, acks.message()).await;
                return Ok(());
            }
            tokio::select! {
                ack = acks.message() => match ack? {
                    Some(ack) => self.acknowledge(&ack),
                    None => return Err(Error::broken("the stream ended")),
                },
                place = sender.reserve(), if open && self.unsent < self.messages.len() => {
                    // Why nothing more is taken comes as the stream's status.
                    match place {
                        Ok(place) => place.send(self.request(mem::take(&mut opening))),
                        Err(_) => open = false,
                    }
                }
                () = shared.filled.notified() => {}
            }
        }
    }

    /// Takes puts out of the buffer as far as the window allows. Returns whether all is done.
    fn gather(&mut self) -> bool {
        loop {
            let first = self.messages.front().map_or(self.next, |message| message.first);
            if self.bytes >= WINDOW_BYTES_MAX || self.next - first >= WINDOW_PUTS_MAX {
                break;
            }
            let partly = self.messages.len() < PARTIAL_MESSAGES_MAX;
            let Some(puts) = self.shared.take(partly) else { break };
            let bytes = puts.iter().map(size).sum();
            let first = self.next;
            self.next += count(&puts);
            self.bytes += bytes;
            self.messages.push_back(Message { first, puts, bytes });
        }
        if !self.messages.is_empty() {
            return false;
        }
        let buffer = self.shared.lock();
        buffer.closed && buffer.puts.is_empty()
    }

    /// The next message to send; the first of a connection says which stream it is.
    fn request(&mut self, opening: bool) -> PutStreamRequest {
        let message = &self.messages[self.unsent];
        self.unsent += 1;
        PutStreamRequest {
            stream_id: if opening { self.id.to_string() } else { String::new() },
            first_sequence: message.first,
            puts: message.puts.clone(),
        }
    }

    fn acknowledge(&mut self, response: &PutStreamResponse) {
        while let Some(message) = self.messages.front()
            && message.first + count(&message.puts) <= response.last_sequence + 1
        {
            self.bytes -= message.bytes;
            self.unsent = self.unsent.saturating_sub(1);
            self.messages.pop_front();
        }
        let ack = PutAck { sequence: response.last_sequence, revision: response.last_revision };
        self.progress.send_if_modified(|progress| {
            let further = ack.sequence > progress.ack.sequence;
            if further {
                progress.ack = ack;
            }
            further
        });
    }
}

fn size(put: &StreamedPut) -> usize {
    put.key.len() + put.value.len() + PUT_OVERHEAD_BYTES
}

fn count(puts: &[StreamedPut]) -> u64 {
    u64::try_from(puts.len()).unwrap_or(u64::MAX)
}

fn stopped() -> Error {
    Error::broken("the stream's task ended before its time")
}
