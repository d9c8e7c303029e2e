//! The workloads over connections: put, get, lock, hand-over, and the load before memory is looked
//! at.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use tokio::{task::JoinSet, time::timeout};
use tonic::Status;

use crate::{
    Error,
    cluster::{Cluster, MEMBERS},
    connection::Connection,
    load::{self, Measured, Times, scattered},
    options::{Options, Workload},
};

/// How many puts are under way at once when keys are written before a cell.
const PREPARE_CLIENTS: u64 = 64;

/// How long such a put may take.
const PREPARE_LIMIT: Duration = Duration::from_secs(30);

/// The connections to a cluster and what the clients send.
#[derive(Debug)]
pub struct Bench {
    connections: Vec<Connection>,
    value: Bytes,
    keys: u64,
    sessions: Vec<u64>,
}

impl Bench {
    /// Opens the connections: the first to the leader, the others in turn to all members. So both
    /// systems' leaders get the same part of the load.
    pub async fn open(cluster: &Cluster, leader: usize, options: &Options) -> Result<Self, Error> {
        let mut connections = Vec::new();
        for number in 0..usize::from(options.connections) {
            let endpoint = cluster.endpoint((leader + number) % MEMBERS);
            let opened = Connection::open(cluster.system(), endpoint).await?;
            connections.push(opened.with_request_ids(options.request_ids));
        }
        let value = vec![b'x'; options.value_size].into();
        Ok(Self { connections, value, keys: options.keys, sessions: Vec::new() })
    }

    /// Writes this many values, over the keys in turn.
    pub async fn write(&self, count: u64) -> Result<(), Error> {
        let next = Arc::new(AtomicU64::new(0));
        let mut tasks = JoinSet::new();
        for _ in 0..PREPARE_CLIENTS {
            let (connections, value) = (self.connections.clone(), self.value.clone());
            let (next, keys) = (next.clone(), self.keys);
            tasks.spawn(async move {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= count {
                        return Ok::<_, Error>(());
                    }
                    let at = usize::try_from(number).unwrap_or_default() % connections.len();
                    let put = connections[at].put(key(number % keys), value.clone());
                    timeout(PREPARE_LIMIT, put).await??;
                }
            });
        }
        while let Some(ended) = tasks.join_next().await {
            ended??;
        }
        Ok(())
    }

    /// Runs one cell.
    pub async fn cell(
        mut self,
        workload: Workload,
        clients: usize,
        times: Times,
    ) -> Result<(Self, Measured), Error> {
        if matches!(workload, Workload::Lock | Workload::Handover) {
            for client in 0..clients {
                self.sessions.push(self.connection(client, 0).open_session().await?);
            }
        }
        let shared = Arc::new(self);
        let measured = match workload {
            Workload::Put => load::run(clients, times, shared.clone(), put).await,
            Workload::Get => load::run(clients, times, shared.clone(), get).await,
            Workload::Lock => load::run(clients, times, shared.clone(), own_lock).await,
            Workload::Handover => load::run(clients, times, shared.clone(), one_lock).await,
            other => return Err(format!("{other:?} is no closed loop").into()),
        }?;
        let mut bench = Arc::into_inner(shared).ok_or("a client has not ended")?;
        for session in std::mem::take(&mut bench.sessions) {
            bench.connection(0, 0).close_session(session).await?;
        }
        Ok((bench, measured))
    }

    /// A client goes from connection to connection, so that few clients use all of them too.
    fn connection(&self, client: usize, sequence: u64) -> &Connection {
        let turn = usize::try_from(sequence).unwrap_or_default();
        &self.connections[client.wrapping_add(turn) % self.connections.len()]
    }
}

async fn put(bench: Arc<Bench>, client: usize, sequence: u64) -> Result<(), Status> {
    let key = key(scattered(client, sequence) % bench.keys);
    bench.connection(client, sequence).put(key, bench.value.clone()).await
}

async fn get(bench: Arc<Bench>, client: usize, sequence: u64) -> Result<(), Status> {
    let key = key(scattered(client, sequence) % bench.keys);
    match bench.connection(client, sequence).get(key).await? {
        true => Ok(()),
        false => Err(Status::data_loss("a key that was written is not there")),
    }
}

async fn own_lock(bench: Arc<Bench>, client: usize, sequence: u64) -> Result<(), Status> {
    pair(&bench, client, sequence, &format!("rivals/lock/{client:05}")).await
}

async fn one_lock(bench: Arc<Bench>, client: usize, sequence: u64) -> Result<(), Status> {
    pair(&bench, client, sequence, "rivals/one").await
}

async fn pair(bench: &Bench, client: usize, sequence: u64, name: &str) -> Result<(), Status> {
    let connection = bench.connection(client, sequence);
    let held = connection.acquire(name, bench.sessions[client]).await?;
    connection.release(held).await
}

fn key(number: u64) -> Bytes {
    format!("rivals/key/{number:08}").into()
}
