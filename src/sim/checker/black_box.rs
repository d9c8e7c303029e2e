//! The black box: is there any order of the operations that respects who returned before whom and
//! that the services' models allow?
//!
//! It uses nothing but calls and answers, and no revisions. Parts that do not touch each other are
//! judged apart; a history is legal where each part is (Herlihy and Wing, "Linearizability",
//! theorem 1). Stale reads, watches and subscriptions promise less and are the log witness's to
//! judge.

use std::collections::BTreeMap;

use crate::sim::{
    checker::{
        Budget, Counts, Finding, Part, Report, Verdict,
        model::{Entry, Guard, Keys, Lock, Model, Queue, Register, Service, Stream},
        ops::{self, End, Op},
        search::{Found, Stuck, search},
        words::touched,
    },
    history::{Answer, Call, History},
};

/// The rule that the black box judges.
pub(crate) const LINEARIZABLE: &str = "linearizable";

/// Looks for a legal order of each part. Out of budget is unknown, never legal.
#[must_use]
pub fn black_box(history: &History, budget: &mut Budget<'_>) -> Report {
    let ops = match ops::read(history) {
        Ok(ops) => ops,
        Err(malformed) => return Report::malformed(malformed.line, malformed.words),
    };
    let mut judged = Judged::default();
    let spent_before = budget.spent();
    for (name, part) in split(&ops) {
        match part.kind {
            Kind::Register => judged.judge::<Register>(name, &part.ops, budget),
            Kind::Keys => judged.judge::<Keys>(name, &part.ops, budget),
            Kind::Lock => judged.judge::<Lock>(name, &part.ops, budget),
            Kind::Guard => judged.judge::<Guard>(name, &part.ops, budget),
            Kind::Queue => judged.judge::<Queue>(name, &part.ops, budget),
            Kind::Service => judged.judge::<Service>(name, &part.ops, budget),
            Kind::Stream => judged.judge::<Stream>(name, &part.ops, budget),
            Kind::AllStreams => {
                let (model, entries) = Stream::read_by(&part.ops, true);
                judged.search(name, &part.ops, &model, &entries, budget);
            }
        }
    }
    let mut counts = Counts::of(&ops);
    counts.steps = budget.spent() - spent_before;
    judged.findings.sort_by_key(|finding| finding.line);
    Report::new(judged.findings, judged.parts, counts)
}

impl Counts {
    /// Counts the outcomes of operations.
    pub(crate) fn of(ops: &[Op<'_>]) -> Self {
        let count =
            |kind: fn(&End<'_>) -> bool| ops.iter().filter(|op| kind(&op.end)).count() as u64;
        Self {
            operations: ops.len() as u64,
            ok: count(|end| matches!(end, End::Ok(_))),
            refused: count(|end| matches!(end, End::Refused { .. })),
            unknown: count(|end| matches!(end, End::Unknown)),
            ..Self::default()
        }
    }
}

#[derive(Default)]
struct Judged {
    findings: Vec<Finding>,
    parts: Vec<Part>,
}

impl Judged {
    fn judge<M: Model>(&mut self, name: String, ops: &[&Op<'_>], budget: &mut Budget<'_>) {
        let (model, entries) = M::read(ops);
        self.search(name, ops, &model, &entries, budget);
    }

    fn search<M: Model>(
        &mut self,
        name: String,
        ops: &[&Op<'_>],
        model: &M,
        entries: &[Entry<M::Op>],
        budget: &mut Budget<'_>,
    ) {
        let operations = entries.len();
        let mut part =
            Part { name, operations, verdict: Verdict::Legal, why: None, order: Vec::new() };
        match search(model, entries, budget) {
            Found::Legal => {}
            Found::OutOfBudget => {
                part.verdict = Verdict::Unknown;
                part.why = Some("the search ran out of its budget".into());
            }
            Found::Illegal(Stuck { entry, order, legal }) => {
                part.verdict = Verdict::Illegal;
                part.order = order;
                let id = entries[entry].id;
                let op = ops.iter().find(|op| op.id == id).expect("entries are made of operations");
                self.findings.push(Finding {
                    rule: LINEARIZABLE,
                    words: format!("no legal order of {} reaches {}", part.name, op.words()),
                    op: Some(id),
                    line: Some(op.returned),
                    legal,
                });
            }
        }
        self.parts.push(part);
    }
}

/// What a part is judged as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Register,
    Keys,
    Lock,
    Guard,
    Queue,
    Service,
    Stream,
    AllStreams,
}

/// A part of a history.
pub(crate) struct Group<'a> {
    pub(crate) kind: Kind,
    pub(crate) ops: Vec<&'a Op<'a>>,
}

/// Splits a history into parts that are judged apart, by name. An operation may stand in several:
/// a close of a session in those of all the locks that hung on it.
pub(crate) fn split<'a>(ops: &'a [Op<'a>]) -> BTreeMap<String, Group<'a>> {
    let keys = Components::of(ops);
    let sessions = sessions(ops);
    let mut groups: BTreeMap<String, Group<'a>> = BTreeMap::new();
    for op in ops.iter().filter(|op| counts(op)) {
        let mut add = |name: String, kind: Kind| {
            let group = groups.entry(name).or_insert_with(|| Group { kind, ops: Vec::new() });
            group.ops.push(op);
        };
        match op.call {
            Call::Get { key, .. }
            | Call::Put { key, .. }
            | Call::Delete { key }
            | Call::Cas { key, .. } => {
                add(keys.name(key), keys.kind(key));
                if let Call::Put { require_lock: Some((lock, _)), .. } = op.call {
                    add(format!("lock {lock}"), Kind::Lock);
                }
            }
            Call::Txn { .. } => {
                if let Some(key) = touched(op.call).next() {
                    add(keys.name(key), keys.kind(key));
                }
            }
            Call::Acquire { lock, .. }
            | Call::RenewLock { lock, .. }
            | Call::Release { lock, .. }
            | Call::Describe { lock } => add(format!("lock {lock}"), Kind::Lock),
            Call::OpenSession { .. } => {
                if let End::Ok(Answer::Opened { session, .. }) = op.end {
                    for lock in sessions.get(session).into_iter().flatten() {
                        add(format!("lock {lock}"), Kind::Lock);
                    }
                }
            }
            Call::RenewSession { session } | Call::CloseSession { session } => {
                for lock in sessions.get(session).into_iter().flatten() {
                    add(format!("lock {lock}"), Kind::Lock);
                }
            }
            Call::GuardedWrite { lock, .. } => {
                add(format!("guarded by {lock}"), Kind::Guard);
            }
            Call::Enqueue { queue, .. } | Call::Dequeue { queue } => {
                add(format!("queue {queue}"), Kind::Queue);
            }
            Call::Register { service, .. }
            | Call::Deregister { service, .. }
            | Call::Resolve { service } => add(format!("service {service}"), Kind::Service),
            Call::Append { stream, .. } => {
                add(format!("stream {stream}"), Kind::Stream);
                add("streams".into(), Kind::AllStreams);
            }
            Call::ReadStream { stream, .. } if stream.is_empty() => {
                add("streams".into(), Kind::AllStreams);
            }
            Call::ReadStream { stream, .. } => add(format!("stream {stream}"), Kind::Stream),
            Call::Compact { .. } => {}
        }
    }
    groups
}

/// Whether an operation counts at all: refused ones did not happen, a stale read promises no
/// place in the order, and a read that nobody saw the answer of changes nothing.
const fn counts(op: &Op<'_>) -> bool {
    !matches!(
        (op.call, op.end),
        (_, End::Refused { .. })
            | (Call::Get { stale: true, .. }, _)
            | (
                Call::Get { .. }
                    | Call::Describe { .. }
                    | Call::Resolve { .. }
                    | Call::ReadStream { .. }
                    | Call::RenewLock { .. }
                    | Call::RenewSession { .. },
                End::Unknown,
            )
    )
}

/// The locks that hang, or hung, on each session.
fn sessions<'a>(ops: &[Op<'a>]) -> BTreeMap<u64, Vec<&'a str>> {
    let mut locks: BTreeMap<u64, Vec<&str>> = BTreeMap::new();
    for op in ops {
        let Call::Acquire { lock, session: given, .. } = op.call else { continue };
        let granted = match op.end {
            End::Ok(Answer::Acquired { session, .. }) => Some(*session),
            _ => *given,
        };
        let Some(session) = granted else { continue };
        let known = locks.entry(session).or_default();
        if !known.contains(&lock.as_str()) {
            known.push(lock);
        }
    }
    locks
}

/// Which keys transactions connect.
struct Components<'a> {
    numbers: BTreeMap<&'a str, usize>,
    parent: Vec<usize>,
    /// For each key that stands for others: whether there is a transaction, and the keys' names.
    groups: BTreeMap<usize, (bool, String)>,
}

impl<'a> Components<'a> {
    fn of(ops: &[Op<'a>]) -> Self {
        let mut components =
            Self { numbers: BTreeMap::new(), parent: Vec::new(), groups: BTreeMap::new() };
        let mut with_txn = Vec::new();
        for op in ops.iter().filter(|op| counts(op)) {
            let mut first = None;
            for key in touched(op.call) {
                let next = components.parent.len();
                let number = *components.numbers.entry(key).or_insert(next);
                if number == next {
                    components.parent.push(number);
                }
                let root = components.root(number);
                match first {
                    None => first = Some(root),
                    Some(first) => {
                        let first = components.root(first);
                        components.parent[root] = first;
                    }
                }
            }
            if let (Call::Txn { .. }, Some(first)) = (op.call, first) {
                with_txn.push(first);
            }
        }
        for (key, number) in &components.numbers {
            let root = components.root(*number);
            let group = components.groups.entry(root).or_default();
            group.1.push(' ');
            group.1.push_str(key);
        }
        for number in with_txn {
            let root = components.root(number);
            components.groups.entry(root).or_default().0 = true;
        }
        components
    }

    fn root(&self, mut number: usize) -> usize {
        while self.parent[number] != number {
            number = self.parent[number];
        }
        number
    }

    fn group(&self, key: &str) -> &(bool, String) {
        &self.groups[&self.root(self.numbers[key])]
    }

    fn kind(&self, key: &str) -> Kind {
        if self.group(key).0 { Kind::Keys } else { Kind::Register }
    }

    fn name(&self, key: &str) -> String {
        format!("keys{}", self.group(key).1)
    }
}
