//! A snapshot of a cluster's state on its way here.

use core::fmt;

use tokio::time::{Instant, timeout, timeout_at};
use tonic::Streaming;

use crate::{
    client::{
        Client, Error,
        balance::Picked,
        call::{Attempts, Effect, Limit},
    },
    pb::cluster::v1::{
        SaveSnapshotRequest, SaveSnapshotResponse, cluster_service_client::ClusterServiceClient,
    },
    types::Duration,
};

/// How long a node may take for the next part before it counts as lost.
const STALL_MAX: Duration = Duration::from_secs(60);

/// The parts of a snapshot. A stream that breaks is not taken up again: another node's state is
/// another snapshot.
#[must_use = "nothing is read before `next` is called"]
pub struct SnapshotParts(Streaming<SaveSnapshotResponse>);

impl fmt::Debug for SnapshotParts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SnapshotParts").finish_non_exhaustive()
    }
}

impl SnapshotParts {
    pub(super) async fn open(client: &Client, request: SaveSnapshotRequest) -> Result<Self, Error> {
        let limit = Limit::Within(client.timeout());
        let mut attempts = Attempts::new(client, Effect::Read, limit);
        let deadline = Instant::now() + client.timeout();
        loop {
            let started = Instant::now();
            let node = match client.pick(&attempts).await {
                Ok(node) => node,
                Err(error) => {
                    attempts.failed(None, started, error).await?;
                    continue;
                }
            };
            // The call itself has no deadline: the stream may take long.
            let opened = timeout_at(deadline, stub(node.clone()).save_snapshot(request)).await;
            match opened {
                Ok(Ok(stream)) => return Ok(Self(stream.into_inner())),
                Ok(Err(status)) => {
                    attempts.failed(Some(node.address()), started, status.into()).await?;
                }
                Err(_) => return Err(attempts.expired()),
            }
        }
    }

    /// The next part; `None` at the stream's end. Only a snapshot whose end part was seen is whole.
    ///
    /// Cancel-safe.
    ///
    /// # Errors
    /// Where the node refuses, is lost, or says nothing for a minute.
    pub async fn next(&mut self) -> Result<Option<SaveSnapshotResponse>, Error> {
        match timeout(STALL_MAX, self.0.message()).await {
            Ok(Ok(part)) => Ok(part),
            Ok(Err(status)) => Err(status.into()),
            Err(_) => Err(Error::broken("no part of the snapshot came for a minute")),
        }
    }
}

fn stub(node: Picked) -> ClusterServiceClient<Picked> {
    ClusterServiceClient::new(node)
}
