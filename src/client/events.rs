//! Event streams: append, read, subscribe.

use tonic::{Status, Streaming};

use crate::{
    client::{
        Client, Error, Resuming,
        balance::Picked,
        call::ANSWER_BYTES_MAX,
        request::identified,
        resume::{Outlook, Resume},
    },
    pb::event::v1::{
        AppendRequest, AppendResponse, DeleteStreamRequest, DeleteStreamResponse,
        DescribeStreamRequest, DescribeStreamResponse, ListStreamsRequest, ListStreamsResponse,
        ReadRequest, ReadResponse, RecordedEvent, SetStreamLimitsRequest, SetStreamLimitsResponse,
        SubscribeRequest, SubscribeResponse, TrimStreamRequest, TrimStreamResponse,
        event_service_client::EventServiceClient,
    },
};

/// A read that goes on after its last event when its connection breaks.
pub type EventRead = Resuming<ReadRequest>;

/// A subscription that goes on after its last event when its connection breaks.
pub type EventSubscription = Resuming<SubscribeRequest>;

/// The event streams of a cluster.
///
/// ```
/// # #[tokio::main]
/// # async fn main() -> Result<(), quorate::client::Error> {
/// # let cluster = quorate::testing::Cluster::start(1).await;
/// # let client = cluster.client();
/// use quorate::pb::event::v1::{AppendRequest, Event, SubscribeRequest};
///
/// let created = Event { r#type: "Created".into(), data: "{}".into(), ..Default::default() };
/// let request =
///     AppendRequest { stream: "orders".into(), events: vec![created], ..Default::default() };
/// client.events().append(request).await?;
///
/// let from = SubscribeRequest { stream: "orders".into(), from: 1, ..Default::default() };
/// let mut subscription = client.events().subscribe(from).await?;
/// let told = subscription.next().await?.expect("a subscription has no end");
/// assert_eq!((told.events[0].version, told.events[0].r#type.as_str()), (1, "Created"));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Events {
    client: Client,
}

impl Events {
    pub(super) const fn new(client: Client) -> Self {
        Self { client }
    }

    /// Appends events, all or none.
    ///
    /// Not cancel-safe: dropped, it may take effect or not, and never twice.
    ///
    /// # Errors
    /// ABORTED where the stream is not as expected; ALREADY_EXISTS where some of the ids are in it
    /// already; DEADLINE_EXCEEDED with an unknown outcome; UNAVAILABLE where nothing was proposed.
    pub async fn append(&self, request: AppendRequest) -> Result<AppendResponse, Error> {
        self.client.write(identified(request), async |c, q| stub(c).append(q).await).await
    }

    /// Reads the events that are there. It connects at the first [`Resuming::next`].
    pub fn read(&self, request: ReadRequest) -> EventRead {
        Resuming::new(self.client.clone(), request)
    }

    /// Subscribes: first the events that are there, then each new one. With `from_end` the place
    /// is fixed before this returns, so that what is appended afterwards is delivered, whatever
    /// becomes of the connection.
    ///
    /// Cancel-safe.
    ///
    /// # Errors
    /// With `from_end` only: where no node answered in time.
    pub async fn subscribe(
        &self,
        mut request: SubscribeRequest,
    ) -> Result<EventSubscription, Error> {
        if request.from_end {
            request.from = self.end_of(&request.stream).await? + 1;
            request.from_end = false;
        }
        Ok(Resuming::new(self.client.clone(), request))
    }

    /// Lists one page of the streams.
    ///
    /// Cancel-safe.
    ///
    /// # Errors
    /// UNAVAILABLE or DEADLINE_EXCEEDED where no node answered.
    pub async fn list_streams(
        &self,
        request: ListStreamsRequest,
    ) -> Result<ListStreamsResponse, Error> {
        self.client.read(request, async |c, q| stub(c).list_streams(q).await).await
    }

    /// Describes a stream, with its limits; a deleted one too.
    ///
    /// Cancel-safe.
    ///
    /// # Errors
    /// NOT_FOUND where it never was; UNAVAILABLE or DEADLINE_EXCEEDED where no node answered.
    pub async fn describe_stream(
        &self,
        request: DescribeStreamRequest,
    ) -> Result<DescribeStreamResponse, Error> {
        self.client.read(request, async |c, q| stub(c).describe_stream(q).await).await
    }

    /// Sets how much a stream keeps; a limit that is not set stays as it is, 0 takes it away.
    ///
    /// Not cancel-safe: dropped, it may take effect or not, and never twice.
    ///
    /// # Errors
    /// INVALID_ARGUMENT where nothing is set; DEADLINE_EXCEEDED with an unknown outcome;
    /// UNAVAILABLE where nothing was proposed.
    pub async fn set_stream_limits(
        &self,
        request: SetStreamLimitsRequest,
    ) -> Result<SetStreamLimitsResponse, Error> {
        let call = async |c, q| stub(c).set_stream_limits(q).await;
        self.client.write(identified(request), call).await
    }

    /// Lets go of a stream's events before a place.
    ///
    /// Not cancel-safe: dropped, it may take effect or not, and never twice.
    ///
    /// # Errors
    /// NOT_FOUND where it does not exist; OUT_OF_RANGE where the place lies behind its next event;
    /// DEADLINE_EXCEEDED with an unknown outcome; UNAVAILABLE where nothing was proposed.
    pub async fn trim_stream(
        &self,
        request: TrimStreamRequest,
    ) -> Result<TrimStreamResponse, Error> {
        self.client.write(identified(request), async |c, q| stub(c).trim_stream(q).await).await
    }

    /// Lets go of all events of a stream, and of its limits.
    ///
    /// Not cancel-safe: dropped, it may take effect or not, and never twice.
    ///
    /// # Errors
    /// NOT_FOUND where it does not exist; ABORTED where it is not as expected; DEADLINE_EXCEEDED
    /// with an unknown outcome; UNAVAILABLE where nothing was proposed.
    pub async fn delete_stream(
        &self,
        request: DeleteStreamRequest,
    ) -> Result<DeleteStreamResponse, Error> {
        self.client.write(identified(request), async |c, q| stub(c).delete_stream(q).await).await
    }

    /// The version of a stream's last event, or the position of the last event of all.
    async fn end_of(&self, stream: &str) -> Result<u64, Error> {
        if stream.is_empty() {
            let request = ListStreamsRequest { page_size: 1, ..Default::default() };
            return Ok(self.list_streams(request).await?.last_position);
        }
        let request = DescribeStreamRequest { stream: stream.to_owned(), stale: false };
        match self.describe_stream(request).await {
            Ok(answer) => Ok(answer.stream.map_or(0, |stream| stream.version)),
            Err(error) if error.reason() == "STREAM_NOT_FOUND" => Ok(0),
            Err(error) => Err(error),
        }
    }
}

fn stub(node: Picked) -> EventServiceClient<Picked> {
    EventServiceClient::new(node).max_decoding_message_size(ANSWER_BYTES_MAX)
}

impl Resume for ReadRequest {
    type Response = ReadResponse;

    const ENDS: bool = true;

    async fn open(self, node: Picked) -> Result<Streaming<ReadResponse>, Status> {
        Ok(stub(node).read(self).await?.into_inner())
    }

    fn advance(&mut self, response: &mut ReadResponse) -> Outlook {
        if let Some(next) = after(&self.stream, &response.events) {
            self.from = next;
        }
        if self.limit > 0 {
            let delivered = u64::try_from(response.events.len()).unwrap_or(u64::MAX);
            self.limit = self.limit.saturating_sub(delivered);
            if self.limit == 0 {
                return Outlook::Last;
            }
        }
        Outlook::Deliver
    }
}

impl Resume for SubscribeRequest {
    type Response = SubscribeResponse;

    async fn open(self, node: Picked) -> Result<Streaming<SubscribeResponse>, Status> {
        Ok(stub(node).subscribe(self).await?.into_inner())
    }

    fn advance(&mut self, response: &mut SubscribeResponse) -> Outlook {
        // A reader of a stream that reached its end has a place in it, also where nothing is there.
        let passed = if self.stream.is_empty() { response.position } else { response.version };
        let reached = passed > 0 || (response.caught_up && !self.stream.is_empty());
        let passed =
            reached.then_some(passed + 1).or_else(|| after(&self.stream, &response.events));
        if let Some(next) = passed {
            self.from = self.from.max(next);
        }
        Outlook::Deliver
    }
}

/// Where to go on behind these events.
fn after(stream: &str, events: &[RecordedEvent]) -> Option<u64> {
    let last = events.last()?;
    Some(1 + if stream.is_empty() { last.position } else { last.version })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(version: u64, position: u64) -> RecordedEvent {
        RecordedEvent { version, position, ..Default::default() }
    }

    #[test]
    fn a_read_goes_on_behind_the_last_event_and_ends_at_its_limit() {
        let mut read = ReadRequest { stream: "s".to_owned(), limit: 3, ..Default::default() };
        let mut two = ReadResponse { events: vec![event(1, 10), event(2, 14)] };
        assert_eq!(read.advance(&mut two), Outlook::Deliver);
        assert_eq!((read.from, read.limit), (3, 1));
        let mut third = ReadResponse { events: vec![event(3, 15)] };
        assert_eq!(read.advance(&mut third), Outlook::Last);
    }

    #[test]
    fn a_subscription_to_all_streams_goes_by_position_and_one_to_a_stream_by_version() {
        let response =
            SubscribeResponse { events: vec![event(2, 14)], position: 20, ..Default::default() };
        let mut all = SubscribeRequest::default();
        all.advance(&mut response.clone());
        assert_eq!(all.from, 21);
        let mut one = SubscribeRequest { stream: "s".to_owned(), ..Default::default() };
        one.advance(&mut response.clone());
        assert_eq!(one.from, 3);
        let marker =
            SubscribeResponse { caught_up: true, position: 30, version: 2, ..Default::default() };
        one.advance(&mut marker.clone());
        assert_eq!(one.from, 3, "of a stream its version counts, not the position");
        let mut none = SubscribeRequest { stream: "t".to_owned(), ..Default::default() };
        none.advance(&mut SubscribeResponse { version: 0, ..marker });
        assert_eq!(none.from, 1, "its first event is waited for, and missed by no reader");
    }
}
