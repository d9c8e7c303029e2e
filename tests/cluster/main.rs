//! Whole clusters: in this process over real TCP, and as processes of the real binary.
//!
//! Every wait is for a condition and has a deadline; the deadlines are ten times what is expected,
//! so that a slow machine fails nothing.

mod backup;
mod basics;
mod catch_up;
mod commands;
mod directories;
mod drain;
mod events;
mod failover;
mod guards;
mod leader_hint;
mod load;
mod locks;
mod moves;
mod passed_reads;
mod pauses;
mod put_streams;
mod reads;
mod registry;
mod room;
mod slow_requests;
#[cfg(feature = "otel")]
mod spans;
mod up;
mod watches;

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use tokio::time::{Instant, interval};

/// The binary under test.
const PROGRAM: &str = env!("CARGO_BIN_EXE_quorate");

/// How long to wait for anything.
const LIMIT: Duration = Duration::from_secs(30);

/// Waits until `done` gives something.
async fn eventually<T>(what: &str, mut done: impl AsyncFnMut() -> Option<T>) -> T {
    let give_up = Instant::now() + LIMIT;
    let mut ticks = interval(Duration::from_millis(20));
    loop {
        ticks.tick().await;
        if let Some(value) = done().await {
            return value;
        }
        assert!(Instant::now() < give_up, "waited {LIMIT:?} for {what}");
    }
}

/// The status code and the body of a page of the admin listener.
fn page(address: SocketAddr, path: &str) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(LIMIT)).ok()?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: quorate\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let code = head.split(' ').nth(1)?.parse().ok()?;
    Some((code, body.to_owned()))
}

/// A span as requests carry it.
fn proto(span: Duration) -> prost_types::Duration {
    prost_types::Duration::try_from(span).expect("a short span")
}
