//! What a connection says first, and how long that may take.
//!
//! HTTP/2's own probes begin only after the client's preface; until then a connection that says
//! nothing would hold its place for ever. Afterwards nothing is left of this but an empty option.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use tokio::time::Sleep;

use crate::net::{Fault, incoming::Desk};

/// How many bytes the preface of HTTP/2 has.
const PREFACE_BYTES: usize = 24;

/// What a TLS record of a handshake begins with.
const TLS_HANDSHAKE: u8 = 0x16;

/// Watches over the first bytes of one connection.
#[derive(Debug)]
pub(super) struct FirstBytes {
    seen: usize,
    deadline: Pin<Box<Sleep>>,
    from: SocketAddr,
    plain: bool,
    desk: Arc<Desk>,
}

impl FirstBytes {
    pub(super) fn new(desk: &Arc<Desk>, from: SocketAddr, plain: bool) -> Box<Self> {
        let deadline = Box::pin(tokio::time::sleep_until(desk.deadline()));
        Box::new(Self { seen: 0, deadline, from, plain, desk: Arc::clone(desk) })
    }

    /// Takes note of bytes that were read; none is the end. Returns whether all of it was seen.
    pub(super) fn read(&mut self, bytes: &[u8]) -> bool {
        if self.plain && self.seen == 0 && bytes.first() == Some(&TLS_HANDSHAKE) {
            self.desk.refuse(self.from, Fault::Tls, "");
        }
        self.seen += bytes.len();
        bytes.is_empty() || self.seen >= PREFACE_BYTES
    }

    /// Nothing is there to be read. An error when that is so for too long.
    pub(super) fn poll_patience(&mut self, context: &mut Context<'_>) -> Poll<io::Error> {
        self.deadline.as_mut().poll(context).map(|()| {
            self.desk.refuse(self.from, Fault::TooSlow, "");
            io::Error::from(io::ErrorKind::TimedOut)
        })
    }
}
