//! A node inside the test's process, on a runtime of its own.
//!
//! The runtime is what makes a kill possible: shutting it down drops every task of the node where
//! it stands, as a crash would, and the data directory is left as it is.

use tokio::{runtime::Runtime, time::Instant};

use crate::{
    server::{Scope, Server, ValidConfig},
    types::Duration,
};

/// How long a node may take to start: a killed one's locks and ports are let go meanwhile.
const START_LIMIT: Duration = Duration::from_secs(10);

/// How long to wait between attempts to start.
const RETRY_INTERVAL: Duration = Duration::from_millis(20);

/// How many threads a node gets for its tasks.
const THREADS: usize = 2;

/// A node that runs in this process. Dropping it kills it.
#[derive(Debug)]
pub(super) struct InProcess {
    server: Option<Box<Server>>,
    runtime: Option<Runtime>,
}

impl InProcess {
    /// Starts a node, again and again while what it needs is still held by the one before.
    pub(super) async fn start(config: ValidConfig) -> Result<Self, String> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(THREADS)
            .thread_name(format!("node-{}", config.id))
            .enable_all()
            .build()
            .map_err(|error| format!("no runtime: {error}"))?;
        let give_up = Instant::now() + START_LIMIT;
        let mut node = Self { server: None, runtime: Some(runtime) };
        loop {
            let runtime = node.runtime.as_ref().expect("it was just put there");
            let started = runtime.spawn(Server::start(config.clone())).await;
            match started.map_err(|error| format!("the start panicked: {error}"))? {
                Ok(server) => {
                    node.server = Some(Box::new(server));
                    return Ok(node);
                }
                Err(error) if Instant::now() > give_up => return Err(error.to_string()),
                Err(_) => tokio::time::sleep_until(Instant::now() + RETRY_INTERVAL).await,
            }
        }
    }

    /// Drains it.
    pub(super) async fn stop(mut self) {
        if let (Some(server), Some(runtime)) = (self.server.take(), self.runtime.as_ref()) {
            let stopped = runtime.spawn(server.stop(Scope::Node)).await;
            stopped.expect("a drain does not panic");
        }
    }
}

impl Drop for InProcess {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Within the runtime, because what the server owns may want to spawn when it goes.
            let entered = runtime.enter();
            drop(self.server.take());
            drop(entered);
            runtime.shutdown_background();
        }
    }
}
