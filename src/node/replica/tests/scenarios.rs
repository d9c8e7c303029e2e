//! The player of the golden scenarios of replicas with their state machines,
//! `tests/scenarios/replica/*.txt`. `tests/scenarios/README.md` lists the commands.

use super::{
    script,
    story::refused,
    world::{World, n},
};
use crate::{
    machine::{ChangeKind, Space, View},
    node::{
        calls::{CallKind, Reply},
        replica::Event,
    },
    pb::{
        command::v1::{ExpireSessions, ExpiredSession, command::Op, outcome},
        event::v1::{AppendRequest, Event as NewEvent, ExpectedState, append_request::Expected},
        kv::v1::{CompactRequest, DeleteRangeRequest, HeldLock, PutRequest, RangeRequest},
        lock::v1::{AcquireRequest, ReleaseRequest},
        session::v1::{CloseSessionRequest, OpenSessionRequest},
    },
    types::{Duration, LogIndex, NodeId, Revision, SessionId},
};

scenarios! { "replica":
    lock_hand_over
    token_after_failover
    stale_holder
    old_leaders_expiry
    renewal_by_a_deposed_leader
    waiter_gone_at_its_grant
    long_session_over_an_election
    retry_across_failover
    proposal_lost_with_its_leader
    read_at_a_follower
    expected_version
    watch_and_compaction
    snapshot_overtakes_a_call
    wiped_disk
}

struct Player {
    world: World,
    sessions: Vec<(String, u64)>,
    /// Calls whose session is to get a name.
    opening: Vec<(NodeId, u64, String)>,
    /// Reads of a key that wait for their index: call, and index once it is known.
    reads: Vec<(NodeId, u64, String, Option<LogIndex>)>,
    watches: Vec<Watch>,
}

/// A reader of changes: it goes on where it stopped.
struct Watch {
    on: NodeId,
    next: Revision,
    paused: bool,
}

/// A command's words behind the first.
struct Words<'a>(&'a str, Vec<&'a str>);

impl Words<'_> {
    fn word(&self, place: usize) -> &str {
        self.1.get(place).unwrap_or_else(|| panic!("{}: a word is missing", self.0))
    }

    fn node(&self, place: usize) -> NodeId {
        n(number(self.word(place).trim_start_matches('n')))
    }

    /// `key=value` among the words.
    fn option(&self, key: &str) -> Option<&str> {
        self.1.iter().find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
    }

    fn number(&self, key: &str) -> u64 {
        number(self.option(key).unwrap_or_else(|| panic!("{}: {key}= is missing", self.0)))
    }

    /// A span, as protos have it.
    fn span(&self, key: &str) -> Option<prost_types::Duration> {
        let seconds = number(self.option(key)?.trim_end_matches('s'));
        Some(prost_types::Duration { seconds: i64::try_from(seconds).expect("short"), nanos: 0 })
    }

    /// A request id: a short name for people, a UUID for the state machine.
    fn request(&self) -> String {
        let name = self.option("request").map(|name| uuid::Uuid::from_u128(name_as_number(name)));
        name.map_or_else(String::new, |id| id.to_string())
    }
}

fn number(word: &str) -> u64 {
    word.parse().unwrap_or_else(|_| panic!("{word} is no number"))
}

/// The name, read as a hexadecimal number, so that it shows in the id.
fn name_as_number(name: &str) -> u128 {
    u128::from_str_radix(name, 16).unwrap_or_else(|_| panic!("{name}: use 0-9 and a-f"))
}

impl Player {
    fn new() -> Self {
        Self {
            world: World::new(),
            sessions: Vec::new(),
            opening: Vec::new(),
            reads: Vec::new(),
            watches: Vec::new(),
        }
    }

    fn run(&mut self, command: &str) -> Vec<String> {
        let mut words = command.split_whitespace();
        let verb = words.next().expect("a command");
        let words = Words(command, words.collect());
        if let Some(op) = self.op(verb, &words) {
            let on = words.node(0);
            let call = self.world.propose(on, op);
            self.world.story.tell(format!("{on:?} takes call {call}: {command}"));
            if verb == "open" {
                self.opening.push((on, call, words.word(1).to_owned()));
            }
        } else {
            self.carry_out(verb, &words);
        }
        self.world.story.take()
    }

    /// The commands that are proposals.
    fn op(&self, verb: &str, words: &Words<'_>) -> Option<Op> {
        let bytes = |place| words.word(place).to_owned().into_bytes().into();
        let op = match verb {
            "put" => Op::Put(PutRequest {
                key: bytes(1),
                value: bytes(2),
                request_id: words.request(),
                require_lock: words.option("lock").map(|name| HeldLock {
                    name: name.to_owned(),
                    fencing_token: words.number("token"),
                }),
                ..PutRequest::default()
            }),
            "delete" => Op::DeleteRange(DeleteRangeRequest { key: bytes(1), ..Default::default() }),
            "compact" => Op::Compact(CompactRequest {
                revision: number(words.word(1)),
                ..CompactRequest::default()
            }),
            "open" => Op::OpenSession(OpenSessionRequest {
                ttl: words.span("ttl"),
                ..OpenSessionRequest::default()
            }),
            "close" => Op::CloseSession(CloseSessionRequest {
                session_id: self.session(words.word(1)),
                ..CloseSessionRequest::default()
            }),
            "acquire" => Op::Acquire(AcquireRequest {
                name: words.word(1).to_owned(),
                ttl: words.span("ttl"),
                wait: words.span("wait"),
                session_id: words.option("session").map_or(0, |name| self.session(name)),
                request_id: words.request(),
                ..AcquireRequest::default()
            }),
            "release" => Op::Release(ReleaseRequest {
                name: words.word(1).to_owned(),
                fencing_token: words.number("token"),
                request_id: words.request(),
            }),
            "append" => {
                let data = words.1[2..].iter().filter(|word| !word.contains('='));
                let events = data.map(|data| NewEvent {
                    id: uuid::Uuid::from_u128(name_as_number(data)).to_string(),
                    r#type: "told".to_owned(),
                    data: (*data).to_owned().into_bytes().into(),
                    ..NewEvent::default()
                });
                Op::Append(AppendRequest {
                    stream: words.word(1).to_owned(),
                    events: events.collect(),
                    expected: words.option("expected").map(|expected| match expected {
                        "none" => Expected::ExpectedState(ExpectedState::NoStream.into()),
                        version => Expected::ExpectedVersion(number(version)),
                    }),
                    request_id: words.request(),
                })
            }
            // What an old leader's expiry would be, should it arrive.
            "expire" => Op::ExpireSessions(ExpireSessions {
                term: words.number("term"),
                sessions: vec![ExpiredSession {
                    session_id: self.session(words.word(1)),
                    epoch: words.number("epoch"),
                }],
            }),
            _ => return None,
        };
        Some(op)
    }

    fn session(&self, name: &str) -> u64 {
        let known = self.sessions.iter().rev().find(|(known, _)| known == name);
        known.map_or_else(|| number(name.trim_start_matches('s')), |(_, session)| *session)
    }

    fn carry_out(&mut self, verb: &str, words: &Words<'_>) {
        let world = &mut self.world;
        match verb {
            "replicas" => self.begin(words),
            "wait" => self.wait(words.word(0)),
            "renew" => {
                let session = SessionId::new(self.session(words.word(1)));
                self.call(words, CallKind::Renew { session });
            }
            "transfer" => {
                let target = Some(words.node(1));
                self.call(words, CallKind::Transfer { target });
            }
            "read" => {
                let call = self.call(words, CallKind::Read);
                self.reads.push((words.node(0), call, words.word(1).to_owned(), None));
            }
            "abandon" => {
                let (on, sequence) = (words.node(0), words.number("call"));
                world.story.tell(format!("nobody waits for {on:?}'s call {sequence} any more"));
                world.nodes.get_mut(&on).expect("three nodes").gone.insert(sequence);
                let lock = words.option("lock").map(str::to_owned);
                world.tell(on, Event::Abandoned { sequence, lock });
            }
            "cut" => drop(world.cut.insert((words.node(0), words.node(1)))),
            "isolate" => {
                let others = world.others(words.node(0));
                world.cut.extend(others.map(|other| (words.node(0), other)));
                world.story.tell(format!("{:?} is cut off", words.node(0)));
            }
            "heal" => {
                world.cut.clear();
                world.story.tell("all links work");
            }
            "crash" => {
                world.crash(words.node(0));
                world.story.tell(format!("{:?} is down", words.node(0)));
            }
            "restart" | "wipe" => {
                let (id, wiped) = (words.node(0), verb == "wipe");
                world.restart(id, wiped);
                let disk = if wiped { " with an empty disk under its old name" } else { "" };
                world.story.tell(format!("{id:?} is up{disk}"));
            }
            "watch" => {
                let next = Revision::new(words.number("from"));
                self.watches.push(Watch { on: words.node(0), next, paused: false });
                self.look();
            }
            "pause-watch" | "resume-watch" => {
                let (on, paused) = (words.node(0), verb == "pause-watch");
                let mine = self.watches.iter_mut().filter(|watch| watch.on == on);
                mine.for_each(|watch| watch.paused = paused);
                self.look();
            }
            "lock" => self.lock(words.node(0), words.word(1)),
            "value" => self.value(words.node(0), words.word(1)),
            "status" => self.status(),
            _ => panic!("{}: no such command", words.0),
        }
    }

    /// Three replicas, founded, and led by `leader=`; `log-bytes=` is about what they keep of it.
    fn begin(&mut self, words: &Words<'_>) {
        let mut world = words
            .option("log-bytes")
            .map_or_else(World::new, |bytes| World::keeping(number(bytes)));
        let wanted =
            words.option("leader").map_or(n(1), |id| n(number(id.trim_start_matches('n'))));
        world.wait_until_led_by(wanted);
        world.sequence = 0;
        world.story.begin(world.now);
        let head = world.story.machine().head().clone();
        world.story.tell(format!(
            "{wanted:?} leads {:?}, {:?} is committed, revision {}",
            head.term, head.index, head.revision
        ));
        *self = Self { world, ..Self::new() };
    }

    fn call(&mut self, words: &Words<'_>, kind: CallKind) -> u64 {
        let on = words.node(0);
        let call = self.world.call(on, kind);
        self.world.story.tell(format!("{on:?} takes call {call}: {}", words.0));
        call
    }

    fn wait(&mut self, word: &str) {
        let millis = word.strip_suffix("ms").map(number);
        let millis = millis.unwrap_or_else(|| number(word.trim_end_matches('s')) * 1_000);
        let end = self.world.now.after(Duration::from_millis(millis));
        while self.world.now < end {
            self.world.pass();
            self.look();
        }
    }

    /// What the scenario's own clients do with what has come.
    fn look(&mut self) {
        let world = &mut self.world;
        for (on, call, name) in &self.opening {
            let outcome = world.nodes[on].outcomes.get(call).and_then(|o| o.result.clone());
            if let Some(outcome::Result::OpenSession(opened)) = outcome {
                self.sessions.push((name.clone(), opened.session_id));
                world.story.name_session(opened.session_id, name);
            }
        }
        let nodes = &world.nodes;
        self.opening.retain(|(on, call, _)| !nodes[on].outcomes.contains_key(call));
        self.finish_reads();
        let world = &mut self.world;
        self.watches.iter_mut().filter(|watch| !watch.paused).for_each(|watch| watch.read(world));
        self.watches.retain(|watch| watch.next != Revision::ZERO);
    }

    fn finish_reads(&mut self) {
        let world = &mut self.world;
        for (on, call, key, index) in &mut self.reads {
            if let Some(Reply::ReadIndex(known)) = world.nodes[on].replies.get(call) {
                *index = Some(*known);
            }
            let at = world.nodes[on].machine.head().index;
            if index.is_some_and(|index| index <= at) {
                let value = stored(world, *on, key);
                world.story.tell(format!("call {call} reads {key} = {value}, on {on:?} at {at:?}"));
                *index = Some(LogIndex::new(u64::MAX));
            }
        }
        let nodes = &world.nodes;
        self.reads.retain(|(on, call, _, index)| {
            let refused = matches!(nodes[on].replies.get(call), Some(Reply::Refused(_)));
            !refused && index.is_none_or(|index| index.value() < u64::MAX)
        });
    }

    fn lock(&mut self, on: NodeId, name: &str) {
        let view = View::new(self.world.nodes[&on].machine.store().snapshot());
        let lock = view.lock(name).expect("the store works").lock.expect("it is described");
        let holder = lock.holder.map_or("is free".to_owned(), |holder| {
            format!("is held with token {}", holder.fencing_token)
        });
        let waiting = lock.waiter_count;
        self.world.story.tell(format!("{on:?} knows: lock {name} {holder}, {waiting} wait"));
    }

    fn value(&mut self, on: NodeId, key: &str) {
        let value = stored(&self.world, on, key);
        self.world.story.tell(format!("{on:?} knows: {key} = {value}"));
    }

    /// Everyone's state, beside that of the one who applied each entry alone.
    fn status(&mut self) {
        let hash = |machine: &crate::machine::Machine| {
            let view = View::new(machine.store().snapshot());
            view.state_hash(Revision::ZERO).expect("the store works").expect("a revision").full_hash
        };
        let world = &mut self.world;
        let (index, expected) = (world.story.index(), hash(world.story.machine()));
        let nodes = world.nodes.iter().map(|(id, node)| {
            let status = node.replica.status();
            let role = if node.up { format!("{:?}", status.role) } else { "down".to_owned() };
            let at = node.machine.head().index;
            let state = match hash(&node.machine) == expected {
                true => "the same state",
                false if at == index => panic!("{id:?} has another state at {at:?}"),
                false => "an older state",
            };
            let open = node.replica.open_calls();
            let open = if node.up { format!(", {open} calls open") } else { String::new() };
            format!("{id:?} {role:<9} {:?} applied {at:?}, {state}{open}", status.term)
        });
        let lines: Vec<String> = nodes.collect();
        lines.into_iter().for_each(|line| world.story.tell(line));
    }
}

impl Watch {
    /// Reads on. Where what comes next was compacted, the watch ends.
    fn read(&mut self, world: &mut World) {
        let Self { on, next, .. } = *self;
        if !world.nodes[&on].up {
            return;
        }
        let view = View::new(world.nodes[&on].machine.store().snapshot());
        match view.changes(Space::User, next, usize::MAX).expect("the store works") {
            Ok((changes, upto)) => {
                for change in changes {
                    let key = String::from_utf8_lossy(&change.kv.key).into_owned();
                    let value = match change.kind {
                        ChangeKind::Put => String::from_utf8_lossy(&change.kv.value).into_owned(),
                        ChangeKind::Delete => "(deleted)".to_owned(),
                    };
                    let revision = change.kv.mod_revision;
                    let line =
                        format!("the watch on {on:?} sees revision {revision}: {key} = {value}");
                    world.story.tell(line);
                }
                self.next = self.next.max(upto.next());
            }
            Err(refusal) => {
                world.story.tell(format!("the watch on {on:?} ends: {}", refused(&refusal)));
                self.next = Revision::ZERO;
            }
        }
    }
}

fn stored(world: &World, on: NodeId, key: &str) -> String {
    let view = View::new(world.nodes[&on].machine.store().snapshot());
    let request = RangeRequest { key: key.to_owned().into(), ..RangeRequest::default() };
    let range = view.range(&request).expect("the store works").expect("a plain range");
    range.kvs.first().map_or_else(
        || "nothing".to_owned(),
        |kv| {
            let value = String::from_utf8_lossy(&kv.value);
            format!("{value} (version {}, revision {})", kv.version, kv.mod_revision)
        },
    )
}
