//! Tests: random small histories, judged by brute force over all orders and by the search.

use crate::{
    sim::{
        checker::{
            Budget,
            model::{Entry, Guard, Keys, Lock, Model, Queue, Register, Service, Stream},
            ops,
            search::{Found, search},
        },
        history::{
            Answer, Call, Change, Compare, Event, Held, History, Outcome, Recorder, Versioned,
        },
    },
    types::Rng,
};

/// How many histories of each model are compared.
const HISTORIES: u64 = 10_000;

/// Whether any order of any choice of the optional entries is legal: all of them are tried.
fn brute<M: Model>(model: &M, entries: &[Entry<M::Op>]) -> bool {
    fn go<M: Model>(
        model: &M,
        entries: &[Entry<M::Op>],
        done: &mut Vec<bool>,
        state: &M::State,
    ) -> bool {
        let must = |at: usize| entries[at].returned != usize::MAX;
        if (0..entries.len()).all(|at| done[at] || !must(at)) {
            return true;
        }
        for at in 0..entries.len() {
            let after_one_left = (0..entries.len()).any(|other| {
                !done[other] && other != at && entries[other].returned < entries[at].called
            });
            if done[at] || after_one_left {
                continue;
            }
            let mut next = Vec::new();
            model.step(state, &entries[at].op, &mut next);
            done[at] = true;
            if next.iter().any(|state| go(model, entries, done, state)) {
                return true;
            }
            done[at] = false;
        }
        false
    }
    go(model, entries, &mut vec![false; entries.len()], &model.start())
}

/// What a random history is about.
#[derive(Clone, Copy, Debug)]
enum About {
    Register,
    Keys,
    Lock,
    Guard,
    Queue,
    Service,
    Stream,
}

/// Calls with answers that are drawn from few values, so that about half are legal.
fn random(about: About, rng: &mut Rng) -> History {
    let mut recorder = Recorder::new("random");
    let mut open: Vec<(u64, Call)> = Vec::new();
    let (mut left, mut time) = (1 + rng.below(6), 0);
    while left > 0 || !open.is_empty() {
        time += 400_000_000;
        if left > 0 && (open.is_empty() || rng.below(2) == 0) {
            left -= 1;
            let call = call(about, left, rng);
            let id = recorder.call(time, left, None, call.clone());
            open.push((id, call));
        } else {
            let at = usize::try_from(rng.below(open.len() as u64)).expect("it is small");
            let (id, call) = open.swap_remove(at);
            let outcome = match rng.below(8) {
                0 => Outcome::Unknown { reason: "lost".into() },
                1 => Outcome::Refused { reason: "no".into(), actual: None },
                _ => Outcome::Ok(answer(&call, rng)),
            };
            recorder.returned(time, id, outcome);
        }
    }
    recorder.into_history()
}

fn value(rng: &mut Rng) -> String {
    format!("v{}", rng.below(2))
}

fn maybe(rng: &mut Rng) -> Option<String> {
    (rng.below(3) > 0).then(|| value(rng))
}

fn key(about: About, rng: &mut Rng) -> String {
    match about {
        About::Keys => format!("k{}", rng.below(2)),
        _ => "k".into(),
    }
}

fn call(about: About, left: u64, rng: &mut Rng) -> Call {
    let (name, token, session) = ("x".to_owned(), 1 + rng.below(3), 1 + rng.below(2));
    match about {
        About::Register | About::Keys => {
            let key = key(about, rng);
            match rng.below(if matches!(about, About::Keys) { 6 } else { 4 }) {
                0 => Call::Get { key, stale: false },
                1 => Call::Put { key, value: value(rng), require_lock: None },
                2 => Call::Delete { key },
                3 => Call::Cas { key, expected: maybe(rng), value: value(rng) },
                _ => Call::Txn {
                    compares: vec![Compare { key, value: maybe(rng) }],
                    changes: vec![
                        Change { key: "k0".into(), value: maybe(rng) },
                        Change { key: "k1".into(), value: maybe(rng) },
                    ],
                    reads: vec!["k1".into()],
                },
            }
        }
        About::Lock => match rng.below(7) {
            0 | 1 => {
                let session = (rng.below(3) == 0).then_some(session);
                let owner = value(rng);
                Call::Acquire { lock: name, owner, ttl_ms: 1_000, wait_ms: 0, session }
            }
            2 => Call::RenewLock { lock: name, fencing_token: token, session },
            3 => Call::Release { lock: name, fencing_token: token },
            4 => Call::Describe { lock: name },
            5 => Call::CloseSession { session },
            _ => Call::RenewSession { session },
        },
        About::Guard => Call::GuardedWrite { lock: name, fencing_token: token, value: value(rng) },
        About::Queue => match rng.below(2) {
            0 => Call::Enqueue { queue: name, value: value(rng) },
            _ => Call::Dequeue { queue: name },
        },
        About::Service => match rng.below(4) {
            0 => Call::Register { service: name, instance: value(rng), ttl_ms: 1_000 },
            1 => Call::Deregister { service: name, instance: value(rng) },
            _ => Call::Resolve { service: name },
        },
        About::Stream => match rng.below(3) {
            0 => Call::ReadStream { stream: name, from: 1 + rng.below(2) },
            _ => Call::Append {
                stream: name,
                data: (0..=rng.below(2)).map(|at| format!("d{left}.{at}")).collect(),
                expected_version: (rng.below(3) == 0).then(|| rng.below(3)),
            },
        },
    }
}

fn answer(call: &Call, rng: &mut Rng) -> Answer {
    let revision = None;
    let read = |rng: &mut Rng| maybe(rng).map(|value| Versioned { value, mod_revision: None });
    let event = |version: u64, rng: &mut Rng| Event {
        stream: "x".into(),
        version,
        position: version,
        data: format!("d{}.{}", rng.below(3), rng.below(2)),
    };
    match call {
        Call::Get { .. } => Answer::Got { value: read(rng), revision },
        Call::Delete { .. } => Answer::Deleted { existed: rng.below(2) == 0, revision },
        Call::Cas { .. } => Answer::Swapped { swapped: rng.below(2) == 0, revision },
        Call::Txn { .. } => {
            Answer::Txn { succeeded: rng.below(2) == 0, reads: vec![read(rng)], revision }
        }
        Call::RenewSession { .. } | Call::RenewLock { .. } => Answer::Renewed,
        Call::Acquire { session, .. } => Answer::Acquired {
            fencing_token: 1 + rng.below(3),
            session: session.unwrap_or(1 + rng.below(2)),
        },
        Call::Describe { .. } => {
            let token = 1 + rng.below(3);
            let held = Held { owner: value(rng), fencing_token: token };
            Answer::Described { holder: (rng.below(2) == 0).then_some(held), revision }
        }
        Call::GuardedWrite { .. } => Answer::Guarded { accepted: rng.below(3) > 0 },
        Call::Register { .. } => Answer::Registered { revision },
        Call::Dequeue { .. } => Answer::Dequeued { value: maybe(rng) },
        Call::Resolve { .. } => {
            let mut instances: Vec<_> = (0..rng.below(3)).map(|_| value(rng)).collect();
            instances.sort();
            instances.dedup();
            Answer::Resolved { instances, revision }
        }
        Call::Append { .. } => {
            let first = 1 + rng.below(3);
            Answer::Appended { first_version: first, first_position: first, duplicate: false }
        }
        Call::ReadStream { from, .. } => {
            let count = rng.below(3);
            Answer::Events { events: (*from..from + count).map(|at| event(at, rng)).collect() }
        }
        _ => Answer::Done { revision },
    }
}

fn compare<M: Model>(about: About) {
    let (mut legal, mut illegal) = (0, 0);
    for seed in 0..HISTORIES {
        let history = random(about, &mut Rng::new(seed).stream("brute"));
        let ops = ops::read(&history).expect("it is well formed");
        let counted: Vec<_> =
            ops.iter().filter(|op| !matches!(op.end, ops::End::Refused { .. })).collect();
        let (model, entries) = M::read(&counted);
        let expected = brute(&model, &entries);
        let found = search(&model, &entries, &mut Budget::steps(1_000_000));
        let found = match found {
            Found::Legal => true,
            Found::Illegal(_) => false,
            Found::OutOfBudget => panic!("seed {seed}: six operations are few"),
        };
        assert_eq!(found, expected, "{about:?}, seed {seed}:\n{history:#?}");
        *if expected { &mut legal } else { &mut illegal } += 1;
    }
    assert!(legal > HISTORIES / 20 && illegal > HISTORIES / 20, "{about:?}: {legal}, {illegal}");
}

#[test]
fn the_search_agrees_with_brute_force_on_registers() {
    compare::<Register>(About::Register);
}

#[test]
fn the_search_agrees_with_brute_force_on_transactions() {
    compare::<Keys>(About::Keys);
}

#[test]
fn the_search_agrees_with_brute_force_on_locks() {
    compare::<Lock>(About::Lock);
}

#[test]
fn the_search_agrees_with_brute_force_on_guards() {
    compare::<Guard>(About::Guard);
}

#[test]
fn the_search_agrees_with_brute_force_on_queues() {
    compare::<Queue>(About::Queue);
}

#[test]
fn the_search_agrees_with_brute_force_on_services() {
    compare::<Service>(About::Service);
}

#[test]
fn the_search_agrees_with_brute_force_on_streams() {
    compare::<Stream>(About::Stream);
}
