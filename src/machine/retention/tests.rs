//! What streams let go: readers follow at once, rows little by little, numbers never come again.

use std::collections::VecDeque;

use proptest::prelude::*;
use uuid::Uuid;

use super::*;
use crate::{
    machine::{store::Store as _, testing::Harness},
    pb::{
        command::v1::{command::Op, outcome},
        event::v1::{AppendRequest, AppendResponse, Event, ExpectedState, ListStreamsRequest},
    },
    raft::Payload,
};

fn event(id: Option<u128>, bytes: usize) -> Event {
    Event {
        id: id.map(|id| Uuid::from_u128(id).to_string()).unwrap_or_default(),
        r#type: "T".into(),
        data: vec![7; bytes].into(),
        ..Event::default()
    }
}

fn request(stream: &str, count: usize) -> AppendRequest {
    let events = vec![event(None, 100); count];
    AppendRequest { stream: stream.into(), events, ..AppendRequest::default() }
}

fn append(h: &mut Harness, stream: &str, count: usize) -> AppendResponse {
    appended(h, request(stream, count))
}

fn appended(h: &mut Harness, request: AppendRequest) -> AppendResponse {
    match h.outcome(Op::Append(request)).result {
        Some(outcome::Result::Append(response)) => response,
        other => panic!("not appended: {other:?}"),
    }
}

fn limit(stream: &str, limits: StreamLimits) -> Op {
    let limits = Some(limits);
    Op::SetStreamLimits(SetStreamLimitsRequest {
        stream: stream.into(),
        limits,
        ..SetStreamLimitsRequest::default()
    })
}

fn count(max: u64) -> StreamLimits {
    StreamLimits { max_count: Some(max), ..StreamLimits::default() }
}

fn bytes(max: u64) -> StreamLimits {
    StreamLimits { max_bytes: Some(max), ..StreamLimits::default() }
}

fn age(millis: u64) -> StreamLimits {
    let max_age = Some(span::to_wire(Duration::from_millis(millis)));
    StreamLimits { max_age, ..StreamLimits::default() }
}

fn trim_op(stream: &str, before: Before) -> Op {
    let before = Some(before);
    Op::TrimStream(TrimStreamRequest {
        stream: stream.into(),
        before,
        ..TrimStreamRequest::default()
    })
}

fn trim(h: &mut Harness, stream: &str, before: u64) -> TrimStreamResponse {
    match h.outcome(trim_op(stream, Before::BeforeVersion(before))).result {
        Some(outcome::Result::TrimStream(response)) => response,
        other => panic!("not trimmed: {other:?}"),
    }
}

fn delete_op(stream: &str) -> DeleteStreamRequest {
    DeleteStreamRequest { stream: stream.into(), ..DeleteStreamRequest::default() }
}

fn versions(h: &Harness, stream: &str) -> Vec<u64> {
    let events = h.view().events(stream, 0, usize::MAX, usize::MAX).unwrap();
    events.into_iter().map(|event| event.version).collect()
}

fn positions(h: &Harness) -> Vec<u64> {
    let events = h.view().events("", 0, usize::MAX, usize::MAX).unwrap();
    events.into_iter().map(|event| event.position).collect()
}

fn described(h: &Harness, stream: &str) -> crate::pb::event::v1::Stream {
    let request = DescribeStreamRequest { stream: stream.into(), stale: false };
    h.view().describe_stream(&request).unwrap().unwrap().stream.unwrap()
}

fn rows(h: &Harness, table: Table) -> usize {
    let range = Key::of(table).prefix();
    h.store.rows().keys().filter(|key| range.contains(key)).count()
}

/// The rows of events, by each way to find them.
fn event_rows(h: &Harness) -> [usize; 3] {
    [Table::Event, Table::StreamEvent, Table::EventId].map(|table| rows(h, table))
}

/// Lets time and empty entries go by as the leader does, while something falls due in time.
fn settle(h: &mut Harness, millis: u64) {
    let end = h.now_ms + millis;
    while let Some(timer) = h.machine.next_timer()
        && timer.as_millis() <= end
    {
        h.now_ms = h.now_ms.max(timer.as_millis());
        h.apply_payload(Payload::Noop);
    }
    h.now_ms = end;
    h.apply_payload(Payload::Noop);
}

#[test]
fn a_trim_hides_at_once_and_versions_and_positions_go_on() {
    let mut h = Harness::new();
    append(&mut h, "a", 3);
    append(&mut h, "b", 2);
    append(&mut h, "a", 2);
    let trimmed = trim(&mut h, "a", 4);
    assert_eq!((trimmed.first_version, trimmed.trimmed_count), (4, 3));
    assert_eq!(versions(&h, "a"), [4, 5]);
    assert_eq!(positions(&h), [4, 5, 6, 7], "the order of all streams has a gap");
    let again = trim(&mut h, "a", 2);
    assert_eq!((again.first_version, again.trimmed_count), (4, 0), "it never goes back");
    let stream = described(&h, "a");
    assert_eq!((stream.version, stream.first_version, stream.last_position), (5, 4, 7));
    let next = append(&mut h, "a", 1);
    assert_eq!((next.first_version, next.first_position), (6, 8));

    let all = trim(&mut h, "a", 7);
    assert_eq!((all.first_version, all.trimmed_count), (7, 3));
    assert!(versions(&h, "a").is_empty());
    let bounds = h.view().stream_bounds("a").unwrap();
    assert_eq!((bounds.first, bounds.last, bounds.exists), (7, 6, true), "an empty stream is one");
    assert_eq!(append(&mut h, "a", 1).first_version, 7);
}

#[test]
fn a_trim_goes_by_the_order_of_all_streams_too() {
    let mut h = Harness::new();
    for _ in 0..4 {
        append(&mut h, "a", 1);
        append(&mut h, "b", 1);
    }
    h.outcome(trim_op("a", Before::BeforePosition(4)));
    assert_eq!(versions(&h, "a"), [3, 4], "positions 5 and 7");
    h.outcome(trim_op("b", Before::BeforePosition(9)));
    assert!(versions(&h, "b").is_empty());
    assert_eq!(positions(&h), [5, 7]);
    let refusal = h.refused(trim_op("a", Before::BeforePosition(10)));
    assert_eq!(refusal.reason(), Reason::FutureRevision);
    assert_eq!(refusal.metadata["last_position"], "8");
}

#[test]
fn what_lies_below_the_trim_is_refused_by_name() {
    let mut h = Harness::new();
    append(&mut h, "a", 5);
    trim(&mut h, "a", 4);
    let bounds = h.view().stream_bounds("a").unwrap();
    assert_eq!(
        (bounds.start("a", 0), bounds.start("a", 4), bounds.start("a", 9)),
        (Ok(4), Ok(4), Ok(9))
    );
    for from in [1, 3] {
        let refusal = bounds.start("a", from).unwrap_err();
        assert_eq!(refusal.reason(), Reason::Trimmed);
        assert_eq!(
            (&*refusal.metadata["first_version"], &*refusal.metadata["last_version"]),
            ("4", "5")
        );
    }
    let fresh = h.view().stream_bounds("new").unwrap();
    assert_eq!((fresh.start("new", 0), fresh.start("new", 1)), (Ok(1), Ok(1)));
}

#[test]
fn wrong_requests_are_refused_and_change_nothing() {
    let mut h = Harness::new();
    append(&mut h, "a", 2);
    let before = h.state();
    let negative = StreamLimits {
        max_age: Some(prost_types::Duration { seconds: -1, nanos: 0 }),
        ..StreamLimits::default()
    };
    let invalid = [
        limit("a", StreamLimits::default()),
        Op::SetStreamLimits(SetStreamLimitsRequest { stream: "a".into(), ..Default::default() }),
        limit("a", negative),
        limit("$all", count(1)),
        limit("", count(1)),
        trim_op("a", Before::BeforeVersion(0)),
        trim_op("a", Before::BeforePosition(0)),
        Op::TrimStream(TrimStreamRequest { stream: "a".into(), ..Default::default() }),
        trim_op("", Before::BeforeVersion(1)),
        Op::DeleteStream(delete_op("")),
        Op::DeleteStream(DeleteStreamRequest {
            expected: Some(delete_stream_request::Expected::ExpectedState(9)),
            ..delete_op("a")
        }),
    ];
    for op in invalid {
        let refusal = h.refused(op);
        assert_eq!(refusal.reason(), Reason::InvalidArgument, "{}", refusal.message);
    }
    for version in [4, u64::MAX] {
        let refusal = h.refused(trim_op("a", Before::BeforeVersion(version)));
        assert_eq!(refusal.reason(), Reason::FutureRevision);
        assert_eq!(refusal.metadata["last_version"], "2");
    }
    for op in [trim_op("none", Before::BeforeVersion(1)), Op::DeleteStream(delete_op("none"))] {
        assert_eq!(h.refused(op).reason(), Reason::StreamNotFound);
    }
    h.outcome(limit("none", count(0)));
    assert_eq!(h.state(), before, "to take away what is not there leaves no trace");
}

#[test]
fn count_and_bytes_are_kept_with_each_append() {
    let mut h = Harness::new();
    h.outcome(limit("a", count(3)));
    for _ in 0..10 {
        append(&mut h, "a", 2);
        assert!(versions(&h, "a").len() <= 3);
    }
    assert_eq!(versions(&h, "a"), [18, 19, 20]);
    assert_eq!(event_rows(&h), [3, 3, 3], "the rows went with the appends");
    append(&mut h, "a", 5);
    assert_eq!(versions(&h, "a"), [23, 24, 25], "more than the limit at once");

    append(&mut h, "b", 1);
    let one = described(&h, "b").bytes;
    assert!(one > 100);
    append(&mut h, "b", 9);
    h.outcome(limit("b", bytes(3 * one + one / 2)));
    assert_eq!(versions(&h, "b"), [8, 9, 10], "it counts for what is there");
    append(&mut h, "b", 1);
    assert_eq!(versions(&h, "b"), [9, 10, 11]);
    let huge = AppendRequest { events: vec![event(None, 10_000)], ..request("b", 0) };
    appended(&mut h, huge);
    assert_eq!(versions(&h, "b"), [12], "the newest stays");
    append(&mut h, "b", 1);
    assert_eq!(versions(&h, "b"), [13]);
    let kept: usize = h
        .view()
        .events("b", 0, 9, usize::MAX)
        .unwrap()
        .iter()
        .map(prost::Message::encoded_len)
        .sum();
    assert_eq!(described(&h, "b").bytes, kept as u64);
}

#[test]
fn limits_are_set_one_by_one_and_taken_away_with_zero() {
    let mut h = Harness::new();
    append(&mut h, "a", 4);
    h.outcome(limit("a", count(1_000)));
    h.outcome(limit("a", bytes(u64::MAX)));
    h.outcome(limit("a", age(90_000)));
    let all = StreamLimits {
        max_count: Some(1_000),
        max_bytes: Some(u64::MAX),
        max_age: Some(prost_types::Duration { seconds: 90, nanos: 0 }),
    };
    assert_eq!(described(&h, "a").limits, Some(all));
    h.outcome(limit("a", count(0)));
    assert_eq!(described(&h, "a").limits, Some(StreamLimits { max_count: None, ..all }));
    h.outcome(limit("a", StreamLimits { max_bytes: Some(0), ..age(0) }));
    assert_eq!(described(&h, "a").limits, None);
    assert_eq!(rows(&h, Table::Timer), 0);
    settle(&mut h, 1_000_000);
    assert_eq!(versions(&h, "a").len(), 4);
    let huge = StreamLimits {
        max_age: Some(prost_types::Duration { seconds: i64::MAX, nanos: 0 }),
        ..count(u64::MAX)
    };
    h.outcome(limit("a", huge));
    append(&mut h, "a", 1);
    settle(&mut h, 1_000_000);
    assert_eq!(versions(&h, "a").len(), 5, "huge limits keep everything");
}

#[test]
fn an_idle_streams_events_grow_old() {
    let mut h = Harness::new();
    h.outcome(limit("a", age(60_000)));
    for _ in 0..3 {
        append(&mut h, "a", 1);
        h.now_ms += 10_000;
    }
    settle(&mut h, 29_000);
    assert_eq!(versions(&h, "a"), [1, 2, 3]);
    settle(&mut h, 2_000);
    assert_eq!(versions(&h, "a"), [2, 3]);
    settle(&mut h, 60_000);
    assert!(versions(&h, "a").is_empty());
    assert_eq!(event_rows(&h), [0, 0, 0]);
    assert_eq!(rows(&h, Table::Timer), 0, "nothing is left to fall due");
    assert_eq!(append(&mut h, "a", 1).first_version, 4);
    settle(&mut h, 62_000);
    assert!(versions(&h, "a").is_empty(), "the timer was set again");
}

#[test]
fn a_shorter_age_counts_at_once_and_a_longer_one_keeps() {
    let mut h = Harness::new();
    append(&mut h, "a", 2);
    h.now_ms += 50_000;
    append(&mut h, "a", 1);
    h.outcome(limit("a", age(40_000)));
    assert_eq!(versions(&h, "a"), [3]);
    h.outcome(limit("a", age(400_000)));
    settle(&mut h, 300_000);
    assert_eq!(versions(&h, "a"), [3]);
    settle(&mut h, 102_000);
    assert!(versions(&h, "a").is_empty());
}

#[test]
fn rows_go_little_by_little_also_while_nobody_writes() {
    let mut h = Harness::new();
    for _ in 0..3 {
        append(&mut h, "a", 1_000);
        append(&mut h, "b", 1_000);
    }
    trim(&mut h, "a", 2_991);
    h.outcome(Op::DeleteStream(delete_op("b")));
    assert_eq!(positions(&h).len(), 10, "readers see none of it at once");
    let [left, ..] = event_rows(&h);
    assert!(left > 5_000, "one entry does not sweep everything");
    let mut entries = 0;
    while let Some(timer) = h.machine.next_timer() {
        h.now_ms = h.now_ms.max(timer.as_millis());
        let before = event_rows(&h)[0];
        h.apply_payload(Payload::Noop);
        assert!(before - event_rows(&h)[0] <= SWEPT_PER_TIMER);
        entries += 1;
        assert!(entries < 100, "the sweep ends");
    }
    assert_eq!(event_rows(&h), [10, 10, 10]);
    assert_eq!(rows(&h, Table::StreamSweep), 0);
    assert_eq!(versions(&h, "a").len(), 10);
}

#[test]
fn a_deleted_stream_is_none_and_its_versions_go_on() {
    let mut h = Harness::new();
    append(&mut h, "a", 3);
    h.outcome(limit("a", StreamLimits { max_count: Some(9), ..age(5_000) }));
    let wrong = DeleteStreamRequest {
        expected: Some(delete_stream_request::Expected::ExpectedVersion(2)),
        ..delete_op("a")
    };
    let refusal = h.refused(Op::DeleteStream(wrong));
    assert_eq!(refusal.reason(), Reason::WrongExpectedVersion);
    assert_eq!(refusal.metadata["actual_version"], "3");
    let right = DeleteStreamRequest {
        expected: Some(delete_stream_request::Expected::ExpectedVersion(3)),
        request_id: Uuid::from_u128(9).to_string(),
        ..delete_op("a")
    };
    let first = h.outcome(Op::DeleteStream(right.clone()));
    let deleted = DeleteStreamResponse { stream: "a".into(), last_version: 3, deleted_count: 3 };
    assert_eq!(first.result, Some(outcome::Result::DeleteStream(deleted)));

    let bounds = h.view().stream_bounds("a").unwrap();
    assert_eq!((bounds.first, bounds.last, bounds.exists), (4, 3, false));
    assert!(h.view().streams(&ListStreamsRequest::default()).unwrap().unwrap().streams.is_empty());
    let stream = described(&h, "a");
    assert!(stream.deleted && stream.limits.is_none() && stream.bytes == 0);
    assert_eq!(h.refused(Op::DeleteStream(delete_op("a"))).reason(), Reason::StreamNotFound);
    let state = |state: ExpectedState| {
        let expected = Some(append_request::Expected::ExpectedState(state.into()));
        AppendRequest { expected, ..request("a", 1) }
    };
    let refusal = h.refused(Op::Append(state(ExpectedState::Exists)));
    assert_eq!(refusal.metadata["actual_version"], "0");
    let again = appended(&mut h, state(ExpectedState::NoStream));
    assert_eq!((again.first_version, again.first_position), (4, 4));
    assert_eq!(versions(&h, "a"), [4]);
    assert!(!described(&h, "a").deleted);
    // A retry answers as the first time, and does not delete what is new.
    assert_eq!(h.outcome(Op::DeleteStream(right)), first);
    assert_eq!(versions(&h, "a"), [4]);
    settle(&mut h, 100_000);
    assert_eq!(versions(&h, "a"), [4], "the old limits are gone");
}

#[test]
fn an_id_that_went_may_come_again() {
    let mut h = Harness::new();
    let with = |ids: &[u128]| AppendRequest {
        events: ids.iter().map(|&id| event(Some(id), 1)).collect(),
        ..request("a", 0)
    };
    let many: Vec<u128> = (1..=200).collect();
    appended(&mut h, with(&many));
    trim(&mut h, "a", 200);
    let response = appended(&mut h, with(&[150]));
    assert!(!response.duplicate && response.first_version == 201, "{response:?}");
    settle(&mut h, 1_000);
    assert_eq!(event_rows(&h), [2, 2, 2], "the sweep leaves the new event's id");
    assert!(appended(&mut h, with(&[150])).duplicate);
    assert!(appended(&mut h, with(&[200])).duplicate);
}

#[test]
fn streams_with_limits_are_listed_before_their_first_event() {
    let mut h = Harness::new();
    h.outcome(limit("later", count(5)));
    let list =
        |h: &Harness| h.view().streams(&ListStreamsRequest::default()).unwrap().unwrap().streams;
    let listed = list(&h);
    assert_eq!((listed[0].version, listed[0].first_version), (0, 1));
    assert_eq!((listed[0].limits, listed[0].create_time), (Some(count(5)), None));
    assert!(!h.view().stream_bounds("later").unwrap().exists);
    let expected = Some(append_request::Expected::ExpectedVersion(0));
    appended(&mut h, AppendRequest { expected, ..request("later", 1) });
    assert!(list(&h)[0].create_time.is_some());
}

/// One step beside a model: a queue of (version, time) a stream.
#[derive(Clone, Debug)]
enum Step {
    Append(u8, usize),
    Trim(u8, u64),
    Delete(u8),
    Count(u8, u64),
    Age(u8, u64),
    Wait(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..2_u8, 1..40_usize).prop_map(|(s, n)| Step::Append(s, n)),
        2 => (0..2_u8, 1..200_u64).prop_map(|(s, v)| Step::Trim(s, v)),
        1 => (0..2_u8).prop_map(Step::Delete),
        1 => (0..2_u8, 0..50_u64).prop_map(|(s, n)| Step::Count(s, n)),
        1 => (0..2_u8, 0..20_000_u64).prop_map(|(s, n)| Step::Age(s, n)),
        2 => (1..30_000_u64).prop_map(Step::Wait),
    ]
}

#[derive(Default)]
struct Model {
    kept: VecDeque<(u64, u64)>,
    version: u64,
    exists: bool,
    max_count: u64,
    max_age: u64,
}

impl Model {
    fn enforce_count(&mut self) {
        while self.max_count > 0 && self.kept.len() as u64 > self.max_count {
            self.kept.pop_front();
        }
    }

    /// What must be gone by now, and what may be gone.
    fn old(&self, now: u64, grace: u64) -> u64 {
        if self.max_age == 0 {
            return 0;
        }
        self.kept
            .iter()
            .filter(|(_, time)| time + self.max_age + grace <= now)
            .map(|kept| kept.0)
            .max()
            .unwrap_or(0)
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn streams_follow_the_model(steps in prop::collection::vec(step(), 1..60)) {
        let mut h = Harness::new();
        let mut models = [Model::default(), Model::default()];
        let names = ["a", "b"];
        for step in steps {
            match step {
                Step::Append(s, n) => {
                    append(&mut h, names[usize::from(s)], n);
                    let model = &mut models[usize::from(s)];
                    for _ in 0..n {
                        model.version += 1;
                        model.kept.push_back((model.version, h.now_ms));
                    }
                    model.exists = true;
                    model.enforce_count();
                }
                Step::Trim(s, before) => {
                    let model = &mut models[usize::from(s)];
                    let outcome = h.outcome(trim_op(names[usize::from(s)], Before::BeforeVersion(before)));
                    let done = matches!(outcome.result, Some(outcome::Result::TrimStream(_)));
                    prop_assert_eq!(done, model.exists && before <= model.version + 1);
                    if done {
                        model.kept.retain(|kept| kept.0 >= before);
                    }
                }
                Step::Delete(s) => {
                    let outcome = h.outcome(Op::DeleteStream(delete_op(names[usize::from(s)])));
                    let model = &mut models[usize::from(s)];
                    let done = matches!(outcome.result, Some(outcome::Result::DeleteStream(_)));
                    prop_assert_eq!(done, model.exists);
                    if done {
                        *model = Model { version: model.version, ..Model::default() };
                    }
                }
                Step::Count(s, n) => {
                    h.outcome(limit(names[usize::from(s)], count(n)));
                    let model = &mut models[usize::from(s)];
                    model.max_count = n;
                    model.enforce_count();
                }
                Step::Age(s, millis) => {
                    h.outcome(limit(names[usize::from(s)], age(millis)));
                    models[usize::from(s)].max_age = millis;
                }
                Step::Wait(millis) => settle(&mut h, millis),
            }
            let mut seen = Vec::new();
            for (model, name) in models.iter_mut().zip(names) {
                let kept = versions(&h, name);
                // Age may let go as soon as it is reached, and must a second later.
                let first = kept.first().copied().unwrap_or(model.version + 1);
                prop_assert!(first > model.old(h.now_ms, 1_000 + 1), "{} is too old", first);
                let earliest = model.kept.front().map_or(model.version + 1, |kept| kept.0);
                prop_assert!(first == earliest || first <= model.old(h.now_ms, 0) + 1);
                model.kept.retain(|kept| kept.0 >= first);
                prop_assert_eq!(&kept, &model.kept.iter().map(|kept| kept.0).collect::<Vec<_>>());
                let bounds = h.view().stream_bounds(name).unwrap();
                prop_assert_eq!((bounds.first, bounds.last, bounds.exists), (first, model.version, model.exists));
                seen.extend(h.view().events(name, 0, usize::MAX, usize::MAX).unwrap().iter().map(|event| event.position));
            }
            seen.sort_unstable();
            prop_assert_eq!(positions(&h), seen);
        }
        // Left alone, every row that nobody can read goes.
        for name in names {
            h.outcome(limit(name, age(0)));
        }
        settle(&mut h, 60_000);
        let left: usize = models.iter().map(|model| model.kept.len()).sum();
        prop_assert_eq!(event_rows(&h), [left; 3]);
        prop_assert_eq!((rows(&h, Table::StreamSweep), rows(&h, Table::Timer)), (0, 0));
        h.store.persist().unwrap();
    }
}
