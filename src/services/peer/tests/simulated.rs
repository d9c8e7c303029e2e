//! The transport in a simulated network: messages take their time, links are cut and mended, hosts
//! crash; what the node is told of it, and when. Time is turmoil's, so spans are exact.

use std::{
    cell::RefCell,
    rc::Rc,
    sync::atomic::{AtomicU32, Ordering},
};

use tokio::time::sleep_until;

use super::*;
use crate::{
    host::{self, tcp},
    net::{ListenOptions, incoming},
    node::{Peer as Known, SnapshotSource},
};

const PORT: u16 = 7402;

/// How long a connection that says nothing is believed in: a probe after 3 s, given up after 3 s.
const SILENCE_MAX: Duration = Duration::from_millis(6_500);

/// How long two nodes may take to find each other again: the pause between two attempts, the
/// attempt, and the other lanes.
const REUNION_MAX: Duration = Duration::from_secs(3);

/// What a host's transport is made of at each start.
#[derive(Clone)]
struct Part {
    directory: Arc<dyn Fn() -> Directory>,
    recorder: Arc<Recorder>,
    incoming_dir: Rc<TempDir>,
    snapshot_rate: u64,
    running: Rc<RefCell<Option<Arc<PeerTransport>>>>,
}

impl Part {
    async fn serve(self) -> turmoil::Result {
        let options = PeerOptions {
            incoming_dir: self.incoming_dir.path().to_owned(),
            snapshot_rate: self.snapshot_rate,
            metrics: Metrics::new(),
            tls: None,
            lab: None,
        };
        let transport = PeerTransport::new(Arc::new((self.directory)()), options);
        transport.start_into(Arc::clone(&self.recorder) as Arc<dyn Inbox>);
        *self.running.borrow_mut() = Some(Arc::clone(&transport));
        let listener = tcp::TcpListener::bind(([0, 0, 0, 0], PORT).into()).await?;
        let options = ListenOptions {
            listener: "peer",
            connections_max: 100,
            handshake_timeout: Duration::from_secs(5),
            tls: None,
            metrics: Metrics::new(),
        };
        let server = server_builder().add_service(transport.service());
        Ok(server.serve_with_incoming(incoming(listener, options)).await?)
    }
}

/// A node as the scenario sees it.
struct Peer {
    id: NodeId,
    events: mpsc::UnboundedReceiver<Event>,
    recorder: Arc<Recorder>,
    running: Rc<RefCell<Option<Arc<PeerTransport>>>>,
}

impl Peer {
    fn transport(&self) -> Arc<PeerTransport> {
        Arc::clone(self.running.borrow().as_ref().expect("it was started"))
    }

    async fn wait<T>(&mut self, what: &str, mut pick: impl FnMut(Event) -> Option<T>) -> T {
        let search = async {
            loop {
                let event = self.events.recv().await.expect("the recorder lives");
                if let Some(picked) = pick(event) {
                    return picked;
                }
            }
        };
        timeout(DEADLINE, search).await.unwrap_or_else(|_| panic!("{}: no {what}", self.id))
    }

    async fn connected(&mut self) {
        self.wait("connection", |event| matches!(event, Event::Connected(_)).then_some(())).await;
    }

    async fn disconnected(&mut self) {
        self.wait("disconnection", |event| matches!(event, Event::Disconnected(_)).then_some(()))
            .await;
    }

    async fn message(&mut self) -> Message {
        self.wait("message", |event| match event {
            Event::Message(_, message) => Some(message),
            _ => None,
        })
        .await
    }

    fn other(&self) -> NodeId {
        if self.id == ONE { TWO } else { ONE }
    }

    fn send(&self, message: Message) {
        self.transport().send(self.other(), SYSTEM, message);
    }

    /// Sends appends until they arrive; what arrived by then is forgotten.
    async fn append_lane_stands(&self, to: &mut Self) {
        let mut round = 1_000_000;
        loop {
            self.send(append(round));
            if let Ok(Message::AppendRequest(_)) = timeout(ms(100), to.message()).await {
                break;
            }
            round += 1;
        }
        pause(ms(200)).await;
        while to.events.try_recv().is_ok() {}
    }
}

const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

async fn pause(span: Duration) {
    sleep_until(Instant::now() + span).await;
}

fn directory_of(id: NodeId, incarnation: u128) -> Directory {
    let host = |number: u64| format!("node-{number}:{PORT}");
    let peers = (1..=2_u64).map(|number| {
        let incarnation = Some(disk(number.into()));
        let peer = Known { peer_address: host(number), incarnation, ..Default::default() };
        (NodeId::new(number), peer)
    });
    let (client, own) = (format!("client-of-{id}:1"), host(id.value()));
    Directory::new(id, disk(incarnation), client, own, Some(cluster_id(1)), peers.collect())
}

/// What a scenario may have done to the hosts.
type Orders = Rc<RefCell<Vec<(bool, &'static str)>>>;

/// Runs two transports, the second on a disk of this number, and a scenario.
fn simulate<Fut>(seed: u64, disk_of_two: u128, scenario: impl FnOnce(Peer, Peer, Orders) -> Fut)
where
    Fut: Future<Output = ()> + 'static,
{
    host::simulated::seed(Some(seed));
    let mut sim = turmoil::Builder::new()
        .rng_seed(seed)
        .simulation_duration(Duration::from_secs(120))
        .min_message_latency(ms(1))
        .max_message_latency(ms(30))
        .build();
    let mut peer = |id: NodeId, incarnation: u128, snapshot_rate| {
        let (sender, events) = mpsc::unbounded_channel();
        let recorder = Arc::new(Recorder { events: sender, snapshots: Mutex::default() });
        let running = Rc::new(RefCell::new(None));
        let part = Part {
            directory: Arc::new(move || directory_of(id, incarnation)),
            recorder: Arc::clone(&recorder),
            incoming_dir: Rc::new(TempDir::new().expect("a directory")),
            snapshot_rate,
            running: Rc::clone(&running),
        };
        sim.host(format!("node-{id}"), move || part.clone().serve());
        Peer { id, events, recorder, running }
    };
    let (one, two) = (peer(ONE, 1, 1 << 20), peer(TWO, disk_of_two, 0));
    let orders = Orders::default();
    let scenario = scenario(one, two, Rc::clone(&orders));
    sim.client("client", async move {
        scenario.await;
        Ok(())
    });
    loop {
        let finished = sim.step().unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        for (up, name) in orders.take() {
            if up { sim.bounce(name) } else { sim.crash(name) }
        }
        if finished {
            break;
        }
    }
    drop(sim);
    host::simulated::seed(None);
}

#[test]
fn each_lane_keeps_its_order_however_long_messages_take() {
    simulate(31, 2, async |one, mut two, _| {
        one.append_lane_stands(&mut two).await;
        let beat = |round| Heartbeat { term: TERM, commit: LogIndex::ZERO, round };
        for round in 1..=150 {
            one.send(append(round));
            if round % 3 == 0 {
                one.send(Message::Heartbeat(beat(round / 3)));
            }
            if round % 40 == 0 {
                pause(ms(7)).await;
            }
        }
        let (mut appends, mut beats) = (0, 0);
        while appends < 150 || beats < 50 {
            match two.message().await {
                Message::AppendRequest(append) => {
                    appends += 1;
                    assert_eq!(append.round, appends);
                }
                Message::Heartbeat(beat) => {
                    beats += 1;
                    assert_eq!(beat.round, beats);
                }
                other => panic!("{other:?}"),
            }
        }
    });
}

#[test]
fn a_cut_link_is_noticed_in_time_and_mended_without_stale_messages() {
    for one_way in [false, true] {
        simulate(32, 2, async move |mut one, mut two, _| {
            one.connected().await;
            two.connected().await;
            one.append_lane_stands(&mut two).await;
            while !one.transport().forward(TWO, ForwardRequest::default()) {
                pause(ms(10)).await;
            }
            if one_way {
                turmoil::partition_oneway("node-2", "node-1");
            } else {
                turmoil::partition("node-1", "node-2");
            }
            let cut = Instant::now();
            one.send(append(900));
            let (mut disconnected, mut broken) = (false, false);
            while !(disconnected && broken) {
                one.wait("sign of the cut", |event| {
                    disconnected |= matches!(event, Event::Disconnected(TWO));
                    broken |= matches!(event, Event::ForwardBroken(TWO));
                    Some(())
                })
                .await;
            }
            assert!(cut.elapsed() <= SILENCE_MAX, "noticed after {:?}", cut.elapsed());
            let refused = !one.transport().forward(TWO, ForwardRequest::default());
            assert!(refused, "it is certainly not sent");
            pause(Duration::from_secs(4)).await;
            one.send(append(901));
            turmoil::repair("node-1", "node-2");
            turmoil::repair_oneway("node-2", "node-1");
            let mended = Instant::now();
            one.connected().await;
            assert!(mended.elapsed() <= REUNION_MAX, "after {:?}", mended.elapsed());
            while two.events.try_recv().is_ok() {}
            one.append_lane_stands(&mut two).await;
            one.send(append(902));
            assert_eq!(two.message().await, append(902), "what was meant long ago is gone");
        });
    }
}

#[test]
fn a_crashed_host_is_missed_at_once_and_found_when_it_is_back() {
    simulate(33, 2, async |mut one, mut two, orders: Orders| {
        one.connected().await;
        two.connected().await;
        for _ in 0..3 {
            orders.borrow_mut().push((false, "node-2"));
            let crashed = Instant::now();
            one.disconnected().await;
            assert!(crashed.elapsed() <= ms(100), "noticed after {:?}", crashed.elapsed());
            pause(Duration::from_secs(2)).await;
            orders.borrow_mut().push((true, "node-2"));
            let back = Instant::now();
            one.connected().await;
            two.connected().await;
            assert!(back.elapsed() <= REUNION_MAX, "after {:?}", back.elapsed());
            one.append_lane_stands(&mut two).await;
        }
    });
}

#[test]
fn votes_and_what_is_forwarded_are_answered_and_a_lost_vote_is_no_refusal() {
    simulate(34, 2, async |mut one, mut two, _| {
        one.connected().await;
        let request = |call| {
            Message::VoteRequest(VoteRequest {
                term: TERM,
                last_index: LogIndex::new(9),
                last_term: Term::new(6),
                pre_vote: true,
                leader_lost: true,
                transfer: false,
                call,
            })
        };
        one.send(request(41));
        let Message::VoteRequest(asked) = two.message().await else { panic!("not a vote") };
        let (term, call) = (TERM, asked.call);
        let vote = VoteResponse { term, granted: true, pre_vote: true, reason: "", call };
        two.send(Message::VoteResponse(vote.clone()));
        let answer = Message::VoteResponse(VoteResponse { call: 41, ..vote.clone() });
        assert_eq!(one.message().await, answer);

        // The vote is given while the way back is cut: nobody may take that for a refusal.
        one.send(request(42));
        let Message::VoteRequest(asked) = two.message().await else { panic!("not a vote") };
        turmoil::partition_oneway("node-2", "node-1");
        two.send(Message::VoteResponse(VoteResponse { call: asked.call, ..vote }));
        one.disconnected().await;
        turmoil::repair_oneway("node-2", "node-1");
        one.connected().await;

        let sequence = 7;
        let propose = Propose { sequence, command: "c".into(), expected_term: 7 };
        let forward = ForwardRequest { proposals: vec![propose], ..Default::default() };
        while !one.transport().forward(TWO, forward.clone()) {
            pause(ms(10)).await;
        }
        let is_forward = |event| matches!(event, Event::Forwarded(ONE, _)).then_some(());
        two.wait("forward", is_forward).await;
        let result = Some(answer::Result::ReadIndex(5));
        let answers = vec![Answer { sequence, result, expected_term: 1 }];
        two.transport().answer(ONE, ForwardResponse { answers: answers.clone() });
        let answered = one.wait("answer", |event| match event {
            Event::Answered(response) => Some(response.answers),
            Event::Message(_, Message::VoteResponse(vote)) => panic!("it was lost: {vote:?}"),
            _ => None,
        });
        assert_eq!(answered.await, answers);
    });
}

#[test]
fn a_snapshot_goes_on_where_cuts_and_a_restart_of_the_stream_left_it() {
    const CHUNKS: u8 = 40;
    simulate(35, 2, async |mut one, two, _| {
        one.connected().await;
        let begun = Arc::new(AtomicU32::new(0));
        let counted = Arc::clone(&begun);
        let chunks = move || -> crate::node::SnapshotChunks {
            counted.fetch_add(1, Ordering::Relaxed);
            Box::new((0..CHUNKS).map(|number| Ok(vec![number; 100_000].into())))
        };
        let (index, last_term) = (LogIndex::new(50), Term::new(6));
        let source = SnapshotSource { term: TERM, index, last_term, chunks: Box::new(chunks) };
        one.transport().send_snapshot(TWO, SYSTEM, source);
        // A megabyte a second: there are four.
        for _ in 0..2 {
            pause(Duration::from_secs(1)).await;
            turmoil::partition("node-1", "node-2");
            pause(Duration::from_secs(8)).await;
            turmoil::repair("node-1", "node-2");
        }
        let sent = |event| match event {
            Event::SnapshotSent(installed) => Some(installed),
            _ => None,
        };
        assert_eq!(one.wait("end of the snapshot", sent).await, Some(index));
        let (offer, content) = two
            .recorder
            .snapshots
            .lock()
            .expect("nobody panicked under it")
            .pop()
            .expect("one snapshot");
        assert_eq!((offer.from, offer.index), (ONE, index));
        let whole = (0..CHUNKS)
            .flat_map(|number| [&100_000_u32.to_le_bytes()[..], &vec![number; 100_000]].concat());
        assert!(content.into_iter().eq(whole), "every chunk once, in order");
        let text = one.transport().shared.options.metrics.encode();
        let resumed = text.lines().find_map(|l| l.strip_prefix("quorate_snapshot_resumed_total "));
        assert_ne!(resumed, Some("0"), "no cut fell into the transfer");
        assert_eq!(begun.load(Ordering::Relaxed), 1, "it began anew");
    });
}

#[test]
fn a_wiped_disk_is_refused_in_the_simulation_as_well() {
    simulate(36, 22, async |_, two, _| {
        let transport = two.transport();
        let words = timeout(DEADLINE, transport.refused()).await.expect("a refusal");
        assert!(words.starts_with("node 1 refuses this node: node 2 is registered"), "{words}");
    });
}
