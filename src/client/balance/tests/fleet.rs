//! Backends without sockets whose nature a test changes while they serve.

use std::{
    fmt,
    future::Future,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU32, Ordering},
    },
};

use bytes::{BufMut as _, Bytes, BytesMut};
use http::{Extensions, HeaderMap, Request, Response};
use http_body_util::{BodyExt as _, StreamBody};
use prost::Message as _;
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
    time::{Instant, sleep_until, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status, body::Body};
use tonic_health::pb::{HealthCheckResponse, health_check_response::ServingStatus};
use tower::Service as _;

use crate::{
    client::{
        Error,
        balance::{
            Balance, BoxError, BoxFuture, CallError, Connect, Connection, Endpoint, Resolver, View,
        },
    },
    types::Duration,
};

/// Far longer than anything in these tests takes, in virtual time.
const LIMIT: Duration = Duration::from_secs(600);

/// How a backend behaves.
#[derive(Clone, Debug)]
pub(super) struct Nature {
    pub(super) connects_in: Duration,
    pub(super) refuses: bool,
    pub(super) answers_in: Duration,
    /// What it answers with, in trailers behind an empty body.
    pub(super) code: Code,
    pub(super) takes_nothing: bool,
    /// Its answers end before their status.
    pub(super) truncates: bool,
    /// What it says of its own health.
    pub(super) health: Says,
}

/// What a backend answers to who watches its health.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Says {
    /// It has no such API.
    Unimplemented,
    Serving,
    NotServing,
}

impl Default for Nature {
    fn default() -> Self {
        Self {
            connects_in: Duration::from_millis(1),
            refuses: false,
            answers_in: Duration::from_millis(1),
            code: Code::Ok,
            takes_nothing: false,
            truncates: false,
            health: Says::Unimplemented,
        }
    }
}

/// One backend.
#[derive(Debug)]
struct Server {
    nature: watch::Sender<Nature>,
    /// Cut when it is killed.
    life: Mutex<CancellationToken>,
    connections: AtomicU32,
    taken: AtomicU32,
    served: AtomicU32,
    in_flight: AtomicU32,
}

/// Some backends, and the list of them that a resolver tells.
#[derive(Clone)]
pub(super) struct Fleet {
    servers: Arc<Vec<Arc<Server>>>,
    list: watch::Sender<Told>,
}

/// What the resolver tells, and whether it is away.
#[derive(Debug, Default)]
struct Told {
    endpoints: Vec<Endpoint>,
    away: bool,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no test panics with it")
}

impl Fleet {
    pub(super) fn of(count: usize) -> Self {
        let endpoints = (0..count)
            .map(|at| Endpoint::new(format!("n{at}:1")).expect("well formed").in_zone("z"));
        let server = || {
            Arc::new(Server {
                nature: watch::Sender::default(),
                life: Mutex::default(),
                connections: AtomicU32::new(0),
                taken: AtomicU32::new(0),
                served: AtomicU32::new(0),
                in_flight: AtomicU32::new(0),
            })
        };
        Self {
            servers: Arc::new((0..count).map(|_| server()).collect()),
            list: watch::Sender::new(Told { endpoints: endpoints.collect(), away: false }),
        }
    }

    pub(super) fn list(&self) -> List {
        let mut told = self.list.subscribe();
        told.mark_changed();
        List(told)
    }

    pub(super) fn endpoints(&self) -> Vec<Endpoint> {
        self.list.borrow().endpoints.clone()
    }

    /// The resolver tells another list; it is back if it was away.
    pub(super) fn tell(&self, change: impl FnOnce(&mut Vec<Endpoint>)) {
        self.list.send_modify(|told| {
            told.away = false;
            change(&mut told.endpoints);
        });
    }

    /// The resolver fails until it tells another list.
    pub(super) fn lose_resolver(&self) {
        self.list.send_modify(|told| told.away = true);
    }

    pub(super) fn change(&self, at: usize, change: impl FnOnce(&mut Nature)) {
        self.servers[at].nature.send_modify(change);
    }

    pub(super) fn each(&self, change: impl Fn(&mut Nature)) {
        (0..self.servers.len()).for_each(|at| self.change(at, &change));
    }

    /// The backend's process is gone: its connections break, new ones are refused.
    pub(super) fn kill(&self, at: usize) {
        self.change(at, |nature| nature.refuses = true);
        locked(&self.servers[at].life).cancel();
    }

    pub(super) fn revive(&self, at: usize) {
        *locked(&self.servers[at].life) = CancellationToken::new();
        self.change(at, |nature| nature.refuses = false);
    }

    fn counts(&self, count: impl Fn(&Server) -> &AtomicU32) -> Vec<u32> {
        self.servers.iter().map(|server| count(server).load(Ordering::Relaxed)).collect()
    }

    /// Calls that each backend took.
    pub(super) fn taken(&self) -> Vec<u32> {
        self.counts(|server| &server.taken)
    }

    /// Calls that each backend answered with OK.
    pub(super) fn served(&self) -> Vec<u32> {
        self.counts(|server| &server.served)
    }

    pub(super) fn connections(&self) -> Vec<u32> {
        self.counts(|server| &server.connections)
    }

    pub(super) fn in_flight(&self, at: usize) -> u32 {
        self.counts(|server| &server.in_flight)[at]
    }

    pub(super) async fn call(&self, balance: &Balance) -> Result<(), Status> {
        self.call_with(balance, |_| {}).await
    }

    pub(super) async fn call_within(
        &self,
        balance: &Balance,
        limit: Duration,
    ) -> Result<(), Status> {
        let mut request = request();
        let limit = format!("{}m", limit.as_millis()).parse().expect("digits and a letter");
        request.headers_mut().insert("grpc-timeout", limit);
        answered(balance.clone().call(request).await?).await
    }

    pub(super) async fn call_with(
        &self,
        balance: &Balance,
        hints: impl FnOnce(&mut Extensions),
    ) -> Result<(), Status> {
        let mut request = request();
        hints(request.extensions_mut());
        answered(balance.clone().call(request).await?).await
    }

    pub(super) fn start(&self, balance: &Balance) -> JoinHandle<Result<(), Status>> {
        self.start_with(balance, |_| {})
    }

    pub(super) fn start_with(
        &self,
        balance: &Balance,
        hints: impl FnOnce(&mut Extensions) + Send + 'static,
    ) -> JoinHandle<Result<(), Status>> {
        let (fleet, balance) = (self.clone(), balance.clone());
        tokio::spawn(async move { fleet.call_with(&balance, hints).await })
    }

    /// Waits for a condition, one virtual millisecond after the other.
    async fn wait(&self, what: &str, mut holds: impl AsyncFnMut() -> bool) {
        let waiting = async {
            while !holds().await {
                sleep_until(Instant::now() + Duration::from_millis(1)).await;
            }
        };
        let waited = timeout(LIMIT, waiting).await;
        assert!(waited.is_ok(), "{what}: taken {:?}, served {:?}", self.taken(), self.served());
    }

    pub(super) async fn until_in_flight(&self, count: u32) {
        let all = || self.counts(|server| &server.in_flight).iter().sum::<u32>();
        self.wait("in flight", async || all() == count).await;
    }

    pub(super) async fn until_taken(&self, count: u32) {
        self.wait("taken", async || self.taken().iter().sum::<u32>() >= count).await;
    }

    pub(super) async fn until_disconnected(&self, at: usize) {
        self.wait("disconnected", async || self.connections()[at] == 0).await;
    }

    pub(super) async fn until_view(&self, balance: &Balance, holds: impl Fn(&View) -> bool) {
        self.wait("the view", async || holds(&balance.view())).await;
    }

    /// Calls until the view is like this.
    pub(super) async fn until_view_calling(
        &self,
        balance: &Balance,
        holds: impl Fn(&View) -> bool,
    ) {
        let called = async || {
            let _ = self.call(balance).await;
            holds(&balance.view())
        };
        self.wait("the view", called).await;
    }

    /// Calls until the counts are like this.
    pub(super) async fn until(
        &self,
        what: &str,
        balance: &Balance,
        holds: impl Fn(&[u32]) -> bool,
    ) {
        let called = async || {
            let _ = self.call(balance).await;
            holds(&self.served())
        };
        self.wait(what, called).await;
    }
}

impl fmt::Debug for Fleet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fleet").field("servers", &self.servers.len()).finish()
    }
}

fn request() -> Request<Body> {
    let path = http::Uri::from_static("/test.Service/Call");
    let mut request = Request::new(Body::empty());
    *request.uri_mut() = path;
    request
}

/// Reads an answer to its end, as a client that tonic made does.
async fn answered(response: Response<Body>) -> Result<(), Status> {
    if let Some(status) = Status::from_header_map(response.headers()) {
        return if status.code() == Code::Ok { Ok(()) } else { Err(status) };
    }
    let read = response.into_body().collect().await?;
    let trailers = read.trailers().cloned().unwrap_or_default();
    let status = Status::from_header_map(&trailers).expect("an answer ends with a status");
    if status.code() == Code::Ok { Ok(()) } else { Err(status) }
}

/// Tells the fleet's list.
#[derive(Debug)]
pub(super) struct List(watch::Receiver<Told>);

impl Resolver for List {
    async fn next(&mut self) -> Result<Vec<Endpoint>, Error> {
        match self.0.changed().await {
            Ok(()) => {
                let told = self.0.borrow_and_update();
                if told.away {
                    return Err(Error::unresolved("the resolver is away".to_owned()));
                }
                Ok(told.endpoints.clone())
            }
            Err(_) => std::future::pending().await,
        }
    }
}

impl Connect for Fleet {
    fn connect(&self, endpoint: &Endpoint) -> BoxFuture<Result<Arc<dyn Connection>, BoxError>> {
        let (host, _) = endpoint.address().split_once(':').expect("host:port");
        let at: usize = host.trim_start_matches('n').parse().expect("n and a number");
        let server = Arc::clone(&self.servers[at]);
        Box::pin(async move {
            let connects_in = server.nature.borrow().connects_in;
            sleep_until(Instant::now() + connects_in).await;
            if server.nature.borrow().refuses {
                return Err("refused".into());
            }
            server.connections.fetch_add(1, Ordering::Relaxed);
            let life = locked(&server.life).clone();
            Ok(Arc::new(Wire { server, life }) as Arc<dyn Connection>)
        })
    }
}

struct Wire {
    server: Arc<Server>,
    life: CancellationToken,
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.server.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

/// One call at a backend, counted while it lasts.
struct Serving(Arc<Server>);

impl Drop for Serving {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Connection for Wire {
    fn call(&self, request: Request<Body>) -> BoxFuture<Result<Response<Body>, CallError>> {
        let (server, life) = (Arc::clone(&self.server), self.life.clone());
        Box::pin(async move {
            let nature = server.nature.borrow().clone();
            if nature.takes_nothing || life.is_cancelled() {
                return Err(CallError::NotSent(Box::new(request), "not taken".into()));
            }
            if request.uri().path() == "/grpc.health.v1.Health/Watch" {
                return Ok(health_of(&server, life));
            }
            server.taken.fetch_add(1, Ordering::Relaxed);
            server.in_flight.fetch_add(1, Ordering::Relaxed);
            let serving = Serving(Arc::clone(&server));
            let work = sleep_until(Instant::now() + nature.answers_in);
            if within(life, work).await.is_none() {
                return Err(CallError::Broken("the backend is gone".into()));
            }
            drop(serving);
            if nature.code == Code::Ok {
                server.served.fetch_add(1, Ordering::Relaxed);
            }
            if nature.truncates {
                return Ok(Response::new(Body::empty()));
            }
            let mut trailers = HeaderMap::new();
            Status::new(nature.code, "as told").add_header(&mut trailers).expect("it is ASCII");
            let frames = tokio_stream::once(Ok::<_, Status>(http_body::Frame::trailers(trailers)));
            Ok(Response::new(Body::new(StreamBody::new(frames))))
        })
    }

    fn closed(&self) -> BoxFuture<Option<BoxError>> {
        let life = self.life.clone();
        Box::pin(async move {
            life.cancelled().await;
            None
        })
    }
}

/// The answer to a watch: each change of what it says, until its connection breaks.
fn health_of(server: &Server, life: CancellationToken) -> Response<Body> {
    let mut nature = server.nature.subscribe();
    if nature.borrow().health == Says::Unimplemented {
        return Status::unimplemented("no such service").into_http();
    }
    let (sender, frames) = mpsc::channel(1);
    tokio::spawn(async move {
        while !life.is_cancelled() {
            let says = nature.borrow_and_update().health;
            if sender.send(Ok(health_frame(says))).await.is_err() {
                return;
            }
            tokio::select! {
                () = sender.closed() => return,
                () = life.cancelled() => {}
                _ = nature.wait_for(|nature| nature.health != says) => {}
            }
        }
        let _ = sender.send(Err(Status::unavailable("the backend is gone"))).await;
    });
    Response::new(Body::new(StreamBody::new(ReceiverStream::new(frames))))
}

fn health_frame(says: Says) -> http_body::Frame<Bytes> {
    let status =
        if says == Says::Serving { ServingStatus::Serving } else { ServingStatus::NotServing };
    let answer = HealthCheckResponse { status: status.into() }.encode_to_vec();
    let mut message = BytesMut::new();
    message.put_u8(0); // Not compressed.
    message.put_u32(u32::try_from(answer.len()).expect("a few bytes"));
    message.put_slice(&answer);
    http_body::Frame::data(message.freeze())
}

async fn within<T>(life: CancellationToken, work: impl Future<Output = T>) -> Option<T> {
    life.run_until_cancelled(work).await
}
