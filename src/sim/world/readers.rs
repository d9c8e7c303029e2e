//! Watches of keys and subscriptions of events, on the cursor that ships: they look now and then,
//! move to other nodes and resume there after the last place that they were told.

use std::sync::{Arc, Mutex, PoisonError};

use crate::{
    machine::{ChangeKind, Space, View, store::Store},
    node::Feed,
    pb::command::v1::{Reason, Refusal},
    sim::{
        history::{Event, Line},
        invariants::Broken,
        plan::Settings,
        store::SimStore,
    },
    streaming::{Changes, CursorCore, Events, Local, Update},
    types::{Duration, KeyRange, Position, Revision, Rng},
};

use super::{Happening, World};

/// The keys that a watch covers: all of a workload's.
const KEY: &str = "k";
const RANGE_END: &str = "l";
/// The stream that some subscriptions follow; others follow all.
const STREAM: &str = "e0";

/// A node's state and feed, as its services have them.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) store: Arc<Mutex<Arc<SimStore>>>,
    pub(super) feed: Arc<Feed>,
}

impl Local for Place {
    fn view(&self) -> View {
        View::new(self.store.lock().unwrap_or_else(PoisonError::into_inner).snapshot())
    }

    fn feed(&self) -> &Feed {
        &self.feed
    }
}

/// All readers: watches first, then as many subscriptions.
#[derive(Debug)]
pub(super) struct Readers {
    readers: Vec<Reader>,
    rng: Rng,
}

#[derive(Debug)]
struct Reader {
    what: What,
    node: usize,
    /// Which start of the node the cursor is of.
    boot: u64,
    /// How many looks it stays at a node.
    stays: u64,
}

#[derive(Debug)]
enum What {
    Watch { after: u64, cursor: Option<CursorCore<Changes<Place>>> },
    Subscription { stream: &'static str, from: u64, cursor: Option<CursorCore<Events<Place>>> },
}

impl What {
    fn hang_up(&mut self) {
        match self {
            Self::Watch { cursor, .. } => *cursor = None,
            Self::Subscription { cursor, .. } => *cursor = None,
        }
    }

    const fn is_open(&self) -> bool {
        match self {
            Self::Watch { cursor, .. } => cursor.is_some(),
            Self::Subscription { cursor, .. } => cursor.is_some(),
        }
    }
}

impl Readers {
    pub(super) fn new(settings: &Settings, rng: &Rng) -> Self {
        let rng = rng.stream("readers");
        let watch = |_| What::Watch { after: 0, cursor: None };
        let subscription = |n: u64| {
            let stream = if n.is_multiple_of(2) { STREAM } else { "" };
            What::Subscription { stream, from: 1, cursor: None }
        };
        let all = (0..settings.readers).map(watch).chain((0..settings.readers).map(subscription));
        let readers = all.map(|what| Reader { what, node: 0, boot: 0, stays: 0 });
        Self { readers: readers.collect(), rng }
    }
}

impl World {
    pub(super) fn begin_readers(&mut self) {
        for reader in 0..self.readers.readers.len() {
            self.look_later(reader);
        }
    }

    fn look_later(&mut self, reader: usize) {
        // Often enough to be live, sometimes late enough to fall behind.
        let most = if self.readers.rng.below(10) == 0 { 3_000 } else { 150 };
        let span = Duration::from_millis(1 + self.readers.rng.below(most));
        self.after(span, Happening::Reader { reader });
    }

    pub(super) fn reader_looks(&mut self, at: usize) -> Result<(), Broken> {
        self.look_later(at);
        let nodes = self.nodes.len();
        let Readers { readers, rng } = &mut self.readers;
        let reader = &mut readers[at];
        reader.stays = reader.stays.saturating_sub(1);
        let boot = self.nodes[reader.node].process.as_ref().map_or(0, |process| process.boot);
        if boot != reader.boot || boot == 0 || reader.stays == 0 {
            reader.what.hang_up();
            reader.node = usize::try_from(rng.below(nodes as u64)).expect("a few nodes");
            reader.stays = 1 + rng.below(100);
        }
        let node = reader.node;
        let Some(process) = self.nodes[node].process.as_deref() else { return Ok(()) };
        if self.nodes[node].paused_until.is_some() {
            return Ok(());
        }
        let place = Place { store: Arc::clone(&process.current), feed: Arc::clone(&process.feed) };
        self.readers.readers[at].boot = process.boot;
        if !self.readers.readers[at].what.is_open() {
            self.open_reader(at, place.clone());
        }
        self.read(at, &place.feed.head())
    }

    fn open_reader(&mut self, at: usize, place: Place) {
        let (time, number) = (self.now.as_nanos(), at as u64 + 1);
        let line = match &mut self.readers.readers[at].what {
            What::Watch { after, cursor } => {
                let range =
                    KeyRange::from_wire(&KEY.as_bytes().into(), &RANGE_END.as_bytes().into());
                let changes = Changes::new(place, Space::User, range);
                *cursor = Some(changes.core_catching_up(Revision::new(*after)));
                let (key, range_end) = (KEY.to_owned(), RANGE_END.to_owned());
                Line::WatchBegins { time, watch: number, key, range_end, after: *after }
            }
            What::Subscription { stream, from, cursor } => {
                *cursor = Some(Events::new(place, stream).core_starting_at(*from));
                let (stream, from) = ((*stream).to_owned(), *from);
                Line::SubscriptionBegins { time, subscription: number, stream, from }
            }
        };
        self.recorder.line(line);
    }

    fn read(&mut self, at: usize, head: &crate::node::FeedHead) -> Result<(), Broken> {
        loop {
            let readable = "memory is readable";
            match &mut self.readers.readers[at].what {
                What::Watch { cursor: Some(cursor), .. } => {
                    match cursor.poll(head).expect(readable) {
                        Ok(Some(update)) => self.watch_told(at, update),
                        Ok(None) => return Ok(()),
                        Err(refusal) => return self.watch_refused(at, &refusal),
                    }
                }
                What::Subscription { cursor: Some(cursor), .. } => {
                    match cursor.poll(head).expect(readable) {
                        Ok(Some(update)) => self.subscription_told(at, update),
                        Ok(None) => return Ok(()),
                        Err(refusal) => {
                            let words = format!("a subscription was refused: {}", refusal.message);
                            return Err(Broken::new("subscription-goes-on", words));
                        }
                    }
                }
                _ => return Ok(()),
            }
        }
    }

    fn watch_told(&mut self, at: usize, update: Update<Changes<Place>>) {
        let (time, watch) = (self.now.as_nanos(), at as u64 + 1);
        if update.fell_behind {
            self.counts.count("watch fell behind");
        }
        let revisions: Vec<u64> = update.items.iter().map(|item| item.kv.mod_revision).collect();
        for (n, change) in update.items.into_iter().enumerate() {
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            let value = (change.kind == ChangeKind::Put).then(|| text(&change.kv.value));
            self.recorder.line(Line::WatchTold {
                time,
                watch,
                key: text(&change.kv.key),
                value,
                revision: revisions[n],
                last: revisions.get(n + 1) != Some(&revisions[n]),
            });
        }
        let revision = update.place.value();
        self.recorder.line(Line::WatchProgress { time, watch, revision });
        if let What::Watch { after, .. } = &mut self.readers.readers[at].what {
            *after = revision;
        }
    }

    fn watch_refused(&mut self, at: usize, refusal: &Refusal) -> Result<(), Broken> {
        let through = refusal.metadata.get("compact_revision").and_then(|at| at.parse().ok());
        let (Reason::Compacted, Some(through)) = (refusal.reason(), through) else {
            let words = format!("a watch was refused: {}", refusal.message);
            return Err(Broken::new("watch-goes-on", words));
        };
        self.counts.count("watch met a compaction");
        let (time, watch) = (self.now.as_nanos(), at as u64 + 1);
        self.recorder.line(Line::WatchCompacted { time, watch, through });
        self.readers.readers[at].what = What::Watch { after: through, cursor: None };
        Ok(())
    }

    fn subscription_told(&mut self, at: usize, update: Update<Events<Place>>) {
        let (time, subscription) = (self.now.as_nanos(), at as u64 + 1);
        if update.fell_behind {
            self.counts.count("subscription fell behind");
        }
        for event in &update.items {
            let event = Event {
                stream: event.stream.clone(),
                version: event.version,
                position: event.position,
                data: String::from_utf8_lossy(&event.data).into_owned(),
            };
            self.recorder.line(Line::SubscriptionTold { time, subscription, event });
        }
        if let What::Subscription { stream, from, .. } = &mut self.readers.readers[at].what {
            *from = match update.items.last() {
                Some(last) if stream.is_empty() => last.position + 1,
                Some(last) => last.version + 1,
                None => *from,
            };
        }
    }

    /// Whether every reader has been told of all that the nodes have.
    pub(super) fn readers_caught_up(&self) -> bool {
        let heads = self.nodes.iter().filter_map(|node| Some(node.process.as_ref()?.feed.head()));
        let head = heads.max_by_key(|head| head.index).unwrap_or_default();
        self.readers.readers.iter().all(|reader| match &reader.what {
            What::Watch { cursor: Some(cursor), .. } => cursor.place() >= head.revision,
            What::Subscription { cursor: Some(cursor), .. } => {
                cursor.place().position >= head.position || head.position == Position::ZERO
            }
            _ => false,
        })
    }
}
