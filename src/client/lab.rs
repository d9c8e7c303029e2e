//! Faults on purpose, in nodes that were started with `--lab`.
//!
//! Each node breaks its own links only, so build a client of one endpoint to choose the node.

use crate::{
    client::{
        Client, Error,
        balance::Picked,
        call::{Effect, Limit},
    },
    pb::lab::v1::{
        AddLinkFaultRequest, AddLinkFaultResponse, ClearLinkFaultsRequest, ClearLinkFaultsResponse,
        LinkFault, ListLinkFaultsRequest, ListLinkFaultsResponse,
        lab_service_client::LabServiceClient,
    },
    types::Duration,
};

/// The laboratory of whichever node answers.
#[derive(Clone, Debug)]
pub struct Lab {
    client: Client,
}

impl Lab {
    pub(super) const fn new(client: Client) -> Self {
        Self { client }
    }

    /// Adds a fault to the node's links for `lease`, 1 ms to 10 min. Sent again only where it was
    /// certainly not taken.
    ///
    /// Not cancel-safe: dropped, the fault may be added or not; it ends with its lease.
    ///
    /// # Errors
    /// INVALID_ARGUMENT for a fault that does not fit; RESOURCE_EXHAUSTED while there are too many;
    /// UNIMPLEMENTED where the node was started without `--lab`.
    pub async fn add_link_fault(
        &self,
        fault: LinkFault,
        lease: Duration,
    ) -> Result<AddLinkFaultResponse, Error> {
        let lease = prost_types::Duration::try_from(lease)
            .map_err(|_| Error::invalid("lease: must lie between 1ms and 10min"))?;
        let request = AddLinkFaultRequest { fault: Some(fault), lease: Some(lease) };
        let limit = Limit::Within(self.client.timeout());
        let send = async |c, q| LabServiceClient::<Picked>::new(c).add_link_fault(q).await;
        self.client.call(Effect::Once, limit, request, send).await
    }

    /// The node's faults, and what faults did since it started.
    ///
    /// Cancel-safe.
    ///
    /// # Errors
    /// UNIMPLEMENTED where the node was started without `--lab`.
    pub async fn link_faults(&self) -> Result<ListLinkFaultsResponse, Error> {
        let send = async |c, q| LabServiceClient::<Picked>::new(c).list_link_faults(q).await;
        self.client.read(ListLinkFaultsRequest {}, send).await
    }

    /// Takes these faults of the node away, or all where none is named.
    ///
    /// Not cancel-safe: dropped, they may be taken away or not; to do it again is harmless.
    ///
    /// # Errors
    /// UNIMPLEMENTED where the node was started without `--lab`.
    pub async fn clear_link_faults(
        &self,
        fault_ids: &[u64],
    ) -> Result<ClearLinkFaultsResponse, Error> {
        let request = ClearLinkFaultsRequest { fault_ids: fault_ids.to_vec() };
        let send = async |c, q| LabServiceClient::<Picked>::new(c).clear_link_faults(q).await;
        self.client.write(request, send).await
    }
}
