//! The world: nodes, links, disks, clocks and clients, and a queue of what happens when.
//!
//! One thing happens at a time, in the order of times; ties go by the order of scheduling. All
//! chance comes from named streams of the plan's seed. After each turn of a replica the invariants
//! are checked.

mod answers;
mod applier;
mod boot;
mod clients;
mod disk;
mod end;
mod faults;
mod net;
mod node;
mod promises;
mod readers;
mod turn;

use std::{cmp::Reverse, collections::BinaryHeap};

use crate::{
    sim::{
        history::{Line, Recorder},
        invariants::{Broken, Checks},
        plan::Plan,
        run::Counts,
    },
    types::{Duration, Instant, Rng},
};

use self::{
    clients::{Clients, Due},
    end::Phase,
    net::{Net, Packet},
    node::{Boot, Node},
    promises::Promises,
    readers::Readers,
};

/// The most that may happen at one moment: a driver that never sleeps is found out.
const AT_ONCE_MAX: u64 = 100_000;

/// Something that is to happen.
#[derive(Debug)]
enum Happening {
    /// A fault of the plan.
    Fault(usize),
    /// The guard of a node's room looks.
    Room { node: usize },
    /// A fault ends.
    FaultEnds(usize),
    /// A node starts.
    Start { node: usize },
    /// A node's driver takes a turn.
    Turn { boot: Boot, wake: u64 },
    /// A node's log has been written and synced.
    Synced { boot: Boot },
    /// A node's applier has done its next job.
    Applied { boot: Boot },
    /// A node's state was made durable.
    Persisted { boot: Boot, job: node::Persist },
    /// A packet arrives.
    Arrives(Box<Packet>),
    /// The ends of a connection learn that it broke.
    ConnectionBreaks { a: usize, b: usize, epoch: u64 },
    /// A connection is made again, if it can be.
    Connects { a: usize, b: usize, epoch: u64 },
    /// Something of a client is due.
    Client { client: usize, due: Due },
    /// Whoever made a call of a node stops waiting for it.
    GivesUp { boot: Boot, sequence: u64 },
    /// A reader looks for news.
    Reader { reader: usize },
    /// The next look at whether the end is reached.
    Phase,
}

#[derive(Debug)]
struct Scheduled {
    at: Instant,
    order: u64,
    what: Happening,
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.order) == (other.at, other.order)
    }
}

impl Eq for Scheduled {}

impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Self) -> Option<core::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Scheduled {
    fn cmp(&self, other: &Self) -> core::cmp::Ordering {
        (self.at, self.order).cmp(&(other.at, other.order))
    }
}

/// A simulation that runs.
#[derive(Debug)]
pub(crate) struct World {
    plan: Plan,
    now: Instant,
    queue: BinaryHeap<Reverse<Scheduled>>,
    order: u64,
    nodes: Vec<Node>,
    net: Net,
    clients: Clients,
    readers: Readers,
    recorder: Recorder,
    checks: Checks,
    promises: Promises,
    /// What was found wrong where an answer was on its way.
    found: Option<Broken>,
    counts: Counts,
    /// How much has happened since time moved on.
    at_once: u64,
    phase: Phase,
    /// A call that was not served though nothing was wrong any more.
    unserved: Option<String>,
    /// What happened, in words, where somebody wants to read it.
    trace: Option<Vec<String>>,
}

impl World {
    pub(crate) fn new(plan: Plan, traced: bool) -> Self {
        let rng = Rng::new(plan.settings.seed).stream("world");
        let nodes =
            (1..=plan.settings.nodes).map(|id| Node::new(id, &plan.settings, &rng)).collect();
        let mut world = Self {
            now: Instant::ZERO.after(Duration::from_millis(1)),
            queue: BinaryHeap::new(),
            order: 0,
            nodes,
            net: Net::new(plan.settings.nodes, plan.settings.latency_us, &rng),
            clients: Clients::new(&plan),
            readers: Readers::new(&plan.settings, &rng),
            recorder: Recorder::new(format!("simulation of seed {}", plan.settings.seed))
                .compacting(),
            checks: Checks::default(),
            promises: Promises::new(&plan.settings),
            found: None,
            counts: Counts::default(),
            at_once: 0,
            phase: Phase::Faults,
            unserved: None,
            trace: traced.then(Vec::new),
            plan,
        };
        for node in 0..world.nodes.len() {
            let after = world.nodes[node].rng.between(Duration::ZERO, Duration::from_millis(300));
            world.after(after, Happening::Start { node });
        }
        for (at, timed) in world.plan.faults.iter().enumerate() {
            let at_ms = timed.at_ms.min(world.plan.settings.faults_until_ms);
            let scheduled = Scheduled {
                at: Instant::ZERO.after(Duration::from_millis(at_ms)),
                order: at as u64,
                what: Happening::Fault(at),
            };
            world.queue.push(Reverse(scheduled));
        }
        world.order = world.plan.faults.len() as u64;
        world.begin_clients();
        world.begin_readers();
        let until = Duration::from_millis(world.plan.settings.faults_until_ms);
        world.after(until, Happening::Phase);
        world
    }

    /// Runs to the end.
    pub(crate) fn run(&mut self) -> Result<(), Broken> {
        while let Some(Reverse(next)) = self.queue.pop() {
            if next.at > self.now {
                (self.now, self.at_once) = (next.at, 0);
            }
            self.at_once += 1;
            if self.at_once > AT_ONCE_MAX {
                let words = format!("{AT_ONCE_MAX} things happened at once: {:?}", next.what);
                return Err(Broken::new("time-moves", words));
            }
            self.happens(next.what)?;
            if self.phase == Phase::Over {
                return Ok(());
            }
        }
        Err(Broken::new("ends", "nothing was left to happen before the end"))
    }

    fn happens(&mut self, what: Happening) -> Result<(), Broken> {
        match what {
            Happening::Fault(at) => self.strike(at),
            Happening::FaultEnds(at) => self.fault_ends(at),
            Happening::Room { node } => self.look_at_room(node),
            Happening::Start { node } => self.start(node)?,
            Happening::Turn { boot, wake } => self.turn(boot, wake)?,
            Happening::Synced { boot } => self.log_synced(boot)?,
            Happening::Applied { boot } => self.applier_done(boot)?,
            Happening::Persisted { boot, job } => self.state_persisted(boot, job),
            Happening::Arrives(packet) => self.arrives(*packet)?,
            Happening::ConnectionBreaks { a, b, epoch } => self.connection_breaks(a, b, epoch),
            Happening::Connects { a, b, epoch } => self.connects(a, b, epoch),
            Happening::Client { client, due } => self.client_due(client, due)?,
            Happening::GivesUp { boot, sequence } => self.gives_up(boot, sequence),
            Happening::Reader { reader } => self.reader_looks(reader)?,
            Happening::Phase => self.next_phase()?,
        }
        self.found.take().map_or(Ok(()), Err)
    }

    /// Something is to happen in a while.
    fn after(&mut self, span: Duration, what: Happening) {
        self.at(self.now.after(span), what);
    }

    /// Something is to happen at a time.
    fn at(&mut self, at: Instant, what: Happening) {
        self.order += 1;
        self.queue.push(Reverse(Scheduled { at, order: self.order, what }));
    }

    /// What was recorded of clients, what was counted, what was traced.
    pub(crate) fn into_parts(self) -> (Recorder, Counts, Vec<String>) {
        (self.recorder, self.counts, self.trace.unwrap_or_default())
    }

    /// The simulated time.
    pub(crate) const fn now(&self) -> Instant {
        self.now
    }

    /// Writes a line of the trace, where there is one.
    fn tell(&mut self, line: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.trace {
            let at = self.now.as_nanos() / 1_000;
            trace.push(format!("{:>9}.{:03}ms  {}", at / 1_000, at % 1_000, line()));
        }
    }

    /// Something happened to the cluster: for the trace and the history.
    fn note(&mut self, node: Option<usize>, text: &str) {
        self.tell(|| match node {
            Some(node) => format!("n{}: {text}", node + 1),
            None => text.to_owned(),
        });
        let (time, node) = (self.now.as_nanos(), node.map(|node| node as u64 + 1));
        self.recorder.line(Line::Note { time, node, text: text.to_owned() });
    }
}
