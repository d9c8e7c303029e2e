//! Event streams: appended all or none, in one gapless global order.
//!
//! An event is kept once, under its position. A stream's versions point to positions, and its
//! event ids to versions, which is how a retried append is known for what it is. Ids are looked
//! at before the expected version: a retry answers as the first time, though the stream has moved
//! on. Events are no part of the revision history; nothing here takes a revision. What a stream
//! lets go is `retention.rs`'s to say.

use std::collections::BTreeSet;

use bytes::Bytes;
use uuid::Uuid;

use crate::{
    machine::{
        View, cluster, discovery,
        outcome::{Decision, invalid, refusal},
        page::{page_size, page_start},
        retention::{self, Trims},
        store::{Reader, StoreError},
        tables::{Fields, Key, Table},
        tx::{self, Tx},
        validate::too_large,
    },
    pb::{
        command::v1::{Reason, Refusal},
        event::v1::{
            AppendRequest, AppendResponse, Event, ExpectedState, ListStreamsRequest,
            ListStreamsResponse, RecordedEvent, Stream, append_request::Expected,
        },
    },
    types::{LogTime, Position},
};

/// The longest name of a stream, in bytes.
const STREAM_BYTES_MAX: usize = 512;
/// The longest type of an event, in bytes.
const TYPE_BYTES_MAX: usize = 256;
/// The most content of one event, in bytes.
const DATA_BYTES_MAX: usize = 1024 * 1024;
/// The most labels of one event.
const TAGS_MAX: usize = 32;
/// The longest label, in bytes.
const TAG_BYTES_MAX: usize = 256;
/// The most events of one append.
const EVENTS_MAX: usize = 1_000;
/// The most that the events of one append may take as they are sent, in bytes.
const APPEND_BYTES_MAX: usize = 4 * 1024 * 1024;

/// A stream as it is kept. The row stays when the stream is deleted, so that its versions go on.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct StreamRow {
    /// The version of its last event.
    #[prost(uint64, tag = "1")]
    pub(crate) version: u64,
    /// The position of its last event.
    #[prost(uint64, tag = "2")]
    pub(crate) last_position: u64,
    /// When its first event was recorded, in milliseconds of log time.
    #[prost(uint64, tag = "3")]
    pub(crate) create_time_ms: u64,
    /// Events up to and including this version were let go.
    #[prost(uint64, tag = "4")]
    pub(crate) trimmed: u64,
    /// The rows of events up to and including this version are deleted.
    #[prost(uint64, tag = "5")]
    pub(crate) swept: u64,
    /// What all its events took, those that were let go too, in bytes.
    #[prost(uint64, tag = "6")]
    pub(crate) bytes_end: u64,
    /// The same of those that were let go.
    #[prost(uint64, tag = "7")]
    pub(crate) bytes_trimmed: u64,
    /// Whether it was deleted, and not appended to since.
    #[prost(bool, tag = "8")]
    pub(crate) deleted: bool,
    /// How long events are kept, in milliseconds of log time; 0 is for ever.
    #[prost(uint64, tag = "9")]
    pub(crate) max_age_ms: u64,
    /// How many events are kept; 0 is all.
    #[prost(uint64, tag = "10")]
    pub(crate) max_count: u64,
    /// How many bytes of events are kept; 0 is all.
    #[prost(uint64, tag = "11")]
    pub(crate) max_bytes: u64,
    /// When events will have become too old next, in milliseconds of log time; 0 sets no timer.
    #[prost(uint64, tag = "12")]
    pub(crate) age_due_ms: u64,
}

impl StreamRow {
    /// Whether readers and writers find a stream.
    pub(crate) const fn exists(&self) -> bool {
        self.version > 0 && !self.deleted
    }

    /// Whether it keeps less than everything.
    pub(crate) const fn is_limited(&self) -> bool {
        self.max_age_ms > 0 || self.max_count > 0 || self.max_bytes > 0
    }

    /// The stream as readers see it.
    pub(crate) fn describe(&self, name: &str) -> Stream {
        let at = LogTime::from_millis(self.create_time_ms);
        Stream {
            name: name.to_owned(),
            version: self.version,
            last_position: self.last_position,
            create_time: (self.create_time_ms > 0).then(|| at.to_timestamp()),
            first_version: self.trimmed + 1,
            bytes: self.bytes_end - self.bytes_trimmed,
            limits: self.is_limited().then(|| retention::limits(self)),
            deleted: self.deleted,
        }
    }
}

/// What a version of a stream points to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct VersionRow {
    pub(crate) position: Position,
    /// What the stream's events up to and including this one take, in bytes.
    pub(crate) bytes_end: u64,
    pub(crate) time: LogTime,
    pub(crate) id: Uuid,
}

impl VersionRow {
    fn encode(&self) -> Bytes {
        let mut row = Vec::with_capacity(40);
        for number in [self.position.value(), self.bytes_end, self.time.as_millis()] {
            row.extend_from_slice(&number.to_be_bytes());
        }
        row.extend_from_slice(self.id.as_bytes());
        row.into()
    }

    fn decode(row: &[u8]) -> Result<Self, StoreError> {
        let mut fields = Fields::of_value(row);
        let (position, bytes_end) = (Position::new(fields.u64()?), fields.u64()?);
        let time = LogTime::from_millis(fields.u64()?);
        let id = Uuid::from_slice(fields.rest());
        let id = id.map_err(|error| StoreError(format!("an event's id is malformed: {error}")))?;
        Ok(Self { position, bytes_end, time, id })
    }
}

/// Checks the name of a stream that is to be changed.
pub(crate) fn validate_stream(name: &str) -> Result<(), Refusal> {
    discovery::validate_text("stream", name, 1, STREAM_BYTES_MAX)?;
    if name.starts_with('$') {
        return Err(invalid("`stream` starts with `$`; such names are reserved"));
    }
    Ok(())
}

/// Checks what is expected of a stream.
pub(crate) fn validate_expected(expected: Option<Expected>) -> Result<(), Refusal> {
    if let Some(Expected::ExpectedState(state)) = expected
        && ExpectedState::try_from(state).is_err()
    {
        return Err(invalid(format!("`expected_state` is {state}, which means nothing")));
    }
    Ok(())
}

pub(crate) fn validate_append(request: &AppendRequest) -> Result<(), Refusal> {
    validate_stream(&request.stream)?;
    let count = request.events.len();
    if count == 0 {
        return Err(invalid("`events` is empty; append at least one"));
    }
    if count > EVENTS_MAX {
        let sentence = format!("`events` has {count} events; at most {EVENTS_MAX} are allowed");
        return Err(refusal(Reason::TooLarge, sentence));
    }
    let bytes: usize = request.events.iter().map(prost::Message::encoded_len).sum();
    if bytes > APPEND_BYTES_MAX {
        return Err(too_large("`events`", bytes, APPEND_BYTES_MAX));
    }
    validate_expected(request.expected)?;
    let mut ids = BTreeSet::new();
    for event in &request.events {
        if let Some(id) = validate_event(event)?
            && !ids.insert(id)
        {
            return Err(invalid(format!("the event id {id} is given twice in one request")));
        }
    }
    Ok(())
}

/// Checks one event and reads its id, where it has one.
fn validate_event(event: &Event) -> Result<Option<Uuid>, Refusal> {
    discovery::validate_text("type", &event.r#type, 1, TYPE_BYTES_MAX)?;
    discovery::validate_metadata(&event.metadata)?;
    if event.data.len() > DATA_BYTES_MAX {
        return Err(too_large("`data`", event.data.len(), DATA_BYTES_MAX));
    }
    if event.tags.len() > TAGS_MAX {
        let sentence =
            format!("`tags` has {} labels; at most {TAGS_MAX} are allowed", event.tags.len());
        return Err(refusal(Reason::TooLarge, sentence));
    }
    for tag in &event.tags {
        discovery::validate_text("tags", tag, 1, TAG_BYTES_MAX)?;
    }
    if event.id.is_empty() {
        return Ok(None);
    }
    let id = Uuid::try_parse(&event.id).map_err(|_| {
        let sentence = format!("the event id \"{}\" is not a UUID", event.id.escape_debug());
        invalid(sentence)
    })?;
    Ok(Some(id))
}

/// Appends events to a stream, or answers again where they are there already.
pub(crate) fn append(tx: &mut Tx<'_>, request: &AppendRequest) -> Decision<AppendResponse> {
    if let Err(refusal) = validate_append(request) {
        return Ok(Err(refusal));
    }
    let known = tx.load::<StreamRow>(&stream_key(&request.stream))?;
    let mut stream = known.unwrap_or_default();
    match answer_known(tx, request, stream.trimmed)? {
        Ok(None) => {}
        Ok(Some(answer)) => return Ok(Ok(answer)),
        Err(refusal) => return Ok(Err(refusal)),
    }
    if let Err(refusal) = check_expected(&request.stream, request.expected, &stream) {
        return Ok(Err(refusal));
    }
    if !stream.exists() {
        (stream.create_time_ms, stream.deleted) = (tx.now.as_millis(), false);
    }
    let (version_before, position_before) = (stream.version, tx.head.position.value());
    let salt = cluster::salt(tx)?;
    for (n, event) in (0_u64..).zip(&request.events) {
        let id = Uuid::try_parse(&event.id).unwrap_or_else(|_| choose_id(tx, salt, n));
        record(tx, &request.stream, &mut stream, id, event);
    }
    let response = AppendResponse {
        stream: request.stream.clone(),
        first_version: version_before + 1,
        last_version: stream.version,
        first_position: position_before + 1,
        last_position: stream.last_position,
        duplicate: false,
    };
    retention::appended(tx, &request.stream, stream, request.events.len())?;
    Ok(Ok(response))
}

/// Keeps one event and every way to find it.
fn record(tx: &mut Tx<'_>, name: &str, stream: &mut StreamRow, id: Uuid, event: &Event) {
    let position = tx.head.position.next();
    tx.head.position = position;
    stream.version += 1;
    stream.last_position = position.value();
    let recorded = RecordedEvent {
        stream: name.to_owned(),
        version: stream.version,
        position: position.value(),
        id: id.to_string(),
        r#type: event.r#type.clone(),
        data: event.data.clone(),
        metadata: event.metadata.clone(),
        tags: event.tags.clone(),
        record_time: Some(tx.now.to_timestamp()),
    };
    let row = Bytes::from(prost::Message::encode_to_vec(&recorded));
    stream.bytes_end += row.len() as u64;
    tx.put(event_key(position), row);
    let version = VersionRow { position, bytes_end: stream.bytes_end, time: tx.now, id };
    tx.put(version_key(name, stream.version), version.encode());
    tx.put(id_key(name, id), number(stream.version));
    tx.applied.events.push(recorded);
}

/// The answer where ids of the request are in the stream: the first one's again where all are
/// there in one run, a refusal where only some are. Ids up to `trimmed` are forgotten.
fn answer_known(
    tx: &Tx<'_>,
    request: &AppendRequest,
    trimmed: u64,
) -> Decision<Option<AppendResponse>> {
    let mut versions = Vec::with_capacity(request.events.len());
    for event in &request.events {
        let known = match Uuid::try_parse(&event.id) {
            Ok(id) => tx.get(&id_key(&request.stream, id))?,
            Err(_) => None,
        };
        let known = known.as_deref().map(read_number).transpose()?;
        versions.push(known.filter(|&version| version > trimmed));
    }
    let Some(at) = versions.iter().position(Option::is_some) else { return Ok(Ok(None)) };
    let (first, run) = (versions[0], versions.iter().zip(0_u64..));
    let one_run = first.is_some_and(|first| run.clone().all(|(v, n)| *v == Some(first + n)));
    let (Some(first), true) = (first, one_run) else {
        let id = &request.events[at].id;
        let sentence = format!(
            "event {id} is in stream \"{}\" already, but not as part of these events",
            request.stream
        );
        let refusal = refusal(Reason::EventIdExists, sentence)
            .with("stream", &request.stream)
            .with("event_id", id)
            .with("version", versions[at].unwrap_or_default());
        return Ok(Err(refusal));
    };
    let last = first + request.events.len() as u64 - 1;
    let position = |version| -> Result<u64, StoreError> {
        Ok(load_version(tx, &request.stream, version)?.position.value())
    };
    let response = AppendResponse {
        stream: request.stream.clone(),
        first_version: first,
        last_version: last,
        first_position: position(first)?,
        last_position: position(last)?,
        duplicate: true,
    };
    Ok(Ok(Some(response)))
}

/// Checks what a request expects of its stream. A deleted stream is none.
pub(crate) fn check_expected(
    name: &str,
    expected: Option<Expected>,
    stream: &StreamRow,
) -> Result<(), Refusal> {
    let actual = if stream.exists() { stream.version } else { 0 };
    let (holds, expected) = match expected {
        None => return Ok(()),
        Some(Expected::ExpectedVersion(version)) => (actual == version, version.to_string()),
        Some(Expected::ExpectedState(state)) => match ExpectedState::try_from(state) {
            Ok(ExpectedState::NoStream) => (actual == 0, "no stream".to_owned()),
            Ok(ExpectedState::Exists) => (actual > 0, "a stream that exists".to_owned()),
            Ok(ExpectedState::Unspecified) | Err(_) => return Ok(()),
        },
    };
    if holds {
        return Ok(());
    }
    let sentence = format!("stream \"{name}\" is at version {actual}; expected was {expected}");
    Err(refusal(Reason::WrongExpectedVersion, sentence)
        .with("stream", name)
        .with("expected", expected)
        .with("actual_version", actual))
}

/// An id that every node chooses alike and no other event of the cluster gets: log time, the
/// event's number in its entry, and the entry's index, shifted by the cluster's salt so that
/// clusters differ; in the form of RFC 9562, version 8.
fn choose_id(tx: &Tx<'_>, salt: u64, n: u64) -> Uuid {
    let time = u128::from(tx.now.as_millis() & 0xffff_ffff_ffff);
    let entry = u128::from(tx.index.value().wrapping_add(salt) & 0x3fff_ffff_ffff_ffff);
    let id = time << 80 | 0x8 << 76 | u128::from(n & 0xfff) << 64 | 0b10 << 62 | entry;
    Uuid::from_u128(id)
}

pub(crate) fn event_key(position: Position) -> Key {
    Key::of(Table::Event).u64(position.value())
}

pub(crate) fn stream_key(stream: &str) -> Key {
    Key::of(Table::Stream).raw(stream.as_bytes())
}

pub(crate) fn versions_key(stream: &str) -> Key {
    Key::of(Table::StreamEvent).name(stream.as_bytes())
}

pub(crate) fn version_key(stream: &str, version: u64) -> Key {
    versions_key(stream).u64(version)
}

pub(crate) fn id_key(stream: &str, id: Uuid) -> Key {
    Key::of(Table::EventId).name(stream.as_bytes()).raw(id.as_bytes())
}

/// What a version points to that is kept.
pub(crate) fn load_version(
    reader: &dyn Reader,
    stream: &str,
    version: u64,
) -> Result<VersionRow, StoreError> {
    let row = reader.get(&version_key(stream, version))?;
    let row = row.expect("a version is kept as long as its event");
    if row.len() > size_of::<u64>() {
        return VersionRow::decode(&row);
    }
    // Written before streams had limits: the event itself tells, and counts for no bytes.
    let position = Position::new(read_number(&row)?);
    let event = tx::load::<RecordedEvent>(reader, &event_key(position))?.unwrap_or_default();
    let at = event.record_time.unwrap_or_default();
    let seconds = u64::try_from(at.seconds).unwrap_or_default();
    let millis = u64::try_from(at.nanos).unwrap_or_default() / 1_000_000;
    let time = LogTime::from_millis(seconds.saturating_mul(1_000).saturating_add(millis));
    let id = Uuid::try_parse(&event.id).unwrap_or_default();
    Ok(VersionRow { position, bytes_end: 0, time, id })
}

fn number(value: u64) -> Bytes {
    Bytes::copy_from_slice(&value.to_be_bytes())
}

pub(crate) fn read_number(value: &[u8]) -> Result<u64, StoreError> {
    Fields::of_value(value).u64()
}

impl View {
    /// Events of a stream from a version on, or of all (`stream` empty) from a position on, until
    /// `count_max` or about `bytes_max` are gathered; at least one where there is one. An unknown
    /// stream has none. What was let go is passed over: [`View::stream_bounds`] tells of it.
    ///
    /// # Errors
    /// Where the store cannot be read.
    pub fn events(
        &self,
        stream: &str,
        from: u64,
        count_max: usize,
        bytes_max: usize,
    ) -> Result<Vec<RecordedEvent>, StoreError> {
        let reader = self.reader();
        let (range, start) = if stream.is_empty() {
            (Key::of(Table::Event).prefix(), event_key(Position::new(from)))
        } else {
            let first = self.stream_bounds(stream)?.first;
            (versions_key(stream).prefix(), version_key(stream, from.max(first)))
        };
        let mut trims = if stream.is_empty() { Trims::of(reader.as_ref())? } else { None };
        let mut events = Vec::new();
        let mut bytes = 0;
        for row in reader.scan(&start, range.end.as_deref()) {
            let mut value = row?.1;
            if !stream.is_empty() {
                let position = Position::new(read_number(&value)?);
                let event = reader.get(&event_key(position))?;
                value = event.expect("an event is kept as long as its version");
            }
            let size = value.len();
            let event: RecordedEvent = tx::decode(value)?;
            if let Some(trims) = &mut trims
                && trims.hide(&event)?
            {
                continue;
            }
            bytes += size;
            if events.len() == count_max || (bytes > bytes_max && !events.is_empty()) {
                break;
            }
            events.push(event);
        }
        Ok(events)
    }

    /// `event.v1.EventService/ListStreams`.
    ///
    /// # Errors
    /// Where the store cannot be read.
    pub fn streams(
        &self,
        request: &ListStreamsRequest,
    ) -> Result<Result<ListStreamsResponse, Refusal>, StoreError> {
        let range = stream_key(&request.prefix).prefix();
        let start = page_start(range.start, &stream_key(&request.page_token));
        let size = page_size(request.page_size);
        let mut response = ListStreamsResponse {
            last_position: self.head()?.position.value(),
            ..ListStreamsResponse::default()
        };
        for row in self.reader().scan(&start, range.end.as_deref()) {
            let (key, value) = row?;
            let row: StreamRow = tx::decode(value)?;
            if !row.exists() && !row.is_limited() {
                continue;
            }
            if response.streams.len() == size {
                let last = response.streams.last().map(|stream| stream.name.clone());
                response.next_page_token = last.unwrap_or_default();
                break;
            }
            response.streams.push(row.describe(&tx::text(Fields::of_key(&key).rest())?));
        }
        Ok(Ok(response))
    }
}

#[cfg(test)]
mod tests;
