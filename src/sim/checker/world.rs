//! Tests: a service without faults or replicas that clients use at once, so that its histories are
//! legal by construction; and the same histories with one answer falsified.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    sim::{
        checker::{Budget, Verdict, black_box, witness},
        history::{Answer, Call, Event, Held, History, Line, Outcome, Recorder, Versioned},
        workload::{Client, Family, Planned, Shape, generate},
    },
    types::Rng,
};

const MS: u64 = 1_000_000;

/// What the service holds.
#[derive(Clone, Debug, Default)]
struct Service {
    revision: u64,
    keys: BTreeMap<String, (String, u64)>,
    /// Holder, token and session of each lock.
    locks: BTreeMap<String, (String, u64, u64)>,
    /// TTL and end of each session, in nanoseconds.
    sessions: BTreeMap<u64, (u64, u64)>,
    sessions_opened: u64,
    /// Session of each instance of each service.
    instances: BTreeMap<(String, String), u64>,
    events: Vec<Event>,
    guards: BTreeMap<String, u64>,
    compacted: u64,
    /// Keys at each revision.
    past: Vec<BTreeMap<String, (String, u64)>>,
    changes: Vec<(u64, String, Option<String>)>,
}

impl Service {
    fn next(&mut self) -> u64 {
        self.revision += 1;
        self.revision
    }

    fn put(&mut self, key: &str, value: Option<&str>, revision: u64) {
        match value {
            Some(value) => {
                self.keys.insert(key.into(), (value.into(), revision));
            }
            None => {
                self.keys.remove(key);
            }
        }
        self.changes.retain(|(at, k, _)| *at != revision || k != key);
        self.changes.push((revision, key.into(), value.map(Into::into)));
    }

    fn read(&self, key: &str) -> Option<Versioned> {
        let (value, revision) = self.keys.get(key)?;
        Some(Versioned { value: value.clone(), mod_revision: Some(*revision) })
    }

    fn open(&mut self, ttl_ms: u64, now: u64) -> u64 {
        self.sessions_opened += 1;
        let session = 1_000 + self.sessions_opened;
        self.sessions.insert(session, (ttl_ms * MS, now + ttl_ms * MS));
        session
    }

    fn end(&mut self, session: u64) {
        self.sessions.remove(&session);
        let held = self.locks.values().any(|(.., of)| *of == session);
        let listed = self.instances.values().any(|of| *of == session);
        if held || listed {
            self.next();
            self.locks.retain(|_, (.., of)| *of != session);
            self.instances.retain(|_, of| *of != session);
        }
    }

    fn expire(&mut self, now: u64) {
        let over = |(session, (_, end)): (&u64, &(u64, u64))| (*end <= now).then_some(*session);
        for session in self.sessions.iter().filter_map(over).collect::<Vec<_>>() {
            self.end(session);
        }
    }

    fn run(&mut self, call: &Call, now: u64) -> Outcome {
        self.expire(now);
        self.remember();
        let outcome = self.carry_out(call, now);
        self.remember();
        outcome
    }

    /// Keeps the keys as they are at this revision.
    fn remember(&mut self) {
        while self.past.len() as u64 <= self.revision {
            self.past.push(self.keys.clone());
        }
    }

    fn carry_out(&mut self, call: &Call, now: u64) -> Outcome {
        let refused = |reason: &str, actual| Outcome::Refused { reason: reason.into(), actual };
        let at = |revision| Some(revision);
        Outcome::Ok(match call {
            Call::Get { key, .. } => {
                Answer::Got { value: self.read(key), revision: at(self.revision) }
            }
            Call::Put { key, value, require_lock } => {
                if let Some((lock, token)) = require_lock
                    && self.locks.get(lock).is_none_or(|(_, held, _)| held != token)
                {
                    return refused("WRONG_FENCING_TOKEN", None);
                }
                let revision = self.next();
                self.put(key, Some(value), revision);
                Answer::Done { revision: at(revision) }
            }
            Call::Delete { key } => {
                let existed = self.keys.contains_key(key);
                if existed {
                    let revision = self.next();
                    self.put(key, None, revision);
                }
                Answer::Deleted { existed, revision: at(self.revision) }
            }
            Call::Cas { key, expected, value } => {
                let swapped = self.keys.get(key).map(|(value, _)| value) == expected.as_ref();
                if swapped {
                    let revision = self.next();
                    self.put(key, Some(value), revision);
                }
                Answer::Swapped { swapped, revision: at(self.revision) }
            }
            Call::Txn { compares, changes, reads } => {
                let succeeded = compares.iter().all(|one| {
                    self.keys.get(&one.key).map(|(value, _)| value) == one.value.as_ref()
                });
                let changes: Vec<_> = changes
                    .iter()
                    .filter(|one| one.value.is_some() || self.keys.contains_key(&one.key))
                    .collect();
                if succeeded && !changes.is_empty() {
                    let revision = self.next();
                    for one in changes {
                        self.put(&one.key, one.value.as_deref(), revision);
                    }
                }
                let reads = reads.iter().map(|key| self.read(key)).collect();
                Answer::Txn { succeeded, reads, revision: at(self.revision) }
            }
            Call::OpenSession { ttl_ms } => {
                Answer::Opened { session: self.open(*ttl_ms, now), revision: at(self.revision) }
            }
            Call::RenewLock { lock, fencing_token, .. }
                if self.locks.get(lock).is_none_or(|(_, held, _)| held != fencing_token) =>
            {
                return refused("WRONG_FENCING_TOKEN", None);
            }
            Call::RenewSession { session } | Call::RenewLock { session, .. } => {
                let Some((ttl, end)) = self.sessions.get_mut(session) else {
                    return refused("SESSION_NOT_FOUND", None);
                };
                *end = now + *ttl;
                Answer::Renewed
            }
            Call::CloseSession { session } => {
                if !self.sessions.contains_key(session) {
                    return refused("SESSION_NOT_FOUND", None);
                }
                self.end(*session);
                Answer::Done { revision: at(self.revision) }
            }
            Call::Acquire { lock, owner, ttl_ms, session, .. } => {
                if session.is_some_and(|session| !self.sessions.contains_key(&session)) {
                    return refused("SESSION_NOT_FOUND", None);
                }
                if self.locks.contains_key(lock) {
                    return refused("LOCK_HELD", None);
                }
                let session = session.unwrap_or_else(|| self.open(*ttl_ms, now));
                let token = self.next();
                self.locks.insert(lock.clone(), (owner.clone(), token, session));
                Answer::Acquired { fencing_token: token, session }
            }
            Call::Release { lock, fencing_token } => {
                if self.locks.get(lock).is_none_or(|(_, held, _)| held != fencing_token) {
                    return refused("WRONG_FENCING_TOKEN", None);
                }
                self.locks.remove(lock);
                Answer::Done { revision: at(self.next()) }
            }
            Call::Describe { lock } => {
                let held = self.locks.get(lock);
                let holder = held
                    .map(|(owner, token, _)| Held { owner: owner.clone(), fencing_token: *token });
                Answer::Described { holder, revision: at(self.revision) }
            }
            Call::GuardedWrite { lock, fencing_token, .. } => {
                let most = self.guards.entry(lock.clone()).or_default();
                let accepted = *fencing_token >= *most;
                *most = (*most).max(*fencing_token);
                Answer::Guarded { accepted }
            }
            Call::Register { service, instance, ttl_ms } => {
                let session = self.open(*ttl_ms, now);
                let revision = self.next();
                self.instances.insert((service.clone(), instance.clone()), session);
                Answer::Registered { revision: at(revision) }
            }
            Call::Deregister { service, instance } => {
                if self.instances.remove(&(service.clone(), instance.clone())).is_none() {
                    return refused("INSTANCE_NOT_FOUND", None);
                }
                Answer::Done { revision: at(self.next()) }
            }
            Call::Resolve { service } => {
                let of = self.instances.keys().filter(|(of, _)| of == service);
                let instances = of.map(|(_, instance)| instance.clone()).collect();
                Answer::Resolved { instances, revision: at(self.revision) }
            }
            Call::Append { stream, data, expected_version } => {
                let of = self.events.iter().filter(|event| event.stream == *stream);
                let version = of.count() as u64;
                if expected_version.is_some_and(|expected| expected != version) {
                    return refused("WRONG_EXPECTED_VERSION", Some(version));
                }
                let (first_version, first_position) = (version + 1, self.events.len() as u64 + 1);
                for (offset, data) in (0..).zip(data) {
                    self.events.push(Event {
                        stream: stream.clone(),
                        version: first_version + offset,
                        position: first_position + offset,
                        data: data.clone(),
                    });
                }
                Answer::Appended { first_version, first_position, duplicate: false }
            }
            Call::ReadStream { stream, from } => {
                let events = self.events.iter().filter(|event| {
                    if stream.is_empty() {
                        event.position >= *from
                    } else {
                        event.stream == *stream && event.version >= *from
                    }
                });
                Answer::Events { events: events.cloned().collect() }
            }
            Call::Compact { revision } => {
                self.compacted = self.compacted.max(*revision);
                Answer::Done { revision: at(self.revision) }
            }
            Call::Enqueue { .. } | Call::Dequeue { .. } => {
                return refused("UNIMPLEMENTED", None);
            }
        })
    }
}

/// What a client is at.
enum At {
    Thinks { until: u64 },
    Runs { at: u64, id: u64, call: Call },
    Returns { at: u64, id: u64, call: Call, outcome: Outcome },
    Done,
}

impl At {
    const fn due(&self) -> u64 {
        match self {
            Self::Thinks { until: at } | Self::Runs { at, .. } | Self::Returns { at, .. } => *at,
            Self::Done => u64::MAX,
        }
    }
}

/// A history that is legal, with a watch of all keys and subscriptions.
pub(super) fn legal_history(families: &[Family], clients: u64, intents: u64, seed: u64) -> History {
    let mut rng = Rng::new(seed).stream("world");
    let shape =
        Shape { families: families.to_vec(), clients, intents, names: 3, think_ms_max: 400 };
    let mut plan: BTreeMap<u64, Vec<Planned>> = BTreeMap::new();
    for planned in generate(&shape, &mut rng).into_iter().rev() {
        plan.entry(planned.client).or_default().push(planned);
    }
    let mut service = Service::default();
    let mut recorder = Recorder::new("a service without faults");
    let mut clients: Vec<(Client, At, u64)> =
        (1..=clients).map(|id| (Client::new(id), At::Thinks { until: id }, 0)).collect();
    let mut feeds = Feeds::begin(&mut recorder);
    loop {
        let next = clients.iter().enumerate().min_by_key(|(_, (_, at, _))| at.due());
        let (which, now) = next.map(|(which, (_, at, _))| (which, at.due())).expect("clients");
        if now == u64::MAX {
            break;
        }
        let (client, at, stale) = &mut clients[which];
        *at = match core::mem::replace(at, At::Done) {
            At::Thinks { .. } => match plan.get_mut(&client.id()).and_then(Vec::pop) {
                None => At::Done,
                Some(planned) => match client.call(&planned.intent) {
                    None => At::Thinks { until: now + 1 },
                    Some(call) => {
                        let id =
                            recorder.call(now, client.id(), Some(1 + rng.below(3)), call.clone());
                        At::Runs { at: now + 1 + rng.below(300 * MS), id, call }
                    }
                },
            },
            At::Runs { id, call, .. } => {
                let lost = rng.below(12) == 0;
                let outcome = match &call {
                    _ if lost && rng.below(2) == 0 => None,
                    Call::Get { key, stale: true } => {
                        service.run(&Call::Compact { revision: 0 }, now);
                        let back = rng.below(4).min(service.revision - *stale);
                        let revision = service.revision - back;
                        *stale = revision;
                        let past = usize::try_from(revision).expect("it is small");
                        let value = service.past[past].get(key).map(|(value, of)| Versioned {
                            value: value.clone(),
                            mod_revision: Some(*of),
                        });
                        Some(Outcome::Ok(Answer::Got { value, revision: Some(revision) }))
                    }
                    call => Some(service.run(call, now)),
                };
                let outcome =
                    outcome.filter(|_| !lost).unwrap_or(Outcome::Unknown { reason: "lost".into() });
                At::Returns { at: now + 1 + rng.below(300 * MS), id, call, outcome }
            }
            At::Returns { id, call, outcome, .. } => {
                client.learn(&call, &outcome);
                recorder.returned(now, id, outcome);
                At::Thinks { until: now + 1 + rng.below(200 * MS) }
            }
            At::Done => At::Done,
        };
        if rng.below(4) == 0 {
            feeds.tell(&service, now, &mut recorder, &mut rng);
        }
    }
    recorder.into_history()
}

/// A watch and two subscriptions.
struct Feeds {
    told: u64,
    positions: u64,
    versions: u64,
}

impl Feeds {
    fn begin(recorder: &mut Recorder) -> Self {
        let mut feeds = Self { told: 0, positions: 0, versions: 0 };
        feeds.watch(recorder, 0);
        for (subscription, stream) in [(1, ""), (2, "e0")] {
            recorder.line(Line::SubscriptionBegins {
                time: 0,
                subscription,
                stream: stream.into(),
                from: 1,
            });
        }
        feeds
    }

    fn watch(&mut self, recorder: &mut Recorder, time: u64) {
        let (key, range_end) = ("k".into(), "l".into());
        recorder.line(Line::WatchBegins { time, watch: 1, key, range_end, after: self.told });
    }

    fn tell(&mut self, service: &Service, time: u64, recorder: &mut Recorder, rng: &mut Rng) {
        if self.told < service.compacted && rng.below(4) == 0 {
            let through = service.compacted;
            recorder.line(Line::WatchCompacted { time, watch: 1, through });
            self.told = through;
            self.watch(recorder, time);
        }
        let mut changes = service.changes.clone();
        changes.retain(|(at, ..)| *at > self.told);
        for (at, (revision, key, value)) in changes.iter().enumerate() {
            let last = changes.get(at + 1).is_none_or(|(next, ..)| next != revision);
            recorder.line(Line::WatchTold {
                time,
                watch: 1,
                key: key.clone(),
                value: value.clone(),
                revision: *revision,
                last,
            });
            self.told = *revision;
        }
        match rng.below(4) {
            0 => {
                self.told = service.revision;
                let revision = self.told;
                recorder.line(Line::WatchProgress { time, watch: 1, revision });
            }
            1 => {
                self.told -= rng.below(3).min(self.told - service.compacted.min(self.told));
                self.watch(recorder, time);
            }
            _ => {}
        }
        for event in &service.events {
            if event.position > self.positions {
                self.positions = event.position;
                let event = event.clone();
                recorder.line(Line::SubscriptionTold { time, subscription: 1, event });
            }
        }
        for event in service.events.iter().filter(|event| event.stream == "e0") {
            if event.version > self.versions {
                self.versions = event.version;
                let event = event.clone();
                recorder.line(Line::SubscriptionTold { time, subscription: 2, event });
            }
        }
    }
}

/// Falsifies one answer or one line; `None` where the one that was drawn cannot be.
fn falsify(history: &History, rng: &mut Rng) -> Option<(History, usize)> {
    let mut history = history.clone();
    let at = usize::try_from(rng.below(history.lines.len() as u64)).expect("it is small");
    match &mut history.lines[at] {
        Line::Return { outcome: Outcome::Ok(answer), .. } => match answer {
            Answer::Got { value, .. } => {
                value.as_mut()?.value = "never".into();
            }
            Answer::Done { revision } | Answer::Registered { revision } => {
                *revision = Some(1 + rng.below(revision.as_ref()?.saturating_sub(2)));
            }
            Answer::Deleted { existed, .. } => *existed = !*existed,
            Answer::Swapped { swapped, .. } => *swapped = !*swapped,
            Answer::Txn { succeeded, .. } => *succeeded = !*succeeded,
            Answer::Acquired { fencing_token, .. } => {
                *fencing_token = 1 + rng.below(*fencing_token - 1);
            }
            Answer::Described { holder, .. } => holder.as_mut()?.fencing_token += 1,
            Answer::Guarded { accepted } => *accepted = !*accepted,
            Answer::Resolved { instances, .. } => instances.push("never".into()),
            Answer::Appended { first_position, .. } => {
                *first_position = 1 + rng.below(*first_position - 1);
            }
            Answer::Events { events } => events.last_mut()?.data = "never".into(),
            _ => return None,
        },
        Line::WatchTold { revision, .. } => *revision -= 1,
        Line::SubscriptionTold { event, .. } => event.version += 1,
        _ => return None,
    }
    Some((history, at))
}

#[test]
fn histories_of_a_service_without_faults_are_legal() {
    for seed in 0..150 {
        let families = match seed % 5 {
            0 => Family::ALL.to_vec(),
            one => vec![Family::ALL[usize::try_from(one).expect("it is small") - 1]],
        };
        let history = legal_history(&families, 2 + seed % 7, 120, seed);
        let seen = witness(&history);
        assert_eq!(seen.verdict, Verdict::Legal, "seed {seed}: {:#?}", seen.findings);
        let searched = black_box(&history, &mut Budget::steps(300_000));
        assert_ne!(searched.verdict, Verdict::Illegal, "seed {seed}: {:#?}", searched.findings);
    }
}

#[test]
fn the_black_box_judges_many_clients_at_once_within_few_steps() {
    let history = legal_history(&[Family::Keys], 16, 800, 1);
    let searched = black_box(&history, &mut Budget::steps(2_000_000));
    assert_eq!(searched.verdict, Verdict::Legal, "{:#?}", searched.parts);
    let gets = history.lines.iter().filter_map(|line| match line {
        Line::Call { id, call: Call::Get { key, stale: false }, .. } if key == "k0" => Some(*id),
        _ => None,
    });
    let gets: BTreeSet<u64> = gets.collect();
    let (mut wrong, mut old) = (history.clone(), None);
    // The last read of a key that found something tells what its first one told.
    let reads = wrong.lines.iter_mut().filter_map(|line| match line {
        Line::Return {
            id, outcome: Outcome::Ok(Answer::Got { value: Some(read), .. }), ..
        } if gets.contains(id) => Some((*id, read)),
        _ => None,
    });
    let last = reads.fold(None, |_, (id, read)| {
        old.get_or_insert_with(|| read.clone());
        Some((id, read))
    });
    let (id, read) = last.expect("something was read");
    *read = old.expect("something was read");
    let searched = black_box(&wrong, &mut Budget::steps(2_000_000));
    assert_eq!(searched.verdict, Verdict::Illegal, "{:#?}", searched.parts);
    assert_eq!(searched.findings[0].op, Some(id));
}

#[test]
fn a_falsified_answer_is_found_by_the_witness() {
    let (mut falsified, mut found) = (0_u64, 0_u64);
    let mut missed = BTreeMap::<String, u64>::new();
    for seed in 0..40 {
        let history = legal_history(&Family::ALL, 4, 120, seed);
        let mut rng = Rng::new(seed).stream("falsify");
        for _ in 0..20 {
            let Some((wrong, at)) = falsify(&history, &mut rng) else { continue };
            falsified += 1;
            if witness(&wrong).verdict == Verdict::Illegal {
                found += 1;
            } else {
                let kind = format!("{:?}", wrong.lines[at]);
                *missed.entry(kind[..60.min(kind.len())].to_owned()).or_default() += 1;
            }
        }
    }
    assert!(falsified > 200, "{falsified}");
    // What an unknown outcome explains is not held against anybody.
    assert!(found * 100 >= falsified * 90, "{found} of {falsified}: {missed:#?}");
}
