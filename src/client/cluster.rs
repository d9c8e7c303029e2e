//! The cluster as an operator sees it.

use crate::{
    client::{
        Client, Error, SnapshotParts,
        balance::Picked,
        call::{Effect, Limit},
    },
    pb::cluster::v1::{
        SaveSnapshotRequest, StateHashRequest, StateHashResponse, StatusRequest, StatusResponse,
        TransferLeadershipRequest, TransferLeadershipResponse,
        cluster_service_client::ClusterServiceClient,
    },
};

/// A cluster and its nodes.
#[derive(Clone, Debug)]
pub struct Cluster {
    client: Client,
}

impl Cluster {
    pub(super) const fn new(client: Client) -> Self {
        Self { client }
    }

    /// Tells how the nodes stand. Needs no quorum.
    ///
    /// Cancel-safe.
    ///
    /// # Errors
    /// UNAVAILABLE or DEADLINE_EXCEEDED where no node answered.
    pub async fn status(&self, request: StatusRequest) -> Result<StatusResponse, Error> {
        self.client.read(request, async |c, q| stub(c).status(q).await).await
    }

    /// Hashes the state of whichever node answers: build a client of one endpoint to choose it.
    ///
    /// Cancel-safe.
    ///
    /// # Errors
    /// OUT_OF_RANGE for a revision that was compacted or is not applied yet.
    pub async fn state_hash(&self, request: StateHashRequest) -> Result<StateHashResponse, Error> {
        self.client.read(request, async |c, q| stub(c).state_hash(q).await).await
    }

    /// Streams a snapshot of the state of whichever node answers. Begun once; see
    /// [`SnapshotParts`].
    ///
    /// Cancel-safe.
    ///
    /// # Errors
    /// RESOURCE_EXHAUSTED where the node streams two already; UNAVAILABLE or DEADLINE_EXCEEDED
    /// where no node answered.
    pub async fn save_snapshot(
        &self,
        request: SaveSnapshotRequest,
    ) -> Result<SnapshotParts, Error> {
        SnapshotParts::open(&self.client, request).await
    }

    /// Hands leadership over. Sent again only where it was certainly not begun.
    ///
    /// Not cancel-safe: dropped, leadership may be handed over or not.
    ///
    /// # Errors
    /// FAILED_PRECONDITION for a target that is no voter; ABORTED where it did not take over;
    /// UNKNOWN or DEADLINE_EXCEEDED where that is not known.
    pub async fn transfer_leadership(
        &self,
        request: TransferLeadershipRequest,
    ) -> Result<TransferLeadershipResponse, Error> {
        let limit = Limit::Within(self.client.timeout());
        self.client
            .call(Effect::Once, limit, request, async |c, q| stub(c).transfer_leadership(q).await)
            .await
    }
}

fn stub(node: Picked) -> ClusterServiceClient<Picked> {
    ClusterServiceClient::new(node)
}
