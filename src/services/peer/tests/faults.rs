//! The lab's faults over real connections: what they lose, delay, double and cut, and that they end.

use std::collections::BTreeSet;

use bytes::Bytes;

use super::*;
use crate::{
    node::SnapshotSource,
    services::peer::faults::{Kind, Line, Rule, Share, Way},
};

const LONG: Duration = Duration::from_secs(60);

fn rule(peer: NodeId, way: Way, kinds: &[Kind]) -> Rule {
    Rule {
        peer,
        way,
        kinds: kinds.iter().copied().collect::<BTreeSet<_>>(),
        drop: Share::default(),
        delay: Duration::ZERO,
        jitter: Duration::ZERO,
        duplicate: Share::default(),
        reorder: Share::default(),
        cut: false,
        seed: 3,
    }
}

fn all() -> Share {
    Share::of(1.0).expect("it is a share")
}

fn heartbeat(round: u64) -> Message {
    Message::Heartbeat(Heartbeat { term: TERM, commit: LogIndex::new(3), round })
}

fn forward(sequence: u64) -> ForwardRequest {
    ForwardRequest { reads: vec![ReadIndex { sequence }], ..Default::default() }
}

async fn lab_pair() -> (Node, Node) {
    let (one, mut two) = pair_with(|| Some(Arc::default())).await;
    one.append_lane_stands(&mut two).await;
    (one, two)
}

impl Node {
    fn lab(&self) -> &LinkLab {
        self.transport.shared.options.lab.as_deref().expect("it was given one")
    }

    fn breaks(&self, rule: Rule, lease: Duration) -> u64 {
        assert_eq!(rule.check(), Ok(()));
        self.lab().add(rule, lease).expect("there is room")
    }

    /// The reads of the next message that was passed on.
    async fn forwarded_reads(&mut self) -> Vec<u64> {
        self.wait("forward", |event| match event {
            Event::Forwarded(_, request) => {
                Some(request.reads.iter().map(|read| read.sequence).collect())
            }
            _ => None,
        })
        .await
    }
}

#[tokio::test]
async fn a_lost_kind_vanishes_on_its_way_only() {
    for at_the_sender in [true, false] {
        let (mut one, mut two) = lab_pair().await;
        let (lossy, line) = match at_the_sender {
            true => (&one, Line::to(TWO, Kind::Heartbeat)),
            false => (&two, Line::from(ONE, Kind::Heartbeat)),
        };
        lossy.breaks(Rule { drop: all(), ..rule(line.peer, line.way, &[line.kind]) }, LONG);
        one.transport.send(TWO, SYSTEM, heartbeat(1));
        until("loss", || {
            let lossy = if at_the_sender { &one } else { &two };
            lossy.lab().counts().get(&line).is_some_and(|counts| counts.dropped == 1)
        })
        .await;
        one.transport.send(TWO, SYSTEM, append(5));
        assert_eq!(two.message().await, (ONE, append(5)));
        two.transport.send(ONE, SYSTEM, heartbeat(2));
        assert_eq!(one.message().await, (TWO, heartbeat(2)));
    }
}

#[tokio::test]
async fn late_messages_arrive_in_their_order_and_forwards_once() {
    let (one, mut two) = lab_pair().await;
    let (delay, jitter) = (Duration::from_millis(5), Duration::from_millis(20));
    let slow = Rule { delay, jitter, duplicate: all(), ..rule(TWO, Way::To, &[]) };
    until("forward lane", || one.transport.forward(TWO, forward(0))).await;
    assert_eq!(two.forwarded_reads().await, [0]);
    one.breaks(slow, LONG);
    let sent: Vec<u64> = (1..=50).collect();
    for sequence in &sent {
        assert!(one.transport.forward(TWO, forward(*sequence)));
    }
    let mut arrived = Vec::new();
    while arrived.len() < sent.len() {
        // What waits together travels together, in order.
        arrived.append(&mut two.forwarded_reads().await);
    }
    assert_eq!(arrived, sent);
    let counts = one.lab().counts()[&Line::to(TWO, Kind::Forward)];
    assert_eq!((counts.delayed, counts.duplicated), (50, 0));
}

#[tokio::test]
async fn messages_of_raft_come_twice() {
    let (one, mut two) = lab_pair().await;
    one.breaks(Rule { duplicate: all(), ..rule(TWO, Way::To, &[Kind::Append]) }, LONG);
    one.transport.send(TWO, SYSTEM, append(1));
    assert_eq!(two.message().await, (ONE, append(1)));
    assert_eq!(two.message().await, (ONE, append(1)));
    assert_eq!(one.lab().counts()[&Line::to(TWO, Kind::Append)].duplicated, 1);
}

#[tokio::test]
async fn messages_of_raft_overtake_each_other_and_none_is_lost() {
    let (one, mut two) = lab_pair().await;
    let half = Share::of(0.5).expect("it is a share");
    two.breaks(Rule { reorder: half, ..rule(ONE, Way::From, &[Kind::Append]) }, LONG);
    let sent: Vec<u64> = (1..=100).collect();
    for round in &sent {
        one.transport.send(TWO, SYSTEM, append(*round));
    }
    let mut arrived = Vec::new();
    for _ in &sent {
        let (_, Message::AppendRequest(append)) = two.message().await else {
            panic!("another message arrived");
        };
        arrived.push(append.round);
    }
    assert_ne!(arrived, sent, "nothing was overtaken");
    arrived.sort_unstable();
    assert_eq!(arrived, sent);
    assert!(two.lab().counts()[&Line::from(ONE, Kind::Append)].reordered > 0);
}

#[tokio::test]
async fn votes_are_lost_at_either_end() {
    let (one, mut two) = lab_pair().await;
    let request = VoteRequest {
        term: TERM,
        last_index: LogIndex::ZERO,
        last_term: Term::ZERO,
        pre_vote: true,
        leader_lost: false,
        transfer: false,
        call: 0,
    };
    let ask = || one.transport.send(TWO, SYSTEM, Message::VoteRequest(request.clone()));
    let lost = Rule { drop: all(), ..rule(TWO, Way::To, &[Kind::Vote]) };
    let number = one.breaks(lost, LONG);
    ask();
    assert_eq!(one.lab().counts()[&Line::to(TWO, Kind::Vote)].dropped, 1);
    one.lab().clear(&[number]);
    two.breaks(Rule { drop: all(), ..rule(ONE, Way::From, &[Kind::Vote]) }, LONG);
    ask();
    until("loss", || two.lab().counts().contains_key(&Line::from(ONE, Kind::Vote))).await;
    assert!(two.nothing_arrived());
}

#[tokio::test]
async fn a_cut_breaks_what_stands_and_ends_with_its_lease() {
    let (mut one, mut two) = lab_pair().await;
    let number = one.breaks(Rule { cut: true, ..rule(TWO, Way::To, &[]) }, LONG);
    one.disconnected(TWO).await;
    assert!(
        !one.transport
            .shared
            .link(TWO)
            .expect("they are peers")
            .heartbeats
            .offer((SYSTEM, heartbeat(1)))
    );
    two.transport.send(ONE, SYSTEM, heartbeat(2));
    assert_eq!(one.message().await, (TWO, heartbeat(2)), "the other way is whole");
    one.lab().clear(&[number]);
    one.connected(TWO).await;

    two.breaks(Rule { cut: true, ..rule(ONE, Way::From, &[]) }, Duration::from_millis(300));
    one.disconnected(TWO).await;
    one.connected(TWO).await;
    one.append_lane_stands(&mut two).await;
    assert!(one.lab().counts()[&Line::to(TWO, Kind::Control)].cut > 0);
    assert!(two.lab().counts()[&Line::from(ONE, Kind::Control)].cut > 0);
}

#[tokio::test]
async fn a_snapshot_gets_over_a_lost_chunk_and_a_late_answer() {
    let (mut one, two) = lab_pair().await;
    let lost = one.breaks(Rule { drop: all(), ..rule(TWO, Way::To, &[Kind::Snapshot]) }, LONG);
    let late = Duration::from_millis(10);
    two.breaks(Rule { delay: late, ..rule(ONE, Way::To, &[Kind::SnapshotAnswer]) }, LONG);
    let (made, chunks) = std::sync::mpsc::channel::<Bytes>();
    let chunks = Arc::new(Mutex::new(chunks));
    let source = SnapshotSource {
        term: TERM,
        index: LogIndex::new(50),
        last_term: TERM,
        chunks: Box::new(move || {
            let chunks = Arc::clone(&chunks);
            Box::new(std::iter::from_fn(move || {
                chunks.lock().expect("nobody panicked under it").recv().ok().map(Ok)
            }))
        }),
    };
    one.transport.send_snapshot(TWO, SYSTEM, source);
    // One ahead of each that goes out: the sender has to know which is the last.
    made.send(Bytes::from_static(b"lost")).expect("somebody takes it");
    made.send(Bytes::from_static(b"kept")).expect("somebody takes it");
    let line = Line::to(TWO, Kind::Snapshot);
    until("loss", || one.lab().counts().get(&line).is_some_and(|c| c.dropped >= 1)).await;
    one.lab().clear(&[lost]);
    drop(made);
    let end = one.wait("end of the snapshot", |event| match event {
        Event::SnapshotSent(installed) => Some(installed),
        _ => None,
    });
    assert_eq!(end.await, Some(LogIndex::new(50)));
    let (_, content) = two
        .recorder
        .snapshots
        .lock()
        .expect("nobody panicked under it")
        .pop()
        .expect("one snapshot");
    assert_eq!(content, b"\x04\0\0\0lost\x04\0\0\0kept");
    assert!(two.lab().counts()[&Line::to(ONE, Kind::SnapshotAnswer)].delayed > 0);
}
