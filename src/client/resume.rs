//! A stream that takes itself up again where it stood when its connection breaks.
//!
//! The request carries the place: each response moves it on, and a break opens a new stream with
//! it, on another endpoint where need be. Nothing is told twice and nothing is left out.

use std::{fmt, future::Future, sync::Arc};

use tokio::time::{Instant, timeout_at};
use tonic::{Status, Streaming};

use crate::client::{
    Client, Error,
    balance::Picked,
    call::{Attempts, Effect, Limit},
};

/// What is to be done with a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outlook {
    /// Hand it on.
    Deliver,
    /// It holds no news.
    Skip,
    /// Hand it on; nothing follows.
    Last,
}

/// A request for a stream, which knows where to go on.
pub trait Resume: Clone + Send {
    /// What the stream holds.
    type Response: Send;

    /// Whether the stream ends of itself once everything was delivered.
    const ENDS: bool = false;

    /// Opens the stream at the request's place.
    fn open(
        self,
        node: Picked,
    ) -> impl Future<Output = Result<Streaming<Self::Response>, Status>> + Send;

    /// A new stream was opened, not the first.
    fn reopened(&mut self) {}

    /// Moves the place on behind a response.
    fn advance(&mut self, response: &mut Self::Response) -> Outlook;
}

/// A stream that resumes.
#[must_use = "nothing is streamed before `next` is called"]
pub struct Resuming<Q: Resume> {
    client: Client,
    request: Q,
    stream: Option<(Arc<str>, Instant, Streaming<Q::Response>)>,
    opened: bool,
    ended: bool,
    breaks: u64,
}

impl<Q: Resume> Resuming<Q> {
    pub(super) const fn new(client: Client, request: Q) -> Self {
        Self { client, request, stream: None, opened: false, ended: false, breaks: 0 }
    }

    /// The next response; `None` at the end of a stream that has one. Cancel-safe: nothing
    /// is told twice, and nothing left out.
    ///
    /// # Errors
    /// What the node refuses the request with, such as OUT_OF_RANGE where history was compacted;
    /// UNAVAILABLE where no node took it within the client's timeout at first, and within its
    /// patience once it was established.
    pub async fn next(&mut self) -> Result<Option<Q::Response>, Error> {
        while !self.ended {
            let Some((at, since, stream)) = &mut self.stream else {
                self.open().await?;
                continue;
            };
            let broken = match stream.message().await {
                Ok(Some(mut response)) => match self.request.advance(&mut response) {
                    Outlook::Skip => continue,
                    Outlook::Deliver => return Ok(Some(response)),
                    Outlook::Last => {
                        self.ended = true;
                        return Ok(Some(response));
                    }
                },
                Ok(None) if Q::ENDS => break,
                Ok(None) => Error::broken("the stream ended"),
                Err(status) => status.into(),
            };
            let (at, since) = (Arc::clone(at), *since);
            self.stream = None;
            if !broken.is_passing() {
                return Err(broken);
            }
            self.breaks += 1;
            let mut attempts = Attempts::new(&self.client, Effect::Read, self.limit());
            attempts.failed(Some(&at), since, broken).await?;
        }
        self.ended = true;
        self.stream = None;
        Ok(None)
    }

    /// How often the stream broke and was taken up again.
    #[must_use]
    pub const fn breaks(&self) -> u64 {
        self.breaks
    }

    const fn limit(&self) -> Limit {
        let Client { timeout, patience, .. } = self.client;
        let first = if self.opened { patience } else { timeout };
        Limit::Outage { first, established: first }
    }

    async fn open(&mut self) -> Result<(), Error> {
        let mut attempts = Attempts::new(&self.client, Effect::Read, self.limit());
        loop {
            let node = match self.client.pick(&attempts).await {
                Ok(node) => node,
                Err(error) => {
                    attempts.failed(None, Instant::now(), error).await?;
                    continue;
                }
            };
            let started = Instant::now();
            let deadline = started + self.client.timeout;
            let opening = self.request.clone().open(node.clone());
            let error = match timeout_at(deadline, opening).await {
                Ok(Ok(stream)) => {
                    if std::mem::replace(&mut self.opened, true) {
                        self.request.reopened();
                    }
                    self.stream = Some((node.address().into(), started, stream));
                    return Ok(());
                }
                Ok(Err(status)) => status.into(),
                Err(_) if self.opened => Error::broken("no answer"),
                Err(_) => return Err(attempts.expired()),
            };
            // It was never established, however long that took.
            attempts.failed(Some(node.address()), Instant::now(), error).await?;
        }
    }
}

impl<Q: Resume + fmt::Debug> fmt::Debug for Resuming<Q> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resuming")
            .field("request", &self.request)
            .field("breaks", &self.breaks)
            .finish_non_exhaustive()
    }
}
