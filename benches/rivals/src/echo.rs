//! A bare echo over gRPC between two processes: what is left when a system does nothing.

use std::{net::SocketAddr, path::Path, pin::Pin, sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::{
    net::TcpListener,
    time::{Instant, sleep_until},
};
use tokio_stream::{Stream, StreamExt as _, wrappers::TcpListenerStream};
use tonic::{
    Request, Response, Status, Streaming,
    transport::{Channel, Server},
};

use crate::{
    Error,
    connection::channel,
    load::{self, Measured, Times},
    pb::echo::{
        Message,
        echo_service_client::EchoServiceClient,
        echo_service_server::{EchoService, EchoServiceServer},
    },
    process::Process,
};

/// How long the server may take to listen.
const START_LIMIT: Duration = Duration::from_secs(10);

#[derive(Debug)]
struct Echo;

#[tonic::async_trait]
impl EchoService for Echo {
    type StreamStream = Pin<Box<dyn Stream<Item = Result<Message, Status>> + Send>>;

    async fn unary(&self, request: Request<Message>) -> Result<Response<Message>, Status> {
        Ok(Response::new(request.into_inner()))
    }

    async fn stream(
        &self,
        request: Request<Streaming<Message>>,
    ) -> Result<Response<Self::StreamStream>, Status> {
        Ok(Response::new(Box::pin(request.into_inner())))
    }
}

/// Answers until the process is killed.
pub async fn serve(listen: SocketAddr) -> Result<(), Error> {
    let listener = TcpListener::bind(listen).await?;
    let incoming = TcpListenerStream::new(listener).map(|connection| {
        let connection = connection?;
        connection.set_nodelay(true)?;
        Ok::<_, std::io::Error>(connection)
    });
    Server::builder()
        .add_service(EchoServiceServer::new(Echo))
        .serve_with_incoming(incoming)
        .await?;
    Ok(())
}

/// An echo server and the connections to it.
#[derive(Debug)]
pub struct Bench {
    _server: Process,
    connections: Vec<Channel>,
    value: Bytes,
}

impl Bench {
    pub async fn open(dir: &Path, connections: u16, value_size: usize) -> Result<Self, Error> {
        let listen = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let args = ["echo-server".to_owned(), listen.to_string()];
        let mut server = Process::start(&std::env::current_exe()?, &args, &dir.join("echo.log"))?;
        let give_up = Instant::now() + START_LIMIT;
        let mut opened = Vec::new();
        while opened.len() < usize::from(connections) {
            match channel(listen).await {
                Ok(channel) => opened.push(channel),
                Err(error) if server.has_ended() || Instant::now() > give_up => return Err(error),
                Err(_) => sleep_until(Instant::now() + Duration::from_millis(20)).await,
            }
        }
        let value = vec![b'x'; value_size].into();
        Ok(Self { _server: server, connections: opened, value })
    }

    pub async fn cell(self: &Arc<Self>, clients: usize, times: Times) -> Result<Measured, Error> {
        load::run(clients, times, self.clone(), unary).await
    }

    /// Messages a second through one stream, there and back.
    pub async fn stream(&self, times: Times) -> Result<f64, Error> {
        let message = Message { value: self.value.clone() };
        let until = Instant::now() + times.warm_up + times.measured;
        let from = Instant::now() + times.warm_up;
        let sent = tokio_stream::iter(std::iter::repeat(message))
            .take_while(move |_| Instant::now() < until);
        let mut client = EchoServiceClient::new(self.connections[0].clone());
        let mut answers = client.stream(sent).await?.into_inner();
        let mut count = 0_u32;
        while answers.message().await?.is_some() {
            let now = Instant::now();
            count += u32::from(now >= from && now < until);
        }
        Ok(f64::from(count) / times.measured.as_secs_f64())
    }
}

async fn unary(bench: Arc<Bench>, client: usize, sequence: u64) -> Result<(), Status> {
    let turn = usize::try_from(sequence).unwrap_or_default();
    let channel = bench.connections[client.wrapping_add(turn) % bench.connections.len()].clone();
    let message = Message { value: bench.value.clone() };
    EchoServiceClient::new(channel).unary(message).await.map(drop)
}
