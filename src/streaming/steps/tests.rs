//! Readers of a real machine without a node, threads or tasks, as the simulator has them.

use std::{cell::RefCell, rc::Rc};

use super::*;
use crate::{
    machine::{
        Space,
        testing::{Harness, put},
    },
    node::Published,
    pb::{
        command::v1::{Reason, command::Op},
        event::v1::{AppendRequest, Event, TrimStreamRequest, trim_stream_request},
        kv::v1::CompactRequest,
    },
    streaming::{Changes, EventPlace, Events},
    types::{KeyRange, LogIndex, Position, Revision},
};

/// A machine and what it published; not even sent between threads.
#[derive(Clone)]
struct World(Rc<(RefCell<Harness>, Feed)>);

impl Local for World {
    fn view(&self) -> View {
        self.0.0.borrow().view()
    }

    fn feed(&self) -> &Feed {
        &self.0.1
    }
}

impl World {
    fn new() -> Self {
        Self(Rc::new((RefCell::new(Harness::new()), Feed::new(FeedHead::default()))))
    }

    fn apply(&self, op: Op) {
        let mut harness = self.0.0.borrow_mut();
        let before = harness.machine.head().clone();
        let applied = harness.apply(op);
        let batch = Published {
            revision_before: before.revision,
            revision: applied.head.revision,
            position_before: before.position,
            position: applied.head.position,
            changes: applied.changes,
            events: applied.events,
        };
        self.feed().publish(applied.head.index, batch);
    }

    fn put(&self, key: &str) {
        self.apply(put(key, "v"));
    }

    fn append(&self, stream: &str) {
        let event = Event { r#type: "Happened".to_owned(), ..Event::default() };
        let stream = stream.to_owned();
        self.apply(Op::Append(AppendRequest { stream, events: vec![event], ..Default::default() }));
    }

    /// A snapshot replaced the state, which stands where it stood.
    fn install(&self) {
        self.feed().installed(self.feed().head());
    }

    fn changes(&self) -> Changes<Self> {
        Changes::new(self.clone(), Space::User, KeyRange::from_wire(&"a".into(), &"b".into()))
    }

    fn head(&self) -> FeedHead {
        self.feed().head()
    }
}

/// The revisions of the next update, and whether it is live and fell behind; `None` is nothing new.
fn revisions(
    world: &World,
    core: &mut CursorCore<Changes<World>>,
) -> Option<(Vec<u64>, bool, bool)> {
    let update = core.poll(&world.head()).expect("the state is read").expect("no refusal")?;
    let items = update.items.iter().map(|change| change.kv.mod_revision).collect();
    Some((items, update.caught_up, update.fell_behind))
}

#[test]
fn changes_come_out_of_history_then_live_then_not_at_all() {
    let world = World::new();
    for key in ["a1", "b", "a2"] {
        world.put(key);
    }
    let mut core = world.changes().core_catching_up(Revision::new(1));
    assert_eq!(revisions(&world, &mut core), Some((vec![3], true, false)));
    assert_eq!(revisions(&world, &mut core), None);
    world.put("b");
    assert_eq!(revisions(&world, &mut core), None, "of no interest");
    assert_eq!(core.place(), Revision::new(4), "and passed over");
    world.put("a1");
    world.put("a3");
    assert_eq!(revisions(&world, &mut core), Some((vec![5, 6], false, false)));
    assert_eq!(revisions(&world, &mut core), None);
}

#[test]
fn a_replaced_state_sends_the_reader_back_to_history_without_a_repeat() {
    let world = World::new();
    world.put("a1");
    let mut core = world.changes().core_caught_up(Revision::new(1));
    assert_eq!(revisions(&world, &mut core), None, "it was told that this is the live end");
    world.put("a2");
    world.install();
    assert_eq!(revisions(&world, &mut core), Some((vec![2], true, true)));
    world.put("a3");
    assert_eq!(revisions(&world, &mut core), Some((vec![3], false, false)));
}

#[test]
fn history_that_was_compacted_is_refused_and_never_a_gap() {
    let world = World::new();
    for key in ["a1", "a1", "a1"] {
        world.put(key);
    }
    world.apply(Op::Compact(CompactRequest { revision: 2, ..Default::default() }));
    let mut core = world.changes().core_catching_up(Revision::new(1));
    let refused = core.poll(&world.head()).expect("the state is read").unwrap_err();
    assert_eq!(refused.reason(), Reason::Compacted);
    let mut core = world.changes().core_catching_up(Revision::new(2));
    assert_eq!(revisions(&world, &mut core), Some((vec![3], true, false)));
}

#[test]
fn whoever_reads_history_elsewhere_takes_the_steps_himself() {
    let world = World::new();
    world.put("a1");
    let mut core = world.changes().core_catching_up(Revision::ZERO);
    let Step::ReadHistory(after) = core.step(&world.head()) else { panic!("history is first") };
    assert!(
        matches!(core.step(&world.head()), Step::ReadHistory(again) if again == after),
        "a step that was not carried out is asked for again"
    );
    let piece = core.source().history(after).expect("the state is read").expect("no refusal");
    assert_eq!(core.take_history(piece).expect("it tells").items.len(), 1);
    assert!(matches!(core.step(&world.head()), Step::Wait));
    world.put("a2");
    assert!(matches!(core.step(&world.head()), Step::Deliver(update) if update.items.len() == 1));
}

#[test]
fn events_come_from_a_version_and_end_where_a_trim_overtakes_the_reader() {
    let world = World::new();
    for stream in ["s", "t", "s", "s"] {
        world.append(stream);
    }
    let versions = |core: &mut CursorCore<Events<World>>| {
        let update = core.poll(&world.head()).expect("the state is read").expect("no refusal")?;
        Some(update.items.iter().map(|event| event.version).collect::<Vec<_>>())
    };
    let stream = || Events::new(world.clone(), "s");
    let mut core = stream().core_starting_at(2);
    assert_eq!(versions(&mut core), Some(vec![2, 3]));
    assert_eq!(versions(&mut core), None);
    world.append("s");
    assert_eq!(versions(&mut core), Some(vec![4]));
    let mut all = Events::new(world.clone(), "").core_starting_at(0);
    assert_eq!(versions(&mut all), Some(vec![1, 1, 2, 3, 4]));
    let before = Some(trim_stream_request::Before::BeforeVersion(3));
    let trim = TrimStreamRequest { stream: "s".into(), before, ..Default::default() };
    world.apply(Op::TrimStream(trim));
    let refused = stream().core_starting_at(2).poll(&world.head()).expect("the state is read");
    assert_eq!(refused.unwrap_err().reason(), Reason::Trimmed);
    assert_eq!(versions(&mut stream().core_starting_at(0)), Some(vec![3, 4]), "what is kept");
    let place = EventPlace { position: Position::new(5), version: 4, at_first: false };
    assert_eq!(versions(&mut stream().core_caught_up(place)), None, "told to be the live end");
    assert_eq!(world.head().index, LogIndex::new(6));
}
