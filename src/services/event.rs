//! `quorate.event.v1.EventService`: event streams.

use tokio::sync::mpsc;
use tonic::{Request, Response, Status};

use crate::{
    machine::{StreamBounds, View, refusal},
    node::Handle,
    pb::{
        command::v1::{Reason, command::Op},
        event::v1::{
            AppendRequest, AppendResponse, DeleteStreamRequest, DeleteStreamResponse,
            DescribeStreamRequest, DescribeStreamResponse, ListStreamsRequest, ListStreamsResponse,
            ReadRequest, ReadResponse, RecordedEvent, SetStreamLimitsRequest,
            SetStreamLimitsResponse, SubscribeRequest, SubscribeResponse, TrimStreamRequest,
            TrimStreamResponse, event_service_server::EventService,
        },
    },
    services::{
        call::{Context, expect_result, invalid, read, view_here},
        gate::Call,
    },
    streaming::{EventPlace, Events, Update, Updates, follow, updates},
    types::Position,
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
        let last = if request.stream.is_empty() {
            head(&view)?.value()
        } else {
            let bounds = bounds(&view, &request.stream)?;
            if !bounds.exists {
                let sentence = format!("there is no stream {:?}", request.stream);
                let refusal = refusal(Reason::StreamNotFound, sentence);
                return Err(from_refusal(refusal.with("stream", &request.stream)));
            }
            bounds.start(&request.stream, request.from).map_err(from_refusal)?;
            bounds.last
        };
        let node = self.0.node.clone();
        let produce = move |queue| read_all(node, last, request, queue);
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
                version: place.version,
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
        let view = view_here!(self.0, &request, &call);
        let streams = move |view: &View| {
            view.streams(&request).map_err(|error| from_store_error(&error))?.map_err(from_refusal)
        };
        Ok(Response::new(read(view, streams).await?))
    }

    async fn describe_stream(
        &self,
        mut request: Request<DescribeStreamRequest>,
    ) -> Result<Response<DescribeStreamResponse>, Status> {
        let call = Call::of(&mut request);
        let request = request.into_inner();
        let view = view_here!(self.0, &request, &call);
        let described = view.describe_stream(&request);
        let described = described.map_err(|error| from_store_error(&error))?;
        Ok(Response::new(described.map_err(from_refusal)?))
    }

    async fn set_stream_limits(
        &self,
        mut request: Request<SetStreamLimitsRequest>,
    ) -> Result<Response<SetStreamLimitsResponse>, Status> {
        let call = Call::of(&mut request);
        let op = Op::SetStreamLimits(request.into_inner());
        expect_result!(self.0.change(op, &call).await?, SetStreamLimits)
    }

    async fn trim_stream(
        &self,
        mut request: Request<TrimStreamRequest>,
    ) -> Result<Response<TrimStreamResponse>, Status> {
        let call = Call::of(&mut request);
        let op = Op::TrimStream(request.into_inner());
        expect_result!(self.0.change(op, &call).await?, TrimStream)
    }

    async fn delete_stream(
        &self,
        mut request: Request<DeleteStreamRequest>,
    ) -> Result<Response<DeleteStreamResponse>, Status> {
        let call = Call::of(&mut request);
        let op = Op::DeleteStream(request.into_inner());
        expect_result!(self.0.change(op, &call).await?, DeleteStream)
    }
}

/// Reads events up to the last one of before, no faster than they are taken. Each page has a view
/// of its own: events never change, and a reader that stops taking must not hold on to the state.
/// What was let go meanwhile ends the read of a stream.
async fn read_all(
    node: Handle,
    last: u64,
    request: ReadRequest,
    queue: mpsc::Sender<ReadResponse>,
) -> Result<(), Status> {
    let ReadRequest { stream, mut from, limit, .. } = request;
    let mut left = if limit == 0 { u64::MAX } else { limit };
    while left > 0 && from <= last {
        let Ok(room) = queue.reserve().await else { return Ok(()) };
        let count_max =
            usize::try_from(left).map_or(READ_EVENTS_MAX, |left| left.min(READ_EVENTS_MAX));
        let (of, start) = (stream.clone(), from);
        let mut events = read(node.view(), move |view| page(view, &of, start, count_max)).await?;
        events.retain(|event| order_in(&stream, event) <= last);
        let Some(newest) = events.last() else { break };
        from = order_in(&stream, newest) + 1;
        left = left.saturating_sub(events.len() as u64);
        room.send(ReadResponse { events });
    }
    Ok(())
}

fn page(
    view: &View,
    stream: &str,
    mut from: u64,
    count_max: usize,
) -> Result<Vec<RecordedEvent>, Status> {
    if !stream.is_empty() {
        from = bounds(view, stream)?.start(stream, from).map_err(from_refusal)?;
    }
    view.events(stream, from, count_max, READ_BYTES).map_err(|error| from_store_error(&error))
}

/// An event's number in what is read: a stream, or all.
const fn order_in(stream: &str, event: &RecordedEvent) -> u64 {
    if stream.is_empty() { event.position } else { event.version }
}

/// The place after all that is there.
fn end(view: &View, stream: &str) -> Result<EventPlace, Status> {
    let version = if stream.is_empty() { 0 } else { bounds(view, stream)?.last };
    Ok(EventPlace { position: head(view)?, version, at_first: false })
}

fn head(view: &View) -> Result<Position, Status> {
    Ok(view.head().map_err(|error| from_store_error(&error))?.position)
}

fn bounds(view: &View, stream: &str) -> Result<StreamBounds, Status> {
    view.stream_bounds(stream).map_err(|error| from_store_error(&error))
}

fn subscribe_response(update: Update<Events>) -> SubscribeResponse {
    SubscribeResponse {
        events: update.items,
        position: update.place.position.value(),
        caught_up: update.caught_up,
        fell_behind: update.fell_behind,
        version: update.place.version,
    }
}
