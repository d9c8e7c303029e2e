//! What a stream lets go: by its limits, by a trim, or all of it when it is deleted.
//!
//! Letting go moves one number, and readers follow it at once; versions and positions are never
//! given again. The rows behind it are swept a few at a time, with appends to the stream and by a
//! timer, so that no entry stalls, an idle cluster gets its room back too, and every node sweeps
//! alike. Age is read off the log's time (raft-rules 30).

use std::collections::BTreeMap;

use crate::{
    machine::{
        View,
        events::{
            StreamRow, VersionRow, check_expected, event_key, id_key, load_version, read_number,
            stream_key, validate_expected, validate_stream, version_key,
        },
        outcome::{Decision, invalid, refusal},
        span,
        store::{Reader, StoreError},
        tables::{Fields, Key, Table},
        timers,
        tx::{self, Tx},
    },
    pb::{
        command::v1::{Reason, Refusal},
        event::v1::{
            DeleteStreamRequest, DeleteStreamResponse, DescribeStreamRequest,
            DescribeStreamResponse, RecordedEvent, SetStreamLimitsRequest, SetStreamLimitsResponse,
            StreamLimits, TrimStreamRequest, TrimStreamResponse, append_request,
            delete_stream_request, trim_stream_request::Before,
        },
    },
    types::{Duration, LogTime},
};

/// How many events a command sweeps; twice what it appends comes on top, so that the sweep
/// outruns any writer.
const SWEPT_PER_COMMAND: usize = 32;
/// How many events the timer sweeps.
const SWEPT_PER_TIMER: usize = 256;
/// The pause between two sweeps of the timer, in log time.
const SWEEP_INTERVAL: Duration = Duration::from_millis(10);
/// The pause between two looks at the age of one stream's events, in log time: an event stays so
/// much longer than it must at most.
const AGE_INTERVAL: Duration = Duration::from_secs(1);

/// The limits as they are answered.
pub(crate) fn limits(row: &StreamRow) -> StreamLimits {
    let age = (row.max_age_ms > 0).then(|| span::to_wire(Duration::from_millis(row.max_age_ms)));
    StreamLimits {
        max_age: age,
        max_count: (row.max_count > 0).then_some(row.max_count),
        max_bytes: (row.max_bytes > 0).then_some(row.max_bytes),
    }
}

pub(crate) fn validate_limits(request: &SetStreamLimitsRequest) -> Result<(), Refusal> {
    validate_stream(&request.stream)?;
    let limits = request.limits.unwrap_or_default();
    if limits == StreamLimits::default() {
        return Err(invalid("`limits` is empty; set one, or 0 to take one away"));
    }
    limits.max_age.as_ref().map_or(Ok(()), |age| span::read(age, "max_age").map(|_| ()))
}

pub(crate) fn validate_trim(request: &TrimStreamRequest) -> Result<(), Refusal> {
    validate_stream(&request.stream)?;
    match request.before {
        None => Err(invalid("set `before_version` or `before_position`: the first to keep")),
        Some(Before::BeforeVersion(0)) => Err(invalid("`before_version` is 0; the first is 1")),
        Some(Before::BeforePosition(0)) => Err(invalid("`before_position` is 0; the first is 1")),
        Some(_) => Ok(()),
    }
}

pub(crate) fn validate_delete(request: &DeleteStreamRequest) -> Result<(), Refusal> {
    validate_stream(&request.stream)?;
    validate_expected(expected(request))
}

/// What a deletion expects, in an append's terms.
fn expected(request: &DeleteStreamRequest) -> Option<append_request::Expected> {
    use delete_stream_request::Expected;
    request.expected.map(|expected| match expected {
        Expected::ExpectedVersion(version) => append_request::Expected::ExpectedVersion(version),
        Expected::ExpectedState(state) => append_request::Expected::ExpectedState(state),
    })
}

/// `event.v1.EventService/SetStreamLimits`.
pub(crate) fn set_limits(
    tx: &mut Tx<'_>,
    request: &SetStreamLimitsRequest,
) -> Decision<SetStreamLimitsResponse> {
    let (name, limits) = (&request.stream, request.limits.unwrap_or_default());
    let mut row = tx.load::<StreamRow>(&stream_key(name))?.unwrap_or_default();
    let owed = row.owes();
    if let Some(age) = &limits.max_age {
        match span::read(age, "max_age") {
            Ok(age) => row.max_age_ms = span::millis(age),
            Err(refusal) => return Ok(Err(refusal)),
        }
        clear_age_timer(tx, name, &mut row);
    }
    row.max_count = limits.max_count.unwrap_or(row.max_count);
    row.max_bytes = limits.max_bytes.unwrap_or(row.max_bytes);
    let to = within_size(tx, name, &row)?.max(within_age(tx, name, &row)?);
    trim_to(tx, name, &mut row, to)?;
    arm_age_timer(tx, name, &mut row)?;
    let stream = Some(row.describe(name));
    if row == StreamRow::default() {
        tx.delete(stream_key(name)); // It never was, and nothing is asked of it any more.
    } else {
        sweep_and_save(tx, name, row, owed, SWEPT_PER_COMMAND)?;
    }
    Ok(Ok(SetStreamLimitsResponse { stream }))
}

/// `event.v1.EventService/TrimStream`.
pub(crate) fn trim(tx: &mut Tx<'_>, request: &TrimStreamRequest) -> Decision<TrimStreamResponse> {
    let name = &request.stream;
    let Some(mut row) = existing(tx, name)? else { return Ok(Err(not_found(name))) };
    let owed = row.owes();
    let (what, before, end) = match request.before {
        Some(Before::BeforeVersion(version)) => ("version", version, row.version),
        Some(Before::BeforePosition(position)) => ("position", position, tx.head.position.value()),
        None => return Ok(Err(invalid("nothing says before which place events go"))),
    };
    if before > end.saturating_add(1) {
        let sentence = format!(
            "{what} {before} lies behind the next event of stream \"{name}\"; the last {what} is {end}"
        );
        let refusal = refusal(Reason::FutureRevision, sentence).with("stream", name);
        return Ok(Err(refusal.with(&format!("last_{what}"), end)));
    }
    let to = match request.before {
        Some(Before::BeforePosition(position)) => {
            let before = |version: &VersionRow| version.position.value() < position;
            last_that(tx, name, row.trimmed, row.version, before)?
        }
        _ => before - 1,
    };
    let trimmed_before = row.trimmed;
    trim_to(tx, name, &mut row, to)?;
    let response = TrimStreamResponse {
        stream: name.clone(),
        first_version: row.trimmed + 1,
        trimmed_count: row.trimmed - trimmed_before,
    };
    sweep_and_save(tx, name, row, owed, SWEPT_PER_COMMAND)?;
    Ok(Ok(response))
}

/// `event.v1.EventService/DeleteStream`.
pub(crate) fn delete(
    tx: &mut Tx<'_>,
    request: &DeleteStreamRequest,
) -> Decision<DeleteStreamResponse> {
    let name = &request.stream;
    let Some(mut row) = existing(tx, name)? else { return Ok(Err(not_found(name))) };
    if let Err(refusal) = check_expected(name, expected(request), &row) {
        return Ok(Err(refusal));
    }
    let (owed, deleted_count) = (row.owes(), row.version - row.trimmed);
    let last = row.version;
    trim_to(tx, name, &mut row, last)?;
    clear_age_timer(tx, name, &mut row);
    (row.max_age_ms, row.max_count, row.max_bytes) = (0, 0, 0);
    row.deleted = true;
    sweep_and_save(tx, name, row, owed, SWEPT_PER_COMMAND)?;
    Ok(Ok(DeleteStreamResponse { stream: name.clone(), last_version: last, deleted_count }))
}

/// Keeps a stream within its limits after an append of `count` events, and its row with it.
pub(crate) fn appended(
    tx: &mut Tx<'_>,
    name: &str,
    mut row: StreamRow,
    count: usize,
) -> Result<(), StoreError> {
    let owed = row.owes();
    if row.is_limited() {
        let to = within_size(tx, name, &row)?;
        trim_to(tx, name, &mut row, to)?;
        arm_age_timer(tx, name, &mut row)?;
    }
    sweep_and_save(tx, name, row, owed, SWEPT_PER_COMMAND + 2 * count)
}

/// The timer of a stream's age has fired.
pub(crate) fn grow_old(tx: &mut Tx<'_>, name: &str, deadline: LogTime) -> Result<(), StoreError> {
    timers::clear_age(tx, deadline, name);
    let Some(mut row) = tx.load::<StreamRow>(&stream_key(name))? else { return Ok(()) };
    if row.age_due_ms != deadline.as_millis() {
        return Ok(());
    }
    row.age_due_ms = 0;
    let owed = row.owes();
    let to = within_age(tx, name, &row)?;
    trim_to(tx, name, &mut row, to)?;
    arm_age_timer(tx, name, &mut row)?;
    sweep_and_save(tx, name, row, owed, SWEPT_PER_COMMAND)
}

/// The timer of the sweep has fired: deletes the rows of some events that were let go.
pub(crate) fn sweep(tx: &mut Tx<'_>, deadline: LogTime) -> Result<(), StoreError> {
    timers::clear_sweep(tx, deadline);
    let mut left = SWEPT_PER_TIMER;
    while let Some(name) = first_owing(tx)? {
        if left == 0 {
            timers::set_sweep(tx, tx.now.after(SWEEP_INTERVAL));
            break;
        }
        let row = tx.load::<StreamRow>(&stream_key(&name))?;
        let row = row.expect("a stream's row is kept while its events are swept");
        left -= sweep_stream(tx, &name, row, true, left)?;
    }
    Ok(())
}

impl StreamRow {
    /// Whether rows of events that were let go are still there.
    const fn owes(&self) -> bool {
        self.swept < self.trimmed
    }
}

fn existing(tx: &Tx<'_>, name: &str) -> Result<Option<StreamRow>, StoreError> {
    Ok(tx.load::<StreamRow>(&stream_key(name))?.filter(StreamRow::exists))
}

fn not_found(name: &str) -> Refusal {
    let sentence = format!("there is no stream \"{name}\": see the streams for their names");
    refusal(Reason::StreamNotFound, sentence).with("stream", name)
}

/// Up to which version events go so that the rest keeps within count and bytes.
fn within_size(tx: &Tx<'_>, name: &str, row: &StreamRow) -> Result<u64, StoreError> {
    let mut to = row.trimmed;
    if row.max_count > 0 {
        to = to.max(row.version.saturating_sub(row.max_count));
    }
    let excess = row.bytes_end.saturating_sub(row.max_bytes);
    if row.max_bytes > 0 && excess > row.bytes_trimmed && to < row.version {
        let too_few = |version: &VersionRow| version.bytes_end < excess;
        let enough = last_that(tx, name, to, row.version, too_few)? + 1;
        let done = to > row.trimmed && load_version(tx, name, to)?.bytes_end >= excess;
        // The newest event stays, however large it is.
        to = if done { to } else { enough.min(row.version - 1).max(to) };
    }
    Ok(to)
}

/// Up to which version events are too old.
fn within_age(tx: &Tx<'_>, name: &str, row: &StreamRow) -> Result<u64, StoreError> {
    if row.max_age_ms == 0 {
        return Ok(row.trimmed);
    }
    let age = Duration::from_millis(row.max_age_ms);
    let now = tx.now;
    last_that(tx, name, row.trimmed, row.version, |version| version.time.after(age) <= now)
}

/// The last version above `low`, up to `high`, that `holds`, where it holds of all versions up to
/// one and of none above; `low` where it holds of none. Looks at few versions where that lies near
/// `low`, and never at more than twice the logarithm of their number.
fn last_that(
    tx: &Tx<'_>,
    name: &str,
    low: u64,
    high: u64,
    holds: impl Fn(&VersionRow) -> bool,
) -> Result<u64, StoreError> {
    let (mut low, mut high, mut step) = (low, high, 1);
    while low < high {
        let probe =
            if step > 0 { low.saturating_add(step).min(high) } else { low.midpoint(high + 1) };
        if holds(&load_version(tx, name, probe)?) {
            low = probe;
            step *= 2;
        } else {
            high = probe - 1;
            step = 0;
        }
    }
    Ok(low)
}

fn trim_to(tx: &Tx<'_>, name: &str, row: &mut StreamRow, version: u64) -> Result<(), StoreError> {
    if version > row.trimmed {
        row.bytes_trimmed = load_version(tx, name, version)?.bytes_end;
        row.trimmed = version;
    }
    Ok(())
}

fn clear_age_timer(tx: &mut Tx<'_>, name: &str, row: &mut StreamRow) {
    let due = core::mem::take(&mut row.age_due_ms);
    if due > 0 {
        timers::clear_age(tx, LogTime::from_millis(due), name);
    }
}

/// Lets the oldest event that is kept fall due, where age counts and no timer is set.
fn arm_age_timer(tx: &mut Tx<'_>, name: &str, row: &mut StreamRow) -> Result<(), StoreError> {
    if row.max_age_ms == 0 || row.age_due_ms > 0 || row.trimmed == row.version {
        return Ok(());
    }
    let oldest = load_version(tx, name, row.trimmed + 1)?.time;
    let due = oldest.after(Duration::from_millis(row.max_age_ms)).max(tx.now.after(AGE_INTERVAL));
    row.age_due_ms = due.as_millis();
    timers::set_age(tx, due, name);
    Ok(())
}

fn sweep_and_save(
    tx: &mut Tx<'_>,
    name: &str,
    row: StreamRow,
    owed: bool,
    events_max: usize,
) -> Result<(), StoreError> {
    sweep_stream(tx, name, row, owed, events_max).map(|_| ())
}

/// Deletes the rows of at most `events_max` events that were let go, and keeps the stream's row.
/// `owed` says whether the stream is listed as owing. Returns how many events' rows went.
fn sweep_stream(
    tx: &mut Tx<'_>,
    name: &str,
    mut row: StreamRow,
    owed: bool,
    events_max: usize,
) -> Result<usize, StoreError> {
    let count = usize::try_from(row.trimmed - row.swept).map_or(events_max, |n| n.min(events_max));
    for version in (row.swept + 1..=row.trimmed).take(count) {
        let VersionRow { position, id, .. } = load_version(tx, name, version)?;
        tx.delete(event_key(position));
        tx.delete(version_key(name, version));
        let id = id_key(name, id);
        // The id may have come again since, with another event.
        let names = tx.get(&id)?.as_deref().map(read_number).transpose()?;
        if names == Some(version) {
            tx.delete(id);
        }
        row.swept = version;
    }
    match (owed, row.owes()) {
        (false, true) => {
            if first_owing(tx)?.is_none() {
                timers::set_sweep(tx, tx.now.after(SWEEP_INTERVAL));
            }
            tx.put(owing_key(name), bytes::Bytes::new());
        }
        (true, false) => tx.delete(owing_key(name)),
        _ => {}
    }
    tx.save(stream_key(name), &row);
    Ok(count)
}

fn owing_key(name: &str) -> Key {
    Key::of(Table::StreamSweep).raw(name.as_bytes())
}

/// The first stream whose rows are not swept.
fn first_owing(reader: &dyn Reader) -> Result<Option<String>, StoreError> {
    let range = Key::of(Table::StreamSweep).prefix();
    let first = reader.scan(&range.start, range.end.as_deref()).next().transpose()?;
    first.map(|(key, _)| tx::text(Fields::of_key(&key).rest())).transpose()
}

/// What was let go and is not swept yet, to be passed over by those who read all streams.
pub(crate) struct Trims<'a> {
    reader: &'a dyn Reader,
    trimmed: BTreeMap<String, u64>,
}

impl<'a> Trims<'a> {
    /// `None` where everything is swept.
    pub(crate) fn of(reader: &'a dyn Reader) -> Result<Option<Self>, StoreError> {
        let some = first_owing(reader)?.is_some();
        Ok(some.then(|| Self { reader, trimmed: BTreeMap::new() }))
    }

    /// Whether an event was let go.
    pub(crate) fn hide(&mut self, event: &RecordedEvent) -> Result<bool, StoreError> {
        let trimmed = match self.trimmed.get(&event.stream) {
            Some(trimmed) => *trimmed,
            None => {
                let row = tx::load::<StreamRow>(self.reader, &stream_key(&event.stream))?;
                let trimmed = row.map_or(0, |row| row.trimmed);
                self.trimmed.insert(event.stream.clone(), trimmed);
                trimmed
            }
        };
        Ok(event.version <= trimmed)
    }
}

/// Where a stream begins and ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamBounds {
    /// The first version that is kept, or would be: at least 1, and one more than `last` when none
    /// is.
    pub first: u64,
    /// The version of its last event, kept or not; 0 is none.
    pub last: u64,
    /// Whether it exists: something was appended, and it was not deleted since.
    pub exists: bool,
}

impl StreamBounds {
    /// Where a read from a version begins; 0 is the first that is kept.
    ///
    /// # Errors
    /// The refusal of a version that was let go; it names the first that is kept.
    pub fn start(&self, stream: &str, from: u64) -> Result<u64, Refusal> {
        if from == 0 {
            return Ok(self.first);
        }
        if from >= self.first {
            return Ok(from);
        }
        let sentence = format!(
            "stream \"{stream}\" begins with version {}, what was before was let go: read from \
             there, or from 0 for whatever is first",
            self.first
        );
        Err(refusal(Reason::Trimmed, sentence)
            .with("stream", stream)
            .with("from", from)
            .with("first_version", self.first)
            .with("last_version", self.last))
    }
}

impl View {
    /// Where a stream begins and ends; one that never was begins with 1.
    ///
    /// # Errors
    /// Where the store cannot be read.
    pub fn stream_bounds(&self, stream: &str) -> Result<StreamBounds, StoreError> {
        let row = tx::load::<StreamRow>(self.reader().as_ref(), &stream_key(stream))?;
        let row = row.unwrap_or_default();
        Ok(StreamBounds { first: row.trimmed + 1, last: row.version, exists: row.exists() })
    }

    /// `event.v1.EventService/DescribeStream`.
    ///
    /// # Errors
    /// Where the store cannot be read.
    pub fn describe_stream(
        &self,
        request: &DescribeStreamRequest,
    ) -> Result<Result<DescribeStreamResponse, Refusal>, StoreError> {
        if let Err(refusal) = validate_stream(&request.stream) {
            return Ok(Err(refusal));
        }
        let row = tx::load::<StreamRow>(self.reader().as_ref(), &stream_key(&request.stream))?;
        Ok(match row {
            Some(row) => Ok(DescribeStreamResponse { stream: Some(row.describe(&request.stream)) }),
            None => Err(not_found(&request.stream)),
        })
    }
}

#[cfg(test)]
mod tests;
