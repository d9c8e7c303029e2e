//! A backend in a process of its own, with the server's layers on: it heeds deadlines, bounds what it
//! does at once, and sheds what it cannot do in time.
//!
//! Its one call is `grpc.health.v1.Health/Check`, for want of a service of its own, and takes 5 ms.

use std::{
    env,
    error::Error,
    io::{BufRead as _, BufReader},
    process::{Child, Command, Stdio},
    time::Duration,
};

use quorate::{
    layers::{ConcurrencyLimitLayer, LoadShedLayer, ServerDeadlineLayer},
    resilience::{concurrency_limit, deadline, load_shed},
};
use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    io::AsyncReadExt as _,
    net::TcpListener,
    time::{Instant, sleep_until},
};
use tonic::{
    Request, Response, Status,
    transport::{Server, server::TcpIncoming},
};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse,
    health_server::{Health, HealthServer},
};

/// How long a call takes.
const WORK: Duration = Duration::from_millis(5);

/// A running backend. It ends when this is dropped.
pub(crate) struct Process {
    child: Child,
    pub(crate) address: String,
}

impl Process {
    /// Starts this program as a backend, which says where it serves.
    pub(crate) fn start() -> Result<Self, Box<dyn Error>> {
        let mut child = Command::new(env::current_exe()?)
            .arg("serve")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let stdout = child.stdout.take().ok_or("it has a pipe")?;
        let mut address = String::new();
        BufReader::new(stdout).read_line(&mut address)?;
        Ok(Self { child, address: address.trim().to_owned() })
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // A stopped one takes no other signal to heart.
        let _ = kill_process(self.pid(), Signal::KILL);
        let _ = self.child.wait();
    }
}

struct Answers;

#[tonic::async_trait]
impl Health for Answers {
    type WatchStream = tokio_stream::Empty<Result<HealthCheckResponse, Status>>;

    async fn check(
        &self,
        _: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        sleep_until(Instant::now() + WORK).await;
        Ok(Response::new(HealthCheckResponse { status: 1 }))
    }

    async fn watch(
        &self,
        _: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        Err(Status::unimplemented("ask again instead"))
    }
}

/// Serves until its standard input ends, as it does when the client is gone.
pub(crate) async fn serve() -> Result<(), Box<dyn Error>> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
    println!("{}", listener.local_addr()?);
    let shed = LoadShedLayer::new(load_shed::ValidConfig::default());
    let handle = shed.handle();
    let limit = ConcurrencyLimitLayer::telling(
        concurrency_limit::ValidConfig::default(),
        move |class, delay| handle.observe(class, delay),
    );
    let server = Server::builder()
        .layer(ServerDeadlineLayer::new(deadline::ValidConfig::default()))
        .layer(shed)
        .layer(limit)
        .add_service(HealthServer::new(Answers));
    let served = server.serve_with_incoming(TcpIncoming::from(listener).with_nodelay(Some(true)));
    let mut input = tokio::io::stdin();
    let mut byte = [0];
    tokio::select! {
        served = served => Ok(served?),
        _ = input.read(&mut byte) => Ok(()),
    }
}
