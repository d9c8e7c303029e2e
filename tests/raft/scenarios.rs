//! The player of the golden scenarios of the consensus core, `tests/scenarios/raft/*.txt`, and the
//! check of the course's index. `tests/scenarios/README.md` lists the commands.

use std::collections::{BTreeMap, VecDeque};

use quorate::{
    raft::{Config, Entry, HardState, Input, Membership, Payload, Restored, RoleKind},
    types::{LogTime, NodeId},
};

use crate::{
    disk::entry,
    network::{Network, Packet, i, ms, n, t},
    speech::in_words,
};

#[macro_use]
#[path = "../scenarios/script.rs"]
mod script;

scenarios! { "raft":
    election
    split_vote
    replication
    conflict_repair
    figure_7
    figure_8
    pre_vote
    check_quorum
    partition_heals
    one_way_partition
    disconnect_failover
    leadership_transfer
    transfer_aborted
    disk_stall
    leaders_own_disk
    late_persisted
    restart
    read_index
    late_answer_to_a_read
    flow_control
    snapshot_catch_up
    snapshot_over_conflict
    log_time
    learner_promoted
    joint_membership
}

struct Player {
    network: Network,
    /// How far members' wall clocks are ahead, in milliseconds.
    clocks: BTreeMap<u64, i64>,
    /// Messages that were taken aside and arrive late.
    delayed: VecDeque<Packet>,
}

/// A command's words behind the first.
struct Words<'a>(&'a str, Vec<&'a str>);

impl Words<'_> {
    fn word(&self, place: usize) -> &str {
        self.1.get(place).unwrap_or_else(|| panic!("{}: a word is missing", self.0))
    }

    fn number(&self, place: usize, prefix: char) -> u64 {
        let word = self.word(place).trim_start_matches(prefix);
        word.parse().unwrap_or_else(|_| panic!("{}: which?", self.0))
    }

    fn id(&self, place: usize) -> u64 {
        self.number(place, 'n')
    }

    /// `key=value` among the words.
    fn option(&self, key: &str) -> Option<&str> {
        self.1.iter().find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
    }

    fn ids(&self, key: &str) -> Option<Vec<NodeId>> {
        let ids = self.option(key)?.split(',').filter(|id| !id.is_empty());
        Some(ids.map(|id| n(id.parse().expect("an id"))).collect())
    }
}

impl Player {
    fn new() -> Self {
        let mut network = Network::new(3);
        network.trace = Some(Vec::new());
        Self { network, clocks: BTreeMap::new(), delayed: VecDeque::new() }
    }

    fn run(&mut self, command: &str) -> Vec<String> {
        let mut words = command.split_whitespace();
        let mut verb = words.next().expect("a command");
        // What goes as expected is not told.
        let quietly = verb == "quietly";
        if quietly {
            verb = words.next().expect("a command");
            self.network.trace = None;
        }
        let words = Words(command, words.collect());
        self.carry_out(verb, &words);
        if quietly {
            self.network.trace = Some(Vec::new());
        }
        self.network.trace.replace(Vec::new()).unwrap_or_default()
    }

    fn carry_out(&mut self, verb: &str, words: &Words<'_>) {
        let network = &mut self.network;
        match verb {
            "cluster" => self.begin(words),
            "elect" => {
                self.network.trace = None;
                self.network.elect(words.id(0));
                self.network.trace = Some(Vec::new());
                self.status();
            }
            "timeout" => self.time_out(words),
            "wait" => {
                let span = words.word(0).trim_end_matches("ms").parse().expect("a span in ms");
                network.run(ms(span));
            }
            "settle" => network.settle(),
            "deliver" => network.deliver_to(words.id(0)),
            "persist" => {
                let most = words.1.get(1).map_or(usize::MAX, |word| word.parse().expect("a count"));
                let _ = (0..most).take_while(|_| network.persist_one(words.id(0))).count();
            }
            "propose" => {
                (1..words.1.len()).for_each(|at| self.propose(words.id(0), words.word(at)))
            }
            "read" => drop(network.read(words.id(0))),
            "transfer" => drop(network.transfer(words.id(0), Some(words.id(1)))),
            "lose" => network.packets.clear(),
            "cut" => drop(network.cut.insert((n(words.id(0)), n(words.id(1))))),
            "isolate" => network.isolate(words.id(0)),
            "heal" => network.heal(),
            "delay" => self.delay(n(words.id(0)), n(words.id(1))),
            "arrive" => self.arrive(),
            "crash" => network.crash(words.id(0)),
            "restart" => network.restart(words.id(0)),
            "disconnect" => {
                network.step(words.id(0), Input::Disconnected { peer: n(words.id(1)) });
            }
            "disk-stands" => drop(network.disk_stands.insert(n(words.id(0)))),
            "disk-works" => drop(network.disk_stands.remove(&n(words.id(0)))),
            "stalled" => network.step(words.id(0), Input::DiskStalled(true)),
            "unstalled" => network.step(words.id(0), Input::DiskStalled(false)),
            "purge" => {
                let through = i(words.number(1, 'i'));
                network.step(words.id(0), Input::Purge { through });
            }
            "clock" => {
                let ahead = words.word(1).trim_end_matches("ms").parse().expect("a span in ms");
                self.clocks.insert(words.id(0), ahead);
            }
            "heartbeats" => network.tells_heartbeats = words.word(0) == "shown",
            "status" => self.status(),
            "members" => self.members(),
            "peers" => self.peers(words.id(0)),
            "times" => self.times(words.id(0)),
            "disk" => self.disk(words.id(0)),
            _ => panic!("{}: no such command", words.0),
        }
    }

    fn say(&mut self, line: String) {
        self.network.trace.as_mut().expect("scenarios are traced").push(line);
    }

    /// Time goes by until these members' patience is at an end, all at once. The others' begins
    /// anew, so that they do not campaign too.
    fn time_out(&mut self, words: &Words<'_>) {
        let network = &mut self.network;
        let ids: Vec<u64> = (0..words.1.len()).map(|at| words.id(at)).collect();
        let due = ids.iter().map(|&id| network.raft(id).next_deadline()).max().expect("who?");
        network.now = network.now.max(due);
        for other in network.nodes.keys().map(|id| id.value()).collect::<Vec<_>>() {
            if !ids.contains(&other) && network.role(other) != RoleKind::Leader {
                // A member whose disk stands does not campaign when its time is up, but waits on.
                network.step(other, Input::DiskStalled(true));
                network.step(other, Input::DiskStalled(false));
            }
        }
        ids.iter().for_each(|&id| network.step(id, Input::Tick));
    }

    /// `cluster 3`, or the terms of each member's entries: `cluster 1,1,2 1,1 -`. A term with a
    /// star is an entry with a membership, that of `to-voters=1,2 to-learners=3`.
    fn begin(&mut self, words: &Words<'_>) {
        let plain = |word: &&&str| !word.contains('=');
        let logs: Vec<&str> = words.1.iter().filter(plain).copied().collect();
        let count = logs.first().and_then(|word| word.parse::<u64>().ok());
        let size = count.filter(|_| logs.len() == 1).unwrap_or(logs.len() as u64);
        let logs = if count.is_some() && logs.len() == 1 { Vec::new() } else { logs };
        let all = || (1..=size).map(n).collect::<Vec<_>>();
        let membership = |prefix: &str, voters: Vec<NodeId>| Membership {
            outgoing: words.ids(&format!("{prefix}outgoing")).into_iter().flatten().collect(),
            learners: words.ids(&format!("{prefix}learners")).into_iter().flatten().collect(),
            ..Membership::of(words.ids(&format!("{prefix}voters")).unwrap_or(voters))
        };
        let founding = membership("", all());
        let next = membership("to-", all());
        let term_of = |word: &str| word.trim_end_matches('*').parse::<u64>().expect("a term");
        let latest = logs.iter().flat_map(|log| log.split(',')).filter(|word| *word != "-");
        // Nobody led a term that a majority does not know of.
        let term = t(latest.map(term_of).max().unwrap_or(0));
        let members = (1..=size).map(|id| {
            let log = logs.get(id as usize - 1).copied().unwrap_or("-").split(',');
            let entries = log.filter(|word| *word != "-").zip(1..).map(|(word, at)| {
                let plain = entry(at, term_of(word));
                let payload = if word.ends_with('*') {
                    Payload::Membership(next.clone())
                } else {
                    plain.payload.clone()
                };
                Entry { payload, ..plain }
            });
            let mut config = Config::new(n(id));
            let limit = |key| words.option(key).map(|value| value.parse().expect("a number"));
            config.append_entries_max = limit("entries").unwrap_or(config.append_entries_max);
            config.inflight_messages_max = limit("window").unwrap_or(config.inflight_messages_max);
            let hard = HardState { term, ..HardState::default() };
            let (membership, entries) = (founding.clone(), entries.collect());
            (config, Restored { hard, entries, membership, ..Restored::default() })
        });
        self.network = Network::restored(members.collect::<Vec<_>>());
        self.network.trace = Some(Vec::new());
    }

    fn propose(&mut self, id: u64, command: &str) {
        let ticket = self.network.ask(id);
        let now = self.network.now.as_nanos() / 1_000_000;
        let ahead = self.clocks.get(&id).copied().unwrap_or(0);
        let time = LogTime::from_millis(now.saturating_add_signed(ahead));
        let commands = vec![(ticket, command.to_owned().into())];
        self.network.step(id, Input::Propose { time, expected_term: None, commands });
    }

    /// Takes what is on its way from one member to another aside.
    fn delay(&mut self, from: NodeId, to: NodeId) {
        let mine = |packet: &Packet| packet.from == from && packet.to == to;
        let (late, rest) = self.network.packets.drain(..).partition(mine);
        self.network.packets = rest;
        let late: VecDeque<Packet> = late;
        for packet in late {
            self.say(format!("{} is delayed", told(&packet)));
            self.delayed.push_back(packet);
        }
    }

    /// What was delayed arrives now.
    fn arrive(&mut self) {
        for packet in std::mem::take(&mut self.delayed) {
            self.say(format!("{} arrives late", told(&packet)));
            self.network.deliver(packet);
        }
    }

    fn status(&mut self) {
        let mut lines = Vec::new();
        for (id, node) in &self.network.nodes {
            let (status, disk) = (node.raft.status(), &node.disk);
            let terms = |entries: Vec<&Entry>| {
                let terms = entries.iter().map(|entry| entry.term.value().to_string());
                terms.collect::<Vec<_>>().join(" ")
            };
            lines.push(if node.up {
                let (role, terms) = (format!("{:?}", status.role), terms(node.raft.entries().collect()));
                let (term, first) = (status.term, status.first);
                let (commit, applied) = (status.commit, status.applied);
                format!(
                    "{id:?} {role:<12} {term:?} log from {first:?}: [{terms}] commit {commit:?} applied {applied:?}"
                )
            } else {
                let (term, first) = (disk.hard.term, disk.start.index.next());
                let terms = terms(disk.entries.iter().collect());
                format!("{id:?} down; on disk {term:?} log from {first:?}: [{terms}]")
            });
        }
        lines.into_iter().for_each(|line| self.say(line));
    }

    /// The membership that each member has in force.
    fn members(&mut self) {
        let members = self.network.nodes.iter().map(|(id, node)| {
            format!("{id:?} goes by {}", crate::speech::membership(&node.raft.status().membership))
        });
        let lines: Vec<String> = members.collect();
        lines.into_iter().for_each(|line| self.say(line));
    }

    /// How a leader sees the others.
    fn peers(&mut self, id: u64) {
        let peers = self.network.raft(id).peers().into_iter().map(|peer| {
            format!(
                "n{id} sees {:?}: {}, matched {:?}, next {:?}",
                peer.id, peer.state, peer.matched, peer.next
            )
        });
        let lines: Vec<String> = peers.collect();
        lines.into_iter().for_each(|line| self.say(line));
    }

    /// The log times of a member's entries.
    fn times(&mut self, id: u64) {
        let entries = self.network.raft(id).entries();
        let times = entries.map(|e| format!("{:?} at {}ms", e.index, e.time.as_millis()));
        let line = format!("n{id} log time: {}", times.collect::<Vec<_>>().join(", "));
        self.say(line);
    }

    /// What a member would find after a crash now.
    fn disk(&mut self, id: u64) {
        let disk = &self.network.node(id).disk;
        let vote = disk.hard.vote.map_or("no vote".to_owned(), |vote| format!("vote for {vote:?}"));
        let terms = disk.entries.iter().map(|entry| entry.term.value().to_string());
        let terms = terms.collect::<Vec<_>>().join(" ");
        let (term, commit) = (disk.hard.term, disk.hard.commit);
        let line = format!("n{id} has on disk: {term:?} {vote}, commit {commit:?}, log [{terms}]");
        self.say(line);
    }
}

fn told(packet: &Packet) -> String {
    format!("{:?} -> {:?} {}", packet.from, packet.to, in_words(&packet.message))
}

/// The course's index lists every scenario, in order, under the title that its first line gives.
#[test]
fn the_index_is_complete() {
    let index = std::fs::read_to_string(script::root().join("README.md")).expect("it is there");
    let rows = index.lines().filter(|line| line.starts_with("| ") && line.contains("](r"));
    let listed: Vec<String> = rows
        .map(|row| {
            let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
            assert_eq!(cells.len(), 4, "order, title, what it teaches, rules: {row}");
            assert!(cells.iter().all(|cell| !cell.is_empty()), "an empty cell: {row}");
            format!("{} {}", cells[0], cells[1])
        })
        .collect();
    let files = ["raft", "replica"].into_iter().flat_map(|folder| {
        script::files(folder).into_iter().map(move |file| format!("{folder}/{file}"))
    });
    let expected: Vec<String> = files
        .zip(1..)
        .map(|(file, number)| {
            let text = std::fs::read_to_string(script::root().join(&file)).expect("it is there");
            let title = text.lines().next().and_then(|line| line.strip_prefix("# "));
            let title = title.unwrap_or_else(|| panic!("{file} begins with `# its title`"));
            assert!(file.contains(&format!("/{number:02}_")), "{file} is number {number}");
            assert_eq!(text.lines().nth(1), Some("#"), "{file}: the title stands alone");
            format!("{number} [{title}]({file})")
        })
        .collect();
    assert_eq!(listed, expected);
}
