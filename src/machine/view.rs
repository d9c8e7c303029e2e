//! SKELETON: reads of the state, as pure functions over a consistent view.

use std::sync::Arc;

use crate::{
    machine::{
        effect::{Change, Space},
        head::Head,
        store::{Reader, StoreError},
    },
    pb::{
        cluster::v1::StateHashResponse,
        command::v1::{Refusal, RegisterMember},
        discovery::v1::{Instance, ListServicesResponse, ResolveRequest, ResolveResponse},
        event::v1::{ListStreamsRequest, ListStreamsResponse, RecordedEvent},
        kv::v1::{RangeRequest, RangeResponse},
        lock::v1::{DescribeResponse, ListRequest, ListResponse},
    },
    types::{ClusterId, Duration, Revision, SessionId},
};

/// What the leader loads of a session when it takes over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionInfo {
    /// The session.
    pub session: SessionId,
    /// Its TTL.
    pub ttl: Duration,
    /// What is left at most, as far as it was recorded.
    pub remaining: Duration,
    /// Its epoch.
    pub epoch: u64,
}

/// A consistent view of the state. Cheap to clone.
#[derive(Clone)]
pub struct View {
    reader: Arc<dyn Reader>,
}

impl core::fmt::Debug for View {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("View").finish_non_exhaustive()
    }
}

#[allow(unused_variables)]
impl View {
    /// Reads through a store's snapshot.
    #[must_use]
    pub fn new(reader: Arc<dyn Reader>) -> Self {
        Self { reader }
    }

    /// The rows beneath.
    #[must_use]
    pub fn reader(&self) -> &Arc<dyn Reader> {
        &self.reader
    }

    /// Where the state stands.
    pub fn head(&self) -> Result<Head, StoreError> {
        unimplemented!()
    }

    /// `kv.v1.KvService/Range`.
    pub fn range(
        &self,
        request: &RangeRequest,
    ) -> Result<Result<RangeResponse, Refusal>, StoreError> {
        unimplemented!()
    }

    /// The changes of a space from revision `from` on, in order, whole revisions only, until about
    /// `bytes_max` are gathered; and the last revision that they cover (the head's where nothing
    /// was cut). Refused as compacted where `from` is not kept.
    pub fn changes(
        &self,
        space: Space,
        from: Revision,
        bytes_max: usize,
    ) -> Result<Result<(Vec<Change>, Revision), Refusal>, StoreError> {
        unimplemented!()
    }

    /// One lock with its line.
    pub fn lock(&self, name: &str) -> Result<DescribeResponse, StoreError> {
        unimplemented!()
    }

    /// `lock.v1.LockService/List`.
    pub fn locks(
        &self,
        request: &ListRequest,
    ) -> Result<Result<ListResponse, Refusal>, StoreError> {
        unimplemented!()
    }

    /// `discovery.v1.DiscoveryService/Resolve`.
    pub fn resolve(&self, request: &ResolveRequest) -> Result<ResolveResponse, StoreError> {
        unimplemented!()
    }

    /// One instance.
    pub fn instance(&self, service: &str, id: &str) -> Result<Option<Instance>, StoreError> {
        unimplemented!()
    }

    /// All instances, for a watch of all services.
    pub fn instances(&self) -> Result<Vec<Instance>, StoreError> {
        unimplemented!()
    }

    /// `discovery.v1.DiscoveryService/ListServices`.
    pub fn services(&self) -> Result<ListServicesResponse, StoreError> {
        unimplemented!()
    }

    /// Events of a stream from a version on, or of all (`stream` empty) from a position on, until
    /// `count_max` or about `bytes_max` are gathered. An unknown stream has none.
    pub fn events(
        &self,
        stream: &str,
        from: u64,
        count_max: usize,
        bytes_max: usize,
    ) -> Result<Vec<RecordedEvent>, StoreError> {
        unimplemented!()
    }

    /// A stream's version; `None` where it does not exist.
    pub fn stream_version(&self, stream: &str) -> Result<Option<u64>, StoreError> {
        unimplemented!()
    }

    /// `event.v1.EventService/ListStreams`.
    pub fn streams(
        &self,
        request: &ListStreamsRequest,
    ) -> Result<Result<ListStreamsResponse, Refusal>, StoreError> {
        unimplemented!()
    }

    /// The holder's session of a lock, where it is held with this token.
    pub fn lock_session(
        &self,
        name: &str,
        fencing_token: u64,
    ) -> Result<Option<SessionId>, StoreError> {
        unimplemented!()
    }

    /// All sessions.
    pub fn sessions(&self) -> Result<Vec<SessionInfo>, StoreError> {
        unimplemented!()
    }

    /// Whether a session lives.
    pub fn session(&self, session: SessionId) -> Result<Option<SessionInfo>, StoreError> {
        unimplemented!()
    }

    /// The cluster's id, once it is founded.
    pub fn cluster_id(&self) -> Result<Option<ClusterId>, StoreError> {
        unimplemented!()
    }

    /// The registered members.
    pub fn members(&self) -> Result<Vec<RegisterMember>, StoreError> {
        unimplemented!()
    }

    /// `cluster.v1.ClusterService/StateHash`; `node_id` is left 0.
    pub fn state_hash(
        &self,
        revision: Revision,
    ) -> Result<Result<StateHashResponse, Refusal>, StoreError> {
        unimplemented!()
    }
}
