//! `quorate.lab.v1.LabService`: faults of this node's links, for whoever experiments with it.
//!
//! Served only by a node that was started with `--lab`. It checks what is asked and keeps nothing:
//! the faults are the transport's, and each ends by itself.

use std::sync::Arc;

use tonic::{Request, Response, Status};

use crate::{
    machine::refusal,
    pb::{
        command::v1::Reason,
        lab::v1::{
            ActiveLinkFault, AddLinkFaultRequest, AddLinkFaultResponse, ClearLinkFaultsRequest,
            ClearLinkFaultsResponse, Direction, LinkFault, LinkFaultCount, ListLinkFaultsRequest,
            ListLinkFaultsResponse, MessageKind, lab_service_server::LabService,
        },
    },
    services::{
        call::invalid,
        peer::{
            LinkLab,
            faults::{Kind, LEASE_MAX, RULES_MAX, Rule, Share, Way},
        },
    },
    types::{Duration, NodeId},
    wire::status::from_refusal,
};

/// Its name.
pub(crate) const SERVICE: &str = "quorate.lab.v1.LabService";

/// The shortest lease.
const LEASE_MIN: Duration = Duration::from_millis(1);

/// The service on one node.
#[derive(Debug)]
pub(crate) struct Lab {
    node: NodeId,
    links: Arc<LinkLab>,
}

impl Lab {
    pub(crate) const fn new(node: NodeId, links: Arc<LinkLab>) -> Self {
        Self { node, links }
    }
}

#[tonic::async_trait]
impl LabService for Lab {
    async fn add_link_fault(
        &self,
        request: Request<AddLinkFaultRequest>,
    ) -> Result<Response<AddLinkFaultResponse>, Status> {
        let AddLinkFaultRequest { fault, lease } = request.into_inner();
        let rule = rule_of(&fault.unwrap_or_default()).map_err(invalid)?;
        if rule.peer == self.node {
            return Err(invalid("fault.peer_id: the node has no link to itself"));
        }
        let lease = span("lease", lease).map_err(invalid)?;
        if !(LEASE_MIN..=LEASE_MAX).contains(&lease) {
            return Err(invalid("lease: must lie between 1ms and 10min"));
        }
        tracing::info!(node = %self.node, ?rule, ?lease, "link fault");
        let fault_id = self.links.add(rule, lease).ok_or_else(|| {
            let words = format!("the node has {RULES_MAX} faults already: clear some");
            from_refusal(refusal(Reason::Overloaded, words))
        })?;
        Ok(Response::new(AddLinkFaultResponse { node_id: self.node.value(), fault_id }))
    }

    async fn list_link_faults(
        &self,
        _: Request<ListLinkFaultsRequest>,
    ) -> Result<Response<ListLinkFaultsResponse>, Status> {
        let faults = self.links.rules().into_iter().map(|(fault_id, rule, remaining)| {
            let (fault, remaining) = (Some(fault_of(&rule)), Some(proto(remaining)));
            ActiveLinkFault { fault_id, fault, remaining }
        });
        let counts = self.links.counts().into_iter().map(|(line, counts)| LinkFaultCount {
            peer_id: line.peer.value(),
            direction: direction_of(line.way).into(),
            kind: message_kind_of(line.kind).into(),
            dropped: counts.dropped,
            delayed: counts.delayed,
            duplicated: counts.duplicated,
            reordered: counts.reordered,
            cut: counts.cut,
        });
        Ok(Response::new(ListLinkFaultsResponse {
            node_id: self.node.value(),
            faults: faults.collect(),
            counts: counts.collect(),
        }))
    }

    async fn clear_link_faults(
        &self,
        request: Request<ClearLinkFaultsRequest>,
    ) -> Result<Response<ClearLinkFaultsResponse>, Status> {
        let cleared = self.links.clear(&request.into_inner().fault_ids);
        tracing::info!(node = %self.node, cleared, "link faults cleared");
        let cleared = u64::try_from(cleared).unwrap_or(u64::MAX);
        Ok(Response::new(ClearLinkFaultsResponse { node_id: self.node.value(), cleared }))
    }
}

fn rule_of(fault: &LinkFault) -> Result<Rule, String> {
    let share = |field: &str, value| {
        Share::of(value).ok_or_else(|| format!("fault.{field}: must lie between 0 and 1"))
    };
    if fault.peer_id == 0 {
        return Err("fault.peer_id: name the peer".to_owned());
    }
    let way = match fault.direction() {
        Direction::ToPeer => Way::To,
        Direction::FromPeer => Way::From,
        Direction::Unspecified => return Err("fault.direction: say to or from the peer".to_owned()),
    };
    let kinds = fault.kinds.iter().map(|kind| {
        let kind = MessageKind::try_from(*kind).ok().and_then(kind_of);
        kind.ok_or_else(|| "fault.kinds: one of them is not known".to_owned())
    });
    let rule = Rule {
        peer: NodeId::new(fault.peer_id),
        way,
        kinds: kinds.collect::<Result<_, _>>()?,
        drop: share("drop", fault.drop)?,
        delay: span("fault.delay", fault.delay)?,
        jitter: span("fault.jitter", fault.jitter)?,
        duplicate: share("duplicate", fault.duplicate)?,
        reorder: share("reorder", fault.reorder)?,
        cut: fault.cut,
        seed: fault.seed,
    };
    rule.check().map_err(|why| format!("fault: {why}"))?;
    Ok(rule)
}

fn fault_of(rule: &Rule) -> LinkFault {
    LinkFault {
        peer_id: rule.peer.value(),
        direction: direction_of(rule.way).into(),
        kinds: rule.kinds.iter().map(|kind| message_kind_of(*kind).into()).collect(),
        drop: rule.drop.value(),
        delay: Some(proto(rule.delay)),
        jitter: Some(proto(rule.jitter)),
        duplicate: rule.duplicate.value(),
        reorder: rule.reorder.value(),
        cut: rule.cut,
        seed: rule.seed,
    }
}

fn span(field: &str, span: Option<prost_types::Duration>) -> Result<Duration, String> {
    Duration::try_from(span.unwrap_or_default())
        .map_err(|_| format!("{field}: must not be negative"))
}

fn proto(span: Duration) -> prost_types::Duration {
    prost_types::Duration::try_from(span).expect("bounded by minutes")
}

const fn direction_of(way: Way) -> Direction {
    match way {
        Way::To => Direction::ToPeer,
        Way::From => Direction::FromPeer,
    }
}

const fn kind_of(kind: MessageKind) -> Option<Kind> {
    Some(match kind {
        MessageKind::Unspecified => return None,
        MessageKind::Control => Kind::Control,
        MessageKind::Vote => Kind::Vote,
        MessageKind::VoteAnswer => Kind::VoteAnswer,
        MessageKind::Heartbeat => Kind::Heartbeat,
        MessageKind::HeartbeatAnswer => Kind::HeartbeatAnswer,
        MessageKind::Append => Kind::Append,
        MessageKind::AppendAnswer => Kind::AppendAnswer,
        MessageKind::Transfer => Kind::Transfer,
        MessageKind::Forward => Kind::Forward,
        MessageKind::ForwardAnswer => Kind::ForwardAnswer,
        MessageKind::Snapshot => Kind::Snapshot,
        MessageKind::SnapshotAnswer => Kind::SnapshotAnswer,
    })
}

const fn message_kind_of(kind: Kind) -> MessageKind {
    match kind {
        Kind::Control => MessageKind::Control,
        Kind::Vote => MessageKind::Vote,
        Kind::VoteAnswer => MessageKind::VoteAnswer,
        Kind::Heartbeat => MessageKind::Heartbeat,
        Kind::HeartbeatAnswer => MessageKind::HeartbeatAnswer,
        Kind::Append => MessageKind::Append,
        Kind::AppendAnswer => MessageKind::AppendAnswer,
        Kind::Transfer => MessageKind::Transfer,
        Kind::Forward => MessageKind::Forward,
        Kind::ForwardAnswer => MessageKind::ForwardAnswer,
        Kind::Snapshot => MessageKind::Snapshot,
        Kind::SnapshotAnswer => MessageKind::SnapshotAnswer,
    }
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;

    fn lab() -> Lab {
        Lab::new(NodeId::new(1), Arc::default())
    }

    fn fault() -> LinkFault {
        LinkFault {
            peer_id: 2,
            direction: Direction::ToPeer.into(),
            drop: 0.25,
            delay: Some(proto(Duration::from_millis(10))),
            jitter: Some(proto(Duration::from_millis(5))),
            kinds: vec![MessageKind::Append.into(), MessageKind::SnapshotAnswer.into()],
            seed: 9,
            ..Default::default()
        }
    }

    async fn add(
        lab: &Lab,
        fault: LinkFault,
        lease_ms: i32,
    ) -> Result<AddLinkFaultResponse, Status> {
        let lease = prost_types::Duration { seconds: 0, nanos: lease_ms * 1_000_000 };
        let request = AddLinkFaultRequest { fault: Some(fault), lease: Some(lease) };
        Ok(lab.add_link_fault(Request::new(request)).await?.into_inner())
    }

    async fn list(lab: &Lab) -> ListLinkFaultsResponse {
        let listed = lab.list_link_faults(Request::new(ListLinkFaultsRequest {})).await;
        listed.expect("it lists").into_inner()
    }

    #[tokio::test]
    async fn a_fault_is_listed_as_it_was_asked_for_until_it_is_cleared() {
        let lab = lab();
        let added = add(&lab, fault(), 900).await.expect("it fits");
        assert_eq!((added.node_id, added.fault_id), (1, 1));
        let listed = list(&lab).await;
        assert_eq!((listed.node_id, listed.faults.len()), (1, 1));
        assert_eq!(listed.faults[0].fault, Some(fault()));
        let cleared = lab.clear_link_faults(Request::new(ClearLinkFaultsRequest::default())).await;
        assert_eq!(cleared.expect("cleared").into_inner().cleared, 1);
        assert!(list(&lab).await.faults.is_empty());
    }

    #[tokio::test]
    async fn what_does_not_fit_is_named() {
        let lab = lab();
        let cases: [(LinkFault, i32, &str); 8] = [
            (LinkFault { peer_id: 0, ..fault() }, 1, "peer_id"),
            (LinkFault { peer_id: 1, ..fault() }, 1, "peer_id"),
            (LinkFault { direction: 0, ..fault() }, 1, "direction"),
            (LinkFault { kinds: vec![99], ..fault() }, 1, "kinds"),
            (LinkFault { drop: 1.5, ..fault() }, 1, "drop"),
            (LinkFault { cut: true, ..fault() }, 1, "cut"),
            (fault(), 0, "lease"),
            (fault(), -1, "lease"),
        ];
        for (fault, lease, named) in cases {
            let refused = add(&lab, fault, lease).await.expect_err(named);
            assert_eq!(refused.code(), Code::InvalidArgument, "{refused:?}");
            assert!(refused.message().contains(named), "{refused:?}");
        }
        assert!(list(&lab).await.faults.is_empty());
    }

    #[test]
    fn every_kind_has_a_name_on_the_wire() {
        for number in 1..=12 {
            let wire = MessageKind::try_from(number).expect("known");
            assert_eq!(kind_of(wire).map(message_kind_of), Some(wire));
        }
        assert_eq!(kind_of(MessageKind::Unspecified), None);
    }
}
