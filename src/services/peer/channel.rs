//! The one place where connections between nodes are made: their limits, windows and timeouts.
//!
//! Windows are fixed and large, never adaptive: h2 closes a connection over many small unread
//! frames when its window is small. A channel stands for one connection; the lanes make a new one
//! when it breaks, and wait a little longer each time.

use std::sync::Arc;

use tokio::time::timeout;
use tonic::transport::{Channel, Endpoint, Server};

use crate::{
    host::tcp,
    net::{Dial, Fault, Tls},
    pb::raft::v1::raft_service_client::RaftServiceClient,
    types::{Duration, Rng},
};

/// The largest message that is read, in bytes. Appends, snapshot chunks and forwarded batches
/// stay well below.
pub(super) const MESSAGE_BYTES_MAX: usize = 8 * 1024 * 1024;

const CONNECTION_WINDOW_BYTES: u32 = 16 * 1024 * 1024;
const STREAM_WINDOW_BYTES: u32 = 4 * 1024 * 1024;

/// How long a TCP connection may take; its HTTP/2 preface may take as long again, and so may the
/// TLS handshake in between.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);

/// A connection that says nothing for this long is probed, and given up after as long again:
/// after a healed partition TCP alone would wait for much longer.
const KEEP_ALIVE: Duration = Duration::from_secs(3);

const BACKOFF_MIN: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(1);

/// Connects to a peer's listener at `host:port`, by TLS where there are certificates.
///
/// # Errors
/// What went wrong, in a sentence.
pub(super) async fn connect(address: &str, tls: Option<&Arc<Tls>>) -> Result<Channel, String> {
    let mut endpoint = Endpoint::from_shared(format!("http://{address}"))
        .map_err(|error| format!("{address:?} is not an address: {error}"))?
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE)
        .keep_alive_while_idle(true);
    let connected = match tls {
        None => timeout(CONNECT_TIMEOUT * 2, tcp::connect(&endpoint)).await,
        Some(tls) => {
            let origin = format!("https://{address}").parse();
            endpoint = endpoint.connect_timeout(CONNECT_TIMEOUT * 2);
            endpoint =
                endpoint.origin(origin.expect("an address after http:// is one after https://"));
            let connecting = endpoint.connect_with_connector(Dial::peer(Arc::clone(tls)));
            timeout(CONNECT_TIMEOUT * 3, connecting).await
        }
    };
    match connected {
        Ok(Ok(channel)) => Ok(channel),
        Ok(Err(error)) => Err(format!("cannot connect to {address}: {}", causes(&error))),
        Err(_) => Err(format!("cannot connect to {address}: it does not answer in time")),
    }
}

/// The client of a connection, with the message limit set.
pub(super) fn client(channel: Channel) -> RaftServiceClient<Channel> {
    RaftServiceClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX)
}

/// A server with the windows and probes that connections between nodes need. The peer listener
/// is to be served by it, through [`incoming`].
#[must_use]
pub fn server_builder() -> Server {
    Server::builder()
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .http2_keepalive_interval(Some(KEEP_ALIVE))
        .http2_keepalive_timeout(Some(KEEP_ALIVE))
}

/// Waits between attempts: doubling, with up to half of it drawn by chance, so that the lanes of
/// a peer that comes back do not all arrive at once.
#[derive(Debug)]
pub(super) struct Backoff {
    rng: Rng,
    next: Duration,
}

impl Backoff {
    pub(super) const fn new(rng: Rng) -> Self {
        Self { rng, next: BACKOFF_MIN }
    }

    /// Starts over: the last attempt led to a connection.
    pub(super) const fn reset(&mut self) {
        self.next = BACKOFF_MIN;
    }

    /// How long to wait before the next attempt.
    pub(super) fn pause(&mut self) -> Duration {
        let pause = self.rng.between(self.next / 2, self.next);
        self.next = (self.next * 2).min(BACKOFF_MAX);
        pause
    }
}

/// An error with what caused it: tonic's own text is only "transport error".
fn causes(error: &(dyn std::error::Error + 'static)) -> String {
    if let Some(fault) = Fault::behind(error) {
        return fault.told().to_owned();
    }
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_up_to_a_bound_and_start_over() {
        let mut backoff = Backoff::new(Rng::new(1));
        let first = backoff.pause();
        assert!(first < BACKOFF_MIN && first >= BACKOFF_MIN / 2);
        for _ in 0..20 {
            assert!(backoff.pause() < BACKOFF_MAX);
        }
        assert!(backoff.pause() >= BACKOFF_MAX / 2);
        backoff.reset();
        assert!(backoff.pause() < BACKOFF_MIN);
    }
}
