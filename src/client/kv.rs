//! The revisioned keyspace: reads, writes, transactions and watches.

use bytes::Bytes;
use tonic::{Status, Streaming};

use crate::{
    client::{
        Client, Error, PutStream, Resuming,
        balance::Picked,
        call::ANSWER_BYTES_MAX,
        request::identified,
        resume::{Outlook, Resume},
    },
    pb::kv::v1::{
        CompactRequest, CompactResponse, DeleteRangeRequest, DeleteRangeResponse, KeyValue,
        PutRequest, PutResponse, RangeRequest, RangeResponse, TxnRequest, TxnResponse,
        WatchRequest, WatchResponse, kv_service_client::KvServiceClient,
    },
};

/// A watch that goes on after its last revision when its connection breaks.
pub type KvWatch = Resuming<WatchRequest>;

/// The revisioned keyspace of a cluster.
///
/// ```
/// # #[tokio::main]
/// # async fn main() -> Result<(), quorate::client::Error> {
/// # let cluster = quorate::testing::Cluster::start(1).await;
/// # let client = cluster.client();
/// use quorate::{
///     client::prefix_end,
///     pb::kv::v1::{PutRequest, RangeRequest, WatchRequest},
/// };
///
/// let kv = client.kv();
/// let revision = kv.set("jobs/1", "compress").await?;
/// kv.put(PutRequest { key: "jobs/2".into(), value: "send".into(), ..Default::default() }).await?;
///
/// let (key, range_end) = ("jobs/".into(), prefix_end(b"jobs/"));
/// let jobs = kv.range(RangeRequest { key, range_end, ..Default::default() }).await?;
/// assert_eq!(jobs.kvs.len(), 2);
///
/// // A watch from an earlier revision on tells everything since, and then what happens.
/// let (key, range_end) = ("jobs/".into(), prefix_end(b"jobs/"));
/// let from = WatchRequest { key, range_end, start_revision: revision, ..Default::default() };
/// let mut watch = kv.watch(from);
/// let mut told = 0;
/// while told < 2 {
///     told += watch.next().await?.expect("a watch has no end").events.len();
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Kv {
    client: Client,
}

impl Kv {
    pub(super) const fn new(client: Client) -> Self {
        Self { client }
    }

    /// Reads one key; linearizable. An absent key is `None`.
    ///
    /// Cancel-safe.
    ///
    /// # Errors
    /// As [`Kv::range`].
    pub async fn get(&self, key: impl Into<Bytes>) -> Result<Option<KeyValue>, Error> {
        let request = RangeRequest { key: key.into(), ..Default::default() };
        Ok(self.range(request).await?.kvs.into_iter().next())
    }

    /// Writes one key and returns the revision of the write.
    ///
    /// Not cancel-safe: dropped, it may take effect or not, and never twice.
    ///
    /// # Errors
    /// As [`Kv::put`].
    pub async fn set(&self, key: impl Into<Bytes>, value: impl Into<Bytes>) -> Result<u64, Error> {
        let request = PutRequest { key: key.into(), value: value.into(), ..Default::default() };
        Ok(self.put(request).await?.revision)
    }

    /// Deletes one key and returns whether it was there.
    ///
    /// Not cancel-safe: dropped, it may take effect or not, and never twice.
    ///
    /// # Errors
    /// As [`Kv::delete_range`].
    pub async fn remove(&self, key: impl Into<Bytes>) -> Result<bool, Error> {
        let request = DeleteRangeRequest { key: key.into(), ..Default::default() };
        Ok(self.delete_range(request).await?.deleted > 0)
    }

    /// Reads a key or a range.
    ///
    /// Cancel-safe.
    ///
    /// # Errors
    /// OUT_OF_RANGE at a revision that was compacted or lies in the future; DEADLINE_EXCEEDED;
    /// UNAVAILABLE where no node took the request in time.
    pub async fn range(&self, request: RangeRequest) -> Result<RangeResponse, Error> {
        self.client.read(request, async |c, q| stub(c).range(q).await).await
    }

    /// Writes one key.
    ///
    /// Not cancel-safe: dropped, it may take effect or not, and never twice.
    ///
    /// # Errors
    /// FAILED_PRECONDITION where `require_lock` is not held; NOT_FOUND for a session that is gone;
    /// DEADLINE_EXCEEDED with an unknown outcome; UNAVAILABLE where nothing was proposed.
    pub async fn put(&self, request: PutRequest) -> Result<PutResponse, Error> {
        self.client.write(identified(request), async |c, q| stub(c).put(q).await).await
    }

    /// Opens a stream of puts, for those who have much to write. Must be called inside a tokio
    /// runtime; it connects by itself.
    pub fn put_stream(&self) -> PutStream {
        PutStream::new(self.client.clone(), None)
    }

    /// The same, with another bound of the puts that one message carries, 1 to 10,000.
    pub fn put_stream_of(&self, message_puts: usize) -> PutStream {
        PutStream::new(self.client.clone(), Some(message_puts))
    }

    /// Deletes a key or a range.
    ///
    /// Not cancel-safe: dropped, it may take effect or not, and never twice.
    ///
    /// # Errors
    /// As [`Kv::put`].
    pub async fn delete_range(
        &self,
        request: DeleteRangeRequest,
    ) -> Result<DeleteRangeResponse, Error> {
        self.client.write(identified(request), async |c, q| stub(c).delete_range(q).await).await
    }

    /// Carries out a transaction.
    ///
    /// Not cancel-safe: dropped, it may take effect or not, and never twice.
    ///
    /// # Errors
    /// As [`Kv::put`]; INVALID_ARGUMENT for one that is malformed.
    pub async fn txn(&self, request: TxnRequest) -> Result<TxnResponse, Error> {
        self.client.write(identified(request), async |c, q| stub(c).txn(q).await).await
    }

    /// Discards the history below a revision.
    ///
    /// Not cancel-safe: dropped, it may take effect or not, and never twice.
    ///
    /// # Errors
    /// OUT_OF_RANGE for a revision that is compacted already or lies in the future.
    pub async fn compact(&self, request: CompactRequest) -> Result<CompactResponse, Error> {
        self.client.write(identified(request), async |c, q| stub(c).compact(q).await).await
    }

    /// Streams changes. It connects at the first [`Resuming::next`].
    pub fn watch(&self, request: WatchRequest) -> KvWatch {
        Resuming::new(self.client.clone(), request)
    }
}

fn stub(node: Picked) -> KvServiceClient<Picked> {
    KvServiceClient::new(node).max_decoding_message_size(ANSWER_BYTES_MAX)
}

impl Resume for WatchRequest {
    type Response = WatchResponse;

    async fn open(self, node: Picked) -> Result<Streaming<WatchResponse>, Status> {
        Ok(stub(node).watch(self).await?.into_inner())
    }

    fn advance(&mut self, response: &mut WatchResponse) -> Outlook {
        if response.revision > 0 {
            self.start_revision = response.revision + 1;
        }
        Outlook::Deliver
    }
}

/// The end of the range of all keys that start with `prefix`, as the requests want it.
///
/// ```
/// assert_eq!(quorate::client::prefix_end(b"a/").as_ref(), b"a0");
/// assert_eq!(quorate::client::prefix_end(b"\xff").as_ref(), b"\0", "to the end of all keys");
/// ```
#[must_use]
pub fn prefix_end(prefix: &[u8]) -> Bytes {
    let kept = prefix.iter().rposition(|byte| *byte < u8::MAX);
    let Some(last) = kept else { return Bytes::from_static(&[0]) };
    let mut end = prefix[..=last].to_vec();
    end[last] += 1;
    end.into()
}
