//! One instance of the greeter: a gRPC server that registers itself for as long as it runs.
//!
//! It has a runtime of its own, so that it can be killed inside this process: everything of it stops
//! where it stands, its registration included.

use std::{
    error::Error,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use pb::{
    GreetRequest, GreetResponse,
    greeter_service_server::{GreeterService, GreeterServiceServer},
};
use quorate::client::{self, Client, Registration};
use tokio::{
    net::TcpListener,
    runtime::Runtime,
    time::{Instant, sleep_until},
};
use tonic::{
    Request, Response, Status,
    transport::{Server, server::TcpIncoming},
};

use crate::SERVICE;

/// The messages and stubs, made by `build.rs` from `greeter.proto`.
#[allow(missing_docs, unreachable_pub, clippy::all)]
pub(crate) mod pb {
    tonic::include_proto!("greeter.v1");
}

/// How long a killed instance stays registered.
const TTL: Duration = Duration::from_secs(2);

/// A running instance. Dropping it kills it.
pub(crate) struct Instance {
    greeter: Arc<Greeter>,
    registration: Option<Registration>,
    runtime: Option<Runtime>,
}

#[derive(Debug)]
struct Greeter {
    name: &'static str,
    delay_millis: AtomicU64,
}

struct Serves(Arc<Greeter>);

#[tonic::async_trait]
impl GreeterService for Serves {
    async fn greet(
        &self,
        request: Request<GreetRequest>,
    ) -> Result<Response<GreetResponse>, Status> {
        let delay = Duration::from_millis(self.0.delay_millis.load(Relaxed));
        sleep_until(Instant::now() + delay).await;
        let greeting = format!("{} greets {}", self.0.name, request.into_inner().name);
        Ok(Response::new(GreetResponse { greeting }))
    }
}

impl Instance {
    /// Serves at an address that the system chooses, and registers there.
    pub(crate) async fn start(
        client: Client,
        name: &'static str,
        delay: Duration,
    ) -> Result<Self, Box<dyn Error>> {
        let greeter = Arc::new(Greeter { name, delay_millis: AtomicU64::new(0) });
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let serves = Serves(Arc::clone(&greeter));
        let started = runtime.spawn(async move {
            let address = serve(serves).await?;
            let registering = client.discovery().announce(SERVICE, address.to_string());
            let registration = registering.instance_id(name).ttl(TTL).await?;
            Ok::<_, Box<dyn Error + Send + Sync>>(registration)
        });
        let registration = started.await?.map_err(|error| error as Box<dyn Error>)?;
        let instance = Self { greeter, registration: Some(registration), runtime: Some(runtime) };
        instance.answers_in(delay);
        Ok(instance)
    }

    pub(crate) fn answers_in(&self, delay: Duration) {
        self.greeter.delay_millis.store(delay.as_millis() as u64, Relaxed);
    }

    /// Tells everyone that it takes no new calls.
    pub(crate) async fn drain(&self) -> Result<(), client::Error> {
        match &self.registration {
            Some(registration) => registration.drain().await.map(drop),
            None => Ok(()),
        }
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
        // What keeps it registered ended with the runtime: nobody deregisters it.
        drop(self.registration.take());
    }
}

async fn serve(serves: Serves) -> Result<SocketAddr, std::io::Error> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
    let address = listener.local_addr()?;
    // Without it Nagle's algorithm and delayed acknowledgements add 40 ms to every few calls.
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    let server = Server::builder().add_service(GreeterServiceServer::new(serves));
    tokio::spawn(server.serve_with_incoming(incoming));
    Ok(address)
}
