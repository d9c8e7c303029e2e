//! Real gRPC servers on loopback whose nature can be changed while they serve, and that can be
//! killed: each has a runtime of its own, so that all of its connections go with it.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{net::TcpListener, runtime::Runtime, time::sleep};
use tokio_stream::{StreamExt as _, wrappers::TcpListenerStream};
use tonic::{Request, Response, Status, transport::Server};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse,
    health_server::{Health, HealthServer},
};

/// One backend. Its calls are `grpc.health.v1.Health/Check`, for want of a service of its own.
pub(crate) struct Backend {
    pub(crate) address: SocketAddr,
    nature: Arc<Nature>,
    runtime: Mutex<Option<Runtime>>,
}

#[derive(Default)]
struct Nature {
    delay_micros: AtomicU64,
    fails: AtomicBool,
    taken: AtomicU64,
}

struct Answers(Arc<Nature>);

#[tonic::async_trait]
impl Health for Answers {
    type WatchStream = tokio_stream::Empty<Result<HealthCheckResponse, Status>>;

    async fn check(
        &self,
        _: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        self.0.taken.fetch_add(1, Relaxed);
        if self.0.fails.load(Relaxed) {
            return Err(Status::unavailable("it fails fast"));
        }
        let delay = self.0.delay_micros.load(Relaxed);
        if delay > 0 {
            sleep(Duration::from_micros(delay)).await;
        }
        Ok(Response::new(HealthCheckResponse { status: 1 }))
    }

    async fn watch(
        &self,
        _: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        Err(Status::unimplemented("it is not asked"))
    }
}

impl Backend {
    /// Serves at an address that the system chooses.
    pub(crate) fn start(delay: Duration) -> Self {
        let nature = Arc::new(Nature::default());
        let (runtime, address) = serve(&nature, ([127, 0, 0, 1], 0).into());
        let backend = Self { address, nature, runtime: Mutex::new(Some(runtime)) };
        backend.answers_in(delay);
        backend
    }

    pub(crate) fn answers_in(&self, delay: Duration) {
        self.nature.delay_micros.store(delay.as_micros() as u64, Relaxed);
    }

    pub(crate) fn fails(&self, fails: bool) {
        self.nature.fails.store(fails, Relaxed);
    }

    /// How many calls it took so far.
    pub(crate) fn taken(&self) -> u64 {
        self.nature.taken.load(Relaxed)
    }

    /// Its process is gone: the port is closed and all connections break.
    pub(crate) fn kill(&self) {
        if let Some(runtime) = self.runtime.lock().expect("nothing panics with it").take() {
            runtime.shutdown_background();
        }
    }

    /// Serves again, at the same address.
    pub(crate) fn restart(&self) {
        let (runtime, _) = serve(&self.nature, self.address);
        *self.runtime.lock().expect("nothing panics with it") = Some(runtime);
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.kill();
    }
}

fn serve(nature: &Arc<Nature>, address: SocketAddr) -> (Runtime, SocketAddr) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("threads are to be had");
    let answers = HealthServer::new(Answers(Arc::clone(nature)));
    // Bound with SO_REUSEADDR, off this thread: the caller is inside a runtime itself.
    let (told, address_of) = std::sync::mpsc::channel();
    runtime.spawn(async move {
        let listener = TcpListener::bind(address).await.expect("the port is free");
        let address = listener.local_addr().expect("it is bound");
        told.send(address).expect("it is waited for");
        // Without it Nagle's algorithm and delayed acknowledgements add 40 ms to every few calls.
        let accepted = TcpListenerStream::new(listener).map(|stream| {
            let stream = stream?;
            stream.set_nodelay(true)?;
            Ok::<_, std::io::Error>(stream)
        });
        let served = Server::builder().add_service(answers).serve_with_incoming(accepted);
        served.await.expect("it serves until it is killed");
    });
    let address = address_of.recv().expect("it was bound");
    (runtime, address)
}
