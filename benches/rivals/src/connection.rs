//! One connection to one member of either system, and the operations that both have.
//!
//! Plain generated stubs over the same transport with the same settings; no retries, no request
//! ids unless asked for.

use std::{
    net::SocketAddr,
    sync::atomic::{AtomicU64, Ordering},
};

use bytes::Bytes;
use tonic::{
    Status,
    transport::{Channel, Endpoint},
};

use crate::{
    Error,
    options::System,
    pb::{
        cluster::{StatusRequest as QStatus, cluster_service_client::ClusterServiceClient},
        etcdserverpb::{
            LeaseGrantRequest, LeaseRevokeRequest, PutRequest as EPut, RangeRequest as ERange,
            StatusRequest as EStatus, kv_client::KvClient, lease_client::LeaseClient,
            maintenance_client::MaintenanceClient,
        },
        kv::{PutRequest as QPut, RangeRequest as QRange, kv_service_client::KvServiceClient},
        lock::{AcquireRequest, ReleaseRequest, lock_service_client::LockServiceClient},
        session::{
            CloseSessionRequest, OpenSessionRequest, session_service_client::SessionServiceClient,
        },
        v3lockpb::{LockRequest, UnlockRequest, lock_client::LockClient},
    },
};

/// How long a lease or session outlives its grant: longer than a cell, so nobody renews.
const LEASE_SECONDS: i64 = 600;

/// A connection. Cheap to clone; clones share it.
#[derive(Clone, Debug)]
pub struct Connection {
    system: System,
    channel: Channel,
    request_ids: bool,
}

/// A lock that is held.
#[derive(Debug)]
pub enum Held {
    /// By its name and fencing token.
    Quorate(String, u64),
    /// By its key.
    Etcd(Bytes),
}

impl Connection {
    pub async fn open(system: System, address: SocketAddr) -> Result<Self, Error> {
        Ok(Self { system, channel: channel(address).await?, request_ids: false })
    }

    pub const fn with_request_ids(mut self, request_ids: bool) -> Self {
        self.request_ids = request_ids;
        self
    }

    /// The member's own id and that of the leader it knows, 0 where it knows none.
    pub async fn leader(&mut self) -> Result<(u64, u64), Status> {
        let channel = self.channel.clone();
        match self.system {
            System::Quorate => {
                let request = QStatus { local: true };
                let status = ClusterServiceClient::new(channel).status(request).await?.into_inner();
                Ok((status.node_id, status.leader_id))
            }
            System::Etcd => {
                let status = MaintenanceClient::new(channel).status(EStatus {}).await?.into_inner();
                let own = status.header.map(|header| header.member_id).unwrap_or_default();
                Ok((own, status.leader))
            }
        }
    }

    pub async fn put(&self, key: Bytes, value: Bytes) -> Result<(), Status> {
        let channel = self.channel.clone();
        match self.system {
            System::Quorate => {
                let request_id = self.request_id();
                let request = QPut { key, value, request_id, ..QPut::default() };
                KvServiceClient::new(channel).put(request).await.map(drop)
            }
            System::Etcd => KvClient::new(channel).put(EPut { key, value }).await.map(drop),
        }
    }

    /// Reads a key, linearizable. Returns whether it is there.
    pub async fn get(&self, key: Bytes) -> Result<bool, Status> {
        let channel = self.channel.clone();
        match self.system {
            System::Quorate => {
                let request = QRange { key, ..QRange::default() };
                let answer = KvServiceClient::new(channel).range(request).await?;
                Ok(!answer.into_inner().kvs.is_empty())
            }
            System::Etcd => {
                let request = ERange { key, ..ERange::default() };
                Ok(!KvClient::new(channel).range(request).await?.into_inner().kvs.is_empty())
            }
        }
    }

    /// Opens a session, or has a lease granted.
    pub async fn open_session(&self) -> Result<u64, Status> {
        let channel = self.channel.clone();
        match self.system {
            System::Quorate => {
                let ttl = Some(prost_types::Duration { seconds: LEASE_SECONDS, nanos: 0 });
                let request = OpenSessionRequest { ttl, ..OpenSessionRequest::default() };
                let answer = SessionServiceClient::new(channel).open_session(request).await?;
                Ok(answer.into_inner().session_id)
            }
            System::Etcd => {
                let request = LeaseGrantRequest { ttl: LEASE_SECONDS, id: 0 };
                let answer = LeaseClient::new(channel).lease_grant(request).await?;
                Ok(answer.into_inner().id.cast_unsigned())
            }
        }
    }

    pub async fn close_session(&self, session_id: u64) -> Result<(), Status> {
        let channel = self.channel.clone();
        match self.system {
            System::Quorate => {
                let request = CloseSessionRequest { session_id, ..CloseSessionRequest::default() };
                SessionServiceClient::new(channel).close_session(request).await.map(drop)
            }
            System::Etcd => {
                let request = LeaseRevokeRequest { id: session_id.cast_signed() };
                LeaseClient::new(channel).lease_revoke(request).await.map(drop)
            }
        }
    }

    /// Waits for a lock and holds it.
    pub async fn acquire(&self, name: &str, session_id: u64) -> Result<Held, Status> {
        let channel = self.channel.clone();
        match self.system {
            System::Quorate => {
                let request = AcquireRequest {
                    name: name.to_owned(),
                    session_id,
                    request_id: self.request_id(),
                    ..AcquireRequest::default()
                };
                let grant = LockServiceClient::new(channel).acquire(request).await?.into_inner();
                Ok(Held::Quorate(grant.name, grant.fencing_token))
            }
            System::Etcd => {
                let name = Bytes::copy_from_slice(name.as_bytes());
                let request = LockRequest { name, lease: session_id.cast_signed() };
                Ok(Held::Etcd(LockClient::new(channel).lock(request).await?.into_inner().key))
            }
        }
    }

    pub async fn release(&self, held: Held) -> Result<(), Status> {
        let channel = self.channel.clone();
        match held {
            Held::Quorate(name, fencing_token) => {
                let request = ReleaseRequest { name, fencing_token, request_id: self.request_id() };
                LockServiceClient::new(channel).release(request).await.map(drop)
            }
            Held::Etcd(key) => {
                LockClient::new(channel).unlock(UnlockRequest { key }).await.map(drop)
            }
        }
    }

    /// A fresh UUID in text where changes carry one, else nothing.
    fn request_id(&self) -> String {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        if !self.request_ids {
            return String::new();
        }
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        format!("{:08x}-0000-4000-8000-{number:012x}", std::process::id())
    }
}

/// What every client here speaks through, the echo's included.
pub async fn channel(address: SocketAddr) -> Result<Channel, Error> {
    Ok(Endpoint::from_shared(format!("http://{address}"))?.tcp_nodelay(true).connect().await?)
}
