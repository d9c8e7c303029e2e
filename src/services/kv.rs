//! `quorate.kv.v1.KvService`: the revisioned keyspace.

use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use crate::{
    machine::{ChangeKind, Space, View, validate_range},
    pb::{
        command::v1::command::Op,
        kv::v1::{
            CompactRequest, CompactResponse, DeleteRangeRequest, DeleteRangeResponse, KvEvent,
            PutRequest, PutResponse, PutStreamRequest, PutStreamResponse, RangeRequest,
            RangeResponse, TxnRequest, TxnResponse, WatchRequest, WatchResponse, kv_event,
            kv_service_server::KvService,
        },
    },
    services::{
        call::{Context, about, expect_result, read, revision, view_here},
        gate::Call,
        put_stream::PutStream,
    },
    streaming::{Changes, Terms, Update, Updates, follow, updates},
    types::{KeyRange, Revision},
    wire::status::{from_refusal, from_store_error},
};

/// The service on one node.
#[derive(Clone, Debug)]
pub(crate) struct Kv(pub(crate) Context);

#[tonic::async_trait]
impl KvService for Kv {
    async fn range(
        &self,
        mut request: Request<RangeRequest>,
    ) -> Result<Response<RangeResponse>, Status> {
        let call = Call::of(&mut request);
        let request = request.into_inner();
        validate_range(&request).map_err(from_refusal)?;
        about(&request.key);
        // One key is read at once; a range may take a while.
        let single = request.range_end.is_empty();
        if !single {
            call.admit_list()?;
        }
        let view = view_here!(self.0, &request, &call);
        let range = move |view: &View| {
            view.range(&request).map_err(|error| from_store_error(&error))?.map_err(from_refusal)
        };
        let response = if single { range(&view)? } else { read(view, range).await? };
        Ok(Response::new(response))
    }

    async fn put(&self, mut request: Request<PutRequest>) -> Result<Response<PutResponse>, Status> {
        let call = Call::of(&mut request);
        expect_result!(self.0.change(Op::Put(request.into_inner()), &call).await?, Put)
    }

    type PutStreamStream = Updates<PutStreamResponse>;

    async fn put_stream(
        &self,
        mut request: Request<Streaming<PutStreamRequest>>,
    ) -> Result<Response<Self::PutStreamStream>, Status> {
        let call = Call::of(&mut request);
        let (context, requests) = (self.0.clone(), request.into_inner());
        // What is under way when the node drains is acknowledged first: the stream ends itself.
        let terms = Terms { drain: CancellationToken::new(), ..self.0.terms(call) };
        let run = move |queue| PutStream::new(context, requests, queue).run();
        Ok(Response::new(updates(terms, run)))
    }

    async fn delete_range(
        &self,
        mut request: Request<DeleteRangeRequest>,
    ) -> Result<Response<DeleteRangeResponse>, Status> {
        let call = Call::of(&mut request);
        let op = Op::DeleteRange(request.into_inner());
        expect_result!(self.0.change(op, &call).await?, DeleteRange)
    }

    async fn txn(&self, mut request: Request<TxnRequest>) -> Result<Response<TxnResponse>, Status> {
        let call = Call::of(&mut request);
        expect_result!(self.0.change(Op::Txn(request.into_inner()), &call).await?, Txn)
    }

    type WatchStream = Updates<WatchResponse>;

    async fn watch(
        &self,
        mut request: Request<WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let call = Call::of(&mut request);
        let request = request.into_inner();
        check_watch(&request)?;
        let range = KeyRange::from_wire(&request.key, &request.range_end);
        let changes =
            Changes::new(self.0.node.clone(), Space::User, range).with_prev(request.prev_kv);
        let (cursor, opening) = if request.start_revision == 0 {
            let revision = revision(&self.0.view(false, &call).await?)?;
            (changes.caught_up(revision), vec![registered(revision)])
        } else {
            let after = Revision::new(request.start_revision).previous();
            (changes.catching_up(after), Vec::new())
        };
        let prev_kv = request.prev_kv;
        let respond = move |update| watch_response(update, prev_kv);
        Ok(Response::new(follow(self.0.terms(call), opening, cursor, respond)))
    }

    async fn compact(
        &self,
        mut request: Request<CompactRequest>,
    ) -> Result<Response<CompactResponse>, Status> {
        let call = Call::of(&mut request);
        expect_result!(self.0.change(Op::Compact(request.into_inner()), &call).await?, Compact)
    }
}

/// The first response to a watch that starts now: what happens after `revision` will be delivered.
fn registered(revision: Revision) -> WatchResponse {
    WatchResponse { revision: revision.value(), caught_up: true, ..Default::default() }
}

fn watch_response(update: Update<Changes>, prev_kv: bool) -> WatchResponse {
    let events = update.items.into_iter().map(|change| KvEvent {
        kind: match change.kind {
            ChangeKind::Put => kv_event::Kind::Put.into(),
            ChangeKind::Delete => kv_event::Kind::Delete.into(),
        },
        kv: Some(change.kv),
        prev_kv: change.prev.filter(|_| prev_kv),
    });
    WatchResponse {
        events: events.collect(),
        revision: update.place.value(),
        caught_up: update.caught_up,
        fell_behind: update.fell_behind,
    }
}

fn check_watch(request: &WatchRequest) -> Result<(), Status> {
    let (key, range_end) = (request.key.clone(), request.range_end.clone());
    let range = RangeRequest { key, range_end, ..Default::default() };
    validate_range(&range).map_err(from_refusal)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{machine::Change, pb::kv::v1::KeyValue};

    #[test]
    fn a_change_is_told_with_its_past_only_where_asked() {
        let kv = |revision| KeyValue { mod_revision: revision, ..Default::default() };
        let change = |kind| Change {
            space: Space::User,
            kind,
            kv: kv(5),
            replaced: Revision::new(4),
            prev: Some(kv(4)),
        };
        let update = |kind| Update {
            items: vec![change(kind)],
            place: Revision::new(5),
            caught_up: false,
            fell_behind: true,
        };
        let told = watch_response(update(ChangeKind::Put), true);
        assert_eq!((told.revision, told.caught_up, told.fell_behind), (5, false, true));
        assert_eq!(told.events[0].kind(), kv_event::Kind::Put);
        assert_eq!(told.events[0].prev_kv, Some(kv(4)));
        let told = watch_response(update(ChangeKind::Delete), false);
        assert_eq!(told.events[0].kind(), kv_event::Kind::Delete);
        assert_eq!(
            (told.events[0].kv.clone(), told.events[0].prev_kv.clone()),
            (Some(kv(5)), None)
        );
    }

    #[test]
    fn a_watch_of_no_key_is_refused() {
        assert!(check_watch(&WatchRequest::default()).is_err());
        assert!(check_watch(&WatchRequest { key: "a".into(), ..Default::default() }).is_ok());
    }
}
