//! `quorate.event.v1.EventService`: event streams.

use tokio::sync::mpsc;
use tonic::{Request, Response, Status};

use crate::{
    machine::{View, refusal},
    node::Handle,
    pb::{
        command::v1::{Reason, command::Op},
        event::v1::{
            AppendRequest, AppendResponse, ListStreamsRequest, ListStreamsResponse, ReadRequest,
            ReadResponse, RecordedEvent, SubscribeRequest, SubscribeResponse,
            event_service_server::EventService,
        },
    },
    services::{
        call::{Context, expect_result, invalid, read},
        gate::Call,
    },
    streaming::{EventPlace, Events, Update, Updates, follow, updates},
    wire::status::{from_refusal, from_store_error},
};

/// How many events one response to a read holds at most.
const READ_EVENTS_MAX: usize = 1_000;

/// About how many bytes of events one response to a read holds.
const READ_BYTES: usize = 256 * 1024;

/// The service on one node.
#[derive(Clone, Debug)]
pub(crate) struct EventStreams(pub(crate) Context);

#[tonic::async_trait]
impl EventService for EventStreams {
    async fn append(
        &self,
        mut request: Request<AppendRequest>,
    ) -> Result<Response<AppendResponse>, Status> {
        let call = Call::of(&mut request);
        expect_result!(self.0.change(Op::Append(request.into_inner()), &call).await?, Append)
    }

    type ReadStream = Updates<ReadResponse>;

    async fn read(
        &self,
        mut request: Request<ReadRequest>,
    ) -> Result<Response<Self::ReadStream>, Status> {
        let call = Call::of(&mut request);
        let request = request.into_inner();
        let view = self.0.view(request.stale, &call).await?;
        let exists = request.stream.is_empty()
            || view
                .stream_version(&request.stream)
                .map_err(|error| from_store_error(&error))?
                .is_some();
        if !exists {
            let sentence = format!("nothing was appended to the stream {:?} yet", request.stream);
            let refusal = refusal(Reason::StreamNotFound, sentence);
            return Err(from_refusal(refusal.with("stream", &request.stream)));
        }
        let end = end(&view, &request.stream)?;
        let node = self.0.node.clone();
        let produce = move |queue| read_all(node, end, request, queue);
        Ok(Response::new(updates(self.0.terms(call), produce)))
    }

    type SubscribeStream = Updates<SubscribeResponse>;

    async fn subscribe(
        &self,
        mut request: Request<SubscribeRequest>,
    ) -> Result<Response<Self::SubscribeStream>, Status> {
        let call = Call::of(&mut request);
        let request = request.into_inner();
        if request.from_end && request.from != 0 {
            return Err(invalid("from and from_end are both set: choose one"));
        }
        let events = Events::new(self.0.node.clone(), &request.stream);
        let (cursor, opening) = if request.from_end {
            let place = end(&self.0.view(false, &call).await?, &request.stream)?;
            let registered = SubscribeResponse {
                position: place.position.value(),
                caught_up: true,
                ..Default::default()
            };
            (events.caught_up(place), vec![registered])
        } else {
            (events.starting_at(request.from), Vec::new())
        };
        Ok(Response::new(follow(self.0.terms(call), opening, cursor, subscribe_response)))
    }

    async fn list_streams(
        &self,
        mut request: Request<ListStreamsRequest>,
    ) -> Result<Response<ListStreamsResponse>, Status> {
        let call = Call::of(&mut request);
        let request = request.into_inner();
        let view = self.0.view(request.stale, &call).await?;
        let streams = move |view: &View| {
            view.streams(&request).map_err(|error| from_store_error(&error))?.map_err(from_refusal)
        };
        Ok(Response::new(read(view, streams).await?))
    }
}

/// Reads events to an end, no faster than they are taken. Each page has a view of its own: events
/// never change, and a reader that stops taking must not hold on to the state.
async fn read_all(
    node: Handle,
    end: EventPlace,
    request: ReadRequest,
    queue: mpsc::Sender<ReadResponse>,
) -> Result<(), Status> {
    let ReadRequest { stream, mut from, limit, .. } = request;
    from = from.max(1);
    let last = if stream.is_empty() { end.position.value() } else { end.version };
    let mut left = (last + 1).saturating_sub(from);
    if limit != 0 {
        left = left.min(limit);
    }
    while left > 0 {
        let Ok(room) = queue.reserve().await else { return Ok(()) };
        let count_max =
            usize::try_from(left).map_or(READ_EVENTS_MAX, |left| left.min(READ_EVENTS_MAX));
        let (of, start) = (stream.clone(), from);
        let events = read(node.view(), move |view| {
            view.events(&of, start, count_max, READ_BYTES).map_err(|error| from_store_error(&error))
        })
        .await?;
        let Some(last) = events.last() else { break };
        from = order_in(&stream, last) + 1;
        left = left.saturating_sub(events.len() as u64);
        room.send(ReadResponse { events });
    }
    Ok(())
}

/// An event's number in what is read: a stream, or all.
const fn order_in(stream: &str, event: &RecordedEvent) -> u64 {
    if stream.is_empty() { event.position } else { event.version }
}

/// The place after all that is there.
fn end(view: &View, stream: &str) -> Result<EventPlace, Status> {
    let head = view.head().map_err(|error| from_store_error(&error))?;
    let version = if stream.is_empty() {
        None
    } else {
        view.stream_version(stream).map_err(|error| from_store_error(&error))?
    };
    Ok(EventPlace { position: head.position, version: version.unwrap_or_default() })
}

fn subscribe_response(update: Update<Events>) -> SubscribeResponse {
    SubscribeResponse {
        events: update.items,
        position: update.place.position.value(),
        caught_up: update.caught_up,
        fell_behind: update.fell_behind,
    }
}
