//! A node put together: data directory, members, node, transport, listeners.
//!
//! Everything that can be refused is refused before the node takes part in anything: addresses are
//! bound and the data directory is locked first.

use std::{collections::BTreeMap, sync::Arc};

use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use tonic::service::Routes;

use crate::{
    host::{self, tcp::TcpListener},
    net::{ListenOptions, Tls},
    node::{self, Directory, Handle, NodeOptions, Peer, Running, Tuning},
    observe::Metrics,
    pb::discovery::v1::RegisterRequest,
    raft::Membership,
    server::{
        Addresses, Error, ValidConfig,
        admin::{self, Health},
        listeners,
        registration::Registration,
        requests::{Ending, RequestLayer},
        secure::ConnectionLimits,
        spans::Spans,
    },
    services::{
        self, Limits,
        peer::{LinkLab, PeerOptions, PeerTransport},
    },
    storage::{Bootstrap, DataDir},
};

/// A node that runs and serves. Dropping it without [`Server::stop`] ends it as a crash would.
#[derive(Debug)]
pub struct Server {
    pub(super) addresses: Addresses,
    pub(super) running: Running,
    pub(super) transport: Arc<PeerTransport>,
    pub(super) health: Health,
    pub(super) spans: Spans,
    pub(super) registration: Registration,
    /// Ends requests that could go on.
    pub(super) ending: Ending,
    /// Cancelled first: the node does not report itself healthy or renew its registration any more.
    pub(super) leaving: CancellationToken,
    /// Cancelled next: the client listener takes no more connections.
    pub(super) closing: CancellationToken,
    /// Cancelled last: the peer listener and the admin pages end.
    pub(super) ended: CancellationToken,
    pub(super) clients: AbortOnDropHandle<()>,
    pub(super) peers: AbortOnDropHandle<()>,
    metrics: Metrics,
    certificates: Certificates,
    /// What other nodes ask when they pass a read on.
    _reads: Arc<Routes>,
    _tasks: Vec<AbortOnDropHandle<()>>,
}

/// What the listeners show and demand; plaintext where there is none.
#[derive(Clone, Debug)]
struct Certificates {
    client: Option<Arc<Tls>>,
    peer: Option<Arc<Tls>>,
}

/// The sockets, bound before anything else is touched.
struct Bound {
    client: TcpListener,
    peer: TcpListener,
    admin: TcpListener,
    addresses: Addresses,
}

impl Server {
    /// Starts a node. It serves when this returns; whether it is ready says its `/readyz`.
    ///
    /// # Errors
    /// Where an address is taken, certificates cannot be used, or the data directory is in use,
    /// foreign or damaged.
    pub async fn start(config: ValidConfig) -> Result<Self, Error> {
        let certificates = Certificates::read(&config)?;
        // The directory before the ports: of a node that is started twice it says more than a taken port.
        let bootstrap = if config.bootstrap { Bootstrap::Yes } else { Bootstrap::No };
        let data = DataDir::open(&config.data_dir, config.id, bootstrap)?;
        let bound = bind(&config).await?;
        let spans = Spans::open(&config)?;
        let addresses = bound.addresses;
        let metrics = Metrics::new();
        let lab = config.lab.then(Arc::<LinkLab>::default);
        if lab.is_some() {
            tracing::warn!(node = %config.id, "clients may break this node's links (--lab)");
        }
        let opening = (config.clone(), metrics.clone(), certificates.peer.clone(), lab.clone());
        // Recovery reads the whole log, which may take long.
        let opened = host::blocking(move || {
            open(&opening.0, data, addresses, opening.1, opening.2, opening.3)
        });
        let (running, transport) =
            opened.await.map_err(|error| Error::Start(error.to_string()))??;
        let handle = running.handle().clone();
        transport.start(&handle);
        addresses.write(&config.data_dir).map_err(|why| Error::Io {
            what: format!("{}: the addresses cannot be written", config.data_dir.display()),
            why,
        })?;
        tracing::info!(
            node = %config.id, client = %addresses.client, peer = %addresses.peer,
            admin = %addresses.admin, tls = certificates.client.is_some(),
            peer_tls = certificates.peer.is_some(), "serving"
        );
        let layer =
            |ending| RequestLayer::new(metrics.clone(), ending, config.slow_request, spans.clone());
        let limits = (config.limits, config.connections);
        let parts = (layer, spans.clone(), metrics.clone(), lab);
        let registration = registration(&handle, addresses, config.zone, config.weight);
        let sides = (running, transport, registration);
        Ok(Self::serve(bound, sides, parts, certificates, limits).await)
    }

    async fn serve(
        bound: Bound,
        (running, transport, registration): (Running, Arc<PeerTransport>, Registration),
        (layer, spans, metrics, lab): (
            impl FnOnce(Ending) -> RequestLayer,
            Spans,
            Metrics,
            Option<Arc<LinkLab>>,
        ),
        certificates: Certificates,
        (limits, connections): (Limits, ConnectionLimits),
    ) -> Self {
        let handle = running.handle().clone();
        let (leaving, closing, ended) =
            (CancellationToken::new(), CancellationToken::new(), CancellationToken::new());
        let ending = Ending::default();

        let side = services::client_side(
            handle.clone(),
            Arc::clone(&transport),
            ending.streams.clone(),
            limits,
            lab,
            Some(transport.elsewhere(&handle)),
        );
        let reads = Arc::new(side.routes.clone());
        transport.serve_reads(&reads);
        let layer = layer(ending.clone());
        let (client_options, peer_options) = certificates.options(connections, &metrics);
        let clients = listeners::serve_clients(
            bound.client,
            side.routes,
            layer,
            connections,
            client_options,
            closing.clone(),
        );
        let peer_routes = listeners::peer_routes(&transport).await;
        let peers = listeners::serve_peers(
            bound.peer,
            peer_routes,
            connections,
            peer_options,
            ended.clone(),
        );

        let health = Health::new(handle.clone());
        let pages = axum::serve(bound.admin, admin::router(health.clone()))
            .with_graceful_shutdown(ended.clone().cancelled_owned());
        let mut tasks = vec![
            tokio::spawn(side.health.follow(handle.watch_status(), leaving.clone())),
            tokio::spawn(side.leader.follow(handle.watch_status(), Arc::clone(handle.directory()))),
            tokio::spawn(registration.clone().keep(leaving.clone())),
            tokio::spawn(async move {
                if let Err(error) = pages.await {
                    tracing::error!(%error, "the admin listener ended");
                }
            }),
        ];
        tasks.extend(certificates.all().map(|tls| tokio::spawn(tls.follow(metrics.clone()))));
        Self {
            addresses: bound.addresses,
            running,
            transport,
            health,
            spans,
            registration,
            ending,
            leaving,
            closing,
            ended,
            clients: AbortOnDropHandle::new(clients),
            peers: AbortOnDropHandle::new(peers),
            metrics,
            certificates,
            _reads: reads,
            _tasks: tasks.into_iter().map(AbortOnDropHandle::new).collect(),
        }
    }

    /// The addresses that it is bound to.
    #[must_use]
    pub const fn addresses(&self) -> Addresses {
        self.addresses
    }

    /// The way into the node.
    #[must_use]
    pub const fn handle(&self) -> &Handle {
        self.running.handle()
    }

    /// Reads the certificates again. What does not fit is logged, and what was read before stays;
    /// connections that are open keep what they began with.
    pub fn reload(&self) {
        if self.certificates.all().next().is_none() {
            tracing::info!("nothing to reload");
        }
        for tls in self.certificates.all() {
            tls.reload(&self.metrics);
        }
    }

    /// Waits until the node cannot go on: its disk failed, or its cluster refuses it. For ever while
    /// all is well.
    pub async fn failed(&mut self) -> Error {
        tokio::select! {
            error = self.running.failed() => Error::Node(error),
            words = self.transport.refused() => Error::Refused(words),
        }
    }
}

impl Certificates {
    fn read(config: &ValidConfig) -> Result<Self, Error> {
        let client = config.tls.clone().map(Tls::for_clients).transpose()?;
        let peer = config.peer_tls.clone().map(|peer| Tls::for_peers(peer.files, peer.name));
        let peer = peer.transpose()?;
        if let (Some(client), Some(peer)) = (&client, &peer) {
            Tls::keep_apart(peer, client)?;
        }
        Ok(Self { client, peer })
    }

    fn all(&self) -> impl Iterator<Item = Arc<Tls>> {
        [self.client.clone(), self.peer.clone()].into_iter().flatten()
    }

    /// How the client listener and the peer listener serve.
    fn options(
        &self,
        limits: ConnectionLimits,
        metrics: &Metrics,
    ) -> (ListenOptions, ListenOptions) {
        let options = |listener, connections_max, tls: &Option<Arc<Tls>>| ListenOptions {
            listener,
            connections_max,
            handshake_timeout: limits.handshake_timeout,
            tls: tls.clone(),
            metrics: metrics.clone(),
        };
        (
            options("client", limits.connections_max, &self.client),
            options("peer", limits.peer_connections_max, &self.peer),
        )
    }
}

async fn bind(config: &ValidConfig) -> Result<Bound, Error> {
    let (client, client_address) = listeners::bind(config.listen).await?;
    let (peer, peer_address) = listeners::bind(config.peer_listen).await?;
    let (admin, admin_address) = listeners::bind(config.admin_listen).await?;
    let addresses = Addresses { client: client_address, peer: peer_address, admin: admin_address };
    Ok(Bound { client, peer, admin, addresses })
}

/// Starts the node over its data directory. Blocks.
fn open(
    config: &ValidConfig,
    data: DataDir,
    addresses: Addresses,
    metrics: Metrics,
    tls: Option<Arc<Tls>>,
    lab: Option<Arc<LinkLab>>,
) -> Result<(Running, Arc<PeerTransport>), Error> {
    let directory = Arc::new(directory(config, &data, addresses));
    let options = PeerOptions {
        incoming_dir: data.incoming_path(),
        snapshot_rate: config.snapshot_rate,
        metrics: metrics.clone(),
        tls,
        lab,
    };
    let transport = PeerTransport::new(Arc::clone(&directory), options);
    let running = node::start(NodeOptions {
        directory,
        data,
        membership: Membership::of(config.initial_cluster.keys().copied()),
        restore: config.restore.clone(),
        transport: Arc::clone(&transport) as _,
        tuning: Tuning {
            heartbeat_interval: config.heartbeat_interval,
            election_timeout_min: config.election_timeout_min,
            election_timeout_max: config.election_timeout_max,
            retained_log_bytes: config.retained_log_bytes,
            min_free_disk: config.min_free_disk,
            calls_max: config.limits.calls_max,
            waiters_max: config.limits.waits_max,
            ..Tuning::default()
        },
        metrics,
    })?;
    Ok((running, transport))
}

/// Who this node is and whom it knows at its start.
fn directory(config: &ValidConfig, data: &DataDir, addresses: Addresses) -> Directory {
    let identity = data.identity();
    let told = |said: &Option<String>, bound: std::net::SocketAddr| {
        said.clone().unwrap_or_else(|| bound.to_string())
    };
    let client_address = told(&config.advertise, addresses.client);
    let peer_address = told(&config.peer_advertise, addresses.peer);
    let mut peers: BTreeMap<_, _> = config
        .initial_cluster
        .iter()
        .map(|(id, address)| (*id, Peer { peer_address: address.clone(), ..Peer::default() }))
        .collect();
    let own = Peer {
        peer_address: peer_address.clone(),
        client_address: client_address.clone(),
        incarnation: Some(identity.incarnation),
    };
    peers.insert(config.id, own);
    Directory::new(
        config.id,
        identity.incarnation,
        client_address,
        peer_address,
        identity.cluster_id,
        peers,
    )
}

fn registration(handle: &Handle, addresses: Addresses, zone: String, weight: u32) -> Registration {
    let directory = handle.directory();
    let metadata = [
        ("peer_address", directory.peer_address.clone()),
        ("admin_address", addresses.admin.to_string()),
        ("version", env!("CARGO_PKG_VERSION").to_owned()),
    ];
    let metadata = metadata.map(|(key, value)| (key.to_owned(), value)).into();
    let address = directory.client_address.clone();
    let instance =
        RegisterRequest { address, zone, weight, metadata, ..RegisterRequest::default() };
    Registration::new(handle.clone(), instance)
}
