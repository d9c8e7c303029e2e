//! What streams promise: dense positions, one order for all readers, retries that land once.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::{
    machine::testing::Harness,
    pb::command::v1::{FoundCluster, command::Op, outcome},
};

fn event(id: Option<u128>) -> Event {
    Event {
        id: id.map(|id| Uuid::from_u128(id).to_string()).unwrap_or_default(),
        r#type: "Created".into(),
        data: Bytes::from_static(b"{}"),
        ..Event::default()
    }
}

fn request(stream: &str, ids: &[u128]) -> AppendRequest {
    let events = ids.iter().map(|&id| event(Some(id))).collect();
    AppendRequest { stream: stream.into(), events, ..AppendRequest::default() }
}

fn expecting(version: u64, request: AppendRequest) -> AppendRequest {
    AppendRequest { expected: Some(Expected::ExpectedVersion(version)), ..request }
}

fn append(h: &mut Harness, request: AppendRequest) -> AppendResponse {
    match h.outcome(Op::Append(request)).result {
        Some(outcome::Result::Append(response)) => response,
        other => panic!("not appended: {other:?}"),
    }
}

fn refused(h: &mut Harness, request: AppendRequest) -> Refusal {
    h.refused(Op::Append(request))
}

fn all(h: &Harness) -> Vec<RecordedEvent> {
    h.view().events("", 0, usize::MAX, usize::MAX).unwrap()
}

#[test]
fn events_are_read_back_as_they_were_recorded() {
    let mut h = Harness::new();
    let full = Event {
        metadata: [("by".to_owned(), "me".to_owned())].into(),
        tags: vec!["t:1".into()],
        id: "A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11".into(),
        ..event(None)
    };
    let command = AppendRequest { events: vec![full.clone()], ..request("orders", &[]) };
    let applied = h.apply(Op::Append(command));
    let expected = RecordedEvent {
        stream: "orders".into(),
        version: 1,
        position: 1,
        id: full.id.to_lowercase(),
        r#type: full.r#type,
        data: full.data,
        metadata: full.metadata,
        tags: full.tags,
        record_time: Some(LogTime::from_millis(h.now_ms).to_timestamp()),
    };
    assert_eq!(applied.events, std::slice::from_ref(&expected));
    assert_eq!(all(&h), std::slice::from_ref(&expected));
    assert_eq!(h.view().events("orders", 1, 10, usize::MAX).unwrap(), [expected]);
    assert_eq!(h.machine.head().position.value(), 1);
    assert_eq!(h.machine.head().revision.value(), 0, "events take no revision");
}

#[test]
fn positions_are_dense_over_streams_and_versions_in_each() {
    let mut h = Harness::new();
    append(&mut h, request("a", &[1, 2]));
    let b = append(&mut h, request("b", &[1]));
    let a = append(&mut h, request("a", &[3]));
    assert_eq!((b.first_version, b.first_position), (1, 3));
    assert_eq!((a.first_version, a.last_version, a.last_position), (3, 3, 4));
    let positions: Vec<_> = all(&h).iter().map(|event| event.position).collect();
    assert_eq!(positions, [1, 2, 3, 4]);
    let view = h.view();
    let of_a: Vec<_> =
        view.events("a", 2, 9, usize::MAX).unwrap().iter().map(|e| e.position).collect();
    assert_eq!(of_a, [2, 4]);
    assert!(view.events("nothing", 0, 9, usize::MAX).unwrap().is_empty());
    let bounds = |stream| view.stream_bounds(stream).unwrap();
    assert_eq!((bounds("a").first, bounds("a").last, bounds("a").exists), (1, 3, true));
    let nothing = bounds("nothing");
    assert_eq!((nothing.first, nothing.last, nothing.exists), (1, 0, false));
}

#[test]
fn a_batch_of_events_is_bounded_and_never_empty() {
    let mut h = Harness::new();
    append(&mut h, request("a", &[1, 2, 3]));
    assert_eq!(h.view().events("", 1, 2, usize::MAX).unwrap().len(), 2);
    assert_eq!(h.view().events("a", 1, 9, 1).unwrap().len(), 1);
    assert_eq!(h.view().events("", 4, 9, usize::MAX).unwrap().len(), 0);
}

#[test]
fn the_expected_version_is_honoured() {
    let mut h = Harness::new();
    let state = |state: ExpectedState, id| AppendRequest {
        expected: Some(Expected::ExpectedState(state.into())),
        ..request("a", &[id])
    };
    let refusal = refused(&mut h, state(ExpectedState::Exists, 1));
    assert_eq!(refusal.reason(), Reason::WrongExpectedVersion);
    append(&mut h, expecting(0, request("a", &[1, 2])));
    let refusal = refused(&mut h, expecting(1, request("a", &[3])));
    assert_eq!(refusal.reason(), Reason::WrongExpectedVersion);
    assert_eq!(refusal.metadata["actual_version"], "2");
    assert_eq!(
        refused(&mut h, state(ExpectedState::NoStream, 3)).reason(),
        Reason::WrongExpectedVersion
    );
    append(&mut h, state(ExpectedState::Exists, 3));
    append(&mut h, state(ExpectedState::Unspecified, 4));
    append(&mut h, expecting(4, request("a", &[5])));
    append(&mut h, AppendRequest { stream: "b".into(), ..state(ExpectedState::NoStream, 6) });
    assert_eq!(all(&h).len(), 6);
}

#[test]
fn a_retried_append_lands_once_and_answers_as_the_first_time() {
    let mut h = Harness::new();
    let retried = expecting(0, request("a", &[1, 2]));
    let first = append(&mut h, retried.clone());
    append(&mut h, request("a", &[3]));
    let again = append(&mut h, retried);
    assert_eq!(again, AppendResponse { duplicate: true, ..first });
    assert_eq!(all(&h).len(), 3);
    // The same ids in another stream are other events.
    assert!(!append(&mut h, request("b", &[1, 2])).duplicate);
}

#[test]
fn a_partial_overlap_is_refused() {
    let mut h = Harness::new();
    append(&mut h, request("a", &[1, 2, 3]));
    for ids in [&[3, 4][..], &[0, 1], &[2, 1], &[1, 3]] {
        let refusal = refused(&mut h, request("a", ids));
        assert_eq!(refusal.reason(), Reason::EventIdExists, "{ids:?}");
    }
    let mut mixed = request("a", &[1]);
    mixed.events.push(event(None));
    assert_eq!(refused(&mut h, mixed).reason(), Reason::EventIdExists);
    assert_eq!(all(&h).len(), 3);
    assert_eq!(h.machine.head().position.value(), 3);
}

#[test]
fn chosen_ids_are_uuids_and_differ_in_events_entries_and_clusters() {
    let chosen = |cluster: Option<&str>| {
        let mut h = Harness::new();
        if let Some(id) = cluster {
            let command = FoundCluster { cluster_id: id.into(), members: Vec::new() };
            h.outcome(Op::FoundCluster(command));
        } else {
            h.apply_payload(crate::raft::Payload::Noop);
        }
        for _ in 0..2 {
            let events = vec![event(None), event(None)];
            append(&mut h, AppendRequest { events, ..request("a", &[]) });
        }
        all(&h).into_iter().map(|event| event.id).collect::<Vec<_>>()
    };
    let mut ids = chosen(None);
    ids.extend(chosen(Some("6f1d7b1e-0000-4000-8000-000000000001")));
    ids.extend(chosen(Some("6f1d7b1e-0000-4000-8000-000000000002")));
    for id in &ids {
        let id = Uuid::try_parse(id).unwrap();
        assert_eq!((id.get_version_num(), id.get_variant()), (8, uuid::Variant::RFC4122));
    }
    assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), 12);
}

#[test]
fn streams_are_listed_in_pages() {
    let mut h = Harness::new();
    for (at, stream) in ["a/1", "a/2", "a/3", "b"].into_iter().enumerate() {
        append(&mut h, request(stream, &[at as u128]));
    }
    let list = |prefix: &str, page_token: &str| {
        let request = ListStreamsRequest {
            prefix: prefix.into(),
            page_size: 2,
            page_token: page_token.into(),
            stale: false,
        };
        let page = h.view().streams(&request).unwrap().unwrap();
        let names: Vec<_> = page.streams.into_iter().map(|stream| stream.name).collect();
        (names, page.next_page_token, page.last_position)
    };
    let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
    let (first, token, last_position) = list("a/", "");
    assert_eq!((first, last_position), (names(&["a/1", "a/2"]), 4));
    assert_eq!(list("a/", &token), (names(&["a/3"]), String::new(), 4));
    assert_eq!(list("", "a/2").0, names(&["a/3", "b"]));
}

#[test]
fn malformed_requests_are_refused_and_change_nothing() {
    let mut h = Harness::new();
    let of = |event: Event| AppendRequest { events: vec![event], ..request("a", &[]) };
    let mut twice = request("a", &[7]);
    twice.events.push(event(Some(7)));
    let bad = [
        request("", &[1]),
        request("$all", &[1]),
        request("a", &[]),
        twice,
        of(Event { r#type: String::new(), ..event(None) }),
        of(Event { id: "7".into(), ..event(None) }),
        of(Event { tags: vec![String::new()], ..event(None) }),
        AppendRequest { expected: Some(Expected::ExpectedState(9)), ..request("a", &[1]) },
    ];
    for request in bad {
        let refusal = refused(&mut h, request);
        assert_eq!(refusal.reason(), Reason::InvalidArgument, "{}", refusal.message);
    }
    let heavy = Event { data: vec![0; 1 << 20].into(), ..event(None) };
    let large = [
        of(Event { data: vec![0; (1 << 20) + 1].into(), ..event(None) }),
        of(Event { tags: vec!["t".into(); 33], ..event(None) }),
        AppendRequest { events: vec![event(None); 1_001], ..request("a", &[]) },
        AppendRequest { events: vec![heavy; 4], ..request("a", &[]) },
    ];
    for request in large {
        let refusal = refused(&mut h, request);
        assert_eq!(refusal.reason(), Reason::TooLarge, "{}", refusal.message);
    }
    assert!(h.state().is_empty());
}

/// Appends of a few ids to a few streams, beside a model: a map of vectors.
type Step = (u8, Vec<u8>, Option<u8>);

fn step() -> impl Strategy<Value = Step> {
    (0_u8..3, prop::collection::vec(0_u8..12, 1..4), prop::option::of(0_u8..6))
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn streams_follow_the_model(steps in prop::collection::vec(step(), 1..60)) {
        let mut h = Harness::new();
        let mut streams: BTreeMap<String, Vec<u8>> = BTreeMap::new();
        let mut order = Vec::new();
        for (stream, mut ids, expected) in steps {
            let mut seen = BTreeSet::new();
            ids.retain(|id| seen.insert(*id));
            let name = format!("s{stream}");
            let wide: Vec<u128> = ids.iter().map(|&id| u128::from(id)).collect();
            let mut command = request(&name, &wide);
            command.expected = expected.map(|version| Expected::ExpectedVersion(version.into()));
            let known = streams.entry(name.clone()).or_default();
            let run = known.windows(ids.len()).position(|run| run == ids);
            let outcome = h.outcome(Op::Append(command)).result.unwrap();
            let overlap = ids.iter().any(|id| known.contains(id));
            match outcome {
                outcome::Result::Append(response) if response.duplicate => {
                    let first = run.expect("only a run that is there is a duplicate") as u64 + 1;
                    prop_assert_eq!(response.first_version, first);
                    prop_assert_eq!(response.last_version, first + ids.len() as u64 - 1);
                }
                outcome::Result::Append(response) => {
                    prop_assert!(!overlap);
                    prop_assert!(expected.is_none_or(|at| usize::from(at) == known.len()));
                    prop_assert_eq!(response.first_version, known.len() as u64 + 1);
                    prop_assert_eq!(response.first_position, order.len() as u64 + 1);
                    order.extend(ids.iter().map(|&id| (name.clone(), id)));
                    known.extend(&ids);
                }
                outcome::Result::Refusal(refusal) if overlap => {
                    prop_assert_eq!(refusal.reason(), Reason::EventIdExists);
                    prop_assert_eq!(run, None);
                }
                outcome::Result::Refusal(refusal) => {
                    prop_assert_eq!(refusal.reason(), Reason::WrongExpectedVersion);
                    prop_assert!(expected.is_some_and(|at| usize::from(at) != known.len()));
                }
                other => prop_assert!(false, "not an append: {other:?}"),
            }
        }
        let id = |event: &RecordedEvent| Uuid::try_parse(&event.id).unwrap().as_u128() as u8;
        for (at, event) in (1..).zip(all(&h)) {
            prop_assert_eq!(event.position, at);
        }
        let seen: Vec<_> = all(&h).iter().map(|e| (e.stream.clone(), id(e))).collect();
        prop_assert_eq!(&seen, &order);
        for (name, known) in streams {
            let seen = h.view().events(&name, 0, usize::MAX, usize::MAX).unwrap();
            prop_assert_eq!(seen.iter().map(id).collect::<Vec<_>>(), known);
            prop_assert!((1..).zip(&seen).all(|(version, event)| event.version == version));
        }
    }
}
