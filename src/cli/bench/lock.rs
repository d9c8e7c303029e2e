//! Locks, each client with its own, and one lock that all clients want.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use crate::{
    cli::{
        Error,
        bench::{
            drive::{Drive, Worker},
            options::{LockArgs, Run},
            report::Report,
        },
        lock::to_proto,
    },
    client::{self, Locks},
    pb::lock::v1::{AcquireRequest, AcquireResponse, ReleaseRequest},
};

pub(super) async fn lock(run: &Run, drive: Drive, args: &LockArgs) -> Result<Report, Error> {
    let ttl = Some(to_proto(args.ttl, "--ttl")?);
    let body = |number: u64, mut worker: Worker| {
        let locks = run.client(number).locks();
        let name = format!("{}/{number:05}", run.name);
        async move {
            let (mut last, mut not_grown) = (0, 0_u64);
            while worker.drive.take() {
                let request = AcquireRequest { name: name.clone(), ttl, ..Default::default() };
                let pair = async {
                    let grant = locks.acquire(request).await?;
                    release(&locks, &grant).await?;
                    Ok(grant.fencing_token)
                };
                if let Some(token) = worker.measure(pair).await {
                    not_grown += u64::from(token <= last);
                    last = token;
                }
            }
            (worker, not_grown)
        }
    };
    let (measured, not_grown) = drive.clients(args.load.clients, body).await?;
    let not_grown = not_grown.iter().sum();
    Ok(Report::new(measured).none("notGrown", "tokens that did not grow", not_grown))
}

/// What is known of the one lock by all that want it.
#[derive(Debug, Default)]
pub(super) struct Held {
    last_token: AtomicU64,
    holders: AtomicU64,
    not_grown: AtomicU64,
    together: AtomicU64,
}

pub(super) async fn contend(run: &Run, drive: Drive, args: &LockArgs) -> Result<Report, Error> {
    let ttl = Some(to_proto(args.ttl, "--ttl")?);
    // A waiter that is granted nothing for long gives up, so that the run ends.
    let wait = Some(to_proto(args.load.duration.max(args.ttl), "--duration")?);
    let held = Arc::new(Held::default());
    let body = |number: u64, mut worker: Worker| {
        let locks = run.client(number).locks();
        let name = format!("{}/one", run.name);
        let held = held.clone();
        async move {
            while worker.drive.take() {
                let request =
                    AcquireRequest { name: name.clone(), ttl, wait, ..Default::default() };
                let Some(grant) = worker.measure(locks.acquire(request)).await else { continue };
                held.enter(grant.fencing_token);
                held.leave();
                if let Err(error) = release(&locks, &grant).await {
                    worker.failed(&error);
                }
            }
            (worker, ())
        }
    };
    let (measured, _) = drive.clients(args.load.clients, body).await?;
    Ok(Report::new(measured).none("notGrown", "tokens that did not grow", held.not_grown()).none(
        "together",
        "grants while another held the lock",
        held.together(),
    ))
}

impl Held {
    pub(super) fn enter(&self, token: u64) {
        if self.holders.fetch_add(1, Ordering::SeqCst) > 0 {
            self.together.fetch_add(1, Ordering::SeqCst);
        }
        if self.last_token.fetch_max(token, Ordering::SeqCst) >= token {
            self.not_grown.fetch_add(1, Ordering::SeqCst);
        }
    }

    pub(super) fn leave(&self) {
        self.holders.fetch_sub(1, Ordering::SeqCst);
    }

    /// How many grants came while another held the lock.
    pub(super) fn together(&self) -> u64 {
        self.together.load(Ordering::SeqCst)
    }

    /// How many tokens did not grow.
    pub(super) fn not_grown(&self) -> u64 {
        self.not_grown.load(Ordering::SeqCst)
    }
}

async fn release(locks: &Locks, grant: &AcquireResponse) -> Result<(), client::Error> {
    let AcquireResponse { name, fencing_token, .. } = grant.clone();
    locks.release(ReleaseRequest { name, fencing_token, ..Default::default() }).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_that_does_not_grow_and_two_holders_are_counted() {
        let held = Held::default();
        held.enter(5);
        held.leave();
        held.enter(5);
        held.enter(6);
        assert_eq!(held.not_grown.load(Ordering::SeqCst), 1);
        assert_eq!(held.together.load(Ordering::SeqCst), 1);
    }
}
