//! `quorate.lock.v1.LockService`: locks with fencing tokens.

use prost::Message as _;
use tonic::{Request, Response, Status};

use crate::{
    machine::{self, ChangeKind, Space, View, refusal},
    pb::{
        command::v1::{Reason, command::Op},
        lock::v1::{
            AcquireRequest, AcquireResponse, DescribeRequest, DescribeResponse, ListRequest,
            ListResponse, Lock, LockEvent, ReleaseRequest, ReleaseResponse, RenewRequest,
            RenewResponse, WatchRequest, WatchResponse, lock_event,
            lock_service_server::LockService,
        },
    },
    services::{
        call::{Context, about, expect_result, invalid, read, revision, view_here},
        gate::Call,
        snapshot::opening,
    },
    streaming::{Changes, Update, Updates, follow},
    types::KeyRange,
    wire::status::{from_refusal, from_store_error},
};

/// The service on one node.
#[derive(Clone, Debug)]
pub(crate) struct Locks(pub(crate) Context);

#[tonic::async_trait]
impl LockService for Locks {
    async fn acquire(
        &self,
        mut request: Request<AcquireRequest>,
    ) -> Result<Response<AcquireResponse>, Status> {
        let call = Call::of(&mut request);
        let op = Op::Acquire(request.into_inner());
        machine::validate(&op).map_err(from_refusal)?;
        let Op::Acquire(request) = op else { unreachable!("it was made just above") };
        // Where the caller leaves, this future is dropped, and the node takes the waiter out.
        about(request.name.as_bytes());
        let response = self.0.node.acquire(request, call.deadline).await;
        let response = response.map_err(|refusal| self.0.refused(refusal))?;
        Ok(Response::new(response))
    }

    async fn renew(
        &self,
        mut request: Request<RenewRequest>,
    ) -> Result<Response<RenewResponse>, Status> {
        let call = Call::of(&mut request);
        let RenewRequest { name, fencing_token } = request.into_inner();
        let lost = || {
            let sentence = format!(
                "the lock {name:?} is not held with token {fencing_token}: stop what it guards"
            );
            let refusal = refusal(Reason::WrongFencingToken, sentence);
            from_refusal(refusal.with("lock", &name).with("fencing_token", fencing_token))
        };
        // Held at a moment after the call began, and its session renewed after that.
        let view = self.0.view(false, &call).await?;
        let session = view
            .lock_session(&name, fencing_token)
            .map_err(|error| from_store_error(&error))?
            .ok_or_else(lost)?;
        let ttl =
            self.0.node.renew(session, call.deadline).await.map_err(|refusal| {
                match refusal.reason() {
                    Reason::SessionNotFound => lost(),
                    _ => self.0.refused(refusal),
                }
            })?;
        let ttl = prost_types::Duration::try_from(ttl).ok();
        Ok(Response::new(RenewResponse { name, fencing_token, ttl }))
    }

    async fn release(
        &self,
        mut request: Request<ReleaseRequest>,
    ) -> Result<Response<ReleaseResponse>, Status> {
        let call = Call::of(&mut request);
        expect_result!(self.0.change(Op::Release(request.into_inner()), &call).await?, Release)
    }

    async fn describe(
        &self,
        mut request: Request<DescribeRequest>,
    ) -> Result<Response<DescribeResponse>, Status> {
        let call = Call::of(&mut request);
        let request = request.into_inner();
        if request.name.is_empty() {
            return Err(invalid("name is empty"));
        }
        let view = view_here!(self.0, &request, &call);
        let describe =
            move |view: &View| view.lock(&request.name).map_err(|error| from_store_error(&error));
        Ok(Response::new(read(view, describe).await?))
    }

    async fn list(
        &self,
        mut request: Request<ListRequest>,
    ) -> Result<Response<ListResponse>, Status> {
        let call = Call::of(&mut request);
        let request = request.into_inner();
        let view = view_here!(self.0, &request, &call);
        Ok(Response::new(read(view, move |view| list(view, &request)).await?))
    }

    type WatchStream = Updates<WatchResponse>;

    async fn watch(
        &self,
        mut request: Request<WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let call = Call::of(&mut request);
        let request = request.into_inner();
        if request.name.is_empty() && !request.prefix {
            return Err(invalid("name is empty; an empty prefix watches all locks"));
        }
        let range = if request.prefix {
            KeyRange::prefix(request.name.as_bytes())
        } else {
            KeyRange::single(request.name.as_bytes())
        };
        let view = self.0.view(false, &call).await?;
        let revision = revision(&view)?;
        let held = read(view, move |view| held(view, &request)).await?;
        let pieces = opening(held.into_iter().map(granted), |events, done| WatchResponse {
            events,
            revision: if done { revision.value() } else { 0 },
            caught_up: done,
            fell_behind: false,
        });
        let cursor = Changes::new(self.0.node.clone(), Space::Locks, range).caught_up(revision);
        Ok(Response::new(follow(self.0.terms(call), pieces, cursor, watch_response)))
    }
}

fn list(view: &View, request: &ListRequest) -> Result<ListResponse, Status> {
    view.locks(request).map_err(|error| from_store_error(&error))?.map_err(from_refusal)
}

/// The locks that are held now and that a watch asks for.
fn held(view: &View, watch: &WatchRequest) -> Result<Vec<Lock>, Status> {
    if !watch.prefix {
        let lock = view.lock(&watch.name).map_err(|error| from_store_error(&error))?.lock;
        let held = lock.filter(|lock| lock.holder.is_some());
        return Ok(held.map(|lock| Lock { waiters: Vec::new(), ..lock }).into_iter().collect());
    }
    let mut locks = Vec::new();
    let mut request = ListRequest { prefix: watch.name.clone(), ..Default::default() };
    loop {
        let page = list(view, &request)?;
        locks.extend(page.locks);
        if page.next_page_token.is_empty() {
            return Ok(locks);
        }
        request.page_token = page.next_page_token;
    }
}

fn granted(lock: Lock) -> LockEvent {
    let revision = lock.holder.as_ref().map_or(0, |holder| holder.fencing_token);
    LockEvent { kind: lock_event::Kind::Granted.into(), lock: Some(lock), revision }
}

fn watch_response(update: Update<Changes>) -> WatchResponse {
    let events = update.items.into_iter().map(|change| {
        let revision = change.kv.mod_revision;
        match change.kind {
            ChangeKind::Put => {
                // The machine wrote it; what it wrote it can read.
                let lock = Lock::decode(change.kv.value).unwrap_or_default();
                let kind = lock_event::Kind::Granted.into();
                LockEvent { kind, lock: Some(lock), revision }
            }
            ChangeKind::Delete => {
                let name = String::from_utf8_lossy(&change.kv.key).into_owned();
                let lock = Lock { name, ..Default::default() };
                LockEvent { kind: lock_event::Kind::Freed.into(), lock: Some(lock), revision }
            }
        }
    });
    WatchResponse {
        events: events.collect(),
        revision: update.place.value(),
        caught_up: update.caught_up,
        fell_behind: update.fell_behind,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        machine::Change,
        pb::{kv::v1::KeyValue, lock::v1::Holder},
        types::Revision,
    };

    #[test]
    fn rows_are_told_as_grants_and_releases() {
        let holder = Holder { fencing_token: 7, ..Default::default() };
        let lock = Lock { name: "jobs".to_owned(), holder: Some(holder), ..Default::default() };
        let change = |kind, revision, value| Change {
            space: Space::Locks,
            kind,
            kv: KeyValue {
                key: "jobs".into(),
                value,
                mod_revision: revision,
                ..Default::default()
            },
            replaced: Revision::ZERO,
            prev: None,
        };
        let update = Update {
            items: vec![
                change(ChangeKind::Put, 7, lock.encode_to_vec().into()),
                change(ChangeKind::Delete, 8, Default::default()),
            ],
            place: Revision::new(9),
            caught_up: false,
            fell_behind: false,
        };
        let told = watch_response(update);
        assert_eq!(told.revision, 9);
        assert_eq!(told.events[0], granted(lock));
        assert_eq!(told.events[1].kind(), lock_event::Kind::Freed);
        assert_eq!(told.events[1].revision, 8);
        let freed = told.events[1].lock.as_ref().unwrap();
        assert_eq!((freed.name.as_str(), freed.holder.is_some()), ("jobs", false));
    }
}
