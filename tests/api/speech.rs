//! What the tests say to one node over plain gRPC, and what they expect of its refusals: no client
//! of ours stands between, so nothing is retried or reworded.

use std::fmt::Debug;

use quorate::{
    pb::{
        cluster::v1::{
            StateHashRequest, StateHashResponse, StatusRequest,
            cluster_service_client::ClusterServiceClient,
        },
        discovery::v1::discovery_service_client::DiscoveryServiceClient,
        event::v1::{Event, event_service_client::EventServiceClient},
        kv::v1::{PutRequest, RangeRequest, kv_service_client::KvServiceClient},
        lock::v1::lock_service_client::LockServiceClient,
        session::v1::session_service_client::SessionServiceClient,
    },
    testing::Cluster,
};
use tonic::{
    Code, Response, Status,
    transport::{Channel, Endpoint},
};
use tonic_types::{ErrorInfo, StatusExt as _};

/// Reasons that ask to try again soon, and therefore say when.
const PASSING: [&str; 5] = ["NOT_LEADER", "NO_QUORUM", "DRAINING", "OVERLOADED", "NO_SPACE"];

/// One node.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) kv: KvServiceClient<Channel>,
    pub(crate) lock: LockServiceClient<Channel>,
    pub(crate) discovery: DiscoveryServiceClient<Channel>,
    pub(crate) event: EventServiceClient<Channel>,
    pub(crate) session: SessionServiceClient<Channel>,
    pub(crate) cluster: ClusterServiceClient<Channel>,
}

/// What a refused request must leave as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Footprint {
    hash: String,
    revision: u64,
    position: u64,
}

impl Node {
    pub(crate) async fn of(cluster: &Cluster, id: u64) -> Self {
        let endpoint = Endpoint::from_shared(format!("http://{}", cluster.endpoint(id)));
        let channel = endpoint.expect("an address").connect().await.expect("the node listens");
        // What a node may answer is larger than what tonic's clients take unless told.
        let max = 16 << 20;
        Self {
            kv: KvServiceClient::new(channel.clone()).max_decoding_message_size(max),
            lock: LockServiceClient::new(channel.clone()),
            discovery: DiscoveryServiceClient::new(channel.clone()),
            event: EventServiceClient::new(channel.clone()),
            session: SessionServiceClient::new(channel.clone()),
            cluster: ClusterServiceClient::new(channel),
        }
    }

    /// The node's state now.
    pub(crate) async fn footprint(&self) -> Footprint {
        let mut cluster = self.cluster.clone();
        let hash = cluster.state_hash(StateHashRequest::default()).await.expect("a hash");
        let StateHashResponse { hash, revision, .. } = hash.into_inner();
        let status = cluster.status(StatusRequest { local: true }).await.expect("a status");
        let position = status.into_inner().nodes[0].position;
        Footprint { hash, revision, position }
    }

    /// Writes a key and returns the revision.
    pub(crate) async fn put(&mut self, key: &str, value: &str) -> u64 {
        let request = put(key, value);
        self.kv.put(request).await.expect("written").into_inner().revision
    }

    /// Reads a key, with the node's own state only where `stale`.
    pub(crate) async fn get(&mut self, key: &str, stale: bool) -> Result<Option<String>, Status> {
        let request = RangeRequest { key: key.to_owned().into(), stale, ..Default::default() };
        let found = self.kv.range(request).await?.into_inner();
        assert!(found.revision > 0, "an answer names its revision");
        Ok(found.kvs.first().map(|kv| String::from_utf8_lossy(&kv.value).into_owned()))
    }
}

/// A request that writes a key.
pub(crate) fn put(key: &str, value: &str) -> PutRequest {
    let (key, value) = (key.to_owned().into(), value.to_owned().into());
    PutRequest { key, value, ..Default::default() }
}

/// An event.
pub(crate) fn event(id: &str, r#type: &str) -> Event {
    Event { id: id.to_owned(), r#type: r#type.to_owned(), ..Default::default() }
}

/// A span as the requests want it.
pub(crate) fn span(seconds: i64, nanos: i32) -> Option<prost_types::Duration> {
    Some(prost_types::Duration { seconds, nanos })
}

/// Checks that an answer is a refusal with this code and reason, in the documented form.
pub(crate) fn refused<T: Debug>(
    what: &str,
    answer: Result<T, Status>,
    code: Code,
    reason: &str,
) -> ErrorInfo {
    let status = match answer {
        Err(status) => status,
        Ok(answer) => panic!("{what}: not refused, but answered {answer:?}"),
    };
    assert_eq!(status.code(), code, "{what}: {status:?}");
    let details = status.get_error_details();
    let info = details.error_info().unwrap_or_else(|| panic!("{what}: no ErrorInfo: {status:?}"));
    assert_eq!((info.reason.as_str(), info.domain.as_str()), (reason, "quorate"), "{what}");
    let told = status.message();
    assert!(!told.is_empty() && !told.contains('\n'), "{what}: one sentence: {told:?}");
    let passing = PASSING.contains(&reason);
    assert_eq!(details.retry_info().is_some(), passing, "{what}: RetryInfo where it helps");
    info.clone()
}

/// Reads a stream to its end; the refusal may be its first message.
pub(crate) async fn drained<T>(
    opened: Result<Response<tonic::Streaming<T>>, Status>,
) -> Result<Vec<T>, Status> {
    let mut stream = opened?.into_inner();
    let mut all = Vec::new();
    while let Some(message) = stream.message().await? {
        all.push(message);
    }
    Ok(all)
}

/// The first message of a stream.
pub(crate) async fn first<T>(
    opened: Result<Response<tonic::Streaming<T>>, Status>,
) -> Result<Option<T>, Status> {
    opened?.into_inner().message().await
}
