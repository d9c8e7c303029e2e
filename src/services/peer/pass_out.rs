//! Reads that this node passes on: it finds the others as instances of the service `quorate` in its
//! own state, and a balancer chooses among them.
//!
//! Connections are made when the first read needs one, and kept. A node that serves all its reads
//! itself has none of them.

use std::{
    fmt,
    sync::{Arc, OnceLock},
};

use bytes::Bytes;
use http::Extensions;
use tokio::{
    sync::Semaphore,
    time::{Instant, sleep_until, timeout_at},
};
use tonic::{Code, Status};

use crate::{
    client::{
        Error,
        balance::{Avoid, Balance, Endpoint, Http2, Picked, Resolver},
    },
    host,
    machine::{NODE_SERVICE, Space, View},
    node::{Handle, LAG_ENTRIES_MAX},
    pb::{
        discovery::v1::{Instance, InstanceState, ResolveRequest},
        raft::v1::{
            ServeReadRequest, raft_service_client::RaftServiceClient, serve_read_response::Answer,
        },
    },
    resilience::{backoff, outlier},
    services::elsewhere::{Asking, Elsewhere},
    streaming::{Changes, Cursor},
    types::{Duration, KeyRange, NodeId},
};

use super::{
    channel::MESSAGE_BYTES_MAX,
    faults::{Kind, Line, Way},
    lanes::text,
    transport::Shared,
};

/// How long one node may take before the next is asked.
const ATTEMPT_MAX: Duration = Duration::from_secs(2);

/// How long a connection may take, TLS included.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(1_500);

/// Reads that may be on their way to other nodes at once; further ones wait here. So a cluster that
/// is merely slow does not get every read twice.
const PASSED_ON_MAX: usize = 64;

/// How long to wait before one's own state is read again after that failed.
const AGAIN: Duration = Duration::from_secs(1);

/// Where the registration of a node says where its peers reach it.
const PEER_ADDRESS: &str = "peer_address";

/// What the instance of a node is called before its number.
const INSTANCE_PREFIX: &str = "node-";

/// The way to the other nodes.
pub(super) struct Reads {
    shared: Arc<Shared>,
    node: Handle,
    balance: OnceLock<Balance>,
    places: Semaphore,
}

impl Reads {
    pub(super) const fn new(shared: Arc<Shared>, node: Handle) -> Self {
        let places = Semaphore::const_new(PASSED_ON_MAX);
        Self { shared, node, balance: OnceLock::new(), places }
    }

    fn balance(&self) -> &Balance {
        self.balance.get_or_init(|| {
            let mut connect = Http2::new().connect_timeout(CONNECT_TIMEOUT);
            if let Some(tls) = &self.shared.options.tls {
                connect = connect.peers(Arc::clone(tls));
            }
            let backoff = backoff::Config {
                base: Duration::from_millis(50),
                max: Duration::from_secs(1),
                ..backoff::Config::default()
            };
            // A node that answers in vain is passed over for this read only: what is wrong with it
            // in a minute nobody knows.
            let outlier = outlier::Config::off().validate().expect("nothing is set");
            Balance::builder()
                .connect(connect)
                .backoff(backoff.validate().expect("they are in bounds"))
                .outlier(outlier)
                .resolve(OwnState { node: self.node.clone(), changes: None })
        })
    }

    async fn ask_others(
        &self,
        method: &'static str,
        message: Bytes,
        deadline: Option<Instant>,
    ) -> Option<Result<Bytes, Status>> {
        let _place = self.places.try_acquire().ok()?;
        let mut hints = Extensions::new();
        let mut asked = Avoid::default();
        loop {
            let limit = Instant::now() + ATTEMPT_MAX;
            let until = deadline.map_or(limit, |deadline| deadline.min(limit));
            let picked = timeout_at(until, self.balance().pick(&hints)).await.ok()?.ok()?;
            let address: Arc<str> = picked.address().into();
            if asked.0.contains(&address) {
                return None;
            }
            let answer = timeout_at(until, self.ask_one(picked, method, &message, until)).await;
            match answer.unwrap_or_else(|_| Err("it does not answer in time".to_owned())) {
                Ok(answer) => {
                    self.shared.options.metrics.record_read_passed_on();
                    return Some(answer);
                }
                Err(reason) => {
                    tracing::debug!(%address, reason, "a read was passed on in vain");
                }
            }
            asked.0.push(address);
            hints.insert(asked.clone());
        }
    }

    /// What a node has to say to the client.
    ///
    /// # Errors
    /// A sentence, where it has nothing to say that another node would not say better.
    async fn ask_one(
        &self,
        picked: Picked,
        method: &'static str,
        message: &Bytes,
        until: Instant,
    ) -> Result<Result<Bytes, Status>, String> {
        let shared = &self.shared;
        let peer = node_of(picked.backend().endpoint().id()).ok_or("it is not a node")?;
        if shared.turns_away(peer, Way::To) || !shared.hold(Line::to(peer, Kind::Forward)).await {
            return Err("the lab lost the read".to_owned());
        }
        let left = until.saturating_duration_since(Instant::now()).as_millis();
        let request = ServeReadRequest {
            identity: Some(shared.directory.identity(peer)),
            method: method.to_owned(),
            message: message.clone(),
            timeout_ms: u32::try_from(left).unwrap_or(u32::MAX).max(1),
        };
        let mut client = RaftServiceClient::new(picked);
        client = client.max_decoding_message_size(MESSAGE_BYTES_MAX);
        let answer = client.serve_read(request).await.map_err(|status| text(&status))?.into_inner();
        shared.expect(peer, answer.identity.as_ref())?;
        if !shared.hold(Line::from(peer, Kind::ForwardAnswer)).await {
            return Err("the lab lost the answer".to_owned());
        }
        match answer.answer.ok_or("it answers nothing")? {
            Answer::Message(message) => Ok(Ok(message)),
            Answer::Refused(refused) => {
                let code = Code::from_i32(refused.code);
                let status = Status::with_details(code, refused.message, refused.details);
                if is_about_the_read(code) { Ok(Err(status)) } else { Err(text(&status)) }
            }
        }
    }
}

impl fmt::Debug for Reads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reads").field("balance", &self.balance).finish_non_exhaustive()
    }
}

impl Elsewhere for Reads {
    fn is_needed(&self) -> bool {
        let (leader, lag) = self.node.standing();
        let me = self.shared.directory.node_id;
        let reached = leader.is_some_and(|leader| {
            let open = |link: Arc<super::link::Link>| link.forwards.is_open();
            leader == me || self.shared.link(leader).is_some_and(open)
        });
        !reached || lag > LAG_ENTRIES_MAX || self.shared.arrivals.is_busy()
    }

    fn ask(&self, method: &'static str, message: Bytes, deadline: Option<Instant>) -> Asking<'_> {
        Box::pin(self.ask_others(method, message, deadline))
    }
}

/// Whether a refusal says something of the read, not of the node that was asked.
const fn is_about_the_read(code: Code) -> bool {
    matches!(
        code,
        Code::InvalidArgument
            | Code::NotFound
            | Code::AlreadyExists
            | Code::FailedPrecondition
            | Code::Aborted
            | Code::OutOfRange
    )
}

/// The node that an instance stands for.
fn node_of(instance_id: &str) -> Option<NodeId> {
    instance_id.strip_prefix(INSTANCE_PREFIX)?.parse().ok().map(NodeId::new)
}

/// The other nodes, as this node's own state has them registered. Asks nobody: a node that is cut
/// off would have nobody to ask.
#[derive(Debug)]
struct OwnState {
    node: Handle,
    changes: Option<Cursor<Changes>>,
}

impl OwnState {
    async fn wait_and_read(&mut self) -> Result<Vec<Endpoint>, Status> {
        match &mut self.changes {
            Some(changes) => drop(changes.next().await?),
            None => {
                let view = self.node.view();
                let revision = crate::services::call::revision(&view)?;
                let range = KeyRange::prefix(format!("{NODE_SERVICE}\0").as_bytes());
                let changes = Changes::new(self.node.clone(), Space::Instances, range);
                let head = self.node.feed().subscribe();
                self.changes = Some(Cursor::caught_up(changes, head, revision));
            }
        }
        let (view, me) = (self.node.view(), self.node.directory().node_id);
        let read = host::blocking(move || instances(&view)).await;
        let instances = read.map_err(|error| Status::internal(error.to_string()))??;
        let others = instances.iter().filter_map(endpoint_of);
        Ok(others.filter(|endpoint| node_of(endpoint.id()) != Some(me)).collect())
    }
}

impl Resolver for OwnState {
    async fn next(&mut self) -> Result<Vec<Endpoint>, Error> {
        match self.wait_and_read().await {
            Ok(endpoints) => Ok(endpoints),
            Err(status) => {
                self.changes = None;
                sleep_until(Instant::now() + AGAIN).await;
                Err(Error::unresolved(text(&status)))
            }
        }
    }
}

fn instances(view: &View) -> Result<Vec<Instance>, Status> {
    let request = ResolveRequest { service: NODE_SERVICE.to_owned(), ..Default::default() };
    let resolved = view.resolve(&request);
    Ok(resolved.map_err(|error| crate::wire::status::from_store_error(&error))?.instances)
}

/// A node where its peers reach it.
fn endpoint_of(instance: &Instance) -> Option<Endpoint> {
    node_of(&instance.instance_id)?;
    let endpoint = Endpoint::new(instance.metadata.get(PEER_ADDRESS)?).ok()?;
    Some(
        endpoint
            .with_id(&instance.instance_id)
            .in_zone(&instance.zone)
            .with_weight(instance.weight)
            .draining(instance.state() == InstanceState::Draining),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn instance(id: &str, peer_address: Option<&str>) -> Instance {
        let metadata =
            peer_address.map(|address| (PEER_ADDRESS.to_owned(), address.to_owned())).into_iter();
        Instance {
            instance_id: id.to_owned(),
            address: "h1:7401".to_owned(),
            metadata: metadata.collect(),
            ..Instance::default()
        }
    }

    #[test]
    fn a_node_is_called_where_its_peers_reach_it() {
        let endpoint = endpoint_of(&instance("node-3", Some("h3:7402"))).expect("it is a node");
        assert_eq!((endpoint.address(), endpoint.is_draining()), ("h3:7402", false));
        assert_eq!(node_of(endpoint.id()), Some(NodeId::new(3)));
        let state = InstanceState::Draining.into();
        let draining = Instance { state, ..instance("node-3", Some("h3:7402")) };
        assert!(endpoint_of(&draining).expect("it is a node").is_draining());
        for (id, address) in
            [("node-3", None), ("node-3", Some("nowhere")), ("mine", Some("h:1")), ("node-x", None)]
        {
            assert_eq!(endpoint_of(&instance(id, address)), None, "{id} at {address:?}");
        }
    }

    #[test]
    fn only_a_verdict_on_the_read_is_handed_to_the_client() {
        for verdict in [Code::InvalidArgument, Code::OutOfRange, Code::NotFound] {
            assert!(is_about_the_read(verdict), "{verdict:?}");
        }
        for other in
            [Code::Unavailable, Code::DeadlineExceeded, Code::ResourceExhausted, Code::Internal]
        {
            assert!(!is_about_the_read(other), "{other:?}");
        }
    }
}
