//! One event stream by version, or all streams by position.
//!
//! What stands at which place is agreed on beforehand, from everything that anybody was told, so
//! the state is only how far the stream goes. An append of unknown outcome fits where its events
//! are, or where nobody was told what is there.

use std::collections::BTreeMap;

use crate::sim::{
    checker::{
        model::{Entry, Model, known},
        ops::Op,
    },
    history::{Answer, Call},
};

/// A stream, or all of them.
#[derive(Debug, Default)]
pub(crate) struct Stream {
    /// What is known to stand at each place.
    places: BTreeMap<u64, String>,
    /// Where each of these data stands.
    data: BTreeMap<String, u64>,
}

/// An operation on a stream.
#[derive(Debug)]
pub(crate) enum StreamOp {
    Append { first: Option<u64>, data: Vec<String>, expected: Option<u64> },
    Read { from: u64, places: Vec<(u64, String)> },
}

impl Stream {
    /// Operations by version, or by position where `all`.
    pub(crate) fn read_by(ops: &[&Op<'_>], all: bool) -> (Self, Vec<Entry<StreamOp>>) {
        let mut model = Self::default();
        let mut entries = Vec::with_capacity(ops.len());
        for op in ops {
            let read = match (op.call, known(op)) {
                (Call::Append { data, expected_version, .. }, answer) => {
                    let first = match answer {
                        Some(Answer::Appended { first_version, first_position, .. }) => {
                            Some(if all { *first_position } else { *first_version })
                        }
                        _ => None,
                    };
                    for (place, data) in first.into_iter().flat_map(|first| (first..).zip(data)) {
                        model.note(place, data);
                    }
                    let expected = expected_version.filter(|_| !all);
                    StreamOp::Append { first, data: data.clone(), expected }
                }
                (Call::ReadStream { from, stream }, Some(Answer::Events { events })) => {
                    if all != stream.is_empty() {
                        continue;
                    }
                    let place = |event: &crate::sim::history::Event| {
                        (if all { event.position } else { event.version }, event.data.clone())
                    };
                    let places: Vec<_> = events.iter().map(place).collect();
                    for (place, data) in &places {
                        model.note(*place, data);
                    }
                    StreamOp::Read { from: *from, places }
                }
                _ => continue,
            };
            entries.push(Entry::new(op, read));
        }
        (model, entries)
    }

    fn note(&mut self, place: u64, data: &str) {
        self.places.entry(place).or_insert_with(|| data.to_owned());
        self.data.entry(data.to_owned()).or_insert(place);
    }

    fn fits(&self, first: u64, data: &[String]) -> bool {
        (first..).zip(data).all(|(place, data)| {
            self.places
                .get(&place)
                .map_or_else(|| !self.data.contains_key(data), |there| there == data)
        })
    }
}

impl Model for Stream {
    /// The last place.
    type State = u64;
    type Op = StreamOp;

    fn read(ops: &[&Op<'_>]) -> (Self, Vec<Entry<StreamOp>>) {
        Self::read_by(ops, false)
    }

    fn start(&self) -> u64 {
        0
    }

    fn step(&self, state: &u64, op: &StreamOp, next: &mut Vec<u64>) {
        match op {
            StreamOp::Append { first, data, expected } => {
                let here = state.saturating_add(1);
                let placed = first.is_none_or(|first| first == here) && self.fits(here, data);
                if placed && expected.is_none_or(|expected| expected == *state) {
                    next.push(state.saturating_add(data.len() as u64));
                }
            }
            StreamOp::Read { from, places } => {
                let from = (*from).max(1);
                let dense = (from..)
                    .zip(places)
                    .all(|(place, (at, data))| *at == place && self.places.get(at) == Some(data));
                let end = from.saturating_add(places.len() as u64).saturating_sub(1);
                let to_its_end = if places.is_empty() { *state < from } else { *state == end };
                if dense && to_its_end {
                    next.push(*state);
                }
            }
        }
    }

    fn legal(&self, state: &u64, op: &StreamOp) -> String {
        match op {
            StreamOp::Append { expected: Some(expected), .. } if expected != state => {
                format!("a refusal, for the stream stood at {state}")
            }
            StreamOp::Append { .. } => format!("appended at {}", state.saturating_add(1)),
            StreamOp::Read { from, .. } => {
                let event = |place: u64| match self.places.get(&place) {
                    Some(data) => format!("{place}:{data}"),
                    None => format!("{place}:an event that nobody else was told"),
                };
                let events: Vec<_> = ((*from).max(1)..=*state).map(event).collect();
                format!("events [{}]", events.join(", "))
            }
        }
    }
}
