//! A random walk over everything that moves locks, beside a naive model, with the lock rules
//! checked after every entry: L1 and L3 (the model grants a free lock only), L2, L5, L7 and L8.
//! The entries of each walk are then applied again in other runs: the bytes must be the same.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use prost::Message as _;

use super::line::TOLD_MAX;
use crate::{
    machine::{Applied, COMMAND_VERSION, testing::Harness},
    pb::{
        command::v1::{
            AdvanceTime, CancelAcquire, Command, ExpireSessions, ExpiredSession, Origin, Reason,
            command::Op, outcome,
        },
        lock::v1::{AcquireRequest, AcquireResponse, ReleaseRequest},
        session::v1::{CloseSessionRequest, OpenSessionRequest},
    },
    raft::{Entry, Payload},
    types::{LogTime, SessionId, Term},
};

const NAMES: [&str; 3] = ["a", "a/b", "b"];
const TERM: u64 = 3;

/// What a call is told.
#[derive(Clone, Debug, PartialEq)]
enum Told {
    Granted(&'static str),
    Again(AcquireResponse),
    Refused(Reason),
    Done,
}

#[derive(Clone, Debug, PartialEq)]
struct Party {
    session: u64,
    own: bool,
    call: u64,
    request: Option<usize>,
    deadline: Option<u64>,
}

#[derive(Debug, Default)]
struct LockState {
    holder: Option<(Party, u64)>,
    /// The calls that were told of the grant and not cancelled.
    told: Vec<u64>,
    line: Vec<Party>,
}

/// The naive model: vectors, no index, nothing clever.
#[derive(Debug, Default)]
struct Model {
    now: u64,
    locks: BTreeMap<&'static str, LockState>,
    sessions: BTreeSet<u64>,
    waiting: BTreeSet<u64>,
    answers: BTreeMap<usize, AcquireResponse>,
    tokens: BTreeMap<&'static str, u64>,
    told: BTreeMap<u64, Told>,
    /// Grants of this entry whose tokens the machine has yet to name.
    granted: Vec<&'static str>,
}

impl Model {
    fn lock(&mut self, name: &'static str) -> &mut LockState {
        self.locks.entry(name).or_default()
    }

    fn grant(&mut self, name: &'static str, party: Party) {
        assert!(self.lock(name).holder.is_none(), "L1, L3: only a free lock is granted");
        assert!(!self.granted.contains(&name), "an entry grants a name once");
        self.waiting.remove(&party.session);
        self.told.insert(party.call, Told::Granted(name));
        self.lock(name).told = vec![party.call];
        self.lock(name).holder = Some((party, 0));
        self.granted.push(name);
    }

    fn free(&mut self, name: &'static str) {
        self.lock(name).holder = None;
        if !self.lock(name).line.is_empty() {
            let first = self.lock(name).line.remove(0);
            self.grant(name, first);
        }
    }

    fn end(&mut self, sessions: &[u64]) {
        for name in NAMES {
            let line = core::mem::take(&mut self.lock(name).line);
            for party in line {
                if sessions.contains(&party.session) {
                    self.told.insert(party.call, Told::Refused(Reason::SessionNotFound));
                } else {
                    self.lock(name).line.push(party);
                }
            }
        }
        for session in sessions {
            for name in NAMES {
                let holder = self.lock(name).holder.as_ref();
                if holder.is_some_and(|(party, _)| party.session == *session) {
                    self.free(name);
                }
            }
            self.sessions.remove(session);
            self.waiting.remove(session);
        }
    }

    fn release(&mut self, name: &'static str) {
        let (party, _) = self.lock(name).holder.clone().expect("a held lock is released");
        if party.own { self.end(&[party.session]) } else { self.free(name) }
    }

    fn quit(&mut self, name: &'static str, at: usize, why: Reason) {
        let party = self.lock(name).line.remove(at);
        self.told.insert(party.call, Told::Refused(why));
        if party.own {
            self.end(&[party.session]);
        }
    }

    fn fire(&mut self) {
        for name in NAMES {
            let due = |party: &Party| party.deadline.is_some_and(|at| at <= self.now);
            while let Some(at) = self.locks[name].line.iter().position(due) {
                let party = self.locks.get_mut(name).expect("it is there").line.remove(at);
                self.told.insert(party.call, Told::Refused(Reason::LockHeld));
                if party.own {
                    self.sessions.remove(&party.session);
                    self.waiting.remove(&party.session);
                }
            }
        }
    }

    fn acquire(&mut self, index: u64, name: &'static str, ask: &Ask) {
        let deadline = ask.wait.map(|wait| self.now + wait * 1_000);
        if let Some(answer) = ask.request.and_then(|request| self.answers.get(&request)).cloned() {
            let lock = self.lock(name);
            let same =
                lock.holder.as_ref().is_some_and(|(_, token)| *token == answer.fencing_token);
            if same && lock.told.len() < TOLD_MAX {
                lock.told.push(index);
            }
            self.told.insert(index, Told::Again(answer));
            return;
        }
        let same = |party: &&mut Party| ask.request.is_some() && party.request == ask.request;
        if let Some(party) = self.lock(name).line.iter_mut().find(same) {
            let before = core::mem::replace(&mut party.call, index);
            party.deadline = deadline;
            self.told.insert(before, Told::Refused(Reason::WaitCancelled));
            return;
        }
        let refuse = |model: &mut Self, reason| model.told.insert(index, Told::Refused(reason));
        if ask.session != 0
            && (!self.sessions.contains(&ask.session) || self.waiting.contains(&ask.session))
        {
            refuse(self, Reason::SessionNotFound);
            return;
        }
        let own = ask.session == 0;
        let session = if own { index } else { ask.session };
        let party = Party { session, own, call: index, request: ask.request, deadline };
        let lock = self.lock(name);
        if lock.holder.is_some() {
            let mut parties = lock.line.iter().chain(lock.holder.iter().map(|(party, _)| party));
            if ask.wait == Some(0) || parties.any(|party| party.session == session) {
                refuse(self, Reason::LockHeld);
                return;
            }
            lock.line.push(party);
            if own {
                self.waiting.insert(session);
            }
        } else {
            self.grant(name, party);
        }
        self.sessions.insert(session);
    }
}

#[derive(Debug)]
struct Ask {
    session: u64,
    wait: Option<u64>,
    request: Option<usize>,
}

type Choice = (u8, u8, u8, u8);

#[derive(Debug)]
struct Walk {
    h: Harness,
    model: Model,
    log: Vec<Entry>,
}

impl Walk {
    fn new() -> Self {
        let mut model = Model { now: 1_000, ..Model::default() };
        for name in NAMES {
            model.lock(name);
        }
        Self { h: Harness::new(), model, log: Vec::new() }
    }

    fn step(&mut self, (kind, a, b, c): Choice) {
        let name = NAMES[usize::from(a) % NAMES.len()];
        let index = self.h.index().next().value();
        self.model.now += u64::from(c % 4) * 400;
        self.model.told.clear();
        self.model.granted.clear();
        let state = (kind % 16 == 11).then(|| self.h.state());
        self.model.fire();
        let op = self.choose(index, name, (kind, a, b, c));
        let applied = self.apply(op);
        self.compare(&applied);
        if let Some(state) = state
            && self.model.told.len() == 1
        {
            assert!(self.h.state() == state, "L5: a wrong token changes nothing");
        }
    }

    fn choose(&mut self, index: u64, name: &'static str, (kind, _, b, c): Choice) -> Op {
        let model = &mut self.model;
        match kind % 16 {
            0 => {
                model.sessions.insert(index);
                model.told.insert(index, Told::Done);
                Op::OpenSession(OpenSessionRequest::default())
            }
            1 => {
                let session_id = pick(&model.sessions, b);
                if model.sessions.contains(&session_id) {
                    model.end(&[session_id]);
                    model.told.insert(index, Told::Done);
                } else {
                    model.told.insert(index, Told::Refused(Reason::SessionNotFound));
                }
                Op::CloseSession(CloseSessionRequest { session_id, ..Default::default() })
            }
            2 | 3 => self.expire(index, b, c),
            4..=7 => self.acquire(index, name, b, c),
            8..=10 => {
                let held = model.lock(name).holder.as_ref().map_or(0, |(_, token)| *token);
                let done = if held == 0 {
                    Told::Refused(Reason::WrongFencingToken)
                } else {
                    model.release(name);
                    Told::Done
                };
                model.told.insert(index, done);
                release(name, held)
            }
            11 => {
                let held = model.lock(name).holder.as_ref().map_or(0, |(_, token)| *token);
                model.told.insert(index, Told::Refused(Reason::WrongFencingToken));
                release(name, held + 1 + u64::from(b))
            }
            12..=14 => self.cancel(index, name, b),
            _ => {
                model.told.insert(index, Told::Done);
                Op::AdvanceTime(AdvanceTime {})
            }
        }
    }

    fn expire(&mut self, index: u64, b: u8, c: u8) -> Op {
        let picked: BTreeSet<u64> =
            [b, c].map(|at| pick(&self.model.sessions, at)).into_iter().collect();
        let old_term = b % 8 == 7;
        let old_epoch = c % 8 == 7;
        let epoch = |session_id| {
            let info = self.h.view().session(SessionId::new(session_id)).unwrap();
            info.map_or(0, |info| info.epoch) + u64::from(old_epoch)
        };
        let sessions = picked
            .iter()
            .map(|&session_id| ExpiredSession { session_id, epoch: epoch(session_id) })
            .collect();
        if !old_term && !old_epoch {
            let alive: Vec<_> = picked.intersection(&self.model.sessions).copied().collect();
            self.model.end(&alive);
        }
        self.model.told.insert(index, Told::Done);
        Op::ExpireSessions(ExpireSessions { term: TERM - u64::from(old_term), sessions })
    }

    fn acquire(&mut self, index: u64, name: &'static str, b: u8, c: u8) -> Op {
        // A request id belongs to one name, so that its body is always the same; sessions are
        // left out of such requests for the same reason.
        let place = NAMES.iter().position(|known| *known == name).unwrap_or_default();
        let request = b.is_multiple_of(3).then_some(usize::from(c % 4) * NAMES.len() + place);
        let session = match b % 3 {
            1 => pick(&self.model.sessions, c),
            _ => 0,
        };
        let wait = match (b / 3) % 4 {
            0 => Some(0),
            1 => Some(u64::from(c % 3) + 1),
            _ => None,
        };
        self.model.acquire(index, name, &Ask { session, wait, request });
        let id = request.map(|id| uuid::Uuid::from_u128(id as u128 + 1).to_string());
        Op::Acquire(AcquireRequest {
            name: name.to_owned(),
            wait: wait.map(|wait| prost_types::Duration { seconds: wait as i64, nanos: 0 }),
            session_id: session,
            request_id: id.unwrap_or_default(),
            ..AcquireRequest::default()
        })
    }

    fn cancel(&mut self, index: u64, name: &'static str, b: u8) -> Op {
        let model = &mut self.model;
        let lock = model.lock(name);
        let mut calls: Vec<u64> = lock.line.iter().map(|party| party.call).collect();
        calls.extend(lock.holder.iter().flat_map(|_| &lock.told));
        // Now and then a call that is long gone.
        calls.push(1);
        let sequence = calls[usize::from(b) % calls.len()];
        if let Some(at) = lock.line.iter().position(|party| party.call == sequence) {
            model.quit(name, at, Reason::WaitCancelled);
        } else if let Some((party, _)) = lock.holder.clone()
            && lock.told.contains(&sequence)
            && lock.told.len() < TOLD_MAX
        {
            lock.told.retain(|told| *told != sequence);
            if lock.told.is_empty() {
                if let Some(request) = party.request {
                    model.answers.remove(&request);
                }
                model.release(name);
            }
        }
        model.told.insert(index, Told::Done);
        let attachment = Some(Origin { node_id: 1, boot: 7, sequence });
        Op::CancelAcquire(CancelAcquire { name: name.to_owned(), attachment })
    }

    fn apply(&mut self, op: Op) -> Applied {
        let origin = Some(self.h.next_origin());
        let command = Command { version: COMMAND_VERSION, origin, op: Some(op) };
        let entry = Entry {
            index: self.h.index().next(),
            term: Term::new(TERM),
            time: LogTime::from_millis(self.model.now),
            payload: Payload::Command(command.encode_to_vec().into()),
        };
        self.log.push(entry.clone());
        self.h.machine.apply(&[entry]).unwrap()
    }

    /// L2, L7, L8: exactly those are told that should be, and what they should be; then the state.
    fn compare(&mut self, applied: &Applied) {
        let model = &mut self.model;
        let mut told = BTreeMap::new();
        for (call, outcome) in &applied.outcomes {
            let what = match outcome.result.as_ref().unwrap() {
                outcome::Result::Acquire(granted) => {
                    let name = NAMES.into_iter().find(|name| *name == granted.name).unwrap();
                    if model.told.get(&call.sequence) == Some(&Told::Granted(name)) {
                        let last = model.tokens.insert(name, granted.fencing_token);
                        assert!(last < Some(granted.fencing_token), "L2: tokens of a name grow");
                        let (holder, token) = model.lock(name).holder.as_mut().unwrap();
                        *token = granted.fencing_token;
                        assert_eq!(granted.session_id, holder.session);
                        if let Some(request) = holder.request {
                            model.answers.insert(request, granted.clone());
                        }
                        Told::Granted(name)
                    } else {
                        Told::Again(granted.clone())
                    }
                }
                outcome::Result::Refusal(refusal) => Told::Refused(refusal.reason()),
                _ => Told::Done,
            };
            assert_eq!(told.insert(call.sequence, what), None, "a call is told once");
        }
        assert_eq!(told, model.told, "L7, L8: exactly those are told");
        let view = self.h.view();
        for (name, lock) in &model.locks {
            let seen = view.lock(name).unwrap().lock.unwrap();
            let holder = seen.holder.map(|holder| (holder.session_id, holder.fencing_token));
            let expected = lock.holder.as_ref().map(|(party, token)| (party.session, *token));
            assert_eq!(holder, expected, "L1: the holder of {name}");
            let line: Vec<_> = seen.waiters.iter().map(|waiter| waiter.session_id).collect();
            let expected: Vec<_> = lock.line.iter().map(|party| party.session).collect();
            assert_eq!(line, expected, "L7: the line of {name}");
            assert_eq!(seen.waiter_count, line.len() as u64);
        }
        let sessions = view.sessions().unwrap();
        let sessions: BTreeSet<_> = sessions.iter().map(|info| info.session.value()).collect();
        assert_eq!(sessions, model.sessions);
    }

    /// Applies the walk's entries again, cut differently.
    fn replay(&self, cuts: &[usize]) {
        let mut again = Harness::new();
        let mut rest = self.log.as_slice();
        for cut in cuts.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let (run, left) = rest.split_at((*cut).min(rest.len()));
            again.machine.apply(run).unwrap();
            rest = left;
        }
        assert!(again.store.rows() == self.h.store.rows(), "the cuts do not show in the state");
        assert_eq!(again.machine.next_timer(), self.h.machine.next_timer());
    }
}

fn release(name: &str, fencing_token: u64) -> Op {
    Op::Release(ReleaseRequest { name: name.to_owned(), fencing_token, ..Default::default() })
}

/// One of the sessions, or one that never was.
fn pick(sessions: &BTreeSet<u64>, at: u8) -> u64 {
    sessions.iter().nth(usize::from(at) % (sessions.len() + 1)).copied().unwrap_or(1_000_000)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn l1_l2_l3_l5_l7_and_l8_hold_after_every_entry(
        choices in prop::collection::vec(any::<Choice>(), 1..120),
        cuts in prop::collection::vec(1_usize..9, 1..6),
    ) {
        let mut walk = Walk::new();
        for choice in choices {
            walk.step(choice);
        }
        walk.replay(&cuts);
    }
}

/// When everything is let go, nothing is left but sessions: every way to a place went with it.
#[test]
fn nothing_is_left_behind() {
    let mut walk = Walk::new();
    let mut rng = crate::types::Rng::new(5);
    for _ in 0..400 {
        let [kind, a, b, c, ..] = rng.next_u64().to_be_bytes();
        walk.step((kind, a, b, c));
    }
    let sessions: Vec<_> = walk.model.sessions.iter().copied().collect();
    for session_id in sessions {
        walk.h.apply(Op::CloseSession(CloseSessionRequest { session_id, ..Default::default() }));
    }
    let kept = |table: u8| walk.h.state().keys().filter(|key| key[0] == table).count();
    for table in (0x20..0x40).chain([0x13, 0x50]) {
        assert_eq!(kept(table), 0, "rows of table {table:#x}");
    }
}
