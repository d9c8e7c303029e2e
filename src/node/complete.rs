//! What follows from applied entries, without any thread: the feed is published, calls end, the
//! directory learns of members, and the replica gets its report.
//!
//! The applier's thread and the simulator both go through here.

use crate::{
    machine::{Applied, Head, View, store::StoreError},
    node::{Directory, Feed, FeedHead, Published, calls::is_internal, replica::AppliedReport},
    pb::command::v1::{Origin, Outcome, Reason, outcome},
    types::{ClusterId, NodeId},
};

/// Those who wait for outcomes in this process.
pub(crate) trait Callers {
    /// Ends a call; `false` where nobody waits for it any more.
    fn settle(&mut self, sequence: u64, outcome: Outcome) -> bool;

    /// A call stands in a line now.
    fn park(&mut self, sequence: u64);

    /// The log knows this node on another disk: it cannot go on (rule 20).
    fn refused_identity(&mut self, words: &str);
}

/// Publishes, then completes the calls of this process: whoever gets an answer finds its effect in
/// the feed. `before` is the head that the entries were applied to, `own` this node and its start.
pub(crate) fn complete(
    applied: Applied,
    before: &Head,
    feed: &Feed,
    own: (NodeId, u64),
    callers: &mut impl Callers,
) -> AppliedReport {
    let head = applied.head;
    if applied.leapt {
        feed.installed(feed_head(&head));
    } else {
        let batch = Published {
            revision_before: before.revision,
            revision: head.revision,
            position_before: before.position,
            position: head.position,
            changes: applied.changes,
            events: applied.events,
        };
        feed.publish(head.index, batch);
    }
    let mut report = AppliedReport {
        index: head.index,
        term: head.term,
        sessions: applied.sessions,
        next_timer: applied.next_timer,
        ..AppliedReport::default()
    };
    let ours = |origin: &Origin| (NodeId::new(origin.node_id), origin.boot) == own;
    for (origin, outcome) in applied.outcomes {
        if !ours(&origin) {
            continue;
        }
        report.completed.push(origin.sequence);
        if is_internal(origin.sequence) {
            notice_own(&outcome, callers);
            continue;
        }
        let granted = match &outcome.result {
            Some(outcome::Result::Acquire(grant)) => Some(grant.name.clone()),
            _ => None,
        };
        let delivered = callers.settle(origin.sequence, outcome);
        if let (Some(name), false) = (granted, delivered) {
            report.undelivered.push((name, origin.sequence));
        }
    }
    let parked = applied.parked.into_iter().filter(|(origin, _)| ours(origin));
    let parked = parked.inspect(|(origin, _)| callers.park(origin.sequence));
    report.parked = parked.map(|(origin, session)| (origin.sequence, session)).collect();
    report
}

/// The answer to a command of the node's own: a refused registration is the end.
fn notice_own(outcome: &Outcome, callers: &mut impl Callers) {
    if let Some(outcome::Result::Refusal(refusal)) = &outcome.result
        && refusal.reason() == Reason::WrongIdentity
    {
        callers.refused_identity(&refusal.message);
    }
}

/// Where the feed stands with a state that was not reached through it.
pub(crate) fn feed_head(head: &Head) -> FeedHead {
    let Head { index, revision, position, .. } = *head;
    FeedHead { index, revision, position, installs: 0 }
}

/// What the state says of cluster and members.
#[derive(Debug)]
pub(crate) enum Learned {
    /// The cluster is not founded.
    Nothing,
    /// It is another cluster's; in words.
    Foreign(String),
    /// The directory knows the members now.
    Members {
        /// The cluster, where it was not known before.
        founded_now: Option<ClusterId>,
        /// Whether this node is registered, with its disk and addresses.
        registered: bool,
    },
}

/// Takes over what the state says of cluster and members into the directory.
pub(crate) fn learn(view: &View, directory: &Directory) -> Result<Learned, StoreError> {
    let Some(cluster_id) = view.cluster_id()? else { return Ok(Learned::Nothing) };
    let founded_now = match directory.cluster_id() {
        Some(known) if known != cluster_id => {
            return Ok(Learned::Foreign(format!(
                "this data directory belongs to cluster {known}, the log to cluster {cluster_id}: \
                 a foreign directory; start with the right --data-dir"
            )));
        }
        Some(_) => None,
        None => {
            directory.found(cluster_id);
            Some(cluster_id)
        }
    };
    let members = view.members()?;
    directory.registered(&members);
    // A node that moved to other addresses registers again.
    let current = members.iter().any(|member| {
        member.node_id == directory.node_id.value()
            && member.client_address == directory.client_address
            && member.peer_address == directory.peer_address
    });
    let registered = current && directory.is_registered();
    Ok(Learned::Members { founded_now, registered })
}
