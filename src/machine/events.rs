//! Event streams: appended all or none, in one gapless global order.
//!
//! An event is kept once, under its position. A stream's versions point to positions, and its
//! event ids to versions, which is how a retried append is known for what it is. Ids are looked
//! at before the expected version: a retry answers as the first time, though the stream has moved
//! on. Events are no part of the revision history; nothing here takes a revision.

use std::collections::BTreeSet;

use bytes::Bytes;
use uuid::Uuid;

use crate::{
    machine::{
        View, cluster, discovery,
        outcome::{Decision, invalid, refusal},
        page::{page_size, page_start},
        store::StoreError,
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

/// A stream as it is kept.
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
}

pub(crate) fn validate_append(request: &AppendRequest) -> Result<(), Refusal> {
    discovery::validate_text("stream", &request.stream, 1, STREAM_BYTES_MAX)?;
    if request.stream.starts_with('$') {
        return Err(invalid("`stream` starts with `$`; such names are reserved"));
    }
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
    if let Some(Expected::ExpectedState(state)) = request.expected
        && ExpectedState::try_from(state).is_err()
    {
        return Err(invalid(format!("`expected_state` is {state}, which means nothing")));
    }
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
    match answer_known(tx, request)? {
        Ok(None) => {}
        Ok(Some(answer)) => return Ok(Ok(answer)),
        Err(refusal) => return Ok(Err(refusal)),
    }
    let stream = tx.load::<StreamRow>(&stream_key(&request.stream))?;
    if let Err(refusal) = check_expected(request, stream.as_ref()) {
        return Ok(Err(refusal));
    }
    let mut stream =
        stream.unwrap_or(StreamRow { create_time_ms: tx.now.as_millis(), ..StreamRow::default() });
    let (version_before, position_before) = (stream.version, tx.head.position.value());
    let salt = cluster::salt(tx)?;
    for (n, event) in (0_u64..).zip(&request.events) {
        stream.version += 1;
        let id = Uuid::try_parse(&event.id).unwrap_or_else(|_| choose_id(tx, salt, n));
        stream.last_position = record(tx, &request.stream, stream.version, id, event).value();
    }
    tx.save(stream_key(&request.stream), &stream);
    let response = AppendResponse {
        stream: request.stream.clone(),
        first_version: version_before + 1,
        last_version: stream.version,
        first_position: position_before + 1,
        last_position: stream.last_position,
        duplicate: false,
    };
    Ok(Ok(response))
}

/// Keeps one event and every way to find it.
fn record(tx: &mut Tx<'_>, stream: &str, version: u64, id: Uuid, event: &Event) -> Position {
    let position = tx.head.position.next();
    tx.head.position = position;
    let recorded = RecordedEvent {
        stream: stream.to_owned(),
        version,
        position: position.value(),
        id: id.to_string(),
        r#type: event.r#type.clone(),
        data: event.data.clone(),
        metadata: event.metadata.clone(),
        tags: event.tags.clone(),
        record_time: Some(tx.now.to_timestamp()),
    };
    tx.save(event_key(position), &recorded);
    tx.put(version_key(stream, version), number(position.value()));
    tx.put(id_key(stream, id), number(version));
    tx.applied.events.push(recorded);
    position
}

/// The answer where ids of the request are in the stream: the first one's again where all are
/// there in one run, a refusal where only some are.
fn answer_known(tx: &Tx<'_>, request: &AppendRequest) -> Decision<Option<AppendResponse>> {
    let mut versions = Vec::with_capacity(request.events.len());
    for event in &request.events {
        let known = match Uuid::try_parse(&event.id) {
            Ok(id) => tx.get(&id_key(&request.stream, id))?,
            Err(_) => None,
        };
        versions.push(known.as_deref().map(read_number).transpose()?);
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
        let row = tx.get(&version_key(&request.stream, version))?;
        read_number(&row.expect("an event's version is kept as long as its id"))
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

fn check_expected(request: &AppendRequest, stream: Option<&StreamRow>) -> Result<(), Refusal> {
    let actual = stream.map_or(0, |row| row.version);
    let (holds, expected) = match request.expected {
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
    let sentence =
        format!("stream \"{}\" is at version {actual}; expected was {expected}", request.stream);
    Err(refusal(Reason::WrongExpectedVersion, sentence)
        .with("stream", &request.stream)
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

fn event_key(position: Position) -> Key {
    Key::of(Table::Event).u64(position.value())
}

fn stream_key(stream: &str) -> Key {
    Key::of(Table::Stream).raw(stream.as_bytes())
}

fn versions_key(stream: &str) -> Key {
    Key::of(Table::StreamEvent).name(stream.as_bytes())
}

fn version_key(stream: &str, version: u64) -> Key {
    versions_key(stream).u64(version)
}

fn id_key(stream: &str, id: Uuid) -> Key {
    Key::of(Table::EventId).name(stream.as_bytes()).raw(id.as_bytes())
}

fn number(value: u64) -> Bytes {
    Bytes::copy_from_slice(&value.to_be_bytes())
}

fn read_number(value: &[u8]) -> Result<u64, StoreError> {
    Fields::of_value(value).u64()
}

impl View {
    /// Events of a stream from a version on, or of all (`stream` empty) from a position on, until
    /// `count_max` or about `bytes_max` are gathered; at least one where there is one. An unknown
    /// stream has none.
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
            (versions_key(stream).prefix(), version_key(stream, from))
        };
        let mut events = Vec::new();
        let mut bytes = 0;
        for row in reader.scan(&start, range.end.as_deref()).take(count_max) {
            let mut value = row?.1;
            if !stream.is_empty() {
                let position = Position::new(read_number(&value)?);
                let event = reader.get(&event_key(position))?;
                value = event.expect("an event is kept as long as its version");
            }
            bytes += value.len();
            if bytes > bytes_max && !events.is_empty() {
                break;
            }
            events.push(tx::decode(value)?);
        }
        Ok(events)
    }

    /// A stream's version; `None` where it does not exist.
    ///
    /// # Errors
    /// Where the store cannot be read.
    pub fn stream_version(&self, stream: &str) -> Result<Option<u64>, StoreError> {
        let row = tx::load::<StreamRow>(self.reader().as_ref(), &stream_key(stream))?;
        Ok(row.map(|row| row.version))
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
            if response.streams.len() == size {
                let last = response.streams.last().map(|stream| stream.name.clone());
                response.next_page_token = last.unwrap_or_default();
                break;
            }
            let row: StreamRow = tx::decode(value)?;
            response.streams.push(Stream {
                name: tx::text(Fields::of_key(&key).rest())?,
                version: row.version,
                last_position: row.last_position,
                create_time: Some(LogTime::from_millis(row.create_time_ms).to_timestamp()),
            });
        }
        Ok(Ok(response))
    }
}

#[cfg(test)]
mod tests;
