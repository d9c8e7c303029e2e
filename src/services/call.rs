//! What the handlers share: a command's way through the node, and a read's.

use std::sync::Arc;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::{
    host,
    machine::{self, View, refusal},
    node::{Directory, Handle},
    observe::{self, Subject},
    pb::command::v1::{Reason, Refusal, command, outcome},
    services::{
        elsewhere::{self, Elsewhere, Found, Read},
        gate::Call,
    },
    streaming::Terms,
    types::{NodeId, Revision},
    wire::status::{from_refusal, from_store_error},
};

/// The node that a service answers for.
#[derive(Clone, Debug)]
pub(crate) struct Context {
    pub(crate) node: Handle,
    pub(crate) drain: CancellationToken,
    /// Where reads go that this node cannot serve.
    pub(crate) elsewhere: Option<Arc<dyn Elsewhere>>,
}

impl Context {
    /// Checks and proposes a command, and waits for what came of it.
    pub(crate) async fn change(
        &self,
        op: command::Op,
        call: &Call,
    ) -> Result<outcome::Result, Status> {
        machine::validate(&op).map_err(from_refusal)?;
        about(subject(&op));
        let outcome =
            self.node.propose(op, call.deadline).await.map_err(|refusal| self.refused(refusal))?;
        match outcome.result {
            Some(outcome::Result::Refusal(refusal)) => Err(from_refusal(refusal)),
            Some(result) => Ok(result),
            None => Err(Status::internal("the state machine gave no result")),
        }
    }

    /// The state: what this node has, or what holds everything acknowledged before the call.
    pub(crate) async fn view(&self, stale: bool, call: &Call) -> Result<View, Status> {
        if !stale {
            self.barrier(call.deadline).await?;
        }
        Ok(self.node.view())
    }

    /// What a unary read is answered from: this node's state, or another node's answer where this
    /// one cannot say in time what is true now.
    pub(crate) async fn find<Q: Read>(
        &self,
        request: &Q,
        call: &Call,
    ) -> Result<Found<Q::Answer>, Status> {
        let here = self.view(request.stale(), call);
        match &self.elsewhere {
            Some(elsewhere) if !request.stale() => {
                elsewhere::find(&**elsewhere, request, call, here).await
            }
            _ => here.await.map(Found::Here),
        }
    }

    /// Waits until this node's state holds everything acknowledged before the call.
    pub(crate) async fn barrier(&self, deadline: Option<Instant>) -> Result<(), Status> {
        self.node.read_barrier(deadline).await.map_err(|refusal| self.refused(refusal))
    }

    /// The status of a refusal by the node: where it names the leader, with the address.
    pub(crate) fn refused(&self, refusal: Refusal) -> Status {
        refused(self.node.directory(), refusal)
    }

    /// When a stream of this call ends on the server's account.
    pub(crate) fn terms(&self, call: Call) -> Terms {
        Terms {
            drain: self.drain.clone(),
            deadline: call.deadline,
            permit: call.permit,
            metrics: self.node.metrics().clone(),
        }
    }
}

/// Notes what the request is about, should it be slow.
pub(crate) fn about(name: &[u8]) {
    observe::note(|trace| trace.subject = Subject::new(name));
}

/// The key or name that a command is about first; empty where it has none.
fn subject(op: &command::Op) -> &[u8] {
    match op {
        command::Op::Put(request) => &request.key,
        command::Op::DeleteRange(request) => &request.key,
        command::Op::Acquire(request) => request.name.as_bytes(),
        command::Op::Release(request) => request.name.as_bytes(),
        command::Op::Register(request) => request.service.as_bytes(),
        command::Op::Deregister(request) => request.instance_id.as_bytes(),
        command::Op::SetInstanceState(request) => request.instance_id.as_bytes(),
        command::Op::Append(request) => request.stream.as_bytes(),
        _ => &[],
    }
}

/// Adds the address to the leader that a refusal names, where it is known.
fn refused(directory: &Directory, mut refusal: Refusal) -> Status {
    let leader = refusal.metadata.get("leader_id").and_then(|id| id.parse().ok());
    let leader = leader.map(NodeId::new);
    if let Some(address) = leader.and_then(|leader| directory.client_address_of(leader)) {
        refusal = refusal.with("leader_address", address);
    }
    from_refusal(refusal)
}

/// Takes the result that a command of its kind has.
macro_rules! expect_result {
    ($result:expr, $variant:ident) => {
        match $result {
            $crate::pb::command::v1::outcome::Result::$variant(response) => {
                Ok(tonic::Response::new(response))
            }
            _ => Err(tonic::Status::internal("the state machine gave a result of another kind")),
        }
    };
}
pub(crate) use expect_result;

/// The state that a unary read is answered from; returns another node's answer, where that gave one.
macro_rules! view_here {
    ($context:expr, $request:expr, $call:expr) => {
        match $context.find($request, $call).await? {
            $crate::services::elsewhere::Found::Here(view) => view,
            $crate::services::elsewhere::Found::Elsewhere(answer) => {
                return Ok(tonic::Response::new(answer));
            }
        }
    };
}
pub(crate) use view_here;

/// Reads what may take a while on a thread that may wait.
pub(crate) async fn read<T: Send + 'static>(
    view: View,
    read: impl FnOnce(&View) -> Result<T, Status> + Send + 'static,
) -> Result<T, Status> {
    host::blocking(move || read(&view))
        .await
        .map_err(|error| Status::internal(format!("reading the state failed: {error}")))?
}

/// The newest revision of a view.
pub(crate) fn revision(view: &View) -> Result<Revision, Status> {
    Ok(view.head().map_err(|error| from_store_error(&error))?.revision)
}

/// A refusal of a malformed request.
pub(crate) fn invalid(sentence: impl Into<String>) -> Status {
    from_refusal(refusal(Reason::InvalidArgument, sentence))
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::{types::Incarnation, wire::status::to_refusal};

    #[test]
    fn a_refusal_that_names_the_leader_gets_its_address() {
        let incarnation = Incarnation::new(Uuid::nil());
        let directory = Directory::new(
            NodeId::new(1),
            incarnation,
            String::new(),
            String::new(),
            None,
            Default::default(),
        );
        directory.learn(NodeId::new(2), |peer| peer.client_address = "h2:7001".to_owned());
        let address = |leader: u64| {
            let refusal = refusal(Reason::NotLeader, "elsewhere").with("leader_id", leader);
            let status = refused(&directory, refusal);
            to_refusal(&status).unwrap().metadata.get("leader_address").cloned()
        };
        assert_eq!(address(2).as_deref(), Some("h2:7001"));
        assert_eq!(address(3), None);
    }
}
