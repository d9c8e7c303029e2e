//! Event streams: everybody is told one sequence, in which each append stands where it was
//! acknowledged, once, after everything that was acknowledged before it.

use std::collections::BTreeMap;

use crate::sim::{
    checker::{ops::End, witness::judge::Judge},
    history::{Answer, Call, Event, Line},
};

/// Who tells something: an operation, or a subscription by its number, and on which line.
#[derive(Clone, Copy, Debug)]
struct Teller {
    op: Option<usize>,
    subscription: u64,
    line: usize,
}

/// An event that is known to stand somewhere.
#[derive(Clone, Copy, Debug)]
struct Place<'a> {
    stream: &'a str,
    version: u64,
    data: &'a str,
    /// The append that it came by, where that is known.
    op: Option<usize>,
}

/// Judges the event streams.
pub(super) fn judge(judge: &mut Judge<'_>) {
    let mut events = Events::new(judge);
    events.note_acknowledged();
    events.note_told();
    events.check_places();
    events.check_order();
    events.check_reads();
    events.check_expected();
    subscriptions(judge);
}

struct Events<'j, 'a> {
    judge: &'j mut Judge<'a>,
    places: BTreeMap<u64, Place<'a>>,
    by_version: BTreeMap<(&'a str, u64), u64>,
    /// Who appends, or would have appended, an event to a stream, and as which of its events.
    writers: BTreeMap<(&'a str, &'a str), Vec<(usize, u64)>>,
    /// Where appends of unknown outcome were placed: by the first position.
    placed: BTreeMap<usize, u64>,
}

impl<'j, 'a> Events<'j, 'a> {
    fn new(judge: &'j mut Judge<'a>) -> Self {
        let mut writers: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for (at, op) in judge.ops.iter().enumerate() {
            let Call::Append { stream, data, .. } = op.call else { continue };
            for (offset, data) in (0_u64..).zip(data) {
                writers.entry((stream.as_str(), data.as_str())).or_default().push((at, offset));
            }
        }
        Self {
            judge,
            places: BTreeMap::new(),
            by_version: BTreeMap::new(),
            writers,
            placed: BTreeMap::new(),
        }
    }

    fn tell(&mut self, rule: &'static str, teller: Teller, why: String) {
        match teller.op {
            Some(op) => self.judge.find(rule, op, why, Vec::new()),
            None => {
                let feed = format!("subscription {}", teller.subscription);
                self.judge.find_fed(rule, &feed, teller.line, why);
            }
        }
    }

    /// Puts an event where it is said to be; tells where another one is there.
    fn put(&mut self, position: u64, place: Place<'a>, teller: Teller) {
        let Place { stream, version, data, op } = place;
        if let Some(there) = self.places.get_mut(&position) {
            if (there.stream, there.version, there.data) == (stream, version, data) {
                there.op = there.op.or(op);
                return;
            }
            let why = format!(
                "position {position} is {stream}:{version} {data:?}, but was told as {}:{} {:?}",
                there.stream, there.version, there.data
            );
            return self.tell("event-agree", teller, why);
        }
        if let Some(other) = self.by_version.insert((stream, version), position) {
            let why = format!(
                "version {version} of {stream} is at position {position}, but was told at {other}"
            );
            return self.tell("event-agree", teller, why);
        }
        self.places.insert(position, place);
    }

    fn note_acknowledged(&mut self) {
        for at in 0..self.judge.ops.len() {
            let op = self.judge.ops[at];
            let Call::Append { stream, data, .. } = op.call else { continue };
            let End::Ok(Answer::Appended { first_version, first_position, .. }) = op.end else {
                continue;
            };
            let teller = Teller { op: Some(at), subscription: 0, line: op.returned };
            for (offset, data) in (0_u64..).zip(data) {
                let version = first_version.saturating_add(offset);
                let place = Place { stream, version, data, op: Some(at) };
                self.put(first_position.saturating_add(offset), place, teller);
            }
        }
    }

    fn note_told(&mut self) {
        for at in 0..self.judge.ops.len() {
            let op = self.judge.ops[at];
            let End::Ok(Answer::Events { events }) = op.end else { continue };
            let teller = Teller { op: Some(at), subscription: 0, line: op.returned };
            for event in events {
                self.told(event, teller);
            }
        }
        let history = self.judge.history;
        for (line, what) in history.lines.iter().enumerate() {
            if let Line::SubscriptionTold { subscription, event, .. } = what {
                self.told(event, Teller { op: None, subscription: *subscription, line });
            }
        }
    }

    /// Holds an event that somebody was told against the appends.
    fn told(&mut self, event: &'a Event, teller: Teller) {
        let Event { stream, version, position, data } = event;
        let known = self.places.get(position);
        let same = known.is_some_and(|place| {
            (place.stream, place.version, place.data) == (stream, *version, data)
        });
        if same {
            return;
        }
        let writers =
            self.writers.get(&(stream.as_str(), data.as_str())).cloned().unwrap_or_default();
        let before = |(at, _): &&(usize, u64)| self.judge.ops[*at].called < teller.line;
        let open = writers.iter().filter(before).find(|(at, offset)| {
            let fits =
                self.placed.get(at).is_none_or(|first| first.saturating_add(*offset) == *position);
            self.judge.ops[*at].is_unknown() && fits
        });
        let place = Place { stream, version: *version, data, op: None };
        let what = format!("{data:?} of stream {stream} at position {position}");
        if let Some((at, offset)) = open.copied() {
            self.judge.note_placed(at);
            self.placed.insert(at, position.saturating_sub(offset));
            return self.put(*position, Place { op: Some(at), ..place }, teller);
        }
        let Some((at, _)) = writers.iter().find(before).copied() else {
            let why = format!("nobody had appended {what}");
            return self.tell("event-phantom", teller, why);
        };
        let words = self.judge.ops[at].words();
        let rule = match self.judge.ops[at].end {
            End::Refused { .. } => "event-refused",
            _ if known.is_some() => "event-agree",
            End::Unknown => "event-once",
            End::Ok(_) => "event-acknowledged",
        };
        self.tell(rule, teller, format!("{what} was appended by {words}"));
    }

    /// Versions follow positions, and what is missing between them fits the appends of unknown
    /// outcome.
    fn check_places(&mut self) {
        let mut open_of_stream: BTreeMap<&str, u64> = BTreeMap::new();
        let mut open = 0;
        for (at, op) in self.judge.ops.iter().enumerate() {
            if let Call::Append { stream, data, .. } = op.call
                && op.is_unknown()
            {
                // Of a placed one, some events may not have been told.
                let untold = match self.placed.get(&at) {
                    None => data.len() as u64,
                    Some(first) => (*first..first.saturating_add(data.len() as u64))
                        .filter(|position| !self.places.contains_key(position))
                        .count() as u64,
                };
                *open_of_stream.entry(stream).or_default() += untold;
                open += untold;
            }
        }
        let mut last: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
        let mut versions: BTreeMap<&str, u64> = BTreeMap::new();
        let mut wrong = Vec::new();
        for (position, place) in &self.places {
            *versions.entry(place.stream).or_default() += 1;
            let before = last.insert(place.stream, (place.version, *position));
            if let Some((version, at)) = before
                && version >= place.version
            {
                let why = format!(
                    "{}:{} at position {position} follows {version} at position {at}",
                    place.stream, place.version
                );
                wrong.push(("event-order", place.op, why));
            }
        }
        for (stream, (version, position)) in &last {
            let missing = version.saturating_sub(versions[stream]);
            if missing > open_of_stream.get(stream).copied().unwrap_or(0) {
                let why = format!(
                    "{missing} versions of stream {stream} up to {version} are held by no append"
                );
                wrong.push(("event-dense", self.places[position].op, why));
            }
        }
        if let Some((position, place)) = self.places.last_key_value() {
            let missing = position.saturating_sub(self.places.len() as u64);
            if missing > open {
                let why = format!("{missing} positions up to {position} are held by no append");
                wrong.push(("event-dense", place.op, why));
            }
        }
        for (rule, op, why) in wrong {
            match op {
                Some(op) => self.judge.find(rule, op, why, Vec::new()),
                None => self.judge.find_fed(rule, "streams", usize::MAX, why),
            }
        }
    }

    /// A later append gets later positions; a read has everything acknowledged before it.
    fn check_order(&mut self) {
        let mut floors = vec![0_u64; self.judge.ops.len()];
        let (mut floor, mut calls) = (0, self.judge.ops.iter().enumerate().peekable());
        let returns: BTreeMap<usize, u64> = self
            .judge
            .ops
            .iter()
            .filter_map(|op| match (op.call, op.end) {
                (Call::Append { data, .. }, End::Ok(Answer::Appended { first_position, .. })) => {
                    Some((op.returned, last(*first_position, data.len())))
                }
                (_, End::Ok(Answer::Events { events })) => {
                    Some((op.returned, events.iter().map(|event| event.position).max()?))
                }
                _ => None,
            })
            .collect();
        for (line, what) in self.judge.history.lines.iter().enumerate() {
            if let Some((at, _)) = calls.next_if(|(_, op)| op.called == line) {
                floors[at] = floor;
            }
            let known = match what {
                Line::Return { .. } => returns.get(&line).copied(),
                Line::SubscriptionTold { event, .. } => Some(event.position),
                _ => None,
            };
            floor = floor.max(known.unwrap_or(0));
        }
        for (at, floor) in floors.into_iter().enumerate() {
            let first = match self.judge.ops[at].end {
                End::Ok(Answer::Appended { first_position, duplicate: false, .. }) => {
                    Some(*first_position)
                }
                _ => self.placed.get(&at).copied(),
            };
            if let Some(first) = first.filter(|first| *first <= floor) {
                let why = format!("it stands at {first}, but {floor} was known before the call");
                let legal = vec![format!("a position above {floor}")];
                self.judge.find("event-order", at, why, legal);
            }
        }
    }

    /// Reads are dense, begin where asked, and have what was acknowledged before.
    fn check_reads(&mut self) {
        // By stream ("" is all): the last place known at each line at which it moved.
        let mut known: BTreeMap<&'a str, Vec<(usize, u64)>> = BTreeMap::new();
        for (stream, line, place) in self.acknowledged() {
            let all = known.entry(stream).or_default();
            let last = all.last().map_or(0, |(_, place)| *place);
            all.push((line, last.max(place)));
        }
        for at in 0..self.judge.ops.len() {
            let op = self.judge.ops[at];
            let Call::ReadStream { stream, from } = op.call else { continue };
            let floor = known.get(stream.as_str()).map_or(0, |all| {
                let before = all.partition_point(|(line, _)| *line < op.called);
                before.checked_sub(1).map_or(0, |last| all[last].1)
            });
            let (end, legal) = match op.end {
                End::Ok(Answer::Events { events }) => {
                    let place = |event: &Event| {
                        if stream.is_empty() { event.position } else { event.version }
                    };
                    let from = (*from).max(1);
                    let wrong =
                        (from..).zip(events).find(|(expected, event)| place(event) != *expected);
                    if let Some((expected, event)) = wrong {
                        let why = format!("{expected} is due where {} stands", place(event));
                        self.judge.find("event-dense", at, why, Vec::new());
                        continue;
                    }
                    (last(from, events.len()), format!("events up to {floor} at least"))
                }
                End::Refused { reason: "STREAM_NOT_FOUND", .. } => (0, "events".to_owned()),
                _ => continue,
            };
            if end < floor && *from <= floor {
                let why = format!("{floor} was acknowledged before the call");
                self.judge.find("event-lost", at, why, vec![legal]);
            }
        }
    }

    /// What was acknowledged or read, by line: of each stream and of all.
    fn acknowledged(&self) -> Vec<(&'a str, usize, u64)> {
        let mut all = Vec::new();
        for op in &self.judge.ops {
            match (op.call, op.end) {
                (
                    Call::Append { stream, data, .. },
                    End::Ok(Answer::Appended { first_version, first_position, .. }),
                ) => {
                    all.push((stream.as_str(), op.returned, last(*first_version, data.len())));
                    all.push(("", op.returned, last(*first_position, data.len())));
                }
                (_, End::Ok(Answer::Events { events })) => {
                    for event in events {
                        all.push((event.stream.as_str(), op.returned, event.version));
                        all.push(("", op.returned, event.position));
                    }
                }
                _ => {}
            }
        }
        for (line, what) in self.judge.history.lines.iter().enumerate() {
            if let Line::SubscriptionTold { event, .. } = what {
                all.push((event.stream.as_str(), line, event.version));
                all.push(("", line, event.position));
            }
        }
        all.sort_unstable_by_key(|(_, line, _)| *line);
        all
    }

    /// An expected version is honoured, and a refusal for it is plausible.
    fn check_expected(&mut self) {
        let mut floors: BTreeMap<&str, Vec<(usize, u64)>> = BTreeMap::new();
        for (stream, line, place) in self.acknowledged() {
            let all = floors.entry(stream).or_default();
            let last = all.last().map_or(0, |(_, place)| *place);
            all.push((line, last.max(place)));
        }
        for at in 0..self.judge.ops.len() {
            let op = self.judge.ops[at];
            let Call::Append { stream, expected_version: Some(expected), .. } = op.call else {
                continue;
            };
            let actual = match op.end {
                End::Ok(Answer::Appended { first_version, duplicate: false, .. })
                    if *first_version != expected.saturating_add(1) =>
                {
                    let why = format!("it was appended as version {first_version}");
                    let legal =
                        vec![format!("version {}", expected.saturating_add(1)), "a refusal".into()];
                    self.judge.find("event-expected-version", at, why, legal);
                    continue;
                }
                End::Refused { reason: "WRONG_EXPECTED_VERSION", actual: Some(actual) } => actual,
                _ => continue,
            };
            let floor = floors.get(stream.as_str()).map_or(0, |all| {
                let before = all.partition_point(|(line, _)| *line < op.called);
                before.checked_sub(1).map_or(0, |last| all[last].1)
            });
            let made_later = self
                .by_version
                .get(&(stream.as_str(), actual))
                .and_then(|position| self.places[position].op)
                .filter(|writer| self.judge.ops[*writer].called > op.returned);
            let why = if actual == *expected {
                format!("the stream stood at {actual}, as expected")
            } else if actual < floor {
                format!("the stream stood at {floor} before the call, not at {actual}")
            } else if let Some(writer) = made_later {
                let words = self.judge.ops[writer].words();
                format!("version {actual} was appended later, by {words}")
            } else {
                continue;
            };
            self.judge.find("event-expected-version", at, why, Vec::new());
        }
    }
}

/// The last of some places in a row; the one before the first where there are none.
const fn last(first: u64, count: usize) -> u64 {
    first.saturating_add(count as u64).saturating_sub(1)
}

/// Subscriptions begin where asked, leave nothing out and repeat nothing.
fn subscriptions(judge: &mut Judge<'_>) {
    let mut open: BTreeMap<u64, (&str, u64)> = BTreeMap::new();
    let history = judge.history;
    for (at, line) in history.lines.iter().enumerate() {
        match line {
            Line::SubscriptionBegins { subscription, stream, from, .. } => {
                judge.note_feed(&format!("subscription {subscription}"));
                open.insert(*subscription, (stream, (*from).max(1)));
            }
            Line::SubscriptionTold { subscription, event, .. } => {
                judge.counts.told_events += 1;
                let name = format!("subscription {subscription}");
                judge.note_feed(&name);
                let Some((stream, next)) = open.get_mut(subscription) else {
                    judge.find_fed("subscription-gap", &name, at, "it had not begun".into());
                    continue;
                };
                let place = if stream.is_empty() { event.position } else { event.version };
                let due = core::mem::replace(next, place.saturating_add(1));
                if !stream.is_empty() && *stream != event.stream {
                    let why = format!("it is of stream {stream}, but was told of {}", event.stream);
                    judge.find_fed("subscription-gap", &name, at, why);
                } else if place != due {
                    let why = format!("{due} was due, {place} came");
                    judge.find_fed("subscription-gap", &name, at, why);
                }
            }
            _ => {}
        }
    }
}
